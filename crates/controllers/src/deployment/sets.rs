//! Facts about a Deployment and its ReplicaSets: sizes, surge, revisions, annotations, names. Answers to upstream's
//! `deployment/util`.

use std::cmp::Ordering;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::history::safe_encode;
use crate::objects::{Labels, Meta, scaled};

pub(crate) const HASH_LABEL: &str = "pod-template-hash";
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not inherit.
const NOT_INHERITED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];
/// The longest revision history in characters.
const HISTORY_LIMIT: usize = 2000;

/// The spec fields the controller reads, with their defaults filled in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) replicas: i32,
    pub(crate) rolling: bool,
    /// Pods above `replicas` that a rollout may have; 0 unless rolling.
    pub(crate) max_surge: i32,
    /// Pods below `replicas` that may be unavailable; 0 unless rolling.
    pub(crate) max_unavailable: i32,
    pub(crate) paused: bool,
    /// Seconds; `None` when progress is not watched.
    pub(crate) deadline: Option<i32>,
}

impl Shape {
    pub(crate) fn of(spec: &DeploymentSpec) -> Self {
        let replicas = spec.replicas.unwrap_or(1);
        let strategy = spec.strategy.as_ref();
        let rolling = strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("Recreate");
        let (mut max_surge, mut max_unavailable) = (0, 0);
        if rolling {
            let update = strategy.and_then(|strategy| strategy.rolling_update.clone()).unwrap_or_default();
            (max_surge, max_unavailable) = fenceposts(&update, replicas);
            max_unavailable = if replicas == 0 { 0 } else { max_unavailable.min(replicas) };
        }
        Self {
            replicas,
            rolling,
            max_surge,
            max_unavailable,
            paused: spec.paused == Some(true),
            deadline: spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX),
        }
    }

    pub(crate) fn max_total(&self) -> i32 {
        self.replicas.saturating_add(self.max_surge)
    }
}

/// Surge rounds up, unavailable rounds down; both zero would stand still, so one may be unavailable then.
fn fenceposts(update: &RollingUpdateDeployment, replicas: i32) -> (i32, i32) {
    let quarter = IntOrString::String("25%".to_owned());
    let surge = scaled(update.max_surge.as_ref().unwrap_or(&quarter), replicas, true);
    let unavailable = scaled(update.max_unavailable.as_ref().unwrap_or(&quarter), replicas, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

pub(crate) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(crate) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

/// How many pods the set has, by its status.
pub(crate) fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

/// Whether two templates make the same pods; the hash label is not part of the question.
pub(crate) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    without_hash(a) == without_hash(b)
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH_LABEL);
        }
        // An empty map and none are the same thing on the wire.
        meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
        meta.annotations = meta.annotations.take().filter(|annotations| !annotations.is_empty());
        meta.creation_timestamp = None;
        if *meta == Default::default() {
            template.metadata = None;
        }
    }
    template
}

/// A short name for a template: FNV-1a over its JSON and the number of collisions so far, in an alphabet that spells no
/// words and has no look-alikes.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut bytes = serde_json::to_vec(&without_hash(template)).unwrap_or_default();
    if let Some(count) = collisions {
        bytes.extend(count.to_le_bytes());
    }
    let hash =
        bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    safe_encode(&hash.to_string())
}

/// `<deployment>-<hash>`, the first part cut when the whole would be too long for a name.
pub(crate) fn set_name(deployment: &str, hash: &str) -> String {
    let room = 253_usize.saturating_sub(hash.len() + 1);
    let prefix = deployment.get(..room.min(deployment.len())).unwrap_or(deployment);
    format!("{prefix}-{hash}")
}

pub(crate) fn with_hash(labels: Option<&Labels>, hash: &str) -> Labels {
    let mut labels = labels.cloned().unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    labels
}

pub(crate) fn selector_with_hash(selector: &LabelSelector, hash: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(with_hash(selector.match_labels.as_ref(), hash)), ..selector.clone() }
}

/// The revision of a set; 0 when it has none.
pub(crate) fn revision(set: &ReplicaSet) -> i64 {
    set.annotation(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub(crate) fn desired_annotation(set: &ReplicaSet) -> Option<i32> {
    set.annotation(DESIRED_REPLICAS)?.parse().ok()
}

pub(crate) fn max_annotation(set: &ReplicaSet) -> Option<i32> {
    set.annotation(MAX_REPLICAS)?.parse().ok()
}

fn put(set: &mut ReplicaSet, key: &str, value: String) -> bool {
    let annotations = set.metadata.annotations.get_or_insert_default();
    if annotations.get(key) == Some(&value) {
        return false;
    }
    annotations.insert(key.to_owned(), value);
    true
}

/// Writes down what the Deployment wanted when the set was last scaled. Returns whether anything changed.
pub(crate) fn annotate_size(set: &mut ReplicaSet, shape: &Shape) -> bool {
    let desired = put(set, DESIRED_REPLICAS, shape.replicas.to_string());
    let max = put(set, MAX_REPLICAS, shape.max_total().to_string());
    desired || max
}

/// Gives the newest set its revision and the Deployment's annotations. Returns whether anything changed.
pub(crate) fn annotate_new(set: &mut ReplicaSet, deployment: &Deployment, new_revision: i64) -> bool {
    let mut changed = false;
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_INHERITED.contains(&key.as_str()) {
            changed |= put(set, key, value.clone());
        }
    }
    let old = set.annotation(REVISION).map(str::to_owned);
    if revision(set) < new_revision {
        put(set, REVISION, new_revision.to_string());
        changed = true;
        if let Some(old) = old {
            // It was an older revision before and is rolled back to: keep what it was known as.
            let history = set.annotation(REVISION_HISTORY).unwrap_or_default().to_owned();
            if let Some(history) = extend_history(&history, &old) {
                put(set, REVISION_HISTORY, history);
            }
        }
    }
    changed
}

fn extend_history(history: &str, old: &str) -> Option<String> {
    if history.is_empty() {
        return Some(old.to_owned());
    }
    let mut entries: Vec<_> = history.split(',').collect();
    let mut length = history.len() + old.len() + 1;
    while length > HISTORY_LIMIT && !entries.is_empty() {
        length -= entries.remove(0).len() + 1;
    }
    entries.push(old);
    (length <= HISTORY_LIMIT).then(|| entries.join(","))
}

/// The set that has the Deployment's template; the oldest when there are several.
pub(crate) fn find_new(deployment: &DeploymentSpec, sets: &[ReplicaSet]) -> Option<usize> {
    let same = |set: &ReplicaSet| {
        let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        template.is_some_and(|template| same_template(template, &deployment.template))
    };
    (0..sets.len()).filter(|index| same(&sets[*index])).min_by(|a, b| by_age(&sets[*a], &sets[*b]))
}

/// Older first.
pub(crate) fn by_age(a: &ReplicaSet, b: &ReplicaSet) -> Ordering {
    a.created().cmp(&b.created()).then_with(|| a.name().cmp(b.name()))
}

pub(crate) fn by_revision(a: &ReplicaSet, b: &ReplicaSet) -> Ordering {
    revision(a).cmp(&revision(b)).then_with(|| by_age(a, b))
}

/// Largest first; of equals the older.
pub(crate) fn by_size_older(a: &ReplicaSet, b: &ReplicaSet) -> Ordering {
    size(b).cmp(&size(a)).then_with(|| by_age(a, b))
}

/// Largest first; of equals the newer.
pub(crate) fn by_size_newer(a: &ReplicaSet, b: &ReplicaSet) -> Ordering {
    size(b).cmp(&size(a)).then_with(|| by_age(b, a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;
    use serde_json::{Value, json};

    #[test]
    fn surge_rounds_up_and_unavailable_down() {
        let check = |replicas: i32, surge: Value, unavailable: Value, expected: (i32, i32)| {
            let spec = object(json!({"replicas": replicas, "selector": {}, "template": {}, "strategy": {
                "type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}));
            let shape = Shape::of(&spec);
            assert_eq!(
                (shape.max_surge, shape.max_unavailable),
                expected,
                "{replicas} {surge} {unavailable}"
            );
        };
        check(10, json!("25%"), json!("25%"), (3, 2));
        check(3, json!("25%"), json!("25%"), (1, 0));
        check(1, json!("25%"), json!("25%"), (1, 0));
        check(4, json!(0), json!("10%"), (0, 1));
        check(0, json!("25%"), json!("25%"), (0, 0));
        check(2, json!(1), json!(5), (1, 2));
        check(10, json!("100%"), json!(0), (10, 0));
    }

    #[test]
    fn recreate_has_neither() {
        let shape = Shape::of(&object(
            json!({"replicas": 4, "selector": {}, "template": {}, "strategy": {"type": "Recreate"}}),
        ));
        assert_eq!((shape.rolling, shape.max_surge, shape.max_unavailable), (false, 0, 0));
    }

    #[test]
    fn history_keeps_the_newest_that_fit() {
        assert_eq!(extend_history("", "1").as_deref(), Some("1"));
        assert_eq!(extend_history("1,3", "5").as_deref(), Some("1,3,5"));
        let long = vec!["123"; 500].join(",");
        let extended = extend_history(&long, "9").unwrap_or_default();
        assert!(extended.len() <= HISTORY_LIMIT && extended.ends_with(",9"));
    }

    #[test]
    fn hashes_are_stable_and_collisions_move_them() {
        let template: PodTemplateSpec =
            object(json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}));
        let labelled: PodTemplateSpec = object(
            json!({"metadata": {"labels": {"app": "web", HASH_LABEL: "x"}}, "spec": {"containers": []}}),
        );
        assert_eq!(template_hash(&template, None), template_hash(&labelled, None));
        assert_ne!(template_hash(&template, None), template_hash(&template, Some(1)));
        assert!(same_template(&template, &labelled));
        assert_eq!(set_name(&"a".repeat(253), "bcd").len(), 253);
    }
}
