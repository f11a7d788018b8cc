//! Certificates as people get them: a request, an approval, a client that is let in.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

use crate::support::{Cluster, eventually, text};

/// Writes a key to `directory` and gives a request of a certificate for it, encoded as the API has it.
fn request(directory: &Path, user: &str, group: &str) -> String {
    let key = KeyPair::generate().unwrap();
    std::fs::write(directory.join(format!("{user}.key")), key.serialize_pem()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.distinguished_name.push(DnType::CommonName, user);
    STANDARD.encode(params.serialize_request(&key).unwrap().pem().unwrap())
}

fn ask(cluster: &Cluster, user: &str) {
    let request = request(cluster.directory.path(), user, "dev");
    cluster.apply(&format!(
        "{{apiVersion: certificates.k8s.io/v1, kind: CertificateSigningRequest, metadata: {{name: {user}}}, spec: {{ \
         request: {request}, signerName: kubernetes.io/kube-apiserver-client, expirationSeconds: 3600, usages: [client auth]}}}}"
    ));
}

#[test]
fn who_is_approved_gets_a_certificate_and_is_let_in() {
    let cluster = Cluster::start();
    let directory = cluster.directory.path().to_owned();
    let condition = |user: &str| {
        let row = cluster.ok(&["get", "csr", user, "--no-headers"]);
        row.split_whitespace().last().unwrap().to_owned()
    };
    for user in ["alice", "mallory"] {
        ask(&cluster, user);
        assert_eq!(condition(user), "Pending");
    }
    assert!(cluster.ok(&["certificate", "approve", "alice"]).contains("alice approved"));
    assert!(cluster.ok(&["certificate", "deny", "mallory"]).contains("mallory denied"));
    let issued = eventually("the certificate is issued", || {
        let seen = cluster.ok(&["get", "csr", "alice", "-o", "jsonpath={.status.certificate}"]);
        (!seen.is_empty()).then_some(seen)
    });
    assert_eq!(
        (condition("alice"), condition("mallory")),
        ("Approved,Issued".to_owned(), "Denied".to_owned())
    );

    std::fs::write(directory.join("alice.crt"), STANDARD.decode(issued).unwrap()).unwrap();
    let (key, certificate) = (directory.join("alice.key"), directory.join("alice.crt"));
    let config = directory.join("alice.kubeconfig");
    std::fs::copy(cluster.kubeconfig(), &config).unwrap();
    let as_alice = |arguments: &[&str]| {
        let mut command = cluster.client("kubectl");
        command.env("KUBECONFIG", &config).args(arguments);
        command.output().unwrap()
    };
    for arguments in [
        vec![
            "config",
            "set-credentials",
            "alice",
            "--client-key",
            key.to_str().unwrap(),
            "--client-certificate",
            certificate.to_str().unwrap(),
        ],
        vec!["config", "set-context", "--current", "--user=alice"],
    ] {
        let output = as_alice(&arguments);
        assert!(output.status.success(), "{}", text(&output));
    }
    let who = text(&as_alice(&["auth", "whoami"]));
    assert!(who.contains("alice") && who.contains("dev") && who.contains("system:authenticated"), "{who}");
    let refused = text(&as_alice(&["get", "pods"]));
    assert!(refused.contains("User \"alice\" cannot list resource \"pods\""), "{refused}");
    // Rights that her group is given are hers.
    cluster.ok(&["create", "rolebinding", "dev", "--clusterrole=view", "--group=dev"]);
    eventually("she may look", || as_alice(&["get", "pods"]).status.success().then_some(()));
    assert!(!as_alice(&["create", "configmap", "a"]).status.success());
    let denied = cluster.ok(&["get", "csr", "mallory", "-o", "jsonpath={.status.certificate}"]);
    assert_eq!(denied, "");
}
