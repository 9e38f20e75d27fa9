//! The order in which a gateway stops.

use std::time::Duration;

use pushgate::proto::{Level, PushRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::session::SessionClient;
use crate::support::{PATIENCE, TestGateway, push_request, read_answer, soon};

#[tokio::test]
async fn clients_get_what_is_queued_and_then_1001() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut unbound = gateway.connect().await;
    let message = "m".repeat(50_000);
    for _ in 0..15 {
        gateway.json().push("ann", "mail", &message).await;
    }
    let handle = gateway.gateway.clone();
    let stopping = tokio::spawn(gateway.stop());
    for _ in 0..15 {
        assert_eq!(phone.next_text().await, message);
    }
    assert_eq!(phone.closed().await, (1001, "going away".to_owned()));
    assert_eq!(unbound.closed().await.0, 1001);
    let report = soon(stopping).await.unwrap();
    let push = pushgate::Push::new("ann", "mail", "late").unwrap();
    assert_eq!((handle.connections(), handle.push(&push).await.unwrap().matched), (0, 0), "no entry is left");
    assert_eq!((report.connections_cut, report.http_connections_cut), (0, 0));
}

#[tokio::test]
async fn a_push_in_hand_is_finished_and_delivered() {
    let mut gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut caller = soon(TcpStream::connect(gateway.control)).await.unwrap();
    let body = r#"{"userId":"ann","event":"mail","message":"in hand"}"#;
    let head =
        format!("POST /push HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n", body.len());
    soon(caller.write_all(head.as_bytes())).await.unwrap();
    // The gateway asks for the body when the door reads it: from here on the push is in hand.
    let mut go_on = [0; 25];
    soon(caller.read_exact(&mut go_on)).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    gateway.begin_stop();
    soon(async {
        // Nobody is accepted any more once the listener is gone.
        while TcpStream::connect(gateway.control).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    soon(caller.write_all(body.as_bytes())).await.unwrap();
    assert_eq!(read_answer(&mut caller).await.body, "message sent to 1 clients");
    assert_eq!(phone.next_text().await, "in hand");
    assert_eq!(phone.closed().await.0, 1001);
    assert_eq!(gateway.stop().await.connections_cut, 0);
}

#[tokio::test]
async fn a_push_that_waits_is_in_hand_too() {
    let mut gateway = TestGateway::with(|config| config.push_concurrency_max = 1).await;
    let mut session = SessionClient::connect(gateway.clients).await;
    session.bind("ann", "mail").await;
    let mut grpc = gateway.grpc().await;
    let push = PushRequest { wait_for: Level::Acked.into(), ..push_request("ann", "mail", "m") };
    let wait = tokio::spawn(async move { grpc.try_push(push).await });
    session.expect_push(1, "m").await;
    gateway.begin_stop();
    soon(async {
        while TcpStream::connect(gateway.control).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    session.ack(1).await;
    assert_eq!(soon(wait).await.unwrap().unwrap().acked, 1);
    gateway.stop().await;
}

#[tokio::test]
async fn whoever_watches_the_health_is_told_before_anything_else_ends() {
    let mut gateway = TestGateway::start().await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", gateway.control)).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    for service in ["", "pushgate.v1.PushService"] {
        let watch = HealthCheckRequest { service: service.to_owned() };
        let mut statuses = soon(health.watch(watch)).await.unwrap().into_inner();
        assert_eq!(soon(statuses.message()).await.unwrap().unwrap().status, 1, "SERVING");
        if !service.is_empty() {
            gateway.begin_stop();
            assert_eq!(soon(statuses.message()).await.unwrap().unwrap().status, 2, "NOT_SERVING");
            while let Ok(Some(_)) = soon(statuses.message()).await {}
        }
    }
    let report = gateway.stop().await;
    assert_eq!(report.http_connections_cut, 0, "a watch does not hold up the stop");
}

#[tokio::test]
async fn a_service_that_is_not_known_is_not_found_and_its_watch_stays_open_until_the_stop() {
    let gateway = TestGateway::start().await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", gateway.control)).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let unknown = || HealthCheckRequest { service: "no.such.Service".to_owned() };
    assert_eq!(soon(health.check(unknown())).await.unwrap_err().code(), tonic::Code::NotFound);
    let mut statuses = soon(health.watch(unknown())).await.unwrap().into_inner();
    assert_eq!(soon(statuses.message()).await.unwrap().unwrap().status, 3, "SERVICE_UNKNOWN");
    for service in ["", "pushgate.v1.PushService"] {
        let known = HealthCheckRequest { service: service.to_owned() };
        assert_eq!(soon(health.check(known)).await.unwrap().into_inner().status, 1, "SERVING");
    }
    let stopping = tokio::spawn(gateway.stop());
    assert_eq!(soon(statuses.message()).await.unwrap(), None, "open until the stop, and told nothing more");
    assert_eq!(soon(stopping).await.unwrap().http_connections_cut, 0);
}

#[tokio::test]
async fn a_caller_on_an_open_connection_learns_that_the_gateway_goes() {
    // A push in hand keeps the gateway in its first phase while the others try.
    let mut gateway = TestGateway::start().await;
    let mut holds = soon(TcpStream::connect(gateway.control)).await.unwrap();
    let head = "POST /push HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    soon(holds.write_all(head.as_bytes())).await.unwrap();
    soon(holds.read_exact(&mut [0; 25])).await.unwrap();
    let mut grpc = gateway.grpc().await;
    grpc.push("ann", "mail", "m").await;
    gateway.begin_stop();
    let status = soon(async {
        loop {
            match grpc.client.push(crate::support::push_request("ann", "mail", "m")).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(status) => return status,
            }
        }
    })
    .await;
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    soon(holds.write_all(b"{}")).await.unwrap();
    assert_eq!(read_answer(&mut holds).await.status, 400);
    gateway.stop().await;
}

#[tokio::test]
async fn the_grace_bounds_the_stop_and_what_it_cuts_is_told() {
    let gateway = TestGateway::with(|config| {
        config.shutdown_grace = Duration::from_millis(300);
        config.write_timeout = PATIENCE;
        config.close_timeout = PATIENCE;
        config.outbox_bytes_max = 1 << 30;
    })
    .await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stuck = crate::support::Client::over(socket, gateway.clients).await;
    gateway.bind_also(&mut stuck, "ann", "mail").await;
    let message = "m".repeat(200_000);
    for _ in 0..50 {
        gateway.json().push("ann", "mail", &message).await;
    }
    let report = gateway.stop().await;
    assert_eq!((report.connections_cut, report.http_connections_cut), (1, 0));
}

#[tokio::test]
async fn during_the_delay_the_gateway_is_not_ready_and_serves_everything() {
    let mut gateway = TestGateway::with(|config| config.shutdown_delay = Duration::from_secs(3600)).await;
    let mut early = gateway.bind("ann", "mail").await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", gateway.control)).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let watch = HealthCheckRequest { service: "pushgate.v1.PushService".to_owned() };
    let mut statuses = soon(health.watch(watch.clone())).await.unwrap().into_inner();
    assert_eq!(soon(statuses.message()).await.unwrap().unwrap().status, 1, "SERVING");
    assert_eq!(gateway.get("/readyz").await.status, 200);
    gateway.begin_stop();
    assert_eq!(soon(statuses.message()).await.unwrap().unwrap().status, 2, "NOT_SERVING");
    assert_eq!(soon(health.check(watch)).await.unwrap().into_inner().status, 2, "NOT_SERVING");
    assert_eq!(gateway.get("/readyz").await.status, 503);
    assert_eq!(gateway.get("/healthz").await.status, 200);
    let mut late = gateway.bind("ann", "mail").await;
    assert_eq!(gateway.json().push("ann", "mail", "by json").await, 2);
    assert_eq!(gateway.grpc().await.push("ann", "mail", "by grpc").await.accepted, 2);
    for phone in [&mut early, &mut late] {
        assert_eq!((phone.next_text().await, phone.next_text().await), ("by json".to_owned(), "by grpc".to_owned()));
    }
}

#[tokio::test]
async fn after_the_delay_the_gateway_stops_as_without_one() {
    let gateway = TestGateway::with(|config| config.shutdown_delay = Duration::from_millis(50)).await;
    let mut phone = gateway.bind("ann", "mail").await;
    let report = gateway.stop().await;
    assert_eq!(phone.closed().await, (1001, "going away".to_owned()));
    assert_eq!((report.connections_cut, report.http_connections_cut), (0, 0));
}

#[tokio::test]
async fn a_drain_refuses_new_clients_and_serves_pushes_to_those_that_are_open() {
    let mut gateway = TestGateway::with(|config| config.drain_period = Duration::from_secs(86_400)).await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut grpc = gateway.grpc().await;
    gateway.begin_stop();
    let upgrade = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    soon(async {
        // An upgrade that came before the drain is let go again.
        while http_status(gateway.clients, upgrade).await != 503 {}
    })
    .await;
    assert_eq!(gateway.get("/readyz").await.status, 503);
    assert_eq!(gateway.json().push("ann", "mail", "by json").await, 1);
    assert_eq!(grpc.push("ann", "mail", "by grpc").await.accepted, 1);
    assert_eq!((phone.next_text().await, phone.next_text().await), ("by json".to_owned(), "by grpc".to_owned()));
}

#[tokio::test]
async fn a_drain_closes_each_client_as_a_stop_does_and_ends_once_none_is_left() {
    let mut gateway = TestGateway::with(|config| {
        config.drain_period = Duration::from_secs(2);
        config.reconnect_spread = Duration::from_secs(3);
    })
    .await;
    let mut legacy = gateway.bind("ann", "mail").await;
    let mut session = SessionClient::connect(gateway.clients).await;
    session.bind("ann", "mail").await;
    gateway.begin_stop();
    assert_eq!(legacy.closed().await, (1001, "going away".to_owned()));
    let goaway = session.next().await;
    assert_eq!(goaway["type"], "goaway");
    assert!(goaway["retry_after_ms"].as_u64().unwrap() <= 3000);
    assert_eq!(session.closed().await.0, 1012);
    drop((legacy, session));
    let report = gateway.stop().await;
    assert_eq!((report.connections_cut, report.http_connections_cut), (0, 0));
}

#[tokio::test]
async fn a_drain_does_not_wait_out_its_period_when_no_client_is_open() {
    // As long as a day: longer than the patience of the test.
    let gateway = TestGateway::with(|config| config.drain_period = Duration::from_secs(86_400)).await;
    let phone = gateway.bind("ann", "mail").await;
    drop(phone);
    assert_eq!(gateway.stop().await.connections_cut, 0);
}

/// The status of the answer to a request whose connection is then let go.
async fn http_status(address: std::net::SocketAddr, request: &str) -> u16 {
    let mut stream = soon(TcpStream::connect(address)).await.unwrap();
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    let mut status_line = [0; 12];
    soon(stream.read_exact(&mut status_line)).await.unwrap();
    std::str::from_utf8(&status_line[9..]).unwrap().parse().unwrap()
}

/// Heads that never ended kept a stop waiting until the end of its grace, and were counted as cut.
#[tokio::test]
async fn heads_that_drip_do_not_hold_up_a_stop() {
    let gateway =
        TestGateway::with(|config| (config.http_header_timeout, config.shutdown_grace) = (PATIENCE, PATIENCE)).await;
    let mut dripping = soon(TcpStream::connect(gateway.control)).await.unwrap();
    soon(dripping.write_all(b"GET /healthz HTTP/1.1\r\nhost:")).await.unwrap();
    gateway.until("pushgate_http_connections{listener=\"all\"}", |connections| connections == 2).await;
    assert_eq!(gateway.stop().await.http_connections_cut, 0);
}
