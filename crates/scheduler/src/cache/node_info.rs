//! A node, what it offers and what is taken of it. Answers to upstream's `framework.NodeInfo`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::pod_info::{HostPort, PodInfo};
use crate::resources::{NonZero, Resources};
use crate::selector::Labels;

/// A node's place in the cache's arrays. Stays the same while the node or one of its pods is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIndex(pub u32);

impl NodeIndex {
    pub fn place(self) -> usize {
        self.0 as usize
    }
}

/// The taints of a node, by number: nodes with equal taints share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TaintSet(pub u32);

/// One node.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    pub index: NodeIndex,
    pub name: String,
    /// `None` while only its pods are known.
    pub node: Option<Arc<Node>>,
    /// Grows with every change of the node object, over all nodes.
    pub generation: u64,
    pub allocatable: Resources,
    /// How many pods it takes.
    pub allowed_pods: i64,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    pub taints: TaintSet,
    pub requested: Resources,
    pub non_zero_requested: NonZero,
    pub pods: Vec<Arc<PodInfo>>,
    pub used_ports: Vec<HostPort>,
    /// How many of its pods use each claim, by `namespace/name`.
    pub claims: HashMap<String, u32>,
}

static NO_LABELS: Labels = BTreeMap::new();

impl NodeInfo {
    pub(super) fn new(index: NodeIndex, name: &str) -> Self {
        Self {
            index,
            name: name.to_owned(),
            node: None,
            generation: 0,
            allocatable: Resources::default(),
            allowed_pods: 0,
            unschedulable: false,
            taints: TaintSet::default(),
            requested: Resources::default(),
            non_zero_requested: NonZero::default(),
            pods: Vec::new(),
            used_ports: Vec::new(),
            claims: HashMap::new(),
        }
    }

    pub(super) fn set_node(&mut self, node: Arc<Node>, generation: u64, taints: TaintSet) {
        let list = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        self.allocatable = Resources::from_list(list);
        let pods =
            list.and_then(|list| list.get("pods")).and_then(|pods| orlop_api::Quantity::parse(&pods.0).ok());
        self.allowed_pods = pods.map_or(0, |pods| pods.value());
        self.unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        self.taints = taints;
        self.generation = generation;
        self.node = Some(node);
    }

    /// `metadata.labels` of the node.
    pub fn labels(&self) -> &Labels {
        self.node.as_ref().and_then(|node| node.metadata.labels.as_ref()).unwrap_or(&NO_LABELS)
    }

    /// Counts a pod here. Preemption does so on copies.
    pub fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.non_zero_requested.milli_cpu += pod.non_zero_requests.milli_cpu;
        self.non_zero_requested.memory += pod.non_zero_requests.memory;
        self.used_ports.extend_from_slice(&pod.host_ports);
        for claim in &pod.claims {
            *self.claims.entry(format!("{}/{}", pod.key.namespace, claim.name)).or_default() += 1;
        }
        self.pods.push(pod);
    }

    /// Stops counting a pod. Says whether it counted.
    pub fn remove_pod(&mut self, pod: &PodInfo) -> bool {
        let Some(place) = self.pods.iter().position(|other| other.uid == pod.uid && other.key == pod.key)
        else {
            return false;
        };
        let pod = self.pods.swap_remove(place);
        self.requested.subtract(&pod.requests);
        self.non_zero_requested.milli_cpu -= pod.non_zero_requests.milli_cpu;
        self.non_zero_requested.memory -= pod.non_zero_requests.memory;
        for port in &pod.host_ports {
            if let Some(place) = self.used_ports.iter().position(|used| used == port) {
                self.used_ports.swap_remove(place);
            }
        }
        for claim in &pod.claims {
            let key = format!("{}/{}", pod.key.namespace, claim.name);
            if let Some(uses) = self.claims.get_mut(&key) {
                *uses -= 1;
                if *uses == 0 {
                    self.claims.remove(&key);
                }
            }
        }
        true
    }
}
