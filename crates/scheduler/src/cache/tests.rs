use super::*;
use crate::testing::{labelled_node, labelled_pod, node, parse, pod};
use serde_json::json;

fn requested(cache: &Cache) -> Option<i64> {
    cache.nodes().next().map(|node| node.requested.milli_cpu)
}

#[test]
fn what_pods_take_is_counted_once_and_given_back() {
    let mut cache = Cache::default();
    cache.set_node(node("n", "4", "8Gi"));
    let info = Arc::new(PodInfo::new(pod("a", "500m", "1Gi")));
    cache.place(info.clone(), "n");
    cache.place(info.clone(), "n");
    assert_eq!(requested(&cache), Some(500));
    assert!(cache.displace(&info.key).is_some());
    assert!(cache.displace(&info.key).is_none());
    assert_eq!(requested(&cache), Some(0));
}

#[test]
fn a_node_that_comes_after_its_pods_knows_them() {
    let mut cache = Cache::default();
    cache.place(Arc::new(PodInfo::new(pod("a", "500m", "1Gi"))), "n");
    assert_eq!(cache.nodes().count(), 0);
    cache.set_node(node("n", "4", "8Gi"));
    assert_eq!(requested(&cache), Some(500));
    cache.remove_node("n");
    assert_eq!(cache.nodes().count(), 0);
    cache.set_node(node("n", "4", "8Gi"));
    assert_eq!(cache.nodes().next().unwrap().pods.len(), 1);
}

#[test]
fn assumed_pods_are_confirmed_or_expire() {
    let mut cache = Cache::default();
    cache.set_node(node("n", "4", "8Gi"));
    let index = cache.node_by_name("n").unwrap().index;
    let now = Instant::now();
    let late = now + std::time::Duration::from_secs(30);
    for name in ["confirmed", "lost", "binding"] {
        cache.assume(Arc::new(PodInfo::new(pod(name, "1", "1Gi"))), index);
        if name != "binding" {
            cache.finish_binding(&ObjectKey::new("default", name), Some(late));
        }
    }
    cache.place(Arc::new(PodInfo::new(pod("confirmed", "1", "1Gi"))), "n");
    assert!(cache.expired(now).is_empty());
    assert_eq!(cache.expired(late), [ObjectKey::new("default", "lost")]);
    assert!(!cache.is_assumed(&ObjectKey::new("default", "confirmed")));
    assert!(cache.is_assumed(&ObjectKey::new("default", "binding")));
}

#[test]
fn zones_take_turns() {
    let mut cache = Cache::default();
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("c2", "c")] {
        cache.set_node(labelled_node(name, json!({ZONE: zone}), json!({})));
    }
    cache.refresh();
    let names: Vec<_> = cache.order().iter().map(|index| cache.node(*index).name.as_str()).collect();
    assert_eq!(names, ["a1", "b1", "c1", "a2", "c2", "a3"]);
}

fn matcher(labels: serde_json::Value) -> CounterKey {
    let selector = crate::selector::Selector::of(Some(&serde_json::from_value(labels).unwrap()));
    let matchers = vec![crate::pod_info::PodMatcher::in_namespace("default", selector)];
    CounterKey { matchers: Arc::new(matchers), live_only: true }
}

#[test]
fn counts_follow_pods_and_labels() {
    let mut cache = Cache::default();
    cache.set_node(labelled_node("n1", json!({"rack": "r1"}), json!({})));
    cache.set_node(labelled_node("n2", json!({"rack": "r2"}), json!({})));
    let web = matcher(json!({"matchLabels": {"app": "web"}}));
    let place = |cache: &mut Cache, name: &str, app: &str, node: &str| {
        cache.place(Arc::new(PodInfo::new(labelled_pod(name, json!({"app": app}), json!({})))), node);
    };
    place(&mut cache, "before", "web", "n1");
    cache.count_pods(&web, &["rack"]);
    place(&mut cache, "after", "web", "n1");
    place(&mut cache, "other", "db", "n1");
    let rack = cache.topology_key("rack");
    let by_value = |cache: &Cache, node: &str| {
        let domain = cache.topology().table(rack).domain(cache.node_by_name(node).unwrap().index).unwrap();
        cache.pods().counts(&web).unwrap().domains(rack).get(domain.place()).copied().unwrap_or(0)
    };
    assert_eq!((by_value(&cache, "n1"), by_value(&cache, "n2")), (2, 0));
    // The node moves to the other rack, and its pods with it.
    cache.set_node(labelled_node("n1", json!({"rack": "r2"}), json!({})));
    assert_eq!(by_value(&cache, "n2"), 2);
    cache.displace(&ObjectKey::new("default", "after"));
    assert_eq!(by_value(&cache, "n2"), 1);
    let leaving = json!({"metadata": {"name": "before", "namespace": "default", "uid": "before",
        "labels": {"app": "web"}, "deletionTimestamp": "2024-01-01T00:00:00Z"}, "spec": {"containers": []}});
    cache.place(Arc::new(PodInfo::new(parse(leaving))), "n1");
    assert_eq!(by_value(&cache, "n2"), 0);
}

#[test]
fn only_changed_nodes_are_matched_again() {
    let mut cache = Cache::default();
    cache.set_node(labelled_node("a", json!({"disk": "ssd"}), json!({})));
    let pod = PodInfo::new(crate::testing::pod_with("p", json!({"nodeSelector": {"disk": "ssd"}})));
    cache.match_nodes(&pod.node_matcher);
    assert_eq!(cache.matched_nodes(&pod.node_matcher).unwrap(), [true]);
    cache.set_node(labelled_node("b", json!({"disk": "ssd"}), json!({})));
    cache.set_node(labelled_node("a", json!({"disk": "hdd"}), json!({})));
    cache.match_nodes(&pod.node_matcher);
    assert_eq!(cache.matched_nodes(&pod.node_matcher).unwrap(), [false, true]);
}
