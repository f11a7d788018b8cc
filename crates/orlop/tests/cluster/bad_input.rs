//! Wrong input gets upstream's answer and disturbs nothing else.

use crate::support::{Cluster, eventually, text, web_deployment};

#[test]
fn each_mistake_gets_upstreams_answer() {
    let cluster = Cluster::start();
    cluster.apply(&web_deployment("web", 1));
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let before = cluster.ok(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.uid}"]);

    let create = |manifest: &str| {
        let output = cluster.kubectl_stdin(&["create", "-f", "-"], manifest);
        assert!(!output.status.success(), "{manifest}\n{}", text(&output));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let check = |manifest: &str, expected: &str| {
        let said = create(manifest);
        let shown: String = manifest.chars().take(500).collect();
        assert!(said.contains(expected), "{shown}\nsaid: {said}\nnot:  {expected}");
    };
    check("a: [", "error parsing STDIN: error converting YAML to JSON");
    check(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: x}, dada: {a: b}}",
        r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "dada""#,
    );
    check(
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}, spec: {replicas: three}}",
        r#"Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"#,
    );
    check(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: Bad_Name}}",
        r#"The ConfigMap "Bad_Name" is invalid: metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"#,
    );
    check(
        "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: []}}",
        r#"The Pod "x" is invalid: spec.containers: Required value"#,
    );
    check(
        "{apiVersion: v1, kind: Gadget, metadata: {name: x}}",
        r#"no matches for kind "Gadget" in version "v1""#,
    );
    check(
        "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}",
        r#"Error from server (AlreadyExists): error when creating "STDIN": services "web" already exists"#,
    );
    check(
        &format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: x}}, data: {{a: {}}}}}",
            "x".repeat(4 << 20)
        ),
        "Request entity too large: limit is 3145728",
    );
    check(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: nowhere}}",
        r#"Error from server (NotFound): error when creating "STDIN": namespaces "nowhere" not found"#,
    );

    cluster.ok(&["create", "configmap", "c", "--from-literal=a=b"]);
    let old = cluster.ok(&["get", "configmap", "c", "-o", "yaml"]);
    cluster.ok(&["label", "configmap", "c", "x=y"]);
    let output = cluster.kubectl_stdin(&["replace", "-f", "-"], &old);
    let conflict = r#"Operation cannot be fulfilled on configmaps "c": the object has been modified; please apply your changes to the latest version and try again"#;
    assert!(text(&output).contains(conflict), "{}", text(&output));

    let gone = cluster.refused(&["get", "pod", "nobody"]);
    assert_eq!(gone, "Error from server (NotFound): pods \"nobody\" not found\n");
    let kind = cluster.refused(&["get", "gadgets"]);
    assert_eq!(kind, "error: the server doesn't have a resource type \"gadgets\"\n");
    let selector = cluster.refused(&["get", "pods", "--field-selector", "spec.color=red"]);
    assert!(selector.contains("field label not supported: spec.color"), "{selector}");

    let after = cluster.ok(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.uid}"]);
    assert_eq!(before, after, "nothing else was disturbed");
}

#[test]
fn an_image_that_does_not_exist_is_said_so() {
    let cluster = Cluster::start();
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: lost}, spec: {containers: \
         [{name: main, image: 'registry.invalid/none:1'}, {name: never, image: 'localhost/none:1', imagePullPolicy: Never}]}}",
    );
    let reasons = eventually("both containers wait with a reason", || {
        let pod = cluster.json(&["pod", "lost"]);
        let reason = |index: usize| {
            let status = &pod["status"]["containerStatuses"][index]["state"]["waiting"];
            status["reason"].as_str().map(str::to_owned)
        };
        let reasons = (reason(0)?, reason(1)?);
        (reasons.0 != "ContainerCreating").then_some(reasons)
    });
    assert!(["ErrImagePull", "ImagePullBackOff"].contains(&reasons.0.as_str()), "{reasons:?}");
    assert_eq!(reasons.1, "ErrImageNeverPull");
    eventually("events say so", || {
        let events = cluster.ok(&["get", "events"]);
        (events.contains("Failed to pull image \"registry.invalid/none:1\"")
            && events
                .contains("Container image \"localhost/none:1\" is not present with pull policy of Never"))
        .then_some(())
    });
}

#[test]
fn a_pod_that_fits_nowhere_is_told_why() {
    let cluster = Cluster::start();
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: big}, spec: {containers: [{name: main, image: x, \
         resources: {requests: {cpu: '1000'}}}]}}",
    );
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: picky}, spec: {nodeSelector: {disk: fast}, containers: \
         [{name: main, image: x}]}}",
    );
    let check = |pod: &str, expected: &str| {
        let condition = eventually("the scheduler has said why", || {
            let pod = cluster.json(&["pod", pod]);
            let conditions = pod["status"]["conditions"].as_array()?.clone();
            conditions.into_iter().find(|condition| condition["reason"] == "Unschedulable")
        });
        assert_eq!(condition["message"], expected, "{pod}");
        eventually("the event is there", || {
            let selector = format!("reason=FailedScheduling,involvedObject.name={pod}");
            cluster.ok(&["get", "events", "--field-selector", &selector]).contains(expected).then_some(())
        });
    };
    check(
        "big",
        "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available: \
         1 Preemption is not helpful for scheduling.",
    );
    check(
        "picky",
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. no new claims to deallocate, \
         preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    );
    // A label on the node is enough to let the second one go.
    cluster.ok(&["label", "node", "node-1", "disk=fast"]);
    eventually("the pod is bound", || {
        (cluster.ok(&["get", "pod", "picky", "-o", "jsonpath={.spec.nodeName}"]) == "node-1").then_some(())
    });
}
