//! The progress bar of a run on a terminal.

use std::io::{self, IsTerminal, Write};

/// One line on standard error that is overwritten each time. Shows nothing if standard error is not a terminal.
pub(super) struct Progress {
    shown: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { shown: io::stderr().is_terminal() }
    }

    /// Shows the current activity and the fraction of it that is done, from 0 to 1.
    pub(super) fn show(&self, what: &str, done: f64) {
        const WIDTH: usize = 30;
        if self.shown {
            let full = (done.clamp(0.0, 1.0) * WIDTH as f64) as usize;
            let bar = "#".repeat(full) + &"-".repeat(WIDTH - full);
            // Ignores errors, because the progress bar is not essential.
            let _not_shown = write!(io::stderr(), "\r\x1b[K[{bar}] {what}").and_then(|()| io::stderr().flush());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _not_shown = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
