//! Whom to evict so that a more important pod fits: the candidates, and the best of them. Pure. Answers to upstream's
//! `framework/preemption` and `defaultpreemption`.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::cache::{Cache, NodeIndex, NodeInfo};
use crate::framework::profile::Filters;
use crate::framework::status::{Code, Diagnosis, Status};
use crate::nominator::Nominator;
use crate::pod_info::PodInfo;
use crate::selector::Selector;

/// A PodDisruptionBudget as preemption needs it.
#[derive(Debug, Clone)]
pub struct Budget {
    selector: Selector,
    allowed: i32,
    /// Pods whose eviction the budget has already counted.
    disrupted: BTreeSet<String>,
}

impl Budget {
    pub fn of(budget: &PodDisruptionBudget) -> Self {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let status = budget.status.as_ref();
        Self {
            selector: Selector::of(selector),
            allowed: status.and_then(|status| status.disruptions_allowed).unwrap_or(0),
            disrupted: status
                .and_then(|status| status.disrupted_pods.as_ref())
                .map(|pods| pods.keys().cloned().collect())
                .unwrap_or_default(),
        }
    }

    /// A budget with an empty selector covers nothing here.
    fn covers(&self, pod: &PodInfo) -> bool {
        !self.selector.is_everything()
            && self.selector.matches(pod.labels())
            && !self.disrupted.contains(&pod.key.name)
    }
}

/// A node that could take the pod, and who would have to go.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub node: String,
    /// The most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// How many of them a disruption budget protects.
    pub violations: usize,
}

/// What preemption proposes.
#[derive(Debug)]
pub struct Preemption {
    /// At least one.
    pub candidates: Vec<Candidate>,
}

/// The search for candidates.
pub struct DryRun<'a, 'f> {
    pub pod: &'a PodInfo,
    pub cache: &'a Cache,
    pub nominator: &'a Nominator,
    pub filters: &'a mut Filters<'f>,
}

impl DryRun<'_, '_> {
    /// Looks for `enough` candidates among nodes, from `offset` on. Of the nodes that are none, the diagnosis says why.
    pub fn candidates(
        &mut self,
        nodes: &[NodeIndex],
        offset: usize,
        enough: usize,
    ) -> Result<(Vec<Candidate>, Diagnosis), Status> {
        let mut diagnosis = Diagnosis::new(self.cache.order().len());
        let (mut candidates, mut peaceful) = (Vec::new(), false);
        for number in 0..nodes.len() {
            let node = self.cache.node(nodes[(offset + number) % nodes.len()]);
            match self.select_victims(node) {
                Ok(candidate) => {
                    peaceful |= candidate.violations == 0;
                    candidates.push(candidate);
                    if peaceful && candidates.len() >= enough {
                        break;
                    }
                }
                Err(status) if status.code == Code::Error => return Err(status),
                Err(status) => diagnosis.refuse(node.index, &status),
            }
        }
        Ok((candidates, diagnosis))
    }

    /// The fewest and least important pods that have to leave a node: all less important ones go, and come back one
    /// by one, those protected by a budget first, as long as the pod still fits.
    fn select_victims(&mut self, node: &NodeInfo) -> Result<Candidate, Status> {
        let lower = node.pods.iter().filter(|pod| pod.priority < self.pod.priority);
        let mut potential: Vec<_> = lower.cloned().collect();
        if potential.is_empty() {
            return Err(Status::unresolvable("No preemption victims found for incoming pod"));
        }
        let mut emptier = node.clone();
        for pod in &potential {
            emptier.remove_pod(pod);
            self.filters.remove_pod(pod, &emptier);
        }
        let mut gone: Vec<Arc<PodInfo>> = potential.clone();
        let verdict = self.filters.run_with_nominated(self.pod, &emptier, self.nominator);
        let result = verdict.map(|()| {
            potential.sort_by_key(|pod| importance(pod));
            let (violating, others) = split_by_budgets(&potential, self.cache);
            let mut victims = Vec::new();
            let mut violations = 0;
            let protected = violating.len();
            for (place, pod) in violating.into_iter().chain(others).enumerate() {
                emptier.add_pod(pod.clone());
                self.filters.add_pod(&pod, &emptier);
                if self.filters.run_with_nominated(self.pod, &emptier, self.nominator).is_ok() {
                    gone.retain(|other| !Arc::ptr_eq(other, &pod));
                    continue;
                }
                emptier.remove_pod(&pod);
                self.filters.remove_pod(&pod, &emptier);
                violations += usize::from(place < protected);
                victims.push(pod);
            }
            victims.sort_by_key(|pod| importance(pod));
            Candidate { node: node.name.clone(), victims, violations }
        });
        // The filters speak of the cluster as it is again.
        for pod in &gone {
            self.filters.add_pod(pod, &emptier);
        }
        match result {
            Ok(candidate) if candidate.victims.is_empty() => {
                let message = format!("expected at least one victim pod on node {:?}", node.name);
                Err(Status::new(Code::Unschedulable, message))
            }
            result => result,
        }
    }
}

/// The most important first.
fn importance(pod: &PodInfo) -> (Reverse<i32>, Timestamp) {
    (Reverse(pod.priority), pod.start_time())
}

/// Those whose eviction a budget does not allow any more, and the others.
fn split_by_budgets(pods: &[Arc<PodInfo>], cache: &Cache) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    if cache.disruption_budgets.is_empty() {
        return (Vec::new(), pods.to_vec());
    }
    let mut used = std::collections::HashMap::new();
    pods.iter().cloned().partition(|pod| {
        let mut violated = false;
        let budgets = cache.disruption_budgets.get(&pod.key.namespace).into_iter().flatten();
        for (name, budget) in budgets.filter(|(_, budget)| !pod.labels().is_empty() && budget.covers(pod)) {
            let used: &mut i32 = used.entry((pod.key.namespace.clone(), name)).or_default();
            *used += 1;
            violated |= *used > budget.allowed;
        }
        violated
    })
}

/// The best candidate: fewest violated budgets, then the least important highest victim, the smallest sum of
/// priorities, fewest victims, and the most important victim that has run the shortest.
pub fn select_candidate(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates.iter().min_by_key(|candidate| {
        let highest = candidate.victims.first().map_or(i32::MIN, |pod| pod.priority);
        // As upstream, shifted so that many victims of negative priority are not better than few.
        let sum: i64 =
            candidate.victims.iter().map(|pod| i64::from(pod.priority) + i64::from(i32::MAX) + 1).sum();
        let most_important = candidate.victims.iter().filter(|pod| pod.priority == highest);
        let earliest = most_important.map(|pod| pod.start_time()).min();
        (candidate.violations, highest, sum, candidate.victims.len(), Reverse(earliest))
    })
}

/// How many candidates are looked for among so many nodes.
pub fn num_candidates(nodes: usize, percentage: i32, absolute: i32) -> usize {
    let of = |number: i32| usize::try_from(number).unwrap_or(0);
    (nodes * of(percentage) / 100).max(of(absolute)).min(nodes)
}
