//! `ServiceAccount`: every pod runs as one, and its token is mounted into every container.

use async_trait::async_trait;
use orlop_api::field::go_quote;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::fields::Fields as _;
use super::pod_refs::refers_to_secrets;
use super::{Admission, Operation, Request};
use crate::registry::Registry;
use crate::registry::object::random_suffix;

/// Where the token is found in a container.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Kubelets publish static pods under this annotation; they have no account.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Limits the pods of an account to the secrets it lists.
const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";
/// An hour and seven seconds: the value by which the server knows tokens that it may extend.
const EXPIRATION_SECONDS: i64 = 3607;

pub(super) struct ServiceAccount;

/// How often, and after how long, the default account of a namespace is looked for again.
const DEFAULT_ACCOUNT_ATTEMPTS: usize = 10;
const DEFAULT_ACCOUNT_INTERVAL: std::time::Duration = std::time::Duration::from_millis(150);

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

#[async_trait]
impl Admission for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        let resource = request.call.resource;
        resource.group.is_empty()
            && resource.plural == "pods"
            && matches!(
                (request.operation, request.call.subresource),
                (Operation::Create, "") | (Operation::Update, "ephemeralcontainers")
            )
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        if request.operation != Operation::Create || request.object.annotation(MIRROR).is_some() {
            return Ok(());
        }
        if text(&request.object["spec"], "serviceAccountName").is_empty() {
            request.object["spec"]["serviceAccountName"] = json!("default");
            request.object["spec"]["serviceAccount"] = json!("default");
        }
        let name = text(&request.object["spec"], "serviceAccountName").to_string();
        let namespace = request.call.namespace;
        let mut account = account_of(registry, namespace, &name);
        // A new namespace gets its default account from a controller; whoever was faster waits a moment.
        let mut attempts = if name == "default" { DEFAULT_ACCOUNT_ATTEMPTS } else { 0 };
        while account.is_none() && attempts > 0 {
            attempts -= 1;
            tokio::time::sleep(DEFAULT_ACCOUNT_INTERVAL).await;
            account = account_of(registry, namespace, &name);
        }
        let Some(account) = account else {
            return Err(request.forbidden(unknown(namespace, &name)));
        };
        let of_pod = request.object["spec"].get("automountServiceAccountToken").and_then(Value::as_bool);
        let of_account = account.get("automountServiceAccountToken").and_then(Value::as_bool);
        if of_pod.or(of_account).unwrap_or(true) {
            mount_token(&mut request.object["spec"]);
        }
        if request.object["spec"].get("imagePullSecrets").and_then(Value::as_array).is_none_or(Vec::is_empty)
            && let Some(secrets) =
                account.get("imagePullSecrets").filter(|s| s.as_array().is_some_and(|s| !s.is_empty()))
        {
            request.object["spec"]["imagePullSecrets"] = secrets.clone();
        }
        Ok(())
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let spec = &request.object["spec"];
        let namespace = request.call.namespace;
        let name = text(spec, "serviceAccountName");
        let checked = if request.operation == Operation::Update {
            // The pod's account may be gone by now; then it limits nothing.
            account_of(registry, namespace, name)
                .map_or(Ok(()), |account| foreign_secret(&account, spec, &[EPHEMERAL]).map_or(Ok(()), Err))
        } else if request.object.annotation(MIRROR).is_some() {
            check_mirror(spec)
        } else if name.is_empty() {
            Err(format!("no service account specified for pod {namespace}/{}", request.name()))
        } else {
            match account_of(registry, namespace, name) {
                Some(account) => unreferenced_secret(&account, spec).map_or(Ok(()), Err),
                None => Err(unknown(namespace, name)),
            }
        };
        checked.map_err(|message| request.forbidden(message))
    }
}

fn account_of(registry: &Registry, namespace: &str, name: &str) -> Option<Value> {
    let accounts = registry.resources.cache("", "ServiceAccount")?;
    accounts.get(&format!("{namespace}/{name}")).map(|entry| entry.value())
}

fn unknown(namespace: &str, name: &str) -> String {
    format!(
        "error looking up service account {namespace}/{name}: serviceaccount {} not found",
        go_quote(name)
    )
}

/// A mirror pod shows what a node runs by itself: it has no account, and nothing that only the API could give it.
fn check_mirror(spec: &Value) -> Result<(), String> {
    if !text(spec, "serviceAccountName").is_empty() {
        return Err("a mirror pod may not reference service accounts".to_string());
    }
    if refers_to_secrets(spec) {
        return Err("a mirror pod may not reference secrets".to_string());
    }
    let has_token = |volume: &Value| {
        volume["projected"].items("sources").iter().any(|source| source.has("serviceAccountToken"))
    };
    if spec.items("volumes").iter().any(has_token) {
        return Err("a mirror pod may not use ServiceAccountToken volume projections".to_string());
    }
    Ok(())
}

/// The lists of containers and what upstream calls their items.
const EPHEMERAL: (&str, &str) = ("ephemeralContainers", "ephemeral container");
const CONTAINERS: [(&str, &str); 2] = [("initContainers", "init container"), ("containers", "container")];

/// Whether an account limits its pods to the secrets it lists.
fn is_limiting(account: &Value) -> bool {
    let flag = account.annotation(ENFORCE).unwrap_or("");
    matches!(flag, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// The complaint that a pod of this account refers to a secret the account does not list.
fn refusal(account: &Value, what: &str, secret: &str) -> String {
    format!(
        "{what} secret.secretName={} is not allowed because service account {} does not reference that secret",
        go_quote(secret),
        text(&account["metadata"], "name")
    )
}

fn names<'a>(account: &'a Value, field: &str) -> Vec<&'a str> {
    account.items(field).iter().map(|reference| text(reference, "name")).collect()
}

/// For an account that limits its pods: the complaint about the first other secret in the environment of these lists of
/// containers.
fn foreign_secret(account: &Value, spec: &Value, lists: &[(&str, &str)]) -> Option<String> {
    if !is_limiting(account) {
        return None;
    }
    let secrets = names(account, "secrets");
    for (list, title) in lists {
        for container in spec.items(list) {
            let container_name = text(container, "name");
            for variable in container.items("env") {
                let Some(reference) = variable.pointer("/valueFrom/secretKeyRef") else { continue };
                let secret = text(reference, "name");
                if !secrets.contains(&secret) {
                    let variable = text(variable, "name");
                    let what = format!("{title} {container_name} with envVar {variable} referencing");
                    return Some(refusal(account, &what, secret));
                }
            }
            for source in container.items("envFrom").iter().filter_map(|source| source.get("secretRef")) {
                let secret = text(source, "name");
                if !secrets.contains(&secret) {
                    let what = format!("{title} {container_name} with envFrom referencing");
                    return Some(refusal(account, &what, secret));
                }
            }
        }
    }
    None
}

/// For an account that limits its pods: the complaint about the first secret that it does not list.
fn unreferenced_secret(account: &Value, spec: &Value) -> Option<String> {
    if !is_limiting(account) {
        return None;
    }
    let (secrets, pull_secrets) = (names(account, "secrets"), names(account, "imagePullSecrets"));
    for volume in spec.items("volumes").iter().filter_map(|volume| volume.get("secret")) {
        let secret = text(volume, "secretName");
        if !secrets.contains(&secret) {
            return Some(refusal(account, "volume with", secret));
        }
    }
    if let Some(message) = foreign_secret(account, spec, &CONTAINERS) {
        return Some(message);
    }
    let foreign = |(_, reference): &(usize, &Value)| !pull_secrets.contains(&text(reference, "name"));
    let (index, reference) = spec.items("imagePullSecrets").iter().enumerate().find(foreign)?;
    Some(format!(
        "imagePullSecrets[{index}].name={} is not allowed because service account {} does not reference that imagePullSecret",
        go_quote(text(reference, "name")),
        text(&account["metadata"], "name")
    ))
}

/// Adds the projected volume and mounts it where nothing else is mounted at that path.
fn mount_token(spec: &mut Value) {
    let existing = spec
        .get("volumes")
        .and_then(Value::as_array)
        .and_then(|volumes| {
            volumes.iter().map(|v| text(v, "name")).find(|name| name.starts_with("kube-api-access-"))
        })
        .map(String::from);
    let volume = existing.clone().unwrap_or_else(|| format!("kube-api-access-{}", random_suffix()));
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(list).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let taken = container
                .get("volumeMounts")
                .and_then(Value::as_array)
                .is_some_and(|mounts| mounts.iter().any(|m| text(m, "mountPath") == MOUNT_PATH));
            if taken {
                continue;
            }
            let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
            match container.get_mut("volumeMounts").and_then(Value::as_array_mut) {
                Some(mounts) => mounts.push(mount),
                None => container["volumeMounts"] = json!([mount]),
            }
            mounted = true;
        }
    }
    if !mounted || existing.is_some() {
        return;
    }
    let projected = json!({
        "name": volume,
        "projected": {
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": EXPIRATION_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
            ],
            "defaultMode": 420,
        },
    });
    match spec.get_mut("volumes").and_then(Value::as_array_mut) {
        Some(volumes) => volumes.push(projected),
        None => spec["volumes"] = json!([projected]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_accounts_own_secrets() {
        let account = |annotation: &str| json!({"metadata": {"name": "sa", "annotations": {ENFORCE: annotation}}, "secrets": [{"name": "ok"}]});
        let check = |annotation: &str, spec: Value, expected: Option<&str>| {
            assert_eq!(unreferenced_secret(&account(annotation), &spec).as_deref(), expected);
        };
        let volume = |secret: &str| json!({"volumes": [{"secret": {"secretName": secret}}]});
        let refused = "volume with secret.secretName=\"x\" is not allowed because service account sa does not reference that secret";
        check("true", volume("x"), Some(refused));
        check("true", volume("ok"), None);
        check("false", volume("x"), None);
        check(
            "true",
            json!({"containers": [{"name": "c", "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "x"}}}]}]}),
            Some(
                "container c with envVar E referencing secret.secretName=\"x\" is not allowed because service account sa does not reference that secret",
            ),
        );
        check(
            "true",
            json!({"imagePullSecrets": [{"name": "x"}]}),
            Some(
                "imagePullSecrets[0].name=\"x\" is not allowed because service account sa does not reference that imagePullSecret",
            ),
        );
    }

    #[test]
    fn token_volume_is_mounted_once() {
        let mut spec = json!({"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]});
        mount_token(&mut spec);
        assert_eq!(spec["volumes"].as_array().map(Vec::len), Some(1));
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["mountPath"], MOUNT_PATH);
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().map(Vec::len), Some(1));
    }
}
