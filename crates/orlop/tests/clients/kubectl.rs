//! kubectl's commands that need nothing but an API server.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use crate::support::{Server, eventually, run, text, tool};

const DEPLOYMENT: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - {name: web, image: web:1, ports: [{containerPort: 80}], env: [{name: A, value: '1'}]}
";

const WIDGETS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd], categories: [all]}
  versions:
    - name: v1
      served: true
      storage: true
      subresources: {status: {}, scale: {specReplicasPath: .spec.size, statusReplicasPath: .status.size}}
      additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.size}]
      schema:
        openAPIV3Schema:
          type: object
          description: A widget of the example.
          properties:
            spec:
              type: object
              required: [size]
              properties:
                size: {type: integer, minimum: 1, description: How large it is.}
                color: {type: string, default: red}
              x-kubernetes-validations:
                - {rule: "self.color != 'blue' || self.size < 10", message: blue widgets are small}
            status: {type: object, properties: {size: {type: integer}}}
"#;

#[test]
fn apply_in_both_ways_and_diff() {
    let server = Server::start();
    let apply = |arguments: &[&str], manifest: &str| {
        let mut all = vec!["apply", "-f", "-"];
        all.extend_from_slice(arguments);
        server.ok_stdin(&all, manifest)
    };
    assert_eq!(apply(&[], DEPLOYMENT), "deployment.apps/web created\n");
    assert_eq!(apply(&[], DEPLOYMENT), "deployment.apps/web unchanged\n");
    let changed = DEPLOYMENT.replace("web:1", "web:2");
    let diff = server.stdin(&["diff", "-f", "-"], &changed);
    assert_eq!(diff.status.code(), Some(1), "{}", text(&diff));
    let shown = String::from_utf8_lossy(&diff.stdout);
    let taken_out = |line: &str| line.starts_with('-') && line.ends_with("image: web:1");
    assert!(shown.lines().any(taken_out), "{shown}");
    assert!(shown.contains("+        image: web:2"), "{shown}");
    assert_eq!(apply(&[], &changed), "deployment.apps/web configured\n");
    assert_eq!(server.stdin(&["diff", "-f", "-"], &changed).status.code(), Some(0));
    // Another manager may not take over silently.
    let theirs = changed.replace("web:2", "web:3");
    let manager = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
    let conflict = text(&server.stdin(&manager, &theirs));
    assert!(conflict.contains("Apply failed with 1 conflict"), "{conflict}");
    assert!(conflict.contains(".spec.template.spec.containers[name=\"web\"].image"), "{conflict}");
    let mut forced = manager.to_vec();
    forced.push("--force-conflicts");
    assert_eq!(server.ok_stdin(&forced, &theirs), "deployment.apps/web serverside-applied\n");
    let managers = "jsonpath={.metadata.managedFields[*].manager}";
    let managers = server.ok(&["get", "deployment", "web", "--show-managed-fields", "-o", managers]);
    assert_eq!(managers.split(' ').filter(|m| *m == "other").count(), 1, "{managers}");
    let dry = server.ok_stdin(&["apply", "--dry-run=server", "-f", "-"], DEPLOYMENT);
    assert!(dry.contains("(server dry run)"), "{dry}");
    assert_eq!(server.ok(&["get", "deployment", "web", "-o", "jsonpath={..image}"]), "web:3");
    // A list is pruned of what is not in it any more.
    let one = "{apiVersion: v1, kind: ConfigMap, metadata: {name: one, labels: {set: x}}}";
    let two = "{apiVersion: v1, kind: ConfigMap, metadata: {name: two, labels: {set: x}}}";
    apply(&[], &format!("{one}\n---\n{two}"));
    let pruned = apply(&["--prune", "-l", "set=x", "--prune-allowlist=core/v1/ConfigMap"], one);
    assert!(pruned.contains("configmap/two pruned"), "{pruned}");
}

#[test]
fn changing_objects() {
    let server = Server::start();
    server.ok_stdin(&["create", "-f", "-"], DEPLOYMENT);
    let image = || server.ok(&["get", "deployment", "web", "-o", "jsonpath={..image}"]);
    let env = || server.ok(&["get", "deployment", "web", "-o", "jsonpath={..env[*].name}"]);
    let patch = |kind: &str, patch: &str| {
        server.ok(&["patch", "deployment", "web", &format!("--type={kind}"), "-p", patch])
    };
    patch(
        "strategic",
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"web:2","env":[{"name":"B","value":"2"}]}]}}}}"#,
    );
    // Lists with a merge key are merged.
    assert_eq!((image(), env()), ("web:2".into(), "B A".into()));
    patch("json", r#"[{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"web:3"}]"#);
    assert_eq!(image(), "web:3");
    patch("merge", r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"web:4"}]}}}}"#);
    assert_eq!((image(), env()), ("web:4".into(), String::new()));

    server.ok(&["label", "deployment", "web", "tier=front"]);
    let refused = server.refused(&["label", "deployment", "web", "tier=back"]);
    assert!(refused.contains("'tier' already has a value (front), and --overwrite is false"), "{refused}");
    server.ok(&["label", "deployment", "web", "tier=back", "--overwrite"]);
    server.ok(&["label", "deployment", "web", "tier-"]);
    server.ok(&["annotate", "deployment", "web", "note=one two"]);
    assert_eq!(server.json(&["deployment", "web"])["metadata"]["annotations"]["note"], "one two");
    server.ok(&["scale", "deployment", "web", "--replicas=5", "--current-replicas=1"]);
    assert_eq!(server.json(&["deployment", "web"])["spec"]["replicas"], 5);
    server.ok(&["set", "image", "deployment/web", "web=web:5"]);
    server.ok(&["set", "env", "deployment/web", "C=3"]);
    server.ok(&["set", "resources", "deployment/web", "--limits=cpu=200m,memory=64Mi"]);
    assert_eq!((image(), env()), ("web:5".into(), "C".into()));

    let editor = server.directory.path().join("editor");
    std::fs::write(&editor, "#!/bin/sh\nsed -i 's/replicas: 5/replicas: 7/' \"$1\"\n").unwrap();
    std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut edit = server.client(tool("kubectl"));
    let output = edit.args(["edit", "deployment", "web"]).env("EDITOR", &editor).output().unwrap();
    assert_eq!(text(&output), "deployment.apps/web edited\n");
    assert_eq!(server.json(&["deployment", "web"])["spec"]["replicas"], 7);

    let uid = || server.ok(&["get", "deployment", "web", "-o", "jsonpath={.metadata.uid}"]);
    let first = uid();
    server.ok_stdin(&["replace", "--force", "-f", "-"], DEPLOYMENT);
    assert_ne!(uid(), first);
    let stale = server.ok(&["get", "deployment", "web", "-o", "yaml"]);
    server.ok(&["annotate", "deployment", "web", "x=y"]);
    let conflict = text(&server.stdin(&["replace", "-f", "-"], &stale));
    assert!(conflict.contains("the object has been modified"), "{conflict}");
    let waited = server.ok(&["wait", "deployment/web", "--for=jsonpath={.spec.replicas}=1", "--timeout=5s"]);
    assert_eq!(waited, "deployment.apps/web condition met\n");
    let deleting = server
        .client(tool("kubectl"))
        .args(["wait", "--for=delete", "deployment/web", "--timeout=30s"])
        .spawn();
    server.ok(&["delete", "deployment", "web", "--cascade=orphan", "--wait=false"]);
    // The orphan finalizer is the garbage collector's, which does not run here.
    server.ok(&["patch", "deployment", "web", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    assert!(deleting.unwrap().wait().unwrap().success());
}

#[test]
fn every_output_form() {
    let server = Server::start();
    for (name, tier) in [("a", "front"), ("b", "back"), ("c", "front")] {
        server.ok(&["create", "configmap", name, &format!("--from-literal=k={name}1")]);
        server.ok(&["label", "configmap", name, &format!("tier={tier}")]);
    }
    let get = |arguments: &[&str]| {
        let mut all = vec!["get", "configmaps", "--sort-by=.metadata.name"];
        all.extend_from_slice(arguments);
        server.ok(&all)
    };
    assert_eq!(get(&["-l", "tier=front", "-o", "name"]), "configmap/a\nconfigmap/c\n");
    assert_eq!(get(&["-l", "tier notin (front)", "-o", "jsonpath={.items[*].data.k}"]), "b1");
    assert_eq!(
        get(&["--field-selector=metadata.name=c", "-o", "go-template={{range .items}}{{.data.k}}{{end}}"]),
        "c1"
    );
    let columns = get(&["-l", "tier", "-o", "custom-columns=N:.metadata.name,K:.data.k"]);
    let words: Vec<&str> = columns.split_whitespace().collect();
    assert_eq!(words, ["N", "K", "a", "a1", "b", "b1", "c", "c1"]);
    let wide = get(&["-l", "tier=back", "--show-labels", "-L", "tier"]);
    let cells: Vec<Vec<&str>> = wide.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(cells[0], ["NAME", "DATA", "AGE", "TIER", "LABELS"]);
    assert_eq!((cells[1][0], cells[1][1], cells[1][3], cells[1][4]), ("b", "1", "back", "tier=back"));
    let yaml = server.ok(&["get", "configmap", "a", "-o", "yaml"]);
    assert!(yaml.starts_with("apiVersion: v1\ndata:\n  k: a1\nkind: ConfigMap\n"), "{yaml}");
    let chunked = server.ok(&["get", "configmaps", "--chunk-size=1", "-l", "tier", "-o", "name"]);
    assert_eq!(chunked.lines().count(), 3);
    let bad = server.refused(&["get", "configmaps", "--field-selector=data.k=a"]);
    assert!(bad.contains("\"data.k\" is not a known field selector"), "{bad}");
    assert!(
        server.refused(&["get", "gadgets"]).contains("the server doesn't have a resource type \"gadgets\"")
    );
}

#[test]
fn watching() {
    let server = Server::start();
    let mut command = server.client(tool("kubectl"));
    command.args([
        "get",
        "configmaps",
        "-l",
        "w=1",
        "--watch",
        "--output-watch-events",
        "-o",
        "jsonpath={.type}{\"\\n\"}",
    ]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The watch may begin before or after the object exists; either way it is seen once.
    server.ok_stdin(
        &["create", "-f", "-"],
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: x, labels: {w: '1'}}}",
    );
    let mut next = || lines.next().unwrap().unwrap();
    assert!(next().contains("ADDED"));
    server.ok(&["annotate", "configmap", "x", "n=1"]);
    assert!(next().contains("MODIFIED"));
    // Leaving the selection is a deletion to this watcher.
    server.ok(&["label", "configmap", "x", "w=2", "--overwrite"]);
    assert!(next().contains("DELETED"));
    server.ok(&["label", "configmap", "x", "w=1", "--overwrite"]);
    assert!(next().contains("ADDED"));
    server.ok(&["delete", "configmap", "x"]);
    assert!(next().contains("DELETED"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn discovery_and_explain() {
    let server = Server::start();
    let resources = server.ok(&["api-resources", "-o", "wide", "--no-headers"]);
    assert!(resources.lines().count() >= 60, "{resources}");
    let deployment = resources.lines().find(|line| line.starts_with("deployments ")).unwrap();
    let words: Vec<&str> = deployment.split_whitespace().collect();
    assert_eq!(words[..5], ["deployments", "deploy", "apps/v1", "true", "Deployment"]);
    assert_eq!(words[5], "create,delete,deletecollection,get,list,patch,update,watch");
    assert!(server.ok(&["api-versions"]).lines().any(|line| line == "resource.k8s.io/v1"));
    let explained = server.ok(&["explain", "pod.spec.containers.livenessProbe"]);
    assert!(explained.contains("FIELD: livenessProbe <Probe>"), "{explained}");
    assert!(explained.contains("failureThreshold\t<integer>"), "{explained}");
    let recursive = server.ok(&["explain", "networkpolicy", "--recursive"]);
    assert!(recursive.contains("ipBlock\t<IPBlock>"), "{recursive}");
    let missing = server.refused(&["explain", "pod.spec.nothing"]);
    assert!(missing.contains("field \"nothing\" does not exist"), "{missing}");
}

#[test]
fn who_may_what() {
    let server = Server::start();
    let can = |arguments: &[&str]| {
        let mut all = vec!["auth", "can-i"];
        all.extend_from_slice(arguments);
        String::from_utf8(server.kubectl(&all).stdout).unwrap().trim().to_owned()
    };
    assert_eq!(can(&["delete", "nodes"]), "yes");
    assert_eq!(can(&["list", "pods", "--as=jane"]), "no");
    server.ok(&["create", "role", "reader", "--verb=get,list", "--resource=pods,pods/log"]);
    server.ok(&["create", "rolebinding", "jane", "--role=reader", "--user=jane"]);
    eventually("the binding is known", || (can(&["list", "pods", "--as=jane"]) == "yes").then_some(()));
    assert_eq!(can(&["list", "pods", "--as=jane", "-n", "kube-system"]), "no");
    assert_eq!(can(&["get", "pods/log", "--as=jane"]), "yes");
    assert!(can(&["--list", "--as=jane"]).contains("pods"), "rules are listed");
    let whoami = server.ok(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.groups[0]}"]);
    assert_eq!(whoami, "system:masters");
    server.ok(&["create", "serviceaccount", "robot"]);
    let token = server.ok(&["create", "token", "robot", "--duration=10m"]);
    // With nothing but the token: the kubeconfig's client certificate would come before it.
    let url = server.ok(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let field = r#"(index .clusters 0).cluster "certificate-authority-data""#;
    let template = format!("go-template={{{{index {field} | base64decode}}}}");
    let ca = server.directory.path().join("ca.crt");
    std::fs::write(&ca, server.ok(&["config", "view", "--raw", "-o", &template])).unwrap();
    let mut command = server.client(tool("kubectl"));
    command.env("KUBECONFIG", "/dev/null").args(["--server", &url, "--token", token.trim()]);
    command.arg("--certificate-authority").arg(&ca);
    command.args(["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]);
    assert_eq!(run(&mut command), "system:serviceaccount:default:robot");
    let forbidden = server.refused(&["get", "secrets", "--as=jane"]);
    assert_eq!(
        forbidden,
        "Error from server (Forbidden): secrets is forbidden: User \"jane\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\"\n"
    );
}

#[test]
fn custom_resources() {
    let server = Server::start();
    server.ok_stdin(&["apply", "-f", "-"], WIDGETS);
    server.ok(&["wait", "--for=condition=Established", "crd/widgets.example.com", "--timeout=30s"]);
    let widget = |spec: &str| {
        format!("{{apiVersion: example.com/v1, kind: Widget, metadata: {{name: w}}, spec: {spec}}}")
    };
    let refused = |spec: &str, expected: &str| {
        let said = text(&server.stdin(&["create", "-f", "-"], &widget(spec)));
        assert!(said.contains(expected), "{spec}\n{said}");
    };
    refused(
        "{size: 0}",
        "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
    );
    refused("{color: red}", "spec.size: Required value");
    refused("{size: 20, color: blue}", "blue widgets are small");
    refused("{size: 1, shape: round}", "unknown field \"spec.shape\"");
    server.ok_stdin(&["apply", "-f", "-"], &widget("{size: 3}"));
    assert_eq!(server.json(&["wd", "w"])["spec"]["color"], "red");
    let table = server.ok(&["get", "widgets", "--no-headers"]);
    assert_eq!(table.split_whitespace().take(2).collect::<Vec<_>>(), ["w", "3"]);
    server.ok(&["scale", "widget", "w", "--replicas=4"]);
    server.ok(&[
        "patch",
        "widget",
        "w",
        "--type=merge",
        "--subresource=status",
        "-p",
        r#"{"status":{"size":4}}"#,
    ]);
    let seen = server.json(&["widget", "w"]);
    assert_eq!((&seen["spec"]["size"], &seen["status"]["size"]), (&4.into(), &4.into()));
    assert_eq!(seen["metadata"]["generation"], 2);
    eventually("explain knows it", || {
        let explained = server.kubectl(&["explain", "widget.spec.size"]);
        text(&explained).contains("How large it is.").then_some(())
    });
    let applied = widget("{size: 5}");
    server.ok_stdin(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &applied);
    server.ok(&["delete", "crd", "widgets.example.com", "--timeout=30s"]);
    eventually("the kind is gone", || {
        text(&server.kubectl(&["get", "--raw", "/apis/example.com/v1/widgets"]))
            .contains("NotFound")
            .then_some(())
    });
}
