//! Tokens that clients show in the upgrade, for their first bind.

use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{Client, TestGateway, http, soon};

/// "ann" in base64url, as a subprotocol.
const ANN: &str = "pushgate.token.YW5u";

const INCOMPLETE: &str = "token or event is empty or too long";

/// Connects with these headers, and returns the client with the subprotocol that the gateway selected.
pub(crate) async fn connect(
    gateway: &TestGateway,
    path: &str,
    headers: &[(&'static str, &str)],
) -> (Client, Option<String>) {
    let mut request = format!("ws://{}{path}", gateway.clients).into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let stream = soon(TcpStream::connect(gateway.clients)).await.unwrap();
    // Without a selected subprotocol, tungstenite refuses the answer, as some browsers do.
    let (socket, response) = soon(tokio_tungstenite::client_async(request, stream)).await.unwrap();
    let selected = response.headers().get("sec-websocket-protocol").map(|value| value.to_str().unwrap().to_owned());
    (Client { socket }, selected)
}

/// Binds with an empty token, and returns once the gateway has bound it.
async fn bind(gateway: &TestGateway, client: &mut Client) {
    gateway.bind_also(client, "", "mail").await;
}

#[tokio::test]
async fn a_first_bind_with_an_empty_token_uses_the_one_of_the_upgrade() {
    let gateway = TestGateway::with(|config| config.token_in_url = true).await;
    let (mut by_header, _) = connect(&gateway, "/ws", &[("authorization", "Bearer ann")]).await;
    bind(&gateway, &mut by_header).await;
    let (mut by_url, _) = connect(&gateway, "/ws?token=ann", &[]).await;
    bind(&gateway, &mut by_url).await;
    assert_eq!(gateway.json().push("ann", "mail", "hello").await, 2);
    assert_eq!((by_header.next_text().await, by_url.next_text().await), ("hello".to_owned(), "hello".to_owned()));
}

#[tokio::test]
async fn a_token_comes_as_a_subprotocol_and_does_not_come_back() {
    let gateway = TestGateway::start().await;
    let offers = format!("{ANN}, pushgate.v1.json");
    let (mut session, selected) = connect(&gateway, "/ws", &[("sec-websocket-protocol", &offers)]).await;
    assert_eq!(selected.as_deref(), Some("pushgate.v1.json"));
    assert!(session.next_text().await.contains("welcome"));
    session.send(r#"{"type":"bind","token":"","event":"mail"}"#.into()).await;
    assert!(session.next_text().await.contains("\"bound\""));
    assert_eq!(gateway.json().push("ann", "mail", "hello").await, 1);

    let upgrade = |offer: &str| {
        format!(
            "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-protocol: {offer}\r\n\r\n"
        )
    };
    let answer = http(gateway.clients, &upgrade(ANN)).await;
    assert_eq!((answer.status, answer.header("sec-websocket-protocol")), (101, None));
    let answer = http(gateway.clients, &upgrade("pushgate.token.YW5u=")).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("base64url") && !answer.body.contains("YW5u"), "{answer:?}");
}

#[tokio::test]
async fn the_token_of_the_upgrade_is_gone_after_the_first_bind() {
    let gateway = TestGateway::start().await;
    let (mut legacy, _) = connect(&gateway, "/ws", &[("authorization", "Bearer ann")]).await;
    bind(&gateway, &mut legacy).await;
    legacy.send_bind("", "chat").await;
    assert_eq!(legacy.closed().await, (4400, INCOMPLETE.to_owned()));

    let headers = [("authorization", "Bearer ann"), ("sec-websocket-protocol", "pushgate.v1.json")];
    let (mut session, _) = connect(&gateway, "/ws", &headers).await;
    assert!(session.next_text().await.contains("welcome"));
    for (bind, answer) in [
        (r#"{"type":"bind","token":"bob","event":"mail"}"#, "\"bound\""),
        (r#"{"type":"bind","token":"","event":"chat"}"#, "\"incomplete\""),
        (r#"{"type":"refresh","token":""}"#, "\"incomplete\""),
    ] {
        session.send(bind.into()).await;
        let told = session.next_text().await;
        assert!(told.contains(answer), "{told}");
    }
    assert_eq!(gateway.json().push("bob", "mail", "hello").await, 1, "the token of the bind comes first");
}

#[tokio::test]
async fn without_a_token_in_the_upgrade_an_empty_one_is_incomplete_and_one_in_the_url_is_none() {
    let gateway = TestGateway::start().await;
    for path in ["/ws", "/ws?token=ann"] {
        let (mut client, _) = connect(&gateway, path, &[]).await;
        client.send_bind("", "mail").await;
        assert_eq!(client.closed().await, (4400, INCOMPLETE.to_owned()), "{path}");
    }
}
