//! What controllers do beside Deployments, as people use it: stateful sets, daemon sets, jobs, budgets, quotas, policies.

use crate::support::{Cluster, WEB, eventually, web_deployment};

/// A pod template of the test's image, running a script.
fn template(labels: &str, restart: &str, script: &str) -> String {
    format!(
        "{{metadata: {{labels: {labels}}}, spec: {{restartPolicy: {restart}, terminationGracePeriodSeconds: 1, \
         containers: [{{name: c, image: '{WEB}', command: [/bin/sh, -c, '{script}']}}]}}}}"
    )
}

fn names(cluster: &Cluster, selector: &str) -> Vec<String> {
    let listed = cluster.ok(&["get", "pods", "-l", selector, "-o", "name", "--sort-by=.metadata.name"]);
    listed.lines().map(String::from).collect()
}

#[test]
fn stateful_sets_keep_names_and_daemon_sets_are_on_every_node() {
    let cluster = Cluster::start();
    let sleeper = |labels: &str| template(labels, "Always", "exec sleep 1000");
    cluster.apply(&format!(
        "{{apiVersion: apps/v1, kind: StatefulSet, metadata: {{name: db}}, spec: {{serviceName: db, replicas: 2, \
         selector: {{matchLabels: {{app: db}}}}, template: {}}}}}",
        sleeper("{app: db}")
    ));
    cluster.apply(&format!(
        "{{apiVersion: apps/v1, kind: DaemonSet, metadata: {{name: agent}}, spec: {{selector: {{matchLabels: {{app: agent}}}}, \
         template: {}}}}}",
        sleeper("{app: agent}")
    ));
    cluster.ok(&["rollout", "status", "statefulset/db", "--timeout=90s"]);
    cluster.ok(&["rollout", "status", "daemonset/agent", "--timeout=90s"]);
    assert_eq!(names(&cluster, "app=db"), ["pod/db-0", "pod/db-1"]);
    let uid = || cluster.ok(&["get", "pod", "db-0", "--ignore-not-found", "-o", "jsonpath={.metadata.uid}"]);
    let first = uid();
    cluster.ok(&["delete", "pod", "db-0"]);
    eventually("db-0 is there again", || Some(uid()).filter(|now| !now.is_empty() && *now != first));
    cluster.ok(&["rollout", "status", "statefulset/db", "--timeout=90s"]);
    cluster.ok(&["scale", "statefulset/db", "--replicas=1"]);
    eventually("the last one is gone", || (names(&cluster, "app=db") == ["pod/db-0"]).then_some(()));
    let row = cluster.ok(&["get", "daemonset", "agent", "--no-headers"]);
    let row: Vec<&str> = row.split_whitespace().take(6).collect();
    assert_eq!(row, ["agent", "1", "1", "1", "1", "1"]);
    cluster.ok(&["rollout", "restart", "daemonset/agent"]);
    cluster.ok(&["rollout", "status", "daemonset/agent", "--timeout=90s"]);
    assert!(cluster.ok(&["rollout", "history", "daemonset/agent"]).contains("2 "));
}

#[test]
fn jobs_end_and_cron_jobs_make_them() {
    let cluster = Cluster::start();
    let job = |name: &str, spec: &str, script: &str| {
        let template = template("{app: job}", "Never", script);
        format!(
            "{{apiVersion: batch/v1, kind: Job, metadata: {{name: {name}}}, spec: {{{spec}, template: {template}}}}}"
        )
    };
    let script = "echo index $JOB_COMPLETION_INDEX";
    cluster.apply(&job("all", "completions: 3, parallelism: 2, completionMode: Indexed", script));
    cluster.apply(&job("bad", "backoffLimit: 0", "exit 3"));
    cluster.ok(&["wait", "--for=condition=complete", "job/all", "--timeout=60s"]);
    cluster.ok(&["wait", "--for=condition=failed", "job/bad", "--timeout=60s"]);
    let status =
        |path: &str| cluster.ok(&["get", "job", "all", "-o", &format!("jsonpath={{.status.{path}}}")]);
    assert_eq!((status("completedIndexes"), status("succeeded")), ("0-2".to_string(), "3".to_string()));
    let reason = "jsonpath={.status.conditions[?(@.type==\"Failed\")].reason}";
    assert_eq!(cluster.ok(&["get", "job", "bad", "-o", reason]), "BackoffLimitExceeded");
    assert!(cluster.ok(&["logs", "-l", "batch.kubernetes.io/job-completion-index=2"]).contains("index 2"));

    cluster.ok(&[
        "create",
        "cronjob",
        "tick",
        "--schedule=* * * * *",
        &format!("--image={WEB}"),
        "--",
        "true",
    ]);
    cluster.ok(&["create", "job", "now", "--from=cronjob/tick"]);
    cluster.ok(&["wait", "--for=condition=complete", "job/now", "--timeout=60s"]);
    eventually("the minute is over", || {
        let last = cluster.ok(&["get", "cronjob", "tick", "-o", "jsonpath={.status.lastSuccessfulTime}"]);
        (!last.is_empty()).then_some(())
    });
}

#[test]
fn budgets_quotas_and_policies_are_acted_on() {
    let cluster = Cluster::start();
    cluster.apply(&web_deployment("web", 2));
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    cluster.ok(&["create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=2"]);
    eventually("the budget is counted", || {
        let counted = cluster.ok(&["get", "pdb", "web", "-o", "jsonpath={.status.currentHealthy}"]);
        (counted == "2").then_some(())
    });
    let held = cluster.refused(&["drain", "node-1", "--ignore-daemonsets", "--timeout=5s"]);
    assert!(held.contains("would violate the pod's disruption budget"), "{held}");
    cluster.ok(&["delete", "pdb", "web"]);
    cluster.ok(&["drain", "node-1", "--ignore-daemonsets", "--timeout=60s"]);
    cluster.ok(&["uncordon", "node-1"]);

    // The author of a policy is told what cannot be right in it.
    cluster.apply(
        "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicy, metadata: {name: typed}, spec: { \
         matchConstraints: {resourceRules: [{apiGroups: [apps], apiVersions: [v1], operations: [CREATE], resources: [deployments]}]}, \
         validations: [{expression: 'object.spec.replicas == object.metadata.name'}]}}",
    );
    eventually("the policy is checked", || {
        let warning = "jsonpath={.status.typeChecking.expressionWarnings[0].warning}";
        let warning = cluster.ok(&["get", "validatingadmissionpolicy", "typed", "-o", warning]);
        warning.contains("found no matching overload for '_==_' applied to '(int, string)'").then_some(())
    });

    cluster.ok(&["create", "quota", "few", "--hard=count/configmaps=2"]);
    eventually("the quota is counted", || {
        let used = cluster.ok(&["get", "quota", "few", "-o", "jsonpath={.status.used.count/configmaps}"]);
        // Every namespace has the root certificates.
        (used == "1").then_some(())
    });
    cluster.ok(&["create", "configmap", "a"]);
    let refused = cluster.refused(&["create", "configmap", "b"]);
    assert!(refused.contains("exceeded quota: few"), "{refused}");
}
