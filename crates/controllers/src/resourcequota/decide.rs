//! What a quota's status should say. Answers to upstream's `CalculateUsage` and `syncResourceQuota`.

use jiff::Timestamp;
use orlop_json::{Value, json};
use orlop_kinds::quota::{self, Evaluator, ResourceList};

/// What there is of one resource in the quota's namespace.
pub(super) enum Objects {
    /// The objects, for those that are measured one by one.
    Each(Vec<Value>),
    /// How many, for those that are only counted.
    Count(usize),
}

/// The new `status` of a quota, or `None` when the present one is right. `resources` is asked for those that the quota
/// is about only.
pub(super) fn status(
    quota: &Value,
    resources: impl Iterator<Item = (Evaluator, impl FnOnce() -> Objects)>,
    now: Timestamp,
) -> Option<Value> {
    let hard = quota::resource_list(&quota["spec"]["hard"]);
    // The evaluators look at the status for what is limited.
    let mut limited = quota.clone();
    limited["status"] = json!({"hard": quota::to_value(&hard)});
    let before = quota::resource_list(&quota["status"]["used"]);
    let mut used: ResourceList = before
        .iter()
        .filter(|(name, _)| hard.contains_key(*name))
        .map(|(name, value)| (name.clone(), *value))
        .collect();
    for (evaluator, objects) in resources {
        let names: Vec<_> = hard.keys().filter(|name| evaluator.matches_resource(name)).cloned().collect();
        if !names.is_empty() {
            let usage = usage(&evaluator, &limited, objects(), now);
            used.extend(names.into_iter().map(|name| {
                let sum = usage.get(&name).copied().unwrap_or(orlop_api::Quantity::ZERO);
                (name, sum)
            }));
        }
    }
    let told = &quota["status"];
    let same = told["hard"].is_object()
        && told["used"].is_object()
        && quota::resource_list(&told["hard"]) == hard
        && before == used;
    (!same).then(|| json!({"hard": quota::to_value(&hard), "used": quota::to_value(&used)}))
}

fn usage(evaluator: &Evaluator, quota: &Value, objects: Objects, now: Timestamp) -> ResourceList {
    let mut sum = ResourceList::new();
    match objects {
        Objects::Each(objects) => {
            for object in objects.iter().filter(|object| evaluator.matches(quota, object)) {
                quota::add(&mut sum, &evaluator.usage(object, now));
            }
        }
        // A scope speaks of pods or claims; an object that is merely counted meets none.
        Objects::Count(count) if evaluator.matches(quota, &Value::Null) => {
            let count = orlop_api::Quantity::new(
                i64::try_from(count).unwrap_or(i64::MAX),
                orlop_api::quantity::Format::DecimalSI,
            );
            sum.extend(evaluator.usage(&Value::Null, now).into_keys().map(|name| (name, count)));
        }
        Objects::Count(_) => {}
    }
    sum
}

/// Whether some usage in `new` is less than in `old`.
pub(super) fn lowers(old: &Value, new: &Value) -> bool {
    let new = quota::resource_list(&new["used"]);
    quota::resource_list(&old["used"])
        .iter()
        .any(|(name, value)| new.get(name).is_some_and(|new| new < value))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use pretty_assertions::assert_eq;

    fn pod(cpu: &str, phase: &str) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}, "status": {"phase": phase}})
    }

    /// Shows `used` after a recalculation with three pods and seven widgets, `same` when nothing is to be written.
    fn check(quota: Value, expected: Value) {
        let pods = || Objects::Each(vec![pod("1", "Running"), pod("500m", "Pending"), pod("2", "Succeeded")]);
        let widgets = || Objects::Count(7);
        let resources: Vec<(Evaluator, Box<dyn FnOnce() -> Objects>)> = vec![
            (Evaluator::of("", "pods").unwrap(), Box::new(pods)),
            (Evaluator::of("example.com", "widgets").unwrap(), Box::new(widgets)),
        ];
        let now = Timestamp::UNIX_EPOCH;
        let shown =
            status(&quota, resources.into_iter(), now).map_or(json!("same"), |status| status["used"].clone());
        assert_eq!(shown, expected, "{quota}");
    }

    #[test]
    fn sums_up_what_is_there() {
        let of = |hard: Value| json!({"spec": {"hard": hard}});
        check(of(json!({"pods": "5"})), json!({"pods": "2"}));
        check(of(json!({"requests.cpu": "5", "cpu": "5"})), json!({"cpu": "1500m", "requests.cpu": "1500m"}));
        check(of(json!({"count/widgets.example.com": "5"})), json!({"count/widgets.example.com": "7"}));
        check(of(json!({"count/pods": "5"})), json!({"count/pods": "3"}));
        check(of(json!({"count/others.example.com": "5"})), json!({}));
        let scoped = json!({"spec": {"hard": {"pods": "5"}, "scopes": ["BestEffort"]}});
        check(scoped, json!({"pods": "0"}));
        let told = json!({"spec": {"hard": {"pods": "5"}}, "status": {"hard": {"pods": "5"}, "used": {"pods": "2"}}});
        check(told, json!("same"));
        let unknown_stays = json!({"spec": {"hard": {"count/x.y": "5", "pods": "1"}},
            "status": {"hard": {"count/x.y": "5"}, "used": {"count/x.y": "3", "gone": "1"}}});
        check(unknown_stays, json!({"count/x.y": "3", "pods": "2"}));
    }

    #[test]
    fn less_is_told_from_more() {
        let used = |pods: &str| json!({"used": {"pods": pods}});
        assert!(lowers(&used("3"), &used("2")));
        assert!(!lowers(&used("2"), &used("3")));
        assert!(!lowers(&used("1k"), &used("1000")));
        assert!(!lowers(&json!({}), &used("3")));
    }
}
