//! The scheduler: queue, cache, framework, plugins.
//!
//! It decides which node each pending pod runs on and binds the pod there. Decisions are pure functions from cached
//! nodes and pods to a node or a [`framework::FitError`]; `run` is the thin shell that feeds the cache from informers
//! and writes bindings, conditions and events. It must never know how pods run, only what they ask for. It answers to
//! upstream's kube-scheduler and its scheduling framework (KEP-624).

mod cache;
mod framework;
mod plugins;
mod pod_info;
mod queue;
mod resources;
mod run;
mod schedule;
#[cfg(test)]
mod testing;

pub use run::{Options, run};
