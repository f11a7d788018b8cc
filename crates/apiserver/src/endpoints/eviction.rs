//! `pods/eviction`: deletion of a pod that its disruption budgets agree to.

use bytes::Bytes;
use orlop_api::decode::Gvk;
use orlop_api::status::{ApiError, Status};
use serde_json::Value;

use super::Endpoint;
use crate::http::body::{self, Response};
use crate::registry::Call;
use crate::registry::options::{DeleteOptions, WriteOptions};

pub(super) async fn create(endpoint: &Endpoint<'_>, body: Bytes) -> Result<Response, ApiError> {
    let options = WriteOptions::parse(&endpoint.request.query, "CreateOptions", false)?;
    let eviction =
        endpoint.decode(&body, &Gvk { group: "policy", version: "v1", kind: "Eviction" }, &options)?;
    let info = &endpoint.request.info;
    let named = eviction.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("");
    if !named.is_empty() && named != info.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut delete = DeleteOptions::parse(
        eviction.get("deleteOptions").filter(|o| !o.is_null()).or(Some(&Value::Null)),
        &endpoint.request.query,
    )?;
    delete.dry_run |= options.dry_run;
    let registry = &endpoint.server.registry;
    let call = Call {
        user: &endpoint.request.user,
        resource: endpoint.resource,
        namespace: &info.namespace,
        name: &info.name,
        subresource: "",
        dry_run: delete.dry_run,
        field_manager: "",
        warnings: &endpoint.request.warnings,
    };
    // Kinds without a strategy are not served: while PodDisruptionBudgets are not, no budget can exist that would
    // have to be asked. When they are, this must ask them before it deletes.
    if registry.resources.of_kind("policy", "PodDisruptionBudget").is_some() {
        return Err(ApiError::internal("eviction does not ask disruption budgets yet"));
    }
    registry.delete(&call, &delete).await?;
    let mut status = Status::success(None);
    status.code = 201;
    Ok(body::json(201, &serde_json::to_value(status).unwrap_or_default()))
}
