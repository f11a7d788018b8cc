//! The sandbox a pod needs. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use orlop_cri::{DnsConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping};

use super::hosts;
use super::security::namespaces;
use crate::options::Options;
use crate::pod::PodExt;
use crate::resources::{pod_cgroup, pod_resources};
use crate::runtime_status::sandbox_labels;

/// The configuration of sandbox number `attempt`.
pub(crate) fn config(
    options: &Options,
    pod: &Pod,
    attempt: u32,
    dns: DnsConfig,
) -> Result<PodSandboxConfig, String> {
    let spec = pod.pod_spec();
    let hostname =
        if pod.host_network() { String::new() } else { hosts::names(pod, &options.cluster_domain)?.0 };
    let sysctls = spec.security_context.iter().flat_map(|c| c.sysctls.iter().flatten());
    Ok(PodSandboxConfig {
        metadata: PodSandboxMetadata {
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            namespace: pod.namespace().to_owned(),
            attempt,
        },
        hostname,
        log_directory: options.pod_log_dir(pod.namespace(), pod.name(), pod.uid()),
        dns,
        port_mappings: port_mappings(pod),
        labels: sandbox_labels(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        cgroup_parent: pod_cgroup(&options.cgroup_parent, pod),
        resources: pod_resources(pod),
        namespaces: namespaces(pod),
        // Upstream accepts a slash as separator, the kernel's files have dots in names only then.
        sysctls: sysctls.map(|s| (s.name.replace('/', "."), s.value.clone())).collect::<BTreeMap<_, _>>(),
    })
}

/// Host ports of all containers; on the host's network every port is the host's already.
fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if pod.host_network() {
        return Vec::new();
    }
    let containers = pod.init_containers().iter().chain(&pod.pod_spec().containers);
    let ports = containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
        Some(PortMapping {
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            container_port: u16::try_from(port.container_port).ok()?,
            host_port: u16::try_from(port.host_port?).ok().filter(|p| *p != 0)?,
            host_ip: port.host_ip.as_ref().and_then(|ip| ip.parse().ok()),
        })
    });
    ports.collect()
}
