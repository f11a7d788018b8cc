//! Whom a webhook's client trusts, and how a refused certificate is told.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::pki::{self, Leaf};

/// TLS settings for a `caBundle` (base64 of PEM, as in the API); an empty one trusts what the host trusts. `leaf` is
/// shown to those who ask.
pub(super) fn config(bundle: &str, leaf: Option<&Leaf>) -> Result<Arc<rustls::ClientConfig>, String> {
    use base64::Engine as _;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    let mut pinned = Vec::new();
    if bundle.is_empty() {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    } else {
        let pem = base64::engine::general_purpose::STANDARD
            .decode(bundle)
            .map_err(|_| "unable to load root certificates: illegal base64 data".to_string())?;
        for certificate in CertificateDer::pem_slice_iter(&pem).flatten() {
            if roots.add(certificate.clone()).is_ok() {
                pinned.push(certificate);
            }
        }
        if pinned.is_empty() {
            return Err("unable to load root certificates: unable to parse bytes as PEM block".into());
        }
    }
    let verifier: Arc<dyn ServerCertVerifier> = if roots.is_empty() {
        Arc::new(Nobody(provider.clone()))
    } else {
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| format!("unable to load root certificates: {error}"))?;
        Arc::new(Verifier { inner, pinned })
    };
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match leaf {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let certificates = pki::certificates(&leaf.cert_pem).map_err(|error| error.to_string())?;
            let key = pki::private_key(&leaf.key_pem).map_err(|error| error.to_string())?;
            builder.with_client_auth_cert(certificates, key).map_err(|error| error.to_string())?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The usual verification, and beside it: a server may show the very certificate that is trusted, even when that is
/// marked as a CA, which self-signed certificates of webhooks often are.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.pinned.iter().any(|pinned| pinned.as_ref() == end_entity.as_ref()) {
            check_validity(end_entity, now)?;
            rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn check_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let bad = |error: CertificateError| rustls::Error::InvalidCertificate(error);
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate.as_ref())
        .map_err(|_| bad(CertificateError::BadEncoding))?;
    let validity = parsed.validity();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now > validity.not_after.timestamp() {
        return Err(bad(CertificateError::Expired));
    }
    if now < validity.not_before.timestamp() {
        return Err(bad(CertificateError::NotValidYet));
    }
    Ok(())
}

/// A host that trusts nobody.
#[derive(Debug)]
struct Nobody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Nobody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A failed handshake in the words of Go's `crypto/tls`.
pub(super) fn explain(error: &std::io::Error, name: &ServerName<'_>) -> String {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return if error.kind() == std::io::ErrorKind::UnexpectedEof {
            "EOF".into()
        } else {
            error.to_string()
        };
    };
    let wrong = |text: String| format!("tls: failed to verify certificate: x509: {text}");
    match tls {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                wrong("certificate signed by unknown authority".into())
            }
            CertificateError::NotValidForName => {
                wrong(format!("certificate is not valid for {}", name.to_str()))
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                let presented: Vec<&str> = presented.iter().map(|shown| plain(shown)).collect();
                wrong(format!("certificate is valid for {}, not {}", presented.join(", "), name.to_str()))
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                wrong("certificate has expired or is not yet valid".into())
            }
            other => wrong(other.to_string()),
        },
        rustls::Error::InvalidMessage(_) => "tls: first record does not look like a TLS handshake".into(),
        rustls::Error::AlertReceived(alert) => format!("remote error: tls: {alert:?}"),
        other => other.to_string(),
    }
}

/// The name in `DnsName("a.example")`.
fn plain(shown: &str) -> &str {
    shown.split('"').nth(1).unwrap_or(shown)
}
