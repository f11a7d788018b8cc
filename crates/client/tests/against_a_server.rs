//! The client's parts against a real API server: through memory, and over TLS with a kubeconfig.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use orlop_apiserver::pki::{self, Subject};
use orlop_apiserver::{ApiServer, Options, UserInfo};
use orlop_client::{
    EventRecorder, EventType, InformerEvent, LeaderElection, LeaderElectionOptions, SharedInformerFactory,
    from_kubeconfig, in_memory,
};
use orlop_store::memory::MemoryStore;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

async fn server() -> Arc<ApiServer> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    ApiServer::new(Options::default(), Arc::new(MemoryStore::new())).await.unwrap()
}

fn admin(server: &Arc<ApiServer>) -> kube::Client {
    in_memory(server.in_memory(UserInfo::new("admin", &["system:masters"]).authenticated()), "test")
}

fn config_map(name: &str) -> ConfigMap {
    serde_json::from_value(serde_json::json!({"metadata": {"name": name}, "data": {"k": "v"}})).unwrap()
}

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, probe: impl Fn() -> F) -> T {
    let wait = async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("did not happen: {what}"))
}

#[tokio::test]
async fn an_informer_follows_the_server() {
    let server = server().await;
    let client = admin(&server);
    let shutdown = CancellationToken::new();
    let factory = SharedInformerFactory::new(client.clone(), shutdown.clone());
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    maps.create(&PostParams::default(), &config_map("before")).await.unwrap();

    let informer = factory.informer::<ConfigMap>();
    tokio::time::timeout(PATIENCE, informer.synced()).await.unwrap();
    let present = informer.get("default", "before").unwrap();
    assert!(present.metadata.managed_fields.is_none(), "caches do not carry managedFields");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    informer.subscribe(move |event| {
        let meta = &event.object().metadata;
        if meta.namespace.as_deref() != Some("default") {
            return;
        }
        let name = meta.name.clone().unwrap();
        let kind = match event {
            InformerEvent::Added(_) => "added",
            InformerEvent::Updated { .. } => "updated",
            InformerEvent::Deleted(_) => "deleted",
        };
        sink.lock().push(format!("{kind} {name}"));
    });
    maps.create(&PostParams::default(), &config_map("after")).await.unwrap();
    let mut changed = maps.get("after").await.unwrap();
    changed.data = None;
    maps.replace("after", &PostParams::default(), &changed).await.unwrap();
    maps.delete("after", &DeleteParams::default()).await.unwrap();
    let expected = ["added before", "added after", "updated after", "deleted after"];
    eventually("all events have come", || async { (seen.lock().len() >= expected.len()).then_some(()) })
        .await;
    assert_eq!(*seen.lock(), expected);
    // The same informer serves everybody who asks.
    assert_eq!(factory.informer::<ConfigMap>().len(), informer.len());
    shutdown.cancel();
}

#[tokio::test]
async fn equal_events_are_counted() {
    let server = server().await;
    let client = admin(&server);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let object = maps.create(&PostParams::default(), &config_map("subject")).await.unwrap();
    let recorder = EventRecorder::new(client.clone(), "tester", "node-1");
    for message in ["once", "again", "again", "again"] {
        recorder.event(&object, EventType::Warning, "Tested", message);
    }
    let events: Api<Event> = Api::namespaced(client, "default");
    let listed = eventually("the events are written", || async {
        let listed = events.list(&ListParams::default().fields("reason=Tested")).await.unwrap().items;
        let total: i32 = listed.iter().filter_map(|event| event.count).sum();
        (total == 4).then_some(listed)
    })
    .await;
    assert_eq!(listed.len(), 2);
    for event in listed {
        assert_eq!(event.involved_object.kind.as_deref(), Some("ConfigMap"));
        assert_eq!(event.involved_object.uid, object.metadata.uid);
        assert_eq!(event.source.unwrap().component.as_deref(), Some("tester"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
    }
}

fn competitor(client: &kube::Client, identity: &str) -> LeaderElection {
    let mut options = LeaderElectionOptions::new("tested", identity);
    options.lease_duration = Duration::from_secs(3);
    options.renew_deadline = Duration::from_secs(2);
    options.retry_period = Duration::from_millis(100);
    LeaderElection::new(client.clone(), options)
}

#[tokio::test]
async fn one_leads_and_hands_over() {
    let server = server().await;
    let client = admin(&server);
    let stop_first = CancellationToken::new();
    let leading = competitor(&client, "first").lead(stop_first.clone()).await.unwrap();
    let second = tokio::spawn(competitor(&client, "second").lead(CancellationToken::new()));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!second.is_finished() && !leading.lost.is_cancelled(), "only one leads");

    stop_first.cancel();
    tokio::time::timeout(PATIENCE, leading.lost.cancelled()).await.unwrap();
    leading.ended().await;
    let leading = tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap().unwrap();
    let leases: Api<Lease> = Api::namespaced(client, "kube-system");
    let spec = leases.get("tested").await.unwrap().spec.unwrap();
    assert_eq!(spec.holder_identity.as_deref(), Some("second"));
    assert_eq!(spec.lease_transitions, Some(1));

    // Somebody takes the lease away by force: the leader must notice and stop.
    let theft = Patch::Merge(serde_json::json!({"spec": {"holderIdentity": "thief"}}));
    leases.patch("tested", &PatchParams::default(), &theft).await.unwrap();
    tokio::time::timeout(PATIENCE, leading.lost.cancelled()).await.unwrap();
}

#[tokio::test]
async fn a_kubeconfig_leads_to_the_same_server_over_tls() {
    let server = server().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    tokio::spawn(server.clone().serve(listener, server.tls_config().unwrap(), shutdown.clone()));
    let leaf = server.ca().issue(&Subject::client("admin", &["system:masters"]), 1).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    pki::write_file(file.path(), &pki::kubeconfig("test", &url, server.ca().cert_pem(), &leaf), true)
        .unwrap();

    let over_tls = from_kubeconfig(file.path(), "test").await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(over_tls, "default");
    maps.create(&PostParams::default(), &config_map("by-tls")).await.unwrap();
    let in_memory: Api<ConfigMap> = Api::namespaced(admin(&server), "default");
    assert_eq!(
        in_memory.get("by-tls").await.unwrap().metadata.uid,
        maps.get("by-tls").await.unwrap().metadata.uid
    );
    shutdown.cancel();

    let missing = from_kubeconfig(std::path::Path::new("/nonexistent/kubeconfig"), "test").await;
    let said = missing.err().unwrap().to_string();
    assert!(said.contains("/nonexistent/kubeconfig") && said.contains("--kubeconfig"), "{said}");
}

/// Informers that begin while their objects change must end up with the last state, whatever the moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn informers_that_begin_amid_changes_miss_nothing() {
    for round in 0..rounds() {
        let server = server().await;
        let shutdown = CancellationToken::new();
        let name = format!("node-{round}");
        let started: Vec<_> = (0..6)
            .map(|delay| {
                let (client, shutdown) = (admin(&server), shutdown.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_micros(delay * 700)).await;
                    SharedInformerFactory::new(client, shutdown).informer::<Node>()
                })
            })
            .collect();
        let writer = |field: &'static str| {
            let nodes: Api<Node> = Api::all(admin(&server));
            let name = name.clone();
            tokio::spawn(async move {
                for step in 0..5 {
                    let label =
                        Patch::Merge(serde_json::json!({"metadata": {"labels": {field: step.to_string()}}}));
                    // The server tries a lost race five times, as upstream does; the rest is the client's.
                    while let Err(error) = nodes.patch(&name, &PatchParams::default(), &label).await {
                        assert!(matches!(&error, kube::Error::Api(status) if status.code == 409), "{error}");
                    }
                }
            })
        };
        let nodes: Api<Node> = Api::all(admin(&server));
        let node = serde_json::from_value(serde_json::json!({"metadata": {"name": name}})).unwrap();
        nodes.create(&PostParams::default(), &node).await.unwrap();
        for writer in ["a", "b", "c"].map(writer) {
            tokio::time::timeout(PATIENCE, writer).await.expect("a write hangs").unwrap();
        }
        let last = nodes.get(&name).await.unwrap().metadata.resource_version;
        for informer in started {
            let informer = informer.await.unwrap();
            eventually("the informer has the last state", || async {
                (informer.get("", &name)?.metadata.resource_version == last).then_some(())
            })
            .await;
        }
        shutdown.cancel();
    }
}

/// More of them can be asked for when a race is hunted.
fn rounds() -> usize {
    std::env::var("ORLOP_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

#[tokio::test]
async fn what_is_watched_in_memory_has_no_managed_fields() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(admin(&server), "default");
    maps.create(&PostParams::default(), &config_map("a")).await.unwrap();
    let stored = maps.get("a").await.unwrap();
    assert!(stored.metadata.managed_fields.is_some_and(|all| !all.is_empty()), "reads have them");
    let mut events = std::pin::pin!(maps.watch(&WatchParams::default(), "0").await.unwrap());
    let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap().unwrap();
    let WatchEvent::Added(seen) = event else { panic!("{event:?}") };
    assert_eq!((seen.metadata.name.as_deref(), &seen.metadata.managed_fields), (Some("a"), &None));
    assert_eq!(seen.data, stored.data);
}
