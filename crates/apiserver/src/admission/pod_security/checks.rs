//! The controls of the Pod Security Standards, one function each, and the table of which apply at which level and from
//! which version on. They are pure: a pod's metadata and spec in, a complaint out.

use std::collections::BTreeSet;

use orlop_api::field::go_quote;
use orlop_json::Value;

use super::policy::{Level, LevelVersion};
use crate::admission::fields::Fields as _;

/// Why a check refuses a pod: in few words, and with what is wrong where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) reason: String,
    pub(super) detail: String,
}

/// `metadata` and `spec` of a pod or of a template.
#[derive(Clone, Copy)]
pub(super) struct Pod<'a> {
    pub(super) metadata: &'a Value,
    pub(super) spec: &'a Value,
}

type CheckFn = fn(Pod<'_>) -> Option<Complaint>;

/// One revision of a check.
struct Check {
    id: &'static str,
    level: Level,
    /// The first minor version it applies to; up to that of the next row of the same id.
    since: u32,
    /// The baseline check that this restricted check takes the place of.
    instead_of: &'static str,
    check: CheckFn,
}

const fn baseline(id: &'static str, since: u32, check: CheckFn) -> Check {
    Check { id, level: Level::Baseline, since, instead_of: "", check }
}

const fn restricted(id: &'static str, since: u32, instead_of: &'static str, check: CheckFn) -> Check {
    Check { id, level: Level::Restricted, since, instead_of, check }
}

/// In the order in which complaints are told: baseline first, by id; revisions of one id oldest first.
const CHECKS: &[Check] = &[
    baseline("appArmorProfile", 0, app_armor),
    baseline("capabilities_baseline", 0, capabilities_baseline),
    baseline("hostNamespaces", 0, host_namespaces),
    baseline("hostPathVolumes", 0, host_path_volumes),
    baseline("hostPorts", 0, host_ports),
    baseline("hostProbesAndHostLifecycle", 34, host_probes),
    baseline("privileged", 0, privileged),
    baseline("procMount", 0, proc_mount),
    baseline("procMount", 35, |pod| if in_user_namespace(pod) { None } else { proc_mount(pod) }),
    baseline("seLinuxOptions", 0, |pod| se_linux(pod, &SELINUX_TYPES[..3])),
    baseline("seLinuxOptions", 31, |pod| se_linux(pod, &SELINUX_TYPES)),
    baseline("seccompProfile_baseline", 0, seccomp_annotations),
    baseline("seccompProfile_baseline", 19, seccomp_baseline),
    baseline("sysctls", 0, |pod| sysctls(pod, &SYSCTLS[..5])),
    baseline("sysctls", 27, |pod| sysctls(pod, &SYSCTLS[..6])),
    baseline("sysctls", 29, |pod| sysctls(pod, &SYSCTLS[..10])),
    baseline("sysctls", 32, |pod| sysctls(pod, &SYSCTLS)),
    baseline("windowsHostProcess", 0, windows_host_process),
    restricted("allowPrivilegeEscalation", 8, "", privilege_escalation),
    restricted("allowPrivilegeEscalation", 25, "", |pod| unless_windows(pod, privilege_escalation)),
    restricted("capabilities_restricted", 22, "capabilities_baseline", capabilities_restricted),
    restricted("capabilities_restricted", 25, "capabilities_baseline", |pod| {
        unless_windows(pod, capabilities_restricted)
    }),
    restricted("procMount_restricted", 35, "procMount", proc_mount),
    restricted("restrictedVolumes", 0, "hostPathVolumes", restricted_volumes),
    restricted("runAsNonRoot", 0, "", run_as_non_root),
    restricted(
        "runAsNonRoot",
        35,
        "",
        |pod| if in_user_namespace(pod) { None } else { run_as_non_root(pod) },
    ),
    restricted("runAsUser", 23, "", run_as_user),
    restricted("runAsUser", 35, "", |pod| if in_user_namespace(pod) { None } else { run_as_user(pod) }),
    restricted("seccompProfile_restricted", 19, "seccompProfile_baseline", seccomp_restricted),
    restricted("seccompProfile_restricted", 25, "seccompProfile_baseline", |pod| {
        unless_windows(pod, seccomp_restricted)
    }),
];

const SELINUX_TYPES: [&str; 4] = ["container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

/// Sysctls that touch nobody but the pod, in the order in which they were found to be so.
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Capabilities that a container engine gives anyway.
const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Everything that is wrong with a pod at a level.
pub(super) fn evaluate(at: LevelVersion, pod: Pod<'_>) -> Vec<Complaint> {
    if at.level == Level::Privileged {
        return Vec::new();
    }
    let minor = at.version.minor();
    let current = |index: usize, row: &Check| {
        row.level <= at.level
            && row.since <= minor
            && CHECKS.get(index + 1).is_none_or(|next| next.id != row.id || next.since > minor)
    };
    let rows: Vec<&Check> =
        CHECKS.iter().enumerate().filter(|(index, row)| current(*index, row)).map(|(_, row)| row).collect();
    rows.iter()
        .filter(|row| !rows.iter().any(|other| other.instead_of == row.id))
        .filter_map(|row| (row.check)(pod))
        .collect()
}

fn complain(reason: &str, detail: String) -> Option<Complaint> {
    Some(Complaint { reason: reason.to_string(), detail })
}

/// All containers of any sort.
fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|list| spec.items(list))
}

/// Names of the containers for which something holds.
fn containers_that(spec: &Value, holds: impl Fn(&Value) -> bool) -> Vec<&str> {
    containers(spec).filter(|container| holds(container)).map(|container| container.text("name")).collect()
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let joined = names.into_iter().collect::<Vec<_>>().join("\", \"");
    format!("\"{joined}\"")
}

fn plural<'a>(count: usize, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`.
fn titled(names: &[&str]) -> String {
    format!("{} {}", plural(names.len(), "container", "containers"), quoted(names.iter().copied()))
}

/// `pod and containers "a", "b"`: who set something that must not be set; empty when nobody did.
fn setters(pod: bool, names: &[&str]) -> String {
    let mut out = Vec::new();
    if pod {
        out.push("pod".to_string());
    }
    if !names.is_empty() {
        out.push(titled(names));
    }
    out.join(" and ")
}

fn unless_windows(pod: Pod<'_>, check: CheckFn) -> Option<Complaint> {
    if pod.spec["os"].text("name") == "windows" { None } else { check(pod) }
}

fn in_user_namespace(pod: Pod<'_>) -> bool {
    pod.spec.flag("hostUsers") == Some(false)
}

fn app_armor(pod: Pod<'_>) -> Option<Complaint> {
    const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
    let kind = |holder: &Value| -> Option<String> {
        let profile = holder.get("securityContext")?.get("appArmorProfile").filter(|p| p.is_object())?;
        let kind = profile.text("type");
        (!matches!(kind, "RuntimeDefault" | "Localhost")).then(|| kind.to_string())
    };
    let bad = containers_that(pod.spec, |container| kind(container).is_some());
    let kinds: BTreeSet<String> =
        std::iter::once(pod.spec).chain(containers(pod.spec)).filter_map(kind).collect();
    let annotations: BTreeSet<String> = pod
        .metadata
        .map("annotations")
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.starts_with(PREFIX))
        .filter_map(|(key, value)| Some((key, value.as_str()?)))
        .filter(|(_, value)| {
            !(value.is_empty() || *value == "runtime/default" || value.starts_with("localhost/"))
        })
        .map(|(key, value)| format!("{key}={}", go_quote(value)))
        .collect();
    let mut who = setters(kind(pod.spec).is_some(), &bad);
    if !annotations.is_empty() {
        let separator = if who.is_empty() { "" } else { " and " };
        who = format!("{who}{separator}{}", plural(annotations.len(), "annotation", "annotations"));
    }
    if who.is_empty() {
        return None;
    }
    let values: Vec<&str> = kinds.iter().chain(&annotations).map(String::as_str).collect();
    complain(
        plural(values.len(), "forbidden AppArmor profile", "forbidden AppArmor profiles"),
        format!("{who} must not set AppArmor profile type to {}", quoted(values)),
    )
}

fn capabilities_baseline(pod: Pod<'_>) -> Option<Complaint> {
    let added = |container: &Value| added_but(container, &DEFAULT_CAPABILITIES);
    let bad = containers_that(pod.spec, |container| !added(container).is_empty());
    if bad.is_empty() {
        return None;
    }
    let values: BTreeSet<String> = containers(pod.spec).flat_map(added).collect();
    complain(
        "non-default capabilities",
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            titled(&bad),
            quoted(values.iter().map(String::as_str))
        ),
    )
}

/// Capabilities a container adds beyond `allowed`.
fn added_but(container: &Value, allowed: &[&str]) -> Vec<String> {
    container["securityContext"]["capabilities"]
        .items("add")
        .iter()
        .filter_map(Value::as_str)
        .filter(|capability| !allowed.contains(capability))
        .map(String::from)
        .collect()
}

fn host_namespaces(pod: Pod<'_>) -> Option<Complaint> {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| pod.spec.flag(field) == Some(true))
        .map(|field| format!("{field}=true"))
        .collect();
    if shared.is_empty() { None } else { complain("host namespaces", shared.join(", ")) }
}

fn host_path_volumes(pod: Pod<'_>) -> Option<Complaint> {
    let bad: Vec<&str> =
        pod.spec.items("volumes").iter().filter(|v| v.has("hostPath")).map(|v| v.text("name")).collect();
    if bad.is_empty() {
        return None;
    }
    complain(
        "hostPath volumes",
        format!("{} {}", plural(bad.len(), "volume", "volumes"), quoted(bad.iter().copied())),
    )
}

fn host_ports(pod: Pod<'_>) -> Option<Complaint> {
    let ports = |container: &Value| -> Vec<String> {
        let all = container.items("ports").iter().filter_map(|port| port.get("hostPort")?.as_i64());
        all.filter(|port| *port != 0).map(|port| port.to_string()).collect()
    };
    let bad = containers_that(pod.spec, |container| !ports(container).is_empty());
    if bad.is_empty() {
        return None;
    }
    let used: BTreeSet<String> = containers(pod.spec).flat_map(ports).collect();
    let list: Vec<&str> = used.iter().map(String::as_str).collect();
    complain(
        "hostPort",
        format!(
            "{} {} {} {}",
            titled(&bad),
            plural(bad.len(), "uses", "use"),
            plural(list.len(), "hostPort", "hostPorts"),
            list.join(", ")
        ),
    )
}

fn host_probes(pod: Pod<'_>) -> Option<Complaint> {
    let hosts = |container: &Value| -> Vec<String> {
        let lifecycle = &container["lifecycle"];
        [
            &container["livenessProbe"],
            &container["readinessProbe"],
            &container["startupProbe"],
            &lifecycle["postStart"],
            &lifecycle["preStop"],
        ]
        .into_iter()
        .flat_map(|handler| [handler["httpGet"].text("host"), handler["tcpSocket"].text("host")])
        .filter(|host| !host.is_empty())
        .map(String::from)
        .collect()
    };
    let mut bad = containers_that(pod.spec, |container| !hosts(container).is_empty());
    if bad.is_empty() {
        return None;
    }
    bad.sort_unstable();
    bad.dedup();
    let used: BTreeSet<String> = containers(pod.spec).flat_map(hosts).collect();
    complain(
        "probe or lifecycle host",
        format!(
            "{} {} {} {}",
            titled(&bad),
            plural(bad.len(), "uses", "use"),
            plural(used.len(), "probe or lifecycle host", "probe or lifecycle hosts"),
            quoted(used.iter().map(String::as_str))
        ),
    )
}

fn privileged(pod: Pod<'_>) -> Option<Complaint> {
    let bad = containers_that(pod.spec, |c| c["securityContext"].flag("privileged") == Some(true));
    if bad.is_empty() {
        return None;
    }
    complain("privileged", format!("{} must not set securityContext.privileged=true", titled(&bad)))
}

fn proc_mount(pod: Pod<'_>) -> Option<Complaint> {
    let kind = |container: &Value| -> Option<String> {
        let kind = container.get("securityContext")?.get("procMount")?.as_str()?;
        (kind != "Default").then(|| kind.to_string())
    };
    let bad = containers_that(pod.spec, |container| kind(container).is_some());
    if bad.is_empty() {
        return None;
    }
    let kinds: BTreeSet<String> = containers(pod.spec).filter_map(kind).collect();
    complain(
        "procMount",
        format!(
            "{} must not set securityContext.procMount to {}",
            titled(&bad),
            quoted(kinds.iter().map(String::as_str))
        ),
    )
}

fn se_linux(pod: Pod<'_>, types: &[&str]) -> Option<Complaint> {
    let (mut kinds, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut wrong = |holder: &Value| {
        let options = &holder["securityContext"]["seLinuxOptions"];
        let kind = options.text("type");
        let bad_kind = !kind.is_empty() && !types.contains(&kind);
        if bad_kind {
            kinds.insert(kind.to_string());
        }
        let (sets_user, sets_role) = (!options.text("user").is_empty(), !options.text("role").is_empty());
        user |= sets_user;
        role |= sets_role;
        bad_kind || sets_user || sets_role
    };
    let of_pod = wrong(pod.spec);
    let bad: Vec<&str> = containers(pod.spec).filter(|c| wrong(c)).map(|c| c.text("name")).collect();
    let who = setters(of_pod, &bad);
    if who.is_empty() {
        return None;
    }
    let mut what = Vec::new();
    if !kinds.is_empty() {
        what.push(format!(
            "{} {}",
            plural(kinds.len(), "type", "types"),
            quoted(kinds.iter().map(String::as_str))
        ));
    }
    if user {
        what.push("user may not be set".to_string());
    }
    if role {
        what.push("role may not be set".to_string());
    }
    complain(
        "seLinuxOptions",
        format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; ")),
    )
}

fn seccomp_annotations(pod: Pod<'_>) -> Option<Complaint> {
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    let keys = containers(pod.spec).map(|container| format!("{CONTAINER}{}", container.text("name")));
    let bad: BTreeSet<String> = std::iter::once(POD.to_string())
        .chain(keys)
        .filter_map(|key| {
            let value = pod.metadata.map("annotations")?.get(&key)?.as_str()?;
            let fine =
                matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
            (!fine).then(|| format!("{key}={}", go_quote(value)))
        })
        .collect();
    if bad.is_empty() {
        return None;
    }
    let list: Vec<&str> = bad.iter().map(String::as_str).collect();
    complain(
        "seccompProfile",
        format!("forbidden {} {}", plural(list.len(), "annotation", "annotations"), list.join(", ")),
    )
}

/// The seccomp type that is set, and whether it is a confined one.
fn seccomp_type(holder: &Value) -> Option<(&str, bool)> {
    let profile = holder.get("securityContext")?.get("seccompProfile").filter(|p| p.is_object())?;
    let kind = profile.text("type");
    Some((kind, matches!(kind, "RuntimeDefault" | "Localhost")))
}

fn seccomp_baseline(pod: Pod<'_>) -> Option<Complaint> {
    let wrong = |holder: &Value| seccomp_type(holder).is_some_and(|(_, confined)| !confined);
    let bad = containers_that(pod.spec, wrong);
    let who = setters(wrong(pod.spec), &bad);
    if who.is_empty() {
        return None;
    }
    let kinds: BTreeSet<&str> = std::iter::once(pod.spec)
        .chain(containers(pod.spec))
        .filter_map(seccomp_type)
        .filter(|(_, confined)| !confined)
        .map(|(kind, _)| kind)
        .collect();
    complain(
        "seccompProfile",
        format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(kinds)),
    )
}

fn seccomp_restricted(pod: Pod<'_>) -> Option<Complaint> {
    if let Some(complaint) = seccomp_baseline(pod) {
        return Some(complaint);
    }
    if seccomp_type(pod.spec).is_some() {
        return None;
    }
    let bad = containers_that(pod.spec, |container| seccomp_type(container).is_none());
    if bad.is_empty() {
        return None;
    }
    complain(
        "seccompProfile",
        format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            titled(&bad)
        ),
    )
}

fn sysctls(pod: Pod<'_>, allowed: &[&str]) -> Option<Complaint> {
    let bad: Vec<&str> = pod.spec["securityContext"]
        .items("sysctls")
        .iter()
        .map(|sysctl| sysctl.text("name"))
        .filter(|name| !allowed.contains(name))
        .collect();
    if bad.is_empty() { None } else { complain("forbidden sysctls", bad.join(", ")) }
}

fn windows_host_process(pod: Pod<'_>) -> Option<Complaint> {
    let wrong =
        |holder: &Value| holder["securityContext"]["windowsOptions"].flag("hostProcess") == Some(true);
    let who = setters(wrong(pod.spec), &containers_that(pod.spec, wrong));
    if who.is_empty() {
        return None;
    }
    complain("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn privilege_escalation(pod: Pod<'_>) -> Option<Complaint> {
    let bad =
        containers_that(pod.spec, |c| c["securityContext"].flag("allowPrivilegeEscalation") != Some(false));
    if bad.is_empty() {
        return None;
    }
    complain(
        "allowPrivilegeEscalation != false",
        format!("{} must set securityContext.allowPrivilegeEscalation=false", titled(&bad)),
    )
}

fn capabilities_restricted(pod: Pod<'_>) -> Option<Complaint> {
    let added = |container: &Value| added_but(container, &["NET_BIND_SERVICE"]);
    let keeping = containers_that(pod.spec, |container| {
        !container["securityContext"]["capabilities"].items("drop").iter().any(|c| c == "ALL")
    });
    let adding = containers_that(pod.spec, |container| !added(container).is_empty());
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", titled(&keeping)));
    }
    if !adding.is_empty() {
        let values: BTreeSet<String> = containers(pod.spec).flat_map(added).collect();
        details.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            titled(&adding),
            quoted(values.iter().map(String::as_str))
        ));
    }
    if details.is_empty() { None } else { complain("unrestricted capabilities", details.join("; ")) }
}

fn restricted_volumes(pod: Pod<'_>) -> Option<Complaint> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let is_bad = |volume: &&Value| !ALLOWED.iter().any(|kind| volume.has(kind));
    let bad: Vec<&Value> = pod.spec.items("volumes").iter().filter(is_bad).collect();
    if bad.is_empty() {
        return None;
    }
    let kinds: BTreeSet<&str> = bad
        .iter()
        .map(|volume| {
            let source = volume.as_object().into_iter().flatten();
            source.map(|(key, _)| key.as_str()).find(|key| *key != "name").unwrap_or("unknown")
        })
        .collect();
    complain(
        "restricted volume types",
        format!(
            "{} {} {} {} {}",
            plural(bad.len(), "volume", "volumes"),
            quoted(bad.iter().map(|volume| volume.text("name"))),
            plural(bad.len(), "uses", "use"),
            plural(kinds.len(), "restricted volume type", "restricted volume types"),
            quoted(kinds)
        ),
    )
}

fn run_as_non_root(pod: Pod<'_>) -> Option<Complaint> {
    let said = |holder: &Value| holder["securityContext"].flag("runAsNonRoot");
    let explicit = containers_that(pod.spec, |container| said(container) == Some(false));
    let who = setters(said(pod.spec) == Some(false), &explicit);
    let complaint = |detail| complain("runAsNonRoot != true", detail);
    if !who.is_empty() {
        return complaint(format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    if said(pod.spec) == Some(true) {
        return None;
    }
    let silent = containers_that(pod.spec, |container| said(container).is_none());
    if silent.is_empty() {
        return None;
    }
    complaint(format!("pod or {} must set securityContext.runAsNonRoot=true", titled(&silent)))
}

fn run_as_user(pod: Pod<'_>) -> Option<Complaint> {
    let root = |holder: &Value| holder["securityContext"].get("runAsUser").and_then(Value::as_i64) == Some(0);
    let who = setters(root(pod.spec), &containers_that(pod.spec, root));
    if who.is_empty() { None } else { complain("runAsUser=0", format!("{who} must not set runAsUser=0")) }
}
