//! Publishes the API server's CA in every namespace as the ConfigMap `kube-root-ca.crt`. Answers to upstream's
//! `root-ca-certificate-publisher-controller`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use orlop_client::{WorkQueue, run_workers};

use crate::error::{Error, is_already_exists, is_namespace_terminating};
use crate::objects::Meta;
use crate::service_account::{is_active, queue_namespaces};
use crate::shell::Shell;

const NAME: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
    distributions of Kubernetes clusters.";

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let Some(ca) = shell.options.root_ca_pem.clone() else {
        // Without a CA there is nothing to publish, now or later.
        shell.shutdown.cancelled().await;
        return Ok(());
    };
    let namespaces = shell.informers.informer::<Namespace>();
    let maps = shell.informers.selected::<ConfigMap>(&format!("metadata.name={NAME}"), "");
    namespaces.synced().await;
    maps.synced().await;
    let queue = WorkQueue::named("root_ca_cert_publisher");
    queue_namespaces(&namespaces, &queue);
    let own = queue.clone();
    maps.subscribe(move |event| own.add(event.object().namespace().to_owned()));
    let (namespaces, maps, client, ca) = (&namespaces, &maps, &shell.client, ca.as_str());
    run_workers(
        "root-ca-certificate-publisher-controller",
        queue,
        1,
        shell.shutdown,
        |namespace: String| async move {
            if !namespaces.get("", &namespace).is_some_and(|namespace| is_active(&namespace)) {
                return Ok(None);
            }
            let current = maps.get(&namespace, NAME);
            let Some(wanted) = desired(current.as_deref(), &namespace, ca) else { return Ok(None) };
            let api = Api::<ConfigMap>::namespaced(client.clone(), &namespace);
            let written = match current {
                Some(_) => api.replace(NAME, &PostParams::default(), &wanted).await,
                None => api.create(&PostParams::default(), &wanted).await,
            };
            match written {
                Err(error) if !is_already_exists(&error) && !is_namespace_terminating(&error) => {
                    Err(Error::from(error))
                }
                _ => Ok(None::<Duration>),
            }
        },
    )
    .await;
    Ok(())
}

/// The ConfigMap to write, or `None` when it is right.
fn desired(current: Option<&ConfigMap>, namespace: &str, ca: &str) -> Option<ConfigMap> {
    let mut wanted = current.cloned().unwrap_or_else(|| ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..Default::default()
        },
        ..ConfigMap::default()
    });
    wanted.data = Some([(KEY.to_owned(), ca.to_owned())].into());
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    annotations.entry(DESCRIPTION.to_owned()).or_insert_with(|| DESCRIPTION_TEXT.to_owned());
    (Some(&wanted) != current).then_some(wanted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn repairs_what_others_change() {
        let fresh = desired(None, "a", "CA").unwrap();
        assert_eq!(fresh.data.as_ref().unwrap()[KEY], "CA");
        assert_eq!(desired(Some(&fresh), "a", "CA"), None);
        let mut spoilt = fresh.clone();
        spoilt.data = Some([("other".to_owned(), String::new())].into());
        assert_eq!(desired(Some(&spoilt), "a", "CA"), Some(fresh.clone()));
        assert_eq!(desired(Some(&fresh), "a", "CB").unwrap().data.unwrap()[KEY], "CB");
    }
}
