//! Who wants which row. Services share rows (chains of a shape, a pod behind two Services) and may clash (the same
//! external IP and port); the first claimant by namespace and name has its way, and the row goes with the last one.

use std::collections::{BTreeMap, HashMap};

use orlop_client::ObjectKey;

use super::rows::{Row, Ruleset, Value};

/// The rows of all Services by claimant.
#[derive(Debug, Default)]
pub struct Claims {
    rows: HashMap<Row, Vec<(ObjectKey, Value)>>,
    services: HashMap<ObjectKey, Vec<Row>>,
}

impl Claims {
    /// Replaces the rows of `service` and notes in `changes` how the table's rows change: what they were before the
    /// first note and what they are now.
    pub fn update(
        &mut self,
        service: &ObjectKey,
        new: Ruleset,
        changes: &mut BTreeMap<Row, (Option<Value>, Option<Value>)>,
    ) {
        let old = self.services.remove(service).unwrap_or_default();
        for row in old.into_iter().filter(|row| !new.contains_key(row)) {
            self.set(service, row, None, changes);
        }
        if !new.is_empty() {
            self.services.insert(service.clone(), new.keys().copied().collect());
        }
        for (row, value) in new {
            self.set(service, row, Some(value), changes);
        }
    }

    fn set(
        &mut self,
        service: &ObjectKey,
        row: Row,
        value: Option<Value>,
        changes: &mut BTreeMap<Row, (Option<Value>, Option<Value>)>,
    ) {
        let claimants = self.rows.entry(row).or_default();
        let before = claimants.first().map(|(_, value)| *value);
        match (claimants.binary_search_by(|(key, _)| key.cmp(service)), value) {
            (Ok(at), Some(value)) => claimants[at].1 = value,
            (Ok(at), None) => {
                claimants.remove(at);
            }
            (Err(at), Some(value)) => claimants.insert(at, (service.clone(), value)),
            (Err(_), None) => {}
        }
        let after = claimants.first().map(|(_, value)| *value);
        if claimants.is_empty() {
            self.rows.remove(&row);
        }
        let first = changes.get(&row).map_or(before, |(first, _)| *first);
        if first == after {
            changes.remove(&row);
        } else {
            changes.insert(row, (first, after));
        }
    }

    /// What the table should hold.
    pub fn ruleset(&self) -> Ruleset {
        self.rows.iter().filter_map(|(row, claimants)| Some((*row, claimants.first()?.1))).collect()
    }

    /// Whether somebody claims `row`.
    pub fn holds(&self, row: Row) -> bool {
        self.rows.contains_key(&row)
    }

    /// How many Services have rows.
    pub fn len(&self) -> usize {
        self.services.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_claimant_wins_and_last_one_frees() {
        let row = Row::ClusterIp([10, 0, 0, 1].into());
        let other = Value::Goto(crate::proxy::Chain::Reject);
        let (a, b) = (ObjectKey::new("x", "a"), ObjectKey::new("x", "b"));
        let with = |value| Ruleset::from([(row, value)]);
        let mut claims = Claims::default();
        let mut step = |key: &ObjectKey, rows, expected: &[(Option<Value>, Option<Value>)]| {
            let mut changes = BTreeMap::new();
            claims.update(key, rows, &mut changes);
            assert_eq!(changes.into_values().collect::<Vec<_>>(), expected);
        };
        step(&b, with(other), &[(None, Some(other))]);
        step(&b, with(other), &[]);
        step(&a, with(Value::Present), &[(Some(other), Some(Value::Present))]);
        step(&b, Ruleset::new(), &[]);
        step(&b, with(other), &[]);
        step(&a, Ruleset::new(), &[(Some(Value::Present), Some(other))]);
        step(&b, Ruleset::new(), &[(Some(other), None)]);
        assert_eq!(claims.len(), 0);
        assert!(claims.ruleset().is_empty() && !claims.holds(row));
    }

    #[test]
    fn a_row_that_leaves_and_comes_back_in_one_batch_did_not_change() {
        let row = Row::ClusterIp([10, 0, 0, 1].into());
        let (a, b) = (ObjectKey::new("x", "a"), ObjectKey::new("x", "b"));
        let mut claims = Claims::default();
        claims.update(&a, Ruleset::from([(row, Value::Present)]), &mut BTreeMap::new());
        let mut changes = BTreeMap::new();
        claims.update(&a, Ruleset::new(), &mut changes);
        assert_eq!(changes.len(), 1);
        claims.update(&b, Ruleset::from([(row, Value::Present)]), &mut changes);
        assert!(changes.is_empty());
    }
}
