//! The rules of the plugins, case by case.

mod devices;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::config::PluginArgs;
use crate::framework::{ClusterEvent, Code, QueueingHint};
use crate::pod_info::PodInfo;
use crate::testing::{Scene, labelled_node, labelled_pod, node, parse, pod_with};

fn args(plugin: &str, args: Value) -> PluginArgs {
    PluginArgs::parse(plugin, &args).unwrap()
}

fn node_affinity(with: Value) -> node_affinity::NodeAffinity {
    match args("NodeAffinity", with) {
        PluginArgs::NodeAffinity(args) => node_affinity::NodeAffinity::new(args),
        _ => unreachable!(),
    }
}

fn inter_pod_affinity(with: Value) -> inter_pod_affinity::InterPodAffinity {
    match args("InterPodAffinity", with) {
        PluginArgs::InterPodAffinity(args) => inter_pod_affinity::InterPodAffinity::new(args),
        _ => unreachable!(),
    }
}

fn spread(with: Value) -> pod_topology_spread::PodTopologySpread {
    match args("PodTopologySpread", with) {
        PluginArgs::PodTopologySpread(args) => pod_topology_spread::PodTopologySpread::new(args),
        _ => unreachable!(),
    }
}

const UNRESOLVABLE: Code = Code::UnschedulableAndUnresolvable;

#[test]
fn taints() {
    let mut scene = Scene::new(taint_toleration::TaintToleration);
    let taint = |effect: &str| json!({"taints": [{"key": "k", "value": "v", "effect": effect}]});
    scene.node(labelled_node("free", json!({}), json!({})));
    scene.node(labelled_node("no", json!({}), taint("NoSchedule")));
    scene.node(labelled_node("out", json!({}), taint("NoExecute")));
    scene.node(labelled_node("rather-not", json!({}), taint("PreferNoSchedule")));
    let plain = pod_with("p", json!({}));
    assert_eq!(scene.feasible(plain.clone()), ["free", "rather-not"]);
    scene.refused(plain.clone(), "no", UNRESOLVABLE, "node(s) had untolerated taint(s)");
    let tolerant = pod_with("t", json!({"tolerations": [{"key": "k", "operator": "Exists"}]}));
    assert_eq!(scene.feasible(tolerant.clone()), ["free", "no", "out", "rather-not"]);
    assert_eq!(scene.scores(plain.clone()).unwrap(), [100, 100, 100, 0]);
    assert_eq!(scene.scores(tolerant), None);
    let (tainted, freed) = (labelled_node("n", json!({}), taint("NoSchedule")), node("n", "1", "1Gi"));
    scene.hint(&plain, ClusterEvent::node(Some(&tainted), &freed), QueueingHint::Queue);
    scene.hint(&plain, ClusterEvent::node(Some(&freed), &tainted), QueueingHint::Skip);
    scene.hint(&plain, ClusterEvent::node(None, &tainted), QueueingHint::Skip);
}

#[test]
fn cordoned_nodes_and_named_nodes() {
    let mut scene = Scene::new(node_unschedulable::NodeUnschedulable);
    scene.node(labelled_node("cordoned", json!({}), json!({"unschedulable": true})));
    scene.refused(pod_with("p", json!({})), "cordoned", UNRESOLVABLE, "node(s) were unschedulable");
    let tolerations =
        json!([{"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}]);
    scene.fits(pod_with("t", json!({"tolerations": tolerations})), "cordoned");
    scene.plugin(node_name::NodeName);
    scene.fits(pod_with("p", json!({"nodeName": "cordoned"})), "cordoned");
    scene.refused(
        pod_with("p", json!({"nodeName": "other"})),
        "cordoned",
        UNRESOLVABLE,
        "node(s) didn't match the requested node name",
    );
}

#[test]
fn node_selectors_and_affinity() {
    let mut scene = Scene::new(node_affinity(json!(null)));
    scene.node(labelled_node("a", json!({"disk": "ssd", "cores": "8"}), json!({})));
    scene.node(labelled_node("b", json!({"disk": "hdd", "cores": "16"}), json!({})));
    scene.node(labelled_node("c", json!({}), json!({})));
    let mut check = |spec: Value, expected: &[&str]| {
        assert_eq!(scene.feasible(pod_with("p", spec.clone())), expected, "{spec}");
    };
    let required = |terms: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
    let expression = |key: &str, operator: &str, values: Value| json!({"key": key, "operator": operator, "values": values});
    let expressions = |all: Value| json!({"matchExpressions": all});
    check(json!({}), &["a", "b", "c"]);
    check(json!({"nodeSelector": {"disk": "ssd"}}), &["a"]);
    check(required(json!([expressions(json!([expression("disk", "In", json!(["ssd", "nvme"]))]))])), &["a"]);
    check(required(json!([expressions(json!([expression("disk", "NotIn", json!(["ssd"]))]))])), &["b", "c"]);
    check(required(json!([expressions(json!([expression("disk", "Exists", json!(null))]))])), &["a", "b"]);
    check(required(json!([expressions(json!([expression("disk", "DoesNotExist", json!(null))]))])), &["c"]);
    check(required(json!([expressions(json!([expression("cores", "Gt", json!(["8"]))]))])), &["b"]);
    check(required(json!([expressions(json!([expression("cores", "Lt", json!(["9"]))]))])), &["a"]);
    // Terms are alternatives, the requirements of one are not; an empty term matches nothing.
    check(
        required(json!([
            expressions(json!([
                expression("disk", "In", json!(["ssd"])),
                expression("cores", "Gt", json!(["8"]))
            ])),
            expressions(json!([expression("disk", "In", json!(["hdd"]))])),
            {}
        ])),
        &["b"],
    );
    check(required(json!([{}])), &[]);
    let fields = |names: Value| json!({"matchFields": [expression("metadata.name", "In", names)]});
    check(required(json!([fields(json!(["c"]))])), &["c"]);
    let both = json!({"matchFields": [expression("metadata.name", "In", json!(["a"]))],
        "matchExpressions": [expression("disk", "In", json!(["hdd"]))]});
    check(required(json!([both])), &[]);
    let torn = json!({"matchFields": [expression("metadata.name", "In", json!(["a"])),
        expression("metadata.name", "In", json!(["b"]))]});
    let torn = pod_with("p", required(json!([torn])));
    scene.refused(torn, "a", UNRESOLVABLE, "pod affinity terms conflict");
}

#[test]
fn preferred_and_added_node_affinity() {
    let term =
        |value: &str| json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": [value]}]});
    let mut scene = Scene::new(node_affinity(json!(null)));
    scene.node(labelled_node("a", json!({"disk": "ssd"}), json!({})));
    scene.node(labelled_node("b", json!({"disk": "hdd"}), json!({})));
    let preferring =
        json!([{"weight": 20, "preference": term("ssd")}, {"weight": 5, "preference": term("hdd")}]);
    let preferring = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferring}}});
    assert_eq!(scene.scores(pod_with("p", preferring)).unwrap(), [100, 25]);
    assert_eq!(scene.scores(pod_with("p", json!({}))), None);
    let required =
        json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term("hdd")]}});
    scene.plugin(node_affinity(json!({"addedAffinity": required})));
    assert_eq!(scene.feasible(pod_with("p", json!({}))), ["b"]);
    scene.refused(
        pod_with("p", json!({})),
        "a",
        UNRESOLVABLE,
        "node(s) didn't match scheduler-enforced node affinity",
    );
}

#[test]
fn host_ports() {
    let port = |ip: &str, protocol: &str, port: i32| {
        let port = json!([{"containerPort": 1, "hostPort": port, "protocol": protocol, "hostIP": ip}]);
        json!({"containers": [{"name": "c", "ports": port}]})
    };
    let check = |there: Value, wanted: Value, fits: bool| {
        let mut scene = Scene::new(node_ports::NodePorts);
        scene.node(node("n", "1", "1Gi"));
        scene.place(pod_with("there", there), "n");
        assert_eq!(scene.filter(pod_with("p", wanted.clone()), "n").is_ok(), fits, "{wanted}");
    };
    check(port("", "TCP", 80), port("", "TCP", 80), false);
    check(port("", "TCP", 80), port("", "UDP", 80), true);
    check(port("", "TCP", 80), port("", "TCP", 81), true);
    check(port("127.0.0.1", "TCP", 80), port("127.0.0.2", "TCP", 80), true);
    check(port("127.0.0.1", "TCP", 80), port("0.0.0.0", "TCP", 80), false);
}

#[test]
fn images_that_are_there() {
    let with_images = |name: &str, images: Value| {
        let status = json!({"allocatable": {"cpu": "1", "pods": "10"}, "images": images});
        parse(json!({"metadata": {"name": name}, "status": status}))
    };
    let mut scene = Scene::new(image_locality::ImageLocality);
    scene.node(with_images("has", json!([{"names": ["app:latest"], "sizeBytes": 800 * 1024 * 1024}])));
    scene.node(with_images("has-not", json!([])));
    let pod = |image: &str| pod_with("p", json!({"containers": [{"name": "c", "image": image}]}));
    // Half of 800 MiB, for half of the nodes have it.
    assert_eq!(scene.scores(pod("app")).unwrap(), [38, 0]);
    assert_eq!(scene.scores(pod("other")), None);
}

fn web(kind: &str, when: &str, key: &str) -> Value {
    let term = json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": "web"}}});
    let term =
        if when.starts_with("preferred") { json!({"weight": 10, "podAffinityTerm": term}) } else { term };
    json!({"affinity": {kind: {when: [term]}}})
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn two_hosts(plugin: inter_pod_affinity::InterPodAffinity) -> Scene {
    let mut scene = Scene::new(plugin);
    for name in ["a", "b"] {
        scene.node(labelled_node(name, json!({"host": name, "zone": "z"}), json!({})));
    }
    scene
}

#[test]
fn required_pod_affinity() {
    let check = |there: Option<Value>, spec: Value, expected: &[&str]| {
        let mut scene = two_hosts(inter_pod_affinity(json!(null)));
        if let Some(there) = there {
            scene.place(pod_with("there", there), "a");
        }
        assert_eq!(scene.feasible(pod_with("p", spec)), expected);
    };
    check(None, json!({}), &["a", "b"]);
    check(Some(json!({})), web("podAffinity", REQUIRED, "host"), &["a"]);
    check(Some(json!({})), web("podAffinity", REQUIRED, "zone"), &["a", "b"]);
    // The first of its own kind has nobody to join.
    check(None, web("podAffinity", REQUIRED, "host"), &["a", "b"]);
    check(Some(json!({})), web("podAffinity", REQUIRED, "rack"), &[]);
    check(Some(json!({})), web("podAntiAffinity", REQUIRED, "host"), &["b"]);
    check(Some(json!({})), web("podAntiAffinity", REQUIRED, "zone"), &[]);
    check(Some(web("podAntiAffinity", REQUIRED, "host")), json!({}), &["b"]);
    check(Some(web("podAntiAffinity", REQUIRED, "rack")), json!({}), &["a", "b"]);
}

#[test]
fn the_first_pod_must_match_its_own_affinity() {
    let mut scene = two_hosts(inter_pod_affinity(json!(null)));
    let lonely = labelled_pod("p", json!({"app": "db"}), web("podAffinity", REQUIRED, "host"));
    scene.refused(lonely, "a", UNRESOLVABLE, "node(s) didn't match pod affinity rules");
}

#[test]
fn all_required_terms_are_met_by_one_pod() {
    let mut scene = two_hosts(inter_pod_affinity(json!(null)));
    scene.place(labelled_pod("1", json!({"app": "web"}), json!({})), "a");
    scene.place(labelled_pod("2", json!({"tier": "x"}), json!({})), "a");
    let term = |labels: Value| json!({"topologyKey": "host", "labelSelector": {"matchLabels": labels}});
    let both = json!([term(json!({"app": "web"})), term(json!({"tier": "x"}))]);
    let spec = json!({"affinity": {"podAffinity": {REQUIRED: both}}});
    assert_eq!(scene.feasible(labelled_pod("p", json!({}), spec.clone())), [""; 0]);
    scene.place(labelled_pod("3", json!({"app": "web", "tier": "x"}), json!({})), "b");
    assert_eq!(scene.feasible(labelled_pod("p", json!({}), spec)), ["b"]);
}

#[test]
fn namespaces_of_affinity_terms() {
    let in_namespace = |name: &str, namespace: &str, spec: Value| -> Arc<Pod> {
        let metadata = json!({"name": name, "namespace": namespace, "uid": name, "labels": {"app": "web"}});
        let mut spec = spec;
        spec["containers"] = json!([{"name": "c"}]);
        parse(json!({"metadata": metadata, "spec": spec}))
    };
    let check = |extra: Value, fits: bool| {
        let mut scene = two_hosts(inter_pod_affinity(json!(null)));
        scene.cache.set_namespace("other", Some([("team".to_owned(), "a".to_owned())].into()));
        scene.place(in_namespace("there", "other", json!({})), "a");
        let mut spec = web("podAntiAffinity", REQUIRED, "host");
        let term = &mut spec["affinity"]["podAntiAffinity"][REQUIRED][0];
        extra.as_object().unwrap().iter().for_each(|(key, value)| term[key] = value.clone());
        assert_eq!(scene.filter(in_namespace("p", "own", spec), "a").is_ok(), fits, "{extra}");
    };
    check(json!({}), true);
    check(json!({"namespaces": ["other"]}), false);
    check(json!({"namespaces": ["third"]}), true);
    check(json!({"namespaceSelector": {}}), false);
    check(json!({"namespaceSelector": {"matchLabels": {"team": "a"}}}), false);
    check(json!({"namespaceSelector": {"matchLabels": {"team": "b"}}}), true);
    check(json!({"namespaceSelector": {}, "matchLabelKeys": ["app"]}), false);
    check(json!({"namespaceSelector": {}, "mismatchLabelKeys": ["app"]}), true);
}

#[test]
fn preferred_pod_affinity() {
    let scores = |plugin: Value, there: Value, spec: Value| {
        let mut scene = two_hosts(inter_pod_affinity(plugin));
        scene.place(pod_with("there", there), "a");
        scene.scores(pod_with("p", spec))
    };
    let none = || json!(null);
    assert_eq!(scores(none(), json!({}), web("podAffinity", PREFERRED, "host")), Some(vec![100, 0]));
    assert_eq!(scores(none(), json!({}), web("podAntiAffinity", PREFERRED, "host")), Some(vec![0, 100]));
    // Placed pods have preferences too, and required affinity counts as one.
    assert_eq!(scores(none(), web("podAntiAffinity", PREFERRED, "host"), json!({})), Some(vec![0, 100]));
    assert_eq!(scores(none(), web("podAffinity", REQUIRED, "host"), json!({})), Some(vec![100, 0]));
    let unweighted = json!({"hardPodAffinityWeight": 0});
    assert_eq!(scores(unweighted, web("podAffinity", REQUIRED, "host"), json!({})), None);
    let ignoring = json!({"ignorePreferredTermsOfExistingPods": true});
    assert_eq!(scores(ignoring, web("podAntiAffinity", PREFERRED, "host"), json!({})), None);
    assert_eq!(scores(none(), json!({}), json!({})), None);
}

fn spreading(extra: Value) -> Value {
    let mut constraint = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}});
    extra.as_object().unwrap().iter().for_each(|(key, value)| constraint[key] = value.clone());
    json!({"topologySpreadConstraints": [constraint]})
}

/// Zones `x` (nodes x1 and x2) and `y` (y1), and a node without zone; two web pods in x, one in y.
fn zones(plugin: pod_topology_spread::PodTopologySpread) -> Scene {
    let mut scene = Scene::new(plugin);
    for (name, zone) in [("x1", "x"), ("x2", "x"), ("y1", "y")] {
        scene.node(labelled_node(name, json!({"zone": zone, "kubernetes.io/hostname": name}), json!({})));
    }
    scene.node(labelled_node("zoneless", json!({"kubernetes.io/hostname": "zoneless"}), json!({})));
    for (name, node) in [("1", "x1"), ("2", "x1"), ("3", "y1")] {
        scene.place(pod_with(name, json!({})), node);
    }
    scene
}

#[test]
fn strict_spreading() {
    let mut scene = zones(spread(json!(null)));
    let mut check = |spec: Value, expected: &[&str]| {
        assert_eq!(scene.feasible(pod_with("p", spec.clone())), expected, "{spec}");
    };
    check(spreading(json!({})), &["y1"]);
    check(spreading(json!({"maxSkew": 2})), &["x1", "x2", "y1"]);
    // With fewer domains than wanted the missing ones count as empty.
    check(spreading(json!({"maxSkew": 2, "minDomains": 3})), &["y1"]);
    check(spreading(json!({"topologyKey": "kubernetes.io/hostname"})), &["x2", "zoneless"]);
    // Pods that do not match are not spread by it.
    check(spreading(json!({"labelSelector": {"matchLabels": {"app": "db"}}})), &["x1", "x2", "y1"]);
    check(spreading(json!({"labelSelector": null})), &["x1", "x2", "y1"]);
    let plain = pod_with("p", spreading(json!({})));
    let missing = "node(s) didn't match pod topology spread constraints (missing required label)";
    scene.refused(plain.clone(), "zoneless", UNRESOLVABLE, missing);
    scene.refused(plain, "x1", Code::Unschedulable, "node(s) didn't match pod topology spread constraints");
}

#[test]
fn which_nodes_count_for_spreading() {
    let mut scene = zones(spread(json!(null)));
    scene.node(labelled_node(
        "z1",
        json!({"zone": "z"}),
        json!({"taints": [{"key": "k", "effect": "NoSchedule"}]}),
    ));
    let mut check = |extra: Value, more: Value, expected: &[&str]| {
        let mut spec = spreading(extra);
        more.as_object().unwrap().iter().for_each(|(key, value)| spec[key] = value.clone());
        assert_eq!(scene.feasible(pod_with("p", spec.clone())), expected, "{spec}");
    };
    // The tainted zone is empty, so the others have too many already.
    check(json!({}), json!({}), &["z1"]);
    // A node that does not count may still be taken as far as this plugin is concerned.
    check(json!({"nodeTaintsPolicy": "Honor"}), json!({}), &["y1", "z1"]);
    let only_x = json!({"nodeSelector": {"zone": "x"}});
    check(json!({"nodeTaintsPolicy": "Honor"}), only_x.clone(), &["x1", "x2", "y1", "z1"]);
    check(json!({"nodeAffinityPolicy": "Ignore"}), only_x, &["z1"]);
}

#[test]
fn spreading_by_the_pods_own_labels() {
    let mut scene = zones(spread(json!(null)));
    let mut check = |labels: Value, expected: &[&str]| {
        let spec = spreading(json!({"matchLabelKeys": ["hash"]}));
        assert_eq!(scene.feasible(labelled_pod("p", labels, spec)), expected);
    };
    check(json!({"app": "web", "hash": "new"}), &["x1", "x2", "y1"]);
    check(json!({"app": "web"}), &["y1"]);
}

#[test]
fn preferred_and_default_spreading() {
    let mut scene = zones(spread(json!(null)));
    let soft = spreading(json!({"whenUnsatisfiable": "ScheduleAnyway"}));
    assert_eq!(scene.scores(pod_with("p", soft)).unwrap(), [33, 33, 100, 0]);
    assert_eq!(scene.scores(pod_with("p", json!({}))), None);
    let key = orlop_client::ObjectKey::new("default", "web");
    scene.cache.workloads.set_service(&key, Some([("app".to_owned(), "web".to_owned())].into()));
    let by_service = scene.scores(pod_with("p", json!({}))).unwrap();
    assert!(by_service[1] > by_service[0] && by_service[2] > by_service[0], "{by_service:?}");
    let constraint = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"});
    scene.plugin(spread(json!({"defaultingType": "List", "defaultConstraints": [constraint]})));
    assert_eq!(scene.feasible(pod_with("p", json!({}))), ["y1"]);
}

fn claim(name: &str, spec: Value, bound: bool) -> Arc<k8s_openapi::api::core::v1::PersistentVolumeClaim> {
    let annotations = if bound { json!({"pv.kubernetes.io/bind-completed": "yes"}) } else { json!({}) };
    let mut spec = spec;
    spec["resources"] = json!({"requests": {"storage": "1Gi"}});
    parse(
        json!({"metadata": {"name": name, "namespace": "default", "uid": name, "annotations": annotations}, "spec": spec}),
    )
}

fn volume(name: &str, size: &str, node: &str) -> Arc<k8s_openapi::api::core::v1::PersistentVolume> {
    let term = json!({"matchExpressions": [{"key": "host", "operator": "In", "values": [node]}]});
    parse(
        json!({"metadata": {"name": name}, "status": {"phase": "Available"}, "spec": {"storageClassName": "local",
        "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
        "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}}}),
    )
}

fn class(name: &str, provisioner: &str, mode: &str) -> Arc<k8s_openapi::api::storage::v1::StorageClass> {
    parse(json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode}))
}

fn using(claim: &str) -> Arc<Pod> {
    pod_with("p", json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}))
}

fn storage() -> Scene {
    let mut scene = Scene::new(volume_binding::VolumeBinding::new(Default::default()));
    for name in ["a", "b"] {
        scene.node(labelled_node(name, json!({"host": name}), json!({})));
    }
    let volumes = &mut scene.cache.volumes;
    volumes.set_class("local", Some(class("local", "kubernetes.io/no-provisioner", "WaitForFirstConsumer")));
    volumes.set_class("made", Some(class("made", "example.com/disk", "WaitForFirstConsumer")));
    volumes.set_class("now", Some(class("now", "example.com/disk", "Immediate")));
    volumes.set_volume(volume("large", "10Gi", "a"));
    volumes.set_volume(volume("small", "2Gi", "a"));
    volumes.set_claim(claim("bound", json!({"volumeName": "large"}), true));
    volumes.set_claim(claim("lost", json!({"volumeName": "gone"}), true));
    for name in ["local", "made", "now"] {
        volumes.set_claim(claim(
            name,
            json!({"storageClassName": name, "accessModes": ["ReadWriteOnce"]}),
            false,
        ));
    }
    scene
}

#[test]
fn volumes_restrict_a_pod() {
    let mut scene = storage();
    let refused = |scene: &mut Scene, name: &str, node: &str, message: &str| {
        scene.refused(using(name), node, UNRESOLVABLE, message);
    };
    assert_eq!(scene.feasible(using("bound")), ["a"]);
    assert_eq!(scene.feasible(using("local")), ["a"]);
    assert_eq!(scene.feasible(using("made")), ["a", "b"]);
    refused(&mut scene, "bound", "b", "node(s) didn't match PersistentVolume's node affinity");
    refused(&mut scene, "local", "b", "node(s) didn't find available persistent volumes to bind");
    refused(&mut scene, "now", "a", "pod has unbound immediate PersistentVolumeClaims");
    refused(&mut scene, "absent", "a", "persistentvolumeclaim \"absent\" not found");
    let missing = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
    refused(&mut scene, "lost", "a", missing);
}

#[test]
fn the_smallest_volume_is_taken_until_it_is_given_back() {
    let mut scene = storage();
    let pod = PodInfo::new(using("local"));
    let claims = scene.cache.volumes.claims_of(&pod).unwrap();
    let labels = [("host".to_owned(), "a".to_owned())].into();
    let find = |scene: &Scene| scene.cache.volumes.find(&claims, "a", &labels).unwrap();
    let name = |found: &crate::volumes::PodVolumes| found.bindings[0].0.metadata.name.clone().unwrap();
    let found = find(&scene);
    assert_eq!(name(&found), "small");
    let assumed = scene.cache.volumes.assume(&found, "a");
    let reference = assumed.bindings[0].0.spec.as_ref().unwrap().claim_ref.clone().unwrap();
    assert_eq!(reference.name.as_deref(), Some("local"));
    // It is reserved for this very claim now; another one gets the next.
    scene.cache.volumes.set_claim(claim("second", json!({"storageClassName": "local"}), false));
    let second = scene.cache.volumes.claims_of(&PodInfo::new(using("second"))).unwrap();
    let next = scene.cache.volumes.find(&second, "a", &labels).unwrap();
    assert_eq!(name(&next), "large");
    scene.cache.volumes.revert(&assumed);
    assert_eq!(name(&find(&scene)), "small");
}

#[test]
fn storage_capacity_is_minded_where_it_is_tracked() {
    let mut scene = storage();
    let driver = json!({"metadata": {"name": "example.com/disk"}, "spec": {"storageCapacity": true}});
    scene.cache.volumes.set_csi_driver("example.com/disk", Some(parse(driver)));
    let capacity = |name: &str, size: &str, host: &str| {
        let key = orlop_client::ObjectKey::new("kube-system", name);
        let topology = json!({"matchLabels": {"host": host}});
        let capacity = json!({"metadata": {"name": name}, "storageClassName": "made", "capacity": size, "nodeTopology": topology});
        (key, Some(parse(capacity)))
    };
    for (key, capacity) in [capacity("1", "5Gi", "a"), capacity("2", "100Mi", "b")] {
        scene.cache.volumes.set_capacity(key, capacity);
    }
    assert_eq!(scene.feasible(using("made")), ["a"]);
    scene.refused(using("made"), "b", UNRESOLVABLE, "node(s) did not have enough free storage");
}

#[test]
fn volumes_for_one_pod_only() {
    let mut scene = storage();
    scene.plugin(volume_restrictions::VolumeRestrictions);
    scene.cache.volumes.set_claim(claim("single", json!({"accessModes": ["ReadWriteOncePod"]}), true));
    scene.fits(using("single"), "a");
    let mut other = Pod::clone(&using("single"));
    other.metadata.name = Some("other".to_owned());
    other.metadata.uid = Some("other".to_owned());
    scene.place(Arc::new(other), "b");
    let message =
        "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    scene.refused(using("single"), "a", Code::Unschedulable, message);
    let disk = |name: &str, read_only: bool| {
        let disk = json!([{"name": "v", "gcePersistentDisk": {"pdName": "d", "readOnly": read_only}}]);
        pod_with(name, json!({"volumes": disk}))
    };
    scene.place(disk("reader", true), "a");
    scene.fits(disk("p", true), "a");
    scene.refused(disk("p", false), "a", Code::Unschedulable, "node(s) had no available disk");
}

#[test]
fn volumes_have_zones_and_nodes_have_limits() {
    let mut scene = storage();
    let zoned = json!({"metadata": {"name": "zoned", "labels": {"topology.kubernetes.io/zone": "x__y"}},
        "spec": {"csi": {"driver": "csi", "volumeHandle": "h"}}});
    scene.cache.volumes.set_volume(parse(zoned));
    scene.cache.volumes.set_claim(claim("zoned", json!({"volumeName": "zoned"}), true));
    for zone in ["x", "w"] {
        scene.node(labelled_node(zone, json!({"topology.kubernetes.io/zone": zone}), json!({})));
    }
    scene.plugin(volume_zone::VolumeZone);
    assert_eq!(scene.feasible(using("zoned")), ["a", "b", "x"]);
    scene.refused(using("zoned"), "w", UNRESOLVABLE, "node(s) had no available volume zone");
    scene.plugin(node_volume_limits::NodeVolumeLimits);
    let driver = json!([{"name": "csi", "nodeID": "a", "allocatable": {"count": 1}}]);
    scene
        .cache
        .volumes
        .set_csi_node("a", Some(parse(json!({"metadata": {"name": "a"}, "spec": {"drivers": driver}}))));
    scene.fits(using("zoned"), "a");
    let other =
        json!({"metadata": {"name": "other"}, "spec": {"csi": {"driver": "csi", "volumeHandle": "h2"}}});
    scene.cache.volumes.set_volume(parse(other));
    scene.cache.volumes.set_claim(claim("other", json!({"volumeName": "other"}), true));
    let mut first = Pod::clone(&using("other"));
    first.metadata.name = Some("first".to_owned());
    scene.place(Arc::new(first), "a");
    scene.refused(using("zoned"), "a", Code::Unschedulable, "node(s) exceed max volume count");
    scene.fits(using("other"), "a");
}
