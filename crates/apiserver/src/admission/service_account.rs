//! `ServiceAccount`: every pod runs as one, and its token is mounted into every container.

use async_trait::async_trait;
use orlop_api::field::go_quote;
use orlop_api::status::ApiError;
use serde_json::{Value, json};

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

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

#[async_trait]
impl Admission for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        if !request.is_core("pods") || request.operation != Operation::Create {
            return Ok(());
        }
        if request.object.pointer("/metadata/annotations").and_then(|a| a.get(MIRROR)).is_some() {
            return Ok(());
        }
        if text(&request.object["spec"], "serviceAccountName").is_empty() {
            request.object["spec"]["serviceAccountName"] = json!("default");
            request.object["spec"]["serviceAccount"] = json!("default");
        }
        let name = text(&request.object["spec"], "serviceAccountName").to_string();
        let namespace = request.call.namespace;
        let account = registry
            .resources
            .cache("", "ServiceAccount")
            .and_then(|cache| cache.get(&format!("{namespace}/{name}")))
            .map(|entry| entry.value());
        let Some(account) = account else {
            return Err(request.forbidden(format!(
                "error looking up service account {namespace}/{name}: serviceaccount {} not found",
                go_quote(&name)
            )));
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
        if !request.is_core("pods") || request.operation != Operation::Create {
            return Ok(());
        }
        let spec = &request.object["spec"];
        if request.object.pointer("/metadata/annotations").and_then(|a| a.get(MIRROR)).is_some() {
            return if text(spec, "serviceAccountName").is_empty() {
                Ok(())
            } else {
                Err(request.forbidden("a mirror pod may not reference service accounts"))
            };
        }
        let key = format!("{}/{}", request.call.namespace, text(spec, "serviceAccountName"));
        let account = registry.resources.cache("", "ServiceAccount").and_then(|cache| cache.get(&key));
        match account.and_then(|entry| unreferenced_secret(&entry.value(), spec)) {
            Some(message) => Err(request.forbidden(message)),
            None => Ok(()),
        }
    }
}

/// For an account that limits its pods to its own secrets: the complaint about the first other one.
fn unreferenced_secret(account: &Value, spec: &Value) -> Option<String> {
    let limited = account.pointer("/metadata/annotations").and_then(|a| a.get(ENFORCE))?.as_str()?;
    if !matches!(limited, "1" | "t" | "T" | "true" | "TRUE" | "True") {
        return None;
    }
    let items = |value: &'_ Value, field: &str| {
        value.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let names = |field: &str| -> Vec<String> {
        items(account, field).iter().map(|reference| text(reference, "name").to_string()).collect()
    };
    let (secrets, pull_secrets) = (names("secrets"), names("imagePullSecrets"));
    let name = text(&account["metadata"], "name");
    let refuse = |what: String, secret: &str| {
        let secret = go_quote(secret);
        format!(
            "{what} secret.secretName={secret} is not allowed because service account {name} does not reference that secret"
        )
    };
    let foreign = |secret: Option<&Value>, field: &str| {
        secret.map(|secret| text(secret, field).to_string()).filter(|secret| !secrets.contains(secret))
    };
    for volume in items(spec, "volumes") {
        if let Some(secret) = foreign(volume.get("secret"), "secretName") {
            return Some(refuse("volume with".into(), &secret));
        }
    }
    for (list, title) in [("initContainers", "init container"), ("containers", "container")] {
        for container in items(spec, list) {
            let container_name = text(&container, "name");
            for variable in items(&container, "env") {
                if let Some(secret) = foreign(variable.pointer("/valueFrom/secretKeyRef"), "name") {
                    let variable = text(&variable, "name");
                    return Some(refuse(
                        format!("{title} {container_name} with envVar {variable} referencing"),
                        &secret,
                    ));
                }
            }
            for source in items(&container, "envFrom") {
                if let Some(secret) = foreign(source.get("secretRef"), "name") {
                    return Some(refuse(
                        format!("{title} {container_name} with envFrom referencing"),
                        &secret,
                    ));
                }
            }
        }
    }
    for (index, reference) in items(spec, "imagePullSecrets").iter().enumerate() {
        let secret = text(reference, "name");
        if !pull_secrets.iter().any(|own| own == secret) {
            return Some(format!(
                "imagePullSecrets[{index}].name={} is not allowed because service account {name} does not reference that imagePullSecret",
                go_quote(secret)
            ));
        }
    }
    None
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
