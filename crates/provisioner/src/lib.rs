//! The built-in provisioner of volumes: a claim of a class with the provisioner `orlop.io/local-path` gets a directory on
//! the node that the scheduler chose for its first pod.
//!
//! One runs on every node and answers for that node alone, so that the directory is made and removed where it is, and
//! nothing has to reach into another machine: upstream's *distributed provisioning* (`sig-storage-lib-external-provisioner`
//! with `--node-deployment`). A volume is `local` rather than `hostPath`: the kubelet refuses a directory that has gone
//! instead of starting a database on an empty one, and gives it to the pod's `fsGroup`. A directory has no size: what a
//! claim asks for is written down, not enforced, and growing it needs no work on the disk.
//!
//! The crate is a client of the API like any provisioner from outside; it must never know how a volume is mounted.

mod decide;
mod directory;
mod run;

use std::path::PathBuf;

pub use run::Provisioner;

/// The name that StorageClasses call this provisioner by.
pub const PROVISIONER: &str = "orlop.io/local-path";

/// Which node a provisioner answers for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node's name, which is also its label `kubernetes.io/hostname`.
    pub node_name: String,
    /// The directory with a directory for each volume; made when the first volume is. Absolute.
    pub root: PathBuf,
}
