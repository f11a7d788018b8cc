#![allow(clippy::unwrap_used)]
//! A Deployment, its sets and its pods in a small world of their own: cases for single steps, and random walks that
//! must keep the promises of a rolling update.

use super::conditions::{AVAILABLE, PROGRESSING};
use super::decide::{Plan, plan};
use super::sets::{self, size};
use super::*;
use crate::objects::testing::{at, object};
use pretty_assertions::assert_eq;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

fn deployment(spec: Value) -> Deployment {
    let mut whole = json!({"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600,
        "revisionHistoryLimit": 2, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "web:1"}]}}});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    object(json!({"metadata": {"name": "web", "namespace": "a", "uid": "d", "generation": 1}, "spec": whole}))
}

fn image(deployment: &mut Deployment, image: &str) {
    let containers = &mut deployment.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers;
    containers[0].image = Some(image.to_owned());
    deployment.metadata.generation = Some(deployment.generation() + 1);
}

struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    /// Of each set by name: whether each pod is available.
    pods: Vec<(String, Vec<bool>)>,
    events: Vec<String>,
    now: Timestamp,
}

impl World {
    fn new(deployment: Deployment) -> Self {
        Self {
            deployment,
            sets: Vec::new(),
            pods: Vec::new(),
            events: Vec::new(),
            now: at("2026-01-01T00:00:00Z"),
        }
    }

    fn plan(&self) -> Plan {
        let others = |new: Option<&str>| {
            self.sets.iter().any(|set| {
                Some(set.uid()) != new && self.pods_of(set.name()).is_some_and(|pods| !pods.is_empty())
            })
        };
        plan(&self.deployment, self.deployment.spec.as_ref().unwrap(), self.sets.clone(), others, self.now)
    }

    fn pods_of(&self, set: &str) -> Option<&Vec<bool>> {
        self.pods.iter().find(|(name, _)| name == set).map(|(_, pods)| pods)
    }

    /// The deployment controller's step. Returns whether it wrote anything.
    fn step(&mut self) -> bool {
        let plan = self.plan();
        let wrote = plan.create.is_some()
            || !plan.updates.is_empty()
            || !plan.deletes.is_empty()
            || plan.status.is_some();
        if let Some(create) = plan.create {
            let mut set = create.set;
            let number = self.pods.len();
            set.metadata.uid = Some(format!("u{number}"));
            set.metadata.generation = Some(1);
            set.metadata.creation_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
            assert!(self.sets.iter().all(|other| other.name() != set.name()), "no set twice");
            self.pods.push((set.name().to_owned(), Vec::new()));
            self.sets.push(set);
            self.events.extend(create.event);
        }
        for mut update in plan.updates {
            let place = self.sets.iter().position(|set| set.name() == update.set.name()).unwrap();
            update.set.metadata.generation = Some(update.set.generation() + 1);
            update.set.status = self.sets[place].status.clone();
            self.sets[place] = update.set;
            self.events.extend(update.event);
        }
        for set in plan.deletes {
            assert_eq!(size(&set), 0);
            self.sets.retain(|other| other.name() != set.name());
        }
        if let Some(changed) = plan.status {
            self.deployment = changed;
        }
        wrote
    }

    /// The replica set controller's step for one set: pods that serve nobody go first.
    fn reconcile_set(&mut self, index: usize) {
        let (name, wanted) =
            (self.sets[index].name().to_owned(), usize::try_from(size(&self.sets[index])).unwrap());
        let pods = &mut self.pods.iter_mut().find(|(other, _)| *other == name).unwrap().1;
        pods.sort_by_key(|available| !available);
        pods.resize(wanted, false);
    }

    fn report_set(&mut self, index: usize) {
        let pods = self.pods_of(self.sets[index].name()).unwrap().clone();
        let count = |n: usize| i32::try_from(n).unwrap();
        let available = count(pods.iter().filter(|available| **available).count());
        let generation = self.sets[index].generation();
        let status = self.sets[index].status.get_or_insert_default();
        status.replicas = count(pods.len());
        status.ready_replicas = Some(available);
        status.available_replicas = Some(available);
        status.observed_generation = Some(generation);
        status.terminating_replicas = Some(0);
    }

    fn settle_sets(&mut self) {
        for index in 0..self.sets.len() {
            self.reconcile_set(index);
            self.report_set(index);
        }
    }

    fn all_ready(&mut self) {
        self.pods.iter_mut().for_each(|(_, pods)| pods.iter_mut().for_each(|available| *available = true));
        (0..self.sets.len()).for_each(|index| self.report_set(index));
    }

    /// Runs until nothing is written any more, with every pod becoming ready.
    fn finish(&mut self) {
        for _ in 0..200 {
            let wrote = self.step();
            self.settle_sets();
            self.all_ready();
            if !wrote && !self.step() {
                return;
            }
        }
        panic!("the rollout does not end: {:?}", self.deployment.status);
    }

    fn total(&self) -> usize {
        self.pods.iter().map(|(_, pods)| pods.len()).sum()
    }

    fn available(&self) -> usize {
        self.pods.iter().flat_map(|(_, pods)| pods).filter(|available| **available).count()
    }

    fn condition(&self, kind: &str) -> String {
        let condition = conditions::get(self.deployment.status.as_ref().unwrap(), kind).unwrap();
        format!(
            "{} {}: {}",
            condition.status,
            condition.reason.as_deref().unwrap(),
            condition.message.as_deref().unwrap()
        )
    }

    fn sizes(&self) -> Vec<i32> {
        self.sets.iter().map(size).collect()
    }
}

#[test]
fn the_first_rollout() {
    let mut world = World::new(deployment(json!({})));
    world.step();
    let name = world.sets[0].name().to_owned();
    let hash = name.strip_prefix("web-").unwrap();
    assert_eq!(world.events, [format!("Scaled up replica set {name} from 0 to 3")]);
    assert_eq!(
        world.condition(PROGRESSING),
        format!("True NewReplicaSetCreated: Created new replica set \"{name}\"")
    );
    assert_eq!(
        world.condition(AVAILABLE),
        "False MinimumReplicasUnavailable: Deployment does not have minimum availability."
    );
    assert_eq!(
        serde_json::to_value(&world.sets[0].metadata).unwrap(),
        json!({"name": name, "namespace": "a", "uid": "u0",
        "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "web", "pod-template-hash": hash},
        "annotations": {"deployment.kubernetes.io/desired-replicas": "3", "deployment.kubernetes.io/max-replicas": "4",
            "deployment.kubernetes.io/revision": "1"},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true, "blockOwnerDeletion": true}]})
    );
    assert_eq!(world.deployment.annotation(sets::REVISION), Some("1"));
    world.settle_sets();
    world.step();
    assert_eq!(
        world.condition(PROGRESSING),
        format!("True ReplicaSetUpdated: ReplicaSet \"{name}\" is progressing.")
    );
    world.all_ready();
    world.step();
    assert_eq!(
        world.condition(PROGRESSING),
        format!("True NewReplicaSetAvailable: ReplicaSet \"{name}\" has successfully progressed.")
    );
    assert_eq!(
        world.condition(AVAILABLE),
        "True MinimumReplicasAvailable: Deployment has minimum availability."
    );
    let mut status = serde_json::to_value(world.deployment.status.as_ref().unwrap()).unwrap();
    status.as_object_mut().unwrap().remove("conditions");
    assert_eq!(
        status,
        json!({"availableReplicas": 3, "observedGeneration": 1, "readyReplicas": 3, "replicas": 3,
        "terminatingReplicas": 0, "updatedReplicas": 3})
    );
    assert!(!world.step(), "an idle Deployment writes nothing");
    assert_eq!(world.plan().again, None);
}

#[test]
fn an_update_goes_pod_by_pod_and_undo_brings_the_old_set_back() {
    let mut world = World::new(deployment(json!({})));
    world.finish();
    let first = world.sets[0].name().to_owned();
    world.events.clear();
    image(&mut world.deployment, "web:2");
    world.finish();
    let second = world.sets[1].name().to_owned();
    assert_eq!(
        world.events,
        [
            format!("Scaled up replica set {second} from 0 to 1"),
            format!("Scaled down replica set {first} from 3 to 2"),
            format!("Scaled up replica set {second} from 1 to 2"),
            format!("Scaled down replica set {first} from 2 to 1"),
            format!("Scaled up replica set {second} from 2 to 3"),
            format!("Scaled down replica set {first} from 1 to 0"),
        ]
    );
    image(&mut world.deployment, "web:1");
    world.finish();
    assert_eq!(world.sizes(), [3, 0]);
    assert_eq!(world.sets[0].annotation(sets::REVISION), Some("3"));
    assert_eq!(world.sets[0].annotation("deployment.kubernetes.io/revision-history"), Some("1"));
    assert_eq!(world.deployment.annotation(sets::REVISION), Some("3"));
}

#[test]
fn history_is_cut_to_its_limit() {
    let mut world = World::new(deployment(json!({})));
    for version in 1..=6 {
        image(&mut world.deployment, &format!("web:{version}"));
        world.finish();
    }
    let revisions: Vec<_> = world.sets.iter().map(sets::revision).collect();
    assert_eq!(revisions, [4, 5, 6]);
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut world = World::new(deployment(json!({"strategy": {"type": "Recreate"}})));
    world.finish();
    image(&mut world.deployment, "web:2");
    world.step();
    assert_eq!(world.sizes(), [0], "first all old ones go");
    world.step();
    assert_eq!(world.sets.len(), 1, "pods are still there");
    world.settle_sets();
    world.step();
    assert_eq!(world.sizes(), [0, 3]);
    world.finish();
    assert_eq!(world.available(), 3);
}

#[test]
fn a_pause_holds_a_rollout_but_not_scaling() {
    let mut world = World::new(deployment(json!({})));
    world.finish();
    world.deployment.spec.as_mut().unwrap().paused = Some(true);
    image(&mut world.deployment, "web:2");
    world.finish();
    assert_eq!(world.sizes(), [3]);
    assert_eq!(world.condition(PROGRESSING), "Unknown DeploymentPaused: Deployment is paused");
    world.deployment.spec.as_mut().unwrap().replicas = Some(5);
    world.finish();
    assert_eq!(world.sizes(), [5]);
    world.deployment.spec.as_mut().unwrap().paused = None;
    world.step();
    assert_eq!(world.sizes(), [5, 1]);
    world.finish();
    assert_eq!(world.sizes(), [0, 5]);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    let mut world = World::new(deployment(json!({"replicas": 10, "strategy": {"type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}})));
    world.finish();
    image(&mut world.deployment, "web:bad");
    world.step();
    world.settle_sets();
    world.step();
    world.settle_sets();
    world.step();
    assert_eq!(world.sizes(), [8, 5], "as the documentation's example");
    world.deployment.spec.as_mut().unwrap().replicas = Some(15);
    world.step();
    assert_eq!(world.sizes(), [11, 7]);
}

#[test]
fn a_stuck_rollout_is_told_and_looked_at_in_time() {
    let mut world = World::new(deployment(json!({"progressDeadlineSeconds": 60})));
    world.finish();
    image(&mut world.deployment, "web:bad");
    for _ in 0..4 {
        world.step();
        world.settle_sets();
    }
    let wait = world.plan().again.unwrap();
    assert_eq!(wait.as_secs(), 61);
    world.now += jiff::SignedDuration::from_secs(62);
    world.step();
    let name = world.sets[1].name();
    assert_eq!(
        world.condition(PROGRESSING),
        format!("False ProgressDeadlineExceeded: ReplicaSet \"{name}\" has timed out progressing.")
    );
    assert!(!world.step(), "it is told once");
    assert_eq!(world.plan().again, None);
}

#[test]
fn a_failing_set_is_passed_on() {
    let mut world = World::new(deployment(json!({})));
    world.step();
    world.sets[0].status =
        object(json!({"replicas": 0, "conditions": [{"type": "ReplicaFailure", "status": "True",
        "reason": "FailedCreate", "message": "exceeded quota"}]}));
    world.step();
    assert_eq!(world.condition("ReplicaFailure"), "True FailedCreate: exceeded quota");
    world.sets[0].status = None;
    world.finish();
    assert!(conditions::get(world.deployment.status.as_ref().unwrap(), "ReplicaFailure").is_none());
}

/// Random walks: the controllers act in any order on what may be old news, pods become ready when they like, and the
/// template changes in the middle. Whatever happens, there are never too many pods and never too few available.
#[test]
fn a_rolling_update_keeps_its_promises() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let replicas = random.random_range(1..=8);
        let (surge, unavailable) = match (random.random_range(0..=4), random.random_range(0..=4)) {
            (0, 0) => (1, 0),
            other => other,
        };
        let mut world =
            World::new(deployment(json!({"replicas": replicas, "strategy": {"type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}})));
        world.finish();
        let most = usize::try_from(replicas + surge).unwrap();
        let least = usize::try_from((replicas - unavailable).max(0)).unwrap();
        for turn in 0..120 {
            match random.random_range(0..10) {
                0 => image(&mut world.deployment, &format!("web:{}", random.random_range(2..6))),
                1..=3 => {
                    world.step();
                }
                4..=5 => {
                    let index = random.random_range(0..world.sets.len());
                    world.reconcile_set(index);
                }
                6..=7 => {
                    let index = random.random_range(0..world.sets.len());
                    world.report_set(index);
                }
                _ => {
                    let group = random.random_range(0..world.pods.len());
                    let pods = &mut world.pods[group].1;
                    if !pods.is_empty() {
                        let pod = random.random_range(0..pods.len());
                        pods[pod] = true;
                    }
                }
            }
            let wanted: i32 = world.sizes().iter().sum();
            let context = format!(
                "seed {seed} turn {turn}: {replicas}+{surge}-{unavailable}, sizes {:?}",
                world.sizes()
            );
            assert!(usize::try_from(wanted).unwrap() <= most, "too many wanted, {context}");
            assert!(world.available() >= least, "too few available ({}), {context}", world.available());
        }
        world.finish();
        assert_eq!(world.total(), usize::try_from(replicas).unwrap(), "seed {seed}");
        let newest = sets::find_new(world.deployment.spec.as_ref().unwrap(), &world.sets).unwrap();
        assert_eq!(size(&world.sets[newest]), replicas, "seed {seed}");
    }
}
