//! The group `rbac.authorization.k8s.io`: roles and who has them. Escalation checks are the API server's.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use crate::cursor::{Cursor, child, default_empty_to, items_mut, same};
use crate::validate::{SelectorValues, label_selector_with, object_name, selector_is_valid};
use crate::{NameRule, Strategy, metadata, printer};

const GROUP: &str = "rbac.authorization.k8s.io";

/// The strategy of Roles (`cluster` false) and ClusterRoles.
pub struct Role {
    /// Whether this is the cluster-scoped kind.
    pub cluster: bool,
}

/// The strategy of RoleBindings (`cluster` false) and ClusterRoleBindings.
pub struct RoleBinding {
    /// Whether this is the cluster-scoped kind.
    pub cluster: bool,
}

fn validate_rule(errs: &mut ErrorList, path: &Path, rule: &Value, cluster: bool) {
    if rule["verbs"].is_empty() {
        errs.push(field::required(&path.child("verbs"), "verbs must contain at least one value"));
    }
    let urls = &rule["nonResourceURLs"];
    if !urls.is_empty() {
        let at = path.child("nonResourceURLs");
        if !cluster {
            errs.push(field::invalid(
                &at,
                urls.clone(),
                "namespaced rules cannot apply to non-resource URLs",
            ));
        }
        if ["apiGroups", "resources", "resourceNames"].iter().any(|k| !rule[*k].is_empty()) {
            errs.push(field::invalid(
                &at,
                urls.clone(),
                "rules cannot apply to both regular resources and non-resource URLs",
            ));
        }
        return;
    }
    if rule["apiGroups"].is_empty() {
        errs.push(field::required(
            &path.child("apiGroups"),
            "resource rules must supply at least one api group",
        ));
    }
    if rule["resources"].is_empty() {
        errs.push(field::required(
            &path.child("resources"),
            "resource rules must supply at least one resource",
        ));
    }
}

impl Role {
    fn validate(&self, obj: &Value, values: SelectorValues) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, !self.cluster, NameRule::PathSegment);
        for (i, rule) in obj["rules"].items().iter().enumerate() {
            validate_rule(&mut errs, &Path::new("rules").index(i), rule, self.cluster);
        }
        let aggregation = &obj["aggregationRule"];
        if self.cluster && aggregation.is_set() {
            let path = Path::new("aggregationRule").child("clusterRoleSelectors");
            let selectors = aggregation["clusterRoleSelectors"].items();
            if selectors.is_empty() {
                errs.push(field::required(
                    &path,
                    "at least one clusterRoleSelector required if aggregationRule is non-nil",
                ));
            }
            for (i, selector) in selectors.iter().enumerate() {
                label_selector_with(&mut errs, &path.index(i), selector, values);
                if !selector_is_valid(selector) {
                    errs.push(field::invalid(&path.index(i), Value::Null, "invalid label selector."));
                }
            }
        }
        errs
    }
}

impl Strategy for Role {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn namespaced(&self) -> bool {
        !self.cluster
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        self.validate(obj, SelectorValues::Checked)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let before = old["aggregationRule"]["clusterRoleSelectors"].items();
        let mut errs = self.validate(obj, SelectorValues::replacing(before));
        errs.extend(metadata::validate_object_meta_update(obj, old));
        errs
    }

    fn cells(&self, obj: &Value, _now: Timestamp) -> Vec<Value> {
        vec![printer::name(obj), printer::created_at(obj)]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

fn validate_subject(errs: &mut ErrorList, path: &Path, subject: &Value, cluster: bool) {
    let (name, group) = (subject["name"].text(), subject["apiGroup"].text());
    if name.is_empty() {
        errs.push(field::required(&path.child("name"), ""));
    }
    match subject["kind"].text() {
        "ServiceAccount" => {
            if !name.is_empty() {
                object_name(errs, &path.child("name"), name, NameRule::DnsSubdomain);
            }
            if !group.is_empty() {
                errs.push(field::not_supported(&path.child("apiGroup"), group, &[""]));
            }
            if cluster && subject["namespace"].text().is_empty() {
                errs.push(field::required(&path.child("namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errs.push(field::not_supported(&path.child("apiGroup"), group, &[GROUP]));
            }
        }
        other => {
            errs.push(field::not_supported(&path.child("kind"), other, &["ServiceAccount", "User", "Group"]))
        }
    }
}

impl Strategy for RoleBinding {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn namespaced(&self) -> bool {
        !self.cluster
    }

    fn defaults(&self, obj: &mut Value) {
        default_empty_to(child(obj, "roleRef"), "apiGroup", GROUP);
        for subject in items_mut(obj, "subjects") {
            if matches!(subject["kind"].text(), "User" | "Group") {
                default_empty_to(subject, "apiGroup", GROUP);
            }
        }
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, !self.cluster, NameRule::PathSegment);
        let role = &obj["roleRef"];
        let path = Path::new("roleRef");
        let (group, kind, name) = (role["apiGroup"].text(), role["kind"].text(), role["name"].text());
        if group != GROUP {
            errs.push(field::not_supported(&path.child("apiGroup"), group, &[GROUP]));
        }
        let kinds: &[&str] = if self.cluster { &["ClusterRole"] } else { &["Role", "ClusterRole"] };
        if !kinds.contains(&kind) {
            errs.push(field::not_supported(&path.child("kind"), kind, kinds));
        }
        if name.is_empty() {
            errs.push(field::required(&path.child("name"), ""));
        } else {
            object_name(&mut errs, &path.child("name"), name, NameRule::PathSegment);
        }
        for (i, subject) in obj["subjects"].items().iter().enumerate() {
            validate_subject(&mut errs, &Path::new("subjects").index(i), subject, self.cluster);
        }
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = self.validate_create(obj);
        errs.extend(metadata::validate_object_meta_update(obj, old));
        if !same(&obj["roleRef"], &old["roleRef"]) {
            errs.push(field::invalid(&Path::new("roleRef"), obj["roleRef"].clone(), "cannot change roleRef"));
        }
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let role = &obj["roleRef"];
        let who = |kind: &str| -> Value {
            let all: Vec<String> = obj["subjects"]
                .items()
                .iter()
                .filter(|s| s["kind"].text() == kind)
                .map(|s| match (kind, s["namespace"].text()) {
                    ("ServiceAccount", ns) if !ns.is_empty() => format!("{ns}/{}", s["name"].text()),
                    _ => s["name"].text().to_owned(),
                })
                .collect();
            all.join(", ").into()
        };
        vec![
            printer::name(obj),
            format!("{}/{}", role["kind"].text(), role["name"].text()).into(),
            printer::age(obj, now),
            who("User"),
            who("Group"),
            who("ServiceAccount"),
        ]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_cells, check_create, check_update};
    use orlop_json::{Value, json};

    #[test]
    fn rules() {
        let with = |rule: Value| json!({"rules": [rule]});
        check_create(super::GROUP, "Role", json!({"metadata": {"name": "system:a"}, "rules": null}), &[]);
        check_create(
            super::GROUP,
            "Role",
            with(json!({"apiGroups": [""], "resources": ["pods"], "verbs": []})),
            &["rules[0].verbs: Required value: verbs must contain at least one value"],
        );
        check_create(
            super::GROUP,
            "ClusterRole",
            with(
                json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"], "nonResourceURLs": ["/x"]}),
            ),
            &[
                "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: rules cannot apply to both regular resources and non-resource URLs",
            ],
        );
        check_create(
            super::GROUP,
            "ClusterRole",
            json!({"aggregationRule": {"clusterRoleSelectors": []}}),
            &[
                "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil",
            ],
        );
        check_create(
            super::GROUP,
            "Role",
            json!({"metadata": {"name": "a/b"}}),
            &["metadata.name: Invalid value: \"a/b\": may not contain '/'"],
        );
    }

    #[test]
    fn bindings() {
        let binding = |name: &str| json!({"roleRef": {"kind": "Role", "name": name}, "subjects": [{"kind": "User", "name": "u"}]});
        check_create(super::GROUP, "RoleBinding", binding("r"), &[]);
        check_create(super::GROUP, "RoleBinding", binding(""), &["roleRef.name: Required value"]);
        check_create(
            super::GROUP,
            "ClusterRoleBinding",
            binding("r"),
            &["roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\""],
        );
        check_update(
            super::GROUP,
            "RoleBinding",
            binding("s"),
            binding("r"),
            &[
                "roleRef: Invalid value: {\"kind\":\"Role\",\"name\":\"s\",\"apiGroup\":\"rbac.authorization.k8s.io\"}: cannot change roleRef",
            ],
        );
    }

    #[test]
    fn rows() {
        check_cells(
            super::GROUP,
            "RoleBinding",
            json!({"metadata": {"name": "b", "creationTimestamp": "2024-01-01T00:00:00Z"}, "roleRef": {"kind": "Role", "name": "r"},
                "subjects": [{"kind": "User", "name": "u"}, {"kind": "User", "name": "v"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]}),
            json!(["b", "Role/r", "24h", "u, v", "", "n/s"]),
        );
    }
}
