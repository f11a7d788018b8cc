//! Empties a namespace that is being deleted and then lets it go. Answers to upstream's `namespace-controller`.
//!
//! Pods go first and everything else waits for them (KEP-5080): a pod must not outlive the policies and secrets of its
//! namespace.

mod conditions;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::PartialObjectMeta;
use orlop_client::{Informer, InformerEvent, WorkQueue, run_workers};

use crate::discovery::{Resource, discover};
use crate::error::{Error, is_not_found, message, unless_gone};
use crate::objects::Meta;
use crate::shell::Shell;
use conditions::Findings;

const FINALIZER: &str = "kubernetes";
/// Requests that were admitted just before the namespace began to end have landed by then.
const SETTLE: Duration = Duration::from_secs(1);
/// When finalizers hold objects, their owners need about this long (seconds).
const FINALIZER_ESTIMATE: i64 = 15;

struct Controller {
    namespaces: Informer<Namespace>,
    client: kube::Client,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller { namespaces: shell.informers.informer(), client: shell.client };
    let pods = shell.informers.informer::<Pod>();
    controller.namespaces.synced().await;
    pods.synced().await;
    let queue = WorkQueue::named("namespace");
    let own = queue.clone();
    controller.namespaces.subscribe(move |event| {
        let namespace = event.object();
        let news = match event {
            InformerEvent::Added(_) => true,
            InformerEvent::Updated { old, .. } => !old.deleting(),
            InformerEvent::Deleted(_) => false,
        };
        if news && namespace.deleting() {
            own.add_after(namespace.name().to_owned(), SETTLE);
        }
    });
    let (own, namespaces) = (queue.clone(), controller.namespaces.clone());
    pods.subscribe(move |event| {
        if let InformerEvent::Deleted(pod) = event
            && namespaces.get("", pod.namespace()).is_some_and(|namespace| namespace.deleting())
        {
            own.add_after(pod.namespace().to_owned(), Duration::from_millis(100));
        }
    });
    run_workers("namespace-controller", queue, 10, shell.shutdown, |name| controller.sync(name)).await;
    Ok(())
}

/// What is left of one resource after an attempt to delete all of it.
#[derive(Default)]
struct Left {
    objects: Vec<PartialObjectMeta<DynamicObject>>,
    /// Seconds until it may be gone; 0 when nothing is left.
    estimate: i64,
}

impl Controller {
    async fn sync(&self, name: String) -> Result<Option<Duration>, Error> {
        let api = Api::<Namespace>::all(self.client.clone());
        // Live, because the cache may show a namespace of the same name that is gone.
        let Some(mut namespace) = api.get_opt(&name).await? else { return Ok(None) };
        if !namespace.deleting() {
            return Ok(None);
        }
        if namespace.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Terminating") {
            namespace.status.get_or_insert_default().phase = Some("Terminating".to_owned());
            namespace = api.replace_status(&name, &PostParams::default(), &namespace).await?;
        }
        if namespace
            .spec
            .as_ref()
            .is_none_or(|spec| spec.finalizers.as_deref().unwrap_or_default().is_empty())
        {
            return Ok(None);
        }
        let (findings, estimate) = self.empty(&name).await;
        if findings.apply(namespace.status.get_or_insert_default(), Timestamp::now()) {
            match api.replace_status(&name, &PostParams::default(), &namespace).await {
                Ok(written) => namespace = written,
                Err(error) if is_not_found(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        if estimate > 0 {
            let wait = u64::try_from(estimate / 2 + 1).unwrap_or(1);
            return Ok(Some(Duration::from_secs(wait)));
        }
        if let Some(failure) = findings.failures.into_iter().next() {
            return Err(Error::Object(failure));
        }
        if let Some((group, error)) = findings.undiscovered.into_iter().next() {
            return Err(Error::Object(format!("discovery of {group} failed: {error}")));
        }
        self.finalize(&api, namespace).await?;
        Ok(None)
    }

    /// Deletes all content. Returns what it found and how long the rest may take, in seconds.
    async fn empty(&self, namespace: &str) -> (Findings, i64) {
        let discovered = discover(&self.client).await;
        let mut findings = Findings { undiscovered: discovered.failures, ..Findings::default() };
        let mut estimate = 0;
        let is_pods = |resource: &&Resource| resource.api.group.is_empty() && resource.api.plural == "pods";
        let deletable =
            discovered.resources.iter().filter(|resource| resource.namespaced && resource.can("delete"));
        let (pods, others): (Vec<_>, Vec<_>) = deletable.partition(is_pods);
        for resource in pods {
            estimate = estimate.max(self.empty_and_note(resource, namespace, &mut findings).await);
        }
        if !findings.remaining.is_empty() || !findings.failures.is_empty() {
            return (findings, estimate);
        }
        for resource in others {
            estimate = estimate.max(self.empty_and_note(resource, namespace, &mut findings).await);
        }
        (findings, estimate)
    }

    /// Deletes all of one resource and writes down what is left. Returns how long that may take, in seconds.
    async fn empty_and_note(&self, resource: &Resource, namespace: &str, findings: &mut Findings) -> i64 {
        let left = match self.empty_resource(resource, namespace).await {
            Ok(left) => left,
            Err(error) => {
                findings.failures.push(message(&error));
                return 0;
            }
        };
        let api = &resource.api;
        if !left.objects.is_empty() {
            findings.remaining.insert(format!("{}.{}", api.plural, api.group), left.objects.len());
        }
        for finalizer in left.objects.iter().flat_map(|object| object.metadata.finalizers.iter().flatten()) {
            *findings.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        if left.estimate == 0 && !left.objects.is_empty() {
            // Nothing holds these, and yet they are there.
            findings.failures.push(format!(
                "unexpected items still remain in namespace: {namespace} for gvr: {}/{}, Resource={}",
                api.group, api.version, api.plural
            ));
        }
        left.estimate
    }

    async fn empty_resource(&self, resource: &Resource, namespace: &str) -> Result<Left, kube::Error> {
        let api = resource.objects(&self.client, namespace);
        let (can_list, all) = (resource.can("list"), ListParams::default());
        if can_list && api.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty() {
            return Ok(Left::default());
        }
        if resource.can("deletecollection") {
            api.delete_collection(&DeleteParams::background(), &all).await?;
        } else if can_list {
            for object in api.list_metadata(&all).await?.items {
                unless_gone(api.delete(object.name(), &DeleteParams::background()).await)?;
            }
        }
        if !can_list {
            return Ok(Left::default());
        }
        let objects = api.list_metadata(&all).await?.items;
        // What goes gracefully (pods) says how long it may take.
        let grace = objects
            .iter()
            .filter_map(|object| object.metadata.deletion_grace_period_seconds)
            .max()
            .unwrap_or(0);
        let held = objects
            .iter()
            .any(|object| !object.metadata.finalizers.as_deref().unwrap_or_default().is_empty());
        let estimate = if grace > 0 {
            grace
        } else if held {
            FINALIZER_ESTIMATE
        } else {
            0
        };
        Ok(Left { objects, estimate })
    }

    async fn finalize(&self, api: &Api<Namespace>, mut namespace: Namespace) -> Result<(), Error> {
        if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        let done =
            api.replace_subresource("finalize", namespace.name(), &PostParams::default(), &namespace).await;
        Ok(unless_gone(done)?)
    }
}
