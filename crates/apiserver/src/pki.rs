//! The cluster's certificates and keys: one CA kept in the data directory, and leaf certificates signed by it.
//!
//! It knows nothing of HTTP. Certificates are ECDSA P-256 (what `ring` can generate); keys read from
//! files may be of any kind rustls understands.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

/// What can go wrong with certificates and keys.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A certificate could not be made or parsed.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A PEM file holds something else than it should.
    #[error("{0}")]
    Pem(String),
    /// rustls refused the certificates.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A certificate and its private key, both as PEM text.
#[derive(Clone)]
pub struct Leaf {
    /// `CERTIFICATE` block(s).
    pub cert_pem: String,
    /// `PRIVATE KEY` block.
    pub key_pem: String,
}

/// A certificate authority that can sign.
pub struct CertificateAuthority {
    cert_pem: String,
    key_pem: String,
}

/// Who a leaf certificate speaks for.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Common name: the user name of a client certificate.
    pub common_name: String,
    /// Organizations: the groups of a client certificate.
    pub organizations: Vec<String>,
    /// DNS names and IP addresses of a serving certificate.
    pub alt_names: Vec<String>,
    /// Whether the leaf may be used by a server.
    pub server: bool,
    /// Whether the leaf may be used by a client.
    pub client: bool,
}

impl Subject {
    /// A client identity.
    pub fn client(common_name: &str, organizations: &[&str]) -> Subject {
        Subject {
            common_name: common_name.to_string(),
            organizations: organizations.iter().map(|s| s.to_string()).collect(),
            client: true,
            ..Subject::default()
        }
    }

    /// A server identity for these DNS names and addresses.
    pub fn server(common_name: &str, alt_names: Vec<String>) -> Subject {
        Subject { common_name: common_name.to_string(), alt_names, server: true, ..Subject::default() }
    }
}

fn read(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| PkiError::File { path: path.to_path_buf(), source })
}

/// Writes a file so that a crash leaves either the old or the new content; `secret` files are 0600.
pub fn write_file(path: &Path, content: &str, secret: bool) -> Result<(), PkiError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let fail = |source| PkiError::File { path: path.to_path_buf(), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(fail)?;
    }
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(if secret { 0o600 } else { 0o644 })
        .open(&temporary)
        .map_err(fail)?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(fail)
}

impl CertificateAuthority {
    /// Makes a new authority, valid for ten years.
    pub fn generate(common_name: &str) -> Result<CertificateAuthority, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name = name(common_name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, 3650);
        let cert = params.self_signed(&key)?;
        Ok(CertificateAuthority { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// Takes an authority from PEM texts.
    pub fn from_pem(cert_pem: String, key_pem: String) -> Result<CertificateAuthority, PkiError> {
        let ca = CertificateAuthority { cert_pem, key_pem };
        ca.issuer()?;
        Ok(ca)
    }

    /// Reads `<dir>/<name>.crt` and `.key`, or makes them.
    pub fn load_or_generate(
        dir: &Path,
        file: &str,
        common_name: &str,
    ) -> Result<CertificateAuthority, PkiError> {
        let (cert, key) = (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
        if cert.exists() && key.exists() {
            return CertificateAuthority::from_pem(read(&cert)?, read(&key)?);
        }
        let ca = CertificateAuthority::generate(common_name)?;
        write_file(&key, &ca.key_pem, true)?;
        write_file(&cert, &ca.cert_pem, false)?;
        Ok(ca)
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, PkiError> {
        Ok(Issuer::from_ca_cert_pem(&self.cert_pem, KeyPair::from_pem(&self.key_pem)?)?)
    }

    /// The authority's certificate as PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Its private key, for those who sign on its behalf.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Signs a new leaf that lives `days` days.
    pub fn issue(&self, subject: &Subject, days: i64) -> Result<Leaf, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name = name(&subject.common_name, &subject.organizations);
        for alt in &subject.alt_names {
            params.subject_alt_names.push(match alt.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(alt.as_str().try_into()?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        if subject.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if subject.client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, days);
        let cert = params.signed_by(&key, &self.issuer()?)?;
        Ok(Leaf { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}

fn name(common_name: &str, organizations: &[String]) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    // rcgen keeps one value per type, which is enough for the identities the cluster itself issues.
    if let Some(organization) = organizations.first() {
        dn.push(DnType::OrganizationName, organization.as_str());
    }
    dn.push(DnType::CommonName, common_name);
    dn
}

fn validity(params: &mut CertificateParams, days: i64) {
    let now = std::time::SystemTime::now();
    let day = std::time::Duration::from_secs(86_400);
    // An hour back, so that a client whose clock is a little behind accepts it at once.
    params.not_before = (now - day / 24).into();
    params.not_after = (now + day * u32::try_from(days).unwrap_or(365)).into();
}

/// Certificates of a PEM text.
pub fn certificates(pem: &str) -> Result<Vec<rustls_pki_types::CertificateDer<'static>>, PkiError> {
    use rustls_pki_types::pem::PemObject as _;
    rustls_pki_types::CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| PkiError::Pem(format!("certificate: {error}")))
}

/// The private key of a PEM text.
pub fn private_key(pem: &str) -> Result<rustls_pki_types::PrivateKeyDer<'static>, PkiError> {
    use rustls_pki_types::pem::PemObject as _;
    rustls_pki_types::PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| PkiError::Pem(format!("private key: {error}")))
}

/// How a server speaks TLS.
#[derive(Default)]
pub struct ServerTls<'a> {
    /// Certificates for some server names, before the default one.
    pub named: Vec<(Vec<String>, Leaf)>,
    /// Whether TLS 1.2 is refused.
    pub tls13_only: bool,
    /// Cipher suites by their Go names; the default ones when empty.
    pub cipher_suites: &'a [String],
    /// Key exchanges by their IANA numbers; the default ones when empty.
    pub curves: &'a [u16],
    /// Whether HTTP/2 is not offered.
    pub http1_only: bool,
}

/// The chosen key exchanges in the order in which they were named.
fn curves(
    provider: &rustls::crypto::CryptoProvider,
    numbers: &[u16],
) -> Result<Vec<&'static dyn rustls::crypto::SupportedKxGroup>, PkiError> {
    let known = |number: &u16| {
        let found = provider.kx_groups.iter().find(|group| u16::from(group.name()) == *number);
        found.copied().ok_or_else(|| {
            let all: Vec<String> =
                provider.kx_groups.iter().map(|group| u16::from(group.name()).to_string()).collect();
            PkiError::Pem(format!("TLS curve {number} is not supported, use {}", all.join(", ")))
        })
    };
    numbers.iter().map(known).collect()
}

/// TLS settings of a server that asks for, but does not insist on, client certificates.
pub fn server_config(leaf: &Leaf, tls: &ServerTls<'_>) -> Result<rustls::ServerConfig, PkiError> {
    let mut provider = rustls::crypto::ring::default_provider();
    if !tls.cipher_suites.is_empty() {
        provider.cipher_suites = cipher_suites(&provider, tls.cipher_suites)?;
    }
    if !tls.curves.is_empty() {
        provider.kx_groups = curves(&provider, tls.curves)?;
    }
    let provider = std::sync::Arc::new(provider);
    let versions: &[&rustls::SupportedProtocolVersion] =
        if tls.tls13_only { &[&rustls::version::TLS13] } else { rustls::DEFAULT_VERSIONS };
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(std::sync::Arc::new(crate::authn::peer::HasKey(provider.clone())));
    let key_of = |leaf: &Leaf| -> Result<std::sync::Arc<rustls::sign::CertifiedKey>, PkiError> {
        let key = provider.key_provider.load_private_key(private_key(&leaf.key_pem)?)?;
        let certified = rustls::sign::CertifiedKey::new(certificates(&leaf.cert_pem)?, key);
        match certified.keys_match() {
            // Some kinds of keys cannot be compared.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(std::sync::Arc::new(certified))
    };
    let mut named = Vec::new();
    for (names, leaf) in &tls.named {
        let names = if names.is_empty() { names_of(&leaf.cert_pem)? } else { names.clone() };
        named.push((names, key_of(leaf)?));
    }
    let resolver = ByName { named, default: key_of(leaf)? };
    let mut config = builder.with_cert_resolver(std::sync::Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if tls.http1_only {
        config.alpn_protocols.remove(0);
    }
    Ok(config)
}

/// Chooses the certificate by the name the client asks for.
#[derive(Debug)]
struct ByName {
    named: Vec<(Vec<String>, std::sync::Arc<rustls::sign::CertifiedKey>)>,
    default: std::sync::Arc<rustls::sign::CertifiedKey>,
}

impl rustls::server::ResolvesServerCert for ByName {
    fn resolve(
        &self,
        hello: rustls::server::ClientHello<'_>,
    ) -> Option<std::sync::Arc<rustls::sign::CertifiedKey>> {
        let asked = hello.server_name().unwrap_or("").to_ascii_lowercase();
        let fits = |name: &String| match name.strip_prefix("*.") {
            Some(domain) => asked.split_once('.').is_some_and(|(_, rest)| rest == domain),
            None => *name == asked,
        };
        let found = self.named.iter().find(|(names, _)| names.iter().any(fits));
        Some(found.map_or(&self.default, |(_, key)| key).clone())
    }
}

/// DNS names of the first certificate of a PEM text.
fn names_of(pem: &str) -> Result<Vec<String>, PkiError> {
    use x509_parser::prelude::FromDer as _;
    let all = certificates(pem)?;
    let first = all.first().ok_or_else(|| PkiError::Pem("no certificate".to_string()))?;
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(first)
        .map_err(|error| PkiError::Pem(format!("certificate: {error}")))?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let dns = |name: &x509_parser::extensions::GeneralName<'_>| match name {
        x509_parser::extensions::GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    };
    Ok(names.map(|names| names.value.general_names.iter().filter_map(dns).collect()).unwrap_or_default())
}

/// The named suites, and those of TLS 1.3, which cannot be chosen in Go either.
fn cipher_suites(
    provider: &rustls::crypto::CryptoProvider,
    names: &[String],
) -> Result<Vec<rustls::SupportedCipherSuite>, PkiError> {
    // rustls says TLS13_AES_128_GCM_SHA256 where the registry (and Go) says TLS_AES_128_GCM_SHA256.
    let name_of =
        |suite: &rustls::SupportedCipherSuite| format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1);
    let go = |name: &str| name.trim().replace("_POLY1305_SHA256", "_POLY1305");
    for name in names {
        if !provider.cipher_suites.iter().any(|suite| go(&name_of(suite)) == go(name)) {
            let known: Vec<String> = provider.cipher_suites.iter().map(name_of).collect();
            return Err(PkiError::Pem(format!(
                "cipher suite {name} is not supported or doesn't exist; supported are {}",
                known.join(", ")
            )));
        }
    }
    let chosen = |suite: &&rustls::SupportedCipherSuite| {
        suite.tls13().is_some() || names.iter().any(|name| go(&name_of(suite)) == go(name))
    };
    Ok(provider.cipher_suites.iter().filter(chosen).copied().collect())
}

/// TLS settings of a client that trusts `ca_pem` and shows `leaf`.
pub fn client_config(ca_pem: &str, leaf: Option<&Leaf>) -> Result<rustls::ClientConfig, PkiError> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for cert in certificates(ca_pem)? {
        roots.add(cert)?;
    }
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(match leaf {
        Some(leaf) => {
            builder.with_client_auth_cert(certificates(&leaf.cert_pem)?, private_key(&leaf.key_pem)?)?
        }
        None => builder.with_no_client_auth(),
    })
}

/// A key pair for signing service account tokens (ES256), kept as `<dir>/<file>.key` (PKCS#8) and `.pub`.
pub fn load_or_generate_signing_key(dir: &Path, file: &str) -> Result<Leaf, PkiError> {
    let (public, private) = (dir.join(format!("{file}.pub")), dir.join(format!("{file}.key")));
    if public.exists() && private.exists() {
        return Ok(Leaf { cert_pem: read(&public)?, key_pem: read(&private)? });
    }
    let leaf = generate_signing_key()?;
    write_file(&private, &leaf.key_pem, true)?;
    write_file(&public, &leaf.cert_pem, false)?;
    Ok(leaf)
}

/// A new signing key: `cert_pem` is the public key's `PUBLIC KEY` block.
pub fn generate_signing_key() -> Result<Leaf, PkiError> {
    let key = KeyPair::generate()?;
    Ok(Leaf { cert_pem: key.public_key_pem(), key_pem: key.serialize_pem() })
}

/// The text of a kubeconfig file with one cluster, one user and one context, all called `name`.
pub fn kubeconfig(name: &str, server: &str, ca_pem: &str, leaf: &Leaf) -> String {
    use base64::Engine as _;
    let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {name}\n  user:\n    client-certificate-data: {cert}\n    \
         client-key-data: {key}\ncontexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: {name}\n\
         current-context: {name}\n",
        ca = b64(ca_pem),
        cert = b64(&leaf.cert_pem),
        key = b64(&leaf.key_pem),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn authority_is_kept_and_signs() {
        let dir = tempfile::tempdir().unwrap();
        let first = CertificateAuthority::load_or_generate(dir.path(), "ca", "orlop-ca").unwrap();
        let second = CertificateAuthority::load_or_generate(dir.path(), "ca", "orlop-ca").unwrap();
        assert_eq!(first.cert_pem(), second.cert_pem());
        let server = second
            .issue(&Subject::server("kube-apiserver", vec!["127.0.0.1".into(), "localhost".into()]), 365)
            .unwrap();
        server_config(&server, &ServerTls::default()).unwrap();
        let admin = second.issue(&Subject::client("kubernetes-admin", &["system:masters"]), 365).unwrap();
        client_config(second.cert_pem(), Some(&admin)).unwrap();
        assert!(
            kubeconfig("orlop", "https://127.0.0.1:6443", second.cert_pem(), &admin)
                .contains("current-context")
        );
    }
}
