//! A CustomResourceDefinition as requests need it: what each version serves, with its schema compiled when the first
//! request asks for it.

use std::sync::{Arc, OnceLock};

use orlop_api::managed::CustomType;
use orlop_api::names;
use orlop_api::resources::{Column, Resource as Facts, Subresource};
use orlop_json::Value;
use orlop_structural::{JsonPath, Malformed, Rules, Schema};

use super::webhook_client::WebhookClient;
use crate::cache::{Entry, Fields};

static NULL: Value = Value::Null;

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

fn flag(value: &Value, field: &str) -> bool {
    value.get(field).and_then(Value::as_bool).unwrap_or(false)
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    let items = value.get(field).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(|item| item.as_str().map(String::from)).collect()
}

/// The paths of the scale subresource, without the leading dot.
#[derive(Clone, Debug)]
pub struct ScalePaths {
    /// Wanted replicas.
    pub spec_replicas: Vec<String>,
    /// Present replicas.
    pub status_replicas: Vec<String>,
    /// The selector as text; empty = none.
    pub selector: Vec<String>,
}

/// A printed column.
#[derive(Debug)]
pub struct PrinterColumn {
    /// `integer`, `date`, …
    pub kind: String,
    /// Where its cells come from.
    pub path: JsonPath,
}

/// What a schema is compiled to.
#[derive(Debug)]
pub struct Compiled {
    /// For pruning, defaulting and validation.
    pub schema: Schema,
    /// For server-side apply.
    pub object_type: CustomType,
    /// The rules, if there are any.
    pub rules: Option<Rules>,
}

/// One version.
#[derive(Debug)]
pub struct Version {
    /// `v1`, …
    pub name: String,
    /// Whether it is served.
    pub served: bool,
    /// Whether it has a `/status`.
    pub status: bool,
    /// Whether it has a `/scale`, and from where.
    pub scale: Option<ScalePaths>,
    /// Printed columns behind the name.
    pub columns: Vec<PrinterColumn>,
    /// Fields to select by: label and path.
    pub selectable: Vec<(Arc<str>, Option<JsonPath>)>,
    /// What users of a deprecated version are told.
    pub deprecation: Option<String>,
    headings: Vec<Column>,
    index: usize,
    compiled: OnceLock<Compiled>,
}

/// Where a conversion webhook is.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// `clientConfig` of the definition.
    pub config: Value,
    /// Versions of ConversionReview that it understands, best first.
    pub review_versions: Vec<String>,
    /// The connection to it.
    pub client: WebhookClient,
}

/// A definition at one revision.
#[derive(Debug)]
pub struct Definition {
    /// Its name: `widgets.example.com`.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Counts the changes of its `spec`.
    pub generation: i64,
    /// API group.
    pub group: String,
    /// Accepted names.
    pub kind: String,
    /// `WidgetList`
    pub list_kind: String,
    /// The name in paths.
    pub plural: String,
    singular: String,
    short_names: Vec<String>,
    categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Every version, in the definition's order.
    pub versions: Vec<Version>,
    /// The version in which objects are stored.
    pub storage_version: String,
    /// Who converts between versions; `None` = nobody: only `apiVersion` changes.
    pub webhook: Option<Webhook>,
    /// Whether it is being deleted: nothing is created any more.
    pub terminating: bool,
    /// The stored definition: schemas are read from it when they are needed.
    entry: Arc<Entry>,
}

const VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
const SUB_VERBS: [&str; 3] = ["get", "patch", "update"];

fn path_steps(path: &str) -> Vec<String> {
    path.trim_start_matches('.').split('.').filter(|step| !step.is_empty()).map(String::from).collect()
}

fn column(name: &str, kind: &str, format: &str, priority: i64) -> Column {
    Column {
        name: name.to_string(),
        kind: kind.to_string(),
        format: format.to_string(),
        priority: i32::try_from(priority).unwrap_or(0),
        description: String::new(),
    }
}

impl Version {
    fn of(version: &Value, index: usize) -> Version {
        let subresources = version.get("subresources").unwrap_or(&NULL);
        let scale = subresources.get("scale").filter(|scale| scale.is_object());
        let mut headings = vec![column("Name", "string", "name", 0)];
        let mut columns = Vec::new();
        let listed = version.get("additionalPrinterColumns").and_then(Value::as_array);
        for listed in listed.into_iter().flatten() {
            // As upstream: from a path that cannot be read on, there are no columns.
            let Ok(path) = JsonPath::parse(text(listed, "jsonPath")) else { break };
            let priority = listed.get("priority").and_then(Value::as_i64).unwrap_or(0);
            let kind = text(listed, "type");
            let mut heading = column(text(listed, "name"), kind, text(listed, "format"), priority);
            heading.description = match text(listed, "description") {
                "" => format!(
                    "Custom resource definition column (in JSONPath format): {}",
                    text(listed, "jsonPath")
                ),
                description => description.to_string(),
            };
            headings.push(heading);
            columns.push(PrinterColumn { kind: kind.to_string(), path });
        }
        if listed.is_none_or(Vec::is_empty)
            && let Ok(path) = JsonPath::parse(".metadata.creationTimestamp")
        {
            headings.push(column("Age", "date", "", 0));
            columns.push(PrinterColumn { kind: "date".to_string(), path });
        }
        let selectable = version.get("selectableFields").and_then(Value::as_array);
        Version {
            name: text(version, "name").to_string(),
            served: flag(version, "served"),
            status: subresources.get("status").is_some_and(|status| !status.is_null()),
            scale: scale.map(|scale| ScalePaths {
                spec_replicas: path_steps(text(scale, "specReplicasPath")),
                status_replicas: path_steps(text(scale, "statusReplicasPath")),
                selector: path_steps(text(scale, "labelSelectorPath")),
            }),
            columns,
            selectable: selectable
                .into_iter()
                .flatten()
                .map(|field| {
                    let path = text(field, "jsonPath");
                    (Arc::from(path.trim_start_matches('.')), JsonPath::parse(path).ok())
                })
                .collect(),
            deprecation: None,
            headings,
            index,
            compiled: OnceLock::new(),
        }
    }

    /// The value of a selectable field as selectors see it; empty when absent.
    pub fn selected(&self, object: &Value, label: &str) -> Option<String> {
        let (_, path) = self.selectable.iter().find(|(known, _)| known.as_ref() == label)?;
        let found = path.as_ref().and_then(|path| path.find(object).first().copied());
        Some(match found {
            None | Some(Value::Null) => String::new(),
            Some(value) => orlop_structural::print_json_path(value),
        })
    }
}

impl Definition {
    /// Reads a stored definition; `None` when none of its names are accepted yet.
    pub fn of(entry: &Arc<Entry>) -> Option<Definition> {
        let object = entry.value();
        let spec = object.get("spec")?;
        let names = object.pointer("/status/acceptedNames").unwrap_or(&NULL);
        if text(names, "kind").is_empty() || text(names, "plural").is_empty() {
            return None;
        }
        let listed = spec.get("versions").and_then(Value::as_array)?;
        let (group, kind) = (text(spec, "group"), text(names, "kind"));
        let mut versions: Vec<Version> =
            listed.iter().enumerate().map(|(at, version)| Version::of(version, at)).collect();
        for (version, raw) in versions.iter_mut().zip(listed) {
            if flag(raw, "deprecated") {
                version.deprecation = Some(match raw.get("deprecationWarning").and_then(Value::as_str) {
                    Some(warning) => warning.to_string(),
                    None => deprecation(group, kind, &version.name, listed),
                });
            }
        }
        let conversion = spec.get("conversion").unwrap_or(&NULL);
        let webhook = conversion.get("webhook").filter(|_| text(conversion, "strategy") == "Webhook");
        Some(Definition {
            name: entry.name().to_string(),
            uid: object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or("").to_string(),
            generation: object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0),
            group: group.to_string(),
            kind: kind.to_string(),
            list_kind: text(names, "listKind").to_string(),
            plural: text(names, "plural").to_string(),
            singular: text(names, "singular").to_string(),
            short_names: texts(names, "shortNames"),
            categories: texts(names, "categories"),
            namespaced: text(spec, "scope") == "Namespaced",
            storage_version: listed
                .iter()
                .find(|version| flag(version, "storage"))
                .map(|version| text(version, "name").to_string())
                .unwrap_or_default(),
            versions,
            webhook: webhook.map(|webhook| Webhook {
                config: webhook.get("clientConfig").cloned().unwrap_or_default(),
                review_versions: texts(webhook, "conversionReviewVersions"),
                client: WebhookClient::default(),
            }),
            terminating: object.pointer("/status/conditions").and_then(Value::as_array).is_some_and(|all| {
                all.iter().any(|c| text(c, "type") == "Terminating" && text(c, "status") == "True")
            }),
            entry: entry.clone(),
        })
    }

    /// The revision of the stored definition.
    pub fn revision(&self) -> u64 {
        self.entry.revision
    }

    /// The version of this name.
    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.name == name)
    }

    /// `example.com/v1`
    pub fn api_version(&self, version: &str) -> String {
        format!("{}/{version}", self.group)
    }

    /// The version's `openAPIV3Schema` as it was written.
    pub fn raw_schema(&self, version: &Version) -> Value {
        let mut object = self.entry.value();
        let pointer = format!("/spec/versions/{}/schema/openAPIV3Schema", version.index);
        object.pointer_mut(&pointer).map(Value::take).unwrap_or_default()
    }

    /// The version's schema, compiled by the first who asks.
    pub fn compiled<'a>(&'a self, version: &'a Version) -> &'a Compiled {
        version.compiled.get_or_init(|| {
            let raw = self.raw_schema(version);
            let schema = Schema::of(&raw);
            let object_type = orlop_structural::object_type(&schema);
            Compiled { schema, object_type, rules: Rules::compile(&raw) }
        })
    }

    /// The row of discovery for a version.
    pub fn facts(&self, version: &Version) -> Facts {
        let mut facts = Facts::default();
        facts.group = self.group.clone();
        facts.version = version.name.clone();
        facts.plural = self.plural.clone();
        facts.singular = self.singular.clone();
        facts.kind = self.kind.clone();
        facts.namespaced = self.namespaced;
        facts.verbs = VERBS.map(String::from).to_vec();
        facts.short_names = self.short_names.clone();
        facts.categories = self.categories.clone();
        facts.columns = version.headings.clone();
        facts.storage_version_hash = self.storage_version_hash();
        let subresource = |name: &str, kind: &str, group: Option<&str>| Subresource {
            name: name.to_string(),
            kind: kind.to_string(),
            verbs: SUB_VERBS.map(String::from).to_vec(),
            group: group.map(String::from),
            version: group.map(|_| "v1".to_string()),
        };
        if version.status {
            facts.subresources.push(subresource("status", &self.kind, None));
        }
        if version.scale.is_some() {
            facts.subresources.push(subresource("scale", "Scale", Some("autoscaling")));
        }
        facts.field_labels = vec!["metadata.name".to_string()];
        if self.namespaced {
            facts.field_labels.push("metadata.namespace".to_string());
        }
        facts.field_labels.extend(version.selectable.iter().map(|(label, _)| label.to_string()));
        facts
    }

    /// Discovery's hash of what is stored: eight bytes of a digest, as upstream makes it.
    fn storage_version_hash(&self) -> String {
        use base64::Engine as _;
        use sha2::Digest as _;
        let what = format!("{}/{}/{}", self.group, self.storage_version, self.kind);
        base64::engine::general_purpose::STANDARD.encode(&sha2::Sha256::digest(what)[..8])
    }

    /// The prefix of the storage keys of its objects.
    pub fn prefix(&self) -> String {
        format!("/registry/{}/{}/", self.group, self.plural)
    }

    /// Whether objects look the same under another definition: their cache may stay.
    pub fn stores_like(&self, other: &Definition) -> bool {
        let same = |a: &Version, b: &Version| {
            a.name == b.name && a.selectable == b.selectable && self.raw_schema(a) == other.raw_schema(b)
        };
        self.uid == other.uid
            && self.storage_version == other.storage_version
            && self.versions.len() == other.versions.len()
            && self.versions.iter().zip(&other.versions).all(|(a, b)| same(a, b))
    }

    /// Brings a stored object into the form that its version has today; says whether anything changed.
    pub fn normalise(&self, object: &mut Value) -> bool {
        let api_version = text(object, "apiVersion").to_string();
        let version = api_version.rsplit('/').next().unwrap_or("");
        let Some(version) = self.version(version) else { return false };
        let schema = &self.compiled(version).schema;
        let before = object.clone();
        orlop_structural::prune(object, schema);
        orlop_structural::drop_nulls(object, schema);
        if let Err(error) = orlop_structural::coerce_metadata(object, schema, Malformed::Drop) {
            tracing::warn!(%error, definition = self.name, "metadata of a stored object cannot be read");
        }
        orlop_structural::fill_defaults(object, schema);
        *object != before
    }

    /// Selectable fields of a stored object, of all versions.
    pub fn fields_of(&self, object: &Value) -> Fields {
        let mut fields: Vec<(Arc<str>, Box<str>)> = Vec::new();
        for version in &self.versions {
            for (label, _) in &version.selectable {
                if !fields.iter().any(|(known, _)| known == label)
                    && let Some(value) = version.selected(object, label)
                {
                    fields.push((label.clone(), value.into()));
                }
            }
        }
        fields.into()
    }
}

/// Upstream's words about a deprecated version that has none of its own.
fn deprecation(group: &str, kind: &str, version: &str, all: &[Value]) -> String {
    let newer = all
        .iter()
        .filter(|other| flag(other, "served") && !flag(other, "deprecated"))
        .map(|other| text(other, "name"))
        .filter(|other| names::compare_versions(version, other).is_lt())
        .max_by(|a, b| names::compare_versions(a, b));
    let mut words = format!("{group}/{version} {kind} is deprecated");
    if let Some(newer) = newer {
        words.push_str(&format!("; use {group}/{newer} {kind}"));
    }
    words
}
