//! The controllers of `kube-controller-manager`: each watches some kinds and drives the cluster towards what they say.
//!
//! A controller is a pure decision (cached objects in, actions out; tested without a server) and a thin shell around
//! it (informers → work queue → reconcile → writes). All read through one set of shared informers; each writes under
//! an identity of its own. The crate must never know whether the API server is in the same process, and it keeps no
//! state that a restart would miss.

mod bootstrap;
mod certificates;
mod claim;
mod cluster_role_aggregation;
mod cronjob;
mod daemonset;
mod deployment;
mod device_eviction;
mod discovery;
mod disruption;
mod endpoints;
mod endpointslice;
mod error;
mod expectations;
mod garbage;
mod history;
mod hpa;
mod job;
mod labels;
mod legacy_tokens;
mod names;
mod namespace;
mod node;
mod objects;
mod placement;
mod pod_control;
mod podgc;
mod policy_status;
mod replicaset;
mod resource_claim;
mod resourcequota;
mod root_ca;
mod service_account;
mod service_account_tokens;
mod service_cidr;
mod service_lb;
mod services;
mod shell;
mod statefulset;
mod ttl_after_finished;
mod volume;
mod workload;

pub use certificates::Signing;
pub use error::Error;
pub use names::{UnknownController, check_names};
pub use shell::{CONTROLLERS, ClientFor, Context, Options, READER, SecretToken, TokenSigner, run};
