//! A pod's resolver configuration from its `dnsPolicy`. Pure; answers to upstream's `pkg/kubelet/network/dns`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use orlop_cri::DnsConfig;

use crate::pod::PodExt;

/// Reads a `resolv.conf`.
pub(crate) fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut out = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
            // The last one counts; a lone dot is no search path.
            Some("search") => {
                out.searches =
                    words.map(|w| if w == "." { w } else { w.trim_end_matches('.') }.to_owned()).collect();
            }
            Some("options") => out.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    out
}

/// The configuration, and whether the cluster's DNS was wanted but is not known (event `MissingClusterDNS`).
pub(crate) fn pod_dns(
    pod: &Pod,
    host: &DnsConfig,
    cluster_dns: &[IpAddr],
    domain: &str,
) -> (DnsConfig, bool) {
    let spec = pod.pod_spec();
    let wants_cluster = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pod.host_network(),
        _ => false,
    };
    let missing = wants_cluster && cluster_dns.is_empty();
    let mut out = if spec.dns_policy.as_deref() == Some("None") {
        DnsConfig::default()
    } else if wants_cluster && !missing {
        let mut searches = Vec::new();
        if !domain.is_empty() {
            searches =
                vec![format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.to_owned()];
        }
        add_unique(&mut searches, host.searches.iter().cloned());
        DnsConfig {
            servers: cluster_dns.iter().map(ToString::to_string).collect(),
            searches,
            options: vec!["ndots:5".to_owned()],
        }
    } else {
        let mut host = host.clone();
        if host.servers.is_empty() {
            host.servers.push("127.0.0.1".to_owned());
        }
        host
    };
    if let Some(own) = &spec.dns_config {
        add_unique(&mut out.servers, own.nameservers.iter().flatten().cloned());
        add_unique(&mut out.searches, own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            let shown = match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.clone(),
            };
            out.options.retain(|known| known.split(':').next() != Some(name));
            out.options.push(shown);
        }
    }
    (out, missing)
}

fn add_unique(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn check(spec: Value, servers: &[&str], searches: &[&str], options: &[&str]) {
        let mut full = json!({"containers": []});
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": full}))
                .unwrap();
        let host = parse_resolv_conf(
            "# c\nnameserver 1.1.1.1\nsearch old\nsearch example.com. cluster.local\noptions timeout:1\n",
        );
        let (got, _) = pod_dns(&pod, &host, &["10.96.0.10".parse().unwrap()], "cluster.local");
        assert_eq!(
            (got.servers, got.searches, got.options),
            (owned(servers), owned(searches), owned(options)),
            "{spec}"
        );
    }

    fn owned(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn policies() {
        let cluster = ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.com"];
        check(json!({"dnsPolicy": "ClusterFirst"}), &["10.96.0.10"], &cluster, &["ndots:5"]);
        check(
            json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
            &["10.96.0.10"],
            &cluster,
            &["ndots:5"],
        );
        for spec in
            [json!({"dnsPolicy": "Default"}), json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true})]
        {
            check(spec, &["1.1.1.1"], &["example.com", "cluster.local"], &["timeout:1"]);
        }
        let own = json!({"nameservers": ["9.9.9.9"], "searches": ["x.y"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        check(json!({"dnsPolicy": "None", "dnsConfig": own}), &["9.9.9.9"], &["x.y"], &["ndots:2", "edns0"]);
        let mut longer = cluster.to_vec();
        longer.push("x.y");
        check(json!({"dnsConfig": own}), &["10.96.0.10", "9.9.9.9"], &longer, &["ndots:2", "edns0"]);
    }
}
