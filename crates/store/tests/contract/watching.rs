//! Watches: history, then live, without gap or repeat.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use orlop_store::{AutoCompaction, Event, Revision, StoreError, auto_compact};

use crate::{Subject, commit, delete, delete_event, facts, kv, op_delete, op_put, put, put_event, take};

facts!(
    history_then_live,
    from_the_future,
    only_the_prefix,
    long_history,
    no_gap_no_repeat_beside_writers,
    a_slow_reader_misses_nothing,
    compacted_history,
    compaction_ends_a_reader_that_is_behind,
    compaction_does_not_disturb_live_watchers,
    the_stream_ends_with_the_store,
    history_is_kept_for_a_while,
);

async fn history_then_live(s: Subject) {
    let store = &*s.store;
    put(store, "a", "1").await;
    put(store, "a", "2").await;
    delete(store, "a").await;
    let mut watch = store.watch(Bytes::from("a"), Revision(0)).await.unwrap();
    let (one, two) = (kv("a", "1", 2, 2), kv("a", "2", 2, 3));
    let past = vec![put_event(one), put_event(two.clone()), delete_event(4, two)];
    assert_eq!(take(&mut watch, 3).await, past);
    assert!(watch.next().now_or_never().is_none());
    commit(store, vec![op_put("a", "3"), op_put("ab", "4")]).await;
    let (three, four) = (kv("a", "3", 5, 5), kv("ab", "4", 5, 5));
    assert_eq!(take(&mut watch, 2).await, vec![put_event(three.clone()), put_event(four)]);
    delete(store, "a").await;
    assert_eq!(take(&mut watch, 1).await, vec![delete_event(6, three)]);
    // From the middle.
    let mut watch = store.watch(Bytes::from("a"), Revision(3)).await.unwrap();
    assert_eq!(take(&mut watch, 5).await[..2], past[1..]);
}

async fn from_the_future(s: Subject) {
    let store = &*s.store;
    let mut watch = store.watch(Bytes::new(), Revision(4)).await.unwrap();
    assert!(watch.next().now_or_never().is_none());
    for value in ["1", "2", "3"] {
        put(store, "a", value).await;
    }
    assert_eq!(take(&mut watch, 1).await, vec![put_event(kv("a", "3", 2, 4))]);
}

async fn only_the_prefix(s: Subject) {
    let store = &*s.store;
    let mut live = store.watch(Bytes::from("/pods/"), Revision(2)).await.unwrap();
    assert!(live.next().now_or_never().is_none());
    commit(
        store,
        vec![op_put("/pods", "x"), op_put("/pods/a", "1"), op_put("/pods0", "x"), op_put("/a", "x")],
    )
    .await;
    put(store, "/nodes/a", "x").await;
    commit(store, vec![op_delete("/nodes/a"), op_put("/pods/b", "1")]).await;
    let expected = vec![put_event(kv("/pods/a", "1", 2, 2)), put_event(kv("/pods/b", "1", 4, 4))];
    assert_eq!(take(&mut live, 2).await, expected);
    let mut replayed = store.watch(Bytes::from("/pods/"), Revision(2)).await.unwrap();
    assert_eq!(take(&mut replayed, 2).await, expected);
}

async fn long_history(s: Subject) {
    let store = &*s.store;
    for batch in 0..30 {
        commit(store, (0..100).map(|n| op_put(&format!("k/{n}"), &batch.to_string())).collect()).await;
        put(store, "other", "x").await;
    }
    let mut watch = store.watch(Bytes::from("k/"), Revision(2)).await.unwrap();
    let events = take(&mut watch, 3000).await;
    for (n, event) in events.iter().enumerate() {
        assert_eq!(event.revision, Revision(2 + 2 * (n as u64 / 100)));
        assert_eq!(event.kv.create_revision, Revision(2));
    }
}

/// Every watcher must have seen exactly the revisions from `from` to the last, and each key's life as one.
fn check_complete(events: &[Event], from: u64, last: u64) {
    let revisions: Vec<u64> = events.iter().map(|e| e.revision.0).collect();
    assert_eq!(revisions, (from..=last).collect::<Vec<_>>());
    let mut created = std::collections::HashMap::new();
    for event in events {
        let since = *created.entry(event.kv.key.clone()).or_insert(event.kv.create_revision);
        assert_eq!(event.kv.create_revision, since);
    }
}

async fn no_gap_no_repeat_beside_writers(s: Subject) {
    const WRITERS: u64 = 4;
    const EACH: u64 = 150;
    let last = 1 + WRITERS * EACH;
    let writers = (0..WRITERS).map(|w| {
        let store = s.store.clone();
        tokio::spawn(async move {
            for n in 0..EACH {
                put(&*store, &format!("k/{}", (w + n) % 10), &n.to_string()).await;
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    // Watchers join all along, from the beginning and from the present.
    let mut watchers = Vec::new();
    for n in 0..20 {
        let from = if n % 2 == 0 { 2 } else { s.store.revision().0 };
        let store = s.store.clone();
        watchers.push(tokio::spawn(async move {
            let mut watch = store.watch(Bytes::from("k/"), Revision(from)).await.unwrap();
            let from = from.max(2);
            check_complete(&take(&mut watch, (last + 1 - from) as usize).await, from, last);
        }));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for task in writers.into_iter().chain(watchers) {
        task.await.unwrap();
    }
}

async fn a_slow_reader_misses_nothing(s: Subject) {
    let store = &*s.store;
    let mut watch = store.watch(Bytes::from("k"), Revision(2)).await.unwrap();
    assert!(watch.next().now_or_never().is_none());
    // More than a queue holds (4 MiB).
    let value = "v".repeat(200 << 10);
    for _ in 0..40 {
        put(store, "k", &value).await;
    }
    check_complete(&take(&mut watch, 40).await, 2, 41);
    put(store, "k", "live again").await;
    check_complete(&take(&mut watch, 1).await, 42, 42);
}

async fn compacted_history(s: Subject) {
    let store = &*s.store;
    for n in 0..5 {
        put(store, "a", &n.to_string()).await;
    }
    store.compact(Revision(4)).await.unwrap();
    for from in [0, 1, 4] {
        match store.watch(Bytes::new(), Revision(from)).await.map(|_| ()) {
            Err(StoreError::Compacted { requested, compact_revision }) => {
                assert_eq!((requested, compact_revision), (Revision(from), Revision(4)));
            }
            other => panic!("{other:?}"),
        }
    }
    let mut watch = store.watch(Bytes::new(), Revision(5)).await.unwrap();
    let events = take(&mut watch, 2).await;
    assert_eq!(events, [put_event(kv("a", "3", 2, 5)), put_event(kv("a", "4", 2, 6))]);
}

async fn compaction_ends_a_reader_that_is_behind(s: Subject) {
    let store = &*s.store;
    for n in 0..5 {
        put(store, "a", &n.to_string()).await;
    }
    let mut watch = store.watch(Bytes::new(), Revision(2)).await.unwrap();
    store.compact(Revision(4)).await.unwrap();
    // What an engine had read ahead may still come, whole; what it had not read is never skipped.
    match watch.next().await.unwrap() {
        Ok(events) => {
            assert!(s.reads_ahead(), "compacted history was delivered: {events:?}");
            check_complete(&events, 2, 6);
        }
        Err(error) => {
            assert!(matches!(error, StoreError::Compacted { compact_revision: Revision(4), .. }), "{error}");
            assert!(watch.next().await.is_none());
        }
    }
}

async fn compaction_does_not_disturb_live_watchers(s: Subject) {
    let store = s.store.clone();
    let mut watch = store.watch(Bytes::from("k"), Revision(2)).await.unwrap();
    assert!(watch.next().now_or_never().is_none());
    let reader = tokio::spawn(async move {
        check_complete(&take(&mut watch, 200).await, 2, 201);
    });
    for n in 0..200 {
        put(&*store, &format!("k/{}", n % 7), "v").await;
        store.compact(store.revision()).await.unwrap();
    }
    reader.await.unwrap();
}

async fn the_stream_ends_with_the_store(s: Subject) {
    let mut watch = s.store.watch(Bytes::new(), Revision(2)).await.unwrap();
    let reader = tokio::spawn(async move {
        let first = watch.next().await.unwrap().unwrap();
        assert_eq!(first.len(), 1);
        watch.next().await.is_none()
    });
    put(&*s.store, "a", "1").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let Subject { store, dir: _dir, .. } = s;
    tokio::task::spawn_blocking(move || drop(store)).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(10), reader).await.unwrap().unwrap());
}

async fn history_is_kept_for_a_while(s: Subject) {
    let policy = AutoCompaction {
        keep: Duration::from_millis(300),
        interval: Duration::from_millis(30),
        ..AutoCompaction::default()
    };
    let shutdown = tokio_util::sync::CancellationToken::new();
    put(&*s.store, "a", "1").await;
    let task = tokio::spawn(auto_compact(Arc::clone(&s.store), policy, shutdown.clone()));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(s.store.compact_revision(), Revision::NONE);
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if s.store.compact_revision() == Revision(2) {
            break;
        }
    }
    assert_eq!(s.store.compact_revision(), Revision(2));
    shutdown.cancel();
    task.await.unwrap();
}
