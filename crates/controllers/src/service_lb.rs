//! Load balancers on machines without a cloud: a Service of type LoadBalancer gets the addresses of the nodes, where the
//! service proxy takes its ports. Answers to upstream's `service-lb-controller` with a cloud whose load balancers are the
//! nodes themselves, as k3s' ServiceLB is one.
//!
//! A port of a node can belong to one Service only, and not to the node's own servers: the oldest Service has it, the
//! others wait and an event says for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, PostParams};
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};

use crate::error::{Error, unless_gone};
use crate::objects::Meta;
use crate::services;
use crate::shell::Shell;

/// `spec.loadBalancerClass` of Services that name this implementation; those that name none get it, too.
const CLASS: &str = "orlop.io/node";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Index of the Services that have, or want, a load balancer.
const BALANCED: &str = "balanced";
/// Index of EndpointSlices by their Service.
const BY_SERVICE: &str = "service";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A protocol and a port of every node.
type Port = (String, i32);

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        services: shell.informers.informer(),
        nodes: shell.informers.informer(),
        slices: shell.informers.informer(),
        client: shell.client,
        recorder: shell.recorder,
    };
    controller.services.add_index(BALANCED, |service: &Service| {
        let concerned = wants(service) || has_addresses(service);
        if concerned { vec![String::new()] } else { Vec::new() }
    });
    controller.slices.add_index(BY_SERVICE, |slice: &EndpointSlice| {
        let service = slice.label(SERVICE_NAME).unwrap_or_default();
        vec![format!("{}/{service}", slice.namespace())]
    });
    controller.services.synced().await;
    controller.nodes.synced().await;
    controller.slices.synced().await;
    // One key: who has which port is decided for all Services together.
    let queue = WorkQueue::named("service");
    let own = queue.clone();
    controller.services.subscribe(move |event| {
        let before = match event {
            InformerEvent::Updated { old, .. } => wants(old) || has_addresses(old),
            _ => false,
        };
        if before || wants(event.object()) || has_addresses(event.object()) {
            own.add(());
        }
    });
    let own = queue.clone();
    controller.nodes.subscribe(move |event| {
        let unchanged = match event {
            InformerEvent::Updated { old, new } => Balancer::of(old) == Balancer::of(new),
            _ => false,
        };
        if !unchanged {
            own.add(());
        }
    });
    let (own, all) = (queue.clone(), controller.services.clone());
    controller.slices.subscribe(move |event| {
        let slice = event.object();
        let service = all.get(slice.namespace(), slice.label(SERVICE_NAME).unwrap_or_default());
        if service.is_some_and(|service| wants(&service) && is_local(&service)) {
            own.add(());
        }
    });
    let controller = &controller;
    run_workers("service-lb-controller", queue, 1, shell.shutdown, |()| async move {
        controller.sync().await.map(|()| None)
    })
    .await;
    Ok(())
}

struct Controller {
    services: Informer<Service>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    client: kube::Client,
    recorder: EventRecorder,
}

impl Controller {
    async fn sync(&self) -> Result<(), Error> {
        let mut services = self.services.by_index(BALANCED, "");
        // The older one keeps what it has.
        services.sort_by_cached_key(|service| (service.created(), ObjectKey::of(&service.metadata)));
        let nodes: Vec<_> = self.nodes.list().iter().filter_map(|node| Balancer::of(node)).collect();
        let mut claims: BTreeMap<Port, String> = BTreeMap::new();
        for node in &nodes {
            claims.insert(("TCP".to_owned(), node.kubelet_port), "the kubelet".to_owned());
        }
        for port in self.api_server_ports() {
            claims.insert(("TCP".to_owned(), port), "the API server".to_owned());
        }
        let mut errors = Vec::new();
        for service in services {
            let wanted = match wants(&service) {
                false => Ok(Vec::new()),
                true => claim(&mut claims, &service).map(|()| self.addresses(&service, &nodes)),
            };
            if let Err(error) = self.write(&service, wanted).await {
                errors.push(error);
            }
        }
        Error::all(errors)
    }

    fn slices_of(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_SERVICE, &format!("{namespace}/{service}"))
    }

    /// Where the API servers listen on their own machines.
    fn api_server_ports(&self) -> BTreeSet<i32> {
        let slices = self.slices_of("default", "kubernetes");
        let ports = slices.iter().flat_map(|slice| slice.ports.iter().flatten());
        ports.filter_map(|port| port.port).collect()
    }

    /// The addresses of the nodes that take a Service's connections.
    fn addresses(&self, service: &Service, nodes: &[Balancer]) -> Vec<IpAddr> {
        let local = is_local(service).then(|| {
            let slices = self.slices_of(service.namespace(), service.name());
            nodes_with_endpoints(&slices)
        });
        let takes = |node: &&Balancer| local.as_ref().is_none_or(|names| names.contains(&node.name));
        let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
        let fits = |ip: &IpAddr| {
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            families.is_empty() || families.iter().any(|wanted| wanted == family)
        };
        let addresses = nodes.iter().filter(takes).flat_map(|node| node.addresses.iter().copied());
        addresses.filter(fits).collect::<BTreeSet<_>>().into_iter().collect()
    }

    async fn write(&self, service: &Service, wanted: Result<Vec<IpAddr>, String>) -> Result<(), Error> {
        let addresses = wanted.as_deref().unwrap_or_default();
        if let Err(refusal) = &wanted {
            let text = format!("Error syncing load balancer: failed to ensure load balancer: {refusal}");
            self.recorder.event(service, EventType::Warning, "SyncLoadBalancerFailed", text);
        }
        let ingress: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        if current(service).eq(ingress.iter().map(String::as_str)) {
            return Ok(());
        }
        let mut changed = service.clone();
        let ingress = ingress.into_iter().map(|ip| LoadBalancerIngress {
            ip: Some(ip),
            ip_mode: Some("VIP".to_owned()),
            ..LoadBalancerIngress::default()
        });
        let ingress: Vec<_> = ingress.collect();
        changed.status.get_or_insert_default().load_balancer =
            Some(LoadBalancerStatus { ingress: (!ingress.is_empty()).then_some(ingress) });
        let api = Api::<Service>::namespaced(self.client.clone(), service.namespace());
        unless_gone(api.replace_status(service.name(), &PostParams::default(), &changed).await)?;
        if !addresses.is_empty() {
            self.recorder.event(service, EventType::Normal, "EnsuredLoadBalancer", "Ensured load balancer");
        }
        Ok(())
    }
}

/// What a node offers.
#[derive(Debug, PartialEq, Eq)]
struct Balancer {
    name: String,
    addresses: Vec<IpAddr>,
    kubelet_port: i32,
}

impl Balancer {
    /// `None` for nodes that take no connections from outside: not ready, being deleted, or excluded by their label.
    fn of(node: &Node) -> Option<Balancer> {
        let status = node.status.as_ref()?;
        let ready =
            status.conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
        if !ready || node.label(EXCLUDED).is_some() || node.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let of_type = |wanted: &str| -> Vec<IpAddr> {
            let all = status.addresses.iter().flatten();
            all.filter(|one| one.type_ == wanted).filter_map(|one| one.address.parse().ok()).collect()
        };
        let addresses = Some(of_type("ExternalIP")).filter(|found| !found.is_empty());
        let endpoints = status.daemon_endpoints.as_ref();
        Some(Balancer {
            name: node.name().to_owned(),
            addresses: addresses.unwrap_or_else(|| of_type("InternalIP")),
            kubelet_port: endpoints
                .and_then(|all| all.kubelet_endpoint.as_ref())
                .map_or(10250, |one| one.port),
        })
    }
}

/// Whether this controller is to give the Service a load balancer.
fn wants(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.type_.as_deref() == Some("LoadBalancer")
        && spec.load_balancer_class.as_deref().is_none_or(|class| class == CLASS)
        && service.metadata.deletion_timestamp.is_none()
}

/// Whether a Service that is none of type LoadBalancer any more still has addresses of one.
fn has_addresses(service: &Service) -> bool {
    let balanced = service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"));
    !balanced && current(service).next().is_some()
}

fn is_local(service: &Service) -> bool {
    let policy = service.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref());
    policy == Some("Local")
}

/// The addresses that the status has.
fn current(service: &Service) -> impl Iterator<Item = &str> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    balancer.into_iter().flat_map(|one| one.ingress.iter().flatten()).filter_map(|one| one.ip.as_deref())
}

/// Takes a Service's ports, or says who has one of them.
fn claim(claims: &mut BTreeMap<Port, String>, service: &Service) -> Result<(), String> {
    let ports = services::ports(service).iter();
    let ports: Vec<Port> =
        ports.map(|port| (port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), port.port)).collect();
    for port in &ports {
        if let Some(owner) = claims.get(port) {
            return Err(format!("port {}/{} of the nodes belongs to {owner}", port.1, port.0));
        }
    }
    let owner = format!("Service {}", ObjectKey::of(&service.metadata));
    claims.extend(ports.into_iter().map(|port| (port, owner.clone())));
    Ok(())
}

/// The nodes that have a ready endpoint.
fn nodes_with_endpoints(slices: &[Arc<EndpointSlice>]) -> BTreeSet<String> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|one| one.conditions.as_ref().and_then(|of| of.ready) != Some(false));
    ready.filter_map(|one| one.node_name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::objects::testing::object;

    fn node(status: Value, labels: Value) -> Node {
        object(json!({"metadata": {"name": "n", "labels": labels}, "status": status}))
    }

    #[test]
    fn nodes() {
        let check = |what: &str, node: Node, expected: Option<&[&str]>| {
            let found =
                Balancer::of(&node).map(|node| node.addresses.iter().map(ToString::to_string).collect());
            let expected = expected.map(|all| all.iter().map(|ip| (*ip).to_owned()).collect::<Vec<_>>());
            assert_eq!(found, expected, "{what}");
        };
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let inside =
            json!([{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "n"}]);
        let outside = json!([{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "ExternalIP", "address": "1.2.3.4"}]);
        check(
            "inside",
            node(json!({"conditions": ready, "addresses": inside}), json!({})),
            Some(&["10.0.0.1"]),
        );
        check(
            "outside",
            node(json!({"conditions": ready, "addresses": outside}), json!({})),
            Some(&["1.2.3.4"]),
        );
        check("not ready", node(json!({"addresses": inside}), json!({})), None);
        check(
            "excluded",
            node(json!({"conditions": ready, "addresses": inside}), json!({EXCLUDED: ""})),
            None,
        );
    }

    fn service(name: &str, spec: Value) -> Service {
        object(json!({"metadata": {"namespace": "d", "name": name}, "spec": spec,
            "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}}}))
    }

    #[test]
    fn services() {
        let check = |what: &str, spec: Value, expected: (bool, bool)| {
            let service = service("s", spec);
            assert_eq!((wants(&service), has_addresses(&service)), expected, "{what}");
        };
        check("balanced", json!({"type": "LoadBalancer"}), (true, false));
        check("ours by name", json!({"type": "LoadBalancer", "loadBalancerClass": CLASS}), (true, false));
        check(
            "somebody else's",
            json!({"type": "LoadBalancer", "loadBalancerClass": "x.io/y"}),
            (false, false),
        );
        check("no longer balanced", json!({"type": "NodePort"}), (false, true));
    }

    #[test]
    fn a_port_has_one_owner() {
        let mut claims = BTreeMap::from([(("TCP".to_owned(), 6443), "the API server".to_owned())]);
        let mut check = |name: &str, ports: Value, expected: Result<(), &str>| {
            let seen = claim(&mut claims, &service(name, json!({"ports": ports})));
            assert_eq!(seen, expected.map_err(str::to_owned), "{name}");
        };
        check("a", json!([{"port": 80}, {"port": 53, "protocol": "UDP"}]), Ok(()));
        check(
            "b",
            json!([{"port": 443}, {"port": 80}]),
            Err("port 80/TCP of the nodes belongs to Service d/a"),
        );
        check("c", json!([{"port": 443}, {"port": 53}]), Ok(()));
        check("d", json!([{"port": 6443}]), Err("port 6443/TCP of the nodes belongs to the API server"));
    }

    #[test]
    fn endpoints_on_the_node() {
        let slice = object(json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": [
            {"addresses": ["1.1.1.1"], "nodeName": "a", "conditions": {"ready": true}},
            {"addresses": ["1.1.1.2"], "nodeName": "b", "conditions": {"ready": false}},
            {"addresses": ["1.1.1.3"], "nodeName": "c"}]}));
        assert_eq!(
            nodes_with_endpoints(&[Arc::new(slice)]),
            BTreeSet::from(["a".to_owned(), "c".to_owned()])
        );
    }
}
