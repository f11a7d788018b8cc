//! A pod as the runtime sees it: its sandboxes and containers, newest first, and the labels by which a kubelet finds
//! its own again after a restart (the names upstream uses, so that `crictl` shows them).

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use orlop_cri::{
    ContainerFilter, ContainerState, ContainerStatus, CriError, PodSandboxFilter, PodSandboxState,
    PodSandboxStatus, Runtime, StringMap,
};

use crate::pod::PodExt;

pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub(crate) const HASH: &str = "io.kubernetes.container.hash";
pub(crate) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub(crate) const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub(crate) const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub(crate) const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";

/// One reading of a pod's sandboxes and containers.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodRuntimeStatus {
    /// Newest first.
    pub sandboxes: Vec<PodSandboxStatus>,
    /// Newest first.
    pub containers: Vec<ContainerStatus>,
}

impl PodRuntimeStatus {
    /// Asks the runtime for everything it has of the pod.
    pub(crate) async fn read(runtime: &dyn Runtime, uid: &str) -> Result<Self, CriError> {
        let labels: StringMap = [(POD_UID.to_owned(), uid.to_owned())].into();
        let sandbox_filter = PodSandboxFilter { labels: labels.clone(), ..Default::default() };
        let container_filter = ContainerFilter { labels, ..Default::default() };
        let (sandboxes, containers) = futures::try_join!(
            runtime.list_pod_sandboxes(&sandbox_filter),
            runtime.list_containers(&container_filter)
        )?;
        let sandboxes =
            try_join_all(sandboxes.iter().map(|s| present(runtime.pod_sandbox_status(&s.id)))).await?;
        let containers =
            try_join_all(containers.iter().map(|c| present(runtime.container_status(&c.id)))).await?;
        let mut out = Self {
            sandboxes: sandboxes.into_iter().flatten().collect(),
            containers: containers.into_iter().flatten().collect(),
        };
        out.sort();
        Ok(out)
    }

    pub(crate) fn sort(&mut self) {
        self.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.sandbox.metadata.attempt, s.sandbox.created_at)));
        self.containers
            .sort_by_key(|c| std::cmp::Reverse((c.container.created_at, c.container.metadata.attempt)));
    }

    /// The newest container of that name.
    pub(crate) fn latest(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|c| container_name(c) == name)
    }

    /// All containers of that name, newest first.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a ContainerStatus> {
        self.containers.iter().filter(move |c| container_name(c) == name)
    }

    pub(crate) fn by_id(&self, id: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|c| c.container.id == id)
    }

    /// The sandbox in use.
    pub(crate) fn ready_sandbox(&self) -> Option<&PodSandboxStatus> {
        self.sandboxes.first().filter(|s| s.sandbox.state == PodSandboxState::Ready)
    }

    /// The pod's addresses as its newest sandbox had them.
    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        self.sandboxes.first().map(|s| s.ips.clone()).unwrap_or_default()
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.containers.iter().filter(|c| c.container.state == ContainerState::Running)
    }

    /// Whether anything of the pod may still run.
    pub(crate) fn is_active(&self) -> bool {
        self.running().next().is_some()
            || self.containers.iter().any(|c| c.container.state == ContainerState::Unknown)
    }
}

/// A status, or `None` when the thing went away between the list and the question.
async fn present<T>(call: impl Future<Output = Result<T, CriError>>) -> Result<Option<T>, CriError> {
    match call.await {
        Ok(status) => Ok(Some(status)),
        Err(CriError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The container's name in its pod.
pub(crate) fn container_name(status: &ContainerStatus) -> &str {
    status
        .container
        .labels
        .get(CONTAINER_NAME)
        .map_or(status.container.metadata.name.as_str(), String::as_str)
}

/// How often the container was restarted before this instance.
pub(crate) fn restart_count(status: &ContainerStatus) -> u32 {
    let noted = status.container.annotations.get(RESTART_COUNT).and_then(|text| text.parse().ok());
    noted.unwrap_or(status.container.metadata.attempt)
}

/// Labels of the pod's sandbox: the pod's own and the kubelet's.
pub(crate) fn sandbox_labels(pod: &Pod) -> StringMap {
    let mut labels: StringMap = pod.metadata.labels.clone().unwrap_or_default();
    labels.extend(identity_labels(pod));
    labels
}

fn identity_labels(pod: &Pod) -> [(String, String); 3] {
    [
        (POD_NAME.to_owned(), pod.name().to_owned()),
        (POD_NAMESPACE.to_owned(), pod.namespace().to_owned()),
        (POD_UID.to_owned(), pod.uid().to_owned()),
    ]
}

/// Labels of one container.
pub(crate) fn container_labels(pod: &Pod, container: &Container) -> StringMap {
    let mut labels: StringMap = identity_labels(pod).into();
    labels.insert(CONTAINER_NAME.to_owned(), container.name.clone());
    labels
}

/// Annotations of one container: what a later kubelet must know of it without the pod.
pub(crate) fn container_annotations(pod: &Pod, container: &Container, restart_count: u32) -> StringMap {
    let mut out: BTreeMap<String, String> = BTreeMap::new();
    out.insert(HASH.to_owned(), hash(container));
    out.insert(RESTART_COUNT.to_owned(), restart_count.to_string());
    out.insert(
        MESSAGE_PATH.to_owned(),
        container.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".to_owned()),
    );
    out.insert(
        MESSAGE_POLICY.to_owned(),
        container.termination_message_policy.clone().unwrap_or_else(|| "File".to_owned()),
    );
    if let Some(seconds) = pod.pod_spec().termination_grace_period_seconds {
        out.insert(GRACE_PERIOD.to_owned(), seconds.to_string());
    }
    out
}

/// Tells a container from its changed definition. As upstream since v1.31, only name and image count: everything else
/// of a running container cannot be changed, or is changed in place.
pub(crate) fn hash(container: &Container) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in
        container.name.bytes().chain([0]).chain(container.image.iter().flat_map(|image| image.bytes()))
    {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    format!("{hash:08x}")
}

/// A runtime's nanoseconds as a time.
pub(crate) fn time(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}
