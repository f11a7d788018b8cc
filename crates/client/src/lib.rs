//! What every component that talks to the API server shares: a client (in memory or over TLS), informers with shared
//! caches, work queues, event recording and leader election, on kube-rs.
//!
//! The crate knows no kind in particular and takes no decision; it must never know whether the API server is in the
//! same process. It answers to client-go's `tools/cache`, `util/workqueue`, `tools/record`, `tools/events` and
//! `tools/leaderelection`.

mod account;
mod connect;
mod controller;
mod events;
mod factory;
mod informer;
mod leader;
pub mod metrics;
mod queue;
mod trim;

pub use account::ServiceAccounts;
pub use connect::{ConnectError, Connection, from_kubeconfig, in_memory};
pub use controller::run_workers;
pub use events::{EventRecorder, EventType, Occurrence, SeriesRecorder, object_reference};
pub use factory::SharedInformerFactory;
pub use informer::{Informer, InformerEvent, Object, ObjectKey};
pub use leader::{LeaderElection, LeaderElectionOptions, Leadership};
pub use queue::WorkQueue;
