//! Keeps claims while pods use them, volumes while they are bound, and classes of attributes while claims or volumes name
//! them. Answers to upstream's `persistentvolumeclaim-protection-controller`, `persistentvolume-protection-controller` and
//! `volumeattributesclass-protection-controller`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams, PostParams};
use orlop_client::{Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};

use super::{BY_CLAIM, claim_names, index_by_claim, uses};
use crate::error::{Error, unless_gone};
use crate::objects::{Meta, is_finished};
use crate::shell::Shell;

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
const CLASS_FINALIZER: &str = "kubernetes.io/vac-protection";
/// The name of the index of claims and volumes by the classes of attributes that they name.
const BY_ATTRIBUTES: &str = "volume-attributes-class";

/// What to do about an object's finalizer.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    Add,
    /// To be removed, unless the object is in use.
    Remove,
}

fn judge(meta: &ObjectMeta, finalizer: &str) -> Verdict {
    let has = meta.finalizers.iter().flatten().any(|present| present == finalizer);
    match (meta.deletion_timestamp.is_some(), has) {
        (true, true) => Verdict::Remove,
        (false, false) => Verdict::Add,
        _ => Verdict::Keep,
    }
}

fn change(meta: &mut ObjectMeta, finalizer: &str, verdict: &Verdict) {
    let finalizers = meta.finalizers.get_or_insert_default();
    match verdict {
        Verdict::Add => finalizers.push(finalizer.to_owned()),
        _ => finalizers.retain(|present| present != finalizer),
    }
}

/// Claims.
pub(crate) async fn claims(shell: Shell) -> Result<(), Error> {
    let claims: Informer<PersistentVolumeClaim> = shell.informers.informer();
    let pods: Informer<Pod> = shell.informers.informer();
    index_by_claim(&pods);
    claims.synced().await;
    pods.synced().await;
    let queue = WorkQueue::named("pvcprotection");
    let own = queue.clone();
    claims.subscribe(move |event| {
        let claim = event.object();
        if !matches!(event, InformerEvent::Deleted(_))
            && judge(&claim.metadata, CLAIM_FINALIZER) != Verdict::Keep
        {
            own.add(ObjectKey::of(&claim.metadata));
        }
    });
    let (own, known) = (queue.clone(), claims.clone());
    pods.subscribe(move |event| {
        let pod = event.object();
        // A pod that goes may free a claim.
        if !matches!(event, InformerEvent::Deleted(_)) && !is_finished(pod) {
            return;
        }
        for name in claim_names(pod) {
            if known.get(pod.namespace(), &name).is_some_and(|claim| claim.deleting()) {
                own.add(ObjectKey::new(pod.namespace(), name));
            }
        }
    });
    let (claims, pods, client) = (&claims, &pods, &shell.client);
    let name = "persistentvolumeclaim-protection-controller";
    run_workers(name, queue, 1, shell.shutdown, |key: ObjectKey| async move {
        let Some(claim) = claims.get_key(&key) else { return Ok(None) };
        let verdict = judge(&claim.metadata, CLAIM_FINALIZER);
        if verdict == Verdict::Keep || verdict == Verdict::Remove && in_use(client, pods, &claim).await? {
            return Ok(None);
        }
        let mut changed = (*claim).clone();
        change(&mut changed.metadata, CLAIM_FINALIZER, &verdict);
        let api = Api::<PersistentVolumeClaim>::namespaced(client.clone(), &key.namespace);
        unless_gone(api.replace(&key.name, &PostParams::default(), &changed).await)?;
        Ok::<_, Error>(None::<Duration>)
    })
    .await;
    Ok(())
}

/// Asks the cache, and then the server: a pod that the cache does not show yet would lose its data.
async fn in_use(
    client: &kube::Client,
    pods: &Informer<Pod>,
    claim: &PersistentVolumeClaim,
) -> Result<bool, Error> {
    let key = ObjectKey::of(&claim.metadata).to_string();
    if pods.by_index(BY_CLAIM, &key).iter().any(|pod| uses(pod, claim)) {
        return Ok(true);
    }
    let api = Api::<Pod>::namespaced(client.clone(), claim.namespace());
    let live = api.list(&ListParams::default()).await?;
    Ok(live.items.iter().any(|pod| uses(pod, claim)))
}

/// Volumes.
pub(crate) async fn volumes(shell: Shell) -> Result<(), Error> {
    let volumes: Informer<PersistentVolume> = shell.informers.informer();
    volumes.synced().await;
    let queue = WorkQueue::named("pvprotection");
    let own = queue.clone();
    volumes.subscribe(move |event| {
        let volume = event.object();
        if !matches!(event, InformerEvent::Deleted(_))
            && judge(&volume.metadata, VOLUME_FINALIZER) != Verdict::Keep
        {
            own.add(volume.name().to_owned());
        }
    });
    let (volumes, client) = (&volumes, &shell.client);
    let name = "persistentvolume-protection-controller";
    run_workers(name, queue, 1, shell.shutdown, |name: String| async move {
        let Some(volume) = volumes.get("", &name) else { return Ok(None) };
        let verdict = judge(&volume.metadata, VOLUME_FINALIZER);
        let bound = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        if verdict == Verdict::Keep || verdict == Verdict::Remove && bound {
            return Ok(None);
        }
        let mut changed = (*volume).clone();
        change(&mut changed.metadata, VOLUME_FINALIZER, &verdict);
        let api = Api::<PersistentVolume>::all(client.clone());
        unless_gone(api.replace(&name, &PostParams::default(), &changed).await)?;
        Ok::<_, Error>(None::<Duration>)
    })
    .await;
    Ok(())
}

/// The classes a claim has, is to have and is getting.
fn classes_of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone());
    let status = claim.status.as_ref();
    let current = status.and_then(|status| status.current_volume_attributes_class_name.clone());
    let target = status
        .and_then(|status| status.modify_volume_status.as_ref()?.target_volume_attributes_class_name.clone());
    [wanted, current, target].into_iter().flatten().filter(|name| !name.is_empty()).collect()
}

fn classes_of_volume(volume: &PersistentVolume) -> Vec<String> {
    let name = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone());
    name.into_iter().filter(|name| !name.is_empty()).collect()
}

/// Queues the classes that an object names no more.
fn queue_freed<K: orlop_client::Object>(
    informer: &Informer<K>,
    queue: &WorkQueue<String>,
    classes_of: fn(&K) -> Vec<String>,
) {
    let queue = queue.clone();
    informer.subscribe(move |event| {
        let (before, now) = match event {
            InformerEvent::Added(_) => return,
            InformerEvent::Updated { old, new } => (classes_of(old), classes_of(new)),
            InformerEvent::Deleted(object) => (classes_of(object), Vec::new()),
        };
        for class in before.into_iter().filter(|class| !now.contains(class)) {
            queue.add(class);
        }
    });
}

/// Classes of attributes. As upstream, it goes by what its caches know.
pub(crate) async fn attributes_classes(shell: Shell) -> Result<(), Error> {
    let classes: Informer<VolumeAttributesClass> = shell.informers.informer();
    let claims: Informer<PersistentVolumeClaim> = shell.informers.informer();
    let volumes: Informer<PersistentVolume> = shell.informers.informer();
    claims.add_index(BY_ATTRIBUTES, classes_of_claim);
    volumes.add_index(BY_ATTRIBUTES, classes_of_volume);
    classes.synced().await;
    claims.synced().await;
    volumes.synced().await;
    let queue = WorkQueue::named("vacprotection");
    queue_freed(&claims, &queue, classes_of_claim);
    queue_freed(&volumes, &queue, classes_of_volume);
    let own = queue.clone();
    classes.subscribe(move |event| {
        let class = event.object();
        if !matches!(event, InformerEvent::Deleted(_))
            && judge(&class.metadata, CLASS_FINALIZER) != Verdict::Keep
        {
            own.add(class.name().to_owned());
        }
    });
    let (classes, claims, volumes, client) = (&classes, &claims, &volumes, &shell.client);
    let name = "volumeattributesclass-protection-controller";
    run_workers(name, queue, 1, shell.shutdown, |name: String| async move {
        let Some(class) = classes.get("", &name) else { return Ok(None) };
        let verdict = judge(&class.metadata, CLASS_FINALIZER);
        let named = || {
            !claims.by_index(BY_ATTRIBUTES, &name).is_empty()
                || !volumes.by_index(BY_ATTRIBUTES, &name).is_empty()
        };
        if verdict == Verdict::Keep || verdict == Verdict::Remove && named() {
            return Ok(None);
        }
        let mut changed = (*class).clone();
        change(&mut changed.metadata, CLASS_FINALIZER, &verdict);
        let api = Api::<VolumeAttributesClass>::all(client.clone());
        unless_gone(api.replace(&name, &PostParams::default(), &changed).await)?;
        Ok::<_, Error>(None::<Duration>)
    })
    .await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;
    use serde_json::{Value, json};

    #[test]
    fn classes_that_are_named() {
        let check = |claim: Value, expected: &[&str]| {
            assert_eq!(classes_of_claim(&object(claim.clone())), expected, "{claim}");
        };
        check(json!({"metadata": {}}), &[]);
        check(json!({"metadata": {}, "spec": {"volumeAttributesClassName": ""}}), &[]);
        check(
            json!({"metadata": {}, "spec": {"volumeAttributesClassName": "a"}, "status": {
                "currentVolumeAttributesClassName": "b",
                "modifyVolumeStatus": {"status": "InProgress", "targetVolumeAttributesClassName": "c"}}}),
            &["a", "b", "c"],
        );
        let volume = json!({"metadata": {}, "spec": {"volumeAttributesClassName": "a"}});
        assert_eq!(classes_of_volume(&object(volume)), ["a"]);
        assert!(classes_of_volume(&object(json!({"metadata": {}}))).is_empty());
    }

    #[test]
    fn finalizers() {
        let check = |meta: Value, expected: Verdict| {
            let mut meta: ObjectMeta = object(meta);
            let verdict = judge(&meta, CLAIM_FINALIZER);
            assert_eq!(verdict, expected, "{meta:?}");
            if verdict != Verdict::Keep {
                change(&mut meta, CLAIM_FINALIZER, &verdict);
                assert_eq!(judge(&meta, CLAIM_FINALIZER), Verdict::Keep);
            }
        };
        let deleted = "2026-01-01T00:00:00Z";
        check(json!({}), Verdict::Add);
        check(json!({"finalizers": ["x"]}), Verdict::Add);
        check(json!({"finalizers": ["x", CLAIM_FINALIZER]}), Verdict::Keep);
        check(json!({"finalizers": ["x", CLAIM_FINALIZER], "deletionTimestamp": deleted}), Verdict::Remove);
        check(json!({"finalizers": ["x"], "deletionTimestamp": deleted}), Verdict::Keep);
    }

    #[test]
    fn users() {
        let check = |what: &str, spec: Value, claim: Value, expected: bool| {
            let pod: Pod = object(json!({"metadata": {"name": "p", "uid": "1"}, "spec": spec}));
            assert_eq!(uses(&pod, &object(json!({"metadata": claim}))), expected, "{what}");
        };
        let named = |node: Value| {
            json!({"nodeName": node, "containers": [], "volumes": [
            {"name": "x", "emptyDir": {}}, {"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]})
        };
        check("named", named(json!("n")), json!({"name": "data"}), true);
        check("not scheduled", named(json!(null)), json!({"name": "data"}), false);
        check("another", named(json!("n")), json!({"name": "other"}), false);
        let own = json!({"nodeName": "n", "containers": [], "volumes": [{"name": "d", "ephemeral": {}}]});
        let owner = |uid: &str| json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}]);
        check("its own", own.clone(), json!({"name": "p-d", "ownerReferences": owner("1")}), true);
        check("of a former pod", own, json!({"name": "p-d", "ownerReferences": owner("2")}), false);
    }
}
