use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use orlop_apiserver::options::{AuditBatch, AuditLogOptions, AuditMode, AuditOptions, OidcOptions};
use orlop_apiserver::{ApiServer, Options, UserInfo};
use orlop_json::{Value, json};
use orlop_store::Store as _;
use orlop_store::memory::MemoryStore;

use crate::support::{Client, admin, config_map};

fn b64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn secret(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data})
}

fn encryption(path: &Path, keys: &[&str]) {
    let keys: Vec<String> =
        keys.iter().map(|key| format!("{{name: {key}, secret: {}}}", b64(&key.repeat(32)[..32]))).collect();
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  - aesgcm: {{keys: [{}]}}\n  - identity: {{}}\n",
        keys.join(", ")
    );
    std::fs::write(path, text).unwrap();
}

#[tokio::test]
async fn secrets_are_encrypted_at_rest_and_keys_rotate() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("encryption.yaml");
    let store = Arc::new(MemoryStore::new());
    let start = || {
        let options = Options { encryption_provider_config: Some(path.clone()), ..Options::default() };
        ApiServer::new(options, store.clone())
    };
    let stored = |key: &'static str| {
        let store = store.clone();
        async move {
            let kv = store.get(key.as_bytes(), None).await.unwrap().unwrap();
            String::from_utf8_lossy(&kv.value).into_owned()
        }
    };
    let secrets = "/api/v1/namespaces/default/secrets";
    encryption(&path, &["a"]);
    {
        let server = start().await.unwrap();
        let admin = admin(&server);
        admin.post(secrets, secret("s", json!({"k": b64("hidden")}))).await.ok();
        admin.post("/api/v1/namespaces/default/configmaps", config_map("c", json!({}))).await.ok();
        assert_eq!(admin.get(&format!("{secrets}/s")).await.ok()["data"]["k"], b64("hidden"));
        server.stop_watches();
    }
    assert!(stored("/registry/secrets/default/s").await.starts_with("k8s:enc:aesgcm:v1:a:"));
    assert!(stored("/registry/configmaps/default/c").await.starts_with('{'));
    encryption(&path, &["b", "a"]);
    let server = start().await.unwrap();
    let admin = admin(&server);
    let object = admin.get(&format!("{secrets}/s")).await.ok();
    assert_eq!(object["data"]["k"], b64("hidden"));
    // Writing the same again changes the key.
    let again = admin.put(&format!("{secrets}/s"), object.clone()).await.ok();
    assert_ne!(again["metadata"]["resourceVersion"], object["metadata"]["resourceVersion"]);
    assert!(stored("/registry/secrets/default/s").await.starts_with("k8s:enc:aesgcm:v1:b:"));
    let still = admin.put(&format!("{secrets}/s"), again.clone()).await.ok();
    assert_eq!(still["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn requests_are_recorded_by_the_policy() {
    let dir = tempfile::tempdir().unwrap();
    let (policy, log) = (dir.path().join("policy.yaml"), dir.path().join("audit.log"));
    std::fs::write(
        &policy,
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nomitManagedFields: true\nrules:\n- level: RequestResponse\n  resources: [{group: '', resources: [configmaps]}]\n- level: Metadata\n  resources: [{group: '', resources: [secrets]}]\n- level: None\n",
    )
    .unwrap();
    let batch = AuditBatch { buffer_size: 10, max_size: 1, max_wait: Default::default(), throttle: None };
    let file = AuditLogOptions {
        path: log.clone(),
        max_age: 0,
        max_backup: 0,
        max_size: 100,
        compress: false,
        legacy_format: false,
        mode: AuditMode::Blocking,
        batch,
        truncate: None,
    };
    let audit = AuditOptions { policy_file: Some(policy), log: Some(file), webhook: None };
    let server =
        ApiServer::new(Options { audit, ..Options::default() }, Arc::new(MemoryStore::new())).await.unwrap();
    let (admin, jane) = (admin(&server), Client::new(&server, UserInfo::new("jane", &[])));
    let maps = "/api/v1/namespaces/default/configmaps";
    admin.post(maps, config_map("a", json!({"k": "v"}))).await.ok();
    let headers = [("impersonate-user", "jane")];
    admin.call("GET", "/api/v1/namespaces/default/secrets/x", &headers, &Value::Null).await;
    jane.get(&format!("{maps}/a")).await;
    jane.get("/version").await;
    let text = std::fs::read_to_string(&log).unwrap();
    let events: Vec<Value> = text.lines().map(|line| orlop_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 3, "{text}");
    let [create, get, refused] = events.as_slice() else { unreachable!() };
    assert_eq!(create["stage"], "ResponseComplete");
    assert_eq!(create["objectRef"]["name"], "a");
    assert_eq!(create["requestObject"]["data"]["k"], "v");
    assert_eq!(create["responseObject"]["metadata"]["name"], "a");
    assert!(create["responseObject"]["metadata"].get("managedFields").is_none());
    assert_eq!(create["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(get["impersonatedUser"]["username"], "jane");
    assert_eq!(get["level"], "Metadata");
    assert_eq!(get["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert!(get.get("responseObject").is_none());
    assert_eq!(refused["responseStatus"]["code"], 403);
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");
}

#[tokio::test]
async fn one_may_become_somebody_for_some_requests_only() {
    let server = crate::support::server().await;
    let admin = admin(&server);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let grant = |name: &str, rules: Value, user: &str| {
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": name}, "rules": rules});
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]});
        let admin = admin.clone();
        async move {
            admin.post(&format!("{rbac}/clusterroles"), role).await.ok();
            admin.post(&format!("{rbac}/clusterrolebindings"), binding).await.ok();
        }
    };
    grant("reader", json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]), "panda")
        .await;
    let rules = json!([
        {"apiGroups": ["authentication.k8s.io"], "resources": ["users"], "resourceNames": ["panda"],
         "verbs": ["impersonate:user-info"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["impersonate-on:user-info:list"]},
    ]);
    grant("deputy", rules, "jane").await;
    let jane = Client::new(&server, UserInfo::new("jane", &[]));
    let pods = "/api/v1/namespaces/default/pods";
    let as_panda = [("impersonate-user", "panda")];
    jane.call("GET", pods, &as_panda, &Value::Null).await.ok();
    jane.call("GET", &format!("{pods}/p"), &as_panda, &Value::Null).await.refused(
        403,
        "Forbidden",
        "pods \"p\" is forbidden: User \"jane\" cannot impersonate-on:user-info:get resource \"pods\" in API group \"\" in the namespace \"default\"",
    );
    jane.call("GET", pods, &[("impersonate-user", "koala")], &Value::Null).await.refused(
        403,
        "Forbidden",
        "users.authentication.k8s.io \"koala\" is forbidden: User \"jane\" cannot impersonate:user-info resource \"users\" in API group \"authentication.k8s.io\" at the cluster scope",
    );
}

/// Reviews a token.
async fn review(client: &Client, token: &str) -> Value {
    let body =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    client.post("/apis/authentication.k8s.io/v1/tokenreviews", body).await.ok()["status"].clone()
}

#[tokio::test]
async fn bootstrap_tokens_are_believed_when_asked_for() {
    let options = Options { bootstrap_token_auth: true, ..Options::default() };
    let server = ApiServer::new(options, Arc::new(MemoryStore::new())).await.unwrap();
    let admin = admin(&server);
    let data = json!({"token-id": b64("abcdef"), "token-secret": b64("0123456789abcdef"),
        "usage-bootstrap-authentication": b64("true"), "auth-extra-groups": b64("system:bootstrappers:x")});
    let mut token = secret("bootstrap-token-abcdef", data);
    token["type"] = json!("bootstrap.kubernetes.io/token");
    admin.post("/api/v1/namespaces/kube-system/secrets", token).await.ok();
    let status = review(&admin, "abcdef.0123456789abcdef").await;
    assert_eq!(status["user"]["username"], "system:bootstrap:abcdef");
    assert_eq!(
        status["user"]["groups"],
        json!(["system:bootstrappers", "system:bootstrappers:x", "system:authenticated"])
    );
    assert_eq!(review(&admin, "abcdef.0123456789abcdee").await.get("authenticated"), None);
}

/// An issuer of tokens on a port of this machine: its address, its CA and its signing key.
async fn issuer(kid: &'static str) -> (String, String, orlop_apiserver::pki::Leaf) {
    use http_body_util::Full;
    use hyper_util::rt::TokioIo;
    use orlop_apiserver::pki::{self, CertificateAuthority, Subject};
    let ca = CertificateAuthority::generate("issuer").unwrap();
    let leaf = ca.issue(&Subject::server("localhost", vec!["localhost".into()]), 1).unwrap();
    let tls = pki::server_config(&leaf, &pki::ServerTls::default()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let key = pki::generate_signing_key().unwrap();
    let mut jwk = orlop_apiserver::authn::keys::VerifyingKey::of_pem(&key.cert_pem).unwrap()[0].jwk.clone();
    jwk["kid"] = json!(kid);
    let documents = [
        json!({"issuer": url, "jwks_uri": format!("{url}/keys")}).to_string(),
        json!({"keys": [jwk]}).to_string(),
    ];
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let documents = documents.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let [discovery, keys] = documents.clone();
                let text = if request.uri().path() == "/keys" { keys } else { discovery };
                async move {
                    Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(bytes::Bytes::from(
                        text,
                    ))))
                }
            });
            tokio::spawn(
                hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .into_owned(),
            );
        }
    });
    (url, ca.cert_pem().to_string(), key)
}

#[tokio::test]
async fn users_of_an_openid_issuer() {
    let (url, ca, key) = issuer("k1").await;
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.crt");
    std::fs::write(&ca_file, ca).unwrap();
    let oidc = OidcOptions {
        issuer_url: url.clone(),
        client_id: "me".into(),
        ca_file: Some(ca_file),
        username_claim: "email".into(),
        groups_claim: "groups".into(),
        groups_prefix: "oidc:".into(),
        ..OidcOptions::default()
    };
    let options = Options { oidc: Some(oidc), ..Options::default() };
    let server = ApiServer::new(options, Arc::new(MemoryStore::new())).await.unwrap();
    let admin = admin(&server);
    let sign = |claims: Value, kid: &str| {
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
        header.kid = Some(kid.to_string());
        let signing = jsonwebtoken::EncodingKey::from_ec_pem(key.key_pem.as_bytes()).unwrap();
        jsonwebtoken::encode(&header, &claims, &signing).unwrap()
    };
    let now = jiff::Timestamp::now().as_second();
    let good = json!({"iss": url, "aud": "me", "exp": now + 60, "email": "jane@example", "groups": ["a"], "jti": "7"});
    let status = review(&admin, &sign(good.clone(), "k1")).await;
    assert_eq!(status["user"]["username"], "jane@example", "{status}");
    assert_eq!(status["user"]["groups"], json!(["oidc:a", "system:authenticated"]));
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/credential-id"], json!(["JTI=7"]));
    let changed = |field: &str, value: Value| {
        let mut claims = good.clone();
        claims[field] = value;
        claims
    };
    for (claims, kid, expected) in [
        (changed("exp", json!(now - 10)), "k1", "oidc: verify token: oidc: token is expired"),
        (
            changed("aud", json!(["you"])),
            "k1",
            "oidc: verify token: oidc: expected audience \"me\" got [\"you\"]",
        ),
        (changed("email_verified", json!(false)), "k1", "oidc: email not verified"),
        (changed("email", Value::Null), "k1", "oidc: parse username claims \"email\""),
        (good.clone(), "k2", "oidc: verify token: failed to verify signature"),
        (changed("iss", json!("https://other")), "k1", "invalid bearer token"),
    ] {
        let status = review(&admin, &sign(claims, kid)).await;
        assert!(status["error"].as_str().unwrap().contains(expected), "{expected}: {status}");
    }
}

#[tokio::test]
async fn rights_can_be_listed() {
    let server = crate::support::server().await;
    let jane = Client::new(&server, UserInfo::new("jane", &[]));
    let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": "default"}});
    let status = jane.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", body).await.ok();
    assert_eq!(status["status"]["incomplete"], false);
    assert!(status["status"]["nonResourceRules"].as_array().is_some_and(|rules| !rules.is_empty()));
}
