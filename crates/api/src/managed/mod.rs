//! Field ownership: `metadata.managedFields` on updates, and server-side apply.
//!
//! Answers to `sigs.k8s.io/structured-merge-diff` and `k8s.io/apimachinery/pkg/util/managedfields`. Decides who owns
//! which field and whether an intent conflicts; it does not know what a field means.

mod check;
mod configuration;
mod custom;
mod scale;
mod set;
mod walk;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use orlop_json::{Map, Value};

pub use check::problem;
pub use configuration::merge_configuration;
pub use custom::{CustomList, CustomMap, CustomType, ListRelation, ObjectType, Scalar};
pub use scale::{scale_owners, workload_owners};
pub use set::Set;
use walk::{Diff, FieldSet, Kind};

use crate::decode::{self, FieldValidation};
use crate::meta;
use crate::schema::Struct;
use crate::status::{ApiError, StatusCause};

/// More Update entries than this are merged, oldest first.
const MAX_UPDATE_MANAGERS: usize = 10;
/// The manager of what an object without ownership had before its first apply.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The manager that merged entries get.
const ANCIENT: &str = "ancient-changes";

/// Who writes what.
#[derive(Clone, Copy, Debug)]
pub struct ManagedParams<'a> {
    /// The field manager.
    pub manager: &'a str,
    /// The apiVersion of the request: `apps/v1`.
    pub api_version: &'a str,
    /// `status`, `scale`, …; empty for the object itself.
    pub subresource: &'a str,
    /// Now, RFC 3339 with seconds.
    pub now: &'a str,
    /// The type of the object.
    pub ty: ObjectType<'a>,
    /// The other versions in which the object is served; `None` when there are none.
    pub versions: Option<&'a dyn Versions>,
}

/// The versions of an object. Each manager's fields are those of the version that the manager speaks.
pub trait Versions: std::fmt::Debug + Send + Sync {
    /// The object in another version, and its type there; `None` when that is not served (any more).
    fn convert(&self, object: &Value, api_version: &str) -> Option<(Value, ObjectType<'_>)>;
}

/// What a request changes, as each version of the object sees it.
struct Comparison<'a> {
    before: &'a Value,
    after: &'a Value,
    params: &'a ManagedParams<'a>,
    own: Diff,
    others: HashMap<String, Option<Diff>>,
}

impl<'a> Comparison<'a> {
    fn new(before: &'a Value, after: &'a Value, params: &'a ManagedParams<'a>) -> Comparison<'a> {
        let own = changes(before, after, params);
        Comparison { before, after, params, own, others: HashMap::new() }
    }

    /// What changed in this version; `None` when it is not served.
    fn seen_by(&mut self, version: &str) -> Option<&Diff> {
        let Some(versions) = self.params.versions.filter(|_| version != self.params.api_version) else {
            return Some(&self.own);
        };
        if !self.others.contains_key(version) {
            let params = self.params;
            let diff = versions.convert(self.before, version).and_then(|(before, ty)| {
                let (after, _) = versions.convert(self.after, version)?;
                Some(changes(&before, &after, &ManagedParams { ty, api_version: version, ..*params }))
            });
            self.others.insert(version.to_owned(), diff);
        }
        self.others.get(version).and_then(Option::as_ref)
    }

    /// Takes from somebody else's entry what the request changed.
    fn take_from(&mut self, entry: &mut Entry) {
        match self.seen_by(&entry.api_version) {
            Some(diff) => {
                let taken = diff.changed.clone().union(&diff.removed);
                entry.subtract(&taken);
            }
            None => entry.fields = Value::Null,
        }
    }
}

/// An entry of `managedFields`.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: String,
    apply: bool,
    api_version: String,
    time: Option<String>,
    subresource: String,
    fields: Value,
}

impl Entry {
    fn read(value: &Value) -> Option<Entry> {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
        let apply = match value.get("operation")?.as_str()? {
            "Apply" => true,
            "Update" => false,
            _ => return None,
        };
        Some(Entry {
            manager: text("manager"),
            apply,
            api_version: text("apiVersion"),
            time: Some(text("time")).filter(|time| !time.is_empty()),
            subresource: text("subresource"),
            fields: value.get("fieldsV1").filter(|fields| fields.is_object())?.clone(),
        })
    }

    fn write(self) -> Value {
        let mut map = Map::new();
        let operation = if self.apply { "Apply" } else { "Update" };
        map.insert("manager".into(), self.manager.into());
        map.insert("operation".into(), operation.into());
        map.insert("apiVersion".into(), self.api_version.into());
        if let Some(time) = self.time {
            map.insert("time".into(), time.into());
        }
        map.insert("fieldsType".into(), "FieldsV1".into());
        map.insert("fieldsV1".into(), self.fields);
        if !self.subresource.is_empty() {
            map.insert("subresource".into(), self.subresource.into());
        }
        Value::Object(map)
    }

    /// Appliers are one whatever version they speak; updaters are told apart by it.
    fn is(&self, apply: bool, params: &ManagedParams) -> bool {
        self.apply == apply
            && self.manager == params.manager
            && self.subresource == params.subresource
            && (apply || self.api_version == params.api_version)
    }

    fn is_empty(&self) -> bool {
        self.fields.as_object().is_none_or(Map::is_empty)
    }

    fn subtract(&mut self, set: &Set) {
        if let Value::Object(fields) = &mut self.fields {
            set::subtract_stored(fields, set);
        }
    }

    fn order(&self, other: &Entry) -> Ordering {
        other
            .apply
            .cmp(&self.apply)
            .then_with(|| self.time.cmp(&other.time))
            .then_with(|| self.manager.cmp(&other.manager))
            .then_with(|| self.api_version.cmp(&other.api_version))
            .then_with(|| self.subresource.cmp(&other.subresource))
    }
}

/// Fields that nobody owns: identity and what the server writes.
static UNOWNED: LazyLock<Set> = LazyLock::new(|| {
    Set::of_fields(&[
        "apiVersion",
        "kind",
        "metadata",
        "metadata.name",
        "metadata.namespace",
        "metadata.creationTimestamp",
        "metadata.selfLink",
        "metadata.uid",
        "metadata.clusterName",
        "metadata.generation",
        "metadata.managedFields",
        "metadata.resourceVersion",
    ])
});

trait WrittenBy {
    /// Without the fields that a request to the subresource does not write.
    fn written_by(self, params: &ManagedParams) -> Set;
}

impl WrittenBy for Set {
    fn written_by(mut self, params: &ManagedParams) -> Set {
        match (params.ty, params.subresource) {
            (ObjectType::Custom(..), "status") => {
                self.children.retain(|step, _| step == "f:status");
                self
            }
            (ObjectType::Custom(_, false), "") => self,
            _ => self.recursive_difference(&reset(params)),
        }
    }
}

/// Fields that a request to this subresource does not write.
fn reset(params: &ManagedParams) -> Set {
    match params.subresource {
        // Nothing of it may be changed but by its subresources.
        "" if params.ty.builtin_name() == "CertificateSigningRequest" => Set::of_fields(&["spec", "status"]),
        "" => Set::of_fields(&["status"]),
        "status" | "approval" if params.ty.builtin_name() == "CertificateSigningRequest" => {
            Set::of_fields(&["spec", "status.conditions"])
        }
        "status" if params.ty.builtin_name() == "Deployment" => Set::of_fields(&["spec", "metadata.labels"]),
        "status" if params.ty.builtin_name() == "Pod" => {
            Set::of_fields(&["spec", "metadata.deletionTimestamp", "metadata.ownerReferences"])
        }
        "status" if params.ty.builtin_name() == "CustomResourceDefinition" => {
            Set::of_fields(&["spec", "metadata"])
        }
        "status" => Set::of_fields(&["spec"]),
        _ => Set::default(),
    }
}

/// The object with which a create is compared: what an empty body decodes to.
fn empty_object(of: &Value, params: &ManagedParams) -> Arc<Value> {
    if let ObjectType::Builtin(ty) = params.ty
        && let Some(empty) = empty_builtin(ty)
    {
        return empty;
    }
    let mut map = Map::new();
    for field in ["apiVersion", "kind"] {
        map.extend(of.get(field).map(|value| ((*field).into(), value.clone())));
    }
    Arc::new(Value::Object(map))
}

/// What `{}` is read as; read once for each type.
fn empty_builtin(ty: &'static Struct) -> Option<Arc<Value>> {
    static EMPTY: LazyLock<RwLock<HashMap<usize, Arc<Value>>>> = LazyLock::new(RwLock::default);
    let place = std::ptr::from_ref(ty).addr();
    let known = EMPTY.read().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
    known.or_else(|| {
        let decoded = decode::decode_as(b"{}", ty, FieldValidation::Ignore).ok()?;
        let empty = Arc::new(decoded.value);
        EMPTY.write().unwrap_or_else(PoisonError::into_inner).insert(place, empty.clone());
        Some(empty)
    })
}

fn take_managed(obj: &mut Value) -> Option<Value> {
    obj.get_mut("metadata").and_then(Value::as_object_mut)?.remove("managedFields")
}

fn entries(list: &[Value]) -> Vec<Entry> {
    list.iter().filter_map(Entry::read).collect()
}

fn put_managed(obj: &mut Value, mut all: Vec<Entry>) {
    all.retain(|entry| !entry.is_empty());
    let meta = meta::metadata_mut(obj);
    if all.is_empty() {
        meta.remove("managedFields");
        return;
    }
    all.sort_by(Entry::order);
    meta.insert("managedFields".into(), all.into_iter().map(Entry::write).collect());
}

/// What a request changes, without what it may not write and what nobody owns.
fn changes(old: &Value, new: &Value, params: &ManagedParams) -> Diff {
    let whole = walk::diff(Some(old), Some(new), Kind::root(params.ty));
    Diff {
        changed: whole.changed.written_by(params).difference(&UNOWNED),
        removed: whole.removed.written_by(params).difference(&UNOWNED),
    }
}

/// Records who owns what after a create (`old` absent) or an update. Call it on the object decoded and defaulted, **before**
/// mutating admission and the strategy's preparation: what the server adds there is nobody's. `new` may carry the client's own `managedFields`: an empty list, or a list of one empty entry, resets ownership.
/// Nothing changes (times included) when no owned field does. An object that has no owners gets none by updates.
pub fn on_update(old: Option<&Value>, new: &mut Value, params: &ManagedParams) {
    let given = take_managed(new);
    let list = given.as_ref().and_then(Value::as_array);
    let resets = list.is_some_and(|list| match list.as_slice() {
        [] => true,
        [only] => only.get("operation").is_none() && only.get("manager").is_none(),
        _ => false,
    });
    let mut all = match list {
        Some(_) if resets && params.subresource.is_empty() => Vec::new(),
        Some(list) if params.subresource.is_empty() || old.is_none() => entries(list),
        _ => Vec::new(),
    };
    let reset_by_client = resets && params.subresource.is_empty();
    if all.is_empty() && !reset_by_client {
        all = old.map(|old| entries(meta::managed_fields(old))).unwrap_or_default();
    }
    if all.is_empty() && old.is_some() {
        // Ownership is recorded from the beginning or not at all (until an apply asks for it).
        return;
    }
    let empty;
    let before = match old {
        Some(old) => old,
        None => {
            empty = empty_object(new, params);
            &empty
        }
    };
    let mut comparison = Comparison::new(before, new, params);
    if !comparison.own.changed.is_empty() || !comparison.own.removed.is_empty() {
        let own = all.iter().position(|entry| entry.is(false, params));
        for (at, entry) in all.iter_mut().enumerate() {
            if Some(at) == own {
                entry.subtract(&comparison.own.removed);
            } else {
                comparison.take_from(entry);
            }
        }
        let changed = comparison.own.changed;
        if !changed.is_empty() {
            let fields = match own {
                Some(at) => changed.union(&Set::from_fields_v1(&all[at].fields)),
                None => changed,
            };
            let entry = Entry {
                manager: params.manager.to_owned(),
                apply: false,
                api_version: params.api_version.to_owned(),
                time: Some(params.now.to_owned()),
                subresource: params.subresource.to_owned(),
                fields: fields.to_fields_v1(),
            };
            match own {
                Some(at) => all[at] = entry,
                None => all.push(entry),
            }
        }
        all.retain(|entry| !entry.is_empty());
        cap(&mut all);
    }
    put_managed(new, all);
}

fn without_managed(obj: &Value) -> Value {
    let mut bare = obj.clone();
    take_managed(&mut bare);
    bare
}

/// Merges the oldest Update entries of a version into one until few enough are left.
fn cap(all: &mut Vec<Entry>) {
    let mut updaters: Vec<Entry> = Vec::new();
    if all.iter().filter(|entry| !entry.apply).count() <= MAX_UPDATE_MANAGERS {
        return;
    }
    all.retain(|entry| {
        if !entry.apply {
            updaters.push(entry.clone());
        }
        entry.apply
    });
    updaters.sort_by(Entry::order);
    let mut count = updaters.len();
    let mut buckets: Vec<Entry> = Vec::new();
    let mut kept: Vec<Entry> = Vec::new();
    for entry in updaters {
        if count <= MAX_UPDATE_MANAGERS {
            kept.push(entry);
            continue;
        }
        match buckets.iter_mut().find(|bucket| bucket.api_version == entry.api_version) {
            Some(bucket) => {
                let merged = Set::from_fields_v1(&bucket.fields).union(&Set::from_fields_v1(&entry.fields));
                bucket.fields = merged.to_fields_v1();
                bucket.manager = ANCIENT.into();
                bucket.subresource.clear();
                // The later time of the two.
                bucket.time = entry.time;
                count -= 1;
            }
            None => buckets.push(entry),
        }
    }
    all.append(&mut buckets);
    all.append(&mut kept);
}

/// Server-side apply. `live` is the stored object (`None` = create), `applied` the body as it was sent
/// ([`decode::parse`]), of the version of `params`. Answers with the merged object and its `managedFields`, still to be normalised, defaulted and
/// validated; it equals `live` when there is nothing to do.
///
/// # Errors
/// 400 for given `managedFields`, 409 for conflicts (unless `force`), 500 (as upstream) for an
/// intent that does not fit its schema.
pub fn on_apply(
    live: Option<&Value>,
    applied: &Value,
    params: &ManagedParams,
    force: bool,
) -> Result<Value, ApiError> {
    if applied.pointer("/metadata/managedFields").is_some_and(|list| !list.is_null()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let kind = Kind::root(params.ty);
    let mut reader = FieldSet { errors: Vec::new(), allow_duplicates: false };
    let intent = reader.of(applied, kind, &mut String::new());
    if !reader.errors.is_empty() {
        return Err(ApiError::generic(500, "", typed_error(applied, &reader.errors)));
    }
    let mut all = live.map(|live| entries(meta::managed_fields(live))).unwrap_or_default();
    let before = live.map_or_else(|| empty_object(applied, params).as_ref().clone(), without_managed);
    if all.is_empty() && live.is_some() {
        let diff = changes(&empty_object(&before, params), &before, params);
        all.push(Entry {
            manager: BEFORE_FIRST_APPLY.into(),
            apply: false,
            api_version: params.api_version.to_owned(),
            time: Some(params.now.to_owned()),
            subresource: params.subresource.to_owned(),
            fields: diff.changed.to_fields_v1(),
        });
        all.retain(|entry| !entry.is_empty());
    }
    let merged = walk::merge(Some(&before), Some(applied), kind).unwrap_or_default();

    let own = all.iter().position(|entry| entry.is(true, params));
    let last = own.map(|at| (all[at].api_version.clone(), Set::from_fields_v1(&all[at].fields)));
    // While items are taken out, the name and the type count as applied; they are never recorded as owned.
    let fields = intent.written_by(params);
    let previous_time = own.and_then(|at| all[at].time.clone());
    let entry = Entry {
        manager: params.manager.to_owned(),
        apply: true,
        api_version: params.api_version.to_owned(),
        time: previous_time,
        subresource: params.subresource.to_owned(),
        fields: fields.to_fields_v1(),
    };
    let at = match own {
        Some(at) => {
            all[at] = entry;
            at
        }
        None => {
            all.push(entry);
            all.len() - 1
        }
    };
    let mut result = match last {
        Some((version, last)) => prune_in(&version, merged, &all, last, params),
        None => merged,
    };
    all[at].fields = fields.difference(&UNOWNED).to_fields_v1();
    let mut comparison = Comparison::new(&before, &result, params);
    let others = |index: &usize| *index != at;
    if !force {
        let conflicts: Vec<(String, String)> = (0..all.len())
            .filter(others)
            .flat_map(|index| {
                let changed = comparison.seen_by(&all[index].api_version).map(|diff| diff.changed.clone());
                let theirs =
                    Set::from_fields_v1(&all[index].fields).intersection(&changed.unwrap_or_default());
                let who = print_manager(&all[index]);
                theirs.paths().into_iter().map(move |path| (who.clone(), path))
            })
            .collect();
        if !conflicts.is_empty() {
            return Err(conflict_error(conflicts));
        }
    }
    for index in (0..all.len()).filter(others) {
        comparison.take_from(&mut all[index]);
    }
    if same(&before, &result) {
        result = before;
    } else {
        all[at].time = Some(params.now.to_owned());
    }
    put_managed(&mut result, all);
    Ok(result)
}

/// Equality that does not see the difference between null and absent.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let covered = |a: &Map, b: &Map| {
                a.iter().all(|(key, value)| match b.get(key) {
                    Some(other) => same(value, other),
                    None => value.is_null(),
                })
            };
            covered(a, b) && b.iter().all(|(key, value)| a.contains_key(key) || value.is_null())
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) => a == b,
    }
}

/// [`prune`] in the version of the last apply, whose fields those are.
fn prune_in(version: &str, merged: Value, all: &[Entry], last: Set, params: &ManagedParams) -> Value {
    let Some(versions) = params.versions else { return prune(merged, all, last, Kind::root(params.ty)) };
    let same: Vec<Entry> = all.iter().filter(|entry| entry.api_version == version).cloned().collect();
    if version == params.api_version {
        return prune(merged, &same, last, Kind::root(params.ty));
    }
    let Some((theirs, ty)) = versions.convert(&merged, version) else { return merged };
    let pruned = prune(theirs, &same, last, Kind::root(ty));
    versions.convert(&pruned, params.api_version).map_or(merged, |(pruned, _)| pruned)
}

/// Takes out what the manager applied before and applies no more, unless somebody else owns it.
fn prune(merged: Value, all: &[Entry], last: Set, kind: Kind<'_>) -> Value {
    let last = walk::with_named_fields(last, kind);
    let set_of = |value: &Value| {
        let mut reader = FieldSet { errors: Vec::new(), allow_duplicates: true };
        walk::with_named_fields(reader.of(value, kind, &mut String::new()), kind)
    };
    let pruned = walk::remove(&merged, &last, kind);
    let owned =
        all.iter().fold(Set::default(), |owned, entry| owned.union(&Set::from_fields_v1(&entry.fields)));
    let owned = walk::with_named_fields(owned, kind);
    let merged_set = set_of(&merged);
    // Back comes what anybody owns …
    let gone = merged_set.clone().difference(&set_of(&pruned).union(&owned));
    let pruned = walk::remove(&merged, &gone, kind);
    // … and what was never the manager's.
    let gone = merged_set.difference(&set_of(&pruned)).intersection(&last);
    walk::remove(&merged, &gone, kind)
}

fn typed_error(applied: &Value, errors: &[String]) -> String {
    let (group, version) = meta::group_version(applied);
    let place = format!(
        "{}/{}; {group}/{version}, Kind={}",
        meta::namespace(applied),
        meta::name(applied),
        meta::kind(applied)
    );
    let text = match errors {
        [only] => only.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    format!("failed to create typed patch object ({place}): {text}")
}

fn print_manager(entry: &Entry) -> String {
    let mut out = crate::field::go_quote(&entry.manager);
    if !entry.subresource.is_empty() {
        out.push_str(&format!(" with subresource {}", crate::field::go_quote(&entry.subresource)));
    }
    if !entry.apply {
        out.push_str(&format!(" using {}", entry.api_version));
    }
    out
}

fn conflict_error(mut conflicts: Vec<(String, String)>) -> ApiError {
    conflicts.sort();
    let causes = conflicts
        .iter()
        .map(|(who, path)| StatusCause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with {who}"),
            field: path.clone(),
        })
        .collect();
    let message = match conflicts.as_slice() {
        [(who, path)] => format!("Apply failed with 1 conflict: conflict with {who}: {path}"),
        many => {
            let mut lines: Vec<String> = Vec::new();
            let mut last = "";
            for (who, path) in many {
                if who != last {
                    lines.push(format!("conflicts with {who}:"));
                    last = who;
                }
                lines.push(format!("- {path}"));
            }
            format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
        }
    };
    ApiError::apply_conflict(causes, message)
}

#[cfg(test)]
mod tests;
