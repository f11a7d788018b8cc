//! Replacement of an object, by PUT or by the result of a patch: preconditions, strategy, admission, commit, retry.

use bytes::Bytes;
use orlop_api::field::{self, Path};
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::object::{self, finalizers, is_deleting, meta, meta_int, set_meta};
use super::per_kind;
use super::{Call, Registry, Written, now};
use crate::admission::{ObjectKind, Operation, Request};
use crate::authz::policy_guard;
use crate::managed;

/// What a client is told when somebody else was faster.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// Makes the new object from the current one.
pub trait Change: Send + Sync {
    /// The new object, decoded and defaulted; `current` has its resource version.
    fn make(&self, current: &Value) -> Result<Value, ApiError>;

    /// Whether managed fields are already settled in what `make` returns (an apply).
    fn owns_managed_fields(&self) -> bool {
        false
    }

    /// Whether a lost race is tried again even though the new object carries a version.
    fn is_patch(&self) -> bool {
        false
    }

    /// What admission is shown instead of the object: a subresource of another kind.
    fn view(&self) -> Option<&dyn View> {
        None
    }

    /// How often a lost race is tried again when the client did not say which version it meant.
    fn attempts(&self) -> usize {
        32
    }
}

/// A change of a stored object in place, by a subresource with rules of its own.
pub trait Edit: Send + Sync {
    /// Changes the object, which has its resource version.
    fn edit(&self, object: &mut Value) -> Result<(), ApiError>;

    /// How often a lost race is tried again.
    fn attempts(&self) -> usize {
        32
    }
}

/// A subresource that shows an object as another kind (`Scale`).
pub trait View: Send + Sync {
    /// The kind.
    fn kind(&self) -> ObjectKind<'static>;

    /// The object as that kind.
    fn of(&self, object: &Value) -> Value;

    /// Writes what admission made of the view back into the object.
    fn apply(&self, view: &Value, object: &mut Value);
}

/// A PUT: the object is what the client sent.
pub struct Replace(pub Value);

impl Change for Replace {
    fn make(&self, _current: &Value) -> Result<Value, ApiError> {
        Ok(self.0.clone())
    }
}

/// Refuses an object that is not the one of the URL.
pub fn check_name(object: &Value, asked: &str) -> Result<(), ApiError> {
    match meta(object, "name") {
        name if name == asked => Ok(()),
        "" => Err(ApiError::bad_request(format!(
            "the name of the object ({asked} based on URL) was undeterminable: name must be provided"
        ))),
        name => Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({asked})"
        ))),
    }
}

impl Registry {
    /// Edits the object of a call without asking the strategy.
    pub async fn update_raw(&self, call: &Call<'_>, change: &dyn Edit) -> Result<Written, ApiError> {
        let resource = call.resource;
        let key = resource.key(call.namespace, call.name);
        for _ in 0..change.attempts() {
            let entry = self.get(call)?;
            let mut new = entry.value();
            change.edit(&mut new)?;
            resource.as_stored(&mut new);
            if call.dry_run {
                return Ok(Written::Unstored(new));
            }
            if let Some(stored) = self.put(resource, &key, &new, entry.revision).await? {
                return Ok(Written::Stored(stored));
            }
        }
        Err(ApiError::conflict(&resource.group, &resource.plural, call.name, MODIFIED))
    }

    /// Replaces the object of a call by what `change` makes of it; 404 when there is none.
    pub async fn update(&self, call: &Call<'_>, change: &dyn Change) -> Result<Written, ApiError> {
        let resource = call.resource;
        let conflict =
            |message: &str| ApiError::conflict(&resource.group, &resource.plural, call.name, message);
        let mut last_revision = 0;
        for _ in 0..change.attempts() {
            let entry = self.get(call)?;
            let old = self.served(resource, &entry).await?;
            let new = change.make(&old)?;
            let asked = meta(&new, "resourceVersion").to_string();
            if !asked.is_empty() && asked != "0" && asked != entry.revision.to_string() {
                return Err(conflict(MODIFIED));
            }
            // A lost race is the client's when it named its version.
            if !asked.is_empty() && asked != "0" && last_revision != 0 && entry.revision != last_revision {
                return Err(conflict(MODIFIED));
            }
            last_revision = entry.revision;
            if let Some(written) = self.update_once(call, change, &entry, &old, new, &asked).await? {
                return Ok(written);
            }
        }
        Err(conflict(MODIFIED))
    }

    async fn update_once(
        &self,
        call: &Call<'_>,
        change: &dyn Change,
        entry: &std::sync::Arc<crate::cache::Entry>,
        old: &Value,
        mut new: Value,
        asked: &str,
    ) -> Result<Option<Written>, ApiError> {
        let resource = call.resource;
        let strategy = resource.strategy().ok_or_else(ApiError::path_not_found)?;
        super::create::align_namespace(call, &mut new)?;
        check_name(&new, call.name)?;
        let invalid = |errors| ApiError::invalid(&resource.group, &resource.kind, call.name, errors);
        if (asked.is_empty() || asked == "0") && !strategy.allow_unconditional_update() && !change.is_patch()
        {
            let path = Path::new("metadata").child("resourceVersion");
            let error = field::invalid(&path, json!(0), "must be specified for an update");
            // Upstream names the resource here where it names the kind elsewhere.
            return Err(ApiError::invalid(&resource.group, &resource.plural, call.name, vec![error]));
        }
        let uid = meta(&new, "uid");
        if !uid.is_empty() && uid != meta(old, "uid") && !change.owns_managed_fields() {
            return Err(ApiError::conflict(
                &resource.group,
                &resource.plural,
                call.name,
                format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    meta(old, "uid")
                ),
            ));
        }
        // System fields that a client may leave out but not change.
        set_meta(&mut new, "selfLink", None);
        for field in ["uid", "creationTimestamp"] {
            if meta(&new, field).is_empty() {
                let value = old["metadata"].get(field).cloned();
                set_meta(&mut new, field, value);
            }
        }
        for field in ["generation", "deletionTimestamp", "deletionGracePeriodSeconds"] {
            let value = old["metadata"].get(field).cloned();
            set_meta(&mut new, field, value);
        }
        set_meta(&mut new, "resourceVersion", Some(json!(entry.revision.to_string())));
        if !change.owns_managed_fields() {
            managed::update(call, Some(old), &mut new);
        }
        match change.view() {
            None => self.mutate(&mut Request::new(call, Operation::Update, &mut new, Some(old))).await?,
            Some(view) => {
                let (mut shown, before) = (view.of(&new), view.of(old));
                let request = Request::new(call, Operation::Update, &mut shown, Some(&before));
                self.mutate(&mut request.of_kind(Some(view.kind()))).await?;
                view.apply(&shown, &mut new);
            }
        }
        crate::authz::escalation_guard::check(self, call, &new, Some(old))?;

        let errors = match call.subresource {
            "status" => {
                strategy.prepare_status_update(&mut new, old);
                strategy.stamp(&mut new, Some(old), &now());
                per_kind::settle_update(call, &mut new, old);
                strategy.validate_status_update(&new, old)
            }
            // Only namespaces have it; it may change what a plain update may not.
            "finalize" => {
                orlop_kinds::core::namespace::prepare_finalize(&mut new, old);
                orlop_kinds::core::namespace::validate_finalize_update(&new, old)
            }
            "approval" => {
                orlop_kinds::certificates::csr::prepare_approval_update(&mut new, old);
                per_kind::settle_update(call, &mut new, old);
                orlop_kinds::certificates::csr::validate_approval_update(&new, old)
            }
            "resize" => {
                orlop_kinds::core::pod::prepare_resize_update(&mut new, old);
                orlop_kinds::core::pod::validate_resize_update(&new, old)
            }
            "ephemeralcontainers" => {
                keep_all_but(&mut new, old, "ephemeralContainers");
                orlop_kinds::core::pod::prepare_ephemeral_containers_update(&mut new, old);
                orlop_kinds::core::pod::validate_ephemeral_containers_update(&new, old)
            }
            _ => {
                strategy.prepare_update(&mut new, old);
                strategy.stamp(&mut new, Some(old), &now());
                per_kind::settle_update(call, &mut new, old);
                Vec::new()
            }
        };
        let reservation = if call.subresource.is_empty() {
            Some(self.allocators.for_update(self, call, &mut new, old)?)
        } else {
            None
        };
        let mut all = orlop_kinds::validate_common_update(&new, old, resource.namespaced);
        all.extend(match call.subresource {
            "status" | "finalize" | "approval" | "resize" | "ephemeralcontainers" => errors,
            _ => strategy.validate_update(&new, old),
        });
        per_kind::allow_privileged(self, &mut all);
        let errors = match all.is_empty() {
            true => policy_guard::check(self, call, &new, Some(old)).await,
            false => all,
        };
        if !errors.is_empty() {
            return Err(invalid(errors));
        }
        if call.subresource.is_empty() {
            for warning in strategy.warnings(&new, Some(old)) {
                call.warnings.add(warning);
            }
        }
        match change.view() {
            None => self.validate(&Request::new(call, Operation::Update, &mut new, Some(old))).await?,
            Some(view) => {
                let (mut shown, before) = (view.of(&new), view.of(old));
                let request = Request::new(call, Operation::Update, &mut shown, Some(&before));
                self.validate(&request.of_kind(Some(view.kind()))).await?;
            }
        }
        resource.as_stored(&mut new);

        let key = resource.key(call.namespace, call.name);
        if should_delete(resource, &new, old) {
            if call.dry_run {
                return Ok(Some(Written::Unstored(new)));
            }
            // The last finalizer is gone: the object's final state is what it would have become.
            let beside = self.allocators.beside_removal(self, &new);
            return match self.remove(resource, &key, entry.revision, beside).await? {
                Some(_) => {
                    self.allocators.release(&new);
                    Ok(Some(Written::Unstored(new)))
                }
                None => Ok(None),
            };
        }
        let stored = self.stored(resource, &new).await?;
        let encoded = Bytes::from(object::encode(&stored));
        let idle = entry.holds(&encoded) || managed::only_times_differ(&new, old);
        if idle && !self.must_rewrite(resource, &key) {
            return Ok(Some(Written::Stored(self.entry(resource, entry.clone()).await?)));
        }
        if call.dry_run {
            return Ok(Some(Written::Unstored(new)));
        }
        let beside = reservation.as_ref().map(|r| r.beside(self, &new)).unwrap_or_default();
        let put = self.put_encoded(resource, &key, &stored, encoded, entry.revision, beside).await?;
        if put.is_some()
            && let Some(reservation) = reservation
        {
            reservation.keep();
        }
        match put {
            Some(entry) => Ok(Some(Written::Stored(self.entry(resource, entry).await?))),
            None => Ok(None),
        }
    }
}

/// A subresource that may change one field of the spec: everything else stays as it was.
fn keep_all_but(new: &mut Value, old: &Value, field: &str) {
    let wanted = new["spec"].get(field).cloned();
    let managed = new["metadata"].get("managedFields").cloned();
    let version = new["metadata"].get("resourceVersion").cloned();
    *new = old.clone();
    set_meta(new, "managedFields", managed);
    set_meta(new, "resourceVersion", version);
    match wanted {
        Some(value) if value.as_array().is_some_and(|list| !list.is_empty()) => new["spec"][field] = value,
        _ => {
            if let Some(spec) = new["spec"].as_object_mut() {
                spec.remove(field);
            }
        }
    }
}

/// Whether this update takes away the last thing that kept a deleted object.
fn should_delete(resource: &crate::resources::Resource, new: &Value, old: &Value) -> bool {
    if !is_deleting(old) || !finalizers(new).is_empty() {
        return false;
    }
    if resource.kind == "Namespace" {
        return new.pointer("/spec/finalizers").and_then(Value::as_array).is_none_or(Vec::is_empty);
    }
    meta_int(old, "deletionGracePeriodSeconds") == Some(0)
}
