//! Cleans up tokens that older clusters made for every account and that nobody has used for a year: first they are
//! declared invalid, which can be undone, and a year later they are deleted. Answers to upstream's
//! `legacy-serviceaccount-token-cleaner-controller` (KEP-2799). Tokens that people made are theirs to delete.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use orlop_client::Informer;
use serde_json::{Value, json};
use tracing::warn;

use crate::error::{Error, is_conflict, unless_gone};
use crate::objects::Meta;
use crate::service_account_tokens::{ACCOUNT_NAME, ACCOUNT_UID, TYPE};
use crate::shell::Shell;

const INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// How long a token must not have been used.
fn period() -> Span {
    365.days()
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    Invalidate,
    Delete,
}

/// Whether uses have been noted for long enough to tell anything. The first day does not count, as it was not whole.
fn tracked_long_enough(since: Date, today: Date) -> bool {
    since.checked_add(1.day()).and_then(|first| first.checked_add(period())).is_ok_and(|known| today >= known)
}

/// Judges the token of `account`; `mounted` tells whether a pod holds the Secret.
fn judge(
    secret: &Secret,
    account: Option<&ServiceAccount>,
    mounted: impl FnOnce() -> bool,
    today: Date,
) -> Verdict {
    let Ok(limit) = today.checked_sub(period()) else { return Verdict::Keep };
    let created = secret.created().to_zoned(TimeZone::UTC).date();
    if created >= limit || secret.deleting() {
        return Verdict::Keep;
    }
    let unused = match secret.label(LAST_USED).map(str::parse::<Date>) {
        None => true,
        Some(Ok(used)) => used < limit,
        // What cannot be read proves nothing.
        Some(Err(_)) => false,
    };
    // Only a token that its account refers to was made by the cluster itself.
    let automatic = account.is_some_and(|account| {
        account.secrets.iter().flatten().any(|reference| reference.name.as_deref() == Some(secret.name()))
    });
    if !unused || !automatic || mounted() {
        return Verdict::Keep;
    }
    match secret.label(INVALID_SINCE).and_then(|since| since.parse::<Date>().ok()) {
        None => Verdict::Invalidate,
        Some(since) if since < limit => Verdict::Delete,
        Some(_) => Verdict::Keep,
    }
}

/// The names of Secrets that a pod refers to, wherever in its spec: in volumes, variables and for pulling images.
fn secrets_of(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| secrets_of(item, names)),
        Value::Object(fields) => {
            for (key, value) in fields {
                let lower = key.to_ascii_lowercase();
                let name = match lower.as_str() {
                    "secretname" => value.as_str(),
                    _ if lower == "secret"
                        || lower.ends_with("secretref")
                        || lower.ends_with("secretkeyref") =>
                    {
                        value["name"].as_str()
                    }
                    _ => None,
                };
                names.extend(name.map(str::to_owned));
                if key == "imagePullSecrets" {
                    let pulls = value.as_array().into_iter().flatten();
                    names.extend(pulls.filter_map(|pull| pull["name"].as_str().map(str::to_owned)));
                }
                secrets_of(value, names);
            }
        }
        _ => {}
    }
}

struct Cleaner {
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    pods: Informer<Pod>,
    client: kube::Client,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let cleaner = Cleaner {
        secrets: shell.informers.selected(TYPE, ""),
        accounts: shell.informers.informer(),
        pods: shell.informers.informer(),
        client: shell.client,
    };
    cleaner.secrets.synced().await;
    cleaner.accounts.synced().await;
    cleaner.pods.synced().await;
    let rounds = async {
        loop {
            if let Err(error) = cleaner.round().await {
                warn!(%error, "tokens that nobody uses could not be cleaned up; it is tried again tomorrow");
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    shell.shutdown.run_until_cancelled(rounds).await;
    Ok(())
}

impl Cleaner {
    async fn round(&self) -> Result<(), Error> {
        let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
        let secrets = self.secrets.list();
        if secrets.is_empty() {
            return Ok(());
        }
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), "kube-system");
        let tracking = api.get_opt(TRACKING).await?;
        let since = tracking.as_ref().and_then(|tracking| tracking.data.as_ref()?.get("since"));
        let since = since.and_then(|since| since.parse::<Date>().ok());
        if !since.is_some_and(|since| tracked_long_enough(since, today)) {
            return Ok(());
        }
        for secret in secrets {
            let account = self.account_of(&secret);
            let mounted = || {
                let pods = self.pods.list_namespace(secret.namespace());
                let mut names = BTreeSet::new();
                let specs = pods.iter().filter_map(|pod| serde_json::to_value(&pod.spec).ok());
                specs.for_each(|spec| secrets_of(&spec, &mut names));
                names.contains(secret.name())
            };
            let verdict = judge(&secret, account.as_deref(), mounted, today);
            self.carry_out(&secret, verdict, today).await?;
        }
        Ok(())
    }

    fn account_of(&self, secret: &Secret) -> Option<std::sync::Arc<ServiceAccount>> {
        let account = self.accounts.get(secret.namespace(), secret.annotation(ACCOUNT_NAME)?)?;
        let uid = secret.annotation(ACCOUNT_UID).unwrap_or_default();
        (uid.is_empty() || uid == account.uid()).then_some(account)
    }

    async fn carry_out(&self, secret: &Secret, verdict: Verdict, today: Date) -> Result<(), Error> {
        let api = Api::<Secret>::namespaced(self.client.clone(), secret.namespace());
        match verdict {
            Verdict::Keep => Ok(()),
            Verdict::Invalidate => {
                let labels = json!({INVALID_SINCE: today.to_string()});
                let body = json!({"metadata": {"uid": secret.uid(), "labels": labels}});
                let params = PatchParams::default();
                Ok(unless_gone(api.patch(secret.name(), &params, &Patch::Merge(body)).await)?)
            }
            Verdict::Delete => {
                // As it was judged: a use meanwhile changes its version.
                let version =
                    Preconditions { uid: None, resource_version: secret.metadata.resource_version.clone() };
                let params = DeleteParams { preconditions: Some(version), ..DeleteParams::default() };
                match unless_gone(api.delete(secret.name(), &params).await) {
                    Err(error) if !is_conflict(&error) => Err(error.into()),
                    _ => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;

    #[test]
    fn verdicts() {
        let check = |labels: Value, created: &str, referenced: bool, mounted: bool, expected: Verdict| {
            let secret: Secret = object(json!({"metadata": {"name": "t", "labels": labels,
                "creationTimestamp": format!("{created}T00:00:00Z")}}));
            let references = if referenced { json!([{"name": "t"}]) } else { json!([]) };
            let account: ServiceAccount = object(json!({"metadata": {}, "secrets": references}));
            let today = jiff::civil::date(2026, 6, 1);
            let verdict = judge(&secret, Some(&account), || mounted, today);
            assert_eq!(verdict, expected, "{labels} {created} {referenced} {mounted}");
        };
        let old = "2024-01-01";
        check(json!({}), old, true, false, Verdict::Invalidate);
        check(json!({}), "2026-01-01", true, false, Verdict::Keep);
        check(json!({}), old, false, false, Verdict::Keep);
        check(json!({}), old, true, true, Verdict::Keep);
        check(json!({LAST_USED: "2026-05-01"}), old, true, false, Verdict::Keep);
        check(json!({LAST_USED: "2025-05-01"}), old, true, false, Verdict::Invalidate);
        check(json!({LAST_USED: "lately"}), old, true, false, Verdict::Keep);
        check(json!({INVALID_SINCE: "2026-01-01"}), old, true, false, Verdict::Keep);
        check(json!({INVALID_SINCE: "2025-01-01"}), old, true, false, Verdict::Delete);
        check(json!({INVALID_SINCE: "odd"}), old, true, false, Verdict::Invalidate);
    }

    #[test]
    fn a_year_must_have_been_watched() {
        let check = |since: &str, expected: bool| {
            let since = since.parse::<Date>().unwrap_or(Date::MIN);
            assert_eq!(tracked_long_enough(since, jiff::civil::date(2026, 6, 2)), expected, "{since}");
        };
        check("2025-06-01", true);
        check("2025-06-02", false);
    }

    #[test]
    fn secrets_are_found_all_over_a_pod() {
        let spec = json!({
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "v", "secret": {"secretName": "volume"}},
                {"name": "p", "projected": {"sources": [{"secret": {"name": "projected"}}]}},
                {"name": "c", "csi": {"nodePublishSecretRef": {"name": "csi"}}}],
            "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "from"}}],
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "variable", "key": "k"}}}]}]});
        let mut names = BTreeSet::new();
        secrets_of(&spec, &mut names);
        let found: Vec<_> = names.iter().map(String::as_str).collect();
        assert_eq!(found, ["csi", "from", "projected", "pull", "variable", "volume"]);
    }
}
