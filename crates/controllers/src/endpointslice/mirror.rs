//! Mirrors Endpoints that people write by hand, for Services without a selector, to EndpointSlices. Answers to
//! upstream's `endpointslice-mirroring-controller`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, PostParams};
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};

use super::decide::{MANAGED_BY, SERVICE_NAME, key_of};
use super::written::Written;
use crate::error::{Error, is_namespace_terminating, unless_gone};
use crate::objects::{Labels, Meta, controller_ref};
use crate::services::LAST_CHANGE;
use crate::shell::Shell;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const BY_ENDPOINTS: &str = "mirrored-endpoints";
/// Addresses of one subset that are mirrored: each subset makes one slice.
const MAX_PER_SUBSET: usize = 1000;

/// The writes of one reconcile, and what to tell about them.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    create: Vec<EndpointSlice>,
    update: Vec<EndpointSlice>,
    delete: Vec<EndpointSlice>,
    events: Vec<(&'static str, String)>,
}

struct Controller {
    endpoints: Informer<Endpoints>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    written: Arc<Written>,
    client: kube::Client,
    recorder: EventRecorder,
}

/// Runs the controller.
pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        endpoints: shell.informers.informer(),
        services: shell.informers.informer(),
        slices: shell.informers.informer(),
        written: Arc::default(),
        client: shell.client,
        recorder: shell.recorder,
    };
    controller.slices.add_index(BY_ENDPOINTS, |slice: &EndpointSlice| {
        endpoints_of(slice).map(|key| key.to_string()).into_iter().collect()
    });
    controller.endpoints.synced().await;
    controller.services.synced().await;
    controller.slices.synced().await;
    let queue = WorkQueue::named("endpoint_slice_mirroring");
    let own = queue.clone();
    controller.endpoints.subscribe(move |event| {
        let mirrored = match event {
            InformerEvent::Updated { old, new } => may_mirror(old) || may_mirror(new),
            InformerEvent::Added(endpoints) | InformerEvent::Deleted(endpoints) => may_mirror(endpoints),
        };
        if mirrored {
            own.add(ObjectKey::of(&event.object().metadata));
        }
    });
    let own = queue.clone();
    controller.services.subscribe(move |event| {
        let service = event.object();
        let changed = match event {
            InformerEvent::Updated { old, .. } => has_selector(old) != has_selector(service),
            _ => !has_selector(service),
        };
        if changed {
            own.add(ObjectKey::of(&service.metadata));
        }
    });
    let (own, written) = (queue.clone(), controller.written.clone());
    controller.slices.subscribe(move |event| {
        if matches!(event, InformerEvent::Deleted(_)) {
            written.forget(event.object().uid());
        }
        let old = match event {
            InformerEvent::Updated { old, .. } => endpoints_of(old),
            _ => None,
        };
        endpoints_of(event.object()).into_iter().chain(old).for_each(|key| own.add(key));
    });
    run_workers("endpointslice-mirroring-controller", queue, 5, shell.shutdown, |key| controller.sync(key))
        .await;
    Ok(())
}

/// The Endpoints that a slice of this controller mirrors.
fn endpoints_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let ours = slice.label(MANAGED_BY) == Some(MANAGER);
    slice.label(SERVICE_NAME).filter(|_| ours).map(|name| ObjectKey::new(slice.namespace(), name))
}

fn has_selector(service: &Service) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| !selector.is_empty())
}

/// Some Endpoints mirror themselves, and some are a lock.
fn may_mirror(endpoints: &Endpoints) -> bool {
    endpoints.label(SKIP) != Some("true") && endpoints.annotation(LEADER).is_none()
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let mut slices = self.slices.by_index(BY_ENDPOINTS, &key.to_string());
        slices.retain(|slice| !slice.deleting());
        let mirrored = self.services.get_key(&key).is_some_and(|service| !has_selector(&service));
        let endpoints = self.endpoints.get_key(&key).filter(|endpoints| mirrored && may_mirror(endpoints));
        let Some(endpoints) = endpoints else {
            let plan =
                Plan { delete: slices.iter().map(|slice| (**slice).clone()).collect(), ..Plan::default() };
            return self.carry_out(&key, plan).await;
        };
        if self.written.is_ahead(&key, &slices) {
            return Ok(Some(Duration::from_millis(50)));
        }
        let plan = plan(&endpoints, &slices);
        for (reason, text) in &plan.events {
            self.recorder.event(&*endpoints, EventType::Warning, reason, text.as_str());
        }
        self.carry_out(&key, plan).await
    }

    async fn carry_out(&self, key: &ObjectKey, plan: Plan) -> Result<Option<Duration>, Error> {
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), &key.namespace);
        let params = PostParams::default();
        for slice in &plan.create {
            match api.create(&params, slice).await {
                Ok(created) => self.written.note(key, &created),
                Err(error) if is_namespace_terminating(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        for slice in &plan.update {
            self.written.note(key, &api.replace(slice.name(), &params, slice).await?);
        }
        for slice in &plan.delete {
            self.written.forget(slice.uid());
            unless_gone(api.delete(slice.name(), &DeleteParams::default()).await)?;
        }
        Ok(None)
    }
}

/// An endpoint of a slice, and its address type; `None` for what is no address.
fn endpoint(address: &EndpointAddress, ready: bool) -> Option<(&'static str, Endpoint)> {
    let ip: IpAddr = address.ip.parse().ok()?;
    let endpoint = Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|hostname| !hostname.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    };
    Some((if ip.is_ipv4() { "IPv4" } else { "IPv6" }, endpoint))
}

fn identity(endpoint: &Endpoint) -> String {
    let target = endpoint.target_ref.as_ref();
    let uid = target.and_then(|target| target.uid.clone()).unwrap_or_default();
    let hostname = endpoint.hostname.clone().unwrap_or_default();
    format!("{} {uid} {hostname}", endpoint.addresses.join(","))
}

/// All labels of the Endpoints, and whose slice it is.
fn labels(endpoints: &Endpoints) -> Labels {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), endpoints.name().to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

/// All annotations but those that are about the Endpoints' own writes.
fn annotations(endpoints: &Endpoints) -> Labels {
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| key != LAST_CHANGE && key != LAST_APPLIED);
    annotations
}

/// Decides which slices mirror `endpoints`: one for each set of ports and address type.
fn plan(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>]) -> Plan {
    let mut plan = Plan::default();
    let mut desired: BTreeMap<_, (Vec<EndpointPort>, BTreeMap<String, Endpoint>)> = BTreeMap::new();
    let (mut invalid, mut skipped) = (0, 0);
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<_> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: port.protocol.clone().or_else(|| Some("TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let mut added = 0;
        for (address, ready) in ready.chain(unready) {
            if added == MAX_PER_SUBSET {
                skipped += 1;
                continue;
            }
            let Some((address_type, endpoint)) = endpoint(address, ready) else {
                invalid += 1;
                continue;
            };
            added += 1;
            let entry = desired
                .entry((address_type, key_of(&ports)))
                .or_insert_with(|| (ports.clone(), BTreeMap::new()));
            entry.1.entry(identity(&endpoint)).or_insert(endpoint);
        }
    }
    if invalid > 0 {
        let text = format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
        plan.events.push(("InvalidIPAddress", text));
    }
    if skipped > 0 {
        let text = format!(
            "A max of {MAX_PER_SUBSET} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
            skipped + invalid
        );
        plan.events.push(("TooManyAddressesToMirror", text));
    }
    let (labels, annotations) = (labels(endpoints), annotations(endpoints));
    let mut used = BTreeSet::new();
    for ((address_type, key), (ports, wanted)) in desired {
        let wanted: Vec<_> = wanted.into_values().take(MAX_PER_SUBSET).collect();
        let is_it = |slice: &&Arc<EndpointSlice>| {
            slice.address_type == address_type && key_of(slice.ports.as_deref().unwrap_or_default()) == key
        };
        let present = existing.iter().find(is_it);
        let metadata = match present {
            None => ObjectMeta {
                generate_name: Some(format!("{}-", endpoints.name())),
                namespace: endpoints.metadata.namespace.clone(),
                owner_references: Some(vec![controller_ref(endpoints)]),
                ..ObjectMeta::default()
            },
            Some(slice) => {
                used.insert(slice.uid().to_owned());
                slice.metadata.clone()
            }
        };
        let metadata = ObjectMeta {
            labels: Some(labels.clone()),
            annotations: Some(annotations.clone()).filter(|annotations| !annotations.is_empty()),
            ..metadata
        };
        let slice = EndpointSlice {
            metadata,
            address_type: address_type.to_owned(),
            endpoints: Some(wanted),
            ports: Some(ports),
        };
        match present {
            None => plan.create.push(slice),
            Some(present) if same(present, &slice) => {}
            Some(_) => plan.update.push(slice),
        }
    }
    plan.delete =
        existing.iter().filter(|slice| !used.contains(slice.uid())).map(|slice| (**slice).clone()).collect();
    recycle(&mut plan);
    if endpoints.deleting() {
        plan.create.clear();
    }
    plan
}

/// Whether a slice says what it should; the order of endpoints says nothing.
fn same(present: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let sorted = |slice: &EndpointSlice| {
        let mut endpoints = slice.endpoints.clone().unwrap_or_default();
        endpoints.sort_by_key(identity);
        endpoints
    };
    present.metadata.labels == wanted.metadata.labels
        && present.metadata.annotations.clone().unwrap_or_default()
            == wanted.metadata.annotations.clone().unwrap_or_default()
        && sorted(present) == sorted(wanted)
}

/// Rewriting a slice is one write; deleting one and creating another is two. The address type cannot change.
fn recycle(plan: &mut Plan) {
    let create = std::mem::take(&mut plan.create);
    for mut slice in create {
        let old = plan.delete.iter().position(|old| old.address_type == slice.address_type);
        match old {
            None => plan.create.push(slice),
            Some(place) => {
                let old = plan.delete.remove(place).metadata;
                slice.metadata = ObjectMeta {
                    labels: slice.metadata.labels,
                    annotations: slice.metadata.annotations,
                    ..old
                };
                plan.update.push(slice);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objects::testing::object;
    use pretty_assertions::assert_eq;
    use serde_json::{Value, json};

    fn endpoints(subsets: Value) -> Endpoints {
        object(json!({"metadata": {"name": "db", "namespace": "a", "uid": "e", "labels": {"x": "y"},
            "annotations": {LAST_CHANGE: "t", LAST_APPLIED: "{}", "kept": "1"}}, "subsets": subsets}))
    }

    fn addresses(ips: &[&str]) -> Value {
        ips.iter().map(|ip| json!({"ip": ip})).collect()
    }

    /// Shows slices as `type port: address(ready)`.
    fn show(slices: &[EndpointSlice]) -> Vec<String> {
        let one = |slice: &EndpointSlice| {
            let ports: Vec<_> = slice.ports.iter().flatten().filter_map(|port| port.port).collect();
            let endpoints: Vec<_> = slice
                .endpoints
                .iter()
                .flatten()
                .map(|endpoint| {
                    let ready = endpoint.conditions.as_ref().unwrap().ready.unwrap();
                    format!("{}{}", endpoint.addresses[0], if ready { "" } else { "!" })
                })
                .collect();
            format!("{} {ports:?}: {}", slice.address_type, endpoints.join(" "))
        };
        slices.iter().map(one).collect()
    }

    /// The slices as the API server keeps them.
    fn stored(slices: &[EndpointSlice]) -> Vec<Arc<EndpointSlice>> {
        let with_uid = |(place, slice): (usize, &EndpointSlice)| {
            let mut slice = slice.clone();
            slice.metadata.uid.get_or_insert_with(|| format!("u{place}"));
            slice.metadata.name.get_or_insert_with(|| format!("db-{place}"));
            Arc::new(slice)
        };
        slices.iter().enumerate().map(with_uid).collect()
    }

    #[test]
    fn one_slice_for_each_set_of_ports_and_address_type() {
        let subsets = json!([
            {"addresses": addresses(&["10.0.0.2", "fd00::1"]), "notReadyAddresses": addresses(&["10.0.0.3"]),
                "ports": [{"name": "sql", "port": 5432}]},
            {"addresses": addresses(&["10.0.0.2", "bad"]), "ports": [{"port": 80}]}]);
        let first = plan(&endpoints(subsets.clone()), &[]);
        assert_eq!(
            show(&first.create),
            ["IPv4 [80]: 10.0.0.2", "IPv4 [5432]: 10.0.0.2 10.0.0.3!", "IPv6 [5432]: fd00::1"]
        );
        assert_eq!(
            first.events,
            [(
                "InvalidIPAddress",
                "Skipped 1 invalid IP addresses when mirroring to EndpointSlices".to_owned()
            )]
        );
        assert_eq!(
            serde_json::to_value(&first.create[0].metadata).unwrap(),
            json!({"generateName": "db-", "namespace": "a", "annotations": {"kept": "1"},
                "labels": {"x": "y", SERVICE_NAME: "db", MANAGED_BY: MANAGER},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Endpoints", "name": "db", "uid": "e",
                    "controller": true, "blockOwnerDeletion": true}]})
        );
        let kept = stored(&first.create);
        let again = plan(&endpoints(subsets), &kept);
        assert_eq!((again.create.len(), again.update.len(), again.delete.len()), (0, 0, 0), "idle");
    }

    #[test]
    fn changes_are_few_writes() {
        let of = |ip: &str, port: i32| {
            endpoints(json!([{"addresses": addresses(&[ip]), "ports": [{"port": port}]}]))
        };
        let kept = stored(&plan(&of("10.0.0.2", 80), &[]).create);
        let check = |what: &str, endpoints: &Endpoints, create: usize, update: &[&str], delete: usize| {
            let plan = plan(endpoints, &kept);
            let shown = show(&plan.update);
            assert_eq!((plan.create.len(), plan.delete.len()), (create, delete), "{what}");
            assert_eq!(shown, update, "{what}");
        };
        check("another address", &of("10.0.0.9", 80), 0, &["IPv4 [80]: 10.0.0.9"], 0);
        check("another port recycles", &of("10.0.0.2", 81), 0, &["IPv4 [81]: 10.0.0.2"], 0);
        check("another family cannot", &of("fd00::1", 80), 1, &[], 1);
        check("nothing left", &endpoints(json!([])), 0, &[], 1);
        let mut relabelled = of("10.0.0.2", 80);
        relabelled.metadata.labels = None;
        check("labels", &relabelled, 0, &["IPv4 [80]: 10.0.0.2"], 0);
    }

    #[test]
    fn a_subset_has_a_limit() {
        let many: Vec<_> = (0..1002).map(|n| format!("10.0.{}.{}", n / 250, n % 250)).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let plan = plan(&endpoints(json!([{"addresses": addresses(&many), "ports": [{"port": 80}]}])), &[]);
        assert_eq!(plan.create[0].endpoints.as_ref().unwrap().len(), 1000);
        assert_eq!(
            plan.events[0].1,
            "A max of 1000 addresses can be mirrored to EndpointSlices per Endpoints subset. 2 addresses were skipped"
        );
    }

    #[test]
    fn some_are_not_mirrored() {
        let check = |labels: Value, annotations: Value, expected: bool| {
            let endpoints = object(json!({"metadata": {"labels": labels, "annotations": annotations}}));
            assert_eq!(may_mirror(&endpoints), expected);
        };
        check(json!({}), json!({}), true);
        check(json!({SKIP: "true"}), json!({}), false);
        check(json!({SKIP: "false"}), json!({}), true);
        check(json!({}), json!({LEADER: "{}"}), false);
    }
}
