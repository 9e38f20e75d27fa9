//! The gRPC door.

use std::time::Duration;

use bytes::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pushgate::proto::push_request::Payload;
use pushgate::proto::push_result::Result as ResultOf;
use pushgate::proto::{
    BroadcastRequest, DropReason, DropRequest, Level, PushBatchRequest, PushBatchResponse, PushRequest,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::support::session::SessionClient;
use crate::support::{TestGateway, push_request, soon};

#[tokio::test]
async fn a_push_answers_with_counts_that_add_up_and_a_message_id() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut grpc = gateway.grpc().await;
    let first = grpc.push("ann", "mail", "hello").await;
    assert_eq!((first.matched, first.accepted, first.dropped, first.drops.len()), (1, 1, 0, 0));
    assert_eq!(first.level(), Level::Accepted);
    assert_eq!(phone.next_text().await, "hello");
    let second = grpc.push("bob", "mail", "hello").await;
    assert_eq!((second.matched, second.accepted, second.dropped), (0, 0, 0), "nobody there is no error");
    assert_ne!(first.message_id, second.message_id);
}

#[tokio::test]
async fn a_binary_push_arrives_as_a_binary_frame() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let bytes = Bytes::from_static(&[0, 159, 146, 150]);
    let push = PushRequest { payload: Some(Payload::Binary(bytes.clone())), ..push_request("ann", "mail", "") };
    assert_eq!(gateway.grpc().await.try_push(push).await.unwrap().accepted, 1);
    assert_eq!(phone.next().await, Message::Binary(bytes));
}

#[tokio::test]
async fn a_wrong_request_names_its_field() {
    let gateway = TestGateway::with(|config| config.message_bytes_max = 100).await;
    let mut grpc = gateway.grpc().await;
    let no_payload = PushRequest { payload: None, ..push_request("ann", "mail", "") };
    let empty_binary = PushRequest { payload: Some(Payload::Binary(Bytes::new())), ..push_request("ann", "mail", "") };
    for (push, field) in [
        (push_request("", "mail", "m"), "user_id"),
        (push_request(&"u".repeat(4097), "mail", "m"), "user_id"),
        (push_request("ann", "", "m"), "event"),
        (push_request("ann", &"e".repeat(1025), "m"), "event"),
        (push_request("ann", "mail", ""), "message"),
        (push_request("ann", "mail", &"m".repeat(101)), "message"),
        (no_payload, "message"),
        (empty_binary, "message"),
    ] {
        let status = grpc.try_push(push).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations.len(), 1);
        assert_eq!(violations[0].field, field);
        assert_eq!(violations[0].description, status.message());
    }
    let drop = DropRequest { user_id: String::new(), event: String::new() };
    let status = soon(grpc.client.drop(drop)).await.unwrap_err();
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "user_id");
}

#[tokio::test]
async fn a_duration_goes_by_the_rules_of_protobuf() {
    let gateway = TestGateway::start().await;
    let mut grpc = gateway.grpc().await;
    let with_ttl = |seconds, nanos| PushRequest {
        ttl: Some(prost_types::Duration { seconds, nanos }),
        ..push_request("ann", "mail", "m")
    };
    for (seconds, nanos) in [(1, 0), (0, 999_999_999), (315_576_000_000, 0)] {
        assert!(grpc.try_push(with_ttl(seconds, nanos)).await.is_ok(), "{seconds} {nanos}");
    }
    for (seconds, nanos) in [
        (1, -5),
        (-1, 5),
        (0, 1_000_000_000),
        (0, 2_000_000_000),
        (1, i32::MIN),
        (315_576_000_001, 0),
        (100_000_000_000_000, 0),
        (i64::MIN, 0),
        (-1, 0),
        (0, -1),
    ] {
        let status = grpc.try_push(with_ttl(seconds, nanos)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{seconds} {nanos}");
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "ttl");
        let ttl = Some(prost_types::Duration { seconds, nanos });
        let payload = Some(pushgate::proto::broadcast_request::Payload::Message("m".to_owned()));
        let broadcast = BroadcastRequest { event: "mail".to_owned(), payload, ttl, ..BroadcastRequest::default() };
        let status = soon(grpc.client.broadcast(broadcast)).await.unwrap_err();
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "ttl");
    }
}

#[tokio::test]
async fn a_batch_answers_in_order_and_one_mistake_does_not_stop_the_rest() {
    let gateway = TestGateway::with(|config| config.batch_pushes_max = 3).await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut grpc = gateway.grpc().await;
    let pushes = vec![push_request("ann", "mail", "1"), push_request("ann", "", "2"), push_request("ann", "mail", "3")];
    let batch = PushBatchRequest { pushes: pushes.clone() };
    let results = soon(grpc.client.push_batch(batch)).await.unwrap().into_inner().results;
    let described: Vec<String> = results
        .iter()
        .map(|result| match result.result.as_ref().unwrap() {
            ResultOf::Outcome(outcome) => format!("accepted {}", outcome.accepted),
            ResultOf::Error(error) => format!("{} {}", error.code, error.field),
        })
        .collect();
    assert_eq!(described, ["accepted 1", "3 event", "accepted 1"]);
    assert_eq!(phone.next_text().await, "1");
    assert_eq!(phone.next_text().await, "3");

    let over = PushBatchRequest { pushes: [pushes, vec![push_request("ann", "mail", "4")]].concat() };
    for batch in [over, PushBatchRequest { pushes: Vec::new() }] {
        let status = soon(grpc.client.push_batch(batch)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "pushes");
    }
}

/// A batch of empty pushes, two bytes each, without the memory of their structs.
#[derive(Clone, PartialEq, prost::Message)]
struct EmptyPushes {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pushes: Vec<Bytes>,
}

#[tokio::test]
async fn a_batch_of_millions_is_refused_in_the_same_words_as_one_push_too_many() {
    let gateway = TestGateway::start().await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", gateway.control)).unwrap();
    let channel = soon(channel.connect()).await.unwrap();
    for encoding in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)] {
        for count in [1001, 2_000_000] {
            let mut grpc = tonic::client::Grpc::new(channel.clone());
            if let Some(encoding) = encoding {
                grpc = grpc.send_compressed(encoding);
            }
            soon(grpc.ready()).await.unwrap();
            let codec = tonic_prost::ProstCodec::<_, PushBatchResponse>::default();
            let batch = Request::new(EmptyPushes { pushes: vec![Bytes::new(); count] });
            let path = http::uri::PathAndQuery::from_static("/pushgate.v1.PushService/PushBatch");
            let status = soon(grpc.unary(batch, path, codec)).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{encoding:?} {status:?}");
            assert_eq!(status.message(), format!("{count} pushes are over the limit of 1000"));
            let violations = status.get_details_bad_request().unwrap().field_violations;
            assert_eq!((violations.len(), violations[0].field.as_str()), (1, "pushes"));
        }
    }
}

#[tokio::test]
async fn a_request_over_the_limit_is_resource_exhausted() {
    let gateway = TestGateway::with(|config| {
        config.message_bytes_max = 1000;
        config.request_bytes_max = 2000;
    })
    .await;
    let mut grpc = gateway.grpc().await;
    let batch = |count| PushBatchRequest { pushes: vec![push_request("ann", "mail", &"m".repeat(900)); count] };
    assert!(soon(grpc.client.push_batch(batch(2))).await.is_ok());
    // Over it by one message, and by so much that the length alone tells before the rest has come.
    for count in [3, 10_000] {
        let status = soon(grpc.client.push_batch(batch(count))).await.unwrap_err();
        let expected = (Code::ResourceExhausted, "the request is over the limit of 2000 bytes");
        assert_eq!((status.code(), status.message()), expected);
    }
}

#[tokio::test]
async fn a_full_outbox_is_told_by_reason() {
    let gateway = TestGateway::with(|config| config.outbox_messages_max = 2).await;
    let _phone = gateway.bind("ann", "mail").await;
    // The first is written on the way. One call is one poll of the runtime's only thread, so that the others wait.
    let pushes = vec![push_request("ann", "mail", "m"); 5];
    let batch = PushBatchRequest { pushes };
    let results = soon(gateway.grpc().await.client.push_batch(batch)).await.unwrap().into_inner().results;
    let mut reasons = Vec::new();
    for result in results {
        let Some(ResultOf::Outcome(outcome)) = result.result else { panic!("a valid push was refused") };
        assert_eq!(outcome.matched, outcome.accepted + outcome.dropped);
        assert_eq!(outcome.dropped, outcome.drops.iter().map(|drop| drop.count).sum::<u64>());
        reasons.push(outcome.drops.first().map(|drop| drop.reason()));
    }
    assert_eq!(reasons, [None, None, None, Some(DropReason::QueueFull), Some(DropReason::Closed)]);
}

#[tokio::test]
async fn the_health_of_the_whole_and_of_the_service_is_told() {
    let gateway = TestGateway::start().await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", gateway.control)).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    for service in ["", "pushgate.v1.PushService"] {
        let check = HealthCheckRequest { service: service.to_owned() };
        assert_eq!(soon(health.check(check)).await.unwrap().into_inner().status, 1, "SERVING {service:?}");
    }
    let unknown = HealthCheckRequest { service: "no.such.Service".to_owned() };
    assert_eq!(soon(health.check(unknown)).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn an_unknown_service_or_method_is_unimplemented() {
    let gateway = TestGateway::start().await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", gateway.control)).unwrap();
    let channel = channel.connect().await.unwrap();
    for path in ["/no.such.Service/Method", "/pushgate.v1.PushService/NoSuchMethod"] {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        soon(grpc.ready()).await.unwrap();
        let codec = tonic_prost::ProstCodec::<PushRequest, PushRequest>::default();
        let request = Request::new(PushRequest::default());
        let status = soon(grpc.unary(request, path.parse().unwrap(), codec)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
    }
}

/// By a client that leaves the keeping of its deadline to the gateway, as tonic's own does not.
#[tokio::test]
async fn the_deadline_in_the_header_is_kept_by_the_gateway() {
    let gateway = TestGateway::built(|_| (), |builder| builder.push_authorizer(NeverAnswers)).await;
    let stream = TokioIo::new(soon(TcpStream::connect(gateway.control)).await.unwrap());
    let (mut sender, connection) = soon(http2::handshake(TokioExecutor::new(), stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{}/pushgate.v1.PushService/Push", gateway.control))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "1m")
        .body(http_body_util::Full::new(Bytes::from_static(&[0; 5])))
        .unwrap();
    let response = soon(sender.send_request(request)).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "4", "DEADLINE_EXCEEDED");
}

/// Three bodies that do not come, and as many pushes by each way that wait for a session that does not acknowledge.
#[tokio::test]
async fn pushes_that_are_not_worked_on_hold_no_place_of_others() {
    let gateway = TestGateway::with(|config| config.push_concurrency_max = 1).await;
    let mut session = SessionClient::connect(gateway.clients).await;
    session.bind("ann", "mail").await;
    let mut slow = Vec::new();
    for _ in 0..3 {
        let mut stream = soon(TcpStream::connect(gateway.control)).await.unwrap();
        let head = "POST /push HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 50\r\n\r\n";
        soon(stream.write_all(head.as_bytes())).await.unwrap();
        soon(stream.read_exact(&mut [0; 25])).await.unwrap();
        slow.push(stream);
    }
    let acked = PushRequest { wait_for: Level::Acked.into(), ..push_request("ann", "mail", "m") };
    let mut waiting = Vec::new();
    let mut seq = 0;
    for _ in 0..3 {
        let (mut grpc, push) = (gateway.grpc().await, acked.clone());
        waiting.push(tokio::spawn(async move { grpc.try_push(push).await.unwrap().acked }));
        seq += 1;
        session.expect_push(seq, "m").await;

        let (mut grpc, pushes) = (gateway.grpc().await, vec![acked.clone()]);
        waiting.push(tokio::spawn(async move {
            let batch = soon(grpc.client.push_batch(PushBatchRequest { pushes })).await.unwrap().into_inner();
            match batch.results.into_iter().next().unwrap().result.unwrap() {
                ResultOf::Outcome(outcome) => outcome.acked,
                ResultOf::Error(error) => panic!("{error:?}"),
            }
        }));
        seq += 1;
        session.expect_push(seq, "m").await;

        for connections_per_second in [0, 1] {
            let mut grpc = gateway.grpc().await;
            let broadcast = BroadcastRequest {
                event: "mail".to_owned(),
                payload: Some(pushgate::proto::broadcast_request::Payload::Message("m".to_owned())),
                wait_for: Level::Acked.into(),
                connections_per_second,
                ..BroadcastRequest::default()
            };
            waiting.push(tokio::spawn(async move {
                soon(grpc.client.broadcast(broadcast)).await.unwrap().into_inner().outcome.unwrap().acked
            }));
            seq += 1;
            session.expect_push(seq, "m").await;
        }

        let mut json = gateway.json().accept("application/json");
        waiting.push(tokio::spawn(async move {
            let push = r#"{"userId":"ann","event":"mail","message":"m","waitFor":"LEVEL_ACKED"}"#;
            let answer = json.post(push).await;
            u64::from(answer.body.contains(r#""acked":"1""#))
        }));
        seq += 1;
        session.expect_push(seq, "m").await;
    }
    assert_eq!(gateway.json().push("bob", "mail", "m").await, 0);
    assert_eq!(gateway.grpc().await.push("bob", "mail", "m").await.matched, 0);
    session.ack(seq).await;
    for wait in waiting {
        assert_eq!(soon(wait).await.unwrap(), 1);
    }
}

struct NeverAnswers;

#[async_trait::async_trait]
impl pushgate::PushAuthorizer for NeverAnswers {
    async fn authorize(&self, _: &pushgate::PushCredentials) -> Result<pushgate::PushScope, pushgate::PushRefused> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn the_callers_deadline_and_the_gateways_own_both_hold() {
    let gateway = TestGateway::built(
        |config| config.request_timeout = Duration::from_millis(300),
        |builder| builder.push_authorizer(NeverAnswers),
    )
    .await;
    let mut grpc = gateway.grpc().await;
    let status = grpc.try_push(push_request("ann", "mail", "m")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "the request took too long"));
    let answer = gateway.json().post("{}").await;
    assert_eq!((answer.status, answer.body.as_str()), (408, "the request took too long"));
}

#[tokio::test]
async fn over_the_concurrency_limit_both_doors_refuse_at_once() {
    let gateway =
        TestGateway::built(|config| config.push_concurrency_max = 1, |builder| builder.push_authorizer(NeverAnswers))
            .await;
    let mut waiting = gateway.grpc().await;
    let hangs = tokio::spawn(async move { waiting.try_push(push_request("ann", "mail", "m")).await });
    let mut grpc = gateway.grpc().await;
    soon(async {
        // Until the first one is inside, this one is, and is given up on by its short deadline.
        loop {
            let mut request = Request::new(push_request("ann", "mail", "m"));
            request.set_timeout(Duration::from_millis(1));
            let status = grpc.client.push(request).await.unwrap_err();
            if status.code() == Code::ResourceExhausted {
                return;
            }
        }
    })
    .await;
    let answer = gateway.json().post("{}").await;
    assert_eq!((answer.status, answer.body.as_str()), (503, "overloaded, try again later"));
    assert_eq!(answer.header("retry-after"), Some("5"));
    hangs.abort();
}
