//! Callers and clients in other languages: the examples of the README, run as they stand there.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Instant;

use crate::certificates::Authority;
use crate::process::{GatewayProcess, PATIENCE, Process, pushgate};
use crate::readme;
use crate::tools::{Project, installed, program, run, run_badly, tool};
use crate::user::User;

const KEY: &str = "0123456789abcdef";

/// What the README says to write for a gateway that speaks TLS.
const OVER_TLS: [(&str, &str); 5] = [
    ("grpc.insecure_channel(", "grpc.secure_channel(credentials=grpc.ssl_channel_credentials(), target="),
    ("insecure.NewCredentials()", "credentials.NewTLS(&tls.Config{})"),
    ("\"google.golang.org/grpc/credentials/insecure\"", "\"google.golang.org/grpc/credentials\""),
    ("import (\n\t\"context\"", "import (\n\t\"context\"\n\t\"crypto/tls\""),
    ("createInsecure()", "createSsl()"),
];

/// The example for this gateway. Only one with `control_listen` speaks TLS here.
fn example(name: &str, gateway: &GatewayProcess) -> String {
    let program = readme::program(name, gateway.control);
    let is_plain = gateway.control == gateway.clients;
    let changes = OVER_TLS.iter().filter(|_| !is_plain);
    changes.fold(program, |program, (plain, over_tls)| program.replace(plain, over_tls))
}

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
    it_pushes_with_and_without_a_key_and_over_tls(|gateway| {
        project.write("client.py", &example("python", gateway));
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
    it_pushes_with_and_without_a_key_and_over_tls(|gateway| {
        project.write("main.go", &example("go", gateway));
        run(program("go").args(["build", "-o", "client", "."]).current_dir(project.path()));
        Command::new(project.path().join("client"))
    });
}

#[test]
#[ignore = "needs Node.js, @grpc/grpc-js and @grpc/proto-loader"]
fn a_node_client_pushes() {
    let project = Project::new();
    symlink(installed("node_modules"), project.path().join("node_modules")).unwrap();
    it_pushes_with_and_without_a_key_and_over_tls(|gateway| {
        project.write("client.mjs", &example("node", gateway));
        let mut client = program("node");
        client.arg("client.mjs").current_dir(project.path());
        client
    });
}

/// Runs a client of a gateway that is open, of one that asks for an API key, and of one that speaks TLS.
#[track_caller]
fn it_pushes_with_and_without_a_key_and_over_tls(client: impl Fn(&GatewayProcess) -> Command) {
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

    let authority = Authority::new("ca");
    let files = authority.issue("own", &["127.0.0.1"], 2090);
    let mut command = pushgate();
    command.env("PUSHGATE_CONTROL_LISTEN", "127.0.0.1:0");
    command.env("PUSHGATE_CONTROL_TLS_CERT_FILE", files.certificate).env("PUSHGATE_CONTROL_TLS_KEY_FILE", files.key);
    let gateway = GatewayProcess::start_as(&mut command);
    let mut ann = User::ann(&gateway);
    run_badly(&mut client(&gateway));
    let mut trusting = client(&gateway);
    trusting.env("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", authority.ca_file()).env("SSL_CERT_FILE", authority.ca_file());
    assert_eq!(run(&mut trusting).trim_end(), "matched 1, accepted 1, dropped 0");
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
