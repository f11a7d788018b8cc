//! `/metrics`: what was counted, and what is known of objects, watchers and the process at this moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::plain::{GIT_VERSION, architecture};
use crate::ApiServer;
use crate::cache::Cache;
use crate::metrics::{Exposition, process};

/// A stored kind: group, version, plural, kind, and its objects.
type Stored = (String, String, String, String, Arc<Cache>);

fn stored(server: &ApiServer) -> Vec<Stored> {
    let mut found: BTreeMap<String, Stored> = BTreeMap::new();
    for resource in &server.registry.resources.table().list {
        let Some(cache) = &resource.cache else { continue };
        found.entry(cache.prefix().to_string()).or_insert_with(|| {
            (
                resource.group.clone(),
                resource.version.clone(),
                resource.plural.clone(),
                resource.kind.clone(),
                cache.clone(),
            )
        });
    }
    found.into_values().collect()
}

/// The text.
pub(super) fn metrics(server: &ApiServer) -> String {
    let mut out = Exposition::shaped(&server.options.metrics);
    server.metrics.render(&mut out);
    if let Some(flows) = &server.flows {
        flows.render(&mut out);
    }
    objects(server, &mut out);
    let features: BTreeMap<&str, bool> = FEATURES
        .into_iter()
        .chain(server.options.feature_gates.iter().map(|(n, on)| (n.as_str(), *on)))
        .collect();
    out.family(
        "kubernetes_feature_enabled",
        "gauge",
        "[BETA] This metric records the data about the stage and enablement of a k8s feature.",
    );
    for (name, on) in features {
        out.sample("kubernetes_feature_enabled", &[("name", name), ("stage", "")], f64::from(u8::from(on)));
    }
    out.family("kubernetes_build_info", "gauge", "[ALPHA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.");
    let platform = format!("{}/{}", std::env::consts::OS, architecture());
    let labels = [
        ("build_date", "1970-01-01T00:00:00Z"),
        ("compiler", "rustc"),
        ("git_commit", option_env!("ORLOP_GIT_COMMIT").unwrap_or("unknown")),
        ("git_tree_state", "clean"),
        ("git_version", GIT_VERSION),
        ("go_version", concat!("rust", env!("CARGO_PKG_RUST_VERSION"))),
        ("major", "1"),
        ("minor", "36"),
        ("platform", &platform),
    ];
    out.sample("kubernetes_build_info", &labels, 1.0);
    process::render(&mut out);
    if let Some(more) = server.options.more_metrics {
        more(&mut out);
    }
    out.finish()
}

/// Gates whose behaviour this server has.
const FEATURES: [(&str, bool); 6] = [
    ("APIResponseCompression", true),
    ("ConsistentListFromCache", true),
    ("ListFromCacheSnapshot", true),
    ("ResilientWatchCacheInitialization", true),
    ("SizeBasedListCostEstimate", true),
    ("WatchList", true),
];

fn objects(server: &ApiServer, out: &mut Exposition) {
    let stored = stored(server);
    let mut family = |name: &str, kind: &str, help: &str, of: &dyn Fn(&Cache) -> f64| {
        out.family(name, kind, help);
        for (group, _, resource, _, cache) in &stored {
            out.sample(name, &[("group", group), ("resource", resource)], of(cache));
        }
    };
    family(
        "apiserver_resource_objects",
        "gauge",
        "[ALPHA] Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.",
        &|c| c.stats().objects as f64,
    );
    family(
        "apiserver_resource_size_estimate_bytes",
        "gauge",
        "[ALPHA] Estimated size of stored objects in database. Estimate is based on sum of last observed sizes of serialized objects. In case of a fetching error, the value will be -1.",
        &|c| c.stats().bytes as f64,
    );
    family(
        "apiserver_watch_cache_resource_version",
        "gauge",
        "[ALPHA] Current resource version of watch cache broken by resource type.",
        &|c| c.snapshot().1 as f64,
    );
    family(
        "apiserver_terminated_watchers_total",
        "counter",
        "[ALPHA] Counter of watchers closed due to unresponsiveness broken by resource type.",
        &|c| c.cut_watchers() as f64,
    );
    family(
        "apiserver_init_events_total",
        "counter",
        "[ALPHA] Counter of init events processed in watch cache broken by resource type.",
        &|c| c.reads.init_events.get() as f64,
    );
    let mut listed = |name: &str, help: &str, of: &dyn Fn(&Cache) -> f64| {
        out.family(name, "counter", help);
        for (group, _, resource, _, cache) in stored.iter().filter(|row| row.4.reads.lists.get() > 0) {
            out.sample(name, &[("group", group), ("index", ""), ("resource", resource)], of(cache));
        }
    };
    listed("apiserver_cache_list_total", "[ALPHA] Number of LIST requests served from watch cache", &|c| {
        c.reads.lists.get() as f64
    });
    listed(
        "apiserver_cache_list_fetched_objects_total",
        "[ALPHA] Number of objects read from watch cache in the course of serving a LIST request",
        &|c| c.reads.fetched.get() as f64,
    );
    listed(
        "apiserver_cache_list_returned_objects_total",
        "[ALPHA] Number of objects returned for a LIST request from watch cache",
        &|c| c.reads.returned.get() as f64,
    );
    out.family("apiserver_storage_objects", "gauge", "[STABLE] [DEPRECATED, consider using apiserver_resource_objects instead] Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.");
    for (group, _, resource, _, cache) in &stored {
        let name = if group.is_empty() { resource.clone() } else { format!("{resource}.{group}") };
        out.sample("apiserver_storage_objects", &[("resource", &name)], cache.stats().objects as f64);
    }
    out.family(
        "apiserver_registered_watchers",
        "gauge",
        "[ALPHA] Number of currently registered watchers for a given resources",
    );
    for (group, version, _, kind, cache) in stored.iter().filter(|row| row.4.watchers() > 0) {
        let labels = [("group", group.as_str()), ("kind", kind), ("version", version)];
        out.sample("apiserver_registered_watchers", &labels, cache.watchers() as f64);
    }
    let watched: Vec<&Stored> = stored.iter().filter(|row| row.4.reads.watch_events.count() > 0).collect();
    out.family("apiserver_watch_events_total", "counter", "[ALPHA] Number of events sent in watch clients");
    for (group, version, resource, _, cache) in &watched {
        let labels = [("group", group.as_str()), ("resource", resource), ("version", version)];
        out.sample("apiserver_watch_events_total", &labels, cache.reads.watch_events.count() as f64);
    }
    out.family("apiserver_watch_events_sizes", "histogram", "[ALPHA] Watch event size distribution in bytes");
    for (group, version, resource, _, cache) in &watched {
        let labels = [("group", group.as_str()), ("resource", resource), ("version", version)];
        out.histogram("apiserver_watch_events_sizes", &labels, &cache.reads.watch_events);
    }
}
