//! OpenSSL, curl and grpcurl with a gateway that speaks TLS.

use std::net::SocketAddr;
use std::process::Command;

use crate::certificates::{Authority, Files};
use crate::process::{GatewayProcess, pushgate};
use crate::tools::{program, run, run_badly, tool};

const YEAR: i32 = 2090;

/// A gateway whose only address speaks TLS, as 127.0.0.1, and as `push.example.com` from a folder.
fn start(authority: &Authority) -> GatewayProcess {
    let own = authority.issue("own", &["127.0.0.1"], YEAR);
    let folder = authority.folder().join("more");
    std::fs::create_dir(&folder).expect("a new folder");
    authority.issue("more/push", &["push.example.com"], YEAR);
    let mut command = pushgate();
    command.env("PUSHGATE_TLS_CERT_FILE", own.certificate).env("PUSHGATE_TLS_KEY_FILE", own.key);
    GatewayProcess::start_as(command.env("PUSHGATE_TLS_CERT_FOLDER", folder))
}

/// `openssl s_client`, which verifies the certificate and ends after the handshake.
fn s_client(authority: &Authority, address: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = program("openssl");
    command.args(["s_client", "-connect", &address.to_string(), "-verify_return_error", "-CAfile"]);
    command.arg(authority.ca_file()).args(arguments);
    command
}

#[test]
#[ignore = "needs openssl"]
fn openssl_agrees_on_tls_1_2_and_1_3_and_on_nothing_older() {
    let authority = Authority::new("ca");
    let gateway = start(&authority);
    let address = gateway.clients;
    for (flag, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let told = run(&mut s_client(&authority, address, &[flag, "-alpn", "h2,http/1.1"]));
        assert!(told.contains(&format!("New, {version}, ")), "{told}");
        assert!(told.contains("ALPN protocol: h2"), "{told}");
        assert!(told.contains("Verify return code: 0 (ok)"), "{told}");
    }
    for flag in ["-tls1", "-tls1_1"] {
        // Without this, OpenSSL itself would refuse before it has sent anything.
        let told = run_badly(&mut s_client(&authority, address, &[flag, "-cipher", "DEFAULT@SECLEVEL=0"]));
        assert!(told.contains("alert"), "{told}");
    }
}

#[test]
#[ignore = "needs openssl"]
fn openssl_is_shown_the_certificate_of_the_host_it_asks_for() {
    let authority = Authority::new("ca");
    let gateway = start(&authority);
    let verified = |host: &str| ["-servername", host, "-verify_hostname", host].map(str::to_owned);
    let asked = verified("push.example.com");
    run(&mut s_client(&authority, gateway.clients, &asked.each_ref().map(String::as_str)));
    let asked = verified("other.example.com");
    let told = run_badly(&mut s_client(&authority, gateway.clients, &asked.each_ref().map(String::as_str)));
    assert!(told.contains("hostname mismatch"), "{told}");
}

fn curl(authority: &Authority) -> Command {
    let mut command = program("curl");
    command.args(["--silent", "--show-error", "--fail", "--cacert"]).arg(authority.ca_file());
    command
}

#[test]
#[ignore = "needs curl"]
fn curl_pushes_over_both_versions_of_http() {
    let authority = Authority::new("ca");
    let gateway = start(&authority);
    let url = format!("https://{}/push", gateway.control);
    let body = r#"{"userId":"ann","event":"mail","message":"hello"}"#;
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let mut curl = curl(&authority);
        let told = run(curl.args([flag, "--write-out", " over %{http_version}", "--data", body, &url]));
        assert_eq!(told, format!("message sent to 0 clients over {version}"));
    }
    let plain = run_badly(program("curl").args(["--silent", "--show-error", &url.replace("https", "http")]));
    assert!(plain.contains("curl: ("), "{plain}");
    let distrusting = run_badly(program("curl").args(["--silent", "--show-error", &url]));
    assert!(distrusting.contains("SSL certificate problem"), "{distrusting}");
}

/// A gateway whose callers need a certificate of `callers`.
fn start_with_callers(authority: &Authority, callers: &Authority) -> GatewayProcess {
    let Files { certificate, key } = authority.issue("control", &["127.0.0.1"], YEAR);
    let mut command = pushgate();
    command.args(["--control-listen", "127.0.0.1:0"]);
    command.env("PUSHGATE_CONTROL_TLS_CERT_FILE", certificate).env("PUSHGATE_CONTROL_TLS_KEY_FILE", key);
    GatewayProcess::start_as(command.env("PUSHGATE_CONTROL_TLS_CLIENT_CA_FILE", callers.ca_file()))
}

#[test]
#[ignore = "needs curl and grpcurl"]
fn curl_and_grpcurl_present_a_certificate() {
    let (authority, callers) = (Authority::new("ca"), Authority::new("callers"));
    let gateway = start_with_callers(&authority, &callers);
    let Files { certificate, key } = callers.issue("caller", &["spiffe://example.com/caller"], YEAR);
    let url = format!("https://{}/readyz", gateway.control);
    let mut showing = curl(&authority);
    assert_eq!(run(showing.arg("--cert").arg(&certificate).arg("--key").arg(&key).arg(&url)), "ready\n");
    run_badly(curl(&authority).arg(&url));

    let mut grpcurl = tool("bin/grpcurl");
    grpcurl.arg("-cacert").arg(authority.ca_file()).arg("-cert").arg(&certificate).arg("-key").arg(&key);
    let told = run(grpcurl.args([&gateway.control.to_string(), "grpc.health.v1.Health/Check"]));
    assert!(told.contains("\"SERVING\""), "{told}");
}
