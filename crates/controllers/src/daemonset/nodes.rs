//! Which nodes a DaemonSet's pods belong on, and which node a pod is meant for. Answers to upstream's
//! `NodeShouldRunDaemonPod` and `daemonset_util.go`.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec,
    Taint, Toleration,
};

use crate::history::REVISION_LABEL;
use crate::objects::{Meta, node_name};
use crate::placement::{meets_node_affinity, tolerates_all};

const NAME_FIELD: &str = "metadata.name";
const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";

/// What every daemon pod tolerates: the troubles of a node that its pods are there to look after.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// What those on the host's network tolerate besides.
const TOLERATED_ON_HOST: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// How a node and a DaemonSet get on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// A pod belongs there.
    Run,
    /// No pod is put there, but one that is there may stay.
    Stay,
    /// No pod may be there.
    Avoid,
}

/// The tolerations of a daemon pod: the template's own, and those that all have.
pub(super) fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let on_host = (spec.host_network == Some(true)).then_some(TOLERATED_ON_HOST);
    for (key, effect) in TOLERATED.into_iter().chain(on_host) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        // The same toleration with another duration gives way.
        let same = |other: &Toleration| {
            (&other.key, &other.effect, &other.operator, &other.value)
                == (&toleration.key, &toleration.effect, &toleration.operator, &toleration.value)
        };
        match all.iter_mut().find(|other| same(other)) {
            Some(other) => *other = toleration,
            None => all.push(toleration),
        }
    }
    all
}

fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// A DaemonSet's demands on nodes.
pub(super) struct Demands<'a> {
    spec: Option<&'a PodSpec>,
    tolerations: Vec<Toleration>,
}

impl<'a> Demands<'a> {
    pub(super) fn of(set: &'a DaemonSet) -> Self {
        let spec = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
        Self { spec, tolerations: spec.map(tolerations).unwrap_or_default() }
    }

    pub(super) fn fit(&self, node: &Node) -> Fit {
        let Some(spec) = self.spec else { return Fit::Avoid };
        let named = spec.node_name.as_deref().unwrap_or_default();
        if !(named.is_empty() || named == node.name()) || !meets_node_affinity(spec, node) {
            return Fit::Avoid;
        }
        if tolerates_all(&self.tolerations, taints(node), &["NoSchedule", "NoExecute"]) {
            Fit::Run
        } else if tolerates_all(&self.tolerations, taints(node), &["NoExecute"]) {
            Fit::Stay
        } else {
            Fit::Avoid
        }
    }
}

/// The node a pod is on, or the one its affinity sends it to; `None` for a pod that is meant for none in particular.
pub(super) fn target_node(pod: &Pod) -> Option<&str> {
    let bound = node_name(pod);
    if !bound.is_empty() {
        return Some(bound);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let by_name = fields.into_iter().find(|field| field.key == NAME_FIELD && field.operator == "In")?;
    match by_name.values.as_deref() {
        Some([name]) => Some(name),
        _ => None,
    }
}

/// Whether a pod is of the present revision.
pub(super) fn is_updated(pod: &Pod, hash: &str) -> bool {
    pod.label(REVISION_LABEL) == Some(hash)
}

/// The template of the set's pods of one revision, without their node.
pub(super) fn pod_template(set: &DaemonSet, hash: &str) -> PodTemplateSpec {
    let mut template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    let generation = set.annotation(GENERATION_ANNOTATION).and_then(|text| text.parse::<i64>().ok());
    if let Some(generation) = generation {
        labels.insert(GENERATION_LABEL.to_owned(), generation.to_string());
    }
    labels.insert(REVISION_LABEL.to_owned(), hash.to_owned());
    if let Some(spec) = &mut template.spec {
        spec.tolerations = Some(tolerations(spec));
    }
    template
}

/// Sends a pod to a node: its required terms give way to the node's name, which is known to meet them. The scheduler
/// binds it, so that resources are counted and pods of less priority make room.
pub(super) fn aim(spec: &mut PodSpec, node: &str) {
    let by_name = NodeSelectorRequirement {
        key: NAME_FIELD.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![by_name]), ..NodeSelectorTerm::default() };
    let affinity = spec.affinity.get_or_insert_with(Affinity::default);
    let node_affinity = affinity.node_affinity.get_or_insert_default();
    node_affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objects::testing::object;
    use pretty_assertions::assert_eq;
    use serde_json::{Value, json};

    fn set(spec: Value) -> DaemonSet {
        let mut whole = json!({"containers": []});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        object(json!({"metadata": {"name": "ds", "annotations": {GENERATION_ANNOTATION: "3"}}, "spec": {
            "selector": {}, "template": {"metadata": {"labels": {"app": "ds"}}, "spec": whole}}}))
    }

    #[test]
    fn nodes_that_fit() {
        let check = |spec: Value, node: Value, expected: Fit| {
            let whole = json!({"metadata": {"name": "n1", "labels": {"disk": "ssd"}}, "spec": node});
            assert_eq!(Demands::of(&set(spec.clone())).fit(&object(whole)), expected, "{spec} {node}");
        };
        let tainted = |key: &str, effect: &str| json!({"taints": [{"key": key, "effect": effect}]});
        check(json!({}), json!({}), Fit::Run);
        check(json!({"nodeName": "n1"}), json!({}), Fit::Run);
        check(json!({"nodeName": "n2"}), json!({}), Fit::Avoid);
        check(json!({"nodeSelector": {"disk": "hdd"}}), json!({}), Fit::Avoid);
        for (key, effect) in TOLERATED {
            check(json!({}), tainted(key, effect), Fit::Run);
        }
        check(json!({}), json!({"unschedulable": true}), Fit::Run);
        check(json!({}), tainted("node.kubernetes.io/network-unavailable", "NoSchedule"), Fit::Stay);
        check(
            json!({"hostNetwork": true}),
            tainted("node.kubernetes.io/network-unavailable", "NoSchedule"),
            Fit::Run,
        );
        check(json!({}), tainted("gpu", "NoSchedule"), Fit::Stay);
        check(json!({}), tainted("gpu", "NoExecute"), Fit::Avoid);
        check(json!({}), tainted("gpu", "PreferNoSchedule"), Fit::Run);
        let tolerant = json!({"tolerations": [{"key": "gpu", "operator": "Exists"}]});
        check(tolerant, tainted("gpu", "NoExecute"), Fit::Run);
    }

    #[test]
    fn a_pod_is_sent_to_its_node() {
        let check = |spec: Value, expected: Option<&str>| {
            let pod: Pod = object(json!({"spec": spec}));
            assert_eq!(target_node(&pod), expected, "{spec}");
        };
        check(json!({"containers": []}), None);
        check(json!({"containers": [], "nodeName": "n1"}), Some("n1"));
        let mut spec: PodSpec = object(json!({"containers": [], "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": []}]},
            "preferredDuringSchedulingIgnoredDuringExecution": []}}}));
        aim(&mut spec, "n7");
        check(serde_json::to_value(&spec).unwrap(), Some("n7"));
        assert_eq!(
            serde_json::to_value(&spec).unwrap()["affinity"]["nodeAffinity"],
            json!({"preferredDuringSchedulingIgnoredDuringExecution": [],
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [
                    {"key": "metadata.name", "operator": "In", "values": ["n7"]}]}]}})
        );
    }

    #[test]
    fn templates_carry_revision_and_tolerations() {
        let tolerated = json!({"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists",
            "effect": "NoExecute", "tolerationSeconds": 5}]});
        let template = pod_template(&set(tolerated), "abc");
        assert_eq!(
            serde_json::to_value(template.metadata.unwrap().labels.unwrap()).unwrap(),
            json!({"app": "ds", "controller-revision-hash": "abc", "pod-template-generation": "3"})
        );
        let tolerations = template.spec.unwrap().tolerations.unwrap();
        assert_eq!(tolerations.len(), 6);
        assert_eq!(tolerations[0].toleration_seconds, None, "for ever");
    }
}
