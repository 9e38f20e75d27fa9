//! Notifies systemd, or whichever supervisor set `NOTIFY_SOCKET`, of the state of the process. Does nothing if the
//! variable is not set. The gateway never waits for a supervisor that does not read its notifications.

use std::convert::Infallible;
use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use sd_notify::NotifyState;

/// The maximum number of queued notifications. Further ones are dropped.
const MESSAGES_MAX: usize = 16;

/// How long the process waits at its end for systemd to read the last notification.
const PATIENCE: Duration = Duration::from_secs(1);

/// A notification of the state of the process.
#[derive(Clone, Copy)]
enum Message {
    Ready,
    Reloading,
    Stopping,
    Alive,
}

/// The connection to systemd.
pub(super) struct Systemd {
    messages: SyncSender<Message>,
    done: Receiver<()>,
}

impl Systemd {
    pub(super) fn new() -> Self {
        let (messages, queue) = mpsc::sync_channel(MESSAGES_MAX);
        let (finished, done) = mpsc::channel::<()>();
        // Uses its own thread, because a socket blocks its writer while the reader is stuck. If no thread can be
        // started, nothing is sent.
        let _ignored = thread::Builder::new().name("systemd".to_owned()).spawn(move || {
            let _dropped_at_the_end = finished;
            for message in queue {
                let _ignored = notify(message);
            }
        });
        Self { messages, done }
    }

    /// Reports that the listeners are open.
    pub(super) fn ready(&self) {
        self.send(Message::Ready);
    }

    /// Reports that files are being reloaded, until [`Systemd::ready`].
    pub(super) fn reloading(&self) {
        self.send(Message::Reloading);
    }

    /// Reports that the gateway is stopping.
    pub(super) fn stopping(&self) {
        self.send(Message::Stopping);
    }

    /// Reports that the runtime is alive, as often as systemd's watchdog requires. Never returns.
    pub(super) async fn keep_alive(&self) -> Infallible {
        if let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) {
            let mut interval = tokio::time::interval(limit / 2);
            loop {
                interval.tick().await;
                // Proves that the runtime's workers still run tasks.
                let _ended = tokio::spawn(async {}).await;
                self.send(Message::Alive);
            }
        }
        std::future::pending().await
    }

    /// Waits until the last notification is sent, but at most [`PATIENCE`].
    pub(super) fn finish(self) {
        drop(self.messages);
        let _ignored = self.done.recv_timeout(PATIENCE);
    }

    fn send(&self, message: Message) {
        let _too_many = self.messages.try_send(message);
    }
}

fn notify(message: Message) -> io::Result<()> {
    match message {
        Message::Ready => sd_notify::notify(&[NotifyState::Ready]),
        // Both fields go in one notification, as `Type=notify-reload` requires.
        Message::Reloading => sd_notify::notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?]),
        Message::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
        Message::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
    }
}
