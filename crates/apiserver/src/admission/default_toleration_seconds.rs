//! `DefaultTolerationSeconds`: a pod stays five minutes (or as long as the flags say) on a node that became
//! unreachable or not ready, unless it says otherwise.

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::{Admission, Operation, Request};
use crate::registry::Registry;

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

pub(super) struct DefaultTolerationSeconds {
    /// Seconds for each of [`TAINTS`].
    seconds: [i64; 2],
}

impl DefaultTolerationSeconds {
    pub(super) fn new(options: &crate::Options) -> DefaultTolerationSeconds {
        DefaultTolerationSeconds {
            seconds: [
                options.default_not_ready_toleration_seconds,
                options.default_unreachable_toleration_seconds,
            ],
        }
    }
}

/// Whether a toleration answers a NoExecute taint of this key.
fn tolerates(toleration: &Value, taint: &str) -> bool {
    let text = |field: &str| toleration.get(field).and_then(Value::as_str).unwrap_or("");
    (text("key") == taint || text("key").is_empty()) && matches!(text("effect"), "" | "NoExecute")
}

#[async_trait]
impl Admission for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is_core("pods") && matches!(request.operation, Operation::Create | Operation::Update)
    }

    async fn mutate(&self, _registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        let current =
            request.object["spec"].get("tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut tolerations = current.clone();
        for (taint, seconds) in TAINTS.into_iter().zip(self.seconds) {
            if !current.iter().any(|toleration| tolerates(toleration, taint)) {
                tolerations.push(
                    json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}),
                );
            }
        }
        if tolerations.len() > current.len() {
            request.object["spec"]["tolerations"] = Value::Array(tolerations);
        }
        Ok(())
    }
}
