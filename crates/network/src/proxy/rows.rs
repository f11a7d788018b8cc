//! What the nftables table holds for Services, as values: one [`Row`] is one chain or one element of a set or map.
//! Nothing here knows Services or nft's syntax errors; it only knows the names and the spelling of rows.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

/// The protocol of a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// `TCP`.
    Tcp,
    /// `UDP`.
    Udp,
    /// `SCTP`.
    Sctp,
}

impl Protocol {
    /// From the API's spelling; an absent protocol is TCP.
    pub fn parse(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Where a Service is met: an address and port, or a node port, which is met on every address of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Frontend {
    /// A cluster IP, external IP or load balancer IP.
    Address(Ipv4Addr, Protocol, u16),
    /// A node port.
    NodePort(Protocol, u16),
}

impl Frontend {
    /// The protocol.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Address(_, protocol, _) | Self::NodePort(protocol, _) => protocol,
        }
    }

    /// The prefix of the names of the maps that hold this kind of frontend.
    fn family(self) -> Family {
        match self {
            Self::Address(..) => Family::Address,
            Self::NodePort(..) => Family::NodePort,
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip, protocol, port) => write!(f, "{ip} . {protocol} . {port}"),
            Self::NodePort(protocol, port) => write!(f, "{protocol} . {port}"),
        }
    }
}

/// The two shapes of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// address . protocol . port
    Address,
    /// protocol . port
    NodePort,
}

impl Family {
    /// The part of a packet that is looked up.
    pub fn key(self) -> &'static str {
        match self {
            Self::Address => "ip daddr . meta l4proto . th dport",
            Self::NodePort => "meta l4proto . th dport",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::NodePort => "node-port",
        }
    }
}

/// Which endpoints: of the whole cluster, or of this node only (`externalTrafficPolicy: Local`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// All.
    Cluster,
    /// Those on this node.
    Local,
}

/// A map of backends: frontend . index → endpoint, or → the chain that remembers the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pool {
    /// Shape of the key.
    pub family: Family,
    /// Which endpoints.
    pub scope: Scope,
    /// `None` when the client's choice is remembered (`sessionAffinity: ClientIP`). Else endpoints of this protocol:
    /// nft knows the port of an endpoint only as the port of some protocol.
    pub protocol: Option<Protocol>,
}

impl Pool {
    /// All pools.
    pub fn all() -> impl Iterator<Item = Self> {
        const CONTENTS: [Option<Protocol>; 4] =
            [None, Some(Protocol::Tcp), Some(Protocol::Udp), Some(Protocol::Sctp)];
        [Family::Address, Family::NodePort].into_iter().flat_map(|family| {
            [Scope::Cluster, Scope::Local].into_iter().flat_map(move |scope| {
                CONTENTS.into_iter().map(move |protocol| Self { family, scope, protocol })
            })
        })
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.family.word())?;
        f.write_str(match self.scope {
            Scope::Cluster => "",
            Scope::Local => "-local",
        })?;
        match self.protocol {
            None => f.write_str("-sticky-backends"),
            Some(protocol) => write!(f, "-{protocol}-backends"),
        }
    }
}

/// Picks one of `count` backends at random from the map of its shape and goes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pick {
    /// Shape of the key.
    pub family: Family,
    /// Which endpoints.
    pub scope: Scope,
    /// Of which protocol.
    pub protocol: Protocol,
    /// At least 1.
    pub count: u32,
    /// `ClientIP` affinity and its timeout in seconds.
    pub affinity: Option<u32>,
}

impl Pick {
    /// Where it picks from.
    pub fn pool(self) -> Pool {
        let protocol = self.affinity.is_none().then_some(self.protocol);
        Pool { family: self.family, scope: self.scope, protocol }
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.family.word())?;
        f.write_str(match self.scope {
            Scope::Cluster => "-cluster",
            Scope::Local => "-local",
        })?;
        write!(f, "-{}-{}", self.protocol, self.count)?;
        match self.affinity {
            Some(seconds) => write!(f, "-sticky-{seconds}"),
            None => Ok(()),
        }
    }
}

/// A chain whose rules follow from its name. Services of the same shape share it, so there are few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Chain {
    /// To a random backend.
    Pick(Pick),
    /// For cluster IPs: masquerades clients from outside the cluster, then picks.
    Internal(Pick),
    /// For other frontends: masquerades every client, then picks.
    External(Pick),
    /// For other frontends with `externalTrafficPolicy: Local`: clients in the cluster reach all endpoints, others
    /// those of this node with their own address, or nothing.
    ExternalLocal {
        /// For clients in the cluster and on the node.
        cluster: Pick,
        /// How many of the endpoints are on this node.
        local: u32,
    },
    /// Remembers the endpoint for the client for `timeout` seconds, and goes there.
    Remember {
        /// The endpoint.
        endpoint: SocketAddrV4,
        /// Seconds.
        timeout: u32,
    },
    /// Rejects: the Service has no endpoints.
    Reject,
    /// Drops: the Service has endpoints, but its traffic policy leaves none to this node.
    Drop,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pick(pick) => write!(f, "pick-{pick}"),
            Self::Internal(pick) => write!(f, "internal-{pick}"),
            Self::External(pick) => write!(f, "external-{pick}"),
            Self::ExternalLocal { cluster, local } => write!(f, "external-{cluster}-local-{local}"),
            Self::Remember { endpoint, timeout } => {
                write!(f, "remember-{}-{}-{timeout}", endpoint.ip(), endpoint.port())
            }
            Self::Reject => f.write_str("reject-no-endpoints"),
            Self::Drop => f.write_str("drop-no-local-endpoints"),
        }
    }
}

impl Chain {
    /// The local half of [`Chain::ExternalLocal`].
    fn local_pick(cluster: Pick, local: u32) -> Option<Pick> {
        (local > 0).then_some(Pick { scope: Scope::Local, count: local, ..cluster })
    }

    /// The chains that this one's rules jump to.
    pub fn needs(self) -> Vec<Chain> {
        match self {
            Self::Internal(pick) | Self::External(pick) => vec![Self::Pick(pick)],
            Self::ExternalLocal { cluster, local } => {
                let local = Self::local_pick(cluster, local).map(Self::Pick);
                std::iter::once(Self::Pick(cluster)).chain(local).collect()
            }
            Self::Pick(_) | Self::Remember { .. } | Self::Reject | Self::Drop => vec![],
        }
    }

    /// Its rules, in order.
    pub fn rules(self, cluster_cidr: Ipv4Net) -> Vec<String> {
        const CLIENT: &str = "ip saddr . ip daddr . meta l4proto . th dport";
        match self {
            Self::Pick(pick) => {
                let (pool, key, count) = (pick.pool(), pick.family.key(), pick.count);
                match pick.affinity {
                    None => vec![format!("dnat ip to {key} . numgen random mod {count} map @{pool}")],
                    Some(timeout) => vec![
                        // The data of an element that is there stays; only its time begins again.
                        format!(
                            "{CLIENT} @affinity update @affinity {{ {CLIENT} timeout {timeout}s : ip daddr . th dport }}"
                        ),
                        format!("dnat ip to {CLIENT} map @affinity"),
                        format!("{key} . numgen random mod {count} vmap @{pool}"),
                    ],
                }
            }
            Self::Internal(pick) => vec![
                format!("ip saddr != {cluster_cidr} meta mark set meta mark or {MASQUERADE_MARK:#x}"),
                format!("goto {}", Self::Pick(pick)),
            ],
            Self::External(pick) => vec![
                format!("meta mark set meta mark or {MASQUERADE_MARK:#x}"),
                format!("goto {}", Self::Pick(pick)),
            ],
            Self::ExternalLocal { cluster, local } => {
                let all = Self::Pick(cluster);
                let rest = match Self::local_pick(cluster, local) {
                    Some(pick) => format!("goto {}", Self::Pick(pick)),
                    None => "drop".to_owned(),
                };
                vec![
                    format!("ip saddr {cluster_cidr} goto {all}"),
                    format!(
                        "fib saddr type local meta mark set meta mark or {MASQUERADE_MARK:#x} goto {all}"
                    ),
                    rest,
                ]
            }
            Self::Remember { endpoint, timeout } => {
                let to = format!("{} . {}", endpoint.ip(), endpoint.port());
                vec![
                    format!("update @affinity {{ {CLIENT} timeout {timeout}s : {to} }}"),
                    format!("meta l4proto {{ tcp, udp, sctp }} dnat ip to {endpoint}"),
                ]
            }
            // Either way the client sees "connection refused", but the kernel limits ICMP to one a second and client.
            Self::Reject => vec!["meta l4proto tcp reject with tcp reset".to_owned(), "reject".to_owned()],
            Self::Drop => vec!["drop".to_owned()],
        }
    }
}

/// The packet mark of connections to be masqueraded: bit 14, as upstream's proxy uses by default.
pub const MASQUERADE_MARK: u32 = 0x4000;

/// The key of one thing in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Row {
    /// A chain.
    Chain(Chain),
    /// `cluster-ips`: an allocated cluster IP; ports of it that no Service has are rejected.
    ClusterIp(Ipv4Addr),
    /// `address-services` and `node-port-services`: frontend → chain in the NAT hooks.
    Service(Frontend),
    /// A [`Pool`]: frontend . index → endpoint, or, where the flag says that clients stick, [`Chain::Remember`].
    Backend(Scope, bool, Frontend, u32),
    /// `address-refused` and `node-port-refused`: frontend → [`Chain::Reject`] or [`Chain::Drop`] in the filter hooks.
    Refused(Frontend),
    /// `hairpin`: a pod of this node that may meet itself through a Service.
    Hairpin(Ipv4Addr),
    /// `service-ranges`: addresses that no Service has are dropped.
    ServiceRange(Ipv4Net),
    /// `firewalled`: a load balancer frontend that only some clients may use.
    Firewalled(Frontend),
    /// `allowed-sources`: such a client range.
    AllowedSource(Frontend, Ipv4Net),
}

/// What a key maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// Nothing: an element of a set, or a chain.
    Present,
    /// A verdict: go to this chain.
    Goto(Chain),
    /// An endpoint.
    Endpoint(SocketAddrV4),
}

/// All that the table should hold for some or all Services.
pub type Ruleset = BTreeMap<Row, Value>;

impl Row {
    /// The set or map the row is an element of; `None` for chains.
    pub fn set(self) -> Option<String> {
        Some(match self {
            Self::Chain(_) => return None,
            Self::ClusterIp(_) => "cluster-ips".to_owned(),
            Self::Service(frontend) => format!("{}-services", frontend.family().word()),
            Self::Backend(scope, sticky, frontend, _) => {
                let protocol = (!sticky).then(|| frontend.protocol());
                Pool { family: frontend.family(), scope, protocol }.to_string()
            }
            Self::Refused(frontend) => format!("{}-refused", frontend.family().word()),
            Self::Hairpin(_) => "hairpin".to_owned(),
            Self::ServiceRange(_) => "service-ranges".to_owned(),
            Self::Firewalled(_) => "firewalled".to_owned(),
            Self::AllowedSource(..) => "allowed-sources".to_owned(),
        })
    }

    /// The element's key in nft's spelling; a chain's name.
    pub fn key(self) -> String {
        match self {
            Self::Chain(chain) => chain.to_string(),
            Self::ClusterIp(ip) => ip.to_string(),
            Self::Service(frontend) | Self::Refused(frontend) | Self::Firewalled(frontend) => {
                frontend.to_string()
            }
            Self::Backend(_, _, frontend, index) => format!("{frontend} . {index}"),
            Self::Hairpin(ip) => format!("{ip} . {ip}"),
            Self::ServiceRange(range) => range.to_string(),
            Self::AllowedSource(frontend, range) => format!("{frontend} . {range}"),
        }
    }
}

impl Value {
    /// The element's data in nft's spelling with the colon before it; empty for sets.
    pub fn data(self) -> String {
        match self {
            Self::Present => String::new(),
            Self::Goto(chain) => format!(" : goto {chain}"),
            Self::Endpoint(endpoint) => format!(" : {} . {}", endpoint.ip(), endpoint.port()),
        }
    }
}
