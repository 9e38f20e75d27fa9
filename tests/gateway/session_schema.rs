//! The page and the schema of the session protocol say the same, and the page keeps its own promises.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::schema::{SCHEMA, check_client, check_server, is_client, is_server};

const PAGE: &str = include_str!("../../proto/session/pushgate.v1.json.md");

/// One line of a transcript. The number tells connections apart that are open at one time.
#[derive(Debug)]
enum Line {
    Connect(u8),
    Client(u8, Value),
    /// A message that is no frame of the protocol.
    Wrong(String),
    Server(u8, Value),
    Close(Side, u16),
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// The transcripts of the page, each with its heading.
fn transcripts() -> Vec<(&'static str, Vec<Line>)> {
    let mut transcripts = Vec::new();
    let (mut heading, mut open) = ("", None::<Vec<Line>>);
    for line in PAGE.lines() {
        match &mut open {
            None if line == "```transcript" => open = Some(Vec::new()),
            None => heading = line.strip_prefix("### ").unwrap_or(heading),
            Some(_) if line == "```" => transcripts.push((heading, open.take().unwrap())),
            Some(lines) => lines.extend(read(line)),
        }
    }
    assert!(open.is_none(), "the last transcript does not end");
    transcripts
}

/// A line as the page explains it; `None` for one that is for people.
fn read(line: &str) -> Option<Line> {
    if line.starts_with('#') {
        return None;
    }
    let (side, rest) = match line.split_at_checked(1) {
        Some(("C", rest)) => (Side::Client, rest),
        Some(("S", rest)) => (Side::Server, rest),
        _ => panic!("neither side: {line}"),
    };
    if let Some(wrong) = rest.strip_prefix("! ").filter(|_| side == Side::Client) {
        return Some(Line::Wrong(wrong.to_owned()));
    }
    let (number, said) = rest.split_once(": ").unwrap_or_else(|| panic!("nothing said: {line}"));
    let number = if number.is_empty() { 1 } else { number.parse().unwrap() };
    Some(match (side, said) {
        (Side::Client, "connect") => Line::Connect(number),
        (Side::Client, "reset") => Line::Reset,
        (side, said) => match (side, said.strip_prefix("close ")) {
            (side, Some(close)) => Line::Close(side, read_close(close)),
            (Side::Client, None) => Line::Client(number, read_frame(said)),
            (Side::Server, None) => Line::Server(number, read_frame(said)),
        },
    })
}

fn read_frame(said: &str) -> Value {
    serde_json::from_str(said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn read_close(close: &str) -> u16 {
    let (code, text) = close.split_once(' ').unwrap();
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap();
    assert!(text.len() <= 123, "RFC 6455 section 5.5: a text over 123 bytes does not fit in a close frame");
    code.parse().unwrap()
}

/// The values that a definition of the schema allows for a frame's type.
fn types(side: &str) -> BTreeSet<&'static str> {
    let refs = SCHEMA["$defs"][side]["oneOf"].as_array().unwrap();
    refs.iter().map(|frame| frame["$ref"].as_str().unwrap().strip_prefix("#/$defs/").unwrap()).collect()
}

#[test]
fn every_frame_of_a_transcript_fits_the_schema() {
    let transcripts = transcripts();
    assert_eq!(transcripts.len(), 16, "every case of the page was read");
    for (_, lines) in &transcripts {
        for line in lines {
            match line {
                Line::Client(_, frame) => {
                    check_client(frame);
                    assert!(!is_server(frame), "from the wrong side: {frame}");
                }
                Line::Server(_, frame) => {
                    check_server(frame);
                    assert!(!is_client(frame), "from the wrong side: {frame}");
                }
                Line::Wrong(text) => {
                    let frame = serde_json::from_str(text);
                    assert!(!frame.is_ok_and(|frame| is_client(&frame)), "this is a good frame: {text}");
                }
                Line::Connect(_) | Line::Close(..) | Line::Reset => {}
            }
        }
    }
}

#[test]
fn every_frame_of_the_schema_is_on_the_page_and_in_a_transcript() {
    let (mut from_client, mut from_server) = (BTreeSet::new(), BTreeSet::new());
    let transcripts = transcripts();
    for line in transcripts.iter().flat_map(|(_, lines)| lines) {
        match line {
            Line::Client(_, frame) => from_client.insert(frame["type"].as_str().unwrap()),
            Line::Server(_, frame) => from_server.insert(frame["type"].as_str().unwrap()),
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
    for (heading, lines) in transcripts() {
        let mut last = BTreeMap::new();
        for line in lines {
            match line {
                Line::Connect(number) => assert!(last.insert(number, None).is_none_or(|_| number == 1), "{heading}"),
                Line::Server(number, frame) => {
                    let last = last.get_mut(&number).unwrap();
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
                Line::Client(number, frame) if frame["type"] == "ack" => {
                    // The page shows an ack of a number that was not sent, and one before the bind.
                    let known = last[&number].is_none_or(|last| frame["seq"].as_u64() <= Some(last));
                    assert!(known || heading == "Acks", "{heading}: {frame}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn every_close_code_of_a_transcript_is_in_the_table() {
    for (heading, lines) in transcripts() {
        for line in lines {
            let Line::Close(side, code) = line else { continue };
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
    for (key, wrong) in [
        ("type", json!("push")),
        ("type", json!("BIND")),
        ("token", json!("")),
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
