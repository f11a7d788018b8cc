//! How each resource is measured: pods, services, volume claims and device claims by rules of their own, everything else
//! by counting objects.

use jiff::Timestamp;
use orlop_api::Quantity;
use orlop_api::quantity::Format;
use orlop_json::Value;

use super::pods::one;
use super::{ResourceList, claims, object_count_name, pods, requirements};
use crate::cursor::Cursor;

/// Measures the objects of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evaluator {
    /// `pods`.
    Pods,
    /// `services`.
    Services,
    /// `persistentvolumeclaims`.
    VolumeClaims,
    /// `resourceclaims.resource.k8s.io`.
    DeviceClaims,
    /// Any other.
    Count {
        /// `count/RESOURCE.GROUP`.
        name: String,
        /// The name without `count/` that the oldest resources have too.
        alias: Option<&'static str>,
    },
}

/// What happens to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is created.
    Create,
    /// It, or what a subresource shows of it, is updated.
    Update,
}

impl Evaluator {
    /// The evaluator of a resource; `None` for those that no quota counts.
    pub fn of(group: &str, plural: &str) -> Option<Evaluator> {
        Some(match (group, plural) {
            ("", "pods") => Evaluator::Pods,
            ("", "services") => Evaluator::Services,
            ("", "persistentvolumeclaims") => Evaluator::VolumeClaims,
            ("resource.k8s.io", "resourceclaims") => Evaluator::DeviceClaims,
            ("", "events") => return None,
            _ => Evaluator::Count {
                name: object_count_name(group, plural),
                alias: match (group, plural) {
                    ("", "configmaps") => Some("configmaps"),
                    ("", "resourcequotas") => Some("resourcequotas"),
                    ("", "replicationcontrollers") => Some("replicationcontrollers"),
                    ("", "secrets") => Some("secrets"),
                    _ => None,
                },
            },
        })
    }

    /// Whether such a change can change what is used.
    pub fn handles(&self, change: Change, subresource: &str, new: &Value, old: Option<&Value>) -> bool {
        match (self, subresource, change) {
            (_, "", Change::Create) => true,
            (Evaluator::Services | Evaluator::VolumeClaims | Evaluator::DeviceClaims, "", _) => true,
            (Evaluator::Pods, "resize", Change::Update) => true,
            (Evaluator::VolumeClaims, "status", Change::Update) => {
                old.is_some_and(|old| claims::status_matters(new, old))
            }
            _ => false,
        }
    }

    /// Whether objects of this resource use the quota resource `name`.
    pub fn matches_resource(&self, resource: &str) -> bool {
        match self {
            Evaluator::Pods => pods::matches_resource(resource),
            Evaluator::Services => matches!(
                resource,
                "count/services" | "services" | "services.nodeports" | "services.loadbalancers"
            ),
            Evaluator::VolumeClaims => claims::matches_volume_resource(resource),
            Evaluator::DeviceClaims => claims::matches_device_resource(resource),
            Evaluator::Count { name, alias } => resource == name || Some(resource) == *alias,
        }
    }

    /// Whether an object meets one scope requirement.
    pub fn matches_scope(&self, requirement: &Value, object: &Value) -> bool {
        match self {
            Evaluator::Pods => pods::matches_scope(requirement, object),
            Evaluator::VolumeClaims => claims::matches_volume_scope(requirement, object),
            _ => false,
        }
    }

    /// Whether an object falls under a quota: one of the resources it counts is used, and all its scopes are met.
    pub fn matches(&self, quota: &Value, object: &Value) -> bool {
        quota["status"]["hard"].entries().any(|(name, _)| self.matches_resource(name))
            && requirements(quota).iter().all(|requirement| self.matches_scope(requirement, object))
    }

    /// What an object must say about itself to fall under quotas of these resources.
    ///
    /// # Errors
    /// Upstream's message: `must specify …`.
    pub fn constraints(&self, required: &[&str], object: &Value) -> Result<(), String> {
        match self {
            Evaluator::Pods => pods::constraints(required, object),
            _ => Ok(()),
        }
    }

    /// What an object uses.
    pub fn usage(&self, object: &Value, now: Timestamp) -> ResourceList {
        match self {
            Evaluator::Pods => pods::usage(object, now),
            Evaluator::Services => service_usage(object),
            Evaluator::VolumeClaims => claims::volume_usage(object),
            Evaluator::DeviceClaims => claims::device_usage(object),
            Evaluator::Count { name, alias } => {
                [Some(name.as_str()), *alias].into_iter().flatten().map(|n| (n.to_string(), one())).collect()
            }
        }
    }
}

fn service_usage(service: &Value) -> ResourceList {
    let spec = &service["spec"];
    let ports = spec["ports"].items();
    let (node_ports, balancers) = match spec["type"].text() {
        "NodePort" => (ports.len(), 0),
        "LoadBalancer" if spec["allocateLoadBalancerNodePorts"].as_bool() == Some(false) => {
            (ports.iter().filter(|port| port["nodePort"].int() != 0).count(), 1)
        }
        "LoadBalancer" => (ports.len(), 1),
        _ => (0, 0),
    };
    let count = |number: usize| Quantity::new(i64::try_from(number).unwrap_or(i64::MAX), Format::DecimalSI);
    [
        ("count/services", one()),
        ("services", one()),
        ("services.nodeports", count(node_ports)),
        ("services.loadbalancers", count(balancers)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_string(), value))
    .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::quota::print;
    use orlop_json::json;

    #[test]
    fn what_objects_use() {
        let check = |group: &str, plural: &str, object: Value, expected: &str| {
            let evaluator = Evaluator::of(group, plural).unwrap();
            assert_eq!(print(&evaluator.usage(&object, Timestamp::UNIX_EPOCH)), expected);
        };
        check("", "secrets", json!({}), "count/secrets=1,secrets=1");
        check("example.com", "widgets", json!({}), "count/widgets.example.com=1");
        let service = |kind: &str, allocate: bool| json!({"spec": {"type": kind, "allocateLoadBalancerNodePorts": allocate, "ports": [{"port": 1}, {"port": 2, "nodePort": 30000}]}});
        check(
            "",
            "services",
            service("ClusterIP", true),
            "count/services=1,services=1,services.loadbalancers=0,services.nodeports=0",
        );
        check(
            "",
            "services",
            service("NodePort", true),
            "count/services=1,services=1,services.loadbalancers=0,services.nodeports=2",
        );
        check(
            "",
            "services",
            service("LoadBalancer", false),
            "count/services=1,services=1,services.loadbalancers=1,services.nodeports=1",
        );
        assert_eq!(Evaluator::of("", "events"), None);
    }
}
