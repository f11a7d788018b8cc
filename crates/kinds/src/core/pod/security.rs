//! Security contexts of pods and containers, and what an operating system rules out.

use orlop_api::field::{self, ErrorList, ErrorType, FieldError, Path};
use orlop_json::Value;

use super::tolerated::Tolerated;
use super::validation::{Pod, visit_containers};
use crate::cursor::Cursor;
use crate::validate::{dns_subdomain, local_descending_path, one_of};

const MAX_ID: i64 = i32::MAX as i64;

const NO_PRIVILEGE: &str = "disallowed by cluster policy";
const NO_HOST_PROCESS: &str = "hostProcess containers are disallowed by cluster policy";

/// Whether this refuses a privileged container or a host process. Validation refuses every one; whether the cluster
/// allows them is not known here, and a server that does drops these errors.
pub fn refuses_privilege(error: &FieldError) -> bool {
    error.kind == ErrorType::Forbidden && [NO_PRIVILEGE, NO_HOST_PROCESS].contains(&error.detail.as_str())
}

fn validate_id(errs: &mut ErrorList, path: &Path, id: &Value) {
    if id.is_set() && !(0..=MAX_ID).contains(&id.int()) {
        errs.push(field::invalid(path, id.int(), format!("must be between 0 and {MAX_ID}, inclusive")));
    }
}

/// `spec.securityContext`.
pub(super) fn validate_pod_security_context(errs: &mut ErrorList, path: &Path, pod: &Pod) {
    let spec = pod.spec;
    let context = &spec["securityContext"];
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        validate_id(errs, &path.child(key), &context[key]);
    }
    for (i, group) in context["supplementalGroups"].items().iter().enumerate() {
        validate_id(errs, &path.child("supplementalGroups").index(i), group);
    }
    if spec["shareProcessNamespace"].flag() && spec["hostPID"].flag() {
        errs.push(field::invalid(
            &path.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    validate_sysctls(errs, &path.child("sysctls"), spec, pod.tolerated);
    one_of(
        errs,
        &path.child("fsGroupChangePolicy"),
        &context["fsGroupChangePolicy"],
        &["Always", "OnRootMismatch"],
    );
    validate_seccomp(errs, &path.child("seccompProfile"), &context["seccompProfile"]);
    validate_windows_options(errs, &path.child("windowsOptions"), &context["windowsOptions"]);
    validate_app_armor(errs, &path.child("appArmorProfile"), &context["appArmorProfile"]);
    one_of(
        errs,
        &path.child("supplementalGroupsPolicy"),
        &context["supplementalGroupsPolicy"],
        &["Merge", "Strict"],
    );
    one_of(
        errs,
        &path.child("seLinuxChangePolicy"),
        &context["seLinuxChangePolicy"],
        &["MountOption", "Recursive"],
    );
}

/// `securityContext` of a container.
pub(super) fn validate_security_context(
    errs: &mut ErrorList,
    path: &Path,
    context: &Value,
    host_users: bool,
) {
    if !context.is_set() {
        return;
    }
    if context["privileged"].flag() {
        errs.push(field::forbidden(&path.child("privileged"), NO_PRIVILEGE));
    }
    validate_id(errs, &path.child("runAsUser"), &context["runAsUser"]);
    validate_id(errs, &path.child("runAsGroup"), &context["runAsGroup"]);
    let proc_mount = &context["procMount"];
    if proc_mount.is_set() {
        let at = path.child("procMount");
        one_of(errs, &at, proc_mount, &["Default", "Unmasked"]);
        if host_users && proc_mount.text() == "Unmasked" {
            errs.push(field::invalid(&at, proc_mount.text(), "`hostUsers` must be false to use `Unmasked`"));
        }
    }
    validate_seccomp(errs, &path.child("seccompProfile"), &context["seccompProfile"]);
    let escalation = &context["allowPrivilegeEscalation"];
    if escalation.is_set() && !escalation.flag() {
        if context["privileged"].flag() {
            errs.push(field::invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            ));
        }
        if context["capabilities"]["add"].texts().contains(&"CAP_SYS_ADMIN") {
            errs.push(field::invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            ));
        }
    }
    validate_windows_options(errs, &path.child("windowsOptions"), &context["windowsOptions"]);
    validate_app_armor(errs, &path.child("appArmorProfile"), &context["appArmorProfile"]);
}

const PROFILE_TYPES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];

fn validate_seccomp(errs: &mut ErrorList, path: &Path, profile: &Value) {
    if !profile.is_set() {
        return;
    }
    let kind = profile["type"].text();
    if kind.is_empty() {
        errs.push(field::required(&path.child("type"), "type is required when seccompProfile is set"));
    } else if !PROFILE_TYPES.contains(&kind) {
        errs.push(field::not_supported(&path.child("type"), kind, &PROFILE_TYPES));
    }
    let local = &profile["localhostProfile"];
    let at = path.child("localhostProfile");
    if kind == "Localhost" {
        if local.is_set() {
            local_descending_path(errs, &at, local.text());
        } else {
            errs.push(field::required(&at, "must be set when seccomp type is Localhost"));
        }
    } else if local.is_set() {
        errs.push(field::invalid(&at, profile.clone(), "can only be set when seccomp type is Localhost"));
    }
}

fn validate_app_armor(errs: &mut ErrorList, path: &Path, profile: &Value) {
    if !profile.is_set() {
        return;
    }
    let local = &profile["localhostProfile"];
    let at = path.child("localhostProfile");
    match profile["type"].text() {
        "Localhost" => {
            let text = local.text();
            if text.trim() != text {
                errs.push(field::invalid(&at, text, "must not be padded with whitespace"));
            } else if text.is_empty() {
                errs.push(field::required(&at, "must be set when AppArmor type is Localhost"));
            }
            if text.len() > 4095 {
                errs.push(field::too_long(&at, 4095));
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if local.is_set() {
                errs.push(field::invalid(
                    &at,
                    local.text(),
                    "can only be set when AppArmor type is Localhost",
                ));
            }
        }
        "" => errs.push(field::required(&path.child("type"), "type is required when appArmorProfile is set")),
        other => errs.push(field::not_supported(&path.child("type"), other, &PROFILE_TYPES)),
    }
}

fn validate_windows_options(errs: &mut ErrorList, path: &Path, options: &Value) {
    const MAX_SPEC_KIB: usize = 64;
    let name = &options["gmsaCredentialSpecName"];
    if name.is_set() {
        dns_subdomain(errs, &path.child("gmsaCredentialSpecName"), name.text());
    }
    let spec = &options["gmsaCredentialSpec"];
    if spec.is_set() {
        let at = path.child("gmsaCredentialSpec");
        if spec.text().is_empty() {
            errs.push(field::invalid(&at, "", "gmsaCredentialSpec cannot be an empty string"));
        } else if spec.text().len() > MAX_SPEC_KIB * 1024 {
            let why = format!("gmsaCredentialSpec size must be under {MAX_SPEC_KIB} KiB");
            errs.push(field::invalid(&at, spec.text(), why));
        }
    }
    let user = &options["runAsUserName"];
    if user.is_set() {
        let at = path.child("runAsUserName");
        for why in windows_user_problems(user.text()) {
            errs.push(field::invalid(&at, user.text(), format!("runAsUserName{why}")));
        }
    }
}

/// What is wrong with a user of Windows, `USER` or `DOMAIN\USER`; each text goes on after the field's name.
fn windows_user_problems(name: &str) -> Vec<String> {
    const MAX_DOMAIN: usize = 256;
    const MAX_USER: usize = 104;
    const NOT_IN_USER: &str = r#""/\:;|=,+*?<>@[]"#;
    if name.is_empty() {
        return vec![" cannot be an empty string".to_owned()];
    }
    if name.contains(|c: char| c.is_ascii_control()) {
        return vec![" cannot contain control characters".to_owned()];
    }
    let (domain, user) = match name.split_once('\\') {
        Some((_, rest)) if rest.contains('\\') => {
            return vec![" cannot contain more than one backslash".to_owned()];
        }
        Some((domain, user)) => (Some(domain), user),
        None => (None, name),
    };
    let mut problems = Vec::new();
    if domain.is_some_and(|domain| domain.len() >= MAX_DOMAIN) {
        problems.push(format!("'s Domain length must be under {MAX_DOMAIN} characters"));
    }
    if domain.is_some_and(|domain| !is_netbios_name(domain) && !is_dns_name(domain)) {
        problems.push("'s Domain doesn't match the NetBios nor the DNS format".to_owned());
    }
    if user.is_empty() {
        problems.push("'s User cannot be empty".to_owned());
    } else if user.len() > MAX_USER {
        problems.push(format!("'s User length must not be longer than {MAX_USER} characters"));
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        problems.push("'s User cannot contain only periods or spaces".to_owned());
    }
    if user.contains(|c| NOT_IN_USER.contains(c)) {
        problems.push(format!("'s User cannot contain the following characters: {NOT_IN_USER}"));
    }
    problems
}

/// At most 15 characters, none of those that mean something in a path, no dot in front.
fn is_netbios_name(name: &str) -> bool {
    (1..=15).contains(&name.chars().count())
        && !name.starts_with('.')
        && !name.contains(|c| r#"\/:*?"<>|"#.contains(c))
}

/// Labels of letters of either case, digits and dashes inside.
fn is_dns_name(name: &str) -> bool {
    name.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

/// A sysctl's name: lower-case words joined by dots or slashes.
fn is_sysctl_name(name: &str) -> bool {
    name.len() <= 253
        && name.split(['.', '/']).all(|segment| {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            let bytes = segment.as_bytes();
            bytes.first().is_some_and(|b| inner(*b))
                && bytes.last().is_some_and(|b| inner(*b))
                && bytes.iter().all(|b| inner(*b) || matches!(b, b'-' | b'_'))
        })
}

/// What is wrong with setting a sysctl of a namespace that the pod shares with its host.
pub(super) fn host_sysctl_problem(name: &str, spec: &Value) -> Option<&'static str> {
    let dotted = name.replace('/', ".");
    if spec["hostNetwork"].flag() && dotted.starts_with("net.") {
        return Some("may not be specified when 'hostNetwork' is true");
    }
    let of_ipc = dotted.starts_with("kernel.shm")
        || dotted.starts_with("kernel.msg")
        || dotted.starts_with("fs.mqueue.")
        || dotted == "kernel.sem";
    (spec["hostIPC"].flag() && of_ipc).then_some("may not be specified when 'hostIPC' is true")
}

fn validate_sysctls(errs: &mut ErrorList, path: &Path, spec: &Value, tolerated: Tolerated) {
    const EXPRESSION: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
    let mut seen: Vec<&str> = Vec::new();
    for (i, sysctl) in spec["securityContext"]["sysctls"].items().iter().enumerate() {
        let at = path.index(i).child("name");
        let name = sysctl["name"].text();
        if name.is_empty() {
            errs.push(field::required(&at, ""));
        } else if !is_sysctl_name(name) {
            errs.push(field::invalid(
                &at,
                name,
                format!("must have at most 253 characters and match regex {EXPRESSION}"),
            ));
        } else if seen.contains(&name) {
            errs.push(field::duplicate(&at, name));
        }
        if !tolerated.host_sysctls
            && let Some(why) = host_sysctl_problem(name, spec)
        {
            errs.push(field::invalid(&at, name, why));
        }
        seen.push(name);
    }
}

/// A pod with its own user namespace keeps its own others too.
pub(super) fn validate_host_users(errs: &mut ErrorList, path: &Path, pod: &Pod) {
    if pod.host_users() {
        return;
    }
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        if pod.spec[key].flag() {
            errs.push(field::forbidden(&path.child(key), "when `hostUsers` is false"));
        }
    }
    if pod.tolerated.shifted_block_devices {
        return;
    }
    // The owner of a device cannot be mapped.
    visit_containers(pod.spec, path, &mut |container, at| {
        if !container["volumeDevices"].is_empty() {
            errs.push(field::forbidden(&at.child("volumeDevices"), "when `hostUsers` is false"));
        }
    });
}

/// `spec.os` and what it rules out.
pub(super) fn validate_os(errs: &mut ErrorList, path: &Path, spec: &Value) {
    if !spec["os"].is_set() {
        return;
    }
    match spec["os"]["name"].text() {
        "" => errs.push(field::required(&path.child("os").child("name"), "cannot be empty")),
        "linux" => {
            const WHY: &str = "windows options cannot be set for a linux pod";
            let mut refuse = |context: &Value, at: &Path| {
                if context["windowsOptions"].is_set() {
                    errs.push(field::forbidden(&at.child("windowsOptions"), WHY));
                }
            };
            refuse(&spec["securityContext"], &path.child("securityContext"));
            visit_containers(spec, path, &mut |container, at| {
                refuse(&container["securityContext"], &at.child("securityContext"));
            });
        }
        "windows" => validate_windows(errs, path, spec),
        other => errs.push(field::not_supported(&path.child("os"), other, &["linux", "windows"])),
    }
}

fn validate_windows(errs: &mut ErrorList, path: &Path, spec: &Value) {
    const WHY: &str = "cannot be set for a windows pod";
    const POD: [&str; 9] = [
        "fsGroup",
        "fsGroupChangePolicy",
        "sysctls",
        "runAsUser",
        "runAsGroup",
        "supplementalGroups",
        "supplementalGroupsPolicy",
        "seLinuxChangePolicy",
        "seccompProfile",
    ];
    const CONTAINER: [&str; 10] = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    let context = &spec["securityContext"];
    let at = path.child("securityContext");
    for key in ["appArmorProfile", "seLinuxOptions"].iter().chain(&POD) {
        if context[*key].is_set() {
            errs.push(field::forbidden(&at.child(key), WHY));
        }
    }
    for key in ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"] {
        if spec[key].is_set() && (spec[key].flag() || !key.starts_with("hostP")) {
            errs.push(field::forbidden(&path.child(key), WHY));
        }
    }
    visit_containers(spec, path, &mut |container, at| {
        for key in CONTAINER {
            if container["securityContext"][key].is_set() {
                errs.push(field::forbidden(&at.child("securityContext").child(key), WHY));
            }
        }
    });
}

/// All containers of a pod are host processes of Windows, or none is.
pub(super) fn validate_host_process(errs: &mut ErrorList, path: &Path, spec: &Value) {
    let pod_wide = &spec["securityContext"]["windowsOptions"]["hostProcess"];
    let (mut containers, mut host_processes) = (0, 0);
    visit_containers(spec, path, &mut |container, at| {
        containers += 1;
        let own = &container["securityContext"]["windowsOptions"]["hostProcess"];
        if pod_wide.is_set() && own.is_set() && pod_wide != own {
            let at = at.child("securityContext").child("windowsOptions").child("hostProcess");
            errs.push(field::invalid(
                &at,
                own.clone(),
                format!(
                    "pod hostProcess value must be identical if both are specified, was {}",
                    pod_wide.flag()
                ),
            ));
        }
        if own.flag() || (!own.is_set() && pod_wide.flag()) {
            host_processes += 1;
        }
    });
    if host_processes == 0 {
        return;
    }
    if host_processes != containers {
        errs.push(field::invalid(
            path,
            "",
            "If pod contains any hostProcess containers then all containers must be HostProcess containers",
        ));
    }
    if !spec["hostNetwork"].flag() {
        errs.push(field::invalid(
            &path.child("hostNetwork"),
            false,
            "hostNetwork must be true if pod contains any hostProcess containers",
        ));
    }
    errs.push(field::forbidden(path, NO_HOST_PROCESS));
}
