//! Upstream's scheduler_perf workloads by name, on nodes and pods in memory: the scheduling cycle alone, without an API
//! server. A measurement, not a test: `cargo nextest run -p orlop-scheduler --release --run-ignored only --no-capture
//! scheduler_perf`.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Pod};
use orlop_client::ObjectKey;
use serde_json::{Value, json};

use crate::simulation::Simulation;
use crate::testing::parse;

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// A workload: how many nodes, pods before, and pods that are measured; and upstream's floor in pods/s.
struct Workload {
    name: &'static str,
    nodes: usize,
    before: usize,
    measured: usize,
    floor: f64,
    first: fn(usize) -> Value,
    pod: fn(usize) -> Value,
}

fn node(number: usize) -> Arc<Node> {
    let name = format!("node-{number}");
    let labels = json!({HOSTNAME: name, ZONE: format!("zone{}", number % 3)});
    let allocatable = json!({"cpu": "4", "memory": "32Gi", "pods": "110"});
    parse(json!({"metadata": {"name": name, "labels": labels}, "status": {"allocatable": allocatable}}))
}

fn pod(namespace: &str, labels: Value, more: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "pause", "image": "registry.k8s.io/pause:3.10",
        "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"namespace": namespace, "labels": labels}, "spec": spec})
}

fn term(key: &str, color: &str, more: Value) -> Value {
    let mut term = json!({"topologyKey": key, "labelSelector": {"matchLabels": {"color": color}}});
    for (key, value) in more.as_object().into_iter().flatten() {
        term[key] = value.clone();
    }
    term
}

fn required(kind: &str, term: Value) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
}

fn preferred(kind: &str, term: Value) -> Value {
    let weighted = json!([{"weight": 1, "podAffinityTerm": term}]);
    json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": weighted}}})
}

fn plain(_: usize) -> Value {
    pod("default", json!({}), json!({}))
}

fn spreading(key: &str, when: &str) -> Value {
    let constraint = json!([{"maxSkew": 5, "topologyKey": key, "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"color": "blue"}}}]);
    pod("default", json!({"color": "blue"}), json!({"topologySpreadConstraints": constraint}))
}

const WORKLOADS: [Workload; 13] = [
    Workload {
        name: "SchedulingBasic",
        nodes: 5000,
        before: 1000,
        measured: 10000,
        floor: 680.0,
        first: plain,
        pod: plain,
    },
    Workload {
        name: "SchedulingPodAntiAffinity",
        nodes: 5000,
        before: 1000,
        measured: 2000,
        floor: 60.0,
        first: |_| {
            pod(
                "sched-0",
                json!({"color": "green"}),
                required(
                    "podAntiAffinity",
                    term(HOSTNAME, "green", json!({"namespaces": ["sched-0", "sched-1"]})),
                ),
            )
        },
        pod: |_| {
            pod(
                "sched-1",
                json!({"color": "green"}),
                required(
                    "podAntiAffinity",
                    term(HOSTNAME, "green", json!({"namespaces": ["sched-0", "sched-1"]})),
                ),
            )
        },
    },
    Workload {
        name: "SchedulingPodAffinity",
        nodes: 5000,
        before: 5000,
        measured: 5000,
        floor: 35.0,
        first: |_| {
            pod(
                "sched-0",
                json!({"color": "blue"}),
                required("podAffinity", term(ZONE, "blue", json!({"namespaces": ["sched-0", "sched-1"]}))),
            )
        },
        pod: |_| {
            pod(
                "sched-1",
                json!({"color": "blue"}),
                required("podAffinity", term(ZONE, "blue", json!({"namespaces": ["sched-0", "sched-1"]}))),
            )
        },
    },
    Workload {
        name: "SchedulingPreferredPodAffinity",
        nodes: 5000,
        before: 5000,
        measured: 5000,
        floor: 90.0,
        first: |_| {
            pod(
                "sched-0",
                json!({"color": "red"}),
                preferred(
                    "podAffinity",
                    term(HOSTNAME, "red", json!({"namespaces": ["sched-0", "sched-1"]})),
                ),
            )
        },
        pod: |_| {
            pod(
                "sched-1",
                json!({"color": "red"}),
                preferred(
                    "podAffinity",
                    term(HOSTNAME, "red", json!({"namespaces": ["sched-0", "sched-1"]})),
                ),
            )
        },
    },
    Workload {
        name: "SchedulingPreferredPodAntiAffinity",
        nodes: 5000,
        before: 5000,
        measured: 5000,
        floor: 90.0,
        first: |_| {
            pod(
                "sched-0",
                json!({"color": "yellow"}),
                preferred(
                    "podAntiAffinity",
                    term(HOSTNAME, "yellow", json!({"namespaces": ["sched-0", "sched-1"]})),
                ),
            )
        },
        pod: |_| {
            pod(
                "sched-1",
                json!({"color": "yellow"}),
                preferred(
                    "podAntiAffinity",
                    term(HOSTNAME, "yellow", json!({"namespaces": ["sched-0", "sched-1"]})),
                ),
            )
        },
    },
    Workload {
        name: "SchedulingNodeAffinity",
        nodes: 5000,
        before: 5000,
        measured: 10000,
        floor: 220.0,
        first: zoned,
        pod: zoned,
    },
    Workload {
        name: "TopologySpreading",
        nodes: 5000,
        before: 5000,
        measured: 5000,
        floor: 460.0,
        first: plain,
        pod: |_| spreading(ZONE, "DoNotSchedule"),
    },
    Workload {
        name: "PreferredTopologySpreading",
        nodes: 5000,
        before: 5000,
        measured: 5000,
        floor: 340.0,
        first: plain,
        pod: |_| spreading(ZONE, "ScheduleAnyway"),
    },
    Workload {
        name: "DefaultTopologySpreading",
        nodes: 5000,
        before: 5000,
        measured: 5000,
        floor: 160.0,
        first: plain,
        pod: |_| pod("default", json!({"app": "spread"}), json!({})),
    },
    Workload {
        name: "SchedulingRequiredPodAntiAffinityWithNSSelector",
        nodes: 5000,
        before: 2000,
        measured: 1000,
        floor: 24.0,
        first: selecting_away,
        pod: selecting_away,
    },
    Workload {
        name: "SchedulingPreferredAffinityWithNSSelector",
        nodes: 5000,
        before: 5000,
        measured: 1000,
        floor: 90.0,
        first: selecting_near,
        pod: selecting_near,
    },
    Workload {
        name: "MixedSchedulingBasePod",
        nodes: 5000,
        before: 10000,
        measured: 5000,
        floor: 710.0,
        first: mixed,
        pod: plain,
    },
    Workload {
        name: "Unschedulable",
        nodes: 5000,
        before: 200,
        measured: 10000,
        floor: 590.0,
        first: too_large,
        pod: plain,
    },
];

fn zoned(_: usize) -> Value {
    let expression = json!({"key": ZONE, "operator": "In", "values": ["zone1", "zone2"]});
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}});
    pod("default", json!({}), json!({"affinity": affinity}))
}

fn selecting_away(number: usize) -> Value {
    let everywhere = json!({"namespaceSelector": {"matchLabels": {"team": "devops"}}});
    let more = required("podAntiAffinity", term(HOSTNAME, "green", everywhere));
    pod(&format!("ns-{}", number % 100), json!({"color": "green"}), more)
}

fn selecting_near(number: usize) -> Value {
    let everywhere = json!({"namespaceSelector": {"matchLabels": {"team": "devops"}}});
    let more = preferred("podAffinity", term(HOSTNAME, "red", everywhere));
    pod(&format!("ns-{}", number % 100), json!({"color": "red"}), more)
}

fn mixed(number: usize) -> Value {
    match number % 5 {
        0 => plain(number),
        1 => pod("sched-0", json!({"color": "blue"}), required("podAffinity", term(ZONE, "blue", json!({})))),
        2 if number < 5000 => pod(
            "sched-0",
            json!({"color": "green"}),
            required("podAntiAffinity", term(HOSTNAME, "green", json!({}))),
        ),
        3 => pod(
            "sched-0",
            json!({"color": "red"}),
            preferred("podAffinity", term(HOSTNAME, "red", json!({}))),
        ),
        _ => pod(
            "sched-0",
            json!({"color": "yellow"}),
            preferred("podAntiAffinity", term(HOSTNAME, "yellow", json!({}))),
        ),
    }
}

fn too_large(number: usize) -> Value {
    let mut large = plain(number);
    large["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("9");
    large
}

fn named(mut pod: Value, name: String) -> Arc<Pod> {
    pod["metadata"]["uid"] = json!(name);
    pod["metadata"]["name"] = json!(name);
    parse(pod)
}

fn report(name: &str, pods: usize, begun: Instant, floor: f64) {
    let rate = pods as f64 / begun.elapsed().as_secs_f64();
    println!("{name:<50} {rate:>9.0} pods/s {:>7.1} times upstream's floor", rate / floor);
}

fn cluster(nodes: usize) -> Simulation {
    let mut simulation = Simulation::new();
    (0..nodes).for_each(|number| simulation.node(node(number)));
    for number in 0..100 {
        let labels = std::collections::BTreeMap::from([("team".to_owned(), "devops".to_owned())]);
        simulation.cache.set_namespace(&format!("ns-{number}"), Some(labels));
    }
    let selector = std::collections::BTreeMap::from([("app".to_owned(), "spread".to_owned())]);
    simulation.cache.workloads.set_service(&ObjectKey::new("default", "spread"), Some(selector));
    simulation
}

#[test]
#[ignore = "a measurement, to be run in release"]
fn scheduler_perf() {
    for workload in &WORKLOADS {
        let mut simulation = cluster(workload.nodes);
        for number in 0..workload.before {
            let _ = simulation.schedule(named((workload.first)(number), format!("before-{number}")));
        }
        let pods =
            (0..workload.measured).map(|number| named((workload.pod)(number), format!("pod-{number}")));
        let pods: Vec<_> = pods.collect();
        let begun = Instant::now();
        let placed = pods.into_iter().filter(|pod| simulation.schedule(pod.clone()).is_ok()).count();
        report(workload.name, placed, begun, workload.floor);
        assert_eq!(placed, workload.measured, "{}", workload.name);
    }
}

#[test]
#[ignore = "a measurement, to be run in release"]
fn scheduler_perf_preemption() {
    let mut simulation = cluster(5000);
    let sized = |cpu: &str, priority: i32| {
        let mut pod = plain(0);
        pod["spec"]["priority"] = json!(priority);
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!(cpu);
        pod
    };
    for number in 0..20000 {
        let _ = simulation.schedule(named(sized("900m", 0), format!("low-{number}")));
    }
    let pods: Vec<_> = (0..5000).map(|number| named(sized("3", 10), format!("high-{number}"))).collect();
    let begun = Instant::now();
    let placed = pods.into_iter().filter(|pod| simulation.schedule_or_preempt(pod.clone()).is_some()).count();
    report("PreemptionBasic", placed, begun, 570.0);
}

#[test]
#[ignore = "a measurement, to be run in release"]
fn scheduler_perf_churn() {
    let mut simulation = cluster(5000);
    let begun = Instant::now();
    let mut placed = 0;
    for number in 0..10000_usize {
        placed += usize::from(simulation.schedule(named(plain(number), format!("pod-{number}"))).is_ok());
        if number.is_multiple_of(10) {
            let gone = format!("pod-{}", number / 2);
            simulation.cache.displace(&ObjectKey::new("default", gone));
            simulation.cache.remove_node(&format!("node-{}", number % 5000));
            simulation.node(node(number % 5000));
        }
    }
    report("SchedulingWithMixedChurn", placed, begun, 710.0);
}
