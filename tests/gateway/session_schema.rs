//! The page and the schema of the session protocol say the same, and the page keeps its own promises.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::schema::{SCHEMA, check_client, check_server, is_client, is_server};
use crate::support::transcript::{Line, PAGE, Side, Step, Transcript, transcripts};

/// The values that a definition of the schema allows for a frame's type.
fn types(side: &str) -> BTreeSet<&'static str> {
    let refs = SCHEMA["$defs"][side]["oneOf"].as_array().unwrap();
    refs.iter().map(|frame| frame["$ref"].as_str().unwrap().strip_prefix("#/$defs/").unwrap()).collect()
}

#[test]
fn every_frame_of_a_transcript_fits_the_schema() {
    let transcripts = transcripts();
    assert_eq!(transcripts.len(), 17, "every case of the page was read");
    for Transcript { lines, .. } in &transcripts {
        for Line { step, .. } in lines {
            match step {
                Step::Client(frame) => {
                    check_client(frame);
                    assert!(!is_server(frame), "from the wrong side: {frame}");
                }
                Step::Server(frame) => {
                    check_server(frame);
                    assert!(!is_client(frame), "from the wrong side: {frame}");
                }
                Step::Wrong(text) => {
                    let frame = serde_json::from_str(text);
                    assert!(!frame.is_ok_and(|frame| is_client(&frame)), "this is a good frame: {text}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn every_frame_of_the_schema_is_on_the_page_and_in_a_transcript() {
    let (mut from_client, mut from_server) = (BTreeSet::new(), BTreeSet::new());
    let transcripts = transcripts();
    for Line { step, .. } in transcripts.iter().flat_map(|transcript| &transcript.lines) {
        match step {
            Step::Client(frame) => from_client.insert(frame["type"].as_str().unwrap()),
            Step::Server(frame) => from_server.insert(frame["type"].as_str().unwrap()),
            _ => continue,
        };
    }
    assert_eq!(from_client, types("client"));
    assert_eq!(from_server, types("server"));
    for name in types("client").union(&types("server")) {
        assert_eq!(SCHEMA["$defs"][name]["properties"]["type"]["const"], *name);
        assert!(PAGE.contains(&format!("\n### `{name}`\n")), "{name} has no section");
        for key in SCHEMA["$defs"][name]["properties"].as_object().unwrap().keys().filter(|key| *key != "type") {
            let (_, section) = PAGE.split_once(&format!("\n### `{name}`\n")).unwrap();
            let section = section.split("\n### ").next().unwrap();
            assert!(section.contains(&format!("\n| `{key}` | ")), "{name} does not explain {key}");
        }
    }
    for code in SCHEMA["$defs"]["error_code"]["enum"].as_array().unwrap() {
        assert!(PAGE.contains(&format!("\n| `{}` | ", code.as_str().unwrap())), "{code} is not explained");
    }
}

#[test]
fn no_transcript_has_a_silent_gap() {
    for Transcript { heading, lines } in transcripts() {
        let mut last = BTreeMap::new();
        for Line { connection, step, .. } in lines {
            match step {
                Step::Connect => assert!(last.insert(connection, None).is_none_or(|_| connection == 1), "{heading}"),
                Step::Server(frame) => {
                    let last = last.get_mut(&connection).unwrap();
                    let first = match frame["type"].as_str().unwrap() {
                        "push" => frame["seq"].as_u64(),
                        "gap" => frame["from"].as_u64(),
                        "bound" => {
                            let seq = frame["seq"].as_u64();
                            assert!(last.is_none() || *last == seq, "{heading}: {frame}");
                            *last = seq;
                            continue;
                        }
                        _ => continue,
                    };
                    assert_eq!(first, last.map(|last| last + 1), "{heading}: {frame}");
                    *last = frame["to"].as_u64().or(first);
                    assert!(*last >= first, "{heading}: {frame}");
                }
                Step::Client(frame) if frame["type"] == "ack" => {
                    // The page shows an ack of a number that was not sent, and one before the bind.
                    let known = last[&connection].is_none_or(|last| frame["seq"].as_u64() <= Some(last));
                    assert!(known || heading == "Acks", "{heading}: {frame}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn every_close_code_of_a_transcript_is_in_the_table() {
    for Transcript { heading, lines } in transcripts() {
        for Line { step, .. } in lines {
            let Step::Close(side, code, _) = step else { continue };
            let sender = if side == Side::Client { "client" } else { "gateway" };
            assert!(PAGE.contains(&format!("\n| {code} | {sender} | ")), "{heading}: {code} by the {sender}");
        }
    }
}

#[test]
fn wrong_frames_of_the_gateway_are_refused() {
    let push = json!({ "type": "push", "seq": 1, "id": "a-1", "event": "mail", "message": "m" });
    check_server(&push);
    check_server(&changed(&push, "unknown", &json!([1])));
    for (key, wrong) in [
        ("type", json!("Push")),
        ("type", json!("bind")),
        ("type", Value::Null),
        ("seq", json!(0)),
        ("seq", json!(-1)),
        ("seq", json!(1.5)),
        ("seq", json!("1")),
        ("seq", json!(1_u64 << 53)),
        ("id", json!("")),
        ("id", json!("a b")),
        ("event", json!("")),
        ("event", json!("e".repeat(1025))),
        ("message", json!("")),
        ("message", json!(7)),
        ("binary", json!("AP8Q")),
    ] {
        assert!(!is_server(&changed(&push, key, &wrong)), "{key} {wrong}");
    }
    for key in ["type", "seq", "id", "event", "message"] {
        assert!(!is_server(&without(&push, key)), "{key}");
    }
    let bytes = changed(&without(&push, "message"), "binary", &json!("AP8Q"));
    check_server(&bytes);
    for wrong in ["", "AP8", "AP8Q=", "AP-_", "AP8Q\n", "===="] {
        assert!(!is_server(&changed(&bytes, "binary", &json!(wrong))), "{wrong:?}");
    }
    let bound = json!({
        "type": "bound", "event": "mail", "connection_id": "a-1", "epoch": "a-1", "resume": "r", "seq": 0,
    });
    check_server(&bound);
    for key in ["event", "connection_id", "epoch", "resume", "seq"] {
        assert!(!is_server(&without(&bound, key)), "{key}");
    }
    for (key, wrong) in [("recovered", json!("yes")), ("recovered", Value::Null), ("expires_in_ms", json!(-1))] {
        assert!(!is_server(&changed(&bound, key, &wrong)), "{key} {wrong}");
    }
    for wrong in [
        json!({ "type": "welcome" }),
        json!({ "type": "welcome", "bind_timeout_ms": 0, "ping_interval_ms": 25_000 }),
        json!({ "type": "gap", "from": 0, "to": 1 }),
        json!({ "type": "gap", "from": 2 }),
        json!({ "type": "error", "code": "no_such_code", "message": "text" }),
        json!({ "type": "error", "code": "last_event" }),
        json!({ "type": "goaway" }),
        json!({ "type": "unbound" }),
        json!({ "type": "refreshed", "expires_in_ms": null }),
        json!("pong"),
        json!([{ "type": "pong" }]),
    ] {
        assert!(!is_server(&wrong), "{wrong}");
    }
}

#[test]
fn wrong_frames_of_a_client_are_refused() {
    let bind =
        json!({ "type": "bind", "token": "t", "event": "mail", "resume": { "token": "r", "seq": 0, "unknown": 1 } });
    check_client(&bind);
    check_client(&without(&bind, "resume"));
    check_client(&changed(&bind, "token", &json!("t".repeat(16_384))));
    check_client(&changed(&bind, "token", &json!("")));
    for (key, wrong) in [
        ("type", json!("push")),
        ("type", json!("BIND")),
        ("token", json!("t".repeat(16_385))),
        ("token", json!(17)),
        ("event", json!("")),
        ("event", Value::Null),
        ("resume", Value::Null),
        ("resume", json!("r")),
        ("resume", json!({ "token": "r" })),
        ("resume", json!({ "seq": 1 })),
        ("resume", json!({ "token": "", "seq": 1 })),
        ("resume", json!({ "token": "r", "seq": -1 })),
    ] {
        assert!(!is_client(&changed(&bind, key, &wrong)), "{key} {wrong}");
    }
    for wrong in [
        json!({}),
        json!({ "type": "bind", "token": "t" }),
        json!({ "type": "bind", "event": "mail" }),
        json!({ "type": "unbind" }),
        json!({ "type": "ack" }),
        json!({ "type": "ack", "seq": -1 }),
        json!({ "type": "ack", "seq": "1" }),
        json!({ "type": "refresh" }),
        json!({ "type": "refresh", "token": "" }),
        json!({ "type": "pong" }),
        json!("ping"),
        Value::Null,
    ] {
        assert!(!is_client(&wrong), "{wrong}");
    }
}

#[test]
#[should_panic(expected = "no frame of a gateway")]
fn a_frame_that_does_not_fit_fails_the_test_that_saw_it() {
    check_server(&json!({ "type": "push", "seq": 0 }));
}

fn changed(frame: &Value, key: &str, value: &Value) -> Value {
    let mut frame = frame.clone();
    frame[key] = value.clone();
    frame
}

fn without(frame: &Value, key: &str) -> Value {
    let mut frame = frame.clone();
    frame.as_object_mut().unwrap().remove(key);
    frame
}
