//! Host names and the `/etc/hosts` that the kubelet keeps for a pod. Pure; answers to upstream's `kubelet_pods.go`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use crate::pod::PodExt;

const HEADER: &str = "# Kubernetes-managed hosts file.\n";
const HOST_NETWORK_HEADER: &str = "# Kubernetes-managed hosts file (host network).\n";

/// Host name and domain (empty without a subdomain) of a pod. The error says why `setHostnameAsFQDN` cannot work.
pub(crate) fn names(pod: &Pod, cluster_domain: &str) -> Result<(String, String), String> {
    let spec = pod.pod_spec();
    if let Some(name) = spec.hostname_override.as_ref().filter(|name| !name.is_empty()) {
        return Ok((name.clone(), String::new()));
    }
    let mut host = match spec.hostname.as_ref().filter(|name| !name.is_empty()) {
        Some(name) => name.clone(),
        None => {
            // Names may be longer than a host name.
            let cut: String = pod.name().chars().take(63).collect();
            if cut.len() < pod.name().len() { cut.trim_end_matches(['-', '.']).to_owned() } else { cut }
        }
    };
    let domain = match spec.subdomain.as_ref().filter(|name| !name.is_empty()) {
        Some(subdomain) => format!("{subdomain}.{}.svc.{cluster_domain}", pod.namespace()),
        None => String::new(),
    };
    if spec.set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        host = format!("{host}.{domain}");
        if host.len() > 64 {
            return Err(format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {host} is too long (64 characters is the max, {} characters requested)",
                host.len()
            ));
        }
    }
    Ok((host, domain))
}

/// The file's content. `node_hosts` is the node's own file, for pods on its network.
pub(crate) fn content(pod: &Pod, ips: &[IpAddr], cluster_domain: &str, node_hosts: &str) -> String {
    let mut out = String::new();
    if pod.host_network() {
        out.push_str(HOST_NETWORK_HEADER);
        out.push_str(node_hosts);
    } else {
        out.push_str(HEADER);
        out.push_str("127.0.0.1\tlocalhost\n");
        out.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
        out.push_str("fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
        if let Ok((host, domain)) = names(pod, cluster_domain) {
            let short = host.strip_suffix(&format!(".{domain}")).unwrap_or(&host);
            for ip in ips {
                if domain.is_empty() {
                    out.push_str(&format!("{ip}\t{host}\n"));
                } else {
                    out.push_str(&format!("{ip}\t{short}.{domain}\t{host}\n"));
                }
            }
        }
    }
    out.push_str(&aliases(pod.pod_spec().host_aliases.as_deref().unwrap_or_default()));
    out
}

fn aliases(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut out = "\n# Entries added by HostAliases.\n".to_owned();
    for alias in aliases {
        out.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, spec: Value) -> Pod {
        let mut full = json!({"containers": []});
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": name}, "spec": full})).unwrap()
    }

    #[test]
    fn host_names() {
        let long = "a".repeat(62) + "-b";
        for (name, spec, expected) in [
            ("p", json!({}), Ok(("p", ""))),
            ("p", json!({"hostname": "h"}), Ok(("h", ""))),
            ("p", json!({"hostname": "h", "subdomain": "s"}), Ok(("h", "s.ns.svc.c.l"))),
            (
                "p",
                json!({"subdomain": "s", "setHostnameAsFQDN": true}),
                Ok(("p.s.ns.svc.c.l", "s.ns.svc.c.l")),
            ),
            (long.as_str(), json!({}), Ok((&long[..62], ""))),
            ("p", json!({"hostnameOverride": "o.example"}), Ok(("o.example", ""))),
        ] {
            let got = names(&pod(name, spec.clone()), "c.l");
            let got = got.as_ref().map(|(host, domain)| (host.as_str(), domain.as_str()));
            assert_eq!(got.map_err(|e| e.as_str()), expected, "{name} {spec}");
        }
        assert!(
            names(&pod(&"a".repeat(60), json!({"subdomain": "s", "setHostnameAsFQDN": true})), "c.l")
                .is_err()
        );
    }

    #[test]
    fn files() {
        let ip = ["10.244.0.5".parse().unwrap()];
        let got = content(
            &pod(
                "p",
                json!({"hostname": "h", "subdomain": "s", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
            ),
            &ip,
            "c.l",
            "",
        );
        assert!(
            got.ends_with(
                "10.244.0.5\th.s.ns.svc.c.l\th\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"
            ),
            "{got}"
        );
        let got = content(&pod("p", json!({"hostNetwork": true})), &ip, "c.l", "127.0.0.1 node\n");
        assert_eq!(got, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 node\n");
    }
}
