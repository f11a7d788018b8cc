//! What pods and nodes use: `kubectl top`, a HorizontalPodAutoscaler that acts on it, a metrics-server from outside.

use crate::support::{Cluster, WEB, eventually};

const API_SERVICE: &str = "v1beta1.metrics.k8s.io";

#[test]
fn use_is_measured_and_acted_on() {
    let cluster = Cluster::start_with(&["--metrics-resolution", "2s"]);
    cluster.apply(&format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: busy}}, spec: {{replicas: 1, \
         selector: {{matchLabels: {{app: busy}}}}, template: {{metadata: {{labels: {{app: busy}}}}, spec: {{ \
         terminationGracePeriodSeconds: 0, containers: [{{name: burn, image: '{WEB}', \
         command: [/bin/sh, -c, 'while :; do :; done'], \
         resources: {{requests: {{cpu: 20m}}, limits: {{cpu: 200m}}}}}}]}}}}}}}}"
    ));
    cluster.ok(&["rollout", "status", "deployment/busy", "--timeout=60s"]);
    cluster.ok(&["autoscale", "deployment", "busy", "--cpu=50%", "--min=1", "--max=3"]);
    let resources = cluster.ok(&["api-resources", "--api-group=metrics.k8s.io", "--no-headers"]);
    let rows: Vec<Vec<&str>> = resources.lines().map(|line| line.split_whitespace().collect()).collect();
    let version = "metrics.k8s.io/v1beta1";
    assert_eq!(rows, [["nodes", version, "false", "NodeMetrics"], ["pods", version, "true", "PodMetrics"]]);

    let row = eventually("kubectl top pods has a row", || {
        let top = cluster.kubectl(&["top", "pods", "--no-headers", "-l", "app=busy"]);
        let row = String::from_utf8_lossy(&top.stdout).into_owned();
        (top.status.success() && row.starts_with("busy-")).then_some(row)
    });
    // Millicores and MiB; the limit is 200m.
    let cells: Vec<&str> = row.split_whitespace().collect();
    let milli: u32 = cells[1].strip_suffix('m').and_then(|n| n.parse().ok()).expect(&row);
    assert!((20..=400).contains(&milli) && cells[2].ends_with("Mi"), "{row}");
    let row = cluster.ok(&["top", "nodes", "--no-headers"]);
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!((cells[0], cells.len()), ("node-1", 5), "{row}");
    assert!(cells[1].ends_with('m') && cells[3].ends_with("Mi"), "{row}");
    let table = cluster.ok(&["get", "pods.metrics.k8s.io"]);
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["NAME", "CPU", "MEMORY", "WINDOW"], "{table}");
    assert!(cluster.ok(&["explain", "nodes", "--api-version=metrics.k8s.io/v1beta1"]).contains("timestamp"));

    eventually("the Deployment is scaled up", || {
        let wanted = cluster.ok(&["get", "deployment", "busy", "-o", "jsonpath={.spec.replicas}"]);
        (wanted == "3").then_some(())
    });

    // Who may view may look; who has nothing may not.
    let can = |verb: &str, user: &str| {
        let answer = cluster.kubectl(&["auth", "can-i", verb, "pods.metrics.k8s.io", "--as", user]);
        String::from_utf8_lossy(&answer.stdout).trim().to_owned()
    };
    cluster.ok(&["create", "rolebinding", "viewer", "--clusterrole=view", "--user=jane"]);
    assert_eq!((can("list", "jane"), can("list", "john")), ("yes".to_owned(), "no".to_owned()));

    // A metrics-server from outside takes over, and gives back what it took.
    let service = || cluster.ok(&["get", "apiservice", API_SERVICE, "-o", "jsonpath={.spec.service.name}"]);
    let available = |expected: &str| {
        let reason = "jsonpath={.status.conditions[?(@.type==\"Available\")].reason}";
        eventually(expected, || {
            let told = cluster.kubectl(&["get", "apiservice", API_SERVICE, "-o", reason]);
            (told.stdout == expected.as_bytes()).then_some(())
        });
    };
    available("Local");
    cluster.apply(&format!(
        "{{apiVersion: apiregistration.k8s.io/v1, kind: APIService, metadata: {{name: {API_SERVICE}, labels: {{k8s-app: \
         metrics-server}}}}, spec: {{service: {{name: metrics-server, namespace: kube-system}}, group: metrics.k8s.io, \
         version: v1beta1, insecureSkipTLSVerify: true, groupPriorityMinimum: 100, versionPriority: 100}}}}"
    ));
    available("ServiceNotFound");
    assert_eq!(service(), "metrics-server");
    let refused = cluster.refused(&["top", "nodes"]);
    assert!(refused.contains("ServiceUnavailable") || refused.contains("not available"), "{refused}");
    cluster.ok(&["delete", "apiservice", API_SERVICE]);
    available("Local");
    eventually("it is measured again", || cluster.kubectl(&["top", "nodes"]).status.success().then_some(()));
}
