//! A client that lists and then watches sees every change once, whatever happens beside it: many writers, watches that
//! end at any moment, a short memory for events, compaction of the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orlop_apiserver::{ApiServer, Options};
use orlop_json::{Value, json};
use orlop_store::Store as _;
use orlop_store::memory::MemoryStore;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::support::{Client, admin, config_map};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const NAMES: u32 = 12;

async fn write(client: Client, seed: u64, rounds: u32) {
    let mut random = SmallRng::seed_from_u64(seed);
    for round in 0..rounds {
        let name = format!("c{}", random.random_range(0..NAMES));
        let path = format!("{MAPS}/{name}");
        // Others write the same objects: some of these fail, and that is part of it.
        match random.random_range(0..4) {
            0 => client.delete(&path, Value::Null).await,
            1 => client.post(MAPS, config_map(&name, json!({"n": seed.to_string()}))).await,
            _ => client.patch("merge", &path, json!({"data": {"n": format!("{seed}-{round}")}})).await,
        };
        if random.random_range(0..8) == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// What a client believes, by name: resource version and data.
type Replica = BTreeMap<String, (u64, Value)>;

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn entry(object: &Value) -> (String, (u64, Value)) {
    (object["metadata"]["name"].as_str().unwrap().to_owned(), (version(object), object["data"].clone()))
}

/// Lists, then watches with pieces of watches, until `done` and nothing more comes. Every event must fit what is
/// believed so far.
async fn follow(client: Client, seed: u64, done: Arc<AtomicBool>) -> (Replica, u32) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut relists = 0;
    'list: loop {
        relists += 1;
        let list = client.get(MAPS).await.ok();
        let mut seen = version(&list);
        let mut replica: Replica = list["items"].as_array().unwrap().iter().map(entry).collect();
        loop {
            let last_round = done.load(Ordering::Acquire);
            let path = format!("{MAPS}?watch=true&resourceVersion={seen}&allowWatchBookmarks=true");
            let mut events = client.watch(&path).await;
            let mut left = random.random_range(1..40);
            while left > 0 {
                // Two seconds of silence after the writers have ended: all has been said.
                let Some(event) = events.next().await else {
                    if last_round {
                        return (replica, relists);
                    }
                    break;
                };
                let object = &event["object"];
                match event["type"].as_str().unwrap() {
                    "BOOKMARK" => {
                        seen = seen.max(version(object));
                        continue;
                    }
                    "ERROR" => {
                        assert_eq!(object["code"], 410, "{event}");
                        continue 'list;
                    }
                    kind => {
                        let (name, (now, data)) = entry(object);
                        assert!(now > seen, "{event} comes after {seen}");
                        seen = now;
                        let before = match kind {
                            "DELETED" => replica.remove(&name),
                            _ => replica.insert(name.clone(), (now, data)),
                        };
                        assert_eq!(before.is_some(), kind != "ADDED", "{event} after {before:?}");
                    }
                }
                left -= 1;
            }
        }
    }
}

async fn run(seed: u64, cache: usize) {
    let store = Arc::new(MemoryStore::new());
    let options = Options { watch_cache_size: cache, ..Options::default() };
    let server = ApiServer::new(options, store.clone()).await.unwrap();
    let client = admin(&server);
    let done = Arc::new(AtomicBool::new(false));
    let followers: Vec<_> =
        (0..6).map(|n| tokio::spawn(follow(client.clone(), seed ^ n, done.clone()))).collect();
    let writers: Vec<_> = (0..4).map(|n| tokio::spawn(write(client.clone(), seed + 100 + n, 150))).collect();
    let compacting = done.clone();
    let compactor = tokio::spawn(async move {
        while !compacting.load(Ordering::Acquire) {
            store.compact(store.revision()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    });
    for writer in writers {
        writer.await.unwrap();
    }
    done.store(true, Ordering::Release);
    compactor.await.unwrap();
    let list = client.get(MAPS).await.ok();
    let truth: Replica = list["items"].as_array().unwrap().iter().map(entry).collect();
    for follower in followers {
        let (replica, _) = follower.await.unwrap();
        assert_eq!(replica, truth, "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missed_or_repeated() {
    for seed in [1, 2, 3] {
        run(seed, 1000).await;
    }
}

/// Followers that fall behind are told so, and begin again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_with_a_short_memory() {
    for seed in [4, 5] {
        run(seed, 8).await;
    }
}
