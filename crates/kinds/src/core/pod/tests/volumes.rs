//! Volumes and their sources; what mounts them.

use orlop_json::{Value, json};

use super::{check, container};
use crate::testing::check_create;

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
