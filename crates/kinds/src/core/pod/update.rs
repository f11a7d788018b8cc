//! What may change in a pod once it exists: by an update, by `/status`, `/ephemeralcontainers` and `/resize`.

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Value, json};

use super::tolerated::Tolerated;
use super::validation::validate_metadata_and_spec;
use super::{affinity, qos};
use crate::NameRule;
use crate::cursor::{Cursor, child, differences, items_mut, keep_field, remove, same};
use crate::metadata;
use crate::validate::{ip, object_name, qualified_name};

const MIRROR: &str = "kubernetes.io/config.mirror";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Annotations that are fixed from the start.
fn validate_annotation_updates(errs: &mut ErrorList, pod: &Value, old: &Value, tolerated: Tolerated) {
    let path = Path::new("metadata").child("annotations");
    let (new, was) = (&pod["metadata"]["annotations"], &old["metadata"]["annotations"]);
    for (key, value) in was.entries() {
        if new.get(key) == Some(value) {
            continue;
        }
        if key.starts_with(APP_ARMOR) {
            errs.push(field::forbidden(&path.key(key), "may not remove or update AppArmor annotations"));
        }
        if key == MIRROR {
            errs.push(field::forbidden(&path.key(key), "may not remove or update mirror pod annotation"));
        }
    }
    for (key, _) in new.entries().filter(|(key, _)| !was.has(key)) {
        if key.starts_with(APP_ARMOR) {
            errs.push(field::forbidden(&path.key(key), "may not add AppArmor annotations"));
        }
        if key == MIRROR {
            errs.push(field::forbidden(&path.key(key), "may not add mirror pod annotation"));
        }
    }
    super::validation::validate_pod_annotations(errs, &path, new, &pod["spec"], tolerated);
}

/// An update of the pod itself: upstream's `ValidatePodUpdate`.
pub(super) fn validate_pod_update(pod: &Value, old: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta_update(pod, old);
    let tolerated = Tolerated::replacing(old);
    errs.extend(validate_metadata_and_spec(pod, tolerated));
    validate_annotation_updates(&mut errs, pod, old, tolerated);
    let (spec, was) = (&pod["spec"], &old["spec"]);
    let path = Path::new("spec");
    for list in ["containers", "initContainers"] {
        let path = path.child(list);
        if spec[list].items().len() != was[list].items().len() {
            errs.push(field::forbidden(&path, "pod updates may not add or remove containers"));
            return errs;
        }
        for (i, container) in spec[list].items().iter().enumerate() {
            let image = container["image"].text();
            if image.is_empty() {
                errs.push(field::required(&path.index(i).child("image"), ""));
            }
            super::containers::validate_image_is_trimmed(&mut errs, &path.index(i), container);
        }
    }
    let (deadline, before) = (&spec["activeDeadlineSeconds"], &was["activeDeadlineSeconds"]);
    let at = path.child("activeDeadlineSeconds");
    if deadline.is_set() {
        let seconds = deadline.int();
        if !(0..=i64::from(i32::MAX)).contains(&seconds) {
            let range = names::inclusive_range_error(0, i64::from(i32::MAX));
            errs.push(field::invalid(&at, seconds, range));
            return errs;
        }
        if before.is_set() && before.int() < seconds {
            errs.push(field::invalid(&at, seconds, "must be less than or equal to previous value"));
            return errs;
        }
    } else if before.is_set() {
        errs.push(field::invalid(&at, Value::Null, "must not update from a positive integer to nil value"));
    }
    validate_only_added_tolerations(&mut errs, &path.child("tolerations"), spec, was);
    validate_only_deleted_gates(&mut errs, &path.child("schedulingGates"), spec, was);
    if same(spec, was) {
        return errs;
    }

    // Put back what may change; the rest must be as it was.
    let mut munged = spec.clone();
    for list in ["containers", "initContainers"] {
        for (i, container) in items_mut(&mut munged, list).enumerate() {
            container["image"] = was[list][i]["image"].clone();
        }
    }
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        keep_field(&mut munged, was, key);
    }
    if was["terminationGracePeriodSeconds"].int() < 0 && munged["terminationGracePeriodSeconds"].int() == 1 {
        keep_field(&mut munged, was, "terminationGracePeriodSeconds");
    }
    if !was["schedulingGates"].is_empty() {
        validate_gated_changes(&mut errs, &mut munged, was);
    }
    if !same(&munged, was) {
        errs.push(field::forbidden(
            &path,
            format!(
                "pod updates may not change fields other than {UPDATABLE}\n{}",
                differences(was, &munged)
            ),
        ));
    }
    errs
}

fn validate_only_added_tolerations(errs: &mut ErrorList, path: &Path, spec: &Value, was: &Value) {
    let key = |t: &Value| {
        let mut t = t.clone();
        remove(&mut t, "tolerationSeconds");
        t
    };
    let new: Vec<Value> = spec["tolerations"].items().iter().map(key).collect();
    if was["tolerations"].items().iter().any(|t| !new.contains(&key(t))) {
        errs.push(field::forbidden(
            path,
            "existing toleration can not be modified except its tolerationSeconds",
        ));
        return;
    }
    affinity::validate_tolerations(errs, path, &spec["tolerations"]);
}

fn validate_only_deleted_gates(errs: &mut ErrorList, path: &Path, spec: &Value, was: &Value) {
    let old: Vec<&str> = was["schedulingGates"].items().iter().map(|g| g["name"].text()).collect();
    for (i, gate) in spec["schedulingGates"].items().iter().enumerate() {
        let name = gate["name"].text();
        if !old.contains(&name) {
            errs.push(field::forbidden(
                &path.index(i).child("name"),
                format!("only deletion is allowed, but found new scheduling gate '{name}'"),
            ));
        }
    }
}

/// A gated pod may become pickier about its node; what was allowed is put back in `munged`.
fn validate_gated_changes(errs: &mut ErrorList, munged: &mut Value, was: &Value) {
    let path = Path::new("spec");
    if !same(&munged["nodeSelector"], &was["nodeSelector"]) {
        let kept = was["nodeSelector"].entries().all(|(k, v)| munged["nodeSelector"].get(k) == Some(v));
        if !kept {
            errs.push(field::invalid(
                &path.child("nodeSelector"),
                munged["nodeSelector"].clone(),
                "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
            ));
        }
        keep_field(munged, was, "nodeSelector");
    }
    let (new, old) = (munged["affinity"]["nodeAffinity"].clone(), was["affinity"]["nodeAffinity"].clone());
    if same(&new, &old) {
        return;
    }
    let at = path.child("affinity").child("nodeAffinity");
    validate_node_affinity_change(errs, &at, &new, &old);
    let affinity = child(munged, "affinity");
    if old.is_null() {
        remove(affinity, "nodeAffinity");
    } else {
        affinity["nodeAffinity"] = old;
    }
    if affinity.is_empty() && !was["affinity"].is_set() {
        remove(munged, "affinity");
    }
}

fn validate_node_affinity_change(errs: &mut ErrorList, path: &Path, new: &Value, old: &Value) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let before = &old[REQUIRED];
    if !before.is_set() {
        return;
    }
    let at = path.child(REQUIRED).child("nodeSelectorTerms");
    let (terms, old_terms) = (&new[REQUIRED]["nodeSelectorTerms"], &before["nodeSelectorTerms"]);
    if terms.items().len() != old_terms.items().len() {
        errs.push(field::invalid(
            &at,
            terms.clone(),
            "no additions/deletions to non-empty NodeSelectorTerms list are allowed",
        ));
        return;
    }
    for (i, (term, old)) in terms.items().iter().zip(old_terms.items()).enumerate() {
        let empty = |t: &Value| t["matchExpressions"].is_empty() && t["matchFields"].is_empty();
        let starts = |key: &str| {
            let (new, old) = (term[key].items(), old[key].items());
            new.len() >= old.len() && new.iter().zip(old).all(|(a, b)| same(a, b))
        };
        if (empty(old) && !empty(term)) || !starts("matchExpressions") || !starts("matchFields") {
            errs.push(field::invalid(
                &at.index(i),
                term.clone(),
                "only additions are allowed (no mutations or deletions)",
            ));
        }
    }
}

/// A write of `/status`: upstream's `ValidatePodStatusUpdate`.
pub(super) fn validate_pod_status_update(pod: &Value, old: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta_update(pod, old);
    validate_annotation_updates(&mut errs, pod, old, Tolerated::in_status(old));
    let (status, was) = (&pod["status"], &old["status"]);
    // Upstream has this path wrong, and clients see it.
    let conditions = Path::new("metadata").child("conditions");
    for (i, condition) in status["conditions"].items().iter().enumerate() {
        let kind = condition["type"].text();
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            qualified_name(&mut errs, &conditions.index(i).child("Type"), kind);
        }
    }
    let path = Path::new("status");
    let nominated = status["nominatedNodeName"].text();
    if nominated != was["nominatedNodeName"].text() && !nominated.is_empty() {
        let at = path.child("nominatedNodeName");
        object_name(&mut errs, &at, nominated, NameRule::DnsSubdomain);
    }
    errs.extend(metadata::validate_immutable(&status["qosClass"], &was["qosClass"], &path.child("qosClass")));
    let restart = old["spec"]["restartPolicy"].text();
    for (list, policy) in [
        ("containerStatuses", restart),
        ("initContainerStatuses", restart),
        ("ephemeralContainerStatuses", "Never"),
    ] {
        validate_state_transitions(&mut errs, &path, list, policy, pod, old);
    }
    validate_ips(&mut errs, &path.child("podIPs"), &status["podIPs"]);
    if !status["hostIPs"].is_empty() {
        let at = path.child("hostIPs");
        let first = status["hostIPs"][0]["ip"].text();
        if status["hostIP"].text() != first {
            errs.push(field::invalid(&at.index(0).child("ip"), first, "must be equal to `hostIP`"));
        }
        validate_ips(&mut errs, &at, &status["hostIPs"]);
    }
    errs
}

/// A container that ended and will not be restarted stays ended.
fn validate_state_transitions(
    errs: &mut ErrorList,
    path: &Path,
    list: &str,
    policy: &str,
    pod: &Value,
    old: &Value,
) {
    if policy == "Always" {
        return;
    }
    for (i, was) in old["status"][list].items().iter().enumerate() {
        let ended = &was["state"]["terminated"];
        if !ended.is_set() || (ended["exitCode"].int() != 0 && policy == "OnFailure") {
            continue;
        }
        let name = was["name"].text();
        let sidecar = old["spec"]["initContainers"]
            .items()
            .iter()
            .any(|c| c["name"].text() == name && c["restartPolicy"].text() == "Always");
        if list == "initContainerStatuses" && sidecar {
            continue;
        }
        for now in pod["status"][list].items() {
            if now["name"].text() == name && !now["state"]["terminated"].is_set() {
                errs.push(field::forbidden(
                    &path.child(list).index(i).child("state"),
                    "may not be transitioned to non-terminated state",
                ));
            }
        }
    }
}

fn validate_ips(errs: &mut ErrorList, path: &Path, ips: &Value) {
    let all: Vec<&str> = ips.items().iter().map(|e| e["ip"].text()).collect();
    for (i, address) in all.iter().enumerate() {
        ip(errs, &path.index(i), address);
    }
    if all.len() > 1 {
        let v6 = all.iter().filter(|a| a.contains(':')).count();
        if v6 != 1 || all.len() > 2 {
            errs.push(field::invalid(
                path,
                ips.clone(),
                "may specify no more than one IP for each IP family",
            ));
        }
        for (i, address) in all.iter().enumerate() {
            if all[..i].contains(address) {
                errs.push(field::duplicate(&path.index(i), ips[i].clone()));
            }
        }
    }
}

/// Prepares a write of `/ephemeralcontainers`: nothing but these containers (and metadata) may differ.
pub fn prepare_ephemeral_containers_update(pod: &mut Value, old: &Value) {
    let containers = pod["spec"]["ephemeralContainers"].clone();
    pod["spec"] = old["spec"].clone();
    if containers.is_empty() {
        remove(&mut pod["spec"], "ephemeralContainers");
    } else {
        pod["spec"]["ephemeralContainers"] = containers;
    }
    keep_field(pod, old, "status");
    crate::cursor::bump_generation(pod, old, &["spec"]);
}

/// What is wrong with a write of `/ephemeralcontainers`: containers may be added, never changed or removed.
pub fn validate_ephemeral_containers_update(pod: &Value, old: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta_update(pod, old);
    let tolerated = Tolerated::replacing(old);
    errs.extend(validate_metadata_and_spec(pod, tolerated));
    validate_annotation_updates(&mut errs, pod, old, tolerated);
    if old["metadata"]["annotations"].has(MIRROR) {
        return vec![field::forbidden(&Path::new(""), "static pods do not support ephemeral containers")];
    }
    let path = Path::new("spec").child("ephemeralContainers");
    for was in old["spec"]["ephemeralContainers"].items() {
        let name = was["name"].text();
        let now = pod["spec"]["ephemeralContainers"].items().iter().find(|c| c["name"].text() == name);
        match now {
            None => errs.push(field::forbidden(
                &path,
                format!("existing ephemeral containers {name:?} may not be removed\n"),
            )),
            Some(now) if !same(now, was) => errs.push(field::forbidden(
                &path,
                format!(
                    "existing ephemeral containers {name:?} may not be changed\n{}",
                    differences(was, now)
                ),
            )),
            Some(_) => {}
        }
    }
    errs
}

/// Prepares a write of `/resize`: nothing but the resources of the pod and of its containers and their resize policies
/// may differ.
pub fn prepare_resize_update(pod: &mut Value, old: &Value) {
    let wanted = pod["spec"].clone();
    pod["spec"] = old["spec"].clone();
    keep_field(&mut pod["spec"], &wanted, "resources");
    for list in ["containers", "initContainers"] {
        for container in items_mut(&mut pod["spec"], list) {
            let name = container["name"].clone();
            let from = wanted[list].items().iter().find(|c| c["name"] == name);
            if let Some(from) = from {
                for key in ["resources", "resizePolicy"] {
                    keep_field(container, from, key);
                }
            }
        }
    }
    crate::cursor::keep_metadata(pod, old);
    keep_field(pod, old, "status");
    crate::cursor::bump_generation(pod, old, &["spec"]);
}

/// Whether the node of a running pod can change resources in place: it then reports those of running containers.
fn node_can_resize(pod: &Value) -> bool {
    let running = pod["status"]["containerStatuses"].items().iter().find(|s| s["state"]["running"].is_set());
    running.is_none_or(|status| status["resources"].is_set())
}

/// Requirements may change, but not go away.
fn validate_requirements_change(errs: &mut ErrorList, path: &Path, now: &Value, was: &Value) {
    for kind in ["requests", "limits"] {
        if was[kind].entries().any(|(name, _)| !now[kind].has(name)) {
            errs.push(field::forbidden(&path.child(kind), format!("resource {kind} cannot be removed")));
        }
    }
}

/// Whether nothing but requests and limits of cpu and memory changed.
fn only_cpu_and_memory_differ(now: &Value, was: &Value) -> bool {
    let others = |holder: &Value| {
        let mut holder = holder.clone();
        for kind in ["requests", "limits"] {
            for name in ["cpu", "memory"] {
                if let Some(list) = holder.pointer_mut(&format!("/resources/{kind}")) {
                    remove(list, name);
                }
            }
        }
        holder
    };
    same(&others(now), &others(was))
}

/// What is wrong with a write of `/resize`: only cpu and memory may change, and the QoS class may not.
pub fn validate_resize_update(pod: &Value, old: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta_update(pod, old);
    errs.extend(validate_metadata_and_spec(pod, Tolerated::replacing(old)));
    let refuse = |why: &str| vec![field::forbidden(&Path::new(""), why)];
    if old["metadata"]["annotations"].has(MIRROR) {
        return refuse("static pods cannot be resized");
    }
    if old["spec"]["os"]["name"].text() == "windows" {
        return refuse("windows pods cannot be resized");
    }
    let path = Path::new("spec");
    let class = qos::class(&pod["spec"]);
    if old["status"]["qosClass"].text() != class {
        errs.push(field::invalid(&path, class, "Pod QOS Class may not change as a result of resizing"));
    }
    if !node_can_resize(old) {
        errs.push(field::forbidden(&path, "Pod running on node without support for resize"));
    }
    validate_requirements_change(
        &mut errs,
        &path.child("resources"),
        &pod["spec"]["resources"],
        &old["spec"]["resources"],
    );
    let is_sidecar = |container: &Value| container["restartPolicy"].text() == "Always";
    let pairs = |list: &str| -> Vec<(usize, &Value, &Value)> {
        let pairs = pod["spec"][list].items().iter().zip(old["spec"][list].items());
        pairs.enumerate().map(|(i, (now, was))| (i, now, was)).collect()
    };
    for list in ["initContainers", "containers"] {
        for (i, now, was) in pairs(list) {
            if list == "initContainers" && !is_sidecar(was) {
                continue;
            }
            let at = path.child(list).index(i).child("resources");
            validate_requirements_change(&mut errs, &at, &now["resources"], &was["resources"]);
            let (new, old) = (&now["resources"]["limits"]["memory"], &was["resources"]["limits"]["memory"]);
            let restarts = now["resizePolicy"].items().iter().any(|p| {
                p["resourceName"].text() == "memory" && p["restartPolicy"].text() == "RestartContainer"
            });
            if !restarts && new.is_set() && !old.is_set() {
                errs.push(field::forbidden(
                    &at.child("limits").key("memory"),
                    "memory limits cannot be added unless resizePolicy is RestartContainer",
                ));
            }
        }
    }
    let mut only = |same: bool, why: &str| {
        if !same {
            errs.push(field::forbidden(&path, why));
        }
    };
    for (_, now, was) in pairs("containers") {
        only(only_cpu_and_memory_differ(now, was), "only cpu and memory resources are mutable");
    }
    for (_, now, was) in pairs("initContainers") {
        if is_sidecar(was) {
            only(
                only_cpu_and_memory_differ(now, was),
                "only cpu and memory resources for sidecar containers are mutable",
            );
        } else {
            only(same(now, was), "resources for non-sidecar init containers are immutable");
        }
    }
    let pod_level = |pod: &Value| json!({"resources": pod["spec"]["resources"]});
    only(
        only_cpu_and_memory_differ(&pod_level(pod), &pod_level(old)),
        "only cpu and memory resources are mutable",
    );
    errs
}

/// What is wrong with a `Binding`; the API server reports the first of these as it is.
pub fn validate_binding(binding: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let target = &binding["target"];
    let path = Path::new("target");
    let kind = target["kind"].text();
    if !matches!(kind, "" | "Node") {
        errs.push(field::not_supported(&path.child("kind"), kind, &["Node", "<empty>"]));
    }
    if target["name"].text().is_empty() {
        errs.push(field::required(&path.child("name"), ""));
    }
    errs
}
