//! Transactions: guards, several operations, sizes.

use bytes::Bytes;
use orlop_store::{
    MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Revision, Store, StoreError, Txn, TxnOutcome,
};

use crate::{Subject, commit, delete, facts, guard, kv, op_delete, op_put, put};

facts!(
    a_fresh_store,
    put_get_delete,
    guards,
    guards_see_earlier_transactions_of_a_batch,
    several_operations_are_one_revision,
    no_change_makes_no_revision,
    refused_requests,
    largest_allowed,
    any_bytes,
    many_writers_on_one_counter,
);

async fn a_fresh_store(s: Subject) {
    assert_eq!(s.store.revision(), Revision(1));
    assert_eq!(s.store.compact_revision(), Revision::NONE);
    assert_eq!(s.store.get(b"a", None).await.unwrap(), None);
    assert_eq!(put(&*s.store, "a", "1").await, 2);
    assert_eq!(s.store.revision(), Revision(2));
}

async fn put_get_delete(s: Subject) {
    let store = &*s.store;
    put(store, "a", "1").await;
    put(store, "a", "2").await;
    assert_eq!(store.get(b"a", None).await.unwrap(), Some(kv("a", "2", 2, 3)));
    assert_eq!(delete(store, "a").await, 4);
    assert_eq!(store.get(b"a", None).await.unwrap(), None);
    put(store, "a", "3").await;
    assert_eq!(store.get(b"a", None).await.unwrap(), Some(kv("a", "3", 5, 5)));
    assert!(store.size_bytes().await.unwrap() > 0);
}

async fn guards(s: Subject) {
    let store = &*s.store;
    let check = async |guards: Vec<_>, expected: Result<u64, Vec<Option<_>>>| {
        let outcome = store.txn(Txn { guards, ops: vec![op_put("a", "x")] }).await.unwrap();
        let expected = match expected {
            Ok(revision) => TxnOutcome::Committed(Revision(revision)),
            Err(current) => TxnOutcome::GuardFailed { current },
        };
        assert_eq!(outcome, expected);
    };
    check(vec![guard("a", 7)], Err(vec![None])).await;
    check(vec![guard("a", 0)], Ok(2)).await;
    check(vec![guard("a", 0)], Err(vec![Some(kv("a", "x", 2, 2))])).await;
    check(vec![guard("a", 2)], Ok(3)).await;
    check(vec![guard("a", 2)], Err(vec![Some(kv("a", "x", 2, 3))])).await;
    check(vec![guard("b", 0), guard("a", 3)], Ok(4)).await;
    check(vec![guard("b", 1), guard("a", 4)], Err(vec![None, Some(kv("a", "x", 2, 4))])).await;
    delete(store, "a").await;
    check(vec![guard("a", 4)], Err(vec![None])).await;
    check(vec![guard("a", 5)], Err(vec![None])).await;
    check(vec![guard("a", 0)], Ok(6)).await;
    // A question without operations.
    let outcome = store.txn(Txn { guards: vec![guard("a", 6)], ops: vec![] }).await.unwrap();
    assert_eq!(outcome, TxnOutcome::Committed(Revision(6)));
}

async fn guards_see_earlier_transactions_of_a_batch(s: Subject) {
    let store = &*s.store;
    let create = |n: u32| store.txn(Txn::put("a", n.to_string(), Revision::NONE));
    let outcomes = futures::future::join_all((0..100).map(create)).await;
    let won: Vec<_> = outcomes.iter().filter(|o| matches!(o, Ok(TxnOutcome::Committed(_)))).collect();
    assert_eq!(won.len(), 1);
    let now = store.get(b"a", None).await.unwrap();
    for outcome in outcomes {
        match outcome.unwrap() {
            TxnOutcome::Committed(revision) => assert_eq!(revision, Revision(2)),
            TxnOutcome::GuardFailed { current } => assert_eq!(current, vec![now.clone()]),
        }
    }
}

async fn several_operations_are_one_revision(s: Subject) {
    let store = &*s.store;
    put(store, "gone", "0").await;
    assert_eq!(commit(store, vec![op_put("a", "1"), op_delete("gone"), op_put("b", "2")]).await, 3);
    assert_eq!(store.get(b"a", None).await.unwrap(), Some(kv("a", "1", 3, 3)));
    assert_eq!(store.get(b"b", None).await.unwrap(), Some(kv("b", "2", 3, 3)));
    assert_eq!(store.get(b"gone", None).await.unwrap(), None);
    // All or nothing.
    let txn =
        Txn { guards: vec![guard("a", 3), guard("b", 2)], ops: vec![op_put("a", "9"), op_put("c", "9")] };
    assert!(matches!(store.txn(txn).await.unwrap(), TxnOutcome::GuardFailed { .. }));
    assert_eq!(store.get(b"a", None).await.unwrap(), Some(kv("a", "1", 3, 3)));
    assert_eq!(store.get(b"c", None).await.unwrap(), None);
}

async fn no_change_makes_no_revision(s: Subject) {
    let store = &*s.store;
    put(store, "a", "1").await;
    assert_eq!(delete(store, "absent").await, 2);
    assert_eq!(commit(store, vec![]).await, 2);
    assert_eq!(store.revision(), Revision(2));
    // The same value again is a change, as in etcd.
    assert_eq!(put(store, "a", "1").await, 3);
}

async fn refused_requests(s: Subject) {
    let store = &*s.store;
    let refused = async |ops: Vec<Op>, message: &str| {
        let error = store.txn(Txn { guards: vec![], ops }).await.unwrap_err();
        assert_eq!(error.to_string(), message);
    };
    let value = |size: usize| Bytes::from(vec![b'v'; size]);
    refused(vec![op_put("", "1")], "invalid request: a key is empty").await;
    refused(
        vec![op_put("a", "1"), op_delete("a")],
        "invalid request: key \"a\" occurs twice in the transaction",
    )
    .await;
    refused(
        vec![Op::Put { key: vec![b'k'; MAX_KEY_BYTES + 1].into(), value: value(1) }],
        "key (bytes) is too large: 4097 (the limit is 4096)",
    )
    .await;
    refused(
        vec![Op::Put { key: "a".into(), value: value(MAX_TXN_BYTES) }],
        "transaction (bytes) is too large: 1572865 (the limit is 1572864)",
    )
    .await;
    refused(
        vec![
            Op::Put { key: "a".into(), value: value(1 << 20) },
            Op::Put { key: "b".into(), value: value(1 << 20) },
        ],
        "transaction (bytes) is too large: 2097154 (the limit is 1572864)",
    )
    .await;
    refused(
        (0..=MAX_TXN_OPS).map(|n| op_put(&n.to_string(), "1")).collect(),
        "transaction (operations) is too large: 1025 (the limit is 1024)",
    )
    .await;
    let future = store.get(b"a", Some(Revision(2))).await.unwrap_err();
    assert!(
        matches!(future, StoreError::FutureRevision { requested: Revision(2), current: Revision(1) }),
        "{future}"
    );
    assert!(matches!(store.compact(Revision(2)).await, Err(StoreError::FutureRevision { .. })));
    assert_eq!(store.revision(), Revision(1));
}

async fn largest_allowed(s: Subject) {
    let store = &*s.store;
    let key = Bytes::from(vec![b'k'; MAX_KEY_BYTES]);
    let value = Bytes::from(vec![b'v'; MAX_TXN_BYTES - MAX_KEY_BYTES]);
    commit(store, vec![Op::Put { key: key.clone(), value: value.clone() }]).await;
    assert_eq!(store.get(&key, None).await.unwrap().unwrap().value, value);
    let many: Vec<Op> = (0..MAX_TXN_OPS).map(|n| op_put(&format!("n/{n:04}"), "1")).collect();
    commit(store, many).await;
    let found = store.range(orlop_store::Range::prefix("n/")).await.unwrap();
    assert_eq!(found.kvs.len(), MAX_TXN_OPS);
}

async fn any_bytes(s: Subject) {
    let store = &*s.store;
    let keys: Vec<Bytes> =
        [&b"\0"[..], b"\0\0", b"\x00\xff", b"a\0", b"a\0b", b"\xff", b"\xff\xff"].map(Bytes::from).into();
    for (n, key) in keys.iter().enumerate() {
        // Also the empty value.
        commit(store, vec![Op::Put { key: key.clone(), value: vec![0xff; n].into() }]).await;
    }
    let all = store.range(orlop_store::Range::default()).await.unwrap();
    assert_eq!(all.kvs.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>(), keys);
    assert_eq!(
        all.kvs.iter().map(|kv| kv.value.len()).collect::<Vec<_>>(),
        (0..keys.len()).collect::<Vec<_>>()
    );
}

async fn many_writers_on_one_counter(s: Subject) {
    const WRITERS: usize = 8;
    const EACH: usize = 25;
    put(&*s.store, "counter", "0").await;
    let add = |store: std::sync::Arc<dyn Store>| async move {
        for _ in 0..EACH {
            loop {
                let now = store.get(b"counter", None).await.unwrap().unwrap();
                let n: usize = std::str::from_utf8(&now.value).unwrap().parse().unwrap();
                let txn = Txn::put("counter", (n + 1).to_string(), now.mod_revision);
                if let TxnOutcome::Committed(_) = store.txn(txn).await.unwrap() {
                    break;
                }
            }
        }
    };
    let writers: Vec<_> = (0..WRITERS).map(|_| tokio::spawn(add(s.store.clone()))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let now = s.store.get(b"counter", None).await.unwrap().unwrap();
    assert_eq!(now.value, (WRITERS * EACH).to_string());
    assert_eq!(now.mod_revision, Revision(2 + (WRITERS * EACH) as u64));
}
