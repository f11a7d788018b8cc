//! helm with everything that needs no controllers: a chart with a CRD, hooks, a custom resource and lookups.

use crate::support::{Server, run, tool};

#[test]
fn a_chart_with_crds_and_hooks() {
    let server = Server::start();
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/chart");
    let helm = |arguments: &[&str]| run(server.client(tool("helm")).args(arguments));
    let size = || server.ok(&["get", "gadget", "shop", "-o", "jsonpath={.spec.size}"]);
    let hooks =
        || server.ok(&["get", "configmaps", "-l", "hook", "-o", "jsonpath={.items[*].metadata.name}"]);

    let shown = helm(&["install", "shop", chart]);
    assert!(shown.contains("STATUS: deployed"), "{shown}");
    assert!(shown.contains("The gadget has size 1."), "{shown}");
    assert_eq!((size(), hooks()), ("1".into(), "shop-post-install shop-pre-install".into()));
    helm(&["upgrade", "shop", chart, "--set", "size=2"]);
    assert_eq!(size(), "2");
    let diff = helm(&["get", "manifest", "shop"]);
    assert!(diff.contains("size: 2"), "{diff}");
    helm(&["rollback", "shop", "1"]);
    assert_eq!(size(), "1");
    let history = helm(&["history", "shop", "-o", "json"]);
    let history: serde_json::Value = serde_json::from_str(&history).unwrap();
    assert_eq!(history.as_array().unwrap().len(), 3);
    assert!(helm(&["list", "-q"]).contains("shop"));
    let refused =
        server.client(tool("helm")).args(["upgrade", "shop", chart, "--set", "size=0"]).output().unwrap();
    let said = crate::support::text(&refused);
    assert!(!refused.status.success() && said.contains("should be greater than or equal to 1"), "{said}");
    helm(&["uninstall", "shop"]);
    assert_eq!(server.ok(&["get", "gadgets", "-o", "name"]), "");
    // CRDs stay, as helm promises.
    server.ok(&["get", "crd", "gadgets.shop.example.com"]);
}
