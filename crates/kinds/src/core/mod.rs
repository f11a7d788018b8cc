//! The core group (`v1`).

pub mod componentstatus;
pub mod configmap;
pub mod endpoints;
pub mod event;
pub mod limitrange;
pub mod namespace;
pub mod node;
pub mod persistentvolume;
pub mod persistentvolumeclaim;
pub mod pod;
pub mod pod_template;
pub mod podtemplate;
pub mod replicationcontroller;
pub mod resourcequota;
pub mod secret;
pub mod service;
pub mod service_account;
pub(crate) mod volume_source;

/// The most bytes a ConfigMap's or Secret's values may have together (1 MiB).
const MAX_DATA_SIZE: usize = 1024 * 1024;

/// The number of bytes a base64 text stands for.
pub(crate) fn decoded_len(base64: &str) -> usize {
    let digits = base64.trim_end_matches('=').len();
    digits * 3 / 4
}
