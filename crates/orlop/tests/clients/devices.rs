//! Devices (DRA) by the scheduler and the controllers as processes: pods that ask for them as an extended resource
//! (KEP-5004), and devices that are ready only some time after they were allocated (KEP-5007).

use serde_json::{Value, json};

use crate::components::{Component, add_node};
use crate::support::{Server, eventually};

/// An API server with a node, the controllers and the scheduler.
fn control_plane() -> (Server, [Component; 2]) {
    let server = Server::start();
    let components = ["controller-manager", "scheduler"].map(|name| Component::start(&server, name, &[]));
    add_node(&server);
    eventually("pods can be made", || {
        server.kubectl(&["get", "serviceaccount", "default"]).status.success().then_some(())
    });
    (server, components)
}

fn create(server: &Server, object: &Value) {
    server.ok_stdin(&["create", "-f", "-"], &object.to_string());
}

fn slice(server: &Server, name: &str, devices: Value) {
    create(
        server,
        &json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": name},
            "spec": {"driver": "gpu.example.com", "nodeName": "n1", "devices": devices,
                "pool": {"name": name, "generation": 1, "resourceSliceCount": 1}}}),
    );
}

fn pod(server: &Server, name: &str, resource: &str, count: &str) {
    let resources = json!({"limits": {resource: count}});
    create(
        server,
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "c:1", "resources": resources}]}}),
    );
}

fn bound(server: &Server, name: &str) -> Option<Value> {
    let pod = server.json(&["pod", name]);
    pod["spec"]["nodeName"].is_string().then_some(pod)
}

/// The claim that was made for a pod's resources.
fn claim_of(server: &Server, pod: &Value) -> Value {
    let name = pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"].as_str().unwrap_or_default();
    server.json(&["resourceclaim", name])
}

fn condition(server: &Server, name: &str) -> Option<String> {
    let pod = server.json(&["pod", name]);
    Some(pod["status"]["conditions"][0]["message"].as_str()?.to_owned())
}

#[test]
fn extended_resources_may_be_devices() {
    let (server, _components) = control_plane();
    pod(&server, "early", "example.com/gpu", "1");
    let refused = eventually("nothing provides the resource yet", || condition(&server, "early"));
    assert_eq!(
        refused,
        "0/1 nodes are available: 1 Insufficient example.com/gpu. no new claims to deallocate, preemption: 0/1 nodes \
         are available: 1 Preemption is not helpful for scheduling."
    );
    let class = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "gpus"},
        "spec": {"extendedResourceName": "example.com/gpu",
            "selectors": [{"cel": {"expression": "device.driver == 'gpu.example.com'"}}]}});
    create(&server, &class);
    eventually("the class stands for it, but has no devices", || {
        let refused = "0/1 nodes are available: 1 cannot allocate all claims. still not schedulable, preemption: 0/1 \
                       nodes are available: 1 Preemption is not helpful for scheduling.";
        (condition(&server, "early")? == refused).then_some(())
    });
    slice(&server, "s", json!([{"name": "a"}, {"name": "b"}]));
    let early = eventually("the devices are there", || bound(&server, "early"));

    let claim = claim_of(&server, &early);
    let name = claim["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("early-extended-resources-"), "{name}");
    let expected = json!([{"containerName": "c", "resourceName": "example.com/gpu", "requestName": "container-0-request-0"}]);
    assert_eq!(early["status"]["extendedResourceClaimStatus"]["requestMappings"], expected);
    assert_eq!(
        claim["spec"]["devices"]["requests"],
        json!([{"name": "container-0-request-0",
            "exactly": {"deviceClassName": "gpus", "allocationMode": "ExactCount", "count": 1}}])
    );
    let status = &claim["status"];
    assert_eq!(status["reservedFor"][0]["uid"], early["metadata"]["uid"]);
    assert!(status["allocation"]["allocationTimestamp"].is_string(), "{claim}");
    let device = &status["allocation"]["devices"]["results"][0];
    assert_eq!(
        (&device["driver"], &device["request"]),
        (&json!("gpu.example.com"), &json!("container-0-request-0"))
    );

    // The class's own name stands for it, too; one device is left.
    pod(&server, "second", "deviceclass.resource.kubernetes.io/gpus", "1");
    eventually("the second pod has the other device", || bound(&server, "second"));
    pod(&server, "third", "example.com/gpu", "1");
    eventually("no device is left", || {
        condition(&server, "third")?.contains("1 cannot allocate all claims").then_some(())
    });
    // With its pod the claim goes, and the device is free.
    server.ok(&["delete", "pod", "early", "--force", "--grace-period=0"]);
    eventually("the third pod has the device of the first", || bound(&server, "third"));
    eventually("the claim of the first is gone", || {
        (!server.kubectl(&["get", "resourceclaim", name]).status.success()).then_some(())
    });
}

#[test]
fn binding_waits_for_devices_to_become_ready() {
    let (server, _components) = control_plane();
    let class = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "gpus"},
        "spec": {"extendedResourceName": "example.com/gpu"}});
    create(&server, &class);
    slice(
        &server,
        "s",
        json!([{"name": "slow", "bindingConditions": ["example.com/attached"],
            "bindingFailureConditions": ["example.com/broken"]}]),
    );
    pod(&server, "p", "example.com/gpu", "1");
    let claim = eventually("the device is allocated", || {
        let claims = server.json(&["resourceclaims"]);
        let claim = claims["items"].get(0)?.clone();
        claim["status"]["allocation"].is_object().then_some(claim)
    });
    eventually("the wait is told", || {
        let events = server.json(&["events"]);
        let told = |event: &Value| {
            event["reason"] == "BindingConditionsPending"
                && event["message"] == "waiting for binding conditions for device on node n1"
        };
        events["items"].as_array()?.iter().any(told).then_some(())
    });
    assert!(bound(&server, "p").is_none());
    let say = |claim: &Value, kind: &str| {
        let name = claim["metadata"]["name"].as_str().unwrap();
        let condition = json!({"type": kind, "status": "True", "reason": "Said", "message": "by the driver",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let device =
            json!({"driver": "gpu.example.com", "pool": "s", "device": "slow", "conditions": [condition]});
        let patch = json!({"status": {"devices": [device]}}).to_string();
        server.ok(&["patch", "resourceclaim", name, "--subresource=status", "--type=merge", "-p", &patch]);
    };
    // A failure: the claim is given up and another attempt makes its own.
    say(&claim, "example.com/broken");
    let next = eventually("another claim is allocated", || {
        let claims = server.json(&["resourceclaims"]);
        let mut claims = claims["items"].as_array()?.iter();
        let next = claims.find(|next| next["metadata"]["uid"] != claim["metadata"]["uid"])?.clone();
        next["status"]["allocation"].is_object().then_some(next)
    });
    assert!(bound(&server, "p").is_none());
    say(&next, "example.com/attached");
    let p = eventually("the pod is bound", || bound(&server, "p"));
    assert_eq!(claim_of(&server, &p)["metadata"]["uid"], next["metadata"]["uid"]);
}
