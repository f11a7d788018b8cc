use super::*;
use crate::cache::Cache;
use crate::testing::{node, parse, pod_with};
use serde_json::{Value, json};

fn class(name: &str, created: &str, resource: Option<&str>) -> Value {
    json!({"metadata": {"name": name, "creationTimestamp": created}, "spec": {"extendedResourceName": resource}})
}

const EARLY: &str = "2026-01-01T00:00:00Z";
const LATE: &str = "2026-01-02T00:00:00Z";

#[test]
fn the_class_behind_a_resource() {
    let mut claims = Claims::default();
    let mut set = |name: &str, created: &str, resource: Option<&str>| {
        claims.set_class(name, Some(parse(class(name, created, resource))));
        ["e.com/gpu", "e.com/fpga", "deviceclass.resource.kubernetes.io/b"]
            .map(|resource| claims.class_of_resource(resource).map(str::to_owned).unwrap_or_default())
    };
    assert_eq!(set("b", EARLY, None), ["", "", "b"]);
    assert_eq!(set("b", EARLY, Some("e.com/gpu")), ["b", "", "b"]);
    assert_eq!(set("c", EARLY, Some("e.com/gpu")), ["b", "", "b"], "of the same age: by name");
    assert_eq!(set("a", EARLY, Some("e.com/gpu")), ["a", "", "b"]);
    assert_eq!(set("d", LATE, Some("e.com/gpu")), ["d", "", "b"], "the newest");
    assert_eq!(set("d", LATE, Some("e.com/fpga")), ["a", "d", "b"]);
    for name in ["a", "b", "c", "d"] {
        claims.set_class(name, None);
    }
    assert!(claims.resource_names.classes.is_empty());
    assert_eq!(claims.class_of_resource("deviceclass.resource.kubernetes.io/b"), None);
}

#[test]
fn what_a_class_comes_to_stand_for() {
    let check = |new: Value, old: Option<Value>, resource: &str, expected: bool| {
        let (new, old) = (parse::<DeviceClass>(new), old.map(parse::<DeviceClass>));
        assert_eq!(stands_for(&new, old.as_deref(), resource), expected, "{resource}");
    };
    let plain = || class("a", EARLY, None);
    let named = || class("a", EARLY, Some("e.com/gpu"));
    check(plain(), None, "deviceclass.resource.kubernetes.io/a", true);
    check(plain(), None, "deviceclass.resource.kubernetes.io/b", false);
    check(named(), None, "e.com/gpu", true);
    check(named(), Some(plain()), "e.com/gpu", true);
    check(named(), Some(named()), "e.com/gpu", false);
    check(named(), Some(plain()), "deviceclass.resource.kubernetes.io/a", false);
    check(plain(), Some(named()), "e.com/gpu", false);
}

#[test]
fn requests_and_whose_they_are() {
    let mut cache = Cache::default();
    cache.set_node(node("n", "4", "8Gi"));
    cache.refresh();
    cache.claims.set_class("gpus", Some(parse(class("gpus", EARLY, Some("e.com/gpu")))));
    cache.claims.set_class("nics", Some(parse(class("nics", EARLY, None))));
    let check = |spec: Value, expected: &[&str], mapped: &[&str]| {
        let pod = PodInfo::new(pod_with("p", spec.clone()));
        let needed = cache.claims.needed_on(&pod, cache.node_by_name("n").unwrap()).unwrap().unwrap();
        let requests = needed.claim.spec.devices.unwrap().requests.unwrap();
        let text = |request: &DeviceRequest| {
            let exactly = request.exactly.as_ref().unwrap();
            assert_eq!(exactly.allocation_mode.as_deref(), Some("ExactCount"));
            format!("{} {} {}", request.name, exactly.device_class_name, exactly.count.unwrap())
        };
        assert_eq!(requests.iter().map(text).collect::<Vec<_>>(), expected, "{spec}");
        let text = |mapping: &ContainerExtendedResourceRequest| {
            format!("{} {} {}", mapping.container_name, mapping.resource_name, mapping.request_name)
        };
        assert_eq!(needed.mappings.iter().map(text).collect::<Vec<_>>(), mapped, "{spec}");
    };
    let container = |name: &str, requests: Value| json!({"name": name, "resources": {"requests": requests}});
    let gpus = |name: &str, count: i64| container(name, json!({"e.com/gpu": count.to_string()}));
    let sidecar = |name: &str, count: i64| {
        let mut sidecar = gpus(name, count);
        sidecar["restartPolicy"] = json!("Always");
        sidecar
    };
    let (one, two, three) = ("container-0-request-0", "container-1-request-0", "container-2-request-0");
    let gpu = |request: &str, count: i64| format!("{request} gpus {count}");
    let of = |name: &str, request: &str| format!("{name} e.com/gpu {request}");

    check(json!({"containers": [gpus("a", 2)]}), &[&gpu(one, 2)], &[&of("a", one)]);
    check(
        json!({"containers": [gpus("a", 1), container("b", json!({})), gpus("c", 3)]}),
        &[&gpu(one, 1), &gpu(three, 3)],
        &[&of("a", one), &of("c", three)],
    );
    // The place among the container's requests, by name.
    let several = json!({"cpu": "1", "deviceclass.resource.kubernetes.io/nics": "1", "e.com/gpu": "1"});
    check(
        json!({"containers": [container("a", several)]}),
        &["container-0-request-1 nics 1", "container-0-request-2 gpus 1"],
        &[
            "a deviceclass.resource.kubernetes.io/nics container-0-request-1",
            "a e.com/gpu container-0-request-2",
        ],
    );
    // An init container uses what those have that start later.
    check(
        json!({"initContainers": [gpus("i", 2)], "containers": [gpus("a", 1), gpus("b", 5)]}),
        &[&gpu(two, 1), &gpu(three, 5)],
        &[&of("a", two), &of("b", three), &of("i", two), &of("i", three)],
    );
    // What is missing is asked for once, for the hungriest.
    check(
        json!({"initContainers": [gpus("i", 3), gpus("j", 4)], "containers": [gpus("a", 1)]}),
        &[&gpu(two, 3), &gpu(three, 1)],
        &[&of("a", three), &of("i", three), &of("i", two), &of("j", three), &of("j", two)],
    );
    // A sidecar that runs already keeps its own.
    check(
        json!({"initContainers": [sidecar("s", 1), gpus("i", 1)], "containers": [container("a", json!({}))]}),
        &[&gpu(one, 1), &gpu(two, 1)],
        &[&of("s", one), &of("i", two)],
    );
    check(
        json!({"initContainers": [gpus("i", 1), sidecar("s", 1)], "containers": [container("a", json!({}))]}),
        &[&gpu(two, 1)],
        &[&of("s", two), &of("i", two)],
    );
}

#[test]
fn the_claim_is_the_pods() {
    let mut cache = Cache::default();
    cache.set_node(node("n", "4", "8Gi"));
    cache.refresh();
    cache.claims.set_class("gpus", Some(parse(class("gpus", EARLY, Some("e.com/gpu")))));
    let requests = json!({"e.com/gpu": "1"});
    let pod = pod_with("p", json!({"containers": [{"name": "c", "resources": {"requests": requests}}]}));
    let pod = PodInfo::new(pod);
    let needed = cache.claims.needed_on(&pod, cache.node_by_name("n").unwrap()).unwrap().unwrap();
    let claim = serde_json::to_value(&needed.claim.metadata).unwrap();
    let expected = json!({
        "namespace": "default", "generateName": "p-extended-resources-",
        "annotations": {"resource.kubernetes.io/extended-resource-claim": "true"},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p", "controller": true}],
    });
    assert_eq!((claim, made_for(&needed.claim)), (expected, Some(beneficiary(&pod))));

    // What neither devices nor the node's own list provide.
    let unknown = json!({"e.com/gpu": "1", "e.com/other": "1"});
    let pod = pod_with("q", json!({"containers": [{"name": "c", "resources": {"requests": unknown}}]}));
    let refused = cache.claims.needed_on(&PodInfo::new(pod), cache.node_by_name("n").unwrap());
    assert_eq!(refused.err(), Some("cannot fit resource"));
}
