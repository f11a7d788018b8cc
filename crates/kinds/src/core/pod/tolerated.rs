//! What an update of a pod or of a pod template may leave wrong because it was so before: upstream's
//! `PodValidationOptions`. Rules that came late must not lock out the objects that were stored without them.

use orlop_api::field::{ErrorList, Path};
use orlop_json::Value;

use super::affinity::{
    NodeLabelValues, affinity_terms, node_label_values, required_node_terms, validate_spread_label_keys,
};
use super::resources::is_whole_pages;
use super::security::host_sysctl_problem;
use super::validation::{is_deletion_cost, visit_containers};
use crate::cursor::Cursor;
use crate::validate::{SelectorValues, local_non_reserved_path};

/// The rules that are not looked at again; none of a new object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tolerated {
    /// A deletion cost that is no number.
    pub deletion_cost: bool,
    /// Amounts of huge pages that are no whole pages.
    pub split_huge_pages: bool,
    /// Values of pod affinity selectors (and of a job's selector).
    pub selector_values: SelectorValues,
    /// Values of node affinity that no node's label can have.
    pub node_label_values: NodeLabelValues,
    /// Values of topology spread selectors.
    pub spread_selector_values: SelectorValues,
    /// Topology spread label keys that are in the selector too.
    pub spread_label_keys: bool,
    /// Sysctls of namespaces that are the host's.
    pub host_sysctls: bool,
    /// Token files outside of their volume.
    pub token_paths: bool,
    /// Block devices in a user namespace of the pod's own, where they do not work.
    pub shifted_block_devices: bool,
}

impl Tolerated {
    /// What may replace a pod or template of this `metadata` and `spec`.
    pub(crate) fn replacing(before: &Value) -> Tolerated {
        let spec = &before["spec"];
        let spread = || spec["topologySpreadConstraints"].items().iter();
        let selectors = affinity_terms(&spec["affinity"])
            .into_iter()
            .flat_map(|term| [&term["labelSelector"], &term["namespaceSelector"]]);
        Tolerated {
            deletion_cost: !is_deletion_cost(&before["metadata"]["annotations"]),
            split_huge_pages: splits_huge_pages(spec),
            selector_values: SelectorValues::replacing(selectors),
            node_label_values: node_label_values(required_node_terms(&spec["affinity"])),
            spread_selector_values: SelectorValues::replacing(spread().map(|c| &c["labelSelector"])),
            spread_label_keys: spread().any(|constraint| {
                fails(|errs, path| validate_spread_label_keys(errs, path, constraint, false))
            }),
            host_sysctls: spec["securityContext"]["sysctls"]
                .items()
                .iter()
                .any(|sysctl| host_sysctl_problem(sysctl["name"].text(), spec).is_some()),
            token_paths: spec["volumes"]
                .items()
                .iter()
                .flat_map(|volume| volume["projected"]["sources"].items())
                .map(|source| &source["serviceAccountToken"])
                .any(|token| {
                    token.is_set()
                        && fails(|errs, path| local_non_reserved_path(errs, path, token["path"].text()))
                }),
            shifted_block_devices: spec["hostUsers"].as_bool() == Some(false)
                && any_container(spec, |container| !container["volumeDevices"].is_empty()),
        }
    }

    /// The same for a write of the status, where no spec is looked at.
    pub(super) fn in_status(before: &Value) -> Tolerated {
        let deletion_cost = !is_deletion_cost(&before["metadata"]["annotations"]);
        Tolerated { deletion_cost, ..Tolerated::default() }
    }

    /// What may replace a template, if there was one.
    pub(crate) fn replacing_template(before: Option<&Value>) -> Tolerated {
        before.filter(|template| template.is_set()).map(Tolerated::replacing).unwrap_or_default()
    }
}

/// Whether a rule finds anything.
fn fails(rule: impl FnOnce(&mut ErrorList, &Path)) -> bool {
    let mut errs = ErrorList::new();
    rule(&mut errs, &Path::root());
    !errs.is_empty()
}

fn splits_huge_pages(spec: &Value) -> bool {
    let splits = |amounts: &Value| amounts.entries().any(|(name, amount)| !is_whole_pages(name, amount));
    splits(&spec["overhead"])
        || any_container(spec, |container| {
            ["limits", "requests"].iter().any(|kind| splits(&container["resources"][*kind]))
        })
}

fn any_container(spec: &Value, holds: impl Fn(&Value) -> bool) -> bool {
    let mut found = false;
    visit_containers(spec, &Path::root(), &mut |container, _| found |= holds(container));
    found
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_create, check_update};
    use orlop_json::{Value, json};

    /// A pod template with `changes` in its spec.
    fn template(changes: &Value, restart: &str) -> Value {
        let mut all = json!({"metadata": {"labels": {"a": "b"}}, "spec": {
            "restartPolicy": restart, "containers": [{"name": "c", "image": "i"}]}});
        for (key, value) in changes.as_object().into_iter().flatten() {
            all["spec"][key] = value.clone();
        }
        all
    }

    /// Refused with `wrong` (below the spec) in a new object, kept in an old one, and not brought in by an update.
    fn check(changes: Value, wrong: &[&str]) {
        let selector = json!({"matchLabels": {"a": "b"}});
        let (running, done) = (template(&changes, "Always"), template(&changes, "Never"));
        let of_template = json!({"spec": {"selector": selector, "template": running}});
        // Upstream looks at some kinds twice.
        for (group, kind, object, at, times) in [
            ("", "Pod", running.clone(), "/spec", 0),
            ("", "PodTemplate", json!({"template": running}), "/template/spec", 1),
            ("", "ReplicationController", json!({"spec": {"template": running}}), "/spec/template/spec", 2),
            ("apps", "Deployment", of_template.clone(), "/spec/template/spec", 1),
            ("apps", "StatefulSet", of_template.clone(), "/spec/template/spec", 1),
            ("apps", "DaemonSet", of_template.clone(), "/spec/template/spec", 2),
            ("apps", "ReplicaSet", of_template, "/spec/template/spec", 2),
            (
                "batch",
                "CronJob",
                json!({"spec": {"schedule": "0 * * * *", "jobTemplate": {"spec": {"template": done}}}}),
                "/spec/jobTemplate/spec/template/spec",
                1,
            ),
        ] {
            let path = at[1..].replace('/', ".");
            let expected: Vec<String> = wrong.iter().map(|w| format!("{path}.{w}")).collect();
            let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
            check_create(group, kind, object.clone(), &expected);
            check_update(group, kind, object.clone(), object.clone(), &[]);
            if times > 0 {
                let mut plain = object.clone();
                let spec = plain.pointer_mut(at).unwrap();
                *spec = template(&Value::Null, spec["restartPolicy"].as_str().unwrap())["spec"].clone();
                check_update(group, kind, object, plain, &expected.repeat(times));
            }
        }
    }

    const LABEL: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

    #[test]
    fn what_was_wrong_may_stay() {
        let odd = json!({"matchExpressions": [{"key": "k", "operator": "In", "values": ["-x"]}]});
        let label =
            |path: &str| format!("{path}.matchExpressions[0].values[0]: Invalid value: \"-x\": {LABEL}");
        for key in ["labelSelector", "namespaceSelector"] {
            let term = json!({"topologyKey": "t", key: odd});
            for kind in ["podAffinity", "podAntiAffinity"] {
                let required = "requiredDuringSchedulingIgnoredDuringExecution";
                check(
                    json!({"affinity": {kind: {required: [term]}}}),
                    &[&label(&format!("affinity.{kind}.{required}[0].{key}"))],
                );
                let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
                check(
                    json!({"affinity": {kind: {preferred: [{"weight": 1, "podAffinityTerm": term}]}}}),
                    &[&label(&format!("affinity.{kind}.{preferred}[0].podAffinityTerm.{key}"))],
                );
            }
        }
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        check(
            json!({"affinity": {"nodeAffinity": {required: {"nodeSelectorTerms": [odd]}}}}),
            &[&label(&format!("affinity.nodeAffinity.{required}.nodeSelectorTerms[0]"))],
        );
        let spread = json!({"topologyKey": "t", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": odd});
        check(
            json!({"topologySpreadConstraints": [spread]}),
            &[&label("topologySpreadConstraints[0].labelSelector")],
        );
        check(
            json!({"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1", "hugepages-2Mi": "3Mi"}, "requests": {"cpu": "1", "hugepages-2Mi": "3Mi"}}}]}),
            &[
                "containers[0].resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
                "containers[0].resources.requests[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
            ],
        );
        check(
            json!({"hostNetwork": true, "hostIPC": true, "securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "1"}, {"name": "kernel/shmmax", "value": "1"}]}}),
            &[
                "securityContext.sysctls[0].name: Invalid value: \"net.core.somaxconn\": may not be specified when 'hostNetwork' is true",
                "securityContext.sysctls[1].name: Invalid value: \"kernel/shmmax\": may not be specified when 'hostIPC' is true",
            ],
        );
        check(
            json!({"serviceAccountName": "a", "volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "../x"}}]}}]}),
            &["volumes[0].projected.path: Invalid value: \"../x\": must not contain '..'"],
        );
        check(
            json!({"hostUsers": false, "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}],
                "containers": [{"name": "c", "image": "i", "volumeDevices": [{"name": "v", "devicePath": "/d"}]}]}),
            &["containers[0].volumeDevices: Forbidden: when `hostUsers` is false"],
        );
    }

    #[test]
    fn deletion_costs() {
        let pod = |cost: &str| {
            let mut pod = template(&Value::Null, "Always");
            pod["metadata"]["annotations"] = json!({"controller.kubernetes.io/pod-deletion-cost": cost});
            pod
        };
        let wrong = "metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"much\": must be a 32bit integer";
        check_create("", "Pod", pod("much"), &[wrong]);
        check_update("", "Pod", pod("much"), pod("more"), &[]);
        // Upstream looks at annotations twice in an update.
        check_update("", "Pod", pod("much"), pod("1"), &[wrong, wrong]);
    }

    #[test]
    fn label_keys() {
        let pod = |kind: &str, keys: Value, selector: Value| {
            let mut term = json!({"topologyKey": "t", "matchLabelKeys": keys, "labelSelector": selector});
            if kind == "spread" {
                term["maxSkew"] = 1.into();
                term["whenUnsatisfiable"] = "DoNotSchedule".into();
                return template(&json!({"topologySpreadConstraints": [term]}), "Always");
            }
            template(
                &json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}),
                "Always",
            )
        };
        for (kind, path) in [
            ("spread", "spec.topologySpreadConstraints[0]"),
            ("podAffinity", "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]"),
        ] {
            let twice =
                format!("{path}[0]: Invalid value: \"a\": exists in both matchLabelKeys and labelSelector");
            let named = json!({"matchLabels": {"a": "b"}});
            let exists = json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]});
            check_create("", "Pod", pod(kind, json!(["a"]), json!({})), &[]);
            check_create("", "Pod", pod(kind, json!(["a"]), named.clone()), &[&twice]);
            check_create("", "Pod", pod(kind, json!(["a"]), exists.clone()), &[&twice]);
            check_create(
                "",
                "Pod",
                pod(kind, json!(["/"]), Value::Null),
                &[&format!(
                    "{path}.matchLabelKeys: Forbidden: must not be specified when labelSelector is not set"
                )],
            );
            // A template's keys are not requirements yet.
            let of = |selector: &Value| json!({"template": pod(kind, json!(["a"]), selector.clone())});
            check_create("", "PodTemplate", of(&named), &[]);
            check_create("", "PodTemplate", of(&exists), &[]);
        }
    }
}
