//! Makes the ResourceClaims of pods from templates, and frees claims that nobody uses any more (KEP-3063, KEP-4381).
//! Answers to upstream's `resourceclaim-controller`.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};
use serde_json::json;

use crate::error::{Error, is_namespace_terminating, unless_gone};
use crate::objects::{Meta, controller_ref, is_finished, node_name};
use crate::shell::Shell;

/// Field manager of what is written into pods.
const MANAGER: &str = "ResourceClaimController";
/// Which entry of `spec.resourceClaims` a claim was made for.
const POD_CLAIM_NAME: &str = "resource.kubernetes.io/pod-claim-name";
/// Held while a claim is allocated.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
const BY_OWNER: &str = "resourceclaim-owner";
/// The name of the index of pods by `namespace/claim`.
pub(crate) const BY_CLAIM: &str = "resourceclaim";

/// What a key stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Item {
    Pod(ObjectKey),
    Claim(ObjectKey),
}

struct Controller {
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    templates: Informer<ResourceClaimTemplate>,
    client: kube::Client,
    recorder: EventRecorder,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        pods: shell.informers.informer(),
        claims: shell.informers.informer(),
        templates: shell.informers.informer(),
        client: shell.client,
        recorder: shell.recorder,
    };
    index_by_claim(&controller.pods);
    controller.claims.add_index(BY_OWNER, |claim: &ResourceClaim| {
        claim.controller().map(|owner| owner.uid.clone()).into_iter().collect()
    });
    controller.pods.synced().await;
    controller.claims.synced().await;
    controller.templates.synced().await;
    let queue = WorkQueue::named("resource_claim");
    let (own, claims) = (queue.clone(), controller.claims.clone());
    controller.pods.subscribe(move |event| {
        let pod = event.object();
        if wanted(pod).next().is_none() && extended_claim(pod).is_none() {
            return;
        }
        let gone = matches!(event, InformerEvent::Deleted(_));
        if gone || is_done(pod) {
            let names = wanted(pod).filter_map(|entry| claim_of(pod, entry));
            for name in names.chain(extended_claim(pod).map(str::to_owned)) {
                own.add(Item::Claim(ObjectKey::new(pod.namespace(), name)));
            }
            for claim in claims.by_index(BY_OWNER, pod.uid()) {
                own.add(Item::Claim(ObjectKey::of(&claim.metadata)));
            }
        } else {
            own.add(Item::Pod(ObjectKey::of(&pod.metadata)));
        }
    });
    let (own, pods) = (queue.clone(), controller.pods.clone());
    controller.claims.subscribe(move |event| {
        let claim = event.object();
        let key = ObjectKey::of(&claim.metadata);
        for pod in pods.by_index(BY_CLAIM, &key.to_string()) {
            own.add(Item::Pod(ObjectKey::of(&pod.metadata)));
        }
        match event {
            // The pod it was made for needs another one.
            InformerEvent::Deleted(_) => {
                if let Some(owner) = claim.controller().filter(|owner| owner.kind == "Pod") {
                    own.add(Item::Pod(ObjectKey::new(claim.namespace(), owner.name.clone())));
                }
            }
            _ => own.add(Item::Claim(key)),
        }
    });
    let (own, pods) = (queue.clone(), controller.pods.clone());
    controller.templates.subscribe(move |event| {
        // A pod may have been waiting for it; templates are rare, and pods of a namespace few.
        if let InformerEvent::Added(template) = event {
            for pod in pods.list_namespace(template.namespace()) {
                let named = |entry: &PodResourceClaim| {
                    entry.resource_claim_template_name.as_deref() == Some(template.name())
                };
                if wanted(&pod).any(named) {
                    own.add(Item::Pod(ObjectKey::of(&pod.metadata)));
                }
            }
        }
    });
    let controller = &controller;
    run_workers("resourceclaim-controller", queue, 10, shell.shutdown, |item: Item| async move {
        match item {
            Item::Pod(key) => controller.sync_pod(&key).await,
            Item::Claim(key) => controller.sync_claim(&key).await,
        }
        .map(|()| None::<Duration>)
    })
    .await;
    Ok(())
}

pub(crate) fn index_by_claim(pods: &Informer<Pod>) {
    pods.add_index(BY_CLAIM, |pod: &Pod| {
        let names = wanted(pod).filter_map(|entry| claim_of(pod, entry));
        names.map(|name| format!("{}/{name}", pod.namespace())).collect()
    });
}

pub(crate) fn wanted(pod: &Pod) -> impl Iterator<Item = &PodResourceClaim> {
    pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten())
}

/// The claim that stands for an entry of `spec.resourceClaims`, once it is known.
pub(crate) fn claim_of(pod: &Pod, entry: &PodResourceClaim) -> Option<String> {
    if let Some(name) = &entry.resource_claim_name {
        return Some(name.clone());
    }
    let statuses = pod.status.as_ref()?.resource_claim_statuses.as_deref()?;
    statuses.iter().find(|status| status.name == entry.name)?.resource_claim_name.clone()
}

/// The claim that the scheduler made for extended resources.
fn extended_claim(pod: &Pod) -> Option<&str> {
    Some(pod.status.as_ref()?.extended_resource_claim_status.as_ref()?.resource_claim_name.as_str())
}

/// Whether a pod will not run (again), so that it needs no claim.
fn is_done(pod: &Pod) -> bool {
    is_finished(pod) || (pod.deleting() && node_name(pod).is_empty())
}

fn reserved(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default()
}

fn is_allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|status| status.allocation.is_some())
}

pub(crate) fn is_reserved_for(claim: &ResourceClaim, pod: &Pod) -> bool {
    reserved(claim).iter().any(|consumer| consumer.uid == pod.uid())
}

pub(crate) fn is_made_for(claim: &ResourceClaim, pod: &Pod) -> bool {
    claim.controller().is_some_and(|owner| owner.uid == pod.uid())
}

/// A claim from a template.
fn instance(pod: &Pod, entry: &str, template: &ResourceClaimTemplate) -> ResourceClaim {
    let meta = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM_NAME.to_owned(), entry.to_owned());
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-{entry}-", pod.name())),
            namespace: pod.metadata.namespace.clone(),
            owner_references: Some(vec![controller_ref(pod)]),
            annotations: Some(annotations),
            labels: meta.labels,
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        ..ResourceClaim::default()
    }
}

impl Controller {
    fn api(&self, namespace: &str) -> Api<ResourceClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn sync_pod(&self, key: &ObjectKey) -> Result<(), Error> {
        let Some(pod) = self.pods.get_key(key).filter(|pod| !pod.deleting() && !is_done(pod)) else {
            return Ok(());
        };
        let mut made = Vec::new();
        for entry in wanted(&pod) {
            match self.ensure(&pod, entry).await {
                Ok(Some(name)) => made.push(json!({"name": entry.name, "resourceClaimName": name})),
                Ok(None) => {}
                Err(Error::Api(error)) if is_namespace_terminating(&error) => return Ok(()),
                Err(error) => {
                    let text = format!("PodResourceClaim {}: {error}", entry.name);
                    self.recorder.event(&*pod, EventType::Warning, "FailedResourceClaimCreation", text);
                    return Err(error);
                }
            }
        }
        if !made.is_empty() {
            // All of them: what an apply does not name any more, it takes away.
            for entry in wanted(&pod).filter(|entry| entry.resource_claim_template_name.is_some()) {
                if let Some(name) = claim_of(&pod, entry)
                    && !made.iter().any(|one| one["name"] == entry.name)
                {
                    made.push(json!({"name": entry.name, "resourceClaimName": name}));
                }
            }
            let apply = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": pod.name(), "namespace": key.namespace, "uid": pod.uid()},
                "status": {"resourceClaimStatuses": made}});
            let api = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
            let params = PatchParams::apply(MANAGER).force();
            unless_gone(api.patch_status(pod.name(), &params, &Patch::Apply(apply)).await)?;
        }
        // A pod that was put on its node by somebody else than the scheduler has nobody else to reserve for it.
        if !node_name(&pod).is_empty() {
            for name in wanted(&pod).filter_map(|entry| claim_of(&pod, entry)) {
                self.reserve(&pod, &name).await?;
            }
        }
        Ok(())
    }

    /// Makes the claim of an entry, or finds it. Gives its name when the pod does not know it yet.
    async fn ensure(&self, pod: &Pod, entry: &PodResourceClaim) -> Result<Option<String>, Error> {
        let Some(template) = &entry.resource_claim_template_name else { return Ok(None) };
        if let Some(name) = claim_of(pod, entry) {
            match self.claims.get(pod.namespace(), &name) {
                Some(claim) if is_made_for(&claim, pod) => return Ok(None),
                Some(_) => {
                    let text = format!(
                        "ResourceClaim {}/{name} was not created for pod {}/{} (pod is not owner)",
                        pod.namespace(),
                        pod.namespace(),
                        pod.name()
                    );
                    return Err(Error::Object(text));
                }
                None => {}
            }
        }
        let of_entry =
            |claim: &&Arc<ResourceClaim>| claim.annotation(POD_CLAIM_NAME) == Some(entry.name.as_str());
        if let Some(claim) = self.claims.by_index(BY_OWNER, pod.uid()).iter().find(of_entry) {
            return Ok(Some(claim.name().to_owned()));
        }
        let Some(template) = self.templates.get(pod.namespace(), template) else {
            let text = format!(
                "resource claim template {template:?}: resourceclaimtemplate.resource.k8s.io {template:?} not found"
            );
            return Err(Error::Object(text));
        };
        let claim = instance(pod, &entry.name, &template);
        let claim = self.api(pod.namespace()).create(&PostParams::default(), &claim).await?;
        // Seen at once, so that the next look at the pod does not make another one.
        let name = claim.name().to_owned();
        self.claims.insert(claim);
        Ok(Some(name))
    }

    async fn reserve(&self, pod: &Pod, name: &str) -> Result<(), Error> {
        let Some(claim) = self.claims.get(pod.namespace(), name) else { return Ok(()) };
        if !is_allocated(&claim) || is_reserved_for(&claim, pod) || claim.deleting() {
            return Ok(());
        }
        let mut changed = (*claim).clone();
        let consumer = ResourceClaimConsumerReference {
            resource: "pods".to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            ..ResourceClaimConsumerReference::default()
        };
        changed.status.get_or_insert_default().reserved_for.get_or_insert_default().push(consumer);
        self.api(pod.namespace()).replace_status(name, &PostParams::default(), &changed).await?;
        Ok(())
    }

    async fn sync_claim(&self, key: &ObjectKey) -> Result<(), Error> {
        let Some(claim) = self.claims.get_key(key) else { return Ok(()) };
        let mut valid = Vec::new();
        for consumer in reserved(&claim) {
            if self.still_needs(&claim, consumer).await? {
                valid.push(consumer.clone());
            }
        }
        let unused = valid.is_empty();
        if valid.len() < reserved(&claim).len() || (unused && claim.deleting()) {
            self.free(&claim, valid).await?;
        }
        if unused && let Some(owner) = claim.controller().filter(|owner| owner.kind == "Pod") {
            let pod = self.pod(&claim, &owner.name, &owner.uid).await?;
            if pod.is_none_or(|pod| is_done(&pod)) && !claim.deleting() {
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: claim.metadata.uid.clone(),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                unless_gone(self.api(&key.namespace).delete(&key.name, &params).await)?;
            }
        }
        Ok(())
    }

    /// The pod with this name and uid, asked for at the server when the cache does not know it yet.
    async fn pod(&self, claim: &ResourceClaim, name: &str, uid: &str) -> Result<Option<Arc<Pod>>, Error> {
        let known = match self.pods.get(claim.namespace(), name) {
            Some(pod) if pod.uid() == uid => return Ok(Some(pod)),
            _ => Api::<Pod>::namespaced(self.client.clone(), claim.namespace()).get_opt(name).await?,
        };
        Ok(known.filter(|pod| pod.uid() == uid).map(Arc::new))
    }

    async fn still_needs(
        &self,
        claim: &ResourceClaim,
        consumer: &ResourceClaimConsumerReference,
    ) -> Result<bool, Error> {
        let group = consumer.api_group.as_deref().unwrap_or_default();
        if consumer.resource != "pods" || !group.is_empty() {
            return Err(Error::Object(format!(
                "unsupported ReservedFor entry: {group}/{}",
                consumer.resource
            )));
        }
        Ok(self.pod(claim, &consumer.name, &consumer.uid).await?.is_some_and(|pod| !is_done(&pod)))
    }

    /// Takes consumers off a claim; what nobody consumes is no longer allocated, and may be deleted.
    async fn free(
        &self,
        claim: &ResourceClaim,
        valid: Vec<ResourceClaimConsumerReference>,
    ) -> Result<(), Error> {
        let (mut current, api) = (claim.clone(), self.api(claim.namespace()));
        let unused = valid.is_empty();
        let release = unused && is_allocated(claim);
        if release || valid.len() < reserved(claim).len() {
            let status = current.status.get_or_insert_default();
            status.reserved_for = (!unused).then_some(valid);
            if unused {
                status.allocation = None;
            }
            current = api.replace_status(claim.name(), &PostParams::default(), &current).await?;
        }
        let held =
            |one: &ResourceClaim| one.metadata.finalizers.iter().flatten().any(|name| name == FINALIZER);
        if unused && held(&current) {
            current.metadata.finalizers.get_or_insert_default().retain(|name| name != FINALIZER);
            unless_gone(api.replace(claim.name(), &PostParams::default(), &current).await)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;

    fn pod(status: serde_json::Value) -> Pod {
        object(json!({"metadata": {"name": "p", "namespace": "a", "uid": "1"}, "status": status, "spec": {
            "containers": [], "resourceClaims": [
                {"name": "own", "resourceClaimTemplateName": "t"}, {"name": "shared", "resourceClaimName": "s"}]}}))
    }

    #[test]
    fn claims_of_a_pod() {
        let check = |status: serde_json::Value, expected: [Option<&str>; 2]| {
            let pod = pod(status);
            let names: Vec<_> = wanted(&pod).map(|entry| claim_of(&pod, entry)).collect();
            assert_eq!(names, expected.map(|name| name.map(str::to_owned)));
        };
        check(json!({}), [None, Some("s")]);
        let statuses = json!([{"name": "own", "resourceClaimName": "p-own-x"}]);
        check(json!({"resourceClaimStatuses": statuses}), [Some("p-own-x"), Some("s")]);
        check(json!({"resourceClaimStatuses": [{"name": "own"}]}), [None, Some("s")]);
    }

    #[test]
    fn a_claim_from_a_template() {
        let template: ResourceClaimTemplate = object(json!({"metadata": {"name": "t"}, "spec": {
            "metadata": {"labels": {"l": "1"}, "annotations": {"x": "2"}},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}}}));
        let claim = instance(&pod(json!({})), "own", &template);
        assert_eq!(claim.metadata.generate_name.as_deref(), Some("p-own-"));
        assert_eq!((claim.label("l"), claim.annotation("x")), (Some("1"), Some("2")));
        assert_eq!(claim.annotation(POD_CLAIM_NAME), Some("own"));
        assert!(is_made_for(&claim, &pod(json!({}))));
        assert_eq!(claim.spec, template.spec.spec);
    }

    #[test]
    fn pods_that_need_nothing() {
        let check = |meta: serde_json::Value, node: &str, phase: &str, expected: bool| {
            let pod: Pod = object(json!({"metadata": meta, "spec": {"nodeName": node, "containers": []},
                "status": {"phase": phase}}));
            assert_eq!(is_done(&pod), expected, "{phase} {node}");
        };
        let deleted = json!({"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        check(json!({"name": "p"}), "", "Pending", false);
        check(json!({"name": "p"}), "n", "Succeeded", true);
        check(deleted.clone(), "", "Pending", true);
        check(deleted, "n", "Running", false);
    }
}
