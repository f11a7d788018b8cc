//! Signs requests with the cluster's CA.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use rcgen::KeyPair;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

use super::der::{self, Certificate};
use super::request::{Parsed, kubelet_client, kubelet_serving};

/// The signers of Kubernetes itself.
pub(super) const SIGNERS: [&str; 4] = [
    "kubernetes.io/kube-apiserver-client",
    "kubernetes.io/kube-apiserver-client-kubelet",
    "kubernetes.io/kubelet-serving",
    "kubernetes.io/legacy-unknown",
];
/// The clocks of those who verify may be so far behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Certificates that live shorter end when they were asked to, although they begin before they were asked for.
const SHORT: Duration = Duration::from_secs(8 * 3600);
const SHORTEST: Duration = Duration::from_secs(10 * 60);

/// The CA that signs requests (`--cluster-signing-cert-file`, `-key-file`, `-duration`).
#[derive(Clone)]
pub struct Signing {
    /// Its certificate, as PEM.
    pub cert_pem: String,
    /// Its private key, as PEM.
    pub key_pem: String,
    /// How long certificates live that do not say, and at most.
    pub duration: Duration,
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signing").field("duration", &self.duration).finish_non_exhaustive()
    }
}

/// Why there is no certificate.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The request is not one this signer signs, and never will be.
    Invalid(String),
    /// Signing failed.
    Signing(String),
}

/// What is wrong with a request, by the rules of its signer.
fn invalid(spec: &CertificateSigningRequestSpec, parsed: &Parsed) -> Option<String> {
    let used = spec.usages.as_deref().unwrap_or_default();
    match spec.signer_name.as_str() {
        "kubernetes.io/kube-apiserver-client" => {
            let allowed = ["digital signature", "key encipherment", "client auth"];
            let client = used.iter().any(|usage| usage == "client auth");
            let rest = used.iter().all(|usage| allowed.contains(&usage.as_str()));
            (!client || !rest).then(|| format!("invalid usage for client certificate: {}", used.join(",")))
        }
        "kubernetes.io/kube-apiserver-client-kubelet" => kubelet_client(spec, parsed).map(str::to_owned),
        "kubernetes.io/kubelet-serving" => kubelet_serving(spec, parsed).map(str::to_owned),
        _ => None,
    }
}

/// The certificate for a request, as PEM.
pub(super) fn certificate(
    spec: &CertificateSigningRequestSpec,
    signing: &Signing,
    now: Timestamp,
) -> Result<String, Refusal> {
    let parsed = Parsed::read(&spec.request.0).map_err(Refusal::Invalid)?;
    if let Some(why) = invalid(spec, &parsed) {
        return Err(Refusal::Invalid(why));
    }
    let broken = |what: &str| Refusal::Signing(format!("the cluster's CA: {what}"));
    let key = KeyPair::from_pem(&signing.key_pem).map_err(|error| broken(&error.to_string()))?;
    let (_, ca) = parse_x509_pem(signing.cert_pem.as_bytes()).map_err(|error| broken(&error.to_string()))?;
    let ca = ca.parse_x509().map_err(|error| broken(&error.to_string()))?;
    let unreadable = |error: String| Refusal::Invalid(format!("unable to parse csr: {error}"));
    let (_, block) = parse_x509_pem(&spec.request.0).map_err(|error| unreadable(error.to_string()))?;
    let (_, request) =
        X509CertificationRequest::from_der(&block.contents).map_err(|error| unreadable(error.to_string()))?;

    let asked = spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let longest = signing.duration.max(SHORTEST);
    let lives = asked.map_or(longest, |seconds| Duration::from_secs(seconds).clamp(SHORTEST, longest));
    let ends = now + if lives < SHORT { lives } else { lives.saturating_sub(BACKDATE) };
    let ca_ends = Timestamp::from_second(ca.validity().not_after.timestamp()).unwrap_or(Timestamp::MAX);
    let usages = der::Usages::read(spec.usages.as_deref().unwrap_or_default()).map_err(Refusal::Invalid)?;
    let certificate = Certificate {
        request: &request,
        issuer: &ca,
        not_before: now - BACKDATE,
        not_after: ends.min(ca_ends),
        usages,
    };
    certificate.sign(&key).map_err(Refusal::Signing)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, SigningKey};

    fn authority() -> Signing {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "ca");
        Signing {
            cert_pem: params.self_signed(&key).unwrap().pem(),
            key_pem: key.serialize_pem(),
            duration: Duration::from_secs(365 * 24 * 3600),
        }
    }

    fn spec(
        signer: &str,
        name: &str,
        groups: &[&str],
        usages: &[&str],
        dns: &[&str],
        seconds: Option<i32>,
    ) -> CertificateSigningRequestSpec {
        let names: Vec<String> = dns.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        // rcgen has one value for each kind of name: the second goes by its number.
        let kinds = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
        for (group, kind) in groups.iter().zip(kinds) {
            params.distinguished_name.push(kind, *group);
        }
        let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        CertificateSigningRequestSpec {
            request: k8s_openapi::ByteString(request.into_bytes()),
            signer_name: format!("kubernetes.io/{signer}"),
            usages: Some(usages.iter().map(|usage| (*usage).to_owned()).collect()),
            expiration_seconds: seconds,
            ..CertificateSigningRequestSpec::default()
        }
    }

    const CLIENT: [&str; 2] = ["digital signature", "client auth"];
    const SERVER: [&str; 2] = ["digital signature", "server auth"];
    const KUBELET: &str = "kube-apiserver-client-kubelet";
    const NODES: [&str; 1] = ["system:nodes"];

    #[test]
    fn signers_refuse_what_is_not_theirs() {
        let (ca, now) = (authority(), Timestamp::now());
        let check = |spec: CertificateSigningRequestSpec, expected: &str| {
            assert_eq!(certificate(&spec, &ca, now), Err(Refusal::Invalid(expected.to_owned())));
        };
        let why = "invalid usage for client certificate: digital signature,server auth";
        check(spec("kube-apiserver-client", "alice", &["dev"], &SERVER, &[], None), why);
        let why = "subject common name does not begin with system:node:";
        check(spec(KUBELET, "n", &NODES, &CLIENT, &[], None), why);
        let why = "subject organization is not system:nodes";
        check(spec(KUBELET, "system:node:n", &["system:nodes", "more"], &CLIENT, &[], None), why);
        let why = "DNS or IP subjectAltName is required";
        check(spec("kubelet-serving", "system:node:n", &NODES, &SERVER, &[], None), why);
    }

    #[test]
    fn certificates_say_what_was_asked_for() {
        let (ca, now) = (authority(), Timestamp::now());
        let check = |spec: CertificateSigningRequestSpec, subject: &str, lives: i64| {
            let pem = certificate(&spec, &ca, now).unwrap();
            let (_, block) = parse_x509_pem(pem.as_bytes()).unwrap();
            let certificate = block.parse_x509().unwrap();
            assert_eq!(
                (certificate.issuer().to_string(), certificate.subject().to_string().as_str()),
                ("CN=ca".into(), subject)
            );
            assert_eq!(certificate.validity().not_before.timestamp(), now.as_second() - 300);
            assert_eq!(certificate.validity().not_after.timestamp(), now.as_second() + lives);
            assert!(!certificate.is_ca());
            pem
        };
        check(
            spec("kube-apiserver-client", "alice", &["dev", "ops"], &CLIENT, &[], Some(3600)),
            "CN=alice, O=dev, O=ops",
            3600,
        );
        check(spec("kube-apiserver-client", "alice", &[], &CLIENT, &[], Some(1)), "CN=alice", 600);
        check(
            spec(KUBELET, "system:node:n", &NODES, &CLIENT, &[], None),
            "CN=system:node:n, O=system:nodes",
            365 * 24 * 3600 - 300,
        );
        check(
            spec("legacy-unknown", "x", &["y"], &["code signing", "any"], &["z"], Some(86400)),
            "CN=x, O=y",
            86100,
        );
        let asked =
            spec("kubelet-serving", "system:node:n", &NODES, &SERVER, &["n.example.com"], Some(86400));
        let pem = check(asked, "CN=system:node:n, O=system:nodes", 86100);

        let (_, block) = parse_x509_pem(pem.as_bytes()).unwrap();
        let certificate = block.parse_x509().unwrap();
        let (_, block) = parse_x509_pem(ca.cert_pem.as_bytes()).unwrap();
        certificate.verify_signature(Some(block.parse_x509().unwrap().public_key())).unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names[0].to_string(), "DNSName(n.example.com)");
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_encipherment());
        let extended = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && !extended.client_auth);
        assert!(KeyPair::generate().unwrap().sign(b"").is_ok());
    }

    #[test]
    fn every_kind_of_ca_key_signs() {
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
        {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let params = CertificateParams::default();
            let cert_pem = params.self_signed(&key).unwrap().pem();
            let ca = Signing { cert_pem, key_pem: key.serialize_pem(), duration: Duration::from_secs(3600) };
            let pem = certificate(&spec("legacy-unknown", "x", &[], &[], &[], None), &ca, Timestamp::now())
                .unwrap();
            let (_, block) = parse_x509_pem(pem.as_bytes()).unwrap();
            let (_, ca) = parse_x509_pem(ca.cert_pem.as_bytes()).unwrap();
            let ca = ca.parse_x509().unwrap();
            block.parse_x509().unwrap().verify_signature(Some(ca.public_key())).unwrap();
        }
    }
}
