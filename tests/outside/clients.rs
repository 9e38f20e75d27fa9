//! Callers and clients in other languages: the examples of the README, run as they stand there.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Instant;

use crate::process::{GatewayProcess, PATIENCE, Process, pushgate};
use crate::readme;
use crate::tools::{Project, installed, program, run, run_badly, tool};
use crate::user::User;

const KEY: &str = "0123456789abcdef";

/// What the tests of Go clients are written for; the README leaves the versions to its reader.
const GO_MOD: &str = "\
module example.com/client

go 1.25.0

require (
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
)
";

#[test]
#[ignore = "needs Python with grpcio-tools"]
fn a_generated_python_client_pushes() {
    installed("venv/bin/python");
    let project = Project::new();
    project.shell(&readme::example("python-generate"));
    it_pushes_with_and_without_a_key(|gateway| {
        project.write("client.py", &readme::program("python", gateway.control));
        let mut client = tool("venv/bin/python");
        client.arg("client.py").current_dir(project.path());
        client
    });
}

#[test]
#[ignore = "needs Go, protoc-gen-go and protoc-gen-go-grpc"]
fn a_generated_go_client_pushes() {
    installed("bin/protoc-gen-go");
    installed("bin/protoc-gen-go-grpc");
    installed("bin/protoc");
    let project = Project::new();
    project.write("go.mod", GO_MOD);
    project.write("main.go", &readme::example("go"));
    project.shell(&readme::example("go-generate"));
    it_pushes_with_and_without_a_key(|gateway| {
        project.write("main.go", &readme::program("go", gateway.control));
        run(program("go").args(["build", "-o", "client", "."]).current_dir(project.path()));
        Command::new(project.path().join("client"))
    });
}

#[test]
#[ignore = "needs Node.js, @grpc/grpc-js and @grpc/proto-loader"]
fn a_node_client_pushes() {
    let project = Project::new();
    symlink(installed("node_modules"), project.path().join("node_modules")).unwrap();
    it_pushes_with_and_without_a_key(|gateway| {
        project.write("client.mjs", &readme::program("node", gateway.control));
        let mut client = program("node");
        client.arg("client.mjs").current_dir(project.path());
        client
    });
}

/// Runs a client of a gateway that is open, and of one that asks for an API key.
#[track_caller]
fn it_pushes_with_and_without_a_key(client: impl Fn(&GatewayProcess) -> Command) {
    let gateway = GatewayProcess::start::<&str>([]);
    let mut ann = User::ann(&gateway);
    let told = run(&mut client(&gateway));
    assert_eq!(told.trim_end(), "matched 1, accepted 1, dropped 0");
    assert_eq!(ann.next(), "hello");

    let folder = tempfile::tempdir().expect("a temporary folder");
    let keys = folder.path().join("keys.toml");
    std::fs::write(&keys, format!("[[key]]\nname = \"client\"\nkey = \"{KEY}\"\n")).expect("written");
    let gateway =
        GatewayProcess::start_as(pushgate().arg("--push-keys-file").arg(&keys).env("PUSHGATE_OPEN_METRICS", "true"));
    let mut ann = User::ann(&gateway);
    // The three libraries write the same code each in its own way.
    let refused = run_badly(&mut client(&gateway)).to_uppercase();
    assert!(refused.contains("UNAUTHENTICATED"), "{refused}");
    let told = run(client(&gateway).env("PUSHGATE_KEY", KEY));
    assert_eq!(told.trim_end(), "matched 1, accepted 1, dropped 0");
    assert_eq!(ann.next(), "hello");
}

#[test]
#[ignore = "needs Python with websockets"]
fn a_python_websocket_client_receives() {
    let gateway = GatewayProcess::start::<&str>([]);
    let project = Project::new();
    project.write("listen.py", &readme::program("python-websocket", gateway.clients));
    let client = Process::start(tool("venv/bin/python").arg("listen.py").current_dir(project.path()));
    // It does not say when it is bound, so pushes are repeated until one finds it.
    let address = format!("http://{}", gateway.control);
    let push = || run(pushgate().args(["push", "ann", "mail", "hello", "--address", &address]));
    let started = Instant::now();
    while !push().starts_with("accepted by 1 of 1 connection") {
        assert!(started.elapsed() < PATIENCE, "it never bound\n{}{}", client.stdout(), client.stderr());
    }
    assert_eq!(client.stdout_line("hello"), "hello");
}
