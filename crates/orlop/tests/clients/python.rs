//! The official Python client, from PyPI.

use crate::support::{Server, cache, run};

#[test]
fn the_official_client() {
    let server = Server::start();
    let packages = cache().join("tools/python");
    assert!(
        packages.join("kubernetes").exists(),
        "the Python client is missing: run scripts/fetch-tools --dev"
    );
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/python/client.py");
    let said = run(server.client("python3").env("PYTHONPATH", packages).arg(script));
    assert!(said.ends_with("all is well\n"), "{said}");
}
