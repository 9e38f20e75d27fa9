//! Writes log lines to standard error. A line can be lost; lost lines are counted and reported. Logging never blocks on
//! a slow reader and never affects what the gateway does.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use pushgate::{Config, LogFormat};
use tracing::error;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The maximum number of lines that wait to be written. Further lines are lost. At a few hundred bytes per line, the
/// queue takes about 2 MiB.
const QUEUE_LINES_MAX: usize = 8192;

/// How long the process waits at its end for the last lines to be written.
const LAST_LINES_PATIENCE: Duration = Duration::from_secs(1);

/// The minimum time between two reports of lost lines, so that a slow reader gets lines and not only reports.
const LOSS_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How long to pause before writing again when standard error is a full, non-blocking pipe.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// The log of this process.
#[derive(Clone)]
pub(super) struct Log {
    counts: Arc<Counts>,
}

/// Counts of lines since the start.
#[derive(Default)]
struct Counts {
    /// Lines that were logged.
    logged: AtomicU64,
    /// Lines that have left the queue, written or not.
    left: AtomicU64,
    /// Lines that could not be written.
    failed: AtomicU64,
    /// Counts the lines that were lost because the queue was full.
    dropped: OnceLock<ErrorCounter>,
}

impl Counts {
    fn dropped(&self) -> u64 {
        self.dropped.get().map_or(0, |counter| counter.dropped_lines() as u64)
    }

    fn lost(&self) -> u64 {
        self.failed.load(Ordering::Relaxed) + self.dropped()
    }

    fn is_empty(&self) -> bool {
        self.left.load(Ordering::Acquire) + self.dropped() >= self.logged.load(Ordering::Acquire)
    }
}

impl Log {
    /// Starts logging as the config says, including panics.
    pub(super) fn start(config: &Config) -> Self {
        let counts = Arc::new(Counts::default());
        let writer = Writer::new(io::stderr(), config.log_format, counts.clone());
        let queue = NonBlockingBuilder::default().buffered_lines_limit(QUEUE_LINES_MAX).thread_name("log");
        let (lines, guard) = queue.finish(writer);
        // When the queue is full, the guard's drop prints to standard output, which can block or panic. `finish`
        // replaces it.
        std::mem::forget(guard);
        let _first = counts.dropped.set(lines.error_counter());
        let queue = Queue { lines, counts: counts.clone() };
        // The filter was validated with the rest of the config, so nothing in it is ignored here.
        let filter = EnvFilter::builder().parse_lossy(&config.log);
        // Internal errors are turned off, because they would be printed to standard error directly and not through the
        // queue.
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(queue).log_internal_errors(false);
        match config.log_format {
            LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).init(),
            LogFormat::Json => lines.json().init(),
        }
        // The default hook would write to standard error directly.
        std::panic::set_hook(Box::new(log_panic));
        Self { counts }
    }

    /// The number of lines lost so far.
    pub(super) fn lost(&self) -> u64 {
        self.counts.lost()
    }

    /// Waits until all lines so far are written, but at most [`LAST_LINES_PATIENCE`].
    pub(super) fn finish(&self) {
        let deadline = Instant::now() + LAST_LINES_PATIENCE;
        while !self.counts.is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Logs a panic and its location. Logs the panic's text only if it is a literal, because a formatted text may contain a
/// secret.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(tracing::field::display);
    let text = panic.payload().downcast_ref::<&'static str>().copied();
    let thread = thread::current();
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| tracing::field::display(&backtrace));
    error!(location, text, thread = thread.name(), backtrace, "panicked");
}

/// The input end of the queue.
#[derive(Clone)]
struct Queue {
    lines: NonBlocking,
    counts: Arc<Counts>,
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.counts.logged.fetch_add(1, Ordering::Release);
        self.lines.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The output end of the queue. Runs in its own thread, gets one line at a time and never returns an error.
struct Writer<W> {
    out: W,
    format: LogFormat,
    counts: Arc<Counts>,
    /// How many lost lines were reported, and when the last report was.
    reported: u64,
    reported_at: Option<Instant>,
    /// Whether the last line was written only in part.
    is_torn: bool,
}

impl<W: Write> Writer<W> {
    fn new(out: W, format: LogFormat, counts: Arc<Counts>) -> Self {
        Self { out, format, counts, reported: 0, reported_at: None, is_torn: false }
    }

    /// Reports the lines lost since the last report. Returns `false` if the report could not be written.
    fn report_losses(&mut self) -> bool {
        let lost = self.counts.lost();
        let is_due = self.reported_at.is_none_or(|reported_at| reported_at.elapsed() >= LOSS_REPORT_INTERVAL);
        if lost == self.reported || !is_due {
            return true;
        }
        let is_written = self.put(loss_report(self.format, lost - self.reported).as_bytes());
        if is_written {
            (self.reported, self.reported_at) = (lost, Some(Instant::now()));
        }
        is_written
    }

    fn put(&mut self, line: &[u8]) -> bool {
        let whole = if self.is_torn { [b"\n", line].concat() } else { line.to_vec() };
        let mut rest = whole.as_slice();
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(0) => break,
                Ok(count) => {
                    rest = &rest[count..];
                    self.is_torn = !rest.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL_PAUSE),
                Err(_) => break,
            }
        }
        rest.is_empty()
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !self.report_losses() || !self.put(line) {
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
        }
        self.counts.left.fetch_add(1, Ordering::Release);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line that reports lost lines, in the same format as the other lines.
fn loss_report(format: LogFormat, lines: u64) -> String {
    let (time, message) = (humantime::format_rfc3339_micros(SystemTime::now()), "log lines were lost");
    let target = module_path!();
    match format {
        LogFormat::Text => format!("{time}  WARN {target}: {message} lines={lines}\n"),
        LogFormat::Json => {
            let fields = serde_json::json!({ "message": message, "lines": lines });
            let line = serde_json::json!({
                "timestamp": time.to_string(), "level": "WARN", "fields": fields, "target": target,
            });
            format!("{line}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes, then fails until it is given more room.
    #[derive(Default)]
    struct Disk {
        text: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            self.room -= count;
            self.text.extend_from_slice(&bytes[..count]);
            if count == 0 { Err(ErrorKind::StorageFull.into()) } else { Ok(count) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_reported_once_writing_works_again() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let counts = Arc::new(Counts::default());
            let mut writer = Writer::new(Disk { room: 10, ..Disk::default() }, format, counts.clone());
            for line in ["one\n", "two-is-torn\n", "three\n"] {
                writer.write_all(line.as_bytes()).expect("it never fails");
            }
            assert_eq!(counts.lost(), 2);
            writer.out.room = usize::MAX;
            for line in ["four\n", "five\n"] {
                writer.write_all(line.as_bytes()).expect("it never fails");
            }
            let text = String::from_utf8(writer.out.text).expect("text");
            let lines: Vec<_> = text.lines().collect();
            assert_eq!((lines[0], lines[1], lines[3], lines[4]), ("one", "two-is", "four", "five"), "{text}");
            match format {
                LogFormat::Text => assert!(lines[2].ends_with("log lines were lost lines=2"), "{text}"),
                LogFormat::Json => {
                    let loss: serde_json::Value = serde_json::from_str(lines[2]).expect("an object");
                    assert_eq!((&loss["level"], &loss["fields"]["lines"]), (&"WARN".into(), &2.into()));
                    assert_eq!(loss["fields"]["message"], "log lines were lost");
                }
            }
            assert_eq!(counts.lost(), 2);
        }
    }
}
