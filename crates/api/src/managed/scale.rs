//! Ownership of a `Scale`: of the one field of a workload that it shows.
//!
//! Answers to `k8s.io/apimachinery/pkg/util/managedfields` ScaleHandler: the owners of the workload's replicas own the
//! Scale's, and what a write of the Scale makes of them is written back to the workload.

use orlop_json::Value;

use super::{Entry, Set, entries};

/// The version of Scale.
const SCALE_VERSION: &str = "autoscaling/v1";
/// Where a Scale keeps the replicas.
const IN_SCALE: &str = "spec.replicas";

/// The owners of a Scale. `path` is where workloads of `api_version` keep their replicas: `spec.replicas`.
pub fn scale_owners(workload: &[Value], api_version: &str, path: &str) -> Vec<Value> {
    let owned = Set::of_fields(&[path]);
    entries(workload)
        .into_iter()
        .filter(|entry| entry.api_version == api_version && entry.owns_any(&owned))
        .map(|entry| Entry {
            api_version: SCALE_VERSION.into(),
            fields: Set::of_fields(&[IN_SCALE]).to_fields_v1(),
            ..entry
        })
        .map(Entry::write)
        .collect()
}

/// The owners of a workload after those of its Scale have changed to `scale`.
pub fn workload_owners(workload: &[Value], scale: &[Value], api_version: &str, path: &str) -> Vec<Value> {
    let owned = Set::of_fields(&[path]);
    let mut of_scale = entries(scale);
    let mut all = entries(workload);
    for entry in &mut all {
        if entry.api_version != api_version || !entry.owns_any(&owned) {
            continue;
        }
        match of_scale.iter().position(|other| other.is_same_manager(entry)) {
            Some(at) => {
                of_scale.remove(at);
            }
            None => entry.subtract(&owned),
        }
    }
    // A new owner comes without the time of its write.
    all.extend(of_scale.into_iter().map(|entry| Entry {
        api_version: api_version.to_owned(),
        fields: owned.to_fields_v1(),
        time: None,
        ..entry
    }));
    all.retain(|entry| !entry.is_empty());
    all.sort_by(Entry::order);
    all.into_iter().map(Entry::write).collect()
}

impl Entry {
    fn owns_any(&self, set: &Set) -> bool {
        !Set::from_fields_v1(&self.fields).intersection(set).is_empty()
    }

    /// Appliers are one whatever version they speak; updaters are told apart by it.
    fn is_same_manager(&self, other: &Entry) -> bool {
        self.apply == other.apply
            && self.manager == other.manager
            && self.subresource == other.subresource
            && (self.apply || self.api_version == other.api_version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    fn entry(manager: &str, operation: &str, version: &str, fields: Value, time: bool) -> Value {
        let mut out = json!({"manager": manager, "operation": operation, "apiVersion": version});
        if time {
            out["time"] = json!("2024-01-01T00:00:00Z");
        }
        out["fieldsType"] = json!("FieldsV1");
        out["fieldsV1"] = fields;
        out
    }

    #[test]
    fn there_and_back() {
        let replicas = json!({"f:spec": {"f:replicas": {}}});
        let both = json!({"f:spec": {"f:replicas": {}, "f:paused": {}}});
        let paused = json!({"f:spec": {"f:paused": {}}});
        let workload = [
            entry("a", "Apply", "apps/v1", both.clone(), true),
            entry("u", "Update", "apps/v1", paused.clone(), true),
        ];
        let scale = scale_owners(&workload, "apps/v1", "spec.replicas");
        assert_eq!(scale, [entry("a", "Apply", "autoscaling/v1", replicas.clone(), true)]);
        // Nothing changed, and so nothing does.
        assert_eq!(workload_owners(&workload, &scale, "apps/v1", "spec.replicas"), workload);
        // Somebody else took it.
        let taken = [entry("b", "Apply", "autoscaling/v1", replicas.clone(), true)];
        assert_eq!(
            workload_owners(&workload, &taken, "apps/v1", "spec.replicas"),
            [
                entry("b", "Apply", "apps/v1", replicas, false),
                entry("a", "Apply", "apps/v1", paused.clone(), true),
                entry("u", "Update", "apps/v1", paused, true),
            ]
        );
    }
}
