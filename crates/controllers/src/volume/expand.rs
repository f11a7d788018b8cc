//! Says of claims that ask for more than they have who is expected to give it. No kind of volume is grown by the
//! controllers themselves: CSI drivers have resizers, the built-in provisioner grows its own. Answers to upstream's
//! `persistentvolume-expander-controller`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use kube::api::Api;
use orlop_api::Quantity;
use orlop_client::{EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};

use crate::error::{Error, message};
use crate::objects::Meta;
use crate::shell::Shell;

const NAME: &str = "persistentvolume-expander-controller";
const WORKERS: usize = 10;

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let claims: Informer<PersistentVolumeClaim> = shell.informers.informer();
    claims.synced().await;
    let queue = WorkQueue::named("volume_expand");
    let own = queue.clone();
    claims.subscribe(move |event| {
        let claim = event.object();
        let news = match event {
            InformerEvent::Added(_) => true,
            InformerEvent::Updated { old, new } => {
                requested(new) > requested(old) || capacity(new) > capacity(old)
            }
            InformerEvent::Deleted(_) => false,
        };
        if news && is_bound(claim) {
            own.add(ObjectKey::of(&claim.metadata));
        }
    });
    let (claims, client, recorder) = (&claims, &shell.client, &shell.recorder);
    run_workers(NAME, queue, WORKERS, shell.shutdown, |key: ObjectKey| async move {
        let Some(claim) = claims.get_key(&key).filter(|claim| wants_more(claim)) else { return Ok(None) };
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        let volume = Api::<PersistentVolume>::all(client.clone()).get(name).await;
        let volume = volume
            .map_err(|error| Error::Object(format!("failed to get PV {name:?}: {}", message(&error))))?;
        if !is_for(&volume, &claim) {
            return Err(Error::Object(format!(
                "persistent Volume is not bound to PVC being updated : {key}"
            )));
        }
        let text = "waiting for an external controller to expand this PVC";
        recorder.event(&*claim, EventType::Normal, "ExternalExpanding", text);
        Ok(None::<Duration>)
    })
    .await;
    Ok(())
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| {
        reference.namespace.as_deref() == Some(claim.namespace())
            && reference.uid.as_deref() == Some(claim.uid())
    })
}

fn parsed(quantity: Option<&ApiQuantity>) -> Quantity {
    quantity.and_then(|quantity| Quantity::parse(&quantity.0).ok()).unwrap_or(Quantity::ZERO)
}

fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    parsed(resources.and_then(|resources| resources.requests.as_ref()?.get("storage")))
}

fn capacity(claim: &PersistentVolumeClaim) -> Quantity {
    parsed(claim.status.as_ref().and_then(|status| status.capacity.as_ref()?.get("storage")))
}

fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    is_bound(claim) && requested(claim) > capacity(claim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;
    use serde_json::json;

    #[test]
    fn who_wants_more() {
        let check = |phase: &str, wants: &str, has: &str, expected: bool| {
            let claim = object(json!({"spec": {"resources": {"requests": {"storage": wants}}},
                "status": {"phase": phase, "capacity": {"storage": has}}}));
            assert_eq!(wants_more(&claim), expected, "{phase} {wants} {has}");
        };
        check("Bound", "2Gi", "1Gi", true);
        check("Bound", "1024Mi", "1Gi", false);
        check("Bound", "1Gi", "2Gi", false);
        check("Pending", "2Gi", "1Gi", false);
    }
}
