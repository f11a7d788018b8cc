//! The wire protocols under `exec`, `attach` and `port-forward`: SPDY/3.1 framing as client-go and upstream's kubelet
//! speak it, WebSocket handshakes, and SPDY tunnelled through WebSocket messages (KEP-4006).
//!
//! Several streams share one upgraded HTTP/1.1 connection here. The crate must never know what a pod is, who may
//! connect, or what runs at the other end of a stream.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod spdy;
pub mod upgrade;
pub mod websocket;
