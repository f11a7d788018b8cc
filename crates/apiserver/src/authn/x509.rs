//! The identity in a verified client certificate: common name is the user, organizations are the groups.

use sha2::Digest as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::UserInfo;

const UID_ATTRIBUTE: &str = "1.3.6.1.4.1.57683.2";

/// Reads the identity of a DER certificate; `None` when it has no common name or cannot be parsed.
pub fn user_of_certificate(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_string();
    if name.is_empty() {
        return None;
    }
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok().map(String::from)).collect();
    // Upstream's own attribute for the uid (KEP-5163).
    let uid = subject
        .iter_attributes()
        .find(|attribute| attribute.attr_type().to_id_string() == UID_ATTRIBUTE)
        .and_then(|attribute| attribute.as_str().ok())
        .unwrap_or("")
        .to_string();
    let digest = sha2::Sha256::digest(der).iter().fold(String::new(), |mut hex, byte| {
        use std::fmt::Write as _;
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let extra =
        [("authentication.kubernetes.io/credential-id".to_string(), vec![format!("X509SHA256={digest}")])]
            .into();
    Some(UserInfo { name, uid, groups, extra })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pki::{CertificateAuthority, Subject, certificates};

    #[test]
    fn name_and_groups() {
        let ca = CertificateAuthority::generate("ca").unwrap();
        let leaf = ca.issue(&Subject::client("jane", &["system:masters"]), 1).unwrap();
        let user = user_of_certificate(&certificates(&leaf.cert_pem).unwrap()[0]).unwrap();
        assert_eq!((user.name.as_str(), user.groups), ("jane", vec!["system:masters".to_string()]));
        assert!(user_of_certificate(b"nonsense").is_none());
    }
}
