//! The node agent: pod workers, probes, volumes, status, node HTTP server.
//!
//! A kubelet registers its node, watches the pods bound to it and makes them real through a container runtime that it
//! knows only as [`orlop_cri::Runtime`]. It must never know how a container is made, where the API server keeps its
//! objects, or about other nodes. Decisions (which containers to start or kill, what a status says, when a probe
//! counts) are pure functions; a worker per pod carries them out. It answers to upstream's `pkg/kubelet`.

mod actions;
mod admission;
mod backoff;
mod config;
mod context;
mod env;
mod eviction;
mod expansion;
mod fields;
mod hooks;
mod image_ref;
mod images;
mod kubelet;
mod logs;
mod net;
mod node;
mod objects;
mod options;
mod pod;
mod probes;
mod qos;
mod resources;
mod runtime_status;
mod server;
mod status;
mod volumes;
mod worker;

pub use eviction::{EvictionHard, Threshold};
pub use kubelet::{Kubelet, KubeletError};
pub use options::{KUBELET_VERSION, Options, ServingTls};

#[cfg(test)]
mod e2e;
#[cfg(test)]
mod testing;
