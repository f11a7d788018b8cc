//! Numbers by node and, for the topology keys somebody asked for, by domain; both are kept up to date by each change
//! instead of being added up for each pod.

use std::collections::HashMap;

use super::node_info::NodeIndex;
use super::topology::{Domain, Move, Topology, TopologyKey};

/// How much of something is on each node and in each domain.
#[derive(Debug, Default)]
pub struct Counts {
    by_node: HashMap<NodeIndex, i64>,
    by_domain: Vec<(TopologyKey, Vec<i64>)>,
    /// How much is on all nodes together, those without a node object included.
    pub total: i64,
}

fn at(amounts: &mut Vec<i64>, domain: Domain) -> &mut i64 {
    if amounts.len() <= domain.place() {
        amounts.resize(domain.place() + 1, 0);
    }
    &mut amounts[domain.place()]
}

impl Counts {
    /// How much is on one node.
    pub fn on(&self, node: NodeIndex) -> i64 {
        self.by_node.get(&node).copied().unwrap_or(0)
    }

    /// How much is in each domain of a key that was asked for with [`track`](Self::track); domains beyond the end
    /// have nothing.
    pub fn domains(&self, key: TopologyKey) -> &[i64] {
        self.by_domain.iter().find(|(tracked, _)| *tracked == key).map_or(&[], |(_, amounts)| amounts)
    }

    /// Begins to count by the domains of a key.
    pub fn track(&mut self, key: TopologyKey, topology: &Topology) {
        if self.by_domain.iter().any(|(tracked, _)| *tracked == key) {
            return;
        }
        let mut amounts = Vec::new();
        for (node, amount) in &self.by_node {
            if let Some(domain) = topology.table(key).domain(*node) {
                *at(&mut amounts, domain) += amount;
            }
        }
        self.by_domain.push((key, amounts));
    }

    pub fn add(&mut self, node: NodeIndex, amount: i64, topology: &Topology) {
        let on = self.by_node.entry(node).or_default();
        *on += amount;
        if *on == 0 {
            self.by_node.remove(&node);
        }
        self.total += amount;
        for (key, amounts) in &mut self.by_domain {
            if let Some(domain) = topology.table(*key).domain(node) {
                *at(amounts, domain) += amount;
            }
        }
    }

    /// Follows a node from one domain to another.
    pub fn follow(&mut self, change: &Move) {
        let amount = self.on(change.node);
        if amount == 0 {
            return;
        }
        let tracked = self.by_domain.iter_mut().find(|(key, _)| *key == change.key);
        if let Some((_, amounts)) = tracked {
            if let Some(from) = change.from {
                *at(amounts, from) -= amount;
            }
            if let Some(to) = change.to {
                *at(amounts, to) += amount;
            }
        }
    }
}
