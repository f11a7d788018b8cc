//! From Services and EndpointSlices to the rows of the table: a pure function, one Service at a time.
//!
//! It answers to upstream's `pkg/proxy` (endpoint categories, traffic policies) and KEP-1669 (terminating endpoints).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::rows::{Chain, Family, Frontend, Pick, Protocol, Row, Ruleset, Scope, Value};

/// The label by which another implementation claims a Service.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Upstream's default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// The rows of all of `services`; the first Service by order that claims a row has it. `slices` gives the
/// EndpointSlices of a Service.
pub fn desired<'a>(
    services: impl IntoIterator<Item = (&'a Service, Vec<&'a EndpointSlice>)>,
    node_name: &str,
) -> Ruleset {
    let mut ruleset = Ruleset::new();
    for (service, slices) in services {
        for (row, value) in service_rows(service, &slices, node_name) {
            ruleset.entry(row).or_insert(value);
        }
    }
    ruleset
}

/// The rows of one Service with its EndpointSlices, on node `node_name`. Empty for Services that are not proxied.
pub fn service_rows(service: &Service, slices: &[&EndpointSlice], node_name: &str) -> Ruleset {
    let mut rows = Ruleset::new();
    let Some(spec) = &service.spec else { return rows };
    let claimed = service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME));
    if claimed || spec.type_.as_deref() == Some("ExternalName") {
        return rows;
    }
    let cluster_ips: Vec<Ipv4Addr> = match (&spec.cluster_ips, &spec.cluster_ip) {
        (Some(ips), _) if !ips.is_empty() => ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
        (_, ip) => ip.iter().filter_map(|ip| ip.parse().ok()).collect(),
    };
    // Headless ("None"), not yet allocated, or IPv6 only.
    if cluster_ips.is_empty() {
        return rows;
    }
    for ip in &cluster_ips {
        rows.insert(Row::ClusterIp(*ip), Value::Present);
    }
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS);
        u32::try_from(seconds).unwrap_or(1)
    });
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let balancer_ips = load_balancer_ips(service);
    let external_ips: Vec<Ipv4Addr> = spec
        .external_ips
        .iter()
        .flatten()
        .filter_map(|ip| ip.parse().ok())
        .chain(balancer_ips.clone())
        .collect();
    let sources = source_ranges(spec.load_balancer_source_ranges.as_deref());

    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Ok(number)) =
            (Protocol::parse(port.protocol.as_deref()), u16::try_from(port.port))
        else {
            continue;
        };
        let endpoints = Endpoints::select(slices, port, node_name);
        let mut add = Rows { rows: &mut rows, endpoints: &endpoints, affinity };
        for ip in &cluster_ips {
            add.internal(Frontend::Address(*ip, protocol, number), internal_local);
        }
        for ip in &external_ips {
            add.external(Frontend::Address(*ip, protocol, number), external_local);
        }
        if let Some(node_port) =
            port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
        {
            add.external(Frontend::NodePort(protocol, node_port), external_local);
        }
        if let Some(sources) = &sources {
            for ip in &balancer_ips {
                let frontend = Frontend::Address(*ip, protocol, number);
                rows.insert(Row::Firewalled(frontend), Value::Present);
                for range in sources {
                    rows.insert(Row::AllowedSource(frontend, *range), Value::Present);
                }
            }
        }
    }
    rows
}

/// Load balancer addresses that are to be served by the node itself (`ipMode` VIP or absent).
fn load_balancer_ips(service: &Service) -> Vec<Ipv4Addr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    ingress
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
        .collect()
}

/// `None` when everybody may come. Ranges that contain each other are merged, as an interval set wants it.
fn source_ranges(ranges: Option<&[String]>) -> Option<Vec<Ipv4Net>> {
    let ranges = ranges.filter(|ranges| !ranges.is_empty())?;
    let parsed =
        ranges.iter().filter_map(|range| range.trim().parse::<Ipv4Net>().ok()).map(|net| net.trunc());
    let merged = Ipv4Net::aggregate(&parsed.collect::<Vec<_>>());
    (!merged.iter().any(|range| range.prefix_len() == 0)).then_some(merged)
}

/// The endpoints of one port that traffic may go to, by scope, in a stable order.
#[derive(Debug, Default)]
struct Endpoints {
    cluster: Vec<SocketAddrV4>,
    local: Vec<SocketAddrV4>,
}

#[derive(Debug, Clone, Copy)]
struct Condition {
    ready: bool,
    draining: bool,
    local: bool,
}

impl Endpoints {
    fn select(slices: &[&EndpointSlice], port: &ServicePort, node_name: &str) -> Self {
        let mut all: BTreeMap<SocketAddrV4, Condition> = BTreeMap::new();
        for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
            let wanted = slice.ports.iter().flatten().find(|candidate| {
                candidate.name.as_deref().unwrap_or("") == port.name.as_deref().unwrap_or("")
                    && candidate.protocol.as_deref().unwrap_or("TCP")
                        == port.protocol.as_deref().unwrap_or("TCP")
            });
            let Some(number) =
                wanted.and_then(|port| u16::try_from(port.port?).ok()).filter(|port| *port > 0)
            else {
                continue;
            };
            for endpoint in slice.endpoints.iter().flatten() {
                let Some(ip) = endpoint.addresses.first().and_then(|ip| ip.parse().ok()) else { continue };
                let conditions = endpoint.conditions.clone().unwrap_or_default();
                let ready = conditions.ready.unwrap_or(true);
                let serving = conditions.serving.unwrap_or(ready);
                let condition = Condition {
                    ready,
                    draining: serving && conditions.terminating.unwrap_or(false),
                    local: !node_name.is_empty() && endpoint.node_name.as_deref() == Some(node_name),
                };
                // An address that moves between slices may be in two for a moment; ready wins.
                let entry = all.entry(SocketAddrV4::new(ip, number)).or_insert(condition);
                entry.ready |= condition.ready;
                entry.local |= condition.local;
            }
        }
        Self { cluster: usable(&all, |_| true), local: usable(&all, |condition| condition.local) }
    }
}

/// Ready endpoints, or while there are none, those that still serve while they terminate.
fn usable(all: &BTreeMap<SocketAddrV4, Condition>, scope: impl Fn(&Condition) -> bool) -> Vec<SocketAddrV4> {
    let of = |wanted: fn(&Condition) -> bool| -> Vec<SocketAddrV4> {
        all.iter().filter(|(_, c)| scope(c) && wanted(c)).map(|(address, _)| *address).collect()
    };
    let ready = of(|condition| condition.ready);
    if ready.is_empty() { of(|condition| condition.draining) } else { ready }
}

/// Adds the rows of one port's frontends.
struct Rows<'a> {
    rows: &'a mut Ruleset,
    endpoints: &'a Endpoints,
    affinity: Option<u32>,
}

impl Rows<'_> {
    /// A cluster IP.
    fn internal(&mut self, frontend: Frontend, local_only: bool) {
        let backends = if local_only { &self.endpoints.local } else { &self.endpoints.cluster };
        if backends.is_empty() {
            let elsewhere = !self.endpoints.cluster.is_empty();
            return self.refuse(frontend, if elsewhere { Chain::Drop } else { Chain::Reject });
        }
        let pick = self.pick(frontend, Scope::Cluster, backends);
        self.serve(frontend, Chain::Internal(pick));
        self.hairpins();
    }

    /// An external IP, load balancer IP or node port.
    fn external(&mut self, frontend: Frontend, local_only: bool) {
        if self.endpoints.cluster.is_empty() && self.endpoints.local.is_empty() {
            return self.refuse(frontend, Chain::Reject);
        }
        let cluster = self.pick(frontend, Scope::Cluster, &self.endpoints.cluster);
        if local_only {
            self.pick(frontend, Scope::Local, &self.endpoints.local);
            let local = u32::try_from(self.endpoints.local.len()).unwrap_or(u32::MAX);
            self.serve(frontend, Chain::ExternalLocal { cluster, local });
        } else {
            self.serve(frontend, Chain::External(cluster));
        }
        self.hairpins();
    }

    /// The rows of a pool for one frontend, and how to pick from them.
    fn pick(&mut self, frontend: Frontend, scope: Scope, backends: &[SocketAddrV4]) -> Pick {
        for (index, endpoint) in (0u32..).zip(backends) {
            let value = match self.affinity {
                None => Value::Endpoint(*endpoint),
                Some(timeout) => {
                    let remember = Chain::Remember { endpoint: *endpoint, timeout };
                    self.rows.insert(Row::Chain(remember), Value::Present);
                    Value::Goto(remember)
                }
            };
            self.rows.insert(Row::Backend(scope, self.affinity.is_some(), frontend, index), value);
        }
        let family = match frontend {
            Frontend::Address(..) => Family::Address,
            Frontend::NodePort(..) => Family::NodePort,
        };
        let count = u32::try_from(backends.len()).unwrap_or(u32::MAX).max(1);
        Pick { family, scope, protocol: frontend.protocol(), count, affinity: self.affinity }
    }

    fn serve(&mut self, frontend: Frontend, chain: Chain) {
        self.chain(chain);
        self.rows.insert(Row::Service(frontend), Value::Goto(chain));
    }

    fn refuse(&mut self, frontend: Frontend, chain: Chain) {
        self.chain(chain);
        self.rows.insert(Row::Refused(frontend), Value::Goto(chain));
    }

    fn chain(&mut self, chain: Chain) {
        self.rows.insert(Row::Chain(chain), Value::Present);
        for needed in chain.needs() {
            self.chain(needed);
        }
    }

    fn hairpins(&mut self) {
        for endpoint in &self.endpoints.local {
            self.rows.insert(Row::Hairpin(*endpoint.ip()), Value::Present);
        }
    }
}

#[cfg(test)]
#[path = "desired_tests.rs"]
mod tests;
