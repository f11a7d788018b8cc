//! What upstream warns of in a pod or pod template that it accepts nevertheless.

use orlop_api::field::Path;
use serde_json::Value;

use super::resources::quantity;
use super::validation::visit_containers;
use crate::cursor::Cursor;

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";

const ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];

const VOLUMES: [(&str, &str); 9] = [
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// What upstream says of an old node label.
pub(crate) fn deprecated_node_label(label: &str) -> Option<&'static str> {
    Some(match label {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        _ => return None,
    })
}

/// Warnings for a pod (`path` is the root) or a template (`path` is the template's).
pub(crate) fn pod_warnings(path: &Path, pod: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let (meta, spec) = (&pod["metadata"], &pod["spec"]);
    let at = path.child("spec");
    let annotations = &meta["annotations"];
    let annotations_path = path.child("metadata").child("annotations");

    for (key, _) in spec["nodeSelector"].entries() {
        if let Some(msg) = deprecated_node_label(key) {
            out.push(format!("{}: {msg}", at.child("nodeSelector").key(key)));
        }
    }
    node_affinity(&mut out, &at.child("affinity").child("nodeAffinity"), &spec["affinity"]["nodeAffinity"]);
    for (i, constraint) in spec["topologySpreadConstraints"].items().iter().enumerate() {
        let at = at.child("topologySpreadConstraints").index(i);
        let key = constraint["topologyKey"].text();
        if let Some(msg) = deprecated_node_label(key) {
            out.push(format!("{}: {key} is {msg}", at.child("topologyKey")));
        }
        if !constraint["labelSelector"].is_set() {
            out.push(format!(
                "{}: a null labelSelector results in matching no pod",
                at.child("labelSelector")
            ));
        }
    }
    for (key, msg) in ANNOTATIONS {
        if annotations.has(key) {
            out.push(format!("{}: {msg}", annotations_path.key(key)));
        }
    }
    for (i, volume) in spec["volumes"].items().iter().enumerate() {
        for (kind, msg) in VOLUMES {
            if volume[kind].is_set() {
                let name = if kind == "storageos" { "storageOS" } else { kind };
                out.push(format!("{}: {msg}", at.child("volumes").index(i).child(name)));
            }
        }
    }
    duplicates(&mut out, &at, spec, "hostAliases", "ip");
    duplicates(&mut out, &at, spec, "imagePullSecrets", "name");
    for (i, secret) in spec["imagePullSecrets"].items().iter().enumerate() {
        if secret["name"].text().is_empty() {
            out.push(format!(
                "{}: invalid empty name \"\"",
                at.child("imagePullSecrets").index(i).child("name")
            ));
        }
    }
    fractions(&mut out, &at.child("overhead"), &spec["overhead"]);
    if !spec["securityContext"]["seccompProfile"].is_set() && annotations.has(SECCOMP_POD) {
        out.push(format!("{}: {SECCOMP}", annotations_path.key(SECCOMP_POD)));
    }
    let pod_app_armor = spec["securityContext"]["appArmorProfile"].is_set();
    visit_containers(spec, &at, &mut |container, at| {
        let context = &container["securityContext"];
        let key = format!("{SECCOMP_CONTAINER}{}", container["name"].text());
        if !context["seccompProfile"].is_set() && annotations.has(&key) {
            out.push(format!("{}: {SECCOMP}", annotations_path.key(&key)));
        }
        let key = format!("{APP_ARMOR}{}", container["name"].text());
        if !pod_app_armor && !context["appArmorProfile"].is_set() && annotations.has(&key) {
            out.push(format!(
                "{}: deprecated since v1.30; use the \"appArmorProfile\" field instead",
                annotations_path.key(&key)
            ));
        }
        for list in ["limits", "requests"] {
            fractions(&mut out, &at.child("resources").child(list), &container["resources"][list]);
        }
        hidden_env(&mut out, &at.child("env"), &container["env"]);
    });
    overlapping_ports(&mut out, &at, spec);
    if spec["terminationGracePeriodSeconds"].int() < 0 {
        out.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            at.child("terminationGracePeriodSeconds")
        ));
    }
    out
}

fn node_affinity(out: &mut Vec<String>, path: &Path, affinity: &Value) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let mut term = |path: Path, term: &Value| {
        for (i, expression) in term["matchExpressions"].items().iter().enumerate() {
            let key = expression["key"].text();
            if let Some(msg) = deprecated_node_label(key) {
                let at = path.child("matchExpressions").index(i).child("key");
                out.push(format!("{at}: {key} is {msg}"));
            }
        }
    };
    for (i, t) in affinity[REQUIRED]["nodeSelectorTerms"].items().iter().enumerate() {
        term(path.child(REQUIRED).child("nodeSelectorTerms").index(i), t);
    }
    for (i, t) in affinity[PREFERRED].items().iter().enumerate() {
        term(path.child(PREFERRED).index(i).child("preference"), &t["preference"]);
    }
}

fn duplicates(out: &mut Vec<String>, path: &Path, spec: &Value, list: &str, key: &str) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, item) in spec[list].items().iter().enumerate() {
        let value = item[key].text();
        if seen.contains(&value) {
            out.push(format!("{}: duplicate {key} {value:?}", path.child(list).index(i).child(key)));
        }
        seen.push(value);
    }
}

fn fractions(out: &mut Vec<String>, path: &Path, list: &Value) {
    for name in ["memory", "ephemeral-storage"] {
        if list[name].is_set() && !quantity(&list[name]).is_integer() {
            out.push(format!(
                "{}: fractional byte value {:?} is invalid, must be an integer",
                path.key(name),
                list[name].text()
            ));
        }
    }
}

fn hidden_env(out: &mut Vec<String>, path: &Path, env: &Value) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, var) in env.items().iter().enumerate() {
        let name = var["name"].text();
        if !seen.contains(&name) {
            seen.push(name);
            continue;
        }
        // X="abc" then X="$(X)123" builds on what was there; everything else hides it.
        let reference = format!("$({name})");
        let value = var["value"].text();
        if var["valueFrom"].is_set() || value == reference || !value.contains(&reference) {
            out.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                path.index(i)
            ));
        }
    }
}

fn overlapping_ports(out: &mut Vec<String>, path: &Path, spec: &Value) {
    let mut seen: Vec<(i64, String, String, i64, Path)> = Vec::new();
    visit_containers(spec, path, &mut |container, at| {
        for (i, port) in container["ports"].items().iter().enumerate() {
            let at = at.child("ports").index(i);
            let (number, protocol) = (port["containerPort"].int(), port["protocol"].text());
            let (host_ip, host_port) = (port["hostIP"].text(), port["hostPort"].int());
            for (n, p, other_ip, other_port, other) in &seen {
                if *n != number || p != protocol {
                    continue;
                }
                if host_ip == other_ip && host_port == *other_port {
                    out.push(format!("{at}: duplicate port definition with {other}"));
                } else if host_port == 0
                    || *other_port == 0
                    || (host_port == *other_port && (host_ip.is_empty() || other_ip.is_empty()))
                {
                    out.push(format!("{at}: overlapping port definition with {other}"));
                }
            }
            seen.push((number, protocol.to_owned(), host_ip.to_owned(), host_port, at));
        }
    });
}
