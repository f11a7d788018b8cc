//! Reading at revisions, paging, compaction, reopening.

use std::sync::Arc;

use bytes::Bytes;
use orlop_store::embedded::{EmbeddedStore, Options};
use orlop_store::{Range, Revision, StoreError};

use crate::{Subject, commit, delete, facts, kv, op_delete, op_put, put};

facts!(
    reads_at_old_revisions,
    pages_read_one_snapshot,
    ranges,
    compaction_hides_and_keeps,
    compaction_frees_memory_of_deleted_keys,
    compaction_beside_readers_and_writers,
    reopening_keeps_everything,
);

async fn reads_at_old_revisions(s: Subject) {
    let store = &*s.store;
    put(store, "a", "1").await;
    put(store, "b", "1").await;
    put(store, "a", "2").await;
    delete(store, "a").await;
    put(store, "a", "3").await;
    let check = async |at: u64, expected: Option<_>| {
        assert_eq!(store.get(b"a", Some(Revision(at))).await.unwrap(), expected, "at {at}");
    };
    check(1, None).await;
    check(2, Some(kv("a", "1", 2, 2))).await;
    check(3, Some(kv("a", "1", 2, 2))).await;
    check(4, Some(kv("a", "2", 2, 4))).await;
    check(5, None).await;
    check(6, Some(kv("a", "3", 6, 6))).await;
    let past = store.range(Range::prefix("").at(Revision(4))).await.unwrap();
    assert_eq!(past.kvs, vec![kv("a", "2", 2, 4), kv("b", "1", 3, 3)]);
    assert_eq!(past.revision, Revision(4));
}

async fn pages_read_one_snapshot(s: Subject) {
    let store = &*s.store;
    commit(store, (0..250).map(|n| op_put(&format!("k/{n:03}"), "old")).collect()).await;
    let mut start = Bytes::from("k/");
    let mut at = None;
    let mut seen = Vec::new();
    loop {
        let range = Range { start, limit: 100, at, ..Range::prefix("k/") };
        let page = store.range(range).await.unwrap();
        assert_eq!(page.revision, Revision(2));
        seen.extend(page.kvs);
        // Writers between pages are not seen.
        commit(store, vec![op_put("k/1234", "new"), op_put("k/200", "new"), op_delete("k/249")]).await;
        if !page.more {
            break;
        }
        at = Some(page.revision);
        start = [&seen.last().unwrap().key[..], b"\0"].concat().into();
    }
    assert_eq!(seen.len(), 250);
    assert!(seen.iter().all(|kv| kv.value == "old"));
}

async fn ranges(s: Subject) {
    let store = &*s.store;
    for key in ["/a/1", "/a/2", "/a/3", "/a0", "/b/1"] {
        put(store, key, "v").await;
    }
    delete(store, "/a/2").await;
    let check = async |range: Range, keys: &[&str], more: bool| {
        let found = store.range(range.clone()).await.unwrap();
        assert_eq!(found.kvs.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>(), keys, "{range:?}");
        assert_eq!(found.more, more, "{range:?}");
    };
    check(Range::prefix("/a/"), &["/a/1", "/a/3"], false).await;
    check(Range::prefix("/a/").limit(1), &["/a/1"], true).await;
    check(Range::prefix("/a/").limit(2), &["/a/1", "/a/3"], false).await;
    check(Range::prefix("/a/").limit(3), &["/a/1", "/a/3"], false).await;
    check(Range::prefix("/c"), &[], false).await;
    check(Range::prefix(""), &["/a/1", "/a/3", "/a0", "/b/1"], false).await;
    check(Range { start: "/a/3".into(), ..Range::default() }, &["/a/3", "/a0", "/b/1"], false).await;
    check(Range { start: "/a/1".into(), end: "/a0".into(), ..Range::default() }, &["/a/1", "/a/3"], false)
        .await;
    check(Range { start: "/b".into(), end: "/a".into(), ..Range::default() }, &[], false).await;
    check(Range { start: "/a".into(), end: "/a".into(), ..Range::default() }, &[], false).await;
}

async fn compaction_hides_and_keeps(s: Subject) {
    let store = &*s.store;
    put(store, "a", "1").await; // 2
    put(store, "a", "2").await; // 3
    put(store, "b", "1").await; // 4
    delete(store, "b").await; // 5
    put(store, "a", "3").await; // 6
    store.compact(Revision(5)).await.unwrap();
    assert_eq!(store.compact_revision(), Revision(5));
    assert_eq!(store.revision(), Revision(6));
    assert_eq!(store.get(b"a", Some(Revision(5))).await.unwrap(), Some(kv("a", "2", 2, 3)));
    assert_eq!(store.get(b"b", Some(Revision(5))).await.unwrap(), None);
    assert_eq!(store.get(b"a", None).await.unwrap(), Some(kv("a", "3", 2, 6)));
    let error = store.get(b"a", Some(Revision(4))).await.unwrap_err();
    assert_eq!(error.to_string(), "revision 4 has been compacted (history starts after revision 5)");
    let error = store.range(Range::prefix("").at(Revision(4))).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted { .. }));
    // Again, and below: no change.
    store.compact(Revision(5)).await.unwrap();
    store.compact(Revision(2)).await.unwrap();
    assert_eq!(store.compact_revision(), Revision(5));
    store.compact(Revision(6)).await.unwrap();
    assert_eq!(store.range(Range::prefix("")).await.unwrap().kvs, vec![kv("a", "3", 2, 6)]);
}

async fn compaction_frees_memory_of_deleted_keys(s: Subject) {
    let store = &*s.store;
    for round in 0..3 {
        commit(store, (0..500).map(|n| op_put(&format!("k/{n}"), &round.to_string())).collect()).await;
        commit(store, (0..500).map(|n| op_delete(&format!("k/{n}"))).collect()).await;
    }
    store.compact(store.revision()).await.unwrap();
    assert_eq!(store.range(Range::prefix("")).await.unwrap().kvs, vec![]);
    assert_eq!(store.revision(), Revision(7));
    // The revision does not fall back although no record is left.
    let s = reopened(s).await;
    assert_eq!(s.store.revision(), Revision(7));
    assert_eq!(put(&*s.store, "a", "1").await, 8);
}

async fn compaction_beside_readers_and_writers(s: Subject) {
    let store = s.store.clone();
    commit(&*store, (0..200).map(|n| op_put(&format!("k/{n}"), "0")).collect()).await;
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for round in 1..40 {
                commit(&*store, (0..200).map(|n| op_put(&format!("k/{n}"), &round.to_string())).collect())
                    .await;
            }
        }
    });
    while !writer.is_finished() {
        store.compact(store.revision()).await.unwrap();
        let all = store.range(Range::prefix("k/")).await.unwrap();
        assert_eq!(all.kvs.len(), 200);
        assert!(all.kvs.iter().all(|kv| kv.mod_revision == all.revision), "not one snapshot");
        match store.range(Range::prefix("k/").at(all.revision)).await {
            Ok(again) => assert_eq!(again.kvs, all.kvs),
            Err(error) => assert!(matches!(error, StoreError::Compacted { .. }), "{error}"),
        }
    }
    writer.await.unwrap();
}

/// The same store after a restart; the memory engine just goes on.
pub async fn reopened(s: Subject) -> Subject {
    #[cfg(feature = "etcd")]
    if let Some(process) = s.etcd {
        drop(s.store);
        return crate::etcd::connect(process).await;
    }
    let Some(dir) = s.dir else { return s };
    drop(s.store);
    let path = dir.path().join("data");
    let store =
        tokio::task::spawn_blocking(move || EmbeddedStore::open(path, Options::default())).await.unwrap();
    Subject::new(Arc::new(store.unwrap()), Some(dir))
}

async fn reopening_keeps_everything(s: Subject) {
    put(&*s.store, "a", "1").await; // 2
    put(&*s.store, "a", "2").await; // 3
    put(&*s.store, "b", "1").await; // 4
    delete(&*s.store, "b").await; // 5
    let s = reopened(s).await;
    assert_eq!(s.store.revision(), Revision(5));
    assert_eq!(s.store.get(b"a", None).await.unwrap(), Some(kv("a", "2", 2, 3)));
    assert_eq!(s.store.get(b"a", Some(Revision(2))).await.unwrap(), Some(kv("a", "1", 2, 2)));
    assert_eq!(s.store.get(b"b", Some(Revision(4))).await.unwrap(), Some(kv("b", "1", 4, 4)));
    assert_eq!(s.store.get(b"b", None).await.unwrap(), None);
    s.store.compact(Revision(4)).await.unwrap();
    let s = reopened(s).await;
    assert_eq!(s.store.compact_revision(), Revision(4));
    assert!(matches!(s.store.get(b"a", Some(Revision(3))).await, Err(StoreError::Compacted { .. })));
    assert_eq!(s.store.get(b"b", Some(Revision(4))).await.unwrap(), Some(kv("b", "1", 4, 4)));
    assert_eq!(put(&*s.store, "b", "2").await, 6);
    assert_eq!(s.store.get(b"b", None).await.unwrap(), Some(kv("b", "2", 6, 6)));
}
