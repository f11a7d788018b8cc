//! The scheduling cycle on nodes and pods in memory: for tests of the whole and for measurements.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::cache::{Cache, CounterKey};
use crate::config::KubeSchedulerConfiguration;
use crate::framework::status::Diagnosis;
use crate::framework::{ExtensionPoint, Framework, PostFilter};
use crate::nominator::Nominator;
use crate::pod_info::PodInfo;
use crate::preemption::{Candidate, select_candidate};
use crate::schedule::{Cursor, Cycle, select_host};
use crate::shared::Shared;
use crate::testing::parse;

/// A cluster with one profile.
pub struct Simulation {
    pub cache: Cache,
    pub framework: Arc<Framework>,
    pub nominator: Nominator,
    /// Whether what alike pods share is checked against what each finds on its own; off where time is measured.
    pub checked: bool,
    shared: Shared,
    cursor: Cursor,
    random: StdRng,
}

impl Simulation {
    /// With upstream's default profile.
    pub fn new() -> Self {
        Self::with(KubeSchedulerConfiguration::defaulted())
    }

    /// With the first profile of a configuration.
    pub fn with(configuration: KubeSchedulerConfiguration) -> Self {
        let framework = Framework::new(&configuration.profiles[0], &crate::plugins::registry());
        Self {
            cache: Cache::default(),
            framework: Arc::new(framework.expect("a valid profile")),
            checked: true,
            shared: Shared::default(),
            nominator: Nominator::default(),
            cursor: Cursor::default(),
            random: StdRng::seed_from_u64(7),
        }
    }

    pub fn node(&mut self, node: Arc<Node>) {
        self.cache.set_node(node);
    }

    /// Schedules a pod and counts it on its node, or says why it cannot be.
    pub fn schedule(&mut self, pod: Arc<Pod>) -> Result<String, Box<Diagnosis>> {
        let pod = Arc::new(PodInfo::new(pod));
        self.framework.prepare(&pod, &mut self.cache);
        let cycle = Cycle {
            framework: &self.framework,
            cache: &self.cache,
            nominator: &self.nominator,
            percentage: 0,
            extenders: false,
        };
        let (mut own, mut cursor) = (Shared::default(), self.cursor.clone());
        self.shared.begin(&self.framework, &pod);
        let feasible =
            cycle.find_feasible(&pod, &mut self.cursor, &mut self.shared).expect("no plugin fails");
        if self.checked {
            own.begin(&self.framework, &pod);
            let alone = cycle.find_feasible(&pod, &mut cursor, &mut own).expect("no plugin fails");
            assert_eq!((&feasible.nodes, &self.cursor), (&alone.nodes, &cursor));
            assert_eq!(feasible.diagnosis.to_string(), alone.diagnosis.to_string());
        }
        let node = match feasible.nodes.as_slice() {
            [] => return Err(Box::new(feasible.diagnosis)),
            [only] => *only,
            nodes => {
                let scores = cycle.prioritize(&pod, nodes, &mut self.shared);
                if self.checked {
                    assert_eq!(scores, cycle.prioritize(&pod, nodes, &mut own));
                }
                select_host(nodes, &scores, &mut self.random).expect("one of them")
            }
        };
        self.cache.assume(pod, node);
        Ok(self.cache.node(node).name.clone())
    }

    /// What PostFilter makes of a pod that fits nowhere: whom to evict, or the whole message of the failure.
    pub fn preempt(&mut self, pod: Arc<Pod>, mut diagnosis: Box<Diagnosis>) -> Result<Candidate, String> {
        let pod = Arc::new(PodInfo::new(pod));
        let mut messages = Vec::new();
        for plugin in self.framework.at(ExtensionPoint::PostFilter) {
            match plugin.post_filter(&self.framework, &pod, &self.cache, &diagnosis, &self.nominator) {
                PostFilter::Preempt(preemption) => {
                    return Ok(select_candidate(&preemption.candidates).expect("at least one").clone());
                }
                PostFilter::Deallocate(_) => {
                    messages.push("deallocation of ResourceClaim completed".to_owned())
                }
                PostFilter::DeleteClaim(_) => messages.push("deletion of ResourceClaim completed".to_owned()),
                PostFilter::Unschedulable { message, .. } => messages.push(message),
                PostFilter::Unresolvable(message) | PostFilter::Error(message) => {
                    messages = vec![message];
                    break;
                }
            }
        }
        diagnosis.post_filter = messages.join(", ");
        Err(diagnosis.to_string())
    }

    /// Schedules a pod, evicting others if that is what it takes.
    pub fn schedule_or_preempt(&mut self, pod: Arc<Pod>) -> Option<String> {
        let diagnosis = match self.schedule(pod.clone()) {
            Ok(node) => return Some(node),
            Err(diagnosis) => diagnosis,
        };
        let best = self.preempt(pod.clone(), diagnosis).ok()?;
        for victim in &best.victims {
            self.cache.displace(&victim.key);
        }
        self.nominator.nominate(Arc::new(PodInfo::new(pod.clone())), &best.node);
        let node = self.schedule(pod.clone()).ok();
        self.nominator.remove(&PodInfo::new(pod).key);
        node
    }
}

fn random_pod(random: &mut StdRng, number: usize) -> Arc<Pod> {
    let app = format!("app{}", random.random_range(0..3));
    let near = |kind: &str, key: &str, app: &str| {
        json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}]}})
    };
    let mut spec = json!({"containers": [{"name": "c", "resources": {"requests":
        {"cpu": format!("{}m", random.random_range(0..8) * 100), "memory": "64Mi"}}}]});
    spec["priority"] = json!(random.random_range(0..3) * 10);
    match random.random_range(0..8) {
        0 => spec["affinity"] = near("podAntiAffinity", "kubernetes.io/hostname", &app),
        1 => spec["affinity"] = near("podAffinity", "topology.kubernetes.io/zone", &app),
        2 => spec["affinity"] = near("podAntiAffinity", "topology.kubernetes.io/zone", "app0"),
        3 => {
            spec["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": app}}}]);
        }
        4 => spec["nodeSelector"] = json!({"disk": "ssd"}),
        5 => {
            spec["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}])
        }
        _ => {}
    }
    let name = format!("p{number}");
    let metadata = json!({"name": name, "namespace": "default", "uid": name, "labels": {"app": app}});
    parse(json!({"metadata": metadata, "spec": spec}))
}

fn random_node(random: &mut StdRng, number: usize) -> Arc<Node> {
    let name = format!("n{number}");
    let disk = if random.random_bool(0.5) { "ssd" } else { "hdd" };
    let mut labels = json!({"kubernetes.io/hostname": name, "disk": disk});
    if random.random_bool(0.9) {
        labels["topology.kubernetes.io/zone"] = json!(format!("z{}", random.random_range(0..3)));
    }
    let taints =
        if random.random_bool(0.1) { json!([{"key": "k", "effect": "NoSchedule"}]) } else { json!([]) };
    let allocatable = json!({"cpu": "2", "memory": "1Gi", "pods": "8"});
    parse(json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints},
        "status": {"allocatable": allocatable}}))
}

/// Whether a node could take a pod, worked out from the objects alone: the simplest reading of the rules.
fn fits(cache: &Cache, pod: &PodInfo, node: &Node) -> bool {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let info = cache.node_by_name(name).expect("a known node");
    let requested: i64 = info.pods.iter().map(|other| other.requests.milli_cpu).sum();
    let memory: i64 = info.pods.iter().map(|other| other.requests.memory).sum();
    let label = |key: &str, info: &crate::cache::NodeInfo| info.labels().get(key).cloned();
    let tainted =
        node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).is_some_and(|taints| !taints.is_empty());
    let ports = |other: &Arc<PodInfo>| other.host_ports.iter().any(|port| pod.host_ports.contains(port));
    let same = |key: &str, other: &crate::cache::NodeInfo| {
        label(key, info).is_some() && label(key, info) == label(key, other)
    };
    let matches = |matcher: &crate::pod_info::PodMatcher, other: &PodInfo| {
        matcher.selector.matches(other.labels()) && matcher.namespaces.contains(&other.key.namespace)
    };
    let placed = || cache.nodes().flat_map(|on| on.pods.iter().map(move |other| (on, other)));
    let away = pod.affinities.required_anti.iter().all(|term| {
        !placed().any(|(on, other)| same(&term.topology_key, on) && matches(&term.matcher, other))
    });
    let spared = !placed().any(|(on, other)| {
        other
            .affinities
            .required_anti
            .iter()
            .any(|term| same(&term.topology_key, on) && matches(&term.matcher, pod))
    });
    let near = pod.affinities.required.iter().all(|term| {
        let anywhere = placed()
            .any(|(on, other)| label(&term.topology_key, on).is_some() && matches(&term.matcher, other));
        let here = placed().any(|(on, other)| same(&term.topology_key, on) && matches(&term.matcher, other));
        label(&term.topology_key, info).is_some() && (here || !anywhere && matches(&term.matcher, pod))
    });
    let spread = pod.spread_constraints.iter().all(|constraint| {
        let key = &constraint.topology_key;
        let Some(own) = label(key, info) else { return false };
        let mut domains = std::collections::BTreeMap::new();
        for on in cache.nodes().filter(|on| pod.node_matcher.matches(&on.name, on.labels())) {
            if let Some(domain) = label(key, on) {
                let count =
                    on.pods.iter().filter(|other| matches(&constraint.matcher[0], other)).count() as i64;
                *domains.entry(domain).or_insert(0) += count;
            }
        }
        let fewest = domains.values().copied().min().unwrap_or(0);
        let own_match = i64::from(matches(&constraint.matcher[0], pod));
        domains.get(&own).copied().unwrap_or(0) + own_match - fewest <= constraint.max_skew
    });
    (pod.requests.milli_cpu == 0 || requested + pod.requests.milli_cpu <= info.allocatable.milli_cpu)
        && memory + pod.requests.memory <= info.allocatable.memory
        && (info.pods.len() as i64) < info.allowed_pods
        && !tainted
        && !info.pods.iter().any(ports)
        && pod.node_matcher.matches(&info.name, info.labels())
        && away
        && spared
        && near
        && spread
}

/// What the counters say must be what counting anew says.
fn check_counts(cache: &Cache, pod: &PodInfo) {
    for constraint in &pod.spread_constraints {
        let key = CounterKey { matchers: constraint.matcher.clone(), live_only: true };
        let counts = cache.pods().counts(&key).expect("registered");
        for node in cache.nodes() {
            let matching = node.pods.iter().filter(|other| {
                !other.terminating
                    && constraint.matcher.iter().all(|matcher| cache.pods().matches(matcher, other))
            });
            assert_eq!(counts.on(node.index), matching.count() as i64);
        }
        let topology = cache.topology().key(&constraint.topology_key).expect("registered");
        let table = cache.topology().table(topology);
        for domain in table.live_domains() {
            let inside = cache.nodes().filter(|node| table.domain(node.index) == Some(domain));
            let expected: i64 = inside.map(|node| counts.on(node.index)).sum();
            assert_eq!(counts.domains(topology).get(domain.place()).copied().unwrap_or(0), expected);
        }
    }
}

#[test]
fn random_clusters_keep_their_promises() {
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut simulation = Simulation::new();
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        let mut pods: Vec<Arc<PodInfo>> = Vec::new();
        for step in 0..120 {
            match random.random_range(0..10) {
                0 | 1 if nodes.len() < 8 => {
                    let node = random_node(&mut random, nodes.len());
                    nodes.push(node.clone());
                    simulation.node(node);
                }
                2 if !pods.is_empty() => {
                    let gone = pods.swap_remove(random.random_range(0..pods.len()));
                    simulation.cache.displace(&gone.key);
                }
                3 if !nodes.is_empty() => {
                    // Its labels change; what is there stays.
                    let place = random.random_range(0..nodes.len());
                    nodes[place] = random_node(&mut random, place);
                    simulation.node(nodes[place].clone());
                }
                _ => {
                    let pod = random_pod(&mut random, step);
                    let info = Arc::new(PodInfo::new(pod.clone()));
                    let possible: Vec<_> = nodes
                        .iter()
                        .filter(|node| fits(&simulation.cache, &info, node))
                        .filter_map(|node| node.metadata.name.clone())
                        .collect();
                    match simulation.schedule(pod) {
                        Ok(node) => {
                            assert!(
                                possible.contains(&node),
                                "seed {seed} step {step}: {node} not in {possible:?}"
                            );
                            pods.push(info.clone());
                        }
                        Err(diagnosis) => {
                            assert!(
                                possible.is_empty(),
                                "seed {seed} step {step}: {possible:?}, but {diagnosis}"
                            );
                        }
                    }
                    check_counts(&simulation.cache, &info);
                }
            }
            for node in simulation.cache.nodes() {
                assert!(node.requested.milli_cpu <= node.allocatable.milli_cpu, "seed {seed} step {step}");
                assert!(node.pods.len() as i64 <= node.allowed_pods);
            }
        }
    }
}

#[test]
fn preemption_leaves_everything_as_it_was_but_for_the_victims() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(1000 + seed);
        let mut simulation = Simulation::new();
        for number in 0..4 {
            simulation.node(random_node(&mut random, number));
        }
        for number in 0..60 {
            let pod = random_pod(&mut random, number);
            let priority = PodInfo::new(pod.clone()).priority;
            if let Err(diagnosis) = simulation.schedule(pod.clone())
                && let Ok(candidate) = simulation.preempt(pod.clone(), diagnosis)
            {
                assert!(candidate.victims.iter().all(|victim| victim.priority < priority));
                for victim in &candidate.victims {
                    simulation.cache.displace(&victim.key);
                }
                let info = PodInfo::new(pod.clone());
                simulation.framework.prepare(&info, &mut simulation.cache);
                let mut filters =
                    simulation.framework.run_pre_filter(&info, &simulation.cache).expect("accepted");
                let node = simulation.cache.node_by_name(&candidate.node).expect("a known node");
                let verdict = filters.run_with_nominated(&info, node, &simulation.nominator);
                assert_eq!(verdict, Ok(()), "seed {seed} pod {number}");
                drop(filters);
                // None of the victims was evicted in vain.
                let spared = &candidate.victims[0];
                simulation.cache.place(spared.clone(), &candidate.node);
                simulation.framework.prepare(&info, &mut simulation.cache);
                let filters = simulation.framework.run_pre_filter(&info, &simulation.cache);
                let node = simulation.cache.node_by_name(&candidate.node).expect("a known node");
                assert!(filters.is_err() || filters.is_ok_and(|filters| filters.run(node).is_err()));
            }
        }
    }
}

fn pod_json(name: &str, priority: i32, cpu: &str) -> Arc<Pod> {
    let spec: Value =
        json!({"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
    crate::testing::pod_with(name, spec)
}

#[test]
fn the_message_of_a_pod_that_fits_nowhere() {
    let mut simulation = Simulation::new();
    simulation.node(crate::testing::node("small", "1", "1Gi"));
    simulation.node(crate::testing::labelled_node(
        "tainted",
        json!({}),
        json!({"taints": [{"key": "k", "effect": "NoSchedule"}]}),
    ));
    simulation.schedule(pod_json("there", 10, "1")).unwrap();
    let mut check = |pod: Arc<Pod>, expected: &str| {
        let diagnosis = simulation.schedule(pod.clone()).unwrap_err();
        assert_eq!(simulation.preempt(pod, diagnosis).unwrap_err(), expected);
    };
    check(
        pod_json("equal", 10, "1"),
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s). no new claims to deallocate, \
         preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not \
         helpful for scheduling.",
    );
    let mut never = serde_json::to_value(&*pod_json("never", 20, "1")).unwrap();
    never["spec"]["preemptionPolicy"] = json!("Never");
    check(
        parse(never),
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s). no new claims to deallocate, \
         preemption: not eligible due to preemptionPolicy=Never.",
    );
    let only = json!({"nodeSelector": {"disk": "ssd"}});
    check(
        crate::testing::pod_with("picky", only),
        "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated \
         taint(s). no new claims to deallocate, preemption: 0/2 nodes are available: 2 Preemption is not helpful for \
         scheduling.",
    );
    // Where another plugin's first look ends it, that for devices has noted nothing, which is what upstream says.
    let volume =
        |claim: &str| json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]});
    check(
        crate::testing::pod_with("p", volume("nothing")),
        "0/2 nodes are available: persistentvolumeclaim \"nothing\" not found. not found",
    );
    let devices = json!({"resourceClaims": [{"name": "c", "resourceClaimTemplateName": "t"}]});
    check(
        crate::testing::pod_with("p", devices),
        "0/2 nodes are available: pod \"default/p\": ResourceClaim not created yet. no new claims to deallocate, \
         preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.",
    );
}
