//! Bootstrap tokens: signs the public `cluster-info` with each, so that who knows a token can trust it, and deletes
//! tokens that have expired. Answers to upstream's `bootstrap-signer-controller` and `token-cleaner-controller`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use orlop_client::{Informer, InformerEvent, ObjectKey, SharedInformerFactory, WorkQueue, run_workers};
use ring::hmac;
use serde_json::json;

use crate::error::{Error, is_conflict, is_not_found, unless_gone};
use crate::objects::Meta;
use crate::shell::Shell;

const TOKENS: &str = "type=bootstrap.kubernetes.io/token,metadata.namespace=kube-system";
const NAME_PREFIX: &str = "bootstrap-token-";
const INFO_NAMESPACE: &str = "kube-public";
const INFO: &str = "cluster-info";
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";

fn tokens(informers: &SharedInformerFactory) -> Informer<Secret> {
    informers.selected(TOKENS, "")
}

fn field<'a>(secret: &'a Secret, key: &str) -> &'a str {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    value.and_then(|value| std::str::from_utf8(&value.0).ok()).unwrap_or_default()
}

/// What is left of a token's time.
#[derive(Debug, PartialEq, Eq)]
enum Life {
    Unlimited,
    Left(Duration),
    Over,
}

/// A time that cannot be read is over: better no token than one for ever.
fn life(secret: &Secret, now: Timestamp) -> Life {
    let text = field(secret, "expiration");
    if text.is_empty() {
        return Life::Unlimited;
    }
    let Ok(end) = text.parse::<Timestamp>() else { return Life::Over };
    match Duration::try_from(end.duration_since(now)) {
        Ok(left) if !left.is_zero() => Life::Left(left),
        _ => Life::Over,
    }
}

/// Id and secret of a token that may sign.
fn signing_token(secret: &Secret, now: Timestamp) -> Option<(&str, &str)> {
    let id = secret.name().strip_prefix(NAME_PREFIX)?;
    let well_formed =
        id.len() == 6 && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let value = field(secret, "token-secret");
    let usable = well_formed
        && field(secret, "token-id") == id
        && !value.is_empty()
        && field(secret, "usage-bootstrap-signing") == "true"
        && life(secret, now) != Life::Over;
    usable.then_some((id, value))
}

/// A JWS over `content` without its payload (RFC 7515, appendix F): `<header>..<signature>`.
fn detached_signature(content: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": id}).to_string());
    let payload = URL_SAFE_NO_PAD.encode(content);
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = hmac::sign(&key, format!("{header}.{payload}").as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The `cluster-info` with a signature of each token and no others; `None` when it is so, or has nothing to sign.
fn signed(info: &ConfigMap, tokens: &[Arc<Secret>], now: Timestamp) -> Option<ConfigMap> {
    let mut data = info.data.clone()?;
    let content = data.get(KUBECONFIG)?.clone();
    data.retain(|key, _| !key.starts_with(SIGNATURE_PREFIX));
    let signers: BTreeMap<_, _> = tokens.iter().filter_map(|token| signing_token(token, now)).collect();
    data.extend(
        signers.into_iter().map(|(id, secret)| {
            (format!("{SIGNATURE_PREFIX}{id}"), detached_signature(&content, id, secret))
        }),
    );
    let data = Some(data);
    (data != info.data).then(|| ConfigMap { data, ..info.clone() })
}

/// Runs the signer.
pub(crate) async fn run_signer(shell: Shell) -> Result<(), Error> {
    let infos = shell
        .informers
        .selected::<ConfigMap>(&format!("metadata.name={INFO},metadata.namespace={INFO_NAMESPACE}"), "");
    let secrets = tokens(&shell.informers);
    infos.synced().await;
    secrets.synced().await;
    let queue = WorkQueue::named("bootstrap_signer_queue");
    let own = queue.clone();
    infos.subscribe(move |_| own.add(()));
    let own = queue.clone();
    secrets.subscribe(move |_| own.add(()));
    let (infos, secrets, client) = (&infos, &secrets, &shell.client);
    run_workers("bootstrap-signer-controller", queue, 1, shell.shutdown, |()| async move {
        let info = infos.get(INFO_NAMESPACE, INFO);
        let signed = info.and_then(|info| signed(&info, &secrets.list(), Timestamp::now()));
        let Some(signed) = signed else { return Ok(None) };
        let api = Api::<ConfigMap>::namespaced(client.clone(), INFO_NAMESPACE);
        match api.replace(INFO, &PostParams::default(), &signed).await {
            // The newer version is on its way here.
            Err(error) if !is_conflict(&error) && !is_not_found(&error) => Err(Error::from(error)),
            _ => Ok(None::<Duration>),
        }
    })
    .await;
    Ok(())
}

/// Runs the cleaner.
pub(crate) async fn run_cleaner(shell: Shell) -> Result<(), Error> {
    let secrets = tokens(&shell.informers);
    secrets.synced().await;
    let queue = WorkQueue::named("token_cleaner");
    let own = queue.clone();
    secrets.subscribe(move |event| {
        if !matches!(event, InformerEvent::Deleted(_)) {
            own.add(ObjectKey::of(&event.object().metadata));
        }
    });
    let (secrets, client) = (&secrets, &shell.client);
    run_workers("token-cleaner-controller", queue, 1, shell.shutdown, |key: ObjectKey| async move {
        let Some(secret) = secrets.get_key(&key) else { return Ok(None) };
        match life(&secret, Timestamp::now()) {
            Life::Unlimited => Ok(None),
            Life::Left(left) => Ok(Some(left)),
            Life::Over => {
                let uid = Preconditions { uid: secret.metadata.uid.clone(), resource_version: None };
                let params = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
                let api = Api::<Secret>::namespaced(client.clone(), &key.namespace);
                match unless_gone(api.delete(&key.name, &params).await) {
                    // A new token of the name.
                    Err(error) if !is_conflict(&error) => Err(Error::from(error)),
                    _ => Ok(None),
                }
            }
        }
    })
    .await;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objects::testing::{at, object};
    use pretty_assertions::assert_eq;
    use serde_json::Value;

    fn token(name: &str, fields: Value) -> Arc<Secret> {
        let mut data = json!({"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-signing": "true"});
        data.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let encoded: serde_json::Map<_, _> = data
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, value)| {
                let value = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap());
                (key.clone(), json!(value))
            })
            .collect();
        Arc::new(object(json!({"metadata": {"name": name, "namespace": "kube-system"}, "data": encoded})))
    }

    fn now() -> Timestamp {
        at("2026-01-01T00:00:00Z")
    }

    #[test]
    fn which_tokens_sign() {
        let check = |name: &str, fields: Value, expected: bool| {
            assert_eq!(
                signing_token(&token(name, fields.clone()), now()).is_some(),
                expected,
                "{name} {fields}"
            );
        };
        check("bootstrap-token-abcdef", json!({}), true);
        check("bootstrap-token-abcdeg", json!({}), false);
        check("bootstrap-token-ABCDEF", json!({"token-id": "ABCDEF"}), false);
        check("abcdef", json!({}), false);
        check("bootstrap-token-abcdef", json!({"token-secret": ""}), false);
        check("bootstrap-token-abcdef", json!({"usage-bootstrap-signing": "false"}), false);
        check("bootstrap-token-abcdef", json!({"expiration": "2025-12-31T23:59:59Z"}), false);
        check("bootstrap-token-abcdef", json!({"expiration": "2026-01-01T00:00:01Z"}), true);
    }

    #[test]
    fn how_long_tokens_live() {
        let check = |expiration: &str, expected: Life| {
            assert_eq!(life(&token("t", json!({"expiration": expiration})), now()), expected, "{expiration}");
        };
        check("", Life::Unlimited);
        check("2026-01-01T00:01:00Z", Life::Left(Duration::from_secs(60)));
        check("2026-01-01T01:00:00+01:00", Life::Over);
        check("2026-01-01T00:00:00Z", Life::Over);
        check("tomorrow", Life::Over);
    }

    #[test]
    fn signatures_follow_tokens_and_content() {
        let info: ConfigMap = object(json!({"metadata": {"name": INFO}, "data": {
            KUBECONFIG: "config", "jws-kubeconfig-gone": "x", "other": "y"}}));
        let tokens = [token("bootstrap-token-abcdef", json!({}))];
        let first = signed(&info, &tokens, now()).unwrap();
        let keys: Vec<_> = first.data.as_ref().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["jws-kubeconfig-abcdef", KUBECONFIG, "other"]);
        let signature = &first.data.as_ref().unwrap()["jws-kubeconfig-abcdef"];
        assert!(signature.starts_with("eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9.."), "{signature}");
        assert_eq!(signed(&first, &tokens, now()), None);
        let empty: ConfigMap = object(json!({"metadata": {"name": INFO}, "data": {"other": "y"}}));
        assert_eq!(signed(&empty, &tokens, now()), None);
    }

    #[test]
    fn a_signature_is_what_rfc_7515_says() {
        // As Python's hmac and base64 make it.
        let expected =
            "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..eU8pnTvQJlpG0gPcBCoRITTJvdWfxBszveKafXLxyGg";
        assert_eq!(detached_signature("payload", "abcdef", "key"), expected);
    }
}
