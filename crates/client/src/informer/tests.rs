#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::Event;
use parking_lot::Mutex;

use super::{Informer, InformerEvent, ObjectKey};

fn config_map(namespace: &str, name: &str, version: &str, color: &str) -> ConfigMap {
    serde_json::from_value(serde_json::json!({
        "metadata": {"namespace": namespace, "name": name, "resourceVersion": version, "labels": {"color": color}}
    }))
    .unwrap()
}

fn by_color(object: &ConfigMap) -> Vec<String> {
    object.metadata.labels.iter().flatten().map(|(_, value)| value.clone()).collect()
}

fn log(informer: &Informer<ConfigMap>) -> Arc<Mutex<Vec<String>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    informer.subscribe(move |event| {
        let name = |object: &ConfigMap| ObjectKey::of(&object.metadata).to_string();
        sink.lock().push(match event {
            InformerEvent::Added(object) => format!("+{}", name(object)),
            InformerEvent::Updated { new, .. } => format!("~{}", name(new)),
            InformerEvent::Deleted(object) => format!("-{}", name(object)),
        });
    });
    seen
}

#[test]
fn a_late_handler_sees_what_is_there_and_then_each_change_once() {
    let informer = Informer::fixed([config_map("a", "one", "1", "red"), config_map("b", "two", "2", "blue")]);
    let seen = log(&informer);
    informer.insert(config_map("a", "one", "3", "red"));
    informer.insert(config_map("a", "one", "3", "red"));
    informer.remove(&ObjectKey::new("b", "two"));
    informer.remove(&ObjectKey::new("b", "two"));
    assert_eq!(*seen.lock(), ["+a/one", "+b/two", "~a/one", "-b/two"]);
}

#[test]
fn a_relist_reports_what_vanished_meanwhile() {
    let informer =
        Informer::fixed([config_map("a", "stays", "1", "red"), config_map("a", "goes", "1", "red")]);
    let seen = log(&informer);
    let mut relist = None;
    for event in [
        Event::Init,
        Event::InitApply(config_map("a", "stays", "1", "red")),
        Event::InitApply(config_map("a", "new", "5", "red")),
        Event::InitDone,
    ] {
        informer.apply(event, &mut relist);
    }
    assert_eq!(*seen.lock(), ["+a/goes", "+a/stays", "+a/new", "-a/goes"]);
}

#[test]
fn an_index_follows_changes_and_covers_what_came_before_it() {
    let informer = Informer::fixed([config_map("a", "one", "1", "red")]);
    informer.add_index("color", by_color);
    informer.insert(config_map("a", "two", "2", "red"));
    let names = |color: &str| -> Vec<String> {
        informer.by_index("color", color).iter().map(|object| object.metadata.name.clone().unwrap()).collect()
    };
    assert_eq!(names("red"), ["one", "two"]);
    informer.insert(config_map("a", "one", "3", "blue"));
    assert_eq!((names("red"), names("blue")), (vec!["two".to_owned()], vec!["one".to_owned()]));
    informer.remove(&ObjectKey::new("a", "two"));
    assert!(names("red").is_empty());
}

#[test]
fn the_rarest_value_is_looked_under() {
    let objects = [("one", "red"), ("two", "red"), ("three", "blue")];
    let informer = Informer::fixed(objects.map(|(name, color)| config_map("a", name, "1", color)));
    informer.add_index("color", |object| [by_color(object), vec!["any".to_owned()]].concat());
    let count = |values: &[&str]| {
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        informer.by_rarest("color", &values).len()
    };
    assert_eq!(
        [count(&["any", "red"]), count(&["red", "blue"]), count(&["any", "green"]), count(&[])],
        [2, 1, 0, 0]
    );
    informer.insert(config_map("a", "one", "2", "blue"));
    assert_eq!([count(&["any", "red"]), count(&["any", "blue"])], [1, 2]);
}

#[test]
fn a_namespace_lists_its_own_objects_only() {
    let objects = ["a", "ab", "b"].map(|namespace| config_map(namespace, "x", "1", "red"));
    let informer = Informer::fixed(objects);
    assert_eq!(informer.list_namespace("a").len(), 1);
    assert_eq!(informer.list_namespace("").len(), 0);
    assert_eq!(informer.len(), 3);
}
