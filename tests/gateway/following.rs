//! What a caller learns past acceptance: levels, connections by themselves, time to live, and the stream of pushes.

use std::time::{Duration, Instant};

use pushgate::proto::push_result::Result as ResultOf;
use pushgate::proto::push_service_client::PushServiceClient;
use pushgate::proto::{
    BroadcastRequest, DropReason, Level, PushBatchRequest, PushRequest, PushResponse, PushStreamRequest,
    PushStreamResponse,
};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};
use tonic_types::StatusExt;

use crate::support::session::SessionClient;
use crate::support::{Client, GrpcCaller, PATIENCE, TestGateway, push_request, soon};

fn written(push: PushRequest) -> PushRequest {
    PushRequest { wait_for: Level::Written.into(), ..push }
}

fn told(push: PushRequest) -> PushRequest {
    PushRequest { per_connection: true, ..push }
}

fn in_all(response: &PushResponse) -> (u64, u64, u64, u64) {
    let lost = response.losses.iter().map(|loss| loss.count).sum();
    (response.matched, response.accepted, response.written, lost)
}

/// A client whose kernel takes little and that reads only when told to.
async fn narrow(gateway: &TestGateway, user: &str) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = Client::over(socket, gateway.clients).await;
    gateway.bind_also(&mut client, user, "mail").await;
    client
}

/// Fills the way to a client that does not read, so that whatever comes next stays in the outbox.
async fn clog(gateway: &TestGateway, grpc: &mut GrpcCaller, user: &str) -> u64 {
    let fill = push_request(user, "mail", &"m".repeat(200_000));
    for pushed in 1.. {
        let sent = grpc.try_push(fill.clone()).await.unwrap();
        assert_eq!(sent.accepted, 1);
        // Four times the largest message the kernel took at once: no later one moved.
        let queued = gateway.metric("pushgate_outbox_messages").await;
        if queued >= 4 {
            return pushed;
        }
    }
    unreachable!()
}

fn roomy(config: &mut pushgate::Config) {
    config.outbox_bytes_max = 1 << 30;
    // The kernel takes what a client here does not read, unless it is narrow.
    (config.socket_send_bytes_max, config.socket_unsent_bytes_max) = (0, 1 << 30);
    config.write_timeout = PATIENCE;
    config.request_timeout = PATIENCE;
}

#[tokio::test]
async fn a_written_push_says_how_many_were_written() {
    let gateway = TestGateway::start().await;
    let _phones = (gateway.bind("ann", "mail").await, gateway.bind("ann", "mail").await);
    let mut grpc = gateway.grpc().await;
    let response = grpc.try_push(written(push_request("ann", "mail", "m"))).await.unwrap();
    assert_eq!((response.level(), in_all(&response)), (Level::Written, (2, 2, 2, 0)));
    let response = grpc.try_push(push_request("ann", "mail", "m")).await.unwrap();
    assert_eq!((response.level(), in_all(&response)), (Level::Accepted, (2, 2, 0, 0)), "not followed, not counted");
    let response = grpc.try_push(written(push_request("bob", "mail", "m"))).await.unwrap();
    assert_eq!((response.level(), in_all(&response)), (Level::Written, (0, 0, 0, 0)), "nobody to wait for");
}

#[tokio::test]
async fn the_wait_ends_before_the_deadline_with_what_is_known_by_then() {
    let gateway = TestGateway::with(roomy).await;
    let mut stuck = narrow(&gateway, "ann").await;
    let _quick = gateway.bind("ann", "mail").await;
    let mut grpc = gateway.grpc().await;
    let only_stuck = grpc.try_push(told(push_request("ann", "mail", "who is who"))).await.unwrap();
    assert_eq!(only_stuck.connections.len(), 2);
    while gateway.metric("pushgate_outbox_messages").await < 4 {
        grpc.push("ann", "mail", &"m".repeat(200_000)).await;
    }
    let mut request = Request::new(written(told(push_request("ann", "mail", "last"))));
    request.set_timeout(Duration::from_secs(2));
    let response = soon(grpc.client.push(request)).await.unwrap().into_inner();
    assert_eq!(in_all(&response), (2, 2, 1, 0), "one is still on its way");
    let levels: Vec<Level> = response.connections.iter().map(|connection| connection.level()).collect();
    assert!(levels.contains(&Level::Written) && levels.contains(&Level::Accepted), "{levels:?}");
    for connection in &response.connections {
        assert_eq!(connection.written_after.is_some(), connection.level() == Level::Written);
        assert_eq!(connection.reason(), DropReason::Unspecified);
    }
    while stuck.next_text().await != "last" {}
}

#[tokio::test]
async fn a_connection_that_ends_with_the_message_unwritten_is_told_as_a_loss() {
    let gateway = TestGateway::with(roomy).await;
    let stuck = narrow(&gateway, "ann").await;
    let mut grpc = gateway.grpc().await;
    let clogged = clog(&gateway, &mut grpc, "ann").await;
    let mut waiting = grpc.clone();
    let wait = tokio::spawn(async move { waiting.try_push(written(told(push_request("ann", "mail", "m")))).await });
    let sample = "pushgate_pushes_total{door=\"grpc\",result=\"accepted\"}";
    gateway.until(sample, |pushes| pushes == clogged + 1).await;
    stuck.reset();
    let response = soon(wait).await.unwrap().unwrap();
    assert_eq!(in_all(&response), (1, 1, 0, 1));
    assert_eq!(response.losses[0].reason(), DropReason::Closed);
    assert_eq!(response.connections[0].reason(), DropReason::Closed);
    assert!(response.connections[0].queued_before >= 4);
    gateway.until_empty().await;
}

#[tokio::test]
async fn a_message_past_its_time_to_live_is_not_written_and_told_as_expired() {
    let gateway = TestGateway::with(roomy).await;
    let mut stuck = narrow(&gateway, "ann").await;
    let mut grpc = gateway.grpc().await;
    let clogged = clog(&gateway, &mut grpc, "ann").await;
    let ttl = Duration::from_millis(500);
    let expiring = PushRequest { ttl: ttl.try_into().ok(), ..written(push_request("ann", "mail", "too late")) };
    let mut waiting = grpc.clone();
    let wait = tokio::spawn(async move { waiting.try_push(expiring).await });
    let sample = "pushgate_pushes_total{door=\"grpc\",result=\"accepted\"}";
    gateway.until(sample, |pushes| pushes == clogged + 1).await;
    let accepted_by = Instant::now();
    gateway.until(sample, |_| accepted_by.elapsed() > ttl).await;
    let long = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    grpc.try_push(PushRequest { ttl: long, ..push_request("ann", "mail", "in time") }).await.unwrap();
    for _ in 0..clogged {
        assert_eq!(stuck.next_text().await.len(), 200_000);
    }
    assert_eq!(stuck.next_text().await, "in time");
    let response = soon(wait).await.unwrap().unwrap();
    assert_eq!((in_all(&response), response.losses[0].reason()), ((1, 1, 0, 1), DropReason::Expired));
    assert_eq!(gateway.metric("pushgate_messages_expired_total").await, 1);
    assert_eq!(gateway.metric("pushgate_outbox_messages").await, 0);
}

#[tokio::test]
async fn a_time_to_live_of_zero_is_for_those_who_can_take_it_now_by_whichever_door() {
    let gateway = TestGateway::start().await;
    let mut legacy = gateway.bind("ann", "mail").await;
    let mut session = SessionClient::connect(gateway.clients).await;
    session.bind("ann", "mail").await;
    let mut grpc = gateway.grpc().await;
    let ttl = Some(prost_types::Duration::default());
    let now = |text: &str| PushRequest { ttl, ..written(push_request("ann", "mail", text)) };
    let keyed = PushRequest { idempotency_key: "key".to_owned(), ..now("push") };
    let mut outcomes = vec![grpc.try_push(keyed.clone()).await.unwrap()];
    let batch = PushBatchRequest { pushes: vec![now("batch")] };
    let results = soon(grpc.client.push_batch(batch)).await.unwrap().into_inner().results;
    let ResultOf::Outcome(outcome) = results[0].result.clone().unwrap() else { panic!("refused") };
    outcomes.push(outcome);
    let mut stream = Stream::open(&gateway).await;
    stream.send("", now("stream")).await;
    assert!(!stream.result().await.r#final);
    outcomes.push(outcome_of(&stream.result().await).clone());
    for connections_per_second in [0, 1000] {
        let wait_for = Level::Written.into();
        let push = BroadcastRequest { ttl, wait_for, connections_per_second, ..broadcast("mail", "broadcast") };
        outcomes.push(soon(grpc.client.broadcast(push)).await.unwrap().into_inner().outcome.unwrap());
    }
    outcomes.push(grpc.try_push(keyed).await.unwrap());
    for outcome in &outcomes {
        assert_eq!(in_all(outcome), (2, 2, 2, 0), "{outcome:?}");
    }
    let json = r#"{"userId":"ann","event":"mail","message":"json","ttl":"0s","waitFor":"LEVEL_WRITTEN"}"#;
    let answer = gateway.json().accept("application/json").post(json).await;
    assert!(answer.body.contains(r#""written":"2""#), "{answer:?}");
    for (seq, text) in (1..).zip(["push", "batch", "stream", "broadcast", "broadcast", "json"]) {
        assert_eq!(legacy.next_text().await, text);
        session.expect_push(seq, text).await;
    }
}

#[tokio::test]
async fn a_message_whose_time_is_over_when_it_is_offered_is_dropped_as_expired() {
    let gateway = TestGateway::start().await;
    let mut legacy = gateway.bind("ann", "mail").await;
    let mut session = SessionClient::connect(gateway.clients).await;
    session.bind("ann", "mail").await;
    let mut grpc = gateway.grpc().await;
    let over = |user| {
        let ttl = Some(prost_types::Duration { seconds: 0, nanos: 1 });
        PushRequest { ttl, ..push_request(user, "mail", "over") }
    };
    let response = grpc.try_push(over("ann")).await.unwrap();
    assert_eq!((response.matched, response.accepted, response.dropped), (2, 0, 2));
    assert_eq!((response.drops.len(), response.drops[0].reason()), (1, DropReason::Expired));
    assert_eq!(grpc.try_push(over("bob")).await.unwrap().held, 0, "nor is it kept");
    assert_eq!(session.next().await, serde_json::json!({ "type": "gap", "from": 1, "to": 1 }));
    grpc.push("ann", "mail", "next").await;
    session.expect_push(2, "next").await;
    assert_eq!(legacy.next_text().await, "next");
    assert_eq!(gateway.metric("pushgate_push_dropped_total{reason=\"expired\"}").await, 2);
}

#[tokio::test]
async fn one_connection_can_be_addressed_and_others_left_out() {
    let gateway = TestGateway::start().await;
    let mut phones = [gateway.bind("ann", "mail").await, gateway.bind("ann", "mail").await];
    let mut grpc = gateway.grpc().await;
    let all = grpc.try_push(told(push_request("ann", "mail", "all"))).await.unwrap();
    let ids: Vec<String> = all.connections.iter().map(|connection| connection.connection_id.clone()).collect();
    let only = PushRequest { connection_id: ids[0].clone(), ..push_request("ann", "mail", "only") };
    let except = PushRequest { exclude_connection_ids: vec![ids[0].clone()], ..push_request("ann", "mail", "except") };
    let none = PushRequest { exclude_connection_ids: ids.clone(), ..push_request("ann", "mail", "none") };
    let stranger = PushRequest { connection_id: ids[0].clone(), ..push_request("bob", "mail", "stranger") };
    let mut matched = Vec::new();
    for push in [only, except, none, stranger] {
        matched.push(grpc.try_push(push).await.unwrap().matched);
    }
    assert_eq!(matched, [1, 1, 0, 0]);
    let mut seen = Vec::new();
    for phone in &mut phones {
        assert_eq!(phone.next_text().await, "all");
        seen.push(phone.next_text().await);
    }
    seen.sort();
    assert_eq!(seen, ["except", "only"]);
}

#[tokio::test]
async fn wrong_options_name_their_field() {
    let gateway = TestGateway::start().await;
    let mut grpc = gateway.grpc().await;
    let push = || push_request("ann", "mail", "m");
    let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let id = "0123456789abcdef-1".to_owned();
    for (push, field) in [
        (PushRequest { wait_for: 77, ..push() }, "wait_for"),
        (PushRequest { ttl: negative, ..push() }, "ttl"),
        (PushRequest { connection_id: "me".to_owned(), ..push() }, "connection_id"),
        (PushRequest { exclude_connection_ids: vec![String::new()], ..push() }, "exclude_connection_ids"),
        (PushRequest { exclude_connection_ids: vec![id.clone(); 101], ..push() }, "exclude_connection_ids"),
    ] {
        let status = grpc.try_push(push).await.unwrap_err();
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
    let most = PushRequest { exclude_connection_ids: vec![id; 100], ..push() };
    assert!(grpc.try_push(most).await.is_ok());
}

#[tokio::test]
async fn waiting_pushes_are_bounded_and_a_refused_one_was_not_sent() {
    let gateway = TestGateway::with(|config| {
        roomy(config);
        config.waiting_pushes_max = 1;
    })
    .await;
    let mut stuck = narrow(&gateway, "ann").await;
    let mut grpc = gateway.grpc().await;
    let clogged = clog(&gateway, &mut grpc, "ann").await;
    let mut waiting = grpc.clone();
    let wait = tokio::spawn(async move { waiting.try_push(written(push_request("ann", "mail", "waits"))).await });
    let sample = "pushgate_pushes_total{door=\"grpc\",result=\"accepted\"}";
    gateway.until(sample, |pushes| pushes == clogged + 1).await;
    let status = grpc.try_push(written(push_request("ann", "mail", "refused"))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    grpc.push("ann", "mail", "does not wait").await;
    for _ in 0..clogged {
        stuck.next_text().await;
    }
    assert_eq!(stuck.next_text().await, "waits");
    assert_eq!(stuck.next_text().await, "does not wait");
    assert_eq!(soon(wait).await.unwrap().unwrap().written, 1);
}

/// One caller's waits for a silent client kept all places, and the waits of others were refused.
#[tokio::test]
async fn one_caller_has_at_most_half_of_the_places_of_waiting_pushes() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    let key = |name: &str| format!("[[key]]\nname = \"{name}\"\nkey = \"{name}-{name}-{name}-{name}\"\n");
    std::fs::write(&keys, key("eager") + &key("other")).unwrap();
    let gateway = TestGateway::with(|config| {
        config.push_keys_file = Some(keys);
        config.waiting_pushes_max = 4;
        config.request_timeout = PATIENCE;
    })
    .await;
    let mut silent = SessionClient::connect(gateway.clients).await;
    assert_eq!(silent.bind("ann", "mail").await["type"], "bound");
    let grpc = gateway.grpc().await;
    let wait = |name: &str| {
        let acked = PushRequest { wait_for: Level::Acked.into(), ..push_request("ann", "mail", "m") };
        let mut request = Request::new(acked);
        request.metadata_mut().insert("x-api-key", format!("{name}-{name}-{name}-{name}").parse().unwrap());
        let mut client = grpc.client.clone();
        tokio::spawn(async move { client.push(request).await.map(tonic::Response::into_inner) })
    };
    let waiting = [wait("eager"), wait("eager")];
    gateway.until("pushgate_waiting_pushes", |places| places == 2).await;
    assert_eq!(soon(wait("eager")).await.unwrap().unwrap_err().code(), Code::ResourceExhausted);
    let other = wait("other");
    gateway.until("pushgate_waiting_pushes", |places| places == 3).await;
    silent.ack(3).await;
    for wait in waiting.into_iter().chain([other]) {
        assert_eq!(soon(wait).await.unwrap().unwrap().acked, 1);
    }
}

#[tokio::test]
async fn a_batch_waits_for_each_of_its_messages() {
    let gateway = TestGateway::start().await;
    let _phone = gateway.bind("ann", "mail").await;
    let pushes = vec![written(push_request("ann", "mail", "1")), push_request("ann", "mail", "2")];
    let results = soon(gateway.grpc().await.client.push_batch(PushBatchRequest { pushes })).await.unwrap();
    let levels: Vec<_> = results
        .into_inner()
        .results
        .into_iter()
        .map(|result| match result.result.unwrap() {
            ResultOf::Outcome(outcome) => (outcome.level(), outcome.written),
            ResultOf::Error(error) => panic!("{error:?}"),
        })
        .collect();
    assert_eq!(levels, [(Level::Written, 1), (Level::Accepted, 0)]);
}

struct Stream {
    messages: mpsc::Sender<PushStreamRequest>,
    results: Streaming<PushStreamResponse>,
}

impl Stream {
    async fn open(gateway: &TestGateway) -> Self {
        let (messages, receiver) = mpsc::channel(1);
        // The windows that README advises.
        let endpoint = Channel::from_shared(format!("http://{}", gateway.control)).unwrap();
        let endpoint = endpoint.initial_stream_window_size(64 * 1024).initial_connection_window_size(1024 * 1024);
        let mut client = PushServiceClient::new(endpoint.connect().await.unwrap());
        let results = soon(client.push_stream(ReceiverStream::new(receiver))).await.unwrap().into_inner();
        Self { messages, results }
    }

    async fn send(&self, correlation_id: &str, push: PushRequest) {
        let message = PushStreamRequest { correlation_id: correlation_id.to_owned(), push: Some(push) };
        soon(self.messages.send(message)).await.unwrap();
    }

    async fn result(&mut self) -> PushStreamResponse {
        soon(self.results.message()).await.unwrap().expect("the stream ended")
    }
}

fn outcome_of(response: &PushStreamResponse) -> &PushResponse {
    match response.result.as_ref().unwrap().result.as_ref().unwrap() {
        ResultOf::Outcome(outcome) => outcome,
        ResultOf::Error(error) => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn a_stream_answers_each_message_by_its_id_and_more_than_once_when_asked() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut stream = Stream::open(&gateway).await;
    stream.send("quick", push_request("ann", "mail", "one")).await;
    let quick = stream.result().await;
    assert_eq!((quick.correlation_id.as_str(), outcome_of(&quick).accepted, quick.r#final), ("quick", 1, true));
    stream.send("followed", written(push_request("ann", "mail", "two"))).await;
    let first = stream.result().await;
    assert_eq!((outcome_of(&first).level(), outcome_of(&first).accepted, first.r#final), (Level::Accepted, 1, false));
    let second = stream.result().await;
    assert_eq!((second.correlation_id.as_str(), second.r#final), ("followed", true));
    assert_eq!((outcome_of(&second).level(), outcome_of(&second).written), (Level::Written, 1));
    assert_eq!(outcome_of(&first).message_id, outcome_of(&second).message_id);
    stream.send("wrong", push_request("ann", "", "three")).await;
    let wrong = stream.result().await;
    match wrong.result.unwrap().result.unwrap() {
        ResultOf::Error(error) => assert_eq!((error.code, error.field.as_str()), (3, "event")),
        ResultOf::Outcome(outcome) => panic!("{outcome:?}"),
    }
    stream.send(&"i".repeat(257), push_request("ann", "mail", "four")).await;
    let too_long = stream.result().await;
    assert!(
        matches!(too_long.result.unwrap().result.unwrap(), ResultOf::Error(error) if error.field == "correlation_id")
    );
    let Stream { messages, mut results } = stream;
    drop(messages);
    assert_eq!(soon(results.message()).await.unwrap(), None, "the stream ends when the caller is done");
    assert_eq!(phone.next_text().await, "one");
    assert_eq!(phone.next_text().await, "two");
}

/// 64-byte messages, more than flow control lets through, with nobody reading on either side for a while: small unread
/// frames must not make the HTTP/2 layer cut the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_results_nobody_reads_is_held_back_and_goes_on_afterwards() {
    const MESSAGES: usize = 30_000;
    let gateway = TestGateway::start().await;
    let Stream { messages, mut results } = Stream::open(&gateway).await;
    let sending = tokio::spawn(async move {
        for number in 0..MESSAGES {
            let push = push_request("nobody", "mail", &"m".repeat(40));
            let message = PushStreamRequest { correlation_id: number.to_string(), push: Some(push) };
            if messages.send(message).await.is_err() {
                return;
            }
        }
    });
    // Held back: the count stands still far from the end, while another caller goes on as ever.
    let sample = "pushgate_pushes_total{door=\"grpc\",result=\"unmatched\"}";
    let mut other = gateway.grpc().await;
    let mut before = (0, 0);
    let held_at = soon(async {
        loop {
            let now = gateway.metric(sample).await;
            before = if now == before.0 { (now, before.1 + 1) } else { (now, 0) };
            if now > 0 && before.1 == 200 {
                return now;
            }
        }
    })
    .await;
    assert!(held_at < MESSAGES as u64 / 2, "{held_at}");
    assert_eq!(other.push("nobody", "mail", "m").await.matched, 0);
    for number in 0..MESSAGES {
        let result = soon(results.message()).await.unwrap().expect("the stream ended");
        assert_eq!(result.correlation_id, number.to_string());
    }
    assert_eq!(soon(results.message()).await.unwrap(), None);
    soon(sending).await.unwrap();
}

/// Its waits outlived their time while its results could not be told, and others' waits were refused for as long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_waits_of_a_stream_whose_results_nobody_reads_end_in_time() {
    let gateway = TestGateway::with(|config| {
        config.request_timeout = Duration::from_millis(500);
        config.waiting_pushes_max = 20;
    })
    .await;
    let mut silent = SessionClient::connect(gateway.clients).await;
    assert_eq!(silent.bind("ann", "mail").await["type"], "bound");
    let Stream { messages, results } = Stream::open(&gateway).await;
    let acked = || PushRequest { wait_for: Level::Acked.into(), ..push_request("ann", "mail", "m") };
    let sending = tokio::spawn(async move {
        loop {
            let message = PushStreamRequest { correlation_id: "i".repeat(256), push: Some(acked()) };
            if messages.send(message).await.is_err() {
                return;
            }
        }
    });
    let sample = "pushgate_pushes_total{door=\"grpc\",result=\"overloaded\"}";
    gateway.until(sample, |refused| refused > 0).await;
    let mut other = gateway.grpc().await;
    soon(async { while other.try_push(acked()).await.is_err() {} }).await;
    sending.abort();
    drop(results);
}

#[tokio::test]
async fn a_stream_ends_with_the_gateway_after_its_last_result() {
    let mut gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut stream = Stream::open(&gateway).await;
    stream.send("one", written(push_request("ann", "mail", "one"))).await;
    assert!(!stream.result().await.r#final);
    gateway.begin_stop();
    assert!(stream.result().await.r#final);
    let status = soon(stream.results.message()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "shutting down, try again later"));
    assert_eq!(phone.next_text().await, "one");
    let report = gateway.stop().await;
    assert_eq!((report.connections_cut, report.http_connections_cut), (0, 0));
}

#[tokio::test]
async fn a_slow_reader_is_treated_as_the_push_its_event_or_the_gateway_says() {
    use pushgate::proto::SlowReaderPolicy as Policy;
    let gateway = TestGateway::with(|config| {
        roomy(config);
        config.outbox_messages_max = 6;
        config.slow_reader_policy = pushgate::SlowReaderPolicy::DropNewest;
        let by_event = [("mail", pushgate::SlowReaderPolicy::DropOldest)];
        config.slow_reader_policy_by_event = pushgate::EventPolicies::new(by_event);
    })
    .await;
    let mut stuck = narrow(&gateway, "ann").await;
    gateway.bind_also(&mut stuck, "ann", "chat").await;
    let mut grpc = gateway.grpc().await;
    let fill = push_request("ann", "chat", &"m".repeat(200_000));
    let mut taken = 0;
    let newest = loop {
        let response = grpc.try_push(fill.clone()).await.unwrap();
        taken += response.accepted;
        if response.dropped > 0 {
            break response;
        }
    };
    assert_eq!((newest.matched, newest.accepted, newest.drops[0].reason()), (1, 0, DropReason::QueueFull));
    // What is in the writer's hands cannot be dropped any more, so this takes the place of one behind it or of none.
    let oldest = grpc.push("ann", "mail", "of an event that drops the oldest").await;
    assert_eq!(gateway.metric("pushgate_connections").await, 1, "neither policy closes the connection");
    let disconnect = PushRequest { slow_reader_policy: Policy::Disconnect.into(), ..push_request("ann", "chat", "m") };
    let last = grpc.try_push(disconnect).await.unwrap();
    assert_eq!((last.accepted, last.drops[0].reason()), (0, DropReason::QueueFull));
    gateway.until_closed("queue_full").await;
    let lost = gateway.metric("pushgate_messages_undelivered_total{reason=\"queue_full\"}").await;
    let written = gateway.metric("pushgate_messages_written_total").await;
    let superseded = gateway.metric("pushgate_messages_displaced_total").await;
    assert_eq!(taken + oldest.accepted, written + lost + superseded, "every accepted message is accounted for");
}

#[tokio::test]
async fn a_high_message_overtakes_and_a_collapsed_one_is_told_as_superseded() {
    use pushgate::proto::Priority;
    let gateway = TestGateway::with(roomy).await;
    let mut stuck = narrow(&gateway, "ann").await;
    let mut grpc = gateway.grpc().await;
    let mut clogged = clog(&gateway, &mut grpc, "ann").await;
    // More than the writer takes into its hands at once.
    for _ in 0..70 {
        clogged += grpc.push("ann", "mail", &"m".repeat(1000)).await.accepted;
    }
    let with_key = |text: &str| PushRequest { collapse_key: "price".to_owned(), ..push_request("ann", "mail", text) };
    let mut waiting = grpc.clone();
    let old = written(with_key("old price"));
    let wait = tokio::spawn(async move { waiting.try_push(old).await });
    let sample = "pushgate_pushes_total{door=\"grpc\",result=\"accepted\"}";
    gateway.until(sample, |pushes| pushes == clogged + 1).await;
    assert_eq!(grpc.try_push(with_key("new price")).await.unwrap().accepted, 1);
    let response = soon(wait).await.unwrap().unwrap();
    assert_eq!((in_all(&response), response.losses[0].reason()), ((1, 1, 0, 1), DropReason::Superseded));
    let high = PushRequest { priority: Priority::High.into(), ..push_request("ann", "mail", "urgent") };
    assert_eq!(grpc.try_push(high).await.unwrap().accepted, 1);
    let mut order = Vec::new();
    for arrived in 0..clogged + 2 {
        let text = stuck.next_text().await;
        if ["urgent", "new price", "old price"].contains(&text.as_str()) {
            order.push((text, arrived));
        }
    }
    assert_eq!(order[1], ("new price".to_owned(), clogged + 1));
    assert!(order[0].0 == "urgent" && order[0].1 < clogged, "{order:?}");
    assert_eq!(gateway.metric("pushgate_messages_displaced_total").await, 1);
}

fn broadcast(event: &str, message: &str) -> BroadcastRequest {
    let payload = Some(pushgate::proto::broadcast_request::Payload::Message(message.to_owned()));
    BroadcastRequest { event: event.to_owned(), payload, ..BroadcastRequest::default() }
}

#[tokio::test]
async fn a_broadcast_goes_to_everyone_bound_to_the_event_and_not_to_whom_it_leaves_out() {
    let gateway = TestGateway::start().await;
    let mut ann = gateway.bind("ann", "news").await;
    let mut bob = gateway.bind("bob", "news").await;
    let mut other = gateway.bind("carol", "mail").await;
    let mut grpc = gateway.grpc().await;
    let all = BroadcastRequest { wait_for: Level::Written.into(), ..broadcast("news", "all") };
    let outcome = soon(grpc.client.broadcast(all)).await.unwrap().into_inner().outcome.unwrap();
    assert_eq!((outcome.level(), in_all(&outcome)), (Level::Written, (2, 2, 2, 0)));
    let bobs = grpc.try_push(told(push_request("bob", "news", "who"))).await.unwrap().connections[0].clone();
    let exclude_connection_ids = vec![bobs.connection_id];
    let rest = BroadcastRequest { exclude_connection_ids, connections_per_second: 1000, ..broadcast("news", "rest") };
    let outcome = soon(grpc.client.broadcast(rest)).await.unwrap().into_inner().outcome.unwrap();
    assert_eq!(in_all(&outcome), (1, 1, 0, 0));
    assert_eq!((ann.next_text().await, ann.next_text().await), ("all".to_owned(), "rest".to_owned()));
    assert_eq!((bob.next_text().await, bob.next_text().await), ("all".to_owned(), "who".to_owned()));
    grpc.push("carol", "mail", "nothing before this").await;
    assert_eq!(other.next_text().await, "nothing before this");
    assert_eq!(grpc.drop_user("ann", "").await, 1);
    let gone = soon(grpc.client.broadcast(broadcast("news", "m"))).await.unwrap().into_inner().outcome.unwrap();
    assert_eq!(gone.matched, 1, "a dropped connection is bound to nothing");
    let wrong = soon(grpc.client.broadcast(broadcast("", "m"))).await.unwrap_err();
    assert_eq!(wrong.get_details_bad_request().unwrap().field_violations[0].field, "event");
}

#[tokio::test]
async fn a_pace_that_cannot_be_kept_in_time_is_refused_and_nothing_is_sent() {
    let gateway = TestGateway::with(|config| config.request_timeout = Duration::from_millis(500)).await;
    let mut phones = [gateway.bind("ann", "news").await, gateway.bind("bob", "news").await];
    let mut grpc = gateway.grpc().await;
    let slow = BroadcastRequest { connections_per_second: 1, ..broadcast("news", "slow") };
    let status = soon(grpc.client.broadcast(slow)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("2 connections"), "{status:?}");
    let large = BroadcastRequest { connections_per_second: 100, ..broadcast("news", &"m".repeat(256 * 1024 + 1)) };
    let status = soon(grpc.client.broadcast(large)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "a pace does not lift the limit of a message");
    let quick = BroadcastRequest { connections_per_second: 100, ..broadcast("news", "quick") };
    assert_eq!(soon(grpc.client.broadcast(quick)).await.unwrap().into_inner().outcome.unwrap().accepted, 2);
    for phone in &mut phones {
        assert_eq!(phone.next_text().await, "quick");
    }
}

#[tokio::test]
async fn a_push_repeated_under_its_idempotency_key_is_made_once_and_told_again() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut grpc = gateway.grpc().await;
    let keyed = |text: &str| PushRequest { idempotency_key: "order 7".to_owned(), ..push_request("ann", "mail", text) };
    let first = grpc.try_push(keyed("one")).await.unwrap();
    assert_eq!((first.accepted, first.replayed), (1, false));
    assert_eq!(phone.next_text().await, "one");
    let _later = gateway.bind("ann", "mail").await;
    let again = grpc.try_push(keyed("one")).await.unwrap();
    assert_eq!(again, PushResponse { replayed: true, ..first.clone() }, "as it was then, though one more is bound now");
    let followed = grpc.try_push(written(keyed("one"))).await.unwrap();
    assert_eq!((followed.message_id, followed.written, followed.replayed), (first.message_id, 1, true));
    let other = PushRequest { idempotency_key: "order 8".to_owned(), ..push_request("ann", "mail", "two") };
    assert!(!grpc.try_push(other).await.unwrap().replayed);
    assert_eq!(phone.next_text().await, "two", "and nothing in between");
    let too_long = PushRequest { idempotency_key: "k".repeat(257), ..push_request("ann", "mail", "m") };
    let status = grpc.try_push(too_long).await.unwrap_err();
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "idempotency_key");
}

#[tokio::test]
async fn another_push_under_a_used_key_is_refused_by_every_door_and_names_what_differs() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut grpc = gateway.grpc().await;
    let keyed = |push: PushRequest| PushRequest { idempotency_key: "order 7".to_owned(), ..push };
    let first = || keyed(push_request("ann", "mail", "one"));
    let made = grpc.try_push(first()).await.unwrap();
    assert_eq!(phone.next_text().await, "one");
    let ttl = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let id = "0123456789abcdef-1".to_owned();
    for (other, differs) in [
        (keyed(push_request("bob", "mail", "one")), "user_id"),
        (keyed(push_request("ann", "chat", "one")), "event"),
        (keyed(push_request("ann", "mail", "two")), "message"),
        (PushRequest { ttl, ..first() }, "ttl"),
        (PushRequest { priority: 3, ..first() }, "priority"),
        (PushRequest { collapse_key: "key".to_owned(), ..first() }, "collapse_key"),
        (PushRequest { slow_reader_policy: 2, ..first() }, "slow_reader_policy"),
        (PushRequest { connection_id: id.clone(), ..first() }, "connection_id"),
        (PushRequest { exclude_connection_ids: vec![id], ..first() }, "exclude_connection_ids"),
    ] {
        let status = grpc.try_push(other).await.unwrap_err();
        let violation = status.get_details_bad_request().unwrap().field_violations[0].clone();
        assert_eq!((status.code(), violation.field.as_str()), (Code::InvalidArgument, "idempotency_key"));
        assert!(violation.description.ends_with(&format!(" another {differs}")), "{violation:?}");
    }
    let other = || keyed(push_request("ann", "mail", "two"));
    let is_refused = |result: Option<ResultOf>| match result {
        Some(ResultOf::Error(error)) => (error.code, error.field) == (3, "idempotency_key".to_owned()),
        _ => false,
    };
    let batch = PushBatchRequest { pushes: vec![first(), other()] };
    let results = soon(grpc.client.push_batch(batch)).await.unwrap().into_inner().results;
    assert!(matches!(&results[0].result, Some(ResultOf::Outcome(outcome)) if outcome.replayed));
    assert!(is_refused(results[1].result.clone()));
    let mut stream = Stream::open(&gateway).await;
    stream.send("", other()).await;
    assert!(is_refused(stream.result().await.result.unwrap().result));
    let mut json = gateway.json().accept("application/json");
    let body = |message: &str| {
        format!(r#"{{"userId":"ann","event":"mail","message":"{message}","idempotencyKey":"order 7"}}"#)
    };
    let answer = json.post(body("two")).await;
    let expected = r#"{"code":3,"message":"this idempotency key was used for a push with another message","field":"idempotency_key"}"#;
    assert_eq!((answer.status, answer.body.as_str()), (422, expected));
    assert_eq!(json.post(body("one")).await.status, 200);
    // The embedding program is a caller of its own.
    let own = |text: &str| pushgate::Push::new("ann", "mail", text).unwrap().with_idempotency_key("order 7").unwrap();
    assert!(!gateway.gateway.push(&own("three")).await.unwrap().replayed);
    assert_eq!(phone.next_text().await, "three");
    let refused = gateway.gateway.push(&own("four")).await.unwrap_err();
    assert!(matches!(refused, pushgate::PushError::KeyReused { differs: pushgate::Field::Message }), "{refused:?}");
    // What only asks for another answer is the same push.
    let again = grpc.try_push(written(told(first()))).await.unwrap();
    assert_eq!((again.message_id, again.replayed), (made.message_id, true));
    grpc.push("ann", "mail", "next").await;
    assert_eq!(phone.next_text().await, "next", "nothing was sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_key_at_the_same_time_is_made_once() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let grpc = gateway.grpc().await;
    let calls = (0..16).map(|_| {
        let mut grpc = grpc.clone();
        let push = PushRequest { idempotency_key: "once".to_owned(), ..push_request("ann", "mail", "once") };
        tokio::spawn(async move { grpc.try_push(push).await.unwrap() })
    });
    let responses: Vec<_> = futures_util::future::join_all(calls.collect::<Vec<_>>()).await;
    let made = responses.into_iter().filter(|response| !response.as_ref().unwrap().replayed).count();
    assert_eq!(made, 1);
    assert_eq!(phone.next_text().await, "once");
    gateway.json().push("ann", "mail", "next").await;
    assert_eq!(phone.next_text().await, "next");
}

#[tokio::test]
async fn a_message_over_the_limit_ends_its_stream_and_says_why() {
    let gateway = TestGateway::with(|config| {
        config.message_bytes_max = 1000;
        config.request_bytes_max = 2000;
    })
    .await;
    let mut stream = Stream::open(&gateway).await;
    // Far more than the limit in all: it holds for each message.
    for number in 0..10 {
        stream.send(&number.to_string(), push_request("ann", "mail", &"m".repeat(900))).await;
        assert!(stream.result().await.r#final);
    }
    stream.send("too large", push_request("ann", "mail", &"m".repeat(3000))).await;
    let status = soon(stream.results.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
}
