//! FlowSchema: which requests belong to which priority level, and what makes two of them one flow.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Value, json};

use super::{mandatory_spec, validate_status};
use crate::cursor::{Cursor, child, default_empty_to, same};
use crate::validate::object_name;
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of FlowSchemas.
pub struct FlowSchema;

const MAX_PRECEDENCE: i64 = 10_000;
const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

fn validate(obj: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, false, NameRule::DnsSubdomain);
    let (spec, path) = (&obj["spec"], Path::new("spec"));
    let name = obj["metadata"]["name"].text();
    let precedence = spec["matchingPrecedence"].int();
    let at = path.child("matchingPrecedence");
    if precedence <= 0 {
        errs.push(field::invalid(&at, precedence, "must be a positive value"));
    }
    if precedence > MAX_PRECEDENCE {
        errs.push(field::invalid(&at, precedence, format!("must not be greater than {MAX_PRECEDENCE}")));
    }
    if precedence == 1 && name != "exempt" {
        errs.push(field::invalid(
            &at,
            precedence,
            "only the schema named 'exempt' may have matchingPrecedence 1",
        ));
    }
    let method = &spec["distinguisherMethod"];
    if method.is_set() && !["ByNamespace", "ByUser"].contains(&method["type"].text()) {
        errs.push(field::not_supported(
            &path.child("distinguisherMethod").child("type"),
            json!({"Type": method["type"]}),
            &["ByNamespace", "ByUser"],
        ));
    }
    let level = spec["priorityLevelConfiguration"]["name"].text();
    let at = path.child("priorityLevelConfiguration").child("name");
    if level.is_empty() {
        errs.push(field::required(&at, "must reference a priority level"));
    } else {
        object_name(&mut errs, &at, level, NameRule::DnsSubdomain);
    }
    for (i, rule) in spec["rules"].items().iter().enumerate() {
        validate_rule(&mut errs, &path.child("rules").index(i), rule);
    }
    if let Some(fixed) = mandatory_spec("flowSchemas", name)
        && !same(spec, fixed)
    {
        errs.push(field::invalid(
            &path,
            spec.clone(),
            format!("spec of '{name}' must equal the fixed value"),
        ));
    }
    validate_status(&mut errs, obj);
    errs
}

fn validate_rule(errs: &mut ErrorList, path: &Path, rule: &Value) {
    if rule["subjects"].is_empty() {
        errs.push(field::required(&path.child("subjects"), "subjects must contain at least one value"));
    }
    for (i, subject) in rule["subjects"].items().iter().enumerate() {
        validate_subject(errs, &path.child("subjects").index(i), subject);
    }
    if rule["resourceRules"].is_empty() && rule["nonResourceRules"].is_empty() {
        errs.push(field::required(
            path,
            "at least one of resourceRules and nonResourceRules has to be non-empty",
        ));
    }
    for (i, rule) in rule["resourceRules"].items().iter().enumerate() {
        validate_resource_rule(errs, &path.child("resourceRules").index(i), rule);
    }
    for (i, rule) in rule["nonResourceRules"].items().iter().enumerate() {
        let path = path.child("nonResourceRules").index(i);
        validate_verbs(errs, &path, rule);
        let at = path.child("nonResourceURLs");
        let urls = rule["nonResourceURLs"].texts();
        if urls.is_empty() {
            errs.push(field::required(&at, "nonResourceURLs must contain at least one value"));
        } else if urls.contains(&"*") {
            only_wildcard(errs, &at, &rule["nonResourceURLs"], "non-resource URLs");
        } else {
            for (u, url) in urls.into_iter().enumerate() {
                validate_url(errs, &at.index(u), url);
            }
        }
    }
}

/// A list that has `*` has nothing else.
fn only_wildcard(errs: &mut ErrorList, path: &Path, list: &Value, what: &str) {
    if list.items().len() > 1 {
        errs.push(field::invalid(
            path,
            list.clone(),
            format!("if '*' is present, must not specify other {what}"),
        ));
    }
}

fn validate_verbs(errs: &mut ErrorList, path: &Path, rule: &Value) {
    let (verbs, at) = (rule["verbs"].texts(), path.child("verbs"));
    if verbs.is_empty() {
        errs.push(field::required(&at, "verbs must contain at least one value"));
    } else if verbs.contains(&"*") {
        only_wildcard(errs, &at, &rule["verbs"], "verbs");
    } else if verbs.iter().any(|verb| !VERBS.contains(verb)) {
        errs.push(field::not_supported(&at, rule["verbs"].clone(), &VERBS));
    }
}

fn validate_url(errs: &mut ErrorList, path: &Path, url: &str) {
    let stars = url.matches('*').count();
    let problem = if url.is_empty() {
        "must not be empty"
    } else if url == "/" {
        return;
    } else if !url.starts_with('/') {
        "must start with slash"
    } else if url.contains(' ') {
        "must not contain white-space"
    } else if url.contains("//") {
        "must not contain double slash"
    } else if stars > 1 || (stars == 1 && !url.ends_with("/*")) {
        "wildcard can only do suffix matching"
    } else {
        return;
    };
    errs.push(field::invalid(path, url, problem));
}

fn validate_resource_rule(errs: &mut ErrorList, path: &Path, rule: &Value) {
    validate_verbs(errs, path, rule);
    for (key, what, missing) in [
        ("apiGroups", "api groups", "resource rules must supply at least one api group"),
        ("resources", "resources", "resource rules must supply at least one resource"),
    ] {
        let at = path.child(key);
        if rule[key].is_empty() {
            errs.push(field::required(&at, missing));
        } else if rule[key].texts().contains(&"*") {
            only_wildcard(errs, &at, &rule[key], what);
        }
    }
    let (namespaces, at) = (rule["namespaces"].texts(), path.child("namespaces"));
    if namespaces.is_empty() && !rule["clusterScope"].flag() {
        errs.push(field::required(
            &at,
            "resource rules that are not cluster scoped must supply at least one namespace",
        ));
    } else if namespaces.contains(&"*") {
        only_wildcard(errs, &at, &rule["namespaces"], "namespaces");
    } else {
        for (i, namespace) in namespaces.into_iter().enumerate() {
            for msg in NameRule::DnsLabel.check(namespace, false) {
                errs.push(field::invalid(
                    &at.index(i),
                    namespace,
                    format!("each member of this list must be '*' or a DNS-1123 label; {msg}"),
                ));
            }
        }
    }
}

fn validate_subject(errs: &mut ErrorList, path: &Path, subject: &Value) {
    /// Kind, the field that describes it.
    const KINDS: [(&str, &str); 3] =
        [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let kind = subject["kind"].text();
    let Some((_, own)) = KINDS.iter().find(|(known, _)| *known == kind) else {
        errs.push(field::not_supported(&path.child("kind"), kind, &["Group", "ServiceAccount", "User"]));
        return;
    };
    let (described, at) = (&subject[*own], path.child(own));
    if !described.is_set() {
        errs.push(field::required(&at, &format!("{own} is required when subject kind is '{kind}'")));
    } else {
        let name = described["name"].text();
        if name.is_empty() {
            errs.push(field::required(&at.child("name"), ""));
        } else if kind == "ServiceAccount" && name != "*" {
            object_name(errs, &at.child("name"), name, NameRule::DnsSubdomain);
        }
        if kind == "ServiceAccount" {
            let (namespace, at) = (described["namespace"].text(), at.child("namespace"));
            if namespace.is_empty() {
                errs.push(field::required(&at, "must specify namespace for service account"));
            } else {
                object_name(errs, &at, namespace, NameRule::DnsLabel);
            }
        }
    }
    for (other, key) in KINDS {
        if other != kind && subject[key].is_set() {
            errs.push(field::forbidden(
                &path.child(key),
                format!("{key} is forbidden when subject kind is not '{other}'"),
            ));
        }
    }
}

impl Strategy for FlowSchema {
    common_rules!();

    fn defaults(&self, obj: &mut Value) {
        default_empty_to(child(obj, "spec"), "matchingPrecedence", 1000);
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &obj["spec"];
        let or_none = |text: &str| if text.is_empty() { "<none>".to_owned() } else { text.to_owned() };
        let dangling = obj["status"]["conditions"]
            .items()
            .iter()
            .find(|c| c["type"] == "Dangling")
            .map_or("?", |c| c["status"].text());
        vec![
            printer::name(obj),
            or_none(spec["priorityLevelConfiguration"]["name"].text()).into(),
            spec["matchingPrecedence"].int().into(),
            or_none(spec["distinguisherMethod"]["type"].text()).into(),
            printer::age(obj, now),
            dangling.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_cells, check_create, check_defaults};

    const GROUP: &str = "flowcontrol.apiserver.k8s.io";

    #[test]
    fn validation() {
        let check = |spec: Value, expected: &[&str]| {
            check_create(GROUP, "FlowSchema", json!({"spec": spec}), expected);
        };
        let level = json!({"name": "l"});
        let rule = |subject: Value, resource: Value, url: Value| {
            json!({"priorityLevelConfiguration": level, "rules": [
            {"subjects": [subject], "resourceRules": [resource], "nonResourceRules": [url]}]})
        };
        let group = json!({"kind": "Group", "group": {"name": "g"}});
        let resource = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]});
        let url = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz/*"]});
        check(rule(group.clone(), resource.clone(), url.clone()), &[]);
        check(
            json!({"matchingPrecedence": 1}),
            &[
                "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1",
                "spec.priorityLevelConfiguration.name: Required value: must reference a priority level",
            ],
        );
        check(
            json!({"priorityLevelConfiguration": level, "distinguisherMethod": {"type": "ByMood"}}),
            &[
                "spec.distinguisherMethod.type: Unsupported value: {\"Type\":\"ByMood\"}: supported values: \"ByNamespace\", \"ByUser\"",
            ],
        );
        check(
            json!({"matchingPrecedence": 10001, "priorityLevelConfiguration": level, "rules": [{}]}),
            &[
                "spec.matchingPrecedence: Invalid value: 10001: must not be greater than 10000",
                "spec.rules[0].subjects: Required value: subjects must contain at least one value",
                "spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty",
            ],
        );
        check(
            rule(
                json!({"kind": "User", "group": {"name": "g"}}),
                json!({"verbs": ["*", "get"], "apiGroups": [], "resources": ["*", "pods"]}),
                json!({"verbs": ["eat"], "nonResourceURLs": ["x", "/*/y"]}),
            ),
            &[
                "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
                "spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
                "spec.rules[0].resourceRules[0].verbs: Invalid value: [\"*\",\"get\"]: if '*' is present, must not specify other verbs",
                "spec.rules[0].resourceRules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "spec.rules[0].resourceRules[0].resources: Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify other resources",
                "spec.rules[0].resourceRules[0].namespaces: Required value: resource rules that are not cluster scoped must supply at least one namespace",
                "spec.rules[0].nonResourceRules[0].verbs: Unsupported value: [\"eat\"]: supported values: \"create\", \"delete\", \"deletecollection\", \"get\", \"list\", \"patch\", \"proxy\", \"update\", \"watch\"",
                "spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"x\": must start with slash",
                "spec.rules[0].nonResourceRules[0].nonResourceURLs[1]: Invalid value: \"/*/y\": wildcard can only do suffix matching",
            ],
        );
    }

    #[test]
    fn bootstrap_objects_are_valid() {
        for row in super::super::bootstrap()["flowSchemas"].items() {
            check_create(
                GROUP,
                "FlowSchema",
                json!({"metadata": {"name": row["name"]}, "spec": row["spec"]}),
                &[],
            );
        }
    }

    #[test]
    fn precedence_and_rows() {
        check_defaults(GROUP, "FlowSchema", json!({}), json!({"spec": {"matchingPrecedence": 1000}}));
        check_cells(
            GROUP,
            "FlowSchema",
            json!({"metadata": {"name": "x", "creationTimestamp": "2024-01-01T00:00:00Z"},
                "spec": {"matchingPrecedence": 7, "distinguisherMethod": {"type": "ByUser"}}}),
            json!(["x", "<none>", 7, "ByUser", "24h", "?"]),
        );
    }
}
