//! TLS of the gRPC port: certificate and key from PEM files, and the names in a client's certificate.
//!
//! TLS 1.3 only: every gRPC library of the last five years has it, and it has no weak options that an operator must
//! turn off. With a client CA (mTLS), a client without a certificate of that CA fails the handshake. The access file
//! says what the names in a client's certificate may do.
//!
//! Left out: reading the files again when they change (`credentials`), and the handshake itself (`incoming`).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use webpki::EndEntityCert;

use crate::net::secret_file::{self, Maker, SecretFileProblem};

/// The paths of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Our certificate, and the certificates between it and its CA.
    pub cert: PathBuf,
    /// The private key of our certificate.
    pub key: PathBuf,
    /// The CA of the certificates that clients must have. `None`: clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// The most bytes of a file with a key or certificates. A bundle of many CAs has some hundred KiB.
const MAX_BYTES: u64 = 1024 * 1024;

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {problem}", path.display())]
pub struct TlsError {
    what: &'static str,
    path: PathBuf,
    problem: TlsProblem,
}

/// The problem of a file.
#[derive(Debug, thiserror::Error)]
enum TlsProblem {
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Secret(#[from] SecretFileProblem),
    #[error("is longer than 1 MiB, which no file of certificates needs; name a PEM file")]
    TooLong,
    #[error("is not a PEM file: {0}")]
    Pem(rustls::pki_types::pem::Error),
    #[error("holds no certificate (BEGIN CERTIFICATE)")]
    NoCertificate,
    #[error("holds no private key (BEGIN PRIVATE KEY)")]
    NoKey,
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("cannot verify clients: {0}")]
    Clients(#[from] rustls::server::VerifierBuilderError),
}

/// Reads the files and returns the configuration of a TLS server.
pub fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let error = |what, path: &Path| {
        let path = path.to_owned();
        move |problem| TlsError { what, path, problem }
    };
    let chain = certificates(&files.cert).map_err(error("the certificate", &files.cert))?;
    let key = private_key(&files.key).map_err(error("the private key", &files.key))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|problem| error("the certificate", &files.cert)(problem.into()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let error = error("the client CA", path);
            let roots = || {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                Ok(verifier.build()?)
            };
            builder.with_client_cert_verifier(roots().map_err(error)?)
        }
    };
    // Fails if the key does not belong to the certificate.
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|problem| error("the private key", &files.key)(problem.into()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsProblem> {
    use std::io::Read as _;
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(TlsProblem::TooLong);
    }
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(TlsProblem::Pem)?;
    if found.is_empty() { Err(TlsProblem::NoCertificate) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsProblem> {
    let text = secret_file::read(path, Maker::Operator, MAX_BYTES)?;
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => TlsProblem::NoKey,
        error => TlsProblem::Pem(error),
    })
}

/// Returns the URI and DNS names in a certificate that was verified. Returns none if the certificate cannot be parsed.
#[must_use]
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    certificate.valid_uri_names().chain(certificate.valid_dns_names()).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use rcgen::{CertificateParams, KeyPair, SanType, string::Ia5String};

    use super::*;

    #[test]
    fn files_that_do_not_fit_are_named_with_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let keys = [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()];
        let certificate =
            CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&keys[0]).unwrap();
        let file = |name: &str, text: &str, mode| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let cert = file("cert", &certificate.pem(), 0o644);
        let key = file("key", &keys[0].serialize_pem(), 0o600);
        let empty = file("empty", "", 0o600);
        let broken = file("broken", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", 0o600);
        let garbage = file("garbage", &certificate.pem().replace("MII", "AAA"), 0o600);
        let open = file("open", &keys[0].serialize_pem(), 0o644);
        let other = file("other", &keys[1].serialize_pem(), 0o600);
        let missing = dir.path().join("missing");
        let none = None;
        load(&TlsFiles { cert: cert.clone(), key: key.clone(), client_ca: None }).unwrap();
        load(&TlsFiles { cert: cert.clone(), key: key.clone(), client_ca: Some(cert.clone()) }).unwrap();
        for (cert, key, client_ca, expected) in [
            (&missing, &key, &none, ["the certificate", "missing", "cannot be read"]),
            (&empty, &key, &none, ["the certificate", "empty", "no certificate"]),
            (&broken, &key, &none, ["the certificate", "broken", "not a PEM file"]),
            (&garbage, &key, &none, ["the private key", "key", ""]),
            (&cert, &missing, &none, ["the private key", "missing", "no such file"]),
            (&cert, &empty, &none, ["the private key", "empty", "no private key"]),
            (&cert, &cert, &none, ["the private key", "cert", "open to others"]),
            (&cert, &open, &none, ["the private key", "open", "chmod 600"]),
            (&cert, &other, &none, ["the private key", "other", ""]),
            (&cert, &key, &Some(key.clone()), ["the client CA", "key", "no certificate"]),
            (&cert, &key, &Some(garbage.clone()), ["the client CA", "garbage", ""]),
        ] {
            let files = TlsFiles { cert: cert.clone(), key: key.clone(), client_ca: client_ca.clone() };
            let error = load(&files).unwrap_err().to_string();
            for part in expected {
                assert!(error.contains(part), "{files:?}: {part:?} not in {error:?}");
            }
            assert!(!error.contains("PRIVATE KEY-----"), "{error}");
        }
    }

    #[test]
    fn a_certificate_says_its_names() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["node.example".to_owned()]).unwrap();
        let uri = Ia5String::try_from("spiffe://example/node").unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        let certificate = params.self_signed(&key).unwrap();
        assert_eq!(names(certificate.der()), ["spiffe://example/node", "node.example"]);
        assert!(names(&CertificateDer::from(vec![1, 2, 3])).is_empty());
    }
}
