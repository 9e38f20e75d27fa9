//! Checks frames of the session protocol against `proto/session/pushgate.v1.schema.json`.

use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::Value;

/// The published schema.
pub static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let schema = include_str!("../../proto/session/pushgate.v1.schema.json");
    serde_json::from_str(schema).expect("the schema is JSON")
});

static SERVER: LazyLock<Validator> = LazyLock::new(|| validator("server"));
static CLIENT: LazyLock<Validator> = LazyLock::new(|| validator("client"));

/// Panics unless this is a frame that the gateway may send.
#[track_caller]
pub fn check_server(frame: &Value) {
    check(&SERVER, "gateway", frame);
}

/// Panics unless this is a frame that a client may send.
#[track_caller]
pub fn check_client(frame: &Value) {
    check(&CLIENT, "client", frame);
}

pub fn is_server(frame: &Value) -> bool {
    SERVER.is_valid(frame)
}

pub fn is_client(frame: &Value) -> bool {
    CLIENT.is_valid(frame)
}

#[track_caller]
fn check(validator: &Validator, side: &str, frame: &Value) {
    if validator.is_valid(frame) {
        return;
    }
    // Checks against the definition of the frame's own type, because its errors say more than "no frame type matches".
    let own = frame["type"].as_str().filter(|name| SCHEMA["$defs"].get(name).is_some());
    let reasons: Vec<_> = own.map_or_else(Vec::new, |name| {
        self::validator(name)
            .iter_errors(frame)
            .map(|error| format!("{error} at {:?}", error.instance_path()))
            .collect()
    });
    panic!("no frame of a {side}: {frame}\n{}", reasons.join("\n"));
}

/// A validator for one definition of the schema.
fn validator(name: &str) -> Validator {
    let mut schema = SCHEMA.clone();
    let root = schema.as_object_mut().expect("the schema is an object");
    root.remove("anyOf");
    root.insert("$ref".to_owned(), format!("#/$defs/{name}").into());
    jsonschema::draft202012::new(&schema).expect("the schema is valid")
}
