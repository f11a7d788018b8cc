//! What upstream warns of in a pod or pod template that it accepts nevertheless.

use orlop_api::field::Path;
use orlop_api::names;
use orlop_json::Value;

use super::resources::quantity;
use super::validation::visit_containers;
use crate::addresses::ip_warning;
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
        "app.kubernetes.io/created-by" => "deprecated since v1.9",
        "scheduler.alpha.kubernetes.io/preferAvoidPods" => {
            "deprecated since v1.22; use Taints and Tolerations instead"
        }
        "node-role.kubernetes.io/master" => "use \"node-role.kubernetes.io/control-plane\" instead",
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
        let claim = &volume["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"];
        let claim_path =
            at.child("volumes").index(i).child("ephemeral").child("volumeClaimTemplate").child("spec");
        for list in ["limits", "requests"] {
            fraction(&mut out, &claim_path.child("resources").child(list), &claim[list], "storage");
        }
    }
    overlapping_files(&mut out, &spec["volumes"]);
    duplicates(&mut out, &at, spec, "hostAliases", "ip");
    for (i, alias) in spec["hostAliases"].items().iter().enumerate() {
        out.extend(ip_warning(&at.child("hostAliases").index(i).child("ip"), alias["ip"].text()));
    }
    for (i, server) in spec["dnsConfig"]["nameservers"].texts().into_iter().enumerate() {
        out.extend(ip_warning(&at.child("dnsConfig").child("nameservers").index(i), server));
    }
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
    for kind in ["podAffinity", "podAntiAffinity"] {
        null_selectors(&mut out, &at.child("affinity").child(kind), &spec["affinity"][kind]);
    }
    out
}

/// Terms without a selector, which match nothing.
fn null_selectors(out: &mut Vec<String>, path: &Path, affinity: &Value) {
    let mut check = |at: Path, term: &Value| {
        if !term["labelSelector"].is_set() {
            out.push(format!(
                "{}: a null labelSelector results in matching no pod",
                at.child("labelSelector")
            ));
        }
    };
    for (i, term) in affinity[REQUIRED].items().iter().enumerate() {
        check(path.child(REQUIRED).index(i), term);
    }
    for (i, term) in affinity[PREFERRED].items().iter().enumerate() {
        check(path.child(PREFERRED).index(i).child("podAffinityTerm"), &term["podAffinityTerm"]);
    }
}

/// A file that a volume makes, and what it is made from (empty where there is only one source).
struct File {
    path: String,
    source: String,
}

impl File {
    fn all(items: &Value, source: &str) -> Vec<File> {
        items.items().iter().map(|item| File::new(item["path"].text(), source)).collect()
    }

    fn new(path: &str, source: &str) -> File {
        File { path: path.trim_end_matches('/').to_owned(), source: source.to_owned() }
    }

    fn describe(&self) -> String {
        if self.source.is_empty() {
            return format!("{:?}", self.path);
        }
        format!("{:?} ({})", self.path, self.source)
    }

    /// Whether both are one file, or one lies in a directory that the other wants to be a file.
    fn collides(&self, other: &File) -> bool {
        let within = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
        self.path == other.path || within(&self.path, &other.path) || within(&other.path, &self.path)
    }
}

/// Files of one volume that are in each other's way.
fn overlapping_files(out: &mut Vec<String>, volumes: &Value) {
    for volume in volumes.items() {
        let name = volume["name"].text();
        let named = |kind: &str, source: &Value, key: &str| format!("{kind} {:?}", source[key].text());
        let mut report = |what: &str, files: Vec<File>| {
            for (i, file) in files.iter().enumerate() {
                let others: Vec<String> =
                    files[..i].iter().filter(|f| f.collides(file)).map(File::describe).collect();
                if !others.is_empty() {
                    out.push(format!(
                        "volume {name:?} ({what}): overlapping paths: {} with {}",
                        file.describe(),
                        others.join(", ")
                    ));
                }
            }
        };
        let (map, secret) = (&volume["configMap"], &volume["secret"]);
        report(&named("ConfigMap", map, "name"), File::all(&map["items"], ""));
        report(&named("Secret", secret, "secretName"), File::all(&secret["items"], ""));
        report("DownwardAPI", File::all(&volume["downwardAPI"]["items"], ""));
        let mut files = Vec::new();
        for source in volume["projected"]["sources"].items() {
            let (map, secret) = (&source["configMap"], &source["secret"]);
            let (token, bundle) = (&source["serviceAccountToken"], &source["clusterTrustBundle"]);
            files.extend(File::all(&map["items"], &named("ConfigMap", map, "name")));
            files.extend(File::all(&secret["items"], &named("Secret", secret, "name")));
            files.extend(File::all(&source["downwardAPI"]["items"], "DownwardAPI"));
            if token.is_set() {
                files.push(File::new(token["path"].text(), "ServiceAccountToken"));
            }
            if bundle.is_set() {
                let key = if bundle["name"].is_set() { "name" } else { "signerName" };
                files.push(File::new(bundle["path"].text(), &named("ClusterTrustBundle", bundle, key)));
            }
        }
        report("Projected", files);
    }
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// A preference may name values that no label could have; it just never applies.
fn node_affinity(out: &mut Vec<String>, path: &Path, affinity: &Value) {
    let mut term = |path: Path, term: &Value, check_values: bool| {
        for (i, expression) in term["matchExpressions"].items().iter().enumerate() {
            let key = expression["key"].text();
            if let Some(msg) = deprecated_node_label(key) {
                let at = path.child("matchExpressions").index(i).child("key");
                out.push(format!("{at}: {key} is {msg}"));
            }
            let values = path.child("matchExpressions").index(i).child("values");
            for (v, value) in expression["values"].texts().into_iter().enumerate().filter(|_| check_values) {
                for msg in names::is_valid_label_value(value) {
                    out.push(format!("{}: {value} is invalid, {msg}", values.index(v)));
                }
            }
        }
    };
    for (i, t) in affinity[REQUIRED]["nodeSelectorTerms"].items().iter().enumerate() {
        term(path.child(REQUIRED).child("nodeSelectorTerms").index(i), t, false);
    }
    for (i, t) in affinity[PREFERRED].items().iter().enumerate() {
        term(path.child(PREFERRED).index(i).child("preference"), &t["preference"], true);
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
        fraction(out, path, list, name);
    }
}

fn fraction(out: &mut Vec<String>, path: &Path, list: &Value, name: &str) {
    if list[name].is_set() && !quantity(&list[name]).is_integer() {
        out.push(format!(
            "{}: fractional byte value {:?} is invalid, must be an integer",
            path.key(name),
            list[name].text()
        ));
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
            if !host_ip.is_empty() && host_port == 0 {
                // Upstream prints its structure.
                out.push(format!(
                    "{at}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{number} Protocol:{protocol} HostIP:{host_ip}}}",
                    port["name"].text()
                ));
            }
            for (n, p, other_ip, other_port, other) in &seen {
                if *n != number || p != protocol {
                    continue;
                }
                if host_ip == other_ip && host_port == *other_port {
                    out.push(format!("{at}: duplicate port definition with {other}"));
                } else if host_port == 0 || *other_port == 0 {
                    out.push(format!("{at}: overlapping port definition with {other}"));
                } else if host_port == *other_port && (host_ip.is_empty() != other_ip.is_empty()) {
                    out.push(format!("{at}: dangerously ambiguous port definition with {other}"));
                }
            }
            seen.push((number, protocol.to_owned(), host_ip.to_owned(), host_port, at));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;
    use pretty_assertions::assert_eq;

    fn check(spec: Value, expected: &[&str]) {
        assert_eq!(pod_warnings(&Path::root(), &json!({"metadata": {}, "spec": spec})), expected);
    }

    #[test]
    fn files_in_each_others_way() {
        check(
            json!({"volumes": [{"name": "v", "projected": {"sources": [
                {"configMap": {"name": "c", "items": [{"key": "k", "path": "a/b"}]}},
                {"serviceAccountToken": {"path": "a"}},
            ]}}]}),
            &[
                "volume \"v\" (Projected): overlapping paths: \"a\" (ServiceAccountToken) with \"a/b\" (ConfigMap \"c\")",
            ],
        );
        check(
            json!({"volumes": [{"name": "v", "configMap": {"name": "c", "items": [
                {"key": "k", "path": "x"}, {"key": "l", "path": "x/"}, {"key": "m", "path": "xy"}]}}]}),
            &["volume \"v\" (ConfigMap \"c\"): overlapping paths: \"x\" with \"x\""],
        );
    }

    #[test]
    fn ports_and_selectors() {
        check(
            json!({"containers": [{"name": "c", "ports": [
                {"containerPort": 80, "protocol": "TCP", "hostPort": 80},
                {"containerPort": 80, "protocol": "TCP", "hostPort": 80, "hostIP": "1.2.3.4"},
                {"containerPort": 81, "protocol": "TCP", "hostIP": "1.2.3.4"},
            ]}], "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "z"}]}},
                "hostAliases": [{"ip": "2001:DB8::1"}]}),
            &[
                "spec.hostAliases[0].ip: IPv6 address \"2001:DB8::1\" should be in RFC 5952 canonical format (\"2001:db8::1\")",
                "spec.containers[0].ports[1]: dangerously ambiguous port definition with spec.containers[0].ports[0]",
                "spec.containers[0].ports[2]: hostIP set without hostPort: {Name: HostPort:0 ContainerPort:81 Protocol:TCP HostIP:1.2.3.4}",
                "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector: a null labelSelector results in matching no pod",
            ],
        );
    }
}
