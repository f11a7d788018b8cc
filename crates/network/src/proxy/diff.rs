//! From one [`Ruleset`] to another as nft text. Pure; what it costs is what changed.

use std::collections::BTreeMap;
use std::fmt::Write;

use ipnet::Ipv4Net;

use super::rows::{Chain, Row, Ruleset, Value};

/// One change of a row: what it was and what it is to be.
pub type Change = (Row, Option<Value>, Option<Value>);

/// The rows in which two rulesets differ.
pub fn changes(old: &Ruleset, new: &Ruleset) -> Vec<Change> {
    let gone =
        old.iter().filter(|(row, _)| !new.contains_key(row)).map(|(row, value)| (*row, Some(*value), None));
    let come = new.iter().filter_map(|(row, value)| {
        let before = old.get(row).copied();
        (before != Some(*value)).then_some((*row, before, Some(*value)))
    });
    gone.chain(come).collect()
}

/// The transaction that takes `table` from `old` to `new`; empty when they are equal.
pub fn diff(table: &str, cluster_cidr: Ipv4Net, old: &Ruleset, new: &Ruleset) -> String {
    render(table, cluster_cidr, &changes(old, new))
}

/// Changes as one transaction. Chains are made before elements point to them and removed after.
pub fn render(table: &str, cluster_cidr: Ipv4Net, changes: &[Change]) -> String {
    let mut text = String::new();
    let mut delete: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut add: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut new_chains = Vec::new();
    let mut old_chains = Vec::new();
    for (row, before, after) in changes {
        match (row, row.set()) {
            (Row::Chain(chain), _) if after.is_some() => new_chains.push(*chain),
            (Row::Chain(chain), _) => old_chains.push(*chain),
            (_, None) => {}
            (_, Some(set)) => {
                if before.is_some() {
                    delete.entry(set.clone()).or_default().push(row.key());
                }
                if let Some(value) = after {
                    add.entry(set).or_default().push(format!("{}{}", row.key(), value.data()));
                }
            }
        }
    }
    write_chains(&mut text, table, cluster_cidr, &new_chains);
    write_elements(&mut text, "delete", table, &delete);
    write_elements(&mut text, "add", table, &add);
    // All are emptied first, because they may refer to each other.
    for chain in &old_chains {
        let _ = writeln!(text, "flush chain ip {table} {chain}");
    }
    for chain in &old_chains {
        let _ = writeln!(text, "delete chain ip {table} {chain}");
    }
    text
}

fn write_chains(text: &mut String, table: &str, cluster_cidr: Ipv4Net, chains: &[Chain]) {
    for chain in chains {
        let _ = writeln!(text, "add chain ip {table} {chain}");
    }
    for chain in chains {
        // A chain that an earlier process left behind is filled again, not twice.
        let _ = writeln!(text, "flush chain ip {table} {chain}");
        for rule in chain.rules(cluster_cidr) {
            let _ = writeln!(text, "add rule ip {table} {chain} {rule}");
        }
    }
}

fn write_elements(text: &mut String, verb: &str, table: &str, sets: &BTreeMap<String, Vec<String>>) {
    for (set, elements) in sets {
        let _ = writeln!(text, "{verb} element ip {table} {set} {{ {} }}", elements.join(", "));
    }
}
