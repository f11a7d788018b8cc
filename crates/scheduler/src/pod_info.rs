//! A pod as the scheduler needs it: what it asks for, worked out once. Answers to upstream's `framework.PodInfo`.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    NodeAffinity, Pod, PodAffinityTerm, PodSpec, Toleration, TopologySpreadConstraint,
};
use orlop_client::ObjectKey;

use crate::resources::{NonZero, Resources, pod_non_zero_requests, pod_requests};
use crate::selector::{Labels, NodeMatcher, Operator, Selector};

/// A port of the host that a pod wants for itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// The address it binds; `0.0.0.0` is all of them.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// 1–65535.
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be on one node.
    pub fn conflicts(&self, other: &Self) -> bool {
        const ANY: &str = "0.0.0.0";
        let same_address = self.ip == other.ip || self.ip == ANY || other.ip == ANY;
        same_address && self.port == other.port && self.protocol == other.protocol
    }
}

/// Which pods: of which namespaces, with which labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodMatcher {
    /// Sorted.
    pub namespaces: Vec<String>,
    /// Namespaces by their labels, besides those named.
    pub namespace_selector: Option<Selector>,
    pub selector: Selector,
}

impl PodMatcher {
    /// The pods of one namespace with these labels.
    pub fn in_namespace(namespace: &str, selector: Selector) -> Self {
        Self { namespaces: vec![namespace.to_owned()], namespace_selector: None, selector }
    }

    /// `namespace_labels` are asked for only when a namespace is selected by labels.
    pub fn matches<'a>(
        &self,
        namespace: &str,
        labels: &Labels,
        namespace_labels: impl FnOnce() -> &'a Labels,
    ) -> bool {
        let inside = self.namespaces.iter().any(|name| name == namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| selector.matches(namespace_labels()));
        inside && self.selector.matches(labels)
    }
}

/// One term of a pod's affinity or anti-affinity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AffinityTerm {
    pub matcher: PodMatcher,
    pub topology_key: String,
}

impl AffinityTerm {
    fn of(term: &PodAffinityTerm, owner: &Pod) -> Self {
        let mut selector = Selector::of(term.label_selector.as_ref());
        let labels = owner.metadata.labels.as_ref();
        let own = |key: &String| labels.and_then(|labels| labels.get(key)).cloned();
        for key in term.match_label_keys.iter().flatten() {
            if let Some(value) = own(key) {
                selector.require(key, Operator::In, vec![value]);
            }
        }
        for key in term.mismatch_label_keys.iter().flatten() {
            if let Some(value) = own(key) {
                selector.require(key, Operator::NotIn, vec![value]);
            }
        }
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.extend(owner.metadata.namespace.clone());
        }
        namespaces.sort();
        let namespace_selector =
            term.namespace_selector.as_ref().map(|selector| Selector::of(Some(selector)));
        Self {
            matcher: PodMatcher { namespaces, namespace_selector, selector },
            topology_key: term.topology_key.clone(),
        }
    }
}

/// The pod affinity of a pod.
#[derive(Debug, Clone, Default)]
pub struct PodAffinities {
    pub required: Vec<Arc<AffinityTerm>>,
    pub required_anti: Vec<Arc<AffinityTerm>>,
    /// With their weights; those of anti-affinity are negative.
    pub preferred: Vec<(i64, Arc<AffinityTerm>)>,
}

impl PodAffinities {
    fn of(pod: &Pod) -> Self {
        let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
        let near = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let away = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let required =
            near.and_then(|near| near.required_during_scheduling_ignored_during_execution.as_ref());
        let required_anti =
            away.and_then(|away| away.required_during_scheduling_ignored_during_execution.as_ref());
        let preferred =
            near.and_then(|near| near.preferred_during_scheduling_ignored_during_execution.as_ref());
        let preferred_anti =
            away.and_then(|away| away.preferred_during_scheduling_ignored_during_execution.as_ref());
        let terms = |list: Option<&Vec<PodAffinityTerm>>| {
            list.into_iter().flatten().map(|term| Arc::new(AffinityTerm::of(term, pod))).collect()
        };
        let signed = [(1, preferred), (-1, preferred_anti)];
        let weighted = signed.into_iter().flat_map(|(sign, list)| {
            list.into_iter().flatten().map(move |term| {
                (sign * i64::from(term.weight), Arc::new(AffinityTerm::of(&term.pod_affinity_term, pod)))
            })
        });
        Self {
            required: terms(required),
            required_anti: terms(required_anti),
            preferred: weighted.filter(|(weight, _)| *weight != 0).collect(),
        }
    }
}

/// `whenUnsatisfiable` of a topology spread constraint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenUnsatisfiable {
    DoNotSchedule,
    ScheduleAnyway,
}

/// A topology spread constraint with its selector made ready.
#[derive(Debug, Clone)]
pub struct SpreadConstraint {
    pub when: WhenUnsatisfiable,
    pub max_skew: i64,
    pub topology_key: String,
    pub min_domains: i64,
    /// The pods that are spread.
    pub matcher: Arc<Vec<PodMatcher>>,
    /// `nodeAffinityPolicy: Honor`: only nodes count that the pod's node affinity allows.
    pub honor_affinity: bool,
    /// `nodeTaintsPolicy: Honor`: only nodes count whose taints the pod tolerates.
    pub honor_taints: bool,
}

impl SpreadConstraint {
    /// A constraint of a pod in `namespace`. `None` for a `whenUnsatisfiable` that the API does not know.
    pub fn of(constraint: &TopologySpreadConstraint, namespace: &str, labels: &Labels) -> Option<Self> {
        let mut selector = Selector::of(constraint.label_selector.as_ref());
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key) {
                selector.require(key, Operator::In, vec![value.clone()]);
            }
        }
        Self::with_selector(constraint, namespace, selector)
    }

    /// The same for another selector than the constraint's own.
    pub fn with_selector(
        constraint: &TopologySpreadConstraint,
        namespace: &str,
        selector: Selector,
    ) -> Option<Self> {
        let when = match constraint.when_unsatisfiable.as_str() {
            "DoNotSchedule" => WhenUnsatisfiable::DoNotSchedule,
            "ScheduleAnyway" => WhenUnsatisfiable::ScheduleAnyway,
            _ => return None,
        };
        Some(Self {
            when,
            max_skew: i64::from(constraint.max_skew),
            topology_key: constraint.topology_key.clone(),
            min_domains: constraint.min_domains.map_or(1, i64::from),
            matcher: Arc::new(vec![PodMatcher::in_namespace(namespace, selector)]),
            honor_affinity: constraint.node_affinity_policy.as_deref().unwrap_or("Honor") == "Honor",
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        })
    }
}

/// A PersistentVolumeClaim that a pod uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimUse {
    pub name: String,
    /// Made for this pod from a template (generic ephemeral volume).
    pub ephemeral: bool,
}

/// A pod and what was worked out from it.
#[derive(Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub key: ObjectKey,
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.priority`, 0 when unset.
    pub priority: i32,
    pub requests: Resources,
    pub non_zero_requests: NonZero,
    pub host_ports: Vec<HostPort>,
    /// `spec.nodeSelector` and the required node affinity.
    pub node_matcher: Arc<NodeMatcher>,
    pub affinities: PodAffinities,
    pub spread_constraints: Vec<SpreadConstraint>,
    pub claims: Vec<ClaimUse>,
    /// Being deleted.
    pub terminating: bool,
}

static NO_LABELS: Labels = BTreeMap::new();

impl PodInfo {
    /// Works out a pod.
    pub fn new(pod: Arc<Pod>) -> Self {
        let spec = pod.spec.as_ref();
        let key = ObjectKey::of(&pod.metadata);
        let required = spec
            .and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref())
            .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
        let labels = pod.metadata.labels.as_ref().unwrap_or(&NO_LABELS);
        let constraints =
            spec.and_then(|spec| spec.topology_spread_constraints.as_ref()).into_iter().flatten();
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            priority: spec.and_then(|spec| spec.priority).unwrap_or(0),
            requests: pod_requests(&pod),
            non_zero_requests: spec.map(pod_non_zero_requests).unwrap_or_default(),
            host_ports: spec.map(host_ports).unwrap_or_default(),
            node_matcher: Arc::new(NodeMatcher::new(
                spec.and_then(|spec| spec.node_selector.as_ref()),
                required,
            )),
            affinities: PodAffinities::of(&pod),
            spread_constraints: constraints
                .filter_map(|constraint| SpreadConstraint::of(constraint, &key.namespace, labels))
                .collect(),
            claims: spec.map(|spec| claims(spec, &key.name)).unwrap_or_default(),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            key,
            pod,
        }
    }

    /// `metadata.labels`.
    pub fn labels(&self) -> &Labels {
        self.pod.metadata.labels.as_ref().unwrap_or(&NO_LABELS)
    }

    /// The spec; the API server lets no pod without one pass.
    pub fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// Whether both pods want the same of a node, whatever else runs in the cluster: resources, host ports, node
    /// selection and preferences, tolerations.
    pub fn asks_the_same_of_a_node(&self, other: &Self) -> bool {
        fn terms(pod: &PodInfo) -> (Option<&NodeAffinity>, &[Toleration], Option<&str>) {
            let spec = pod.spec();
            let affinity = spec.and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
            let tolerations = spec.and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
            (affinity, tolerations, pod.node_name())
        }
        self.requests == other.requests
            && self.non_zero_requests == other.non_zero_requests
            && self.host_ports == other.host_ports
            && self.node_matcher == other.node_matcher
            && terms(self) == terms(other)
    }

    /// `spec.schedulerName`.
    pub fn scheduler_name(&self) -> &str {
        self.spec().and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler")
    }

    /// `spec.nodeName`, once bound.
    pub fn node_name(&self) -> Option<&str> {
        self.spec()?.node_name.as_deref().filter(|name| !name.is_empty())
    }

    /// `status.nominatedNodeName`.
    pub fn nominated_node_name(&self) -> Option<&str> {
        self.pod.status.as_ref()?.nominated_node_name.as_deref().filter(|name| !name.is_empty())
    }

    /// Whether it has finished and needs no resources any more.
    pub fn is_terminal(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    /// Whether `spec.schedulingGates` hold it back.
    pub fn is_gated(&self) -> bool {
        self.spec().is_some_and(|spec| spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()))
    }

    /// `status.startTime`; a pod that has not started counts as starting now, that is later than all others.
    pub fn start_time(&self) -> Timestamp {
        let started = self.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        started.map_or(Timestamp::MAX, |time| time.0)
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(HostPort {
                ip: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned()),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: port.host_port.filter(|port| *port > 0)?,
            })
        })
        .collect()
}

fn claims(spec: &PodSpec, pod: &str) -> Vec<ClaimUse> {
    let volumes = spec.volumes.iter().flatten();
    volumes
        .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(ClaimUse { name: claim.claim_name.clone(), ephemeral: false }),
            (None, Some(_)) => Some(ClaimUse { name: format!("{pod}-{}", volume.name), ephemeral: true }),
            (None, None) => None,
        })
        .collect()
}
