//! Which images are on which nodes. Answers to upstream's `ImageStateSummary`.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::Node;

use super::node_info::NodeIndex;

/// One image.
#[derive(Debug, Default)]
pub struct Image {
    /// Bytes.
    pub size: i64,
    pub nodes: HashSet<NodeIndex>,
}

/// All images of all nodes, by each of their names.
#[derive(Debug, Default)]
pub struct Images {
    by_name: HashMap<String, Image>,
}

impl Images {
    pub fn get(&self, name: &str) -> Option<&Image> {
        self.by_name.get(name)
    }

    pub(super) fn set_node(&mut self, index: NodeIndex, old: Option<&Node>, new: Option<&Node>) {
        let images = |node: Option<&Node>| {
            node.and_then(|node| node.status.as_ref()?.images.clone()).unwrap_or_default()
        };
        let (old, new) = (images(old), images(new));
        if old == new {
            return;
        }
        for name in old.iter().flat_map(|image| image.names.iter().flatten()) {
            if let Some(image) = self.by_name.get_mut(name) {
                image.nodes.remove(&index);
                if image.nodes.is_empty() {
                    self.by_name.remove(name);
                }
            }
        }
        for image in &new {
            for name in image.names.iter().flatten() {
                let entry = self.by_name.entry(name.clone()).or_default();
                entry.size = image.size_bytes.unwrap_or(0);
                entry.nodes.insert(index);
            }
        }
    }
}
