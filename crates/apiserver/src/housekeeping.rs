//! What the server does on its own: compaction of the store's history, removal of old Events, notes of which tokens of
//! Secrets are used.

use std::sync::{Arc, Weak};
use std::time::Duration;

use orlop_store::Revision;

use crate::ApiServer;
use crate::authn::UserInfo;
use crate::authn::legacy_use::label_used;
use crate::registry::options::DeleteOptions;
use crate::registry::{Call, CallOptions, Warnings};

/// Between two sweeps of old Events.
const SWEEP: Duration = Duration::from_secs(60);

/// Starts all; they end with the server.
pub fn start(server: &Arc<ApiServer>) {
    let stop = server.stopped();
    let (used, weak) = (server.authenticator.service_accounts.used.clone(), Arc::downgrade(server));
    let ends = stop.clone();
    tokio::spawn(async move { ends.run_until_cancelled(label_used(weak, used)).await });
    if server.options.compaction_interval > 0 {
        let (server, stop) = (Arc::downgrade(server), stop.clone());
        tokio::spawn(async move { stop.run_until_cancelled(compact(server)).await });
    }
    if server.options.event_ttl > 0 {
        let server = Arc::downgrade(server);
        tokio::spawn(async move { stop.run_until_cancelled(expire_events(server)).await });
    }
}

/// Keeps history for one interval: what was current at the last round is compacted at this one.
async fn compact(server: Weak<ApiServer>) {
    let mut last = Revision(0);
    loop {
        let Some(interval) = server.upgrade().map(|s| s.options.compaction_interval) else { return };
        tokio::time::sleep(Duration::from_secs(interval)).await;
        let Some(server) = server.upgrade() else { return };
        if last.0 > 0
            && last > server.registry.store.compact_revision()
            && let Err(error) = server.registry.store.compact(last).await
        {
            tracing::warn!(%error, revision = last.0, "compaction failed; it is tried again");
        }
        last = server.registry.store.revision();
    }
}

async fn expire_events(server: Weak<ApiServer>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(server) = server.upgrade() else { return };
        let Some(resource) = server.registry.resources.of_kind("", "Event") else { return };
        let Some(cache) = resource.cache.as_ref() else { return };
        let limit =
            jiff::Timestamp::now().as_second() - i64::try_from(server.options.event_ttl).unwrap_or(i64::MAX);
        let old: Vec<_> = cache
            .snapshot()
            .0
            .values()
            .filter(|entry| {
                // An Event lives on from its last update; each one writes a time, of which the creation is the oldest.
                let value = entry.value();
                let time = |path: &str| {
                    value
                        .pointer(path)
                        .and_then(|t| t.as_str())
                        .and_then(|t| t.parse::<jiff::Timestamp>().ok())
                };
                ["/lastTimestamp", "/series/lastObservedTime", "/metadata/creationTimestamp"]
                    .iter()
                    .filter_map(|path| time(path))
                    .max()
                    .is_some_and(|t| t.as_second() < limit)
            })
            .cloned()
            .collect();
        let (user, warnings) = (UserInfo::loopback(), Warnings::default());
        let call = Call {
            user: &user,
            resource: &resource,
            namespace: "",
            name: "",
            subresource: "",
            dry_run: false,
            field_manager: "",
            warnings: &warnings,
            annotations: None,
            options: CallOptions::None,
        };
        if let Err(error) = server.registry.delete_collection(&call, &DeleteOptions::default(), &old).await {
            tracing::warn!(%error, "old Events could not be removed; it is tried again");
        }
    }
}
