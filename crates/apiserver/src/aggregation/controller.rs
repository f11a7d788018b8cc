//! Keeps APIServices and what requests see of them in step: registers the groups of custom resources, writes the
//! `Available` condition, asks backends how they are and what they serve, keeps the ConfigMap that they read.
//!
//! It wakes when an APIService, a Service or EndpointSlice of one, or the table of resources changes, and for each
//! backend from time to time.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use orlop_json::{Value, json};
use tokio::time::Instant;

use super::backend::{Backend, Trust};
use super::documents::{self, OpenApi};
use super::resolve::{self, Unavailable};
use super::{
    GROUP, InProcess, Priority, Published, Remote, ServiceReference, check, priority_of, service_of, text,
};
use crate::ApiServer;
use crate::authn::UserInfo;
use crate::bootstrap::AUTOMANAGED;
use crate::cache::{Cache, Interest, Mailbox};
use crate::registry::options::DeleteOptions;
use crate::registry::update::Replace;
use crate::registry::{Call, CallOptions, Warnings};
use crate::resources::Resource;

/// How often a backend that is there is asked again.
const RECHECK: Duration = Duration::from_secs(30);
/// First pause after a failed check; it doubles up to [`RECHECK`].
const RETRY: Duration = Duration::from_millis(500);
/// Changes within this time are one.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// Starts it; ends with the server.
pub fn start(server: &Arc<ApiServer>) {
    let (weak, stop) = (Arc::downgrade(server), server.stopped());
    tokio::spawn(async move { stop.run_until_cancelled(run(weak)).await });
}

/// What is remembered of a backend.
struct Kept {
    /// `None` for a server of this process.
    origin: Option<(ServiceReference, Trust)>,
    backend: Result<Arc<Backend>, String>,
    /// Of the Service and its slices at the last check.
    revisions: Vec<u64>,
    /// When it is asked again; `None` for a server of this process, which is asked once.
    due: Option<Instant>,
    pause: Duration,
    available: bool,
    resources: Arc<Vec<Value>>,
    openapi: Arc<OpenApi>,
}

async fn next(mailbox: &mut Option<Mailbox>) {
    match mailbox {
        Some(open) => {
            if open.recv().await.is_none() {
                *mailbox = None;
            }
        }
        None => std::future::pending().await,
    }
}

fn drain(mailbox: &mut Option<Mailbox>) {
    while mailbox.as_mut().is_some_and(|open| open.try_recv().is_ok()) {}
}

fn subscribe(cache: Option<Arc<Cache>>, interest: Interest) -> Option<Mailbox> {
    cache?.subscribe(None, interest).ok()?.receiver
}

async fn run(weak: Weak<ApiServer>) {
    let Some(mut table) = weak.upgrade().map(|server| server.registry.resources.changes()) else { return };
    let mut kept: BTreeMap<String, Kept> = BTreeMap::new();
    let (mut api_services, mut services, mut slices, mut config) = (None, None, None, None);
    loop {
        let due = {
            let Some(server) = weak.upgrade() else { return };
            let resources = &server.registry.resources;
            // A mailbox that was closed is opened again before the state is read.
            if api_services.is_none() {
                api_services = subscribe(resources.cache(GROUP, "APIService"), Interest::All);
            }
            if config.is_none() {
                let object = "kube-system/extension-apiserver-authentication";
                config = subscribe(resources.cache("", "ConfigMap"), Interest::Object(object.into()));
            }
            if has_services(&kept) {
                if services.is_none() {
                    services = subscribe(resources.cache("", "Service"), Interest::All);
                }
                if slices.is_none() {
                    slices = subscribe(resources.cache("discovery.k8s.io", "EndpointSlice"), Interest::All);
                }
            } else {
                (services, slices) = (None, None);
            }
            sync(&server, &mut kept).await;
            if has_services(&kept) && (services.is_none() || slices.is_none()) {
                // The first backend: begin to follow Services, then look again.
                Some(Instant::now())
            } else {
                kept.values().filter_map(|k| k.due).min()
            }
        };
        let wait = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = next(&mut api_services) => {}
            () = next(&mut config) => {}
            () = next(&mut services) => {}
            () = next(&mut slices) => {}
            changed = table.changed() => if changed.is_err() { return },
            () = wait => {}
        }
        tokio::time::sleep(DEBOUNCE).await;
        for mailbox in [&mut api_services, &mut config, &mut services, &mut slices] {
            drain(mailbox);
        }
        table.mark_unchanged();
    }
}

/// Whether any backend has to be found through a Service.
fn has_services(kept: &BTreeMap<String, Kept>) -> bool {
    kept.values().any(|kept| kept.origin.is_some())
}

/// Brings everything in step once.
fn sync<'a>(server: &'a ApiServer, kept: &'a mut BTreeMap<String, Kept>) -> BoxFuture<'a, ()> {
    Box::pin(sync_once(server, kept))
}

async fn sync_once(server: &ApiServer, kept: &mut BTreeMap<String, Kept>) {
    let config = server.aggregator.headers.config_map(&server.client_ca_pem);
    if let Err(error) = crate::bootstrap::keep(server, "", config).await {
        tracing::debug!(
            error = error.status().message,
            "the ConfigMap of extension API servers was not written"
        );
    }
    let Some(resource) = server.registry.resources.of_kind(GROUP, "APIService") else { return };
    let Some(cache) = resource.cache.clone() else { return };
    register(server, &resource, &cache).await;
    let objects: BTreeMap<String, Value> =
        cache.snapshot().0.values().map(|entry| (entry.key.to_string(), entry.value())).collect();
    remember(server, &objects, kept);
    publish(server, &objects, kept);
    let mut conditions: HashMap<String, Unavailable> = HashMap::new();
    let checked = futures::future::join_all(
        kept.iter_mut().filter_map(|(name, kept)| Some(examine(server, objects.get(name)?, name, kept))),
    )
    .await;
    let changed = checked.iter().any(|c| c.is_some());
    for (name, outcome) in checked.into_iter().flatten() {
        conditions.insert(name, outcome);
    }
    if changed {
        publish(server, &objects, kept);
    }
    for (name, object) in &objects {
        let wanted = match (service_of(object), conditions.remove(name)) {
            (None, _) => Some(("True", "Local", "Local APIServices are always available".to_string())),
            (Some(_), Some(Unavailable { reason: "Passed", message })) => Some(("True", "Passed", message)),
            (Some(_), Some(unavailable)) => Some(("False", unavailable.reason, unavailable.message)),
            (Some(_), None) => None,
        };
        if let Some((status, reason, message)) = wanted {
            write_condition(server, &resource, object, status, reason, &message).await;
        }
    }
}

/// Backends of the APIServices that there are; what was known of unchanged ones stays.
fn remember(server: &ApiServer, objects: &BTreeMap<String, Value>, kept: &mut BTreeMap<String, Kept>) {
    kept.retain(|name, _| objects.contains_key(name));
    for (name, object) in objects {
        let origin = service_of(object).map(|service| {
            let trust = Trust::of(object, &service);
            (service, trust)
        });
        if kept.get(name).is_some_and(|known| known.origin == origin) {
            continue;
        }
        let backend = match (&origin, in_process(server, name)) {
            (Some((_, trust)), _) => Backend::new(trust, server.aggregator.client.as_ref()),
            (None, Some(found)) => Ok(Backend::InProcess(found.answer.clone())),
            (None, None) => {
                kept.remove(name);
                continue;
            }
        };
        kept.insert(
            name.clone(),
            Kept {
                due: Some(Instant::now()),
                origin,
                backend: backend.map(Arc::new),
                revisions: Vec::new(),
                pause: RETRY,
                available: false,
                resources: Arc::default(),
                openapi: Arc::default(),
            },
        );
    }
}

fn in_process<'a>(server: &'a ApiServer, name: &str) -> Option<&'a InProcess> {
    server.options.in_process.iter().find(|found| found.name() == name)
}

fn publish(server: &ApiServer, objects: &BTreeMap<String, Value>, kept: &BTreeMap<String, Kept>) {
    let mut next = Published { priorities: super::built_in(), ..Published::default() };
    next.priorities.extend(objects.values().filter_map(priority_of));
    for (name, kept) in kept {
        let Some(object) = objects.get(name) else { continue };
        let (group, version) =
            (text(object, "/spec/group").to_string(), text(object, "/spec/version").to_string());
        let remote = Remote {
            name: name.clone(),
            group: group.clone(),
            version: version.clone(),
            service: kept.origin.as_ref().map(|(service, _)| service.clone()),
            backend: kept.backend.clone(),
            available: kept.available,
            resources: kept.resources.clone(),
            openapi: kept.openapi.clone(),
        };
        next.remotes.insert((group, version), Arc::new(remote));
    }
    let before = server.aggregator.published();
    let same = before.priorities == next.priorities
        && before.remotes.len() == next.remotes.len()
        && before.remotes.iter().zip(&next.remotes).all(|((_, a), (_, b))| {
            a.name == b.name
                && a.service == b.service
                && a.available == b.available
                && Arc::ptr_eq(&a.resources, &b.resources)
                && Arc::ptr_eq(&a.openapi, &b.openapi)
                && match (&a.backend, &b.backend) {
                    (Ok(a), Ok(b)) => Arc::ptr_eq(a, b),
                    (Err(a), Err(b)) => a == b,
                    _ => false,
                }
        });
    if !same {
        server.aggregator.publish(next);
    }
}

/// Checks a backend when something about it changed or it is time; what came of it.
async fn examine(
    server: &ApiServer,
    object: &Value,
    name: &str,
    kept: &mut Kept,
) -> Option<(String, Unavailable)> {
    let (group, version) = (text(object, "/spec/group"), text(object, "/spec/version"));
    let Some((service, _)) = &kept.origin else {
        if kept.due.take().is_some()
            && let Ok(backend) = kept.backend.clone()
        {
            kept.available = true;
            read_documents(kept, &backend, name, "localhost", group, version).await;
            return Some((name.to_string(), passed()));
        }
        return None;
    };
    let known = resolve::look(&server.registry, service);
    if known.revisions == kept.revisions && kept.due.is_some_and(|due| Instant::now() < due) {
        return None;
    }
    kept.revisions = known.revisions.clone();
    let host = format!("{}.{}.svc:{}", service.name, service.namespace, service.port);
    let outcome = match (resolve::addresses(&known, service), &kept.backend) {
        (Err(unavailable), _) => Err(unavailable),
        (Ok(_), Err(message)) => {
            Err(Unavailable { reason: "FailedDiscoveryCheck", message: message.clone() })
        }
        (Ok(addresses), Ok(backend)) => {
            let first = addresses.first().cloned().unwrap_or_default();
            backend.set_addresses(addresses);
            check::discovery(backend, &first, &host, group, version).await.map(|()| backend.clone())
        }
    };
    let now = Instant::now();
    Some((
        name.to_string(),
        match outcome {
            Ok(backend) => {
                read_documents(kept, &backend, name, &host, group, version).await;
                kept.available = true;
                kept.pause = RETRY;
                kept.due = Some(now + RECHECK);
                passed()
            }
            Err(unavailable) => {
                kept.available = false;
                kept.due = Some(now + kept.pause);
                kept.pause = (kept.pause * 2).min(RECHECK);
                unavailable
            }
        },
    ))
}

fn passed() -> Unavailable {
    Unavailable { reason: "Passed", message: "all checks passed".to_string() }
}

/// What a backend serves, for the documents of this server.
async fn read_documents(
    kept: &mut Kept,
    backend: &Backend,
    name: &str,
    host: &str,
    group: &str,
    version: &str,
) {
    match documents::resources(backend, host, group, version).await {
        Ok(found) if found != *kept.resources => kept.resources = Arc::new(found),
        Ok(_) => {}
        Err(error) => tracing::debug!(name, error, "discovery of an aggregated API server failed"),
    }
    let found = documents::openapi(backend, host, group, version).await;
    let hash = |document: &OpenApi| document.v3.as_ref().map(|(_, hash)| hash.clone());
    if hash(&found) != hash(&kept.openapi) || found.v2 != kept.openapi.v2 {
        kept.openapi = Arc::new(found);
    }
}

fn call<'a>(
    user: &'a UserInfo,
    warnings: &'a Warnings,
    resource: &'a Arc<Resource>,
    name: &'a str,
    subresource: &'a str,
) -> Call<'a> {
    Call {
        user,
        resource,
        namespace: "",
        name,
        subresource,
        dry_run: false,
        field_manager: "kube-apiserver",
        warnings,
        annotations: None,
        options: CallOptions::None,
    }
}

async fn write_condition(
    server: &ApiServer,
    resource: &Arc<Resource>,
    object: &Value,
    status: &str,
    reason: &str,
    message: &str,
) {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let before = conditions.into_iter().flatten().find(|c| c["type"] == "Available");
    if before.is_some_and(|b| b["status"] == status && b["reason"] == reason && b["message"] == message) {
        return;
    }
    let time = before
        .filter(|b| b["status"] == status)
        .map(|b| b["lastTransitionTime"].clone())
        .filter(|time| time.is_string())
        .unwrap_or_else(|| json!(crate::registry::now()));
    let condition = json!({
        "type": "Available", "status": status, "lastTransitionTime": time, "reason": reason, "message": message,
    });
    let mut others: Vec<Value> =
        conditions.into_iter().flatten().filter(|c| c["type"] != "Available").cloned().collect();
    others.push(condition);
    let mut object = object.clone();
    object["status"] = json!({"conditions": others});
    let (user, warnings) = (UserInfo::loopback(), Warnings::default());
    let name = text(&object, "/metadata/name").to_string();
    let call = call(&user, &warnings, resource, &name, "status");
    // Somebody who was faster wakes this controller again.
    if let Err(error) = server.registry.update(&call, &Replace(object)).await {
        tracing::debug!(
            name,
            error = error.status().message,
            "the condition of an APIService was not written"
        );
    }
}

/// Makes APIServices for the groups and versions of custom resources and of servers of this process, and takes back those
/// whose resources are gone.
async fn register(server: &ApiServer, resource: &Arc<Resource>, cache: &Cache) {
    let table = server.registry.resources.table();
    let spec = |group: &str, version: &str, priority: Priority| {
        json!({
            "group": group, "version": version,
            "groupPriorityMinimum": priority.group, "versionPriority": priority.version,
        })
    };
    let custom = table.list.iter().filter(|r| r.custom.is_some());
    let custom =
        custom.map(|r| (format!("{}.{}", r.version, r.group), spec(&r.group, &r.version, Priority::DEFAULT)));
    let own = server.options.in_process.iter();
    let own = own.map(|server| (server.name(), spec(&server.group, &server.version, server.priority)));
    let wanted: BTreeMap<String, Value> = custom.chain(own).collect();
    for (name, spec) in &wanted {
        // One without the label is somebody else's, who answers for the group; one that names a Service takes over from
        // a server of this process, whatever its labels are: a client's apply keeps those that it does not know.
        let current = cache.get(name);
        if current.is_some_and(|entry| {
            let object = entry.value();
            !matches!(entry.label(AUTOMANAGED), Some("true" | "onstart"))
                || object["spec"] == *spec
                || in_process(server, name).is_some() && service_of(&object).is_some()
        }) {
            continue;
        }
        let object = json!({
            "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
            "metadata": {"name": name, "labels": {AUTOMANAGED: "true"}},
            "spec": spec,
        });
        if let Err(error) = crate::bootstrap::keep(server, GROUP, object).await {
            tracing::debug!(name, error = error.status().message, "an APIService was not registered");
        }
    }
    let gone: Vec<String> = cache
        .snapshot()
        .0
        .values()
        .filter(|entry| {
            entry.labels.iter().any(|(k, v)| k.as_ref() == AUTOMANAGED && v.as_ref() == "true")
                && !wanted.contains_key(entry.key.as_ref())
                && service_of(&entry.value()).is_none()
        })
        .map(|entry| entry.key.to_string())
        .collect();
    for name in gone {
        let (user, warnings) = (UserInfo::loopback(), Warnings::default());
        let call = call(&user, &warnings, resource, &name, "");
        if let Err(error) = server.registry.delete(&call, &DeleteOptions::default()).await {
            tracing::debug!(name, error = error.status().message, "an APIService was not taken back");
        }
    }
}
