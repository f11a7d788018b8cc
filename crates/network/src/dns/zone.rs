//! What the cluster's zone answers, from the caches, by index and never by scan.
//!
//! It follows the Kubernetes DNS-based service discovery specification, version 1.1.0, and, where that leaves room,
//! what upstream's default (CoreDNS with its `kubernetes` plug-in, `pods insecure`, TTL 30) answers.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_server::proto::rr::rdata::{CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use orlop_client::Informer;
use rand::seq::SliceRandom;

use crate::{NetworkOptions, proxy};

/// Seconds that a client may keep an answer.
const TTL: u32 = 30;
const SPECIFICATION: &str = "1.1.0";
const BY_CLUSTER_IP: &str = "network.orlop/cluster-ip";
const BY_ENDPOINT_IP: &str = "network.orlop/endpoint-ip";

/// What is known of a name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// The name exists. No answers means: not of the asked type.
    Records {
        /// In the answer section.
        answers: Vec<Record>,
        /// Addresses of the targets of answers.
        additionals: Vec<Record>,
    },
    /// The name is another name, which may lie outside the cluster.
    Alias(Name),
    /// The name is in the cluster's zones and does not exist.
    NoSuchName,
    /// The name is somebody else's.
    Foreign,
}

impl Answer {
    fn of(answers: Vec<Record>) -> Self {
        Self::Records { answers, additionals: Vec::new() }
    }

    fn nothing() -> Self {
        Self::of(Vec::new())
    }
}

/// The cluster's zone over the shared caches.
pub(crate) struct Zone {
    options: NetworkOptions,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    origin: Name,
    serial: u32,
}

impl Zone {
    pub(crate) fn new(
        options: NetworkOptions,
        services: Informer<Service>,
        slices: Informer<EndpointSlice>,
    ) -> Result<Self, String> {
        let origin = Name::from_ascii(format!("{}.", options.cluster_domain))
            .map_err(|error| format!("cluster domain {:?}: {error}", options.cluster_domain))?;
        services.add_index(BY_CLUSTER_IP, |service| {
            service.spec.as_ref().map(cluster_ips).into_iter().flatten().map(|ip| ip.to_string()).collect()
        });
        slices.add_index(BY_ENDPOINT_IP, |slice| {
            slice.endpoints.iter().flatten().flat_map(|endpoint| endpoint.addresses.iter().cloned()).collect()
        });
        proxy::index_slices(&slices);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let serial = u32::try_from(now.as_secs() & 0xffff_ffff).unwrap_or(1);
        Ok(Self { options, services, slices, origin, serial })
    }

    /// The record that tells clients how long an absence may be believed.
    pub(crate) fn soa(&self) -> Option<Record> {
        let mname = self.name(&["ns", "dns"])?;
        let rname = self.name(&["hostmaster"])?;
        let soa = SOA::new(mname, rname, self.serial, 7200, 1800, 86400, TTL);
        Some(Record::from_rdata(self.origin.clone(), TTL, RData::SOA(soa)))
    }

    /// A name in the zone.
    fn name(&self, labels: &[&str]) -> Option<Name> {
        Name::from_labels(labels.iter().map(|label| label.as_bytes())).ok()?.append_domain(&self.origin).ok()
    }

    /// What `name` is, for a question of type `kind`. Records carry the name as it was asked.
    pub(crate) fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let lower = name.to_lowercase();
        if !self.origin.zone_of(&lower) {
            return self.reverse(&lower, name, kind);
        }
        let depth = usize::from(lower.num_labels() - self.origin.num_labels());
        let labels: Option<Vec<&str>> =
            lower.iter().take(depth).map(|label| std::str::from_utf8(label).ok()).collect();
        let Some(labels) = labels else { return Answer::NoSuchName };
        match labels.as_slice() {
            [] => self.apex(name, kind),
            ["dns-version"] if kind == RecordType::TXT => {
                Answer::of(vec![record(name, RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()])))])
            }
            ["dns-version" | "svc" | "pod" | "dns"] => Answer::nothing(),
            ["ns", "dns"] => addresses(name, kind, self.options.cluster_dns.map(IpAddr::from)),
            [namespace, "svc" | "pod"] => {
                if self.services.list_namespace(namespace).is_empty() {
                    Answer::NoSuchName
                } else {
                    Answer::nothing()
                }
            }
            [dashed, _namespace, "pod"] => match pod_address(dashed) {
                Some(ip) => addresses(name, kind, [ip]),
                None => Answer::NoSuchName,
            },
            [service, namespace, "svc"] => self.service(name, kind, namespace, service, Part::Whole),
            [host, service, namespace, "svc"] if !host.starts_with('_') => {
                self.service(name, kind, namespace, service, Part::Endpoint(host))
            }
            [protocol, service, namespace, "svc"] => {
                self.service(name, kind, namespace, service, Part::Port(None, protocol))
            }
            [port, protocol, service, namespace, "svc"] => {
                self.service(name, kind, namespace, service, Part::Port(Some(port), protocol))
            }
            _ => Answer::NoSuchName,
        }
    }

    fn apex(&self, name: &Name, kind: RecordType) -> Answer {
        match kind {
            RecordType::SOA => Answer::of(self.soa().into_iter().collect()),
            RecordType::NS => {
                let target = self.name(&["ns", "dns"]);
                Answer::of(target.map(|target| record(name, RData::NS(NS(target)))).into_iter().collect())
            }
            _ => Answer::nothing(),
        }
    }

    fn service(
        &self,
        name: &Name,
        kind: RecordType,
        namespace: &str,
        service: &str,
        part: Part<'_>,
    ) -> Answer {
        let Some(object) = self.services.get(namespace, service) else { return Answer::NoSuchName };
        let Some(spec) = &object.spec else { return Answer::NoSuchName };
        if spec.type_.as_deref() == Some("ExternalName") {
            let target =
                spec.external_name.as_deref().map(|target| format!("{}.", target.trim_end_matches('.')));
            return match (part, target.and_then(|target| Name::from_ascii(target).ok())) {
                (Part::Whole, Some(target)) => Answer::Alias(target),
                _ => Answer::NoSuchName,
            };
        }
        let slices = self.slices.by_index(proxy::BY_SERVICE, &format!("{namespace}/{service}"));
        let headless = spec.cluster_ip.as_deref() == Some("None");
        match part {
            Part::Whole if kind == RecordType::SRV => {
                self.ports(name, namespace, service, spec, &slices, |_, _| true)
            }
            Part::Whole if !headless => addresses(name, kind, cluster_ips(spec)),
            Part::Whole => {
                let ips: BTreeSet<IpAddr> = ready(&slices).filter_map(address_of).collect();
                // Without endpoints the name still is a Service's, yet upstream says it does not exist.
                if ips.is_empty() { Answer::NoSuchName } else { addresses(name, kind, ips) }
            }
            Part::Endpoint(host) => {
                let ips: BTreeSet<IpAddr> = ready(&slices)
                    .filter(|endpoint| host_of(endpoint).is_some_and(|name| name == host))
                    .filter_map(address_of)
                    .collect();
                if ips.is_empty() { Answer::NoSuchName } else { addresses(name, kind, ips) }
            }
            Part::Port(port, protocol) => {
                let wanted = |name: &str, of: &str| {
                    port.is_none_or(|port| port.strip_prefix('_') == Some(name))
                        && protocol
                            .strip_prefix('_')
                            .is_some_and(|protocol| protocol.eq_ignore_ascii_case(of))
                };
                match self.ports(name, namespace, service, spec, &slices, wanted) {
                    Answer::Records { answers, .. } if answers.is_empty() => Answer::NoSuchName,
                    found if kind == RecordType::SRV => found,
                    _ => Answer::nothing(),
                }
            }
        }
    }

    /// The SRV records of the ports that `wanted(name, protocol)` picks: of the Service itself, or of each endpoint of
    /// a headless one.
    fn ports(
        &self,
        name: &Name,
        namespace: &str,
        service: &str,
        spec: &ServiceSpec,
        slices: &[std::sync::Arc<EndpointSlice>],
        wanted: impl Fn(&str, &str) -> bool,
    ) -> Answer {
        let mut targets: Vec<(u16, Name)> = Vec::new();
        let mut additionals: Vec<Record> = Vec::new();
        if spec.cluster_ip.as_deref() == Some("None") {
            let mut seen = BTreeSet::new();
            for slice in slices {
                for port in slice.ports.iter().flatten() {
                    let label = port.name.as_deref().unwrap_or("");
                    let Some(number) = port.port.and_then(|port| u16::try_from(port).ok()) else { continue };
                    if !wanted(label, port.protocol.as_deref().unwrap_or("TCP")) {
                        continue;
                    }
                    for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| is_ready(endpoint)) {
                        let (Some(ip), Some(host)) = (address_of(endpoint), host_of(endpoint)) else {
                            continue;
                        };
                        let Some(target) = self.name(&[&host, service, namespace, "svc"]) else { continue };
                        if seen.insert((number, host.clone(), ip)) {
                            additionals.push(record(&target, RData::from(ip)));
                            if !targets.contains(&(number, target.clone())) {
                                targets.push((number, target));
                            }
                        }
                    }
                }
            }
            additionals.sort_by_key(|record| record.to_string());
            additionals.dedup();
        } else if let Some(target) = self.name(&[service, namespace, "svc"]) {
            for port in spec.ports.iter().flatten() {
                let label = port.name.as_deref().unwrap_or("");
                if let Ok(number) = u16::try_from(port.port)
                    && wanted(label, port.protocol.as_deref().unwrap_or("TCP"))
                {
                    targets.push((number, target.clone()));
                }
            }
            if !targets.is_empty() {
                additionals.extend(cluster_ips(spec).into_iter().map(|ip| record(&target, RData::from(ip))));
            }
        }
        let weight = u16::try_from(100 / targets.len().max(1)).unwrap_or(1).max(1);
        let answers = targets
            .into_iter()
            .map(|(port, target)| record(name, RData::SRV(SRV::new(0, weight, port, target))))
            .collect();
        Answer::Records { answers, additionals }
    }

    /// Names of addresses of the cluster's ranges.
    fn reverse(&self, lower: &Name, name: &Name, kind: RecordType) -> Answer {
        let Some(ip) = lower.parse_arpa_name().ok().and_then(|network| match network {
            ipnet::IpNet::V4(network) if network.prefix_len() == 32 => Some(network.addr()),
            _ => None,
        }) else {
            return Answer::Foreign;
        };
        let text = ip.to_string();
        let mut names: Vec<Name> = Vec::new();
        for service in self.services.by_index(BY_CLUSTER_IP, &text) {
            let (service, namespace) =
                (service.metadata.name.as_deref(), service.metadata.namespace.as_deref());
            names.extend(self.name(&[service.unwrap_or(""), namespace.unwrap_or(""), "svc"]));
        }
        if names.is_empty() {
            for slice in self.slices.by_index(BY_ENDPOINT_IP, &text) {
                let Some(owner) = proxy::owner_of(&slice) else { continue };
                for endpoint in
                    slice.endpoints.iter().flatten().filter(|endpoint| endpoint.addresses.contains(&text))
                {
                    if let Some(host) = host_of(endpoint) {
                        names.extend(self.name(&[&host, &owner.name, &owner.namespace, "svc"]));
                    }
                }
            }
        }
        names.sort();
        names.dedup();
        let ours = self.options.service_cidr.contains(&ip) || self.options.cluster_cidr.contains(&ip);
        match (names.is_empty(), ours) {
            (false, _) if kind == RecordType::PTR => {
                Answer::of(names.into_iter().map(|target| record(name, RData::PTR(PTR(target)))).collect())
            }
            (false, _) => Answer::nothing(),
            (true, true) => Answer::NoSuchName,
            (true, false) => Answer::Foreign,
        }
    }

    /// The answer's record for an alias.
    pub(crate) fn alias(name: &Name, target: &Name) -> Record {
        record(name, RData::CNAME(CNAME(target.clone())))
    }
}

/// What of a Service a name means.
#[derive(Debug, Clone, Copy)]
enum Part<'a> {
    Whole,
    /// `<hostname or dashed address>.<service>`
    Endpoint(&'a str),
    /// `_<port>._<protocol>.<service>`; without a port all of the protocol.
    Port(Option<&'a str>, &'a str),
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

/// The addresses of the asked family, in an order that changes from answer to answer.
fn addresses(name: &Name, kind: RecordType, ips: impl IntoIterator<Item = IpAddr>) -> Answer {
    let wanted = |ip: &IpAddr| match kind {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    let mut answers: Vec<Record> =
        ips.into_iter().filter(wanted).map(|ip| record(name, RData::from(ip))).collect();
    answers.shuffle(&mut rand::rng());
    Answer::of(answers)
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let list = spec.cluster_ips.as_deref().filter(|list| !list.is_empty());
    let one = spec.cluster_ip.as_slice();
    list.unwrap_or(one).iter().filter_map(|ip| ip.parse().ok()).collect()
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready.unwrap_or(true))
}

fn ready(slices: &[std::sync::Arc<EndpointSlice>]) -> impl Iterator<Item = &Endpoint> {
    slices.iter().flat_map(|slice| slice.endpoints.iter().flatten()).filter(|endpoint| is_ready(endpoint))
}

fn address_of(endpoint: &Endpoint) -> Option<IpAddr> {
    endpoint.addresses.first()?.parse().ok()
}

/// An endpoint's label below its Service: its host name, else its address with dashes.
fn host_of(endpoint: &Endpoint) -> Option<String> {
    match endpoint.hostname.as_deref() {
        Some(host) if !host.is_empty() => Some(host.to_owned()),
        _ => Some(endpoint.addresses.first()?.replace(['.', ':'], "-")),
    }
}

fn pod_address(dashed: &str) -> Option<IpAddr> {
    let v4 = dashed.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::from);
    v4.or_else(|_| dashed.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::from)).ok()
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
