//! Cluster DNS: answers on the node itself, at the cluster DNS address, from the informers' caches.
//!
//! It stands where upstream clusters run CoreDNS pods. [`zone`] knows what the cluster's names mean, [`forward`] asks
//! the host's resolvers about all others; this module is the sockets and the messages between them.

mod forward;
mod zone;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::{Name, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use orlop_client::Informer;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::error::{NetworkError, Result};
use crate::{NetworkOptions, netlink};
use forward::Forwarder;
use zone::{Answer, Zone};

/// How long a TCP client may be silent.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Answers that may wait for a slow TCP client.
const TCP_BUFFER: usize = 32;
/// Aliases of aliases that are followed.
const ALIASES: usize = 8;

/// Options of [`ClusterDns`] alone.
#[derive(Debug, Clone)]
pub struct DnsOptions {
    /// Where the host's resolvers are listed.
    pub resolv_conf: PathBuf,
    /// The port at the cluster DNS address, 53 in clusters.
    pub port: u16,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self { resolv_conf: PathBuf::from("/etc/resolv.conf"), port: 53 }
    }
}

/// The DNS server of a node, in the network namespace of the process.
pub struct ClusterDns {
    address: Ipv4Addr,
    port: u16,
    resolver: Arc<Resolver>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
}

impl ClusterDns {
    /// A server that reads these caches. Fails when the options have no cluster DNS address or no usable domain.
    pub fn new(
        options: NetworkOptions,
        dns: DnsOptions,
        services: Informer<Service>,
        slices: Informer<EndpointSlice>,
    ) -> Result<Self> {
        let Some(address) = options.cluster_dns else {
            return Err(NetworkError::Options("cluster DNS has no address".into()));
        };
        let forwarder = Forwarder::new(dns.resolv_conf, Some(address));
        let zone = Zone::new(options, services.clone(), slices.clone()).map_err(NetworkError::Options)?;
        Ok(Self {
            address,
            port: dns.port,
            resolver: Arc::new(Resolver { zone, forwarder }),
            services,
            slices,
        })
    }

    /// Answers until `shutdown`; the address stays on `lo`. It begins when the caches are filled: before that,
    /// silence, which clients retry, is better than a wrong "no such name". Failures are logged and retried.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(self.answer_until(shutdown))
    }

    async fn answer_until(self, shutdown: CancellationToken) {
        let serve = async {
            tokio::join!(self.services.synced(), self.slices.synced());
            let mut pause = Duration::from_millis(200);
            loop {
                match self.serve().await {
                    Ok(()) => return,
                    Err(error) => warn!(%error, "cluster DNS does not answer; trying again"),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(30));
            }
        };
        shutdown.run_until_cancelled(serve).await;
    }

    async fn serve(&self) -> Result<()> {
        let handle = netlink::connect()?;
        let Some(lo) = netlink::link_index(&handle, "lo").await? else {
            return Err(NetworkError::Other("this network namespace has no loopback interface lo".into()));
        };
        netlink::set_up(&handle, lo, "lo").await?;
        netlink::add_address(&handle, lo, Ipv4Net::from(self.address), true).await?;

        let address = SocketAddr::from((self.address, self.port));
        let busy = |protocol: &str| {
            NetworkError::io(format!(
                "listen on {address} {protocol} (does another DNS server hold the address?)"
            ))
        };
        let udp = UdpSocket::bind(address).await.map_err(busy("UDP"))?;
        let tcp = TcpListener::bind(address).await.map_err(busy("TCP"))?;
        let mut server = Server::new(Handler(self.resolver.clone()));
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, TCP_BUFFER);
        info!(%address, "cluster DNS answers");
        server.block_until_done().await.map_err(|error| NetworkError::Other(format!("DNS server: {error}")))
    }
}

/// The sections of a response.
#[derive(Default)]
struct Response {
    code: ResponseCode,
    authoritative: bool,
    truncated: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Response {
    fn failed(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }
}

struct Resolver {
    zone: Zone,
    forwarder: Forwarder,
}

impl Resolver {
    async fn resolve(&self, name: &Name, kind: RecordType, edns: Option<&Edns>, tcp: bool) -> Response {
        let mut response = Response { authoritative: true, ..Response::default() };
        let mut name = name.clone();
        for _ in 0..ALIASES {
            match self.zone.answer(&name, kind) {
                Answer::Records { answers, additionals } => {
                    if answers.is_empty() {
                        response.authorities.extend(self.zone.soa());
                    }
                    response.answers.extend(answers);
                    response.additionals = additionals;
                    return response;
                }
                Answer::NoSuchName => {
                    response.code = ResponseCode::NXDomain;
                    response.authorities.extend(self.zone.soa());
                    return response;
                }
                Answer::Alias(target) => {
                    response.answers.push(Zone::alias(&name, &target));
                    if kind == RecordType::CNAME {
                        return response;
                    }
                    name = target;
                }
                Answer::Foreign => return self.forward(response, &name, kind, edns, tcp).await,
            }
        }
        Response::failed(ResponseCode::ServFail)
    }

    async fn forward(
        &self,
        mut response: Response,
        name: &Name,
        kind: RecordType,
        edns: Option<&Edns>,
        tcp: bool,
    ) -> Response {
        let Some(answer) = self.forwarder.lookup(name, kind, edns, tcp).await else {
            return Response::failed(ResponseCode::ServFail);
        };
        // With an alias of ours before it, the answer as a whole is not the resolver's.
        response.authoritative = !response.answers.is_empty();
        response.code = answer.metadata.response_code;
        response.truncated = answer.metadata.truncation;
        response.answers.extend(answer.answers);
        response.authorities = answer.authorities;
        response.additionals = answer.additionals;
        response
    }
}

struct Handler(Arc<Resolver>);

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let asked = request.edns.as_ref();
        let tcp = request.protocol() != Protocol::Udp;
        let response = match request.request_info() {
            _ if request.metadata.op_code != OpCode::Query => Response::failed(ResponseCode::NotImp),
            _ if asked.is_some_and(|edns| edns.version() > 0) => Response::failed(ResponseCode::BADVERS),
            Err(_) => Response::failed(ResponseCode::FormErr),
            Ok(info) => {
                let query = info.query.original();
                self.0.resolve(query.name(), query.query_type(), asked, tcp).await
            }
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = response.code;
        metadata.authoritative = response.authoritative;
        metadata.truncation = response.truncated;
        metadata.recursion_available = true;
        let edns = asked.map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(512, 4096))
                .set_version(0)
                .set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        let builder = MessageResponseBuilder::new(&request.queries, edns.as_ref());
        let message =
            builder.build(metadata, &response.answers, &response.authorities, [], &response.additionals);
        match response_handle.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                debug!(%error, client = %request.src(), "DNS answer not sent");
                let mut metadata = Metadata::new(request.metadata.id, MessageType::Response, OpCode::Query);
                metadata.response_code = ResponseCode::ServFail;
                ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
            }
        }
    }
}
