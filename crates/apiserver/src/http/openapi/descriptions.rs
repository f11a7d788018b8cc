//! What built-in types and their fields are, in the words of `k8s-openapi`.

use std::collections::HashMap;
use std::sync::LazyLock;

use orlop_api::schema::Struct;
use orlop_json::Value;

/// The schema of every type that `k8s-openapi` has and documents show, by its name.
static KNOWN: LazyLock<HashMap<String, Value>> = LazyLock::new(collect);

/// What `apiVersion` is.
pub const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
/// What `kind` is.
pub const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
/// What `metadata` of a list is.
pub const LIST_METADATA: &str = "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

/// What a type is.
pub fn of(name: &str) -> Option<String> {
    match (KNOWN.get(name), item_of(name)) {
        (Some(schema), _) => text(schema, "/description").map(String::from),
        (None, Some(item)) => Some(format!("{item}List is a list of {item} objects.")),
        (None, None) => None,
    }
}

/// The kind of a list's items, when the type is a list's.
fn item_of(name: &str) -> Option<&str> {
    let (package, kind) = name.rsplit_once('.')?;
    let item = kind.strip_suffix("List").filter(|item| !item.is_empty())?;
    KNOWN.contains_key(&format!("{package}.{item}")).then_some(item)
}

/// What a field of a type is.
pub fn of_field(ty: &Struct, field: &str) -> Option<String> {
    let known = KNOWN.get(ty.openapi).and_then(|schema| {
        schema.get("properties")?.get(field)?.get("description")?.as_str().map(String::from)
    });
    known.or_else(|| match (field, item_of(ty.openapi)) {
        ("apiVersion", _) if ty.has_type_meta => Some(API_VERSION.to_string()),
        ("kind", _) if ty.has_type_meta => Some(KIND.to_string()),
        ("metadata", Some(_)) => Some(LIST_METADATA.to_string()),
        ("items", Some(item)) => Some(format!("items is the list of {item} objects.")),
        _ => None,
    })
}

/// A type as `k8s-openapi` shows it.
pub fn schema(name: &str) -> Option<&'static Value> {
    KNOWN.get(name)
}

macro_rules! collect {
    ($generator:ident; $($module:path { $($kind:ident),* $(,)? })*) => {
        $({
            use $module as module;
            $($generator.subschema_for::<module::$kind>();)*
        })*
    };
}

/// Every kind's type brings the types of its fields.
fn collect() -> HashMap<String, Value> {
    use k8s_openapi::api::{
        admissionregistration, apps, authentication, authorization, autoscaling, batch, certificates,
        coordination, core, discovery, events, flowcontrol, networking, node, policy, rbac, resource,
        scheduling, storage,
    };
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
    use k8s_openapi::apimachinery::pkg::apis::meta;
    use k8s_openapi::apimachinery::pkg::{runtime, version};
    use k8s_openapi::kube_aggregator::pkg::apis::apiregistration;
    let mut generator = schemars::SchemaGenerator::new(schemars::generate::SchemaSettings::openapi3());
    collect!(generator;
        core::v1 { Binding, ConfigMap, Endpoints, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount, LimitRange, PersistentVolume, PersistentVolumeClaim, PodTemplate, ReplicationController, ResourceQuota, ComponentStatus }
        admissionregistration::v1 { MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration }
        apiextensions::v1 { CustomResourceDefinition }
        apiregistration::v1 { APIService }
        apps::v1 { ControllerRevision, Deployment, ReplicaSet, DaemonSet, StatefulSet }
        authentication::v1 { SelfSubjectReview, TokenReview, TokenRequest }
        authorization::v1 { LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview }
        autoscaling::v1 { HorizontalPodAutoscaler, Scale }
        autoscaling::v2 { HorizontalPodAutoscaler }
        batch::v1 { CronJob, Job }
        certificates::v1 { CertificateSigningRequest }
        flowcontrol::v1 { FlowSchema, PriorityLevelConfiguration }
        networking::v1 { Ingress, IngressClass, IPAddress, NetworkPolicy, ServiceCIDR }
        node::v1 { RuntimeClass }
        policy::v1 { Eviction, PodDisruptionBudget }
        resource::v1 { DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice }
        scheduling::v1 { PriorityClass }
        storage::v1 { CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass }
        coordination::v1 { Lease }
        discovery::v1 { EndpointSlice }
        events::v1 { Event }
        rbac::v1 { ClusterRole, ClusterRoleBinding, Role, RoleBinding }
        meta::v1 {
            APIGroup, APIGroupList, APIResourceList, APIVersions, DeleteOptions, ListMeta, ObjectMeta, Patch, Status,
        }
        version { Info }
    );
    generator.subschema_for::<meta::v1::WatchEvent<runtime::RawExtension>>();
    let definitions = generator.take_definitions(false).into_iter();
    definitions.filter_map(|(name, schema)| Some((name, orlop_json::to_value(schema).ok()?))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn words() {
        let check = |name: &str, field: &str, expected: &str| {
            let ty = orlop_api::schema::Schemas::get().openapi(name).unwrap();
            let found = of_field(ty, field).unwrap();
            assert!(found.starts_with(expected), "{name}.{field}: {found}");
        };
        check("io.k8s.api.core.v1.Pod", "spec", "Specification of the desired behavior of the pod.");
        check("io.k8s.api.core.v1.PodList", "items", "items is the list of Pod objects.");
        check("io.k8s.api.core.v1.PodList", "kind", "Kind is a string value");
        assert_eq!(of("io.k8s.api.core.v1.PodList").unwrap(), "PodList is a list of Pod objects.");
        assert_eq!(of("io.k8s.api.core.v1.Nothing"), None);
    }
}
