//! A node of a cluster: pod network, caches to fill by hand, and a machine outside.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use orlop_client::Informer;
use orlop_cri::{PodNetwork, PodNetworkRequest, PortMapping};
use orlop_network::{BridgeNetwork, NetworkOptions, ServiceProxy};
use serde_json::{Value as Json, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Inside, outside};

pub const NODE: &str = "me";

pub fn options(state: &tempfile::TempDir) -> NetworkOptions {
    NetworkOptions { state_dir: state.path().to_owned(), node_name: NODE.to_owned(), ..Default::default() }
}

pub fn request(pod: &Inside, id: &str, ports: Vec<PortMapping>) -> PodNetworkRequest {
    PodNetworkRequest {
        sandbox_id: id.to_owned(),
        namespace: "default".to_owned(),
        name: format!("pod-{id}"),
        uid: format!("uid-{id}"),
        netns: pod.netns.clone(),
        port_mappings: ports,
    }
}

pub struct Cluster {
    pub options: NetworkOptions,
    pub network: BridgeNetwork,
    pub services: Informer<Service>,
    pub slices: Informer<EndpointSlice>,
    pub cidrs: Informer<ServiceCIDR>,
    pub outside: Inside,
    pub host: Inside,
    _state: tempfile::TempDir,
}

impl Cluster {
    pub async fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let options = options(&state);
        let outside = outside().await;
        let cidr: IpNet = "10.244.3.0/24".parse().unwrap();
        let (_, known) = watch::channel(Some(cidr));
        let network = BridgeNetwork::open(options.clone(), known).await.unwrap();
        let cluster = Self {
            options,
            network,
            services: Informer::fixed([]),
            slices: Informer::fixed([]),
            cidrs: Informer::fixed([]),
            outside,
            host: Inside::here(),
            _state: state,
        };
        cluster.network.ready().await.unwrap();
        cluster
    }

    /// A pod that serves on 8080 and says its name.
    pub async fn pod(&self, name: &'static str) -> (Inside, String) {
        let pod = Inside::new();
        let attached = self.network.attach(&request(&pod, name, vec![])).await.unwrap();
        pod.serve(name, 8080).await;
        (pod, attached.ips[0].to_string())
    }

    pub fn proxy(&self) -> (CancellationToken, tokio::task::JoinHandle<()>) {
        let stop = CancellationToken::new();
        let (options, cidrs) = (self.options.clone(), self.cidrs.clone());
        let proxy = ServiceProxy::new(options, self.services.clone(), self.slices.clone(), cidrs).unwrap();
        (stop.clone(), tokio::spawn(proxy.run(stop)))
    }

    pub fn service(&self, name: &str, cluster_ip: &str, more: Json) {
        let mut spec = json!({"clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "type": "ClusterIP", "ports": [
            {"name": "tcp", "port": 80, "protocol": "TCP"}, {"name": "udp", "port": 80, "protocol": "UDP"}]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let metadata = json!({"name": name, "namespace": "default"});
        self.services.insert(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap());
    }

    /// A load balancer's Service at an address of its own.
    pub fn balanced(&self, cluster_ip: &str, address: &str) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "balanced", "namespace": "default"},
            "spec": {"clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "type": "LoadBalancer",
                "ports": [{"name": "tcp", "port": 80, "protocol": "TCP"}]},
            "status": {"loadBalancer": {"ingress": [{"ip": address}]}},
        }))
        .unwrap()
    }

    /// Endpoints by address; an address with `@` is on another node.
    pub fn endpoints(&self, service: &str, addresses: &[&str]) {
        let endpoints: Vec<Json> = addresses
            .iter()
            .map(|address| {
                let (address, node) = address.split_once('@').unwrap_or((address, NODE));
                json!({"addresses": [address], "conditions": {"ready": true}, "nodeName": node})
            })
            .collect();
        let metadata = json!({"name": format!("{service}-x"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": service}});
        let ports = json!([{"name": "tcp", "port": 8080, "protocol": "TCP"},
            {"name": "udp", "port": 8080, "protocol": "UDP"}]);
        let slice =
            json!({"metadata": metadata, "addressType": "IPv4", "endpoints": endpoints, "ports": ports});
        self.slices.insert(serde_json::from_value(slice).unwrap());
    }
}
