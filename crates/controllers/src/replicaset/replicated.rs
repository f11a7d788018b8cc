//! A ReplicationController seen as a ReplicaSet: the older kind has the same rules and fewer fields.

use std::borrow::Cow;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use serde::Serialize;

use crate::workload::Workload;

/// A kind that asks for a number of equal pods.
pub(crate) trait Replicated: Workload + Serialize {
    /// Whether its status counts terminating pods.
    const REPORTS_TERMINATING: bool;
    fn as_set(&self) -> Cow<'_, ReplicaSet>;
    /// The object with another status.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicated for ReplicaSet {
    const REPORTS_TERMINATING: bool = true;

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}

impl Replicated for ReplicationController {
    const REPORTS_TERMINATING: bool = false;

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        let spec = self.spec.as_ref();
        Cow::Owned(ReplicaSet {
            metadata: self.metadata.clone(),
            spec: Some(ReplicaSetSpec {
                replicas: spec.and_then(|spec| spec.replicas),
                min_ready_seconds: spec.and_then(|spec| spec.min_ready_seconds),
                selector: self.selector(),
                template: spec.and_then(|spec| spec.template.clone()),
            }),
            status: self.status.as_ref().map(|status| ReplicaSetStatus {
                replicas: status.replicas,
                fully_labeled_replicas: status.fully_labeled_replicas,
                ready_replicas: status.ready_replicas,
                available_replicas: status.available_replicas,
                terminating_replicas: None,
                observed_generation: status.observed_generation,
                conditions: status.conditions.as_ref().map(|all| all.iter().map(to_set).collect()),
            }),
        })
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let status = ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|all| all.into_iter().map(from_set).collect()),
        };
        Self { status: Some(status), ..self.clone() }
    }
}

fn to_set(condition: &ReplicationControllerCondition) -> ReplicaSetCondition {
    ReplicaSetCondition {
        type_: condition.type_.clone(),
        status: condition.status.clone(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        last_transition_time: condition.last_transition_time.clone(),
    }
}

fn from_set(condition: ReplicaSetCondition) -> ReplicationControllerCondition {
    ReplicationControllerCondition {
        type_: condition.type_,
        status: condition.status,
        reason: condition.reason,
        message: condition.message,
        last_transition_time: condition.last_transition_time,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objects::testing::object;
    use pretty_assertions::assert_eq;
    use serde_json::json;

    #[test]
    fn a_replication_controller_goes_there_and_back() {
        let controller: ReplicationController = object(json!({
            "metadata": {"name": "web", "namespace": "a", "generation": 3},
            "spec": {"replicas": 2, "minReadySeconds": 5, "selector": {"app": "web"},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
            "status": {"replicas": 2, "readyReplicas": 1, "availableReplicas": 1, "fullyLabeledReplicas": 2,
                "observedGeneration": 3, "conditions": [{"type": "ReplicaFailure", "status": "True",
                    "reason": "FailedCreate", "message": "no", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}));
        let set = controller.as_set().into_owned();
        assert_eq!(set.spec.as_ref().unwrap().selector, object(json!({"matchLabels": {"app": "web"}})));
        assert_eq!(controller.with_status(set.status.unwrap()), controller);
    }
}
