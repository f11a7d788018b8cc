//! The Node authorizer: a kubelet may read what the pods bound to its node refer to, and nothing else.
//!
//! For every pod with a node it keeps what the pod refers to, by node, brought up to date by what has changed since the
//! last question. What lies behind claims (volumes and their secrets) is looked up when it is asked for. Upstream's
//! counterpart is `plugin/pkg/auth/authorizer/node`.

use std::collections::HashMap;
use std::sync::Arc;

use orlop_api::selector::FieldSelector;
use orlop_json::Value;
use parking_lot::Mutex;

use super::{Attributes, Decision};
use crate::authz::rbac::PolicyRule;
use crate::cache::{Cache, ChangeKind, Entry};

/// The caches the authorizer reads.
pub struct Sources {
    /// Pods.
    pub pods: Arc<Cache>,
    /// Claims of volumes.
    pub claims: Arc<Cache>,
    /// Volumes.
    pub volumes: Arc<Cache>,
    /// Volume attachments.
    pub attachments: Arc<Cache>,
    /// Slices of devices.
    pub slices: Arc<Cache>,
}

/// The Node authorizer.
pub struct NodeAuthorizer {
    sources: Sources,
    graph: Mutex<Graph>,
    rules: Vec<PolicyRule>,
}

/// A kind of object that pods refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Secret,
    ConfigMap,
    Claim,
    ResourceClaim,
    ServiceAccount,
}

/// A reference of a pod, within the pod's namespace.
type Reference = (Kind, Box<str>);

/// References by namespace, each with the number of pods that have it.
type Held = HashMap<(Box<str>, Reference), u32>;

/// What pods refer to, by node.
#[derive(Default)]
struct Graph {
    at: Option<u64>,
    pods: HashMap<Arc<str>, (Box<str>, Vec<Reference>)>,
    /// By node, then by namespace and reference: how many pods refer to it.
    nodes: HashMap<Box<str>, Held>,
}

impl Graph {
    fn remove(&mut self, key: &str) {
        let Some((node, references)) = self.pods.remove(key) else { return };
        let namespace: Box<str> = namespace_of(key).into();
        let Some(held) = self.nodes.get_mut(&node) else { return };
        for reference in references {
            let place = (namespace.clone(), reference);
            if let Some(count) = held.get_mut(&place) {
                *count -= 1;
                if *count == 0 {
                    held.remove(&place);
                }
            }
        }
        if held.is_empty() {
            self.nodes.remove(&node);
        }
    }

    fn put(&mut self, entry: &Entry) {
        self.remove(&entry.key);
        let Some(node) = entry.field("spec.nodeName").filter(|node| !node.is_empty()) else { return };
        let references = references(&entry.value());
        let held = self.nodes.entry(node.into()).or_default();
        for reference in &references {
            *held.entry((entry.namespace().into(), reference.clone())).or_default() += 1;
        }
        self.pods.insert(entry.key.clone(), (node.into(), references));
    }

    fn refresh(&mut self, pods: &Cache) {
        if self.at == Some(pods.last_change()) {
            return;
        }
        if let Some((changes, last)) = self.at.and_then(|at| pods.changes_since(at)) {
            for change in changes {
                match change.kind {
                    ChangeKind::Deleted => self.remove(&change.entry.key),
                    _ => self.put(&change.entry),
                }
            }
            self.at = Some(last);
            return;
        }
        let last = pods.last_change();
        *self = Graph::default();
        for entry in pods.snapshot().0.values() {
            self.put(entry);
        }
        self.at = Some(last);
    }

    fn refers(&self, node: &str, namespace: &str, kind: Kind, name: &str) -> bool {
        self.nodes
            .get(node)
            .is_some_and(|held| held.contains_key(&(Box::from(namespace), (kind, Box::from(name)))))
    }

    /// The claims of a node's pods: namespace and name.
    fn claims(&self, node: &str) -> Vec<(Box<str>, Box<str>)> {
        let held = self.nodes.get(node).into_iter().flat_map(HashMap::keys);
        held.filter(|(_, (kind, _))| *kind == Kind::Claim)
            .map(|(namespace, (_, name))| (namespace.clone(), name.clone()))
            .collect()
    }
}

fn namespace_of(key: &str) -> &str {
    key.split_once('/').map_or("", |(namespace, _)| namespace)
}

fn no(reason: impl Into<String>) -> Decision {
    Decision::NoOpinion(reason.into())
}

fn yes() -> Decision {
    Decision::Allow(String::new())
}

fn unrelated(node: &str) -> Decision {
    no(format!("no relationship found between node '{node}' and this object"))
}

impl NodeAuthorizer {
    /// `rules` are those of the bootstrap role `system:node`: what a node may do without a relationship being asked.
    pub fn new(sources: Sources, rules: Vec<PolicyRule>) -> NodeAuthorizer {
        NodeAuthorizer { sources, graph: Mutex::default(), rules }
    }

    /// Decides for kubelets; no opinion about anybody else.
    pub fn decide(&self, a: &Attributes<'_>) -> Decision {
        if !a.user.in_group("system:nodes") {
            return no("");
        }
        let Some(node) = a.user.node_name() else { return no("") };
        if node.is_empty() {
            return no(format!("unknown node for user {}", orlop_api::field::go_quote(&a.user.name)));
        }
        if a.is_resource {
            match (a.group, a.resource) {
                ("", "secrets" | "configmaps") => return self.namespaced_read(node, a),
                ("", "persistentvolumeclaims") if a.subresource == "status" => {
                    return match a.verb {
                        "update" | "patch" => self.related(node, a),
                        _ => no("can only get/update/patch this type"),
                    };
                }
                ("", "persistentvolumeclaims" | "persistentvolumes")
                | ("resource.k8s.io", "resourceclaims")
                | ("storage.k8s.io", "volumeattachments") => return self.get(node, a),
                ("", "serviceaccounts") => return self.service_account(node, a),
                ("", "nodes") => return self.node(node, a),
                ("", "pods") => return self.pod(node, a),
                ("coordination.k8s.io", "leases") => return lease(node, a),
                ("storage.k8s.io", "csinodes") => return csi_node(node, a),
                ("resource.k8s.io", "resourceslices") => return self.resource_slice(node, a),
                _ => {}
            }
        }
        self.by_rules(a)
    }

    fn by_rules(&self, a: &Attributes<'_>) -> Decision {
        if self.rules.iter().any(|rule| rule.allows(a)) { yes() } else { no("") }
    }

    fn get(&self, node: &str, a: &Attributes<'_>) -> Decision {
        if a.verb != "get" {
            return no("can only get individual resources of this type");
        }
        if !a.subresource.is_empty() {
            return no("cannot get subresource");
        }
        self.related(node, a)
    }

    fn namespaced_read(&self, node: &str, a: &Attributes<'_>) -> Decision {
        if !matches!(a.verb, "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !a.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if a.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(node, a)
    }

    fn related(&self, node: &str, a: &Attributes<'_>) -> Decision {
        if a.name.is_empty() {
            return no("No Object name found");
        }
        let reaches = match (a.group, a.resource) {
            ("", "secrets") => {
                self.refers(node, a.namespace, Kind::Secret, a.name)
                    || self.volume_secret(node, a.namespace, a.name)
            }
            ("", "configmaps") => self.refers(node, a.namespace, Kind::ConfigMap, a.name),
            ("", "serviceaccounts") => self.refers(node, a.namespace, Kind::ServiceAccount, a.name),
            ("", "persistentvolumeclaims") => self.refers(node, a.namespace, Kind::Claim, a.name),
            ("resource.k8s.io", "resourceclaims") => {
                self.refers(node, a.namespace, Kind::ResourceClaim, a.name)
            }
            ("", "persistentvolumes") => self.volume(node, a.name),
            ("storage.k8s.io", "volumeattachments") => names_node(&self.sources.attachments, a.name, node),
            ("resource.k8s.io", "resourceslices") => names_node(&self.sources.slices, a.name, node),
            _ => false,
        };
        if reaches { yes() } else { unrelated(node) }
    }

    fn refers(&self, node: &str, namespace: &str, kind: Kind, name: &str) -> bool {
        let mut graph = self.graph.lock();
        graph.refresh(&self.sources.pods);
        graph.refers(node, namespace, kind, name)
    }

    /// Whether a volume is bound to a claim of a pod of the node.
    fn volume(&self, node: &str, name: &str) -> bool {
        let Some(volume) = self.sources.volumes.get(name) else { return false };
        let volume = volume.value();
        let claim = |field: &str| volume.pointer(&format!("/spec/claimRef/{field}")).and_then(Value::as_str);
        match (claim("namespace"), claim("name")) {
            (Some(namespace), Some(name)) => self.refers(node, namespace, Kind::Claim, name),
            _ => false,
        }
    }

    /// Whether a volume of a pod of the node names the secret.
    fn volume_secret(&self, node: &str, namespace: &str, name: &str) -> bool {
        let claims = {
            let mut graph = self.graph.lock();
            graph.refresh(&self.sources.pods);
            graph.claims(node)
        };
        claims.into_iter().any(|(claim_namespace, claim)| {
            let claim = self.sources.claims.get(&format!("{claim_namespace}/{claim}"));
            let volume = claim
                .and_then(|claim| Some(claim.value().pointer("/spec/volumeName")?.as_str()?.to_string()))
                .and_then(|name| self.sources.volumes.get(&name));
            volume
                .is_some_and(|volume| volume_names_secret(&volume.value(), &claim_namespace, namespace, name))
        })
    }

    fn service_account(&self, node: &str, a: &Attributes<'_>) -> Decision {
        match (a.verb, a.subresource) {
            ("create", "token") | ("get", "") => self.related(node, a),
            ("create", _) => no("can only create tokens for individual service accounts"),
            _ => no("can only get individual resources of this type"),
        }
    }

    fn node(&self, node: &str, a: &Attributes<'_>) -> Decision {
        match a.verb {
            "get" | "list" | "watch" if a.subresource.is_empty() => {
                if a.name == node {
                    yes()
                } else if a.verb == "get" || !a.name.is_empty() {
                    no(format!("node '{node}' cannot read '{}', only its own Node object", a.name))
                } else {
                    no(format!("node '{node}' cannot read all nodes, only its own Node object"))
                }
            }
            // Which node it may write is the NodeRestriction admission plugin's business, as upstream.
            _ => self.by_rules(a),
        }
    }

    fn pod(&self, node: &str, a: &Attributes<'_>) -> Decision {
        let bound = |name: &str| {
            self.sources
                .pods
                .get(&format!("{}/{name}", a.namespace))
                .is_some_and(|pod| pod.field("spec.nodeName") == Some(node))
        };
        match a.verb {
            "get" if a.subresource.is_empty() => {
                if bound(a.name) {
                    yes()
                } else {
                    unrelated(node)
                }
            }
            "list" | "watch" if a.subresource.is_empty() => {
                if selects(a, "spec.nodeName", node)
                    || (!a.name.is_empty() && !a.namespace.is_empty() && bound(a.name))
                {
                    yes()
                } else {
                    no("can only list/watch pods with spec.nodeName field selector")
                }
            }
            _ => self.by_rules(a),
        }
    }

    fn resource_slice(&self, node: &str, a: &Attributes<'_>) -> Decision {
        if !a.subresource.is_empty() {
            return no("cannot authorize ResourceSlice subresources");
        }
        match a.verb {
            // Whose slice it creates is checked by admission, which sees the object.
            "create" => yes(),
            "get" | "update" | "patch" | "delete" => self.related(node, a),
            "list" | "watch" | "deletecollection" if selects(a, "spec.nodeName", node) => yes(),
            "list" | "watch" | "deletecollection" => {
                no("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => no(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }
}

/// Whether the request's field selector demands this value.
fn selects(a: &Attributes<'_>, field: &str, value: &str) -> bool {
    FieldSelector::parse(a.field_selector).is_ok_and(|selector| selector.requires_exact(field) == Some(value))
}

fn names_node(cache: &Cache, name: &str, node: &str) -> bool {
    cache
        .get(name)
        .is_some_and(|entry| entry.value().pointer("/spec/nodeName").and_then(Value::as_str) == Some(node))
}

fn lease(node: &str, a: &Attributes<'_>) -> Decision {
    if !matches!(a.verb, "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if a.namespace != "kube-node-lease" {
        return no("can only access leases in the \"kube-node-lease\" system namespace");
    }
    if a.verb != "create" && a.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    yes()
}

fn csi_node(node: &str, a: &Attributes<'_>) -> Decision {
    if !matches!(a.verb, "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a CSINode");
    }
    if !a.subresource.is_empty() {
        return no("cannot authorize CSINode subresources");
    }
    // The name of a new object is not known here.
    if a.verb != "create" && a.name != node {
        return no("can only access CSINode with the same name as the requesting node");
    }
    yes()
}

/// Fields whose value (a name, or an object with a `name`, or a list of these) refers to an object. Every reference to
/// a secret, config map or claim in a pod sits in a field whose name says which it is.
const FIELDS: [(&str, Kind); 12] = [
    ("secretName", Kind::Secret),
    ("secretRef", Kind::Secret),
    ("secretKeyRef", Kind::Secret),
    ("secret", Kind::Secret),
    ("imagePullSecrets", Kind::Secret),
    ("nodePublishSecretRef", Kind::Secret),
    ("configMap", Kind::ConfigMap),
    ("configMapRef", Kind::ConfigMap),
    ("configMapKeyRef", Kind::ConfigMap),
    ("claimName", Kind::Claim),
    ("resourceClaimName", Kind::ResourceClaim),
    ("serviceAccountName", Kind::ServiceAccount),
];

/// What a pod refers to.
fn references(pod: &Value) -> Vec<Reference> {
    let mut found = Vec::new();
    // Mirror pods are written by kubelets, which must not give themselves rights by them.
    let mirror =
        pod.pointer("/metadata/annotations").and_then(|a| a.get("kubernetes.io/config.mirror")).is_some();
    if mirror {
        return found;
    }
    let name = pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("");
    if let Some(spec) = pod.get("spec") {
        collect(spec, &mut found);
        // A generic ephemeral volume has a claim named after pod and volume.
        for volume in spec.get("volumes").and_then(Value::as_array).into_iter().flatten() {
            if let (Some(_), Some(volume)) =
                (volume.get("ephemeral"), volume.get("name").and_then(Value::as_str))
            {
                found.push((Kind::Claim, format!("{name}-{volume}").into()));
            }
        }
    }
    for field in ["resourceClaimStatuses", "extendedResourceClaimStatus"] {
        if let Some(status) = pod.pointer(&format!("/status/{field}")) {
            collect(status, &mut found);
        }
    }
    found.sort_by(|a, b| (a.0 as u8, &a.1).cmp(&(b.0 as u8, &b.1)));
    found.dedup();
    found
}

fn collect(value: &Value, found: &mut Vec<Reference>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                if let Some((_, kind)) = FIELDS.iter().find(|(field, _)| field == key) {
                    let list = inner.as_array().map_or(std::slice::from_ref(inner), Vec::as_slice);
                    for item in list {
                        let name = item.as_str().or_else(|| item.get("name").and_then(Value::as_str));
                        if let Some(name) = name.filter(|name| !name.is_empty()) {
                            found.push((*kind, name.into()));
                        }
                    }
                }
                collect(inner, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| collect(inner, found)),
        _ => {}
    }
}

/// Whether a volume names a secret, in the namespace it names or else in its claim's.
fn volume_names_secret(volume: &Value, claim_namespace: &str, namespace: &str, name: &str) -> bool {
    fn search(value: &Value, default: &str, namespace: &str, name: &str) -> bool {
        match value {
            Value::Object(map) => map.iter().any(|(key, inner)| {
                let lower = key.to_ascii_lowercase();
                if lower.ends_with("secretref") {
                    let of = |field: &str| inner.get(field).and_then(Value::as_str).unwrap_or("");
                    let place = if of("namespace").is_empty() { default } else { of("namespace") };
                    if of("name") == name && place == namespace {
                        return true;
                    }
                }
                if key == "azureFile" {
                    let of = |field: &str| inner.get(field).and_then(Value::as_str).unwrap_or("");
                    let place =
                        if of("secretNamespace").is_empty() { default } else { of("secretNamespace") };
                    if of("secretName") == name && place == namespace {
                        return true;
                    }
                }
                search(inner, default, namespace, name)
            }),
            Value::Array(list) => list.iter().any(|inner| search(inner, default, namespace, name)),
            _ => false,
        }
    }
    volume.get("spec").is_some_and(|spec| search(spec, claim_namespace, namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn references_of_a_pod() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"secret": {"secretName": "s1"}}, {"projected": {"sources": [{"configMap": {"name": "ca"}}]}},
                        {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
                        {"persistentVolumeClaim": {"claimName": "data"}}],
            "resourceClaims": [{"name": "gpu", "resourceClaimName": "my-gpu"}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}}],
                            "envFrom": [{"configMapRef": {"name": "c2"}}]}],
        }, "status": {"resourceClaimStatuses": [{"name": "x", "resourceClaimName": "made"}]}});
        let found = references(&pod);
        let check = |kind: Kind, name: &str, expected: bool| {
            assert_eq!(found.contains(&(kind, name.into())), expected, "{kind:?} {name}")
        };
        check(Kind::Secret, "pull", true);
        check(Kind::Secret, "s1", true);
        check(Kind::Secret, "s2", true);
        check(Kind::Secret, "ca", false);
        check(Kind::ConfigMap, "ca", true);
        check(Kind::ConfigMap, "c2", true);
        check(Kind::ServiceAccount, "sa", true);
        check(Kind::Claim, "p-scratch", true);
        check(Kind::Claim, "data", true);
        check(Kind::ResourceClaim, "my-gpu", true);
        check(Kind::ResourceClaim, "made", true);
        let mirror =
            json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": pod["spec"]});
        assert!(references(&mirror).is_empty());
    }

    #[test]
    fn secrets_of_volumes() {
        let volume = json!({"spec": {"csi": {"nodeStageSecretRef": {"name": "s", "namespace": "a"}},
            "cephfs": {"secretRef": {"name": "t"}}}});
        let check = |namespace: &str, name: &str, expected: bool| {
            assert_eq!(
                volume_names_secret(&volume, "claims", namespace, name),
                expected,
                "{namespace}/{name}"
            );
        };
        check("a", "s", true);
        check("b", "s", false);
        check("claims", "t", true);
    }

    #[test]
    fn own_objects_only() {
        let user = crate::authn::UserInfo::node("n1");
        let check = |verb: &str, name: &str, expected: &Decision| {
            let a = Attributes { name, ..Attributes::resource(&user, verb, "storage.k8s.io", "csinodes") };
            assert_eq!(&csi_node("n1", &a), expected, "{verb} {name}");
        };
        check("get", "n1", &yes());
        check("create", "", &yes());
        check("get", "n2", &no("can only access CSINode with the same name as the requesting node"));
        check("list", "", &no("can only get, create, update, patch, or delete a CSINode"));
    }
}
