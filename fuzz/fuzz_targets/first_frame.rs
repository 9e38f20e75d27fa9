//! The first frame of a legacy client: read like any other reader of JSON reads it, where that can tell.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pushgate::inside::legacy_frame;
use serde_json::{Map, Value};

fuzz_target!(|data: &[u8]| {
    let Some((token, event)) = legacy_frame(data) else { return };
    assert!(!event.is_empty(), "an event is never empty");
    let Ok(object) = serde_json::from_slice::<Map<String, Value>>(data) else { return };
    for (name, read) in [("token", token), ("event", event)] {
        // A key in another letter case counts too, and which of several does is Go's to say.
        let mut same = object.keys().filter(|key| key.to_lowercase() == name || !key.is_ascii());
        if let (Some(key), None, Some(Value::String(value))) = (same.next(), same.next(), object.get(name)) {
            assert_eq!(*value, read, "{key}");
        }
    }
});
