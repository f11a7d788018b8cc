//! A node's network: the pod network ([`BridgeNetwork`], [`NodeRoutes`]), Services ([`ServiceProxy`]) and names
//! ([`ClusterDns`]).
//!
//! The crate reads shared informers and acts on the network namespace its process is in; it must never know how a
//! sandbox is made (it gets a path to a namespace), nor write to the API server. All rules of an instance live in one
//! nftables table. Every part leaves its work in the kernel when it ends and takes it over at the next start in one
//! transaction, so a restart interrupts no connection; [`cleanup`] takes everything away.

mod cleanup;
mod dns;
mod error;
mod netlink;
mod nft;
mod node;
mod options;
mod pod_network;
pub mod proxy;
mod table;

pub use cleanup::cleanup;
pub use dns::{ClusterDns, DnsOptions};
pub use error::{NetworkError, Result};
pub use node::{NodeRoutes, desired_routes, pod_cidr};
pub use options::NetworkOptions;
pub use pod_network::BridgeNetwork;
pub use proxy::ServiceProxy;
