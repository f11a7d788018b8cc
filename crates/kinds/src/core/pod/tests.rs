//! Facts about pods, as the upstream API server answers them.

use orlop_api::field::Path;
use serde_json::{Value, json};

use super::warnings::pod_warnings;
use crate::Strategy as _;
use crate::testing::{check_create, check_update};

fn container(extra: Value) -> Value {
    let mut c = json!({"name": "c", "image": "registry.example.com/app:1"});
    for (k, v) in extra.as_object().cloned().unwrap_or_default() {
        c[k] = v;
    }
    c
}

fn pod(extra: Value) -> Value {
    let mut spec = json!({"containers": [container(json!({}))]});
    for (k, v) in extra.as_object().cloned().unwrap_or_default() {
        spec[k] = v;
    }
    json!({"metadata": {"name": "p"}, "spec": spec})
}

/// A pod with these fields in its spec.
fn check(spec: Value, expected: &[&str]) {
    check_create("", "Pod", pod(spec), expected);
}

/// A pod whose one container has these fields.
fn check_container(fields: Value, expected: &[&str]) {
    let volumes = json!([{"name": "v", "emptyDir": {}}]);
    check(json!({"containers": [container(fields)], "volumes": volumes}), expected);
}

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

#[test]
fn containers() {
    check(json!({}), &[]);
    check(json!({"containers": []}), &["spec.containers: Required value"]);
    check_container(json!({"image": ""}), &["spec.containers[0].image: Required value"]);
    check_container(
        json!({"name": "Abc"}),
        &[&format!("spec.containers[0].name: Invalid value: \"Abc\": {LABEL}")],
    );
    check_container(
        json!({"terminationMessagePolicy": "Foo"}),
        &[
            "spec.containers[0].terminationMessagePolicy: Unsupported value: \"Foo\": supported values: \"File\", \"FallbackToLogsOnError\"",
        ],
    );
    check(
        json!({"containers": [container(json!({})), {"name": "c", "image": "x"}]}),
        &["spec.containers[1].name: Duplicate value: \"c\""],
    );
    check(
        json!({"initContainers": [{"name": "c", "image": "x", "lifecycle": {"preStop": {"exec": {"command": ["a"]}}}}]}),
        &[
            "spec.initContainers[0].name: Duplicate value: \"c\"",
            "spec.initContainers[0].lifecycle: Forbidden: may not be set for init containers without restartPolicy=Always",
        ],
    );
    check(
        json!({"ephemeralContainers": [{"name": "e", "image": "x"}]}),
        &["spec.ephemeralContainers: Forbidden: cannot be set on create"],
    );
}

#[test]
fn ports() {
    check_container(
        json!({"ports": [{"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "hostPort": 80}]}),
        &["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//80\""],
    );
    check_container(
        json!({"ports": [{"containerPort": 80, "protocol": "tcp"}]}),
        &[
            "spec.containers[0].ports[0].protocol: Unsupported value: \"tcp\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ],
    );
    check_container(json!({"ports": [{}]}), &["spec.containers[0].ports[0].containerPort: Required value"]);
}

#[test]
fn environment() {
    let value_from = |source: Value| json!({"env": [{"name": "A", "valueFrom": source}]});
    check_container(value_from(json!({"fieldRef": {"fieldPath": "metadata.labels['a']"}})), &[]);
    check_container(
        json!({"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
        &[
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
        ],
    );
    check_container(
        value_from(json!({"resourceFieldRef": {"resource": "limits.cpu", "divisor": "5"}})),
        &[
            "spec.containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource",
        ],
    );
    check_container(
        value_from(json!({"fieldRef": {"fieldPath": "spec.foo"}})),
        &[
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.foo\": error converting fieldPath: field label not supported: spec.foo",
        ],
    );
    check_container(
        json!({"env": [{"name": "a=b"}]}),
        &[
            "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
        ],
    );
    check_container(
        json!({"envFrom": [{}]}),
        &[
            "spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
        ],
    );
}

#[test]
fn mounts() {
    check_container(json!({"volumeMounts": [{"name": "v", "mountPath": "/a"}]}), &[]);
    check_container(
        json!({"volumeMounts": [{"name": "w", "mountPath": "/a"}]}),
        &["spec.containers[0].volumeMounts[0].name: Not found: \"w\""],
    );
    check_container(
        json!({"volumeMounts": [{"name": "v", "mountPath": "/a", "recursiveReadOnly": "Enabled"}]}),
        &[
            "spec.containers[0].volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true",
        ],
    );
    check_container(
        json!({"volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "/x"}]}),
        &["spec.containers[0].volumeMounts.subPath: Invalid value: \"/x\": must be a relative path"],
    );
    check_container(
        json!({"volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "x", "subPathExpr": "y"}]}),
        &[
            "spec.containers[0].volumeMounts[0].subPathExpr: Invalid value: \"y\": subPathExpr and subPath are mutually exclusive",
        ],
    );
}

#[test]
fn probes() {
    check_container(
        json!({"livenessProbe": {"tcpSocket": {"port": 1}, "successThreshold": 2}}),
        &["spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"],
    );
    check_container(
        json!({"readinessProbe": {"exec": {"command": []}}}),
        &["spec.containers[0].readinessProbe.exec.command: Required value"],
    );
    check_container(
        json!({"startupProbe": {}}),
        &["spec.containers[0].startupProbe: Required value: must specify a handler type"],
    );
}

#[test]
fn resources() {
    check_container(
        json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}),
        &[
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ],
    );
    check_container(
        json!({"resources": {"limits": {"storage": "1"}}}),
        &[
            "spec.containers[0].resources.limits[storage]: Invalid value: \"storage\": must be a standard resource for containers",
            "spec.containers[0].resources.requests[storage]: Invalid value: \"storage\": must be a standard resource for containers",
        ],
    );
    check_container(
        json!({"resources": {"limits": {"example.com/x": "2"}, "requests": {"example.com/x": "1"}}}),
        &[
            "spec.containers[0].resources.requests: Invalid value: \"1\": must be equal to example.com/x limit of 2",
        ],
    );
    check_container(
        json!({"resources": {"limits": {"hugepages-2Mi": "2Mi"}}}),
        &["spec.containers[0].resources: Forbidden: HugePages require cpu or memory"],
    );
    check_container(
        json!({"resources": {"limits": {"cpu": "-1"}}}),
        &[
            "spec.containers[0].resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
            "spec.containers[0].resources.requests[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
        ],
    );
}

#[test]
fn volumes() {
    let volume = |source: Value| {
        let mut v = json!({"name": "v"});
        for (k, x) in source.as_object().cloned().unwrap_or_default() {
            v[k] = x;
        }
        json!({"volumes": [v]})
    };
    check(volume(json!({})), &[]);
    check(
        volume(json!({"emptyDir": {}, "hostPath": {"path": "/"}})),
        &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
    );
    check(
        volume(json!({"hostPath": {"path": "/a/../b"}})),
        &["spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"],
    );
    check(
        volume(json!({"secret": {"secretName": "s", "defaultMode": 512}})),
        &[
            "spec.volumes[0].secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
        ],
    );
    check(
        json!({"volumes": [{"name": "v"}, {"name": "v"}]}),
        &["spec.volumes[1].name: Duplicate value: \"v\""],
    );
    check(
        volume(
            json!({"projected": {"sources": [{"secret": {"name": "a", "items": [{"key": "k", "path": "p"}]}}, {"configMap": {"name": "b", "items": [{"key": "k", "path": "p"}]}}]}}),
        ),
        &["spec.volumes[0].projected: Invalid value: \"b\": conflicting duplicate paths"],
    );
    check(
        volume(
            json!({"downwardAPI": {"items": [{"path": "a", "fieldRef": {"fieldPath": "status.podIP"}}, {"path": "b"}]}}),
        ),
        &[
            "spec.volumes[0].downwardAPI.fieldRef.fieldPath: Unsupported value: \"status.podIP\": supported values: \"metadata.annotations\", \"metadata.labels\", \"metadata.name\", \"metadata.namespace\", \"metadata.uid\"",
            "spec.volumes[0].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
        ],
    );
}

#[test]
fn scheduling() {
    check(
        json!({"tolerations": [{"operator": "Equal", "value": "b"}]}),
        &[
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        ],
    );
    check(
        json!({"tolerations": [{"key": "a", "operator": "Foo"}]}),
        &[
            "spec.tolerations[0].operator: Unsupported value: \"Foo\": supported values: \"Equal\", \"Exists\"",
        ],
    );
    check(
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "a", "namespaces": ["Bad_"]}]}}}),
        &[&format!(
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].namespace: Invalid value: \"Bad_\": {LABEL}"
        )],
    );
    check(
        json!({"nodeName": "n", "schedulingGates": [{"name": "a"}]}),
        &["spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"],
    );
    check(
        json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "", "whenUnsatisfiable": "X"}]}),
        &[
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            "spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty",
            "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"X\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\"",
        ],
    );
}

#[test]
fn security() {
    check(
        json!({"hostUsers": false, "hostNetwork": true}),
        &["spec.hostNetwork: Forbidden: when `hostUsers` is false"],
    );
    check(
        json!({"securityContext": {"seccompProfile": {"type": "Localhost"}}}),
        &[
            "spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
        ],
    );
    check(
        json!({"securityContext": {"fsGroupChangePolicy": "Foo"}}),
        &[
            "spec.securityContext.fsGroupChangePolicy: Unsupported value: \"Foo\": supported values: \"Always\", \"OnRootMismatch\"",
        ],
    );
    check(
        json!({"os": {"name": "linux"}, "securityContext": {"windowsOptions": {"runAsUserName": "a"}}}),
        &["spec.securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod"],
    );
    check(
        json!({"os": {"name": "plan9"}}),
        &["spec.os: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\""],
    );
}

#[test]
fn updates() {
    let update =
        |new: Value, old: Value, expected: &[&str]| check_update("", "Pod", pod(new), pod(old), expected);
    update(json!({"containers": [container(json!({"image": "x:2"}))]}), json!({}), &[]);
    update(json!({"activeDeadlineSeconds": 5}), json!({"activeDeadlineSeconds": 9}), &[]);
    update(
        json!({"activeDeadlineSeconds": 500}),
        json!({"activeDeadlineSeconds": 100}),
        &["spec.activeDeadlineSeconds: Invalid value: 500: must be less than or equal to previous value"],
    );
    update(json!({"tolerations": [{"key": "a", "operator": "Exists"}]}), json!({}), &[]);
    update(
        json!({}),
        json!({"tolerations": [{"key": "a", "operator": "Exists"}]}),
        &[
            "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
        ],
    );
    update(
        json!({"schedulingGates": [{"name": "a"}]}),
        json!({}),
        &[
            "spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'a'",
        ],
    );
    let gated = json!([{"name": "a"}]);
    update(
        json!({"schedulingGates": gated, "nodeSelector": {"a": "c"}}),
        json!({"schedulingGates": gated, "nodeSelector": {"a": "b"}}),
        &[
            "spec.nodeSelector: Invalid value: {\"a\":\"c\"}: only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        ],
    );
    let pinned = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}});
    update(json!({"schedulingGates": gated, "affinity": pinned}), json!({"schedulingGates": gated}), &[]);
    update(
        json!({"containers": [container(json!({})), {"name": "d", "image": "x"}]}),
        json!({}),
        &["spec.containers: Forbidden: pod updates may not add or remove containers"],
    );
    update(
        json!({"hostname": "b"}),
        json!({"hostname": "a"}),
        &[
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n@@ -1 +1 @@\n-hostname: \"a\"\n+hostname: \"b\"\n",
        ],
    );
}

#[test]
fn generation_counts_changes_of_the_spec() {
    let mut old = pod(json!({}));
    super::Pod.defaults(&mut old);
    super::Pod.prepare_create(&mut old);
    assert_eq!(old["metadata"]["generation"], 1);
    assert_eq!(old["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    let mut same = old.clone();
    same["metadata"]["labels"] = json!({"a": "b"});
    super::Pod.prepare_update(&mut same, &old);
    assert_eq!(same["metadata"]["generation"], 1);
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = "x".into();
    new["status"]["phase"] = "Failed".into();
    super::Pod.prepare_update(&mut new, &old);
    assert_eq!(new["metadata"]["generation"], 2);
    assert_eq!(new["status"]["phase"], "Pending");
}

#[test]
fn match_label_keys_become_requirements() {
    let mut obj = json!({"metadata": {"labels": {"rev": "r1"}}, "spec": {"affinity": {"podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "z", "labelSelector": {}, "matchLabelKeys": ["rev", "none"]}]}}}});
    super::Pod.prepare_create(&mut obj);
    assert_eq!(
        obj["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"],
        json!({"matchExpressions": [{"key": "rev", "operator": "In", "values": ["r1"]}]})
    );
}

#[test]
fn warnings() {
    for (pod, expected) in [
        (
            json!({"spec": {"nodeSelector": {"beta.kubernetes.io/os": "linux"}}}),
            "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
        ),
        (
            json!({"metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "runtime/default"}}}),
            "metadata.annotations[seccomp.security.alpha.kubernetes.io/pod]: non-functional in v1.27+; use the \"seccompProfile\" field instead",
        ),
        (
            json!({"spec": {"volumes": [{"gitRepo": {}}]}}),
            "spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
        ),
        (
            json!({"spec": {"containers": [{"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}]}}),
            "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
        ),
    ] {
        assert_eq!(pod_warnings(&Path::root(), &pod), [expected]);
    }
}
