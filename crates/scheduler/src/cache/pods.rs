//! What the placed pods mean for the next one: how many match a selector, by node and domain, and which affinity terms
//! of theirs match it. Pods with equal labels in one namespace are one class, so that selectors are evaluated once for
//! each class instead of once for each pod, and nothing here costs more when more pods are placed.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use super::counts::Counts;
use super::node_info::NodeIndex;
use super::topology::{Move, Topology, TopologyKey};
use crate::pod_info::{AffinityTerm, PodInfo, PodMatcher};
use crate::selector::Labels;

/// How many selectors are counted for at once; of more the longest unused ones are forgotten, and counted anew when
/// they are asked for again.
const MAX_COUNTERS: usize = 1024;
/// How many classes without a placed pod are remembered.
const MAX_EMPTY_CLASSES: usize = 4096;

static NO_LABELS: Labels = Labels::new();

/// What is counted: the pods that match all of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CounterKey {
    pub matchers: Arc<Vec<PodMatcher>>,
    /// Pods that are being deleted do not count.
    pub live_only: bool,
}

/// Why a placed pod has a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TermKind {
    Required,
    RequiredAnti,
    Preferred,
}

/// A term that placed pods have: how many, or for preferred terms with how much weight, by node and domain.
#[derive(Debug)]
pub struct ExistingTerm {
    pub kind: TermKind,
    pub term: Arc<AffinityTerm>,
    pub key: TopologyKey,
    pub counts: Counts,
    pods: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TermId(u32);

#[derive(Debug, Clone, Copy, Default)]
struct Placed {
    live: i64,
    terminating: i64,
}

#[derive(Debug)]
struct Class {
    namespace: String,
    labels: Labels,
    placed: HashMap<NodeIndex, Placed>,
    /// Counters that match, as of a generation of the counters.
    counters: (u64, Vec<usize>),
    /// Terms that match, as of a generation of the terms.
    terms: (u64, Vec<TermId>),
}

#[derive(Debug)]
struct Counter {
    key: CounterKey,
    counts: Counts,
    last_used: u64,
}

/// The placed pods, by class.
#[derive(Debug, Default)]
pub struct PodIndex {
    hasher: RandomState,
    by_hash: HashMap<u64, Vec<usize>>,
    classes: Vec<Option<Class>>,
    free: Vec<usize>,
    empty_classes: usize,

    counters: Vec<Counter>,
    counter_of: HashMap<CounterKey, usize>,
    /// Changes with the set of counters; 0 is never current.
    counter_generation: u64,
    uses: u64,

    terms: Vec<Option<ExistingTerm>>,
    free_terms: Vec<u32>,
    term_of: HashMap<(TermKind, Arc<AffinityTerm>), TermId>,
    terms_of_namespace: HashMap<String, Vec<TermId>>,
    /// Terms that select namespaces by labels.
    selecting_terms: Vec<TermId>,
    term_generation: u64,

    namespaces: HashMap<String, Labels>,
}

impl PodIndex {
    fn hash(&self, namespace: &str, labels: &Labels) -> u64 {
        self.hasher.hash_one((namespace, labels))
    }

    fn find(&self, namespace: &str, labels: &Labels) -> Option<usize> {
        let bucket = self.by_hash.get(&self.hash(namespace, labels))?;
        let same = |place: &&usize| {
            self.classes[**place]
                .as_ref()
                .is_some_and(|class| class.namespace == namespace && class.labels == *labels)
        };
        bucket.iter().find(same).copied()
    }

    fn intern(&mut self, pod: &PodInfo) -> usize {
        if let Some(known) = self.find(&pod.key.namespace, pod.labels()) {
            return known;
        }
        if self.empty_classes >= MAX_EMPTY_CLASSES {
            self.forget_empty_classes();
        }
        let class = Class {
            namespace: pod.key.namespace.clone(),
            labels: pod.labels().clone(),
            placed: HashMap::new(),
            counters: (0, Vec::new()),
            terms: (0, Vec::new()),
        };
        let hash = self.hash(&class.namespace, &class.labels);
        let place = self.free.pop().unwrap_or(self.classes.len());
        match self.classes.get_mut(place) {
            Some(slot) => *slot = Some(class),
            None => self.classes.push(Some(class)),
        }
        self.by_hash.entry(hash).or_default().push(place);
        self.empty_classes += 1;
        place
    }

    fn forget_empty_classes(&mut self) {
        for place in 0..self.classes.len() {
            if !self.classes[place].as_ref().is_some_and(|class| class.placed.is_empty()) {
                continue;
            }
            let Some(class) = self.classes[place].take() else { continue };
            let hash = self.hash(&class.namespace, &class.labels);
            if let Some(bucket) = self.by_hash.get_mut(&hash) {
                bucket.retain(|other| *other != place);
                if bucket.is_empty() {
                    self.by_hash.remove(&hash);
                }
            }
            self.free.push(place);
        }
        self.empty_classes = 0;
    }

    /// Labels of a namespace; empty when it is not known.
    pub fn namespace_labels(&self, namespace: &str) -> &Labels {
        self.namespaces.get(namespace).unwrap_or(&NO_LABELS)
    }

    /// Whether a pod matches, with its namespace's labels as they are now.
    pub fn matches(&self, matcher: &PodMatcher, pod: &PodInfo) -> bool {
        matcher.matches(&pod.key.namespace, pod.labels(), || self.namespace_labels(&pod.key.namespace))
    }

    /// Counts a pod on a node. `keys` are the topology keys of its own terms, in the order of [`terms_of`].
    pub fn add(&mut self, pod: &PodInfo, node: NodeIndex, keys: &[TopologyKey], topology: &Topology) {
        self.count(pod, node, 1, topology);
        for ((kind, weight, term), key) in terms_of(pod).zip(keys) {
            let id = self.intern_term(kind, term, *key, topology);
            if let Some(existing) = &mut self.terms[id.0 as usize] {
                existing.counts.add(node, weight, topology);
                existing.pods += 1;
            }
        }
    }

    /// Takes a pod off a node.
    pub fn remove(&mut self, pod: &PodInfo, node: NodeIndex, topology: &Topology) {
        self.count(pod, node, -1, topology);
        for (kind, weight, term) in terms_of(pod) {
            let Some(id) = self.term_of.get(&(kind, term.clone())).copied() else { continue };
            let Some(existing) = &mut self.terms[id.0 as usize] else { continue };
            existing.counts.add(node, -weight, topology);
            existing.pods -= 1;
            if existing.pods == 0 {
                self.forget_term(id);
            }
        }
    }

    fn count(&mut self, pod: &PodInfo, node: NodeIndex, sign: i64, topology: &Topology) {
        let place = self.intern(pod);
        self.refresh_counters(place);
        let Some(class) = &mut self.classes[place] else { return };
        let was_empty = class.placed.is_empty();
        let placed = class.placed.entry(node).or_default();
        *(if pod.terminating { &mut placed.terminating } else { &mut placed.live }) += sign;
        if placed.live == 0 && placed.terminating == 0 {
            class.placed.remove(&node);
        }
        match (was_empty, class.placed.is_empty()) {
            (true, false) => self.empty_classes = self.empty_classes.saturating_sub(1),
            (false, true) => self.empty_classes += 1,
            _ => {}
        }
        for counter in &class.counters.1 {
            let counter = &mut self.counters[*counter];
            if !(counter.key.live_only && pod.terminating) {
                counter.counts.add(node, sign, topology);
            }
        }
    }

    fn refresh_counters(&mut self, place: usize) {
        let Some(class) = &mut self.classes[place] else { return };
        if class.counters.0 == self.counter_generation {
            return;
        }
        let labels = self.namespaces.get(&class.namespace).unwrap_or(&NO_LABELS);
        let matching =
            self.counters.iter().enumerate().filter(|(_, counter)| class.matches(&counter.key, labels));
        let matching = matching.map(|(number, _)| number).collect();
        class.counters = (self.counter_generation, matching);
    }

    /// Sees to it that pods are counted by a key and the domains of these topology keys.
    pub fn register(&mut self, key: &CounterKey, keys: &[TopologyKey], topology: &Topology) {
        self.uses += 1;
        let number = match self.counter_of.get(key) {
            Some(number) => *number,
            None => self.new_counter(key, topology),
        };
        let counter = &mut self.counters[number];
        counter.last_used = self.uses;
        for key in keys {
            counter.counts.track(*key, topology);
        }
    }

    fn new_counter(&mut self, key: &CounterKey, topology: &Topology) -> usize {
        let mut counts = Counts::default();
        for class in self.classes.iter().flatten() {
            let labels = self.namespaces.get(&class.namespace).unwrap_or(&NO_LABELS);
            if !class.matches(key, labels) {
                continue;
            }
            for (node, placed) in &class.placed {
                let amount = placed.live + if key.live_only { 0 } else { placed.terminating };
                if amount != 0 {
                    counts.add(*node, amount, topology);
                }
            }
        }
        self.counter_generation += 1;
        let counter = Counter { key: key.clone(), counts, last_used: self.uses };
        let oldest = (0..self.counters.len()).min_by_key(|number| self.counters[*number].last_used);
        let number = match oldest.filter(|_| self.counters.len() >= MAX_COUNTERS) {
            Some(oldest) => {
                let forgotten = std::mem::replace(&mut self.counters[oldest], counter);
                self.counter_of.remove(&forgotten.key);
                oldest
            }
            None => {
                self.counters.push(counter);
                self.counters.len() - 1
            }
        };
        self.counter_of.insert(key.clone(), number);
        number
    }

    /// The counts of a key that was [registered](Self::register) since the last pod was scheduled.
    pub fn counts(&self, key: &CounterKey) -> Option<&Counts> {
        self.counter_of.get(key).map(|number| &self.counters[*number].counts)
    }

    fn intern_term(
        &mut self,
        kind: TermKind,
        term: &Arc<AffinityTerm>,
        key: TopologyKey,
        topology: &Topology,
    ) -> TermId {
        if let Some(known) = self.term_of.get(&(kind, term.clone())) {
            return *known;
        }
        let mut counts = Counts::default();
        counts.track(key, topology);
        let existing = ExistingTerm { kind, term: term.clone(), key, counts, pods: 0 };
        let place = self.free_terms.pop().unwrap_or(u32::try_from(self.terms.len()).unwrap_or(u32::MAX));
        match self.terms.get_mut(place as usize) {
            Some(slot) => *slot = Some(existing),
            None => self.terms.push(Some(existing)),
        }
        let id = TermId(place);
        self.term_of.insert((kind, term.clone()), id);
        if term.matcher.namespace_selector.is_some() {
            self.selecting_terms.push(id);
        } else {
            for namespace in &term.matcher.namespaces {
                self.terms_of_namespace.entry(namespace.clone()).or_default().push(id);
            }
        }
        self.term_generation += 1;
        id
    }

    fn forget_term(&mut self, id: TermId) {
        let Some(gone) = self.terms[id.0 as usize].take() else { return };
        self.term_of.remove(&(gone.kind, gone.term.clone()));
        if gone.term.matcher.namespace_selector.is_some() {
            self.selecting_terms.retain(|other| *other != id);
        } else {
            for namespace in &gone.term.matcher.namespaces {
                if let Some(terms) = self.terms_of_namespace.get_mut(namespace) {
                    terms.retain(|other| *other != id);
                    if terms.is_empty() {
                        self.terms_of_namespace.remove(namespace);
                    }
                }
            }
        }
        self.free_terms.push(id.0);
        self.term_generation += 1;
    }

    /// Finds the terms of placed pods that match a pod, unless they are known from an equal one.
    pub fn match_terms(&mut self, pod: &PodInfo) {
        // Generations begin at 1 with the first term; without any there is nothing to find.
        if self.term_generation == 0 {
            return;
        }
        let place = self.intern(pod);
        let Some(class) = &self.classes[place] else { return };
        if class.terms.0 == self.term_generation {
            return;
        }
        let named = self.terms_of_namespace.get(&pod.key.namespace).into_iter().flatten();
        let matching = named.chain(&self.selecting_terms).filter(|id| {
            let existing = self.terms[id.0 as usize].as_ref();
            existing.is_some_and(|existing| self.matches(&existing.term.matcher, pod))
        });
        let matching: Vec<_> = matching.copied().collect();
        let generation = self.term_generation;
        if let Some(class) = &mut self.classes[place] {
            class.terms = (generation, matching);
        }
    }

    /// The terms that [`match_terms`](Self::match_terms) has found.
    pub fn matching_terms(&self, pod: &PodInfo) -> impl Iterator<Item = &ExistingTerm> {
        let class = match self.term_generation {
            0 => None,
            _ => self.find(&pod.key.namespace, pod.labels()).and_then(|place| self.classes[place].as_ref()),
        };
        let ids = class.into_iter().flat_map(|class| &class.terms.1);
        ids.filter_map(|id| self.terms[id.0 as usize].as_ref())
    }

    /// A node changed its domain.
    pub fn follow(&mut self, change: &Move) {
        self.counters.iter_mut().for_each(|counter| counter.counts.follow(change));
        self.terms.iter_mut().flatten().for_each(|existing| existing.counts.follow(change));
    }

    /// A namespace's labels; `None` when it is gone. Counters that look at them begin anew.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        match labels {
            Some(labels) => _ = self.namespaces.insert(name.to_owned(), labels),
            None => _ = self.namespaces.remove(name),
        }
        self.term_generation += u64::from(!self.selecting_terms.is_empty());
        let selecting = |counter: &Counter| {
            counter.key.matchers.iter().any(|matcher| matcher.namespace_selector.is_some())
        };
        if self.counters.iter().any(selecting) {
            self.counters.clear();
            self.counter_of.clear();
            self.counter_generation += 1;
        }
    }
}

impl Class {
    fn matches(&self, key: &CounterKey, namespace_labels: &Labels) -> bool {
        key.matchers.iter().all(|matcher| matcher.matches(&self.namespace, &self.labels, || namespace_labels))
    }
}

/// All terms of a pod: why it has them and how much each counts.
pub fn terms_of(pod: &PodInfo) -> impl Iterator<Item = (TermKind, i64, &Arc<AffinityTerm>)> {
    let affinities = &pod.affinities;
    let required = affinities.required.iter().map(|term| (TermKind::Required, 1, term));
    let anti = affinities.required_anti.iter().map(|term| (TermKind::RequiredAnti, 1, term));
    let preferred = affinities.preferred.iter().map(|(weight, term)| (TermKind::Preferred, *weight, term));
    required.chain(anti).chain(preferred)
}
