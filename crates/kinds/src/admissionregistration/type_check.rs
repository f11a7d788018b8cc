//! The types of a validating policy's expressions, checked against the schemas of the resources it is for. What is found
//! is a warning in the policy's status and changes nothing.
//!
//! Answers to `admission/plugin/policy/validating/typechecking.go`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use orlop_cel::{DeclType, Environment, EnvironmentBuilder, ObjectType, Type};
use orlop_json::{Value, json};

use super::expression::{NAMESPACE, REQUEST, declared};
use crate::cursor::Cursor;

/// The most kinds that are looked at for one rule.
const MAX_KINDS: usize = 10;
/// How deep a schema may be nested.
const MAX_DEPTH: usize = 100;

/// A kind, in the order upstream lists them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Kind.
    pub kind: String,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}, Kind={}", self.group, self.version, self.kind)
    }
}

/// The kinds that a policy's rules name without wildcards; `kinds` gives those of a group, version and resource.
pub fn kinds_to_check(policy: &Value, kinds: impl Fn(&str, &str, &str) -> Vec<Kind>) -> Vec<Kind> {
    let mut found = BTreeSet::new();
    for rule in policy["spec"]["matchConstraints"]["resourceRules"].items() {
        let plain = |field: &str| -> Vec<&str> {
            let mut names = rule[field].texts();
            if names.iter().any(|name| name.contains('*')) {
                return Vec::new();
            }
            names.sort_unstable();
            names
        };
        let mut resources = rule["resources"].texts();
        resources.retain(|resource| !resource.contains(['*', '/']));
        resources.sort_unstable();
        let mut count = 0;
        for group in plain("apiGroups") {
            for version in plain("apiVersions") {
                for resource in &resources {
                    for kind in kinds(group, version, resource) {
                        found.insert(kind);
                        count += 1;
                        if count == MAX_KINDS {
                            return found.into_iter().collect();
                        }
                    }
                }
            }
        }
    }
    found.into_iter().collect()
}

/// The kind of a policy's parameters.
pub fn param_kind(policy: &Value) -> Option<Kind> {
    let kind = &policy["spec"]["paramKind"];
    let api_version = kind["apiVersion"].text();
    if !kind.is_set() || api_version.matches('/').count() > 1 {
        return None;
    }
    let (group, version) = orlop_api::meta::split_api_version(api_version);
    Some(Kind { group: group.to_owned(), version: version.to_owned(), kind: kind["kind"].text().to_owned() })
}

/// The declaration of a kind by the OpenAPI v3 document of its group version; `None` when it is not described there.
pub fn declaration(document: &Value, kind: &Kind) -> Option<Arc<DeclType>> {
    let schemas = document.pointer("/components/schemas")?.as_object()?;
    let own = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let is_own = |schema: &&Value| schema["x-kubernetes-group-version-kind"].items().contains(&own);
    let schema = schemas.values().find(is_own)?;
    let mut open = Vec::new();
    orlop_cel::declare(&inlined(schema, schemas, &mut open), &kind.kind, false)
}

/// A schema with its references written out; one that refers to itself is an object of which nothing is known.
fn inlined<'a>(schema: &'a Value, all: &'a orlop_json::Map, open: &mut Vec<&'a str>) -> Value {
    // The server writes a reference with a default as the only element of an `allOf`.
    let reference = match schema["allOf"].items() {
        [only] => only["$ref"].text(),
        _ => schema["$ref"].text(),
    };
    if let Some(name) = reference.strip_prefix("#/components/schemas/") {
        if open.contains(&name) || open.len() > MAX_DEPTH {
            return json!({"type": "object"});
        }
        let Some(target) = all.get(name) else { return Value::Null };
        open.push(name);
        let inner = inlined(target, all, open);
        open.pop();
        return inner;
    }
    let mut out = orlop_json::Map::new();
    for key in ["type", "format", "enum", "x-kubernetes-list-type", "x-kubernetes-list-map-keys"] {
        if let Some(value) = schema.get(key) {
            out.insert(key.into(), value.clone());
        }
    }
    // What may be a string or a number has no type of its own, whether built in or custom.
    let either = schema["format"] == "int-or-string"
        || schema["x-kubernetes-int-or-string"] == true
        || (schema.get("type").is_none() && !schema["oneOf"].items().is_empty());
    if either {
        out.insert("x-kubernetes-int-or-string".into(), json!(true));
    }
    for key in ["items", "additionalProperties"] {
        if schema[key].is_object() {
            out.insert(key.into(), inlined(&schema[key], all, open));
        }
    }
    if let Some(properties) = schema["properties"].as_object() {
        let inner = properties.iter().map(|(name, schema)| (name.clone(), inlined(schema, all, open)));
        out.insert("properties".into(), Value::Object(inner.collect()));
    }
    Value::Object(out)
}

/// The warnings about a policy (`status.typeChecking.expressionWarnings`), given the declarations of the kinds it is for
/// and of its parameters.
pub fn warnings(policy: &Value, kinds: &[(Kind, Arc<DeclType>)], params: Option<&DeclType>) -> Vec<Value> {
    let spec = &policy["spec"];
    let environments: Vec<(&Kind, Environment)> = kinds
        .iter()
        .map(|(kind, object)| (kind, environment(object, params, spec["variables"].items())))
        .collect();
    let mut warnings = Vec::new();
    for (i, validation) in spec["validations"].items().iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let expression = validation[field].text();
            if field == "messageExpression" && expression.is_empty() {
                continue;
            }
            let found: Vec<String> = environments
                .iter()
                .filter_map(|(kind, environment)| {
                    let errors = environment.compile(expression).err()?;
                    errors.instantiation.is_none().then(|| format!("{kind}: {errors}\n"))
                })
                .collect();
            if !found.is_empty() {
                let field = format!("spec.validations[{i}].{field}");
                warnings.push(json!({"fieldRef": field, "warning": found.join("\n")}));
            }
        }
    }
    warnings
}

/// What a policy's expressions know where the object is of a declared type, its variables included.
fn environment(object: &DeclType, params: Option<&DeclType>, variables: &[Value]) -> Environment {
    let mut builder = EnvironmentBuilder::kubernetes()
        .variable("object", object.ty.clone())
        .variable("oldObject", object.ty.clone())
        .variable("namespaceObject", NAMESPACE.ty.clone())
        .variable("request", REQUEST.ty.clone())
        .authorizer(false);
    if let Some(params) = params {
        builder = builder.variable("params", params.ty.clone());
    }
    let with = |base: &Environment, known: &[(&str, Type)]| {
        let fields = known.iter().map(|(name, ty)| (*name, ty.clone()));
        let ty = Type::Object(ObjectType::new("kubernetes.variables", fields));
        EnvironmentBuilder::extend(base).variable("variables", ty).build()
    };
    let base = builder.build();
    let mut known: Vec<(&str, Type)> = Vec::new();
    let mut environment = with(&base, &known);
    for variable in variables {
        let compiled = environment.compile(variable["expression"].text());
        let ty = compiled.map_or(Type::Dyn, |program| declared(program.output_type()));
        known.push((variable["name"].text(), ty));
        environment = with(&base, &known);
    }
    environment
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn document() -> Value {
        json!({"components": {"schemas": {
            "apps.v1.Deployment": {"type": "object", "x-kubernetes-group-version-kind": [{"group": "apps", "version": "v1", "kind": "Deployment"}],
                "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"},
                    "metadata": {"allOf": [{"$ref": "#/components/schemas/Meta"}], "default": {}},
                    "spec": {"$ref": "#/components/schemas/Spec"}}},
            "Meta": {"type": "object", "properties": {"name": {"type": "string"}, "labels": {"type": "object", "additionalProperties": {"type": "string", "default": ""}}}},
            "Spec": {"type": "object", "properties": {"replicas": {"type": "integer", "format": "int32"},
                "port": {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]},
                "size": {"oneOf": [{"type": "string"}, {"type": "number"}]},
                "again": {"$ref": "#/components/schemas/Spec"}}},
        }}})
    }

    fn deployment() -> Kind {
        Kind { group: "apps".into(), version: "v1".into(), kind: "Deployment".into() }
    }

    fn check(spec: Value, expected: Value) {
        let declared = declaration(&document(), &deployment()).unwrap();
        let found = warnings(&json!({"spec": spec}), &[(deployment(), declared)], None);
        assert_eq!(Value::Array(found), expected);
    }

    #[test]
    fn found() {
        let rules = |expression: &str| json!({"validations": [{"expression": expression}]});
        for fine in [
            "object.spec.replicas > 1 && object.metadata.labels['a'] == 'b'",
            "object.spec.port == 80 || object.spec.size == '1'",
            "has(object.spec.again)",
            "request.namespace == namespaceObject.metadata.name",
            "authorizer.group('').resource('pods').check('get').allowed()",
        ] {
            check(rules(fine), json!([]));
        }
        check(
            rules("object.foo > 1"),
            json!([{"fieldRef": "spec.validations[0].expression",
                "warning": "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'foo'\n | object.foo > 1\n | ......^\n"}]),
        );
        check(
            json!({"variables": [{"name": "n", "expression": "object.spec.replicas"}, {"name": "bad", "expression": "object.x"}],
                "validations": [{"expression": "variables.bad == 1 && variables.n == 'x'", "messageExpression": "params.x"}]}),
            json!([
                {"fieldRef": "spec.validations[0].expression",
                    "warning": "apps/v1, Kind=Deployment: ERROR: <input>:1:35: found no matching overload for '_==_' applied to '(int, string)'\n | variables.bad == 1 && variables.n == 'x'\n | ..................................^\n"},
                {"fieldRef": "spec.validations[0].messageExpression",
                    "warning": "apps/v1, Kind=Deployment: ERROR: <input>:1:1: undeclared reference to 'params' (in container '')\n | params.x\n | ^\n"},
            ]),
        );
    }

    #[test]
    fn kinds() {
        let resolve = |group: &str, version: &str, resource: &str| {
            let kind = |kind: &str| Kind { group: group.into(), version: version.into(), kind: kind.into() };
            if resource == "nothing" { Vec::new() } else { vec![kind(resource)] }
        };
        let check = |rules: Value, expected: &[&str]| {
            let policy = json!({"spec": {"matchConstraints": {"resourceRules": rules}}});
            let names: Vec<String> =
                kinds_to_check(&policy, resolve).iter().map(ToString::to_string).collect();
            assert_eq!(names, expected);
        };
        check(
            json!([{"apiGroups": ["b", ""], "apiVersions": ["v1"], "resources": ["y", "x", "x/status", "*", "nothing"]}]),
            &["/v1, Kind=x", "/v1, Kind=y", "b/v1, Kind=x", "b/v1, Kind=y"],
        );
        check(json!([{"apiGroups": ["*"], "apiVersions": ["v1"], "resources": ["x"]}]), &[]);
        let many: Vec<String> = (10..30).map(|n| format!("r{n}")).collect();
        let policy = json!({"spec": {"matchConstraints": {"resourceRules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "resources": many}]}}});
        assert_eq!(kinds_to_check(&policy, resolve).len(), MAX_KINDS);
    }
}
