//! The Node authorizer: a kubelet may read what the pods bound to its node refer to, and nothing else.
//!
//! Upstream keeps a graph; here the pods cache is asked for the node's pods (there are few per node) on each request
//! that needs a relationship.

use std::sync::Arc;

use serde_json::Value;

use super::{Attributes, Decision};
use crate::authz::rbac::PolicyRule;
use crate::cache::{Cache, from};

/// The Node authorizer.
pub struct NodeAuthorizer {
    pods: Arc<Cache>,
    rules: Vec<PolicyRule>,
}

fn no(reason: impl Into<String>) -> Decision {
    Decision::NoOpinion(reason.into())
}

impl NodeAuthorizer {
    /// `rules` are those of the bootstrap role `system:node`: what a node may do without a relationship being asked.
    pub fn new(pods: Arc<Cache>, rules: Vec<PolicyRule>) -> NodeAuthorizer {
        NodeAuthorizer { pods, rules }
    }

    /// Decides for kubelets; no opinion about anybody else.
    pub fn decide(&self, a: &Attributes<'_>) -> Decision {
        if !a.user.in_group("system:nodes") {
            return no("");
        }
        let Some(node) = a.user.node_name() else { return no("") };
        if a.is_resource {
            match (a.group, a.resource) {
                ("", "secrets") | ("", "configmaps") => return self.related_read(node, a),
                ("", "serviceaccounts") => return self.service_account(node, a),
                ("", "nodes") => return self.node(node, a),
                ("", "pods") => return self.pod(node, a),
                ("coordination.k8s.io", "leases") => return lease(node, a),
                ("", "persistentvolumeclaims") if a.subresource.is_empty() || a.verb == "get" => {
                    return if a.verb == "get" {
                        self.related(node, a)
                    } else {
                        no("can only get individual resources of this type")
                    };
                }
                _ => {}
            }
        }
        if self.rules.iter().any(|rule| rule.allows(a)) { Decision::Allow(String::new()) } else { no("") }
    }

    fn related_read(&self, node: &str, a: &Attributes<'_>) -> Decision {
        if !matches!(a.verb, "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !a.subresource.is_empty() {
            return no("cannot read subresource");
        }
        self.related(node, a)
    }

    fn related(&self, node: &str, a: &Attributes<'_>) -> Decision {
        if a.name.is_empty() {
            return no("No Object name found");
        }
        if self.pods_of(node, a.namespace).iter().any(|pod| refers_to(pod, a.resource, a.name)) {
            return Decision::Allow(String::new());
        }
        no(format!("no relationship found between node '{node}' and this object"))
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
                    Decision::Allow(String::new())
                } else if a.verb == "get" || !a.name.is_empty() {
                    no(format!("node '{node}' cannot read '{}', only its own Node object", a.name))
                } else {
                    no(format!("node '{node}' cannot read all nodes, only its own Node object"))
                }
            }
            // Which node it may write is the NodeRestriction admission plugin's business, as upstream.
            _ => {
                if self.rules.iter().any(|rule| rule.allows(a)) {
                    Decision::Allow(String::new())
                } else {
                    no("")
                }
            }
        }
    }

    fn pod(&self, node: &str, a: &Attributes<'_>) -> Decision {
        let bound = |name: &str| {
            self.pods
                .get(&format!("{}/{name}", a.namespace))
                .is_some_and(|pod| pod.field("spec.nodeName") == Some(node))
        };
        match a.verb {
            "get" if a.subresource.is_empty() => {
                if bound(a.name) {
                    Decision::Allow(String::new())
                } else {
                    no(format!("no relationship found between node '{node}' and this object"))
                }
            }
            "list" | "watch" if a.subresource.is_empty() => {
                if a.selected_node == Some(node)
                    || (!a.name.is_empty() && !a.namespace.is_empty() && bound(a.name))
                {
                    Decision::Allow(String::new())
                } else if a.selected_node.is_some() {
                    no(format!("no relationship found between node '{node}' and this object"))
                } else {
                    no("can only list/watch pods with spec.nodeName field selector")
                }
            }
            _ => {
                if self.rules.iter().any(|rule| rule.allows(a)) {
                    Decision::Allow(String::new())
                } else {
                    no("")
                }
            }
        }
    }

    fn pods_of(&self, node: &str, namespace: &str) -> Vec<Value> {
        let (snapshot, _) = self.pods.snapshot();
        let prefix = format!("{namespace}/");
        snapshot
            .range::<_, str>(from(&prefix))
            .take_while(|(key, _)| key.starts_with(&prefix))
            .filter(|(_, pod)| pod.field("spec.nodeName") == Some(node))
            .map(|(_, pod)| pod.value())
            .collect()
    }
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
    Decision::Allow(String::new())
}

/// Whether a pod's spec names the object. Every reference to a secret, config map or claim in a pod sits in a field
/// whose name says which it is, so the whole spec is searched for those fields.
fn refers_to(pod: &Value, resource: &str, name: &str) -> bool {
    let Some(spec) = pod.get("spec") else { return false };
    match resource {
        "serviceaccounts" => spec.get("serviceAccountName").and_then(Value::as_str) == Some(name),
        "secrets" => mentions(
            spec,
            &[
                "secretName",
                "secretRef",
                "secretKeyRef",
                "secret",
                "imagePullSecrets",
                "nodePublishSecretRef",
            ],
            name,
        ),
        "configmaps" => mentions(spec, &["configMap", "configMapRef", "configMapKeyRef"], name),
        "persistentvolumeclaims" => mentions(spec, &["claimName"], name),
        _ => false,
    }
}

fn mentions(value: &Value, fields: &[&str], name: &str) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, inner)| {
            if fields.contains(&key.as_str()) {
                let named = |v: &Value| {
                    v.as_str() == Some(name) || v.get("name").and_then(Value::as_str) == Some(name)
                };
                if named(inner) || inner.as_array().is_some_and(|list| list.iter().any(named)) {
                    return true;
                }
            }
            mentions(inner, fields, name)
        }),
        Value::Array(list) => list.iter().any(|inner| mentions(inner, fields, name)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_of_a_pod() {
        let pod = json!({"spec": {
            "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"secret": {"secretName": "s1"}}, {"projected": {"sources": [{"configMap": {"name": "ca"}}]}}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}}],
                            "envFrom": [{"configMapRef": {"name": "c2"}}]}],
        }});
        let check = |resource: &str, name: &str, expected: bool| {
            assert_eq!(refers_to(&pod, resource, name), expected, "{resource} {name}")
        };
        check("secrets", "pull", true);
        check("secrets", "s1", true);
        check("secrets", "s2", true);
        check("secrets", "ca", false);
        check("configmaps", "ca", true);
        check("configmaps", "c2", true);
        check("serviceaccounts", "sa", true);
        check("serviceaccounts", "other", false);
    }
}
