//! Tells systemd, or whoever set `NOTIFY_SOCKET`, how far the process is. Without one it does nothing; with one that does
//! not take what it is told, nothing waits for it.

use std::convert::Infallible;
use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use sd_notify::NotifyState;

/// Messages that wait for systemd; what comes on top is not told.
const MESSAGES_MAX: usize = 16;

/// How long the end of the process waits for systemd to take the last message.
const PATIENCE: Duration = Duration::from_secs(1);

/// How far the process is.
#[derive(Clone, Copy)]
enum Message {
    Ready,
    Reloading,
    Stopping,
    Alive,
}

/// The way to systemd.
pub(super) struct Systemd {
    messages: SyncSender<Message>,
    told: Receiver<()>,
}

impl Systemd {
    pub(super) fn new() -> Self {
        let (messages, queue) = mpsc::sync_channel(MESSAGES_MAX);
        let (done, told) = mpsc::channel::<()>();
        // A thread of its own, because a socket whose reader sleeps holds up its writer. Without one nothing is told.
        let _not_told = thread::Builder::new().name("systemd".to_owned()).spawn(move || {
            let _dropped_at_the_end = done;
            for message in queue {
                let _not_taken = tell(message);
            }
        });
        Self { messages, told }
    }

    /// The listeners are open.
    pub(super) fn ready(&self) {
        self.tell(Message::Ready);
    }

    /// Files are being read again, until [`Systemd::ready`].
    pub(super) fn reloading(&self) {
        self.tell(Message::Reloading);
    }

    /// The gateway was told to stop.
    pub(super) fn stopping(&self) {
        self.tell(Message::Stopping);
    }

    /// Says as often as systemd wants to hear it that the runtime is alive, for ever.
    pub(super) async fn keep_alive(&self) -> Infallible {
        if let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) {
            let mut interval = tokio::time::interval(limit / 2);
            loop {
                interval.tick().await;
                // Proof that the runtime's workers still take up tasks.
                let _ended = tokio::spawn(async {}).await;
                self.tell(Message::Alive);
            }
        }
        std::future::pending().await
    }

    /// Waits until the last message is taken, but not for long.
    pub(super) fn finish(self) {
        drop(self.messages);
        let _taken = self.told.recv_timeout(PATIENCE);
    }

    fn tell(&self, message: Message) {
        let _too_many = self.messages.try_send(message);
    }
}

fn tell(message: Message) -> io::Result<()> {
    match message {
        Message::Ready => sd_notify::notify(&[NotifyState::Ready]),
        // In one message, as `Type=notify-reload` asks for.
        Message::Reloading => sd_notify::notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?]),
        Message::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
        Message::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
    }
}
