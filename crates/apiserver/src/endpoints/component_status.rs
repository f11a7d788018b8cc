//! `/api/v1/componentstatuses`: the components of the control plane and the store's servers, asked when somebody asks.

use futures::future::{BoxFuture, join_all};
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::Endpoint;
use crate::components::{Health, TIMEOUT};
use crate::http::body::Response;
use crate::registry::list::ListOptions;
use crate::registry::selection::Selection;

pub(super) async fn serve(endpoint: &Endpoint<'_>) -> Result<Response, ApiError> {
    if endpoint.request.info.verb == "get" {
        let name = &endpoint.request.info.name;
        let Some((name, check)) = components(endpoint).into_iter().find(|(known, _)| known == name) else {
            // Upstream's plain error, which has no reason.
            return Err(ApiError::generic(500, "", format!("Component not found: {name}")));
        };
        let status = status(&name, check.await);
        return Ok(endpoint.answer(200, endpoint.renderer.value(&status)));
    }
    ListOptions::parse(&endpoint.request.query, false)?;
    let selection = Selection::parse(&endpoint.request.query, endpoint.resource)?;
    let mut asked = components(endpoint);
    asked.retain(|(name, _)| selection.matches_name(name));
    asked.sort_by(|(a, _), (b, _)| a.cmp(b));
    let statuses = join_all(asked.into_iter().map(async |(name, check)| status(&name, check.await))).await;
    Ok(endpoint.answer(200, endpoint.renderer.list(statuses, json!({}))))
}

/// Everybody by name, and how to ask.
fn components<'a>(endpoint: &'a Endpoint<'_>) -> Vec<(String, BoxFuture<'a, Health>)> {
    let store = &endpoint.server.registry.store;
    let mut all: Vec<(String, BoxFuture<'a, Health>)> = Vec::new();
    for (name, component) in &endpoint.server.options.components {
        all.push((name.clone(), component.check()));
    }
    for server in 0..store.servers() {
        let check = async move {
            let error = match tokio::time::timeout(TIMEOUT, store.check_server(server)).await {
                Ok(Ok(())) => return Health::Healthy("ok".to_string()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "context deadline exceeded".to_string(),
            };
            Health::Unhealthy { message: String::new(), error }
        };
        all.push((format!("etcd-{server}"), Box::pin(check)));
    }
    all
}

fn status(name: &str, health: Health) -> Value {
    let (status, message, error) = match health {
        Health::Healthy(message) => ("True", message, String::new()),
        Health::Unhealthy { message, error } => ("False", message, error),
        Health::Unknown(error) => ("Unknown", String::new(), error),
    };
    let mut condition = json!({"type": "Healthy", "status": status});
    for (field, text) in [("message", message), ("error", error)] {
        if !text.is_empty() {
            condition[field] = json!(text);
        }
    }
    json!({
        "kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name}, "conditions": [condition],
    })
}
