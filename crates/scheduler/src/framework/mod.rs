//! The contract between the scheduling cycle and its plugins: upstream's extension points (KEP-624). A plugin looks at
//! a pod once (PreFilter, PreScore) and gives back something that judges nodes (Filter, Score), so that whatever is
//! the same for all nodes is worked out once. Plugins are pure but for PreBind and Bind.

pub mod events;
pub mod profile;
pub mod registry;
pub mod status;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use events::{ActionType, Change, ClusterEvent, EventResource, QueueingHint, Registration};
pub use profile::Framework;
pub use status::{Code, Diagnosis, Status};

use crate::cache::{Cache, NodeInfo};
use crate::nominator::Nominator;
use crate::pod_info::PodInfo;
use crate::shell::Shell;

/// The highest score of a node.
pub const MAX_NODE_SCORE: i64 = 100;

/// Work that goes on outside the scheduling loop.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Where plugins are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExtensionPoint {
    PreEnqueue,
    QueueSort,
    PreFilter,
    Filter,
    PostFilter,
    PreScore,
    Score,
    Reserve,
    Permit,
    PreBind,
    Bind,
    PostBind,
}

impl ExtensionPoint {
    pub const ALL: [Self; 12] = [
        Self::PreEnqueue,
        Self::QueueSort,
        Self::PreFilter,
        Self::Filter,
        Self::PostFilter,
        Self::PreScore,
        Self::Score,
        Self::Reserve,
        Self::Permit,
        Self::PreBind,
        Self::Bind,
        Self::PostBind,
    ];
}

/// What PreFilter makes of a pod.
pub enum PreFilter<'a> {
    /// Nothing to say: Filter is not asked.
    Skip,
    /// No node at all.
    Reject(Status),
    /// Asks for every node.
    Filter(Box<dyn Filter + 'a>),
    /// Only these nodes can take the pod. Filter may still be asked for them.
    Nodes(BTreeSet<String>, Option<Box<dyn Filter + 'a>>),
}

/// A plugin's judgement of nodes for one pod.
pub trait Filter {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status>;

    /// Whether the verdict follows from the node and what [`PodInfo::asks_the_same_of_a_node`] compares: pods that are
    /// alike share it until the node changes.
    fn is_local(&self) -> bool {
        false
    }

    /// As if a pod were placed on a node besides those that are: for nominated pods, and for victims that are spared.
    fn add_pod(&mut self, _pod: &PodInfo, _node: &NodeInfo) {}

    /// As if a pod were taken off a node: for preemption.
    fn remove_pod(&mut self, _pod: &PodInfo, _node: &NodeInfo) {}
}

/// A plugin's preference among the nodes that can take one pod.
pub trait Scorer {
    /// Higher is better. Between 0 and [`MAX_NODE_SCORE`] after [`normalize`](Self::normalize).
    fn score(&self, node: &NodeInfo) -> i64;

    /// As [`Filter::is_local`].
    fn is_local(&self) -> bool {
        false
    }

    /// Brings raw scores into range. `nodes` and `scores` have the same order.
    fn normalize(&self, _nodes: &[&NodeInfo], _scores: &mut [i64]) {}
}

/// The key by which the active queue is sorted, smallest first.
pub type SortKey = (i64, u64);

/// What Reserve holds for a pod until it is bound.
pub trait Reservation: Send + Sync {
    /// Writes what has to be there before the pod is bound, and waits for it.
    fn pre_bind(&self, shell: Arc<Shell>) -> BoxFuture<Result<(), Status>>;

    /// Gives back what is held. Must not fail and may be called once.
    fn unreserve(&self, cache: &mut Cache);
}

/// What Permit says.
pub enum Permit {
    Allow,
    /// Binding waits for the answer, at most so long.
    #[allow(dead_code)] // Of upstream's default plugins none waits; the contract is the same for all.
    Wait(Duration, tokio::sync::oneshot::Receiver<Result<(), Status>>),
}

/// What PostFilter has achieved.
#[derive(Debug)]
pub enum PostFilter {
    /// The pod should be tried again when the victims are gone.
    Preempt(crate::preemption::Preemption),
    /// A claim of the pod is given back, so that it can be allocated elsewhere.
    Deallocate(Box<k8s_openapi::api::resource::v1::ResourceClaim>),
    /// A claim that was made for the pod in vain is deleted.
    DeleteClaim(Box<k8s_openapi::api::resource::v1::ResourceClaim>),
    /// Nothing can be done; `clear` takes back an earlier nomination.
    Unschedulable { message: String, clear: bool },
    /// Nothing can be done, and no other plugin is asked.
    Unresolvable(String),
    /// Something failed.
    Error(String),
}

/// A plugin. It implements the methods of the extension points that it names.
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    fn extension_points(&self) -> &'static [ExtensionPoint];

    /// The events that may make a pod schedulable which this plugin has rejected.
    fn events_to_register(&self) -> Vec<Registration> {
        Vec::new()
    }

    /// Whether such an event is worth another attempt for this pod.
    fn queueing_hint(&self, _pod: &PodInfo, _event: &ClusterEvent, _cache: &Cache) -> QueueingHint {
        QueueingHint::Queue
    }

    /// Whether a pod may enter the active queue.
    fn pre_enqueue(&self, _pod: &PodInfo, _cache: &Cache) -> Result<(), Status> {
        Ok(())
    }

    /// The order of the active queue; `sequence` grows with the time of arrival.
    fn queue_sort(&self, _pod: &PodInfo, sequence: u64) -> SortKey {
        (0, sequence)
    }

    /// Asks the cache to keep what the other methods will look at for this pod.
    fn prepare(&self, _pod: &PodInfo, _cache: &mut Cache) {}

    fn pre_filter<'a>(&'a self, _pod: &'a PodInfo, _cache: &'a Cache) -> PreFilter<'a> {
        PreFilter::Skip
    }

    fn post_filter(
        &self,
        _framework: &Framework,
        _pod: &Arc<PodInfo>,
        _cache: &Cache,
        _diagnosis: &Diagnosis,
        _nominator: &Nominator,
    ) -> PostFilter {
        PostFilter::Unschedulable { message: String::new(), clear: false }
    }

    /// `None`: nothing to say about this pod and these nodes.
    fn pre_score<'a>(
        &'a self,
        _pod: &'a PodInfo,
        _cache: &'a Cache,
        _nodes: &[&'a NodeInfo],
    ) -> Option<Box<dyn Scorer + 'a>> {
        None
    }

    /// Takes what the pod needs on the chosen node, besides what the cache counts.
    fn reserve(
        &self,
        _pod: &Arc<PodInfo>,
        _node: &str,
        _cache: &mut Cache,
    ) -> Result<Option<Box<dyn Reservation>>, Status> {
        Ok(None)
    }

    fn permit(&self, _pod: &PodInfo, _node: &str) -> Result<Permit, Status> {
        Ok(Permit::Allow)
    }

    /// Binds the pod; `None` leaves it to the next plugin.
    fn bind(
        &self,
        _pod: &Arc<PodInfo>,
        _node: &str,
        _shell: &Arc<Shell>,
    ) -> Option<BoxFuture<Result<(), Status>>> {
        None
    }

    fn post_bind(&self, _pod: &PodInfo, _node: &str) {}
}

/// Stretches scores so that the highest becomes [`MAX_NODE_SCORE`]; with `reverse` the lowest is the best. Answers to
/// upstream's `DefaultNormalizeScore`.
pub fn default_normalize_score(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        if max != 0 {
            *score = *score * MAX_NODE_SCORE / max;
        }
        if reverse {
            *score = MAX_NODE_SCORE - *score;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_stretched() {
        let check = |mut scores: Vec<i64>, reverse: bool, expected: &[i64]| {
            default_normalize_score(&mut scores, reverse);
            assert_eq!(scores, expected);
        };
        check(vec![0, 5, 10], false, &[0, 50, 100]);
        check(vec![0, 5, 10], true, &[100, 50, 0]);
        check(vec![0, 0], false, &[0, 0]);
        check(vec![0, 0], true, &[100, 100]);
    }
}
