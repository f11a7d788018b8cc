#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use pretty_assertions::assert_eq;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::*;
use crate::history::{self, Newest};
use crate::objects::testing::{at, object};

fn set(spec: Value) -> StatefulSet {
    let mut whole = json!({"replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
        "podManagementPolicy": "OrderedReady",
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": "db:1"}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    object(json!({"metadata": {"name": "db", "namespace": "a", "uid": "s", "generation": 1}, "spec": whole}))
}

struct World {
    set: StatefulSet,
    revisions: Vec<Arc<ControllerRevision>>,
    pods: BTreeMap<String, Arc<Pod>>,
    claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
    uids: u32,
    now: Timestamp,
    log: Vec<String>,
}

impl World {
    fn new(spec: Value) -> Self {
        Self {
            set: set(spec),
            revisions: Vec::new(),
            pods: BTreeMap::new(),
            claims: BTreeMap::new(),
            uids: 0,
            now: at("2026-01-01T00:00:00Z"),
            log: Vec::new(),
        }
    }

    fn spec(&mut self) -> &mut StatefulSetSpec {
        self.set.metadata.generation = Some(self.set.generation() + 1);
        self.set.spec.as_mut().unwrap()
    }

    fn image(&mut self, image: &str) {
        self.spec().template.spec.as_mut().unwrap().containers[0].image = Some(image.to_owned());
    }

    fn partition(&mut self, partition: i32) {
        let strategy = self.spec().update_strategy.as_mut().unwrap();
        strategy.rolling_update.as_mut().unwrap().partition = Some(partition);
    }

    fn update_revision(&mut self) -> (Revision, Revision) {
        let template = self.set.spec.as_ref().unwrap().template.clone();
        let data = history::template_patch(&template);
        let update = match history::newest(&self.revisions, &data) {
            Newest::Is(revision) => revision,
            Newest::Renumber(revision, number) => {
                let mut changed = (*revision).clone();
                changed.revision = number;
                self.revisions.retain(|other| other.name() != revision.name());
                self.revisions.push(Arc::new(changed));
                revision
            }
            Newest::Create(number) => {
                let hash = history::data_hash(&data, 0);
                let made = history::new_revision(&self.set, &template, &data, ("hash", &hash), number);
                self.revisions.push(Arc::new(made));
                self.revisions.last().unwrap().clone()
            }
        };
        let name = self.set.status.as_ref().and_then(|status| status.current_revision.clone());
        let current = self.revisions.iter().find(|revision| Some(revision.name()) == name.as_deref());
        let restore = |revision: &ControllerRevision| Revision {
            name: revision.name().to_owned(),
            template: history::template_of(revision).unwrap(),
        };
        (restore(current.unwrap_or(&update)), restore(&update))
    }

    fn plan_for(&mut self, pods: &[Arc<Pod>]) -> Plan {
        let (current, update) = self.update_revision();
        let claims = &self.claims;
        plan(&State {
            set: &self.set,
            spec: self.set.spec.as_ref().unwrap(),
            current: &current,
            update: &update,
            collisions: 0,
            pods,
            claims: &|name| claims.get(name).cloned(),
            now: self.now,
        })
    }

    fn snapshot(&self) -> Vec<Arc<Pod>> {
        self.pods.values().cloned().collect()
    }

    /// The controller's step on what may be an old view of the pods. Returns whether it wrote anything.
    fn step_on(&mut self, pods: &[Arc<Pod>]) -> bool {
        let plan = self.plan_for(pods);
        let mut wrote = false;
        'phases: for phase in plan.phases {
            for op in phase {
                wrote = true;
                if !self.apply(op) {
                    break 'phases;
                }
            }
        }
        if differs(self.set.status.as_ref(), &plan.status) {
            wrote = true;
            self.set.status = Some(plan.status);
        }
        wrote
    }

    fn step(&mut self) -> bool {
        let pods = self.snapshot();
        self.step_on(&pods)
    }

    /// Does a write as the API server would. Returns whether it took it.
    fn apply(&mut self, op: Op) -> bool {
        let work = match &op {
            Op::Create { claims, .. } | Op::Claims { claims, .. } | Op::Repair { claims, .. } => Some(claims),
            Op::Delete(_) => None,
        };
        for claim in work.into_iter().flat_map(|work| work.create.iter().chain(&work.update)) {
            self.claims.insert(claim.name().to_owned(), Arc::new(claim.clone()));
        }
        if work.is_some_and(|work| !work.going.is_empty()) {
            return false;
        }
        match op {
            Op::Create { mut pod, .. } => {
                let name = pod.name().to_owned();
                if self.pods.contains_key(&name) {
                    return false;
                }
                self.uids += 1;
                pod.metadata.uid = Some(format!("u{}", self.uids));
                pod.status = object(json!({"phase": "Pending"}));
                self.log.push(format!("+{}", name.trim_start_matches("db-")));
                self.pods.insert(name, Arc::from(pod));
            }
            Op::Repair { pod, .. } => {
                self.pods.insert(pod.name().to_owned(), Arc::from(pod));
            }
            Op::Claims { .. } => {}
            Op::Delete(pod) => {
                let Some(live) = self.pods.get_mut(pod.name()) else { return true };
                if live.uid() != pod.uid() {
                    return false;
                }
                if !live.deleting() {
                    self.log.push(format!("-{}", pod.name().trim_start_matches("db-")));
                    Arc::make_mut(live).metadata.deletion_timestamp = Some(Time(self.now));
                }
            }
        }
        true
    }

    fn set_status(&mut self, name: &str, phase: &str, ready: bool) {
        let since = self.now.to_string();
        let conditions = if ready {
            json!([{"type": "Ready", "status": "True", "lastTransitionTime": since}])
        } else {
            json!([])
        };
        if let Some(pod) = self.pods.get_mut(name) {
            Arc::make_mut(pod).status = object(json!({"phase": phase, "conditions": conditions}));
        }
    }

    /// The kubelets do all they have to.
    fn kubelets(&mut self) {
        self.pods.retain(|_, pod| !pod.deleting());
        let names: Vec<_> = self
            .pods
            .values()
            .filter(|pod| !is_ready(pod) && !is_finished(pod))
            .map(|pod| pod.name().to_owned())
            .collect();
        names.iter().for_each(|name| self.set_status(name, "Running", true));
    }

    fn finish(&mut self) {
        for _ in 0..300 {
            let wrote = self.step();
            self.kubelets();
            self.now += jiff::SignedDuration::from_secs(60);
            if !wrote && !self.step() {
                return;
            }
        }
        panic!("it does not end: {:?} {:?}", self.set.status, self.pods.keys());
    }

    fn log(&mut self) -> String {
        std::mem::take(&mut self.log).join(" ")
    }

    fn images(&self) -> String {
        let image = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap_or_default();
        self.pods.values().map(|pod| image(pod).replace("db:", "")).collect::<Vec<_>>().join("")
    }

    fn unavailable(&self) -> usize {
        let wanted = ordinals(&self.set).map(|ordinal| format!("db-{ordinal}"));
        wanted.filter(|name| !self.pods.get(name).is_some_and(|pod| is_ready(pod) && !pod.deleting())).count()
    }
}

#[test]
fn pods_come_in_order_with_names_and_storage() {
    let mut world = World::new(json!({}));
    world.step();
    assert_eq!(world.log(), "+0");
    let pod = serde_json::to_value(&*world.pods["db-0"]).unwrap();
    let revision = world.set.status.as_ref().unwrap().update_revision.clone().unwrap();
    assert_eq!(
        pod["metadata"],
        json!({"generateName": "db-", "name": "db-0", "namespace": "a", "uid": "u1",
            "labels": {"app": "db", "apps.kubernetes.io/pod-index": "0", "controller-revision-hash": revision,
                "statefulset.kubernetes.io/pod-name": "db-0"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "s",
                "controller": true, "blockOwnerDeletion": true}]})
    );
    assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!("db-0"), &json!("db")));
    assert_eq!(
        pod["spec"]["volumes"],
        json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}}])
    );
    world.step();
    world.set_status("db-0", "Running", false);
    world.step();
    assert_eq!(world.log(), "", "the first is not ready");
    world.finish();
    assert_eq!(world.log(), "+1 +2");
    assert_eq!(world.claims.keys().collect::<Vec<_>>(), ["data-db-0", "data-db-1", "data-db-2"]);
    let status = serde_json::to_value(world.set.status.as_ref().unwrap()).unwrap();
    assert_eq!(
        status,
        json!({"observedGeneration": 1, "replicas": 3, "readyReplicas": 3, "availableReplicas": 3, "currentReplicas": 3,
            "updatedReplicas": 3, "currentRevision": revision, "updateRevision": revision, "collisionCount": 0})
    );
    assert!(!world.step(), "an idle StatefulSet writes nothing");
}

/// Runs from a finished set through `change` to the end and compares the writes.
fn check(what: &str, spec: Value, change: impl FnOnce(&mut World), expected: &str, images: &str) {
    let mut world = World::new(spec);
    world.finish();
    world.log();
    change(&mut world);
    world.finish();
    assert_eq!((world.log().as_str(), world.images().as_str()), (expected, images), "{what}");
}

#[test]
fn rules_one_by_one() {
    let parallel = || json!({"podManagementPolicy": "Parallel"});
    let rolling = |rolling: Value| json!({"type": "RollingUpdate", "rollingUpdate": rolling});
    check("scaling up", json!({}), |w| w.spec().replicas = Some(5), "+3 +4", "11111");
    check("scaling down", json!({}), |w| w.spec().replicas = Some(1), "-2 -1", "1");
    check("to nothing", json!({}), |w| w.spec().replicas = Some(0), "-2 -1 -0", "");
    check("in parallel", parallel(), |w| w.spec().replicas = Some(0), "-2 -1 -0", "");
    check("an update", json!({}), |w| w.image("db:2"), "-2 +2 -1 +1 -0 +0", "222");
    check(
        "a partition",
        json!({}),
        |w| {
            w.image("db:2");
            w.partition(2)
        },
        "-2 +2",
        "112",
    );
    check(
        "a lost pod below the partition",
        json!({}),
        |w| {
            w.image("db:2");
            w.partition(2);
            w.finish();
            w.log();
            w.pods.remove("db-0");
        },
        "+0",
        "112",
    );
    let on_delete = json!({"updateStrategy": {"type": "OnDelete"}});
    check("on delete", on_delete.clone(), |w| w.image("db:2"), "", "111");
    check(
        "on delete, deleted",
        on_delete,
        |w| {
            w.image("db:2");
            w.pods.remove("db-1");
        },
        "+1",
        "121",
    );
    check(
        "undo",
        json!({}),
        |w| {
            w.image("db:2");
            w.finish();
            w.log();
            w.image("db:1");
        },
        "-2 +2 -1 +1 -0 +0",
        "111",
    );
    check("a failed pod", json!({}), |w| w.set_status("db-1", "Failed", false), "-1 +1", "111");
    check("a pod that ended well", json!({}), |w| w.set_status("db-1", "Succeeded", false), "-1 +1", "111");
    check(
        "other ordinals",
        json!({}),
        |w| {
            w.spec().ordinals = object(json!({"start": 2}));
        },
        "+3 +4 -1 -0",
        "111",
    );
    check(
        "two at a time",
        json!({"updateStrategy": rolling(json!({"partition": 0, "maxUnavailable": 2}))}),
        |w| w.image("db:2"),
        "-2 -1 +1 +2 -0 +0",
        "222",
    );
    check(
        "two at a time in parallel",
        json!({"podManagementPolicy": "Parallel", "updateStrategy": rolling(json!({"partition": 0, "maxUnavailable": "67%"}))}),
        |w| w.image("db:2"),
        "-2 -1 +1 +2 -0 +0",
        "222",
    );
}

#[test]
fn a_parallel_set_makes_all_at_once() {
    let mut world = World::new(json!({"podManagementPolicy": "Parallel", "replicas": 4}));
    world.step();
    assert_eq!(world.log(), "+0 +1 +2 +3");
}

#[test]
fn a_sick_pod_holds_up_its_neighbours() {
    let mut world = World::new(json!({}));
    world.finish();
    world.log();
    world.set_status("db-1", "Running", false);
    world.spec().replicas = Some(2);
    assert!(!world.plan_for(&world.snapshot()).phases.iter().flatten().any(|op| matches!(op, Op::Delete(_))));
    world.image("db:2");
    world.step();
    assert_eq!(world.log(), "", "nothing goes while one is not ready");
    world.spec().replicas = Some(1);
    world.set_status("db-2", "Running", false);
    world.step();
    assert_eq!(world.log(), "", "2 waits for 1, which is not well either and comes before it");
    world.set_status("db-1", "Running", true);
    world.step();
    assert_eq!(world.log(), "-2", "the first that is not well may go itself");
}

#[test]
fn min_ready_seconds_are_waited_for() {
    let mut world = World::new(json!({"minReadySeconds": 10}));
    world.step();
    world.set_status("db-0", "Running", true);
    world.step();
    let status = world.set.status.clone().unwrap();
    assert_eq!((status.ready_replicas, status.available_replicas), (Some(1), Some(0)));
    assert_eq!(world.log(), "+0");
    assert_eq!(world.plan_for(&world.snapshot()).again, Some(Duration::from_secs(10)));
    world.now += jiff::SignedDuration::from_secs(10);
    world.step();
    assert_eq!(world.log(), "+1");
}

#[test]
fn a_set_that_is_deleted_only_tells() {
    let mut world = World::new(json!({}));
    world.finish();
    world.log();
    world.set.metadata.deletion_timestamp = Some(Time(world.now));
    world.pods.remove("db-2");
    world.finish();
    assert_eq!((world.log().as_str(), world.set.status.as_ref().unwrap().replicas), ("", 2));
}

/// Random walks: the controller acts on what may be old news, pods start, fail, vanish and take their time to end, users
/// scale and change the template. Names stay unique and in order, an ordered set never makes a pod before its
/// predecessors are well, an update never takes down more than it may, and in the end all is as asked.
#[test]
fn order_and_availability_are_kept() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let parallel = random.random_bool(0.4);
        let limit = random.random_range(0..3_usize);
        let mut rolling = json!({"partition": 0});
        if limit > 0 {
            rolling["maxUnavailable"] = json!(limit);
        }
        let mut world = World::new(json!({
            "podManagementPolicy": if parallel { "Parallel" } else { "OrderedReady" },
            "replicas": random.random_range(1..6),
            "ordinals": {"start": random.random_range(0..3)},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}));
        world.finish();
        let mut old_news = world.snapshot();
        for turn in 0..120 {
            let names: Vec<_> = world.pods.keys().cloned().collect();
            let name = names.get(random.random_range(0..names.len().max(1))).cloned().unwrap_or_default();
            let context = format!("seed {seed} turn {turn}");
            match random.random_range(0..14) {
                0 => world.image(&format!("db:{}", random.random_range(1..5))),
                1 => world.spec().replicas = Some(random.random_range(0..6)),
                2 => world.set_status(&name, "Failed", false),
                3 => world.set_status(&name, "Running", false),
                4 => old_news = world.snapshot(),
                5 if random.random_bool(0.2) => world.partition(random.random_range(0..4)),
                6..=7 => {
                    if world.pods.get(&name).is_some_and(|pod| pod.deleting()) {
                        world.pods.remove(&name);
                    }
                }
                8..=9 => {
                    if world.pods.get(&name).is_some_and(|pod| !is_finished(pod)) {
                        world.set_status(&name, "Running", true);
                    }
                }
                10 => {
                    let stale = old_news.clone();
                    world.step_on(&stale);
                }
                _ => {
                    let before = world.unavailable();
                    let plan = world.plan_for(&world.snapshot());
                    let pods = world.pods.clone();
                    let made = plan.phases.iter().flatten().filter_map(|op| match op {
                        Op::Create { pod, .. } => ordinal(pod),
                        _ => None,
                    });
                    let made: Vec<_> = made.collect();
                    if !parallel {
                        assert!(made.len() <= 1, "{context}: one at a time");
                        for below in ordinals(&world.set).start..made.first().copied().unwrap_or(0) {
                            let well = pods.get(&format!("db-{below}")).is_some_and(|pod| is_ready(pod));
                            assert!(well, "{context}: {made:?} before {below}");
                        }
                    }
                    let updates = plan
                        .phases
                        .get(3)
                        .into_iter()
                        .flatten()
                        .filter(|op| matches!(op, Op::Delete(pod) if is_ready(pod)));
                    let allowed = limit.max(1);
                    // A pod below all others that is not ready does not stop the update of a parallel set without a
                    // limit: upstream looks at the updated ones only.
                    let looked_at = if parallel && limit == 0 { 0 } else { before };
                    let updates = updates.count();
                    assert!(
                        updates == 0 || updates + looked_at <= allowed,
                        "{context}: {updates} + {before} > {allowed}"
                    );
                    world.step();
                }
            }
        }
        world.partition(0);
        world.pods.values_mut().for_each(|pod| {
            if is_finished(pod) {
                Arc::make_mut(pod).metadata.deletion_timestamp = Some(Time(world.now));
            }
        });
        world.finish();
        let wanted: Vec<_> = ordinals(&world.set).map(|ordinal| format!("db-{ordinal}")).collect();
        assert_eq!(world.pods.keys().cloned().collect::<Vec<_>>(), wanted, "seed {seed}");
        let (_, update) = world.update_revision();
        assert!(world.pods.values().all(|pod| revision(pod) == update.name), "seed {seed}");
    }
}
