//! What kinds with a status and a generation share in the registry: a client of the main resource does not write the
//! status, a change of the desired state counts `metadata.generation` up, and a status's counters add up.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Map, Value};

use crate::core::pod::defaults::drop_disabled_fields;
use crate::cursor::{Cursor, bump_generation, keep, set_generation};
use crate::validate::nonnegative;
use crate::{metadata, printer};

/// The rules of one kind, a row of facts.
pub(crate) struct Workload {
    /// The counters that even an untouched status prints.
    pub fresh: &'static [&'static str],
    /// The pod spec inside of the object as a JSON pointer, `""` when there is none.
    pub pod_spec: &'static str,
    /// Counters of the status that may not be negative, in upstream's order.
    pub counters: &'static [&'static str],
    /// Those of them that may not exceed `status.replicas`.
    pub parts: &'static [&'static str],
    /// What upstream's message calls the number of ready replicas, of which the available ones are a part; `""` for
    /// kinds that do not count so.
    pub ready: &'static str,
}

impl Workload {
    /// A kind without counters to check.
    pub(crate) const PLAIN: Workload =
        Workload { fresh: &[], pod_spec: "", counters: &[], parts: &[], ready: "" };

    /// A new object: an empty status and the first generation.
    pub(crate) fn prepare_create(&self, obj: &mut Value) {
        self.drop_disabled(obj);
        let status: Map = self.fresh.iter().map(|key| ((*key).into(), Value::from(0))).collect();
        obj["status"] = status.into();
        set_generation(obj, 1);
    }

    /// The status stays; another spec is another generation.
    pub(crate) fn prepare_update(&self, obj: &mut Value, old: &Value) {
        self.keep_status(obj, old);
        bump_generation(obj, old, &["spec"]);
    }

    /// The status stays, and what disabled features would read goes.
    pub(crate) fn keep_status(&self, obj: &mut Value, old: &Value) {
        self.drop_disabled(obj);
        keep(obj, old, &["status"]);
    }

    fn drop_disabled(&self, obj: &mut Value) {
        if !self.pod_spec.is_empty()
            && let Some(spec) = obj.pointer_mut(self.pod_spec)
        {
            drop_disabled_fields(spec);
        }
    }

    /// A write of the status, `metadata` first.
    pub(crate) fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        self.validate_counters(&mut errs, &obj["status"]);
        validate_not_decremented(&mut errs, &obj["status"], &old["status"]);
        errs
    }

    /// None negative, the parts not more than the whole.
    pub(crate) fn validate_counters(&self, errs: &mut ErrorList, status: &Value) {
        let path = Path::new("status");
        for key in self.counters {
            nonnegative(errs, &path.child(key), &status[*key]);
        }
        let all = status["replicas"].int();
        for key in self.parts {
            let count = status[*key].int();
            if count > all {
                errs.push(field::invalid(&path.child(key), count, "cannot be greater than status.replicas"));
            }
        }
        let available = status["availableReplicas"].int();
        if !self.ready.is_empty() && available > status["readyReplicas"].int() {
            errs.push(field::invalid(
                &path.child("availableReplicas"),
                available,
                format!("cannot be greater than {}", self.ready),
            ));
        }
    }
}

/// ReplicaSets and the elder ReplicationControllers.
pub(crate) const REPLICAS: Workload = Workload {
    fresh: &["replicas"],
    pod_spec: "/spec/template/spec",
    counters: &[
        "replicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "terminatingReplicas",
        "observedGeneration",
    ],
    parts: &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
    ready: "readyReplicas",
};

/// The row of one of [`REPLICAS`], whose selector is printed in its own way.
pub(crate) fn replica_cells(obj: &Value, now: Timestamp, selector: String) -> Vec<Value> {
    let (spec, status) = (&obj["spec"], &obj["status"]);
    let (containers, images) = printer::containers_and_images(&spec["template"]["spec"]);
    vec![
        printer::name(obj),
        spec["replicas"].int().into(),
        status["replicas"].int().into(),
        status["readyReplicas"].int().into(),
        printer::age(obj, now),
        containers.into(),
        images.into(),
        selector.into(),
    ]
}

/// The collision counter of a workload never goes back.
pub(crate) fn validate_not_decremented(errs: &mut ErrorList, status: &Value, old: &Value) {
    let (now, was) = (&status["collisionCount"], &old["collisionCount"]);
    if was.is_set() && (!now.is_set() || now.int() < was.int()) {
        errs.push(field::invalid(
            &Path::new("status").child("collisionCount"),
            now.int(),
            "cannot be decremented",
        ));
    }
}

/// The warning about a name that is no DNS label although pods will be named after it.
pub(crate) fn pod_name_warning(obj: &Value) -> Option<String> {
    let messages = orlop_api::names::is_dns1123_label(obj["metadata"]["name"].text());
    (!messages.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
            messages.join(" ")
        )
    })
}

/// Whether an update left the desired state as it was, so that there is nothing new to warn of.
pub(crate) fn same_generation(obj: &Value, old: Option<&Value>) -> bool {
    old.is_some_and(|old| obj["metadata"]["generation"] == old["metadata"]["generation"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::texts;
    use orlop_json::json;
    use pretty_assertions::assert_eq;

    const RULES: Workload = Workload {
        fresh: &["replicas"],
        pod_spec: "/spec/template/spec",
        counters: &["replicas", "readyReplicas", "availableReplicas", "collisionCount"],
        parts: &["readyReplicas", "availableReplicas"],
        ready: "readyReplicas",
    };

    #[test]
    fn status_and_generation_belong_to_the_system() {
        let mut obj = json!({"metadata": {"generation": 7}, "spec": {"a": 1}, "status": {"x": 1}});
        RULES.prepare_create(&mut obj);
        assert_eq!(obj, json!({"metadata": {"generation": 1}, "spec": {"a": 1}, "status": {"replicas": 0}}));
        for (spec, generation) in [(json!({"a": 1}), 1), (json!({"a": 2}), 2)] {
            let mut new = json!({"metadata": {"generation": 9}, "spec": spec, "status": {"replicas": 4}});
            RULES.prepare_update(&mut new, &obj);
            assert_eq!(new["metadata"]["generation"], generation);
            assert_eq!(new["status"], obj["status"]);
        }
    }

    #[test]
    fn counters() {
        let check = |status: Value, old: Value, expected: &[&str]| {
            let mut errs = ErrorList::new();
            RULES.validate_counters(&mut errs, &status);
            validate_not_decremented(&mut errs, &status, &old);
            assert_eq!(texts(&errs), expected, "{status}");
        };
        check(json!({"replicas": 2, "readyReplicas": 2, "availableReplicas": 1}), json!({}), &[]);
        check(
            json!({"replicas": -1}),
            json!({}),
            &[
                "status.replicas: Invalid value: -1: must be greater than or equal to 0",
                "status.readyReplicas: Invalid value: 0: cannot be greater than status.replicas",
                "status.availableReplicas: Invalid value: 0: cannot be greater than status.replicas",
            ],
        );
        check(
            json!({"replicas": 1, "availableReplicas": 1}),
            json!({}),
            &["status.availableReplicas: Invalid value: 1: cannot be greater than readyReplicas"],
        );
        check(
            json!({"collisionCount": 1}),
            json!({"collisionCount": 2}),
            &["status.collisionCount: Invalid value: 1: cannot be decremented"],
        );
        check(
            json!({}),
            json!({"collisionCount": 2}),
            &["status.collisionCount: Invalid value: 0: cannot be decremented"],
        );
    }

    #[test]
    fn names_of_pods() {
        assert_eq!(pod_name_warning(&json!({"metadata": {"name": "a-b"}})), None);
        assert_eq!(
            pod_name_warning(&json!({"metadata": {"name": "a.b"}})).as_deref(),
            Some(
                "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]"
            )
        );
    }
}
