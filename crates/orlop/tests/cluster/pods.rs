//! What a pod is to the people who run it: logs, exec, restarts, environment and volumes, namespaces that go away.

use std::process::Command;

use crate::support::{Cluster, WEB, eventually, text, tool};

#[test]
fn logs_in_every_form() {
    let cluster = Cluster::start();
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: talker}}
spec:
  restartPolicy: OnFailure
  containers:
    - name: main
      image: {WEB}
      command: [sh, -c]
      args:
        - |
          if [ ! -e /state/second ]; then touch /state/second; echo first life; exit 3; fi
          for i in 1 2 3 4 5; do echo line $i; done; echo to stderr >&2
          while [ ! -e /state/go ]; do sleep 0.1; done; echo the end; sleep 1
      volumeMounts: [{{name: state, mountPath: /state}}]
  volumes: [{{name: state, emptyDir: {{}}}}]
"#
    ));
    eventually("the second life has written all its lines", || {
        let output = cluster.kubectl(&["logs", "talker"]);
        text(&output).contains("to stderr").then_some(())
    });
    assert_eq!(cluster.ok(&["logs", "talker", "--previous"]), "first life\n");
    let all = cluster.ok(&["logs", "talker"]);
    assert_eq!(all.lines().filter(|line| line.starts_with("line")).count(), 5, "{all}");
    assert_eq!(cluster.ok(&["logs", "talker", "--tail=2"]).lines().count(), 2);
    assert_eq!(cluster.ok(&["logs", "talker", "--since=1h"]), all);
    assert_eq!(cluster.ok(&["logs", "talker", "--limit-bytes=6"]), "line 1");
    for line in cluster.ok(&["logs", "talker", "--timestamps"]).lines() {
        let (time, _) = line.split_once(' ').expect("a time and the text");
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{line}");
    }
    let follow = cluster
        .client("kubectl")
        .args(["logs", "-f", "talker", "--tail=1"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    cluster.exec("talker", "touch /state/go");
    let followed = String::from_utf8(follow.wait_with_output().unwrap().stdout).unwrap();
    assert!(followed.ends_with("the end\n"), "follow ends with the container: {followed:?}");
    assert!(
        cluster
            .refused(&["logs", "talker", "-c", "none"])
            .contains("container none is not valid for pod talker")
    );
    eventually("the pod has succeeded", || {
        (cluster.ok(&["get", "pod", "talker", "-o", "jsonpath={.status.phase}"]) == "Succeeded").then_some(())
    });
}

#[test]
fn exec_with_stdin_exit_codes_and_a_terminal() {
    let cluster = Cluster::start();
    cluster.toolbox("box");
    assert_eq!(cluster.exec("box", "echo out"), "out\n");
    let input = "one\ntwo\nthree\n".repeat(2000);
    let output = cluster.kubectl_stdin(&["exec", "-i", "box", "--", "wc", "-l"], &input);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "6000", "{}", text(&output));
    let output = cluster.kubectl(&["exec", "box", "--", "sh", "-c", "echo bad >&2; exit 42"]);
    assert_eq!(output.status.code(), Some(42), "{}", text(&output));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "bad\ncommand terminated with exit code 42\n");
    let missing = cluster.refused(&["exec", "box", "--", "no-such-program"]);
    assert!(missing.contains("executable file not found in $PATH"), "{missing}");
    // `script` gives kubectl a terminal to pass on.
    let kubectl = tool("kubectl");
    let line = format!("{} exec -it box -- sh -c 'tty; stty size; exit 7'", kubectl.display());
    let mut command: Command = cluster.client("script");
    let output = command.args(["-qec", &line, "/dev/null"]).output().unwrap();
    let shown = text(&output);
    assert!(shown.contains("/dev/pts/"), "{shown}");
    assert!(shown.contains("exit code 7"), "{shown}");
}

#[test]
fn a_crashing_container_is_restarted_with_back_off() {
    let cluster = Cluster::start();
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: crash}}, spec: {{containers: [{{name: main, image: {WEB}, \
         command: [sh, -c, 'echo dying; exit 5']}}]}}}}"
    ));
    let state = eventually("the kubelet backs off", || {
        let pod = cluster.json(&["pod", "crash"]);
        let status = pod["status"]["containerStatuses"][0].clone();
        (status["state"]["waiting"]["reason"] == "CrashLoopBackOff" && status["restartCount"] == 1)
            .then_some(status)
    });
    let message = state["state"]["waiting"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("back-off 10s restarting failed container=main pod=crash_default("),
        "{message}"
    );
    assert_eq!(state["lastState"]["terminated"]["exitCode"], 5);
    assert_eq!(state["lastState"]["terminated"]["reason"], "Error");
    eventually("the event is there", || {
        let events = cluster.ok(&["get", "events", "--field-selector=reason=BackOff"]);
        events.contains("Back-off restarting failed container main in pod crash_default(").then_some(())
    });
    eventually("it was started again after the back-off", || {
        let count = cluster.ok(&[
            "get",
            "pod",
            "crash",
            "-o",
            "jsonpath={.status.containerStatuses[0].restartCount}",
        ]);
        (count == "2").then_some(())
    });
    let table = cluster.ok(&["get", "pod", "crash"]);
    assert!(table.contains("crash   0/1"), "{table}");
}

#[test]
fn configuration_reaches_the_container() {
    let cluster = Cluster::start();
    cluster.ok(&["create", "configmap", "settings", "--from-literal=color=blue", "--from-literal=size=7"]);
    cluster.ok(&["create", "secret", "generic", "login", "--from-literal=password=open sesame"]);
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: conf, labels: {{tier: front}}, annotations: {{note: "a b"}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: {WEB}
      command: [sleep]
      args: ["$(FOREVER)"]
      resources: {{requests: {{cpu: 50m, memory: 16Mi}}, limits: {{cpu: 200m, memory: 32Mi}}}}
      env:
        - {{name: FOREVER, value: "100000"}}
        - {{name: GREETING, value: "hello $(COLOR) $$(COLOR)"}}
        - {{name: COLOR, valueFrom: {{configMapKeyRef: {{name: settings, key: color}}}}}}
        - {{name: BOTH, value: "$(COLOR)-$(PASSWORD)"}}
        - {{name: PASSWORD, valueFrom: {{secretKeyRef: {{name: login, key: password}}}}}}
        - {{name: AGAIN, value: "$(COLOR)/$(PASSWORD)"}}
        - {{name: MISSING, valueFrom: {{configMapKeyRef: {{name: none, key: x, optional: true}}}}}}
        - {{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
        - {{name: IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}
        - {{name: LIMIT, valueFrom: {{resourceFieldRef: {{resource: limits.memory, divisor: 1Mi}}}}}}
      envFrom: [{{prefix: CM_, configMapRef: {{name: settings}}}}]
      volumeMounts:
        - {{name: all, mountPath: /all}}
        - {{name: memory, mountPath: /memory}}
        - {{name: settings, mountPath: /one/color, subPath: color}}
        - {{name: host, mountPath: /host, readOnly: true}}
  volumes:
    - name: all
      projected:
        sources:
          - configMap: {{name: settings, items: [{{key: size, path: deep/size}}]}}
          - secret: {{name: login}}
          - downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}
    - name: memory
      emptyDir: {{medium: Memory, sizeLimit: 1Mi}}
    - name: settings
      configMap: {{name: settings}}
    - name: host
      hostPath: {{path: /etc, type: Directory}}
"#
    ));
    cluster.ok(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/conf"]);
    let check = |script: &str, expected: &str| {
        assert_eq!(cluster.exec("conf", script).trim_end(), expected, "{script}")
    };
    let ip = cluster.ok(&["get", "pod", "conf", "-o", "jsonpath={.status.podIP}"]);
    check("echo $GREETING", "hello $(COLOR) $(COLOR)");
    check("echo $BOTH", "blue-$(PASSWORD)");
    check("echo $AGAIN", "blue/open sesame");
    check("echo [$MISSING]", "[]");
    check("echo $POD $IP $LIMIT", &format!("conf {ip} 32"));
    check("echo $CM_color $CM_size", "blue 7");
    check("echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT", "10.96.0.1:443");
    check("cat /all/deep/size /all/password", "7open sesame");
    check("cat /all/labels", "tier=\"front\"");
    check("cat /one/color", "blue");
    check("dd if=/dev/zero of=/memory/big bs=1k count=2000 2>/dev/null; stat -c %s /memory/big", "1048576");
    check("touch /host/x 2>/dev/null || echo refused", "refused");
    check("cat /proc/1/cmdline | tr '\\0' ' '", "sleep 100000");
    check("ls /var/run/secrets/kubernetes.io/serviceaccount", "ca.crt\nnamespace\ntoken");
    check("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace", "default");
    check("hostname", "conf");
    cluster.ok(&["patch", "configmap", "settings", "-p", r#"{"data":{"size":"8"}}"#]);
    eventually("the mounted file follows the ConfigMap", || {
        (cluster.exec("conf", "cat /all/deep/size") == "8").then_some(())
    });
    // The token is one that the API server accepts, with the rights of the pod's service account and no more.
    let token = cluster.exec("conf", "cat /var/run/secrets/kubernetes.io/serviceaccount/token");
    let kubeconfig = cluster.directory.path().join("empty");
    std::fs::write(&kubeconfig, "").unwrap();
    let output = cluster
        .client("kubectl")
        .env("KUBECONFIG", kubeconfig)
        .args(["--server=https://127.0.0.1:6443", "--insecure-skip-tls-verify", "--token", token.trim()])
        .args(["get", "pods"])
        .output()
        .unwrap();
    let refusal = r#"pods is forbidden: User "system:serviceaccount:default:default" cannot list resource "pods" in API group "" in the namespace "default""#;
    assert!(text(&output).contains(refusal), "{}", text(&output));
}

#[test]
fn probes_decide_about_readiness_and_restarts() {
    let cluster = Cluster::start();
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: probed}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: {WEB}
      command: [sh, -c, "touch /tmp/alive; httpd -p 8080 -h /www; sleep 100000"]
      startupProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1, failureThreshold: 30}}
      readinessProbe: {{exec: {{command: [test, -e, /tmp/ready]}}, periodSeconds: 1}}
      livenessProbe: {{exec: {{command: [test, -e, /tmp/alive]}}, periodSeconds: 1, failureThreshold: 2}}
"#
    ));
    eventually("it runs", || {
        let started =
            cluster.ok(&["get", "pod", "probed", "-o", "jsonpath={.status.containerStatuses[0].started}"]);
        (started == "true").then_some(())
    });
    let ready =
        || cluster.ok(&["get", "pod", "probed", "-o", "jsonpath={.status.containerStatuses[0].ready}"]);
    assert_eq!(ready(), "false");
    cluster.exec("probed", "touch /tmp/ready");
    eventually("it is ready", || (ready() == "true").then_some(()));
    cluster.exec("probed", "rm /tmp/alive");
    eventually("it is restarted", || {
        let count = cluster.ok(&[
            "get",
            "pod",
            "probed",
            "-o",
            "jsonpath={.status.containerStatuses[0].restartCount}",
        ]);
        (count == "1").then_some(())
    });
    let events = cluster.ok(&["get", "events"]);
    assert!(events.contains("Container main failed liveness probe, will be restarted"), "{events}");
    assert!(events.contains("Liveness probe failed:"), "{events}");
}

#[test]
fn a_memory_limit_ends_in_oom_killed() {
    let cluster = Cluster::start();
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: hungry}}, spec: {{restartPolicy: Never, containers: [{{name: main, \
         image: {WEB}, command: [sh, -c, 'tail -c 200m /dev/zero'], resources: {{limits: {{memory: 24Mi}}}}}}]}}}}"
    ));
    let state = eventually("the pod has failed", || {
        let pod = cluster.json(&["pod", "hungry"]);
        (pod["status"]["phase"] == "Failed").then(|| pod["status"]["containerStatuses"][0]["state"].clone())
    });
    assert_eq!(state["terminated"]["reason"], "OOMKilled", "{state}");
    assert_eq!(state["terminated"]["exitCode"], 137, "{state}");
}

#[test]
fn deleting_a_namespace_empties_it() {
    let cluster = Cluster::start();
    cluster.ok(&["create", "namespace", "gone"]);
    let manifest = crate::support::web_deployment("web", 2);
    let output = cluster.kubectl_stdin(&["apply", "-n", "gone", "-f", "-"], &manifest);
    assert!(output.status.success(), "{}", text(&output));
    cluster.ok(&["rollout", "status", "-n", "gone", "deployment/web", "--timeout=90s"]);
    cluster.ok(&["delete", "namespace", "gone", "--timeout=90s"]);
    assert!(cluster.refused(&["get", "namespace", "gone"]).contains(r#"namespaces "gone" not found"#));
    for kind in
        ["pods", "services", "configmaps", "deployments", "replicasets", "serviceaccounts", "endpointslices"]
    {
        assert_eq!(cluster.ok(&["get", kind, "-n", "gone", "-o", "name"]), "", "{kind}");
    }
}
