//! The cluster as the scheduler sees it: nodes, and the pods on each, including those it has just decided about.
//! One owner, no locks: the scheduling loop.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use orlop_client::ObjectKey;

use crate::pod_info::PodInfo;
use crate::resources::Resources;

/// A node, what it offers and what is taken of it.
#[derive(Debug)]
pub struct NodeInfo {
    pub name: String,
    /// `None` while only its pods are known.
    pub node: Option<Arc<Node>>,
    pub allocatable: Resources,
    /// How many pods it takes.
    pub allowed_pods: i64,
    pub requested: Resources,
    pub non_zero_requested: Resources,
    pub pods: BTreeMap<ObjectKey, Arc<PodInfo>>,
}

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

impl NodeInfo {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            node: None,
            allocatable: Resources::default(),
            allowed_pods: 0,
            requested: Resources::default(),
            non_zero_requested: Resources::default(),
            pods: BTreeMap::new(),
        }
    }

    fn set_node(&mut self, node: Arc<Node>) {
        let list = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        self.allocatable = Resources::from_list(list);
        let pods =
            list.and_then(|list| list.get("pods")).and_then(|pods| orlop_api::Quantity::parse(&pods.0).ok());
        self.allowed_pods = pods.map_or(0, |pods| pods.value());
        self.node = Some(node);
    }

    /// `metadata.labels` of the node.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        self.node.as_ref().and_then(|node| node.metadata.labels.as_ref()).unwrap_or(&NO_LABELS)
    }

    fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.non_zero_requested.add(&pod.non_zero_requests);
        self.pods.insert(pod.key.clone(), pod);
    }

    fn remove(&mut self, key: &ObjectKey) {
        if let Some(pod) = self.pods.remove(key) {
            self.requested.subtract(&pod.requests);
            self.non_zero_requested.subtract(&pod.non_zero_requests);
        }
    }
}

/// All nodes and placed pods.
#[derive(Debug, Default)]
pub struct Cache {
    nodes: BTreeMap<String, NodeInfo>,
    /// On which node each pod counts.
    placed: HashMap<ObjectKey, String>,
}

impl Cache {
    /// The nodes that exist, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> + Clone {
        self.nodes.values().filter(|node| node.node.is_some())
    }

    /// Adds a node or replaces what is known of it.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        self.nodes.entry(name.clone()).or_insert_with(|| NodeInfo::new(&name)).set_node(node);
    }

    /// Forgets a node; its pods stay known until they are deleted.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(info) = self.nodes.get_mut(name) {
            info.node = None;
            if info.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// Counts a pod on a node, instead of wherever it counted before. For assumed pods and for those the API server
    /// says are bound.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.displace(&pod.key);
        self.placed.insert(pod.key.clone(), node.to_owned());
        self.nodes.entry(node.to_owned()).or_insert_with(|| NodeInfo::new(node)).add(pod);
    }

    /// Stops counting a pod. Says whether it counted.
    pub fn displace(&mut self, key: &ObjectKey) -> bool {
        let Some(name) = self.placed.remove(key) else { return false };
        if let Some(info) = self.nodes.get_mut(&name) {
            info.remove(key);
            if info.node.is_none() && info.pods.is_empty() {
                self.nodes.remove(&name);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod};

    #[test]
    fn what_pods_take_is_counted_once_and_given_back() {
        let mut cache = Cache::default();
        cache.set_node(node("n", "4", "8Gi"));
        let requested = |cache: &Cache| cache.nodes().next().map(|node| node.requested.milli_cpu);
        let info = Arc::new(PodInfo::new(pod("a", "500m", "1Gi")));
        cache.place(info.clone(), "n");
        cache.place(info.clone(), "n");
        assert_eq!(requested(&cache), Some(500));
        assert!(cache.displace(&info.key));
        assert!(!cache.displace(&info.key));
        assert_eq!(requested(&cache), Some(0));
    }

    #[test]
    fn a_node_that_comes_after_its_pods_knows_them() {
        let mut cache = Cache::default();
        cache.place(Arc::new(PodInfo::new(pod("a", "500m", "1Gi"))), "n");
        assert_eq!(cache.nodes().count(), 0);
        cache.set_node(node("n", "4", "8Gi"));
        assert_eq!(cache.nodes().next().unwrap().requested.milli_cpu, 500);
        cache.remove_node("n");
        assert_eq!(cache.nodes().count(), 0);
        cache.set_node(node("n", "4", "8Gi"));
        assert_eq!(cache.nodes().next().unwrap().pods.len(), 1);
    }
}
