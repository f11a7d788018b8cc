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
fn volume_sources() {
    /// Kind, source, what is said of it below `spec.volumes[0].`.
    fn check_source(kind: &str, source: Value, expected: &[&str]) {
        let expected: Vec<String> = expected.iter().map(|e| format!("spec.volumes[0].{e}")).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(json!({"volumes": [{"name": "v", kind: source}]}), &expected);
    }
    for (kind, source) in [
        ("emptyDir", json!({"sizeLimit": "1Gi"})),
        ("hostPath", json!({"path": "/a", "type": "Directory"})),
        ("gitRepo", json!({"repository": "r"})),
        ("nfs", json!({"server": "s", "path": "/p"})),
        ("iscsi", json!({"targetPortal": "p", "iqn": "iqn.2001-04.com.example:a", "lun": 0})),
        ("fc", json!({"wwids": ["w"]})),
        ("flocker", json!({"datasetName": "d"})),
        ("quobyte", json!({"registry": "a:1", "volume": "v"})),
        ("azureDisk", json!({"diskName": "d", "diskURI": "https://a.blob"})),
        ("storageos", json!({"volumeName": "v"})),
        ("csi", json!({"driver": "d.example.com", "nodePublishSecretRef": {"name": "s"}})),
        ("image", json!({"reference": "r:1", "pullPolicy": "Never"})),
    ] {
        check_source(kind, source, &[]);
    }
    for (kind, field) in [
        ("hostPath", "path"),
        ("gitRepo", "repository"),
        ("secret", "secretName"),
        ("persistentVolumeClaim", "claimName"),
        ("cinder", "volumeID"),
        ("cephfs", "monitors"),
        ("flexVolume", "driver"),
        ("configMap", "name"),
        ("vsphereVolume", "volumePath"),
        ("photonPersistentDisk", "pdID"),
        ("portworxVolume", "volumeID"),
        ("storageos", "volumeName"),
        ("csi", "driver"),
        ("ephemeral", "volumeClaimTemplate"),
        ("image", "reference"),
    ] {
        check_source(kind, json!({}), &[&format!("{kind}.{field}: Required value")]);
    }
    check_source("gcePersistentDisk", json!({}), &["persistentDisk.pdName: Required value"]);
    check_source(
        "emptyDir",
        json!({"sizeLimit": "-1"}),
        &["emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity"],
    );
    check_source(
        "hostPath",
        json!({"path": "/a", "type": "Pipe"}),
        &[
            "hostPath.type: Unsupported value: \"Pipe\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
        ],
    );
    check_source(
        "gitRepo",
        json!({"repository": "r", "directory": "/a/../b"}),
        &[
            "gitRepo.directory: Invalid value: \"/a/../b\": must be a relative path",
            "gitRepo.directory: Invalid value: \"/a/../b\": must not contain '..'",
        ],
    );
    check_source(
        "nfs",
        json!({}),
        &[
            "nfs.server: Required value",
            "nfs.path: Required value",
            "nfs.path: Invalid value: \"\": must be an absolute path",
        ],
    );
    check_source(
        "awsElasticBlockStore",
        json!({"volumeID": "v", "partition": 256}),
        &["awsElasticBlockStore.partition: Invalid value: 256: must be between 1 and 255, inclusive"],
    );
    let portal = "p".repeat(63);
    check_source(
        "iscsi",
        json!({"targetPortal": portal, "iqn": "foo", "initiatorName": "eui.x"}),
        &[
            "iscsi.iqn: Invalid value: \"foo\": must be valid format starting with iqn, eui, or naa",
            "iscsi.initiatorname: Invalid value: \"eui.x\": must be valid format",
            "name: Invalid value: \"v\": Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.",
        ],
    );
    check_source(
        "fc",
        json!({"targetWWNs": ["w"], "wwids": ["x"]}),
        &[
            "fc.targetWWNs: Invalid value: [\"w\"]: targetWWNs and wwids can not be specified simultaneously",
            "fc.lun: Required value: lun is required if targetWWNs is specified",
        ],
    );
    check_source(
        "secret",
        json!({"secretName": "s", "items": [{}, {"key": "k", "path": "..a", "mode": -1}]}),
        &[
            "secret.items[0].key: Required value",
            "secret.items[0].path: Required value",
            "secret.items[1].path: Invalid value: \"..a\": must not start with '..'",
            "secret.items[1].mode: Invalid value: -1: must be a number between 0 and 0777 (octal), both inclusive",
        ],
    );
    check_source(
        "csi",
        json!({"driver": "d", "nodePublishSecretRef": {}}),
        &["csi.nodePublishSecretRef.name: Required value"],
    );
    check_source(
        "csi",
        json!({"driver": "", "nodePublishSecretRef": {"name": "s/t"}}),
        &[
            "csi.driver: Required value",
            "csi.name: Invalid value: \"s/t\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        ],
    );
    check_source(
        "image",
        json!({"reference": "r", "pullPolicy": "Foo"}),
        &[
            "image.pullPolicy: Unsupported value: \"Foo\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ],
    );
    check_source(
        "downwardAPI",
        json!({"items": [{}, {"path": "a", "fieldRef": {"fieldPath": "metadata.name"}, "resourceFieldRef": {"resource": "limits.cpu"}}]}),
        &[
            "downwardAPI.path: Required value",
            "downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
            "downwardAPI: Invalid value: \"resource\": fieldRef and resourceFieldRef can not be specified simultaneously",
        ],
    );
    check_source(
        "projected",
        json!({"defaultMode": 512, "sources": [
            {"secret": {"name": "a", "items": [{"key": "k", "path": "p"}]}, "configMap": {"items": [{"key": "k", "path": "p"}]}},
            {"serviceAccountToken": {"expirationSeconds": 599, "path": "/t"}},
            {"serviceAccountToken": {"expirationSeconds": 4_294_967_297i64}}]}),
        &[
            "projected.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
            "projected.sources[0].configMap.name: Required value",
            "projected: Invalid value: \"\": conflicting duplicate paths",
            "projected.sources[0]: Forbidden: may not specify more than 1 volume type per source",
            "projected.sources[1].serviceAccountToken.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes",
            "projected.path: Invalid value: \"/t\": must be a relative path",
            "projected.sources[2].serviceAccountToken.expirationSeconds: Invalid value: 4294967297: may not specify a duration larger than 2^32 seconds",
            "projected.path: Required value",
            "projected.sources[1].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set",
            "projected.sources[2].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set",
        ],
    );
    check(
        json!({"volumes": [{"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}}}, {"name": "c", "persistentVolumeClaim": {"claimName": "p-e"}}]}),
        &[
            "spec.volumes[1].persistentVolumeClaim.claimName: Invalid value: \"p-e\": must not reference a PVC that gets created for an ephemeral volume",
        ],
    );
    // A template may leave the reference to whoever makes its pods.
    check_create(
        "",
        "PodTemplate",
        json!({"template": {"spec": {"containers": [container(json!({}))], "volumes": [{"name": "v", "image": {}}]}}}),
        &[],
    );
}

#[test]
fn repeated_sources() {
    for (kind, called) in [
        ("cephfs", "cephFS"),
        ("downwardAPI", "downwarAPI"),
        ("csi", "csi"),
        ("gcePersistentDisk", "gcePersistentDisk"),
    ] {
        check(
            json!({"volumes": [{"name": "v", "emptyDir": {}, kind: {}}]}),
            &[&format!("spec.volumes[0].{called}: Forbidden: may not specify more than 1 volume type")],
        );
    }
}

#[test]
fn mounts_and_devices() {
    let with = |fields: Value, expected: &[&str]| {
        let volumes = json!([{"name": "v", "emptyDir": {}}, {"name": "c", "persistentVolumeClaim": {"claimName": "x"}}]);
        let expected: Vec<String> = expected.iter().map(|e| format!("spec.containers[0].{e}")).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(json!({"containers": [container(fields)], "volumes": volumes}), &expected);
    };
    let mount = |mount: Value| json!({"volumeMounts": [mount]});
    with(
        mount(json!({})),
        &[
            "volumeMounts[0].name: Required value",
            "volumeMounts[0].name: Not found: \"\"",
            "volumeMounts[0].mountPath: Required value",
        ],
    );
    with(
        json!({"volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/a"}]}),
        &["volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique"],
    );
    with(
        mount(json!({"name": "v", "mountPath": "/a", "mountPropagation": "Bidirectional"})),
        &[
            "volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers",
        ],
    );
    with(
        mount(json!({"name": "v", "mountPath": "/a", "mountPropagation": "Foo", "recursiveReadOnly": "Bar"})),
        &[
            "volumeMounts.mountPropagation: Unsupported value: \"Foo\": supported values: \"Bidirectional\", \"HostToContainer\", \"None\"",
            "volumeMounts.recursiveReadOnly: Unsupported value: \"Bar\": supported values: \"Disabled\", \"Enabled\", \"IfPossible\"",
        ],
    );
    with(
        json!({"volumeMounts": [{"name": "c", "mountPath": "/d"}], "volumeDevices": [{"name": "c", "devicePath": "/d"}]}),
        &[
            "volumeMounts[0].name: Invalid value: \"c\": must not already exist in volumeDevices",
            "volumeMounts[0].mountPath: Invalid value: \"/d\": must not already exist as a path in volumeDevices",
            "volumeDevices[0].name: Invalid value: \"c\": must not already exist in volumeMounts",
            "volumeDevices[0].devicePath: Invalid value: \"/d\": must not already exist as a path in volumeMounts",
        ],
    );
    with(
        json!({"volumeDevices": [{"name": "v", "devicePath": "/a/../b"}, {}]}),
        &[
            "volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            "volumeDevices[0].devicePath: Invalid value: \"/a/../b\": can not contain backsteps ('..')",
            "volumeDevices[1].name: Required value",
            "volumeDevices[1].name: Not found: \"\"",
            "volumeDevices[1].devicePath: Required value",
        ],
    );
}

#[test]
fn a_privileged_container_is_refused_in_its_place() {
    let privileged =
        json!({"name": "C", "image": "", "securityContext": {"privileged": true, "runAsUser": -1}});
    check(
        json!({"containers": [privileged, {"name": "d", "image": ""}]}),
        &[
            &format!("spec.containers[0].name: Invalid value: \"C\": {LABEL}"),
            "spec.containers[0].image: Required value",
            "spec.containers[0].securityContext.privileged: Forbidden: disallowed by cluster policy",
            "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
            "spec.containers[1].image: Required value",
        ],
    );
}

#[test]
fn windows() {
    let check_options = |options: Value, expected: &[&str]| {
        let expected: Vec<String> =
            expected.iter().map(|e| format!("spec.securityContext.windowsOptions.{e}")).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(json!({"securityContext": {"windowsOptions": options}}), &expected);
    };
    check_options(json!({"gmsaCredentialSpecName": "a.b", "gmsaCredentialSpec": "{}"}), &[]);
    for user in ["u", "DOMAIN\\u", "my.domain-1\\u v", "NT AUTHORITY\\NETWORK SERVICE"] {
        check_options(json!({"runAsUserName": user}), &[]);
    }
    check_options(
        json!({"gmsaCredentialSpecName": "A", "gmsaCredentialSpec": "", "runAsUserName": ""}),
        &[
            "gmsaCredentialSpecName: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            "gmsaCredentialSpec: Invalid value: \"\": gmsaCredentialSpec cannot be an empty string",
            "runAsUserName: Invalid value: \"\": runAsUserName cannot be an empty string",
        ],
    );
    for (user, shown, expected) in [
        ("a\nb", "a\\nb", " cannot contain control characters"),
        ("a\\b\\c", "a\\\\b\\\\c", " cannot contain more than one backslash"),
        ("a:b\\u", "a:b\\\\u", "'s Domain doesn't match the NetBios nor the DNS format"),
        ("d\\", "d\\\\", "'s User cannot be empty"),
        (". .", ". .", "'s User cannot contain only periods or spaces"),
        ("a@b", "a@b", "'s User cannot contain the following characters: \"/\\:;|=,+*?<>@[]"),
    ] {
        check_options(
            json!({"runAsUserName": user}),
            &[&format!("runAsUserName: Invalid value: \"{shown}\": runAsUserName{expected}")],
        );
    }
    check(
        json!({"hostNetwork": true, "securityContext": {"windowsOptions": {"hostProcess": true}}}),
        &["spec: Forbidden: hostProcess containers are disallowed by cluster policy"],
    );
}

#[test]
fn fields_of_disabled_features_are_dropped() {
    let mut pod = pod(
        json!({"schedulingGroup": {"podGroupName": "g"}, "volumes": [{"name": "v", "projected": {"sources": [
        {"clusterTrustBundle": {"path": "a"}}, {"podCertificate": {"keyType": "k"}}, {"secret": {"name": "s"}}]}}]}),
    );
    super::Pod.prepare_create(&mut pod);
    assert!(pod["spec"].get("schedulingGroup").is_none());
    assert_eq!(pod["spec"]["volumes"][0]["projected"]["sources"], json!([{}, {}, {"secret": {"name": "s"}}]));
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
