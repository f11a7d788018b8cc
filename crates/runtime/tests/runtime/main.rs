//! The runtime against the real kernel: needs root, overlayfs, cgroups and `/bin/busybox` (package busybox-static).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod archive;
mod containers;
mod images;
mod registry;
mod restart;
mod sandboxes;
mod streams;
mod support;
