//! From `securityContext` of pod and container to what the runtime enforces. Pure; answers to upstream's
//! `kuberuntime/security_context.go`.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};
use orlop_cri::{Image, LinuxSecurityContext, NamespaceMode, NamespaceOptions, RunAsUser, SecurityProfile};

use crate::pod::PodExt;

/// Hidden in containers with the default `procMount`.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Read-only in containers with the default `procMount`.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The pod's namespaces.
pub(crate) fn namespaces(pod: &Pod) -> NamespaceOptions {
    let spec = pod.pod_spec();
    let pid = if spec.host_pid == Some(true) {
        NamespaceMode::Node
    } else if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    NamespaceOptions {
        network: if pod.host_network() { NamespaceMode::Node } else { NamespaceMode::Pod },
        pid,
        ipc: if spec.host_ipc == Some(true) { NamespaceMode::Node } else { NamespaceMode::Pod },
    }
}

/// The container's rights. The error is the message of `CreateContainerConfigError`.
pub(crate) fn context(
    pod: &Pod,
    container: &Container,
    image: &Image,
    seccomp_root: &std::path::Path,
) -> Result<LinuxSecurityContext, String> {
    let of_pod = pod.pod_spec().security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let uid = own.run_as_user.or(of_pod.run_as_user);
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        verify_non_root(pod, container, uid, image)?;
    }
    let run_as_user = uid.map(RunAsUser::Uid).or_else(|| {
        image
            .uid
            .map(RunAsUser::Uid)
            .or_else(|| Some(image.username.clone()).filter(|n| !n.is_empty()).map(RunAsUser::Name))
    });
    let privileged = own.privileged == Some(true);
    let mut groups = of_pod.supplemental_groups.unwrap_or_default();
    groups.extend(of_pod.fs_group);
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths =
        |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(|p| (*p).to_owned()).collect() };
    let capabilities = own.capabilities.unwrap_or_default();
    Ok(LinuxSecurityContext {
        privileged,
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        namespaces: namespaces(pod),
        run_as_user,
        run_as_group: own.run_as_group.or(of_pod.run_as_group),
        supplemental_groups: groups,
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READONLY),
        seccomp: if privileged {
            SecurityProfile::Unconfined
        } else {
            seccomp(own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()), seccomp_root)
        },
    })
}

fn seccomp(profile: Option<&SeccompProfile>, root: &std::path::Path) -> SecurityProfile {
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => SecurityProfile::RuntimeDefault,
        Some(("Localhost", Some(file))) => SecurityProfile::Localhost(PathBuf::from(root).join(file)),
        _ => SecurityProfile::Unconfined,
    }
}

fn verify_non_root(pod: &Pod, container: &Container, uid: Option<i64>, image: &Image) -> Result<(), String> {
    let shown = format!("(pod: \"{}\", container: {})", pod.described(), container.name);
    match uid {
        Some(0) => return Err(format!("container's runAsUser breaks non-root policy {shown}")),
        Some(_) => return Ok(()),
        None => {}
    }
    match image.uid {
        Some(0) => Err(format!("container has runAsNonRoot and image will run as root {shown}")),
        Some(_) => Ok(()),
        None if image.username.is_empty() => {
            Err(format!("container has runAsNonRoot and image will run as root {shown}"))
        }
        None => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {shown}",
            image.username
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn of(
        of_pod: Value,
        own: Value,
        uid: Option<i64>,
        username: &str,
    ) -> Result<LinuxSecurityContext, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": of_pod, "containers": [{"name": "c", "securityContext": own}]},
        }))
        .unwrap();
        let image = Image {
            id: String::new(),
            repo_tags: vec![],
            repo_digests: vec![],
            size: 0,
            uid,
            username: username.to_owned(),
        };
        context(&pod, &pod.pod_spec().containers[0], &image, std::path::Path::new("/seccomp"))
    }

    #[test]
    fn the_container_overrides_the_pod() {
        let got = of(
            json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4]}),
            json!({"runAsUser": 9}),
            Some(0),
            "",
        )
        .unwrap();
        assert_eq!(got.run_as_user, Some(RunAsUser::Uid(9)));
        assert_eq!(got.run_as_group, Some(2));
        assert_eq!(got.supplemental_groups, [4, 3]);
        assert!(!got.masked_paths.is_empty());
        let got = of(
            json!({"seccompProfile": {"type": "RuntimeDefault"}}),
            json!({"privileged": true}),
            None,
            "web",
        )
        .unwrap();
        assert_eq!(got.seccomp, SecurityProfile::Unconfined);
        assert!(got.masked_paths.is_empty());
        assert_eq!(got.run_as_user, Some(RunAsUser::Name("web".to_owned())));
        let got = of(
            json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}}),
            json!({}),
            None,
            "",
        )
        .unwrap();
        assert_eq!(got.seccomp, SecurityProfile::Localhost("/seccomp/a.json".into()));
    }

    #[test]
    fn run_as_non_root_is_verified() {
        let rule = json!({"runAsNonRoot": true});
        for (own, uid, name, expected) in [
            (
                json!({}),
                Some(0),
                "",
                Some("container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"),
            ),
            (
                json!({}),
                None,
                "web",
                Some(
                    "container has runAsNonRoot and image has non-numeric user (web), cannot verify user is non-root (pod: \"p_n(u)\", container: c)",
                ),
            ),
            (
                json!({"runAsUser": 0}),
                Some(5),
                "",
                Some("container's runAsUser breaks non-root policy (pod: \"p_n(u)\", container: c)"),
            ),
            (json!({"runAsUser": 5}), Some(0), "", None),
            (json!({}), Some(5), "", None),
            (json!({"runAsNonRoot": false}), Some(0), "", None),
        ] {
            assert_eq!(of(rule.clone(), own.clone(), uid, name).err().as_deref(), expected, "{own}");
        }
    }
}
