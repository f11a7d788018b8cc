//! Reading a pod: names, containers of all three sorts, restart policies. Pure; no decision beyond what the API
//! reference says of these fields.

use std::borrow::Cow;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, ObjectReference, Pod, PodSpec, PodStatus};
use orlop_client::object_reference;

static NO_SPEC: LazyLock<PodSpec> = LazyLock::new(PodSpec::default);
static NO_STATUS: LazyLock<PodStatus> = LazyLock::new(PodStatus::default);

/// Which of a pod's three container lists a container stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Sort {
    /// `initContainers`.
    Init,
    /// `containers`.
    Regular,
    /// `ephemeralContainers`.
    Ephemeral,
}

/// Short readings of a pod.
pub(crate) trait PodExt {
    fn uid(&self) -> &str;
    fn name(&self) -> &str;
    fn namespace(&self) -> &str;
    fn pod_spec(&self) -> &PodSpec;
    fn pod_status(&self) -> &PodStatus;
    /// `name_namespace(uid)`, as upstream's messages show a pod.
    fn described(&self) -> String;
    fn init_containers(&self) -> &[Container];
    fn ephemeral_containers(&self) -> Vec<Container>;
    fn find_container(&self, name: &str) -> Option<(Sort, Cow<'_, Container>)>;
    fn restart_policy(&self) -> &str;
    fn host_network(&self) -> bool;
    fn is_deleted(&self) -> bool;
    /// Phase `Succeeded` or `Failed` in the API.
    fn is_terminal(&self) -> bool;
    /// The reference events about one of the pod's containers carry.
    fn container_reference(&self, sort: Sort, name: &str) -> ObjectReference;
}

impl PodExt for Pod {
    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn pod_spec(&self) -> &PodSpec {
        self.spec.as_ref().unwrap_or(&NO_SPEC)
    }

    fn pod_status(&self) -> &PodStatus {
        self.status.as_ref().unwrap_or(&NO_STATUS)
    }

    fn described(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }

    fn init_containers(&self) -> &[Container] {
        self.pod_spec().init_containers.as_deref().unwrap_or_default()
    }

    fn ephemeral_containers(&self) -> Vec<Container> {
        let list = self.pod_spec().ephemeral_containers.iter().flatten();
        list.map(as_container).collect()
    }

    fn find_container(&self, name: &str) -> Option<(Sort, Cow<'_, Container>)> {
        let spec = self.pod_spec();
        if let Some(found) = spec.containers.iter().find(|c| c.name == name) {
            return Some((Sort::Regular, Cow::Borrowed(found)));
        }
        if let Some(found) = self.init_containers().iter().find(|c| c.name == name) {
            return Some((Sort::Init, Cow::Borrowed(found)));
        }
        let ephemeral = spec.ephemeral_containers.iter().flatten().find(|c| c.name == name)?;
        Some((Sort::Ephemeral, Cow::Owned(as_container(ephemeral))))
    }

    fn restart_policy(&self) -> &str {
        self.pod_spec().restart_policy.as_deref().unwrap_or("Always")
    }

    fn host_network(&self) -> bool {
        self.pod_spec().host_network == Some(true)
    }

    fn is_deleted(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    fn is_terminal(&self) -> bool {
        matches!(self.pod_status().phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    fn container_reference(&self, sort: Sort, name: &str) -> ObjectReference {
        let list = match sort {
            Sort::Init => "initContainers",
            Sort::Regular => "containers",
            Sort::Ephemeral => "ephemeralContainers",
        };
        ObjectReference { field_path: Some(format!("spec.{list}{{{name}}}")), ..object_reference(self) }
    }
}

/// An ephemeral container has a container's fields and a target besides.
fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let e = ephemeral.clone();
    Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        lifecycle: e.lifecycle,
        liveness_probe: e.liveness_probe,
        name: e.name,
        ports: e.ports,
        readiness_probe: e.readiness_probe,
        resize_policy: e.resize_policy,
        resources: e.resources,
        restart_policy: e.restart_policy,
        restart_policy_rules: e.restart_policy_rules,
        security_context: e.security_context,
        startup_probe: e.startup_probe,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
    }
}

/// An init container that keeps running beside the others (a sidecar, KEP-753).
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Whether a container that ended with `exit_code` is to run again, were the pod to go on: its own rules
/// (KEP-5307), its own policy, the pod's policy, in this order.
pub(crate) fn restarts_after(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(on) = &rule.exit_codes else { continue };
        let listed = on.values.iter().flatten().any(|value| *value == exit_code);
        let matches = match on.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if matches && rule.action == "Restart" {
            return true;
        }
    }
    match container.restart_policy.as_deref().unwrap_or_else(|| pod.restart_policy()) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// Whether a container that is killed for a failed probe is started again.
pub(crate) fn restarts_on_failure(pod: &Pod, container: &Container) -> bool {
    restarts_after(pod, container, 137)
}
