//! Claims for devices, and devices as extended resources.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::UNRESOLVABLE;
use crate::framework::Plugin;
use crate::plugins::{dynamic_resources, node_resources_fit};
use crate::pod_info::PodInfo;
use crate::testing::{Scene, node, parse, pod_with};

fn devices(count: usize) -> Scene {
    let mut scene = Scene::new(dynamic_resources::DynamicResources::new(Default::default()));
    for name in ["a", "b"] {
        scene.node(node(name, "4", "8Gi"));
    }
    let device = |number: usize| json!({"name": format!("gpu-{number}"), "attributes": {"size": {"int": number}, "board": {"string": format!("b{}", number / 2)}}});
    let devices: Vec<_> = (0..count).map(device).collect();
    let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "gpu", "nodeName": "a",
        "pool": {"name": "a", "generation": 1, "resourceSliceCount": 1}, "devices": devices}});
    scene.cache.claims.set_slice("s", Some(parse(slice)));
    let selector = json!([{"cel": {"expression": "device.driver == 'gpu'"}}]);
    let class = json!({"metadata": {"name": "gpus"}, "spec": {"selectors": selector}});
    scene.cache.claims.set_class("gpus", Some(parse(class)));
    scene
}

fn wants(scene: &mut Scene, name: &str, devices: Value) -> Arc<Pod> {
    let claim = json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": {"devices": devices}});
    scene.cache.claims.set_claim(parse(claim));
    pod_with(name, json!({"resourceClaims": [{"name": "c", "resourceClaimName": name}]}))
}

#[test]
fn claims_for_devices() {
    let exactly = |more: Value| {
        let mut exactly = json!({"deviceClassName": "gpus"});
        more.as_object().unwrap().iter().for_each(|(key, value)| exactly[key] = value.clone());
        json!({"requests": [{"name": "r", "exactly": exactly}]})
    };
    let check = |devices_there: usize, wanted: Value, expected: &[&str]| {
        let mut scene = devices(devices_there);
        let pod = wants(&mut scene, "p", wanted.clone());
        assert_eq!(scene.feasible(pod.clone()), expected, "{wanted}");
        if expected.is_empty() {
            scene.refused(pod, "a", UNRESOLVABLE, "cannot allocate all claims");
        }
    };
    check(1, exactly(json!({})), &["a"]);
    check(0, exactly(json!({})), &[]);
    check(4, exactly(json!({"count": 4})), &["a"]);
    check(4, exactly(json!({"count": 5})), &[]);
    check(4, exactly(json!({"allocationMode": "All"})), &["a"]);
    // One too few, more than a claim may have, and more than there can be: said without trying all sets.
    check(29, exactly(json!({"count": 30})), &[]);
    check(40, exactly(json!({"count": 33})), &[]);
    check(40, exactly(json!({"count": i64::MAX})), &[]);
    check(40, exactly(json!({"count": 32})), &["a"]);
    let large =
        |size: i64| json!([{"cel": {"expression": format!("device.attributes['gpu'].size >= {size}")}}]);
    check(4, exactly(json!({"selectors": large(3)})), &["a"]);
    check(4, exactly(json!({"selectors": large(4)})), &[]);
    let mut together = exactly(json!({"count": 2, "selectors": large(1)}));
    together["constraints"] = json!([{"matchAttribute": "gpu/board"}]);
    // Devices 1 and 2 are on different boards; 2 and 3 share one.
    check(4, together.clone(), &["a"]);
    check(3, together.clone(), &[]);
    together["constraints"] = json!([{"distinctAttribute": "gpu/board"}]);
    check(3, together, &["a"]);
    let sub =
        |name: &str, size: i64| json!({"name": name, "deviceClassName": "gpus", "selectors": large(size)});
    let first = json!({"requests": [{"name": "r", "firstAvailable": [sub("best", 9), sub("good", 1)]}]});
    check(2, first, &["a"]);
}

#[test]
fn devices_are_taken_by_one_claim() {
    let mut scene = devices(1);
    let wanted = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpus"}}]});
    let (first, second) = (wants(&mut scene, "first", wanted.clone()), wants(&mut scene, "second", wanted));
    let plugin = dynamic_resources::DynamicResources::new(Default::default());
    let info = Arc::new(PodInfo::new(first));
    plugin.prepare(&info, &mut scene.cache);
    let held = plugin.reserve(&info, "a", &mut scene.cache).unwrap().unwrap();
    scene.refused(second.clone(), "a", UNRESOLVABLE, "cannot allocate all claims");
    // The pod itself has its claim now, which binds it to the node.
    assert_eq!(scene.feasible(info.pod.clone()), ["a"]);
    held.unreserve(&mut scene.cache);
    assert_eq!(scene.feasible(second), ["a"]);
}

#[test]
fn what_claims_wait_for() {
    let mut scene = devices(1);
    let absent = pod_with("p", json!({"resourceClaims": [{"name": "c", "resourceClaimName": "absent"}]}));
    scene.refused(absent, "a", UNRESOLVABLE, "resourceclaim.resource.k8s.io \"absent\" not found");
    let template =
        pod_with("p", json!({"resourceClaims": [{"name": "c", "resourceClaimTemplateName": "t"}]}));
    scene.refused(template, "a", UNRESOLVABLE, "pod \"default/p\": ResourceClaim not created yet");
    let classless = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "absent"}}]});
    let pod = wants(&mut scene, "q", classless);
    scene.refused(pod, "a", UNRESOLVABLE, "request r: device class absent does not exist");
}

fn asks_for(name: &str, resource: &str, count: i64) -> Arc<Pod> {
    let requests = json!({resource: count.to_string()});
    pod_with(name, json!({"containers": [{"name": "c", "resources": {"requests": requests}}]}))
}

/// Node `a` has devices for `example.com/gpu`, `b` has the resource itself, `c` has neither.
fn extended(count: usize) -> Scene {
    let mut scene = devices(count);
    let class = json!({"metadata": {"name": "gpus"}, "spec": {"extendedResourceName": "example.com/gpu",
        "selectors": [{"cel": {"expression": "device.driver == 'gpu'"}}]}});
    scene.cache.claims.set_class("gpus", Some(parse(class)));
    let mut provider = Node::clone(&node("b", "4", "8Gi"));
    let allocatable = provider.status.as_mut().unwrap().allocatable.as_mut().unwrap();
    allocatable.insert("example.com/gpu".to_owned(), serde_json::from_value(json!("4")).unwrap());
    scene.node(Arc::new(provider));
    scene.node(node("c", "4", "8Gi"));
    scene
}

#[test]
fn devices_as_extended_resources() {
    let mut scene = extended(2);
    assert_eq!(scene.feasible(asks_for("p", "example.com/gpu", 2)), ["a", "b"]);
    assert_eq!(scene.feasible(asks_for("p", "example.com/gpu", 3)), ["b"]);
    assert_eq!(scene.feasible(asks_for("p", "deviceclass.resource.kubernetes.io/gpus", 2)), ["a"]);
    // Without a class it is none of this plugin's business.
    assert_eq!(scene.feasible(asks_for("p", "example.com/other", 1)), ["a", "b", "c"]);

    let fit = || node_resources_fit::NodeResourcesFit::new(Default::default());
    scene.plugin(fit());
    assert_eq!(scene.feasible(asks_for("p", "example.com/gpu", 3)), ["a", "b", "c"]);
    assert_eq!(scene.feasible(asks_for("p", "example.com/gpu", 5)), ["a", "c"], "b has four of its own");
    assert_eq!(scene.feasible(asks_for("p", "example.com/other", 1)), [""; 0]);
    scene.cache.claims.set_class("gpus", None);
    assert_eq!(scene.feasible(asks_for("p", "example.com/gpu", 3)), ["b"]);
}

#[test]
fn a_claim_for_extended_resources_is_held_until_it_is_there() {
    let mut scene = extended(1);
    let plugin = dynamic_resources::DynamicResources::new(Default::default());
    let first = Arc::new(PodInfo::new(asks_for("first", "example.com/gpu", 1)));
    let second = asks_for("second", "example.com/gpu", 1);
    plugin.prepare(&first, &mut scene.cache);
    assert!(plugin.reserve(&first, "b", &mut scene.cache).unwrap().is_none(), "b needs no devices");
    let held = plugin.reserve(&first, "a", &mut scene.cache).unwrap().unwrap();
    scene.refused(second.clone(), "a", UNRESOLVABLE, "cannot allocate all claims");
    held.unreserve(&mut scene.cache);
    scene.fits(second.clone(), "a");

    let _held = plugin.reserve(&first, "a", &mut scene.cache).unwrap().unwrap();
    let mut claim = json!({
        "metadata": {"name": "first-extended-resources-x", "namespace": "default", "uid": "u", "resourceVersion": "1",
            "annotations": {"resource.kubernetes.io/extended-resource-claim": "true"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "first", "uid": "first", "controller": true}]},
        "spec": {"devices": {"requests": [{"name": "container-0-request-0",
            "exactly": {"deviceClassName": "gpus", "count": 1}}]}},
    });
    scene.cache.claims.set_claim(parse(claim.clone()));
    scene.refused(second.clone(), "a", UNRESOLVABLE, "cannot allocate all claims");
    // Somebody elsewhere claims to speak for the pod.
    let mut forged = claim.clone();
    forged["metadata"]["namespace"] = json!("elsewhere");
    forged["status"] = json!({"allocation": {"devices": {"results": []}}});
    scene.cache.claims.set_claim(parse(forged));
    scene.refused(second.clone(), "a", UNRESOLVABLE, "cannot allocate all claims");
    claim["metadata"]["resourceVersion"] = json!("2");
    claim["status"] = json!({"allocation": {"devices": {"results": [
        {"request": "container-0-request-0", "driver": "gpu", "pool": "a", "device": "gpu-0"}]}}});
    scene.cache.claims.set_claim(parse(claim));
    scene.refused(second.clone(), "a", UNRESOLVABLE, "cannot allocate all claims");
    // Another attempt for the same pod does not trust what an earlier one has left.
    scene.refused(first.pod.clone(), "a", UNRESOLVABLE, "cannot schedule extended resource claim");
    scene.refused(first.pod.clone(), "b", UNRESOLVABLE, "cannot schedule extended resource claim");
    scene.cache.claims.remove_claim("default/first-extended-resources-x");
    scene.fits(second, "a");
    scene.fits(first.pod.clone(), "a");
}

#[test]
fn earlier_alternatives_are_preferred() {
    let mut scene = devices(1);
    let slice = json!({"metadata": {"name": "t"}, "spec": {"driver": "gpu", "nodeName": "b",
        "pool": {"name": "b", "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": "big", "attributes": {"size": {"int": 9}, "board": {"string": "b"}}}]}});
    scene.cache.claims.set_slice("t", Some(parse(slice)));
    let sub = |name: &str, size: i64| {
        json!({"name": name, "deviceClassName": "gpus",
            "selectors": [{"cel": {"expression": format!("device.attributes['gpu'].size >= {size}")}}]})
    };
    let first = json!({"requests": [{"name": "r", "firstAvailable": [sub("best", 9), sub("good", 0)]}]});
    let pod = wants(&mut scene, "p", first);
    assert_eq!(scene.scores(pod), Some(vec![87, 100]));
    let any =
        wants(&mut scene, "q", json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpus"}}]}));
    assert_eq!(scene.scores(any), None);
}

#[test]
fn what_becomes_ready_later_is_taken_last() {
    let mut scene = devices(0);
    let slice = |name: &str, devices: Value| {
        json!({"metadata": {"name": name}, "spec": {"driver": "gpu", "allNodes": true, "devices": devices,
            "pool": {"name": name, "generation": 1, "resourceSliceCount": 1}}})
    };
    let slow = json!([{"name": "slow", "bindsToNode": true, "bindingConditions": ["Ready"],
        "bindingFailureConditions": ["Broken"]}]);
    scene.cache.claims.set_slice("1", Some(parse(slice("1", slow))));
    scene.cache.claims.set_slice("2", Some(parse(slice("2", json!([{"name": "quick"}])))));
    let plugin = dynamic_resources::DynamicResources::new(Default::default());
    let wanted = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpus"}}]});
    let mut allocate = |name: &str| {
        let pod = Arc::new(PodInfo::new(wants(&mut scene, name, wanted.clone())));
        plugin.prepare(&pod, &mut scene.cache);
        let _held = plugin.reserve(&pod, "b", &mut scene.cache).unwrap().unwrap();
        let claim = scene.cache.claims.claim(&format!("default/{name}")).unwrap();
        serde_json::to_value(claim.status.as_ref().unwrap().allocation.as_ref().unwrap()).unwrap()
    };
    let quick = allocate("p");
    assert_eq!(quick["devices"]["results"][0]["device"], "quick");
    assert_eq!(quick["nodeSelector"], Value::Null);
    let slow = allocate("q");
    let result = &slow["devices"]["results"][0];
    assert_eq!((&result["device"], &result["bindingConditions"]), (&json!("slow"), &json!(["Ready"])));
    assert_eq!(result["bindingFailureConditions"], json!(["Broken"]));
    let terms = &slow["nodeSelector"]["nodeSelectorTerms"];
    assert_eq!(terms[0]["matchFields"][0]["values"], json!(["b"]), "it binds its user to the node");
}

#[test]
fn devices_that_fail_make_their_claim_unavailable() {
    let mut scene = devices(1);
    let wanted = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpus"}}]});
    let pod = wants(&mut scene, "p", wanted);
    let mut check = |since: &str, conditions: Value, fits: bool| {
        let id = |more: Value| {
            let mut all = json!({"driver": "gpu", "pool": "a", "device": "gpu-0"});
            more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
            all
        };
        let result = id(
            json!({"request": "r", "bindingConditions": ["Ready"], "bindingFailureConditions": ["Broken"]}),
        );
        let claim = json!({"metadata": {"name": "p", "namespace": "default", "uid": "p"}, "spec": {},
            "status": {"allocation": {"devices": {"results": [result]}, "allocationTimestamp": since},
                "devices": [id(json!({"conditions": conditions}))]}});
        scene.cache.claims.set_claim(parse(claim));
        if fits {
            scene.fits(pod.clone(), "a");
        } else {
            scene.refused(pod.clone(), "a", UNRESOLVABLE, "resourceclaim not available on the node");
        }
    };
    let condition = |kind: &str| json!([{"type": kind, "status": "True", "reason": "r", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let (long_ago, just_now) = ("2020-01-01T00:00:00Z", jiff::Timestamp::now().to_string());
    check(&just_now, json!([]), true);
    check(long_ago, json!([]), false);
    check(long_ago, condition("Ready"), true);
    check(&just_now, condition("Broken"), false);
}

#[test]
fn shared_devices_are_given_in_parts() {
    let mut scene = devices(0);
    let device = json!([{"name": "big", "allowMultipleAllocations": true, "capacity": {"memory": {"value": "8Gi",
        "requestPolicy": {"default": "1Gi", "validRange": {"min": "1Gi", "step": "1Gi"}}}}}]);
    let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "gpu", "nodeName": "a", "devices": device,
        "pool": {"name": "a", "generation": 1, "resourceSliceCount": 1}}});
    scene.cache.claims.set_slice("s", Some(parse(slice)));
    let plugin = dynamic_resources::DynamicResources::new(Default::default());
    let wanted = |memory: &str, count: i64| {
        json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpus", "count": count,
            "capacity": {"requests": {"memory": memory}}}}]})
    };
    let take = |scene: &mut Scene, name: &str, memory: &str, count: i64| {
        let pod = Arc::new(PodInfo::new(wants(scene, name, wanted(memory, count))));
        plugin.prepare(&pod, &mut scene.cache);
        let held = plugin.reserve(&pod, "a", &mut scene.cache).ok()??;
        let claim = scene.cache.claims.claim(&format!("default/{name}")).unwrap();
        let results = claim.status.as_ref()?.allocation.as_ref()?.devices.as_ref()?.results.clone()?;
        Some((held, results))
    };
    let (_, results) = take(&mut scene, "p", "2500Mi", 1).unwrap();
    assert_eq!(results[0].consumed_capacity.as_ref().unwrap()["memory"].0, "3Gi", "rounded up");
    let first = results[0].share_id.clone().unwrap();
    // Twice the same device for one request.
    let (held, results) = take(&mut scene, "q", "2Gi", 2).unwrap();
    assert_eq!(results.len(), 2);
    assert!(results.iter().all(|result| result.device == "big" && result.share_id.as_ref() != Some(&first)));
    assert!(take(&mut scene, "r", "2Gi", 1).is_none(), "one gibibyte is left");
    let (_, results) = take(&mut scene, "s", "1", 1).unwrap();
    assert_eq!(results[0].consumed_capacity.as_ref().unwrap()["memory"].0, "1Gi", "the least there is");
    assert!(take(&mut scene, "t", "1", 1).is_none(), "nothing is left");
    held.unreserve(&mut scene.cache);
    assert!(take(&mut scene, "u", "4Gi", 1).is_some());
    let unknown = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpus",
        "capacity": {"requests": {"cores": "1"}}}}]});
    let pod = wants(&mut scene, "v", unknown);
    scene.refused(pod, "a", UNRESOLVABLE, "cannot allocate all claims");
}
