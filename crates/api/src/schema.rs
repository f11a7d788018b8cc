//! The types of the built-in API: fields in their order, JSON names, protobuf numbers, list types, patch strategies.
//!
//! The facts come from `data/schema.txt` (see `data/generate.py` for its columns) and are read once, on first use.
//! Decoding, strategic merge, server-side apply and protobuf all walk these types.

use std::collections::HashMap;
use std::sync::LazyLock;

use orlop_json::Value;

static DATA: &str = include_str!("../data/schema.txt");
static SCHEMAS: LazyLock<Schemas> = LazyLock::new(load);

/// A struct of the Go API.
#[derive(Debug)]
pub struct Struct {
    /// Go's name with its package: `v1.Pod`.
    pub go_type: &'static str,
    /// OpenAPI's name: `io.k8s.api.core.v1.Pod`.
    pub openapi: &'static str,
    /// Whether it carries `kind` and `apiVersion` (they stand first in `fields`).
    pub has_type_meta: bool,
    /// Whether server-side apply treats it as one value.
    pub atomic: bool,
    /// The fields that OpenAPI calls required, in its order.
    pub required: Vec<&'static str>,
    /// `x-kubernetes-unions`, if it has them.
    pub unions: Option<Value>,
    /// The fields as JSON shows them: inlined structs are flattened into their place.
    pub fields: Vec<Field>,
    /// The fields as its protobuf message holds them, by ascending number.
    pub message: Vec<(u32, Place)>,
    /// Whether it, or a struct inside it, has a list that JSON shows even when it is empty.
    pub shows_empty_lists: bool,
    /// The places of the fields, ordered as [`shortest_first`] orders their names.
    index: Box<[(&'static str, usize)]>,
}

/// An order of names that nearly always needs only their lengths.
fn shortest_first(a: &str, b: &str) -> std::cmp::Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

impl Struct {
    /// Go's name without its package: `Pod`.
    pub fn name(&self) -> &'static str {
        self.go_type.rsplit('.').next().unwrap_or(self.go_type)
    }

    /// The field with this JSON name, case-sensitively.
    pub fn field(&self, json: &str) -> Option<&Field> {
        self.position(json).map(|at| &self.fields[at])
    }

    /// The place of the field with this JSON name in `fields`.
    pub fn position(&self, json: &str) -> Option<usize> {
        let found = self.index.binary_search_by(|(name, _)| shortest_first(name, json));
        found.ok().map(|at| self.index[at].1)
    }
}

/// What stands at a number of a protobuf message.
#[derive(Debug)]
pub enum Place {
    /// The field at this place of [`Struct::fields`].
    Field(usize),
    /// The message of an inlined struct.
    Inline(Vec<(u32, Place)>),
}

/// A field of a struct.
#[derive(Debug)]
pub struct Field {
    /// The JSON name.
    pub json: &'static str,
    /// The protobuf number; 0 = not in protobuf (`kind`, `apiVersion`).
    pub number: u32,
    /// The numbers of the inlined messages around it in protobuf, outermost first.
    pub inlined_in: Vec<u32>,
    /// The protobuf wire type: `bytes`, `varint`, `fixed64`.
    pub wire: &'static str,
    /// The type of its value.
    pub ty: Type,
    /// Go's name of the type, for messages.
    pub go_type: &'static str,
    /// Left out of JSON when it is empty.
    pub omitempty: bool,
    /// A Go pointer: null and absent are "not set", and zero is a value.
    pub pointer: bool,
    /// What server-side apply takes the list or map for.
    pub list: ListType,
    /// What strategic merge does: `merge`, `retainKeys`, both with a comma, or nothing (replace).
    pub patch_strategy: &'static str,
    /// The key by which strategic merge pairs items; empty for lists of scalars.
    pub patch_merge_key: &'static str,
    /// The default that OpenAPI declares.
    pub default: Option<Value>,
    /// The values that OpenAPI lists; empty = any.
    pub values: Vec<&'static str>,
}

impl Field {
    /// Whether the list has a type of its own in Go: in protobuf it is a message around the repeated field.
    pub fn is_wrapped(&self) -> bool {
        matches!(self.ty, Type::List(_)) && self.go_type == "v1.Verbs"
    }

    /// Whether JSON shows the list or map even when it is empty; as `null` when it is not set.
    pub fn shows_empty_list(&self) -> bool {
        matches!(self.ty, Type::List(_) | Type::Map(_)) && !self.omitempty && !self.pointer
    }
}

/// What server-side apply takes a list or a map for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType {
    /// A list: atomic; a map or struct: granular.
    Default,
    /// One value.
    Atomic,
    /// By its fields, although the struct's type is atomic elsewhere.
    Granular,
    /// A list of distinct scalars.
    Set,
    /// A list of structs with these keys.
    Map(Vec<&'static str>),
}

/// The type of a value.
#[derive(Clone, Debug)]
pub enum Type {
    /// Text.
    String,
    /// 32 bits with sign.
    Int32,
    /// 64 bits with sign.
    Int64,
    /// True or false.
    Bool,
    /// A float.
    Float64,
    /// Bytes: base64 in JSON.
    Bytes,
    /// `resource.Quantity`.
    Quantity,
    /// Seconds since 1970: RFC 3339 in JSON.
    Time,
    /// Microseconds since 1970: RFC 3339 with six digits in JSON.
    MicroTime,
    /// Go's notation of durations: `1h30m`.
    Duration,
    /// `intstr.IntOrString`.
    IntOrString,
    /// `runtime.RawExtension`: any object.
    RawExtension,
    /// `meta/v1` FieldsV1.
    FieldsV1,
    /// Any JSON.
    Json,
    /// A list.
    List(Box<Type>),
    /// A map with text keys.
    Map(Box<Type>),
    /// A struct.
    Struct(StructRef),
    /// A struct or a list of it (JSON schema's `items`).
    StructOrList(StructRef),
    /// A struct or a bool (JSON schema's `additionalProperties`).
    StructOrBool(StructRef),
    /// A struct or a list of text (JSON schema's `dependencies`).
    StructOrStrings(StructRef),
}

impl Type {
    /// The struct that a value, or each item or entry of it, is.
    fn inner(&self) -> Option<StructRef> {
        match self {
            Type::List(item) | Type::Map(item) => item.inner(),
            Type::Struct(at) => Some(*at),
            _ => None,
        }
    }
}

/// A reference to a struct of [`Schemas`]; structs may contain themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StructRef(usize);

impl StructRef {
    /// The struct.
    pub fn get(self) -> &'static Struct {
        &SCHEMAS.structs[self.0]
    }
}

/// All built-in types.
#[derive(Debug)]
pub struct Schemas {
    structs: Vec<Struct>,
    kinds: HashMap<(&'static str, &'static str, &'static str), usize>,
    openapi: HashMap<&'static str, usize>,
}

impl Schemas {
    /// The types; read on the first call.
    pub fn get() -> &'static Schemas {
        &SCHEMAS
    }

    /// The struct of a kind. Options and Status live in group `meta.k8s.io`.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Struct> {
        self.kinds.get(&(group, version, kind)).map(|at| &self.structs[*at])
    }

    /// The struct with this OpenAPI name.
    pub fn openapi(&self, name: &str) -> Option<&Struct> {
        self.openapi.get(name).map(|at| &self.structs[*at])
    }

    /// The kinds that are the struct with this OpenAPI name: group, version and kind.
    pub fn kinds_of(&self, name: &str) -> Vec<(&'static str, &'static str, &'static str)> {
        let Some(wanted) = self.openapi.get(name) else { return Vec::new() };
        let mut found: Vec<_> =
            self.kinds.iter().filter(|(_, at)| *at == wanted).map(|(kind, _)| *kind).collect();
        found.sort_unstable();
        found
    }
}

/// The struct of a built-in kind.
pub fn kind(group: &str, version: &str, kind: &str) -> Option<&'static Struct> {
    Schemas::get().kind(group, version, kind)
}

/// What the data says of a struct, but for its fields.
struct Head {
    go_type: &'static str,
    openapi: &'static str,
    flags: &'static str,
    required: Vec<&'static str>,
    unions: &'static str,
}

/// The entries of a column with several; an empty column has none.
fn listed(column: &'static str) -> Vec<&'static str> {
    if column.is_empty() { Vec::new() } else { column.split(',').collect() }
}

/// A line of the data, before inlining.
struct Row {
    inline: bool,
    field: Field,
}

fn load() -> Schemas {
    let mut heads: Vec<Head> = Vec::new();
    let mut rows: Vec<Vec<Row>> = Vec::new();
    let mut kinds = HashMap::new();
    for line in DATA.lines() {
        let mut columns = line.split('\t');
        let mut next = || columns.next().unwrap_or("");
        match next() {
            "S" => {
                let (go_type, openapi, flags) = (next(), next(), next());
                heads.push(Head { go_type, openapi, flags, required: listed(next()), unions: next() });
                rows.push(Vec::new());
            }
            "F" => {
                let (json, number, wire, ty) = (next(), next(), next(), next());
                let (flags, go_type, list) = (next(), next(), next());
                let (patch_strategy, patch_merge_key, default, values) = (next(), next(), next(), next());
                let (ty, _) = parse_type(ty);
                let field = Field {
                    json,
                    number: number.parse().unwrap_or(0),
                    inlined_in: Vec::new(),
                    wire,
                    ty,
                    go_type,
                    omitempty: flags.contains('o'),
                    pointer: flags.contains('p'),
                    list: match list {
                        "a" | "A" => ListType::Atomic,
                        "G" => ListType::Granular,
                        "s" => ListType::Set,
                        other => match other.strip_prefix("m:") {
                            Some(keys) => ListType::Map(keys.split(',').collect()),
                            None => ListType::Default,
                        },
                    },
                    patch_strategy,
                    patch_merge_key,
                    default: orlop_json::from_str(default).ok(),
                    values: listed(values),
                };
                if let Some(last) = rows.last_mut() {
                    last.push(Row { inline: json == "-", field });
                }
            }
            "K" => {
                let (group, version, kind, at) = (next(), next(), next(), next());
                kinds.insert((group, version, kind), at.parse::<usize>().unwrap_or(usize::MAX));
            }
            _ => {}
        }
    }
    let mut structs = Vec::with_capacity(heads.len());
    for (at, head) in heads.iter().enumerate() {
        let has_type_meta = head.flags.contains('t');
        let mut fields = Vec::new();
        if has_type_meta {
            fields.push(type_meta("kind"));
            fields.push(type_meta("apiVersion"));
        }
        flatten(at, &[], &rows, &heads, &mut fields);
        let mut index: Box<[_]> = fields.iter().enumerate().map(|(at, field)| (field.json, at)).collect();
        index.sort_unstable_by(|a, b| shortest_first(a.0, b.0));
        let message = places(&fields, 0, &mut (0..fields.len()).collect::<Vec<_>>());
        let shows_empty_lists = fields.iter().any(Field::shows_empty_list);
        structs.push(Struct {
            go_type: head.go_type,
            openapi: head.openapi,
            has_type_meta,
            atomic: head.flags.contains('a'),
            required: head.required.clone(),
            unions: orlop_json::from_str(head.unions).ok(),
            fields,
            message,
            shows_empty_lists,
            index,
        });
    }
    mark_empty_lists(&mut structs);
    let openapi = structs.iter().enumerate().map(|(at, s)| (s.openapi, at)).collect();
    Schemas { structs, kinds, openapi }
}

/// Carries [`Struct::shows_empty_lists`] outwards until nothing changes.
fn mark_empty_lists(structs: &mut [Struct]) {
    loop {
        let news: Vec<usize> = (0..structs.len())
            .filter(|at| {
                let inside =
                    |field: &Field| field.ty.inner().is_some_and(|at| structs[at.0].shows_empty_lists);
                !structs[*at].shows_empty_lists && structs[*at].fields.iter().any(inside)
            })
            .collect();
        if news.is_empty() {
            return;
        }
        for at in news {
            structs[at].shows_empty_lists = true;
        }
    }
}

/// The message of the fields at `among`, all of which lie within the same `depth` inlined structs.
fn places(fields: &[Field], depth: usize, among: &mut Vec<usize>) -> Vec<(u32, Place)> {
    let mut out = Vec::new();
    while let Some(first) = among.first().copied() {
        let Some(number) = fields[first].inlined_in.get(depth).copied() else {
            if fields[first].number > 0 {
                out.push((fields[first].number, Place::Field(first)));
            }
            among.remove(0);
            continue;
        };
        let inner = |at: &usize| fields[*at].inlined_in.get(depth) == Some(&number);
        let mut inside: Vec<usize> = among.iter().copied().filter(inner).collect();
        among.retain(|at| !inner(at));
        out.push((number, Place::Inline(places(fields, depth + 1, &mut inside))));
    }
    out.sort_by_key(|(number, _)| *number);
    out
}

fn type_meta(json: &'static str) -> Field {
    Field {
        json,
        number: 0,
        inlined_in: Vec::new(),
        wire: "bytes",
        ty: Type::String,
        go_type: "string",
        omitempty: true,
        pointer: false,
        list: ListType::Default,
        patch_strategy: "",
        patch_merge_key: "",
        default: None,
        values: Vec::new(),
    }
}

fn flatten(at: usize, inlined_in: &[u32], rows: &[Vec<Row>], heads: &[Head], out: &mut Vec<Field>) {
    for row in &rows[at] {
        let field = &row.field;
        if let (true, Type::Struct(inner)) = (row.inline, &field.ty) {
            let mut path = inlined_in.to_vec();
            path.push(field.number);
            flatten(inner.0, &path, rows, heads, out);
            continue;
        }
        let go_type =
            if field.go_type.is_empty() { leak_once(go_name(&field.ty, heads)) } else { field.go_type };
        out.push(Field {
            json: field.json,
            number: field.number,
            inlined_in: inlined_in.to_vec(),
            wire: field.wire,
            ty: field.ty.clone(),
            go_type,
            omitempty: field.omitempty,
            pointer: field.pointer,
            list: field.list.clone(),
            patch_strategy: field.patch_strategy,
            patch_merge_key: field.patch_merge_key,
            default: field.default.clone(),
            values: field.values.clone(),
        });
    }
}

/// The tables live as long as the process, and so do the few names that are put together for them.
fn leak_once(name: String) -> &'static str {
    match name.as_str() {
        "string" => "string",
        "int32" => "int32",
        "int64" => "int64",
        "bool" => "bool",
        "[]string" => "[]string",
        "map[string]string" => "map[string]string",
        _ => Box::leak(name.into_boxed_str()),
    }
}

fn go_name(ty: &Type, heads: &[Head]) -> String {
    match ty {
        Type::String => "string".into(),
        Type::Int32 => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::Bool => "bool".into(),
        Type::Float64 => "float64".into(),
        Type::Bytes => "[]uint8".into(),
        Type::Quantity => "resource.Quantity".into(),
        Type::Time => "v1.Time".into(),
        Type::MicroTime => "v1.MicroTime".into(),
        Type::Duration => "v1.Duration".into(),
        Type::IntOrString => "intstr.IntOrString".into(),
        Type::RawExtension => "runtime.RawExtension".into(),
        Type::FieldsV1 => "v1.FieldsV1".into(),
        Type::Json => "v1.JSON".into(),
        Type::List(item) => format!("[]{}", go_name(item, heads)),
        Type::Map(item) => format!("map[string]{}", go_name(item, heads)),
        Type::Struct(at) | Type::StructOrList(at) | Type::StructOrBool(at) | Type::StructOrStrings(at) => {
            heads[at.0].go_type.into()
        }
    }
}

fn parse_type(text: &'static str) -> (Type, &'static str) {
    let Some(first) = text.chars().next() else { return (Type::Json, "") };
    let rest = &text[1..];
    let reference = |rest: &'static str| {
        let (number, rest) = rest.split_once(';').unwrap_or((rest, ""));
        (StructRef(number.trim_start_matches('@').parse().unwrap_or(0)), rest)
    };
    match first {
        's' => (Type::String, rest),
        'i' => (Type::Int32, rest),
        'l' => (Type::Int64, rest),
        'b' => (Type::Bool, rest),
        'f' => (Type::Float64, rest),
        'y' => (Type::Bytes, rest),
        'Q' => (Type::Quantity, rest),
        'T' => (Type::Time, rest),
        'M' => (Type::MicroTime, rest),
        'D' => (Type::Duration, rest),
        'O' => (Type::IntOrString, rest),
        'R' => (Type::RawExtension, rest),
        'V' => (Type::FieldsV1, rest),
        '[' => {
            let (item, rest) = parse_type(rest);
            (Type::List(Box::new(item)), rest)
        }
        '{' => {
            let (item, rest) = parse_type(rest);
            (Type::Map(Box::new(item)), rest)
        }
        '@' => {
            let (at, rest) = reference(rest);
            (Type::Struct(at), rest)
        }
        'P' => {
            let (at, rest) = reference(rest);
            (Type::StructOrList(at), rest)
        }
        'B' => {
            let (at, rest) = reference(rest);
            (Type::StructOrBool(at), rest)
        }
        'C' => {
            let (at, rest) = reference(rest);
            (Type::StructOrStrings(at), rest)
        }
        _ => (Type::Json, rest),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn kinds_and_fields_are_found() {
        let pod = kind("", "v1", "Pod").unwrap();
        assert_eq!((pod.go_type, pod.name(), pod.has_type_meta), ("v1.Pod", "Pod", true));
        let names: Vec<&str> = pod.fields.iter().map(|field| field.json).collect();
        assert_eq!(names, ["kind", "apiVersion", "metadata", "spec", "status"]);
        let Type::Struct(spec) = &pod.field("spec").unwrap().ty else { panic!("spec is a struct") };
        let containers = spec.get().field("containers").unwrap();
        assert_eq!(containers.go_type, "[]v1.Container");
        assert_eq!(containers.list, ListType::Map(vec!["name"]));
        assert_eq!((containers.patch_strategy, containers.patch_merge_key), ("merge", "name"));
        assert!(kind("", "v1", "Nope").is_none());
        for of in &Schemas::get().structs {
            for (at, field) in of.fields.iter().enumerate() {
                assert_eq!(of.position(field.json), Some(at), "{} of {}", field.json, of.go_type);
            }
            assert_eq!(of.position("noSuchField"), None, "{}", of.go_type);
        }
    }

    #[test]
    fn inlined_structs_are_flattened() {
        let volume = Schemas::get().openapi("io.k8s.api.core.v1.Volume").unwrap();
        let empty_dir = volume.field("emptyDir").unwrap();
        assert_eq!(empty_dir.inlined_in, [2]);
        assert!(empty_dir.pointer);
        assert!(volume.field("-").is_none());
        // What is only ever inlined has the facts of where it went.
        let container = Schemas::get().openapi("io.k8s.api.core.v1.EphemeralContainer").unwrap();
        assert_eq!(container.field("env").unwrap().patch_merge_key, "name");
        assert_eq!(container.required, ["name"]);
        assert_eq!(container.field("imagePullPolicy").unwrap().values, ["Always", "IfNotPresent", "Never"]);
    }

    #[test]
    fn every_served_kind_has_a_type() {
        for resource in crate::resources::all() {
            assert!(kind(&resource.group, &resource.version, &resource.kind).is_some(), "{resource:?}");
        }
    }
}
