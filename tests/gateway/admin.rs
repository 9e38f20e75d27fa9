//! What an operator does with the `AdminService`.

use std::io::Write;
use std::time::Duration;

use pushgate::proto::admin_service_client::AdminServiceClient;
use pushgate::proto::{DrainRequest, UndrainRequest};
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::support::session::{Place, SessionClient};
use crate::support::{Answer, PATIENCE, TestGateway, http, soon};

const DAY: Duration = Duration::from_secs(86_400);

async fn channel(gateway: &TestGateway) -> Channel {
    Channel::from_shared(format!("http://{}", gateway.control)).unwrap().connect().await.unwrap()
}

pub(crate) async fn admin(gateway: &TestGateway) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(channel(gateway).await)
}

fn over(period: Duration) -> DrainRequest {
    DrainRequest { period: Some(period.try_into().unwrap()) }
}

async fn upgrade(gateway: &TestGateway) -> Answer {
    let request = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    http(gateway.clients, request).await
}

#[tokio::test]
async fn a_drain_refuses_new_clients_and_serves_pushes_until_it_is_undone() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut admin = admin(&gateway).await;
    let mut health = HealthClient::new(channel(&gateway).await);
    let watch = HealthCheckRequest { service: "pushgate.v1.AdminService".to_owned() };
    let mut statuses = soon(health.watch(watch)).await.unwrap().into_inner();
    assert_eq!(soon(statuses.message()).await.unwrap().unwrap().status, 1, "SERVING");

    let drained = soon(admin.drain(over(DAY))).await.unwrap().into_inner();
    assert_eq!((drained.connections, drained.was_draining), (1, false));
    assert_eq!(drained.period, Some(DAY.try_into().unwrap()));
    assert_eq!(soon(statuses.message()).await.unwrap().unwrap().status, 2, "NOT_SERVING");
    let ready = gateway.get("/readyz").await;
    assert_eq!((ready.status, ready.body.as_str()), (503, "draining\n"));
    let refused = upgrade(&gateway).await;
    assert_eq!((refused.status, refused.body.as_str()), (503, "the gateway is draining"));
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1);
    assert_eq!(phone.next_text().await, "m");

    let undrained = soon(admin.undrain(UndrainRequest {})).await.unwrap().into_inner();
    assert_eq!((undrained.connections, undrained.was_draining), (1, true));
    assert_eq!(soon(statuses.message()).await.unwrap().unwrap().status, 1, "SERVING");
    assert_eq!(gateway.get("/readyz").await.body, "ready\n");
    let _late = gateway.bind("ann", "mail").await;
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 2);
    let undrained = soon(admin.undrain(UndrainRequest {})).await.unwrap().into_inner();
    assert!(!undrained.was_draining);
    assert_eq!(gateway.metric("pushgate_admin_calls_total{result=\"done\"}").await, 3);
}

#[tokio::test]
async fn a_session_that_is_drained_comes_back_after_the_undrain_and_has_lost_nothing() {
    let gateway = TestGateway::with(|config| config.reconnect_spread = Duration::from_secs(3)).await;
    let mut legacy = gateway.bind("ann", "mail").await;
    let mut session = SessionClient::connect(gateway.clients).await;
    let place = Place::of(&session.bind("ann", "mail").await);
    let mut admin = admin(&gateway).await;
    soon(admin.drain(over(Duration::ZERO))).await.unwrap();
    assert_eq!(legacy.closed().await, (1001, "going away".to_owned()));
    let goaway = session.next().await;
    assert_eq!(goaway["type"], "goaway");
    assert!(goaway["retry_after_ms"].as_u64().unwrap() <= 3000);
    assert_eq!(session.closed().await.0, 1012);
    gateway.until("pushgate_sessions_away", |away| away == 1).await;
    assert_eq!(gateway.grpc().await.push("ann", "mail", "meanwhile").await.held, 1);
    soon(admin.undrain(UndrainRequest {})).await.unwrap();
    let mut back = SessionClient::connect(gateway.clients).await;
    assert_eq!(back.resume("ann", "mail", &place).await["recovered"], true);
    back.expect_push(1, "meanwhile").await;
}

#[tokio::test]
async fn a_second_drain_begins_a_new_period_and_a_stop_does_not_wait_for_it() {
    let mut gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut admin = admin(&gateway).await;
    soon(admin.drain(over(DAY))).await.unwrap();
    let again = soon(admin.drain(over(Duration::from_secs(1)))).await.unwrap().into_inner();
    assert!(again.was_draining);
    assert_eq!(phone.closed().await.0, 1001);
    soon(admin.undrain(UndrainRequest {})).await.unwrap();
    let mut phone = gateway.bind("ann", "mail").await;
    soon(admin.drain(over(DAY))).await.unwrap();
    gateway.begin_stop();
    assert_eq!(phone.closed().await.0, 1001);
    assert_eq!(gateway.stop().await.connections_cut, 0);
}

#[tokio::test]
async fn a_stop_is_not_undone() {
    let mut gateway = TestGateway::with(|config| config.shutdown_delay = DAY).await;
    let mut admin = admin(&gateway).await;
    gateway.begin_stop();
    soon(async { while gateway.get("/readyz").await.status != 503 {} }).await;
    for status in [
        soon(admin.undrain(UndrainRequest {})).await.unwrap_err(),
        soon(admin.drain(DrainRequest::default())).await.unwrap_err(),
    ] {
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "the gateway is shutting down"));
    }
    assert_eq!(gateway.get("/readyz").await.body, "shutting down\n");
}

#[tokio::test]
async fn a_period_is_a_time_of_at_most_a_day() {
    let gateway = TestGateway::start().await;
    let mut admin = admin(&gateway).await;
    for period in [prost_types::Duration { seconds: 86_400, nanos: 1 }, prost_types::Duration { seconds: -1, nanos: 0 }]
    {
        let status = soon(admin.drain(DrainRequest { period: Some(period) })).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{period:?}");
        assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, "period");
        assert_eq!(gateway.get("/readyz").await.status, 200, "nothing was done");
    }
    assert_eq!(gateway.metric("pushgate_admin_calls_total{result=\"invalid\"}").await, 2);
}

#[tokio::test]
async fn only_a_key_that_may_write_operates_the_gateway() {
    let mut keys = tempfile::NamedTempFile::new().unwrap();
    for (name, admin) in
        [("pusher", ""), ("looker", "admin = \"read\""), ("operator", "admin = \"write\"\nmethods = []")]
    {
        writeln!(keys, "[[key]]\nname = \"{name}\"\nkey = \"key-of-the-{name}\"\n{admin}").unwrap();
    }
    let gateway = TestGateway::with(|config| config.push_keys_file = Some(keys.path().into())).await;
    let mut admin = admin(&gateway).await;
    let with_key = |key: &str| {
        let mut request = Request::new(UndrainRequest {});
        request.metadata_mut().insert("x-api-key", key.parse().unwrap());
        request
    };
    assert_eq!(soon(admin.undrain(UndrainRequest {})).await.unwrap_err().code(), Code::Unauthenticated);
    for key in ["key-of-the-pusher", "key-of-the-looker"] {
        let status = soon(admin.undrain(with_key(key))).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains("admin = \"write\""), "{status:?}");
    }
    soon(admin.undrain(with_key("key-of-the-operator"))).await.unwrap();
    let push = r#"{"userId":"ann","event":"mail","message":"m"}"#;
    assert_eq!(gateway.json().key("key-of-the-operator").post(push).await.status, 403, "it has no methods");
    assert_eq!(gateway.metric("pushgate_admin_calls_total{result=\"permission_denied\"}").await, 2);
    assert_eq!(gateway.metric("pushgate_admin_calls_total{result=\"unauthenticated\"}").await, 1);
}

#[tokio::test]
async fn without_keys_only_an_address_of_this_machine_serves_operators() {
    let gateway = TestGateway::with(|config| {
        config.listen = ([0, 0, 0, 0], 0).into();
        (config.insecure_open_push, config.insecure_token_is_user) = (true, true);
    })
    .await;
    let address = ([127, 0, 0, 1], gateway.control.port());
    let url = format!("http://{}", std::net::SocketAddr::from(address));
    let channel = tokio::time::timeout(PATIENCE, Channel::from_shared(url).unwrap().connect()).await.unwrap().unwrap();
    let status = soon(AdminServiceClient::new(channel).drain(DrainRequest::default())).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("push_keys_file"), "{status:?}");
}
