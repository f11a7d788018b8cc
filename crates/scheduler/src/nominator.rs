//! Pods that preemption makes room for, by the node where. Answers to upstream's `nominator`.

use std::collections::HashMap;
use std::sync::Arc;

use orlop_client::ObjectKey;

use crate::pod_info::PodInfo;

/// The nominated pods that are not placed yet.
#[derive(Debug, Default)]
pub struct Nominator {
    by_node: HashMap<String, Vec<Arc<PodInfo>>>,
    node_of: HashMap<ObjectKey, String>,
}

impl Nominator {
    /// Nominates a pod to a node, instead of any other.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove(&pod.key);
        self.node_of.insert(pod.key.clone(), node.to_owned());
        self.by_node.entry(node.to_owned()).or_default().push(pod);
    }

    /// The newest state of a nominated pod.
    pub fn update(&mut self, pod: &Arc<PodInfo>) {
        if let Some(node) = self.node_of.get(&pod.key).cloned() {
            self.nominate(pod.clone(), &node);
        }
    }

    pub fn remove(&mut self, key: &ObjectKey) {
        let Some(node) = self.node_of.remove(key) else { return };
        if let Some(pods) = self.by_node.get_mut(&node) {
            pods.retain(|pod| pod.key != *key);
            if pods.is_empty() {
                self.by_node.remove(&node);
            }
        }
    }

    /// Where a pod is nominated to.
    pub fn node_of(&self, key: &ObjectKey) -> Option<&str> {
        self.node_of.get(key).map(String::as_str)
    }

    /// Whether no pod is nominated.
    pub fn is_empty(&self) -> bool {
        self.by_node.is_empty()
    }

    /// The pods nominated to a node.
    pub fn on(&self, node: &str) -> &[Arc<PodInfo>] {
        if self.by_node.is_empty() {
            return &[];
        }
        self.by_node.get(node).map_or(&[], Vec::as_slice)
    }
}
