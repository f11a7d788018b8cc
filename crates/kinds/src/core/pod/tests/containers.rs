//! Containers: ports, environment, mounts, probes, resources.

use orlop_json::{Value, json};

use super::{LABEL, check, check_container, container};

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
