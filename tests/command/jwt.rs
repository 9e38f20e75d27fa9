//! Tokens that are JWTs, as an operator deals with them.

use std::io::Write;
use std::process::Stdio;

use jsonwebtoken::Algorithm;
use serde_json::json;
use tempfile::TempDir;

use crate::process::GatewayProcess;
use crate::signer::{Signer, claims};
use crate::{Listener, run, stderr, stdout};

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

/// `pushgate check-token ARGS` with this token on its standard input: its exit code and all that it said.
fn check(token: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = crate::pushgate(&["check-token"]);
    let command = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn a_token_can_be_made_and_checked_with_nothing_but_a_secret() {
    let secret = stdout(&run(&["gen-key", "jwt"]));
    assert_ne!(secret, stdout(&run(&["gen-key", "jwt"])));
    let settings = "jwt_keys_file = \"SECRET\"\njwt_algorithms = \"HS256\"\njwt_events_claim = \"events\"\n\
                    jwt_issuer = \"us\"\njwt_audience = \"push, chat\"\njwt_user_claim = \"user\"\n";
    let folder = folder(&[("secret", &secret)]);
    let config = path(&folder, "pushgate.toml");
    std::fs::write(&config, settings.replace("SECRET", &path(&folder, "secret"))).unwrap();

    let token = stdout(&run(&["gen-token", "ann", "--config", &config, "--event", "mail", "--event", "chat.*"]));
    let (code, said) = check(&token, &["--config", &config, "--event", "chat.7"]);
    assert_eq!(code, Some(0), "{said}");
    for line in ["the token is good\n", "user:    ann\n", "events:  mail, chat.*\n", "with jwt_leeway\n"] {
        assert!(said.contains(line), "{line} in {said}");
    }
    let (code, said) = check(&token, &["--config", &config, "--event", "log"]);
    assert_eq!((code, said.as_str()), (Some(1), "pushgate: the token may not bind \"log\", only mail, chat.*\n"));
    let gateway = GatewayProcess::start(["--config", &config]);
    drop(Listener::start(&gateway, token.trim(), "mail", &[]));

    let nothing = run(&["gen-token", "ann", "--config", &config]);
    assert!(stderr(&nothing).contains("a token without --event PATTERN could bind nothing"), "{nothing:?}");
    let changed = token.replacen('.', ".x", 1);
    for (token, told) in [
        (changed.as_str(), "the token is refused: its signature is wrong"),
        ("ann", "the token is refused: it is not a JWT"),
        (" \n", "there is no token on standard input"),
    ] {
        let (code, said) = check(token, &["--config", &config]);
        assert!(code == Some(1) && said.contains(told), "{said}");
    }
    let (code, said) = check(&token, &[]);
    assert!(code == Some(64) && said.contains("the settings do not check tokens as JWTs"), "{said}");
}

#[test]
fn a_token_is_signed_with_what_its_key_is_for() {
    for (algorithm, name) in [
        (Algorithm::RS256, "RS256"),
        (Algorithm::ES256, "ES256"),
        (Algorithm::ES384, "ES384"),
        (Algorithm::EdDSA, "EdDSA"),
    ] {
        let signer = Signer::new(algorithm);
        let folder = folder(&[("private.pem", &signer.private_pem()), ("public.pem", &signer.public_pem())]);
        let (private, public) = (path(&folder, "private.pem"), path(&folder, "public.pem"));
        let arguments = ["gen-token", "ann", "--key", &private, "--kid", "k", "--expires-in", "5m", "--claim", "a=[1]"];
        let token = stdout(&run(&arguments));
        let header = jsonwebtoken::decode_header(token.trim()).unwrap();
        assert_eq!((header.alg, header.kid.as_deref()), (algorithm, Some("k")), "{name}");
        let (code, said) = check(&token, &["--jwt-keys-file", &public]);
        assert!(code == Some(0) && said.contains("events:  all"), "{name}: {said}");
        let wrong = run(&["gen-token", "ann", "--key", &private, "--algorithm", "HS256"]);
        assert!(stderr(&wrong).contains("has no key that signs with HS256"), "{wrong:?}");
    }
    let none = run(&["gen-token", "ann"]);
    assert!(stderr(&none).contains("there is nothing to sign with"), "{none:?}");
    let public = run(&["gen-token", "ann", "--jwt-keys-file", "/keys.pem"]);
    assert!(stderr(&public).contains("give the private key with --key FILE"), "{public:?}");
}

#[test]
fn a_push_key_that_was_made_is_good() {
    let folder = folder(&[]);
    let file = path(&folder, "keys.toml");
    let entry = stdout(&run(&["gen-key", "push", "--name", "the \"billing\" \\ service", "--events", "invoice.*"]));
    let other = stdout(&run(&["gen-key", "push", "--name", "all"]));
    let hashed = stdout(&run(&["gen-key", "push", "--name", "hashed", "--hashed"]));
    let (told, hashed_entry) = hashed.split_once('\n').unwrap();
    let (_, hashed_key) = told.rsplit_once(' ').unwrap();
    assert!(!hashed_entry.contains(hashed_key), "{hashed}");
    std::fs::write(&file, format!("{entry}\n{other}\n{hashed_entry}")).unwrap();
    let gateway = GatewayProcess::start(["--push-keys-file", &file]);
    let key = entry.lines().find_map(|line| line.strip_prefix("key = ")).unwrap().trim_matches('"');
    let push = |event: &str, key: &str| {
        run(&["push", "ann", event, "m", "--address", &gateway.control.to_string(), "--key", key]).status.code()
    };
    assert_eq!((push("invoice.paid", key), push("mail", key)), (Some(0), Some(1)));
    assert_eq!(push("mail", hashed_key), Some(0));
}
