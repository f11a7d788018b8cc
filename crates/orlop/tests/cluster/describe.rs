//! `kubectl get` and `kubectl describe` of every kind that is served, and `explain`.

use crate::support::{Cluster, web_deployment};

#[test]
fn each_kind_can_be_described() {
    let cluster = Cluster::start();
    cluster.apply(&web_deployment("web", 1));
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    cluster.ok(&["create", "configmap", "conf", "--from-literal=a=b"]);
    cluster.ok(&["create", "secret", "generic", "sec", "--from-literal=a=b"]);
    cluster.ok(&["create", "role", "reader", "--verb=get", "--resource=pods"]);
    cluster.ok(&["create", "rolebinding", "readers", "--role=reader", "--user=jane"]);
    cluster.apply(
        "{apiVersion: apps/v1, kind: ControllerRevision, metadata: {name: rev}, revision: 1, data: {a: b}}",
    );
    let pod = cluster.ok(&["get", "pods", "-o", "jsonpath={.items[0].metadata.name}"]);
    let check = |arguments: &[&str], expected: &[&str]| {
        let mut all = vec!["describe"];
        all.extend_from_slice(arguments);
        let shown = cluster.ok(&all);
        for line in expected {
            let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(
                squeezed(&shown).contains(&squeezed(line)),
                "describe {arguments:?} lacks {line:?}:\n{shown}"
            );
        }
    };
    check(
        &["node", "node-1"],
        &[
            "Ready True",
            "KubeletReady",
            "PodCIDR: 10.244.0.0/24",
            "Non-terminated Pods:",
            "HolderIdentity: node-1",
        ],
    );
    check(&["namespace", "default"], &["Status: Active", "kubernetes.io/metadata.name=default"]);
    check(
        &["pod", &pod],
        &[
            "Status: Running",
            "Controlled By: ReplicaSet/web-",
            "Ready: True",
            "QoS Class: BestEffort",
            "Scheduled",
            "Successfully assigned default/web-",
            "Pulled",
            "Created",
            "Started",
            "kube-api-access-",
            "node.kubernetes.io/not-ready:NoExecute op=Exists for 300s",
        ],
    );
    check(
        &["deployment", "web"],
        &[
            "Replicas: 1 desired | 1 updated | 1 total | 1 available | 0 unavailable",
            "StrategyType: RollingUpdate",
            "25% max unavailable, 25% max surge",
            "Available True MinimumReplicasAvailable",
            "Progressing True NewReplicaSetAvailable",
            "ScalingReplicaSet",
            "from 0 to 1",
        ],
    );
    check(
        &["replicaset"],
        &["Controlled By: Deployment/web", "Replicas: 1 current / 1 desired", "SuccessfulCreate"],
    );
    check(
        &["service", "web"],
        &[
            "Type: ClusterIP",
            "IP Family Policy: SingleStack",
            "TargetPort: http/TCP",
            ":8080",
            "Session Affinity: None",
        ],
    );
    check(&["endpoints", "web"], &["Subsets:", "Name Port Protocol", "http 8080 TCP"]);
    check(&["endpointslice"], &["AddressType: IPv4", "Ready: true", "TargetRef: Pod/web-"]);
    check(&["configmap", "conf"], &["a: ---- b"]);
    check(&["secret", "sec"], &["Type: Opaque", "a: 1 bytes"]);
    check(&["serviceaccount", "default"], &["Name: default"]);
    check(&["role", "reader"], &["pods [] [] [get]"]);
    check(&["rolebinding", "readers"], &["Kind: Role", "User jane"]);
    check(&["clusterrole", "view"], &["aggregate-to-edit=true", "pods/log [] [] [get list watch]"]);
    check(&["clusterrolebinding", "cluster-admin"], &["Group system:masters"]);
    check(&["lease", "-n", "kube-node-lease", "node-1"], &["Holder Identity: node-1"]);
    check(&["controllerrevision", "rev"], &["Revision: 1"]);
    check(&["events"], &["Reason: Started"]);

    for kind in [
        "nodes",
        "namespaces",
        "pods",
        "deployments",
        "replicasets",
        "services",
        "endpoints",
        "endpointslices",
        "configmaps",
        "secrets",
        "serviceaccounts",
        "roles",
        "rolebindings",
        "clusterroles",
        "clusterrolebindings",
        "leases",
        "controllerrevisions",
        "events",
    ] {
        for form in
            [&["get", kind, "-A"][..], &["get", kind, "-A", "-o", "wide"], &["get", kind, "-A", "-o", "yaml"]]
        {
            // -A on cluster-scoped kinds is ignored by kubectl.
            assert!(!cluster.ok(form).is_empty(), "{form:?}");
        }
    }
    let all = cluster.ok(&["get", "all"]);
    for line in
        ["pod/web-", "service/kubernetes", "service/web", "deployment.apps/web", "replicaset.apps/web-"]
    {
        assert!(all.contains(line), "{all}");
    }
    let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: closed}, spec: {podSelector: {}}}";
    let said = cluster.apply(policy);
    let unattended = "nothing acts on it: this cluster has no controller for networkpolicies yet";
    assert!(said.contains(unattended), "{said}");
    let explained = cluster.ok(&["explain", "deployment.spec.strategy.rollingUpdate.maxSurge"]);
    assert!(explained.contains("maxSurge <IntOrString>"), "{explained}");
    assert!(cluster.ok(&["version"]).contains("Server Version: v1.36."));
    assert!(cluster.ok(&["api-resources"]).contains("deployments"));
    assert_eq!(cluster.ok(&["auth", "can-i", "create", "pods"]), "yes\n");
    let refused = cluster.kubectl(&["auth", "can-i", "create", "pods", "--as=jane"]);
    assert_eq!(String::from_utf8_lossy(&refused.stdout), "no\n");
}
