//! Upstream's `ValidateJob`, `ValidateJobUpdate` and what they call.

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Map, Value, json};

use crate::NameRule;
use crate::core::pod::tolerated::Tolerated;
use crate::core::pod::validation::validate_pod_template_spec;
use crate::cursor::{Cursor, child, items_mut, keep_field, remove, same};
use crate::metadata;
use crate::networking::ingressclass::domain_prefixed_path;
use crate::validate::{
    SelectorValues, label_selector_with, nonnegative, one_of, qualified_name, require_one_of,
    selector_is_valid, selector_matches,
};

const MAX_INDEXES: i64 = 100_000;
/// Above [`MAX_INDEXES`] completions with a backoff limit per index, less is allowed of the rest.
const MANY_INDEXES: i64 = 10_000;
const MAX_RULES: usize = 20;
/// Bytes of a text of indexes.
const MAX_INDEXES_TEXT: usize = 64 * 1024;

pub(super) fn validate_job(obj: &Value) -> ErrorList {
    validate_as_new(obj, None, true)
}

fn validate_as_new(obj: &Value, old: Option<&Value>, prefixed_labels: bool) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
    validate_generated_selector(&mut errs, obj, prefixed_labels);
    validate_spec(&mut errs, &obj["spec"], old.map(|old| &old["spec"]));
    validate_host_names(&mut errs, obj);
    errs
}

/// The selector and labels that the system makes are what they should be: `ValidateGeneratedSelector`.
fn validate_generated_selector(errs: &mut ErrorList, obj: &Value, prefixed: bool) {
    let spec = &obj["spec"];
    if spec["manualSelector"].flag() || !spec["selector"].is_set() {
        return;
    }
    let (uid, name) = (obj["metadata"]["uid"].text(), obj["metadata"]["name"].text());
    if uid.is_empty() {
        errs.push(field::required(&Path::new("metadata").child("uid"), ""));
    }
    let expected = [
        ("controller-uid", uid),
        ("job-name", name),
        ("batch.kubernetes.io/controller-uid", uid),
        ("batch.kubernetes.io/job-name", name),
    ];
    let expected = if prefixed { &expected[..] } else { &expected[..2] };
    let labels = &spec["template"]["metadata"]["labels"];
    let path = Path::new("spec").child("template").child("metadata").child("labels");
    for (key, value) in expected {
        if !labels.has(key) {
            errs.push(field::required(&path.key(key), &format!("must be '{value}'")));
        } else if labels[*key].text() != *value {
            errs.push(field::invalid(&path.key(key), labels.clone(), format!("must be '{value}'")));
        }
    }
    let expected: Map = expected.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let selector = &spec["selector"];
    if selector_is_valid(selector) && !selector_matches(selector, &expected.into()) {
        errs.push(field::invalid(
            &Path::new("spec").child("selector"),
            selector.clone(),
            "`selector` not auto-generated",
        ));
    }
}

/// The pods of an indexed job are hosts named after their index.
fn validate_host_names(errs: &mut ErrorList, obj: &Value) {
    let (spec, name) = (&obj["spec"], obj["metadata"]["name"].text());
    let completions = spec["completions"].int();
    if spec["completionMode"].text() != "Indexed" || completions <= 0 {
        return;
    }
    let host = format!("{name}-{}", completions - 1);
    if !names::is_dns1123_label(&host).is_empty() {
        errs.push(field::invalid(
            &Path::new("metadata").child("name"),
            name,
            format!("will not able to create pod with invalid DNS label: {host}"),
        ));
    }
}

/// `spec` of a job with the selector that ties it to its pods.
fn validate_spec(errs: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let path = Path::new("spec");
    validate_job_spec(errs, &path, spec, old);
    let selector = &spec["selector"];
    if selector.is_set() {
        let values = match Tolerated::replacing_template(old.map(|old| &old["template"])).selector_values {
            SelectorValues::Checked => SelectorValues::replacing(old.map(|old| &old["selector"])),
            SelectorValues::Any => SelectorValues::Any,
        };
        label_selector_with(errs, &path.child("selector"), selector, values);
    } else {
        errs.push(field::required(&path.child("selector"), ""));
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if selector_is_valid(selector) && !(selector.is_set() && selector_matches(selector, labels)) {
        errs.push(field::invalid(
            &path.child("template").child("metadata").child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        ));
    }
}

/// A job's spec but for its selector, in a job or in a template of one.
pub(crate) fn validate_job_spec(errs: &mut ErrorList, path: &Path, spec: &Value, old: Option<&Value>) {
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
    if spec["maxFailedIndexes"].is_set() && !spec["backoffLimitPerIndex"].is_set() {
        errs.push(field::required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified"));
    }
    let manager = &spec["managedBy"];
    if manager.is_set() {
        let at = path.child("managedBy");
        domain_prefixed_path(errs, &at, manager.text());
        if manager.text().len() > 63 {
            errs.push(field::too_long(&at, 63));
        }
    }
    validate_indexed(errs, path, spec);
    if spec["podFailurePolicy"].is_set() {
        validate_pod_failure_policy(errs, &path.child("podFailurePolicy"), spec);
    }
    if spec["successPolicy"].is_set() {
        let at = path.child("successPolicy");
        if spec["completionMode"].text() == "Indexed" {
            validate_success_policy(errs, &at, spec);
        } else {
            let policy = spec["successPolicy"].clone();
            errs.push(field::invalid(&at, policy, "requires indexed completion mode"));
        }
    }
    let replacement = &spec["podReplacementPolicy"];
    if replacement.is_set() {
        let valid: &[&str] =
            if spec["podFailurePolicy"].is_set() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        one_of(errs, &path.child("podReplacementPolicy"), replacement, valid);
    }
    let template = &spec["template"];
    let at = path.child("template");
    validate_pod_template_spec(errs, &at, template, old.map(|old| &old["template"]));
    let policy = template["spec"]["restartPolicy"].text();
    let restart = at.child("spec").child("restartPolicy");
    match policy {
        "" | "Always" => errs.push(field::required(&restart, "valid values: \"OnFailure\", \"Never\"")),
        "Never" => {}
        "OnFailure" if spec["podFailurePolicy"].is_set() => errs.push(field::invalid(
            &restart,
            policy,
            "only \"Never\" is supported when podFailurePolicy is specified",
        )),
        "OnFailure" => {}
        other => errs.push(field::not_supported(&restart, other, &["OnFailure", "Never"])),
    }
}

/// What the completion mode asks for and forbids.
fn validate_indexed(errs: &mut ErrorList, path: &Path, spec: &Value) {
    let mode = &spec["completionMode"];
    one_of(errs, &path.child("completionMode"), mode, &["NonIndexed", "Indexed"]);
    let (completions, parallelism) = (&spec["completions"], spec["parallelism"].int());
    let (per_index, most_failed) = (&spec["backoffLimitPerIndex"], &spec["maxFailedIndexes"]);
    let at = |key: &str| path.child(key);
    if !mode.is_set() || mode.text() == "NonIndexed" {
        for key in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if spec[key].is_set() {
                errs.push(field::invalid(&at(key), spec[key].int(), "requires indexed completion mode"));
            }
        }
    }
    if mode.text() != "Indexed" {
        return;
    }
    if !completions.is_set() {
        errs.push(field::required(&at("completions"), "when completion mode is Indexed"));
    }
    if parallelism > MAX_INDEXES {
        errs.push(field::invalid(
            &at("parallelism"),
            parallelism,
            format!("must be less than or equal to {MAX_INDEXES} when completion mode is Indexed"),
        ));
    }
    if most_failed.is_set() && completions.is_set() && most_failed.int() > completions.int() {
        errs.push(field::invalid(
            &at("maxFailedIndexes"),
            most_failed.int(),
            "must be less than or equal to completions",
        ));
    }
    if most_failed.int() > MAX_INDEXES {
        errs.push(field::invalid(
            &at("maxFailedIndexes"),
            most_failed.int(),
            format!("must be less than or equal to {MAX_INDEXES}"),
        ));
    }
    if completions.int() <= MAX_INDEXES || !per_index.is_set() {
        return;
    }
    if !most_failed.is_set() {
        errs.push(field::required(
            &at("maxFailedIndexes"),
            &format!("must be specified when completions is above {MAX_INDEXES}"),
        ));
    }
    for (key, value) in [("parallelism", parallelism), ("maxFailedIndexes", most_failed.int())] {
        if value > MANY_INDEXES {
            errs.push(field::invalid(
                &at(key),
                value,
                format!(
                    "must be less than or equal to {MANY_INDEXES} when completions are above {MAX_INDEXES} and used with backoff limit per index"
                ),
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
    let at = path.child("operator");
    match operator {
        "" => errs.push(field::required(&at, "valid values: [\"In\" \"NotIn\"]")),
        "In" | "NotIn" => {}
        other => errs.push(field::not_supported(&at, other, &["In", "NotIn"])),
    }
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

fn validate_success_policy(errs: &mut ErrorList, path: &Path, spec: &Value) {
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
        let mut total = 0;
        if indexes.is_set() {
            let at = path.child("succeededIndexes");
            if indexes.text().len() > MAX_INDEXES_TEXT {
                errs.push(field::too_long(&at, MAX_INDEXES_TEXT));
            }
            match super::indexes::parse(indexes.text(), completions) {
                Err(why) => errs.push(field::invalid(
                    &at,
                    indexes.text(),
                    format!("error parsing succeededIndexes: {why}"),
                )),
                Ok(count) => total = count,
            }
        }
        if count.is_set() {
            let (at, count) = (path.child("succeededCount"), count.int());
            nonnegative(errs, &at, &rule["succeededCount"]);
            let mut at_most = |limit: i64, what: &str| {
                if count > limit {
                    let message = format!("must be less than or equal to {limit} (the number of {what})");
                    errs.push(field::invalid(&at, count, message));
                }
            };
            at_most(completions, "specified completions");
            if indexes.is_set() {
                at_most(total, "indexes in the specified succeededIndexes field");
            }
        }
    }
}

pub(super) fn validate_job_update(obj: &Value, old: &Value) -> ErrorList {
    let (spec, was) = (&obj["spec"], &old["spec"]);
    // Jobs from before the prefixed labels do without them.
    let labels = &was["template"]["metadata"]["labels"];
    let prefixed =
        labels.has("batch.kubernetes.io/job-name") && labels.has("batch.kubernetes.io/controller-uid");
    let mut errs = validate_as_new(obj, Some(old), prefixed);
    errs.extend(metadata::validate_object_meta_update(obj, old));
    let path = Path::new("spec");
    validate_spec(&mut errs, spec, Some(was));
    validate_completions(&mut errs, &path.child("completions"), spec, was);
    let mut fixed = |key: &str, new: &Value| {
        errs.extend(metadata::validate_immutable(new, &was[key], &path.child(key)));
    };
    fixed("selector", &spec["selector"]);
    fixed("template", &template_but_for_mutable_parts(obj, old));
    for key in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        fixed(key, &spec[key]);
    }
    errs
}

/// An indexed job may be scaled: completions and parallelism together.
fn validate_completions(errs: &mut ErrorList, path: &Path, spec: &Value, was: &Value) {
    if spec["completionMode"].text() != "Indexed" {
        errs.extend(metadata::validate_immutable(&spec["completions"], &was["completions"], path));
    } else if spec["completions"].is_set()
        && !same(&spec["completions"], &was["completions"])
        && spec["completions"] != spec["parallelism"]
    {
        errs.push(field::invalid(
            path,
            spec["completions"].clone(),
            "can only be modified in tandem with spec.parallelism",
        ));
    }
}

/// Whether nothing runs for a job that is suspended, so that its pods may still be changed: it has not started yet, or
/// the controller says that it let go of them.
fn is_at_rest(job: &Value) -> bool {
    let status = &job["status"];
    let held = !status.has("startTime") || super::has_condition(job, "Suspended");
    job["spec"]["suspend"].flag() && status["active"].int() == 0 && held
}

/// The template as it must not differ from the old one: what a job at rest may still be told is taken from there.
fn template_but_for_mutable_parts(obj: &Value, old: &Value) -> Value {
    let mut template = obj["spec"]["template"].clone();
    if !is_at_rest(old) {
        return template;
    }
    let before = &old["spec"]["template"];
    for key in ["labels", "annotations"] {
        keep_field(child(&mut template, "metadata"), &before["metadata"], key);
    }
    let spec = child(&mut template, "spec");
    for key in ["nodeSelector", "tolerations", "schedulingGates"] {
        keep_field(spec, &before["spec"], key);
    }
    keep_node_affinity(spec, &before["spec"]["affinity"]);
    for list in ["containers", "initContainers"] {
        let olds = before["spec"][list].items();
        for (container, old) in items_mut(spec, list).zip(olds) {
            keep_field(container, old, "resources");
        }
    }
    template
}

/// The node affinity of `spec` becomes the old one; an affinity that held nothing else comes and goes with it.
fn keep_node_affinity(spec: &mut Value, before: &Value) {
    let others = |affinity: &Value| affinity.entries().any(|(k, v)| k != "nodeAffinity" && v.is_set());
    if !spec["affinity"].is_set() && !others(before) {
        keep_field(spec, &json!({"affinity": before}), "affinity");
    } else if spec["affinity"].is_set() {
        if !before.is_set() && !others(&spec["affinity"]) {
            remove(spec, "affinity");
        } else {
            keep_field(child(spec, "affinity"), before, "nodeAffinity");
        }
    }
}
