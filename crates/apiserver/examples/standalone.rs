//! An API server with its objects in memory, for playing tests against it:
//! `cargo run -p orlop-apiserver --example standalone -- 127.0.0.1:16443 PKI_DIR [TOKENS.csv]`.
//! `PKI_DIR` holds `ca.crt`, `server.crt`, `server.key`, and optionally `sa.key` and `sa.pub`.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::PathBuf;
use std::sync::Arc;

use orlop_apiserver::Options;
use orlop_apiserver::pki::Leaf;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let bind = args.next().expect("address").parse().expect("address");
    let pki = PathBuf::from(args.next().expect("PKI directory"));
    let read = |name: &str| std::fs::read_to_string(pki.join(name)).ok();
    let options = Options {
        bind_address: bind,
        serving_cert: Some((pki.join("server.crt"), pki.join("server.key"))),
        client_ca_pem: read("ca.crt"),
        token_auth_file: args.next().map(PathBuf::from),
        service_account_signing_key: read("sa.key")
            .zip(read("sa.pub"))
            .map(|(key_pem, cert_pem)| Leaf { cert_pem, key_pem }),
        ..Options::default()
    };
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    let store = Arc::new(orlop_store::memory::MemoryStore::new());
    orlop_apiserver::run(options, store, shutdown, |_, address| println!("listening on {address}"))
        .await
        .unwrap();
}
