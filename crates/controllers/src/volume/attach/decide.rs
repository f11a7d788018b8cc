//! Which volume is to be attached where: pure functions of the cached objects.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Node, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::CSIDriver;
use ring::digest;

use crate::objects::{Meta, is_finished};

/// How long a node that does not answer may keep a volume that nobody wants there any more.
pub(super) const MAX_WAIT_FOR_UNMOUNT: Duration = Duration::from_secs(360);
/// Nodes whose kubelet leaves attaching to this controller.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// Nodes whose kubelet wants volumes of ended pods to stay.
const KEEP_TERMINATED: &str = "volumes.kubernetes.io/keep-terminated-pod-volumes";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A volume of a CSI driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attachable {
    pub(super) driver: String,
    pub(super) handle: String,
    /// It may be attached to one node only.
    pub(super) exclusive: bool,
}

impl Attachable {
    /// The volume, if it is one that is attached at all.
    pub(super) fn of(volume: &PersistentVolume, driver: Option<&CSIDriver>) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let source = spec.csi.as_ref()?;
        // A driver that says nothing of itself is taken to need it.
        if driver.is_some_and(|driver| driver.spec.attach_required == Some(false)) {
            return None;
        }
        let modes = spec.access_modes.as_deref().unwrap_or_default();
        let shared = |mode: &String| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany");
        Some(Self {
            driver: source.driver.clone(),
            handle: source.volume_handle.clone(),
            exclusive: !modes.is_empty() && !modes.iter().any(shared),
        })
    }

    /// The name of its VolumeAttachment on a node, as CSI attachers expect it.
    pub(super) fn attachment_name(&self, node: &str) -> String {
        let text = format!("{}{}{node}", self.handle, self.driver);
        let mut name = "csi-".to_owned();
        for byte in digest::digest(&digest::SHA256, text.as_bytes()).as_ref() {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        name
    }

    /// Its name in the status of nodes.
    pub(super) fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }
}

/// A VolumeAttachment of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attachment {
    pub(super) node: String,
    pub(super) deleting: bool,
    /// How long nobody has wanted it.
    pub(super) unwanted: Duration,
}

/// What is known of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeView {
    pub(super) managed: bool,
    pub(super) mounted: bool,
    pub(super) healthy: bool,
    pub(super) out_of_service: bool,
}

impl NodeView {
    /// A node as it is; one that is gone may still write to the volume if it did (`was_mounted`).
    pub(super) fn of(node: Option<&Node>, volume: &str, was_mounted: bool) -> Self {
        let Some(node) = node else {
            return Self { managed: false, mounted: was_mounted, healthy: false, out_of_service: false };
        };
        let status = node.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        Self {
            managed: node.annotation(MANAGED).is_some(),
            mounted: in_use(node).contains(&volume.to_owned()),
            healthy: conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True"),
            out_of_service: taints.iter().any(|taint| taint.key == OUT_OF_SERVICE),
        }
    }
}

pub(super) fn in_use(node: &Node) -> &[String] {
    node.status.as_ref().and_then(|status| status.volumes_in_use.as_deref()).unwrap_or_default()
}

pub(super) fn keeps_terminated(node: &Node) -> bool {
    node.annotation(KEEP_TERMINATED) == Some("true")
}

/// Whether a pod needs its volumes on its node.
pub(super) fn needs_volumes(pod: &Pod, keeps_terminated: bool) -> bool {
    keeps_terminated || !(is_finished(pod) || pod.deleting() && !runs(pod))
}

fn runs(pod: &Pod) -> bool {
    let running = |status: &ContainerStatus| {
        let state = status.state.as_ref();
        state.is_none_or(|state| state.terminated.is_none() && state.waiting.is_none())
    };
    pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten()).any(running)
}

/// What to do about a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Attach(String),
    /// Pods of this node have to wait: the volume is on others.
    Refuse {
        node: String,
        others: Vec<String>,
    },
    /// `safely`: only if the node, asked once more, does not use it.
    Detach {
        node: String,
        safely: bool,
    },
    /// Look again when a node has had its time.
    Wait(Duration),
}

/// `wanted` are the nodes with pods that need the volume, the first come first. What is unwanted goes before anything
/// comes, so that a volume moves.
pub(super) fn steps(
    exclusive: bool,
    wanted: &[String],
    attachments: &[Attachment],
    view: impl Fn(&str) -> NodeView,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let unwanted = |attachment: &&Attachment| !attachment.deleting && !wanted.contains(&attachment.node);
    for Attachment { node, unwanted, .. } in attachments.iter().filter(unwanted) {
        let view = view(node);
        let expired = *unwanted > MAX_WAIT_FOR_UNMOUNT;
        if !view.mounted || (expired && !view.healthy) || view.out_of_service {
            steps.push(Step::Detach { node: node.clone(), safely: !expired && !view.out_of_service });
        } else if !view.healthy {
            let left = MAX_WAIT_FOR_UNMOUNT.saturating_sub(*unwanted);
            steps.push(Step::Wait(left + Duration::from_secs(1)));
        }
    }
    let mut holders: BTreeSet<&str> = attachments.iter().map(|one| one.node.as_str()).collect();
    for node in wanted {
        if holders.contains(node.as_str()) || !view(node).managed {
            continue;
        }
        if exclusive && !holders.is_empty() {
            let others = holders.iter().map(|&other| other.to_owned()).collect();
            steps.push(Step::Refuse { node: node.clone(), others });
            continue;
        }
        holders.insert(node);
        steps.push(Step::Attach(node.clone()));
    }
    steps
}

/// What a pod is told whose volume is on other nodes, used there by `users` (namespace and name). Names from other
/// namespaces are not for its owner.
pub(super) fn multi_attach(volume: &str, namespace: &str, users: &[(String, String)]) -> String {
    let local: Vec<&str> =
        users.iter().filter(|(of, _)| of == namespace).map(|(_, name)| name.as_str()).collect();
    let others = users.len() - local.len();
    let why = match (local.len(), others) {
        (0, 0) => {
            "Volume is already exclusively attached to one node and can't be attached to another".to_owned()
        }
        (0, others) => format!("Volume is already used by {others} pod(s) in different namespaces"),
        (_, 0) => format!("Volume is already used by pod(s) {}", local.join(", ")),
        (_, others) => format!(
            "Volume is already used by pod(s) {} and {others} pod(s) in different namespaces",
            local.join(", ")
        ),
    };
    format!("Multi-Attach error for volume \"{volume}\" {why}")
}
