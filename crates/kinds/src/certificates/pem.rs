//! The PEM blocks inside CertificateSigningRequests.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

/// What is wrong with a signing request: one PEM block of a PKCS#10 request that its own key has signed.
pub(super) fn request_problem(bytes: &[u8]) -> Option<String> {
    let Some(block) = Pem::iter_from_buffer(bytes).next().and_then(Result::ok) else {
        return Some("PEM block type must be CERTIFICATE REQUEST".to_owned());
    };
    if block.label != "CERTIFICATE REQUEST" {
        return Some("PEM block type must be CERTIFICATE REQUEST".to_owned());
    }
    let Ok((rest, request)) = X509CertificationRequest::from_der(&block.contents) else {
        return Some("asn1: structure error: tags don't match".to_owned());
    };
    if !rest.is_empty() {
        return Some("asn1: syntax error: trailing data".to_owned());
    }
    request.verify_signature().err().map(|_| "x509: signature verification failure".to_owned())
}

/// What is wrong with an issued chain: certificates in PEM and nothing else; none at all is fine.
pub(super) fn certificate_problem(bytes: &[u8]) -> Option<String> {
    if bytes.is_empty() {
        return None;
    }
    let mut blocks = 0;
    for block in Pem::iter_from_buffer(bytes) {
        let Ok(block) = block else { break };
        if block.label != "CERTIFICATE" {
            return Some(format!(
                "only CERTIFICATE PEM blocks are allowed, found {}",
                orlop_api::field::go_quote(&block.label)
            ));
        }
        blocks += 1;
        if block.contents.is_empty() {
            return Some("found CERTIFICATE PEM block containing 0 certificates".to_owned());
        }
        if x509_parser::parse_x509_certificate(&block.contents).is_err() {
            return Some("x509: malformed certificate".to_owned());
        }
    }
    (blocks == 0).then(|| "must contain at least one CERTIFICATE PEM block".to_owned())
}
