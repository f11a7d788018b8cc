#![allow(clippy::unwrap_used)]
use super::{MetaRule, Value, api_approval, field, unknown_formats};
use orlop_api::field::{ErrorList, Path};
use orlop_json::json;
use pretty_assertions::assert_eq;

/// Metadata's rule in these tests: nothing is called `bad`.
const RULE: MetaRule = |object| match object["metadata"]["name"].as_str() {
    Some("bad") => vec![field::invalid(&Path::new("metadata").child("name"), "bad", "no")],
    _ => ErrorList::new(),
};

fn validate(definition: &Value) -> ErrorList {
    super::validate(definition, RULE)
}

fn validate_update(definition: &Value, old: &Value) -> ErrorList {
    super::validate_update(definition, old, RULE)
}

fn definition(schema: Value) -> Value {
    json!({
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
            "conversion": {"strategy": "None"},
        },
        "status": {"storedVersions": ["v1"], "acceptedNames": {}},
    })
}

fn texts(errors: &ErrorList) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// Errors of a schema for `spec`, below its path.
#[track_caller]
fn check(spec: Value, expected: &[&str]) {
    let errors = validate(&definition(json!({"type": "object", "properties": {"spec": spec}})));
    let prefix = "spec.validation.openAPIV3Schema.properties[spec]";
    let found: Vec<String> = texts(&errors).iter().map(|text| text.replace(prefix, "~")).collect();
    assert_eq!(found, expected);
}

#[track_caller]
fn check_change(pointer: &str, value: Value, expected: &[&str]) {
    let mut object = definition(json!({"type": "object"}));
    match object.pointer_mut(pointer) {
        Some(place) => *place = value,
        None => {
            let (parent, field) = pointer.rsplit_once('/').unwrap_or(("", pointer));
            if let Some(parent) = object.pointer_mut(parent) {
                parent[field] = value;
            }
        }
    }
    assert_eq!(texts(&validate(&object)), expected, "{pointer}");
}

#[test]
fn schemas() {
    check(json!({"type": "object", "properties": {"a": {"type": "string"}}}), &[]);
    check(json!({"type": "array"}), &["~.items: Required value: must be specified"]);
    check(
        json!({"properties": {"a": {}}}),
        &[
            "~.properties[a].type: Required value: must not be empty for specified object fields",
            "~.type: Required value: must not be empty for specified object fields",
        ],
    );
    check(
        json!({"type": "foo"}),
        &[
            r#"~.type: Unsupported value: "foo": supported values: "array", "boolean", "integer", "number", "object", "string""#,
        ],
    );
    check(
        json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
        &["~.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"],
    );
    check(
        json!({"type": "object", "default": {"zz": 1}, "properties": {"a": {"type": "integer"}}}),
        &[r#"~.default: Invalid value: {"zz":1}: must not have unknown fields"#],
    );
    check(
        json!({"type": "string", "enum": ["x", "y"], "default": "z"}),
        &[r#"~.default: Unsupported value: "z": supported values: "x", "y""#],
    );
    let ruled = |rule: &str, default: Value| {
        json!({"type": "object", "properties": {"a": {"type": "integer", "default": default,
            "x-kubernetes-validations": [{"rule": rule, "message": "no", "optionalOldSelf": rule.contains("hasValue").then_some(true)}]}}})
    };
    check(ruled("self > 1", json!(2)), &[]);
    check(ruled("self > 1", json!(1)), &["~.properties[a].default: Invalid value: 1: no"]);
    check(ruled("oldSelf.hasValue()", json!(2)), &["~.properties[a].default: Invalid value: 2: no"]);
    check(
        json!({"type": "object", "properties": {"o": {"type": "object", "default": {"x": "a"},
            "x-kubernetes-validations": [{"rule": "self.x != 'a'"}], "properties": {"x": {"type": "string"}}}}}),
        &["~.properties[o].default: Invalid value: failed rule: self.x != 'a'"],
    );
    check(
        json!({"type": "object", "oneOf": [{"properties": {"a": {"type": "string"}}}]}),
        &["~.oneOf[0].properties[a].type: Forbidden: must be empty to be structural"],
    );
    check(
        json!({"type": "string", "pattern": "(("}),
        &[
            r#"~.pattern: Invalid value: "((": must be a valid regular expression, but isn't: error parsing regexp: missing closing ): `((`"#,
        ],
    );
    check(
        json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}),
        &[
            "~.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ],
    );
    check(
        json!({"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object", "properties": {"k": {"type": "string"}}}}),
        &["~.x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map"],
    );
    check(
        json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
               "items": {"type": "object", "properties": {"k": {"type": "string"}}}}),
        &[
            "~.items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
        ],
    );
    check(
        json!({"type": "array", "x-kubernetes-list-type": "foo", "items": {"type": "string"}}),
        &[r#"~.x-kubernetes-list-type: Unsupported value: "foo": supported values: "atomic", "set", "map""#],
    );
    check(
        json!({"type": "object", "properties": {"a": {"type": "integer"}}, "x-kubernetes-validations": [{"rule": "true", "fieldPath": ".zz"}]}),
        &[r#"~.x-kubernetes-validations[0].fieldPath: Invalid value: ".zz": must be a valid path"#],
    );
    // What cannot be read as a structure is not asked for types.
    check(
        json!({"properties": {"a": {"$ref": "#/x"}}}),
        &["~.properties[a].$ref: Forbidden: $ref is not supported"],
    );
    check(
        json!({"type": "object", "properties": {"a": {"type": "array", "items": [{"type": "string"}]}, "b": {}}}),
        &["~.properties[a].items: Forbidden: items must be a schema object and not an array"],
    );
    // Rules are read where nothing else is wrong.
    let beside = |rule: &str| {
        json!({"type": "object", "properties": {
            "a": {"type": "array", "items": {"type": "string"}, "uniqueItems": true, "x-kubernetes-validations": [{"rule": "nope"}]},
            "b": {"type": "integer", "x-kubernetes-validations": [{"rule": rule, "messageExpression": "nope"}]}}})
    };
    let unique = "~.properties[a].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
    let errors = validate(&definition(json!({"type": "object", "properties": {"spec": beside("self")}})));
    let found = texts(&errors).join("\n");
    assert_eq!(errors.len(), 2, "{found}");
    assert!(found.contains(&unique[1..]), "{found}");
    assert!(found.contains("properties[b].x-kubernetes-validations[0].rule: Invalid value: "), "{found}");
    check(
        json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
        &[],
    );
    check(
        json!({"type": "string", "x-kubernetes-embedded-resource": true}),
        &[
            "~.properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
            r#"~.type: Invalid value: "string": must be object if x-kubernetes-embedded-resource is true"#,
        ],
    );
}

#[test]
fn defaults_of_embedded_resources() {
    let template = |default: Value| {
        json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true,
            "default": default})
    };
    let check = |default: Value, expected: &[&str]| check(template(default), expected);
    check(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}), &[]);
    check(
        json!({"kind": "Pod", "metadata": {"name": "bad"}}),
        &["~.default.apiVersion: Required value", r#"~.default.metadata.name: Invalid value: "bad": no"#],
    );
    check(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": 1}}}),
        &[
            r#"~.default.metadata: Invalid value: {"labels":{"a":1}}: json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string"#,
        ],
    );
    check(
        json!({"apiVersion": 1, "kind": "Pod"}),
        &["~.default.apiVersion: Invalid value: 1: must be a string"],
    );
}

#[test]
fn defaults_of_additional_properties_are_nobodys_business() {
    let schema = |default: Value| {
        json!({"type": "object", "additionalProperties": {"type": "object", "properties": {
            "a": {"type": "integer", "default": default}}}})
    };
    check(schema(json!(1)), &[]);
    check(schema(json!("x")), &[]);
}

#[test]
fn defaults_inside_of_embedded_resources() {
    let inside = |name: &str, property: Value| {
        json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true,
            "properties": {name: property}})
    };
    check(inside("kind", json!({"type": "string", "default": "Pod"})), &[]);
    check(
        inside("kind", json!({"type": "string", "default": "a/b"})),
        &[
            r#"~.properties[kind].default: Invalid value: "a/b": must result in valid metadata: kind: Invalid value: "a/b": may have mixed case, but should otherwise match: a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"#,
        ],
    );
    check(
        inside("apiVersion", json!({"type": "string", "default": "a/b/c"})),
        &[
            r#"~.properties[apiVersion].default: Invalid value: "a/b/c": must result in valid metadata: apiVersion: Invalid value: "a/b/c": unexpected GroupVersion string: a/b/c"#,
        ],
    );
    let metadata = |default: &str| {
        inside(
            "metadata",
            json!({"type": "object", "properties": {"name": {"type": "string", "default": default}}}),
        )
    };
    check(metadata("good"), &[]);
    check(
        metadata("bad"),
        &[
            r#"~.properties[metadata].properties[name].default: Invalid value: "bad": must result in valid metadata: metadata.name: Invalid value: "bad": no"#,
        ],
    );
}

#[test]
fn schemas_that_cannot_be_read() {
    let errors = validate(&definition(
        json!({"type": "object", "$schema": "http://json-schema.org/draft-04/schema#"}),
    ));
    assert_eq!(
        texts(&errors),
        [r#"spec.validation.openAPIV3Schema: Invalid value: "": OpenAPIV3Schema 'schema' is not supported"#]
    );
}

#[test]
fn unknown_fields_that_are_kept() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "default": 1}}});
    let mut object = definition(schema);
    object["spec"]["preserveUnknownFields"] = json!(true);
    object["spec"]["conversion"] = json!({"strategy": "Webhook",
        "webhook": {"clientConfig": {"url": "https://a"}, "conversionReviewVersions": ["v1"]}});
    assert_eq!(
        texts(&validate(&object)),
        [
            "spec.preserveUnknownFields: Invalid value: true: must be false in order to use defaults in the schema",
            r#"spec.conversion.strategy: Invalid value: "Webhook": must be None if spec.preserveUnknownFields is true"#,
            "spec.preserveUnknownFields: Invalid value: true: cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        ]
    );
}

#[test]
fn selectable_fields_of_versions() {
    let selectable = |path: &str| json!([{"jsonPath": path}]);
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}}});
    let mut object = definition(schema);
    object["spec"]["versions"][0]["selectableFields"] = selectable(".spec.a");
    assert_eq!(texts(&validate(&object)), [""; 0]);
    let mut second = object["spec"]["versions"][0].clone();
    second["name"] = json!("v2");
    second["storage"] = json!(false);
    second["selectableFields"] = selectable(".spec.b");
    object["spec"]["versions"].as_array_mut().unwrap().push(second);
    let problem = "selectableFields may only be set when version.schema.openAPIV3Schema is not included";
    assert_eq!(
        texts(&validate(&object)),
        [0, 1].map(|at| format!(r#"spec.versions[{at}].selectableFields: Invalid value: "": {problem}"#))
    );
}

#[test]
fn specs() {
    check_change(
        "/spec/group",
        json!("nodots"),
        &[r#"spec.group: Invalid value: "nodots": should be a domain with at least one dot"#],
    );
    check_change(
        "/spec/scope",
        json!("X"),
        &[r#"spec.scope: Unsupported value: "X": supported values: "Cluster", "Namespaced""#],
    );
    check_change(
        "/spec/conversion",
        json!({"strategy": "Foo"}),
        &[r#"spec.conversion.strategy: Unsupported value: "Foo": supported values: "None", "Webhook""#],
    );
    check_change(
        "/spec/conversion",
        json!({"strategy": "Webhook"}),
        &[
            "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
            "spec.conversion.conversionReviewVersions: Required value",
        ],
    );
    check_change(
        "/spec/conversion",
        json!({"strategy": "Webhook", "webhook": {"clientConfig": {"url": "http://a"}, "conversionReviewVersions": ["v2"]}}),
        &[
            r#"spec.conversion.webhookClientConfig.url: Invalid value: "http": 'https' is the only allowed URL scheme; desired format: https://host[/path]"#,
            r#"spec.conversion.conversionReviewVersions: Invalid value: ["v2"]: must include at least one of v1, v1beta1"#,
        ],
    );
    check_change(
        "/spec/versions/0/subresources",
        json!({"scale": {"specReplicasPath": "spec.replicas", "statusReplicasPath": ".spec.replicas"}}),
        &[
            r#"spec.subresources.scale.specReplicasPath: Invalid value: "spec.replicas": must be a simple json path starting with ."#,
            r#"spec.subresources.scale.statusReplicasPath: Invalid value: ".spec.replicas": should be a json path under .status"#,
        ],
    );
    check_change(
        "/spec/versions/0/additionalPrinterColumns",
        json!([{"name": "", "type": "x", "jsonPath": "a"}]),
        &[
            "spec.additionalPrinterColumns[0].name: Required value",
            r#"spec.additionalPrinterColumns[0].type: Invalid value: "x": must be one of boolean,date,integer,number,string"#,
            r#"spec.additionalPrinterColumns[0].JSONPath: Invalid value: "a": must be a simple json path starting with ."#,
        ],
    );
    check_change(
        "/spec/names/listKind",
        json!("Widget"),
        &[r#"spec.names.listKind: Invalid value: "Widget": kind and listKind may not be the same"#],
    );
    check_change(
        "/spec/preserveUnknownFields",
        json!(true),
        &[
            "spec.preserveUnknownFields: Invalid value: true: cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        ],
    );
    check_change(
        "/spec/versions/0/schema",
        Value::Null,
        &["spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required"],
    );
    check_change(
        "/status/storedVersions",
        json!(["v1", "v0"]),
        &[
            r#"status.storedVersions[1]: Invalid value: "v0": missing from spec.versions; v0 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v0 and removes v0 from status.storedVersions"#,
        ],
    );
}

#[test]
fn names_of_an_established_definition_stay() {
    let mut old = definition(json!({"type": "object"}));
    old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
    let mut new = old.clone();
    new["spec"]["scope"] = json!("Cluster");
    new["spec"]["names"]["plural"] = json!("gadgets");
    assert_eq!(
        texts(&validate_update(&new, &old)),
        [
            r#"spec.scope: Invalid value: "Cluster": field is immutable"#,
            r#"spec.names.plural: Invalid value: "gadgets": field is immutable"#,
        ]
    );
}

#[test]
fn groups_of_the_community_need_approval() {
    let mut object = definition(json!({"type": "object"}));
    object["spec"]["group"] = json!("x.k8s.io");
    assert_eq!(
        texts(&validate(&object)),
        [
            r#"metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation "api-approved.kubernetes.io", see https://github.com/kubernetes/enhancements/pull/1111"#
        ]
    );
    for (annotation, reason) in [
        ("https://github.com/x/y", "ApprovedAnnotation"),
        ("unapproved, trying", "UnapprovedAnnotation"),
        ("what", "InvalidAnnotation"),
    ] {
        object["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": annotation});
        assert_eq!(api_approval(&object).map(|found| found.0), Some(reason));
    }
}

#[test]
fn formats_that_mean_nothing() {
    let object = definition(json!({"type": "object", "properties": {
        "a": {"type": "string", "format": "date-time"}, "b": {"type": "string", "format": "foo"},
        "c": {"type": "array", "items": {"type": "integer", "format": "uint32"}},
        "d": {"type": "object", "additionalProperties": {"type": "string", "format": "foo"}},
        "e": {"type": "integer", "format": "int64"}, "f": {"type": "object", "format": "bar"}}}));
    assert_eq!(unknown_formats(&object), ["foo", "uint32", "bar"]);
}
