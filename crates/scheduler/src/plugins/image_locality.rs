//! Nodes that have a pod's images already are preferred, by size, damped for images that few nodes have: otherwise pods
//! would heap up on one node.

use crate::cache::{Cache, NodeInfo};
use crate::framework::{ExtensionPoint, MAX_NODE_SCORE, Plugin, Scorer};
use crate::pod_info::PodInfo;

pub struct ImageLocality;

const MB: i64 = 1024 * 1024;
const MIN_THRESHOLD: i64 = 23 * MB;
const MAX_CONTAINER_THRESHOLD: i64 = 1000 * MB;

struct Present<'a> {
    /// The images that are anywhere, with the size that counts.
    images: Vec<(&'a std::collections::HashSet<crate::cache::NodeIndex>, i64)>,
    containers: i64,
}

impl Scorer for Present<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let here = self.images.iter().filter(|(nodes, _)| nodes.contains(&node.index));
        let sum: i64 = here.map(|(_, size)| size).sum();
        let max = MAX_CONTAINER_THRESHOLD * self.containers;
        MAX_NODE_SCORE * (sum.clamp(MIN_THRESHOLD, max) - MIN_THRESHOLD) / (max - MIN_THRESHOLD)
    }
}

/// As nodes report it: with a tag.
fn normalized(image: &str) -> String {
    let tagged = image.rsplit_once(':').is_some_and(|(_, tag)| !tag.contains('/'));
    if tagged { image.to_owned() } else { format!("{image}:latest") }
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::Score]
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cache: &'a Cache,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Scorer + 'a>> {
        let spec = pod.spec()?;
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let names = containers.filter_map(|container| container.image.as_deref());
        let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref());
        let names = names.chain(volumes.filter_map(|image| image.reference.as_deref()));
        let names: Vec<_> = names.map(normalized).collect();
        let total = cache.order().len().max(1);
        let present = names.iter().filter_map(|name| cache.images().get(name));
        let images = present.map(|image| {
            let spread = image.nodes.len() as f64 / total as f64;
            // A size in bytes, at most the image's own.
            (&image.nodes, (image.size as f64 * spread) as i64)
        });
        let images: Vec<_> = images.collect();
        let containers = i64::try_from(names.len()).unwrap_or(1).max(1);
        (!images.is_empty()).then(|| Box::new(Present { images, containers }) as Box<dyn Scorer + 'a>)
    }
}
