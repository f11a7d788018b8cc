#![allow(clippy::unwrap_used)]

use orlop_json::json;
use pretty_assertions::assert_eq;

use super::*;

const CONFIG_MAP: Gvk = Gvk { group: "", version: "v1", kind: "ConfigMap" };
const POD: Gvk = Gvk { group: "", version: "v1", kind: "Pod" };
const DEPLOYMENT: Gvk = Gvk { group: "apps", version: "v1", kind: "Deployment" };

fn message(body: &str, expected: Gvk, validation: FieldValidation) -> String {
    decode(body.as_bytes(), Media::Json, &expected, validation).unwrap_err().to_string()
}

fn value(body: Value, expected: Gvk) -> Value {
    decode(body.to_string().as_bytes(), Media::Json, &expected, FieldValidation::Strict).unwrap().value
}

#[test]
fn objects_are_normalised() {
    let cases = [
        (
            json!({"metadata": {"name": "a", "labels": {}, "creationTimestamp": null}, "data": {"b": "1", "a": "2"}}),
            CONFIG_MAP,
            r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"},"data":{"a":"2","b":"1"}}"#,
        ),
        (
            json!({"spec": {"containers": [{"image": "i", "name": "c", "env": null, "tty": false,
                "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}, "ports": [{"containerPort": 80}]}]}}),
            POD,
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{},"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"500m","memory":"1Gi"}}}]},"status":{}}"#,
        ),
        (
            json!({"kind": "Pod", "apiVersion": "v1", "spec": {"containers": [null], "activeDeadlineSeconds": 0}}),
            POD,
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{},"spec":{"containers":[{"name":"","resources":{}}],"activeDeadlineSeconds":0},"status":{}}"#,
        ),
        (
            json!({}),
            DEPLOYMENT,
            r#"{"kind":"Deployment","apiVersion":"apps/v1","metadata":{},"spec":{"selector":null,"template":{"metadata":{},"spec":{"containers":null}},"strategy":{}},"status":{}}"#,
        ),
    ];
    for (body, expected, want) in cases {
        assert_eq!(value(body, expected).to_string(), want);
    }
}

#[test]
fn refusals_are_upstreams() {
    use FieldValidation::{Strict, Warn};
    let cases = [
        (
            r#"{"metadata":{"name":"a","annotations":[]}}"#,
            CONFIG_MAP,
            Warn,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal array into Go struct field ObjectMeta.metadata.annotations of type map[string]string",
        ),
        (
            r#"{"data":{"a":5}}"#,
            CONFIG_MAP,
            Warn,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
        ),
        (
            r#"{"binaryData":{"a":"***"}}"#,
            CONFIG_MAP,
            Warn,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: illegal base64 data at input byte 0",
        ),
        (
            r#"{"spec":{"hostNetwork":"true","containers":[]}}"#,
            POD,
            Warn,
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool",
        ),
        (
            r#"{"spec":{"containers":{"name":"c"}}}"#,
            POD,
            Warn,
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":[]}}}]}}"#,
            POD,
            Warn,
            "Pod in version \"v1\" cannot be handled as a Pod: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            r#"{"spec":{"replicas":99999999999}}"#,
            DEPLOYMENT,
            Warn,
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal number 99999999999 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            r#"{"spec":[]}"#,
            DEPLOYMENT,
            Warn,
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec",
        ),
        (
            "[]",
            CONFIG_MAP,
            Warn,
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" } (5b5d)",
        ),
        (
            "not json at all",
            CONFIG_MAP,
            Warn,
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: invalid character 'o' in literal null (expecting 'u') (6e6f74206a736f6e20617420616c6c)",
        ),
        (
            "",
            CONFIG_MAP,
            Warn,
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)",
        ),
        (
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}} x"#,
            CONFIG_MAP,
            Warn,
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: invalid character 'x' after top-level value ({\"apiVersion\":\"v1\",\"kind\":\"Con ...)",
        ),
        (
            r#"{"apiVersion":"apps/v1","kind":"ConfigMap"}"#,
            CONFIG_MAP,
            Warn,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: no kind \"ConfigMap\" is registered for version \"apps/v1\" in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
        ),
        (
            r#"{"apiVersion":"v1","kind":"Secret"}"#,
            CONFIG_MAP,
            Warn,
            "Secret in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Secret) to (core.ConfigMap): unknown conversion",
        ),
        (
            r#"{"metadata":{"foo":1,"foo":2},"data":{"a":"1","a":"2"},"x":[{}]}"#,
            CONFIG_MAP,
            Strict,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"metadata.foo\", duplicate field \"data.a\", unknown field \"x\"",
        ),
    ];
    for (body, expected, validation, want) in cases {
        assert_eq!(message(body, expected, validation), want, "{body}");
    }
}

#[test]
fn warnings_name_the_place() {
    let body = r#"{"metadata":{"name":"p","foo":1},"spec":{"containers":[{"name":"c","imag":"x"}],"bogus":{"a":1}},"extra":true}"#;
    let warnings = decode(body.as_bytes(), Media::Json, &POD, FieldValidation::Warn).unwrap().warnings;
    assert_eq!(
        warnings,
        [
            "unknown field \"metadata.foo\"",
            "unknown field \"spec.containers[0].imag\"",
            "unknown field \"spec.bogus\"",
            "unknown field \"extra\""
        ]
    );
    assert!(decode(body.as_bytes(), Media::Json, &POD, FieldValidation::Ignore).unwrap().warnings.is_empty());
}

#[test]
fn repeated_fields_keep_the_last() {
    let body = r#"{"metadata":{"labels":{"x":"1","x":"2"}},"data":{"k":"1","j":"0"},"data":{"k":"2"}}"#;
    let decoded = decode(body.as_bytes(), Media::Json, &CONFIG_MAP, FieldValidation::Warn).unwrap();
    assert_eq!(decoded.warnings, ["duplicate field \"metadata.labels.x\"", "duplicate field \"data\""]);
    assert_eq!(decoded.value["data"], json!({"j": "0", "k": "2"}));
    assert_eq!(decoded.value["metadata"]["labels"], json!({"x": "2"}));
}

#[test]
fn yaml_is_read_and_refused_as_upstream_does() {
    let yaml = |body: &str, validation| decode(body.as_bytes(), Media::Yaml, &CONFIG_MAP, validation);
    let ok = yaml("metadata:\n  name: a\ndata:\n  a: \"1\"\n", FieldValidation::Strict).unwrap();
    assert_eq!(ok.value["data"], json!({"a": "1"}));
    assert_eq!(
        yaml(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\nbogus: 1\ndata:\n  a: x\n  a: z\n",
            FieldValidation::Strict
        )
        .unwrap_err()
        .to_string(),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: yaml: unmarshal errors:\n  line 8: key \"a\" already set in map, unknown field \"bogus\""
    );
    assert_eq!(
        yaml("a: [b\n", FieldValidation::Warn).unwrap_err().to_string(),
        "the object provided is unrecognized (must be of type ConfigMap): yaml: line 1: did not find expected ',' or ']' (613a205b620a)"
    );
}

#[test]
fn other_versions_are_read_as_such() {
    let expected = Gvk { group: "autoscaling", version: "v2", kind: "HorizontalPodAutoscaler" };
    let body = br#"{"apiVersion":"autoscaling/v1","kind":"HorizontalPodAutoscaler","spec":{"targetCPUUtilizationPercentage":5}}"#;
    let value = decode(body, Media::Json, &expected, FieldValidation::Strict).unwrap().value;
    assert_eq!(value["apiVersion"], "autoscaling/v1");
    assert_eq!(value["spec"]["targetCPUUtilizationPercentage"], 5);
}

#[test]
fn hostile_depth_is_refused() {
    let nested = |depth: usize| {
        format!(
            r#"{{"apiVersion":"apps/v1","kind":"ControllerRevision","data":{}{}}}"#,
            r#"{"a":"#.repeat(depth) + "1",
            "}".repeat(depth)
        )
    };
    let expected = Gvk { group: "apps", version: "v1", kind: "ControllerRevision" };
    let run = |depth| decode(nested(depth).as_bytes(), Media::Json, &expected, FieldValidation::Warn);
    assert!(run(122).is_ok());
    assert!(run(100_000).unwrap_err().to_string().contains("exceeded max depth"));
}

proptest::proptest! {
    #[test]
    fn decoding_never_panics_and_is_idempotent(body in "[\\[\\]{}:,\"a-z0-9.\\\\ -]{0,60}") {
        let _ = decode(body.as_bytes(), Media::Yaml, &POD, FieldValidation::Warn);
        if let Ok(decoded) = decode(body.as_bytes(), Media::Json, &POD, FieldValidation::Warn) {
            let again = decode(decoded.value.to_string().as_bytes(), Media::Json, &POD, FieldValidation::Strict).unwrap();
            proptest::prop_assert_eq!(again.value, decoded.value);
        }
    }
}
