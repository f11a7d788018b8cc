//! Which EndpointSlices a Service should have, made from those it has with as few writes as possible. Answers to
//! upstream's `endpointslice` reconciler.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::objects::{Labels, Meta, controller_ref, is_ready, node_name};
use crate::services::{self, HEADLESS_LABEL, LAST_CHANGE};

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Endpoints in one slice.
const MAX_PER_SLICE: usize = 100;

/// The writes of one reconcile.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) create: Vec<EndpointSlice>,
    pub(crate) update: Vec<EndpointSlice>,
    pub(crate) delete: Vec<EndpointSlice>,
    /// Pods left out because their node is not known (yet).
    pub(crate) without_node: Vec<String>,
}

/// The address types a Service's slices have.
fn address_types(service: &Service) -> Vec<&'static str> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
    let types: Vec<_> = families
        .iter()
        .filter_map(|family| match family.as_str() {
            "IPv4" => Some("IPv4"),
            "IPv6" => Some("IPv6"),
            _ => None,
        })
        .collect();
    if !types.is_empty() {
        return types;
    }
    // Objects from before dual stack: the cluster address tells.
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
    vec![if address.contains(':') { "IPv6" } else { "IPv4" }]
}

/// Decides for one Service. `existing` are its slices that this controller manages; `node` finds a node by name.
pub(crate) fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    existing: &[Arc<EndpointSlice>],
    node: impl Fn(&str) -> Option<Arc<Node>>,
    trigger: Option<&str>,
) -> Plan {
    let mut plan = Plan::default();
    let types = address_types(service);
    for address_type in &types {
        let of_type: Vec<_> =
            existing.iter().filter(|slice| slice.address_type == *address_type).cloned().collect();
        plan_type(service, pods, &of_type, address_type, &node, trigger, &mut plan);
    }
    // The Service gave up an address family.
    let unwanted = existing.iter().filter(|slice| !types.contains(&slice.address_type.as_str()));
    plan.delete.extend(unwanted.map(|slice| (**slice).clone()));
    if service.deleting() {
        plan.create.clear();
    }
    plan
}

fn endpoints_of(slice: &EndpointSlice) -> &[Endpoint] {
    slice.endpoints.as_deref().unwrap_or_default()
}

pub(super) type PortKey = BTreeSet<(Option<String>, Option<i32>, Option<String>, Option<String>)>;

pub(super) fn key_of(ports: &[EndpointPort]) -> PortKey {
    ports
        .iter()
        .map(|port| (port.name.clone(), port.port, port.protocol.clone(), port.app_protocol.clone()))
        .collect()
}

fn plan_type(
    service: &Service,
    pods: &[Arc<Pod>],
    existing: &[Arc<EndpointSlice>],
    address_type: &str,
    node: &impl Fn(&str) -> Option<Arc<Node>>,
    trigger: Option<&str>,
    plan: &mut Plan,
) {
    let mut desired: BTreeMap<PortKey, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| services::has_endpoint(pod, true)) {
        let host = node(node_name(pod));
        if host.is_none() {
            plan.without_node.push(pod.name().to_owned());
            continue;
        }
        let ports = endpoint_ports(service, pod);
        if let Some(endpoint) = endpoint(service, pod, host.as_deref(), address_type) {
            let entry = desired.entry(key_of(&ports)).or_insert_with(|| (ports, Vec::new()));
            entry.1.push(endpoint);
        }
    }
    let mut by_ports: BTreeMap<PortKey, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in existing {
        by_ports.entry(key_of(slice.ports.as_deref().unwrap_or_default())).or_default().push(slice);
    }
    let (mut create, mut update, mut delete) = (Vec::new(), Vec::new(), Vec::new());
    for (key, slices) in &by_ports {
        if !desired.contains_key(key) {
            delete.extend(slices.iter().map(|slice| (*slice).clone()));
        }
    }
    for (key, (ports, endpoints)) in desired {
        let present = by_ports.get(&key).map(Vec::as_slice).unwrap_or_default();
        let fresh = || new_slice(service, address_type, ports.clone(), trigger);
        fill(service, present, endpoints, fresh, trigger, (&mut create, &mut update, &mut delete));
    }
    // A Service always has a slice, so that readers can tell "no endpoints" from "not looked at yet".
    if existing.len() == delete.len() && create.is_empty() {
        let placeholder = new_slice(service, address_type, Vec::new(), trigger);
        match &delete[..] {
            [one] if is_placeholder(one, &placeholder) => delete.clear(),
            _ => create.push(placeholder),
        }
    }
    // Rewriting a slice is one write; deleting one and creating another is two.
    while !create.is_empty() && !delete.is_empty() {
        let (wanted, old): (EndpointSlice, EndpointSlice) = (create.remove(0), delete.remove(0));
        let metadata = ObjectMeta {
            labels: wanted.metadata.labels,
            annotations: with_trigger(old.metadata.annotations.clone(), trigger),
            ..old.metadata
        };
        update.push(EndpointSlice { metadata, ..wanted });
    }
    plan.create.extend(create);
    plan.update.extend(update);
    plan.delete.extend(delete);
}

fn is_placeholder(slice: &EndpointSlice, placeholder: &EndpointSlice) -> bool {
    endpoints_of(slice).is_empty()
        && slice.ports.as_deref().unwrap_or_default().is_empty()
        && slice.metadata.labels == placeholder.metadata.labels
}

type Writes<'a> = (&'a mut Vec<EndpointSlice>, &'a mut Vec<EndpointSlice>, &'a mut Vec<EndpointSlice>);

/// Spreads `endpoints` over the slices of one set of ports.
fn fill(
    service: &Service,
    present: &[&EndpointSlice],
    endpoints: Vec<Endpoint>,
    fresh: impl Fn() -> EndpointSlice,
    trigger: Option<&str>,
    (create, update, delete): Writes<'_>,
) {
    let mut wanted: BTreeMap<String, Endpoint> =
        endpoints.into_iter().map(|endpoint| (identity(&endpoint), endpoint)).collect();
    let labels = slice_labels(service);
    let mut kept: Vec<(EndpointSlice, bool)> = Vec::new();
    for slice in present {
        // What stays keeps its place, so that a change touches few slices.
        let mut next = (*slice).clone();
        next.endpoints = Some(
            endpoints_of(slice).iter().filter_map(|endpoint| wanted.remove(&identity(endpoint))).collect(),
        );
        let mut changed = endpoints_of(&next) != endpoints_of(slice);
        if next.metadata.labels.as_ref() != Some(&labels) {
            next.metadata.labels = Some(labels.clone());
            changed = true;
        }
        kept.push((next, changed));
    }
    let mut rest: Vec<Endpoint> = wanted.into_values().collect();
    // First into slices that are written anyway, fullest first; then into one that has room for all that is left.
    kept.sort_by_key(|(slice, changed)| (!changed, std::cmp::Reverse(endpoints_of(slice).len())));
    for (slice, changed) in
        kept.iter_mut().filter(|(slice, changed)| *changed && !endpoints_of(slice).is_empty())
    {
        let room = MAX_PER_SLICE.saturating_sub(endpoints_of(slice).len()).min(rest.len());
        *changed |= room > 0;
        slice.endpoints.get_or_insert_default().extend(rest.drain(..room));
    }
    while !rest.is_empty() {
        let fits = |slice: &EndpointSlice| endpoints_of(slice).len() + rest.len() <= MAX_PER_SLICE;
        if let Some((slice, changed)) = kept.iter_mut().find(|(slice, _)| fits(slice)) {
            slice.endpoints.get_or_insert_default().append(&mut rest);
            *changed = true;
        } else {
            let mut slice = fresh();
            slice.endpoints = Some(rest.drain(..rest.len().min(MAX_PER_SLICE)).collect());
            create.push(slice);
        }
    }
    for (mut slice, changed) in kept {
        if endpoints_of(&slice).is_empty() {
            delete.push(slice);
        } else if changed {
            slice.metadata.annotations = with_trigger(slice.metadata.annotations.take(), trigger);
            update.push(slice);
        }
    }
}

fn with_trigger(annotations: Option<Labels>, trigger: Option<&str>) -> Option<Labels> {
    let mut annotations = annotations.unwrap_or_default();
    match trigger {
        Some(time) => annotations.insert(LAST_CHANGE.to_owned(), time.to_owned()),
        None => annotations.remove(LAST_CHANGE),
    };
    Some(annotations).filter(|annotations| !annotations.is_empty())
}

/// Two endpoints of the same pod and address are the same endpoint in different states.
fn identity(endpoint: &Endpoint) -> String {
    let target = endpoint.target_ref.as_ref();
    let part = |field: Option<&String>| field.cloned().unwrap_or_default();
    let name = part(target.and_then(|target| target.name.as_ref()));
    let uid = part(target.and_then(|target| target.uid.as_ref()));
    format!("{name} {uid} {}", endpoint.addresses.join(","))
}

fn slice_labels(service: &Service) -> Labels {
    let reserved = [SERVICE_NAME, MANAGED_BY, HEADLESS_LABEL];
    let own = service.metadata.labels.iter().flatten();
    let mut labels: Labels = own
        .filter(|(key, _)| !reserved.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if services::is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.name().to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn new_slice(
    service: &Service,
    address_type: &str,
    ports: Vec<EndpointPort>,
    trigger: Option<&str>,
) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.name())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(slice_labels(service)),
            annotations: with_trigger(None, trigger),
            owner_references: Some(vec![controller_ref(service)]),
            ..ObjectMeta::default()
        },
        address_type: address_type.to_owned(),
        endpoints: Some(Vec::new()),
        ports: Some(ports),
    }
}

fn endpoint_ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = services::ports(service).iter().filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(services::find_port(pod, port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    ports.collect()
}

fn endpoint(service: &Service, pod: &Pod, node: Option<&Node>, address_type: &str) -> Option<Endpoint> {
    let wants_v6 = address_type == "IPv6";
    let ips = services::pod_ips(pod).into_iter().filter(|ip| ip.contains(':') == wants_v6);
    let addresses: Vec<_> = ips.map(str::to_owned).collect();
    if addresses.is_empty() {
        return None;
    }
    let (serving, terminating) = (is_ready(pod), pod.deleting());
    let ready = services::publishes_not_ready(service) || (serving && !terminating);
    let zone = node.and_then(|node| node.label("topology.kubernetes.io/zone")).map(str::to_owned);
    let node_name = Some(node_name(pod).to_owned()).filter(|name| !name.is_empty());
    Some(Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hints: hints(service, ready, zone.as_deref(), node_name.as_deref()),
        hostname: services::hostname(service, pod),
        node_name,
        target_ref: Some(services::target_ref(pod)),
        zone,
        deprecated_topology: None,
    })
}

/// Where traffic for an endpoint should come from, as `spec.trafficDistribution` asks.
fn hints(service: &Service, ready: bool, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let distribution = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    if !ready || !matches!(distribution, "PreferClose" | "PreferSameZone" | "PreferSameNode") {
        return None;
    }
    let for_zones = zone.filter(|zone| !zone.is_empty()).map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let for_nodes =
        node.filter(|_| distribution == "PreferSameNode").map(|node| vec![ForNode { name: node.to_owned() }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_nodes, for_zones })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
