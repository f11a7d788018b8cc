//! Writes the Endpoints of each Service with a selector: the older, one-object form of EndpointSlices. Answers to
//! upstream's `endpoints-controller`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, PostParams};
use orlop_client::{EventRecorder, EventType, Informer, ObjectKey, WorkQueue, run_workers};

use crate::error::{Error, is_already_exists, is_namespace_terminating, is_not_found, message, unless_gone};
use crate::objects::{Meta, is_ready, node_name};
use crate::services::{self, HEADLESS_LABEL, LAST_CHANGE, TriggerTimes};
use crate::shell::Shell;

const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// More addresses than this do not fit; readers shall use EndpointSlices.
const CAPACITY: usize = 1000;

struct Controller {
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
    times: TriggerTimes,
    client: kube::Client,
    recorder: EventRecorder,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        services: shell.informers.informer(),
        pods: shell.informers.informer(),
        endpoints: shell.informers.informer(),
        times: TriggerTimes::default(),
        client: shell.client,
        recorder: shell.recorder,
    };
    controller.services.synced().await;
    controller.pods.synced().await;
    controller.endpoints.synced().await;
    let queue = WorkQueue::named("endpoint");
    let own = queue.clone();
    controller.services.subscribe(move |event| own.add(ObjectKey::of(&event.object().metadata)));
    // Endpoints without a Service are left-overs; endpoints that somebody deletes or changes come back.
    let own = queue.clone();
    controller.endpoints.subscribe(move |event| own.add(ObjectKey::of(&event.object().metadata)));
    services::queue_for_pods(&controller.pods, &controller.services, &queue);
    run_workers("endpoints-controller", queue, 5, shell.shutdown, |key| controller.sync(key)).await;
    Ok(())
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let api = Api::<Endpoints>::namespaced(self.client.clone(), &key.namespace);
        let current = self.endpoints.get_key(&key);
        let Some(service) = self.services.get_key(&key) else {
            self.times.forget(&key);
            // Others make Endpoints for purposes of their own (leader election did); only ours are left-overs.
            if current.is_some_and(|current| current.label(MANAGED_BY).is_some()) {
                unless_gone(api.delete(&key.name, &DeleteParams::default()).await)?;
            }
            return Ok(None);
        };
        if services::selector(&service).is_none() {
            return Ok(None);
        }
        let pods = services::pods_of(&service, &self.pods);
        let subsets = subsets(&service, &pods);
        let trigger = self.times.next(&service, &pods);
        let Some(wanted) = desired(&service, subsets, current.as_deref(), trigger) else { return Ok(None) };
        let params = PostParams::default();
        let written = match &current {
            None => api.create(&params, &wanted).await,
            Some(_) => api.replace(&key.name, &params, &wanted).await,
        };
        match written {
            Ok(_) => {}
            Err(error) if is_namespace_terminating(&error) => {}
            Err(error) if current.is_none() && is_already_exists(&error) => return Err(error.into()),
            Err(error) if current.is_some() && is_not_found(&error) => return Err(error.into()),
            Err(error) => {
                let (verb, reason) = if current.is_none() {
                    ("create", "FailedToCreateEndpoint")
                } else {
                    ("update", "FailedToUpdateEndpoint")
                };
                let text = match &current {
                    None => format!("Failed to {verb} endpoint for service {key}: {}", message(&error)),
                    Some(_) => format!("Failed to {verb} endpoint {key}: {}", message(&error)),
                };
                self.recorder.event(&wanted, EventType::Warning, reason, text);
                return Err(error.into());
            }
        }
        Ok(None)
    }
}

/// The object to write, or `None` when the current one is right.
fn desired(
    service: &Service,
    mut subsets: Vec<EndpointSubset>,
    current: Option<&Endpoints>,
    trigger: Option<String>,
) -> Option<Endpoints> {
    let truncated = truncate(&mut subsets);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    if services::is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS_LABEL);
    }
    labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    if let Some(current) = current {
        let same_capacity = (current.annotation(OVER_CAPACITY) == Some("truncated")) == truncated;
        let same_labels = current.metadata.labels.as_ref() == Some(&labels);
        if current.subsets.as_deref().unwrap_or_default() == subsets && same_labels && same_capacity {
            return None;
        }
    }
    let mut metadata = current.map(|current| current.metadata.clone()).unwrap_or_else(|| ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        ..ObjectMeta::default()
    });
    metadata.labels = Some(labels);
    let annotations = metadata.annotations.get_or_insert_default();
    match trigger {
        Some(time) => annotations.insert(LAST_CHANGE.to_owned(), time),
        None => annotations.remove(LAST_CHANGE),
    };
    if truncated {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    Some(Endpoints { metadata, subsets: Some(subsets).filter(|subsets| !subsets.is_empty()) })
}

/// Cuts to [`CAPACITY`] addresses, ready ones first.
fn truncate(subsets: &mut Vec<EndpointSubset>) -> bool {
    let count = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
    let total: usize =
        subsets.iter().map(|subset| count(&subset.addresses) + count(&subset.not_ready_addresses)).sum();
    if total <= CAPACITY {
        return false;
    }
    let mut room = CAPACITY;
    let mut cut = |list: &mut Option<Vec<EndpointAddress>>| {
        if let Some(addresses) = list {
            addresses.truncate(room);
            room -= addresses.len();
        }
        *list = list.take().filter(|addresses| !addresses.is_empty());
    };
    subsets.iter_mut().for_each(|subset| cut(&mut subset.addresses));
    subsets.iter_mut().for_each(|subset| cut(&mut subset.not_ready_addresses));
    subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    true
}

type Port = (Option<String>, i32, Option<String>, Option<String>);

/// The subsets in upstream's packed form: pods with the same ports share one.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let any_state = services::publishes_not_ready(service);
    let family = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref()?.first().cloned());
    let wants_v6 = family.as_deref() == Some("IPv6");
    let mut packed: BTreeMap<BTreeSet<Port>, EndpointSubset> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| services::has_endpoint(pod, any_state)) {
        let Some(ip) = services::pod_ips(pod).into_iter().find(|ip| ip.contains(':') == wants_v6) else {
            continue;
        };
        let ports: BTreeSet<Port> = services::ports(service)
            .iter()
            .filter_map(|port| {
                let number = services::find_port(pod, port)?;
                let protocol = port.protocol.clone().or_else(|| Some("TCP".to_owned()));
                Some((port.name.clone(), number, protocol, port.app_protocol.clone()))
            })
            .collect();
        let portless = services::ports(service).is_empty() && services::is_headless(service);
        if ports.is_empty() && !portless {
            continue;
        }
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: services::hostname(service, pod),
            node_name: Some(node_name(pod).to_owned()).filter(|name| !name.is_empty()),
            target_ref: Some(services::target_ref(pod)),
        };
        let subset = packed.entry(ports.clone()).or_insert_with(|| EndpointSubset {
            ports: Some(ports.into_iter().map(endpoint_port).collect())
                .filter(|ports: &Vec<_>| !ports.is_empty()),
            ..EndpointSubset::default()
        });
        let list =
            if any_state || is_ready(pod) { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    let mut subsets: Vec<_> = packed.into_values().collect();
    for subset in &mut subsets {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
            let uid =
                |address: &EndpointAddress| address.target_ref.as_ref().and_then(|target| target.uid.clone());
            list.sort_by(|a, b| a.ip.cmp(&b.ip).then_with(|| uid(a).cmp(&uid(b))));
        }
    }
    subsets
}

fn endpoint_port((name, port, protocol, app_protocol): Port) -> EndpointPort {
    EndpointPort { name, port, protocol, app_protocol }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objects::testing::object;
    use pretty_assertions::assert_eq;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Service {
        let mut whole = json!({"selector": {"app": "web"}, "clusterIP": "10.96.0.7",
            "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        object(json!({"metadata": {"name": "web", "namespace": "a", "labels": {"x": "y"}}, "spec": whole}))
    }

    fn pod(name: &str, ip: &str, ready: bool, extra: Value) -> Arc<Pod> {
        let mut pod = json!({"metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}});
        for (key, value) in extra.as_object().unwrap() {
            *pod.pointer_mut(key).unwrap() = value.clone();
        }
        Arc::new(object(pod))
    }

    /// Shows subsets as `ready|not ready:ports`.
    fn check(what: &str, service: &Service, pods: &[Arc<Pod>], expected: &[&str]) {
        let ips = |list: &Option<Vec<EndpointAddress>>| {
            list.iter().flatten().map(|address| address.ip.clone()).collect::<Vec<_>>().join(",")
        };
        let shown: Vec<_> = subsets(service, pods)
            .iter()
            .map(|subset| {
                let ports: Vec<_> = subset.ports.iter().flatten().map(|port| port.port.to_string()).collect();
                format!("{}|{}:{}", ips(&subset.addresses), ips(&subset.not_ready_addresses), ports.join(","))
            })
            .collect();
        assert_eq!(shown, expected, "{what}");
    }

    #[test]
    fn packs_pods_by_ports() {
        let plain = service(json!({}));
        let two = [pod("b", "10.0.0.2", true, json!({})), pod("a", "10.0.0.1", false, json!({}))];
        check("ready and not", &plain, &two, &["10.0.0.2|10.0.0.1:8080"]);
        check("none", &plain, &[], &[]);
        let unready = service(json!({"publishNotReadyAddresses": true}));
        check("published before ready", &unready, &two, &["10.0.0.1,10.0.0.2|:8080"]);
        let failed = pod("f", "10.0.0.3", true, json!({"/status/phase": "Failed"}));
        check("ended", &plain, &[failed], &[]);
        let other = pod("o", "10.0.0.4", true, json!({"/spec/containers/0/ports/0/containerPort": 9090}));
        check("other port", &plain, &[two[0].clone(), other], &["10.0.0.2|:8080", "10.0.0.4|:9090"]);
        let headless = service(json!({"clusterIP": "None", "ports": []}));
        check("headless without ports", &headless, &two, &["10.0.0.2|10.0.0.1:"]);
    }

    #[test]
    fn writes_only_what_differs() {
        let service = service(json!({"clusterIP": "None"}));
        let pods = [pod("a", "10.0.0.1", true, json!({}))];
        let first = desired(&service, subsets(&service, &pods), None, Some("t".into())).unwrap();
        assert_eq!(
            serde_json::to_value(&first.metadata).unwrap(),
            json!({"name": "web", "namespace": "a",
            "annotations": {LAST_CHANGE: "t"}, "labels": {"x": "y", HEADLESS_LABEL: "", MANAGED_BY: "endpoint-controller"}})
        );
        assert_eq!(desired(&service, subsets(&service, &pods), Some(&first), None), None);
        let changed = desired(&service, Vec::new(), Some(&first), None).unwrap();
        assert_eq!((changed.subsets, changed.metadata.annotations), (None, Some(BTreeMap::new())));
    }
}
