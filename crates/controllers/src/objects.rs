//! Small questions about objects that several controllers ask: names, owners, selectors, and the state of a pod as
//! `k8s.io/kubernetes/pkg/api/v1/pod` defines it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Selector, SelectorExt};
use orlop_client::Informer;

pub(crate) type Labels = BTreeMap<String, String>;

/// The name of the index of objects by the uid of their controller.
pub(crate) const BY_CONTROLLER: &str = "controller";
/// Objects without a controller are indexed under this and their namespace.
const ORPHAN: &str = "orphan/";

pub(crate) trait Meta {
    fn meta(&self) -> &ObjectMeta;
    fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }
    fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }
    fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }
    fn deleting(&self) -> bool {
        self.meta().deletion_timestamp.is_some()
    }
    fn generation(&self) -> i64 {
        self.meta().generation.unwrap_or(0)
    }
    fn created(&self) -> Timestamp {
        self.meta().creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
    }
    fn label(&self, key: &str) -> Option<&str> {
        self.meta().labels.as_ref()?.get(key).map(String::as_str)
    }
    fn annotation(&self, key: &str) -> Option<&str> {
        self.meta().annotations.as_ref()?.get(key).map(String::as_str)
    }
    fn controller(&self) -> Option<&OwnerReference> {
        controller_of(self.meta())
    }
}

impl<K: kube::Resource> Meta for K {
    fn meta(&self) -> &ObjectMeta {
        kube::Resource::meta(self)
    }
}

/// The owner reference that says `controller: true`.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// A reference that makes `owner` the controller of an object and keeps foreground deletion waiting for it.
pub(crate) fn controller_ref<K: kube::Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: Meta::name(owner).to_owned(),
        uid: Meta::uid(owner).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Indexes objects by their controller, and those without one by namespace.
pub(crate) fn index_by_controller<K: orlop_client::Object>(informer: &Informer<K>) {
    informer.add_index(BY_CONTROLLER, |object: &K| match object.controller() {
        Some(owner) => vec![owner.uid.clone()],
        None => vec![format!("{ORPHAN}{}", object.namespace())],
    });
}

/// What a controller may claim: the objects it controls and those of its namespace that nobody controls.
pub(crate) fn claimable<K: orlop_client::Object>(
    informer: &Informer<K>,
    owner: &ObjectMeta,
) -> Vec<std::sync::Arc<K>> {
    let mut found = informer.by_index(BY_CONTROLLER, owner.uid.as_deref().unwrap_or_default());
    let namespace = owner.namespace.as_deref().unwrap_or_default();
    found.extend(informer.by_index(BY_CONTROLLER, &format!("{ORPHAN}{namespace}")));
    found
}

/// A selector as workloads mean it. `None` when it cannot be understood; such an object selects nothing.
pub(crate) fn selector(selector: &LabelSelector) -> Option<Selector> {
    Selector::try_from(selector.clone()).ok()
}

/// Whether a workload's selector matches an object. An empty selector of a workload matches nothing, because it would
/// take all pods there are.
pub(crate) fn selects(by: &LabelSelector, meta: &ObjectMeta) -> bool {
    let Some(selector) = selector(by) else { return false };
    !selector.selects_all() && matches(&selector, meta.labels.as_ref())
}

pub(crate) fn matches(selector: &Selector, labels: Option<&Labels>) -> bool {
    match labels {
        Some(labels) => selector.matches(labels),
        None => selector.matches(&Labels::new()),
    }
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// Succeeded or Failed: its containers will not run again.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// A pod that counts as a replica.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !pod.deleting()
}

/// A pod that is on its way out but not there yet.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    !is_finished(pod) && pod.deleting()
}

pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// Ready for at least `min_ready` seconds.
pub(crate) fn is_available(pod: &Pod, min_ready: i32, now: Timestamp) -> bool {
    is_ready(pod)
        && (min_ready <= 0 || until_available(pod, min_ready, now).is_some_and(|wait| wait.is_zero()))
}

/// How long until a ready pod counts as available; zero when it does already, `None` when it is not ready.
pub(crate) fn until_available(pod: &Pod, min_ready: i32, now: Timestamp) -> Option<Duration> {
    let due = ready_since(pod)?.as_nanosecond() + i128::from(min_ready) * 1_000_000_000;
    Some(Duration::from_nanos(u64::try_from((due - now.as_nanosecond()).max(0)).unwrap_or(u64::MAX)))
}

/// An absolute number, or a percentage of `total`. What is neither counts as 0 (validation keeps it out).
pub(crate) fn scaled(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|number| number.parse().ok()).unwrap_or(0);
            let hundredths = percent * i64::from(total);
            let whole = if round_up { (hundredths + 99).div_euclid(100) } else { hundredths.div_euclid(100) };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

/// Seconds from `then` to `now`; negative when `then` is in the future.
pub(crate) fn seconds_since(then: Timestamp, now: Timestamp) -> f64 {
    now.duration_since(then).as_secs_f64()
}

#[cfg(test)]
pub(crate) mod testing {
    #![allow(clippy::unwrap_used)]
    use serde::de::DeserializeOwned;
    use serde_json::Value;

    /// An object from JSON.
    pub(crate) fn object<K: DeserializeOwned>(json: Value) -> K {
        serde_json::from_value(json).unwrap()
    }

    /// A moment, from RFC 3339.
    pub(crate) fn at(time: &str) -> jiff::Timestamp {
        time.parse().unwrap()
    }
}
