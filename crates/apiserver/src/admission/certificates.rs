//! The plugins of `certificates.k8s.io`: who may approve, sign and attest in a signer's name, and that nobody gets a
//! client certificate of `system:masters`.

use async_trait::async_trait;
use base64::Engine as _;
use orlop_api::equality;
use orlop_api::field::go_quote;
use orlop_api::status::ApiError;
use orlop_json::Value;

use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::authn::MASTERS;
use crate::authz::{Attributes, Decision};
use crate::registry::Registry;

const GROUP: &str = "certificates.k8s.io";
const CSRS: &str = "certificatesigningrequests";
/// Signs certificates of the API server's clients.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// Whether the user holds `verb` on the signer, or on all signers of its domain (`kubernetes.io/*`).
fn may(registry: &Registry, request: &Request<'_>, verb: &str, signer: &str) -> bool {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or(""));
    [signer, domain.as_str()].into_iter().any(|name| {
        let attributes =
            Attributes { name, ..Attributes::resource(request.call.user, verb, GROUP, "signers") };
        matches!(registry.authorizer.decide(&attributes), Decision::Allow(_))
    })
}

fn is_csr(request: &Request<'_>, subresource: &str) -> bool {
    let resource = request.call.resource;
    resource.group == GROUP && resource.plural == CSRS && request.call.subresource == subresource
}

/// Common name and organizations of a certificate request, the PEM text in base64 as the field holds it.
pub(super) fn subject_of(request: &str) -> Result<(String, Vec<String>), String> {
    use x509_parser::prelude::FromDer as _;
    let pem = base64::engine::general_purpose::STANDARD.decode(request).map_err(|error| error.to_string())?;
    let not_a_request = || "PEM block type must be CERTIFICATE REQUEST".to_string();
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).map_err(|_| not_a_request())?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(not_a_request());
    }
    let (_, csr) = x509_parser::certification_request::X509CertificationRequest::from_der(&block.contents)
        .map_err(|error| error.to_string())?;
    let subject = &csr.certification_request_info.subject;
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().unwrap_or_default().to_string()
    };
    let common_name = subject.iter_common_name().last().map(text).unwrap_or_default();
    Ok((common_name, subject.iter_organization().map(text).collect()))
}

pub(super) struct CertificateApproval;

#[async_trait]
impl Admission for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.operation == Operation::Update && is_csr(request, "approval")
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        // The stored signer counts: the request must not choose whom to ask.
        let signer = request.old.map_or("", |old| old["spec"].text("signerName"));
        if may(registry, request, "approve", signer) {
            return Ok(());
        }
        Err(request.forbidden(format!(
            "user not permitted to approve requests with signerName {}",
            go_quote(signer)
        )))
    }
}

pub(super) struct CertificateSigning;

#[async_trait]
impl Admission for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.operation == Operation::Update && is_csr(request, "status")
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let Some(old) = request.old else { return Ok(()) };
        let same = |field: &str| {
            equality::semantic_equal(
                request.object["status"].get(field).unwrap_or(&Value::Null),
                old["status"].get(field).unwrap_or(&Value::Null),
            )
        };
        let signer = old["spec"].text("signerName");
        if same("certificate") && same("conditions") || may(registry, request, "sign", signer) {
            return Ok(());
        }
        Err(request
            .forbidden(format!("user not permitted to sign requests with signerName {}", go_quote(signer))))
    }
}

pub(super) struct ClusterTrustBundleAttest;

/// Whether an update touches nothing but what garbage collection and storage migration touch.
fn only_collector_fields(new: &Value, old: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["ownerReferences", "finalizers", "managedFields"] {
                metadata.remove(field);
            }
        }
        object
    };
    equality::semantic_equal(&strip(new), &strip(old))
}

#[async_trait]
impl Admission for ClusterTrustBundleAttest {
    fn name(&self) -> &'static str {
        "ClusterTrustBundleAttest"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is(GROUP, "clustertrustbundles")
            && matches!(request.operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let signer = request.object["spec"].text("signerName");
        let unchanged = request.old.is_some_and(|old| only_collector_fields(request.object, old));
        if signer.is_empty() || unchanged || may(registry, request, "attest", signer) {
            return Ok(());
        }
        Err(request.forbidden(format!("user not permitted to attest for signerName {}", go_quote(signer))))
    }
}

pub(super) struct CertificateSubjectRestriction;

#[async_trait]
impl Admission for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.operation == Operation::Create && is_csr(request, "")
    }

    async fn validate(&self, _registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let spec = &request.object["spec"];
        if spec.text("signerName") != CLIENT_SIGNER {
            return Ok(());
        }
        let (_, organizations) = subject_of(spec.text("request"))
            .map_err(|error| request.forbidden(format!("failed to parse CSR: {error}")))?;
        if organizations.iter().any(|group| group == MASTERS) {
            return Err(request
                .forbidden(format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn subjects() {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "someone");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        assert_eq!(subject_of(&encode(&pem)), Ok(("someone".into(), vec!["system:masters".into()])));
        let wrong = "PEM block type must be CERTIFICATE REQUEST";
        assert_eq!(subject_of(&encode("nothing")).unwrap_err(), wrong);
        assert_eq!(subject_of(&encode(&key.serialize_pem())).unwrap_err(), wrong);
    }
}
