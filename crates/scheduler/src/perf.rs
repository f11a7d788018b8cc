//! The workloads of upstream's scheduler_perf (`test/integration/scheduler_perf`) by name: which nodes there are, which
//! pods are placed before, which are placed while it is measured, and what happens beside. `orlop bench scheduler` plays
//! them against a whole control plane.

use serde_json::{Value, json};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The label of the namespaces that workloads with namespace selectors select.
pub const NAMESPACE_LABEL: (&str, &str) = ("team", "devops");

/// A pod as JSON, without name and namespace.
pub type Template = fn() -> Value;

/// Pods that are created together.
#[derive(Debug, Clone, Copy)]
pub struct Pods {
    /// Their namespace, or what the names of their namespaces begin with.
    pub namespace: &'static str,
    /// Over how many namespaces they are spread evenly, `NAME-0` and on; 0 for the one namespace of that very name.
    pub spread: usize,
    /// How many.
    pub count: usize,
    /// What each looks like.
    pub template: Template,
}

impl Pods {
    const fn of(count: usize, template: Template) -> Pods {
        Pods { namespace: "default", spread: 0, count, template }
    }

    const fn within(self, namespace: &'static str) -> Pods {
        Pods { namespace, ..self }
    }

    const fn over(self, namespace: &'static str, spread: usize) -> Pods {
        Pods { namespace, spread, ..self }
    }

    /// The namespaces they live in.
    pub fn namespaces(&self) -> Vec<String> {
        match self.spread {
            0 => vec![self.namespace.to_owned()],
            count => (0..count).map(|number| format!("{}-{number}", self.namespace)).collect(),
        }
    }
}

/// What goes on while pods are placed.
#[derive(Debug, Clone, Copy)]
pub enum Churn {
    /// Nothing.
    Nothing,
    /// Five times a second a pod of this template appears.
    Pods(Template),
    /// Every second a node, a large pod of high priority and a Service come or go.
    Mixed,
}

/// One workload.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// As upstream calls it.
    pub name: &'static str,
    /// Nodes of 4 CPUs, 32 GiB and 110 pods.
    pub nodes: usize,
    /// Zones that the nodes are spread over; 0 for no zone label.
    pub zones: usize,
    /// Pods placed before.
    pub before: &'static [Pods],
    /// What goes on beside.
    pub churn: Churn,
    /// Pods whose placing is measured.
    pub measured: Pods,
    /// Pods a second that upstream demands of itself (`threshold`).
    pub floor: f64,
}

/// A node as upstream's template makes it.
pub fn node(number: usize, zones: usize) -> Value {
    let name = format!("node-{number}");
    let mut labels = json!({HOSTNAME: name});
    if zones > 0 {
        labels[ZONE] = json!(format!("zone{}", number % zones + 1));
    }
    let size = json!({"cpu": "4", "memory": "32Gi", "pods": "110"});
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
        "status": {"allocatable": size, "capacity": size, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn pod(labels: Value, more: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "pause", "image": "registry.k8s.io/pause:3.10",
        "ports": [{"containerPort": 80}],
        "resources": {"limits": {"cpu": "100m", "memory": "500Mi"}, "requests": {"cpu": "100m", "memory": "500Mi"}}}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": labels}, "spec": spec})
}

fn sized(cpu: &str, priority: i32) -> Value {
    let mut pod = pod(json!({}), json!({"priority": priority, "terminationGracePeriodSeconds": 0}));
    let size = json!({"cpu": cpu, "memory": "500Mi"});
    pod["spec"]["containers"][0]["resources"] = json!({"requests": size});
    pod
}

/// `pod-default.yaml`
pub fn plain() -> Value {
    pod(json!({}), json!({}))
}

/// `pod-low-priority.yaml`
fn low_priority() -> Value {
    sized("900m", 0)
}

/// `pod-high-priority.yaml`
fn high_priority() -> Value {
    sized("3", 10)
}

/// `pod-high-priority-large-cpu.yaml`: larger than any node.
pub fn too_large() -> Value {
    sized("9", 10)
}

/// The namespaces of a term that knows them by name.
const NAMED: (&str, &str) = ("namespaces", r#"["sched-0", "sched-1"]"#);
/// The same by their labels.
const SELECTED: (&str, &str) = ("namespaceSelector", r#"{"matchLabels": {"team": "devops"}}"#);

/// A pod of a color with one term about its own color.
fn colored(kind: &str, required: bool, color: &str, key: &str, (field, namespaces): (&str, &str)) -> Value {
    let namespaces: Value = serde_json::from_str(namespaces).unwrap_or_default();
    let term =
        json!({"topologyKey": key, "labelSelector": {"matchLabels": {"color": color}}, field: namespaces});
    let affinity = match required {
        true => json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}),
        false => json!({kind: {"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": 1, "podAffinityTerm": term}]}}),
    };
    pod(json!({"color": color}), json!({"affinity": affinity}))
}

fn affinity() -> Value {
    colored("podAffinity", true, "blue", ZONE, NAMED)
}

fn anti_affinity() -> Value {
    colored("podAntiAffinity", true, "green", HOSTNAME, NAMED)
}

fn preferred_affinity() -> Value {
    colored("podAffinity", false, "red", HOSTNAME, NAMED)
}

fn preferred_anti_affinity() -> Value {
    colored("podAntiAffinity", false, "yellow", HOSTNAME, NAMED)
}

fn anti_affinity_by_selector() -> Value {
    colored("podAntiAffinity", true, "green", HOSTNAME, SELECTED)
}

fn preferred_affinity_by_selector() -> Value {
    colored("podAffinity", false, "red", HOSTNAME, SELECTED)
}

fn zoned() -> Value {
    let expression = json!({"key": ZONE, "operator": "In", "values": ["zone1", "zone2"]});
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}});
    pod(json!({}), json!({"affinity": affinity}))
}

fn spreading(when: &str) -> Value {
    let constraint = json!([{"maxSkew": 5, "topologyKey": ZONE, "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"color": "blue"}}}]);
    pod(json!({"color": "blue"}), json!({"topologySpreadConstraints": constraint}))
}

fn spread_required() -> Value {
    spreading("DoNotSchedule")
}

fn spread_preferred() -> Value {
    spreading("ScheduleAnyway")
}

/// A pod of the Service `spread`, so that the scheduler's default constraints apply.
fn of_service() -> Value {
    pod(json!({"app": "spread"}), json!({}))
}

const NOTHING: Workload = Workload {
    name: "",
    nodes: 5000,
    zones: 3,
    before: &[],
    churn: Churn::Nothing,
    measured: Pods::of(0, plain),
    floor: 0.0,
};

/// All of them, at the sizes that upstream's thresholds are for.
pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "SchedulingBasic",
        before: &[Pods::of(1000, plain)],
        measured: Pods::of(10_000, plain),
        floor: 680.0,
        ..NOTHING
    },
    Workload {
        name: "SchedulingWithMixedChurn",
        churn: Churn::Mixed,
        measured: Pods::of(10_000, plain),
        floor: 710.0,
        ..NOTHING
    },
    Workload {
        name: "Unschedulable",
        before: &[Pods::of(100, plain)],
        churn: Churn::Pods(too_large),
        measured: Pods::of(10_000, plain),
        floor: 590.0,
        ..NOTHING
    },
    Workload {
        name: "PreemptionAsync",
        before: &[Pods::of(20_000, low_priority)],
        churn: Churn::Pods(high_priority),
        measured: Pods::of(5000, plain),
        floor: 570.0,
        ..NOTHING
    },
    Workload {
        name: "TopologySpreading",
        before: &[Pods::of(5000, plain)],
        measured: Pods::of(5000, spread_required),
        floor: 460.0,
        ..NOTHING
    },
    Workload {
        name: "PreferredTopologySpreading",
        before: &[Pods::of(5000, plain)],
        measured: Pods::of(5000, spread_preferred),
        floor: 340.0,
        ..NOTHING
    },
    Workload {
        name: "DefaultTopologySpreading",
        before: &[Pods::of(5000, plain)],
        measured: Pods::of(5000, of_service),
        floor: 160.0,
        ..NOTHING
    },
    Workload {
        name: "SchedulingNodeAffinity",
        zones: 1,
        before: &[Pods::of(5000, zoned)],
        measured: Pods::of(10_000, zoned),
        floor: 220.0,
        ..NOTHING
    },
    Workload {
        name: "SchedulingPodAntiAffinity",
        before: &[Pods::of(1000, anti_affinity).within("sched-0")],
        measured: Pods::of(2000, anti_affinity).within("sched-1"),
        floor: 60.0,
        ..NOTHING
    },
    Workload {
        name: "SchedulingPodAffinity",
        zones: 1,
        before: &[Pods::of(5000, affinity).within("sched-0")],
        measured: Pods::of(5000, affinity).within("sched-1"),
        floor: 35.0,
        ..NOTHING
    },
    Workload {
        name: "SchedulingPreferredPodAffinity",
        before: &[Pods::of(5000, preferred_affinity).within("sched-0")],
        measured: Pods::of(5000, preferred_affinity).within("sched-1"),
        floor: 90.0,
        ..NOTHING
    },
    Workload {
        name: "SchedulingPreferredPodAntiAffinity",
        before: &[Pods::of(5000, preferred_anti_affinity).within("sched-0")],
        measured: Pods::of(5000, preferred_anti_affinity).within("sched-1"),
        floor: 90.0,
        ..NOTHING
    },
    Workload {
        name: "MixedSchedulingBasePod",
        zones: 1,
        before: &[
            Pods::of(2000, plain).within("sched-0"),
            Pods::of(2000, affinity).within("sched-0"),
            Pods::of(2000, anti_affinity).within("sched-0"),
            Pods::of(2000, preferred_affinity).within("sched-0"),
            Pods::of(2000, preferred_anti_affinity).within("sched-0"),
        ],
        measured: Pods::of(5000, plain),
        floor: 140.0,
        ..NOTHING
    },
    Workload {
        name: "SchedulingRequiredPodAntiAffinityWithNSSelector",
        nodes: 6000,
        before: &[Pods::of(4000, anti_affinity_by_selector).over("init-ns", 100)],
        measured: Pods::of(2000, anti_affinity_by_selector).over("measure-ns", 1),
        floor: 24.0,
        ..NOTHING
    },
    Workload {
        name: "SchedulingPreferredAffinityWithNSSelector",
        before: &[Pods::of(4000, preferred_affinity_by_selector).over("init-ns", 100)],
        measured: Pods::of(2000, preferred_affinity_by_selector).over("measure-ns", 1),
        floor: 90.0,
        ..NOTHING
    },
];

#[cfg(test)]
mod tests {
    //! The scheduling cycle alone, without an API server. Measurements, not tests: `cargo nextest run -p orlop-scheduler
    //! --release --run-ignored only --no-capture perf`.

    use std::collections::BTreeMap;
    use std::time::Instant;

    use orlop_client::ObjectKey;

    use super::*;
    use crate::simulation::Simulation;
    use crate::testing::parse;

    fn named(pods: &Pods, number: usize, prefix: &str) -> std::sync::Arc<k8s_openapi::api::core::v1::Pod> {
        let mut pod = (pods.template)();
        let namespaces = pods.namespaces();
        pod["metadata"]["namespace"] = json!(namespaces[number % namespaces.len()]);
        pod["metadata"]["name"] = json!(format!("{prefix}-{number}"));
        pod["metadata"]["uid"] = json!(format!("{prefix}-{number}"));
        parse(pod)
    }

    #[test]
    #[ignore = "a measurement, to be run in release"]
    fn cycles() {
        for workload in WORKLOADS {
            let mut simulation = Simulation::new();
            simulation.checked = false;
            (0..workload.nodes).for_each(|number| simulation.node(parse(node(number, workload.zones))));
            let label = BTreeMap::from([(NAMESPACE_LABEL.0.to_owned(), NAMESPACE_LABEL.1.to_owned())]);
            for pods in workload.before.iter().chain([&workload.measured]).filter(|pods| pods.spread > 0) {
                for name in pods.namespaces() {
                    simulation.cache.set_namespace(&name, Some(label.clone()));
                }
            }
            let selector = BTreeMap::from([("app".to_owned(), "spread".to_owned())]);
            simulation.cache.workloads.set_service(&ObjectKey::new("default", "spread"), Some(selector));
            for (index, pods) in workload.before.iter().enumerate() {
                for number in 0..pods.count {
                    let _ = simulation.schedule(named(pods, number, &format!("before-{index}")));
                }
            }
            let count = workload.measured.count;
            let pods: Vec<_> = (0..count).map(|number| named(&workload.measured, number, "pod")).collect();
            let begun = Instant::now();
            let placed = pods.into_iter().filter(|pod| simulation.schedule(pod.clone()).is_ok()).count();
            let rate = placed as f64 / begun.elapsed().as_secs_f64();
            println!("{:<50} {rate:>9.0} pods/s {:>7.1} x", workload.name, rate / workload.floor);
            assert_eq!(placed, count, "{}", workload.name);
        }
    }

    /// Each pod must evict three others.
    #[test]
    #[ignore = "a measurement, to be run in release"]
    fn preemption() {
        let mut simulation = Simulation::new();
        simulation.checked = false;
        (0..5000).for_each(|number| simulation.node(parse(node(number, 3))));
        let low = Pods::of(20_000, low_priority);
        for number in 0..low.count {
            let _ = simulation.schedule(named(&low, number, "low"));
        }
        let high = Pods::of(1000, high_priority);
        let pods: Vec<_> = (0..high.count).map(|number| named(&high, number, "high")).collect();
        let begun = Instant::now();
        let placed =
            pods.into_iter().filter(|pod| simulation.schedule_or_preempt(pod.clone()).is_some()).count();
        println!("preemption: {:.0} pods/s", placed as f64 / begun.elapsed().as_secs_f64());
        assert_eq!(placed, high.count);
    }
}
