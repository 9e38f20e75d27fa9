//! Every transcript of the session protocol's page, played against a gateway: what the page shows is what happens.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use pushgate::{BindAttempt, Config, Identity, Loaded, Report, TokenAuthenticator, TokenError, UserId};
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::TestGateway;
use crate::support::session::SessionClient;
use crate::support::transcript::{Line, Side, Step, Transcript, transcripts};

#[tokio::test]
async fn every_transcript_of_the_page_is_what_happens() {
    let mut failed = Vec::new();
    for Transcript { heading, lines } in transcripts() {
        println!("\n{heading}");
        // In a task of its own, so that one that fails does not hide the others.
        if tokio::spawn(play(lines)).await.is_err() {
            failed.push(heading);
        }
    }
    assert!(failed.is_empty(), "not what happens: {failed:?}");
}

async fn play(lines: Vec<Line>) {
    let mut player = Player::default();
    if !matches!(lines.first(), Some(Line { step: Step::Start(_), .. })) {
        player.start(&json!({})).await;
    }
    for Line { text, connection, step } in lines {
        // A test that fails shows how far it came.
        println!("{text}");
        player.play(connection, step).await;
    }
    for client in player.clients.values_mut() {
        expect_nothing_more(client).await;
    }
}

/// What was sent unasked would come before the answer to a ping.
async fn expect_nothing_more(client: &mut SessionClient) {
    client.say(json!({ "type": "ping" })).await;
    assert_eq!(client.next().await, json!({ "type": "pong" }), "the page shows no such frame");
}

#[derive(Default)]
struct Player {
    gateway: Option<TestGateway>,
    clients: BTreeMap<u8, SessionClient>,
    names: Names,
    /// Whether a token check may come to its end.
    may_end: watch::Sender<bool>,
}

impl Player {
    async fn play(&mut self, connection: u8, step: Step) {
        match step {
            Step::Connect => {
                let client = SessionClient::open(TcpSocket::new_v4().unwrap(), self.gateway().clients).await;
                assert!(self.clients.insert(connection, client).is_none(), "the one before is still open");
            }
            Step::Client(frame) => {
                self.may_end.send_replace(false);
                let frame = self.names.in_place(frame);
                self.client(connection).say(frame).await;
            }
            Step::Wrong(text) => self.client(connection).send(Message::text(text)).await,
            Step::Server(shown) => {
                if matches!(shown["type"].as_str(), Some("bound" | "refreshed" | "error")) {
                    self.may_end.send_replace(true);
                }
                let frame = self.client(connection).next().await;
                let shown = self.names.as_shown(shown, &frame);
                assert!(frame == shown, "the page:    {shown}\nthe gateway: {frame}");
            }
            Step::Close(side, code, text) => {
                let mut client = self.leaving(connection);
                if side == Side::Client {
                    expect_nothing_more(&mut client).await;
                    let frame = CloseFrame { code: code.into(), reason: text.into() };
                    client.send(Message::Close(Some(frame))).await;
                }
                assert_eq!(client.closed().await, (code, text.to_owned()), "the gateway's is on the left");
                assert_eq!(client.next_message().await, None, "nothing comes behind a close frame");
            }
            Step::Reset => {
                let mut client = self.leaving(connection);
                expect_nothing_more(&mut client).await;
                client.reset();
                let open = self.clients.len() as u64;
                self.gateway().until("pushgate_connections", |connections| connections == open).await;
            }
            Step::Push(push) => {
                let answer = self.gateway().json().accept("application/json").post(push.to_string()).await;
                assert_eq!(answer.status, 200, "{answer:?}");
            }
            Step::Start(settings) => self.start(&settings).await,
            Step::Stop => self.gateway.as_mut().unwrap().begin_stop(),
            Step::Forget => self.gateway().until("pushgate_sessions_away", |away| away == 0).await,
        }
    }

    async fn start(&mut self, settings: &Value) {
        if let Some(before) = self.gateway.take() {
            assert_eq!(before.stop().await, Report::default(), "it waits until its clients are gone");
        }
        let settings = settings.as_object().unwrap().iter().map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (format!("PUSHGATE_{}", name.to_uppercase()).into(), value.into())
        });
        let Loaded { config, unknown_environment, .. } = Loaded::new(None, settings, []).unwrap();
        assert!(unknown_environment.is_empty(), "no such setting: {unknown_environment:?}");
        let tokens = Tokens { may_end: self.may_end.subscribe() };
        let change = |test: &mut Config| *test = Config { listen: test.listen.clone(), ..config };
        self.gateway = Some(TestGateway::built(change, |builder| builder.token_authenticator(tokens)).await);
    }

    fn gateway(&self) -> &TestGateway {
        self.gateway.as_ref().unwrap()
    }

    fn client(&mut self, connection: u8) -> &mut SessionClient {
        self.clients.get_mut(&connection).expect("connected before")
    }

    fn leaving(&mut self, connection: u8) -> SessionClient {
        self.clients.remove(&connection).expect("connected before")
    }
}

/// The names and secrets of a transcript, each with the one of the gateway's that it stands for.
#[derive(Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    /// A client's frame with the gateway's own resume token.
    fn in_place(&self, mut frame: Value) -> Value {
        if let Some(token) = frame.pointer_mut("/resume/token") {
            *token = json!(self.0[token.as_str().unwrap()]);
        }
        frame
    }

    /// A frame of the page as the gateway should have sent it, which sent this one: with its own names, and its times
    /// where they may differ.
    fn as_shown(&mut self, mut shown: Value, frame: &Value) -> Value {
        for (key, value) in shown.as_object_mut().unwrap() {
            let Some(sent) = frame.get(key) else { continue };
            match key.as_str() {
                "connection_id" | "epoch" | "id" | "resume" => {
                    if let (Some(name), Some(sent)) = (value.as_str(), sent.as_str()) {
                        *value = json!(self.stands_for(name, sent));
                    }
                }
                "expires_in_ms" if sent.as_u64() <= value.as_u64() => *value = sent.clone(),
                "retry_after_ms" => *value = sent.clone(),
                _ => {}
            }
        }
        shown
    }

    /// What a name stands for: at first sight for what was sent, unless another one does already.
    fn stands_for<'a>(&'a mut self, name: &'a str, sent: &str) -> &'a str {
        if !self.0.contains_key(name) && !self.0.values().any(|taken| taken == sent) {
            self.0.insert(name.to_owned(), sent.to_owned());
        }
        self.0.get(name).map_or(name, String::as_str)
    }
}

/// The tokens that the page tells of.
struct Tokens {
    may_end: watch::Receiver<bool>,
}

#[async_trait::async_trait]
impl TokenAuthenticator for Tokens {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        self.may_end.clone().wait_for(|may_end| *may_end).await.map_err(|_| TokenError::Unavailable)?;
        let (user, rest) = attempt.token.expose().split_once("-token").ok_or(TokenError::Refused)?;
        if !["ann", "bob"].contains(&user) {
            return Err(TokenError::Refused);
        }
        if attempt.event.as_str() == "payroll" {
            return Err(TokenError::NotAllowed);
        }
        let identity = Identity::new(UserId::new(user).unwrap());
        if rest.is_empty() {
            return Ok(identity);
        }
        let left = rest.strip_prefix('-').and_then(|left| left.parse().ok()).ok_or(TokenError::Refused)?;
        Ok(identity.expiring_at(SystemTime::now() + Duration::from_millis(left)))
    }
}
