use std::collections::BTreeMap;

use orlop_json::{Value, json};

use crate::support::{admin, config_map, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn labelled(name: &str, value: &str) -> Value {
    let mut object = config_map(name, json!({}));
    object["metadata"]["labels"] = json!({"s": value});
    object
}

#[tokio::test]
async fn selectors_turn_changes_into_arrivals_and_departures() {
    let client = admin(&server().await);
    let start = client.get(MAPS).await.ok();
    let version = start["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events =
        client.watch(&format!("{MAPS}?watch=1&labelSelector=s%3D1&resourceVersion={version}")).await;
    client.post(MAPS, labelled("a", "1")).await.ok();
    client.post(MAPS, labelled("b", "2")).await.ok();
    client.patch("merge", &format!("{MAPS}/b"), json!({"metadata": {"labels": {"s": "1"}}})).await.ok();
    let left =
        client.patch("merge", &format!("{MAPS}/a"), json!({"metadata": {"labels": {"s": "2"}}})).await.ok();
    client.delete(&format!("{MAPS}/b"), Value::Null).await.ok();
    assert_eq!(events.next_name().await, "ADDED a");
    assert_eq!(events.next_name().await, "ADDED b");
    let departure = events.next().await.unwrap();
    assert_eq!(
        (departure["type"].as_str(), departure["object"]["metadata"]["name"].as_str()),
        (Some("DELETED"), Some("a"))
    );
    assert_eq!(departure["object"]["metadata"]["resourceVersion"], left["metadata"]["resourceVersion"]);
    assert_eq!(departure["object"]["metadata"]["labels"]["s"], "1");
    assert_eq!(events.next_name().await, "DELETED b");
}

#[tokio::test]
async fn a_watch_can_begin_with_the_state() {
    let client = admin(&server().await);
    client.post(MAPS, config_map("a", json!({}))).await.ok();
    let query = "watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let mut events = client.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(events.next_name().await, "ADDED a");
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    client.post(MAPS, config_map("b", json!({}))).await.ok();
    assert_eq!(events.next_name().await, "ADDED b");
    client
        .get(&format!("{MAPS}?sendInitialEvents=true"))
        .await
        .refused(422, "Invalid", "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list");
}

#[tokio::test]
async fn a_version_from_the_past_is_gone() {
    let options = orlop_apiserver::Options { watch_cache_size: 2, ..Default::default() };
    let store = std::sync::Arc::new(orlop_store::memory::MemoryStore::new());
    let server = orlop_apiserver::ApiServer::new(options, store).await.unwrap();
    let client = admin(&server);
    for i in 0..5 {
        client.post(MAPS, config_map(&format!("c{i}"), json!({}))).await.ok();
    }
    // The watch begins, says so, and ends.
    let mut events = client.watch(&format!("{MAPS}?watch=1&resourceVersion=1")).await;
    let event = events.next().await.unwrap();
    assert_eq!(event["type"], "ERROR");
    assert_eq!((&event["object"]["code"], &event["object"]["reason"]), (&json!(410), &json!("Expired")));
    assert!(events.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_and_watch_neither_miss_nor_repeat() {
    const WRITERS: usize = 4;
    const ROUNDS: usize = 40;
    let server = server().await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let client = admin(&server);
            tokio::spawn(async move {
                for round in 0..ROUNDS {
                    let name = format!("w{writer}-{}", round % 5);
                    let path = format!("{MAPS}/{name}");
                    match round % 3 {
                        0 => drop(client.post(MAPS, config_map(&name, json!({}))).await),
                        1 => drop(
                            client.patch("merge", &path, json!({"data": {"r": round.to_string()}})).await,
                        ),
                        _ => drop(client.delete(&path, Value::Null).await),
                    }
                }
            })
        })
        .collect();
    // Readers that begin at different moments must all arrive at the same state.
    let readers: Vec<_> = (0..6)
        .map(|reader| {
            let client = admin(&server);
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(7 * reader)).await;
                let list = client.get(MAPS).await.ok();
                let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_string();
                let mut state: BTreeMap<String, String> = BTreeMap::new();
                let key = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_string();
                let rv = |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().to_string();
                for item in list["items"].as_array().unwrap() {
                    state.insert(key(item), rv(item));
                }
                let mut events = client.watch(&format!("{MAPS}?watch=1&resourceVersion={version}")).await;
                let mut last: u64 = version.parse().unwrap();
                while let Some(event) = events.next().await {
                    let object = &event["object"];
                    let at: u64 = rv(object).parse().unwrap();
                    assert!(at > last, "event {at} after {last}");
                    last = at;
                    let known = match event["type"].as_str().unwrap() {
                        "ADDED" => state.insert(key(object), rv(object)).is_none(),
                        "MODIFIED" => state.insert(key(object), rv(object)).is_some(),
                        _ => state.remove(&key(object)).is_some(),
                    };
                    assert!(known, "{event} does not fit the state");
                }
                state
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let list = admin(&server).get(MAPS).await.ok();
    let expected: BTreeMap<String, String> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            let text = |field: &str| item["metadata"][field].as_str().unwrap().to_string();
            (text("name"), text("resourceVersion"))
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), expected);
    }
}
