//! Which tokens of Secrets are used: each such Secret is labelled with the day of the last use, so that tokens nobody
//! needs can be told from others and cleaned up (KEP-2799).

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use orlop_api::decode::Gvk;
use orlop_api::status::ApiError;
use orlop_json::Value;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::UserInfo;
use crate::ApiServer;
use crate::managed;
use crate::registry::update::Edit;
use crate::registry::{Call, CallOptions, Warnings};

/// The ConfigMap in `kube-system` that says since when use is noted.
pub const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// The day, in UTC, as the labels have it: `2026-01-31`.
pub fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

fn label<'a>(secret: &'a Value, key: &str) -> &'a str {
    secret["metadata"]["labels"][key].as_str().unwrap_or_default()
}

/// Whether a Secret's token was declared invalid for not being used.
pub(super) fn is_invalid(secret: &Value) -> bool {
    !label(secret, INVALID_SINCE).is_empty()
}

/// What the user of such a token is told.
pub(super) fn invalid(namespace: &str, secret: &str, account: &str) -> String {
    format!(
        "the token in secret {namespace}/{secret} for service account {namespace}/{account} has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
    )
}

/// Secrets (namespace and name) whose tokens were used and that do not say so yet.
#[derive(Default)]
pub struct Used {
    secrets: Mutex<BTreeSet<(String, String)>>,
    more: Notify,
}

impl Used {
    /// Takes note of a use; costs nothing when the Secret tells of one today.
    pub(super) fn note(&self, namespace: &str, name: &str, secret: &Value) {
        if label(secret, LAST_USED) != today() {
            self.secrets.lock().insert((namespace.to_owned(), name.to_owned()));
            self.more.notify_one();
        }
    }
}

struct Label(String);

impl Edit for Label {
    fn edit(&self, secret: &mut Value) -> Result<(), ApiError> {
        let old = secret.clone();
        secret["metadata"]["labels"][LAST_USED] = Value::String(self.0.clone());
        let gvk = Gvk { group: "", version: "v1", kind: "Secret" };
        managed::update_as(&gvk, "", "kube-apiserver", Some(&old), secret);
        Ok(())
    }
}

/// Labels the Secrets that are used; ends with the server.
pub async fn label_used(server: Weak<ApiServer>, used: Arc<Used>) {
    loop {
        used.more.notified().await;
        let Some(server) = server.upgrade() else { return };
        let Some(resource) = server.registry.resources.of_kind("", "Secret") else { return };
        let all = std::mem::take(&mut *used.secrets.lock());
        let (user, warnings) = (UserInfo::loopback(), Warnings::default());
        for (namespace, name) in &all {
            let call = Call {
                user: &user,
                resource: &resource,
                namespace,
                name,
                subresource: "",
                dry_run: false,
                field_manager: "kube-apiserver",
                warnings: &warnings,
                annotations: None,
                options: CallOptions::None,
            };
            // The next use tries again.
            if let Err(error) = server.registry.update_raw(&call, &Label(today())).await {
                tracing::debug!(%error, namespace, name, "the use of a token could not be noted");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn a_use_is_noted_once_a_day() {
        let check = |labels: Value, noted: usize| {
            let used = Used::default();
            used.note("a", "s", &json!({"metadata": {"labels": labels}}));
            assert_eq!(used.secrets.lock().len(), noted);
        };
        check(json!({}), 1);
        check(json!({LAST_USED: "2020-01-01"}), 1);
        check(json!({LAST_USED: today()}), 0);
        assert!(is_invalid(&json!({"metadata": {"labels": {INVALID_SINCE: "2020-01-01"}}})));
        assert!(!is_invalid(&json!({"metadata": {}})));
    }
}
