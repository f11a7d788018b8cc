use orlop_json::{Value, json};

use crate::testing::{check_create, check_defaults, check_update};

const GROUP: &str = "resource.k8s.io";

fn claim(requests: Value) -> Value {
    json!({"spec": {"devices": {"requests": requests}}})
}

#[test]
fn requests_get_mode_and_count() {
    check_defaults(
        GROUP,
        "ResourceClaim",
        claim(json!([{"name": "r", "exactly": {"deviceClassName": "c", "tolerations": [{"key": "a"}]}},
            {"name": "s", "firstAvailable": [{"name": "x", "allocationMode": "All"}]}])),
        json!({"spec": {"devices": {"requests": [
            {"name": "r", "exactly": {"deviceClassName": "c", "tolerations": [{"key": "a", "operator": "Equal"}],
                "allocationMode": "ExactCount", "count": 1}},
            {"name": "s", "firstAvailable": [{"name": "x", "allocationMode": "All"}]}]}}}),
    );
}

#[test]
fn claims() {
    let check = |requests: Value, expected: &[&str]| {
        check_create(GROUP, "ResourceClaim", claim(requests), expected);
    };
    let exactly = |request: Value| json!([{"name": "r", "exactly": request}]);
    check(exactly(json!({"deviceClassName": "c"})), &[]);
    check(
        json!([{"name": "r"}]),
        &[
            "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
        ],
    );
    check(
        exactly(json!({"deviceClassName": "c", "allocationMode": "All", "count": 2})),
        &[
            "spec.devices.requests[0].exactly.count: Invalid value: 2: must not be specified when allocationMode is 'All'",
        ],
    );
    check(
        exactly(
            json!({"allocationMode": "Foo", "selectors": [{}], "tolerations": [{"operator": "Exists", "value": "x"}]}),
        ),
        &[
            "spec.devices.requests[0].exactly.deviceClassName: Required value",
            "spec.devices.requests[0].exactly.selectors[0].cel: Required value",
            "spec.devices.requests[0].exactly.allocationMode: Unsupported value: \"Foo\": supported values: \"All\", \"ExactCount\"",
            "spec.devices.requests[0].exactly.tolerations[0].value: Invalid value: \"x\": must be empty for operator `Exists`",
        ],
    );
    let one = json!({"name": "r", "exactly": {"deviceClassName": "c"}});
    check(json!([one, one]), &["spec.devices.requests[1]: Duplicate value: \"r\""]);
    check(Value::Array(vec![one; 33]), &["spec.devices.requests: Too many: 33: must have at most 32 items"]);
}

#[test]
fn references_to_requests() {
    let check = |constraint: Value, expected: &[&str]| {
        let mut obj =
            claim(json!([{"name": "r", "firstAvailable": [{"name": "a", "deviceClassName": "c"}]}]));
        obj["spec"]["devices"]["constraints"] = json!([constraint]);
        check_create(GROUP, "ResourceClaim", obj, expected);
    };
    check(json!({"requests": ["r", "r/a"], "matchAttribute": "a.b/c"}), &[]);
    check(
        json!({"requests": ["r/b"]}),
        &[
            "spec.devices.constraints[0].requests[0]: Invalid value: \"r/b\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'",
            "spec.devices.constraints[0]: Required value: exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
        ],
    );
    check(
        json!({"matchAttribute": "foo"}),
        &[
            "spec.devices.constraints[0].matchAttribute: Invalid value: \"foo\": a fully qualified name must be a domain and a name separated by a slash",
        ],
    );
}

#[test]
fn templates() {
    let mut spec = claim(json!([{"name": "r", "exactly": {"deviceClassName": "c"}}]));
    spec["metadata"] = json!({"name": "x", "labels": {"a": "b"}});
    check_create(
        GROUP,
        "ResourceClaimTemplate",
        json!({"spec": spec}),
        &["spec.metadata.name: Forbidden: cannot be set"],
    );
}

#[test]
fn classes() {
    let check = |spec: Value, expected: &[&str]| {
        check_create(GROUP, "DeviceClass", json!({"spec": spec}), expected);
    };
    check(json!({"extendedResourceName": "example.com/gpu"}), &[]);
    check(
        json!({"extendedResourceName": "cpu", "config": [{}, {"opaque": {"driver": "d.e", "parameters": []}}]}),
        &[
            "spec.config[0].opaque: Required value",
            "spec.config[1].opaque.parameters: Invalid value: \"<value omitted>\": must be a valid JSON object",
            "spec.extendedResourceName: Invalid value: \"cpu\": must be a valid extended resource name",
        ],
    );
}

#[test]
fn slices() {
    let slice = |change: Value| {
        let mut spec =
            json!({"driver": "d.e", "pool": {"name": "p", "resourceSliceCount": 1}, "nodeName": "n"});
        for (key, value) in change.as_object().into_iter().flatten() {
            spec[key.as_str()] = value.clone();
        }
        json!({"spec": spec})
    };
    let check = |change: Value, expected: &[&str]| {
        check_create(GROUP, "ResourceSlice", slice(change), expected);
    };
    check(json!({"devices": [{"name": "a", "attributes": {"x": {"version": "1.2.3-rc.1+b"}}}]}), &[]);
    check(
        json!({"nodeName": null}),
        &[
            "spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
        ],
    );
    check(
        json!({"allNodes": true, "pool": {}}),
        &[
            "spec.pool.name: Required value",
            "spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero",
            "spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set",
        ],
    );
    check(
        json!({"devices": [{"name": "a", "allNodes": true, "attributes": {"x": {}, "y": {"int": 1, "bool": true}, "z": {"version": "1.02.3"}},
            "taints": [{"key": "k"}], "bindingConditions": ["a"]}]}),
        &[
            "spec.devices[0].attributes[x]: Invalid value: \"\": exactly one value must be specified",
            "spec.devices[0].attributes[y]: Invalid value: {\"int\":1,\"bool\":true}: exactly one value must be specified",
            "spec.devices[0].attributes[z].version: Invalid value: \"1.02.3\": must be a string compatible with semver.org spec 2.0.0",
            "spec.devices[0].taints[0].effect: Required value",
            "spec.devices[0]: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
            "spec.devices[0].bindingFailureConditions: Invalid value: null: bindingFailureConditions are required to use bindingConditions",
        ],
    );
    let policy = |policy: Value| json!({"devices": [{"name": "a", "allowMultipleAllocations": true, "capacity": {"m": {"value": "10", "requestPolicy": policy}}}]});
    check(policy(json!({"default": "2", "validRange": {"min": "0", "max": "8", "step": "2"}})), &[]);
    check(
        policy(json!({"default": "3", "validRange": {"min": "0", "max": "12", "step": "2"}})),
        &[
            "spec.devices[0].capacity[m].requestPolicy.validRange.max: Invalid value: \"12\": max is larger than capacity value: 10",
            "spec.devices[0].capacity[m].requestPolicy.validRange.step: Invalid value: \"3\": value is not a multiple of a given step (2) from (0)",
        ],
    );
    check(
        policy(json!({"default": "3", "validValues": ["2", "1"]})),
        &[
            "spec.devices[0].capacity[m].requestPolicy.validValues[1]: Invalid value: \"1\": values must be sorted in ascending order",
            "spec.devices[0].capacity[m].requestPolicy.validValues: Invalid value: \"3\": default value is not valid according to the requestPolicy",
        ],
    );
    check_update(
        GROUP,
        "ResourceSlice",
        slice(json!({"driver": "x.y"})),
        slice(json!({})),
        &["spec.driver: Invalid value: \"x.y\": field is immutable"],
    );
}
