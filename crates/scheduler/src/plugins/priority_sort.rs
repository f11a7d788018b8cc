//! Higher priority first, then first come, first served.

use crate::framework::{ExtensionPoint, Plugin, SortKey};
use crate::pod_info::PodInfo;

pub struct PrioritySort;

impl Plugin for PrioritySort {
    fn name(&self) -> &'static str {
        "PrioritySort"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::QueueSort]
    }

    fn queue_sort(&self, pod: &PodInfo, sequence: u64) -> SortKey {
        (-i64::from(pod.priority), sequence)
    }
}
