//! Who owns what: a controller adopts matching objects that nobody controls and releases its own that match no more.
//! Answers to upstream's `ControllerRefManager`.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::api::{Api, Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::error::{Error, is_invalid, is_not_found};
use crate::objects::{Meta, controller_of, controller_ref, selects};

/// What to do about one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is ours and stays ours.
    Keep,
    /// It matches and nobody controls it.
    Adopt,
    /// It is ours but does not match any more.
    Release,
    /// None of our business.
    Ignore,
}

/// Decides about `object` for the workload `owner` with its `selector`.
pub(crate) fn claim(owner: &ObjectMeta, selector: &LabelSelector, object: &ObjectMeta) -> Claim {
    let matches = selects(selector, object);
    match controller_of(object) {
        Some(reference) if Some(&reference.uid) != owner.uid.as_ref() => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if owner.deletion_timestamp.is_some() => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner.deletion_timestamp.is_some() || !matches => Claim::Ignore,
        None if object.deletion_timestamp.is_some() || object.namespace != owner.namespace => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// What the owner kind and the claimed kind must be.
pub(crate) trait Namespaced:
    kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + DeserializeOwned
    + Debug
    + Send
    + Sync
    + 'static
{
}
impl<K> Namespaced for K where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static
{
}

/// Adopts and releases, and returns what `owner` controls afterwards. `may_adopt` filters orphans beforehand.
pub(crate) async fn claim_all<O: Namespaced, K: Namespaced>(
    client: &kube::Client,
    owner: &O,
    selector: &LabelSelector,
    candidates: Vec<Arc<K>>,
    may_adopt: impl Fn(&K) -> bool,
) -> Result<Vec<Arc<K>>, Error> {
    claim_all_finalized(client, owner, selector, candidates, may_adopt, None).await
}

/// The same for owners that put a finalizer of their own on what they adopt, and take it off what they release.
pub(crate) async fn claim_all_finalized<O: Namespaced, K: Namespaced>(
    client: &kube::Client,
    owner: &O,
    selector: &LabelSelector,
    candidates: Vec<Arc<K>>,
    may_adopt: impl Fn(&K) -> bool,
    finalizer: Option<&str>,
) -> Result<Vec<Arc<K>>, Error> {
    let namespace = owner.namespace();
    let api = Api::<K>::namespaced(client.clone(), namespace);
    let mut claimed = Vec::with_capacity(candidates.len());
    let mut errors = Vec::new();
    let mut can_adopt = None;
    for object in candidates {
        match claim(Meta::meta(owner), selector, Meta::meta(&*object)) {
            Claim::Keep => claimed.push(object),
            Claim::Ignore => {}
            Claim::Release => {
                let mut body = json!({"metadata": {
                    "uid": object.uid(),
                    "ownerReferences": [{"$patch": "delete", "uid": owner.uid()}],
                }});
                if let Some(finalizer) = finalizer {
                    body["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
                }
                match api.patch(object.name(), &PatchParams::default(), &Patch::Strategic(body)).await {
                    // Gone, or changed its uid meanwhile: either way not ours any more.
                    Err(error) if !is_not_found(&error) && !is_invalid(&error) => errors.push(error.into()),
                    _ => {}
                }
            }
            Claim::Adopt if !may_adopt(&object) => {}
            Claim::Adopt => {
                let allowed = match can_adopt {
                    Some(known) => known,
                    None => {
                        let live =
                            Api::<O>::namespaced(client.clone(), namespace).get_opt(owner.name()).await?;
                        // The cached owner may be gone or made anew under its old name.
                        *can_adopt
                            .insert(live.is_some_and(|live| live.uid() == owner.uid() && !live.deleting()))
                    }
                };
                if !allowed {
                    continue;
                }
                let reference = controller_ref(owner);
                let mut body = json!({"metadata": {"uid": object.uid(), "ownerReferences": [reference]}});
                if let Some(finalizer) = finalizer {
                    body["metadata"]["finalizers"] = json!([finalizer]);
                }
                match api.patch(object.name(), &PatchParams::default(), &Patch::Strategic(body)).await {
                    Ok(_) => {
                        let mut adopted = (*object).clone();
                        adopted.meta_mut().owner_references.get_or_insert_default().push(reference);
                        if let Some(finalizer) = finalizer {
                            let finalizers = adopted.meta_mut().finalizers.get_or_insert_default();
                            if !finalizers.iter().any(|present| present == finalizer) {
                                finalizers.push(finalizer.to_owned());
                            }
                        }
                        claimed.push(Arc::new(adopted));
                    }
                    Err(error) if is_not_found(&error) => {}
                    Err(error) => errors.push(error.into()),
                }
            }
        }
    }
    Error::all(errors)?;
    Ok(claimed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;
    use serde_json::Value;

    fn check(what: &str, owner: Value, pod: Value, expected: Claim) {
        let selector = object(json!({"matchLabels": {"app": "web"}}));
        assert_eq!(claim(&object(owner), &selector, &object(pod)), expected, "{what}");
    }

    #[test]
    fn adopts_keeps_and_releases() {
        let owner = json!({"name": "web", "namespace": "a", "uid": "1"});
        let dying =
            json!({"name": "web", "namespace": "a", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        let owned = |uid: &str, labels: Value| {
            json!({"namespace": "a", "labels": labels, "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": uid, "controller": true}]})
        };
        let web = json!({"app": "web"});
        check("ours", owner.clone(), owned("1", web.clone()), Claim::Keep);
        check("another's", owner.clone(), owned("2", web.clone()), Claim::Ignore);
        check("ours, other labels", owner.clone(), owned("1", json!({})), Claim::Release);
        check("ours, other labels, owner dying", dying.clone(), owned("1", json!({})), Claim::Ignore);
        check("orphan", owner.clone(), json!({"namespace": "a", "labels": web}), Claim::Adopt);
        check("orphan, owner dying", dying, json!({"namespace": "a", "labels": web}), Claim::Ignore);
        check(
            "orphan of other labels",
            owner.clone(),
            json!({"namespace": "a", "labels": {"app": "x"}}),
            Claim::Ignore,
        );
        check("orphan elsewhere", owner.clone(), json!({"namespace": "b", "labels": web}), Claim::Ignore);
        let gone = json!({"namespace": "a", "labels": web, "deletionTimestamp": "2026-01-01T00:00:00Z"});
        check("dying orphan", owner.clone(), gone, Claim::Ignore);
        let owner_only = json!({"namespace": "a", "labels": web, "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "9"}]});
        check("owned but not controlled", owner, owner_only, Claim::Adopt);
    }
}
