//! Nodes and pods for tests, and a scene to try one plugin in.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::cache::{Cache, NodeInfo};
use crate::framework::{ClusterEvent, Code, Plugin, PreFilter, QueueingHint, Status};
use crate::pod_info::PodInfo;

/// A node with this much CPU and memory and room for 110 pods.
pub fn node(name: &str, cpu: &str, memory: &str) -> Arc<Node> {
    let allocatable = json!({"cpu": cpu, "memory": memory, "pods": "110"});
    parse(json!({"metadata": {"name": name}, "spec": {}, "status": {"allocatable": allocatable}}))
}

/// A node with these labels and this spec.
pub fn labelled_node(name: &str, labels: Value, spec: Value) -> Arc<Node> {
    let mut node = json!({"metadata": {"name": name, "labels": labels}, "spec": spec});
    node["status"] = json!({"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}});
    parse(node)
}

/// A pod with one container that asks for this much.
pub fn pod(name: &str, cpu: &str, memory: &str) -> Arc<Pod> {
    pod_with(
        name,
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}),
    )
}

/// A pod with this spec and the label `app=web`; containers are added when it has none.
pub fn pod_with(name: &str, spec: Value) -> Arc<Pod> {
    labelled_pod(name, json!({"app": "web"}), spec)
}

/// A pod with these labels and this spec.
pub fn labelled_pod(name: &str, labels: Value, mut spec: Value) -> Arc<Pod> {
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    let metadata = json!({"name": name, "namespace": "default", "uid": name, "labels": labels});
    parse(json!({"metadata": metadata, "spec": spec}))
}

/// Any object.
pub fn parse<K: serde::de::DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).expect("a valid object"))
}

/// A cluster and a plugin to be tried in it.
pub struct Scene {
    pub cache: Cache,
    plugin: Box<dyn Plugin>,
}

impl Scene {
    pub fn new(plugin: impl Plugin + 'static) -> Self {
        Self { cache: Cache::default(), plugin: Box::new(plugin) }
    }

    /// The same cluster with another plugin.
    pub fn plugin(&mut self, plugin: impl Plugin + 'static) -> &mut Self {
        self.plugin = Box::new(plugin);
        self
    }

    pub fn node(&mut self, node: Arc<Node>) {
        self.cache.set_node(node);
    }

    pub fn place(&mut self, pod: Arc<Pod>, node: &str) {
        self.cache.place(Arc::new(PodInfo::new(pod)), node);
    }

    /// The verdict on one node.
    pub fn filter(&mut self, pod: Arc<Pod>, node: &str) -> Result<(), Status> {
        let info = PodInfo::new(pod);
        self.cache.refresh();
        self.plugin.prepare(&info, &mut self.cache);
        let on = self.cache.node_by_name(node).expect("a known node");
        match self.plugin.pre_filter(&info, &self.cache) {
            PreFilter::Skip => Ok(()),
            PreFilter::Reject(status) => Err(status),
            PreFilter::Filter(filter) => filter.filter(on),
            PreFilter::Nodes(names, _) if !names.contains(node) => Err(Status::unresolvable("another node")),
            PreFilter::Nodes(_, filter) => filter.map_or(Ok(()), |filter| filter.filter(on)),
        }
    }

    /// The names of the nodes that pass.
    pub fn feasible(&mut self, pod: Arc<Pod>) -> Vec<String> {
        let names: Vec<_> = self.cache.nodes().map(|info| info.name.clone()).collect();
        names.into_iter().filter(|name| self.filter(pod.clone(), name).is_ok()).collect()
    }

    #[track_caller]
    pub fn fits(&mut self, pod: Arc<Pod>, node: &str) {
        assert_eq!(self.filter(pod, node), Ok(()));
    }

    #[track_caller]
    pub fn refused(&mut self, pod: Arc<Pod>, node: &str, code: Code, message: &str) {
        let status = self.filter(pod, node).expect_err("a refusal");
        assert_eq!((status.code, status.message().as_str()), (code, message));
    }

    /// The normalised scores of all nodes; `None` when the plugin has nothing to say.
    pub fn scores(&mut self, pod: Arc<Pod>) -> Option<Vec<i64>> {
        let info = PodInfo::new(pod);
        self.cache.refresh();
        self.plugin.prepare(&info, &mut self.cache);
        let nodes: Vec<&NodeInfo> = self.cache.nodes().collect();
        let scorer = self.plugin.pre_score(&info, &self.cache, &nodes)?;
        let mut scores: Vec<_> = nodes.iter().map(|node| scorer.score(node)).collect();
        scorer.normalize(&nodes, &mut scores);
        Some(scores)
    }

    /// What the plugin thinks of an event for a pod it has rejected. No event, or one it is not registered for, is
    /// skipped.
    #[track_caller]
    pub fn hint(&mut self, pod: &Arc<Pod>, event: Option<ClusterEvent>, expected: QueueingHint) {
        let info = PodInfo::new(pod.clone());
        let registered = self.plugin.events_to_register();
        let hint = event.filter(|event| registered.iter().any(|one| one.covers(event)));
        let hint =
            hint.map_or(QueueingHint::Skip, |event| self.plugin.queueing_hint(&info, &event, &self.cache));
        assert_eq!(hint, expected);
    }
}
