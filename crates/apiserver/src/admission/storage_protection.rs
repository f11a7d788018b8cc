//! `StorageObjectInUseProtection`: volumes, claims and classes of attributes get a finalizer by which a controller keeps them while they are
//! in use.

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::json;

use super::{Admission, Operation, Request};
use crate::registry::{Registry, object};

pub(super) struct StorageObjectInUseProtection;

/// The finalizer of a kind of object.
fn finalizer(plural: &str) -> Option<&'static str> {
    match plural {
        "persistentvolumes" => Some("kubernetes.io/pv-protection"),
        "persistentvolumeclaims" => Some("kubernetes.io/pvc-protection"),
        "volumeattributesclasses" => Some("kubernetes.io/vac-protection"),
        _ => None,
    }
}

#[async_trait]
impl Admission for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.operation == Operation::Create
            && matches!(request.call.resource.group.as_str(), "" | "storage.k8s.io")
            && request.call.subresource.is_empty()
            && finalizer(&request.call.resource.plural).is_some()
    }

    async fn mutate(&self, _registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        let Some(finalizer) = finalizer(&request.call.resource.plural) else { return Ok(()) };
        let mut list = object::finalizers(request.object);
        if !list.iter().any(|own| own == finalizer) {
            list.push(finalizer.to_string());
            object::set_meta(request.object, "finalizers", Some(json!(list)));
        }
        Ok(())
    }
}
