//! The one nftables table of an instance: its base chains, sets and maps. The service proxy and the pod network fill
//! different parts of it; both declare all of it first, in the same words, so that neither depends on the other's
//! having started. It answers to what upstream's proxy in nftables mode and the portmap and masquerade plug-ins of
//! CNI do with tables of their own.

use std::fmt::Write;

use crate::nft;
use crate::options::NetworkOptions;
use crate::proxy::rows::{Family, MASQUERADE_MARK, Pool};
use crate::{NetworkError, Result};

/// Sets and maps of the service proxy, emptied and filled at its start. `affinity` is not among them: it is what the
/// kernel remembers of clients, and outlives restarts.
pub(crate) fn proxy_sets() -> Vec<(String, String)> {
    let mut sets: Vec<(String, String)> = vec![
        ("cluster-ips".into(), "set { type ipv4_addr ; }".into()),
        ("hairpin".into(), "set { type ipv4_addr . ipv4_addr ; }".into()),
        ("firewalled".into(), "set { type ipv4_addr . inet_proto . inet_service ; }".into()),
        (
            "allowed-sources".into(),
            "set { type ipv4_addr . inet_proto . inet_service . ipv4_addr ; flags interval ; }".into(),
        ),
        ("service-ranges".into(), "set { type ipv4_addr ; flags interval ; }".into()),
    ];
    for (word, types) in
        [("address", "ipv4_addr . inet_proto . inet_service"), ("node-port", "inet_proto . inet_service")]
    {
        sets.push((format!("{word}-services"), format!("map {{ type {types} : verdict ; }}")));
        sets.push((format!("{word}-refused"), format!("map {{ type {types} : verdict ; }}")));
    }
    for pool in Pool::all() {
        let key = pool.family.key();
        // These are types only; the modulus gives the key its width.
        let data = match pool.protocol {
            None => "verdict".to_owned(),
            Some(protocol) => format!("ip daddr . {protocol} dport"),
        };
        sets.push((pool.to_string(), format!("map {{ typeof {key} . numgen random mod 65536 : {data} ; }}")));
    }
    sets
}

const CHAINS: [(&str, &str); 17] = [
    ("raw-prerouting", "{ type filter hook prerouting priority raw ; policy accept ; }"),
    ("firewall-prerouting", "{ type filter hook prerouting priority -110 ; policy accept ; }"),
    ("firewall-output", "{ type filter hook output priority -110 ; policy accept ; }"),
    ("nat-prerouting", "{ type nat hook prerouting priority dstnat ; policy accept ; }"),
    ("nat-output", "{ type nat hook output priority -100 ; policy accept ; }"),
    ("nat-postrouting", "{ type nat hook postrouting priority srcnat ; policy accept ; }"),
    ("filter-input", "{ type filter hook input priority filter ; policy accept ; }"),
    ("filter-forward", "{ type filter hook forward priority filter ; policy accept ; }"),
    ("filter-output", "{ type filter hook output priority filter ; policy accept ; }"),
    ("firewall", ""),
    ("services", ""),
    ("refused", ""),
    ("cluster-ips-check", ""),
    ("host-ports", ""),
    ("masquerade-source", ""),
    ("pod-masquerade", ""),
    ("destinations", ""),
];

/// Declares table, chains, sets and maps, and writes the rules of the base chains. Repeating it changes nothing;
/// elements, and the chains of the parts (`pod-masquerade`, picks), are left as they are.
pub(crate) fn skeleton(options: &NetworkOptions) -> String {
    let table = &options.instance;
    let mut text = format!("add table ip {table}\n");
    let mut declare = |name: &str, declaration: &str| {
        let (kind, body) = declaration.split_once(' ').unwrap_or((declaration, ""));
        let _ = writeln!(text, "add {kind} ip {table} {name} {body}");
    };
    for (name, declaration) in proxy_sets() {
        declare(&name, &declaration);
    }
    declare(
        "affinity",
        "map { type ipv4_addr . ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service ; \
         size 65536 ; flags dynamic,timeout ; timeout 3h ; }",
    );
    declare("host-ports-any", "map { type inet_proto . inet_service : ipv4_addr . inet_service ; }");
    declare(
        "host-ports-address",
        "map { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service ; }",
    );
    declare("host-port-pods", "set { type ipv4_addr . ipv4_addr ; }");
    for (name, hook) in CHAINS {
        declare(name, format!("chain {hook}").trim_end());
    }
    for (name, _) in CHAINS.iter().filter(|(name, _)| *name != "pod-masquerade") {
        let _ = writeln!(text, "flush chain ip {table} {name}");
    }
    for (chain, rule) in rules(options) {
        let _ = writeln!(text, "add rule ip {table} {chain} {rule}");
    }
    text
}

/// The rules of the base chains.
fn rules(options: &NetworkOptions) -> Vec<(&'static str, String)> {
    let bridge = &options.bridge;
    let mut rules: Vec<(&'static str, String)> = Vec::new();
    let mut rule = |chain: &'static str, text: String| rules.push((chain, text));
    let address = Family::Address.key();
    let node_port = Family::NodePort.key();
    // Host ports answer on 127.0.0.1 too, for which the bridge may route such addresses; pods may not send to them.
    rule("raw-prerouting", format!("iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop"));
    // The node itself is a client like any other: it must be among the sources.
    for chain in ["firewall-prerouting", "firewall-output"] {
        rule(chain, "ct state new jump firewall".into());
    }
    rule("firewall", format!("{address} @firewalled {address} . ip saddr != @allowed-sources drop"));
    rule("nat-prerouting", "jump destinations".into());
    rule("nat-output", "jump destinations".into());
    rule("destinations", "meta l4proto != { tcp, udp, sctp } return".into());
    rule("destinations", "jump host-ports".into());
    rule("destinations", "jump services".into());
    rule("host-ports", format!("dnat ip to {address} map @host-ports-address"));
    rule("host-ports", format!("fib daddr type local dnat ip to {node_port} map @host-ports-any"));
    // Cluster DNS on the node is a local socket, whatever Service object describes it.
    for chain in ["services", "refused", "cluster-ips-check"] {
        if let Some(dns) = options.cluster_dns {
            rule(chain, format!("ip daddr {dns} return"));
        }
    }
    rule("services", format!("{address} vmap @address-services"));
    rule(
        "services",
        format!("ip daddr != 127.0.0.0/8 fib daddr type local {node_port} vmap @node-port-services"),
    );
    let mark = MASQUERADE_MARK;
    rule(
        "nat-postrouting",
        format!(
            "meta mark and {mark:#x} == {mark:#x} meta mark set meta mark xor {mark:#x} goto masquerade-source"
        ),
    );
    rule("nat-postrouting", "ct status dnat ip saddr . ip daddr @hairpin goto masquerade-source".into());
    rule(
        "nat-postrouting",
        "ct status dnat ip saddr . ip daddr @host-port-pods goto masquerade-source".into(),
    );
    rule(
        "nat-postrouting",
        format!("ct status dnat ip saddr 127.0.0.0/8 oifname \"{bridge}\" goto masquerade-source"),
    );
    rule("nat-postrouting", "jump pod-masquerade".into());
    rule("masquerade-source", "masquerade fully-random".into());
    for chain in ["filter-input", "filter-forward", "filter-output"] {
        rule(chain, "ct state new jump refused".into());
    }
    for chain in ["filter-forward", "filter-output"] {
        rule(chain, "ct state new jump cluster-ips-check".into());
    }
    rule("refused", format!("{address} vmap @address-refused"));
    rule(
        "refused",
        format!("ip daddr != 127.0.0.0/8 fib daddr type local {node_port} vmap @node-port-refused"),
    );
    rule("cluster-ips-check", "ip daddr @cluster-ips meta l4proto tcp reject with tcp reset".into());
    rule("cluster-ips-check", "ip daddr @cluster-ips reject".into());
    rule("cluster-ips-check", "ip daddr @service-ranges drop".into());
    rules
}

/// Declares the table in the current network namespace. A table of another version of Orlop, whose maps have other
/// types, is replaced; the parts then fill it again.
pub(crate) async fn ensure(options: &NetworkOptions) -> Result<()> {
    let table = &options.instance;
    let skeleton = skeleton(options);
    match nft::apply(table, &skeleton).await {
        Err(NetworkError::Nft { message, .. })
            if message.contains("File exists") || message.contains("Device or resource busy") =>
        {
            tracing::warn!(table, message, "the nftables table has another shape; replacing it");
            nft::apply(table, &format!("add table ip {table}\ndelete table ip {table}\n{skeleton}")).await
        }
        result => result,
    }
}

/// Removes the table. Succeeds when there is none.
pub(crate) async fn remove(options: &NetworkOptions) -> Result<()> {
    let table = &options.instance;
    nft::apply(table, &format!("add table ip {table}\ndelete table ip {table}\n")).await
}

/// The names of the chains that the table has and the skeleton does not: those made for Services.
pub(crate) async fn service_chains(options: &NetworkOptions) -> Result<Vec<String>> {
    let table = &options.instance;
    // Terse: without elements, of which there may be many thousands.
    let Some(listing) = nft::query(table, &["-t", "list", "table", "ip", table]).await? else {
        return Ok(Vec::new());
    };
    let names = listing.lines().filter_map(|line| line.trim().strip_prefix("chain ")?.strip_suffix(" {"));
    Ok(names.filter(|name| CHAINS.iter().all(|(base, _)| base != name)).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::Scope;

    #[test]
    fn every_pool_and_base_chain_is_declared() {
        let text = skeleton(&NetworkOptions::default());
        for pool in Pool::all() {
            assert!(text.contains(&format!("add map ip orlop {pool} ")), "{pool}");
        }
        for (chain, _) in rules(&NetworkOptions::default()) {
            assert!(CHAINS.iter().any(|(name, _)| *name == chain), "{chain}");
        }
        assert!(!text.contains("flush chain ip orlop pod-masquerade"));
        assert_eq!(Pool::all().filter(|pool| pool.scope == Scope::Local).count(), 8);
    }
}
