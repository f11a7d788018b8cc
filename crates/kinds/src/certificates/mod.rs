//! `certificates.k8s.io`: requests for certificates.

pub mod csr;
mod pem;
