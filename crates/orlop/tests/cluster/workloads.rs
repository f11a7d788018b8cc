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

/// A node without a kubelet: an object that says that it is ready.
fn add_node(cluster: &Cluster, name: &str) {
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{kubernetes.io/hostname: {name}}}}}}}"
    ));
    let size = r#"{"cpu": "4", "memory": "8Gi", "pods": "110"}"#;
    let status = format!(
        r#"{{"status": {{"capacity": {size}, "allocatable": {size},
            "conditions": [{{"type": "Ready", "status": "True", "reason": "KubeletReady"}}]}}}}"#
    );
    cluster.ok(&["patch", "node", name, "--subresource=status", "--type=merge", "-p", &status]);
}

#[test]
fn daemon_sets_follow_nodes_as_they_come_change_and_go() {
    let cluster = Cluster::start();
    let sleeper = |name: &str, selector: &str| {
        let template = template(&format!("{{app: {name}}}"), "Always", "exec sleep 1000");
        let template = template.replace("spec: {", &format!("spec: {{nodeSelector: {selector}, "));
        format!(
            "{{apiVersion: apps/v1, kind: DaemonSet, metadata: {{name: {name}}}, spec: {{selector: {{matchLabels: {{app: {name}}}}}, \
             template: {template}}}}}"
        )
    };
    cluster.apply(&sleeper("agent", "{}"));
    cluster.apply(&sleeper("disks", "{disk: ssd}"));
    cluster.ok(&["rollout", "status", "daemonset/agent", "--timeout=90s"]);
    let nodes = |app: &str| {
        let names = "jsonpath={.items[*].spec.nodeName}";
        let listed = cluster.ok(&["get", "pods", "-l", &format!("app={app}"), "-o", names]);
        let mut all: Vec<String> = listed.split_whitespace().map(String::from).collect();
        all.sort();
        all
    };
    assert_eq!((nodes("agent"), nodes("disks")), (vec!["node-1".to_owned()], vec![]));

    add_node(&cluster, "node-2");
    eventually("the new node has its pod", || (nodes("agent") == ["node-1", "node-2"]).then_some(()));
    cluster.ok(&["label", "node", "node-2", "disk=ssd"]);
    eventually("the label brings another", || (nodes("disks") == ["node-2"]).then_some(()));
    let scheduled = "jsonpath={.status.desiredNumberScheduled}/{.status.currentNumberScheduled}";
    eventually("both are counted", || {
        (cluster.ok(&["get", "daemonset", "agent", "-o", scheduled]) == "2/2").then_some(())
    });
    cluster.ok(&["label", "node", "node-2", "disk-"]);
    eventually("and takes it away", || {
        let going = "jsonpath={.items[*].metadata.deletionTimestamp}";
        let left = cluster.ok(&["get", "pods", "-l", "app=disks", "-o", going]);
        (nodes("disks").is_empty() || !left.is_empty()).then_some(())
    });
    cluster.ok(&["delete", "node", "node-2"]);
    eventually("the pods of a node that is gone go", || (nodes("agent") == ["node-1"]).then_some(()));
    eventually("one is wanted", || {
        (cluster.ok(&["get", "daemonset", "agent", "-o", scheduled]) == "1/1").then_some(())
    });
}

#[test]
fn claims_of_devices_are_made_allocated_and_freed() {
    let cluster = Cluster::start();
    // No kubelet is there: what happens to a claim happens before.
    add_node(&cluster, "node-2");
    cluster.apply(
        r#"
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: gpu}
spec: {selectors: [{cel: {expression: "device.driver == 'gpu.example.com'"}}]}
---
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: node-2-gpu}
spec:
  driver: gpu.example.com
  nodeName: node-2
  pool: {name: node-2, generation: 1, resourceSliceCount: 1}
  devices:
    - {name: small, attributes: {size: {int: 1}}}
    - {name: large, attributes: {size: {int: 8}}}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: large}
spec:
  spec:
    devices:
      requests:
        - name: r
          exactly:
            deviceClassName: gpu
            selectors: [{cel: {expression: "device.attributes['gpu.example.com'].size > 4"}}]
"#,
    );
    let user = |name: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0, \
             containers: [{{name: c, image: '{WEB}', resources: {{claims: [{{name: gpu}}]}}}}], \
             resourceClaims: [{{name: gpu, resourceClaimTemplateName: large}}]}}}}"
        )
    };
    cluster.apply(&user("first"));
    let claim_of = |pod: &str| {
        let name = "jsonpath={.status.resourceClaimStatuses[0].resourceClaimName}";
        eventually("the pod knows its claim", || {
            Some(cluster.ok(&["get", "pod", pod, "-o", name])).filter(|name| !name.is_empty())
        })
    };
    let claim = claim_of("first");
    eventually("it is allocated and reserved", || {
        let of = "jsonpath={.status.allocation.devices.results[0].device} {.status.reservedFor[0].name}";
        (cluster.ok(&["get", "resourceclaim", &claim, "-o", of]) == "large first").then_some(())
    });
    let row = cluster.ok(&["get", "resourceclaim", &claim, "--no-headers"]);
    assert!(row.contains("allocated,reserved"), "{row}");
    assert_eq!(cluster.ok(&["get", "pod", "first", "-o", "jsonpath={.spec.nodeName}"]), "node-2");

    // There is one large device; who is second waits until the first has gone.
    cluster.apply(&user("second"));
    eventually("the second waits", || {
        let message = "jsonpath={.status.conditions[?(@.type==\"PodScheduled\")].message}";
        let message = cluster.ok(&["get", "pod", "second", "-o", message]);
        message.contains("cannot allocate all claims").then_some(())
    });
    cluster.ok(&["delete", "pod", "first"]);
    eventually("the claim of the first is gone", || {
        cluster
            .ok(&["get", "resourceclaim", &claim, "--ignore-not-found", "-o", "name"])
            .is_empty()
            .then_some(())
    });
    let claim = claim_of("second");
    eventually("the second has the device", || {
        let of = "jsonpath={.status.allocation.devices.results[0].device} {.status.reservedFor[0].name}";
        (cluster.ok(&["get", "resourceclaim", &claim, "-o", of]) == "large second").then_some(())
    });
}
