//! Makes room for a pod by the eviction of less important ones. How victims are found is in [`crate::preemption`]; the
//! evictions themselves are the shell's.

use std::sync::Arc;

use rand::Rng;

use crate::cache::Cache;
use crate::config::DefaultPreemptionArgs;
use crate::framework::{
    ActionType, ClusterEvent, Code, Diagnosis, EventResource, ExtensionPoint, Framework, Plugin, PostFilter,
    QueueingHint, Registration, Status,
};
use crate::metrics;
use crate::nominator::Nominator;
use crate::pod_info::PodInfo;
use crate::preemption::{DryRun, Preemption, num_candidates};

pub struct DefaultPreemption {
    args: DefaultPreemptionArgs,
}

impl DefaultPreemption {
    pub fn new(args: DefaultPreemptionArgs) -> Self {
        Self { args }
    }
}

/// Whether a pod may evict others. If it may not, why.
fn eligible(pod: &PodInfo, cache: &Cache, diagnosis: &Diagnosis) -> Result<(), &'static str> {
    if pod.spec().and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.");
    }
    let Some(node) = pod.nominated_node_name().and_then(|name| cache.node_by_name(name)) else {
        return Ok(());
    };
    if diagnosis.code(node.index) == Some(Code::UnschedulableAndUnresolvable) {
        return Ok(());
    }
    let leaving =
        |other: &&Arc<PodInfo>| other.priority < pod.priority && is_terminating_by_preemption(other);
    match node.pods.iter().find(leaving) {
        Some(_) => Err("not eligible due to a terminating pod on the nominated node."),
        None => Ok(()),
    }
}

fn is_terminating_by_preemption(pod: &PodInfo) -> bool {
    let conditions = pod.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.terminating
        && conditions.into_iter().flatten().any(|condition| {
            condition.type_ == "DisruptionTarget"
                && condition.status == "True"
                && condition.reason.as_deref() == Some("PreemptionByScheduler")
        })
}

fn refused(message: impl std::fmt::Display, clear: bool) -> PostFilter {
    PostFilter::Unschedulable { message: format!("preemption: {message}"), clear }
}

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        "DefaultPreemption"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::PreEnqueue, ExtensionPoint::PostFilter]
    }

    /// Other plugins have rejected such a pod too; they know when to try it again.
    fn events_to_register(&self) -> Vec<Registration> {
        vec![Registration::new(EventResource::AssignedPod, ActionType::DELETE)]
    }

    fn queueing_hint(&self, _: &PodInfo, _: &ClusterEvent, _: &Cache) -> QueueingHint {
        QueueingHint::Skip
    }

    fn pre_enqueue(&self, pod: &PodInfo, cache: &Cache) -> Result<(), Status> {
        if cache.preempting.contains(&pod.uid) {
            return Err(Status::unresolvable("waiting for the preemption for this pod to be finished"));
        }
        Ok(())
    }

    fn post_filter(
        &self,
        framework: &Framework,
        pod: &Arc<PodInfo>,
        cache: &Cache,
        diagnosis: &Diagnosis,
        nominator: &Nominator,
    ) -> PostFilter {
        metrics::preemption_asked();
        if let Err(reason) = eligible(pod, cache, diagnosis) {
            return refused(reason, false);
        }
        let total = cache.order().len();
        let resolvable = match &diagnosis.absent {
            Some(status) if status.code == Code::Unschedulable && diagnosis.statuses.is_empty() => {
                cache.order().to_vec()
            }
            _ => {
                let resolvable = diagnosis.statuses.iter().filter(|(_, code)| *code == Code::Unschedulable);
                resolvable.map(|(node, _)| *node).collect()
            }
        };
        let mut why = Diagnosis::new(total);
        if !resolvable.is_empty() {
            let (percent, absolute) =
                (self.args.min_candidate_nodes_percentage, self.args.min_candidate_nodes_absolute);
            let enough = num_candidates(resolvable.len(), percent, absolute);
            let offset = rand::rng().random_range(0..resolvable.len());
            let found = framework.run_pre_filter(pod, cache).and_then(|mut filters| {
                let mut search = DryRun { pod, cache, nominator, filters: &mut filters };
                search.candidates(&resolvable, offset, enough)
            });
            match found {
                Ok((candidates, _)) if !candidates.is_empty() => {
                    return PostFilter::Preempt(Preemption { candidates });
                }
                Ok((_, diagnosis)) => why = diagnosis,
                Err(status) if status.code == Code::Error => return PostFilter::Error(status.message()),
                // Refused as a whole by a plugin: so it would be with fewer pods on the nodes.
                Err(_) => {}
            }
        }
        why.absent = Some(Status::unresolvable("Preemption is not helpful for scheduling"));
        refused(why, true)
    }
}
