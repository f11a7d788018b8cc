//! `OwnerReferencesPermissionEnforcement`: who may not delete an object may not make the garbage collector delete it, by
//! giving it an owner; nor keep an owner from being deleted, by `blockOwnerDeletion`.

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::Value;

use super::fields::Fields as _;
use super::permission::{Action, may};
use super::{Admission, Operation, Request};
use crate::registry::Registry;

pub(super) struct OwnerReferencesPermissionEnforcement;

fn owners(object: &Value) -> &[Value] {
    object.get("metadata").map_or(&[], |metadata| metadata.items("ownerReferences"))
}

fn is_blocking(owner: &Value) -> bool {
    owner.flag("blockOwnerDeletion") == Some(true)
}

/// The owners that begin to be kept from deletion by this change.
fn newly_blocking<'a>(new: &'a Value, old: Option<&Value>) -> Vec<&'a Value> {
    let before = old.map_or(&[][..], owners);
    let was = |owner: &Value| before.iter().any(|o| o.text("uid") == owner.text("uid") && is_blocking(o));
    owners(new).iter().filter(|owner| is_blocking(owner) && !was(owner)).collect()
}

#[async_trait]
impl Admission for OwnerReferencesPermissionEnforcement {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        let resource = request.call.resource;
        // A pod's status cannot change its owners.
        let harmless =
            resource.group.is_empty() && resource.plural == "pods" && request.call.subresource == "status";
        matches!(request.operation, Operation::Create | Operation::Update)
            && !harmless
            && owners(request.object) != request.old.map_or(&[][..], owners)
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let (call, resource) = (request.call, request.call.resource);
        let name =
            if request.operation == Operation::Update { request.name() } else { request.attribute_name() };
        let delete = Action {
            verb: "delete",
            group: &resource.group,
            resource: &resource.plural,
            subresource: call.subresource,
            namespace: call.namespace,
            name,
        };
        if let Err(reason) = may(registry, request, &delete) {
            return Err(request.forbidden(format!(
                "cannot set an ownerRef on a resource you can't delete: {reason}, <nil>"
            )));
        }
        for owner in newly_blocking(request.object, request.old) {
            let (version, kind) = (owner.text("apiVersion"), owner.text("kind"));
            let (group, _) = orlop_api::meta::split_api_version(version);
            let Some(mapped) = registry.resources.of_kind(group, kind) else {
                return Err(request.forbidden(format!(
                    "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {version} Kind {kind}: no matches for kind \"{kind}\" in version \"{version}\""
                )));
            };
            let update = Action {
                verb: "update",
                group: &mapped.group,
                resource: &mapped.plural,
                subresource: "finalizers",
                namespace: if mapped.namespaced { call.namespace } else { "" },
                name: owner.text("name"),
            };
            if let Err(reason) = may(registry, request, &update) {
                return Err(request.forbidden(format!(
                    "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: {reason}, <nil>"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn who_begins_to_block() {
        let object = |owners: &[(&str, bool)]| {
            let list: Vec<Value> =
                owners.iter().map(|(uid, block)| json!({"uid": uid, "blockOwnerDeletion": block})).collect();
            json!({"metadata": {"ownerReferences": list}})
        };
        let check = |new: &[(&str, bool)], old: Option<&[(&str, bool)]>, expected: &[&str]| {
            let (new, old) = (object(new), old.map(object));
            let got: Vec<&str> =
                newly_blocking(&new, old.as_ref()).iter().map(|owner| owner.text("uid")).collect();
            assert_eq!(got, expected);
        };
        check(&[("a", true), ("b", false)], None, &["a"]);
        check(&[("a", true)], Some(&[("a", true)]), &[]);
        check(&[("a", true)], Some(&[("a", false)]), &["a"]);
    }
}
