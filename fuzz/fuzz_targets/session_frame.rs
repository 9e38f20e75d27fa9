//! A frame of a client of the session protocol: understood, or refused with a frame that its client can read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pushgate::inside::session_frame;
use serde_json::Value;

fuzz_target!(|data: &[u8]| match session_frame(data) {
    Ok(_) => {
        let read: Value = serde_json::from_slice(data).expect("only JSON is understood");
        assert!(read["type"].is_string(), "{read}");
    }
    Err(told) => {
        let told: Value = serde_json::from_str(&told).expect("a frame is JSON");
        assert_eq!(told["type"], "error", "{told}");
    }
});
