//! What a connection's client certificate proves: a user of the client CA, or an authenticating proxy.
//!
//! The handshake only checks that the client has the certificate's key. Who signed it is checked once per connection,
//! because there are two authorities, and because a certificate of neither is answered with 401, not with a broken
//! connection.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{UserInfo, user_of_certificate};
use crate::pki::{self, PkiError};

/// What a connection has proved.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// The user of a certificate of the client CA.
    pub user: Option<UserInfo>,
    /// Common name of a certificate of the proxies' CA.
    pub proxy: Option<String>,
    /// A certificate was shown that nobody known has signed.
    pub refused: bool,
    /// Where the connection comes from.
    pub address: Option<std::net::IpAddr>,
}

/// Knows the two authorities.
#[derive(Clone)]
pub struct Authorities {
    clients: Option<Arc<dyn ClientCertVerifier>>,
    proxies: Option<Arc<dyn ClientCertVerifier>>,
}

fn verifier(pem: &str) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in pki::certificates(pem)? {
        roots.add(certificate)?;
    }
    WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
        .build()
        .map_err(|error| PkiError::Pem(format!("client CA: {error}")))
}

impl Authorities {
    /// From the PEM texts of the client CA and of the proxies' CA.
    pub fn new(clients: Option<&str>, proxies: Option<&str>) -> Result<Authorities, PkiError> {
        Ok(Authorities {
            clients: clients.map(verifier).transpose()?,
            proxies: proxies.map(verifier).transpose()?,
        })
    }

    /// What a chain of certificates proves, now.
    pub fn peer(&self, chain: Option<&[CertificateDer<'_>]>) -> Peer {
        let Some([leaf, intermediates @ ..]) = chain else { return Peer::default() };
        let signed = |by: &Option<Arc<dyn ClientCertVerifier>>| {
            by.as_ref().is_some_and(|by| by.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok())
        };
        let (user, proxy) = (signed(&self.clients), signed(&self.proxies));
        let identity = user_of_certificate(leaf);
        Peer {
            proxy: identity.as_ref().filter(|_| proxy).map(|user| user.name.clone()),
            refused: !user && !proxy,
            user: identity.filter(|_| user),
            address: None,
        }
    }
}

/// The verifier of the handshake: any certificate, if the client has its key.
#[derive(Debug)]
pub struct HasKey(pub Arc<CryptoProvider>);

impl ClientCertVerifier for HasKey {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pki::{CertificateAuthority, Subject};

    #[test]
    fn who_signed_what() {
        let (clients, proxies, stranger) = (
            CertificateAuthority::generate("clients").unwrap(),
            CertificateAuthority::generate("proxies").unwrap(),
            CertificateAuthority::generate("stranger").unwrap(),
        );
        let authorities = Authorities::new(Some(clients.cert_pem()), Some(proxies.cert_pem())).unwrap();
        let peer = |ca: &CertificateAuthority, name: &str| {
            let leaf = ca.issue(&Subject::client(name, &["g"]), 1).unwrap();
            authorities.peer(Some(&pki::certificates(&leaf.cert_pem).unwrap()))
        };
        let jane = peer(&clients, "jane");
        assert_eq!((jane.user.unwrap().name.as_str(), jane.proxy, jane.refused), ("jane", None, false));
        let front = peer(&proxies, "front");
        assert_eq!((front.user, front.proxy.as_deref(), front.refused), (None, Some("front"), false));
        assert!(peer(&stranger, "mallory").refused);
        assert!(!authorities.peer(None).refused);
    }
}
