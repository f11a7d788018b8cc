//! ValidatingWebhookConfiguration and MutatingWebhookConfiguration.

use std::collections::HashSet;

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Value, json};

use super::policy::Expressions;
use super::{client_config, rules, static_suffix_warnings};
use crate::cursor::{Cursor, bump_generation, default_to, items_mut, same, set_generation};
use crate::validate::{SelectorValues, label_selector_with, one_of};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of ValidatingWebhookConfigurations.
pub struct ValidatingWebhookConfiguration;

/// The strategy of MutatingWebhookConfigurations.
pub struct MutatingWebhookConfiguration;

const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const SIDE_EFFECTS: [&str; 4] = ["None", "NoneOnDryRun", "Some", "Unknown"];
const NO_SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];

fn defaults(obj: &mut Value, mutating: bool) {
    for hook in items_mut(obj, "webhooks") {
        default_to(hook, "failurePolicy", "Fail");
        default_to(hook, "matchPolicy", "Equivalent");
        default_to(hook, "namespaceSelector", json!({}));
        default_to(hook, "objectSelector", json!({}));
        default_to(hook, "timeoutSeconds", 10);
        if mutating {
            default_to(hook, "reinvocationPolicy", "Never");
        }
        if let Some(config) = hook.get_mut("clientConfig") {
            client_config::defaults(config);
        }
        rules::default_rules(hook, "rules");
    }
}

/// What an update may keep although it would not be accepted in a new object.
struct Leniency {
    match_conditions: bool,
    side_effects: bool,
    review_versions: bool,
    repeated_names: bool,
    selector_values: SelectorValues,
}

impl Leniency {
    const NONE: Leniency = Leniency {
        match_conditions: false,
        side_effects: false,
        review_versions: false,
        repeated_names: false,
        selector_values: SelectorValues::Checked,
    };

    fn of_update(obj: &Value, old: &Value) -> Leniency {
        let (new, old) = (obj["webhooks"].items(), old["webhooks"].items());
        let mut names = HashSet::new();
        Leniency {
            match_conditions: new.len() == old.len()
                && new.iter().zip(old).all(|(a, b)| same(&a["matchConditions"], &b["matchConditions"])),
            side_effects: !old.iter().all(|h| NO_SIDE_EFFECTS.contains(&h["sideEffects"].text())),
            review_versions: old.iter().any(|hook| {
                let versions = hook["admissionReviewVersions"].texts();
                !versions.is_empty() && !versions.iter().any(|v| REVIEW_VERSIONS.contains(v))
            }),
            repeated_names: !old.iter().all(|hook| names.insert(hook["name"].text())),
            selector_values: SelectorValues::replacing(
                old.iter().flat_map(|hook| [&hook["namespaceSelector"], &hook["objectSelector"]]),
            ),
        }
    }
}

fn validate_name(errs: &mut ErrorList, name: &str, path: &Path) {
    if name.is_empty() {
        errs.push(field::required(path, ""));
        return;
    }
    let wrong = names::is_dns1123_subdomain(name);
    if !wrong.is_empty() {
        errs.push(field::invalid(path, name, wrong.join(",")));
    } else if name.split('.').count() < 3 {
        errs.push(field::invalid(
            path,
            name,
            "should be a domain with at least three segments separated by dots",
        ));
    }
}

fn validate_review_versions(errs: &mut ErrorList, versions: &Value, lenient: bool, path: &Path) {
    let list = versions.texts();
    if list.is_empty() {
        errs.push(field::required(path, &format!("must specify one of {}", REVIEW_VERSIONS.join(", "))));
        return;
    }
    let mut seen = HashSet::new();
    for (i, version) in list.iter().copied().enumerate() {
        if !seen.insert(version) {
            errs.push(field::invalid(&path.index(i), version, "duplicate version"));
            continue;
        }
        for message in names::is_dns1035_label(version) {
            errs.push(field::invalid(&path.index(i), version, message));
        }
    }
    if !lenient && !list.iter().any(|v| REVIEW_VERSIONS.contains(v)) {
        errs.push(field::invalid(
            path,
            versions.clone(),
            format!("must include at least one of {}", REVIEW_VERSIONS.join(", ")),
        ));
    }
}

fn validate_webhook(
    errs: &mut ErrorList,
    hook: &Value,
    mutating: bool,
    lenient: &Leniency,
    expressions: &mut Expressions,
    path: &Path,
) {
    validate_name(errs, hook["name"].text(), &path.child("name"));
    for (i, rule) in hook["rules"].items().iter().enumerate() {
        rules::validate_rule(errs, rule, &path.child("rules").index(i));
    }
    one_of(errs, &path.child("failurePolicy"), &hook["failurePolicy"], &rules::FAILURE_POLICIES);
    one_of(errs, &path.child("matchPolicy"), &hook["matchPolicy"], &rules::MATCH_POLICIES);
    let allowed: &[&str] = if lenient.side_effects { &SIDE_EFFECTS } else { &NO_SIDE_EFFECTS };
    if hook["sideEffects"].is_set() {
        one_of(errs, &path.child("sideEffects"), &hook["sideEffects"], allowed);
    } else {
        let detail = format!("must specify one of {}", allowed.join(", "));
        errs.push(field::required(&path.child("sideEffects"), &detail));
    }
    if hook["timeoutSeconds"].is_set() && !(1..=30).contains(&hook["timeoutSeconds"].int()) {
        errs.push(field::invalid(
            &path.child("timeoutSeconds"),
            hook["timeoutSeconds"].int(),
            "the timeout value must be between 1 and 30 seconds",
        ));
    }
    for key in ["namespaceSelector", "objectSelector"] {
        if hook[key].is_set() {
            label_selector_with(errs, &path.child(key), &hook[key], lenient.selector_values);
        }
    }
    if mutating {
        one_of(
            errs,
            &path.child("reinvocationPolicy"),
            &hook["reinvocationPolicy"],
            &rules::REINVOCATION_POLICIES,
        );
    }
    errs.extend(client_config::validate_client_config(&hook["clientConfig"], &path.child("clientConfig")));
    if !lenient.match_conditions {
        let at = path.child("matchConditions");
        rules::validate_match_conditions(errs, &hook["matchConditions"], expressions, &at);
    }
}

fn validate(obj: &Value, old: Option<&Value>, mutating: bool) -> ErrorList {
    let lenient = old.map_or(Leniency::NONE, |old| Leniency::of_update(obj, old));
    let mut errs = metadata::validate_generic_object_meta(obj, false, NameRule::DnsSubdomain);
    let mut names = HashSet::new();
    let mut expressions = Expressions::stateless(false);
    for (i, hook) in obj["webhooks"].items().iter().enumerate() {
        let path = Path::new("webhooks").index(i);
        validate_webhook(&mut errs, hook, mutating, &lenient, &mut expressions, &path);
        validate_review_versions(
            &mut errs,
            &hook["admissionReviewVersions"],
            lenient.review_versions,
            &path.child("admissionReviewVersions"),
        );
        let name = hook["name"].text();
        if !lenient.repeated_names && !name.is_empty() && !names.insert(name) {
            errs.push(field::duplicate(&path.child("name"), name));
        }
    }
    errs
}

fn cells(obj: &Value, now: Timestamp) -> Vec<Value> {
    vec![printer::name(obj), obj["webhooks"].items().len().into(), printer::age(obj, now)]
}

macro_rules! strategy {
    ($kind:ident, $mutating:literal) => {
        impl Strategy for $kind {
            fn namespaced(&self) -> bool {
                false
            }

            fn defaults(&self, obj: &mut Value) {
                defaults(obj, $mutating);
            }

            fn prepare_create(&self, obj: &mut Value) {
                set_generation(obj, 1);
            }

            fn prepare_update(&self, obj: &mut Value, old: &Value) {
                bump_generation(obj, old, &["webhooks"]);
            }

            fn validate_create(&self, obj: &Value) -> ErrorList {
                validate(obj, None, $mutating)
            }

            fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
                validate(obj, Some(old), $mutating)
            }

            fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
                static_suffix_warnings(obj)
            }

            fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
                cells(obj, now)
            }

            fn allow_unconditional_update(&self) -> bool {
                false
            }
        }
    };
}

strategy!(ValidatingWebhookConfiguration, false);
strategy!(MutatingWebhookConfiguration, true);

#[cfg(test)]
mod tests {
    use crate::testing::{check_cells, check_create, check_defaults, check_update};
    use orlop_json::{Value, json};

    const GROUP: &str = "admissionregistration.k8s.io";

    fn hook(changes: Value) -> Value {
        let mut hook = json!({
            "name": "w.example.com",
            "clientConfig": {"url": "https://127.0.0.1:1/x"},
            "rules": [{"apiGroups": ["g"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["x"]}],
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        });
        for (key, value) in changes.as_object().into_iter().flatten() {
            hook[key] = value.clone();
        }
        hook
    }

    #[test]
    fn validation() {
        let check = |changes: Value, expected: &[&str]| {
            let obj = json!({"webhooks": [hook(changes)]});
            check_create(GROUP, "ValidatingWebhookConfiguration", obj.clone(), expected);
            check_create(GROUP, "MutatingWebhookConfiguration", obj, expected);
        };
        check(json!({}), &[]);
        check(
            json!({"name": "w"}),
            &[
                "webhooks[0].name: Invalid value: \"w\": should be a domain with at least three segments separated by dots",
            ],
        );
        check(
            json!({"failurePolicy": "Foo", "matchPolicy": "Bar"}),
            &[
                "webhooks[0].failurePolicy: Unsupported value: \"Foo\": supported values: \"Fail\", \"Ignore\"",
                "webhooks[0].matchPolicy: Unsupported value: \"Bar\": supported values: \"Equivalent\", \"Exact\"",
            ],
        );
        check(
            json!({"sideEffects": "Some", "timeoutSeconds": 31}),
            &[
                "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            ],
        );
        check(
            json!({"sideEffects": null, "admissionReviewVersions": []}),
            &[
                "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
                "webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1",
            ],
        );
        check(
            json!({"admissionReviewVersions": ["v2", "v2"]}),
            &[
                "webhooks[0].admissionReviewVersions[1]: Invalid value: \"v2\": duplicate version",
                "webhooks[0].admissionReviewVersions: Invalid value: [\"v2\",\"v2\"]: must include at least one of v1, v1beta1",
            ],
        );
        check(
            json!({"clientConfig": {"url": "https://a/b", "service": {"name": "s", "namespace": "n"}}}),
            &["webhooks[0].clientConfig: Required value: exactly one of url or service is required"],
        );
        check(
            json!({"rules": [{"apiGroups": ["*", "g"], "apiVersions": [], "operations": ["*", "READ"], "resources": ["a/*", "a/b", "*", "c"], "scope": "Galaxy"}]}),
            &[
                "webhooks[0].rules[0].operations: Invalid value: [\"*\",\"READ\"]: if '*' is present, must not specify other operations",
                "webhooks[0].rules[0].operations[1]: Unsupported value: \"READ\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\"",
                "webhooks[0].rules[0].apiGroups: Invalid value: [\"*\",\"g\"]: if '*' is present, must not specify other API groups",
                "webhooks[0].rules[0].apiVersions: Required value",
                "webhooks[0].rules[0].resources[1]: Invalid value: \"a/b\": if 'a/*' is present, must not specify a/b",
                "webhooks[0].rules[0].resources: Invalid value: [\"a/*\",\"a/b\",\"*\",\"c\"]: if '*' is present, must not specify other resources without subresources",
                "webhooks[0].rules[0].scope: Unsupported value: \"Galaxy\": supported values: \"*\", \"Cluster\", \"Namespaced\"",
            ],
        );
        check(
            json!({"matchConditions": [{"name": "a", "expression": "true"}, {"name": "a", "expression": " "}, {"expression": "true"}]}),
            &[
                "webhooks[0].matchConditions[1].expression: Required value",
                "webhooks[0].matchConditions[1].name: Duplicate value: \"a\"",
                "webhooks[0].matchConditions[2].name: Required value",
            ],
        );
        check_create(
            GROUP,
            "MutatingWebhookConfiguration",
            json!({"webhooks": [hook(json!({"reinvocationPolicy": "Often"})), hook(json!({}))]}),
            &[
                "webhooks[0].reinvocationPolicy: Unsupported value: \"Often\": supported values: \"IfNeeded\", \"Never\"",
                "webhooks[1].name: Duplicate value: \"w.example.com\"",
            ],
        );
    }

    #[test]
    fn updates_may_keep_what_was() {
        let old =
            json!({"webhooks": [hook(json!({"sideEffects": "Unknown", "admissionReviewVersions": ["v0"]}))]});
        check_update(GROUP, "ValidatingWebhookConfiguration", old.clone(), old, &[]);
    }

    #[test]
    fn defaults_and_cells() {
        check_defaults(
            GROUP,
            "MutatingWebhookConfiguration",
            json!({"webhooks": [{"name": "w", "clientConfig": {"service": {"name": "s", "namespace": "n"}}, "rules": [{}]}]}),
            json!({"webhooks": [{
                "name": "w", "clientConfig": {"service": {"name": "s", "namespace": "n", "port": 443}},
                "rules": [{"scope": "*"}], "failurePolicy": "Fail", "matchPolicy": "Equivalent",
                "namespaceSelector": {}, "objectSelector": {}, "timeoutSeconds": 10, "reinvocationPolicy": "Never",
            }]}),
        );
        check_cells(
            GROUP,
            "ValidatingWebhookConfiguration",
            json!({"metadata": {"name": "x", "creationTimestamp": "2024-01-01T00:00:00Z"}, "webhooks": [{}, {}]}),
            json!(["x", 2, "24h"]),
        );
    }
}
