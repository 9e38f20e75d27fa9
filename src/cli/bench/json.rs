//! Pushes by JSON `POST` over one keep-alive connection, with a minimal HTTP/1.1 client.

use std::io::{self, ErrorKind};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::target::Target;

pub(super) struct Caller {
    stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    /// The request head up to the value of `content-length`.
    head: String,
    buffer: Vec<u8>,
}

impl Caller {
    pub(super) async fn connect(target: &Target) -> io::Result<Self> {
        let stream = TcpStream::connect(target.push_address).await?;
        stream.set_nodelay(true)?;
        let stream = match &target.push_tls {
            None => Either::Left(stream),
            Some(tls) => {
                let connector = TlsConnector::from(tls.for_json.config.clone());
                Either::Right(Box::new(connector.connect(tls.for_json.name.clone(), stream).await?))
            }
        };
        let key = target.key.as_ref().map(|key| format!("x-api-key: {key}\r\n")).unwrap_or_default();
        let (path, host) = (&target.push_path, target.push_address);
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n{key}content-length: ");
        Ok(Self { stream, head, buffer: Vec::with_capacity(1024) })
    }

    /// Pushes and returns how many connections took the message. An outer error means that the connection is unusable.
    pub(super) async fn push(&mut self, user: &str, event: &str, message: &str) -> io::Result<Result<u64, String>> {
        let body = serde_json::json!({ "userId": user, "event": event, "message": message }).to_string();
        let request = format!("{}{}\r\n\r\n{body}", self.head, body.len());
        self.stream.write_all(request.as_bytes()).await?;
        // TLS may hold back what was written.
        self.stream.flush().await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if let Some(answer) = complete(&self.buffer) {
                return Ok(answer);
            }
        }
    }
}

/// Parses a response. Returns `None` while it is incomplete.
fn complete(answer: &[u8]) -> Option<Result<u64, String>> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).unwrap_or_default();
    let body = &answer[end + 4..];
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    match header("content-length").and_then(|length| length.parse::<usize>().ok()) {
        Some(length) if body.len() < length => return None,
        None if header("transfer-encoding").is_some() && !body.ends_with(b"0\r\n\r\n") => return None,
        _ => {}
    }
    let body = String::from_utf8_lossy(body);
    let status = head.lines().next().unwrap_or_default();
    if !status.contains(" 200 ") {
        return Some(Err(format!("{status}: {}", body.trim())));
    }
    // The gateway answers "message sent to N clients". Other servers may word it differently, so only the number
    // counts.
    let count = body.split(|letter: char| !letter.is_ascii_digit()).rfind(|digits| !digits.is_empty());
    Some(Ok(count.and_then(|count| count.parse().ok()).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::complete;

    #[test]
    fn an_answer_is_read_when_all_of_it_is_there() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 25\r\n\r\nmessage sent to 7 clients";
        assert_eq!(complete(&whole[..whole.len() - 1]), None);
        assert_eq!(complete(whole), Some(Ok(7)));
        let refused = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 5\r\n\r\nfull\n";
        assert_eq!(complete(refused), Some(Err("HTTP/1.1 503 Service Unavailable: full".to_owned())));
    }
}
