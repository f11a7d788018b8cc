//! The kinds Orlop serves: for each one its defaults, its validation, what a client may change, which fields it may be
//! selected by and how `kubectl get` prints it. The tree mirrors upstream's `pkg/apis` and `pkg/registry`.
//!
//! Everything here is a pure function over JSON values in normalised form (what upstream's Go types would encode).
//! This crate must never know of HTTP, storage, allocation (cluster IPs, node ports), admission, clocks or identities.

mod addresses;
mod cursor;
mod duration;
mod metadata;
mod printer;
#[cfg(test)]
mod testing;
mod validate;
mod workload;

pub mod admissionregistration;
pub mod apiextensions;
pub mod apiregistration;
pub mod apps;
pub mod autoscaling;
pub mod batch;
pub mod certificates;
pub mod coordination;
pub mod core;
pub mod discovery;
pub mod flowcontrol;
pub mod networking;
pub mod node;
pub mod policy;
pub mod quota;
pub mod rbac;
pub mod resource;
pub mod scheduling;
pub mod storage;

pub use cursor::differences;
pub use duration::{age, human_duration};
pub use metadata::{
    validate_annotations, validate_common_update, validate_embedded_object_meta,
    validate_generic_object_meta, validate_generic_object_meta_update, validate_labels,
};

use orlop_api::field::ErrorList;
use orlop_json::Value;

/// What a kind's `metadata.name` may look like; decides the messages a bad name gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// Lower case RFC 1123 subdomain, at most 253 characters: most kinds.
    DnsSubdomain,
    /// Lower case RFC 1123 label, at most 63 characters: namespaces, services.
    DnsLabel,
    /// Anything that can stand between two slashes of a URL: the RBAC kinds.
    PathSegment,
}

impl NameRule {
    /// Upstream's messages about `name`; empty when it is allowed. `prefix` says that a generated suffix will follow
    /// (`metadata.generateName`), which makes one trailing dash legal.
    pub fn check(self, name: &str, prefix: bool) -> Vec<String> {
        metadata::check_name(self, name, prefix)
    }
}

/// How one kind behaves in the registry: upstream's `RESTCreateStrategy`, `RESTUpdateStrategy`, defaulting functions,
/// `SelectableFields` and printer handler in one place.
pub trait Strategy: Send + Sync + 'static {
    /// What `metadata.name` may look like.
    fn name_rule(&self) -> NameRule {
        NameRule::DnsSubdomain
    }

    /// Whether objects live in a namespace.
    fn namespaced(&self) -> bool {
        true
    }

    /// Fills in what upstream's versioned defaulting (`SetDefaults_*`) fills in, on a normalised object.
    fn defaults(&self, _obj: &mut Value) {}

    /// Annotations that stand for fields of upstream's internal type: where only metadata is shown they are not.
    fn internal_annotations(&self) -> &'static [&'static str] {
        &[]
    }

    /// Clears what a creator may not set (status) and sets what the system owns (generation 1, initial phase).
    fn prepare_create(&self, _obj: &mut Value) {}

    /// Keeps what an update of the main resource may not change (status) and bumps `metadata.generation` when the
    /// desired state changed.
    fn prepare_update(&self, _obj: &mut Value, _old: &Value) {}

    /// Writes the times that the system keeps of an object; after `prepare_*`, for a new object (`old` is `None`) and for
    /// a write of it or of its status. `now` is in RFC 3339 with seconds.
    fn stamp(&self, _obj: &mut Value, _old: Option<&Value>, _now: &str) {}

    /// All that is wrong with a new object, `metadata` included, in upstream's order.
    fn validate_create(&self, obj: &Value) -> ErrorList;

    /// All that is wrong with replacing `old` by `obj`, `metadata` included, in upstream's order.
    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList;

    /// Texts for `Warning` headers on create (`old` is `None`) and update.
    fn warnings(&self, _obj: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// Whether the kind has a `/status` subresource.
    fn has_status(&self) -> bool {
        false
    }

    /// Keeps everything but status (and what upstream lets a status writer change in `metadata`).
    fn prepare_status_update(&self, obj: &mut Value, old: &Value) {
        cursor::keep(obj, old, &["spec"]);
    }

    /// All that is wrong with a write of `/status`.
    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        metadata::validate_object_meta_update(obj, old)
    }

    /// The value of the selectable field `label`, `None` when this kind cannot be selected by it. `metadata.name` and
    /// `metadata.namespace` answer for every kind that supports them.
    fn selectable_field(&self, obj: &Value, label: &str) -> Option<String> {
        metadata_field(self.namespaced(), obj, label)
    }

    /// The cells of the object's row in a `Table`, one per column of the kind.
    fn cells(&self, obj: &Value, now: jiff::Timestamp) -> Vec<Value>;

    /// Whether a PUT of a name that does not exist creates it.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// Whether a deletion that does not say what becomes of the dependents leaves them.
    fn orphans_dependents(&self) -> bool {
        false
    }

    /// What a deletion that does not say what becomes of the dependents is warned of; may be empty.
    fn deletion_warning(&self) -> &'static str {
        ""
    }

    /// Whether a PUT without `metadata.resourceVersion` overwrites whatever is there.
    fn allow_unconditional_update(&self) -> bool {
        true
    }
}

/// The two fields by which every kind can be selected. Upstream also accepts `metadata.namespace` for cluster-scoped
/// kinds without field label conversion of their own, where it is always empty.
pub(crate) fn metadata_field(_namespaced: bool, obj: &Value, label: &str) -> Option<String> {
    use cursor::Cursor as _;
    match label {
        "metadata.name" => Some(obj["metadata"]["name"].text().to_owned()),
        "metadata.namespace" => Some(obj["metadata"]["namespace"].text().to_owned()),
        _ => None,
    }
}

/// Between a served version of a kind and the version in which its objects are stored. Both directions together lose
/// nothing.
pub trait Conversion: Send + Sync + 'static {
    /// How objects behave in the served version.
    fn strategy(&self) -> &'static dyn Strategy;

    /// Group and kind under which [`strategy`] knows the stored form.
    fn stored_kind(&self) -> (&'static str, &'static str);

    /// The stored form of a served object.
    fn to_stored(&self, served: Value) -> Value;

    /// The served form of a stored object.
    fn to_served(&self, stored: Value) -> Value;
}

/// The conversion of a served version whose objects are stored in another; `None` for all others.
pub fn conversion(group: &str, version: &str, kind: &str) -> Option<&'static dyn Conversion> {
    Some(match (group, version, kind) {
        ("autoscaling", "v1", "HorizontalPodAutoscaler") => &autoscaling::horizontalpodautoscaler::V1,
        ("events.k8s.io", "v1", "Event") => &core::event::EventsV1,
        _ => return None,
    })
}

/// The strategy of a kind, by API group (`""` is the core group) and kind name; `None` when the kind is not built, and
/// then the API server does not serve it.
pub fn strategy(group: &str, kind: &str) -> Option<&'static dyn Strategy> {
    Some(match (group, kind) {
        ("", "ComponentStatus") => &core::componentstatus::ComponentStatus,
        ("", "ConfigMap") => &core::configmap::ConfigMap,
        ("", "Endpoints") => &core::endpoints::Endpoints,
        ("", "Event") => &core::event::Event,
        ("", "LimitRange") => &core::limitrange::LimitRange,
        ("", "Namespace") => &core::namespace::Namespace,
        ("", "Node") => &core::node::Node,
        ("", "PersistentVolume") => &core::persistentvolume::PersistentVolume,
        ("", "PersistentVolumeClaim") => &core::persistentvolumeclaim::PersistentVolumeClaim,
        ("", "Pod") => &core::pod::Pod,
        ("", "PodTemplate") => &core::podtemplate::PodTemplate,
        ("", "ReplicationController") => &core::replicationcontroller::ReplicationController,
        ("", "ResourceQuota") => &core::resourcequota::ResourceQuota,
        ("", "Secret") => &core::secret::Secret,
        ("", "Service") => &core::service::Service,
        ("", "ServiceAccount") => &core::service_account::ServiceAccount,
        ("admissionregistration.k8s.io", kind) => admissionregistration::strategy(kind)?,
        ("apiregistration.k8s.io", "APIService") => &apiregistration::apiservice::ApiService,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            &apiextensions::customresourcedefinition::CustomResourceDefinition
        }
        ("apps", "ControllerRevision") => &apps::controllerrevision::ControllerRevision,
        ("apps", "DaemonSet") => &apps::daemonset::DaemonSet,
        ("apps", "Deployment") => &apps::deployment::Deployment,
        ("apps", "ReplicaSet") => &apps::replicaset::ReplicaSet,
        ("apps", "StatefulSet") => &apps::statefulset::StatefulSet,
        ("autoscaling", "HorizontalPodAutoscaler") => {
            &autoscaling::horizontalpodautoscaler::HorizontalPodAutoscaler
        }
        ("batch", "CronJob") => &batch::cronjob::CronJob,
        ("batch", "Job") => &batch::job::Job,
        ("certificates.k8s.io", "CertificateSigningRequest") => &certificates::csr::CertificateSigningRequest,
        ("coordination.k8s.io", "Lease") => &coordination::lease::Lease,
        ("discovery.k8s.io", "EndpointSlice") => &discovery::endpointslice::EndpointSlice,
        ("events.k8s.io", "Event") => &core::event::EventsEvent,
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => &flowcontrol::flowschema::FlowSchema,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => {
            &flowcontrol::prioritylevel::PriorityLevelConfiguration
        }
        ("rbac.authorization.k8s.io", "ClusterRole") => &rbac::Role { cluster: true },
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => &rbac::RoleBinding { cluster: true },
        ("rbac.authorization.k8s.io", "Role") => &rbac::Role { cluster: false },
        ("rbac.authorization.k8s.io", "RoleBinding") => &rbac::RoleBinding { cluster: false },
        ("networking.k8s.io", "Ingress") => &networking::ingress::Ingress,
        ("networking.k8s.io", "IngressClass") => &networking::ingressclass::IngressClass,
        ("networking.k8s.io", "IPAddress") => &networking::ipaddress::IpAddress,
        ("networking.k8s.io", "ServiceCIDR") => &networking::servicecidr::ServiceCidr,
        ("networking.k8s.io", "NetworkPolicy") => &networking::networkpolicy::NetworkPolicy,
        ("node.k8s.io", "RuntimeClass") => &node::runtimeclass::RuntimeClass,
        ("policy", "PodDisruptionBudget") => &policy::poddisruptionbudget::PodDisruptionBudget,
        ("resource.k8s.io", "DeviceClass") => &resource::deviceclass::DeviceClass,
        ("resource.k8s.io", "ResourceClaim") => &resource::claim::ResourceClaim,
        ("resource.k8s.io", "ResourceClaimTemplate") => &resource::claim::ResourceClaimTemplate,
        ("resource.k8s.io", "ResourceSlice") => &resource::slice::ResourceSlice,
        ("scheduling.k8s.io", "PriorityClass") => &scheduling::priorityclass::PriorityClass,
        ("storage.k8s.io", "CSIDriver") => &storage::csidriver::CsiDriver,
        ("storage.k8s.io", "CSINode") => &storage::csinode::CsiNode,
        ("storage.k8s.io", "CSIStorageCapacity") => &storage::csistoragecapacity::CsiStorageCapacity,
        ("storage.k8s.io", "StorageClass") => &storage::storageclass::StorageClass,
        ("storage.k8s.io", "VolumeAttachment") => &storage::volumeattachment::VolumeAttachment,
        ("storage.k8s.io", "VolumeAttributesClass") => &storage::volumeattributesclass::VolumeAttributesClass,
        _ => return None,
    })
}
