#![allow(clippy::unwrap_used)]

use super::*;
use http::Method;
use orlop_json::{Value, json};

fn info(path: &str) -> RequestInfo {
    RequestInfo::parse(&Method::GET, path, &Query::default())
}

fn level(name: &str, limited: Value) -> PriorityLevel {
    PriorityLevel::parse(
        &json!({"metadata": {"name": name, "uid": name}, "spec": {"type": "Limited", "limited": limited}}),
    )
}

fn schema(name: &str, level: &str, precedence: i64, user: &str) -> FlowSchema {
    FlowSchema::parse(&json!({
        "metadata": {"name": name, "uid": format!("{name}-uid")},
        "spec": {
            "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence,
            "distinguisherMethod": {"type": "ByUser"},
            "rules": [{
                "subjects": [{"kind": "User", "user": {"name": user}}],
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}],
            }],
        },
    }))
}

fn seats(flows: &FlowControl) -> Vec<(String, u32, u32, u32, u32)> {
    flows
        .levels()
        .iter()
        .map(|l| (l.name().to_string(), l.nominal, l.lower, l.upper, l.adjusted.lock().current))
        .collect()
}

#[test]
fn mandatory_objects_always_exist() {
    let flows = FlowControl::new(600);
    let check = |user: &UserInfo, expected: &str| {
        assert_eq!(flows.classify(user, &info("/api/v1/pods")).name(), expected)
    };
    check(&UserInfo::new("admin", &["system:masters"]), "exempt");
    check(&UserInfo::new("alice", &[]), "catch-all");
    check(&UserInfo::anonymous(), "catch-all");
    check(&UserInfo { name: "nobody".into(), ..Default::default() }, "catch-all");
    assert_eq!(seats(&flows), [("catch-all".into(), 600, 600, 1200, 600), ("exempt".into(), 0, 0, 600, 0)]);
}

#[test]
fn the_lowest_precedence_matches_and_dangling_schemas_do_not() {
    let flows = FlowControl::new(600);
    flows.configure(
        vec![
            schema("later", "a", 20, "alice"),
            schema("b-first", "a", 10, "alice"),
            schema("a-dangling", "nowhere", 1, "alice"),
            schema("a-first", "b", 10, "alice"),
        ],
        vec![level("a", json!({})), level("b", json!({}))],
    );
    let found = flows.classify(&UserInfo::new("alice", &[]), &info("/api/v1/pods"));
    assert_eq!((found.name(), found.level().name()), ("a-first", "b"));
    let (schema, level) = found.uids();
    assert_eq!([schema.unwrap(), level.unwrap()], ["a-first-uid", "b"]);
}

#[test]
fn nominal_seats_are_upstreams() {
    let flows = FlowControl::new(600);
    let shares = [
        ("catch-all", 5),
        ("global-default", 20),
        ("leader-election", 10),
        ("node-high", 40),
        ("system", 30),
        ("workload-high", 40),
        ("workload-low", 100),
    ];
    let levels = shares.map(|(name, shares)| level(name, json!({"nominalConcurrencyShares": shares})));
    flows.configure(Vec::new(), levels.into());
    let nominal: Vec<(String, u32)> = seats(&flows).into_iter().map(|row| (row.0, row.1)).collect();
    let expected = [
        ("catch-all", 13),
        ("exempt", 0),
        ("global-default", 49),
        ("leader-election", 25),
        ("node-high", 98),
        ("system", 74),
        ("workload-high", 98),
        ("workload-low", 245),
    ];
    assert_eq!(nominal, expected.map(|(name, seats)| (name.to_string(), seats)));
}

#[tokio::test]
async fn seats_are_lent_to_who_needs_them() {
    let flows = FlowControl::new(20);
    flows.configure(
        vec![schema("busy", "busy", 10, "alice")],
        vec![
            level("busy", json!({"nominalConcurrencyShares": 5, "limitResponse": {"type": "Reject"}})),
            level("idle", json!({"nominalConcurrencyShares": 10, "lendablePercent": 80})),
        ],
    );
    let of = |name: &str| seats(&flows).into_iter().find(|row| row.0 == name).unwrap();
    assert_eq!((of("busy").1, of("idle").1, of("idle").2), (5, 10, 2));
    let alice = UserInfo::new("alice", &[]);
    let (info, query) = (info("/api/v1/pods"), Query::default());
    let admit = || flows.admit(&alice, &info, &query, Duration::from_millis(1), || None, || 0);
    let mut permits = Vec::new();
    while let Ok((_, permit)) = admit().await {
        permits.push(permit);
    }
    let before = permits.len();
    tokio::time::sleep(Duration::from_millis(5)).await;
    flows.adjust();
    while let Ok((_, permit)) = admit().await {
        permits.push(permit);
    }
    assert!(permits.len() > before && permits.len() > 5, "{before} {}", permits.len());
    // Each level's part is rounded to whole seats.
    let total = of("idle").4 as usize + permits.len() + of("catch-all").4 as usize;
    assert!(total.abs_diff(20) <= 2, "{:?}", seats(&flows));
    let refused = admit().await.err().unwrap();
    assert_eq!((refused.reason, refused.retry_after), (Refusal::ConcurrencyLimit, 1));
    drop(permits);
    assert!(flows.levels().iter().all(|level| level.set.is_idle()));
}

#[tokio::test]
async fn who_waits_too_long_is_refused() {
    let flows = FlowControl::new(1);
    flows.configure(
        vec![schema("s", "l", 10, "alice")],
        vec![
            level("l", json!({"nominalConcurrencyShares": 1000, "limitResponse": {"type": "Queue", "queuing": {"queues": 4, "handSize": 2, "queueLengthLimit": 3}}})),
        ],
    );
    let (alice, info, query) = (UserInfo::new("alice", &[]), info("/api/v1/pods"), Query::default());
    let admit =
        |patience: u64| flows.admit(&alice, &info, &query, Duration::from_millis(patience), || None, || 0);
    let mut held = Vec::new();
    let current = seats(&flows).into_iter().find(|row| row.0 == "l").unwrap().4;
    for _ in 0..current {
        held.push(admit(1).await.ok().unwrap());
    }
    assert_eq!(admit(1).await.err().unwrap().reason, Refusal::TimeOut);
    let text = {
        let waiting = admit(200);
        tokio::pin!(waiting);
        let _ = tokio::time::timeout(Duration::from_millis(5), &mut waiting).await;
        dump::dump(&flows, "dump_requests", true).unwrap()
    };
    let row = text.lines().nth(1).unwrap();
    assert!(row.starts_with("l, ") && row.contains("alice,") && row.contains("/api/v1/pods"), "{text}");
    assert!(dump::dump(&flows, "dump_priority_levels", false).unwrap().contains("\nl, "));
    assert!(dump::dump(&flows, "nothing", false).is_none());
}

#[test]
fn an_uncontended_request_is_cheap() {
    let flows = FlowControl::new(600);
    flows.configure(
        (0..12).map(|n| schema(&format!("s{n}"), "l", n, &format!("user-{n}"))).collect(),
        vec![level("l", json!({"limitResponse": {"type": "Queue", "queuing": {"queues": 128, "handSize": 6, "queueLengthLimit": 50}}}))],
    );
    let (user, info, query) =
        (UserInfo::new("user-11", &["a", "b"]), info("/api/v1/namespaces/n/pods/p"), Query::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let start = Instant::now();
        let rounds = 20_000;
        for _ in 0..rounds {
            drop(flows.admit(&user, &info, &query, Duration::from_secs(1), || None, || 0).await);
        }
        let each = start.elapsed() / rounds;
        // Unoptimised and on a busy machine; an optimised build takes a fraction of it.
        assert!(each < Duration::from_micros(60), "{each:?}");
    });
}
