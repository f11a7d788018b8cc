//! The scheduler: queue, cache, framework, plugins.
//!
//! It decides which node each pending pod runs on and binds the pod there. Decisions are pure functions from cached
//! objects to a node or a diagnosis (`schedule`, `preemption`); [`run`] is the thin shell that feeds the cache from
//! informers and writes bindings, conditions and events. It must never know how pods run, only what they ask for. It
//! answers to upstream's kube-scheduler and its scheduling framework (KEP-624).
//!
//! What makes it fast: nodes are an array, counts by label selector and topology domain are kept up to date by each
//! event (`cache`), nodes with equal taints share a verdict, and the nodes a selector matches are remembered. No step
//! of a pod's cycle costs more when more pods are placed.

mod cache;
pub mod config;
mod dynamic_resources;
mod extender;
mod framework;
mod go_duration;
pub mod metrics;
mod nominator;
pub mod perf;
mod plugins;
mod pod_info;
mod preemption;
mod queue;
mod resources;
mod run;
mod schedule;
mod selector;
mod shared;
mod shell;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;
mod volumes;
mod workloads;

pub use config::{ConfigError, KubeSchedulerConfiguration};
pub use run::{Options, run};
