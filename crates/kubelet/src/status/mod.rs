//! A pod's status: computed from what the runtime and the probes say, and written to the API when it changes.

mod conditions;
mod containers;
mod generate;
mod manager;
mod patch;

pub(crate) use generate::{PodFailure, StatusInput, generate};
pub(crate) use manager::StatusManager;
