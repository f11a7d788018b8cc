//! DaemonSet: one pod of a template on each node that fits.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::{
    not_more_than_100_percent, number, positive_int_or_percent, unknown_strategy, validate_selector_stays,
};
use crate::core::pod::validation::validate_pod_template_spec;
use crate::core::pod_template;
use crate::cursor::{Cursor, child, default_empty_to, default_to, same, set_generation};
use crate::validate::{label_selector, nonnegative, selector_is_empty, selector_is_valid, selector_matches};
use crate::workload::Workload;
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of DaemonSets.
pub struct DaemonSet;

const RULES: Workload = Workload {
    fresh: &["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"],
    pod_spec: "/spec/template/spec",
    counters: &[
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
        "collisionCount",
    ],
    parts: &[],
    ready: "",
};

/// The template's own generation, kept in an annotation since its field went away.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn validate(obj: &Value, old: Option<&Value>) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
    validate_spec(&mut errs, &obj["spec"], old.map(|old| &old["spec"]));
    errs
}

fn validate_spec(errs: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let path = Path::new("spec");
    let (selector, template) = (&spec["selector"], &spec["template"]);
    label_selector(errs, &path.child("selector"), selector);
    let labels = &template["metadata"]["labels"];
    let at = path.child("template");
    if selector_is_valid(selector) && !(selector.is_set() && selector_matches(selector, labels)) {
        errs.push(field::invalid(
            &at.child("metadata").child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        ));
    }
    if selector.is_set() && selector_is_empty(selector) {
        errs.push(field::invalid(
            &path.child("selector"),
            selector.clone(),
            "empty selector is invalid for daemonset",
        ));
    }
    validate_pod_template_spec(errs, &at, template, old.map(|old| &old["template"]));
    pod_template::validate_always_running(errs, &at.child("spec"), &template["spec"], "DaemonSet");
    nonnegative(errs, &path.child("minReadySeconds"), &spec["minReadySeconds"]);
    validate_strategy(errs, &path.child("updateStrategy"), &spec["updateStrategy"]);
    nonnegative(errs, &path.child("revisionHistoryLimit"), &spec["revisionHistoryLimit"]);
}

fn validate_strategy(errs: &mut ErrorList, path: &Path, strategy: &Value) {
    let rolling = &strategy["rollingUpdate"];
    let at = path.child("rollingUpdate");
    match strategy["type"].text() {
        "OnDelete" => {}
        "RollingUpdate" if !rolling.is_set() => errs.push(field::required(&at, "")),
        "RollingUpdate" => {
            let keys = ["maxUnavailable", "maxSurge"];
            for key in keys {
                positive_int_or_percent(errs, &at.child(key), &rolling[key]);
            }
            for key in keys {
                not_more_than_100_percent(errs, &at.child(key), &rolling[key]);
            }
            let (unavailable, surge) =
                (number(&rolling["maxUnavailable"]) != 0, number(&rolling["maxSurge"]) != 0);
            if unavailable && surge {
                errs.push(field::invalid(
                    &at.child("maxSurge"),
                    rolling["maxSurge"].clone(),
                    "may not be set when maxUnavailable is non-zero",
                ));
            } else if !unavailable && !surge {
                errs.push(field::required(&at.child("maxUnavailable"), "cannot be 0 when maxSurge is 0"));
            }
        }
        _ => errs.push(unknown_strategy(path, strategy, &["RollingUpdate", "OnDelete"])),
    }
}

fn template_generation(obj: &Value) -> i64 {
    obj["metadata"]["annotations"][TEMPLATE_GENERATION].text().parse().unwrap_or(0)
}

fn set_template_generation(obj: &mut Value, generation: i64) {
    child(child(obj, "metadata"), "annotations")[TEMPLATE_GENERATION] = generation.to_string().into();
}

impl Strategy for DaemonSet {
    fn defaults(&self, obj: &mut Value) {
        // Upstream writes its internal field, set or not, into every object it shows, so a creator owns the annotation.
        if !obj["metadata"]["annotations"].has(TEMPLATE_GENERATION) {
            set_template_generation(obj, 0);
        }
        let spec = child(obj, "spec");
        pod_template::set_defaults(spec);
        let strategy = child(spec, "updateStrategy");
        default_empty_to(strategy, "type", "RollingUpdate");
        if strategy["type"].text() == "RollingUpdate" {
            let rolling = child(strategy, "rollingUpdate");
            default_to(rolling, "maxUnavailable", 1);
            default_to(rolling, "maxSurge", 0);
        }
        default_to(spec, "revisionHistoryLimit", 10);
    }

    fn internal_annotations(&self) -> &'static [&'static str] {
        &[TEMPLATE_GENERATION]
    }

    fn prepare_create(&self, obj: &mut Value) {
        RULES.prepare_create(obj);
        let generation = template_generation(obj).max(1);
        set_template_generation(obj, generation);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        RULES.keep_status(obj, old);
        let changed = |key: &str| !same(&obj["spec"][key], &old["spec"][key]);
        let template = template_generation(old) + i64::from(changed("template"));
        let spec = !same(&obj["spec"], &old["spec"]);
        set_template_generation(obj, template);
        set_generation(obj, old["metadata"]["generation"].int() + i64::from(spec));
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate(obj, None)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        // Upstream looks at the whole object and again at its update.
        let mut errs = validate(obj, Some(old));
        errs.extend(metadata::validate_object_meta_update(obj, old));
        validate_spec(&mut errs, &obj["spec"], Some(&old["spec"]));
        validate_selector_stays(&mut errs, obj, old);
        errs
    }

    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some_and(|old| template_generation(old) == template_generation(obj)) {
            return Vec::new();
        }
        pod_template::warnings(obj)
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        RULES.validate_status_update(obj, old)
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&obj["spec"], &obj["status"]);
        let template = &spec["template"]["spec"];
        let (containers, images) = printer::containers_and_images(template);
        let mut cells = vec![printer::name(obj)];
        for key in [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
        ] {
            cells.push(status[key].int().into());
        }
        cells.extend([
            printer::format_labels(&template["nodeSelector"]).into(),
            printer::age(obj, now),
            containers.into(),
            images.into(),
            printer::format_label_selector(&spec["selector"]).into(),
        ]);
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_create, check_update};
    use orlop_json::json;

    fn daemon_set(extra: Value) -> Value {
        let mut spec = json!({"selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}});
        for (k, v) in extra.as_object().cloned().unwrap_or_default() {
            spec[k] = v;
        }
        json!({"spec": spec})
    }

    #[test]
    fn validation() {
        check_create("apps", "DaemonSet", daemon_set(json!({})), &[]);
        check_create(
            "apps",
            "DaemonSet",
            daemon_set(
                json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}}}),
            ),
            &[
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
            ],
        );
    }

    #[test]
    fn strategies() {
        let check = |strategy: Value, expected: &[&str]| {
            check_create("apps", "DaemonSet", daemon_set(json!({"updateStrategy": strategy})), expected);
        };
        let rolling = |unavailable: Value, surge: Value| json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}});
        check(rolling(json!(0), json!("10%")), &[]);
        check(
            rolling(json!(1), json!("10%")),
            &[
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: \"10%\": may not be set when maxUnavailable is non-zero",
            ],
        );
        check(
            rolling(json!("101%"), json!(-1)),
            &[
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: -1: must be greater than or equal to 0",
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: -1: may not be set when maxUnavailable is non-zero",
            ],
        );
        check(
            json!({"type": "Foo"}),
            &[
                "spec.updateStrategy: Unsupported value: {\"Type\":\"Foo\",\"RollingUpdate\":null}: supported values: \"RollingUpdate\", \"OnDelete\"",
            ],
        );
    }

    #[test]
    fn an_update_is_looked_at_twice() {
        let negative = "spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0";
        check_update(
            "apps",
            "DaemonSet",
            daemon_set(json!({"minReadySeconds": -1})),
            daemon_set(json!({})),
            &[negative, negative],
        );
        let other = json!({"selector": {"matchLabels": {"app": "y"}},
            "template": {"metadata": {"labels": {"app": "y"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}});
        check_update(
            "apps",
            "DaemonSet",
            daemon_set(other),
            daemon_set(json!({})),
            &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"y\"}}: field is immutable"],
        );
    }

    #[test]
    fn generations() {
        let mut old = daemon_set(json!({}));
        DaemonSet.prepare_create(&mut old);
        assert_eq!(old["metadata"]["annotations"][TEMPLATE_GENERATION], "1");
        let mut new = old.clone();
        new["spec"]["template"]["spec"]["containers"][0]["image"] = "j".into();
        DaemonSet.prepare_update(&mut new, &old);
        assert_eq!(new["metadata"]["generation"], 2);
        assert_eq!(new["metadata"]["annotations"][TEMPLATE_GENERATION], "2");
    }
}
