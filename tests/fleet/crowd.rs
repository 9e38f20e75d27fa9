//! Session clients that do what the protocol's page asks of a client, and write down what they saw.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_util::sync::CancellationToken;

use crate::{EVENT, until, user};

/// The first and the last limit of the random wait of a client that was not told how long to wait.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How long an upgrade may take.
const OPENING: Duration = Duration::from_secs(10);

/// How many come at once at the beginning.
const ARRIVING: usize = 100;

/// Clients that come back until they are told to go.
pub(crate) struct Crowd {
    shared: Arc<Shared>,
    members: JoinSet<Story>,
}

struct Shared {
    address: SocketAddr,
    bound: AtomicUsize,
    /// The highest number that each client received.
    seen: Vec<AtomicU64>,
    handshakes: Mutex<Vec<Instant>>,
    over: CancellationToken,
    /// After so many messages, a client resets its connection and comes back.
    stay: Option<u64>,
}

/// What one client saw.
#[derive(Debug, Default)]
pub(crate) struct Story {
    /// Which client it was.
    pub(crate) number: usize,
    /// The numbers of the messages, a list for each session.
    pub(crate) sessions: Vec<Vec<u64>>,
    /// How often a session went on, and how often the client was told that it did not.
    pub(crate) resumed: u64,
    pub(crate) begun_anew: u64,
    /// Numbers that the client was told are lost.
    pub(crate) gaps: u64,
    /// Connections by the code that they were closed with, 0 for none.
    pub(crate) closes: BTreeMap<u16, u64>,
    /// Connections that were refused before the client was bound.
    pub(crate) refused: u64,
}

impl Story {
    /// How many of these messages the client neither got nor was told may be missing: they lie within a session, or
    /// behind all that came.
    pub(crate) fn silently_lost(&self, promised: &[u64]) -> usize {
        let received: BTreeSet<u64> = self.sessions.iter().flatten().copied().collect();
        let is_within = |number: u64, session: &Vec<u64>| {
            session.iter().any(|before| *before < number) && session.iter().any(|after| *after > number)
        };
        let is_silent = |number: u64| {
            self.sessions.iter().any(|session| is_within(number, session))
                || received.first().is_none_or(|first| number < *first)
                || received.last().is_none_or(|last| number > *last)
        };
        promised.iter().filter(|number| !received.contains(number) && is_silent(**number)).count()
    }

    /// How many of these messages the client did not get.
    pub(crate) fn lost(&self, promised: &[u64]) -> usize {
        let received: BTreeSet<u64> = self.sessions.iter().flatten().copied().collect();
        promised.iter().filter(|number| !received.contains(number)).count()
    }

    pub(crate) fn received(&self) -> usize {
        self.sessions.iter().map(Vec::len).sum()
    }

    pub(crate) fn distinct(&self) -> usize {
        self.sessions.iter().flatten().collect::<BTreeSet<_>>().len()
    }
}

/// All stories in numbers.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    pub(crate) received: usize,
    pub(crate) distinct: usize,
    pub(crate) resumed: u64,
    pub(crate) begun_anew: u64,
    pub(crate) gaps: u64,
    pub(crate) closes: BTreeMap<u16, u64>,
    pub(crate) refused: u64,
}

impl Sum {
    pub(crate) fn of(stories: &[Story]) -> Self {
        let mut sum = Self::default();
        for story in stories {
            sum.received += story.received();
            sum.distinct += story.distinct();
            sum.resumed += story.resumed;
            sum.begun_anew += story.begun_anew;
            sum.gaps += story.gaps;
            sum.refused += story.refused;
            for (code, count) in &story.closes {
                *sum.closes.entry(*code).or_default() += count;
            }
        }
        sum
    }
}

impl Crowd {
    /// So many clients, each of its own user. They are bound when this returns.
    pub(crate) async fn come(address: SocketAddr, clients: usize, stay: Option<u64>) -> Self {
        let shared = Arc::new(Shared {
            address,
            bound: AtomicUsize::new(0),
            seen: (0..clients).map(|_| AtomicU64::new(0)).collect(),
            handshakes: Mutex::default(),
            over: CancellationToken::new(),
            stay,
        });
        let mut members = JoinSet::new();
        for number in 0..clients {
            until("room to come", OPENING * 6, || number < shared.bound() + ARRIVING).await;
            members.spawn(Member::new(shared.clone(), number).live());
        }
        let crowd = Self { shared, members };
        crowd.all_bound(OPENING * 6).await;
        crowd
    }

    /// How many clients are bound now.
    pub(crate) fn bound(&self) -> usize {
        self.shared.bound()
    }

    pub(crate) async fn all_bound(&self, patience: Duration) {
        until("all clients are bound", patience, || self.bound() == self.shared.seen.len()).await;
    }

    /// The times of the upgrades since this was asked before.
    pub(crate) fn take_handshakes(&self) -> Vec<Instant> {
        std::mem::take(&mut *self.shared.handshakes.lock().unwrap())
    }

    /// Waits until each client has the last message that it was promised, then has all close for good.
    pub(crate) async fn go(self, promised: &[Vec<u64>], patience: Duration) -> Vec<Story> {
        let has_last = |(seen, promised): (&AtomicU64, &Vec<u64>)| {
            promised.last().is_none_or(|last| seen.load(Ordering::Relaxed) >= *last)
        };
        until("all clients have their last message", patience, || self.shared.seen.iter().zip(promised).all(has_last))
            .await;
        self.leave().await
    }

    /// Has all close for good.
    pub(crate) async fn leave(mut self) -> Vec<Story> {
        self.shared.over.cancel();
        let mut stories = Vec::new();
        while let Some(story) = self.members.join_next().await {
            stories.push(story.unwrap());
        }
        stories
    }
}

impl Shared {
    fn bound(&self) -> usize {
        self.bound.load(Ordering::Relaxed)
    }
}

/// How a connection ended.
enum Ended {
    /// The client is done.
    Over,
    /// The client was told how long to stay away.
    ToldToWait(Duration),
    /// It comes back at once.
    Restless,
    /// It comes back after a random time.
    Otherwise,
}

/// One client.
struct Member {
    shared: Arc<Shared>,
    number: usize,
    /// What resumes the session, and the last number of it.
    resume: Option<String>,
    epoch: String,
    last: u64,
    backoff: Duration,
    story: Story,
}

/// Counts a bound client for as long as it is.
struct IsBound<'a>(&'a AtomicUsize);

impl<'a> IsBound<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for IsBound<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Member {
    fn new(shared: Arc<Shared>, number: usize) -> Self {
        let (resume, epoch, story) = (None, String::new(), Story { number, ..Story::default() });
        Self { shared, number, resume, epoch, last: 0, backoff: BACKOFF.0, story }
    }

    async fn live(mut self) -> Story {
        loop {
            let wait = match self.visit().await {
                Ended::Over => return self.story,
                Ended::ToldToWait(wait) => wait,
                Ended::Restless => Duration::ZERO,
                Ended::Otherwise => {
                    let limit = self.backoff;
                    self.backoff = (limit * 2).min(BACKOFF.1);
                    limit.mul_f64(f64::from(getrandom::u32().unwrap()) / f64::from(u32::MAX))
                }
            };
            tokio::select! {
                () = self.shared.over.cancelled() => return self.story,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn open(&self) -> Option<WebSocketStream<TcpStream>> {
        let address = self.shared.address;
        let socket = TcpSocket::new_v4().unwrap();
        // An address for every thousand, or the ports that rest after closing would run out.
        socket.bind(([127, 0, 1, u8::try_from(1 + self.number / 1000).unwrap()], 0).into()).unwrap();
        let stream = socket.connect(address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let mut request = format!("ws://{address}/ws").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "pushgate.v1.json".parse().unwrap());
        Some(tokio_tungstenite::client_async(request, stream).await.ok()?.0)
    }

    /// One connection, from the upgrade to its end.
    async fn visit(&mut self) -> Ended {
        let Ok(Some(mut socket)) = tokio::time::timeout(OPENING, self.open()).await else {
            self.story.refused += 1;
            return Ended::Otherwise;
        };
        self.shared.handshakes.lock().unwrap().push(Instant::now());
        let mut bind = json!({ "type": "bind", "token": user(self.number), "event": EVENT });
        if let Some(resume) = &self.resume {
            bind["resume"] = json!({ "token": resume, "seq": self.last });
        }
        let _fails_below = socket.send(Message::text(bind.to_string())).await;
        let shared = self.shared.clone();
        let (mut is_bound, mut told, mut code, mut is_leaving, mut stayed) = (None, None, 0, false, 0);
        loop {
            let message = tokio::select! {
                biased;
                () = shared.over.cancelled(), if !is_leaving => {
                    is_leaving = true;
                    let done = CloseFrame { code: 1000.into(), reason: "".into() };
                    let _ended = socket.send(Message::Close(Some(done))).await;
                    continue;
                }
                message = socket.next() => message,
            };
            match message {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    match frame["type"].as_str().unwrap() {
                        "bound" => {
                            self.on_bound(&frame);
                            is_bound = Some(IsBound::new(&shared.bound));
                        }
                        "push" => {
                            self.on_push(&frame);
                            let ack = json!({ "type": "ack", "seq": self.last });
                            if !is_leaving {
                                let _ended = socket.send(Message::text(ack.to_string())).await;
                            }
                            stayed += 1;
                            if shared.stay == Some(stayed) {
                                socket.into_inner().set_zero_linger().unwrap();
                                return Ended::Restless;
                            }
                        }
                        "gap" => {
                            assert_eq!(frame["from"], self.last + 1, "{frame}");
                            let to = frame["to"].as_u64().unwrap();
                            self.story.gaps += to - self.last;
                            self.last = to;
                        }
                        "goaway" => told = Some(Duration::from_millis(frame["retry_after_ms"].as_u64().unwrap())),
                        "welcome" => {}
                        other => panic!("{other}: {frame}"),
                    }
                }
                Some(Ok(Message::Close(frame))) => code = frame.map_or(1005, |frame| frame.code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break,
            }
        }
        if is_bound.is_none() {
            self.story.refused += 1;
        } else if !is_leaving {
            *self.story.closes.entry(code).or_default() += 1;
        }
        match told {
            _ if is_leaving => Ended::Over,
            Some(wait) => Ended::ToldToWait(wait),
            None => Ended::Otherwise,
        }
    }

    fn on_bound(&mut self, bound: &Value) {
        let epoch = bound["epoch"].as_str().unwrap();
        let is_resumed = epoch == self.epoch;
        // Only the answer to a bind with `resume` says whether the session is complete.
        assert_eq!(bound["recovered"].as_bool().is_some(), self.resume.is_some(), "{bound}");
        if is_resumed {
            assert_eq!(bound["seq"], self.last, "{bound}");
            self.story.resumed += 1;
        } else {
            assert!(bound["recovered"] != true && bound["seq"] == 0, "{bound}");
            self.story.begun_anew += u64::from(self.resume.is_some());
            self.story.sessions.push(Vec::new());
            (self.epoch, self.last) = (epoch.to_owned(), 0);
        }
        self.resume = Some(bound["resume"].as_str().unwrap().to_owned());
        self.backoff = BACKOFF.0;
    }

    fn on_push(&mut self, push: &Value) {
        assert_eq!(push["seq"], self.last + 1, "a number was left out, or came twice: {push}");
        self.last += 1;
        let number = push["message"].as_str().unwrap().parse().unwrap();
        self.story.sessions.last_mut().expect("bound").push(number);
        self.shared.seen[self.number].fetch_max(number, Ordering::Relaxed);
    }
}

/// What the tests of this file's neighbours rest on.
#[test]
fn a_message_is_lost_silently_within_a_session_or_at_the_end_and_not_between_sessions() {
    let story = Story { sessions: vec![vec![1, 2, 4], vec![7, 8]], ..Story::default() };
    assert_eq!(story.silently_lost(&[1, 2, 4, 5, 6, 7, 8]), 0, "5 and 6 are told by the second session");
    assert_eq!(story.silently_lost(&[3]), 1, "within a session");
    assert_eq!(story.silently_lost(&[9]), 1, "behind all that came");
    assert_eq!(story.lost(&[1, 3, 5, 8, 9]), 3);
}
