//! LimitRange: bounds and defaults for the resources of single pods, containers and claims.

use jiff::Timestamp;
use orlop_api::Quantity;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Key, Value};

use super::pod::defaults::round_quantities;
use super::pod::resources::{
    is_overcommit_allowed, quantity, validate_container_resource_name, validate_resource_name,
};
use crate::cursor::{Cursor, child, items_mut};
use crate::validate::qualified_name;
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of LimitRanges.
pub struct LimitRange;

const LISTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

/// Copies entries that `to` misses.
fn fill(item: &mut Value, from: &str, to: &str) {
    let missing: Vec<(Key, Value)> = item[from]
        .entries()
        .filter(|(key, _)| !item[to].has(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for (key, value) in missing {
        child(item, to)[key.as_str()] = value;
    }
}

fn validate_item(errs: &mut ErrorList, path: &Path, item: &Value) {
    let kind = item["type"].text();
    let mut names: Vec<&Key> = Vec::new();
    for list in LISTS {
        if kind == "Pod" && list.starts_with("default") {
            if !item[list].is_empty() {
                errs.push(field::forbidden(&path.child(list), "may not be specified when `type` is 'Pod'"));
            }
            continue;
        }
        if list == "maxLimitRequestRatio"
            && kind == "PersistentVolumeClaim"
            && !item["min"].has("storage")
            && !item["max"].has("storage")
        {
            errs.push(field::required(
                &path.child("limits"),
                "either minimum or maximum storage value is required, but neither was provided",
            ));
        }
        for (name, _) in item[list].entries() {
            let at = path.child(list).key(name);
            if matches!(kind, "Pod" | "Container") {
                validate_container_resource_name(errs, &at, name);
            } else {
                validate_resource_name(errs, &at, name);
            }
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    for name in names {
        validate_bounds(errs, path, item, name);
    }
}

fn validate_bounds(errs: &mut ErrorList, path: &Path, item: &Value, name: &str) {
    let get = |list: &str| item[list].has(name).then(|| quantity(&item[list][name]));
    let [max, min, default, request, ratio] = LISTS.map(get);
    let mut bad = |list: &str, value: Quantity, why: String| {
        errs.push(field::invalid(&path.child(list).key(name), value.to_string(), why));
    };
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        bad("min", min, format!("min value {min} is greater than max value {max}"));
    }
    if let Some(request) = request {
        if let Some(min) = min.filter(|min| *min > request) {
            let why = format!("min value {min} is greater than default request value {request}");
            bad("defaultRequest", request, why);
        }
        if let Some(max) = max.filter(|max| request > *max) {
            let why = format!("default request value {request} is greater than max value {max}");
            bad("defaultRequest", request, why);
        }
        if let Some(default) = default.filter(|default| request > *default) {
            let why =
                format!("default request value {request} is greater than default limit value {default}");
            bad("defaultRequest", request, why);
        }
    }
    if let Some(default) = default {
        // Upstream shows the bound here, not the default.
        if let Some(min) = min.filter(|min| *min > default) {
            bad("default", min, format!("min value {min} is greater than default value {default}"));
        }
        if let Some(max) = max.filter(|max| default > *max) {
            bad("default", max, format!("default value {default} is greater than max value {max}"));
        }
    }
    if let Some(ratio) = ratio {
        if ratio.milli_value() < 1000 {
            bad("maxLimitRequestRatio", ratio, format!("ratio {ratio} is less than 1"));
        }
        if let (Some(min), Some(max)) = (min, max) {
            let most = max.as_f64() / min.as_f64();
            if ratio.as_f64() > most {
                bad(
                    "maxLimitRequestRatio",
                    ratio,
                    format!("ratio {ratio} is greater than max/min = {most:.6}"),
                );
            }
        }
    }
    if let (Some(default), Some(request)) = (default, request)
        && !is_overcommit_allowed(name)
        && default != request
    {
        let why = format!("default value {default} must equal to defaultRequest value {request} in {name}");
        bad("defaultRequest", request, why);
    }
}

impl Strategy for LimitRange {
    fn defaults(&self, obj: &mut Value) {
        for item in items_mut(child(obj, "spec"), "limits") {
            for list in LISTS {
                if let Some(list) = item.get_mut(list) {
                    round_quantities(list);
                }
            }
            if item["type"].text() == "Container" {
                fill(item, "max", "default");
                fill(item, "default", "defaultRequest");
                fill(item, "min", "defaultRequest");
            }
        }
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
        let limits = obj["spec"]["limits"].items();
        for (i, item) in limits.iter().enumerate() {
            let path = Path::new("spec").child("limits").index(i);
            let kind = item["type"].text();
            let before = errs.len();
            qualified_name(&mut errs, &path.child("type"), kind);
            let standard = matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim");
            if errs.len() == before && !kind.contains('/') && !standard {
                errs.push(field::invalid(
                    &path.child("type"),
                    kind,
                    "must be a standard limit type or fully qualified",
                ));
            }
            if limits[..i].iter().any(|l| l["type"].text() == kind) {
                errs.push(field::duplicate(&path.child("type"), kind));
            }
            validate_item(&mut errs, &path, item);
        }
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        errs.extend(self.validate_create(obj));
        errs
    }

    fn cells(&self, obj: &Value, _now: Timestamp) -> Vec<Value> {
        vec![printer::name(obj), printer::created_at(obj)]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_create, check_defaults};
    use orlop_json::{Value, json};

    #[test]
    fn containers_get_defaults() {
        check_defaults(
            "",
            "LimitRange",
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}}]}}),
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "default": {"cpu": "2"}, "defaultRequest": {"cpu": "2"}}]}}),
        );
    }

    #[test]
    fn bounds() {
        let check = |limits: Value, expected: &[&str]| {
            check_create("", "LimitRange", json!({"spec": {"limits": limits}}), expected)
        };
        check(
            json!([{"type": "Container", "default": {"cpu": "2"}, "max": {"cpu": "1"}}]),
            &[
                "spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than max value 1",
                "spec.limits[0].default[cpu]: Invalid value: \"1\": default value 2 is greater than max value 1",
            ],
        );
        check(
            json!([{"type": "Container"}, {"type": "Container"}]),
            &["spec.limits[1].type: Duplicate value: \"Container\""],
        );
        check(
            json!([{"type": "Container", "maxLimitRequestRatio": {"cpu": "500m"}}]),
            &["spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1"],
        );
    }
}
