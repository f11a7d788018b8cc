//! Deletion: preconditions, graceful deletion of pods, finalizers of the garbage collector, collections.

use orlop_api::status::{ApiError, Status, StatusDetails};
use orlop_json::{Value, json};

use super::object::{self, finalizers, is_deleting, meta, meta_int, set_meta};
use super::options::DeleteOptions;
use super::{Call, Registry, now};
use crate::admission::{Operation, Request};
use crate::resources::Resource;

/// The finalizer that makes the garbage collector orphan the dependents.
pub const ORPHAN: &str = "orphan";
/// The finalizer that makes it delete the dependents first.
pub const FOREGROUND: &str = "foregroundDeletion";

/// What a deletion answers with.
pub enum Deleted {
    /// The object is gone: a `Status` of success, or (for some kinds) its last state.
    Status(Box<Status>),
    /// The object, gone or on its way.
    Object(Value),
}

/// Whether deletion answers with the object instead of a `Status`.
pub(crate) fn returns_object(resource: &Resource) -> bool {
    let returned = matches!(
        resource.kind.as_str(),
        "Pod"
            | "Service"
            | "ServiceAccount"
            | "PersistentVolume"
            | "PersistentVolumeClaim"
            | "PodTemplate"
            | "ResourceQuota"
            | "StorageClass"
            | "CSIDriver"
            | "CSINode"
            | "VolumeAttachment"
            | "ResourceClaim"
            | "ResourceClaimTemplate"
            | "DeviceClass"
            | "ResourceSlice"
    );
    returned && resource.custom.is_none()
}

enum Step {
    /// The object stays as it is: its deletion is already under way.
    Pending,
    /// The object must be written with these marks; then, if true, removed at once.
    Mark(bool),
    /// Nothing keeps it.
    Remove,
}

/// How a deletion was asked for, which decides what admission is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// By name.
    Single,
    /// As an item of a collection: to admission it has no name.
    Collection,
    /// As the end of an action (an eviction) that has been through admission itself.
    Admitted,
}

impl Registry {
    /// Deletes the object of a call.
    pub async fn delete(&self, call: &Call<'_>, options: &DeleteOptions) -> Result<Deleted, ApiError> {
        self.delete_from(call, options, Origin::Single).await
    }

    /// Deletes the object of a call that was asked for in this way.
    pub async fn delete_from(
        &self,
        call: &Call<'_>,
        options: &DeleteOptions,
        origin: Origin,
    ) -> Result<Deleted, ApiError> {
        let resource = call.resource;
        let key = resource.key(call.namespace, call.name);
        let mut asked = options.resource_version.clone();
        // What this call has marked for immediate removal: a kubelet may be faster with the removal itself.
        let mut condemned: Option<Value> = None;
        loop {
            let entry = match (self.get(call), &condemned) {
                (Ok(entry), _) => entry,
                (Err(error), Some(object)) if error.code() == 404 => {
                    return Ok(Deleted::Object(object.clone()));
                }
                (Err(error), _) => return Err(error),
            };
            let mut current = self.served(resource, &entry).await?;
            // It is gone, and another one of its name has come.
            if let Some(object) =
                condemned.as_ref().filter(|object| meta(object, "uid") != meta(&current, "uid"))
            {
                return Ok(Deleted::Object(object.clone()));
            }
            self.check_preconditions(call, options, asked.as_deref(), &current)?;
            if origin != Origin::Admitted {
                let mut gone = Value::Null;
                let name = if origin == Origin::Collection { "" } else { call.name };
                let mut request =
                    Request::new(call, Operation::Delete, &mut gone, Some(&current)).named(name);
                self.admit(&mut request).await?;
            }
            let step = if resource.kind == "Namespace" && resource.group.is_empty() {
                mark_namespace(&mut current, options)
            } else if crate::custom::is_definitions(resource) && !is_deleting(&current) {
                crate::custom::mark_for_deletion(&mut current);
                Step::Mark(false)
            } else {
                mark(resource, &mut current, options)
            };
            let mut revision = entry.revision;
            match step {
                Step::Pending => return Ok(Deleted::Object(current)),
                Step::Mark(_) if call.dry_run || options.dry_run => {
                    return Ok(Deleted::Object(current));
                }
                Step::Mark(then_remove) => {
                    object::order(&mut current);
                    let stored = self.stored(resource, &current).await?;
                    if !then_remove && entry.holds(&object::encode(&stored)) {
                        return Ok(Deleted::Object(current));
                    }
                    let Some(marked) = self.put(resource, &key, &stored, revision).await? else { continue };
                    revision = marked.revision;
                    if !then_remove {
                        return Ok(Deleted::Object(self.served(resource, &marked).await?));
                    }
                    // The precondition was met; marking it made a new version.
                    asked = None;
                    condemned = Some(current.clone());
                }
                Step::Remove => {}
            }
            if !(call.dry_run || options.dry_run) {
                let beside = self.allocators.beside_removal(self, &current);
                let Some(gone) = self.remove(resource, &key, revision, beside).await? else { continue };
                self.allocators.release(&current);
                set_meta(&mut current, "resourceVersion", Some(json!(gone.to_string())));
            }
            if returns_object(resource) {
                object::order(&mut current);
                return Ok(Deleted::Object(current));
            }
            return Ok(Deleted::Status(Box::new(Status::success(Some(StatusDetails {
                name: call.name.to_string(),
                group: resource.group.clone(),
                kind: resource.plural.clone(),
                uid: meta(&current, "uid").to_string(),
                ..StatusDetails::default()
            })))));
        }
    }

    fn check_preconditions(
        &self,
        call: &Call<'_>,
        options: &DeleteOptions,
        version: Option<&str>,
        current: &Value,
    ) -> Result<(), ApiError> {
        // Upstream names the kind here where other conflicts name the resource.
        let conflict = |message: String| {
            Err(ApiError::conflict(&call.resource.group, &call.resource.kind, call.name, message))
        };
        if let Some(uid) = &options.uid
            && uid != meta(current, "uid")
        {
            return conflict(format!(
                "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
                meta(current, "uid")
            ));
        }
        if let Some(version) = version
            && version != meta(current, "resourceVersion")
        {
            return conflict(format!(
                "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
                meta(current, "resourceVersion")
            ));
        }
        Ok(())
    }

    /// Deletes each of these objects; those that vanish meanwhile are no error.
    pub async fn delete_collection(
        &self,
        call: &Call<'_>,
        options: &DeleteOptions,
        objects: &[std::sync::Arc<crate::cache::Entry>],
    ) -> Result<(), ApiError> {
        for entry in objects {
            let one = Call { namespace: entry.namespace(), name: entry.name(), subresource: "", ..*call };
            match self.delete_from(&one, options, Origin::Collection).await {
                Ok(_) => {}
                Err(error) if error.code() == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The finalizers the object shall have under the propagation policy; `None` when nothing changes. `orphans` is what
/// the kind does when neither the request nor a finalizer says anything.
fn collector_finalizers(object: &Value, options: &DeleteOptions, orphans: bool) -> Option<Vec<String>> {
    let old = finalizers(object);
    let has = |name: &str| old.iter().any(|f| f == name);
    let orphan = match (options.orphan_dependents, options.propagation_policy.as_deref()) {
        (Some(orphan), _) => orphan,
        (None, Some(policy)) => policy == "Orphan",
        (None, None) => has(ORPHAN) || (orphans && !has(FOREGROUND)),
    };
    let foreground = match (options.orphan_dependents, options.propagation_policy.as_deref()) {
        (Some(_), _) => false,
        (None, Some(policy)) => policy == "Foreground",
        (None, None) => has(FOREGROUND) && !has(ORPHAN),
    };
    let mut new: Vec<String> = old.iter().filter(|f| *f != ORPHAN && *f != FOREGROUND).cloned().collect();
    if orphan {
        new.push(ORPHAN.to_string());
    }
    if foreground {
        new.push(FOREGROUND.to_string());
    }
    let mut before = old.clone();
    let mut after = new.clone();
    before.sort();
    after.sort();
    (before != after).then_some(new)
}

fn set_finalizers(object: &mut Value, list: Vec<String>) {
    set_meta(object, "finalizers", (!list.is_empty()).then(|| json!(list)));
}

fn bump_generation(object: &mut Value) {
    if let Some(generation) = meta_int(object, "generation").filter(|g| *g > 0) {
        set_meta(object, "generation", Some(json!(generation + 1)));
    }
}

/// Marks an object for deletion as upstream's generic store does and says what is to be done with it.
fn mark(resource: &crate::resources::Resource, object: &mut Value, options: &DeleteOptions) -> Step {
    let graceful = if resource.kind == "Pod" && resource.group.is_empty() {
        match mark_pod(object, options.grace_period_seconds) {
            Graceful::Pending => return Step::Pending,
            Graceful::No => None,
            Graceful::Seconds(seconds) => Some(seconds),
        }
    } else {
        None
    };
    let orphans = resource.strategy().is_some_and(|strategy| strategy.orphans_dependents());
    let new_finalizers = collector_finalizers(object, options, orphans);
    let changed = new_finalizers.is_some();
    if let Some(list) = new_finalizers {
        set_finalizers(object, list);
    }
    let kept = !finalizers(object).is_empty();
    match graceful {
        Some(seconds) => Step::Mark(seconds == 0 && !kept),
        None if kept => {
            if !is_deleting(object) {
                bump_generation(object);
                set_meta(object, "deletionTimestamp", Some(json!(now())));
            }
            set_meta(object, "deletionGracePeriodSeconds", Some(json!(0)));
            Step::Mark(false)
        }
        None if changed && is_deleting(object) => Step::Mark(true),
        None => Step::Remove,
    }
}

enum Graceful {
    /// It is already being deleted at least as fast.
    Pending,
    /// It is to be removed without grace.
    No,
    /// It was marked with so many seconds.
    Seconds(i64),
}

fn after_seconds(from: jiff::Timestamp, seconds: i64) -> Value {
    let at = from.saturating_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(from);
    json!(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn mark_pod(pod: &mut Value, grace: Option<i64>) -> Graceful {
    let grace = grace.map(|seconds| if seconds < 0 { 1 } else { seconds });
    if is_deleting(pod) {
        let Some(current) = meta_int(pod, "deletionGracePeriodSeconds").filter(|g| *g != 0) else {
            return Graceful::No;
        };
        // The period may only be shortened.
        let Some(period) = grace.filter(|period| *period < current) else { return Graceful::Pending };
        if let Ok(at) = meta(pod, "deletionTimestamp").parse::<jiff::Timestamp>() {
            set_meta(pod, "deletionTimestamp", Some(after_seconds(at, period - current)));
        }
        set_meta(pod, "deletionGracePeriodSeconds", Some(json!(period)));
        return Graceful::Seconds(period);
    }
    let specified = grace
        .or_else(|| pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64))
        .unwrap_or(30);
    let unscheduled = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("").is_empty();
    let finished =
        matches!(pod.pointer("/status/phase").and_then(Value::as_str), Some("Failed" | "Succeeded"));
    let period = if unscheduled || finished {
        0
    } else if specified < 0 {
        1
    } else {
        specified
    };
    set_meta(pod, "deletionTimestamp", Some(after_seconds(jiff::Timestamp::now(), period)));
    set_meta(pod, "deletionGracePeriodSeconds", Some(json!(period)));
    bump_generation(pod);
    Graceful::Seconds(period)
}

/// A namespace is emptied by its controller before it goes.
fn mark_namespace(namespace: &mut Value, options: &DeleteOptions) -> Step {
    if is_deleting(namespace) {
        let held =
            namespace.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|f| !f.is_empty());
        return if held || !finalizers(namespace).is_empty() { Step::Pending } else { Step::Remove };
    }
    if let Some(list) = collector_finalizers(namespace, options, false) {
        set_finalizers(namespace, list);
    }
    set_meta(namespace, "deletionTimestamp", Some(json!(now())));
    namespace["status"]["phase"] = json!("Terminating");
    // Even an empty one goes only when its controller has finalized it.
    Step::Mark(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finalizers_by_policy() {
        let check_kind = |old: &[&str], policy: Option<&str>, orphans: bool, expected: Option<&[&str]>| {
            let object = json!({"metadata": {"finalizers": old}});
            let options =
                DeleteOptions { propagation_policy: policy.map(String::from), ..DeleteOptions::default() };
            let expected = expected.map(|list| list.iter().map(|s| s.to_string()).collect::<Vec<_>>());
            assert_eq!(collector_finalizers(&object, &options, orphans), expected, "{old:?} {policy:?}");
        };
        let check = |old: &[&str], policy: Option<&str>, expected: Option<&[&str]>| {
            check_kind(old, policy, false, expected);
        };
        check_kind(&[], None, true, Some(&["orphan"]));
        check_kind(&[], Some("Background"), true, None);
        check_kind(&["foregroundDeletion"], None, true, None);
        check(&[], None, None);
        check(&[], Some("Orphan"), Some(&["orphan"]));
        check(&["x"], Some("Foreground"), Some(&["x", "foregroundDeletion"]));
        check(&["foregroundDeletion"], Some("Background"), Some(&[]));
        check(&["orphan"], None, None);
        check(&["orphan"], Some("Foreground"), Some(&["foregroundDeletion"]));
    }

    #[test]
    fn grace_of_pods() {
        let check = |pod: Value, grace: Option<i64>, expected: i64| {
            let mut pod = pod;
            match mark_pod(&mut pod, grace) {
                Graceful::Seconds(seconds) => assert_eq!(seconds, expected),
                Graceful::Pending => assert_eq!(-1, expected),
                Graceful::No => assert_eq!(-2, expected),
            }
        };
        let scheduled =
            json!({"metadata": {}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}});
        check(scheduled.clone(), None, 30);
        check(scheduled.clone(), Some(5), 5);
        check(json!({"metadata": {}, "spec": {}}), None, 0);
        check(json!({"metadata": {}, "spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}), None, 0);
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30}});
        check(going.clone(), None, -1);
        check(going.clone(), Some(60), -1);
        check(going, Some(10), 10);
        check(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 0}}),
            None,
            -2,
        );
    }
}
