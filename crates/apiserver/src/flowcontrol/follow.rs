//! Keeps the configuration up to date: follows the caches of both kinds, lends seats every period, and writes into each
//! FlowSchema whether its level exists.

use std::sync::{Arc, Weak};

use orlop_json::{Value, json};

use super::config::{FlowSchema, PriorityLevel};
use super::{ADJUSTMENT_PERIOD, FlowControl};
use crate::ApiServer;
use crate::authn::UserInfo;
use crate::cache::{Cache, Interest, Subscription};
use crate::registry::patch::{Patch, PatchKind};
use crate::registry::{Call, CallOptions, Warnings};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Who is recorded as having written a status.
const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";

fn objects(cache: &Cache) -> Vec<Value> {
    cache.snapshot().0.values().map(|entry| entry.value()).collect()
}

/// Reads the configuration once, so that the first request finds it.
pub fn load(server: &ApiServer, flows: &FlowControl) {
    let resources = &server.registry.resources;
    let (Some(schemas), Some(levels)) =
        (resources.cache(GROUP, "FlowSchema"), resources.cache(GROUP, "PriorityLevelConfiguration"))
    else {
        return;
    };
    flows.configure(
        objects(&schemas).iter().map(FlowSchema::parse).collect(),
        objects(&levels).iter().map(PriorityLevel::parse).collect(),
    );
}

/// Starts to follow; ends with the server.
pub fn start(server: &Arc<ApiServer>, flows: &Arc<FlowControl>) {
    let (weak, flows, stop) = (Arc::downgrade(server), flows.clone(), server.stopped());
    tokio::spawn(async move { stop.run_until_cancelled(follow(weak, flows)).await });
}

async fn follow(server: Weak<ApiServer>, flows: Arc<FlowControl>) {
    let mut adjust = tokio::time::interval(ADJUSTMENT_PERIOD);
    adjust.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let subscribed = subscribe(&server);
        let Some((mut schemas, mut levels)) = subscribed else {
            // The kinds are not served: only the mandatory objects exist.
            adjust.tick().await;
            flows.adjust();
            continue;
        };
        {
            let Some(server) = server.upgrade() else { return };
            load(&server, &flows);
            write_conditions(&server).await;
        }
        loop {
            tokio::select! {
                _ = adjust.tick() => {
                    flows.adjust();
                    continue;
                }
                change = schemas.recv() => if change.is_none() { break },
                change = levels.recv() => if change.is_none() { break },
            }
            // Many changes, one configuration.
            while schemas.try_recv().is_ok() || levels.try_recv().is_ok() {}
            let Some(server) = server.upgrade() else { return };
            load(&server, &flows);
            write_conditions(&server).await;
        }
    }
}

type Changes = crate::cache::Mailbox;

fn subscribe(server: &Weak<ApiServer>) -> Option<(Changes, Changes)> {
    let server = server.upgrade()?;
    let of = |kind: &str| {
        let cache = server.registry.resources.cache(GROUP, kind)?;
        let Subscription { receiver, .. } = cache.subscribe(None, Interest::All).ok()?;
        receiver
    };
    Some((of("FlowSchema")?, of("PriorityLevelConfiguration")?))
}

/// The condition a FlowSchema should have.
fn condition(schema: &Value, levels: &[Value]) -> Value {
    let level = schema.pointer("/spec/priorityLevelConfiguration/name").and_then(Value::as_str).unwrap_or("");
    let quoted = orlop_api::field::go_quote(level);
    let of = |status: &str, reason: &str, message: String| json!({"type": "Dangling", "status": status, "reason": reason, "message": message});
    if levels.iter().any(|l| l.pointer("/metadata/name").and_then(Value::as_str) == Some(level)) {
        of(
            "False",
            "Found",
            format!(
                "This FlowSchema references the PriorityLevelConfiguration object named {quoted} and it exists"
            ),
        )
    } else {
        of(
            "True",
            "NotFound",
            format!(
                "This FlowSchema references the PriorityLevelConfiguration object named {quoted} but there is no such object"
            ),
        )
    }
}

/// The condition as it is, without its time.
fn present(schema: &Value) -> Value {
    let conditions = schema.pointer("/status/conditions").and_then(Value::as_array);
    let mut found =
        conditions.into_iter().flatten().find(|c| c["type"] == "Dangling").cloned().unwrap_or_default();
    if let Some(map) = found.as_object_mut() {
        map.remove("lastTransitionTime");
    }
    found
}

async fn write_conditions(server: &ApiServer) {
    let resources = &server.registry.resources;
    let (Some(resource), Some(levels)) =
        (resources.of_kind(GROUP, "FlowSchema"), resources.cache(GROUP, "PriorityLevelConfiguration"))
    else {
        return;
    };
    let Some(cache) = resource.cache.as_ref() else { return };
    let levels = objects(&levels);
    for schema in objects(cache) {
        let mut wanted = condition(&schema, &levels);
        let before = present(&schema);
        if before == wanted {
            continue;
        }
        let time = schema
            .pointer("/status/conditions/0/lastTransitionTime")
            .filter(|_| before["status"] == wanted["status"])
            .cloned()
            .unwrap_or_else(|| json!(crate::registry::now()));
        wanted["lastTransitionTime"] = time;
        let name = schema.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("");
        let patch = json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "FlowSchema", "metadata": {"name": name},
            "status": {"conditions": [wanted]},
        });
        if let Err(error) = write_status(server, &resource, name, &patch).await {
            tracing::debug!(%name, error = error.status().message, "the condition of a FlowSchema was not written");
        }
    }
}

async fn write_status(
    server: &ApiServer,
    resource: &Arc<crate::resources::Resource>,
    name: &str,
    patch: &Value,
) -> Result<(), orlop_api::status::ApiError> {
    let (user, warnings) = (UserInfo::loopback(), Warnings::default());
    let call = Call {
        user: &user,
        resource,
        namespace: "",
        name,
        subresource: "status",
        dry_run: false,
        field_manager: MANAGER,
        warnings: &warnings,
        annotations: None,
        options: CallOptions::None,
    };
    let bytes = patch.to_string();
    let patch = Patch::new(
        &call,
        PatchKind::Apply,
        bytes.as_bytes(),
        orlop_api::decode::FieldValidation::Ignore,
        true,
    )?;
    server.registry.update(&call, &patch).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        let schema = json!({"spec": {"priorityLevelConfiguration": {"name": "a"}}});
        let there = condition(&schema, &[json!({"metadata": {"name": "a"}})]);
        assert_eq!((there["status"].as_str(), there["reason"].as_str()), (Some("False"), Some("Found")));
        let missing = condition(&schema, &[]);
        assert_eq!(
            missing["message"],
            "This FlowSchema references the PriorityLevelConfiguration object named \"a\" but there is no such object"
        );
    }
}
