//! The state shared by all participants of one run: the gateway with its small limits, the users, and the current
//! phase.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use pushgate::Config;
use pushgate::proto::Level;
use tokio::sync::{mpsc, watch};

use crate::support::TestGateway;

pub(crate) const USERS: usize = 100;
/// The number of users with a single client, which always gives up its session. Messages pushed to such a user while
/// the client is away are held for the user.
pub(crate) const USERS_ALONE: usize = 10;
pub(crate) const SESSIONS_OF_USER: usize = 3;
pub(crate) const PUSHERS: usize = 10;

/// Every session binds the first event, and some bind the second.
pub(crate) const EVENTS: [&str; 2] = ["always", "at times"];

pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_millis(800);
pub(crate) const JOURNAL_AGE: Duration = Duration::from_millis(500);

/// Sets limits so low that they are reached all the time.
fn small(config: &mut Config) {
    config.message_bytes_max = 64 * 1024;
    config.outbox_messages_max = 32;
    config.outbox_bytes_max = 96 * 1024;
    config.journal_messages_max = 120;
    config.journal_bytes_max = 192 * 1024;
    config.journal_total_bytes_max = 4 * 1024 * 1024;
    config.journal_age = JOURNAL_AGE;
    config.sessions_away_max = 60;
    config.sessions_away_per_user_max = 3;
    config.waiting_pushes_max = 1 << 20;
    config.request_timeout = REQUEST_TIMEOUT;
    config.write_timeout = WRITE_TIMEOUT;
    config.close_timeout = Duration::from_millis(500);
    config.reconnect_spread = Duration::from_millis(100);
}

/// Starts a gateway with these limits. With `far`, clients reach it at this address over a link, and otherwise over the
/// loopback.
pub(crate) async fn gateway(far: Option<IpAddr>) -> TestGateway {
    let Some(far) = far else { return TestGateway::with(small).await };
    let mut gateway = TestGateway::with(|config| {
        small(config);
        config.listen = (Ipv4Addr::UNSPECIFIED, 0).into();
        config.insecure_token_is_user = true;
        config.insecure_open_push = true;
    })
    .await;
    gateway.clients.set_ip(far);
    gateway.control.set_ip(far);
    gateway
}

/// The number of clients per source address, low enough that ports in TIME_WAIT do not run out.
const CLIENTS_PER_ADDRESS: usize = 8;

/// The phase of the run, in which all clients do the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Time {
    /// Clients connect and disconnect at random.
    Roam,
    /// Clients come back, read everything and acknowledge it.
    ComeHome,
    /// Half of the sessions close, and the others wait for the gateway to shut down.
    Leave,
}

/// A message from a client to the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The client is back and reads.
    IsHome,
    /// The client has everything up to the last message.
    HasAll { user: usize },
    /// The client has closed, or waits for the gateway to close.
    IsReadyToEnd,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) clients: SocketAddr,
    pub(crate) seed: u64,
    pub(crate) level: Level,
    /// The number of pushes before the last messages.
    pub(crate) pushes: usize,
    pub(crate) time: watch::Receiver<Time>,
    pub(crate) news: mpsc::UnboundedSender<News>,
}

impl World {
    pub(crate) fn new(
        gateway: &TestGateway,
        seed: u64,
        level: Level,
        pushes: usize,
    ) -> (Self, watch::Sender<Time>, mpsc::UnboundedReceiver<News>) {
        let (clock, time) = watch::channel(Time::Roam);
        let (news, told) = mpsc::unbounded_channel();
        (Self { clients: gateway.clients, seed, level, pushes, time, news }, clock, told)
    }

    /// The source address of this client, which it shares with few others. It is a loopback address, or an address at
    /// the near end of the link.
    pub(crate) fn source(&self, client: usize) -> SocketAddr {
        let address = u8::try_from(1 + client / CLIENTS_PER_ADDRESS).unwrap();
        let network = if self.clients.ip().is_loopback() { 127 } else { 10 };
        ([network, 0, 1, address], 0).into()
    }

    pub(crate) fn time(&self) -> Time {
        *self.time.borrow()
    }

    /// Waits until the run has reached this phase.
    pub(crate) async fn until(&self, time: Time) {
        // If the sender is gone, the run has failed and nobody waits for this task.
        let mut clock = self.time.clone();
        let _late = clock.wait_for(|now| *now >= time).await;
    }

    /// Does nothing for a while, but stops early when it is time to come home.
    pub(crate) async fn idle(&self, while_: Duration) {
        let _either = tokio::time::timeout(while_, self.until(Time::ComeHome)).await;
    }

    pub(crate) fn tell(&self, news: News) {
        let _unheard = self.news.send(news);
    }
}

pub(crate) fn user(number: usize) -> String {
    format!("user {number}")
}

/// The users, each with the number of their session clients.
pub(crate) fn households() -> impl Iterator<Item = (usize, usize)> {
    (0..USERS).map(|user| (user, if user < USERS_ALONE { 1 } else { SESSIONS_OF_USER }))
}

pub(crate) fn has_legacy(user: usize) -> bool {
    user >= USERS_ALONE && user.is_multiple_of(2)
}
