//! Which nodes share a value of a label that somebody spreads or gathers pods by. Each key that was ever asked for has
//! a table that node events keep up to date: values are numbers, and a node's domain is one look into an array.

use std::collections::HashMap;

use super::node_info::NodeIndex;
use crate::selector::Labels;

/// A label key with a table of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopologyKey(pub u32);

/// A value of a topology key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(pub u32);

impl Domain {
    /// Of nodes without the label, and of nodes that do not exist.
    const NONE: Self = Self(u32::MAX);

    pub fn place(self) -> usize {
        self.0 as usize
    }
}

/// A node that went from one domain to another.
#[derive(Debug, Clone, Copy)]
pub struct Move {
    pub key: TopologyKey,
    pub node: NodeIndex,
    pub from: Option<Domain>,
    pub to: Option<Domain>,
}

/// One key's table.
#[derive(Debug, Default)]
pub struct TopologyTable {
    key: String,
    domain_of: Vec<Domain>,
    by_value: HashMap<String, Domain>,
    /// How many nodes each domain has.
    nodes_in: Vec<u32>,
    /// How many nodes have the label.
    pub nodes: usize,
    /// How many domains have a node.
    pub domains: usize,
}

impl TopologyTable {
    /// The domain of a node, unless it lacks the label.
    pub fn domain(&self, node: NodeIndex) -> Option<Domain> {
        self.domain_of.get(node.place()).copied().filter(|domain| *domain != Domain::NONE)
    }

    /// How many numbers for domains are in use, those of empty domains included: the length of arrays by domain.
    pub fn len(&self) -> usize {
        self.nodes_in.len()
    }

    /// The domains that have nodes.
    pub fn live_domains(&self) -> impl Iterator<Item = Domain> {
        let numbered = (0_u32..).zip(&self.nodes_in);
        numbered.filter(|(_, nodes)| **nodes > 0).map(|(number, _)| Domain(number))
    }

    fn set(&mut self, node: NodeIndex, value: Option<&String>) -> (Option<Domain>, Option<Domain>) {
        if self.domain_of.len() <= node.place() {
            self.domain_of.resize(node.place() + 1, Domain::NONE);
        }
        let from = self.domain(node);
        let to = value.map(|value| match self.by_value.get(value) {
            Some(domain) => *domain,
            None => {
                // As many domains as nodes were ever seen at once with different values: far below 2^32.
                let domain = Domain(u32::try_from(self.nodes_in.len()).unwrap_or(u32::MAX - 1));
                self.by_value.insert(value.clone(), domain);
                self.nodes_in.push(0);
                domain
            }
        });
        if from == to {
            return (from, to);
        }
        self.domain_of[node.place()] = to.unwrap_or(Domain::NONE);
        if let Some(from) = from {
            self.nodes -= 1;
            self.nodes_in[from.place()] -= 1;
            self.domains -= usize::from(self.nodes_in[from.place()] == 0);
        }
        if let Some(to) = to {
            self.nodes += 1;
            self.domains += usize::from(self.nodes_in[to.place()] == 0);
            self.nodes_in[to.place()] += 1;
        }
        (from, to)
    }
}

/// The tables of all keys that were asked for.
#[derive(Debug, Default)]
pub struct Topology {
    by_key: HashMap<String, TopologyKey>,
    tables: Vec<TopologyTable>,
}

impl Topology {
    pub fn key(&self, key: &str) -> Option<TopologyKey> {
        self.by_key.get(key).copied()
    }

    pub fn table(&self, key: TopologyKey) -> &TopologyTable {
        &self.tables[key.0 as usize]
    }

    /// The table of a key; made from all nodes when it is asked for the first time.
    pub fn register<'a>(
        &mut self,
        key: &str,
        nodes: impl Iterator<Item = (NodeIndex, &'a Labels)>,
    ) -> TopologyKey {
        if let Some(known) = self.key(key) {
            return known;
        }
        let number = TopologyKey(u32::try_from(self.tables.len()).unwrap_or(u32::MAX));
        let mut table = TopologyTable { key: key.to_owned(), ..TopologyTable::default() };
        for (node, labels) in nodes {
            table.set(node, labels.get(key));
        }
        self.tables.push(table);
        self.by_key.insert(key.to_owned(), number);
        number
    }

    /// A node's labels as they are now; `None` when the node is gone. Gives what has changed.
    pub fn set_node(&mut self, node: NodeIndex, labels: Option<&Labels>) -> Vec<Move> {
        let mut moves = Vec::new();
        for (number, table) in (0..).zip(&mut self.tables) {
            let value = labels.and_then(|labels| labels.get(&table.key));
            let (from, to) = table.set(node, value);
            if from != to {
                moves.push(Move { key: TopologyKey(number), node, from, to });
            }
        }
        moves
    }
}
