//! Cluster addresses and node ports of Services.
//!
//! What is taken is kept in memory, filled from the cache at start; a reservation made for a write is given back
//! unless the write succeeds, so concurrent writers can never be handed the same value.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use orlop_api::field::{self, Path};
use orlop_api::status::ApiError;
use parking_lot::Mutex;
use rand::Rng as _;
use serde_json::{Value, json};

use crate::registry::{Call, Registry};

#[derive(Default)]
struct Taken {
    addresses: HashSet<u32>,
    /// Node port → how many (service, port) entries use it: one service may use a number for TCP and UDP.
    ports: HashMap<u16, usize>,
}

/// The allocators of a cluster.
pub struct Allocators {
    base: u32,
    prefix: u8,
    ports: (u16, u16),
    taken: Mutex<Taken>,
}

/// Values taken for a write that is under way; dropping it gives them back.
pub struct Reservation<'a> {
    allocators: &'a Allocators,
    addresses: Vec<u32>,
    ports: Vec<u16>,
    /// What is given back when the write succeeds (values the service no longer uses).
    obsolete: (Vec<u32>, Vec<u16>),
}

impl Reservation<'_> {
    /// The write succeeded.
    pub fn keep(mut self) {
        self.addresses.clear();
        self.ports.clear();
        let (addresses, ports) = std::mem::take(&mut self.obsolete);
        self.allocators.give_back(&addresses, &ports);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.addresses.is_empty() || !self.ports.is_empty() {
            self.allocators.give_back(&self.addresses, &self.ports);
        }
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

fn is_service(call: &Call<'_>) -> bool {
    call.resource.group.is_empty() && call.resource.kind == "Service"
}

/// Whether a service of this spec has a cluster address.
fn wants_address(spec: &Value) -> bool {
    text(spec, "type") != "ExternalName" && text(spec, "clusterIP") != "None"
}

fn wants_node_ports(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts").and_then(Value::as_bool).unwrap_or(true),
        _ => false,
    }
}

/// A load balancer must learn which nodes have endpoints when only those take its traffic.
fn wants_health_check(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn addresses_of(spec: &Value) -> Vec<u32> {
    spec.get("clusterIPs")
        .and_then(Value::as_array)
        .map(|list| {
            list.iter()
                .filter_map(|ip| ip.as_str()?.parse::<Ipv4Addr>().ok())
                .map(u32::from)
                .collect::<Vec<_>>()
        })
        .filter(|list: &Vec<u32>| !list.is_empty())
        .unwrap_or_else(|| text(spec, "clusterIP").parse::<Ipv4Addr>().map(u32::from).into_iter().collect())
}

fn ports_of(spec: &Value) -> Vec<u16> {
    let mut ports: Vec<u16> = spec
        .get("ports")
        .and_then(Value::as_array)
        .map(|list| {
            list.iter()
                .filter_map(|port| port.get("nodePort")?.as_u64())
                .chain(spec.get("healthCheckNodePort").and_then(Value::as_u64))
                .filter_map(|port| u16::try_from(port).ok())
                .filter(|port| *port > 0)
                .collect()
        })
        .unwrap_or_default();
    ports.sort_unstable();
    ports.dedup();
    ports
}

impl Allocators {
    /// For this service range and node port range.
    pub fn new(cidr: (Ipv4Addr, u8), ports: (u16, u16)) -> Allocators {
        let mask = if cidr.1 == 0 { 0 } else { u32::MAX << (32 - u32::from(cidr.1)) };
        Allocators { base: u32::from(cidr.0) & mask, prefix: cidr.1, ports, taken: Mutex::default() }
    }

    /// The first address of the range: that of the `kubernetes` Service.
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    fn size(&self) -> u32 {
        // Without the network and the broadcast address.
        (1u64 << (32 - u32::from(self.prefix))).saturating_sub(2).min(u64::from(u32::MAX)) as u32
    }

    /// Takes note of every stored service.
    pub fn load<'a>(&self, services: impl Iterator<Item = &'a Value>) {
        let mut taken = self.taken.lock();
        for service in services {
            taken.addresses.extend(addresses_of(&service["spec"]));
            for port in ports_of(&service["spec"]) {
                *taken.ports.entry(port).or_default() += 1;
            }
        }
    }

    fn give_back(&self, addresses: &[u32], ports: &[u16]) {
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

    /// Gives back what a deleted object used.
    pub fn release(&self, object: &Value) {
        if text(object, "kind") == "Service" && text(object, "apiVersion") == "v1" {
            self.give_back(&addresses_of(&object["spec"]), &ports_of(&object["spec"]));
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

    /// Fills in what a new service needs.
    pub fn for_create(
        &self,
        _registry: &Registry,
        call: &Call<'_>,
        object: &mut Value,
    ) -> Result<Reservation<'_>, ApiError> {
        if !is_service(call) {
            return Ok(self.none());
        }
        let name = text(&object["metadata"], "name").to_string();
        let mut reservation = self.none();
        self.assign(&mut object["spec"], &mut reservation, &[], &[])
            .map_err(|error| invalid(&name, *error))?;
        Ok(reservation)
    }

    /// Carries over what an updated service keeps and fills in what it newly needs.
    pub fn for_update(
        &self,
        _registry: &Registry,
        call: &Call<'_>,
        object: &mut Value,
        old: &Value,
    ) -> Result<Reservation<'_>, ApiError> {
        if !is_service(call) {
            return Ok(self.none());
        }
        let old_spec = &old["spec"];
        let spec = &mut object["spec"];
        if text(old_spec, "type") != "ExternalName" && text(spec, "type") != "ExternalName" {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                let empty = match spec.get(field) {
                    None | Some(Value::Null) => true,
                    Some(Value::String(s)) => s.is_empty(),
                    Some(Value::Array(list)) => list.is_empty(),
                    _ => false,
                };
                if empty && let Some(value) = old_spec.get(field) {
                    spec[field] = value.clone();
                }
            }
        }
        if wants_health_check(old_spec)
            && wants_health_check(spec)
            && spec.get("healthCheckNodePort").and_then(Value::as_u64).unwrap_or(0) == 0
            && let Some(port) = old_spec.get("healthCheckNodePort")
        {
            spec["healthCheckNodePort"] = port.clone();
        }
        if wants_node_ports(old_spec) && wants_node_ports(spec) {
            keep_node_ports(spec, old_spec);
        }
        let (had_addresses, had_ports) = (addresses_of(old_spec), ports_of(old_spec));
        let mut reservation = self.none();
        self.assign(spec, &mut reservation, &had_addresses, &had_ports)
            .map_err(|error| invalid(text(&old["metadata"], "name"), *error))?;
        let (has_addresses, has_ports) = (addresses_of(spec), ports_of(spec));
        reservation.obsolete = (
            had_addresses.into_iter().filter(|a| !has_addresses.contains(a)).collect(),
            had_ports.into_iter().filter(|p| !has_ports.contains(p)).collect(),
        );
        Ok(reservation)
    }

    fn assign(
        &self,
        spec: &mut Value,
        reservation: &mut Reservation<'_>,
        own_addresses: &[u32],
        own_ports: &[u16],
    ) -> Result<(), Box<field::FieldError>> {
        if text(spec, "type") == "ExternalName" {
            return Ok(());
        }
        if spec.get("ipFamilyPolicy").is_none_or(Value::is_null) {
            spec["ipFamilyPolicy"] = json!("SingleStack");
        }
        if spec.get("ipFamilies").is_none_or(|f| f.as_array().is_none_or(Vec::is_empty)) {
            spec["ipFamilies"] = json!(["IPv4"]);
        }
        if text(spec, "clusterIP").is_empty()
            && let Some(first) = spec.pointer("/clusterIPs/0").and_then(Value::as_str).map(String::from)
        {
            spec["clusterIP"] = json!(first);
        }
        if text(spec, "clusterIP") == "None" {
            spec["clusterIPs"] = json!(["None"]);
        }
        if wants_address(spec) {
            let wanted = text(spec, "clusterIP").to_string();
            let address = if wanted.is_empty() {
                self.any_address(reservation)?
            } else {
                let Ok(address) = wanted.parse::<Ipv4Addr>() else { return Ok(()) };
                if !own_addresses.contains(&u32::from(address)) {
                    self.this_address(address, reservation)?;
                }
                address
            };
            spec["clusterIP"] = json!(address.to_string());
            spec["clusterIPs"] = json!([address.to_string()]);
        }
        if wants_node_ports(spec) {
            self.assign_ports(spec, reservation, own_ports)?;
        }
        if wants_health_check(spec) {
            let path = Path::new("spec").child("healthCheckNodePort");
            let wanted = spec.get("healthCheckNodePort").and_then(Value::as_u64).unwrap_or(0);
            match u16::try_from(wanted) {
                Ok(0) => spec["healthCheckNodePort"] = json!(self.any_port(reservation, &path)?),
                Ok(port) if !own_ports.contains(&port) => self.this_port(port, reservation, &path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn this_address(
        &self,
        address: Ipv4Addr,
        reservation: &mut Reservation<'_>,
    ) -> Result<(), Box<field::FieldError>> {
        let path = Path::new("spec").child("clusterIPs");
        let bad = |why: String| {
            field::invalid(
                &path,
                json!([address.to_string()]),
                format!("failed to allocate IP {address}: {why}"),
            )
        };
        let number = u32::from(address);
        let offset = number.wrapping_sub(self.base);
        if offset == 0 || offset > self.size() {
            return Err(bad(format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}/{}",
                Ipv4Addr::from(self.base),
                self.prefix
            ))
            .into());
        }
        if !self.taken.lock().addresses.insert(number) {
            return Err(bad("provided IP is already allocated".to_string()).into());
        }
        reservation.addresses.push(number);
        Ok(())
    }

    fn any_address(&self, reservation: &mut Reservation<'_>) -> Result<Ipv4Addr, Box<field::FieldError>> {
        let size = self.size();
        // The lower band is left to those who name their address, as upstream does (KEP-3070).
        let band = (size / 16).clamp(16.min(size), 256.min(size));
        let upper = size - band;
        let start = if upper > 0 { rand::rng().random_range(0..upper) } else { 0 };
        let candidates = (0..upper).map(|step| band + (start + step) % upper).chain(0..band);
        let mut taken = self.taken.lock();
        for offset in candidates {
            let number = self.base + 1 + offset;
            if taken.addresses.insert(number) {
                reservation.addresses.push(number);
                return Ok(Ipv4Addr::from(number));
            }
        }
        Err(field::internal(
            &Path::new("spec").child("clusterIPs"),
            "failed to allocate a serviceIP: range is full",
        )
        .into())
    }

    fn assign_ports(
        &self,
        spec: &mut Value,
        reservation: &mut Reservation<'_>,
        own: &[u16],
    ) -> Result<(), Box<field::FieldError>> {
        let mut here: Vec<u16> = Vec::new();
        let Some(ports) = spec.get_mut("ports").and_then(Value::as_array_mut) else { return Ok(()) };
        for (at, port) in ports.iter_mut().enumerate() {
            let wanted = port.get("nodePort").and_then(Value::as_u64).unwrap_or(0);
            let path = Path::new("spec").child("ports").index(at).child("nodePort");
            let chosen = if wanted == 0 {
                self.any_port(reservation, &path)?
            } else {
                let Ok(number) = u16::try_from(wanted) else { continue };
                if !own.contains(&number) && !here.contains(&number) {
                    self.this_port(number, reservation, &path)?;
                }
                number
            };
            here.push(chosen);
            port["nodePort"] = json!(chosen);
        }
        Ok(())
    }

    fn this_port(
        &self,
        port: u16,
        reservation: &mut Reservation<'_>,
        path: &Path,
    ) -> Result<(), Box<field::FieldError>> {
        if port < self.ports.0 || port > self.ports.1 {
            return Err(field::invalid(
                path,
                json!(port),
                format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    self.ports.0, self.ports.1
                ),
            )
            .into());
        }
        let mut taken = self.taken.lock();
        if taken.ports.contains_key(&port) {
            return Err(field::invalid(path, json!(port), "provided port is already allocated").into());
        }
        taken.ports.insert(port, 1);
        reservation.ports.push(port);
        Ok(())
    }

    fn any_port(
        &self,
        reservation: &mut Reservation<'_>,
        path: &Path,
    ) -> Result<u16, Box<field::FieldError>> {
        let count = u32::from(self.ports.1) - u32::from(self.ports.0) + 1;
        let mut taken = self.taken.lock();
        let start = rand::rng().random_range(0..count);
        for step in 0..count {
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

/// A port that keeps its number and protocol keeps its node port.
fn keep_node_ports(spec: &mut Value, old: &Value) {
    let old_ports = old.get("ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut used: Vec<u64> = Vec::new();
    let Some(ports) = spec.get_mut("ports").and_then(Value::as_array_mut) else { return };
    for port in ports.iter() {
        used.extend(port.get("nodePort").and_then(Value::as_u64).filter(|p| *p > 0));
    }
    for port in ports {
        if port.get("nodePort").and_then(Value::as_u64).unwrap_or(0) != 0 {
            continue;
        }
        let same = old_ports.iter().find(|o| o["port"] == port["port"] && o["protocol"] == port["protocol"]);
        if let Some(number) = same.and_then(|o| o.get("nodePort")).and_then(Value::as_u64)
            && !used.contains(&number)
        {
            used.push(number);
            port["nodePort"] = json!(number);
        }
    }
}

fn invalid(name: &str, error: field::FieldError) -> ApiError {
    if error.kind == field::ErrorType::Internal {
        return ApiError::internal(error.detail);
    }
    ApiError::invalid("", "Service", name, vec![error])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn assign(allocators: &Allocators, spec: Value) -> Result<Value, String> {
        let mut spec = spec;
        let mut reservation = allocators.none();
        allocators.assign(&mut spec, &mut reservation, &[], &[]).map_err(|e| e.to_string())?;
        reservation.keep();
        Ok(spec)
    }

    #[test]
    fn addresses_and_ports() {
        let allocators = Allocators::new((Ipv4Addr::new(10, 96, 0, 0), 29), (30000, 30001));
        assert_eq!(allocators.first(), Ipv4Addr::new(10, 96, 0, 1));
        let mut seen = HashSet::new();
        for _ in 0..6 {
            let spec = assign(&allocators, json!({"type": "ClusterIP"})).unwrap();
            assert!(seen.insert(spec["clusterIP"].as_str().unwrap().to_string()));
        }
        assert!(assign(&allocators, json!({"type": "ClusterIP"})).unwrap_err().contains("range is full"));
        let headless = assign(&allocators, json!({"clusterIP": "None"})).unwrap();
        assert_eq!(headless["clusterIPs"], json!(["None"]));
        let outside = assign(&allocators, json!({"clusterIP": "10.0.0.1"})).unwrap_err();
        assert!(outside.contains("not in the valid range"), "{outside}");

        let allocators = Allocators::new((Ipv4Addr::new(10, 96, 0, 0), 16), (30000, 30001));
        let spec =
            assign(&allocators, json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81}]})).unwrap();
        assert_ne!(spec["ports"][0]["nodePort"], spec["ports"][1]["nodePort"]);
        let taken =
            assign(&allocators, json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30000}]}));
        assert!(taken.unwrap_err().contains("provided port is already allocated"));
    }

    #[test]
    fn failed_writes_give_back() {
        let allocators = Allocators::new((Ipv4Addr::new(10, 96, 0, 0), 16), (30000, 30000));
        let mut spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
        let mut reservation = allocators.none();
        allocators.assign(&mut spec, &mut reservation, &[], &[]).unwrap();
        drop(reservation);
        assign(&allocators, json!({"type": "NodePort", "ports": [{"port": 80}]})).unwrap();
    }
}
