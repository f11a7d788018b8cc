#![allow(clippy::unwrap_used, clippy::expect_used)]
use base64::Engine as _;
use orlop_json::{Value, json};
use proptest::prelude::*;

use super::*;
use crate::decode::{FieldValidation, Gvk, Media};

/// What JSON decoding makes of it.
fn normal(object: &Value) -> Value {
    let (api_version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
    let ty = type_of(api_version, kind).unwrap();
    crate::decode::decode_as(object.to_string().as_bytes(), ty, FieldValidation::Strict).unwrap().value
}

fn objects() -> Vec<Value> {
    let pod_spec = json!({
        "containers": [{
            "name": "c", "image": "i", "command": ["sh", "-c", ""], "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": false}}},
                {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "D", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            ],
            "envFrom": [{"configMapRef": {"name": "x"}, "prefix": "P_"}],
            "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}, "requests": {"cpu": "0.5"}},
            "ports": [{"containerPort": 80, "protocol": "TCP"}],
            "livenessProbe": {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 3},
            "readinessProbe": {"tcpSocket": {"port": -1}, "initialDelaySeconds": 0},
            "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
            "securityContext": {"runAsUser": 0, "privileged": false, "capabilities": {"add": ["NET_ADMIN"]}},
            "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true}],
        }],
        "volumes": [
            {"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "w", "configMap": {"name": "m", "defaultMode": 420, "items": [{"key": "a", "path": "b"}]}},
            {"name": "x", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 3607}}], "defaultMode": 0}},
            {"name": "y", "secret": {"secretName": "s", "defaultMode": 256}},
        ],
        "nodeSelector": {"b": "2", "a": "1"},
        "securityContext": {"supplementalGroups": [1, 2, 3], "sysctls": [{"name": "a", "value": "b"}]},
        "tolerations": [{"key": "k", "operator": "Exists", "tolerationSeconds": 0}],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "z", "labelSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}}
        ]}},
        "priority": -5, "hostUsers": false, "terminationGracePeriodSeconds": 0, "enableServiceLinks": true,
    });
    vec![
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v", "": "e"}, "binaryData": {"b": "AAEC", "e": ""}, "immutable": false}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "labels": {"x": ""}, "annotations": {"ü": "日本"}}, "type": "helm.sh/release.v1", "data": {"release": "SDRz"}}),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
            "name": "p", "namespace": "n", "uid": "u", "generation": 3,
            "creationTimestamp": "2024-02-29T23:59:59Z", "deletionTimestamp": "1969-12-31T23:59:59Z",
            "deletionGracePeriodSeconds": 0, "finalizers": ["a/b"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "x", "controller": true, "blockOwnerDeletion": false}],
            "managedFields": [{"manager": "m", "operation": "Apply", "apiVersion": "v1", "time": "2024-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"k:{\"name\":\"c\"}": {".": {}}}}}],
        }, "spec": pod_spec, "status": {
            "phase": "Running", "startTime": "2024-01-01T00:00:00Z", "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2024-01-01T00:00:00Z"}],
            "containerStatuses": [{"name": "c", "ready": true, "restartCount": 2, "image": "i", "imageID": "", "state": {"running": {"startedAt": "2024-01-01T00:00:00Z"}}, "lastState": {}}],
        }}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
            "replicas": 0, "selector": {"matchLabels": {"a": "b"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}},
        }}),
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "r"}, "revision": 9_007_199_254_740_993i64, "data": {"spec": {"z": [1, null, "x"], "a": {}}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80, "targetPort": "web"}, {"port": 81, "targetPort": 8080}], "clusterIP": "None", "allocateLoadBalancerNodePorts": false}}),
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"}, "firstTimestamp": null, "eventTime": "2024-01-01T00:00:00.123456Z", "reportingComponent": "", "reportingInstance": ""}),
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {"holderIdentity": "", "leaseDurationSeconds": 40, "renewTime": "1960-01-01T00:00:00.999999Z"}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}], "ports": [{"name": "", "port": 80}]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "r"}, "rules": null, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}}),
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": {"user": "u", "extra": {"k": ["a", "b"], "e": []}, "resourceAttributes": {"verb": "get"}}}),
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "metadata": {}, "spec": {"namespace": "n"}, "status": {"resourceRules": null, "nonResourceRules": [{"verbs": ["get"]}], "incomplete": true}}),
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {}, "spec": {"audiences": ["a"], "expirationSeconds": 3600, "boundObjectRef": null}, "status": {"token": "t", "expirationTimestamp": "2024-01-01T00:00:00Z"}}),
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": 3}, "status": {"replicas": 1, "selector": "a=b"}}),
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}, "deleteOptions": {"gracePeriodSeconds": 0}}),
        json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}}),
        json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "reason": "NotFound", "details": {"name": "x", "causes": [{"reason": "R", "field": "a[0]"}]}, "code": 404}),
        json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "propagationPolicy": "Foreground", "preconditions": {"uid": "u"}, "dryRun": ["All"]}),
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions", "fieldManager": "m"}),
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "x"}}),
        json!({"apiVersion": "v1", "kind": "APIResourceList", "groupVersion": "v1", "resources": [{"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"], "shortNames": ["po"]}]}),
        json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "5", "continue": "c", "remainingItemCount": 0}, "items": [{"metadata": {"name": "p"}, "spec": {"containers": null}, "status": {}}]}),
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "c"}, "spec": {
            "group": "g", "names": {"plural": "cs", "kind": "C"}, "scope": "Namespaced",
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}, "default": {"a": [1]},
                "additionalProperties": false, "maximum": 1.5, "minimum": 0, "enum": ["x", 1, null],
                "dependencies": {"a": ["b"], "c": {"type": "string"}},
            }}}],
        }, "status": {"conditions": null, "acceptedNames": {"plural": "cs", "kind": "C"}, "storedVersions": ["v1"]}}),
    ]
}

#[test]
fn objects_come_back_as_json_has_them() {
    for object in objects() {
        let want = normal(&object);
        let body = encode(&want).unwrap();
        let got = decode(&body).unwrap();
        pretty_assertions::assert_eq!(got, want);
        assert_eq!(got.to_string(), want.to_string(), "the order of fields");
        assert_eq!(encode(&got).unwrap(), body);
    }
}

#[test]
fn bytes_are_upstreams() {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let metadata = b"\n\x01a\x12\0\x1a\0\"\0*\x002\x008\0B\0";
    let mut message = vec![b'\n', metadata.len() as u8];
    message.extend_from_slice(metadata);
    message.extend_from_slice(b"\x12\x06\n\x01k\x12\x01v");
    let mut want = b"k8s\0\n\x0f\n\x02v1\x12\tConfigMap\x12".to_vec();
    want.push(message.len() as u8);
    want.extend_from_slice(&message);
    want.extend_from_slice(b"\x1a\0\"\0");
    assert_eq!(encode(&map).unwrap(), want);
    let list =
        encode_list("v1", "ConfigMapList", &json!({"resourceVersion": "7"}), [&message[..]].into_iter());
    let got = decode(&list).unwrap();
    assert_eq!(
        got,
        json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "a"}, "data": {"k": "v"}}]})
    );
    let frame = watch_frame("ADDED", &want);
    assert_eq!(frame[..4], ((frame.len() - 4) as u32).to_be_bytes());
    let ty = schema::Schemas::get().openapi("io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent").unwrap();
    let event = decode_message(&frame[4..], ty).unwrap();
    assert_eq!((&event["type"], &event["object"]["data"]), (&json!("ADDED"), &json!({"k": "v"})));
}

#[test]
fn requests_are_decoded_as_the_endpoint_expects() {
    let gvk = Gvk { group: "", version: "v1", kind: "ConfigMap" };
    let check = |body: &[u8], expected: Result<&str, &str>| {
        let got = crate::decode::decode(body, Media::Protobuf, &gvk, FieldValidation::Strict);
        let got = got.map(|d| d.value.to_string()).map_err(|e| e.status().message.clone());
        assert_eq!(got, expected.map(str::to_owned).map_err(str::to_owned));
    };
    let plain = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"}}"#;
    let message = b"\n\x03\n\x01a";
    check(&envelope("v1", "ConfigMap", message), Ok(plain));
    check(&envelope("", "", message), Ok(plain));
    // Fields from the future are skipped: 100 a varint, 101 a group with a group in it, 102 fixed.
    let mut newer = message.to_vec();
    newer.extend_from_slice(b"\xa0\x06\x05\xab\x06\xb3\x06\xb4\x06\xac\x06\xb1\x06\0\0\0\0\0\0\0\0");
    check(&envelope("v1", "ConfigMap", &newer), Ok(plain));
    let is = "the object provided is unrecognized (must be of type ConfigMap): ";
    check(
        b"{}",
        Err(&format!(
            "{is}provided data does not appear to be a protobuf message, expected prefix [107 56 115 0] ({{}})"
        )),
    );
    check(b"k8s\0\x0a\xff", Err(&format!("{is}unexpected EOF (6b3873000aff)")));
    let handled = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: ";
    check(&envelope("v1", "ConfigMap", b"\n\x7f"), Err(&format!("{handled}unexpected EOF")));
    check(
        &envelope("v1", "ConfigMap", b"\n\x03\n\x01\xff"),
        Err(&format!("{handled}proto: field name contains invalid UTF-8")),
    );
    check(
        &envelope("v1", "ConfigMap", b"\x08\x01"),
        Err(&format!("{handled}proto: wrong wireType = 0 for field metadata")),
    );
    check(&envelope("v1", "ConfigMap", b"\x0f"), Err(&format!("{handled}proto: illegal wireType 7")));
    check(&envelope("v1", "ConfigMap", b"\0"), Err(&format!("{handled}proto: illegal tag 0 (wire type 0)")));
    check(
        &envelope("v1", "ConfigMap", b"\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        Err(&format!("{handled}proto: negative length found during unmarshaling")),
    );
    check(
        &envelope("v1", "Gadget", message),
        Err(
            "Gadget in version \"v1\" cannot be handled as a ConfigMap: no kind \"Gadget\" is registered for version \"v1\" in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
        ),
    );
}

#[test]
fn nesting_is_bounded() {
    let schema = schema::Schemas::get()
        .openapi("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
        .unwrap();
    let mut message = Vec::new();
    for _ in 0..5_000 {
        let inner = std::mem::take(&mut message);
        // `not` is field 28.
        wire::put_bytes(&mut message, 28, &inner);
    }
    let _ = decode_message(&message, schema);
    let mut raw = Vec::new();
    for _ in 0..500 {
        let inner = std::mem::take(&mut raw);
        let mut revision = Vec::new();
        wire::put_message(&mut revision, 2, |out| wire::put_bytes(out, 1, &inner));
        raw = envelope("apps/v1", "ControllerRevision", &revision);
    }
    assert_eq!(decode(&raw).unwrap_err().to_string(), "exceeded max depth");
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        for (api_version, kind) in [("v1", "Pod"), ("apps/v1", "Deployment"), ("v1", "Status"), ("apiextensions.k8s.io/v1", "CustomResourceDefinition")] {
            let _ = decode(&envelope(api_version, kind, &bytes));
        }
    }

    #[test]
    fn damaged_bodies_are_read_or_refused(which in 0usize..24, at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let all = objects();
        let mut body = encode(&normal(&all[which % all.len()])).unwrap();
        let at = at.index(body.len());
        if cut { body.truncate(at) } else { body[at] = byte }
        if let Ok(value) = decode(&body) {
            // What is read can be written and read again.
            let again = decode(&encode(&value).unwrap_or_default());
            if let Ok(again) = again {
                prop_assert_eq!(again, value);
            }
        }
    }

    #[test]
    fn config_maps_round_trip(data in proptest::collection::btree_map(".{0,8}", ".{0,20}", 0..6), bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
        object["binaryData"] = json!({"b": base64::engine::general_purpose::STANDARD.encode(bytes)});
        let want = normal(&object);
        prop_assert_eq!(decode(&encode(&want).unwrap()).unwrap(), want);
    }
}
