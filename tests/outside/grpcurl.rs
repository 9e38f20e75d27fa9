//! An operator with grpcurl, and an older tool that only knows v1alpha of server reflection.

use std::process::Command;

use serde_json::{Value, json};

use crate::process::{GatewayProcess, pushgate};
use crate::readme;
use crate::tools::{run, run_badly, tool};
use crate::user::User;

const PUSH: &str = "pushgate.v1.PushService/Push";
const HELLO: &str = r#"{"user_id": "ann", "event": "mail", "message": "hello"}"#;
const KEY: &str = "0123456789abcdef";

/// `grpcurl -plaintext ARGS`
#[track_caller]
fn grpcurl<const N: usize>(args: [&str; N]) -> Command {
    let mut command = tool("bin/grpcurl");
    command.arg("-plaintext").args(args);
    command
}

#[track_caller]
fn answer<const N: usize>(args: [&str; N]) -> Value {
    let text = run(&mut grpcurl(args));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

fn open() -> (GatewayProcess, String) {
    let gateway = GatewayProcess::start::<&str>([]);
    let address = gateway.control.to_string();
    (gateway, address)
}

#[test]
#[ignore = "needs grpcurl"]
fn grpcurl_finds_the_services_and_their_comments_by_reflection() {
    let (_gateway, address) = open();
    let services = run(&mut grpcurl([&address, "list"]));
    for service in ["pushgate.v1.PushService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"] {
        assert!(services.lines().any(|line| line == service), "{service} is not in\n{services}");
    }
    let service = run(&mut grpcurl([&address, "describe", "pushgate.v1.PushService"]));
    assert!(service.contains("rpc Push ( .pushgate.v1.PushRequest ) returns ( .pushgate.v1.PushResponse );"));
    assert!(service.contains("// Push sends one message to every connection"), "no comments in\n{service}");
}

#[test]
#[ignore = "needs Python with grpcio-reflection"]
fn a_tool_that_knows_only_reflection_v1alpha_finds_the_services_too() {
    let (_gateway, address) = open();
    let script = "
import sys, grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
with grpc.insecure_channel(sys.argv[1]) as channel:
    database = ProtoReflectionDescriptorDatabase(channel)
    print(*database.get_services())
    service = DescriptorPool(database).FindServiceByName('pushgate.v1.PushService')
    print(*[method.name for method in service.methods])
";
    let found = run(tool("venv/bin/python").args(["-c", script, &address]));
    assert!(found.contains("pushgate.v1.PushService"), "{found}");
    assert!(found.lines().any(|methods| methods.starts_with("Push PushBatch")), "{found}");
}

#[test]
#[ignore = "needs grpcurl"]
fn grpcurl_pushes_and_is_told_what_became_of_the_message() {
    let (gateway, address) = open();
    let nobody = answer(["-emit-defaults", "-d", HELLO, &address, PUSH]);
    assert_eq!(nobody["matched"], "0");

    let mut ann = User::ann(&gateway);
    let outcome = answer(["-emit-defaults", "-d", HELLO, &address, PUSH]);
    assert_eq!(ann.next(), "hello");
    assert!(outcome["messageId"].as_str().is_some_and(|id| !id.is_empty()), "{outcome}");
    assert_ne!(outcome["messageId"], nobody["messageId"]);
    assert_eq!(outcome["level"], "LEVEL_ACCEPTED");
    // 64-bit numbers are strings in the JSON of protobuf.
    let counts = ["matched", "accepted", "dropped"].map(|count| &outcome[count]);
    assert_eq!(counts, [&json!("1"), &json!("1"), &json!("0")]);
}

#[test]
#[ignore = "needs grpcurl"]
fn grpcurl_shows_which_field_is_wrong() {
    let (_gateway, address) = open();
    let wrong = r#"{"event": "mail", "message": "hello"}"#;
    let shown = run_badly(&mut grpcurl(["-d", wrong, &address, PUSH]));
    assert!(shown.contains("Code: InvalidArgument"), "{shown}");
    // grpcurl shows a detail only as bytes unless reflection knows its type.
    assert!(shown.contains(r#""@type": "type.googleapis.com/google.rpc.BadRequest""#), "{shown}");
    assert!(shown.contains(r#""field": "user_id""#), "{shown}");
}

#[test]
#[ignore = "needs grpcurl"]
fn grpcurl_asks_for_health_over_all_and_by_service() {
    let (_gateway, address) = open();
    const CHECK: &str = "grpc.health.v1.Health/Check";
    assert_eq!(answer([&address, CHECK]), json!({ "status": "SERVING" }));
    let push_service = r#"{"service": "pushgate.v1.PushService"}"#;
    assert_eq!(answer(["-d", push_service, &address, CHECK]), json!({ "status": "SERVING" }));
    let unknown = run_badly(&mut grpcurl(["-d", r#"{"service": "no.such.Service"}"#, &address, CHECK]));
    assert!(unknown.contains("Code: NotFound"), "{unknown}");
}

#[test]
#[ignore = "needs grpcurl"]
fn grpcurl_pushes_only_with_a_key_where_one_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    std::fs::write(&keys, format!("[[key]]\nname = \"operators\"\nkey = \"{KEY}\"\nevents = [\"mail\"]\n")).unwrap();
    let gateway =
        GatewayProcess::start_as(pushgate().arg("--push-keys-file").arg(&keys).env("PUSHGATE_OPEN_METRICS", "true"));
    let address = gateway.control.to_string();
    let mut ann = User::ann(&gateway);

    let list = run_badly(&mut grpcurl([&address, "list"]));
    assert!(list.contains("an API key is needed to read this"), "{list}");
    let without = run_badly(&mut grpcurl(["-d", HELLO, &address, PUSH]));
    assert!(without.contains("code = Unauthenticated"), "{without}");
    let unknown = run_badly(&mut grpcurl(["-H", "x-api-key: fedcba9876543210", "-d", HELLO, &address, PUSH]));
    assert!(unknown.contains("code = Unauthenticated"), "{unknown}");
    let elsewhere = r#"{"user_id": "ann", "event": "news", "message": "hello"}"#;
    let key = format!("x-api-key: {KEY}");
    let not_allowed = run_badly(&mut grpcurl(["-H", &key, "-d", elsewhere, &address, PUSH]));
    assert!(not_allowed.contains("Code: PermissionDenied"), "{not_allowed}");

    for header in [key, format!("authorization: Bearer {KEY}")] {
        let outcome = answer(["-H", &header, "-d", HELLO, &address, PUSH]);
        assert_eq!(outcome["accepted"], "1");
        assert_eq!(ann.next(), "hello");
    }
}

#[test]
#[ignore = "needs grpcurl"]
fn grpcurl_operates_the_gateway_as_the_readme_shows() {
    let (gateway, address) = open();
    let commands = readme::program("grpcurl-admin", gateway.control);
    let grpcurl = tool("bin/grpcurl").get_program().to_owned();
    for line in commands.lines() {
        let command = line.replacen("grpcurl", &grpcurl.to_string_lossy(), 1);
        run(Command::new("sh").args(["-c", &command]));
    }
    assert_eq!(answer([&address, "grpc.health.v1.Health/Check"]), json!({ "status": "SERVING" }));
}
