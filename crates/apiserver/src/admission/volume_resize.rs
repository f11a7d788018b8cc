//! `PersistentVolumeClaimResize`: a claim may ask for more only when it is bound and its class allows volumes to grow.

use async_trait::async_trait;
use orlop_api::Quantity;
use orlop_api::status::ApiError;
use orlop_json::Value;

use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::registry::Registry;

/// How a claim named its class before there was a field for it.
const BY_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

pub(super) struct PersistentVolumeClaimResize;

fn size(claim: &Value) -> Quantity {
    let text = claim.pointer("/spec/resources/requests/storage").and_then(Value::as_str).unwrap_or("0");
    Quantity::parse(text).unwrap_or(Quantity::ZERO)
}

/// The class a claim names; the annotation counts first.
fn class_of(claim: &Value) -> &str {
    claim.annotation(BY_ANNOTATION).unwrap_or_else(|| claim["spec"].text("storageClassName"))
}

#[async_trait]
impl Admission for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is_core("persistentvolumeclaims") && request.operation == Operation::Update
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let Some(old) = request.old else { return Ok(()) };
        if size(request.object) <= size(old) {
            return Ok(());
        }
        if old["status"].text("phase") != "Bound" {
            return Err(request.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let class = class_of(request.object);
        let grows = !class.is_empty()
            && registry
                .resources
                .cache("storage.k8s.io", "StorageClass")
                .and_then(|classes| classes.get(class))
                .is_some_and(|class| class.value().flag("allowVolumeExpansion") == Some(true));
        if grows {
            return Ok(());
        }
        Err(request.forbidden(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        ))
    }
}
