//! How connections begin, live and end: every limit on both sides, every way out.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};

use crate::support::session::SessionClient;
use crate::support::{Client, PATIENCE, TestGateway, http, read_answer, soon};

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/// A client's frame, with a mask of zeros.
fn masked(opcode: u8, body: &[u8]) -> Vec<u8> {
    let length = u8::try_from(body.len()).unwrap();
    assert!(length < 126);
    [&[0x80 | opcode, 0x80 | length, 0, 0, 0, 0], body].concat()
}

/// The same, with more of its message to come.
fn masked_fragment(opcode: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = masked(opcode, body);
    frame[0] &= 0x7f;
    frame
}

async fn closes(gateway: &TestGateway, reason: &str) -> u64 {
    gateway.metric(&format!("pushgate_closes_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test]
async fn a_client_that_does_not_bind_in_time_is_closed_and_one_that_did_is_not() {
    let gateway = TestGateway::with(|config| config.bind_timeout = Duration::from_millis(200)).await;
    let mut bound = gateway.bind("ann", "mail").await;
    let mut silent = gateway.connect().await;
    assert_eq!(silent.closed().await, (4408, "did not bind in time".to_owned()));
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1);
    assert_eq!(bound.next_text().await, "m");
}

#[tokio::test]
async fn a_bind_in_the_same_packet_as_the_upgrade_is_seen() {
    let gateway = TestGateway::start().await;
    let mut stream = soon(TcpStream::connect(gateway.clients)).await.unwrap();
    let bind = masked(1, br#"{"token":"ann","event":"mail"}"#);
    soon(stream.write_all(&[UPGRADE.as_bytes(), &bind].concat())).await.unwrap();
    let answer = read_answer(&mut stream).await;
    assert_eq!((answer.status, answer.header("sec-websocket-protocol")), (101, None));
    gateway.until("pushgate_bindings", |bindings| bindings == 1).await;
}

#[tokio::test]
async fn a_legacy_client_is_sent_nothing_that_was_not_pushed_but_pings() {
    let gateway = TestGateway::with(|config| config.ping_interval = Duration::from_millis(50)).await;
    let mut stream = soon(TcpStream::connect(gateway.clients)).await.unwrap();
    let bind = masked(1, br#"{"token":"ann","event":"mail"}"#);
    soon(stream.write_all(&[UPGRADE.as_bytes(), &bind].concat())).await.unwrap();
    read_answer(&mut stream).await;
    let mut frame = [0; 2];
    for _ in 0..3 {
        soon(stream.read_exact(&mut frame)).await.unwrap();
        assert_eq!(frame, [0x89, 0], "an empty ping");
        soon(stream.write_all(&masked(0xa, b""))).await.unwrap();
    }
    assert_eq!(gateway.json().push("ann", "mail", "!").await, 1);
    let mut rest = Vec::new();
    while !rest.ends_with(b"\x81\x01!") {
        assert_ne!(soon(stream.read_buf(&mut rest)).await.unwrap(), 0);
    }
    let pings = rest.len() - 3;
    assert!(rest[..pings].chunks(2).all(|frame| frame == [0x89, 0]), "{rest:?}");
}

#[tokio::test]
async fn a_peer_that_is_gone_without_a_word_is_found_by_the_ping() {
    let gateway = TestGateway::with(|config| {
        config.ping_interval = Duration::from_millis(50);
        config.pong_timeout = Duration::from_millis(50);
        config.close_timeout = Duration::from_millis(50);
    })
    .await;
    // Not polled again, so it answers no ping, as a peer behind a cable that was cut.
    let half_open = gateway.bind("ann", "mail").await;
    gateway.until_empty().await;
    assert_eq!(closes(&gateway, "pong_timeout").await, 1);
    drop(half_open);
}

#[tokio::test]
async fn a_pong_keeps_the_connection() {
    let gateway = TestGateway::with(|config| {
        config.ping_interval = Duration::from_millis(50);
        config.pong_timeout = Duration::from_secs(5);
    })
    .await;
    let mut phone = gateway.bind("ann", "mail").await;
    for _ in 0..3 {
        assert!(matches!(soon(futures_util::StreamExt::next(&mut phone.socket)).await, Some(Ok(Message::Ping(_)))));
    }
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1);
    assert_eq!(phone.next_text().await, "m");
}

#[tokio::test]
async fn a_clients_ping_is_answered_between_two_messages() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    phone.send(Message::Ping("are you there".into())).await;
    let pong = soon(futures_util::StreamExt::next(&mut phone.socket)).await.unwrap().unwrap();
    assert_eq!(pong, Message::Pong("are you there".into()));
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1);
    assert_eq!(phone.next_text().await, "m");
}

/// A client whose kernel takes little, so that a few messages fill the way to it.
async fn narrow(gateway: &TestGateway) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = Client::over(socket, gateway.clients).await;
    gateway.bind_also(&mut client, "ann", "mail").await;
    client
}

#[tokio::test]
async fn a_client_that_takes_nothing_in_time_is_closed_and_what_was_lost_is_counted() {
    let gateway = TestGateway::with(|config| {
        config.write_timeout = Duration::from_millis(100);
        config.close_timeout = Duration::from_millis(50);
        config.outbox_bytes_max = 1 << 30;
    })
    .await;
    let stuck = narrow(&gateway).await;
    let message = "m".repeat(200_000);
    let mut accepted = 0;
    let mut json = gateway.json();
    while closes(&gateway, "write_timeout").await == 0 {
        accepted += json.push("ann", "mail", &message).await;
    }
    gateway.until_empty().await;
    let written = gateway.metric("pushgate_messages_written_total").await;
    let undelivered = gateway.metric("pushgate_messages_undelivered_total{reason=\"write_timeout\"}").await;
    assert_eq!(accepted, written + undelivered);
    assert!(undelivered > 0);
    drop(stuck);
}

#[tokio::test]
async fn what_was_accepted_before_a_drop_still_arrives() {
    let gateway = TestGateway::start().await;
    let mut phone = narrow(&gateway).await;
    let message = "m".repeat(50_000);
    for _ in 0..15 {
        assert_eq!(gateway.json().push("ann", "mail", &message).await, 1);
    }
    assert_eq!(gateway.grpc().await.drop_user("ann", "").await, 1);
    assert_eq!(gateway.json().push("ann", "mail", "late").await, 0, "unbound at once");
    for _ in 0..15 {
        assert_eq!(phone.next_text().await, message);
    }
    assert_eq!(phone.closed().await.0, 4409);
    gateway.until_empty().await;
}

#[tokio::test]
async fn a_close_frame_is_answered_and_unbinds() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let frame = CloseFrame { code: 4000.into(), reason: "bye".into() };
    phone.send(Message::Close(Some(frame.clone()))).await;
    assert_eq!(phone.closed().await, (4000, "bye".to_owned()));
    gateway.until_empty().await;
    assert_eq!(closes(&gateway, "client_closed").await, 1);
}

#[tokio::test]
async fn the_end_of_the_stream_without_a_close_frame_unbinds() {
    let gateway = TestGateway::start().await;
    let phone = gateway.bind("ann", "mail").await;
    drop(phone.socket.into_inner());
    gateway.until_empty().await;
    assert_eq!(closes(&gateway, "reset").await, 1);
}

#[tokio::test]
async fn the_limit_of_connections_holds_on_both_sides_and_frees_up() {
    let gateway = TestGateway::with(|config| config.connections_max = 2).await;
    let first = gateway.connect().await;
    let _second = gateway.connect().await;
    let answer = http(gateway.clients, UPGRADE).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
    assert_eq!(answer.body, "the gateway is at its limit of 2 connections");
    first.reset();
    gateway.until("pushgate_connections", |connections| connections == 1).await;
    let _third = gateway.connect().await;
}

#[tokio::test]
async fn the_limit_of_a_user_holds_on_both_sides_and_frees_up() {
    let gateway = TestGateway::with(|config| config.connections_per_user_max = 2).await;
    let first = gateway.bind("ann", "mail").await;
    let _second = gateway.bind("ann", "chat").await;
    let mut third = gateway.connect().await;
    third.send_bind("ann", "news").await;
    assert_eq!(third.closed().await, (4429, "too many connections for this user".to_owned()));
    let _another = gateway.bind("bob", "mail").await;
    first.reset();
    gateway.until("pushgate_connections", |connections| connections == 2).await;
    let _fourth = gateway.bind("ann", "mail").await;
}

#[tokio::test]
async fn the_limit_of_an_address_holds_on_both_sides_and_frees_up() {
    let gateway = TestGateway::with(|config| config.connections_per_address_max = 1).await;
    let first = gateway.connect().await;
    let answer = http(gateway.clients, UPGRADE).await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("5")));
    let _elsewhere = Client::connect_from(([127, 0, 0, 2], 0).into(), gateway.clients).await;
    first.reset();
    gateway.until("pushgate_connections", |connections| connections == 1).await;
    let _second = gateway.connect().await;
}

#[tokio::test]
async fn the_limit_of_events_holds_on_both_sides() {
    let gateway = TestGateway::with(|config| config.events_per_connection_max = 2).await;
    let mut phone = gateway.bind("ann", "one").await;
    gateway.bind_also(&mut phone, "ann", "two").await;
    gateway.bind_also(&mut phone, "ann", "two").await;
    phone.send_bind("ann", "three").await;
    assert_eq!(phone.closed().await, (4429, "too many events on this connection".to_owned()));
    gateway.until_empty().await;
}

#[tokio::test]
async fn the_limits_of_a_message_and_of_a_frame_hold_on_both_sides() {
    let bind = |length: usize| {
        let bind = r#"{"token":"ann","event":"mail"}"#;
        format!("{bind}{}", " ".repeat(length - bind.len()))
    };
    let gateway = TestGateway::with(|config| {
        config.client_frame_bytes_max = 1024;
        config.client_message_bytes_max = 1500;
    })
    .await;
    let mut phone = gateway.connect().await;
    phone.send(Message::text(bind(1024))).await;
    gateway.until("pushgate_bindings", |bindings| bindings == 1).await;
    phone.send(Message::text(bind(1025))).await;
    assert_eq!(phone.closed().await, (1009, "message too big".to_owned()));

    for (length, fits) in [(1500, true), (1501, false)] {
        let mut phone = gateway.connect().await;
        let text = bind(length).into_bytes();
        let (first, second) = text.split_at(1000);
        let first = Frame::message(first.to_vec(), OpCode::Data(Data::Text), false);
        let second = Frame::message(second.to_vec(), OpCode::Data(Data::Continue), true);
        phone.send(Message::Frame(first)).await;
        phone.send(Message::Frame(second)).await;
        if fits {
            gateway.until("pushgate_bindings", |bindings| bindings == 1).await;
        } else {
            assert_eq!(phone.closed().await.0, 1009);
        }
    }
}

#[tokio::test]
async fn a_broken_protocol_is_closed_with_its_code() {
    let gateway = TestGateway::start().await;
    let unmasked = [0x81, 2, b'h', b'i'].to_vec();
    let reserved_opcode = masked(3, b"");
    let not_utf8 = masked(1, &[0xff, 0xfe]);
    // Refused before the message has ended.
    let not_utf8_yet = masked_fragment(1, &[b'a', 0xf4, 0x90]);
    // And before its frame has.
    let not_utf8_in_half_a_frame = masked(1, &[b'a', 0xf4, 0x90, b'a'])[..9].to_vec();
    let not_utf8_then = [masked_fragment(1, &[0xf4]), masked_fragment(0, &[0x90])].concat();
    for (frame, code) in [
        (unmasked, 1002),
        (reserved_opcode, 1002),
        (not_utf8, 1007),
        (not_utf8_yet, 1007),
        (not_utf8_in_half_a_frame, 1007),
        (not_utf8_then, 1007),
    ] {
        let mut stream = soon(TcpStream::connect(gateway.clients)).await.unwrap();
        soon(stream.write_all(&[UPGRADE.as_bytes(), &frame].concat())).await.unwrap();
        assert_eq!(read_answer(&mut stream).await.status, 101);
        let mut close = Vec::new();
        soon(stream.read_to_end(&mut close)).await.unwrap();
        assert_eq!(close[0], 0x88, "{close:?}");
        assert_eq!(u16::from_be_bytes([close[2], close[3]]), code);
    }
}

#[tokio::test]
async fn what_is_no_upgrade_is_told_why() {
    let gateway = TestGateway::start().await;
    let answer = http(gateway.clients, "GET /ws HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!((answer.status, answer.header("upgrade")), (426, Some("websocket")));
    assert_eq!(answer.header("sec-websocket-version"), Some("13"));
    let answer = http(gateway.clients, &UPGRADE.replace("version: 13", "version: 8")).await;
    assert_eq!(answer.status, 426);
    let answer = http(gateway.clients, &UPGRADE.replace("GET", "POST")).await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET")));
    let answer = http(gateway.clients, &UPGRADE.replace("AAAA==", "==")).await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn a_socket_that_never_makes_a_request_is_closed() {
    let gateway = TestGateway::with(|config| config.http_header_timeout = Duration::from_millis(200)).await;
    for start in ["", "G", "GET /ws HTTP/1.1\r\nhost:", "PRI * HTTP/2.0\r\n"] {
        let mut stream = soon(TcpStream::connect(gateway.clients)).await.unwrap();
        soon(stream.write_all(start.as_bytes())).await.unwrap();
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.unwrap();
    }
}

#[tokio::test]
async fn the_control_address_serves_all_but_clients_and_the_other_clients_alone() {
    let split = |config: &mut pushgate::Config| config.control_listen = Some(([127, 0, 0, 1], 0).into());
    let gateway = TestGateway::with(split).await;
    assert_ne!(gateway.clients, gateway.control);
    let mut phone = gateway.bind("ann", "mail").await;
    assert_eq!(gateway.json().push("ann", "mail", "one").await, 1);
    assert_eq!(gateway.grpc().await.push("ann", "mail", "two").await.accepted, 1);
    assert_eq!(phone.next_text().await, "one");
    assert_eq!(phone.next_text().await, "two");
    assert_eq!(http(gateway.control, UPGRADE).await.status, 404);
    for path in ["/push", "/metrics", "/healthz", "/readyz", "/"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!(http(gateway.clients, &request).await.status, 404, "{path}");
    }
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut stream = soon(TcpStream::connect(gateway.clients)).await.unwrap();
    soon(stream.write_all(preface.as_bytes())).await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"", "closed, for want of HTTP/2 where only clients are served");
}

/// Answers to pings are held back while others wait to be written, and the last ones were never brought out.
#[tokio::test]
async fn the_newest_of_many_pings_is_answered_and_so_is_a_close_frame_behind_them() {
    let gateway = TestGateway::start().await;
    let mut stream = soon(TcpStream::connect(gateway.clients)).await.unwrap();
    let pings: Vec<u8> = (0..6).flat_map(|number| masked(9, &[number; 125])).collect();
    soon(stream.write_all(&[UPGRADE.as_bytes(), &pings].concat())).await.unwrap();
    assert_eq!(read_answer(&mut stream).await.status, 101);
    let mut pong = [0; 127];
    while pong[2..] != [5; 125] {
        soon(stream.read_exact(&mut pong)).await.unwrap();
        assert_eq!(pong[..2], [0x8a, 125]);
    }
    let close = masked(8, &4000u16.to_be_bytes());
    soon(stream.write_all(&[pings, close].concat())).await.unwrap();
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.ends_with(&[0x88, 2, 0x0f, 0xa0]), "{rest:?}");
}

/// One that sends requests and reads no answer held its connection, and a place among the HTTP connections, for ever.
#[tokio::test]
async fn a_peer_that_reads_no_answer_is_cut() {
    let gateway = TestGateway::with(|config| config.http_header_timeout = Duration::from_millis(200)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = soon(socket.connect(gateway.clients)).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    soon(async { while stream.write_all(request.as_bytes()).await.is_ok() {} }).await;
}

#[tokio::test]
async fn nothing_follows_the_gateways_close_frame_not_even_a_pong_that_was_held_back() {
    let gateway = TestGateway::start().await;
    let mut stream = soon(TcpStream::connect(gateway.clients)).await.unwrap();
    let pings: Vec<u8> = (0..6).flat_map(|number| masked(9, &[number; 125])).collect();
    let no_bind = masked(1, b"hello");
    soon(stream.write_all(&[UPGRADE.as_bytes(), &pings, &no_bind, &pings].concat())).await.unwrap();
    assert_eq!(read_answer(&mut stream).await.status, 101);
    let mut frames = Vec::new();
    soon(stream.read_to_end(&mut frames)).await.unwrap();
    let mut opcodes = Vec::new();
    while let [first, length, ..] = frames[..] {
        opcodes.push(first);
        frames.drain(..2 + usize::from(length));
    }
    assert_eq!(opcodes.iter().position(|opcode| *opcode == 0x88), Some(opcodes.len() - 1), "{opcodes:x?}");
}

/// A handful of such clients kept a core busy for as long as they liked.
#[tokio::test]
async fn a_client_that_sends_more_frames_than_it_may_is_closed_whatever_is_in_them() {
    let gateway = TestGateway::with(|config| config.client_frames_per_second_max = 5).await;
    let bind = masked(1, br#"{"token":"ann","event":"mail"}"#);
    let first_fragment = masked_fragment(1, b"");
    let further_fragment = masked_fragment(0, b"");
    let floods = [masked(9, b""), masked(10, b"unasked"), further_fragment, bind.clone()];
    for (flood, start) in floods.into_iter().zip([&bind, &bind, &[bind.clone(), first_fragment].concat(), &bind]) {
        let mut stream = soon(TcpStream::connect(gateway.clients)).await.unwrap();
        soon(stream.write_all(&[UPGRADE.as_bytes(), start, &flood.repeat(200)].concat())).await.unwrap();
        assert_eq!(read_answer(&mut stream).await.status, 101);
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.unwrap();
        let close = [&[0x88, 17][..], &1008u16.to_be_bytes(), b"too many frames"].concat();
        assert!(rest.ends_with(&close), "{rest:?}");
    }
    let sample = "pushgate_closes_total{reason=\"too_many_frames\"}";
    assert_eq!(gateway.metric(sample).await, 4);
}

/// How a client that sends this after its upgrade is closed.
async fn told(gateway: &TestGateway, sent: &[u8]) -> (u16, String) {
    let mut stream = soon(TcpStream::connect(gateway.clients)).await.unwrap();
    soon(stream.write_all(&[UPGRADE.as_bytes(), sent].concat())).await.unwrap();
    assert_eq!(read_answer(&mut stream).await.status, 101);
    let mut frames = Vec::new();
    soon(stream.read_to_end(&mut frames)).await.unwrap();
    let close = frames.iter().rposition(|byte| *byte == 0x88).unwrap();
    let [_, _, high, low, text @ ..] = &frames[close..] else { panic!("{frames:?}") };
    (u16::from_be_bytes([*high, *low]), String::from_utf8_lossy(text).into_owned())
}

#[tokio::test]
async fn pings_have_a_rate_of_their_own() {
    let gateway = TestGateway::with(|config| config.client_pings_per_second_max = 1).await;
    let bind = masked(1, br#"{"token":"ann","event":"mail"}"#);
    let too_many = [&bind[..], &masked(9, b"").repeat(60)].concat();
    assert_eq!(told(&gateway, &too_many).await, (1008, "too many pings".to_owned()));
    gateway.until_closed("too_many_pings").await;
    // Ten seconds' worth may come at once, and other frames are not pings.
    let allowed = [bind, masked(9, b"").repeat(10), masked(10, b"").repeat(60), masked(8, &[3, 232])].concat();
    assert_eq!(told(&gateway, &allowed).await.0, 1000);
}

#[tokio::test]
async fn a_message_comes_in_so_many_fragments_and_no_more() {
    let gateway = TestGateway::with(|config| config.client_message_fragments_max = 3).await;
    let (first, rest) = br#"{"token":"ann","event":"mail"}"#.split_at(5);
    let begin = masked_fragment(1, first);
    let within =
        [begin.clone(), masked(9, b""), masked_fragment(0, b""), masked(0, rest), masked(8, &[3, 232])].concat();
    assert_eq!(told(&gateway, &within).await.0, 1000, "three, and a ping is none");
    let past = [begin, masked_fragment(0, b"").repeat(2), masked(0, rest)].concat();
    assert_eq!(told(&gateway, &past).await, (1008, "too many fragments in one message".to_owned()));
    gateway.until_closed("too_many_fragments").await;
}

#[tokio::test]
async fn what_a_client_begins_it_must_finish_in_time_be_it_a_head_a_body_or_a_last_fragment() {
    let gateway = TestGateway::with(|config| config.client_message_timeout = Duration::from_millis(200)).await;
    let bind = masked(1, br#"{"token":"ann","event":"mail"}"#);
    let begun = masked(1, br#"{"token":"ann","event":"other"}"#);
    let unfinished = [
        &begun[..1],
        &begun[..4],
        &begun[..20],
        &masked_fragment(1, b"{"),
        &masked(9, b"ping")[..3],
        &begun[..begun.len() - 1],
    ];
    for unfinished in unfinished {
        let sent = [&bind[..], unfinished].concat();
        assert_eq!(told(&gateway, &sent).await, (1008, "message not finished in time".to_owned()), "{unfinished:?}");
    }
    assert_eq!(closes(&gateway, "message_timeout").await, 6);
}

/// Each answer to a refused bind allowed the next one.
#[tokio::test]
async fn what_a_client_is_told_of_its_own_mistakes_does_not_allow_it_more_of_them() {
    let gateway = TestGateway::with(|config| config.client_frames_per_second_max = 5).await;
    let mut eve = SessionClient::connect(gateway.clients).await;
    assert_eq!(eve.bind("eve", "mail").await["type"], "bound");
    let bind = json!({ "type": "bind", "token": "mallory", "event": "mail" });
    let end = soon(async {
        loop {
            let _closed = eve.try_send(Message::text(bind.to_string())).await;
            match eve.next_message().await {
                Some(Message::Text(_)) => {}
                end => return end,
            }
        }
    })
    .await;
    let Some(Message::Close(Some(CloseFrame { code, .. }))) = end else { panic!("{end:?}") };
    assert_eq!(u16::from(code), 1008);
}

#[tokio::test]
async fn a_frame_whose_length_takes_more_bytes_than_it_needs_is_a_protocol_error() {
    let gateway = TestGateway::start().await;
    let mut stream = soon(TcpStream::connect(gateway.clients)).await.unwrap();
    let long = [&[0x81, 0xfe, 0, 2, 0, 0, 0, 0][..], b"{}"].concat();
    soon(stream.write_all(&[UPGRADE.as_bytes(), &long].concat())).await.unwrap();
    assert_eq!(read_answer(&mut stream).await.status, 101);
    let mut close = Vec::new();
    soon(stream.read_to_end(&mut close)).await.unwrap();
    assert_eq!(u16::from_be_bytes([close[2], close[3]]), 1002);
}

/// The kernel took 4 MiB of each client that did not read, beside the outbox.
#[tokio::test]
async fn what_the_kernel_holds_of_a_client_that_does_not_read_is_bounded_by_the_setting() {
    const MESSAGE: usize = 10_000;
    let gateway = TestGateway::with(|config| {
        config.socket_send_bytes_max = 32 * 1024;
        config.socket_unsent_bytes_max = 16 * 1024;
        config.write_timeout = PATIENCE;
        config.outbox_bytes_max = 1 << 30;
    })
    .await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stuck = Client::over(socket, gateway.clients).await;
    gateway.bind_also(&mut stuck, "ann", "mail").await;
    let mut reader = gateway.bind("ann", "mail").await;
    let message = "m".repeat(MESSAGE);
    for _ in 0..100 {
        assert_eq!(gateway.json().push("ann", "mail", &message).await, 2);
        reader.next_text().await;
    }
    gateway.until("pushgate_messages_written_total", |written| written >= 100).await;
    let kernel = gateway.metric("pushgate_messages_written_total").await as usize - 100;
    assert!(kernel * MESSAGE <= 128 * 1024, "{kernel} messages are with the kernel");
}

#[tokio::test]
async fn a_connection_that_is_old_enough_gets_what_is_queued_and_then_1012() {
    let gateway = TestGateway::with(|config| config.connection_age_max = Duration::from_secs(1)).await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut unbound = gateway.connect().await;
    let mut pushed = 0;
    while gateway.json().push("ann", "mail", "m").await == 1 {
        pushed += 1;
    }
    for _ in 0..pushed {
        assert_eq!(phone.next_text().await, "m");
    }
    assert_eq!(phone.closed().await, (1012, "open for long enough, come back".to_owned()));
    assert_eq!(unbound.closed().await.0, 1012);
}
