//! Taints repel pods that do not tolerate them: `NoSchedule` and `NoExecute` strictly, `PreferNoSchedule` by score.
//! Nodes with equal taints get one verdict.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::cache::{Cache, NodeInfo};
use crate::framework::{
    ActionType, Change, ClusterEvent, EventResource, ExtensionPoint, Filter, Plugin, PreFilter, QueueingHint,
    Registration, Scorer, Status, default_normalize_score,
};
use crate::pod_info::PodInfo;
use crate::selector::tolerates;

pub struct TaintToleration;

fn tolerations(pod: &PodInfo) -> &[Toleration] {
    pod.spec().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
}

/// Whether a pod tolerates all taints that keep pods away.
pub fn tolerates_all(pod: &PodInfo, taints: &[Taint]) -> bool {
    let mut repelling =
        taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    repelling.all(|taint| tolerations(pod).iter().any(|toleration| tolerates(toleration, taint)))
}

/// By taint set.
struct Untolerated(Vec<bool>);

impl Filter for Untolerated {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status> {
        if self.0[node.taints.0 as usize] {
            return Err(Status::unresolvable("node(s) had untolerated taint(s)"));
        }
        Ok(())
    }

    fn is_local(&self) -> bool {
        true
    }
}

/// How many `PreferNoSchedule` taints are not tolerated, by taint set.
struct Intolerable(Vec<i64>);

impl Scorer for Intolerable {
    fn score(&self, node: &NodeInfo) -> i64 {
        self.0[node.taints.0 as usize]
    }

    fn is_local(&self) -> bool {
        true
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        default_normalize_score(scores, true);
    }
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::Filter, ExtensionPoint::PreScore, ExtensionPoint::Score]
    }

    fn events_to_register(&self) -> Vec<Registration> {
        vec![
            Registration::new(EventResource::Node, ActionType::ADD | ActionType::UPDATE_NODE_TAINT),
            Registration::new(EventResource::TargetPod, ActionType::UPDATE_POD_TOLERATION),
        ]
    }

    fn queueing_hint(&self, pod: &PodInfo, event: &ClusterEvent, _: &Cache) -> QueueingHint {
        let Change::Node(old, Some(new)) = &event.change else { return QueueingHint::Queue };
        let tolerated = |node: &k8s_openapi::api::core::v1::Node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
            tolerates_all(pod, taints)
        };
        QueueingHint::queue_if(tolerated(new) && !old.as_ref().is_some_and(|old| tolerated(old)))
    }

    fn pre_filter<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache) -> PreFilter<'a> {
        let verdicts: Vec<_> = cache.taint_sets().iter().map(|taints| !tolerates_all(pod, taints)).collect();
        if verdicts.contains(&true) {
            PreFilter::Filter(Box::new(Untolerated(verdicts)))
        } else {
            PreFilter::Skip
        }
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cache: &'a Cache,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Scorer + 'a>> {
        let soft = |toleration: &&Toleration| {
            matches!(toleration.effect.as_deref().unwrap_or_default(), "" | "PreferNoSchedule")
        };
        let tolerations: Vec<_> = tolerations(pod).iter().filter(soft).collect();
        let count = |taints: &Vec<Taint>| {
            let soft = taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
            let repelling =
                soft.filter(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)));
            i64::try_from(repelling.count()).unwrap_or(i64::MAX)
        };
        let counts: Vec<_> = cache.taint_sets().iter().map(count).collect();
        // All equal: the score would decide nothing.
        counts.iter().any(|count| *count > 0).then(|| Box::new(Intolerable(counts)) as Box<dyn Scorer>)
    }
}
