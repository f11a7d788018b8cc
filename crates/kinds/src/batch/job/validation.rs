//! Upstream's `ValidateJob`, `ValidateJobUpdate` and what they call.

use orlop_api::field::{self, ErrorList, Path};
use serde_json::Value;

use crate::NameRule;
use crate::core::pod::validation::validate_pod_template_spec;
use crate::cursor::{Cursor, child, keep_field, same};
use crate::metadata;
use crate::networking::ingressclass::domain_prefixed_path;
use crate::validate::{
    label_selector, nonnegative, one_of, qualified_name, require_one_of, selector_is_valid, selector_matches,
};

const MAX_INDEXES: i64 = 100_000;
const MAX_RULES: usize = 20;

pub(super) fn validate_job(obj: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
    validate_spec(&mut errs, &obj["spec"]);
    errs
}

fn validate_spec(errs: &mut ErrorList, spec: &Value) {
    let path = Path::new("spec");
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        nonnegative(errs, &path.child(key), &spec[key]);
    }
    let manager = &spec["managedBy"];
    if manager.is_set() {
        let at = path.child("managedBy");
        domain_prefixed_path(errs, &at, manager.text());
        if manager.text().len() > 63 {
            errs.push(field::too_long(&at, 63));
        }
    }
    validate_indexes(errs, &path, spec);
    if spec["podFailurePolicy"].is_set() {
        validate_pod_failure_policy(errs, &path.child("podFailurePolicy"), spec);
    }
    if spec["successPolicy"].is_set() {
        validate_success_policy(errs, &path.child("successPolicy"), spec);
    }
    let replacement = &spec["podReplacementPolicy"];
    if replacement.is_set() {
        let valid: &[&str] =
            if spec["podFailurePolicy"].is_set() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        one_of(errs, &path.child("podReplacementPolicy"), replacement, valid);
    }
    let template = &spec["template"];
    let at = path.child("template");
    validate_pod_template_spec(errs, &at, template);
    let policy = template["spec"]["restartPolicy"].text();
    let restart = at.child("spec").child("restartPolicy");
    match policy {
        "" | "Always" => errs.push(field::required(&restart, "valid values: \"OnFailure\", \"Never\"")),
        "OnFailure" | "Never" => {}
        other => errs.push(field::not_supported(&restart, other, &["OnFailure", "Never"])),
    }
    if spec["podFailurePolicy"].is_set() && policy != "Never" {
        errs.push(field::invalid(
            &restart,
            policy,
            "only \"Never\" is supported when podFailurePolicy is specified",
        ));
    }
    let selector = &spec["selector"];
    if selector.is_set() {
        label_selector(errs, &path.child("selector"), selector);
    } else {
        errs.push(field::required(&path.child("selector"), ""));
    }
    let labels = &template["metadata"]["labels"];
    if selector_is_valid(selector) && !(selector.is_set() && selector_matches(selector, labels)) {
        errs.push(field::invalid(
            &at.child("metadata").child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        ));
    }
}

fn validate_indexes(errs: &mut ErrorList, path: &Path, spec: &Value) {
    let mode = &spec["completionMode"];
    one_of(errs, &path.child("completionMode"), mode, &["NonIndexed", "Indexed"]);
    let (completions, parallelism) = (&spec["completions"], &spec["parallelism"]);
    let (per_index, most_failed) = (&spec["backoffLimitPerIndex"], &spec["maxFailedIndexes"]);
    if mode.text() != "Indexed" {
        for key in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if spec[key].is_set() {
                errs.push(field::invalid(
                    &path.child(key),
                    spec[key].int(),
                    "requires indexed completion mode",
                ));
            }
        }
        return;
    }
    if !completions.is_set() {
        errs.push(field::required(&path.child("completions"), "when completion mode is Indexed"));
    }
    if parallelism.int() > MAX_INDEXES {
        errs.push(field::invalid(
            &path.child("parallelism"),
            parallelism.int(),
            format!("must be less than or equal to {MAX_INDEXES} when completion mode is Indexed"),
        ));
    }
    if most_failed.is_set() {
        let at = path.child("maxFailedIndexes");
        if completions.is_set() && most_failed.int() > completions.int() {
            errs.push(field::invalid(&at, most_failed.int(), "must be less than or equal to completions"));
        }
        if !per_index.is_set() {
            errs.push(field::required(
                &path.child("backoffLimitPerIndex"),
                "when maxFailedIndexes is specified",
            ));
        }
    }
}

fn validate_pod_failure_policy(errs: &mut ErrorList, path: &Path, spec: &Value) {
    let rules = spec["podFailurePolicy"]["rules"].items();
    let path = path.child("rules");
    if rules.len() > MAX_RULES {
        errs.push(field::too_many(&path, rules.len(), MAX_RULES));
    }
    let pod = &spec["template"]["spec"];
    let containers: Vec<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| pod[*list].items())
        .map(|c| c["name"].text())
        .collect();
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        let action = rule["action"].text();
        let at = path.child("action");
        match action {
            "" => errs
                .push(field::required(&at, "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]")),
            "FailIndex" if !spec["backoffLimitPerIndex"].is_set() => {
                errs.push(field::invalid(&at, action, "requires the backoffLimitPerIndex to be set"))
            }
            "Count" | "FailIndex" | "FailJob" | "Ignore" => {}
            other => {
                errs.push(field::not_supported(&at, other, &["Count", "FailIndex", "FailJob", "Ignore"]))
            }
        }
        let (codes, conditions) = (&rule["onExitCodes"], rule["onPodConditions"].items());
        if codes.is_set() {
            validate_exit_codes(errs, &path.child("onExitCodes"), codes, &containers);
        }
        validate_pod_conditions(errs, &path.child("onPodConditions"), conditions);
        if codes.is_set() && !conditions.is_empty() {
            errs.push(field::invalid_omitted(
                &path,
                "specifying both OnExitCodes and OnPodConditions is not supported",
            ));
        }
        if !codes.is_set() && conditions.is_empty() {
            errs.push(field::invalid_omitted(
                &path,
                "specifying one of OnExitCodes and OnPodConditions is required",
            ));
        }
    }
}

fn validate_exit_codes(errs: &mut ErrorList, path: &Path, codes: &Value, containers: &[&str]) {
    let operator = codes["operator"].text();
    require_one_of(errs, &path.child("operator"), operator, &["In", "NotIn"]);
    let container = &codes["containerName"];
    if container.is_set() && !containers.contains(&container.text()) {
        errs.push(field::invalid(
            &path.child("containerName"),
            container.text(),
            "must be one of the container or initContainer names in the pod template",
        ));
    }
    let at = path.child("values");
    let values: Vec<i64> = codes["values"].items().iter().map(Cursor::int).collect();
    if values.is_empty() {
        errs.push(field::invalid(&at, codes["values"].clone(), "at least one value is required"));
    } else if values.len() > 255 {
        errs.push(field::too_many(&at, values.len(), 255));
    }
    for (i, code) in values.iter().enumerate() {
        if operator == "In" && *code == 0 {
            errs.push(field::invalid(&at.index(i), *code, "must not be 0 for the In operator"));
        }
        if values[..i].contains(code) {
            errs.push(field::duplicate(&at.index(i), *code));
        }
    }
    if !values.is_sorted() {
        errs.push(field::invalid(&at, codes["values"].clone(), "must be ordered"));
    }
}

fn validate_pod_conditions(errs: &mut ErrorList, path: &Path, conditions: &[Value]) {
    if conditions.len() > MAX_RULES {
        errs.push(field::too_many(path, conditions.len(), MAX_RULES));
    }
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.index(i);
        qualified_name(errs, &path.child("type"), condition["type"].text());
        let status = condition["status"].text();
        let at = path.child("status");
        if status.is_empty() {
            errs.push(field::required(&at, "valid values: [\"False\" \"True\" \"Unknown\"]"));
        } else {
            require_one_of(errs, &at, status, &["False", "True", "Unknown"]);
        }
    }
}

/// Ranges such as `1,3-5` in ascending order; the highest index, or what is wrong.
fn parse_indexes(text: &str) -> Result<i64, String> {
    let mut last = -1;
    for part in text.split(',') {
        let (first, end) = part.split_once('-').unwrap_or((part, part));
        let number = |s: &str| {
            s.parse::<i64>().map_err(|_| {
                format!("cannot convert string to integer for index: {}", orlop_api::field::go_quote(s))
            })
        };
        let (first, end) = (number(first)?, number(end)?);
        if first <= last {
            return Err(format!("non-increasing order, previous: {last}, current: {first}"));
        }
        if end < first {
            return Err(format!("non-increasing order, previous: {first}, current: {end}"));
        }
        last = end;
    }
    Ok(last)
}

fn validate_success_policy(errs: &mut ErrorList, path: &Path, spec: &Value) {
    if spec["completionMode"].text() != "Indexed" {
        errs.push(field::invalid(path, spec["successPolicy"].clone(), "requires indexed completion mode"));
    }
    let rules = spec["successPolicy"]["rules"].items();
    let path = path.child("rules");
    if rules.is_empty() {
        errs.push(field::required(
            &path,
            "at least one rules must be specified when the successPolicy is specified",
        ));
    }
    if rules.len() > MAX_RULES {
        errs.push(field::too_many(&path, rules.len(), MAX_RULES));
    }
    let completions = spec["completions"].int();
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        let (count, indexes) = (&rule["succeededCount"], &rule["succeededIndexes"]);
        if !count.is_set() && !indexes.is_set() {
            errs.push(field::required(
                &path,
                "at least one of succeededCount or succeededIndexes must be specified",
            ));
        }
        if indexes.is_set() {
            let at = path.child("succeededIndexes");
            match parse_indexes(indexes.text()) {
                Err(why) => errs.push(field::invalid(
                    &at,
                    indexes.text(),
                    format!("error parsing succeededIndexes: {why}"),
                )),
                Ok(highest) if highest >= completions => {
                    errs.push(field::invalid(&at, indexes.text(), "too large index"))
                }
                Ok(_) => {}
            }
        }
        if count.is_set() {
            let at = path.child("succeededCount");
            nonnegative(errs, &at, count);
            if count.int() > completions {
                errs.push(field::invalid(
                    &at,
                    count.int(),
                    format!(
                        "must be less than or equal to {completions} (the number of specified completions)"
                    ),
                ));
            }
        }
    }
}

pub(super) fn validate_job_update(obj: &Value, old: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta_update(obj, old);
    let (spec, was) = (&obj["spec"], &old["spec"]);
    let path = Path::new("spec");
    validate_spec(&mut errs, spec);
    let at = path.child("completions");
    if spec["completionMode"].text() != "Indexed" {
        errs.extend(metadata::validate_immutable(&spec["completions"], &was["completions"], &at));
    } else if !same(&spec["completions"], &was["completions"]) && spec["completions"] != spec["parallelism"] {
        errs.push(field::invalid(
            &at,
            spec["completions"].clone(),
            "can only be modified in tandem with spec.parallelism",
        ));
    }
    let mut fixed = |key: &str, new: &Value| {
        errs.extend(metadata::validate_immutable(new, &was[key], &path.child(key)));
    };
    fixed("selector", &spec["selector"]);
    let mut template = spec["template"].clone();
    // A suspended job that has not started may still be told where to run.
    if was["suspend"].flag() && !old["status"].has("startTime") {
        let before = &was["template"];
        for key in ["nodeSelector", "tolerations", "schedulingGates"] {
            keep_field(child(&mut template, "spec"), &before["spec"], key);
        }
        let affinity = &before["spec"]["affinity"];
        if template["spec"]["affinity"].is_set() || affinity.is_set() {
            let now = child(child(&mut template, "spec"), "affinity");
            keep_field(now, affinity, "nodeAffinity");
        }
        for key in ["labels", "annotations"] {
            keep_field(child(&mut template, "metadata"), &before["metadata"], key);
        }
    }
    fixed("template", &template);
    for key in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        fixed(key, &spec[key]);
    }
    errs
}

pub(super) fn validate_status(errs: &mut ErrorList, status: &Value) {
    let path = Path::new("status");
    for key in ["active", "succeeded", "failed", "ready", "terminating"] {
        nonnegative(errs, &path.child(key), &status[key]);
    }
    let active = status["active"].int();
    if status["ready"].int() > active {
        errs.push(field::invalid(
            &path.child("ready"),
            status["ready"].int(),
            "cannot set more ready pods than active",
        ));
    }
}
