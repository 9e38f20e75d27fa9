//! Secrets with known words in them, at every door and in every refusal, with the log at its most talkative. None of them
//! comes out anywhere: not in the log, in a metric, in an answer to somebody else or in what the command prints.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use pushgate::proto::{BroadcastRequest, DropRequest, PushBatchRequest, PushRequest, broadcast_request};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::door::Door;
use crate::floods::{UPGRADE, session_upgrade, websocket};
use crate::process::{self, GatewayProcess};
use crate::support::certificates::Authority;
use crate::support::push_request;
use crate::support::signer::{Signer, claims};
use crate::support::soon;
use crate::support::tls::Speaks;

const KEY: &str = "canary-key-canary-key";
const HASHED_KEY: &str = "canary-hashed-canary-key";
/// `printf canary-hashed-canary-key | sha256sum`, of which the log must not have the begin either.
const HASH: &str = "832a13dc48323c9ab0fca267214ac9df07f0ef657905e3cb8baa60c53cf20ceb";

/// What must not come out.
struct Secrets(Vec<String>);

impl Secrets {
    fn new(more: impl IntoIterator<Item = String>) -> Self {
        // The first is in all words that this file makes up, the second is its base64.
        let mut secrets: Vec<String> = ["canary", "Y2FuYXJ5", &HASH[..16]].map(str::to_owned).into();
        secrets.extend(more);
        assert!(secrets.iter().all(|secret| secret.len() >= 6), "{secrets:?}");
        Self(secrets)
    }

    /// The lines of a text that hold a secret.
    fn found_in(&self, what: &str, text: &str) -> Vec<String> {
        assert!(!text.is_empty(), "{what} is empty");
        let holds_one = |line: &&str| self.0.iter().any(|secret| line.contains(secret));
        text.lines().filter(holds_one).map(|line| format!("{what}: {line}")).collect()
    }
}

/// Sends an upgrade and these frames, ends with a close frame, and returns all that comes.
async fn talk(door: &Door, upgrade: &[u8], frames: &[Vec<u8>]) -> String {
    let mut stream = door.open(([127, 0, 0, 1], 0).into()).await;
    // A gateway that refuses ends the connection before all is sent and read.
    let _refused = stream.write_all(&[upgrade, &frames.concat()].concat()).await;
    let mut answer = Vec::new();
    if upgrade == session_upgrade() {
        // Whatever is answered comes before the answer to this.
        let _refused = stream.write_all(&text(&json!({ "type": "ping" }))).await;
        while !String::from_utf8_lossy(&answer).contains("\"pong\"") {
            if !soon(stream.read_buf(&mut answer)).await.is_ok_and(|count| count > 0) {
                break;
            }
        }
    }
    let _refused = stream.write_all(&websocket(0x88, &1000u16.to_be_bytes())).await;
    let _reset = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn text(frame: &serde_json::Value) -> Vec<u8> {
    websocket(0x81, frame.to_string().as_bytes())
}

/// Each way in which a client shows a token, and in which that is refused. Returns what was answered, without what
/// is for the client alone, and the tokens of the sessions.
async fn clients(door: &Door, good: &str) -> (Vec<String>, Vec<String>) {
    let mut answers = Vec::new();
    let mut resumes = Vec::new();
    let bind = |token: &str, event: &str| json!({ "token": token, "event": event });
    for frames in [
        vec![text(&bind(good, "mail"))],
        vec![text(&bind(good, "mail")), text(&bind(good, "chat")), text(&bind("canary-other", "mail"))],
        vec![text(&bind("canary-wrong", "mail"))],
        vec![text(&bind(&"canary".repeat(1000), "mail"))],
        vec![text(&json!({ "token": { "canary": 1 }, "event": "mail" }))],
        vec![text(&bind(good, ""))],
        vec![text(&bind(good, &"canary".repeat(1000)))],
        vec![websocket(0x81, b"canary, not JSON")],
        vec![websocket(0x81, b"\"canary\xff\"")],
        vec![websocket(0x82, b"{\"token\":\"canary")],
        vec![websocket(0x81, &b"canary".repeat(10_000))],
        vec![websocket(0x83, b"canary")],
    ] {
        answers.push(talk(door, UPGRADE, &frames).await);
    }
    // Pings and close frames are sent back as they are, which only the log may not tell.
    talk(door, UPGRADE, &[websocket(0x89, b"canary"), websocket(0x8a, b"canary"), websocket(0x88, b"\x03\xe8canary")])
        .await;

    let session = session_upgrade();
    let bind = |token: &str, resume: serde_json::Value| {
        let mut bind = json!({ "type": "bind", "token": token, "event": "mail" });
        bind.as_object_mut().unwrap().extend(resume.as_object().unwrap().clone());
        text(&bind)
    };
    let bound = talk(door, &session, &[bind(good, json!({}))]).await;
    let resume = |answer: &str| {
        answer.split_once("\"resume\":\"").unwrap_or_else(|| panic!("{answer}")).1.split('"').next().unwrap().to_owned()
    };
    resumes.push(resume(&bound));
    for frames in [
        vec![bind(good, json!({ "resume": { "token": resumes[0], "seq": 0 } }))],
        vec![bind(good, json!({ "resume": { "token": resumes[0], "seq": 99 } }))],
        vec![bind(good, json!({ "resume": { "token": "canary-resume", "seq": 0 } }))],
        vec![bind("canary-wrong", json!({ "resume": { "token": resumes[0], "seq": 0 } }))],
        vec![bind(good, json!({})), text(&json!({ "type": "refresh", "token": "canary-wrong" }))],
        vec![bind(good, json!({})), text(&json!({ "type": "unbind", "event": "not-bound" }))],
        vec![bind(good, json!({})), text(&json!({ "type": "ack", "seq": 1_u64 << 40 }))],
        vec![bind(good, json!({})), text(&json!({ "type": "canary", "token": "canary" }))],
        vec![bind(good, json!({})), text(&json!({ "type": "ping", "canary": "canary" }))],
        vec![bind(good, json!({})), websocket(0x81, b"canary, not JSON")],
    ] {
        let answer = talk(door, &session, &frames).await;
        if let Some((_, rest)) = answer.split_once("\"resume\":\"") {
            resumes.push(rest.split('"').next().unwrap().to_owned());
        }
        // The resume token is for this client alone, and so is what it bound.
        answers.push(resumes.iter().fold(answer, |answer, resume| answer.replace(resume, "")));
    }

    let encoded = URL_SAFE_NO_PAD.encode("canary-wrong");
    let upgrade = std::str::from_utf8(UPGRADE).unwrap();
    for (path, header) in [
        (format!("/ws?token={good}"), String::new()),
        ("/ws?token=canary-wrong".to_owned(), String::new()),
        ("/ws?canary=canary&token=canary%ff".to_owned(), String::new()),
        ("/canary?token=canary".to_owned(), String::new()),
        ("/ws".to_owned(), format!("authorization: Bearer {good}\r\n")),
        ("/ws".to_owned(), "authorization: Bearer canary-wrong\r\n".to_owned()),
        ("/ws".to_owned(), "authorization: canary canary\r\n".to_owned()),
        ("/ws".to_owned(), "authorization: Basic Y2FuYXJ5OmNhbmFyeQ==\r\ncookie: canary=canary\r\n".to_owned()),
        ("/ws".to_owned(), format!("sec-websocket-protocol: pushgate.v1.json, pushgate.token.{encoded}\r\n")),
        ("/ws".to_owned(), "sec-websocket-protocol: pushgate.token.canary!\r\n".to_owned()),
        ("/ws".to_owned(), "origin: https://other.example.com\r\n".to_owned()),
        ("/ws?token=canary".to_owned(), "bad header canary\r\n".to_owned()),
    ] {
        let head = upgrade.replace("/ws", &path).replace("host: x\r\n", &format!("host: x\r\n{header}"));
        let bind = text(&json!({ "event": "mail" }));
        answers.push(talk(door, head.as_bytes(), std::slice::from_ref(&bind)).await);
        answers.push(talk(door, head.replace("version: 13", "version: 12").as_bytes(), &[bind]).await);
    }
    (answers, resumes)
}

/// Each way in which a caller pushes by JSON, and in which that is refused.
async fn json_callers(door: &Door) -> Vec<String> {
    let body = r#"{"userId":"canary-user","event":"mail","message":"canary-body"}"#;
    let keyed = body.replace('}', r#","idempotencyKey":"canary-idempotency"}"#);
    let other = keyed.replace("body", "other");
    let batch = format!(r#"{{"pushes":[{body},{{"userId":"","event":"canary"}}]}}"#);
    let key = format!("x-api-key: {KEY}\r\n");
    let json = format!("{key}accept: application/json\r\n");
    let mut answers = Vec::new();
    for (target, head, body) in [
        ("POST /push", &key[..], body),
        ("POST /push", &json, &keyed),
        ("POST /push", &json, &keyed),
        ("POST /push", &json, &other),
        ("POST /push", &json, r#"{"userId":"canary-user","event":"mail","other-field":1}"#),
        ("POST /push", &json, r#"{"userId":"canary-user","userId":"canary-user"}"#),
        ("POST /push", &json, r#"{"userId":"canary-user","event":"mail","message":"canary-body","waitFor":"canary"}"#),
        ("POST /push", &json, r#"{"userId":"somebody","event":"canary"#),
        ("POST /push", &json, "canary"),
        ("POST /push", &key, "canary"),
        ("POST /push", &format!("x-api-key: {HASHED_KEY}\r\n"), body),
        ("POST /push", &format!("authorization: Bearer {HASHED_KEY}\r\naccept: application/json\r\n"), body),
        ("POST /push", "x-api-key: canary-wrong-key-canary\r\n", body),
        ("POST /push", "authorization: Basic Y2FuYXJ5OmNhbmFyeQ==\r\naccept: application/json\r\n", body),
        ("POST /push", "", body),
        ("POST /push", &format!("{key}content-encoding: canary\r\n"), body),
        ("POST /push/batch", &key, &batch),
        ("GET /push?token=canary", &key, ""),
        ("POST /canary/canary?canary", &key, body),
        ("GET /metrics?canary", "cookie: canary\r\n", ""),
        ("GET /healthz?canary", "", ""),
        ("GET /readyz?canary", "", ""),
        ("GET /?canary", "", ""),
        ("CANARY /push", &key, ""),
        ("POST /push", &format!("{key}canary header without a colon\r\n"), ""),
    ] {
        let request = format!(
            "{target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{head}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        answers.push(door.ask(&request).await.unwrap_or_else(|| panic!("{request}")));
    }
    answers
}

/// The same by gRPC.
async fn grpc_callers(door: &Door) -> Vec<String> {
    let mut answers = Vec::new();
    let good = push_request("canary-user", "mail", "canary-body");
    let keyed = PushRequest { idempotency_key: "canary-idempotency-2".to_owned(), ..good.clone() };
    let pushes = [
        good.clone(),
        keyed.clone(),
        PushRequest { payload: push_request("", "", "canary-other").payload, ..keyed },
        push_request("canary-user", "", "canary-body"),
        push_request(&"canary".repeat(1000), "mail", "canary-body"),
        push_request("canary-user", "mail", &"canary".repeat(100_000)),
        PushRequest { collapse_key: "canary".repeat(1000), ..good.clone() },
        PushRequest { connection_id: "canary".to_owned(), ..good.clone() },
        PushRequest { wait_for: 77, ..good.clone() },
    ];
    for key in [Some(KEY), Some(HASHED_KEY), Some("canary-wrong-key-canary"), Some("canary\u{7f}"), None] {
        let mut client = door.grpc().await.client;
        macro_rules! call {
            ($method:ident, $message:expr) => {
                let mut request = tonic::Request::new($message);
                if let Some(Ok(key)) = key.map(|key| format!("Bearer {key}").parse()) {
                    request.metadata_mut().insert("authorization", key);
                }
                match soon(client.$method(request)).await {
                    Ok(answer) => answers.push(format!("{:?}", answer.into_inner())),
                    Err(status) => {
                        answers.push(format!("{status} {:?} {:?}", status.message(), status.metadata()));
                        answers.push(format!("{:?}", String::from_utf8_lossy(status.details())));
                    }
                }
            };
        }
        for push in &pushes {
            call!(push, push.clone());
        }
        call!(push_batch, PushBatchRequest { pushes: pushes.to_vec() });
        let payload = Some(broadcast_request::Payload::Message("canary-body".to_owned()));
        call!(broadcast, BroadcastRequest { event: "mail".to_owned(), payload, ..BroadcastRequest::default() });
        call!(drop, DropRequest { user_id: "canary-user".to_owned(), event: "canary".to_owned() });
        call!(drop, DropRequest { user_id: String::new(), event: "canary".to_owned() });
    }
    answers
}

/// A folder with the push keys, and the settings for it.
fn push_keys(folder: &Path) -> std::path::PathBuf {
    let keys = folder.join("keys.toml");
    let entry = |name: &str, key: &str, more: &str| format!("[[key]]\nname = \"{name}\"\n{key}\n{more}\n");
    let text = [
        entry("plain", &format!("key = \"{KEY}\""), ""),
        entry("hashed", &format!("key_sha256 = \"{HASH}\""), "users = [\"canary-users-*\"]\nrate = 0.001\nburst = 1"),
    ];
    std::fs::write(&keys, text.concat()).unwrap();
    keys
}

async fn nothing_leaks(signer: Option<Signer>, is_tls: bool) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("authority");
    let pem = authority.issue("gateway", &["localhost"], 2100);
    let keys = push_keys(folder.path());
    let mut command = process::pushgate();
    command.env("PUSHGATE_LOG", "trace").env("PUSHGATE_TOKEN_IN_URL", "true").env("PUSHGATE_PAGE", "on");
    command.env("PUSHGATE_CONTROL_LISTEN", "127.0.0.1:0").env("PUSHGATE_PUSH_KEYS_FILE", &keys);
    command.env("PUSHGATE_ORIGINS_ALLOWED", "https://example.com");
    let tokens = folder.path().join("tokens");
    let good = match &signer {
        Some(signer) => {
            let is_hmac = signer.algorithm == Algorithm::HS256;
            std::fs::write(&tokens, if is_hmac { signer.secret().to_owned() } else { signer.public_pem() }).unwrap();
            command.env("PUSHGATE_JWT_KEYS_FILE", &tokens);
            command.env("PUSHGATE_JWT_ALGORITHMS", if is_hmac { "HS256" } else { "RS256" });
            signer.token(&claims(&json!({ "sub": "canary-user" })))
        }
        None => {
            std::fs::write(&tokens, "canary-token = \"canary-user\"\ncanary-other = \"canary-else\"\n").unwrap();
            command.env("PUSHGATE_TOKENS_FILE", &tokens);
            "canary-token".to_owned()
        }
    };
    let mut speaks = None;
    if is_tls {
        for side in ["", "CONTROL_"] {
            command.env(format!("PUSHGATE_{side}TLS_CERT_FILE"), &pem.certificate);
            command.env(format!("PUSHGATE_{side}TLS_KEY_FILE"), &pem.key);
        }
        speaks = Some(Speaks::with(&authority));
    }
    let mut gateway = tokio::task::block_in_place(|| GatewayProcess::start_as(&mut command));
    let mut print = process::pushgate();
    print.arg("print-config").envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let printed = tokio::task::block_in_place(|| print.output().unwrap());
    let private_key = std::fs::read_to_string(&pem.key).unwrap();

    let door = Door::new(gateway.clients, speaks.clone());
    let control = Door::new(gateway.control, speaks);
    let (mut answers, resumes) = clients(&door, &good).await;
    answers.extend(json_callers(&control).await);
    answers.extend(grpc_callers(&control).await);
    // Files that no longer parse: what is told of them is not what is in them.
    std::fs::write(&tokens, "canary-token = canary\n").unwrap();
    std::fs::write(&keys, format!("[[key]]\nname = \"plain\"\nkey = \"{KEY}\nkey_sha256 = \"canary\"\n")).unwrap();
    std::fs::write(&pem.key, private_key.replace("-----END", "canary\n-----END")).unwrap();
    tokio::task::block_in_place(|| {
        gateway.signal("HUP");
        gateway.process.stderr_line("not reloaded");
        gateway.signal("TERM");
        gateway.wait();
    });

    let signature = good.rsplit('.').next().unwrap().to_owned();
    let of_the_key = private_key.lines().filter(|line| !line.starts_with('-')).map(str::to_owned);
    let secret =
        signer.iter().filter(|signer| signer.algorithm == Algorithm::HS256).map(|signer| signer.secret().to_owned());
    let secrets = Secrets::new([good.clone(), signature].into_iter().chain(of_the_key).chain(secret).chain(resumes));
    let log = gateway.stderr();
    assert!(log.contains("TRACE"), "{log}");
    let mut found = secrets.found_in("print-config", &String::from_utf8(printed.stdout).unwrap());
    found.extend(answers.iter().flat_map(|answer| secrets.found_in("an answer", answer)));
    found.extend(secrets.found_in("the log", &log));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_comes_out_of_any_door_or_refusal_with_tokens_from_a_file() {
    nothing_leaks(None, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_comes_out_of_any_door_or_refusal_with_jwts() {
    nothing_leaks(Some(Signer::new(Algorithm::HS256)), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_comes_out_of_any_door_or_refusal_over_tls() {
    nothing_leaks(Some(Signer::new(Algorithm::RS256)), true).await;
}
