//! Who may talk to the kubelet: clients with a certificate of the cluster's CA; the API server and cluster masters
//! always, others when a SubjectAccessReview says so.

use std::sync::Arc;

use http::Method;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::context::Context;
use crate::options::ServingTls;

/// Names the API server's client certificate may have.
const API_SERVERS: [&str; 3] = ["system:kube-apiserver", "kube-apiserver", "kube-apiserver-kubelet-client"];

/// Who a client certificate says its owner is.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub name: String,
    pub groups: Vec<String>,
}

/// TLS with optional client certificates: `/healthz` needs none.
pub(super) fn tls_config(tls: &ServingTls) -> Result<Arc<ServerConfig>, String> {
    let certs = |pem: &str, what: &str| -> Result<Vec<CertificateDer<'static>>, String> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let found = found.map_err(|error| format!("{what}: {error}"))?;
        if found.is_empty() { Err(format!("{what}: no certificate in the PEM text")) } else { Ok(found) }
    };
    let mut roots = RootCertStore::empty();
    for ca in certs(&tls.client_ca_pem, "client CA")? {
        roots.add(ca).map_err(|error| format!("client CA: {error}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| format!("client CA: {error}"))?;
    let key =
        PrivateKeyDer::from_pem_slice(tls.key_pem.as_bytes()).map_err(|error| format!("key: {error}"))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certs(&tls.cert_pem, "certificate")?, key)
        .map_err(|error| format!("certificate and key: {error}"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The owner of the connection's client certificate, which TLS has verified.
pub(super) fn caller(connection: &ServerConnection) -> Option<Caller> {
    let leaf = connection.peer_certificates()?.first()?;
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    Some(Caller { name, groups })
}

/// The subresource of `nodes` that stands for a path, as upstream authorizes it.
fn subresource(path: &str) -> &'static str {
    match path.trim_matches('/').split('/').next().unwrap_or_default() {
        "stats" => "stats",
        "metrics" => "metrics",
        "logs" => "log",
        "pods" | "runningpods" => "pods",
        "healthz" => "healthz",
        "configz" => "configz",
        _ => "proxy",
    }
}

/// `Err` holds the refusal.
pub(super) async fn authorize(
    context: &Context,
    caller: &Caller,
    method: &Method,
    path: &str,
) -> Result<(), String> {
    if caller.groups.iter().any(|group| group == "system:masters")
        || API_SERVERS.contains(&caller.name.as_str())
    {
        return Ok(());
    }
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let node = context.options.node_name.clone();
    let mut tried = vec![subresource(path)];
    if tried[0] != "proxy" {
        tried.push("proxy");
    }
    for sub in &tried {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(caller.name.clone()),
                groups: Some(caller.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some((*sub).to_owned()),
                    name: Some(node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api = Api::<SubjectAccessReview>::all(context.client.clone());
        let answer = api.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|error| format!("Authorization error: {error}"))?;
        if answer.status.is_some_and(|status| status.allowed) {
            return Ok(());
        }
    }
    Err(format!(
        "Forbidden (user={}, verb={verb}, resource=nodes, subresource({})={:?})",
        caller.name,
        tried.len(),
        tried
    ))
}
