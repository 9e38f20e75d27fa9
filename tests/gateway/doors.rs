//! What comes to the doors as clients, callers and proxies really send it.

use bytes::Bytes;

use http::Method;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use pushgate::proto::PushStreamRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::codec::CompressionEncoding;

use crate::support::{Answer, TestGateway, http, push_request, read_answer, soon};

const PUSH: &str = r#"{"userId":"ann","event":"mail","message":"m"}"#;

/// A gRPC message in its frame.
fn framed(message: &impl prost::Message) -> Vec<u8> {
    let length = u32::try_from(message.encoded_len()).unwrap();
    [&[0][..], &length.to_be_bytes(), &message.encode_to_vec()].concat()
}

/// One request over HTTP/2: its status, its gRPC status, and its body as text.
async fn over_http2(gateway: &TestGateway, request: http::request::Builder, body: Vec<u8>) -> (u16, String, String) {
    let stream = TokioIo::new(soon(TcpStream::connect(gateway.control)).await.unwrap());
    let (mut sender, connection) = soon(http2::handshake(TokioExecutor::new(), stream)).await.unwrap();
    tokio::spawn(connection);
    let response = soon(sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap())).await.unwrap();
    let (head, body) = response.into_parts();
    let body = soon(body.collect()).await.unwrap();
    let status = head.headers.get("grpc-status").or_else(|| body.trailers()?.get("grpc-status"));
    let grpc_status = status.map(|status| status.to_str().unwrap().to_owned()).unwrap_or_default();
    (head.status.as_u16(), grpc_status, String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

/// A connection that opens streams of pushes whose bytes the test cuts as it likes.
struct Streams {
    url: String,
    requests: h2::client::SendRequest<Bytes>,
}

struct RawStream {
    body: h2::SendStream<Bytes>,
    answer: Option<h2::client::ResponseFuture>,
    results: Option<h2::RecvStream>,
}

async fn open_stream(gateway: &TestGateway, stream: TcpStream) -> Streams {
    let (requests, connection) = soon(h2::client::handshake(stream)).await.unwrap();
    tokio::spawn(connection);
    let url = format!("http://{}/pushgate.v1.PushService/PushStream", gateway.control);
    Streams { url, requests: soon(requests.ready()).await.unwrap() }
}

impl Streams {
    fn stream(&mut self, bytes: &[u8]) -> RawStream {
        let request = http::Request::post(&self.url).version(http::Version::HTTP_2).header("te", "trailers");
        let request = request.header("content-type", "application/grpc").body(()).unwrap();
        let (answer, body) = self.requests.send_request(request, false).unwrap();
        let mut stream = RawStream { body, answer: Some(answer), results: None };
        stream.send(bytes);
        stream
    }
}

impl RawStream {
    fn send(&mut self, bytes: &[u8]) {
        self.body.send_data(Bytes::copy_from_slice(bytes), false).unwrap();
    }

    async fn results(&mut self) -> &mut h2::RecvStream {
        if let Some(answer) = self.answer.take() {
            self.results = Some(soon(answer).await.unwrap().into_body());
        }
        self.results.as_mut().unwrap()
    }

    async fn next_result(&mut self) {
        assert!(soon(self.results().await.data()).await.expect("a result").is_ok());
    }

    /// The status and its message.
    async fn end(&mut self) -> (String, String) {
        let results = self.results().await;
        assert!(soon(results.data()).await.is_none());
        let trailers = soon(results.trailers()).await.unwrap().unwrap();
        let text = |name: &str| trailers[name].to_str().unwrap().replace("%20", " ");
        (text("grpc-status"), text("grpc-message"))
    }
}

fn grpc_paths() -> [(&'static str, Vec<u8>); 4] {
    [
        ("/pushgate.v1.PushService/Push", framed(&push_request("ann", "mail", "m"))),
        ("/grpc.health.v1.Health/Check", framed(&tonic_health::pb::HealthCheckRequest::default())),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", framed(&())),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", framed(&())),
    ]
}

#[tokio::test]
async fn what_is_no_grpc_call_does_nothing_on_a_grpc_path() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    for (path, body) in grpc_paths() {
        let url = format!("http://{}{path}", gateway.control);
        for kind in [
            None,
            Some("application/json"),
            Some("text/plain"),
            Some("application/grpc-web"),
            Some("application/grpc+json"),
        ] {
            let mut request = http::Request::post(&url).header("te", "trailers");
            if let Some(kind) = kind {
                request = request.header("content-type", kind);
            }
            let (status, _, text) = over_http2(&gateway, request, body.clone()).await;
            assert_eq!(
                (status, &*text),
                (415, "a gRPC call has the content type application/grpc\n"),
                "{path} {kind:?}"
            );
        }
        let get = http::Request::get(&url).header("content-type", "application/grpc");
        assert_eq!(over_http2(&gateway, get, Vec::new()).await.0, 405, "{path}");

        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nte: trailers\r\ncontent-type: application/grpc\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = soon(TcpStream::connect(gateway.control)).await.unwrap();
        soon(stream.write_all(&[head.as_bytes(), &body].concat())).await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert_eq!((answer.status, answer.body.as_str()), (415, "gRPC needs HTTP/2\n"), "{path}");
    }
    assert_eq!(gateway.json().push("ann", "mail", "the first that arrives").await, 1);
    assert_eq!(phone.next_text().await, "the first that arrives");

    for kind in ["application/grpc", "Application/GRPC+Proto; charset=utf-8"] {
        let url = format!("http://{}/pushgate.v1.PushService/Push", gateway.control);
        let request = http::Request::post(url).header("te", "trailers").header("content-type", kind);
        let (status, grpc_status, _) = over_http2(&gateway, request, framed(&push_request("ann", "mail", kind))).await;
        assert_eq!((status, grpc_status.as_str()), (200, "0"), "{kind}");
        assert_eq!(phone.next_text().await, kind);
    }
}

#[tokio::test]
async fn a_malformed_grpc_timeout_is_refused_as_grpc_go_does() {
    let gateway = TestGateway::start().await;
    for timeout in ["", "5", "5s", "123456789S"] {
        let request = http::Request::post(format!("http://{}/pushgate.v1.PushService/Push", gateway.control))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", timeout);
        let (_, status, _) = over_http2(&gateway, request, framed(&push_request("ann", "mail", "m"))).await;
        assert_eq!(status, "13", "{timeout:?} is INTERNAL");
    }
}

#[tokio::test]
async fn a_compressed_call_is_taken_and_bounded_while_it_is_inflated() {
    let gateway = TestGateway::with(|config| {
        config.message_bytes_max = 10_000;
        config.request_bytes_max = 20_000;
    })
    .await;
    let mut phone = gateway.bind("ann", "mail").await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut grpc = gateway.grpc().await;
        grpc.client = grpc.client.send_compressed(encoding).accept_compressed(encoding);
        let message = "m".repeat(5000);
        assert_eq!(grpc.push("ann", "mail", &message).await.accepted, 1, "{encoding:?}");
        assert_eq!(phone.next_text().await, message);
        // A few KiB on the wire, a thousand times that when inflated.
        let bomb = push_request("ann", "mail", &"m".repeat(5_000_000));
        let status = grpc.try_push(bomb.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{encoding:?}");
        assert_eq!(status.message(), "the request is over the limit of 20000 bytes", "{encoding:?}");

        let messages = PushStreamRequest { push: Some(bomb), ..PushStreamRequest::default() };
        let mut results = soon(grpc.client.push_stream(tokio_stream::iter([messages]))).await.unwrap().into_inner();
        let status = soon(results.message()).await.unwrap_err();
        assert_eq!(status.message(), "the request is over the limit of 20000 bytes", "{encoding:?}");

        let channel = tonic::transport::Channel::from_shared(format!("http://{}", gateway.control)).unwrap();
        let health = tonic_health::pb::health_client::HealthClient::new(soon(channel.connect()).await.unwrap());
        let check = tonic_health::pb::HealthCheckRequest { service: String::new() };
        assert!(soon(health.send_compressed(encoding).check(check)).await.is_ok(), "{encoding:?}");
    }
}

async fn post(gateway: &TestGateway, path: &str, headers: &str, body: &str) -> Answer {
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n");
    http(gateway.control, &format!("{head}{body}")).await
}

#[tokio::test]
async fn an_encoded_body_is_refused_and_nothing_done() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    for headers in [
        "content-encoding: gzip\r\n",
        "content-encoding: GZIP\r\n",
        "content-encoding: identity\r\ncontent-encoding: gzip\r\n",
        "content-encoding: identity, br\r\n",
    ] {
        let answer = post(&gateway, "/push", headers, PUSH).await;
        assert_eq!((answer.status, answer.header("accept-encoding")), (415, Some("identity")), "{headers}");
        assert_eq!(answer.body, "the body is encoded, and is taken only as it is");
        let answer = post(&gateway, "/push", &format!("{headers}accept: application/json\r\n"), PUSH).await;
        assert_eq!((answer.status, answer.header("accept-encoding")), (415, Some("identity")), "{headers}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    for headers in ["content-encoding: identity\r\n", "content-encoding: Identity\r\n", "content-encoding:\r\n"] {
        let answer = post(&gateway, "/push", headers, PUSH).await;
        assert_eq!(answer.body, "message sent to 1 clients", "{headers}");
        assert_eq!(phone.next_text().await, "m", "the first that arrives");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_not_asked_for() {
    let gateway = TestGateway::with(|config| {
        config.message_bytes_max = 100;
        config.request_bytes_max = 200;
    })
    .await;
    for expect in ["100-continue", "100-Continue"] {
        let mut stream = soon(TcpStream::connect(gateway.control)).await.unwrap();
        let head = format!("POST /push HTTP/1.1\r\nhost: x\r\nexpect: {expect}\r\ncontent-length: 201\r\n\r\n");
        soon(stream.write_all(head.as_bytes())).await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert_eq!((answer.status, answer.header("connection")), (413, Some("close")), "and no 100 before it");
        assert_eq!(soon(stream.read(&mut [0])).await.unwrap(), 0, "closed");
    }
    // What is refused by its head is not asked for either.
    let nobody = TestGateway::built(|_| (), |builder| builder.push_authorizer(crate::auth::NobodyMayPush)).await;
    for (gateway, header, status) in [(&gateway, "content-encoding: gzip", 415), (&nobody, "accept: */*", 401)] {
        let mut stream = soon(TcpStream::connect(gateway.control)).await.unwrap();
        let head = "POST /push HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 100\r\n";
        soon(stream.write_all(format!("{head}{header}\r\n\r\n").as_bytes())).await.unwrap();
        assert_eq!(read_answer(&mut stream).await.status, status);
    }
}

/// A waiting unary call holds a stream, so a caller must be able to see how many it has.
#[tokio::test]
async fn the_streams_of_a_connection_are_as_many_as_the_setting_says() {
    for streams_max in [1000, 7] {
        let gateway = TestGateway::with(|config| config.http2_streams_max = streams_max).await;
        let mut stream = soon(TcpStream::connect(gateway.control)).await.unwrap();
        soon(stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")).await.unwrap();
        let mut head = [0; 9];
        soon(stream.read_exact(&mut head)).await.unwrap();
        assert_eq!(head[3], 4, "SETTINGS");
        let mut settings = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
        soon(stream.read_exact(&mut settings)).await.unwrap();
        let told = settings.chunks(6).find(|setting| setting[..2] == [0, 3]).unwrap();
        assert_eq!(told[2..], u32::try_from(streams_max).unwrap().to_be_bytes());
    }
}

#[tokio::test]
async fn the_unfinished_messages_of_streams_keep_out_nobody_but_their_sender() {
    let gateway = TestGateway::with(|config| {
        config.message_bytes_max = 49_000;
        config.request_bytes_max = 50_000;
        config.request_bodies_bytes_max = 100_000;
    })
    .await;
    let large = framed(&PushStreamRequest {
        push: Some(push_request("ann", "mail", &"m".repeat(40_000))),
        ..PushStreamRequest::default()
    });
    let small =
        framed(&PushStreamRequest { push: Some(push_request("ann", "mail", "m")), ..PushStreamRequest::default() });
    let (most, rest) = large.split_at(30_000);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
    let elsewhere = soon(socket.connect(gateway.control)).await.unwrap();
    let here = soon(TcpStream::connect(gateway.control)).await.unwrap();
    let (mut first, mut second) = (open_stream(&gateway, here).await, open_stream(&gateway, elsewhere).await);

    let mut slow = first.stream(&[&small, most].concat());
    slow.next_result().await;
    let mut refused = first.stream(&[&small, most].concat());
    refused.next_result().await;
    assert_eq!(
        refused.end().await,
        ("8".to_owned(), "too many bytes of requests are in hand, try again later".to_owned())
    );
    let mut of_small = first.stream(&small[..10]);
    of_small.send(&small[10..]);
    of_small.next_result().await;
    let mut of_another = second.stream(most);
    of_another.send(rest);
    of_another.next_result().await;

    slow.send(rest);
    slow.next_result().await;
    let mut next = first.stream(most);
    next.send(rest);
    next.next_result().await;
}

#[tokio::test]
async fn a_flood_of_http2_frames_that_carry_nothing_is_told_to_calm_down() {
    const GOAWAY: u8 = 0x7;
    const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 0xb];
    let gateway = TestGateway::start().await;
    let window = 1u32.to_be_bytes();
    for (kind, payload) in [(0x4, &b""[..]), (0x6, b"pingping"), (0x8, &window), (0xfa, b"unknown")] {
        let mut stream = soon(TcpStream::connect(gateway.control)).await.unwrap();
        soon(stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")).await.unwrap();
        let frame = [&[0, 0, payload.len() as u8, kind, 0, 0, 0, 0, 0], payload].concat();
        let (mut reading, mut writing) = stream.split();
        let mut answers = Vec::new();
        let flood = frame.repeat(3000);
        let (sent, read) =
            soon(async { tokio::join!(writing.write_all(&flood), reading.read_to_end(&mut answers)) }).await;
        sent.unwrap();
        read.unwrap();
        let mut last = (0, &[][..]);
        let mut rest = &answers[..];
        while let [high, middle, low, kind, _, _, _, _, _, after @ ..] = rest {
            let (payload, after) = after.split_at(u32::from_be_bytes([0, *high, *middle, *low]) as usize);
            (last, rest) = ((*kind, payload), after);
        }
        assert_eq!((last.0, &last.1[4..8]), (GOAWAY, &ENHANCE_YOUR_CALM[..]), "frames of kind {kind}");
        assert!(rest.is_empty(), "{rest:?}");
    }
}

#[tokio::test]
async fn a_connection_has_a_few_answers_unread_that_need_no_key() {
    const KEYLESS_MAX: usize = 32;
    let gateway = TestGateway::start().await;
    let stream = soon(TcpStream::connect(gateway.control)).await.unwrap();
    let (requests, mut connection) =
        soon(h2::client::Builder::new().initial_window_size(0).handshake(stream)).await.unwrap();
    connection.set_target_window_size(65_535);
    tokio::spawn(connection);
    let mut requests: h2::client::SendRequest<Bytes> = soon(requests.ready()).await.unwrap();
    let mut ask = |method, path: &str, kind: &str| {
        let request = http::Request::builder().method(method).uri(format!("http://{}{path}", gateway.control));
        let request = request.version(http::Version::HTTP_2).header("content-type", kind);
        requests.send_request(request.body(()).unwrap(), true).unwrap().0
    };
    let mut unread = Vec::new();
    for path in ["/metrics", "/healthz", "/pushgate.js", "/nowhere"].iter().cycle().take(KEYLESS_MAX) {
        let answer = soon(ask(Method::GET, path, "text/plain")).await.unwrap();
        assert_ne!(answer.status(), 503, "{path}");
        unread.push(answer);
    }
    for path in ["/readyz", "/metrics"] {
        let answer = soon(ask(Method::GET, path, "text/plain")).await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"5".parse().unwrap()));
        assert!(answer.body().is_end_stream(), "it leaves nothing to read");
    }
    let check = soon(ask(Method::POST, "/grpc.health.v1.Health/Check", "application/grpc")).await.unwrap();
    assert_eq!(check.headers()["grpc-status"], "8", "RESOURCE_EXHAUSTED");
    let push = soon(ask(Method::POST, "/push", "application/json")).await.unwrap();
    assert_eq!(push.status(), 400, "what may need a key is not counted");
    assert_eq!(gateway.get("/readyz").await.status, 200, "another connection has its own");

    drop(unread.pop());
    let answers_again =
        async { while soon(ask(Method::GET, "/readyz", "text/plain")).await.unwrap().status() == 503 {} };
    soon(answers_again).await;
}

#[tokio::test]
async fn bodies_that_do_not_end_keep_out_nobody_but_their_sender() {
    let gateway = TestGateway::with(|config| {
        config.message_bytes_max = 100;
        config.request_bytes_max = 1000;
        config.request_bodies_bytes_max = 2000;
    })
    .await;
    let mut slow = soon(TcpStream::connect(gateway.control)).await.unwrap();
    let head = "POST /push HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n";
    soon(slow.write_all(format!("{head}{PUSH}{}", " ".repeat(999 - PUSH.len())).as_bytes())).await.unwrap();
    let in_two_pieces = |first: usize| {
        let head = format!("POST /push HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", PUSH.len());
        (format!("{head}{}", &PUSH[..first]), &PUSH[first..])
    };
    let refused = soon(async {
        loop {
            // Passes until the slow one's bytes are read.
            let mut stream = soon(TcpStream::connect(gateway.control)).await.unwrap();
            let (first, rest) = in_two_pieces(20);
            soon(stream.write_all(first.as_bytes())).await.unwrap();
            // Both pieces in one read are one piece.
            gateway.get("/healthz").await;
            let _refused_before = stream.write_all(rest.as_bytes()).await;
            let answer = read_answer(&mut stream).await;
            if answer.status != 200 {
                return answer;
            }
        }
    })
    .await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert_eq!(refused.body, "too many bytes of requests are in hand, try again later");
    assert_eq!(post(&gateway, "/push", "", PUSH).await.status, 200, "in one piece it waits for nothing");

    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
    let mut other = soon(socket.connect(gateway.control)).await.unwrap();
    let head = format!("POST /push HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", PUSH.len());
    soon(other.write_all(format!("{head}{PUSH}").as_bytes())).await.unwrap();
    assert_eq!(read_answer(&mut other).await.status, 200);

    soon(slow.write_all(b" ")).await.unwrap();
    assert_eq!(read_answer(&mut slow).await.status, 200);
    assert_eq!(post(&gateway, "/push", "", PUSH).await.status, 200, "given back");
}

#[tokio::test]
async fn every_401_says_how_to_authenticate() {
    let gateway = TestGateway::built(|_| (), |builder| builder.push_authorizer(crate::auth::NobodyMayPush)).await;
    let told = Some("Bearer realm=\"pushgate\"");
    let answer = post(&gateway, "/push", "", PUSH).await;
    assert_eq!((answer.status, answer.header("www-authenticate"), answer.body.as_str()), (401, told, ""));
    for (path, accept) in [("/push", "accept: application/json\r\n"), ("/push/batch", "")] {
        let answer = post(&gateway, path, accept, PUSH).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, told), "{path}");
        assert_eq!(answer.body, r#"{"code":16,"message":"no API key, or one that is not known","field":""}"#);
    }
}

#[tokio::test]
async fn a_key_is_found_on_whichever_line_it_is() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "[[key]]\nname = \"all\"\nkey = \"0123456789abcdef\"\n[[key]]\nname = \"mail\"\nkey = \"fedcba9876543210\"\nevents = [\"mail\"]\n").unwrap();
    let gateway = TestGateway::with(|config| config.push_keys_file = Some(keys.path().into())).await;
    for headers in [
        "x-api-key: 0123456789abcdef\r\n",
        "x-api-key:\r\nauthorization: Bearer 0123456789abcdef\r\n",
        "x-api-key:\r\nx-api-key: 0123456789abcdef\r\n",
        "authorization: BEARER 0123456789abcdef\r\n",
        "authorization: bearer   0123456789abcdef \r\n",
        "authorization: Basic YTpi\r\nauthorization: Bearer 0123456789abcdef\r\n",
        "authorization: Bearer\r\nauthorization: Bearer 0123456789abcdef\r\n",
    ] {
        assert_eq!(post(&gateway, "/push", headers, PUSH).await.status, 200, "{headers}");
    }
    for headers in ["", "x-api-key:\r\n", "authorization: Basic 0123456789abcdef\r\n", "authorization: Bearer\r\n"] {
        assert_eq!(post(&gateway, "/push", headers, PUSH).await.status, 401, "{headers}");
    }
    let other = PUSH.replace("mail", "chat");
    let answer = post(&gateway, "/push", "x-api-key: fedcba9876543210\r\n", &other).await;
    assert_eq!((answer.status, answer.body.as_str()), (401, ""), "as ever");
    assert!(answer.header("www-authenticate").is_some());
    let json = "x-api-key: fedcba9876543210\r\naccept: application/json\r\n";
    let answer = post(&gateway, "/push", json, &other).await;
    assert_eq!(answer.status, 403);
    assert!(answer.body.starts_with(r#"{"code":7,"#), "{answer:?}");
}

const HANDSHAKE: [&str; 4] = [
    "connection: Upgrade",
    "upgrade: websocket",
    "sec-websocket-version: 13",
    "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
];

async fn handshake(gateway: &TestGateway, start: &str, headers: &[&str]) -> Answer {
    http(gateway.clients, &format!("{start}\r\nhost: x\r\n{}\r\n\r\n", headers.join("\r\n"))).await
}

#[tokio::test]
async fn the_headers_of_a_handshake_are_lists_on_however_many_lines() {
    let gateway = TestGateway::start().await;
    let [connection, upgrade, version, key] = HANDSHAKE;
    for headers in [
        vec![connection, upgrade, version, key],
        vec!["connection: keep-alive", connection, upgrade, version, key],
        vec!["connection: keep-alive, UPGRADE", upgrade, version, key],
        vec!["connection: keep-alive , , upgrade", "upgrade: WebSocket", version, key],
        vec![connection, "upgrade: websocket, h2c", version, key],
        vec![connection, "upgrade: h2c", upgrade, version, key],
        vec![connection, upgrade, "sec-websocket-version:  13 ", key],
    ] {
        let answer = handshake(&gateway, "GET /ws HTTP/1.1", &headers).await;
        assert_eq!(answer.status, 101, "{headers:?} {answer:?}");
        assert_eq!(answer.header("sec-websocket-accept"), Some("ICX+Yqv66kxgM0FcWaLWlFLwTAI="));
    }
    for offers in [
        vec!["sec-websocket-protocol: chat, pushgate.v1.json"],
        vec!["sec-websocket-protocol: chat", "sec-websocket-protocol: pushgate.v1.json"],
    ] {
        let answer = handshake(&gateway, "GET /ws HTTP/1.1", &[&HANDSHAKE[..], &offers].concat()).await;
        assert_eq!(answer.header("sec-websocket-protocol"), Some("pushgate.v1.json"), "{offers:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_handshake_is_told() {
    let gateway = TestGateway::start().await;
    let [connection, upgrade, version, key] = HANDSHAKE;
    let get = "GET /ws HTTP/1.1";
    let cases: [(&str, Vec<&str>, u16, &str); 14] = [
        ("POST /ws HTTP/1.1", HANDSHAKE.to_vec(), 405, "method"),
        ("GET /ws HTTP/1.0", HANDSHAKE.to_vec(), 426, "HTTP version"),
        (get, vec![upgrade, version, key], 426, "Connection"),
        (get, vec!["connection: keep-alive", upgrade, version, key], 426, "Connection"),
        (get, vec![connection, version, key], 426, "Upgrade"),
        (get, vec![connection, "upgrade: h2c", version, key], 426, "Upgrade"),
        (get, vec![connection, upgrade, key], 426, "Sec-WebSocket-Version"),
        (get, vec![connection, upgrade, "sec-websocket-version: 8", key], 426, "Sec-WebSocket-Version"),
        (get, vec![connection, upgrade, version, "sec-websocket-version: 8", key], 426, "Sec-WebSocket-Version"),
        (get, vec![connection, upgrade, version], 400, "Sec-WebSocket-Key"),
        (get, vec![connection, upgrade, version, key, key], 400, "Sec-WebSocket-Key"),
        (get, vec![connection, upgrade, version, "sec-websocket-key: AAAA"], 400, "Sec-WebSocket-Key"),
        (
            get,
            vec![connection, upgrade, version, "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA"],
            400,
            "Sec-WebSocket-Key",
        ),
        (
            get,
            vec![connection, upgrade, version, "sec-websocket-key: ++++ no base64 ++++++=="],
            400,
            "Sec-WebSocket-Key",
        ),
    ];
    for (start, headers, status, named) in cases {
        let answer = handshake(&gateway, start, &headers).await;
        assert_eq!(answer.status, status, "{start} {headers:?}");
        assert!(answer.body.starts_with("not a WebSocket upgrade: ") && answer.body.contains(named), "{answer:?}");
        if status == 426 {
            assert_eq!(answer.header("sec-websocket-version"), Some("13"));
        }
    }
}

#[tokio::test]
async fn a_file_that_the_asker_has_is_not_sent_again() {
    let gateway = TestGateway::start().await;
    let ask = |headers: String| {
        let request = format!("GET /pushgate.js HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        let address = gateway.clients;
        async move { http(address, &request).await }
    };
    let tag = ask(String::new()).await.header("etag").unwrap().to_owned();
    for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
        assert_eq!(ask(format!("if-none-match: {known}\r\n")).await.status, 304, "{known}");
    }
    let lines = format!("if-none-match: \"other\"\r\nif-none-match: {tag}\r\n");
    assert_eq!(ask(lines).await.status, 304);
    assert_eq!(ask("if-none-match: \"other\"\r\n".to_owned()).await.status, 200);
}
