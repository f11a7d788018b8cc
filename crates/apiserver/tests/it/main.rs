//! The API server over its in-memory transport and the memory store: what clients see, without sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod access;
mod admission;
mod aggregation;
mod crud;
mod custom;
mod exact;
mod list_watch;
mod openapi;
mod operations;
mod outside;
mod policies;
mod protobuf;
mod races;
mod security;
mod settings;
mod support;
mod watch;
mod webhooks;
