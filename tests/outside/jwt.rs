//! Tokens of other makers' libraries, and keys from a provider that speaks TLS.

use std::path::Path;
use std::process::Command;

use crate::process::{Process, pushgate};
use crate::tools::{Project, program, root, run, run_badly, tool};

/// `pushgate check-token` in a project, with the token in this file and these settings.
fn check(project: &Project, token: &str, settings: &[(&str, &str)]) -> Command {
    let mut command = program("sh");
    let command_line = format!("exec {} check-token <{token}", pushgate().get_program().to_string_lossy());
    command.args(["-c", &command_line]).current_dir(project.path());
    for (name, value) in settings {
        command.env(name, value);
    }
    command
}

/// The tokens that a library made: files `ALGORITHM.jwt`, each beside `ALGORITHM.key`.
fn check_all(project: &Project, algorithms: &[&str]) {
    for algorithm in algorithms {
        let (token, keys) = (format!("{algorithm}.jwt"), format!("{algorithm}.key"));
        let settings = [
            ("PUSHGATE_JWT_KEYS_FILE", keys.as_str()),
            ("PUSHGATE_JWT_ALGORITHMS", algorithm),
            ("PUSHGATE_JWT_ISSUER", "https://issuer.example"),
            ("PUSHGATE_JWT_AUDIENCE", "push"),
            ("PUSHGATE_JWT_EVENTS_CLAIM", "events"),
        ];
        let told = run(&mut check(project, &token, &settings));
        assert!(told.contains("user:    ann\nevents:  mail, chat.*\n"), "{algorithm}: {told}");
        let told = run_badly(&mut check(project, &format!("{algorithm}.expired"), &settings));
        assert!(told.contains("the token is refused: it has expired"), "{algorithm}: {told}");
    }
}

#[test]
#[ignore = "needs PyJWT"]
fn tokens_of_pyjwt_are_understood() {
    let project = Project::new();
    run(tool("venv/bin/python").arg(root().join("tests/outside/jwt_sign.py")).current_dir(project.path()));
    check_all(
        &project,
        &["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"],
    );
}

#[test]
#[ignore = "needs Node.js and jose"]
fn tokens_of_jose_are_understood() {
    let project = Project::new();
    let modules = crate::tools::installed("node_modules");
    std::os::unix::fs::symlink(modules, project.path().join("node_modules")).expect("a link");
    project.write("jwt_sign.mjs", include_str!("jwt_sign.mjs"));
    run(program("node").arg("jwt_sign.mjs").current_dir(project.path()));
    check_all(
        &project,
        &["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"],
    );
}

/// A certificate for 127.0.0.1 that signs itself: `cert.pem` and `key.pem`.
fn certificate(folder: &Path) {
    let subject = ["-subj", "/CN=issuer", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem"];
    // OpenSSL would make the certificate of an authority, which no server may show.
    let kind = ["-addext", "basicConstraints=critical,CA:FALSE"];
    let mut openssl = program("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    run(openssl.args(subject).args(kind).args(["-out", "cert.pem"]).current_dir(folder));
}

#[test]
#[ignore = "needs PyJWT and openssl"]
fn keys_are_fetched_over_tls_from_a_provider_whose_certificate_is_trusted() {
    let project = Project::new();
    certificate(project.path());
    run(tool("venv/bin/python").arg(root().join("tests/outside/jwt_sign.py")).current_dir(project.path()));
    let mut provider = tool("venv/bin/python");
    provider.arg("-u").arg(root().join("tests/outside/jwks_server.py")).current_dir(project.path());
    let provider = Process::start(&mut provider);
    let line = provider.stdout_line("https://");
    let url = line.trim();
    let with = |more: (&str, &str)| {
        let settings = [
            ("PUSHGATE_JWT_JWKS_URL", url),
            ("PUSHGATE_JWT_ISSUER", "https://issuer.example"),
            ("PUSHGATE_JWT_AUDIENCE", "push"),
            more,
        ];
        check(&project, "ES256.jwt", &settings)
    };
    let told = run(&mut with(("SSL_CERT_FILE", "cert.pem")));
    assert!(told.contains("user:    ann\n"), "{told}");
    run(program("cp").args(["cert.pem", "trusted.pem"]).current_dir(project.path()));
    certificate(project.path());
    let told = run_badly(&mut with(("SSL_CERT_FILE", "cert.pem")));
    assert!(told.contains("it cannot be checked now, because the keys could not be fetched"), "{told}");
    assert!(told.contains("invalid peer certificate"), "{told}");
    let told = run(&mut with(("SSL_CERT_FILE", "trusted.pem")));
    assert!(told.contains("user:    ann\n"), "{told}");
}
