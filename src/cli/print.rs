//! What a command prints, beside its log. Where printing is not what the command is for, it can fail or hang, and
//! nothing else changes.

use std::io::{self, ErrorKind, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::Outcome;

/// How long a note waits for its reader.
const PATIENCE: Duration = Duration::from_secs(1);

/// Prints what the command is for, and takes it as it is when the reader has seen enough, as `head` has.
pub(super) fn product(bytes: &[u8]) -> Outcome {
    match write(&mut io::stdout(), bytes) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(format!("cannot print: {error}").into()),
        _ => Ok(()),
    }
}

/// Prints what came of it, a line. What was done is done, whether or not it can be said.
pub(super) fn result(line: &str) {
    let _said = write(&mut io::stdout(), format!("{line}\n").as_bytes());
}

/// A note on standard output on its way to a reader, who may be away or asleep.
pub(super) struct Note(mpsc::Receiver<()>);

impl Note {
    pub(super) fn to_stdout(text: String) -> Self {
        Self::to(io::stdout, text)
    }

    fn to<W: Write>(open: impl FnOnce() -> W + Send + 'static, text: String) -> Self {
        let (done, note) = mpsc::channel();
        let printing = move || {
            let _said = write(&mut open(), text.as_bytes());
            let _nobody_waits = done.send(());
        };
        // Without a thread it is not said.
        let _not_said = thread::Builder::new().name("note".to_owned()).spawn(printing);
        Self(note)
    }

    /// Waits until it is printed or cannot be, but not for long.
    pub(super) fn wait(self) {
        let _said = self.0.recv_timeout(PATIENCE);
    }
}

/// Says something on standard error, a line.
pub(super) fn complain(line: &str) {
    Note::to(io::stderr, format!("{line}\n")).wait();
}

fn write(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}
