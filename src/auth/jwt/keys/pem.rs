//! Public keys in PEM, of which a file may hold several.

use jsonwebtoken::{Algorithm, DecodingKey};

use super::Key;

/// Reads every key. What stands between the keys is not looked at. An error names the line.
pub(super) fn read(text: &str, allowed: &[Algorithm]) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    let mut lines = text.lines().map(str::trim).enumerate();
    while let Some((number, line)) = lines.next() {
        let at = |problem: &str| format!("line {}: {problem}", number + 1);
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) else {
            continue;
        };
        let end = format!("-----END {label}-----");
        let mut block = format!("{line}\n");
        loop {
            let Some((_, line)) = lines.next() else {
                return Err(at(&format!("{label} begins here, and has no end")));
            };
            block.push_str(line);
            block.push('\n');
            if line == end {
                break;
            }
        }
        if label.ends_with("PRIVATE KEY") {
            return Err(at("it is a private key; a gateway only needs the public one: openssl pkey -in FILE -pubout"));
        }
        if label.ends_with("CERTIFICATE") {
            return Err(at("it is a certificate; take the key out of it: openssl x509 -in FILE -noout -pubkey"));
        }
        let decoding = decoding(block.as_bytes()).ok_or_else(|| {
            at(&format!("{label} is not a public key of RSA, of the curves P-256 or P-384, or of Ed25519"))
        })?;
        keys.push(Key::new(None, decoding, allowed).map_err(|problem| at(&problem))?);
    }
    Ok(keys)
}

/// The library wants to be told what a key is for, although the key says it.
fn decoding(block: &[u8]) -> Option<DecodingKey> {
    [DecodingKey::from_rsa_pem, DecodingKey::from_ec_pem, DecodingKey::from_ed_pem]
        .into_iter()
        .find_map(|read| read(block).ok())
}
