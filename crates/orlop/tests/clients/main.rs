//! Clients as their makers ship them against `orlop apiserver` alone: kubectl, helm, the official Python client, and
//! kube-rs. No controllers run here: what a client sees is what the API server does.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod components;
mod devices;
mod etcd;
mod flags;
mod helm;
mod kube_rs;
mod kubectl;
mod leadership;
mod python;
mod support;
