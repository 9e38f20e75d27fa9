//! Tokens that are JWTs, as an operator deals with them.

use jsonwebtoken::Algorithm;
use serde_json::json;
use tempfile::TempDir;

use crate::process::GatewayProcess;
use crate::signer::{Signer, claims};
use crate::{Listener, run, stderr};

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

#[test]
fn a_keys_file_that_does_not_parse_is_named_with_its_line() {
    let folder = folder(&[("keys.json", "{\n  \"keys\": [\n    {]\n")]);
    let file = path(&folder, "keys.json");
    for command in ["check-config", "serve"] {
        let output = run(&[command, "--jwt-keys-file", &file]);
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        assert!(stderr(&output).contains(&format!("{file}: line 3: it is not valid JSON")), "{output:?}");
    }
    let both = run(&["check-config", "--jwt-keys-file", &file, "--tokens-file", "/no/such/file"]);
    assert_eq!(both.status.code(), Some(64), "{both:?}");
    assert!(stderr(&both).contains("(flag --jwt-keys-file): cannot be set together with tokens_file"), "{both:?}");
}

#[test]
fn the_log_says_what_is_wrong_with_a_token_and_nothing_that_is_in_it() {
    let (signer, stranger) = (Signer::new(Algorithm::ES256), Signer::new(Algorithm::ES256));
    let folder = folder(&[("keys.pem", &signer.public_pem())]);
    let file = path(&folder, "keys.pem");
    let mut serve = crate::pushgate(&["serve", "--jwt-keys-file", &file]);
    let gateway = GatewayProcess::start_as(serve.env("PUSHGATE_LOG", "trace"));
    let secrets = json!({ "sub": "ann-s3cret", "email": "s3cret@example.com", "iss": "https://s3cret" });
    let good = signer.token(&claims(&secrets));
    let bad = stranger.token(&claims(&secrets));
    let bound = Listener::start(&gateway, &good, "mail", &[]);
    let refused =
        run(&["listen", "--token", &bad, "--event", "mail", "--url", &format!("ws://{}/ws", gateway.clients)]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    gateway.process.stderr_line("its signature is wrong");
    drop(bound);
    let log = gateway.stderr();
    for part in good.split('.').chain(bad.split('.')).chain(["s3cret"]) {
        assert!(!log.contains(part), "{part} in {log}");
    }
}
