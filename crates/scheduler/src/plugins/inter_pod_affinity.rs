//! Pods near or away from others: required and preferred terms of the pod, and those of the pods that are placed.

use std::sync::Arc;

use crate::cache::{Cache, CounterKey, Domain, ExistingTerm, NodeInfo, TermKind, TopologyTable};
use crate::config::InterPodAffinityArgs;
use crate::framework::{
    ActionType, Change, ClusterEvent, EventResource, ExtensionPoint, Filter, MAX_NODE_SCORE, Plugin,
    PreFilter, QueueingHint, Registration, Scorer, Status,
};
use crate::pod_info::{AffinityTerm, PodInfo};
use crate::selector::Labels;

pub struct InterPodAffinity {
    args: InterPodAffinityArgs,
}

impl InterPodAffinity {
    pub fn new(args: InterPodAffinityArgs) -> Self {
        Self { args }
    }
}

/// Only a pod that matches all required terms counts for any of them.
fn all_of(terms: &[Arc<AffinityTerm>]) -> CounterKey {
    let matchers = terms.iter().map(|term| term.matcher.clone()).collect();
    CounterKey { matchers: Arc::new(matchers), live_only: false }
}

fn one(term: &AffinityTerm) -> CounterKey {
    CounterKey { matchers: Arc::new(vec![term.matcher.clone()]), live_only: false }
}

/// How many pods each domain of one topology key has, and the difference that hypothetical pods make.
struct ByDomain<'a> {
    table: &'a TopologyTable,
    counts: &'a [i64],
    /// In all domains together.
    total: i64,
    delta: Vec<(Domain, i64)>,
}

impl<'a> ByDomain<'a> {
    fn new(cache: &'a Cache, topology_key: &str, counter: &CounterKey) -> Option<Self> {
        let key = cache.topology().key(topology_key)?;
        let counts = cache.pods().counts(counter)?.domains(key);
        Some(Self::of(cache.topology().table(key), counts))
    }

    fn of(table: &'a TopologyTable, counts: &'a [i64]) -> Self {
        Self { table, counts, total: counts.iter().sum(), delta: Vec::new() }
    }

    fn existing(cache: &'a Cache, term: &'a ExistingTerm) -> Self {
        Self::of(cache.topology().table(term.key), term.counts.domains(term.key))
    }

    fn at(&self, domain: Domain) -> i64 {
        let own = self.counts.get(domain.place()).copied().unwrap_or(0);
        own + self.delta.iter().filter(|(other, _)| *other == domain).map(|(_, amount)| amount).sum::<i64>()
    }

    /// `None` when the node lacks the label.
    fn on(&self, node: &NodeInfo) -> Option<i64> {
        self.table.domain(node.index).map(|domain| self.at(domain))
    }

    fn change(&mut self, node: &NodeInfo, amount: i64) {
        let Some(domain) = self.table.domain(node.index) else { return };
        match self.delta.iter().position(|(other, _)| *other == domain) {
            Some(place) => {
                self.delta[place].1 += amount;
                if self.delta[place].1 == 0 {
                    self.delta.swap_remove(place);
                }
            }
            None => self.delta.push((domain, amount)),
        }
    }

    fn is_empty(&self) -> bool {
        self.total + self.delta.iter().map(|(_, amount)| amount).sum::<i64>() <= 0
    }
}

struct Affinity<'a> {
    pod: &'a PodInfo,
    cache: &'a Cache,
    /// By required term, of the pods that match all of them.
    wanted: Vec<(&'a AffinityTerm, ByDomain<'a>)>,
    /// The pod would be the first of its own group: nobody is there to join.
    first: bool,
    unwanted: Vec<(&'a AffinityTerm, ByDomain<'a>)>,
    /// Placed pods' anti-affinity terms that match the pod.
    forbidden: Vec<(Arc<AffinityTerm>, ByDomain<'a>)>,
}

impl Affinity<'_> {
    fn matches(&self, term: &AffinityTerm, pod: &PodInfo) -> bool {
        self.cache.pods().matches(&term.matcher, pod)
    }

    fn change(&mut self, pod: &PodInfo, node: &NodeInfo, amount: i64) {
        if !self.wanted.is_empty() && self.wanted.iter().all(|(term, _)| self.matches(term, pod)) {
            self.wanted.iter_mut().for_each(|(_, domains)| domains.change(node, amount));
        }
        let cache = self.cache;
        for (term, domains) in &mut self.unwanted {
            if cache.pods().matches(&term.matcher, pod) {
                domains.change(node, amount);
            }
        }
        for term in &pod.affinities.required_anti {
            let known = self.forbidden.iter_mut().find(|(known, _)| known == term);
            if let Some((_, domains)) = known {
                domains.change(node, amount);
                continue;
            }
            // Only a nominated pod has a term that no placed pod has.
            let key = cache.topology().key(&term.topology_key);
            if let Some(key) = key.filter(|_| cache.pods().matches(&term.matcher, self.pod)) {
                let mut domains = ByDomain::of(cache.topology().table(key), &[]);
                domains.change(node, amount);
                self.forbidden.push((term.clone(), domains));
            }
        }
    }
}

impl Filter for Affinity<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status> {
        let mut joined = true;
        for (_, domains) in &self.wanted {
            match domains.on(node) {
                None => return Err(Status::unresolvable("node(s) didn't match pod affinity rules")),
                Some(count) => joined &= count > 0,
            }
        }
        let alone = || self.wanted.iter().all(|(_, domains)| domains.is_empty());
        if !(joined || self.first && alone()) {
            return Err(Status::unresolvable("node(s) didn't match pod affinity rules"));
        }
        let taken = |domains: &ByDomain<'_>| domains.on(node).is_some_and(|count| count > 0);
        if self.unwanted.iter().any(|(_, domains)| taken(domains)) {
            return Err(Status::unschedulable("node(s) didn't match pod anti-affinity rules"));
        }
        if self.forbidden.iter().any(|(_, domains)| taken(domains)) {
            return Err(Status::unschedulable("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }

    fn add_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.change(pod, node, 1);
    }

    fn remove_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.change(pod, node, -1);
    }
}

struct Preference<'a>(Vec<(i64, ByDomain<'a>)>);

impl Scorer for Preference<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        self.0.iter().filter_map(|(weight, domains)| Some(weight * domains.on(node)?)).sum()
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        let lowest = scores.iter().copied().min().unwrap_or(0);
        let range = scores.iter().copied().max().unwrap_or(0) - lowest;
        for score in scores {
            *score = if range > 0 {
                // Between 0 and 100, so the cast cuts off nothing but the fraction.
                (MAX_NODE_SCORE as f64 * ((*score - lowest) as f64 / range as f64)) as i64
            } else {
                0
            };
        }
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::PreFilter, ExtensionPoint::Filter, ExtensionPoint::PreScore, ExtensionPoint::Score]
    }

    fn events_to_register(&self) -> Vec<Registration> {
        vec![
            Registration::new(
                EventResource::AssignedPod,
                ActionType::ADD | ActionType::DELETE | ActionType::UPDATE_POD_LABEL,
            ),
            Registration::new(EventResource::TargetPod, ActionType::UPDATE_POD_LABEL),
            Registration::new(EventResource::Node, ActionType::ADD | ActionType::UPDATE_NODE_LABEL),
        ]
    }

    fn queueing_hint(&self, pod: &PodInfo, event: &ClusterEvent, cache: &Cache) -> QueueingHint {
        match &event.change {
            Change::Pod(_, Some(new)) if new.uid == pod.uid => QueueingHint::Queue,
            Change::Pod(old, new) => {
                QueueingHint::queue_if(pod_helps(pod, old.as_deref(), new.as_deref(), cache))
            }
            Change::Node(old, Some(new)) => {
                let label =
                    |labels: Option<&Labels>, key: &str| labels.and_then(|labels| labels.get(key)).cloned();
                let changed = |term: &Arc<AffinityTerm>| {
                    let before =
                        old.as_ref().and_then(|old| label(old.metadata.labels.as_ref(), &term.topology_key));
                    let after = label(new.metadata.labels.as_ref(), &term.topology_key);
                    match old {
                        None => after.is_some(),
                        Some(_) => before != after,
                    }
                };
                let affinities = &pod.affinities;
                let near = affinities.required.iter().all(|term| {
                    new.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(&term.topology_key))
                });
                let worth = if affinities.required.is_empty() {
                    // A new or relabelled node may be free of what keeps the pod away elsewhere.
                    old.is_none()
                        || affinities.required_anti.is_empty()
                        || affinities.required_anti.iter().any(changed)
                } else {
                    near && (old.is_none() || affinities.required.iter().any(changed))
                };
                QueueingHint::queue_if(worth)
            }
            _ => QueueingHint::Queue,
        }
    }

    fn prepare(&self, pod: &PodInfo, cache: &mut Cache) {
        cache.match_terms(pod);
        let affinities = &pod.affinities;
        if !affinities.required.is_empty() {
            let keys: Vec<_> = affinities.required.iter().map(|term| term.topology_key.as_str()).collect();
            cache.count_pods(&all_of(&affinities.required), &keys);
        }
        let preferred = affinities.preferred.iter().map(|(_, term)| term);
        for term in affinities.required_anti.iter().chain(preferred) {
            cache.count_pods(&one(term), &[&term.topology_key]);
        }
    }

    fn pre_filter<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache) -> PreFilter<'a> {
        let affinities = &pod.affinities;
        let together = all_of(&affinities.required);
        let by_domain = |term: &'a Arc<AffinityTerm>, counter: &CounterKey| {
            Some((&**term, ByDomain::new(cache, &term.topology_key, counter)?))
        };
        let wanted: Vec<_> =
            affinities.required.iter().filter_map(|term| by_domain(term, &together)).collect();
        let unwanted: Vec<_> =
            affinities.required_anti.iter().filter_map(|term| by_domain(term, &one(term))).collect();
        let existing = cache.pods().matching_terms(pod).filter(|term| term.kind == TermKind::RequiredAnti);
        let forbidden: Vec<_> =
            existing.map(|term| (term.term.clone(), ByDomain::existing(cache, term))).collect();
        if wanted.is_empty() && unwanted.is_empty() && forbidden.is_empty() {
            return PreFilter::Skip;
        }
        let first = affinities.required.iter().all(|term| cache.pods().matches(&term.matcher, pod));
        PreFilter::Filter(Box::new(Affinity { pod, cache, wanted, first, unwanted, forbidden }))
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cache: &'a Cache,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Scorer + 'a>> {
        let own = pod.affinities.preferred.iter().filter_map(|(weight, term)| {
            Some((*weight, ByDomain::new(cache, &term.topology_key, &one(term))?))
        });
        let mut terms: Vec<_> = own.collect();
        if !(terms.is_empty() && self.args.ignore_preferred_terms_of_existing_pods) {
            let hard = i64::from(self.args.hard_pod_affinity_weight);
            terms.extend(cache.pods().matching_terms(pod).filter_map(|term| {
                let weight = match term.kind {
                    TermKind::Required => hard,
                    TermKind::Preferred => 1,
                    TermKind::RequiredAnti => return None,
                };
                (weight > 0).then(|| (weight, ByDomain::existing(cache, term)))
            }));
        }
        terms.retain(|(_, domains)| domains.counts.iter().any(|count| *count != 0));
        (!terms.is_empty()).then(|| Box::new(Preference(terms)) as Box<dyn Scorer + 'a>)
    }
}

/// Whether a placed pod that came, went or got other labels changes something for a waiting one.
fn pod_helps(pod: &PodInfo, old: Option<&PodInfo>, new: Option<&PodInfo>, cache: &Cache) -> bool {
    let matches = |terms: &[Arc<AffinityTerm>], other: &PodInfo| {
        terms.iter().any(|term| cache.pods().matches(&term.matcher, other))
    };
    let joins = |other: &PodInfo| {
        let required = &pod.affinities.required;
        !required.is_empty() && required.iter().all(|term| cache.pods().matches(&term.matcher, other))
    };
    let in_the_way = |other: &PodInfo| {
        matches(&pod.affinities.required_anti, other)
            || other.affinities.required_anti.iter().any(|term| cache.pods().matches(&term.matcher, pod))
    };
    match (old, new) {
        (None, Some(new)) => joins(new),
        (Some(old), None) => in_the_way(old),
        (Some(old), Some(new)) => !joins(old) && joins(new) || in_the_way(old) && !in_the_way(new),
        (None, None) => false,
    }
}
