//! API servers behind this one: an APIService names a group and version, and the Service that answers for it.
//!
//! [`Aggregator`] is what requests see: which paths lead elsewhere and whether anybody answers there. `controller` keeps
//! it up to date, `check` finds out whether a backend is there, `proxy` passes requests on with the caller's identity
//! in headers. A cluster without such APIServices pays one load of a pointer for each request. A server may also live in
//! this process (`in_process`). Upstream's counterpart is `kube-aggregator`.

mod authentication;
mod backend;
mod check;
mod controller;
pub mod documents;
mod in_process;
mod proxy;
mod resolve;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use orlop_json::Value;

use crate::pki::{CertificateAuthority, Leaf, PkiError, Subject};
pub use authentication::RequestHeaders;
use backend::Backend;
pub use controller::start;
pub use in_process::{Answer, InProcess};
pub use proxy::forward;

/// The API group of APIServices.
pub const GROUP: &str = "apiregistration.k8s.io";
/// The user that looks at backends for the server itself.
const AGGREGATOR: &str = "system:kube-aggregator";

/// How a group and version is preferred to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority {
    /// `groupPriorityMinimum`: higher ones first.
    pub group: i64,
    /// `versionPriority`: higher ones first, within the group.
    pub version: i64,
}

impl Priority {
    /// Of a group that no APIService speaks of: what a custom resource gets.
    pub const DEFAULT: Priority = Priority { group: 1000, version: 100 };
}

/// The Service of an APIService.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceReference {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u16,
}

/// A group and version that another server answers for.
pub struct Remote {
    /// Name of the APIService.
    pub name: String,
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Who answers; `None` for a server of this process.
    pub service: Option<ServiceReference>,
    backend: Result<Arc<Backend>, String>,
    /// Whether the checks passed.
    pub available: bool,
    /// What it serves, in the form of aggregated discovery, as last seen.
    pub resources: Arc<Vec<Value>>,
    /// Its OpenAPI 3 document's hash, and its OpenAPI 2 document, as last seen.
    pub openapi: Arc<documents::OpenApi>,
}

/// One state of everything that APIServices say.
#[derive(Default)]
pub struct Published {
    /// Counts the states: what was derived from an older one is stale.
    pub generation: u64,
    /// By group and version.
    pub priorities: HashMap<(String, String), Priority>,
    /// By group and version.
    pub remotes: BTreeMap<(String, String), Arc<Remote>>,
}

impl Published {
    /// The priority of a group and version.
    pub fn priority(&self, group: &str, version: &str) -> Priority {
        let key = (group.to_string(), version.to_string());
        self.priorities.get(&key).copied().unwrap_or(Priority::DEFAULT)
    }
}

/// What requests see of the other servers.
pub struct Aggregator {
    published: ArcSwap<Published>,
    /// How many remotes there are: zero for most clusters.
    count: AtomicU64,
    /// Shown to backends.
    client: Option<Leaf>,
    /// What backends are told to believe.
    pub headers: RequestHeaders,
}

impl Aggregator {
    /// None yet. The certificate shown to backends is the configured one, or one of a CA of its own: whoever held one of
    /// the cluster's CA could claim to be anybody.
    pub fn new(options: &crate::Options) -> Result<Aggregator, PkiError> {
        let (client, headers) = match (&options.request_header, &options.proxy_client) {
            (Some(configured), client) => (client.clone(), RequestHeaders::configured(configured)),
            (None, Some(client)) => (Some(client.clone()), RequestHeaders::default()),
            (None, None) => {
                let ca = match &options.cert_dir {
                    Some(dir) => {
                        CertificateAuthority::load_or_generate(dir, "front-proxy-ca", "front-proxy-ca")?
                    }
                    None => CertificateAuthority::generate("front-proxy-ca")?,
                };
                let leaf = ca.issue(&Subject::client(authentication::FRONT_PROXY, &[]), 365)?;
                (Some(leaf), RequestHeaders::own(ca.cert_pem()))
            }
        };
        let published = Published { priorities: built_in(), ..Published::default() };
        Ok(Aggregator {
            published: ArcSwap::from_pointee(published),
            count: AtomicU64::new(0),
            client,
            headers,
        })
    }

    /// The present state.
    pub fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// Whether a Service answers for a group and version: not this server, and no other of this process.
    pub fn is_elsewhere(&self, group: &str, version: &str) -> bool {
        let key = (group.to_string(), version.to_string());
        self.published.load().remotes.get(&key).is_some_and(|remote| remote.service.is_some())
    }

    fn publish(&self, mut next: Published) {
        next.generation = self.published.load().generation + 1;
        self.count.store(next.remotes.len() as u64, Ordering::Release);
        self.published.store(Arc::new(next));
    }

    /// The server that answers for a path, when it is another one.
    pub fn find(&self, path: &str) -> Option<Arc<Remote>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut parts = path.strip_prefix("/apis/")?.split('/');
        let key = (parts.next()?.to_string(), parts.next()?.to_string());
        self.published.load().remotes.get(&key).cloned()
    }
}

/// Priorities of the groups this server brings, before their APIServices exist.
fn built_in() -> HashMap<(String, String), Priority> {
    let rows: Value =
        orlop_json::from_str(include_str!("../../data/bootstrap-apiservices.json")).unwrap_or_default();
    // The group of APIServices has none of its own, and comes before all others.
    let own = ((GROUP.to_string(), "v1".to_string()), Priority { group: 20_000, version: 10 });
    rows.as_array().into_iter().flatten().filter_map(priority_of).chain([own]).collect()
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or("")
}

/// Group, version and priority of an APIService.
fn priority_of(object: &Value) -> Option<((String, String), Priority)> {
    let version = text(object, "/spec/version");
    if version.is_empty() {
        return None;
    }
    let priority = Priority {
        group: object.pointer("/spec/groupPriorityMinimum")?.as_i64()?,
        version: object.pointer("/spec/versionPriority")?.as_i64()?,
    };
    Some(((text(object, "/spec/group").to_string(), version.to_string()), priority))
}

/// The Service of an APIService; `None` when this server answers.
fn service_of(object: &Value) -> Option<ServiceReference> {
    let service = object.pointer("/spec/service").filter(|s| s.is_object())?;
    let port = service.get("port").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok());
    Some(ServiceReference {
        namespace: text(service, "/namespace").to_string(),
        name: text(service, "/name").to_string(),
        port: port.filter(|p| *p > 0).unwrap_or(443),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;

    #[test]
    fn facts_of_an_api_service() {
        let object = json!({"spec": {
            "group": "g", "version": "v1", "groupPriorityMinimum": 5, "versionPriority": 7,
            "service": {"namespace": "n", "name": "s"},
        }});
        assert_eq!(
            priority_of(&object).unwrap(),
            (("g".into(), "v1".into()), Priority { group: 5, version: 7 })
        );
        let service = service_of(&object).unwrap();
        assert_eq!((service.namespace.as_str(), service.name.as_str(), service.port), ("n", "s", 443));
        assert!(service_of(&json!({"spec": {"service": null}})).is_none());
    }

    #[test]
    fn paths_lead_elsewhere() {
        let aggregator = Aggregator::new(&crate::Options::default()).unwrap();
        assert!(aggregator.find("/apis/g/v1/things").is_none());
        let remote = Remote {
            name: "v1.g".into(),
            group: "g".into(),
            version: "v1".into(),
            service: None,
            backend: Err("none".into()),
            available: false,
            resources: Arc::default(),
            openapi: Arc::default(),
        };
        let remotes = [(("g".into(), "v1".into()), Arc::new(remote))].into();
        aggregator.publish(Published { remotes, ..Published::default() });
        for (path, expected) in [
            ("/apis/g/v1", true),
            ("/apis/g/v1/namespaces/n/things/t", true),
            ("/apis/g", false),
            ("/apis/g/v2/things", false),
            ("/api/v1/pods", false),
        ] {
            assert_eq!(aggregator.find(path).is_some(), expected, "{path}");
        }
    }
}
