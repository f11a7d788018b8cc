#![allow(clippy::unwrap_used)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use pretty_assertions::assert_eq;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::super::nodes::{aim, pod_template};
use super::*;
use crate::objects::controller_ref;
use crate::objects::testing::{at, object};
use crate::pod_control::pod_from_template;

struct World {
    set: DaemonSet,
    nodes: BTreeMap<String, Arc<Node>>,
    pods: BTreeMap<String, Arc<Pod>>,
    hash: String,
    backoff: Backoff,
    made: u32,
    now: Timestamp,
    log: Vec<String>,
}

fn node(name: &str, spec: Value) -> Arc<Node> {
    Arc::new(object(json!({"metadata": {"name": name}, "spec": spec})))
}

impl World {
    fn new(rolling: Value, nodes: usize) -> Self {
        let set = object(
            json!({"metadata": {"name": "ds", "namespace": "a", "uid": "d", "generation": 1}, "spec": {
            "selector": {"matchLabels": {"app": "ds"}}, "updateStrategy": rolling,
            "template": {"metadata": {"labels": {"app": "ds"}}, "spec": {"containers": []}}}}),
        );
        let nodes =
            (0..nodes).map(|place| (format!("n{place}"), node(&format!("n{place}"), json!({})))).collect();
        Self {
            set,
            nodes,
            pods: BTreeMap::new(),
            hash: "h1".to_owned(),
            backoff: Backoff::default(),
            made: 0,
            now: at("2026-01-01T00:00:00Z"),
            log: Vec::new(),
        }
    }

    fn plan(&mut self) -> Plan {
        let nodes: Vec<_> = self.nodes.values().cloned().collect();
        let pods: Vec<_> = self.pods.values().cloned().collect();
        let state = State {
            set: &self.set,
            spec: self.set.spec.as_ref().unwrap(),
            nodes: &nodes,
            pods: &pods,
            hash: &self.hash,
            collisions: None,
            may_act: true,
            now: self.now,
        };
        plan(&state, &mut self.backoff)
    }

    fn carry_out(&mut self, plan: Plan) -> bool {
        let mut wrote = !plan.create.is_empty() || !plan.delete.is_empty();
        for node in plan.create {
            self.made += 1;
            let name = format!("ds-{:04}", self.made);
            let template = pod_template(&self.set, &self.hash);
            let mut pod = pod_from_template(&template, "ds", controller_ref(&self.set));
            aim(pod.spec.as_mut().unwrap(), &node);
            pod.metadata.namespace = Some("a".to_owned());
            pod.metadata.name = Some(name.clone());
            pod.metadata.uid = Some(name.clone());
            pod.metadata.creation_timestamp = Some(Time(self.now));
            pod.status = object(json!({"phase": "Pending"}));
            self.pods.insert(name, Arc::new(pod));
            self.log.push(format!("+{node}"));
        }
        for pod in plan.delete {
            let live = self.pods.get_mut(pod.name()).unwrap();
            assert!(!live.deleting(), "a pod is deleted once");
            self.log.push(format!("-{}", target_node(live).unwrap()));
            Arc::make_mut(live).metadata.deletion_timestamp = Some(Time(self.now));
        }
        if differs(self.set.status.as_ref(), &plan.status) {
            wrote = true;
            self.set.status = Some(plan.status);
        }
        wrote
    }

    fn step(&mut self) -> bool {
        let plan = self.plan();
        self.carry_out(plan)
    }

    fn set_phase(&mut self, name: &str, phase: &str, ready: bool) {
        let since = self.now.to_string();
        let conditions = if ready {
            json!([{"type": "Ready", "status": "True", "lastTransitionTime": since}])
        } else {
            json!([])
        };
        if let Some(pod) = self.pods.get_mut(name) {
            let pod = Arc::make_mut(pod);
            let node = target_node(pod).map(str::to_owned);
            pod.spec.as_mut().unwrap().node_name = node;
            pod.status = object(json!({"phase": phase, "conditions": conditions}));
        }
    }

    fn kubelets(&mut self) {
        self.pods.retain(|_, pod| !pod.deleting());
        let names: Vec<_> = self
            .pods
            .values()
            .filter(|pod| phase(pod) == "Pending")
            .map(|pod| pod.name().to_owned())
            .collect();
        names.iter().for_each(|name| self.set_phase(name, "Running", true));
    }

    fn finish(&mut self) {
        for _ in 0..300 {
            let wrote = self.step();
            self.kubelets();
            self.now += jiff::SignedDuration::from_secs(3600);
            if !wrote && !self.step() {
                return;
            }
        }
        panic!("it does not end: {:?}", self.set.status);
    }

    fn log(&mut self) -> String {
        std::mem::take(&mut self.log).join(" ")
    }

    fn live(&self, node: &str) -> Vec<&Arc<Pod>> {
        self.pods.values().filter(|pod| !pod.deleting() && target_node(pod) == Some(node)).collect()
    }

    /// Nodes on which a pod of the set works.
    fn served(&self) -> usize {
        self.nodes.keys().filter(|node| self.live(node).iter().any(|pod| is_ready(pod))).count()
    }
}

fn rolling(unavailable: Value, surge: Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}})
}

#[test]
fn one_pod_on_each_node() {
    let mut world = World::new(rolling(json!(1), json!(0)), 3);
    world.step();
    assert_eq!(world.log(), "+n0 +n1 +n2");
    world.finish();
    let status = serde_json::to_value(world.set.status.as_ref().unwrap()).unwrap();
    assert_eq!(
        status,
        json!({"desiredNumberScheduled": 3, "currentNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": 3,
            "updatedNumberScheduled": 3, "numberAvailable": 3, "numberUnavailable": 0, "observedGeneration": 1})
    );
    assert!(!world.step(), "an idle DaemonSet writes nothing");
}

/// Runs from a finished set through `change` to the end and compares the writes.
fn check(what: &str, strategy: Value, change: impl FnOnce(&mut World), expected: &str) {
    let mut world = World::new(strategy, 3);
    world.finish();
    world.log();
    change(&mut world);
    world.finish();
    assert_eq!(world.log(), expected, "{what}");
}

#[test]
fn rules_one_by_one() {
    let in_place = || rolling(json!(1), json!(0));
    let tainted = |effect: &str| json!({"taints": [{"key": "gpu", "effect": effect}]});
    let taint = |effect: &'static str| {
        move |w: &mut World| {
            w.nodes.insert("n1".to_owned(), node("n1", tainted(effect)));
        }
    };
    check(
        "a new node",
        in_place(),
        |w| {
            w.nodes.insert("n9".to_owned(), node("n9", json!({})));
        },
        "+n9",
    );
    check("evicted", in_place(), taint("NoExecute"), "-n1");
    check("may stay", in_place(), taint("NoSchedule"), "");
    check("an update", in_place(), |w| w.hash = "h2".to_owned(), "-n0 +n0 -n1 +n1 -n2 +n2");
    check(
        "two at a time",
        rolling(json!("50%"), json!(0)),
        |w| w.hash = "h2".to_owned(),
        "-n0 -n1 +n0 +n1 -n2 +n2",
    );
    check("surge", rolling(json!(0), json!(1)), |w| w.hash = "h2".to_owned(), "+n0 -n0 +n1 -n1 +n2 -n2");
    check(
        "surge of two",
        rolling(json!(0), json!(2)),
        |w| w.hash = "h2".to_owned(),
        "+n0 +n1 -n0 -n1 +n2 -n2",
    );
    check("on delete", json!({"type": "OnDelete"}), |w| w.hash = "h2".to_owned(), "");
    check("a failed pod", in_place(), |w| w.set_phase("ds-0002", "Failed", false), "-n1 +n1");
    check("a pod that ended", in_place(), |w| w.set_phase("ds-0002", "Succeeded", false), "-n1 +n1");
    check(
        "a lost pod",
        in_place(),
        |w| {
            w.pods.remove("ds-0003");
        },
        "+n2",
    );
    check(
        "a pod too many",
        in_place(),
        |w| {
            let mut twin = (*w.pods["ds-0001"]).clone();
            twin.metadata.name = Some("ds-9".to_owned());
            w.pods.insert("ds-9".to_owned(), Arc::new(twin));
        },
        "-n0",
    );
    check(
        "an old one that does not work",
        in_place(),
        |w| {
            w.set_phase("ds-0003", "Running", false);
            w.hash = "h2".to_owned();
        },
        "-n2 +n2 -n0 +n0 -n1 +n1",
    );
    check(
        "an unbound pod of a lost node",
        in_place(),
        |w| {
            let mut pod = (*w.pods["ds-0001"]).clone();
            pod.metadata.name = Some("ds-9".to_owned());
            let spec = pod.spec.as_mut().unwrap();
            spec.node_name = None;
            aim(spec, "gone");
            w.pods.insert("ds-9".to_owned(), Arc::new(pod));
        },
        "-gone",
    );
    check(
        "surge keeps a misplaced pod until others work",
        rolling(json!(0), json!(1)),
        |w| {
            w.hash = "h2".to_owned();
            w.nodes.insert("n1".to_owned(), node("n1", tainted("NoSchedule")));
        },
        "+n0 -n1 -n0 +n2 -n2",
    );
}

#[test]
fn failing_pods_are_replaced_ever_slower() {
    let mut world = World::new(rolling(json!(1), json!(0)), 1);
    world.step();
    let mut waits = Vec::new();
    for round in 1..=4 {
        world.set_phase(&format!("ds-{round:04}"), "Failed", false);
        let mut plan = world.plan();
        if let Some(wait) = plan.again {
            waits.push(wait.as_secs());
            assert!(plan.delete.is_empty());
            world.now += jiff::SignedDuration::try_from(wait).unwrap();
            plan = world.plan();
        }
        assert_eq!(
            plan.events[0].2,
            format!("Found failed daemon pod a/ds-{round:04} on node n0, will try to kill it")
        );
        // The status stays as it is: its generation is part of the key.
        plan.status = world.set.status.clone().unwrap();
        world.carry_out(plan);
        world.pods.clear();
        world.step();
    }
    assert_eq!(waits, [1, 2, 4]);
}

/// Random walks: nodes come, go and are tainted, pods start, fail and take their time to end, the template changes.
/// There are never two pods at work on a node without surge, an update never leaves more nodes without a working pod
/// than it may, never has more pods in surge than it may, and in the end each node has its one pod.
#[test]
fn limits_are_kept() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let surge = random.random_range(0..3_usize);
        let unavailable = if surge == 0 { random.random_range(1..4_usize) } else { 0 };
        let mut world = World::new(rolling(json!(unavailable), json!(surge)), random.random_range(1..6));
        world.finish();
        for turn in 0..120 {
            let context = format!("seed {seed} turn {turn}: {unavailable} {surge}");
            let names: Vec<_> = world.pods.keys().cloned().collect();
            let name = names.get(random.random_range(0..names.len().max(1))).cloned().unwrap_or_default();
            let place = format!("n{}", random.random_range(0..6));
            match random.random_range(0..12) {
                0 => world.hash = format!("h{}", random.random_range(1..5)),
                1 => {
                    let spec = match random.random_range(0..3) {
                        0 => json!({"taints": [{"key": "gpu", "effect": "NoSchedule"}]}),
                        1 => json!({"taints": [{"key": "gpu", "effect": "NoExecute"}]}),
                        _ => json!({}),
                    };
                    world.nodes.insert(place.clone(), node(&place, spec));
                }
                2 if world.nodes.len() > 1 && random.random_bool(0.3) => {
                    world.nodes.remove(&place);
                    world.pods.retain(|_, pod| target_node(pod) != Some(&place));
                }
                3 => world.set_phase(&name, "Failed", false),
                4 => world.now += jiff::SignedDuration::from_secs(60),
                5..=6 => {
                    if world.pods.get(&name).is_some_and(|pod| pod.deleting()) {
                        world.pods.remove(&name);
                    }
                }
                7..=8 => {
                    if world.pods.get(&name).is_some_and(|pod| !is_finished(pod)) {
                        world.set_phase(&name, "Running", true);
                    }
                }
                _ => {
                    let plan = world.plan();
                    let demands = Demands::of(&world.set);
                    let wanted: Vec<_> = world
                        .nodes
                        .values()
                        .filter(|node| demands.fit(node) == Fit::Run)
                        .map(|node| node.name().to_owned())
                        .collect();
                    let serving = |world: &World| {
                        wanted.iter().filter(|node| world.live(node).iter().any(|pod| is_ready(pod))).count()
                    };
                    let before = serving(&world);
                    for node in &plan.create {
                        let there = world.pods.values().filter(|pod| target_node(pod) == Some(node));
                        assert!(
                            surge > 0 || there.clone().all(|pod| is_finished(pod)),
                            "{context}: two on {node}"
                        );
                    }
                    world.carry_out(plan);
                    let after = serving(&world);
                    assert!(
                        after >= before || after + unavailable >= wanted.len(),
                        "{context}: {before} to {after} of {}",
                        wanted.len()
                    );
                    let surging = world.nodes.keys().filter(|node| {
                        let live = world.live(node);
                        let new = live.iter().any(|pod| is_updated(pod, &world.hash));
                        new && live.iter().any(|pod| !is_updated(pod, &world.hash) && is_ready(pod))
                    });
                    let limit = if surge == 0 { 0 } else { wanted.len().max(surge) };
                    assert!(surging.count() <= limit, "{context}: surge");
                }
            }
        }
        world.nodes.values_mut().for_each(|node| Arc::make_mut(node).spec = None);
        world.finish();
        assert_eq!(world.served(), world.nodes.len(), "seed {seed}");
        assert_eq!(world.pods.len(), world.nodes.len(), "seed {seed}");
        assert!(world.pods.values().all(|pod| is_updated(pod, &world.hash)), "seed {seed}");
    }
}
