//! From a pod to what the runtime is asked for: sandbox and container configurations. Pure but for the files under the
//! pod's directory that are mounted into containers.

pub(crate) mod dns;
pub(crate) mod hosts;
pub(crate) mod mounts;
pub(crate) mod sandbox;
pub(crate) mod security;
