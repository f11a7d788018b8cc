//! helm as shipped by its makers: install, upgrade, rollback, uninstall.

use crate::support::{Cluster, WEB, eventually, run};

fn chart(cluster: &Cluster) -> std::path::PathBuf {
    let chart = cluster.directory.path().join("chart");
    std::fs::create_dir_all(chart.join("templates")).unwrap();
    std::fs::write(chart.join("Chart.yaml"), "apiVersion: v2\nname: page\nversion: 0.1.0\n").unwrap();
    std::fs::write(chart.join("values.yaml"), "replicas: 1\n").unwrap();
    let manifest = format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: "{{{{ .Release.Name }}}}"}}
spec:
  replicas: {{{{ .Values.replicas }}}}
  selector: {{matchLabels: {{app: "{{{{ .Release.Name }}}}"}}}}
  template:
    metadata: {{labels: {{app: "{{{{ .Release.Name }}}}"}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: web, image: {WEB}}}]
"#
    );
    std::fs::write(chart.join("templates/deployment.yaml"), manifest).unwrap();
    chart
}

#[test]
fn a_release_through_its_life() {
    let cluster = Cluster::start();
    let chart = chart(&cluster);
    let helm = |arguments: &[&str]| run(cluster.client("helm").args(arguments));
    let chart = chart.to_str().unwrap();
    let replicas = || cluster.ok(&["get", "deployment", "site", "-o", "jsonpath={.spec.replicas}"]);

    let shown = helm(&["install", "site", chart, "--wait", "--timeout", "60s"]);
    assert!(shown.contains("STATUS: deployed"), "{shown}");
    assert_eq!(replicas(), "1");
    helm(&["upgrade", "site", chart, "--set", "replicas=2", "--wait", "--timeout", "60s"]);
    assert_eq!(replicas(), "2");
    helm(&["rollback", "site", "1", "--wait", "--timeout", "60s"]);
    assert_eq!(replicas(), "1");
    let history = helm(&["history", "site"]);
    assert!(history.contains("Rollback to 1"), "{history}");
    helm(&["uninstall", "site", "--wait", "--timeout", "60s"]);
    eventually("the pods are gone", || cluster.ok(&["get", "pods", "-o", "name"]).is_empty().then_some(()));
}
