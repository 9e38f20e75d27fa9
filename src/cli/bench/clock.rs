//! The clock of a run. Senders and receivers share it, and its timers are finer than the milliseconds of the runtime.

use std::io;
use std::sync::LazyLock;
use std::time::Instant;

/// Nanoseconds since the first call of this function.
pub(super) fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Waits until a given time of the clock.
pub(super) struct Timer {
    #[cfg(target_os = "linux")]
    file: tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>,
}

#[cfg(target_os = "linux")]
impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let file = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(
            deprecated,
            reason = "the replacement is unsafe and meant for borrowed descriptors, but this one is owned"
        )]
        Ok(Self { file: tokio::io::unix::AsyncFd::new(file)? })
    }

    /// Waits until this time. Returns at once if it has passed.
    pub(super) async fn until(&mut self, moment: u64) -> io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let Some(left) = moment.checked_sub(now()).filter(|left| *left > 0) else { return Ok(()) };
        let once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let left = Timespec {
            tv_sec: i64::try_from(left / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(left % 1_000_000_000).unwrap_or_default(),
        };
        let time = Itimerspec { it_interval: once, it_value: left };
        timerfd_settime(self.file.get_ref(), TimerfdTimerFlags::empty(), &time)?;
        loop {
            let mut ready = self.file.readable().await?;
            let read = ready.try_io(|file| Ok(rustix::io::read(file.get_ref(), &mut [0; 8])?));
            if let Ok(read) = read {
                return read.map(drop);
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    /// Waits until this time, with millisecond precision. Returns at once if it has passed.
    pub(super) async fn until(&mut self, moment: u64) -> io::Result<()> {
        if let Some(left) = moment.checked_sub(now()) {
            tokio::time::sleep(std::time::Duration::from_nanos(left)).await;
        }
        Ok(())
    }
}
