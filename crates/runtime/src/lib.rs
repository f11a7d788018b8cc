//! The embedded container runtime: images, snapshots, sandboxes, containers.
//!
//! It implements [`orlop_cri::Runtime`] in this process: images come from registries or archives and are unpacked into
//! content-addressed layers, overlayfs joins them, a small shim process per pod (our own binary, executed again) holds
//! the pod's namespaces, is the parent of its containers and writes their logs, so that neither stops when this
//! process does. All state is files; [`EmbeddedRuntime::open`] adopts what it finds.
//!
//! It must never know the API server's objects, nor how a pod gets its network: that is behind [`orlop_cri::PodNetwork`].
//!
//! `unsafe` is allowed here because `fork`, `clone`, the mount API and descriptor passing have no safe form; every
//! block says why it is sound.
#![allow(unsafe_code)]

mod cgroup;
mod client;
mod embedded;
mod error;
mod files;
mod images;
mod overlay;
mod protocol;
mod seccomp;
mod shim;
mod signals;
mod spec;
mod state;
mod sys;
mod users;

pub use embedded::{EmbeddedRuntime, Options};
pub use error::RuntimeError;
pub use shim::shim_main;
