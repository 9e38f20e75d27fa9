//! Reads PEM files, and says in which line a mistake is. The library for PEM decodes each section, but knows no lines.

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// One `-----BEGIN LABEL-----` to its `-----END LABEL-----`.
struct Section<'a> {
    /// The line that it begins in, the first being 1.
    line: usize,
    label: &'a str,
    text: &'a str,
}

const CERTIFICATE: &str = "CERTIFICATE";

/// The kinds of private keys that can be used: PKCS #8, PKCS #1 and SEC 1.
const KEYS: [&str; 3] = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];

/// The kind of a key in PKCS #8 that needs a passphrase. In the older formats, a line says so.
const ENCRYPTED_KEY: &str = "ENCRYPTED PRIVATE KEY";
const ENCRYPTED_LINE: &str = "Proc-Type: 4,ENCRYPTED";

/// The certificates of a file, each with the line that it begins in.
pub(super) fn certificates(text: &str) -> Result<Vec<(usize, CertificateDer<'static>)>, String> {
    let sections = sections(text)?;
    let certificates: Vec<_> = sections.iter().filter(|section| section.label == CERTIFICATE).collect();
    if certificates.is_empty() {
        return Err(none_of("certificate", &sections));
    }
    let decode = |section: &&Section<'_>| match CertificateDer::from_pem_slice(section.text.as_bytes()) {
        Ok(certificate) => Ok((section.line, certificate)),
        Err(_) => Err(format!("line {}: this certificate is not valid PEM", section.line)),
    };
    certificates.iter().map(decode).collect()
}

/// The only private key of a file.
pub(super) fn private_key(text: &str) -> Result<PrivateKeyDer<'static>, String> {
    let sections = sections(text)?;
    let is_encrypted = |section: &&Section<'_>| section.label == ENCRYPTED_KEY || section.text.contains(ENCRYPTED_LINE);
    if let Some(Section { line, .. }) = sections.iter().find(is_encrypted) {
        return Err(format!("line {line}: this private key is encrypted; nobody can type its passphrase here"));
    }
    let mut keys = sections.iter().filter(|section| KEYS.contains(&section.label));
    let Some(key) = keys.next() else { return Err(none_of("private key", &sections)) };
    if let Some(Section { line, .. }) = keys.next() {
        return Err(format!("line {line}: this is a second private key, and only one can be used"));
    }
    PrivateKeyDer::from_pem_slice(key.text.as_bytes())
        .map_err(|_| format!("line {}: this private key is not valid PEM", key.line))
}

/// Describes a file that does not have what it is for. Says what it has, because two settings may be mixed up.
fn none_of(wanted: &str, sections: &[Section<'_>]) -> String {
    match sections.first() {
        Some(Section { line, label, .. }) => format!("holds no {wanted}; line {line} begins a {label}"),
        None => format!("holds no {wanted}: there is no line such as -----BEGIN {}-----", wanted.to_uppercase()),
    }
}

fn sections(text: &str) -> Result<Vec<Section<'_>>, String> {
    let mut sections = Vec::new();
    let mut begun: Option<(usize, &str, usize)> = None;
    let mut offset = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let (start, end) = (offset, offset + line.len());
        offset = end;
        let boundary = |word: &str| line.trim_end().strip_prefix(word)?.strip_suffix("-----");
        match (boundary("-----BEGIN "), boundary("-----END "), begun) {
            (Some(label), _, None) => begun = Some((number, label, start)),
            (Some(_), _, Some((earlier, label, _))) => return Err(unended(earlier, label)),
            (_, Some(label), Some((first, open, from))) if label == open => {
                sections.push(Section { line: first, label, text: &text[from..end] });
                begun = None;
            }
            (_, Some(label), _) => return Err(format!("line {number}: this ends a {label} that was not begun")),
            (None, None, _) => {}
        }
    }
    match begun {
        Some((line, label, _)) => Err(unended(line, label)),
        None => Ok(sections),
    }
}

fn unended(line: usize, label: &str) -> String {
    format!("line {line}: this begins a {label} that does not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
    const CERT: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    #[test]
    fn each_certificate_has_its_line_and_what_is_around_it_does_not_matter() {
        let text = format!("subject = x\n{CERT}{KEY}\nissuer = y\r\n{}", CERT.replace('\n', "\r\n"));
        let lines: Vec<_> = certificates(&text).expect("good").into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [2, 10]);
        assert!(private_key(&text).is_ok());
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        let broken = CERT.replace("MAA=", "M*A=");
        let old = KEY.replace("PRIVATE KEY-----\nMAA", "PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nMAA");
        for (text, certificate, key) in [
            ("", "holds no certificate: there is no line", "holds no private key: there is no line"),
            (KEY, "holds no certificate; line 1 begins a PRIVATE KEY", ""),
            (CERT, "", "holds no private key; line 1 begins a CERTIFICATE"),
            (&format!("\n\n{broken}"), "line 3: this certificate is not valid PEM", "holds no private key; line 3"),
            (&CERT[..40], "line 1: this begins a CERTIFICATE that does not end", "line 1"),
            (&format!("{}{CERT}", &CERT[..33]), "line 1: this begins a CERTIFICATE that does not end", "line 1"),
            ("x\n-----END CERTIFICATE-----", "line 2: this ends a CERTIFICATE that was not begun", "line 2"),
            (&format!("{KEY}{KEY}"), "holds no certificate", "line 4: this is a second private key"),
            (&KEY.replace("MAA=", "M*A="), "holds no certificate", "line 1: this private key is not valid PEM"),
            (&KEY.replace("PRIVATE", "ENCRYPTED PRIVATE"), "holds no certificate", "line 1: this private key is encr"),
            (&old, "holds no certificate", "line 1: this private key is encrypted"),
        ] {
            let told = [certificates(text).err().unwrap_or_default(), private_key(text).err().unwrap_or_default()];
            assert!(told[0].starts_with(certificate) && told[0].is_empty() == certificate.is_empty(), "{told:?}");
            assert!(told[1].starts_with(key) && told[1].is_empty() == key.is_empty(), "{told:?}");
        }
    }
}
