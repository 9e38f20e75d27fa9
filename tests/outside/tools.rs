//! The programs that the tests run, and the folder they run in.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::process::Process;

/// Compilers and package managers, some of which fetch something on their first run.
pub(crate) const LONG: Duration = Duration::from_secs(300);

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where `.ci/tools` put the programs.
pub(crate) fn folder() -> PathBuf {
    root().join(env::var_os("PUSHGATE_TEST_TOOLS").unwrap_or_else(|| "target/tools".into()))
}

/// Something that `.ci/tools` installs, by its path in that folder.
#[track_caller]
pub(crate) fn installed(path: &str) -> PathBuf {
    let path = folder().join(path);
    assert!(path.exists(), "{} is missing, run .ci/tools", path.display());
    path
}

/// A program that `.ci/tools` installs.
#[track_caller]
pub(crate) fn tool(path: &str) -> Command {
    outside(installed(path))
}

/// A program of the machine.
#[track_caller]
pub(crate) fn program(name: &str) -> Command {
    outside(found(name))
}

/// Where a program of the machine is.
#[track_caller]
pub(crate) fn found(name: &str) -> PathBuf {
    let path = env::split_paths(&search_path()).map(|folder| folder.join(name)).find(|path| path.is_file());
    path.unwrap_or_else(|| panic!("there is no {name} on the PATH, run .ci/tools, which installs it or says how"))
}

/// A command that finds the tools first, and reaches gateways on this machine without a proxy.
fn outside(program: impl Into<OsString>) -> Command {
    let mut command = Command::new(program.into());
    command.env("PATH", search_path()).env("no_proxy", "127.0.0.1").env("NO_PROXY", "127.0.0.1");
    command.env_remove("PUSHGATE_KEY");
    command
}

fn search_path() -> OsString {
    let tools = ["venv/bin", "bin", "node_modules/.bin"].map(|path| folder().join(path));
    let machine = env::var_os("PATH").unwrap_or_default();
    // Where servers are, for those whose own PATH leaves it out.
    let servers = PathBuf::from("/usr/sbin");
    env::join_paths(tools.into_iter().chain(env::split_paths(&machine)).chain([servers]))
        .expect("made from paths of a search path")
}

/// Runs a command to its good end, and returns its stdout.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    Process::start(command).succeed(LONG)
}

/// Runs a command to its bad end, and returns all it wrote.
#[track_caller]
pub(crate) fn run_badly(command: &mut Command) -> String {
    Process::start(command).fail(LONG)
}

/// The project of somebody who uses the gateway: an empty folder but for a copy of `proto`.
pub(crate) struct Project(TempDir);

impl Project {
    pub(crate) fn new() -> Self {
        let project = Self(tempfile::tempdir().expect("a temporary folder"));
        run(program("cp").arg("-R").arg(root().join("proto")).arg(project.path()));
        project
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap_or_else(|error| panic!("cannot write {name}: {error}"));
    }

    /// Runs shell commands in the project.
    #[track_caller]
    pub(crate) fn shell(&self, commands: &str) {
        run(program("sh").args(["-e", "-c", commands]).current_dir(self.path()));
    }
}
