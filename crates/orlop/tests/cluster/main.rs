//! A real cluster each test: a network namespace as the host, the real binary, real containers, the real kubectl.
//!
//! They need root and the host packages that `./test` installs; where these are missing they fail and say so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod certificates;
mod crash;
mod describe;
mod helm;
mod metrics;
mod network;
mod pods;
mod rollout;
mod scripts;
mod storage;
mod streams;
mod support;
mod workloads;
