//! `ExtendedResourceToleration`: nodes with special devices are tainted with the resource's name, and a pod that asks
//! for the resource tolerates the taint.

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::{Key, Value, json};

use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::registry::Registry;

pub(super) struct ExtendedResourceToleration;

#[async_trait]
impl Admission for ExtendedResourceToleration {
    fn name(&self) -> &'static str {
        "ExtendedResourceToleration"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is_core("pods") && matches!(request.operation, Operation::Create | Operation::Update)
    }

    async fn mutate(&self, _registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        let spec = &mut request.object["spec"];
        let mut wanted: Vec<Key> = ["containers", "initContainers"]
            .iter()
            .flat_map(|list| spec.items(list))
            .filter_map(|container| container["resources"].map("requests"))
            .flat_map(|requests| requests.keys())
            .filter(|name| orlop_kinds::quota::is_extended_resource(name))
            .cloned()
            .collect();
        wanted.sort();
        wanted.dedup();
        if wanted.is_empty() {
            return Ok(());
        }
        let mut tolerations = spec.items("tolerations").to_vec();
        for name in wanted {
            let toleration = json!({"key": name, "operator": "Exists"});
            let same = |own: &&mut Value| {
                own.text("key") == name && own.text("operator") == "Exists" && own.text("effect").is_empty()
            };
            match tolerations.iter_mut().find(same) {
                Some(own) => *own = toleration,
                None => tolerations.push(toleration),
            }
        }
        spec["tolerations"] = Value::Array(tolerations);
        Ok(())
    }
}
