//! The contract of the replaced service, a test for each row and for each of its old faults.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Client, TestGateway, http, read_answer, soon};

#[tokio::test]
async fn a_push_answers_to_how_many_clients_it_went() {
    let gateway = TestGateway::start().await;
    for clients in 0..3 {
        let answer = gateway.json().post(r#"{"userId":"ann","event":"mail","message":"hello"}"#).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, format!("message sent to {clients} clients"));
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
        std::mem::forget(gateway.bind("ann", "mail").await);
    }
}

#[tokio::test]
async fn a_push_arrives_as_one_text_frame_of_exactly_the_message() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    for message in ["hello", " \u{1f600}\0\"\\\n ", &"long ".repeat(40_000)] {
        assert_eq!(gateway.json().push("ann", "mail", message).await, 1);
        assert_eq!(phone.next().await, Message::text(message));
    }
}

#[tokio::test]
async fn what_is_not_a_push_is_illegal() {
    let gateway = TestGateway::start().await;
    for body in [
        "",
        "hello",
        "[]",
        "null",
        "{}",
        r#"{"userId":"ann","event":"mail"}"#,
        r#"{"userId":"","event":"mail","message":"m"}"#,
        r#"{"userId":"ann","event":"","message":"m"}"#,
        r#"{"userId":"ann","event":"mail","message":""}"#,
        r#"{"userId":"ann","event":"mail","message":null}"#,
        r#"{"userId":7,"event":"mail","message":"m"}"#,
        r#"{"userId":"ann","event":"mail","message":"m""#,
    ] {
        let answer = gateway.json().post(body).await;
        assert_eq!((answer.status, answer.body.as_str()), (400, "request data illegal"), "{body}");
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    }
}

#[tokio::test]
async fn keys_match_in_any_case_and_what_is_unknown_or_follows_is_not_looked_at() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.connect().await;
    phone.send(Message::text(r#"{"x":[1,{}],"TOKEN":"ann","eVeNt":"mail"} and more"#)).await;
    gateway.until("pushgate_bindings", |bindings| bindings == 1).await;
    let answer = gateway.json().post(r#"{"USERID":"ann","x":{"y":[]},"Event":"mail","messagE":"m"}{"userId":"#).await;
    assert_eq!(answer.body, "message sent to 1 clients");
    assert_eq!(phone.next_text().await, "m");
}

#[tokio::test]
async fn any_content_type_will_do() {
    let gateway = TestGateway::start().await;
    let body = r#"{"userId":"ann","event":"mail","message":"m"}"#;
    for kind in ["", "content-type: text/plain\r\n", "content-type: application/x-www-form-urlencoded\r\n"] {
        let head = format!("POST /push HTTP/1.1\r\nhost: x\r\n{kind}content-length: {}\r\n\r\n", body.len());
        assert_eq!(http(gateway.control, &format!("{head}{body}")).await.body, "message sent to 0 clients");
    }
}

#[tokio::test]
async fn a_body_in_chunks_will_do() {
    let gateway = TestGateway::start().await;
    let request = "POST /push HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
                   10\r\n{\"userId\":\"ann\",\r\n1d\r\n\"event\":\"mail\",\"message\":\"m\"}\r\n0\r\n\r\n";
    assert_eq!(http(gateway.control, request).await.body, "message sent to 0 clients");
}

#[tokio::test]
async fn other_methods_are_not_allowed_even_without_credentials() {
    let gateway = TestGateway::built(|_| (), |builder| builder.push_authorizer(crate::auth::NobodyMayPush)).await;
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let request = format!("{method} /push HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
        let answer = http(gateway.control, &request).await;
        assert_eq!((answer.status, answer.header("allow"), answer.body.as_str()), (405, Some("POST"), ""), "{method}");
    }
}

#[tokio::test]
async fn a_refused_caller_gets_401_and_nothing_else_whatever_the_body() {
    let gateway = TestGateway::built(|_| (), |builder| builder.push_authorizer(crate::auth::NobodyMayPush)).await;
    for body in [r#"{"userId":"ann","event":"mail","message":"m"}"#, "hello"] {
        let answer = gateway.json().post(body).await;
        assert_eq!((answer.status, answer.body.as_str()), (401, ""));
    }
}

#[tokio::test]
async fn a_body_over_the_limit_gets_413_and_the_limit() {
    let gateway = TestGateway::with(|config| {
        config.message_bytes_max = 100;
        config.request_bytes_max = 200;
    })
    .await;
    let push = |message: usize, padding: usize| {
        let message = "m".repeat(message);
        format!(r#"{{"userId":"a","event":"e","message":"{message}"}}{}"#, " ".repeat(padding))
    };
    let overhead = push(0, 0).len();
    assert_eq!(gateway.json().post(push(100, 0)).await.status, 200);
    assert_eq!(gateway.json().post(push(10, 200 - 10 - overhead)).await.status, 200, "exactly the limit");
    let answer = gateway.json().post(push(10, 201 - 10 - overhead)).await;
    assert_eq!((answer.status, answer.body.as_str()), (413, "the request is over the limit of 200 bytes"));
    let answer = gateway.json().post(push(101, 0)).await;
    assert_eq!((answer.status, answer.body.as_str()), (413, "the message is over the limit of 100 bytes"));

    let mut stream = soon(TcpStream::connect(gateway.control)).await.unwrap();
    let head = "POST /push HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    soon(stream.write_all(format!("{head}c9\r\n{}\r\n0\r\n\r\n", "x".repeat(201)).as_bytes())).await.unwrap();
    assert_eq!(read_answer(&mut stream).await.status, 413, "also when the length is not told beforehand");
}

#[tokio::test]
async fn the_paths_are_configurable() {
    let gateway = TestGateway::with(|config| config.push_path = "/legacy/push".to_owned()).await;
    assert_eq!(gateway.json().path("/legacy/push").push("ann", "mail", "m").await, 0);
    assert_eq!(gateway.json().post("{}").await.status, 404);
    let gateway = TestGateway::with(|config| config.ws_path = "/sockets".to_owned()).await;
    let stream = soon(TcpStream::connect(gateway.clients)).await.unwrap();
    let url = format!("ws://{}/sockets", gateway.clients);
    assert!(soon(tokio_tungstenite::client_async(url, stream)).await.is_ok());
}

#[tokio::test]
async fn the_first_frame_may_be_binary() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.connect().await;
    phone.send(Message::binary(br#"{"token":"ann","event":"mail"}"#.to_vec())).await;
    gateway.until("pushgate_bindings", |bindings| bindings == 1).await;
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1);
    assert_eq!(phone.next_text().await, "m");
}

#[tokio::test]
async fn a_drop_closes_by_event_or_all_and_counts() {
    let gateway = TestGateway::start().await;
    let mut mail = gateway.bind("ann", "mail").await;
    let mut chat = gateway.bind("ann", "chat").await;
    let mut other = gateway.bind("bob", "mail").await;
    let mut operator = gateway.grpc().await;
    assert_eq!(operator.drop_user("ann", "news").await, 0);
    assert_eq!(operator.drop_user("ann", "mail").await, 1);
    assert_eq!(mail.closed().await, (4409, "dropped".to_owned()));
    assert_eq!(gateway.json().push("ann", "chat", "still here").await, 1);
    assert_eq!(operator.drop_user("ann", "").await, 1);
    assert_eq!(chat.next_text().await, "still here");
    assert_eq!(chat.closed().await.0, 4409);
    assert_eq!(gateway.json().push("bob", "mail", "untouched").await, 1);
    assert_eq!(other.next_text().await, "untouched");
}

// The old faults.

/// It crashed with "concurrent write to websocket connection".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_pushes_to_one_connection_all_arrive() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let mut json = gateway.json();
            tokio::spawn(async move {
                for number in 0..50 {
                    assert_eq!(json.push("ann", "mail", &format!("{caller} {number}")).await, 1);
                }
            })
        })
        .collect();
    let mut next = [0; 8];
    for _ in 0..400 {
        let text = phone.next_text().await;
        let (caller, number) = text.split_once(' ').unwrap();
        let expected = &mut next[caller.parse::<usize>().unwrap()];
        assert_eq!(number.parse::<u32>().unwrap(), *expected, "in each caller's own order");
        *expected += 1;
    }
    for caller in callers {
        soon(caller).await.unwrap();
    }
}

/// It ignored the second bind, and said nothing.
#[tokio::test]
async fn a_second_event_on_one_connection_binds_too() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    gateway.bind_also(&mut phone, "ann", "chat").await;
    gateway.bind_also(&mut phone, "ann", "chat").await;
    assert_eq!(gateway.json().push("ann", "mail", "one").await, 1);
    assert_eq!(gateway.json().push("ann", "chat", "two").await, 1, "bound twice, delivered once");
    assert_eq!(phone.next_text().await, "one");
    assert_eq!(phone.next_text().await, "two");
}

/// It overwrote the connection's user and left the first one's binding behind for ever.
#[tokio::test]
async fn another_users_token_on_a_bound_connection_is_refused() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    phone.send_bind("bob", "mail").await;
    assert_eq!(phone.closed().await, (4403, "bound to another user".to_owned()));
    gateway.until_empty().await;
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 0);
    assert_eq!(gateway.json().push("bob", "mail", "m").await, 0);
}

/// It noticed a reset only when a push failed.
#[tokio::test]
async fn a_reset_connection_is_unbound_without_a_push() {
    let gateway = TestGateway::start().await;
    gateway.bind("ann", "mail").await.reset();
    gateway.until_empty().await;
    assert_eq!(gateway.metric("pushgate_closes_total{reason=\"reset\"}").await, 1);
}

/// It swallowed them, and the client never learned.
#[tokio::test]
async fn bad_json_is_closed_with_a_reason() {
    let gateway = TestGateway::start().await;
    for frame in ["hello", "[]", r#"{"token":7,"event":"mail"}"#, r#"{"token":"ann","event":"mail""#] {
        let mut phone = gateway.connect().await;
        phone.send(Message::text(frame)).await;
        let (code, reason) = phone.closed().await;
        assert_eq!((code, reason.is_empty()), (4400, false), "{frame}");
    }
    for frame in ["{}", "null", r#"{"token":"ann"}"#, r#"{"event":"mail"}"#, r#"{"token":"","event":"mail"}"#] {
        let mut phone = gateway.connect().await;
        phone.send(Message::text(frame)).await;
        assert_eq!(phone.closed().await, (4400, "token or event is empty or too long".to_owned()), "{frame}");
    }
    let mut bound = gateway.bind("ann", "mail").await;
    bound.send(Message::text("hello")).await;
    assert_eq!(bound.closed().await.0, 4400);
    gateway.until_empty().await;
}

/// It let one client that did not read hold up every push to its user.
#[tokio::test]
async fn a_slow_reader_stalls_neither_the_caller_nor_its_neighbour() {
    let gateway = TestGateway::start().await;
    let slow = gateway.bind("ann", "mail").await;
    let mut quick: Client = gateway.bind("ann", "mail").await;
    let message = "m".repeat(100_000);
    let mut json = gateway.json();
    // Far more than the slow one's outbox and kernel buffers hold, so it falls behind for good on the way.
    let mut least = 2;
    for _ in 0..200 {
        least = least.min(json.push("ann", "mail", &message).await);
        assert_eq!(quick.next_text().await.len(), message.len());
    }
    assert_eq!(least, 1, "the slow one was given up");
    gateway.until("pushgate_closes_total{reason=\"queue_full\"}", |closes| closes == 1).await;
    assert_eq!(gateway.metric("pushgate_push_dropped_total{reason=\"queue_full\"}").await, 1);
    drop(slow);
}

/// A plain caller sends all of its body before it reads, and saw a reset instead of the answer.
#[tokio::test]
async fn a_caller_that_reads_only_after_sending_sees_the_413() {
    let gateway = TestGateway::with(|config| config.message_bytes_max = 1000).await;
    let limit = 4 * 1024 * 1024;
    let answer = gateway.json().post("x".repeat(limit + 1)).await;
    assert_eq!((answer.status, answer.body), (413, format!("the request is over the limit of {limit} bytes")));
}
