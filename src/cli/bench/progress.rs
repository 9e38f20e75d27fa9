//! The line that says how far a run is, where somebody watches.

use std::io::{self, IsTerminal, Write};

/// One line on standard error that is written over; nothing where that is no terminal.
pub(super) struct Progress {
    shown: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { shown: io::stderr().is_terminal() }
    }

    /// Shows what is being done, and how much of it is.
    pub(super) fn show(&self, what: &str, done: f64) {
        const WIDTH: usize = 30;
        if self.shown {
            let full = (done.clamp(0.0, 1.0) * WIDTH as f64) as usize;
            let bar = "#".repeat(full) + &"-".repeat(WIDTH - full);
            // A line that cannot be shown is not missed.
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
