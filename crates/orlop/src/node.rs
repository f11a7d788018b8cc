//! The node of `orlop server`: network, runtime, kubelet and provisioner of volumes, each with the identity upstream's components have.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use orlop_apiserver::pki::{CertificateAuthority, Subject};
use orlop_client::SharedInformerFactory;
use orlop_cri::Runtime;
use orlop_kubelet::{Kubelet, ServingTls};
use orlop_network::{BridgeNetwork, ClusterDns, DnsOptions, NetworkOptions, NodeRoutes, ServiceProxy};
use orlop_provisioner::Provisioner;
use orlop_runtime::EmbeddedRuntime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::ServerArguments;
use crate::layout::Layout;
use crate::node_socket;

/// What the node takes part in the cluster with.
pub struct Identities {
    /// `system:node:NAME`.
    pub kubelet: kube::Client,
    /// `system:kube-proxy`, for proxy, DNS and routes.
    pub proxy: kube::Client,
    /// The service account of the built-in provisioner of volumes.
    pub provisioner: kube::Client,
}

/// Name and address of this machine as a node.
#[derive(Debug, Clone)]
pub struct NodeName {
    pub name: String,
    pub ip: IpAddr,
}

impl NodeName {
    /// As the flags say, else as the host is called and reached.
    pub fn of(arguments: &ServerArguments) -> anyhow::Result<Self> {
        let name = match &arguments.node.node_name {
            Some(name) => name.clone(),
            None => std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_lowercase(),
        };
        let ip = match arguments.node.node_ip {
            Some(ip) => ip,
            None => default_route_address()
                .context("this host has no default route: name its address with --node-ip")?,
        };
        Ok(Self { name, ip })
    }
}

/// The address of the interface that leads outside. Nothing is sent: connecting a UDP socket only looks up the route.
fn default_route_address() -> std::io::Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 254), 9))?;
    Ok(socket.local_addr()?.ip())
}

/// Names and ranges of the node's network.
pub fn network_options(
    layout: &Layout,
    arguments: &ServerArguments,
    node: &str,
) -> anyhow::Result<NetworkOptions> {
    Ok(NetworkOptions {
        instance: layout.instance.clone(),
        bridge: layout.bridge(),
        state_dir: layout.run().join("network"),
        node_name: node.to_owned(),
        cluster_cidr: arguments.cluster_cidr,
        service_cidr: arguments.service_cidr,
        cluster_dns: Some(arguments.dns_address()?),
        cluster_domain: arguments.cluster_domain.clone(),
        mtu: None,
    })
}

/// How the runtime of this layout is opened.
pub fn runtime_options(layout: &Layout, network: BridgeNetwork) -> anyhow::Result<orlop_runtime::Options> {
    // Not /proc/self/exe: the shim's own children would resolve it to something else.
    let program = std::env::current_exe()?.into_os_string();
    let shim = vec![program, OsString::from("shim")];
    let mut options =
        orlop_runtime::Options::new(layout.runtime(), layout.run().join("runtime"), shim, Arc::new(network));
    options.cgroup_root = layout.cgroup();
    Ok(options)
}

/// Starts the node's parts as tasks of `tasks`.
pub async fn start(
    layout: &Layout,
    arguments: &ServerArguments,
    node: &NodeName,
    ca: &CertificateAuthority,
    identities: Identities,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(layout.run()).with_context(|| layout.run().display().to_string())?;
    let informers = SharedInformerFactory::new(identities.proxy, shutdown.clone());
    let (nodes, services, slices) = (
        informers.informer::<Node>(),
        informers.informer::<Service>(),
        informers.informer::<EndpointSlice>(),
    );
    let options = network_options(layout, arguments, &node.name)?;
    let network = BridgeNetwork::open(options.clone(), orlop_network::pod_cidr(&nodes, &node.name)).await?;
    let proxy = ServiceProxy::new(options.clone(), services.clone(), slices.clone(), informers.informer())?;
    let dns = ClusterDns::new(options.clone(), DnsOptions::default(), services, slices)?;
    let routes = NodeRoutes::new(options, nodes);
    let runtime = EmbeddedRuntime::open(runtime_options(layout, network.clone())?).await?;
    let runtime: Arc<dyn Runtime> = Arc::new(runtime);
    let kubelet_informers = SharedInformerFactory::new(identities.kubelet.clone(), shutdown.clone());
    let kubelet = Kubelet::new(
        kubelet_options(layout, arguments, node, ca)?,
        identities.kubelet,
        kubelet_informers,
        runtime.clone(),
    );

    let storage = arguments.node.local_storage_dir.clone().unwrap_or_else(|| layout.storage());
    let storage = std::path::absolute(&storage).with_context(|| storage.display().to_string())?;
    let provisioner = Provisioner::new(
        orlop_provisioner::Options { node_name: node.name.clone(), root: storage },
        &SharedInformerFactory::new(identities.provisioner, shutdown.clone()),
    );

    let socket = layout.socket();
    spawn(tasks, shutdown, |shutdown| async move { node_socket::serve(&socket, runtime, shutdown).await });
    spawn(tasks, shutdown, |shutdown| async move {
        network.run(shutdown).await;
        Ok(())
    });
    spawn(tasks, shutdown, |shutdown| async move {
        proxy.run(shutdown).await;
        Ok(())
    });
    spawn(tasks, shutdown, |shutdown| async move {
        dns.run(shutdown).await;
        Ok(())
    });
    spawn(tasks, shutdown, |shutdown| async move {
        routes.run(shutdown).await;
        Ok(())
    });
    spawn(tasks, shutdown, |shutdown| async move {
        provisioner.run(shutdown).await;
        Ok(())
    });
    spawn(tasks, shutdown, |shutdown| async move { Ok(kubelet.run(shutdown).await?) });
    Ok(())
}

fn spawn<F>(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    shutdown: &CancellationToken,
    work: impl FnOnce(CancellationToken) -> F,
) where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    tasks.spawn(work(shutdown.clone()));
}

fn kubelet_options(
    layout: &Layout,
    arguments: &ServerArguments,
    node: &NodeName,
    ca: &CertificateAuthority,
) -> anyhow::Result<orlop_kubelet::Options> {
    let names = vec![node.name.clone(), node.ip.to_string(), "localhost".to_owned(), "127.0.0.1".to_owned()];
    let leaf = ca.issue(&Subject::server(&format!("system:node:{}", node.name), names), 365)?;
    let mut options = orlop_kubelet::Options::new(node.name.clone(), node.ip);
    options.root_dir = layout.kubelet();
    options.log_dir = layout.logs();
    options.listen = SocketAddr::new(IpAddr::from(Ipv4Addr::UNSPECIFIED), arguments.node.kubelet_port);
    options.tls = Some(ServingTls {
        cert_pem: leaf.cert_pem,
        key_pem: leaf.key_pem,
        client_ca_pem: ca.cert_pem().to_owned(),
    });
    options.cluster_dns = vec![arguments.dns_address()?.into()];
    options.cluster_domain = arguments.cluster_domain.clone();
    options.cgroup_parent = format!("{}/kubepods", layout.cgroup());
    options.max_pods = arguments.node.max_pods;
    let bounds = arguments.node.eviction_hard.parse();
    options.eviction_hard = bounds.map_err(|error: String| anyhow::anyhow!("--eviction-hard: {error}"))?;
    options.node_labels = labels(&arguments.node.node_label)?;
    Ok(options)
}

fn labels(texts: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for text in texts {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => _ = labels.insert(key.to_owned(), value.to_owned()),
            _ => bail!("--node-label {text}: write key=value"),
        }
    }
    Ok(labels)
}
