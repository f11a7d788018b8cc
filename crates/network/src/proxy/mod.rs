//! The service proxy: keeps the instance's nftables table equal to what Services and EndpointSlices say.
//!
//! What the table should hold is decided by pure functions ([`desired`], [`diff`]); this module only gathers which
//! Services changed, runs one transaction for them, and clears what the kernel remembers of endpoints that went. It
//! answers to upstream's kube-proxy in nftables mode (KEP-3866).

mod claims;
mod conntrack;
mod desired;
mod diff;
pub(crate) mod rows;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use orlop_client::{Informer, ObjectKey};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{NetworkError, NetworkOptions, Result, netlink, nft, table};

use claims::Claims;
pub use desired::{desired, service_rows};
pub use diff::{Change, changes, diff, render};
pub use rows::{Chain, Family, Frontend, Pick, Pool, Protocol, Row, Ruleset, Scope, Value};

/// The index of EndpointSlices by `namespace/service`.
pub(crate) const BY_SERVICE: &str = "network.orlop/service";
/// Changes that come this close together share a transaction.
const BATCH: Duration = Duration::from_millis(10);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// `namespace/service` of the Service a slice belongs to.
pub(crate) fn owner_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
    Some(ObjectKey::new(slice.metadata.namespace.clone().unwrap_or_default(), name.clone()))
}

pub(crate) fn index_slices(slices: &Informer<EndpointSlice>) {
    slices.add_index(BY_SERVICE, |slice| owner_of(slice).map(|key| key.to_string()).into_iter().collect());
}

/// Services whose rows may be out of date.
#[derive(Default)]
struct Dirty {
    keys: Mutex<HashSet<ObjectKey>>,
    wake: Notify,
}

impl Dirty {
    fn add(&self, key: ObjectKey) {
        self.keys.lock().insert(key);
        self.wake.notify_one();
    }

    fn take(&self) -> HashSet<ObjectKey> {
        std::mem::take(&mut *self.keys.lock())
    }
}

/// The IPv4 ranges that Services get their addresses from: the cluster's first one, and those that ServiceCIDRs add,
/// without those within others.
pub(crate) fn service_ranges(first: Ipv4Net, added: &Informer<ServiceCIDR>) -> Vec<Ipv4Net> {
    let mut ranges = vec![first.trunc()];
    for object in added.list() {
        let texts = object.spec.as_ref().and_then(|spec| spec.cidrs.as_ref()).into_iter().flatten();
        ranges.extend(texts.filter_map(|text| Some(text.parse::<Ipv4Net>().ok()?.trunc())));
    }
    Ipv4Net::aggregate(&ranges)
}

/// The proxy of one node. Works in the network namespace of the process.
pub struct ServiceProxy {
    options: NetworkOptions,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    cidrs: Informer<ServiceCIDR>,
}

impl ServiceProxy {
    /// A proxy that reads these caches. Fails when the options cannot name a table.
    pub fn new(
        options: NetworkOptions,
        services: Informer<Service>,
        slices: Informer<EndpointSlice>,
        cidrs: Informer<ServiceCIDR>,
    ) -> Result<Self> {
        options.validate()?;
        index_slices(&slices);
        Ok(Self { options, services, slices, cidrs })
    }

    /// Runs until `shutdown`. The table stays when it ends: connections go on while no proxy runs, and the next one
    /// takes the table over in one transaction. Failures are logged and retried.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            shutdown.run_until_cancelled(self.serve()).await;
        })
    }

    async fn serve(&self) {
        tokio::join!(self.services.synced(), self.slices.synced(), self.cidrs.synced());
        let dirty = Arc::new(Dirty::default());
        let mark = dirty.clone();
        self.services.subscribe(move |event| mark.add(ObjectKey::of(&event.object().metadata)));
        let mark = dirty.clone();
        self.slices.subscribe(move |event| {
            if let orlop_client::InformerEvent::Updated { old, .. } = event
                && let Some(owner) = owner_of(old)
            {
                mark.add(owner);
            }
            if let Some(owner) = owner_of(event.object()) {
                mark.add(owner);
            }
        });

        let again = dirty.clone();
        self.cidrs.subscribe(move |_| again.wake.notify_one());

        let mut claims = Claims::default();
        let mut ranges = Vec::new();
        let mut loaded = false;
        let mut retry = FIRST_RETRY;
        loop {
            let start = Instant::now();
            let keys = dirty.take();
            let mut changes = BTreeMap::new();
            for key in &keys {
                claims.update(key, self.rows(key), &mut changes);
            }
            let now = service_ranges(self.options.service_cidr, &self.cidrs);
            if ranges != now {
                ranges = now;
                loaded = false;
            }
            let result = if loaded { self.apply(&changes).await } else { self.load(&claims, &ranges).await };
            match result {
                Ok(()) => {
                    if !loaded {
                        info!(
                            table = self.options.instance,
                            services = claims.len(),
                            took_ms = start.elapsed().as_millis(),
                            "service proxy is in charge"
                        );
                    }
                    if loaded {
                        self.forget(&claims, &changes).await;
                    } else {
                        self.forget_unknown(&claims, &ranges).await;
                    }
                    loaded = true;
                    retry = FIRST_RETRY;
                    dirty.wake.notified().await;
                    tokio::time::sleep(BATCH).await;
                }
                Err(error) => {
                    // Whatever the table holds now, the next attempt writes all of it.
                    loaded = false;
                    warn!(%error, retry_in_s = retry.as_secs(), "Services are not programmed");
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(LAST_RETRY);
                }
            }
        }
    }

    fn rows(&self, key: &ObjectKey) -> Ruleset {
        let Some(service) = self.services.get_key(key) else { return Ruleset::new() };
        let slices = self.slices.by_index(BY_SERVICE, &key.to_string());
        let slices: Vec<&EndpointSlice> = slices.iter().map(AsRef::as_ref).collect();
        service_rows(&service, &slices, &self.options.node_name)
    }

    /// Makes the table hold exactly what is claimed, in one transaction, whatever it held before.
    async fn load(&self, claims: &Claims, ranges: &[Ipv4Net]) -> Result<()> {
        let options = &self.options;
        let table = &options.instance;
        table::ensure(options).await?;
        self.host_routes(ranges).await?;
        let mut wanted = claims.ruleset();
        wanted.extend(ranges.iter().map(|range| (Row::ServiceRange(*range), Value::Present)));
        let names: BTreeSet<String> =
            wanted.keys().filter(|row| matches!(row, Row::Chain(_))).map(|row| row.key()).collect();
        let stale = table::service_chains(options).await?;
        let stale: Vec<_> = stale.iter().filter(|name| !names.contains(*name)).collect();
        let mut text = table::skeleton(options);
        for (name, declaration) in table::proxy_sets() {
            let kind = declaration.split(' ').next().unwrap_or("set");
            let _ = writeln!(text, "flush {kind} ip {table} {name}");
        }
        for chain in &stale {
            let _ = writeln!(text, "flush chain ip {table} {chain}");
        }
        text.push_str(&diff(table, options.cluster_cidr, &Ruleset::new(), &wanted));
        // Chains that stay may still point to stale ones until the lines above have filled them again.
        for chain in &stale {
            let _ = writeln!(text, "delete chain ip {table} {chain}");
        }
        nft::apply(table, &text).await
    }

    async fn apply(&self, changes: &BTreeMap<Row, (Option<Value>, Option<Value>)>) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let changes: Vec<Change> = changes.iter().map(|(row, (old, new))| (*row, *old, *new)).collect();
        let text = render(&self.options.instance, self.options.cluster_cidr, &changes);
        debug!(rows = changes.len(), "changing the nftables table");
        nft::apply(&self.options.instance, &text).await
    }

    /// A host without a default route would find cluster IPs unreachable before nftables sees the packet.
    async fn host_routes(&self, ranges: &[Ipv4Net]) -> Result<()> {
        let handle = netlink::connect()?;
        let Some(index) = netlink::link_index(&handle, "lo").await? else {
            return Err(NetworkError::Other("this network namespace has no loopback interface lo".into()));
        };
        netlink::set_up(&handle, index, "lo").await?;
        let present = netlink::ipv4_routes(&handle).await?;
        for range in ranges {
            // Whatever leads there by somebody else's will does as well, and may be the node's own link.
            let foreign = |(to, route): &(Ipv4Net, _)| to == range && !netlink::is_own(route);
            if !present.iter().any(foreign) {
                netlink::replace_route(&handle, *range, netlink::NextHop::Device(index)).await?;
            }
        }
        for (destination, route) in present {
            let own = netlink::is_own(&route) && netlink::leads_to(&route, index);
            if own && !ranges.contains(&destination) {
                netlink::delete_route(&handle, destination, route).await?;
            }
        }
        Ok(())
    }

    /// Clears what the kernel remembers of endpoints that are gone: UDP flows, which never end by themselves, and
    /// clients' affinity.
    async fn forget(&self, claims: &Claims, changes: &BTreeMap<Row, (Option<Value>, Option<Value>)>) {
        let gone = gone_endpoints(changes, |row| matches!(row, Row::Backend(_, true, ..)));
        if !gone.is_empty() {
            let is_gone = |frontend: Frontend, endpoint: SocketAddrV4| {
                gone.get(&frontend).is_some_and(|gone| gone.contains(&endpoint))
            };
            self.forget_affinity(claims, is_gone).await;
        }
        let udp = |frontend: Frontend| frontend.protocol() == Protocol::Udp;
        let gone =
            gone_endpoints(changes, |row| matches!(row, Row::Backend(_, _, frontend, _) if udp(*frontend)));
        let come = changes.iter().filter_map(|(row, (old, new))| match row {
            Row::Service(frontend) if udp(*frontend) && old.is_none() && new.is_some() => Some(*frontend),
            _ => None,
        });
        let come: Vec<_> = come.collect();
        if !gone.is_empty() || !come.is_empty() {
            // A process an endpoint: the next change of the table must not wait for them.
            tokio::spawn(async move { conntrack::forget(&gone, &come).await });
        }
    }

    /// The same after a full load, when nobody can say what changed: everything that leads to what is no backend.
    async fn forget_unknown(&self, claims: &Claims, ranges: &[Ipv4Net]) {
        let backends = backends(&claims.ruleset());
        let unknown = |frontend: Frontend, endpoint: SocketAddrV4| match (backends.get(&frontend), frontend) {
            (Some(backends), _) => !backends.contains(&endpoint),
            // The Service is gone; other addresses and ports are none of ours.
            (None, Frontend::Address(ip, ..)) => ranges.iter().any(|range| range.contains(&ip)),
            (None, Frontend::NodePort(..)) => false,
        };
        self.forget_affinity(claims, unknown).await;
        conntrack::forget_flows(|ip, port, endpoint| {
            unknown(frontend_of(claims, ip, Protocol::Udp, port), endpoint)
        })
        .await;
    }

    async fn forget_affinity(&self, claims: &Claims, stale: impl Fn(Frontend, SocketAddrV4) -> bool) {
        let table = &self.options.instance;
        let forget = async {
            let Some(listing) = nft::query(table, &["-j", "list", "map", "ip", table, "affinity"]).await?
            else {
                return Ok(());
            };
            let stale = conntrack::stale_affinity(&listing, |ip, protocol, port, endpoint| {
                stale(frontend_of(claims, ip, protocol, port), endpoint)
            })?;
            if stale.is_empty() {
                return Ok(());
            }
            nft::apply(table, &format!("delete element ip {table} affinity {{ {} }}\n", stale.join(", ")))
                .await
        };
        let result: Result<()> = forget.await;
        if let Err(error) = result {
            warn!(%error, "client affinity to removed endpoints could not be cleared");
        }
    }
}

/// The frontend that a client met at an address: node ports are met at any address of the node.
fn frontend_of(claims: &Claims, ip: Ipv4Addr, protocol: Protocol, port: u16) -> Frontend {
    let node_port = Frontend::NodePort(protocol, port);
    let address = Frontend::Address(ip, protocol, port);
    let known = |frontend| claims.holds(Row::Service(frontend)) || claims.holds(Row::Refused(frontend));
    if !known(address) && known(node_port) { node_port } else { address }
}

/// Per frontend, its backends.
fn backends(ruleset: &Ruleset) -> BTreeMap<Frontend, BTreeSet<SocketAddrV4>> {
    let mut backends: BTreeMap<Frontend, BTreeSet<SocketAddrV4>> = BTreeMap::new();
    for (row, value) in ruleset {
        match row {
            Row::Backend(_, _, frontend, _) => {
                backends.entry(*frontend).or_default().extend(endpoint_of(value))
            }
            Row::Refused(frontend) => {
                backends.entry(*frontend).or_default();
            }
            _ => {}
        }
    }
    backends
}

fn endpoint_of(value: &Value) -> Option<SocketAddrV4> {
    match value {
        Value::Endpoint(endpoint) | Value::Goto(Chain::Remember { endpoint, .. }) => Some(*endpoint),
        _ => None,
    }
}

/// Per frontend, the endpoints that were among its backends before `changes` and are not after.
fn gone_endpoints(
    changes: &BTreeMap<Row, (Option<Value>, Option<Value>)>,
    of: impl Fn(&Row) -> bool,
) -> BTreeMap<Frontend, BTreeSet<SocketAddrV4>> {
    let mut gone: BTreeMap<Frontend, BTreeSet<SocketAddrV4>> = BTreeMap::new();
    let mut present: BTreeMap<Frontend, BTreeSet<SocketAddrV4>> = BTreeMap::new();
    for (row, (old, new)) in changes.iter().filter(|(row, _)| of(row)) {
        if let Row::Backend(_, _, frontend, _) = row {
            gone.entry(*frontend).or_default().extend(old.as_ref().and_then(endpoint_of));
            present.entry(*frontend).or_default().extend(new.as_ref().and_then(endpoint_of));
        }
    }
    for (frontend, endpoints) in &mut gone {
        if let Some(present) = present.get(frontend) {
            endpoints.retain(|endpoint| !present.contains(endpoint));
        }
    }
    gone.retain(|_, endpoints| !endpoints.is_empty());
    gone
}
