//! Random histories against a model that keeps every state in full.

use std::collections::BTreeMap;

use bytes::Bytes;
use orlop_store::{EventKind, Guard, KeyValue, Op, Range, Revision, StoreError, Txn, TxnOutcome, prefix_end};
use proptest::prelude::*;

use crate::history::reopened;
use crate::{Subject, embedded, memory, take};

type Keys = BTreeMap<String, KeyValue>;

/// All states that ever were, by revision.
struct Model {
    states: Vec<Keys>,
    compacted: u64,
}

#[derive(Debug, Clone)]
enum Step {
    /// Per guard and per operation: key, and whether the guard is right / the value to put.
    Txn {
        guards: Vec<(String, bool)>,
        ops: BTreeMap<String, Option<String>>,
    },
    Range {
        prefix: String,
        limit: usize,
        back: u64,
    },
    Watch {
        prefix: String,
        back: u64,
    },
    Compact {
        back: u64,
    },
    Reopen,
}

impl Model {
    fn new() -> Model {
        Model { states: vec![Keys::new(), Keys::new()], compacted: 0 }
    }

    fn revision(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    fn now(&self) -> &Keys {
        self.states.last().unwrap()
    }

    fn back(&self, back: u64) -> u64 {
        self.revision().saturating_sub(back).max(1)
    }

    fn apply(&mut self, ops: &BTreeMap<String, Option<String>>) {
        let mut next = self.now().clone();
        let revision = Revision(self.revision() + 1);
        let mut changed = false;
        for (key, value) in ops {
            match value {
                Some(value) => {
                    let create_revision = next.get(key).map_or(revision, |kv| kv.create_revision);
                    let (k, v) = (key.clone().into(), value.clone().into());
                    next.insert(
                        key.clone(),
                        KeyValue { key: k, value: v, create_revision, mod_revision: revision },
                    );
                    changed = true;
                }
                None => changed |= next.remove(key).is_some(),
            }
        }
        if changed {
            self.states.push(next);
        }
    }

    /// Revision, key, new value (`None`: deleted).
    fn events(&self, prefix: &str, from: u64) -> Vec<(u64, String, Option<Bytes>)> {
        let mut out = Vec::new();
        for revision in from.max(2)..=self.revision() {
            let (before, after) = (&self.states[revision as usize - 1], &self.states[revision as usize]);
            let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys.into_iter().filter(|k| k.starts_with(prefix) && before.get(*k) != after.get(*k)) {
                let value = after.get(key).map(|kv| kv.value.clone());
                out.push((revision, key.clone(), value));
            }
        }
        out
    }
}

fn key() -> impl Strategy<Value = String> {
    "/[ab]/[abc]{0,2}"
}

fn step() -> impl Strategy<Value = Step> {
    let prefix = || prop_oneof![Just("/".to_owned()), Just("/a/".to_owned()), "/[ab]/[abc]?"];
    let ops = proptest::collection::btree_map(key(), proptest::option::weighted(0.7, "[xyz]{0,3}"), 0..4);
    let guards = proptest::collection::vec((key(), proptest::bool::weighted(0.9)), 0..3);
    prop_oneof![
        12 => (guards, ops).prop_map(|(guards, ops)| Step::Txn { guards, ops }),
        4 => (prefix(), 0usize..4, 0u64..20).prop_map(|(prefix, limit, back)| Step::Range { prefix, limit, back }),
        2 => (prefix(), 0u64..30).prop_map(|(prefix, back)| Step::Watch { prefix, back }),
        1 => (0u64..10).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Reopen),
    ]
}

async fn run(mut s: Subject, steps: Vec<Step>) {
    let mut model = Model::new();
    for step in steps {
        match step {
            Step::Txn { guards, ops } => txn(&s, &mut model, guards, ops).await,
            Step::Range { prefix, limit, back } => range(&s, &model, &prefix, limit, back).await,
            Step::Watch { prefix, back } => watch(&s, &model, &prefix, back).await,
            Step::Compact { back } => {
                let at = model.back(back);
                // Before revision 2 there is nothing; etcd cannot tell whether that has been compacted.
                if at < 2 {
                    continue;
                }
                s.store.compact(Revision(at)).await.unwrap();
                model.compacted = model.compacted.max(at);
            }
            Step::Reopen => s = reopened(s).await,
        }
        assert_eq!(s.store.revision(), Revision(model.revision()));
        assert_eq!(s.store.compact_revision(), Revision(model.compacted));
    }
}

async fn txn(
    s: &Subject,
    model: &mut Model,
    guards: Vec<(String, bool)>,
    ops: BTreeMap<String, Option<String>>,
) {
    let mod_revision = |key: &str| model.now().get(key).map_or(Revision::NONE, |kv| kv.mod_revision);
    let txn = Txn {
        guards: guards
            .iter()
            .map(|(key, right)| Guard {
                key: key.clone().into(),
                mod_revision: if *right { mod_revision(key) } else { Revision(model.revision() + 7) },
            })
            .collect(),
        ops: ops
            .iter()
            .map(|(key, value)| match value {
                Some(value) => Op::Put { key: key.clone().into(), value: value.clone().into() },
                None => Op::Delete { key: key.clone().into() },
            })
            .collect(),
    };
    let expected = if guards.iter().all(|(_, right)| *right) {
        model.apply(&ops);
        TxnOutcome::Committed(Revision(model.revision()))
    } else {
        let current = guards.iter().map(|(key, _)| model.now().get(key).cloned()).collect();
        TxnOutcome::GuardFailed { current }
    };
    assert_eq!(s.store.txn(txn).await.unwrap(), expected);
}

async fn range(s: &Subject, model: &Model, prefix: &str, limit: usize, back: u64) {
    let at = model.back(back);
    let range = Range {
        start: prefix.to_owned().into(),
        end: prefix_end(prefix.as_bytes()),
        limit,
        at: Some(Revision(at)),
    };
    let answer = s.store.range(range).await;
    if at < model.compacted {
        assert!(matches!(answer, Err(StoreError::Compacted { .. })));
        return;
    }
    let answer = answer.unwrap();
    let all: Vec<KeyValue> = model.states[at as usize]
        .values()
        .filter(|kv| kv.key.starts_with(prefix.as_bytes()))
        .cloned()
        .collect();
    let shown = if limit == 0 { all.len() } else { limit.min(all.len()) };
    assert_eq!(answer.kvs, all[..shown]);
    assert_eq!(answer.more, shown < all.len());
    for key in ["/a/", "/a/a", "/b/c"] {
        let found = s.store.get(key.as_bytes(), Some(Revision(at))).await.unwrap();
        assert_eq!(found.as_ref(), model.states[at as usize].get(key));
    }
}

async fn watch(s: &Subject, model: &Model, prefix: &str, back: u64) {
    let from = model.back(back);
    let stream = s.store.watch(Bytes::from(prefix.to_owned()), Revision(from)).await;
    if model.compacted > 0 && from <= model.compacted {
        assert!(matches!(stream.map(|_| ()), Err(StoreError::Compacted { .. })));
        return;
    }
    let expected = model.events(prefix, from);
    let events = take(&mut stream.unwrap(), expected.len()).await;
    let seen: Vec<_> = events
        .into_iter()
        .map(|e| {
            let value = (e.kind == EventKind::Put).then_some(e.kv.value);
            (e.revision.0, String::from_utf8(e.kv.key.to_vec()).unwrap(), value)
        })
        .collect();
    assert_eq!(seen, expected);
}

fn check(subject: impl AsyncFnOnce() -> Subject, steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async { run(subject().await, steps).await });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn memory_is_the_model(steps in proptest::collection::vec(step(), 0..120)) {
        check(async || memory(), steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn embedded_is_the_model(steps in proptest::collection::vec(step(), 0..120)) {
        check(async || embedded(), steps);
    }
}

// Each case starts a server of its own.
#[cfg(feature = "etcd")]
proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, max_shrink_iters: 32, ..ProptestConfig::default() })]
    #[test]
    fn etcd_is_the_model(steps in proptest::collection::vec(step(), 0..120)) {
        check(crate::etcd::start, steps);
    }
}
