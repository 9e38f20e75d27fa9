//! What a connection through a proxy begins with: a header with nothing taken of what follows, or none.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pushgate::inside::proxy_header;
use tokio::runtime::Builder;

fuzz_target!(|data: &[u8]| {
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    let Ok((address, length)) = runtime.block_on(proxy_header(data)) else { return };
    let header = &data[..length];
    if header.starts_with(b"PROXY") {
        assert!(header.ends_with(b"\r\n") && header.len() <= 107, "{header:?}");
    } else {
        assert_eq!(length, 16 + usize::from(u16::from_be_bytes([data[14], data[15]])));
    }
    let alone = runtime.block_on(proxy_header(header));
    assert_eq!(alone, Ok((address, length)), "what follows made a difference");
});
