//! Fills Secrets of type `kubernetes.io/service-account-token` with a token, and deletes those whose account is gone.
//! Answers to upstream's `serviceaccount-token-controller`.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use orlop_client::{Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};

use crate::error::{Error, is_conflict, unless_gone};
use crate::objects::Meta;
use crate::shell::{SecretToken, Shell, TokenSigner};

pub(crate) const TYPE: &str = "type=kubernetes.io/service-account-token";
pub(crate) const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
pub(crate) const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const TOKEN: &str = "token";
const CA: &str = "ca.crt";
const NAMESPACE: &str = "namespace";

/// A Secret, as it was when it was queued: what is to be done when it is gone depends on what it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Work {
    key: ObjectKey,
    uid: String,
    account: String,
    /// Empty for a Secret that names its account only.
    account_uid: String,
}

impl Work {
    /// `None` for a Secret that does not say whose it is.
    fn of(secret: &Secret) -> Option<Self> {
        Some(Self {
            key: ObjectKey::of(&secret.metadata),
            uid: secret.uid().to_owned(),
            account: secret.annotation(ACCOUNT_NAME).filter(|name| !name.is_empty())?.to_owned(),
            account_uid: secret.annotation(ACCOUNT_UID).unwrap_or_default().to_owned(),
        })
    }

    fn is_of(&self, account: &ServiceAccount) -> bool {
        account.name() == self.account && (self.account_uid.is_empty() || account.uid() == self.account_uid)
    }
}

struct Controller {
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    client: kube::Client,
    signer: TokenSigner,
    ca: Option<String>,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let Some(signer) = shell.options.token_signer.clone() else {
        // Without a key there is nothing to sign with, now or later.
        shell.shutdown.cancelled().await;
        return Ok(());
    };
    let controller = Controller {
        secrets: shell.informers.selected(TYPE, ""),
        accounts: shell.informers.informer(),
        client: shell.client,
        signer,
        ca: shell.options.root_ca_pem.clone(),
    };
    controller.secrets.synced().await;
    controller.accounts.synced().await;
    let queue = WorkQueue::named("serviceaccount_tokens_secret");
    let own = queue.clone();
    controller.secrets.subscribe(move |event| {
        if let Some(work) = Work::of(event.object()) {
            own.add(work);
        }
    });
    let (own, secrets) = (queue.clone(), controller.secrets.clone());
    controller.accounts.subscribe(move |event| {
        if let InformerEvent::Deleted(account) = event {
            let all = secrets.list_namespace(account.namespace());
            let of_account =
                all.iter().filter_map(|secret| Work::of(secret)).filter(|work| work.is_of(account));
            of_account.for_each(|work| own.add(work));
        }
    });
    run_workers("serviceaccount-token-controller", queue, 5, shell.shutdown, |work| controller.sync(work))
        .await;
    Ok(())
}

impl Controller {
    async fn sync(&self, work: Work) -> Result<Option<Duration>, Error> {
        let namespace = work.key.namespace.as_str();
        let cached = self.secrets.get_key(&work.key).filter(|secret| secret.uid() == work.uid);
        let account = self.accounts.get(namespace, &work.account).filter(|account| work.is_of(account));
        let Some(secret) = cached else {
            if let Some(account) = account {
                self.drop_reference(&account, &work.key.name).await?;
            }
            return Ok(None);
        };
        let live;
        let account = match &account {
            Some(account) => Some(&**account),
            None => {
                // Before a Secret is deleted: the account may be newer than the cache.
                let api = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
                live = api.get_opt(&work.account).await?;
                live.as_ref().filter(|account| work.is_of(account))
            }
        };
        match account {
            None => self.delete(&secret).await?,
            Some(account)
                if filled(&secret, account, self.ca.as_deref(), || Ok(String::new()))?.is_some() =>
            {
                self.fill(&secret, account).await?;
            }
            Some(_) => {}
        }
        Ok(None)
    }

    async fn delete(&self, secret: &Secret) -> Result<(), Error> {
        let uid = Preconditions { uid: secret.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
        let api = Api::<Secret>::namespaced(self.client.clone(), secret.namespace());
        match unless_gone(api.delete(secret.name(), &params).await) {
            // Another Secret of the name: not the one that was meant.
            Err(error) if is_conflict(&error) => Ok(()),
            done => Ok(done?),
        }
    }

    async fn fill(&self, secret: &Secret, account: &ServiceAccount) -> Result<(), Error> {
        let api = Api::<Secret>::namespaced(self.client.clone(), secret.namespace());
        let live = api.get_opt(secret.name()).await?.filter(|live| live.uid() == secret.uid());
        let Some(live) = live else { return Ok(()) };
        let sign = || {
            self.signer.sign(SecretToken {
                namespace: live.namespace(),
                account: account.name(),
                account_uid: account.uid(),
                secret: live.name(),
            })
        };
        let Some(filled) = filled(&live, account, self.ca.as_deref(), sign)? else { return Ok(()) };
        Ok(unless_gone(api.replace(live.name(), &PostParams::default(), &filled).await)?)
    }

    async fn drop_reference(&self, account: &ServiceAccount, secret: &str) -> Result<(), Error> {
        let refers = |account: &ServiceAccount| {
            account.secrets.iter().flatten().any(|reference| reference.name.as_deref() == Some(secret))
        };
        if !refers(account) {
            return Ok(());
        }
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), account.namespace());
        let live = api.get_opt(account.name()).await?;
        let Some(mut live) = live.filter(|live| live.uid() == account.uid() && refers(live)) else {
            return Ok(());
        };
        if let Some(secrets) = &mut live.secrets {
            secrets.retain(|reference| reference.name.as_deref() != Some(secret));
        }
        live.secrets = live.secrets.take().filter(|secrets| !secrets.is_empty());
        Ok(unless_gone(api.replace(live.name(), &PostParams::default(), &live).await)?)
    }
}

/// The Secret with everything it should hold; `None` when it does.
fn filled(
    secret: &Secret,
    account: &ServiceAccount,
    ca: Option<&str>,
    sign: impl FnOnce() -> Result<String, Error>,
) -> Result<Option<Secret>, Error> {
    let none = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&none);
    let holds = |key: &str| data.get(key).is_some_and(|value| !value.0.is_empty());
    let mut missing = Vec::new();
    if let Some(ca) = ca.filter(|ca| data.get(CA).is_none_or(|held| held.0 != ca.as_bytes())) {
        missing.push((CA, ca.to_owned()));
    }
    if !holds(NAMESPACE) {
        missing.push((NAMESPACE, secret.namespace().to_owned()));
    }
    if !holds(TOKEN) {
        missing.push((TOKEN, sign()?));
    }
    if missing.is_empty() {
        return Ok(None);
    }
    let mut changed = secret.clone();
    let data = changed.data.get_or_insert_default();
    data.extend(missing.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))));
    let annotations = changed.metadata.annotations.get_or_insert_default();
    annotations.insert(ACCOUNT_NAME.to_owned(), account.name().to_owned());
    annotations.insert(ACCOUNT_UID.to_owned(), account.uid().to_owned());
    Ok(Some(changed))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objects::testing::object;
    use pretty_assertions::assert_eq;
    use serde_json::{Value, json};

    fn check(data: Value, expected: Value) {
        let secret: Secret = object(json!({"metadata": {"name": "t", "namespace": "a"}, "data": data}));
        let account = object(json!({"metadata": {"name": "sa", "uid": "u"}}));
        let filled = filled(&secret, &account, Some("CA"), || Ok("T".to_owned())).unwrap();
        let shown = filled.map_or(json!("as it was"), |filled| {
            assert_eq!(
                (filled.annotation(ACCOUNT_NAME), filled.annotation(ACCOUNT_UID)),
                (Some("sa"), Some("u"))
            );
            serde_json::to_value(filled.data).unwrap()
        });
        assert_eq!(shown, expected, "{data}");
    }

    #[test]
    fn only_what_is_missing_is_filled_in() {
        // "CA", "a" and "T", and what somebody put there.
        let full = json!({"ca.crt": "Q0E=", "namespace": "YQ==", "token": "VA=="});
        check(json!({}), full.clone());
        check(full, json!("as it was"));
        check(
            json!({"ca.crt": "T0xE", "namespace": "Yg==", "token": "eA==", "more": "eA=="}),
            json!({"ca.crt": "Q0E=", "more": "eA==", "namespace": "Yg==", "token": "eA=="}),
        );
    }
}
