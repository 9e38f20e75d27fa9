//! The floor: a minimal server for the legacy protocol and JSON pushes, as a baseline for measuring other servers.
//!
//! It has one thread, one epoll loop and a plain hash map. A push writes one prebuilt frame to each socket. Bytes that
//! a socket does not accept at once are lost. The server has no timeouts, no limits and no checks, and sends no pings:
//! **it is a baseline for measurements, not a server for real use.**
//!
//! ```sh
//! cargo run --release --example floor 127.0.0.1:12346
//! pushgate bench --url ws://127.0.0.1:12346/ws
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::io::{ErrorKind, Read, Write};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(usize::MAX);

/// The `Sec-WebSocket-Accept` value for the only `Sec-WebSocket-Key` that `pushgate bench` sends, as in RFC 6455
/// section 1.3.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

struct Peer {
    stream: TcpStream,
    /// The bytes of an incomplete request or frame.
    begun: Vec<u8>,
    upgraded: bool,
    bound: Option<(String, String)>,
}

struct Floor {
    poll: Poll,
    peers: slab::Slab<Peer>,
    bound: HashMap<(String, String), Vec<usize>>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let _stays_as_it_is = rlimit::increase_nofile_limit(u64::MAX);
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:12346".to_owned());
    let mut listener = TcpListener::bind(address.parse()?)?;
    let mut floor = Floor { poll: Poll::new()?, peers: slab::Slab::new(), bound: HashMap::new() };
    floor.poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    println!("floor is up on {}", listener.local_addr()?);
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        floor.poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    floor.greet(stream)?;
                }
            } else {
                floor.ready(event.token().0, event.is_read_closed(), &mut buffer);
            }
        }
    }
}

impl Floor {
    fn greet(&mut self, stream: TcpStream) -> Result<(), Box<dyn Error>> {
        stream.set_nodelay(true)?;
        let place = self.peers.vacant_entry();
        let number = place.key();
        let peer = place.insert(Peer { stream, begun: Vec::new(), upgraded: false, bound: None });
        self.poll.registry().register(&mut peer.stream, Token(number), Interest::READABLE)?;
        Ok(())
    }

    fn ready(&mut self, number: usize, read_closed: bool, buffer: &mut [u8]) {
        loop {
            let Some(peer) = self.peers.get_mut(number) else { return };
            match peer.stream.read(buffer) {
                Ok(read @ 1..) => {
                    if self.take(number, &buffer[..read]).is_none() {
                        return self.leave(number);
                    }
                    if read < buffer.len() && !read_closed {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                _ => return self.leave(number),
            }
        }
    }

    fn leave(&mut self, number: usize) {
        let peer = self.peers.remove(number);
        if let Some(bound) = peer.bound.and_then(|key| self.bound.get_mut(&key)) {
            bound.retain(|other| *other != number);
        }
    }

    /// Handles the bytes that a peer sent. `None` ends the connection.
    fn take(&mut self, number: usize, bytes: &[u8]) -> Option<()> {
        let mut begun = std::mem::take(&mut self.peers[number].begun);
        let joined = !begun.is_empty();
        if joined {
            begun.extend_from_slice(bytes);
        }
        let mut rest = if joined { &begun[..] } else { bytes };
        loop {
            let used =
                if self.peers[number].upgraded { self.frame(number, rest)? } else { self.request(number, rest)? };
            if used == 0 {
                break;
            }
            rest = &rest[used..];
        }
        if !rest.is_empty() {
            self.peers[number].begun = rest.to_vec();
        }
        Some(())
    }

    /// Answers one request if it is complete, and returns its length. Returns 0 if it is incomplete.
    fn request(&mut self, number: usize, bytes: &[u8]) -> Option<usize> {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Some(0) };
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(Some(0), |(_, length)| length.trim().parse().ok())?;
        let Some(body) = bytes.get(end + 4..end + 4 + length) else { return Some(0) };
        let answer = if head.starts_with("GET /ws ") {
            self.peers[number].upgraded = true;
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-accept: {ACCEPT}\r\n\r\n"
            )
        } else if head.starts_with("POST /push ") {
            let push: serde_json::Value = serde_json::from_slice(body).ok()?;
            let key = (push["userId"].as_str()?.to_owned(), push["event"].as_str()?.to_owned());
            let sent = format!("message sent to {} clients", self.push(&key, push["message"].as_str()?));
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\r\n{sent}",
                sent.len()
            )
        } else {
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned()
        };
        self.peers[number].stream.write_all(answer.as_bytes()).ok()?;
        Some(end + 4 + length)
    }

    fn push(&mut self, key: &(String, String), message: &str) -> usize {
        let Some(bound) = self.bound.get(key) else { return 0 };
        let frame = frame(0x81, message.as_bytes());
        bound.iter().filter(|number| self.peers[**number].stream.write_all(&frame).is_ok()).count()
    }

    /// Handles one frame if it is complete, and returns its length. Returns 0 if it is incomplete.
    fn frame(&mut self, number: usize, bytes: &[u8]) -> Option<usize> {
        let [first, second, ..] = *bytes else { return Some(0) };
        // Clients send only short frames here, but a bind may have more than 125 bytes.
        let (head, length) = match (second & 0x7F, bytes.get(2..4)) {
            (126, Some(length)) => (8, usize::from(u16::from_be_bytes([length[0], length[1]]))),
            (126, None) => return Some(0),
            (127, _) => return None,
            (short, _) => (6, usize::from(short)),
        };
        let Some(payload) = bytes.get(head..head + length) else { return Some(0) };
        let mask = &bytes[head - 4..head];
        let payload: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        match first & 0x0F {
            1 | 2 => {
                let bind: serde_json::Value = serde_json::from_slice(&payload).ok()?;
                let key = (bind["token"].as_str()?.to_owned(), bind["event"].as_str()?.to_owned());
                self.bound.entry(key.clone()).or_default().push(number);
                self.peers[number].bound = Some(key);
            }
            8 => return None,
            9 => self.peers[number].stream.write_all(&frame(0x8A, &payload)).ok()?,
            _ => {}
        }
        Some(head + length)
    }
}

/// Builds a frame as a server sends it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match u16::try_from(payload.len()) {
        Ok(short @ 0..126) => frame.push(short as u8),
        Ok(medium) => {
            frame.push(126);
            frame.extend(medium.to_be_bytes());
        }
        Err(_) => {
            frame.push(127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}
