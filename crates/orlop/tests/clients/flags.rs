//! `orlop apiserver` under its flags, as somebody sees it who starts it and talks to it from outside.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_apiserver::pki::{CertificateAuthority, Leaf, Subject};
use serde_json::{Value, json};

use crate::support::{PATIENCE, Server, eventually, free_port, text, tool};

fn file(directory: &Path, name: &str, content: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// Who the server takes curl with these arguments for.
fn whoami(server: &Server, arguments: &[&str]) -> Value {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).to_string();
    let mut all = vec!["--header", "Content-Type: application/json", "--data", &review];
    all.extend_from_slice(arguments);
    let answer = server.curl("/apis/authentication.k8s.io/v1/selfsubjectreviews", &all);
    let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    match answer.pointer("/status/userInfo") {
        Some(user) => user.clone(),
        None => answer["reason"].clone(),
    }
}

#[test]
fn tokens_and_proxies() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let tokens = file(path, "tokens.csv", "secret-1,jane,7,\"admins,people\"\n");
    let ca = CertificateAuthority::generate("proxies").unwrap();
    let ca_file = file(path, "proxies.crt", ca.cert_pem());
    let certificate = |name: &str| {
        let Leaf { cert_pem, key_pem } = ca.issue(&Subject::client(name, &[]), 1).unwrap();
        let certificate = file(path, &format!("{name}.crt"), &cert_pem);
        [certificate, file(path, &format!("{name}.key"), &key_pem)].map(|path| path.display().to_string())
    };
    let server = Server::with(&[
        &flag("token-auth-file", &tokens),
        &flag("requestheader-client-ca-file", &ca_file),
        "--requestheader-allowed-names=front",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
    ]);
    let bearer = |token: &str| format!("Authorization: Bearer {token}");
    let jane = whoami(&server, &["--header", &bearer("secret-1")]);
    assert_eq!((&jane["username"], &jane["uid"]), (&json!("jane"), &json!("7")));
    assert_eq!(jane["groups"], json!(["admins", "people", "system:authenticated"]));
    assert_eq!(whoami(&server, &["--header", &bearer("secret-2")]), "Unauthorized");
    assert_eq!(whoami(&server, &[]), "Forbidden");

    let headers = [
        "--header",
        "X-Remote-User: john",
        "--header",
        "X-Remote-Group: g1",
        "--header",
        "X-Remote-Group: g2",
        "--header",
        "X-Remote-Extra-Scopes: all",
    ];
    let by = |name: &str| {
        let [certificate, key] = certificate(name);
        let mut all = vec!["--cert", &certificate, "--key", &key];
        all.extend(headers);
        whoami(&server, &all)
    };
    let john = by("front");
    assert_eq!(john["username"], "john");
    assert_eq!(john["groups"], json!(["g1", "g2", "system:authenticated"]));
    assert_eq!(john["extra"], json!({"scopes": ["all"]}));
    // A certificate of the same authority under another name, or none, proves nothing.
    assert_eq!(by("somebody"), "Unauthorized");
    assert_eq!(whoami(&server, &headers), "Forbidden");
}

/// One API server is the OpenID issuer of another one.
#[test]
fn openid() {
    let port = free_port();
    let directory = tempfile::Builder::new().prefix("orlop-test-").tempdir().unwrap();
    let url = format!("https://127.0.0.1:{port}");
    let issuer = Server::at(
        directory,
        port,
        &[
            &format!("--service-account-issuer={url}"),
            &format!("--service-account-jwks-uri={url}/openid/v1/jwks"),
        ],
    );
    issuer.ok(&[
        "create",
        "clusterrolebinding",
        "discovery",
        "--clusterrole=system:service-account-issuer-discovery",
        "--group=system:unauthenticated",
    ]);
    issuer.ok(&["create", "serviceaccount", "robot"]);
    let token = |audience: &str| {
        issuer.ok(&["create", "token", "robot", &format!("--audience={audience}")]).trim().to_owned()
    };
    let ca = issuer.directory.path().join("data/pki/ca.crt");
    let server = Server::with(&[
        &format!("--oidc-issuer-url={url}"),
        "--oidc-client-id=cluster-two",
        &flag("oidc-ca-file", &ca),
        "--oidc-signing-algs=ES256",
        "--oidc-username-claim=sub",
        "--oidc-username-prefix=one:",
    ]);
    let header = format!("Authorization: Bearer {}", token("cluster-two"));
    let user = eventually("the issuer's keys are known", || {
        let user = whoami(&server, &["--header", &header]);
        user.is_object().then_some(user)
    });
    assert_eq!(user["username"], "one:system:serviceaccount:default:robot");
    let other = format!("Authorization: Bearer {}", token("another"));
    assert_eq!(whoami(&server, &["--header", &other]), "Unauthorized");
}

#[test]
fn audit_log_and_admission() {
    let directory = tempfile::tempdir().unwrap();
    let policy = file(
        directory.path(),
        "policy.yaml",
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: RequestResponse\n  resources: [{group: '', resources: [configmaps]}]\n- level: None\n",
    );
    let log = directory.path().join("audit.log");
    let server = Server::with(&[
        &flag("audit-policy-file", &policy),
        &flag("audit-log-path", &log),
        "--disable-admission-plugins=ServiceAccount,Priority",
        "--enable-admission-plugins=AlwaysPullImages",
        "--default-not-ready-toleration-seconds=11",
        "--runtime-config=batch/v1=false,apps/v1/daemonsets=false",
    ]);
    server.ok(&["create", "configmap", "seen", "--from-literal=a=1"]);
    let events: Vec<Value> = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let made = events.iter().find(|event| event["verb"] == "create").unwrap();
    assert_eq!((&made["kind"], &made["stage"]), (&json!("Event"), &json!("ResponseComplete")));
    assert_eq!(made["user"]["username"], "kubernetes-admin");
    assert_eq!(made["requestObject"]["data"], json!({"a": "1"}));
    assert!(events.iter().all(|event| event["objectRef"]["resource"] == "configmaps"), "{events:?}");

    // Without the plugin there need be no ServiceAccount, and none is filled in.
    server.ok(&["run", "p", "--image=i", "--image-pull-policy=IfNotPresent"]);
    let pod = server.json(&["pod", "p"]);
    assert_eq!(pod["spec"]["serviceAccountName"], Value::Null);
    assert_eq!(pod["spec"]["priority"], Value::Null);
    assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(pod["spec"]["tolerations"][0]["tolerationSeconds"], 11);
    let privileged =
        r#"{"spec":{"containers":[{"name":"q","image":"i","securityContext":{"privileged":true}}]}}"#;
    let refused = server.refused(&["run", "q", "--image=i", &format!("--overrides={privileged}")]);
    assert!(
        refused.contains("securityContext.privileged: Forbidden: disallowed by cluster policy"),
        "{refused}"
    );

    let resources = server.ok(&["api-resources", "--no-headers", "-o", "name"]);
    let names: Vec<&str> = resources.lines().collect();
    assert!(names.contains(&"deployments.apps") && names.contains(&"componentstatuses"), "{names:?}");
    assert!(!names.contains(&"jobs.batch") && !names.contains(&"daemonsets.apps"), "{names:?}");
    let statuses = server.kubectl(&["get", "cs"]);
    assert!(
        text(&statuses).contains("Warning: v1 ComponentStatus is deprecated in v1.19+"),
        "{}",
        text(&statuses)
    );
    assert!(text(&statuses).contains("etcd-0               Healthy"), "{}", text(&statuses));
}

#[test]
fn encryption_at_rest() {
    let directory = tempfile::tempdir().unwrap();
    let config = |name: &str, keys: &[&str]| {
        let keys: Vec<String> =
            keys.iter().map(|key| format!("{{name: k{key}, secret: {}}}", base64_of(key))).collect();
        let keys = keys.join(", ");
        let content = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers: [{{aesgcm: {{keys: [{keys}]}}}}, {{identity: {{}}}}]\n"
        );
        flag("encryption-provider-config", &file(directory.path(), name, &content))
    };
    let (one, both, two) = (config("1", &["1"]), config("both", &["2", "1"]), config("2", &["2"]));
    let value = |server: &Server, name: &str| {
        let answer = server.kubectl(&["get", "secret", name, "-o", "jsonpath={.data.v}"]);
        answer.status.success().then(|| String::from_utf8(answer.stdout).unwrap())
    };
    let mut server = Server::with(&[&one]);
    for name in ["kept", "moved"] {
        server.ok(&["create", "secret", "generic", name, "--from-literal=v=hidden"]);
    }
    let shown = value(&server, "kept");
    assert!(shown.is_some());
    // Without the key nobody reads it.
    server.again(&[]);
    assert_eq!(value(&server, "kept"), None);
    // Both keys: all is read, and what is written again has the new key.
    server.again(&[&both]);
    assert_eq!(value(&server, "kept"), shown);
    let object = server.ok(&["get", "secret", "moved", "-o", "json"]);
    server.ok_stdin(&["replace", "-f", "-"], &object);
    server.again(&[&two]);
    assert_eq!(value(&server, "moved"), shown);
    assert_eq!(value(&server, "kept"), None);
}

/// Thirty-two bytes of a digit.
fn base64_of(digit: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(digit.repeat(32))
}

#[test]
fn a_server_that_is_told_to_stop() {
    let mut server = Server::with(&[
        "--shutdown-delay-duration=3s",
        "--shutdown-send-retry-after=true",
        "--shutdown-watch-termination-grace-period=1s",
    ]);
    server.ok(&["create", "configmap", "seen"]);
    let mut watch = server
        .client(tool("kubectl"))
        .args(["get", "configmaps", "--watch", "-o", "name"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("seen") {}
    let pid = Pid::from_raw(i32::try_from(server.child.id()).unwrap());
    let begun = Instant::now();
    kill(pid, Signal::SIGTERM).unwrap();
    // It says that it goes, sends others elsewhere, and lets those that are there finish.
    let ready = eventually("the server says that it goes", || {
        let answer = server.curl("/readyz", &[]);
        (answer != "ok").then_some(answer)
    });
    assert!(ready.contains("[-]shutdown failed: reason withheld"), "{ready}");
    assert_eq!(server.curl("/livez", &[]), "ok");
    let answer = server.curl("/api/v1/namespaces", &["--include"]);
    assert!(answer.to_lowercase().contains("retry-after: 5"), "{answer}");
    assert!(answer.contains("The apiserver is shutting down, please try again later."), "{answer}");
    let status = eventually("the server ends", || server.child.try_wait().unwrap());
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() >= Duration::from_secs(3) && begun.elapsed() < PATIENCE);
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn what_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let check = |arguments: &[&str], expected: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_orlop"))
            .args(["apiserver", "--bind-address=127.0.0.1", &format!("--secure-port={}", free_port())])
            .arg(flag("data-dir", &directory.path().join("data")))
            .args(arguments)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text(&output).contains(expected), "{arguments:?}: {}", text(&output));
    };
    check(&["--no-such-flag"], "--no-such-flag");
    check(&["--secure-port=0"], "must be between 1 and 65535");
    check(&["--runtime-config=nope/v1=true"], "unknown api groups nope");
    check(&["--runtime-config=apps/v9=true"], "group version apps/v9 that has not been registered");
    check(&["--enable-admission-plugins=Nope"], "enable-admission-plugins plugin \"Nope\" is unknown");
    check(
        &["--enable-admission-plugins=Priority", "--disable-admission-plugins=Priority"],
        "[Priority] in enable-admission-plugins and disable-admission-plugins overlapped",
    );
    check(&["--authorization-mode=Nope"], "authorization-mode \"Nope\" is not a valid mode");
    check(&["--cors-allowed-origins=a"], "does not pin to start/end of host in the origin header");
    check(&["--service-cluster-ip-range=10.0.0.0/16,10.1.0.0/16"], "must be of different IP family");
    check(&["--tls-curve-preferences=9999"], "TLS curve 9999 is not supported");
    check(&["--feature-gates=Nope=true"], "unrecognized feature gate: Nope");
    check(&["--tracing-config-file=x"], "is not built");
    check(&["--emulated-version=kube=1.35"], "use kube=1.36 or leave it out");
    let old = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers: [{kms: {name: a, endpoint: 'unix:///a'}}]\n";
    let old = file(directory.path(), "kms.yaml", old);
    check(&[&flag("encryption-provider-config", &old)], "KMSv1 is deprecated");
}
