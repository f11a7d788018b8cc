//! The container runtime interface: what a kubelet asks of a runtime, as Rust types with the names of CRI v1.
//!
//! This crate knows the shapes of the contract and nothing else: not the API server's objects, not how a
//! runtime makes a container, not how a kubelet decides. The embedded runtime implements [`Runtime`]; a gRPC
//! client for containerd or CRI-O and a gRPC server for the embedded runtime translate to and from the same types.
//!
//! Source: `k8s.io/cri-api/pkg/apis/runtime/v1` and KEP-2371, KEP-3386 (evented PLEG).

mod error;
mod network;
mod service;
mod types;

pub use error::{CriError, Result};
pub use network::{PodNetwork, PodNetworkAttachment, PodNetworkRequest};
pub use service::{AttachStreams, DuplexStream, ExecSession, Runtime, TerminalSize};
pub use types::*;
