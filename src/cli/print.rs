//! The output of commands, apart from the log. If output is not the purpose of a command, the command is not affected
//! when printing fails or hangs.

use std::io::{self, ErrorKind, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::Outcome;

/// How long to wait for the reader of a note.
const PATIENCE: Duration = Duration::from_secs(1);

/// Prints output that is the purpose of the command. It is not an error if the reader, such as `head`, wants no more.
pub(super) fn product(bytes: &[u8]) -> Outcome {
    match write(&mut io::stdout(), bytes) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(format!("cannot print: {error}").into()),
        _ => Ok(()),
    }
}

/// Prints the result of a command as one line. Ignores errors, because the command itself has already succeeded.
pub(super) fn result(line: &str) {
    let _ignored = write(&mut io::stdout(), format!("{line}\n").as_bytes());
}

/// A note that is being printed in its own thread, because its reader may be gone or stuck.
pub(super) struct Note(mpsc::Receiver<()>);

impl Note {
    pub(super) fn to_stdout(text: String) -> Self {
        Self::to(io::stdout, text)
    }

    fn to<W: Write>(open: impl FnOnce() -> W + Send + 'static, text: String) -> Self {
        let (done, note) = mpsc::channel();
        let printing = move || {
            let _ignored = write(&mut open(), text.as_bytes());
            let _nobody_waits = done.send(());
        };
        // If no thread can be started, the note is not printed.
        let _ignored = thread::Builder::new().name("note".to_owned()).spawn(printing);
        Self(note)
    }

    /// Waits until the note is printed or has failed, but at most [`PATIENCE`].
    pub(super) fn wait(self) {
        let _ignored = self.0.recv_timeout(PATIENCE);
    }
}

/// Prints one line on standard error.
pub(super) fn complain(line: &str) {
    Note::to(io::stderr, format!("{line}\n")).wait();
}

fn write(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}
