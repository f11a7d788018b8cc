//! Everything between a connection and the registry: bodies, negotiation, the request pipeline, discovery.

pub mod body;
pub mod cors;
pub mod discovery;
pub mod drain;
pub mod filters;
pub mod gzip;
pub mod in_memory;
pub mod negotiate;
pub mod openapi;
pub mod pipeline;
mod seat;
pub mod server;

pub use body::{Body, BoxError, Response};
