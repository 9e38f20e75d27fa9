//! Reads the header of the PROXY protocol, with which a proxy begins a connection to say for whom it is.

use std::io;
use std::net::SocketAddr;

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The bytes that tell the versions apart. No header is shorter.
const START_BYTES: usize = v2::PROTOCOL_PREFIX.len();

/// The first part of a header of version 2: the start, the kind, and the length of the rest.
const V2_FIXED_BYTES: usize = 16;

/// The longest rest of version 2. Proxies add a few hundred bytes on TLS and on themselves.
const V2_REST_BYTES_MAX: usize = 4096;

/// The longest line of version 1, by its specification.
const V1_BYTES_MAX: usize = 107;

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    /// The peer sent nothing and left, as probes do that only want to know whether the port is open.
    #[error("closed without a byte")]
    Nothing,
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("it is not one of the PROXY protocol")]
    Other,
    #[error("it is longer than {V2_REST_BYTES_MAX} bytes")]
    TooLong,
    #[error("it is not valid: {0}")]
    V1(#[from] v1::BinaryParseError),
    #[error("it is not valid: {0}")]
    V2(#[from] v2::ParseError),
}

/// Reads a header of either version, and not a byte more. Returns the client's address, or `None` if the proxy speaks for
/// itself or for somebody without an IP address.
pub(crate) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<SocketAddr>, HeaderError> {
    let mut bytes = Vec::with_capacity(V1_BYTES_MAX);
    if stream.take(START_BYTES as u64).read_to_end(&mut bytes).await? == 0 {
        return Err(HeaderError::Nothing);
    }
    if bytes == v2::PROTOCOL_PREFIX {
        return read_v2(stream, bytes).await;
    }
    if !bytes.starts_with(v1::PROTOCOL_PREFIX.as_bytes()) {
        return Err(HeaderError::Other);
    }
    // Byte by byte, because what follows the line belongs to the next protocol. Proxies use version 2 where this matters.
    while !bytes.ends_with(b"\n") && bytes.len() < V1_BYTES_MAX {
        bytes.push(stream.read_u8().await?);
    }
    let header = v1::Header::try_from(&bytes[..])?;
    // The parser passes over everything behind `UNKNOWN`, and the end of the line with it.
    if !bytes.ends_with(b"\r\n") {
        return Err(HeaderError::Other);
    }
    Ok(match header.addresses {
        v1::Addresses::Tcp4(ip) => Some((ip.source_address, ip.source_port).into()),
        v1::Addresses::Tcp6(ip) => Some((ip.source_address, ip.source_port).into()),
        v1::Addresses::Unknown => None,
    })
}

async fn read_v2<S: AsyncRead + Unpin>(stream: &mut S, mut bytes: Vec<u8>) -> Result<Option<SocketAddr>, HeaderError> {
    bytes.resize(V2_FIXED_BYTES, 0);
    stream.read_exact(&mut bytes[START_BYTES..]).await?;
    let rest = usize::from(u16::from_be_bytes([bytes[V2_FIXED_BYTES - 2], bytes[V2_FIXED_BYTES - 1]]));
    if rest > V2_REST_BYTES_MAX {
        return Err(HeaderError::TooLong);
    }
    bytes.resize(V2_FIXED_BYTES + rest, 0);
    stream.read_exact(&mut bytes[V2_FIXED_BYTES..]).await?;
    let header = v2::Header::try_from(&bytes[..])?;
    // `LOCAL` is a connection of the proxy's own, such as a health check.
    if header.command == v2::Command::Local || header.protocol != v2::Protocol::Stream {
        return Ok(None);
    }
    Ok(match header.addresses {
        v2::Addresses::IPv4(ip) => Some((ip.source_address, ip.source_port).into()),
        v2::Addresses::IPv6(ip) => Some((ip.source_address, ip.source_port).into()),
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REQUEST: &[u8] = b"GET /";

    /// Reads a header with a request behind it. The request must be left as it is.
    fn read_before_a_request(header: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
        let sent = [header, REQUEST].concat();
        let mut stream = &sent[..];
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let address = runtime.block_on(read(&mut stream))?;
        assert_eq!(stream, REQUEST);
        Ok(address)
    }

    fn v2_header(kind: [u8; 2], rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [v2::PROTOCOL_PREFIX, &kind, &length, rest].concat()
    }

    #[test]
    fn both_versions_tell_the_address_of_the_client_and_leave_what_follows() {
        let v4_rest = [192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x34, 0, 80];
        let with_more = [&v4_rest[..], &[0x04, 0, 1, 42]].concat();
        let mut of_v6 = [0; 36];
        of_v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        (of_v6[15], of_v6[33]) = (1, 7);
        for (header, address) in [
            (&b"PROXY TCP4 192.0.2.1 10.0.0.1 4660 80\r\n"[..], Some("192.0.2.1:4660")),
            (b"PROXY TCP6 2001:db8::1 ::1 7 80\r\n", Some("[2001:db8::1]:7")),
            (b"PROXY UNKNOWN\r\n", None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
            (&v2_header([0x21, 0x11], &v4_rest), Some("192.0.2.1:4660")),
            (&v2_header([0x21, 0x11], &with_more), Some("192.0.2.1:4660")),
            (&v2_header([0x21, 0x21], &of_v6), Some("[2001:db8::1]:7")),
            (&v2_header([0x20, 0x11], &v4_rest), None),
            (&v2_header([0x20, 0x00], &[]), None),
            (&v2_header([0x21, 0x00], &[]), None),
            (&v2_header([0x21, 0x31], &[b'x'; 216]), None),
            (&v2_header([0x21, 0x12], &v4_rest), None),
        ] {
            let read = read_before_a_request(header).expect("valid");
            assert_eq!(read, address.map(|address| address.parse().expect("an address")), "{header:?}");
        }
    }

    #[test]
    fn what_is_no_header_is_an_error() {
        for bad in [
            &b"GET /ws HTTP/1.1\r\n"[..],
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4660\r\n",
            b"PROXY TCP4 2001:db8::1 10.0.0.1 4660 80\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4660 80\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 04660 80\r\n",
            b"PROXY UNKNOWN T6PROXY T2419`P .0.C2.1 \0 3660 \n",
            b"PROXYTCP4 192.0.2.1 10.0.0.1 4660 80\r\n",
            &v2_header([0x31, 0x11], &[0; 12]),
            &v2_header([0x22, 0x11], &[0; 12]),
            &v2_header([0x21, 0x11], &[0; 11]),
            &v2_header([0x21, 0x41], &[0; 12]),
        ] {
            assert!(read_before_a_request(bad).is_err(), "{bad:?}");
        }
        let endless = [b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat();
        assert!(matches!(read_before_a_request(&endless), Err(HeaderError::V1(_))));
        let long = v2_header([0x21, 0x11], &[0; V2_REST_BYTES_MAX + 1]);
        assert!(matches!(read_before_a_request(&long), Err(HeaderError::TooLong)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            start in prop_oneof![Just(&b""[..]), Just(v2::PROTOCOL_PREFIX), Just(&b"PROXY "[..])],
            kind in proptest::collection::vec(any::<u8>(), 0..3),
            rest in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let sent = [start, &kind, &rest].concat();
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let _any = runtime.block_on(read(&mut &sent[..]));
        }
    }
}
