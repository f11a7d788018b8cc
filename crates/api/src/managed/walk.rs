//! Walking typed values: what changed between two, what an intent names, merging, removing.
//!
//! Answers to `sigs.k8s.io/structured-merge-diff/typed`.

use std::collections::BTreeMap;

use orlop_json::{Key, Map, Value};

use super::custom::{CustomType, ListRelation, ObjectType};
use super::set::{Set, field_step, print_step};
use crate::schema::{ListType, Struct, Type};

/// What server-side apply knows of a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind<'a> {
    /// One value; its type is checked when an intent names it.
    Leaf(Option<&'static Type>),
    /// A struct; atomic ones are one value.
    Struct(&'static Struct, bool),
    /// A map; atomic ones are one value.
    Map(&'static Type, bool),
    /// A list of its item type.
    List(&'static Type, &'static ListType),
    /// A custom resource without a schema: its metadata is known, the rest is what it looks like.
    CustomRoot,
    /// A value of a custom resource with a schema.
    Custom(&'a CustomType),
    /// What it looks like: objects are granular, lists are one value.
    Deduced,
}

static DEFAULT: ListType = ListType::Default;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

fn builtin(openapi: &str) -> Kind<'static> {
    crate::schema::Schemas::get().openapi(openapi).map_or(Kind::Deduced, |ty| Kind::Struct(ty, ty.atomic))
}

impl<'a> Kind<'a> {
    pub fn root(ty: ObjectType<'a>) -> Kind<'a> {
        match ty {
            ObjectType::Builtin(ty) => Kind::Struct(ty, ty.atomic),
            ObjectType::Custom(ty, _) => Kind::custom(ty),
            ObjectType::Unknown => Kind::CustomRoot,
        }
    }

    fn of(ty: &'static Type, list: &'static ListType) -> Kind<'a> {
        match ty {
            Type::Struct(at) => {
                let inner = at.get();
                let atomic = (inner.atomic && *list != ListType::Granular) || *list == ListType::Atomic;
                Kind::Struct(inner, atomic)
            }
            Type::Map(item) => Kind::Map(item, *list == ListType::Atomic),
            Type::List(item) => Kind::List(item, list),
            other => Kind::Leaf(Some(other)),
        }
    }

    fn custom(ty: &'a CustomType) -> Kind<'a> {
        match ty {
            CustomType::Builtin(name) => builtin(name),
            CustomType::Deduced => Kind::Deduced,
            faces => Kind::Custom(faces),
        }
    }

    /// The kind of a field or an entry; `None` = a struct has no such field.
    pub(super) fn field(self, name: &str) -> Option<Kind<'a>> {
        match self {
            Kind::Struct(ty, _) => ty.field(name).map(|field| Kind::of(&field.ty, &field.list)),
            Kind::Map(item, _) => Some(Kind::of(item, &DEFAULT)),
            Kind::CustomRoot if name == "metadata" => Some(builtin(OBJECT_META)),
            Kind::Custom(CustomType::Faces { map: Some(map), .. }) => match map.fields.get(name) {
                Some((ty, _)) => Some(Kind::custom(ty)),
                None => map.element.as_ref().map(Kind::custom),
            },
            _ => Some(Kind::Deduced),
        }
    }

    /// Whether the field is one that the type declares, not an entry of a map.
    fn declares(self, name: &str) -> bool {
        match self {
            Kind::Struct(ty, _) => ty.field(name).is_some(),
            Kind::Custom(ty) => ty.declared(name).is_some(),
            _ => false,
        }
    }

    /// Whether an object of this kind is replaced as a whole.
    pub(super) fn is_atomic_map(self) -> bool {
        match self {
            Kind::Struct(_, atomic) | Kind::Map(_, atomic) => atomic,
            Kind::Custom(CustomType::Faces { map: Some(map), .. }) => map.atomic,
            _ => false,
        }
    }

    /// Whether a list of this kind is replaced as a whole.
    pub(super) fn is_atomic_list(self, list: &Value) -> bool {
        matches!(self.shape([Some(list), None]), Shape::Whole)
    }

    /// The same kind, to look into it even where it is atomic.
    pub(super) fn granular(self) -> Kind<'a> {
        match self {
            Kind::Struct(ty, _) => Kind::Struct(ty, false),
            Kind::Map(item, _) => Kind::Map(item, false),
            other => other,
        }
    }

    pub(super) fn item(self) -> Kind<'a> {
        match self {
            Kind::List(item, _) => Kind::of(item, &DEFAULT),
            Kind::Custom(CustomType::Faces { list: Some(list), .. }) => Kind::custom(&list.item),
            _ => Kind::Deduced,
        }
    }

    /// How to walk the value, given what it looks like.
    fn shape(self, values: [Option<&Value>; 2]) -> Shape {
        match self {
            Kind::Struct(_, false) | Kind::Map(_, false) | Kind::CustomRoot => Shape::Fields,
            Kind::List(_, ListType::Map(_) | ListType::Set) => Shape::Items,
            Kind::Deduced => {
                let objects = values.iter().flatten().all(|value| value.is_object() || value.is_null());
                let any = values.iter().flatten().any(|value| value.is_object());
                if objects && any { Shape::Fields } else { Shape::Whole }
            }
            Kind::Custom(ty) => custom_shape(ty, values),
            _ => Shape::Whole,
        }
    }

    /// The step to an item of an associative list.
    fn step(self, item: &Value) -> Result<Key, String> {
        match self {
            Kind::List(item_type, ListType::Map(keys)) => {
                step_by_keys(item, keys.iter().copied(), |key| match item_type {
                    Type::Struct(at) => at.get().field(key).and_then(|field| field.default.clone()),
                    _ => None,
                })
            }
            Kind::Custom(CustomType::Faces { list: Some(list), .. }) => match &list.relation {
                ListRelation::Map(keys) => {
                    step_by_keys(item, keys.iter().map(String::as_str), |key| match &list.item {
                        CustomType::Faces { map: Some(map), .. } => map.fields.get(key)?.1.clone(),
                        _ => None,
                    })
                }
                _ => Ok(format!("v:{item}").into()),
            },
            _ => Ok(format!("v:{item}").into()),
        }
    }
}

fn step_by_keys<'k>(
    item: &Value,
    keys: impl Iterator<Item = &'k str>,
    default: impl Fn(&str) -> Option<Value>,
) -> Result<Key, String> {
    let mut parts: BTreeMap<&str, Value> = BTreeMap::new();
    let mut missing: Vec<&str> = Vec::new();
    for key in keys {
        let given = item.get(key).filter(|value| !value.is_null()).cloned();
        match given.or_else(|| default(key)) {
            Some(value) => {
                parts.insert(key, value);
            }
            None => missing.push(key),
        }
    }
    // Some of the keys are enough.
    if parts.is_empty() {
        let quoted: Vec<String> = missing.iter().map(|key| crate::field::go_quote(key)).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
            quoted.join(" ")
        ));
    }
    let parts: Map = parts.into_iter().map(|(key, value)| (key.into(), value)).collect();
    Ok(format!("k:{}", Value::Object(parts)).into())
}

/// The face that both values show; one value when they show different ones.
fn custom_shape(ty: &CustomType, values: [Option<&Value>; 2]) -> Shape {
    let CustomType::Faces { scalar, list, map } = ty else { return Shape::Whole };
    let as_map = || match map {
        Some(map) if !map.atomic => Shape::Fields,
        _ => Shape::Whole,
    };
    let as_list = || match list {
        Some(list) if list.relation != ListRelation::Atomic => Shape::Items,
        _ => Shape::Whole,
    };
    let mut shown = values.iter().flatten().filter(|value| !value.is_null());
    let face = |value: &Value| match value {
        Value::Object(_) => 'm',
        Value::Array(_) => 'l',
        _ => 's',
    };
    let first = shown.next().map(|value| face(value));
    if let (Some(first), Some(second)) = (first, shown.next().map(|value| face(value)))
        && first != second
    {
        return Shape::Whole;
    }
    match first {
        Some('m') if map.is_some() => as_map(),
        Some('l') if list.is_some() => as_list(),
        Some('s') if scalar.is_some() => Shape::Whole,
        // A value that looks like nothing the type allows is taken for what the type says first.
        _ if map.is_some() => as_map(),
        _ if scalar.is_some() => Shape::Whole,
        _ => as_list(),
    }
}

enum Shape {
    /// One value.
    Whole,
    /// By the fields of an object.
    Fields,
    /// By the items of an associative list.
    Items,
}

fn fields(value: Option<&Value>) -> Option<&Map> {
    value.and_then(Value::as_object).filter(|map| !map.is_empty())
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// What differs between two values.
#[derive(Debug, Default)]
pub(super) struct Diff {
    /// Paths that are new or have another value.
    pub changed: Set,
    /// Paths that are gone.
    pub removed: Set,
}

impl Diff {
    fn extend(&mut self, steps: Vec<(Key, Diff)>) {
        let removed = steps.iter().filter(|(_, diff)| !diff.removed.is_empty());
        self.removed.extend(removed.map(|(step, diff)| (step.clone(), diff.removed.clone())));
        self.changed.extend(steps.into_iter().map(|(step, diff)| (step, diff.changed)));
    }
}

/// Compares two values of a kind; `None` = absent.
pub(super) fn diff(old: Option<&Value>, new: Option<&Value>, kind: Kind<'_>) -> Diff {
    let mut out = Diff::default();
    if old == new {
        return out;
    }
    let leaf = |mut out: Diff| {
        if new.is_none() {
            out.removed.member = true;
        } else {
            out.changed.member = true;
        }
        out
    };
    match kind.shape([old, new]) {
        Shape::Whole => return leaf(out),
        Shape::Fields => {
            let (olds, news) = (fields(old), fields(new));
            if olds.is_none() && news.is_none() {
                return leaf(out);
            }
            let mut steps = Vec::with_capacity(news.map_or(0, Map::len));
            for (name, value) in olds.into_iter().flatten() {
                let child = kind.field(name).unwrap_or(Kind::Deduced);
                let there = news.and_then(|map| map.get(name));
                if there != Some(value) {
                    steps.push((field_step(name), diff(Some(value), there, child)));
                }
            }
            for (name, value) in news.into_iter().flatten() {
                if olds.is_none_or(|map| !map.contains_key(name)) {
                    let child = kind.field(name).unwrap_or(Kind::Deduced);
                    steps.push((field_step(name), diff(None, Some(value), child)));
                }
            }
            out.extend(steps);
        }
        Shape::Items => {
            let (olds, news) = (items(old), items(new));
            if olds.is_empty() && news.is_empty() {
                return leaf(out);
            }
            let mut pairs: BTreeMap<Key, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
            for item in olds {
                if let Ok(step) = kind.step(item) {
                    pairs.entry(step).or_default().0.push(item);
                }
            }
            for item in news {
                if let Ok(step) = kind.step(item) {
                    pairs.entry(step).or_default().1.push(item);
                }
            }
            let steps = pairs.into_iter();
            out.extend(
                steps.map(|(step, (olds, news))| (step, diff_items(&olds, &news, kind.item()))).collect(),
            );
        }
    }
    if old.is_none() {
        out.changed.member = true;
    }
    if new.is_none() {
        out.removed.member = true;
    }
    out
}

/// Items with one key; several on a side are compared as one value.
fn diff_items(olds: &[&Value], news: &[&Value], item: Kind<'_>) -> Diff {
    match (olds, news) {
        ([], []) => Diff::default(),
        ([] | [_], [] | [_]) => diff(olds.first().copied(), news.first().copied(), item),
        ([_, _, ..], [_, _, ..]) => {
            let mut out = Diff::default();
            out.changed.member = olds != news;
            out
        }
        ([_, _, ..], _) => {
            let mut out = match news.first() {
                Some(new) => diff(None, Some(new), item),
                None => Diff::default(),
            };
            out.removed.member = true;
            out
        }
        (_, [_, _, ..]) => {
            let mut out = match olds.first() {
                Some(old) => diff(Some(old), None, item),
                None => Diff::default(),
            };
            out.changed.member = true;
            out
        }
    }
}

/// The paths that an intent or an object names, and what is wrong with it (`.bogus: field not declared in schema`).
pub(super) struct FieldSet {
    pub errors: Vec<String>,
    /// Whether several items may have the same key (objects may, intents may not).
    pub allow_duplicates: bool,
}

impl FieldSet {
    pub fn of(&mut self, value: &Value, kind: Kind<'_>, path: &mut String) -> Set {
        let mut set = Set::default();
        match kind.shape([Some(value), None]) {
            Shape::Whole => {
                self.check_whole(value, kind, path);
                set.member = true;
            }
            Shape::Fields => {
                let Some(map) = self.object(value, path) else { return set };
                let mut fields = Vec::with_capacity(map.len());
                for (name, value) in map {
                    let step = field_step(name);
                    let Some(child) = kind.field(name) else {
                        self.errors.push(format!("{path}.{name}: field not declared in schema"));
                        continue;
                    };
                    let mut inner = self.descend(value, child, &step, path);
                    let named = kind.declares(name);
                    let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                    inner.member |= empty || !named;
                    fields.push((step, inner));
                }
                set.extend(fields);
            }
            Shape::Items => {
                let Some(list) = self.list(value, path) else { return set };
                // How often a key is there, and whether that has been told.
                let mut seen: BTreeMap<Key, (usize, bool)> = BTreeMap::new();
                for item in list {
                    match kind.step(item) {
                        Ok(step) => seen.entry(step).or_default().0 += 1,
                        Err(error) => {
                            let at = if path.is_empty() { "" } else { path.as_str() };
                            self.errors.push(format!("{at}: element 0: {error}"));
                        }
                    }
                }
                let mut items = Vec::with_capacity(list.len());
                for item in list {
                    let Ok(step) = kind.step(item) else { continue };
                    if let Some((2.., told)) = seen.get_mut(&step) {
                        if !self.allow_duplicates && !*told {
                            self.errors
                                .push(format!("{path}: duplicate entries for key {}", print_step(&step)));
                        }
                        *told = true;
                        items.push((step, Set::leaf()));
                        continue;
                    }
                    let mut inner = self.descend(item, kind.item(), &step, path);
                    inner.member = true;
                    items.push((step, inner));
                }
                set.extend(items);
            }
        }
        set
    }

    fn descend(&mut self, value: &Value, kind: Kind<'_>, step: &str, path: &mut String) -> Set {
        let length = path.len();
        path.push_str(&print_step(step));
        let set = self.of(value, kind, path);
        path.truncate(length);
        set
    }

    fn object<'v>(&mut self, value: &'v Value, path: &str) -> Option<&'v Map> {
        if !value.is_object() && !value.is_null() {
            self.errors.push(format!("{path}: expected map, got &{{{}}}", plain(value)));
        }
        value.as_object()
    }

    fn list<'v>(&mut self, value: &'v Value, path: &str) -> Option<&'v Vec<Value>> {
        if !value.is_array() && !value.is_null() {
            self.errors.push(format!("{path}: expected list, got &{{{}}}", plain(value)));
        }
        value.as_array()
    }

    /// Atomic values are still checked inside.
    fn check_whole(&mut self, value: &Value, kind: Kind<'_>, path: &mut String) {
        match kind {
            Kind::Struct(ty, _) => {
                for (name, value) in self.object(value, path).into_iter().flatten() {
                    match Kind::Struct(ty, false).field(name) {
                        Some(child) => {
                            self.descend(value, child, &field_step(name), path);
                        }
                        None => self.errors.push(format!("{path}.{name}: field not declared in schema")),
                    }
                }
            }
            Kind::Map(item, _) => {
                for (name, value) in self.object(value, path).into_iter().flatten() {
                    self.descend(value, Kind::of(item, &DEFAULT), &field_step(name), path);
                }
            }
            Kind::List(item, _) => {
                for (at, value) in self.list(value, path).into_iter().flatten().enumerate() {
                    self.descend(value, Kind::of(item, &DEFAULT), &format!("i:{at}"), path);
                }
            }
            Kind::Leaf(Some(ty)) => self.check_scalar(value, ty, path),
            Kind::Custom(CustomType::Faces { scalar, list, map }) => match (value, scalar, list, map) {
                (Value::Null, ..) => {}
                (Value::Array(items), _, Some(_), _) => {
                    for (at, value) in items.iter().enumerate() {
                        self.descend(value, kind.item(), &format!("i:{at}"), path);
                    }
                }
                (Value::Object(_) | Value::Array(_), _, _, Some(_)) | (_, None, None, Some(_)) => {
                    for (name, value) in self.object(value, path).into_iter().flatten() {
                        match kind.field(name) {
                            Some(child) => {
                                self.descend(value, child, &field_step(name), path);
                            }
                            None => self.errors.push(format!("{path}.{name}: field not declared in schema")),
                        }
                    }
                }
                (_, Some(scalar), _, _) => self.check_scalar(value, scalar.as_type(), path),
                _ => {
                    self.list(value, path);
                }
            },
            _ => {}
        }
    }

    fn check_scalar(&mut self, value: &Value, ty: &Type, path: &str) {
        if let Some(error) = scalar_error(value, ty) {
            self.errors.push(format!("{path}: {error}"));
        }
    }
}

fn scalar_error(value: &Value, ty: &Type) -> Option<String> {
    if value.is_null() {
        return None;
    }
    match ty {
        Type::String | Type::Bytes | Type::Time | Type::MicroTime | Type::Duration if !value.is_string() => {
            Some(format!("expected string, got &value.valueUnstructured{{Value:{}}}", value))
        }
        Type::Int32 | Type::Int64 | Type::Float64 if !value.is_number() => {
            let what = match value {
                Value::String(_) => "string",
                Value::Bool(_) => "bool",
                Value::Array(_) => "[]interface {}",
                _ => "map[string]interface {}",
            };
            Some(format!("expected numeric (int or float), got {what}"))
        }
        Type::Bool if !value.is_boolean() => Some(format!("expected boolean, got &{{{}}}", plain(value))),
        Type::Quantity | Type::IntOrString if value.is_array() || value.is_object() => {
            Some(format!("expected any scalar, got &{{{}}}", plain(value)))
        }
        _ => None,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The live value with an intent laid over it; associative lists keep the live order where the intent leaves room.
pub(super) fn merge(live: Option<&Value>, intent: Option<&Value>, kind: Kind<'_>) -> Option<Value> {
    let (Some(old), Some(new)) = (live, intent) else { return intent.or(live).cloned() };
    match kind.shape([live, intent]) {
        Shape::Whole => Some(new.clone()),
        Shape::Fields => {
            let (olds, news) = (fields(live), fields(intent));
            if olds.is_none() && news.is_none() {
                return Some(new.clone());
            }
            let mut out = Map::new();
            for (name, value) in olds.into_iter().flatten() {
                let child = kind.field(name).unwrap_or(Kind::Deduced);
                let there = news.and_then(|map| map.get(name));
                out.extend(merge(Some(value), there, child).map(|value| (name.clone(), value)));
            }
            for (name, value) in news.into_iter().flatten() {
                if olds.is_none_or(|map| !map.contains_key(name)) {
                    out.insert(name.clone(), value.clone());
                }
            }
            Some(Value::Object(out))
        }
        Shape::Items => {
            let (olds, news) = (items(Some(old)), items(Some(new)));
            if olds.is_empty() && news.is_empty() {
                return Some(new.clone());
            }
            Some(Value::Array(merge_items(olds, news, kind)))
        }
    }
}

fn merge_items(olds: &[Value], news: &[Value], kind: Kind<'_>) -> Vec<Value> {
    let steps = |list: &[Value]| -> Vec<Key> {
        list.iter()
            .enumerate()
            .map(|(at, item)| kind.step(item).unwrap_or_else(|_| format!("i:{at}").into()))
            .collect()
    };
    let (old_steps, new_steps) = (steps(olds), steps(news));
    // An item whose key several have is nobody's partner.
    let partner = |step: &Key| -> Option<&Value> {
        let mut found = old_steps.iter().zip(olds).filter(|(known, _)| *known == step);
        let first = found.next();
        if found.next().is_some() { None } else { first.map(|(_, item)| item) }
    };
    let mut shared = new_steps.iter().filter(|step| old_steps.contains(step));
    let mut next_shared = shared.next();
    let mut done: Vec<&Key> = Vec::new();
    let mut out = Vec::new();
    let (mut l, mut r) = (0, 0);
    while l < olds.len() || r < news.len() {
        if l < olds.len() && r < news.len() {
            let step = &old_steps[l];
            if *step == new_steps[r] {
                done.push(step);
                out.extend(merge(partner(step), Some(&news[r]), kind.item()));
                l += 1;
                r += 1;
                next_shared = shared.next();
                continue;
            }
            if new_steps.contains(step) && next_shared.is_some_and(|next| next != step) {
                // Shared, but its turn comes later.
                l += 1;
                continue;
            }
        }
        if l < olds.len() {
            let step = &old_steps[l];
            if !new_steps.contains(step) {
                out.push(olds[l].clone());
                l += 1;
                continue;
            }
            if done.contains(&step) {
                l += 1;
            }
        }
        if r < news.len() {
            let step = &new_steps[r];
            done.push(step);
            out.extend(merge(partner(step), Some(&news[r]), kind.item()));
            r += 1;
            if next_shared == Some(step) {
                next_shared = shared.next();
            }
        }
    }
    out
}

/// The value without the fields and items whose paths are in the set.
pub(super) fn remove(value: &Value, set: &Set, kind: Kind<'_>) -> Value {
    if set.children.is_empty() {
        return value.clone();
    }
    match (kind.shape([Some(value), None]), value) {
        (Shape::Fields, Value::Object(map)) => {
            let mut out = Map::new();
            for (name, value) in map {
                match set.children.get(&field_step(name)) {
                    Some(gone) if gone.member => {}
                    Some(inner) => {
                        let child = kind.field(name).unwrap_or(Kind::Deduced);
                        out.insert(name.clone(), remove(value, inner, child));
                    }
                    None => {
                        out.insert(name.clone(), value.clone());
                    }
                }
            }
            if out.is_empty() { Value::Null } else { Value::Object(out) }
        }
        (Shape::Items, Value::Array(list)) => {
            let mut out = Vec::new();
            for item in list {
                let found = kind.step(item).ok().and_then(|step| set.children.get(&step));
                match found {
                    Some(gone) if gone.member => {}
                    Some(inner) => out.push(remove(item, inner, kind.item())),
                    None => out.push(item.clone()),
                }
            }
            if out.is_empty() { Value::Null } else { Value::Array(out) }
        }
        _ => value.clone(),
    }
}

/// The set with every struct field that has members inside it as a member too.
pub(super) fn with_named_fields(mut set: Set, kind: Kind<'_>) -> Set {
    for (step, inner) in set.children.iter_mut() {
        let taken = std::mem::take(inner);
        let (named, child) = match step.strip_prefix("f:") {
            Some(name) => (kind.declares(name), kind.field(name).unwrap_or(Kind::Deduced)),
            None => (false, kind.item()),
        };
        *inner = with_named_fields(taken, child);
        inner.member |= named;
    }
    set
}
