#![allow(clippy::unwrap_used)]
use super::*;
use crate::objects::testing::object;
use pretty_assertions::assert_eq;
use serde_json::{Value, json};

fn service(extra: Value) -> Service {
    let mut spec = json!({"selector": {"app": "web"}, "clusterIP": "10.96.0.7", "ipFamilies": ["IPv4"],
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    object(
        json!({"metadata": {"name": "web", "namespace": "a", "uid": "s", "labels": {"team": "x"}}, "spec": spec}),
    )
}

fn pod(index: usize, ready: bool) -> Arc<Pod> {
    let (name, ip) = (format!("p{index:03}"), format!("10.0.{}.{}", index / 250, index % 250 + 1));
    Arc::new(object(json!({"metadata": {"name": name, "namespace": "a", "uid": name},
        "spec": {"nodeName": "n1", "containers": []},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}})))
}

fn node(name: &str) -> Option<Arc<Node>> {
    (name == "n1").then(|| {
        Arc::new(object(json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z"}}})))
    })
}

/// What the server would hold after `plan`, as slices with names.
fn carried_out(plan: Plan, before: &[Arc<EndpointSlice>]) -> Vec<Arc<EndpointSlice>> {
    let gone: Vec<_> = plan.delete.iter().map(|slice| slice.name().to_owned()).collect();
    let mut after: Vec<_> =
        before.iter().filter(|slice| !gone.contains(&slice.name().to_owned())).cloned().collect();
    for slice in plan.update {
        let place = after.iter().position(|old| old.name() == slice.name()).unwrap();
        after[place] = Arc::new(slice);
    }
    for mut slice in plan.create {
        slice.metadata.name = Some(format!("web-{}", after.len() + before.len() + 100));
        after.push(Arc::new(slice));
    }
    after
}

fn step(
    service: &Service,
    pods: &[Arc<Pod>],
    before: &[Arc<EndpointSlice>],
    expected: (usize, usize, usize),
) -> Vec<Arc<EndpointSlice>> {
    let decided = plan(service, pods, before, node, Some("t"));
    assert_eq!(
        (decided.create.len(), decided.update.len(), decided.delete.len()),
        expected,
        "create, update, delete"
    );
    let after = carried_out(decided, before);
    let again = plan(service, pods, &after, node, None);
    assert_eq!(again, Plan::default(), "a second look changes nothing");
    assert!(after.iter().all(|slice| endpoints_of(slice).len() <= MAX_PER_SLICE));
    after
}

#[test]
fn a_slice_from_first_to_last() {
    let service = service(json!({}));
    let empty = step(&service, &[], &[], (1, 0, 0));
    assert_eq!(
        serde_json::to_value(&*empty[0]).unwrap(),
        json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [], "ports": [],
        "metadata": {"generateName": "web-", "name": "web-100", "namespace": "a", "annotations": {LAST_CHANGE: "t"},
            "labels": {"team": "x", SERVICE_NAME: "web", MANAGED_BY: MANAGER},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "s", "controller": true, "blockOwnerDeletion": true}]}})
    );
    let one = step(&service, &[pod(0, false)], &empty, (0, 1, 0));
    assert_eq!(one[0].name(), "web-100", "the placeholder is rewritten");
    assert_eq!(
        serde_json::to_value(&one[0].endpoints).unwrap(),
        json!([{"addresses": ["10.0.0.1"],
        "conditions": {"ready": false, "serving": false, "terminating": false}, "nodeName": "n1", "zone": "z",
        "targetRef": {"kind": "Pod", "name": "p000", "namespace": "a", "uid": "p000"}}])
    );
    assert_eq!(
        serde_json::to_value(&one[0].ports).unwrap(),
        json!([{"name": "http", "port": 8080, "protocol": "TCP"}])
    );
    let ready = step(&service, &[pod(0, true)], &one, (0, 1, 0));
    let many: Vec<_> = (0..250).map(|index| pod(index, true)).collect();
    let full = step(&service, &many, &ready, (2, 1, 0));
    let fewer = step(&service, &many[1..], &full, (0, 1, 0));
    step(&service, &[], &fewer, (0, 1, 2));
}

#[test]
fn one_change_touches_one_slice() {
    let service = service(json!({}));
    let many: Vec<_> = (0..250).map(|index| pod(index, true)).collect();
    let full = step(&service, &many, &[], (3, 0, 0));
    let mut changed = many.clone();
    changed[7] = pod(7, false);
    step(&service, &changed, &full, (0, 1, 0));
    changed[7] = pod(300, true);
    step(&service, &changed, &full, (0, 1, 0));
}

#[test]
fn conditions_families_and_hints() {
    let check = |what: &str, extra: Value, pod: Arc<Pod>, expected: Value| {
        let plan = plan(&service(extra), &[pod], &[], node, None);
        let shown: Vec<_> = plan
            .create
            .iter()
            .map(|slice| {
                let endpoint = endpoints_of(slice).first();
                json!([
                    slice.address_type,
                    endpoint.map(|e| e.conditions.clone()),
                    endpoint.map(|e| e.hints.clone())
                ])
            })
            .collect();
        assert_eq!(json!(shown), expected, "{what}");
    };
    let dying = |ready| {
        let mut pod = (*pod(0, ready)).clone();
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        Arc::new(pod)
    };
    let is = |ready: bool, serving: bool, terminating: bool| json!({"ready": ready, "serving": serving, "terminating": terminating});
    check("ready", json!({}), pod(0, true), json!([["IPv4", is(true, true, false), null]]));
    check("terminating but serving", json!({}), dying(true), json!([["IPv4", is(false, true, true), null]]));
    check(
        "published",
        json!({"publishNotReadyAddresses": true}),
        dying(false),
        json!([["IPv4", is(true, false, true), null]]),
    );
    check(
        "dual stack",
        json!({"ipFamilies": ["IPv4", "IPv6"]}),
        pod(0, true),
        json!([["IPv4", is(true, true, false), null], ["IPv6", null, null]]),
    );
    check(
        "zones",
        json!({"trafficDistribution": "PreferClose"}),
        pod(0, true),
        json!([["IPv4", is(true, true, false), {"forZones": [{"name": "z"}]}]]),
    );
    check(
        "nodes",
        json!({"trafficDistribution": "PreferSameNode"}),
        pod(0, true),
        json!([["IPv4", is(true, true, false), {"forNodes": [{"name": "n1"}], "forZones": [{"name": "z"}]}]]),
    );
}

#[test]
fn a_pod_of_an_unknown_node_is_left_out_and_named() {
    let mut lost = (*pod(0, true)).clone();
    lost.spec.as_mut().unwrap().node_name = Some("n2".into());
    let decided = plan(&service(json!({})), &[Arc::new(lost), pod(1, true)], &[], node, None);
    assert_eq!(decided.without_node, ["p000"]);
    assert_eq!(endpoints_of(&decided.create[0]).len(), 1);
}
