//! A body at the JSON door, by each way to ask: answered with a status of the contract, and in JSON to whoever wants that.

#![no_main]

use std::time::Duration;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pushgate::Config;
use pushgate::inside::{Asks, Inside};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static GATEWAY: (Runtime, Inside) = {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            // What a push leaves behind must not grow with their number.
            journal_age: Duration::from_secs(1),
            journal_total_bytes_max: 1 << 20,
            journal_bytes_max: 1 << 16,
            idempotency_bytes_max: 1 << 20,
            ..Config::default()
        };
        let inside = runtime.block_on(Inside::start(config)).expect("a gateway");
        (runtime, inside)
    };
}

fuzz_target!(|data: &[u8]| GATEWAY.with(|(runtime, inside)| {
    let answer = |asks| runtime.block_on(inside.json(asks, Bytes::copy_from_slice(data)));
    let (status, body) = answer(Asks::Legacy);
    match status {
        200 => assert_eq!(body, "message sent to 0 clients"),
        400 => assert_eq!(body, "request data illegal"),
        413 => assert!(!body.is_empty()),
        _ => panic!("{status}"),
    }
    for asks in [Asks::Full, Asks::Batch] {
        let (status, body) = answer(asks);
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        match status {
            200 => assert!(body.is_object()),
            400 | 413 | 422 => assert!(body["message"].is_string(), "{body}"),
            _ => panic!("{asks:?}: {status} {body}"),
        }
    }
}));
