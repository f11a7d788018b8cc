//! Creation: names and system fields, admission, strategy, commit.

use orlop_api::field;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::object::{self, meta, set_meta};
use super::per_kind;
use super::{Call, Registry, Written, now};
use crate::admission::{Operation, Request};
use crate::authz::policy_guard;
use crate::managed;

/// How often a generated name is drawn again when it is taken.
const NAME_ATTEMPTS: usize = 8;

/// Checks or sets the object's namespace by the request's.
pub fn align_namespace(call: &Call<'_>, object: &mut Value) -> Result<(), ApiError> {
    let own = meta(object, "namespace");
    if call.resource.namespaced {
        if own.is_empty() {
            set_meta(object, "namespace", Some(json!(call.namespace)));
        } else if own != call.namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    } else if !own.is_empty() {
        // Upstream drops the namespace of a cluster-scoped object.
        set_meta(object, "namespace", None);
    }
    Ok(())
}

impl Registry {
    /// Creates a decoded, defaulted object.
    pub async fn create(&self, call: &Call<'_>, mut object: Value) -> Result<Written, ApiError> {
        align_namespace(call, &mut object)?;
        if meta(&object, "uid").is_empty() {
            set_meta(&mut object, "uid", None);
        }
        managed::update(call, None, &mut object);
        self.create_prepared(call, object).await
    }

    /// Creates an object whose managed fields are settled.
    pub(super) async fn create_prepared(
        &self,
        call: &Call<'_>,
        mut object: Value,
    ) -> Result<Written, ApiError> {
        let resource = call.resource;
        let strategy = resource.strategy().ok_or_else(ApiError::path_not_found)?;
        let requested_name = match call.name {
            "" => meta(&object, "name").to_string(),
            name => name.to_string(),
        };
        let mut request = Request::new(call, Operation::Create, &mut object, None).named(&requested_name);
        crate::custom::refuse_create(resource, &requested_name)?;
        self.mutate(&mut request).await?;
        crate::authz::escalation_guard::check(self, call, &object, None)?;

        // What the system, not the client, says about a new object.
        set_meta(&mut object, "deletionTimestamp", None);
        set_meta(&mut object, "deletionGracePeriodSeconds", None);
        set_meta(&mut object, "selfLink", None);
        set_meta(&mut object, "creationTimestamp", Some(json!(now())));
        set_meta(&mut object, "uid", Some(json!(uuid::Uuid::new_v4().to_string())));
        let prefix = if meta(&object, "name").is_empty() {
            meta(&object, "generateName").to_string()
        } else {
            String::new()
        };
        if !prefix.is_empty() {
            set_meta(&mut object, "name", Some(json!(object::generate_name(&prefix))));
        }
        let version = meta(&object, "resourceVersion").to_string();
        set_meta(&mut object, "resourceVersion", None);
        strategy.prepare_create(&mut object);
        strategy.stamp(&mut object, None, &now());
        per_kind::settle_create(call, &mut object);
        let reservation = self.allocators.for_create(self, call, &mut object)?;
        if meta(&object, "name").is_empty() {
            let path = field::Path::new("metadata").child("name");
            let error = field::required(&path, "name or generateName is required");
            return Err(ApiError::invalid(&resource.group, &resource.kind, "", vec![error]));
        }
        let mut errors = per_kind::refusals_of_create(self, call, &object);
        errors.extend(strategy.validate_create(&object));
        per_kind::allow_privileged(self, &mut errors);
        if errors.is_empty() {
            errors = policy_guard::check(self, call, &object, None).await;
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid(&resource.group, &resource.kind, meta(&object, "name"), errors));
        }
        for warning in strategy.warnings(&object, None) {
            call.warnings.add(warning);
        }
        if self.unattended.contains(&resource.plural) {
            call.warnings.add(format!(
                "{} {:?} is kept, but nothing acts on it: this cluster has no controller for {} yet",
                resource.kind,
                meta(&object, "name"),
                resource.plural
            ));
        }
        let request = Request::new(call, Operation::Create, &mut object, None).named(&requested_name);
        self.validate(&request).await?;
        if !version.is_empty() && version != "0" {
            return Err(ApiError::generic(
                500,
                "",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        resource.as_stored(&mut object);
        if call.dry_run {
            let key = resource.key(call.namespace, meta(&object, "name"));
            if self.cache(resource)?.get(&key).is_some() {
                return Err(self.exists(call, meta(&object, "name")));
            }
            return Ok(Written::Unstored(object));
        }
        for attempt in 1.. {
            let name = meta(&object, "name").to_string();
            let key = resource.key(call.namespace, &name);
            let stored = self.stored(resource, &object).await?;
            let beside = reservation.beside(self, &object);
            if let Some(entry) = self.put_with(resource, &key, &stored, 0, beside).await? {
                reservation.keep();
                return Ok(Written::Stored(self.entry(resource, entry).await?));
            }
            if prefix.is_empty() || attempt >= NAME_ATTEMPTS {
                return Err(self.exists(call, &name));
            }
            set_meta(&mut object, "name", Some(json!(object::generate_name(&prefix))));
        }
        Err(ApiError::internal("no name could be generated"))
    }

    /// The 409 about a name that is taken.
    fn exists(&self, call: &Call<'_>, name: &str) -> ApiError {
        let resource = call.resource;
        let mut error = ApiError::already_exists(&resource.group, &resource.plural, name);
        let key = resource.key(call.namespace, name);
        let deleting = resource
            .cache
            .as_ref()
            .and_then(|cache| cache.get(&key))
            .is_some_and(|entry| object::is_deleting(&entry.value()));
        if deleting {
            error.0.message = format!("object is being deleted: {}", error.0.message);
        }
        error
    }
}
