//! Gives every namespace a ServiceAccount `default`. Answers to upstream's `serviceaccount-controller`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use orlop_client::{Informer, InformerEvent, WorkQueue, run_workers};

use crate::error::{Error, is_already_exists, is_namespace_terminating};
use crate::objects::Meta;
use crate::shell::Shell;

const NAME: &str = "default";

/// Queues every namespace that is there to stay; namespaces that end get nothing new.
pub(crate) fn queue_namespaces(namespaces: &Informer<Namespace>, queue: &WorkQueue<String>) {
    let queue = queue.clone();
    namespaces.subscribe(move |event| {
        if !matches!(event, InformerEvent::Deleted(_)) && is_active(event.object()) {
            queue.add(event.object().name().to_owned());
        }
    });
}

pub(crate) fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    !namespace.deleting() && phase != Some("Terminating")
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let namespaces = shell.informers.informer::<Namespace>();
    let accounts = shell.informers.informer::<ServiceAccount>();
    namespaces.synced().await;
    accounts.synced().await;
    let queue = WorkQueue::named("serviceaccount");
    queue_namespaces(&namespaces, &queue);
    let own = queue.clone();
    accounts.subscribe(move |event| {
        if let InformerEvent::Deleted(account) = event
            && account.name() == NAME
        {
            own.add(account.namespace().to_owned());
        }
    });
    let (namespaces, accounts, client) = (&namespaces, &accounts, &shell.client);
    run_workers("serviceaccount-controller", queue, 1, shell.shutdown, |namespace: String| async move {
        let wanted = namespaces.get("", &namespace).is_some_and(|namespace| is_active(&namespace));
        if !wanted || accounts.get(&namespace, NAME).is_some() {
            return Ok(None);
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(namespace.clone()),
                ..Default::default()
            },
            ..ServiceAccount::default()
        };
        let api = Api::<ServiceAccount>::namespaced(client.clone(), &namespace);
        match api.create(&PostParams::default(), &account).await {
            Err(error) if !is_already_exists(&error) && !is_namespace_terminating(&error) => {
                Err(Error::from(error))
            }
            _ => Ok(None::<Duration>),
        }
    })
    .await;
    Ok(())
}
