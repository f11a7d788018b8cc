//! Makes the claims of generic ephemeral volumes. Answers to upstream's `ephemeral-volume-controller`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimTemplate, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use orlop_client::{EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};

use super::{BY_CLAIM, claim_name, index_by_claim};
use crate::error::{Error, is_namespace_terminating};
use crate::objects::{Meta, controller_ref, is_finished};
use crate::shell::Shell;

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let claims: Informer<PersistentVolumeClaim> = shell.informers.informer();
    let pods: Informer<Pod> = shell.informers.informer();
    index_by_claim(&pods);
    claims.synced().await;
    pods.synced().await;
    let queue = WorkQueue::named("ephemeral_volume");
    let own = queue.clone();
    pods.subscribe(move |event| {
        if matches!(event, InformerEvent::Added(_)) && has_own_claims(event.object()) {
            own.add(ObjectKey::of(&event.object().metadata));
        }
    });
    let (own, known) = (queue.clone(), pods.clone());
    claims.subscribe(move |event| {
        if let InformerEvent::Deleted(claim) = event {
            for pod in known.by_index(BY_CLAIM, &ObjectKey::of(&claim.metadata).to_string()) {
                if has_own_claims(&pod) {
                    own.add(ObjectKey::of(&pod.metadata));
                }
            }
        }
    });
    let (claims, pods, client, recorder) = (&claims, &pods, &shell.client, &shell.recorder);
    run_workers("ephemeral-volume-controller", queue, 4, shell.shutdown, |key: ObjectKey| async move {
        let Some(pod) = pods.get_key(&key).filter(|pod| !pod.deleting() && !is_finished(pod)) else {
            return Ok(None);
        };
        let api = Api::<PersistentVolumeClaim>::namespaced(client.clone(), &key.namespace);
        for (volume, name, template) in own_claims(&pod) {
            let made = match claims.get(&key.namespace, &name) {
                Some(claim) if claim.controller().is_some_and(|owner| owner.uid == pod.uid()) => Ok(()),
                Some(_) => Err(Error::Object(format!(
                    "PVC {}/{name} was not created for pod {key} (pod is not owner)",
                    key.namespace
                ))),
                None => match api.create(&PostParams::default(), &claim(&pod, name, template)).await {
                    Err(error) if is_namespace_terminating(&error) => return Ok(None),
                    created => created.map(drop).map_err(Error::from),
                },
            };
            if let Err(error) = made {
                let text = format!("ephemeral volume {volume}: {error}");
                recorder.event(&*pod, EventType::Warning, "FailedBinding", text);
                return Err(error);
            }
        }
        Ok(None::<Duration>)
    })
    .await;
    Ok(())
}

fn own_claims(pod: &Pod) -> Vec<(&str, String, &PersistentVolumeClaimTemplate)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let own = volumes.filter_map(|volume| {
        let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
        Some((volume.name.as_str(), claim_name(pod, volume)?, template))
    });
    own.collect()
}

fn has_own_claims(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| volume.ephemeral.is_some())
}

fn claim(pod: &Pod, name: String, template: &PersistentVolumeClaimTemplate) -> PersistentVolumeClaim {
    let meta = template.metadata.clone().unwrap_or_default();
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: pod.metadata.namespace.clone(),
            owner_references: Some(vec![controller_ref(pod)]),
            annotations: meta.annotations,
            labels: meta.labels,
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objects::testing::object;
    use serde_json::json;

    #[test]
    fn claims_belong_to_their_pod() {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"storageClassName": "fast"}});
        let pod: Pod = object(
            json!({"metadata": {"name": "p", "namespace": "a", "uid": "1"}, "spec": {"containers": [],
            "volumes": [{"name": "x", "emptyDir": {}}, {"name": "d", "ephemeral": {"volumeClaimTemplate": template}}]}}),
        );
        assert!(has_own_claims(&pod));
        let own = own_claims(&pod);
        let [(volume, name, template)] = &own[..] else { panic!("{own:?}") };
        let made = claim(&pod, name.clone(), template);
        assert_eq!((*volume, made.name(), made.label("a")), ("d", "p-d", Some("b")));
        assert_eq!(
            made.controller().map(|owner| (owner.kind.as_str(), owner.uid.as_str())),
            Some(("Pod", "1"))
        );
        assert_eq!(made.spec.unwrap().storage_class_name.as_deref(), Some("fast"));
    }
}
