//! Node: a machine. Its status comes with its creation, because the kubelet registers itself that way.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Value, json};

use super::pod::resources::validate_resource_quantity;
use super::pod::validate_taint_effect;
use crate::addresses::cidr_warning;
use crate::cursor::{Cursor, child, keep};
use crate::metadata::{self, validate_label_name};
use crate::validate::cidr;
use crate::{NameRule, Strategy, printer};

/// The strategy of Nodes.
pub struct Node;

fn validate_taints(errs: &mut ErrorList, path: &Path, taints: &Value) {
    let all = taints.items();
    for (i, taint) in all.iter().enumerate() {
        let path = path.index(i);
        errs.extend(validate_label_name(taint["key"].text(), &path.child("key")));
        let value = taint["value"].text();
        let messages = names::is_valid_label_value(value);
        if !messages.is_empty() {
            errs.push(field::invalid(&path.child("value"), value, messages.join(";")));
        }
        let effect = taint["effect"].text();
        if effect.is_empty() {
            errs.push(field::required(&path.child("effect"), ""));
        } else {
            validate_taint_effect(errs, &path.child("effect"), effect);
        }
        let twice = all[..i].iter().any(|t| t["key"] == taint["key"] && t["effect"] == taint["effect"]);
        if twice {
            let mut error = field::duplicate(&path, taint.clone());
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errs.push(error);
        }
    }
}

fn validate_resources(errs: &mut ErrorList, node: &Value) {
    for list in ["capacity", "allocatable"] {
        for (name, value) in node["status"][list].entries() {
            let path = Path::new("status").child(list).child(name);
            validate_resource_quantity(errs, &path, name, value);
        }
    }
}

fn validate(node: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(node, false, NameRule::DnsSubdomain);
    // Upstream reports taints below metadata, where they once were.
    validate_taints(&mut errs, &Path::new("metadata").child("taints"), &node["spec"]["taints"]);
    validate_resources(&mut errs, node);
    let cidrs = node["spec"]["podCIDRs"].texts();
    let path = Path::new("spec").child("podCIDRs");
    for (i, range) in cidrs.iter().enumerate() {
        cidr(&mut errs, &path.index(i), range);
    }
    if cidrs.len() > 1 {
        let v6 = cidrs.iter().filter(|c| c.contains(':')).count();
        if v6 != 1 || cidrs.len() > 2 {
            errs.push(field::invalid(
                &path,
                node["spec"]["podCIDRs"].clone(),
                "may specify no more than one CIDR for each IP family",
            ));
        }
        for (i, range) in cidrs.iter().enumerate() {
            if cidrs[..i].contains(range) {
                errs.push(field::duplicate(&path.index(i), *range));
            }
        }
    }
    errs
}

fn validate_update(node: &Value, old: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta_update(node, old);
    let (spec, was) = (&node["spec"], &old["spec"]);
    validate_resources(&mut errs, node);
    let addresses = node["status"]["addresses"].items();
    for (i, address) in addresses.iter().enumerate() {
        if addresses[..i].contains(address) {
            errs.push(field::duplicate(&Path::new("status").child("addresses").index(i), address.clone()));
        }
    }
    let path = Path::new("spec");
    let (cidrs, before) = (spec["podCIDRs"].texts(), was["podCIDRs"].texts());
    if !before.is_empty() {
        let changed = if cidrs.len() == before.len() {
            cidrs.iter().zip(&before).filter(|(a, b)| a != b).count()
        } else {
            1
        };
        for _ in 0..changed {
            errs.push(field::forbidden(
                &path.child("podCIDRs"),
                "node updates may not change podCIDR except from \"\" to valid",
            ));
        }
    }
    if !was["providerID"].text().is_empty() && spec["providerID"] != was["providerID"] {
        errs.push(field::forbidden(
            &path.child("providerID"),
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
    validate_taints(&mut errs, &Path::new("metadata").child("taints"), &spec["taints"]);
    if spec["externalID"] != was["externalID"] {
        errs.push(field::forbidden(&path.child("externalID"), "may not be updated"));
    }
    errs
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = node["metadata"]["labels"]
        .entries()
        .filter_map(|(key, value)| {
            let role = key.strip_prefix("node-role.kubernetes.io/");
            let role = role.or((key == "kubernetes.io/role").then(|| value.text()));
            role.filter(|r| !r.is_empty())
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

fn status(node: &Value) -> String {
    let ready = node["status"]["conditions"].items().iter().find(|c| c["type"].text() == "Ready");
    let word = match ready.map(|c| c["status"].text()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if node["spec"]["unschedulable"].flag() { format!("{word},SchedulingDisabled") } else { word.to_owned() }
}

impl Strategy for Node {
    fn namespaced(&self) -> bool {
        false
    }

    fn defaults(&self, obj: &mut Value) {
        let status = child(obj, "status");
        if !status["allocatable"].is_set() && status["capacity"].is_set() {
            status["allocatable"] = status["capacity"].clone();
        }
        for list in ["capacity", "allocatable"] {
            if let Some(list) = status.get_mut(list) {
                super::pod::defaults::round_quantities(list);
            }
        }
        // The single range and the list of ranges say the same; the single one wins.
        let spec = child(obj, "spec");
        let (one, first) = (spec["podCIDR"].text().to_owned(), spec["podCIDRs"][0].text().to_owned());
        if one.is_empty() && !first.is_empty() {
            spec["podCIDR"] = first.into();
        } else if one != first {
            spec["podCIDRs"] = json!([one]);
        }
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["status"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate(obj)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate(obj);
        errs.extend(validate_update(obj, old));
        errs
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if obj["spec"]["configSource"].is_set() {
            out.push("spec.configSource: the feature is no longer supported".to_owned());
        }
        if !obj["spec"]["externalID"].text().is_empty() {
            out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
        }
        for (i, range) in obj["spec"]["podCIDRs"].texts().into_iter().enumerate() {
            out.extend(cidr_warning(&Path::new("spec").child("podCIDRs").index(i), range));
        }
        out
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        validate_update(obj, old)
    }

    fn selectable_field(&self, obj: &Value, label: &str) -> Option<String> {
        match label {
            "metadata.name" => Some(obj["metadata"]["name"].text().to_owned()),
            "spec.unschedulable" => Some(obj["spec"]["unschedulable"].flag().to_string()),
            _ => None,
        }
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let info = &obj["status"]["nodeInfo"];
        let address = |kind: &str| -> Value {
            obj["status"]["addresses"]
                .items()
                .iter()
                .find(|a| a["type"].text() == kind)
                .map_or("<none>", |a| a["address"].text())
                .into()
        };
        let or_unknown = |key: &str| -> Value {
            match info[key].text() {
                "" => "<unknown>".into(),
                text => text.into(),
            }
        };
        vec![
            printer::name(obj),
            status(obj).into(),
            roles(obj).into(),
            printer::age(obj, now),
            info["kubeletVersion"].text().into(),
            address("InternalIP"),
            address("ExternalIP"),
            or_unknown("osImage"),
            or_unknown("kernelVersion"),
            or_unknown("containerRuntimeVersion"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_cells, check_create, check_defaults, check_update};

    #[test]
    fn defaults() {
        check_defaults(
            "",
            "Node",
            json!({"spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.2.0.0/24"]}, "status": {"capacity": {"cpu": "4"}}}),
            json!({"spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]},
                "status": {"capacity": {"cpu": "4"}, "allocatable": {"cpu": "4"}}}),
        );
    }

    #[test]
    fn validation() {
        check_create(
            "",
            "Node",
            json!({"spec": {"taints": [{"key": "a", "effect": "Foo"}]}}),
            &[
                "metadata.taints[0].effect: Unsupported value: \"Foo\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
            ],
        );
        check_update(
            "",
            "Node",
            json!({"spec": {"podCIDR": "10.2.0.0/24"}}),
            json!({"spec": {"podCIDR": "10.1.0.0/24"}}),
            &["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"],
        );
        check_update(
            "",
            "Node",
            json!({"spec": {"podCIDR": "10.2.0.0/24", "providerID": "b"}}),
            json!({"spec": {"providerID": "a"}}),
            &["spec.providerID: Forbidden: node updates may not change providerID except from \"\" to valid"],
        );
    }

    #[test]
    fn rows() {
        check_cells(
            "",
            "Node",
            json!({"metadata": {"name": "n", "creationTimestamp": "2024-01-01T00:00:00Z"}}),
            json!([
                "n",
                "Unknown",
                "<none>",
                "24h",
                "",
                "<none>",
                "<none>",
                "<unknown>",
                "<unknown>",
                "<unknown>"
            ]),
        );
        check_cells(
            "",
            "Node",
            json!({"metadata": {"name": "n", "creationTimestamp": "2024-01-01T00:00:00Z",
                    "labels": {"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "edge"}},
                "spec": {"unschedulable": true},
                "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
                    "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": "orlop://1"}}}),
            json!([
                "n",
                "Ready,SchedulingDisabled",
                "edge,worker",
                "24h",
                "v1.36.0",
                "1.2.3.4",
                "<none>",
                "Debian",
                "6.1",
                "orlop://1"
            ]),
        );
    }
}
