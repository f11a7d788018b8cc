//! The node object: registration, status and lease. Answers to upstream's `kubelet_node_status.go` and
//! `pkg/kubelet/nodestatus`.

pub(crate) mod info;
mod lease;
mod status;

pub(crate) use lease::renew;
pub(crate) use status::NodeReporter;
