//! Clients whose tokens another service checks, by HTTP or by gRPC.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use pushgate::proto::revoke_request::Tokens;
use pushgate::proto::token_check_service_server::{TokenCheckService, TokenCheckServiceServer};
use pushgate::proto::{CheckTokenRequest, CheckTokenResponse, EventPatterns, RevokeRequest};
use pushgate::{Config, HeaderNames, NonEmpty};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

use crate::early_tokens::connect;
use crate::support::TestGateway;
use crate::support::signer::now;

/// A service that answers each token in one way, and remembers what it was asked.
#[derive(Clone, Default)]
struct Service(Arc<Mutex<Vec<Value>>>);

impl Service {
    fn asked(&self) -> Vec<Value> {
        self.0.lock().unwrap().clone()
    }

    fn http(&self, question: Value) -> hyper::Response<Full<Bytes>> {
        let token = question["token"].as_str().unwrap().to_owned();
        self.0.lock().unwrap().push(question);
        let (status, body) = match token.as_str() {
            "bad" => (401, String::new()),
            "other event" => (403, String::new()),
            "broken" => (500, String::new()),
            "moved" => (302, json!({ "user_id": "ann" }).to_string()),
            "nonsense" => (200, "<html>".to_owned()),
            "nobody" => (200, json!({ "user_id": "" }).to_string()),
            "late" => (200, json!({ "user_id": "ann", "expires_at": now() * 1000 }).to_string()),
            "endless" => (200, json!({ "user_id": "ann", "more": " ".repeat(65 * 1024) }).to_string()),
            "soon over" => (200, json!({ "user_id": "ann", "expires_at": now() + 2 }).to_string()),
            "mails" => (200, json!({ "user_id": "ann", "events": ["mail.*"], "more": 1 }).to_string()),
            "stolen" => {
                let body = json!({ "user_id": "ann", "token_id": "7", "issued_at": now() });
                (200, body.to_string())
            }
            user => (200, json!({ "user_id": user }).to_string()),
        };
        hyper::Response::builder().status(status).body(Full::new(body.into())).unwrap()
    }
}

#[tonic::async_trait]
impl TokenCheckService for Service {
    async fn check_token(&self, request: Request<CheckTokenRequest>) -> Result<Response<CheckTokenResponse>, Status> {
        let CheckTokenRequest { token, event, peer, headers } = request.into_inner();
        let headers: Value = headers.into_iter().map(|(name, values)| (name, json!(values.values))).collect();
        self.0.lock().unwrap().push(json!({ "token": token, "event": event, "peer": peer, "headers": headers }));
        let response = CheckTokenResponse { user_id: "ann".to_owned(), ..CheckTokenResponse::default() };
        match token.as_str() {
            "bad" => Err(Status::unauthenticated("bad")),
            "other event" => Err(Status::permission_denied("other event")),
            "broken" => Err(Status::internal("broken")),
            "nobody" => Ok(Response::new(CheckTokenResponse::default())),
            "soon over" => {
                let expires_at = Some((SystemTime::now() + Duration::from_secs(2)).into());
                Ok(Response::new(CheckTokenResponse { expires_at, ..response }))
            }
            "mails" => {
                let events = Some(EventPatterns { patterns: vec!["mail.*".to_owned()] });
                Ok(Response::new(CheckTokenResponse { events, ..response }))
            }
            "stolen" => {
                let issued_at = Some(SystemTime::now().into());
                Ok(Response::new(CheckTokenResponse { token_id: "7".to_owned(), issued_at, ..response }))
            }
            user => Ok(Response::new(CheckTokenResponse { user_id: user.to_owned(), ..response })),
        }
    }
}

/// Serves it on this address, by HTTP and by gRPC.
async fn serve(service: &Service, address: SocketAddr) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = service.clone();
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (service, grpc) = (service.clone(), TokenCheckServiceServer::new(service.clone()));
            tokio::spawn(async move {
                let mut first = [0; 3];
                stream.peek(&mut first).await.unwrap();
                let (builder, stream) = (Builder::new(TokioExecutor::new()), TokioIo::new(stream));
                // HTTP/2 begins with PRI.
                let _ended = if &first == b"PRI" {
                    builder.serve_connection(stream, TowerToHyperService::new(grpc)).await
                } else {
                    let answer = service_fn(move |request: hyper::Request<Incoming>| {
                        let service = service.clone();
                        async move {
                            assert_eq!(request.method(), "POST");
                            assert_eq!(request.uri(), "/check?tenant=1");
                            let body = request.into_body().collect().await?.to_bytes();
                            Ok::<_, hyper::Error>(service.http(serde_json::from_slice(&body).unwrap()))
                        }
                    });
                    builder.serve_connection(stream, answer).await
                };
            });
        }
    });
    (address, AbortOnDropHandle::new(serving))
}

fn urls(address: SocketAddr) -> [String; 2] {
    [format!("http://{address}/check?tenant=1"), format!("grpc://{address}")]
}

async fn gateway(url: &str, change: impl FnOnce(&mut Config)) -> TestGateway {
    TestGateway::with(|config| {
        config.token_callback_url = NonEmpty::new(url);
        change(config);
    })
    .await
}

async fn close_code(gateway: &TestGateway, token: &str, event: &str) -> u16 {
    let mut client = gateway.connect().await;
    client.send_bind(token, event).await;
    client.closed().await.0
}

#[tokio::test]
async fn a_service_says_who_a_client_is_or_refuses_it() {
    let service = Service::default();
    let (address, _serving) = serve(&service, ([127, 0, 0, 1], 0).into()).await;
    for url in urls(address) {
        let gateway = gateway(&url, |config| config.token_callback_headers = HeaderNames::new(["cookie"])).await;
        service.0.lock().unwrap().clear();
        let (mut phone, _) = connect(&gateway, "/ws", &[("cookie", "a=b"), ("x-other", "c")]).await;
        gateway.bind_also(&mut phone, "ann", "mail").await;
        assert_eq!(gateway.json().push("ann", "mail", "m").await, 1);
        assert_eq!(phone.next_text().await, "m");
        let asked = json!({ "token": "ann", "event": "mail", "peer": "127.0.0.1", "headers": { "cookie": ["a=b"] } });
        assert_eq!(service.asked(), [asked], "{url}");
        assert_eq!(close_code(&gateway, "bad", "mail").await, 4401, "{url}");
        assert_eq!(close_code(&gateway, "other event", "mail").await, 4403, "{url}");
        phone.send_bind("bob", "mail").await;
        assert_eq!(phone.closed().await.0, 4403, "another user");
    }
}

#[tokio::test]
async fn a_service_that_fails_or_talks_nonsense_has_clients_come_back_later() {
    let service = Service::default();
    let (address, serving) = serve(&service, ([127, 0, 0, 1], 0).into()).await;
    let [http, grpc] = urls(address);
    let tokens = ["broken", "moved", "nonsense", "nobody", "late", "endless"];
    for (url, tokens) in [(&http, &tokens[..]), (&grpc, &["broken", "nobody"])] {
        for token in tokens {
            let gateway = gateway(url, |_| ()).await;
            assert_eq!(close_code(&gateway, token, "mail").await, 1013, "{url} {token}");
            assert_eq!(gateway.metric("pushgate_token_callback_calls_total{result=\"failed\"}").await, 1);
        }
    }
    let here = [gateway(&http, |_| ()).await, gateway(&grpc, |_| ()).await];
    for gateway in &here {
        let _bound = gateway.bind("ann", "mail").await;
    }
    drop(serving);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for url in urls(silent.local_addr().unwrap()) {
        let gateway = gateway(&url, |config| config.token_callback_timeout = Duration::from_millis(50)).await;
        assert_eq!(close_code(&gateway, "ann", "mail").await, 1013, "{url}");
        assert_eq!(gateway.metric("pushgate_token_callback_calls_total{result=\"timed_out\"}").await, 1);
    }
}

#[tokio::test]
async fn one_answer_with_patterns_is_for_all_their_events() {
    let service = Service::default();
    let (address, _serving) = serve(&service, ([127, 0, 0, 1], 0).into()).await;
    for (already, url) in urls(address).into_iter().enumerate() {
        let gateway = gateway(&url, |_| ()).await;
        let mut phone = gateway.bind("mails", "mail.in").await;
        gateway.bind_also(&mut phone, "mails", "mail.out").await;
        phone.send_bind("mails", "chat").await;
        assert_eq!(phone.closed().await.0, 4403);
        assert_eq!(service.asked().len(), already + 1, "{url}");
        assert_eq!(gateway.metric("pushgate_token_callback_cache_hits_total").await, 2);
    }
}

#[tokio::test]
async fn the_expiry_that_a_service_gives_is_kept() {
    let service = Service::default();
    let (address, _serving) = serve(&service, ([127, 0, 0, 1], 0).into()).await;
    for url in urls(address) {
        let gateway = gateway(&url, |config| config.bind_timeout = Duration::from_secs(1)).await;
        let mut phone = gateway.bind("soon over", "mail").await;
        assert_eq!(phone.closed().await, (4410, "token expired".to_owned()), "{url}");
    }
}

#[tokio::test]
async fn a_token_is_revoked_by_the_id_or_the_time_that_a_service_gives() {
    let service = Service::default();
    let (address, _serving) = serve(&service, ([127, 0, 0, 1], 0).into()).await;
    for url in urls(address) {
        let at = |time: SystemTime| Some(time.into());
        let (hour_ago, soon) =
            (SystemTime::now() - Duration::from_secs(3600), SystemTime::now() + Duration::from_secs(9));
        for (tokens, issued_before, closed) in [
            (Tokens::TokenId("8".to_owned()), None, 0),
            (Tokens::TokenId("7".to_owned()), None, 1),
            (Tokens::UserId("ann".to_owned()), at(hour_ago), 0),
            (Tokens::UserId("ann".to_owned()), at(soon), 1),
        ] {
            let gateway = gateway(&url, |_| ()).await;
            let mut phone = gateway.bind("stolen", "mail").await;
            let request = RevokeRequest { tokens: Some(tokens), issued_before, ..RevokeRequest::default() };
            assert_eq!(gateway.revoke(request).await.unwrap().closed, closed, "{url}");
            if closed > 0 {
                assert_eq!(phone.closed().await, (4401, "token revoked".to_owned()), "{url}");
                assert_eq!(close_code(&gateway, "stolen", "mail").await, 4401, "an answer that is kept does not help");
            }
        }
    }
}
