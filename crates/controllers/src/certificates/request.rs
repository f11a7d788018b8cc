//! What a certificate signing request asks for, and whether it is one that a kubelet makes.

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

use super::der::requested_extensions;

/// The parts of a PKCS#10 request that rules speak of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
    pub(super) dns_names: usize,
    pub(super) ip_addresses: usize,
    pub(super) emails: usize,
    pub(super) uris: usize,
}

impl Parsed {
    /// Reads the PEM text of `spec.request`.
    pub(super) fn read(pem: &[u8]) -> Result<Self, String> {
        let (_, block) = parse_x509_pem(pem).map_err(|error| error.to_string())?;
        if block.label != "CERTIFICATE REQUEST" {
            return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
        }
        let (_, request) =
            X509CertificationRequest::from_der(&block.contents).map_err(|error| error.to_string())?;
        let subject = &request.certification_request_info.subject;
        let text = |part: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            part.as_str().unwrap_or_default().to_owned()
        };
        let mut parsed = Self {
            common_name: subject.iter_common_name().next().map(text).unwrap_or_default(),
            organizations: subject.iter_organization().map(text).collect(),
            ..Self::default()
        };
        for extension in requested_extensions(&request) {
            let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
                continue;
            };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(_) => parsed.dns_names += 1,
                    GeneralName::IPAddress(_) => parsed.ip_addresses += 1,
                    GeneralName::RFC822Name(_) => parsed.emails += 1,
                    GeneralName::URI(_) => parsed.uris += 1,
                    _ => {}
                }
            }
        }
        Ok(parsed)
    }
}

/// A kind of request that is approved without an administrator.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Recognised {
    /// What RBAC must allow to create.
    pub(super) subresource: &'static str,
    pub(super) message: &'static str,
}

const SELF_CLIENT: Recognised = Recognised {
    subresource: "selfnodeclient",
    message: "Auto approving self kubelet client certificate after SubjectAccessReview.",
};
const CLIENT: Recognised = Recognised {
    subresource: "nodeclient",
    message: "Auto approving kubelet client certificate after SubjectAccessReview.",
};

/// The kinds that a request is of, the narrower first.
pub(super) fn recognise(spec: &CertificateSigningRequestSpec, parsed: &Parsed) -> Vec<Recognised> {
    if spec.signer_name != "kubernetes.io/kube-apiserver-client-kubelet"
        || kubelet_client(spec, parsed).is_some()
    {
        return Vec::new();
    }
    if spec.username.as_ref() == Some(&parsed.common_name) { vec![SELF_CLIENT, CLIENT] } else { vec![CLIENT] }
}

/// Whether the usages are `required`, with or without the key encipherment that only RSA keys need.
fn has_usages(spec: &CertificateSigningRequestSpec, required: [&str; 2]) -> bool {
    let usages = spec.usages.as_deref().unwrap_or_default();
    let known = |usage: &String| usage == "key encipherment" || required.contains(&usage.as_str());
    usages.iter().all(known) && required.iter().all(|usage| usages.iter().any(|used| used == usage))
}

/// What is wrong with a request for a kubelet's client certificate.
pub(super) fn kubelet_client(spec: &CertificateSigningRequestSpec, parsed: &Parsed) -> Option<&'static str> {
    if parsed.organizations != ["system:nodes"] {
        Some("subject organization is not system:nodes")
    } else if parsed.dns_names > 0 {
        Some("DNS subjectAltNames are not allowed")
    } else if parsed.emails > 0 {
        Some("Email subjectAltNames are not allowed")
    } else if parsed.ip_addresses > 0 {
        Some("IP subjectAltNames are not allowed")
    } else if parsed.uris > 0 {
        Some("URI subjectAltNames are not allowed")
    } else if !parsed.common_name.starts_with("system:node:") {
        Some("subject common name does not begin with system:node:")
    } else if !has_usages(spec, ["digital signature", "client auth"]) {
        Some("usages did not match [digital signature client auth]")
    } else {
        None
    }
}

/// What is wrong with a request for a kubelet's serving certificate.
pub(super) fn kubelet_serving(spec: &CertificateSigningRequestSpec, parsed: &Parsed) -> Option<&'static str> {
    if parsed.organizations != ["system:nodes"] {
        Some("subject organization is not system:nodes")
    } else if parsed.dns_names == 0 && parsed.ip_addresses == 0 {
        Some("DNS or IP subjectAltName is required")
    } else if parsed.emails > 0 {
        Some("Email subjectAltNames are not allowed")
    } else if parsed.uris > 0 {
        Some("URI subjectAltNames are not allowed")
    } else if !has_usages(spec, ["digital signature", "server auth"]) {
        Some("usages did not match [digital signature server auth]")
    } else if !parsed.common_name.starts_with("system:node:") {
        Some("subject common name does not begin with system:node:")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;
    use serde_json::json;

    #[test]
    fn kubelets_are_recognised() {
        let check = |what: &str, user: &str, usages: &[&str], parsed: Parsed, expected: &[&str]| {
            let spec: CertificateSigningRequestSpec =
                object(json!({"username": user, "usages": usages, "request": "",
                "signerName": "kubernetes.io/kube-apiserver-client-kubelet"}));
            let seen: Vec<_> = recognise(&spec, &parsed).iter().map(|kind| kind.subresource).collect();
            assert_eq!(seen, expected, "{what}");
        };
        let kubelet = || Parsed {
            common_name: "system:node:n1".to_owned(),
            organizations: vec!["system:nodes".to_owned()],
            ..Parsed::default()
        };
        let usages = ["digital signature", "client auth"];
        check("renewal", "system:node:n1", &usages, kubelet(), &["selfnodeclient", "nodeclient"]);
        check("bootstrap", "system:bootstrap:x", &usages, kubelet(), &["nodeclient"]);
        check(
            "rsa",
            "x",
            &["key encipherment", "digital signature", "client auth"],
            kubelet(),
            &["nodeclient"],
        );
        check("serving", "x", &["digital signature", "server auth"], kubelet(), &[]);
        check("too much", "x", &["digital signature", "client auth", "server auth"], kubelet(), &[]);
        check("named", "x", &usages, Parsed { dns_names: 1, ..kubelet() }, &[]);
        check(
            "admin",
            "x",
            &usages,
            Parsed { organizations: vec!["system:masters".to_owned()], ..kubelet() },
            &[],
        );
        check("person", "x", &usages, Parsed { common_name: "alice".to_owned(), ..kubelet() }, &[]);
    }
}
