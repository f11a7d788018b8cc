//! Cluster addresses and node ports of Services, as upstream's `registry/core/service` gives them out.
//!
//! An address that is taken has an IPAddress object, which is written in the same transaction as its Service; ready
//! ServiceCIDRs say which addresses there are (KEP-1880). Node ports are kept in memory, filled from the cache at start.
//! What a write that is under way has taken is reserved in memory and given back unless the write succeeds, so
//! concurrent writers can never be handed the same value.

mod addresses;
mod ranges;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use orlop_api::decode::Gvk;
use orlop_api::field::{self, Path};
use orlop_api::status::ApiError;
use orlop_json::{Value, json};
use orlop_kinds::core::service as kind;
use orlop_store::{Guard, Op, Revision, Txn};
use parking_lot::Mutex;
use rand::Rng as _;

use crate::cache::Cache;
use crate::registry::{Call, Registry, object};
use ranges::{Range, Ranges};

const IP_GROUP: &str = "networking.k8s.io";
/// The label that says who made an IPAddress.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const MANAGER: &str = "ipallocator.k8s.io";

#[derive(Default)]
struct Taken {
    /// Addresses of writes that are under way; of others the IPAddress objects tell.
    addresses: HashSet<IpAddr>,
    /// Node port → how many (service, port) entries use it: one service may use a number for TCP and UDP.
    ports: HashMap<u16, usize>,
}

/// The allocators of a cluster.
pub struct Allocators {
    /// The ranges of the server's own settings, the primary one first; one of each family.
    configured: Vec<Range>,
    ports: (u16, u16),
    taken: Mutex<Taken>,
    ranges: Ranges,
}

/// Values taken for a write that is under way; dropping it gives them back.
pub struct Reservation<'a> {
    allocators: &'a Allocators,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    /// What is given back when the write succeeds (values the service no longer uses).
    obsolete: (Vec<IpAddr>, Vec<u16>),
}

impl Reservation<'_> {
    /// The write succeeded.
    pub fn keep(mut self) {
        self.ports.clear();
        let ports = std::mem::take(&mut self.obsolete.1);
        self.allocators.give_back(&[], &ports);
    }

    /// What has to be written together with the service: IPAddress objects for new addresses, and for addresses that
    /// are given up their removal.
    pub fn beside(&self, registry: &Registry, service: &Value) -> Txn {
        let mut txn = Txn::default();
        let Some(cache) = ip_cache(registry) else { return txn };
        for address in &self.addresses {
            let key = storage_key(&cache, *address);
            txn.guards.push(Guard { key: key.clone(), mod_revision: Revision::NONE });
            txn.ops.push(Op::Put { key, value: ip_address(*address, service) });
        }
        removals(&mut txn, &cache, &self.obsolete.0);
        txn
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        // When the write succeeded, the IPAddress objects have taken over.
        if !self.addresses.is_empty() || !self.ports.is_empty() {
            self.allocators.give_back(&self.addresses, &self.ports);
        }
    }
}

type Refusal = Box<field::FieldError>;

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

fn strings(value: &Value, field: &str) -> Vec<String> {
    let list = value.get(field).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|item| Some(item.as_str()?.to_string())).collect()
}

fn is_service(call: &Call<'_>) -> bool {
    call.resource.group.is_empty() && call.resource.kind == "Service"
}

fn ip_cache(registry: &Registry) -> Option<Arc<Cache>> {
    registry.resources.cache(IP_GROUP, "IPAddress")
}

fn storage_key(cache: &Cache, address: IpAddr) -> Bytes {
    Bytes::from(format!("{}{address}", cache.prefix()))
}

/// The encoded IPAddress of a service's address.
fn ip_address(address: IpAddr, service: &Value) -> Bytes {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let mut object = json!({
        "kind": "IPAddress", "apiVersion": "networking.k8s.io/v1",
        "metadata": {
            "name": address.to_string(),
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": crate::registry::now(),
            "labels": {"ipaddress.kubernetes.io/ip-family": family, MANAGED_BY: MANAGER},
        },
        "spec": {"parentRef": {
            "resource": "services",
            "namespace": object::meta(service, "namespace"),
            "name": object::meta(service, "name"),
        }},
    });
    let gvk = Gvk { group: IP_GROUP, version: "v1", kind: "IPAddress" };
    crate::managed::update_as(&gvk, "", "kube-apiserver", None, &mut object);
    Bytes::from(object::encode(&object))
}

fn removals(txn: &mut Txn, cache: &Cache, addresses: &[IpAddr]) {
    txn.ops.extend(addresses.iter().map(|a| Op::Delete { key: storage_key(cache, *a) }));
}

/// The service's cluster addresses; none when it is headless.
fn addresses_of(service: &Value) -> Vec<IpAddr> {
    let spec = &service["spec"];
    let mut all = strings(spec, "clusterIPs");
    if all.is_empty() {
        all.push(text(spec, "clusterIP").to_string());
    }
    all.iter().filter_map(|ip| ip.parse().ok()).collect()
}

fn number(value: &Value, field: &str) -> u64 {
    value.get(field).and_then(Value::as_u64).unwrap_or(0)
}

fn node_ports(service: &Value) -> Vec<u16> {
    let list = service["spec"]["ports"].as_array();
    list.into_iter()
        .flatten()
        .filter_map(|port| u16::try_from(number(port, "nodePort")).ok())
        .filter(|port| *port > 0)
        .collect()
}

/// Every port of the nodes that the service occupies, once.
fn ports_of(service: &Value) -> Vec<u16> {
    let mut ports = node_ports(service);
    if let Ok(port @ 1..) = u16::try_from(number(&service["spec"], "healthCheckNodePort")) {
        ports.push(port);
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn invalid(name: &str, error: field::FieldError) -> ApiError {
    if error.kind == field::ErrorType::Internal {
        return ApiError::internal(error.detail);
    }
    ApiError::invalid("", "Service", name, vec![error])
}

impl Allocators {
    /// For these service ranges and this node port range.
    pub fn new(cidrs: &[(IpAddr, u8)], ports: (u16, u16)) -> Allocators {
        Allocators {
            configured: cidrs.iter().map(|(address, prefix)| Range::new(*address, *prefix)).collect(),
            ports,
            taken: Mutex::default(),
            ranges: Ranges::default(),
        }
    }

    /// The first address of the primary range: that of the `kubernetes` Service.
    pub fn first(&self) -> IpAddr {
        self.configured.first().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), Range::first)
    }

    /// The server's own ranges as CIDRs.
    pub fn configured(&self) -> Vec<String> {
        self.configured.iter().map(Range::to_string).collect()
    }

    /// Takes note of every stored service.
    pub fn load<'a>(&self, services: impl Iterator<Item = &'a Value>) {
        let mut taken = self.taken.lock();
        for service in services {
            for port in ports_of(service) {
                *taken.ports.entry(port).or_default() += 1;
            }
        }
    }

    /// Writes the IPAddress objects that stored services lack, and removes those whose service does not use them any
    /// more: a store may come from a server that kept no such objects.
    pub async fn repair(&self, registry: &Registry) -> Result<(), ApiError> {
        let Some(services) = registry.resources.cache("", "Service") else { return Ok(()) };
        let Some(cache) = ip_cache(registry) else { return Ok(()) };
        let mut used = HashSet::new();
        let mut last = None;
        for entry in services.snapshot().0.values() {
            let service = entry.value();
            for address in addresses_of(&service) {
                used.insert(address.to_string());
                if cache.get(&address.to_string()).is_none() {
                    let txn =
                        Txn::put(storage_key(&cache, address), ip_address(address, &service), Revision::NONE);
                    last = Some(registry.store.txn(txn).await.map_err(crate::registry::store_error)?);
                }
            }
        }
        for entry in cache.snapshot().0.values() {
            let ours = entry.value()["metadata"]["labels"][MANAGED_BY] == MANAGER;
            if ours && !used.contains(entry.name()) {
                let key = format!("{}{}", cache.prefix(), entry.name());
                let txn = Txn::delete(key, Revision(entry.revision));
                last = Some(registry.store.txn(txn).await.map_err(crate::registry::store_error)?);
            }
        }
        if let Some(orlop_store::TxnOutcome::Committed(revision)) = last {
            registry.caches.wait(revision.0).await;
        }
        Ok(())
    }

    fn give_back(&self, addresses: &[IpAddr], ports: &[u16]) {
        let mut taken = self.taken.lock();
        for address in addresses {
            taken.addresses.remove(address);
        }
        for port in ports {
            if let Some(count) = taken.ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    taken.ports.remove(port);
                }
            }
        }
    }

    /// What has to be removed together with an object.
    pub fn beside_removal(&self, registry: &Registry, object: &Value) -> Txn {
        let mut txn = Txn::default();
        if text(object, "kind") == "Service"
            && text(object, "apiVersion") == "v1"
            && let Some(cache) = ip_cache(registry)
        {
            removals(&mut txn, &cache, &addresses_of(object));
        }
        txn
    }

    /// Gives back what a deleted object used.
    pub fn release(&self, object: &Value) {
        if text(object, "kind") == "Service" && text(object, "apiVersion") == "v1" {
            self.give_back(&[], &ports_of(object));
        }
    }

    fn none(&self) -> Reservation<'_> {
        Reservation {
            allocators: self,
            addresses: Vec::new(),
            ports: Vec::new(),
            obsolete: Default::default(),
        }
    }

    /// The IP families of the cluster, its primary one first.
    pub fn families(&self) -> Vec<&'static str> {
        self.configured.iter().map(|range| if range.is_ipv4() { "IPv4" } else { "IPv6" }).collect()
    }

    /// Fills in what a new service needs.
    pub fn for_create(
        &self,
        registry: &Registry,
        call: &Call<'_>,
        service: &mut Value,
    ) -> Result<Reservation<'_>, ApiError> {
        let mut reservation = self.none();
        if !is_service(call) {
            return Ok(reservation);
        }
        let name = object::meta(service, "name").to_string();
        let errors = kind::init_ip_families(service, None, &self.families());
        if !errors.is_empty() {
            return Err(ApiError::invalid("", "Service", &name, errors));
        }
        let refused = |error: Refusal| invalid(&name, *error);
        self.assign_addresses(registry, service, &mut reservation).map_err(refused)?;
        if matches!(text(&service["spec"], "type"), "NodePort" | "LoadBalancer") {
            self.assign_ports(service, &mut reservation).map_err(refused)?;
        }
        if kind::needs_health_check(service) {
            self.assign_health_check(service, &mut reservation).map_err(refused)?;
        }
        Ok(reservation)
    }

    /// Fills in what an updated service newly needs; what it keeps its strategy has carried over.
    pub fn for_update(
        &self,
        registry: &Registry,
        call: &Call<'_>,
        service: &mut Value,
        old: &Value,
    ) -> Result<Reservation<'_>, ApiError> {
        let mut reservation = self.none();
        if !is_service(call) {
            return Ok(reservation);
        }
        let name = object::meta(old, "name").to_string();
        let errors = kind::init_ip_families(service, Some(old), &self.families());
        if !errors.is_empty() {
            return Err(ApiError::invalid("", "Service", &name, errors));
        }
        let refused = |error: Refusal| invalid(&name, *error);
        if !kind::needs_cluster_ip(old) && kind::needs_cluster_ip(service) {
            self.assign_addresses(registry, service, &mut reservation).map_err(refused)?;
        } else if kind::needs_cluster_ip(old) && !kind::needs_cluster_ip(service) {
            reservation.obsolete.0 = addresses_of(old);
        } else if !kind::is_headless(service) {
            self.change_stack(registry, service, old, &mut reservation).map_err(refused)?;
        }
        if matches!(text(&service["spec"], "type"), "NodePort" | "LoadBalancer") {
            self.update_ports(service, old, &mut reservation).map_err(refused)?;
        }
        if !kind::needs_health_check(old) && kind::needs_health_check(service) {
            self.assign_health_check(service, &mut reservation).map_err(refused)?;
        }
        let has = ports_of(service);
        reservation.obsolete.1 = ports_of(old).into_iter().filter(|p| !has.contains(p)).collect();
        Ok(reservation)
    }

    /// Node ports of a new service: ports of the same number share one, whatever their protocols.
    fn assign_ports(&self, service: &mut Value, reservation: &mut Reservation<'_>) -> Result<(), Refusal> {
        let always = kind::needs_node_port(service);
        let Some(ports) = service["spec"].get_mut("ports").and_then(Value::as_array_mut) else {
            return Ok(());
        };
        let asked: Vec<(u64, u64)> =
            ports.iter().map(|p| (number(p, "port"), number(p, "nodePort"))).collect();
        let mut chosen: HashMap<u64, u64> = HashMap::new();
        for (at, port) in ports.iter_mut().enumerate() {
            let (own, wanted) = asked[at];
            if wanted == 0 && !always {
                continue;
            }
            let path = Path::new("spec").child("ports").index(at).child("nodePort");
            match chosen.get(&own) {
                None => {
                    let requested = asked.iter().find(|(p, n)| *p == own && *n != 0).map(|(_, n)| *n);
                    let number = match requested {
                        Some(number) => {
                            self.this_port(number, reservation, &path)?;
                            number
                        }
                        None => u64::from(self.any_port(reservation, &path)?),
                    };
                    chosen.insert(own, number);
                    port["nodePort"] = json!(number);
                }
                Some(shared) if wanted == 0 => port["nodePort"] = json!(shared),
                Some(shared) if wanted != *shared => self.this_port(wanted, reservation, &path)?,
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn update_ports(
        &self,
        service: &mut Value,
        old: &Value,
        reservation: &mut Reservation<'_>,
    ) -> Result<(), Refusal> {
        let always = kind::needs_node_port(service);
        let own = node_ports(old);
        let Some(ports) = service["spec"].get_mut("ports").and_then(Value::as_array_mut) else {
            return Ok(());
        };
        let mut here: Vec<u64> = Vec::new();
        for (at, port) in ports.iter_mut().enumerate() {
            let wanted = number(port, "nodePort");
            let path = Path::new("spec").child("ports").index(at).child("nodePort");
            if wanted != 0 {
                let kept = u16::try_from(wanted).is_ok_and(|wanted| own.contains(&wanted));
                if !kept && !here.contains(&wanted) {
                    self.this_port(wanted, reservation, &path)?;
                    here.push(wanted);
                }
            } else if always {
                port["nodePort"] = json!(self.any_port(reservation, &path)?);
            }
        }
        Ok(())
    }

    /// The port at which a load balancer asks a node whether it has endpoints.
    fn assign_health_check(
        &self,
        service: &mut Value,
        reservation: &mut Reservation<'_>,
    ) -> Result<(), Refusal> {
        let path = Path::new("spec").child("healthCheckNodePort");
        match number(&service["spec"], "healthCheckNodePort") {
            0 => {
                let port = self.any_port(reservation, &path)?;
                service["spec"]["healthCheckNodePort"] = json!(port);
                Ok(())
            }
            wanted => self.this_port(wanted, reservation, &path).map_err(|error| {
                let why =
                    format!("failed to allocate requested HealthCheck NodePort {wanted}: {}", error.detail);
                field::internal(&path, why).into()
            }),
        }
    }

    fn this_port(&self, port: u64, reservation: &mut Reservation<'_>, path: &Path) -> Result<(), Refusal> {
        let in_range = u16::try_from(port).ok().filter(|p| (self.ports.0..=self.ports.1).contains(p));
        let Some(number) = in_range else {
            return Err(field::invalid(
                path,
                json!(port),
                format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    self.ports.0, self.ports.1
                ),
            )
            .into());
        };
        let mut taken = self.taken.lock();
        if taken.ports.contains_key(&number) {
            return Err(field::invalid(path, json!(port), "provided port is already allocated").into());
        }
        taken.ports.insert(number, 1);
        reservation.ports.push(number);
        Ok(())
    }

    fn any_port(&self, reservation: &mut Reservation<'_>, path: &Path) -> Result<u16, Refusal> {
        let count = u32::from(self.ports.1) - u32::from(self.ports.0) + 1;
        let mut taken = self.taken.lock();
        let start = rand::rng().random_range(0..count);
        for step in 0..count {
            // Below 65536: an offset into a range of ports.
            let port = self.ports.0 + ((start + step) % count) as u16;
            if let std::collections::hash_map::Entry::Vacant(free) = taken.ports.entry(port) {
                free.insert(1);
                reservation.ports.push(port);
                return Ok(port);
            }
        }
        Err(field::internal(path, "failed to allocate a nodePort: range is full").into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ports(allocators: &Allocators, spec: Value) -> Result<Vec<u16>, String> {
        let mut service = json!({"spec": spec});
        let mut reservation = allocators.none();
        allocators.assign_ports(&mut service, &mut reservation).map_err(|e| e.to_string())?;
        reservation.keep();
        Ok(node_ports(&service))
    }

    #[test]
    fn node_ports_of_new_services() {
        let allocators = Allocators::new(&[(Ipv4Addr::new(10, 96, 0, 0).into(), 16)], (30000, 30003));
        let both = json!({"type": "NodePort", "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]});
        let shared = ports(&allocators, both).unwrap();
        assert_eq!(shared[0], shared[1]);
        let two =
            ports(&allocators, json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81}]})).unwrap();
        assert_ne!(two[0], two[1]);
        let taken = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": shared[0]}]});
        assert!(ports(&allocators, taken).unwrap_err().contains("provided port is already allocated"));
        let outside = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]});
        assert!(ports(&allocators, outside).unwrap_err().contains("The range of valid ports is 30000-30003"));
        let none =
            json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]});
        assert!(ports(&allocators, none).unwrap().is_empty());
    }

    #[test]
    fn failed_writes_give_back() {
        let allocators = Allocators::new(&[(Ipv4Addr::new(10, 96, 0, 0).into(), 16)], (30000, 30000));
        let mut service = json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        let mut reservation = allocators.none();
        allocators.assign_ports(&mut service, &mut reservation).unwrap();
        drop(reservation);
        ports(&allocators, json!({"type": "NodePort", "ports": [{"port": 80}]})).unwrap();
    }
}
