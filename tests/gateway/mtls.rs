//! Callers that present certificates to the control address.

use std::path::{Path, PathBuf};

use tokio_rustls::rustls::HandshakeKind;
use tonic::Code;

use crate::support::certificates::Authority;
use crate::support::tls::Speaks;
use crate::support::{TestGateway, push_request, soon};

const YEAR: i32 = 2090;

const KEYS: &str = r#"
[[key]]
name = "orders"
certificate = "spiffe://example.com/orders"
users = ["ann"]
events = ["mail*"]

[[key]]
name = "everything"
certificate = "ops.internal"

[[key]]
name = "key"
key = "0123456789abcdef"
"#;

/// Two authorities: that of the gateway's own certificate, and that of its callers.
struct Authorities {
    own: Authority,
    callers: Authority,
}

impl Authorities {
    fn new() -> Self {
        Self { own: Authority::new("own"), callers: Authority::new("callers") }
    }

    async fn gateway(&self, ca_file: PathBuf, push_keys_file: Option<&Path>) -> TestGateway {
        let files = self.own.issue("control", &["localhost"], YEAR);
        TestGateway::with(|config| {
            config.control_listen = Some(([127, 0, 0, 1], 0).into());
            config.control_tls_cert_file = Some(files.certificate);
            config.control_tls_key_file = Some(files.key);
            config.control_tls_client_ca_file = Some(ca_file);
            config.push_keys_file = push_keys_file.map(Path::to_owned);
        })
        .await
    }

    /// A caller with a certificate to this name.
    fn caller(&self, name: &str) -> Speaks {
        Speaks::with(&self.own).shows(&self.callers.issue("caller", &[name], YEAR))
    }
}

async fn code(speaks: &Speaks, gateway: &TestGateway, user_id: &str, event: &str) -> Code {
    let mut grpc = speaks.grpc(gateway.control).await.unwrap();
    let pushed = soon(grpc.push(push_request(user_id, event, "m"))).await;
    pushed.map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn json(speaks: &Speaks, gateway: &TestGateway, key: &str) -> u16 {
    let body = r#"{"userId":"ann","event":"mail","message":"m"}"#;
    let head = format!("POST /push HTTP/1.1\r\nhost: x\r\n{key}content-length: {}\r\nconnection: close", body.len());
    speaks.ask(gateway.control, &format!("{head}\r\n\r\n{body}")).await.unwrap().status
}

#[tokio::test]
async fn a_caller_is_known_by_the_name_in_its_certificate() {
    let authorities = Authorities::new();
    let keys = authorities.own.folder().join("keys.toml");
    std::fs::write(&keys, KEYS).unwrap();
    let gateway = authorities.gateway(authorities.callers.ca_file(), Some(&keys)).await;
    let orders = authorities.caller("spiffe://example.com/orders");
    assert_eq!(code(&orders, &gateway, "ann", "mail").await, Code::Ok);
    assert_eq!(code(&orders, &gateway, "bob", "mail").await, Code::PermissionDenied);
    assert_eq!(code(&orders, &gateway, "ann", "chat").await, Code::PermissionDenied);
    assert_eq!(json(&orders, &gateway, "").await, 200);
    assert_eq!(code(&authorities.caller("ops.internal"), &gateway, "bob", "chat").await, Code::Ok);
    let stranger = authorities.caller("stranger.internal");
    assert_eq!(code(&stranger, &gateway, "ann", "mail").await, Code::Unauthenticated);
    assert_eq!(json(&stranger, &gateway, "").await, 401);
    assert_eq!(json(&stranger, &gateway, "x-api-key: 0123456789abcdef\r\n").await, 200, "a key counts as well");
}

#[tokio::test]
async fn without_push_keys_whoever_has_a_certificate_may_push() {
    let authorities = Authorities::new();
    let gateway = authorities.gateway(authorities.callers.ca_file(), None).await;
    assert_eq!(code(&authorities.caller("anything"), &gateway, "ann", "mail").await, Code::Ok);
}

#[tokio::test]
async fn whoever_has_no_certificate_of_the_authority_is_refused_and_counted() {
    let authorities = Authorities::new();
    let gateway = authorities.gateway(authorities.callers.ca_file(), None).await;
    let nobody = Speaks::with(&authorities.own);
    let another = Speaks::with(&authorities.own).shows(&Authority::new("another").issue("x", &["x"], YEAR));
    let expired = Speaks::with(&authorities.own).shows(&authorities.callers.issue("x", &["x"], 2020));
    for (speaks, alert) in [(nobody, "CertificateRequired"), (another, "UnknownCA"), (expired, "CertificateExpired")] {
        let error = speaks.refusal(gateway.control).await;
        assert!(error.to_string().contains(alert), "{error}");
        // TLS 1.2 has no alert for a missing certificate.
        let error = speaks.only_1_2().refusal(gateway.control).await.to_string();
        assert!(error.contains(alert) || error.contains("HandshakeFailure"), "{error}");
    }
    let metrics = authorities.caller("x").get(gateway.control, "/metrics").await.unwrap().body;
    let count = |result: &str, count: u64| {
        let sample = format!("pushgate_tls_handshakes_total{{listener=\"control\",result=\"{result}\"}} {count}\n");
        assert!(metrics.contains(&sample), "{sample} in {metrics}");
    };
    count("no_certificate", 2);
    count("bad_certificate", 4);
    count("done", 1);
}

#[tokio::test]
async fn a_caller_is_verified_each_time_it_connects() {
    let authorities = Authorities::new();
    let ca_file = authorities.own.folder().join("callers.pem");
    std::fs::write(&ca_file, authorities.callers.ca_pem()).unwrap();
    let gateway = authorities.gateway(ca_file.clone(), None).await;
    let caller = authorities.caller("x");
    assert_eq!(caller.comes_back(gateway.control).await, HandshakeKind::Full);
    assert_eq!(caller.clone().only_1_2().comes_back(gateway.control).await, HandshakeKind::Full);

    std::fs::write(&ca_file, "").unwrap();
    let errors: Vec<String> = gateway.gateway.reload().await.iter().map(ToString::to_string).collect();
    assert!(errors[0].contains("callers.pem: holds no certificate"), "{errors:?}");
    assert!(caller.get(gateway.control, "/readyz").await.is_ok(), "the previous authority stays in use");
    std::fs::write(&ca_file, Authority::new("new").ca_pem()).unwrap();
    assert!(gateway.gateway.reload().await.is_empty());
    caller.refusal(gateway.control).await;
}
