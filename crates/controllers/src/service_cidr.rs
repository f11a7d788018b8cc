//! Keeps a ServiceCIDR until no Service's address needs it, and says when it can be used (KEP-1880). Answers to upstream's
//! `service-cidr-controller`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::api::{Api, Patch, PatchParams};
use orlop_client::{Informer, InformerEvent, WorkQueue, run_workers};
use serde_json::json;

use crate::error::{Error, unless_gone};
use crate::objects::Meta;
use crate::shell::Shell;

const MANAGER: &str = "service-cidr-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// How long those who hand out addresses may take to learn that a range is going.
const GRACE: SignedDuration = SignedDuration::from_secs(10);
const REFERENCED: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
/// Who hands out addresses of Services.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";

fn ranges(cidr: &ServiceCIDR) -> Vec<IpNet> {
    let texts = cidr.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let (cidrs, addresses): (Informer<ServiceCIDR>, Informer<IPAddress>) =
        (shell.informers.informer(), shell.informers.informer());
    cidrs.synced().await;
    addresses.synced().await;
    let queue = WorkQueue::named("ipaddresses");
    let (own, all) = (queue.clone(), cidrs.clone());
    cidrs.subscribe(move |event| {
        // Another range may be what keeps, or frees, those that overlap it.
        let changed = ranges(event.object());
        for cidr in all.list().iter().chain([event.object()]) {
            let overlaps =
                |one: &IpNet| changed.iter().any(|other| one.contains(other) || other.contains(one));
            if ranges(cidr).iter().any(overlaps) {
                own.add(cidr.name().to_owned());
            }
        }
    });
    let (own, all) = (queue.clone(), cidrs.clone());
    addresses.subscribe(move |event| {
        // Only the end of an address can let a range go.
        let InformerEvent::Deleted(address) = event else { return };
        let Ok(address) = address.name().parse::<IpAddr>() else { return };
        for cidr in all.list().iter().filter(|cidr| cidr.metadata.deletion_timestamp.is_some()) {
            if ranges(cidr).iter().any(|range| range.contains(&address)) {
                own.add(cidr.name().to_owned());
            }
        }
    });
    let controller = Controller { cidrs, addresses, client: shell.client };
    let controller = &controller;
    run_workers(
        MANAGER,
        queue,
        5,
        shell.shutdown,
        |name: String| async move { controller.sync(&name).await },
    )
    .await;
    Ok(())
}

struct Controller {
    cidrs: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
    client: kube::Client,
}

impl Controller {
    async fn sync(&self, name: &str) -> Result<Option<Duration>, Error> {
        let Some(cidr) = self.cidrs.get("", name) else { return Ok(None) };
        let held = cidr.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
        let Some(deleted) = &cidr.metadata.deletion_timestamp else {
            if !held {
                self.patch(name, json!({"metadata": {"finalizers": [FINALIZER]}})).await?;
            }
            self.say(
                &cidr,
                json!({"type": "Ready", "status": "True", "message": "Kubernetes Service CIDR is ready"}),
            )
            .await?;
            return Ok(None);
        };
        if !may_go(&cidr, &self.cidrs.list(), &self.addresses.list()) {
            let condition =
                json!({"type": "Ready", "status": "False", "reason": "Terminating", "message": REFERENCED});
            self.say(&cidr, condition).await?;
            return Ok(None);
        }
        let left = (deleted.0 + GRACE).duration_since(Timestamp::now());
        if let Some(left) = Duration::try_from(left).ok().filter(|left| !left.is_zero()) {
            return Ok(Some(left));
        }
        if held {
            let without = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
            self.patch(name, without).await?;
        }
        Ok(None)
    }

    async fn patch(&self, name: &str, patch: serde_json::Value) -> Result<(), Error> {
        let api = Api::<ServiceCIDR>::all(self.client.clone());
        unless_gone(api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        Ok(())
    }

    /// Writes the condition, unless it stands there.
    async fn say(&self, cidr: &ServiceCIDR, mut condition: serde_json::Value) -> Result<(), Error> {
        let conditions =
            cidr.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let stands = conditions.iter().find(|one| one.type_ == "Ready");
        if stands.is_some_and(|one| condition["status"] == one.status && condition["message"] == one.message)
        {
            return Ok(());
        }
        condition["lastTransitionTime"] =
            json!(Timestamp::now().round(jiff::Unit::Second).unwrap_or_default());
        let apply = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": cidr.name()}, "status": {"conditions": [condition]}});
        let api = Api::<ServiceCIDR>::all(self.client.clone());
        let params = PatchParams::apply(MANAGER).force();
        unless_gone(api.patch_status(cidr.name(), &params, &Patch::Apply(apply)).await)?;
        Ok(())
    }
}

/// Whether no address would be left without a range.
fn may_go(cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]) -> bool {
    let own = ranges(cidr);
    let others = all.iter().filter(|other| other.name() != cidr.name());
    let others: Vec<IpNet> = others.flat_map(|other| ranges(other)).collect();
    if own.iter().all(|range| others.iter().any(|other| other.contains(range))) {
        return true;
    }
    let handed_out = addresses.iter().filter(|address| address.label(MANAGED_BY) == Some(ALLOCATOR));
    let mut handed_out = handed_out.filter_map(|address| address.name().parse::<IpAddr>().ok());
    !handed_out.any(|address| {
        own.iter().any(|range| range.contains(&address))
            && !others.iter().any(|other| other.contains(&address))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;

    #[test]
    fn a_range_goes_when_no_address_needs_it() {
        let check = |what: &str, own: &[&str], others: &[&[&str]], addresses: &[&str], expected: bool| {
            let cidr = |name: String, cidrs: &[&str]| -> Arc<ServiceCIDR> {
                Arc::new(object(json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}})))
            };
            let own = cidr("own".to_owned(), own);
            let others = others.iter().enumerate().map(|(index, cidrs)| cidr(format!("other{index}"), cidrs));
            let all: Vec<_> = others.chain([own.clone()]).collect();
            let address = |name: &&str| -> Arc<IPAddress> {
                Arc::new(object(json!({"metadata": {"name": name, "labels": {MANAGED_BY: ALLOCATOR}}})))
            };
            let addresses: Vec<_> = addresses.iter().map(address).collect();
            assert_eq!(may_go(&own, &all, &addresses), expected, "{what}");
        };
        check("unused", &["10.0.0.0/24"], &[], &["10.0.1.1"], true);
        check("used", &["10.0.0.0/24"], &[], &["10.0.0.1"], false);
        check("used, within a larger one", &["10.0.0.0/24"], &[&["10.0.0.0/16"]], &["10.0.0.1"], true);
        check("used, and the same again", &["10.0.0.0/24"], &[&["10.0.0.0/24"]], &["10.0.0.1"], true);
        check(
            "used in the part that another has",
            &["10.0.0.0/24"],
            &[&["10.0.0.0/28"]],
            &["10.0.0.1"],
            true,
        );
        check("used in the part that none has", &["10.0.0.0/24"], &[&["10.0.0.0/28"]], &["10.0.0.77"], false);
        check("one of two used", &["10.0.0.0/24", "fd00::/112"], &[&["10.0.0.0/8"]], &["fd00::1"], false);
        check("another family", &["fd00::/112"], &[], &["10.0.0.1"], true);
        check("everything", &["0.0.0.0/0"], &[], &["10.0.0.1"], false);
    }
}
