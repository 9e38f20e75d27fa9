//! Runs programs in processes of their own, above all the gateway as it is shipped. Every wait ends, either with the
//! expected event or with a panic that shows the program's output.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Far longer than any program here takes, so that only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The `pushgate` command, without any settings from the environment of the tests. `PUSHGATE_TEST_PROGRAM` names another
/// build of it, which is for what is measured.
pub fn pushgate() -> Command {
    let other = std::env::var_os("PUSHGATE_TEST_PROGRAM");
    let mut command = Command::new(other.as_deref().unwrap_or(OsStr::new(env!("CARGO_BIN_EXE_pushgate"))));
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PUSHGATE_") {
            command.env_remove(name);
        }
    }
    command
}

/// A gateway in its own process, on free ports. Killed when dropped.
pub struct GatewayProcess {
    pub clients: SocketAddr,
    pub control: SocketAddr,
    pub process: Process,
}

impl GatewayProcess {
    /// Starts `pushgate ARGS --listen 127.0.0.1:0` and waits until it serves.
    #[track_caller]
    pub fn start<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Self {
        Self::start_as(pushgate().args(args))
    }

    /// Like `start`, with a command that already has arguments, an environment or a folder.
    #[track_caller]
    pub fn start_as(command: &mut Command) -> Self {
        Self::start_at(command, "127.0.0.1:0")
    }

    /// Like `start_as`, at an address that it has again after a restart.
    #[track_caller]
    pub fn start_at(command: &mut Command, listen: &str) -> Self {
        let process = Process::start(command.args(["--listen", listen]));
        let line = process.stdout_line("pushgate is up.");
        // With TLS, each scheme has one letter more.
        let address = |schemes: [&str; 2]| {
            let (_, rest) = schemes.iter().find_map(|scheme| line.split_once(scheme))?;
            rest.split(['/', ' ']).next()?.parse().ok()
        };
        match (address(["ws://", "wss://"]), address(["http://", "https://"])) {
            (Some(clients), Some(control)) => Self { clients, control, process },
            _ => panic!("no two addresses in {line:?}"),
        }
    }

    /// Sends a signal, for example `TERM`.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Waits for the process to end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Everything written to stderr so far, which is the log.
    pub fn stderr(&self) -> String {
        self.process.stderr()
    }
}

/// A child process with an empty stdin. Its output is collected as it arrives. Killed when dropped.
pub struct Process {
    child: Child,
    name: String,
    stdout: Arc<Stream>,
    stderr: Arc<Stream>,
}

impl Process {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        // `Command`'s own debug text is not used, because it begins with the whole environment.
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let name = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let stdout = Stream::follow(child.stdout.take().expect("piped above"));
        let stderr = Stream::follow(child.stderr.take().expect("piped above"));
        Self { child, name, stdout, stderr }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the first line of stdout that contains this text.
    #[track_caller]
    pub fn stdout_line(&self, text: &str) -> String {
        self.line(&self.stdout, text)
    }

    /// Waits for the first line of stderr that contains this text.
    #[track_caller]
    pub fn stderr_line(&self, text: &str) -> String {
        self.line(&self.stderr, text)
    }

    /// All of stdout so far.
    pub fn stdout(&self) -> String {
        self.stdout.lock().text.clone()
    }

    /// All of stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().text.clone()
    }

    /// Sends a signal, for example `TERM`.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        // Uses the `kill` built into the shell, because a slim container has no `kill` program.
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status();
        assert!(sent.is_ok_and(|sent| sent.success()), "cannot send {name} to {}", self.name);
    }

    /// Waits for the end of the process and of its output.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_for(PATIENCE)
    }

    /// Like `wait`, with a longer patience for slow programs.
    #[track_caller]
    pub fn wait_for(&mut self, patience: Duration) -> ExitStatus {
        for stream in [&self.stdout, &self.stderr] {
            if !stream.until(patience, |output| output.ended) {
                panic!("{} did not end in {patience:?}\n{}", self.name, self.output());
            }
        }
        self.child.wait().unwrap_or_else(|error| panic!("cannot wait for {}: {error}", self.name))
    }

    /// Waits for the process to end, which must succeed, and returns stdout.
    #[track_caller]
    pub fn succeed(mut self, patience: Duration) -> String {
        let status = self.wait_for(patience);
        assert!(status.success(), "{} ended with {status}\n{}", self.name, self.output());
        self.stdout()
    }

    /// Waits for the process to end, which must fail, and returns all output.
    #[track_caller]
    pub fn fail(mut self, patience: Duration) -> String {
        let status = self.wait_for(patience);
        assert!(!status.success(), "{} did not fail\n{}", self.name, self.output());
        format!("{}{}", self.stdout(), self.stderr())
    }

    #[track_caller]
    fn line(&self, stream: &Stream, text: &str) -> String {
        let mut found = None;
        stream.until(PATIENCE, |output| {
            // Looks only at whole lines. The last line may still be incomplete, unless the stream has ended.
            let whole = if output.ended { output.text.len() } else { output.text.rfind('\n').unwrap_or(0) };
            found = output.text[..whole].lines().find(|line| line.contains(text)).map(str::to_owned);
            found.is_some() || output.ended
        });
        found.unwrap_or_else(|| panic!("{} never wrote {text:?}\n{}", self.name, self.output()))
    }

    fn output(&self) -> String {
        format!("its stdout:\n{}\nits stderr:\n{}", self.stdout(), self.stderr())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail if the process has already ended and been waited for, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The output of a process, read as it arrives, so that the process never waits for its reader.
#[derive(Default)]
struct Stream {
    output: Mutex<Output>,
    changed: Condvar,
}

#[derive(Default)]
struct Output {
    text: String,
    ended: bool,
}

impl Stream {
    fn follow(source: impl Read + Send + 'static) -> Arc<Self> {
        let stream = Arc::new(Self::default());
        let writer = stream.clone();
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while source.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                writer.lock().text.push_str(&String::from_utf8_lossy(&line));
                writer.changed.notify_all();
                line.clear();
            }
            writer.lock().ended = true;
            writer.changed.notify_all();
        });
        stream
    }

    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the output satisfies `good`. Returns false if that takes longer than `patience`.
    fn until(&self, patience: Duration, mut good: impl FnMut(&Output) -> bool) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), patience, |output| !good(output));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}
