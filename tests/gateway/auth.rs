//! Who may bind and who may push.

use std::io::Write;

use async_trait::async_trait;
use pushgate::proto::{
    BroadcastRequest, DropRequest, PushBatchRequest, PushStreamRequest, push_result::Result as ResultOf,
};
use pushgate::{
    BindAttempt, Config, Identity, PushAuthorizer, PushCredentials, PushRefused, PushScope, Server, ServerError,
    TokenAuthenticator, TokenError, UserId,
};
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::support::{Answer, TestGateway, http, push_request, soon};

pub(crate) struct NobodyMayPush;

#[async_trait]
impl PushAuthorizer for NobodyMayPush {
    async fn authorize(&self, _: &PushCredentials) -> Result<PushScope, PushRefused> {
        Err(PushRefused::Unauthenticated)
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

const KEYS: &str = r#"
[[key]]
name = "everything"
key = "key-for-everything"

[[key]]
name = "mail"
key = "key-for-ann's-mail"
users = ["ann"]
events = ["mail*"]
"#;

#[tokio::test]
async fn a_token_of_the_file_binds_its_user_and_others_are_refused() {
    let tokens = file("\"t-1\" = \"ann\"\n");
    let gateway = TestGateway::with(|config| config.tokens_file = Some(tokens.path().into())).await;
    let mut phone = gateway.bind("t-1", "mail").await;
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1);
    assert_eq!(phone.next_text().await, "m");
    let mut stranger = gateway.connect().await;
    stranger.send_bind("ann", "mail").await;
    assert_eq!(stranger.closed().await, (4401, "token refused".to_owned()));
    phone.send_bind("t-2", "mail").await;
    assert_eq!(phone.closed().await.0, 4401);
    gateway.until_empty().await;
}

#[tokio::test]
async fn a_reload_changes_the_tokens_and_loses_no_socket() {
    let tokens = file("\"t-1\" = \"ann\"\n");
    let gateway = TestGateway::with(|config| config.tokens_file = Some(tokens.path().into())).await;
    let mut phone = gateway.bind("t-1", "mail").await;
    std::fs::write(tokens.path(), "\"t-2\" = \"ann\"\n").unwrap();
    assert!(gateway.gateway.reload().await.is_empty());
    let mut late = gateway.connect().await;
    late.send_bind("t-1", "mail").await;
    assert_eq!(late.closed().await.0, 4401);
    let _new = gateway.bind("t-2", "mail").await;
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 2);
    assert_eq!(phone.next_text().await, "m");

    std::fs::write(tokens.path(), "not a token file").unwrap();
    assert_eq!(gateway.gateway.reload().await.len(), 1);
    let _newer = gateway.bind("t-2", "mail").await;
}

struct ByName;

#[async_trait]
impl TokenAuthenticator for ByName {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        match attempt.token.expose() {
            "away" => Err(TokenError::Unavailable),
            "panic" => panic!("as an embedder's check may"),
            "never" => std::future::pending().await,
            _ if attempt.event.as_str() == "secret" => Err(TokenError::NotAllowed),
            name => Ok(Identity::new(UserId::new(name).unwrap())),
        }
    }
}

#[tokio::test]
async fn each_refusal_of_an_own_check_has_its_close_code() {
    let own = |config: &mut Config| config.check_timeout = std::time::Duration::from_millis(200);
    let gateway = TestGateway::built(own, |builder| builder.token_authenticator(ByName)).await;
    for (token, event, code) in [("ann", "secret", 4403), ("away", "mail", 1013), ("never", "mail", 1013)] {
        let mut phone = gateway.connect().await;
        phone.send_bind(token, event).await;
        assert_eq!(phone.closed().await.0, code, "{token} {event}");
        // The same for a bind on a connection that is bound already, which ends with all its bindings.
        let mut bound = gateway.bind("bob", "mail").await;
        bound.send_bind(token, event).await;
        assert_eq!(bound.closed().await.0, code, "{token} {event}");
    }
    assert_eq!(gateway.metric("pushgate_check_timeouts_total{check=\"token\"}").await, 2);
    gateway.until_empty().await;
}

#[tokio::test]
async fn pushes_are_written_while_a_token_check_takes_its_time() {
    let gateway = TestGateway::built(|_| (), |builder| builder.token_authenticator(ByName)).await;
    let mut phone = gateway.bind("ann", "mail").await;
    phone.send_bind("never", "chat").await;
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1);
    assert_eq!(phone.next_text().await, "m");
}

#[tokio::test]
async fn a_panic_in_a_token_check_ends_and_unbinds_that_connection_alone() {
    let gateway = TestGateway::built(|_| (), |builder| builder.token_authenticator(ByName)).await;
    let mut neighbour = gateway.bind("bob", "mail").await;
    let mut phone = gateway.bind("ann", "mail").await;
    phone.send_bind("panic", "mail").await;
    gateway.until("pushgate_closes_total{reason=\"panicked\"}", |closes| closes == 1).await;
    gateway.until("pushgate_bindings", |bindings| bindings == 1).await;
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 0);
    assert_eq!(gateway.json().push("bob", "mail", "m").await, 1);
    assert_eq!(neighbour.next_text().await, "m");
}

#[tokio::test]
async fn a_key_opens_both_doors_and_only_what_it_is_for() {
    let keys = file(KEYS);
    let gateway = TestGateway::with(|config| config.push_keys_file = Some(keys.path().into())).await;
    let body = |user: &str, event: &str| format!(r#"{{"userId":"{user}","event":"{event}","message":"m"}}"#);
    let cases = [
        (None, "ann", "mail", 401, Code::Unauthenticated),
        (Some("no such key, not one"), "ann", "mail", 401, Code::Unauthenticated),
        (Some("key-for-everything"), "bob", "chat", 200, Code::Ok),
        (Some("key-for-ann's-mail"), "ann", "mail.inbox", 200, Code::Ok),
        (Some("key-for-ann's-mail"), "ann", "chat", 401, Code::PermissionDenied),
        (Some("key-for-ann's-mail"), "bob", "mail", 401, Code::PermissionDenied),
    ];
    let mut grpc = gateway.grpc().await;
    for (key, user, event, status, code) in cases {
        let mut json = gateway.json();
        if let Some(key) = key {
            json = json.key(key);
        }
        let answer = json.post(body(user, event)).await;
        assert_eq!((answer.status, answer.body.is_empty()), (status, status == 401), "{key:?} {user} {event}");
        for header in ["x-api-key", "authorization"] {
            let mut request = Request::new(push_request(user, event, "m"));
            if let Some(key) = key {
                let value = if header == "authorization" { format!("Bearer {key}") } else { key.to_owned() };
                request.metadata_mut().insert(header, value.parse().unwrap());
            }
            let answered = soon(grpc.client.push(request)).await.map_or_else(|status| status.code(), |_| Code::Ok);
            assert_eq!(answered, code, "{header} {key:?} {user} {event}");
        }
    }
}

#[tokio::test]
async fn a_batch_is_refused_item_by_item() {
    let keys = file(KEYS);
    let gateway = TestGateway::with(|config| config.push_keys_file = Some(keys.path().into())).await;
    let pushes =
        vec![push_request("bob", "mail", "m"), push_request("ann", "mail", "m"), push_request("", "mail", "m")];
    let mut request = Request::new(PushBatchRequest { pushes });
    request.metadata_mut().insert("x-api-key", "key-for-ann's-mail".parse().unwrap());
    let results = soon(gateway.grpc().await.client.push_batch(request)).await.unwrap().into_inner().results;
    let codes: Vec<i32> = results
        .into_iter()
        .map(|result| match result.result.unwrap() {
            ResultOf::Outcome(_) => 0,
            ResultOf::Error(error) => error.code,
        })
        .collect();
    assert_eq!(codes, [Code::PermissionDenied.into(), 0, Code::InvalidArgument.into()]);
}

#[tokio::test]
async fn dropping_all_events_of_a_user_needs_a_key_for_all_events() {
    let keys = file(KEYS);
    let gateway = TestGateway::with(|config| config.push_keys_file = Some(keys.path().into())).await;
    let mut grpc = gateway.grpc().await;
    for (event, code) in [("mail", Code::Ok), ("", Code::PermissionDenied), ("chat", Code::PermissionDenied)] {
        let drop = pushgate::proto::DropRequest { user_id: "ann".to_owned(), event: event.to_owned() };
        let mut request = Request::new(drop);
        request.metadata_mut().insert("x-api-key", "key-for-ann's-mail".parse().unwrap());
        let answered = soon(grpc.client.drop(request)).await.map_or_else(|status| status.code(), |_| Code::Ok);
        assert_eq!(answered, code, "{event:?}");
    }
}

#[tokio::test]
async fn a_broadcast_needs_a_key_for_all_users() {
    let keys = file(KEYS);
    let gateway = TestGateway::with(|config| config.push_keys_file = Some(keys.path().into())).await;
    let mut grpc = gateway.grpc().await;
    for (key, code) in [("key-for-ann's-mail", Code::PermissionDenied), ("key-for-everything", Code::Ok)] {
        for connections_per_second in [0, 10] {
            let payload = Some(pushgate::proto::broadcast_request::Payload::Message("m".to_owned()));
            let event = "mail".to_owned();
            let broadcast = BroadcastRequest { event, payload, connections_per_second, ..BroadcastRequest::default() };
            let mut request = Request::new(broadcast);
            request.metadata_mut().insert("x-api-key", key.parse().unwrap());
            let answered = soon(grpc.client.broadcast(request)).await.map_or_else(|status| status.code(), |_| Code::Ok);
            assert_eq!(answered, code, "{key}");
        }
    }
}

#[tokio::test]
async fn an_open_address_is_refused_unless_guarded() {
    let open = Config { listen: ([0, 0, 0, 0], 0).into(), ..Config::default() };
    let refused = Server::bind(open.clone()).await.unwrap_err();
    assert!(matches!(refused, ServerError::Invalid(_)), "{refused}");
    let guarded = Server::builder(open).token_authenticator(ByName).push_authorizer(NobodyMayPush).bind().await;
    assert!(guarded.is_ok(), "an embedder's own checks are guards too");
}

/// So slow a rate that no push comes back during a test.
const RATED: &str = r#"
[[key]]
name = "rated"
key = "key-with-a-rate-of-three"
rate = 0.001
burst = 3

[[key]]
name = "other"
key = "key-without-any-rate"
"#;

fn by<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-api-key", key.parse().unwrap());
    request
}

#[tokio::test]
async fn a_key_over_its_rate_is_refused_item_by_item_at_both_doors_and_others_are_not() {
    let keys = file(RATED);
    let gateway = TestGateway::with(|config| {
        config.push_keys_file = Some(keys.path().into());
    })
    .await;
    let mut phone = gateway.bind("ann", "mail").await;
    let rated = "key-with-a-rate-of-three";
    let mut grpc = gateway.grpc().await;
    // What is not sent costs nothing.
    let empty = soon(grpc.client.push(by(rated, push_request("ann", "mail", "")))).await.unwrap_err();
    assert_eq!(empty.code(), Code::InvalidArgument);
    let pushes = ["1", "2", "3", "4", "5"].map(|message| push_request("ann", "mail", message)).to_vec();
    let results = soon(grpc.client.push_batch(by(rated, PushBatchRequest { pushes }))).await.unwrap().into_inner();
    let codes = results.results.into_iter().map(|result| match result.result.unwrap() {
        ResultOf::Outcome(outcome) => (0, outcome.accepted),
        ResultOf::Error(error) => (error.code, 0),
    });
    let exhausted = (Code::ResourceExhausted.into(), 0);
    assert_eq!(codes.collect::<Vec<_>>(), [(0, 1), (0, 1), (0, 1), exhausted, exhausted]);

    let status = soon(grpc.client.push(by(rated, push_request("ann", "mail", "6")))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!((1..=1000).contains(&wait.as_secs()), "{wait:?}");

    let messages = ["7", "8"].map(|message| PushStreamRequest {
        correlation_id: message.to_owned(),
        push: Some(push_request("ann", "mail", message)),
    });
    let mut answers =
        soon(grpc.client.push_stream(by(rated, tokio_stream::iter(messages)))).await.unwrap().into_inner();
    for id in ["7", "8"] {
        let answer = soon(answers.message()).await.unwrap().unwrap();
        let Some(ResultOf::Error(error)) = answer.result.unwrap().result else { panic!("refused") };
        assert_eq!((answer.correlation_id.as_str(), error.code), (id, Code::ResourceExhausted.into()));
    }

    for accept in ["text/plain", "application/json"] {
        let mut json = gateway.json().key(rated).accept(accept);
        let answer = json.post(r#"{"userId":"ann","event":"mail","message":"9"}"#).await;
        assert_eq!(answer.status, 429, "{answer:?}");
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=1000).contains(&seconds), "{answer:?}");
    }
    assert_eq!(gateway.json().key("key-without-any-rate").push("ann", "mail", "last").await, 1);
    for message in ["1", "2", "3", "last"] {
        assert_eq!(phone.next_text().await, message);
    }
    assert_eq!(gateway.metric("pushgate_pushes_total{door=\"grpc\",result=\"rate_limited\"}").await, 5);
    assert_eq!(gateway.metric("pushgate_pushes_total{door=\"json\",result=\"rate_limited\"}").await, 2);
}

#[tokio::test]
async fn a_key_calls_only_its_methods() {
    let names = ["push", "batch", "stream", "broadcast", "drop"];
    let entry =
        |name: &str| format!("[[key]]\nname = \"{name}\"\nkey = \"the-key-for-only-{name}\"\nmethods = [\"{name}\"]\n");
    let keys = file(&names.map(entry).concat());
    let gateway = TestGateway::with(|config| config.push_keys_file = Some(keys.path().into())).await;
    let mut client = gateway.grpc().await.client;
    let push = || push_request("ann", "mail", "m");
    for name in names {
        let key = format!("the-key-for-only-{name}");
        let broadcast = BroadcastRequest {
            event: "mail".to_owned(),
            payload: Some(pushgate::proto::broadcast_request::Payload::Message("m".to_owned())),
            ..BroadcastRequest::default()
        };
        let stream = tokio_stream::iter([PushStreamRequest { push: Some(push()), ..PushStreamRequest::default() }]);
        let drop = DropRequest { user_id: "ann".to_owned(), event: String::new() };
        let answers = [
            soon(client.push(by(&key, push()))).await.map(|_| ()),
            soon(client.push_batch(by(&key, PushBatchRequest { pushes: vec![push()] }))).await.map(|_| ()),
            soon(client.push_stream(by(&key, stream))).await.map(|_| ()),
            soon(client.broadcast(by(&key, broadcast))).await.map(|_| ()),
            soon(client.drop(by(&key, drop))).await.map(|_| ()),
        ];
        for (method, answer) in names.iter().zip(answers) {
            let code = if *method == name { Code::Ok } else { Code::PermissionDenied };
            assert_eq!(answer.map_or_else(|status| status.code(), |()| Code::Ok), code, "{method} with {name}");
        }
        let body = r#"{"userId":"ann","event":"mail","message":"m"}"#;
        for (method, path, accept, body) in [
            ("push", "/push", "text/plain", body.to_owned()),
            ("push", "/push", "application/json", body.to_owned()),
            ("batch", "/push/batch", "application/json", format!(r#"{{"pushes":[{body}]}}"#)),
        ] {
            let answer = gateway.json().key(&key).path(path).accept(accept).post(body).await;
            assert_eq!(answer.status, if method == name { 200 } else { 403 }, "{method} with {name}: {answer:?}");
        }
    }
}

/// A request for something that the gateway tells about itself.
async fn read(gateway: &TestGateway, path: &str, header: &str) -> Answer {
    http(gateway.control, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n")).await
}

/// Whether reflection of this version lets a call with this header through.
async fn reflects(gateway: &TestGateway, version: &str, header: Option<&str>) -> Code {
    let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
    let path = path.parse().unwrap();
    let channel = Channel::from_shared(format!("http://{}", gateway.control)).unwrap().connect().await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    soon(grpc.ready()).await.unwrap();
    let mut request = Request::new(tokio_stream::empty::<()>());
    if let Some(key) = header {
        request.metadata_mut().insert("x-api-key", key.parse().unwrap());
    }
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    soon(grpc.streaming(request, path, codec)).await.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test]
async fn metrics_reflection_and_the_page_ask_for_a_key_where_pushes_do() {
    let keys = file(KEYS);
    let gateway = TestGateway::with(|config| {
        config.push_keys_file = Some(keys.path().into());
        config.open_metrics = false;
    })
    .await;
    // "me:key-for-everything" and "me:no such key"
    let basic = "authorization: Basic bWU6a2V5LWZvci1ldmVyeXRoaW5n\r\n";
    let unknown = "authorization: Basic bWU6bm8gc3VjaCBrZXk=\r\n";
    for path in ["/metrics", "/"] {
        for (header, words) in [("", "an API key is needed to read this\n"), (unknown, "the API key is not known\n")] {
            let refused = read(&gateway, path, header).await;
            assert_eq!((refused.status, &*refused.body), (401, words), "{path}");
            assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"pushgate\""), "{path}");
        }
        // Any key, whatever it may push.
        for header in ["x-api-key: key-for-ann's-mail\r\n", "authorization: Bearer key-for-everything\r\n", basic] {
            assert_eq!(read(&gateway, path, header).await.status, 200, "{path} {header}");
        }
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(read(&gateway, path, "").await.status, 200, "{path}");
    }
    for version in ["v1", "v1alpha"] {
        assert_eq!(reflects(&gateway, version, None).await, Code::Unauthenticated);
        assert_eq!(reflects(&gateway, version, Some("no such key, not one")).await, Code::Unauthenticated);
        assert_eq!(reflects(&gateway, version, Some("key-for-everything")).await, Code::Ok);
    }
    let metrics = read(&gateway, "/metrics", basic).await.body;
    for sample in ["reads_refused_total{reason=\"no_key\"} 4\n", "reads_refused_total{reason=\"unknown_key\"} 4\n"] {
        assert!(metrics.contains(sample), "{sample} in {metrics}");
    }
}

#[tokio::test]
async fn metrics_reflection_and_the_page_are_open_if_the_settings_say_so_or_pushes_are() {
    let keys = file(KEYS);
    let guarded = |open_metrics, open_reflection| {
        let keys = keys.path().into();
        TestGateway::with(move |config| {
            config.push_keys_file = Some(keys);
            (config.open_metrics, config.open_reflection) = (open_metrics, open_reflection);
        })
    };
    let gateway = guarded(true, false).await;
    assert_eq!((read(&gateway, "/metrics", "").await.status, read(&gateway, "/", "").await.status), (200, 401));
    assert_eq!(reflects(&gateway, "v1", None).await, Code::Unauthenticated);
    let gateway = guarded(false, true).await;
    assert_eq!((read(&gateway, "/metrics", "").await.status, read(&gateway, "/", "").await.status), (401, 200));
    assert_eq!(reflects(&gateway, "v1", None).await, Code::Ok);
    let gateway = TestGateway::with(|config| config.open_metrics = false).await;
    assert_eq!((read(&gateway, "/metrics", "").await.status, read(&gateway, "/", "").await.status), (200, 200));
    assert_eq!(reflects(&gateway, "v1", None).await, Code::Ok);
}
