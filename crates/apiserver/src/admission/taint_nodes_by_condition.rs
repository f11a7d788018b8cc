//! `TaintNodesByCondition`: a new node takes no pods until its conditions say that it is ready.

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::{Admission, Operation, Request};
use crate::registry::Registry;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Admission for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is_core("nodes") && request.operation == Operation::Create
    }

    async fn mutate(&self, _registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        let mut taints =
            request.object["spec"].get("taints").and_then(Value::as_array).cloned().unwrap_or_default();
        if !taints.iter().any(|t| t["key"] == NOT_READY && t["effect"] == "NoSchedule") {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
            request.object["spec"]["taints"] = Value::Array(taints);
        }
        Ok(())
    }
}
