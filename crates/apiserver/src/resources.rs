//! The table of served resources: a row of `orlop_api::resources`, its strategy and its cache.
//!
//! A built-in row is served when its kind has a strategy in `orlop_kinds` or is one of the virtual kinds (reviews,
//! bindings) that this crate answers itself. Other rows (custom resources) come and go while the server runs: readers
//! hold a snapshot of the table, which costs a pointer; a change makes a new one.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use orlop_api::managed::{ObjectType, Versions};
use orlop_api::resources::Resource as Facts;
use orlop_api::resources::Subresource;
use orlop_api::schema::Struct;
use orlop_json::Value;
use orlop_kinds::{Conversion, Strategy};

use crate::cache::{Cache, Caches, Fields};
use crate::custom::CustomKind;
use crate::runtime_config::RuntimeConfig;

/// The versions in which a built-in kind is served, for field managers who speak another one than a request.
#[derive(Debug)]
struct BuiltinVersions {
    kind: String,
    /// The one whose objects are stored: `autoscaling/v2`.
    stored: String,
    /// The others.
    converted: Vec<String>,
}

impl BuiltinVersions {
    fn conversion(&self, version: &str) -> Option<&'static dyn Conversion> {
        let (group, version) = orlop_api::meta::split_api_version(version);
        orlop_kinds::conversion(group, version, &self.kind)
    }
}

impl Versions for BuiltinVersions {
    fn convert(&self, object: &Value, version: &str) -> Option<(Value, ObjectType<'_>)> {
        if version != self.stored && !self.converted.iter().any(|served| served == version) {
            return None;
        }
        let stored = match self.conversion(orlop_api::meta::api_version(object)) {
            Some(conversion) => conversion.to_stored(object.clone()),
            None => object.clone(),
        };
        let converted = match self.conversion(version) {
            Some(conversion) => conversion.to_served(stored),
            None => stored,
        };
        let (group, number) = orlop_api::meta::split_api_version(version);
        Some((converted, orlop_api::schema::kind(group, number, &self.kind).into()))
    }
}

/// The strategy of a resource: a table's own, or one that came with a definition.
#[derive(Clone)]
pub enum StrategyRef {
    /// Of a built-in kind.
    Builtin(&'static dyn Strategy),
    /// Of a kind that was defined while the server ran.
    Defined(Arc<dyn Strategy>),
}

impl std::ops::Deref for StrategyRef {
    type Target = dyn Strategy;

    fn deref(&self) -> &(dyn Strategy + 'static) {
        match self {
            StrategyRef::Builtin(strategy) => *strategy,
            StrategyRef::Defined(strategy) => strategy.as_ref(),
        }
    }
}

/// A resource that is served.
pub struct Resource {
    /// Its row.
    pub facts: Facts,
    /// How its objects behave; `None` for virtual kinds, which are not stored.
    pub strategy: Option<StrategyRef>,
    /// Its objects; `None` for virtual kinds.
    pub cache: Option<Arc<Cache>>,
    /// Between what is served and what is stored; `None` when they are the same.
    pub conversion: Option<&'static dyn Conversion>,
    /// The kind's other versions; `None` when there is only this.
    pub versions: Option<Arc<dyn Versions>>,
    /// The type of its objects, when it is built in.
    pub schema: Option<&'static Struct>,
    /// The definition behind it, when it is a custom resource.
    pub custom: Option<Arc<CustomKind>>,
}

impl std::ops::Deref for Resource {
    type Target = Facts;

    fn deref(&self) -> &Facts {
        &self.facts
    }
}

impl Resource {
    /// How its objects behave; `None` for virtual kinds.
    pub fn strategy(&self) -> Option<&(dyn Strategy + 'static)> {
        self.strategy.as_deref()
    }

    /// Gives an object that is settled the form in which it comes back from storage. Upstream keeps most kinds in protobuf,
    /// which knows no empty lists, and those of its two additional servers in JSON.
    pub fn as_stored(&self, object: &mut Value) {
        let in_json = matches!(self.group.as_str(), "apiextensions.k8s.io" | "apiregistration.k8s.io");
        if let Some(schema) = self.schema.filter(|_| !in_json) {
            orlop_api::decode::forget_empty_lists(object, schema);
        }
        crate::registry::object::order(object);
    }

    /// What server-side apply knows of its objects.
    pub fn object_type(&self) -> ObjectType<'_> {
        match &self.custom {
            Some(kind) => ObjectType::Custom(&kind.compiled().object_type, kind.version().status),
            None => self.schema.into(),
        }
    }

    /// The kind of its lists.
    pub fn list_kind(&self) -> String {
        match &self.custom {
            Some(kind) => kind.definition.list_kind.clone(),
            None => format!("{}List", self.kind),
        }
    }

    /// The stored form of a served object.
    pub fn to_stored(&self, object: Value) -> Value {
        match self.conversion {
            Some(conversion) => conversion.to_stored(object),
            None => object,
        }
    }

    /// The served form of a stored object.
    pub fn to_served(&self, object: Value) -> Value {
        match self.conversion {
            Some(conversion) => conversion.to_served(object),
            None => object,
        }
    }

    /// Whether the resource answers a verb.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// The subresource of this name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// The end of the storage key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced { format!("{namespace}/{name}") } else { name.to_string() }
    }
}

/// Kinds that exist only as requests and answers; one that is read has a strategy to print it with.
const VIRTUAL: [(&str, &str); 8] = [
    ("", "Binding"),
    ("", "ComponentStatus"),
    ("authentication.k8s.io", "SelfSubjectReview"),
    ("authentication.k8s.io", "TokenReview"),
    ("authorization.k8s.io", "LocalSubjectAccessReview"),
    ("authorization.k8s.io", "SelfSubjectAccessReview"),
    ("authorization.k8s.io", "SelfSubjectRulesReview"),
    ("authorization.k8s.io", "SubjectAccessReview"),
];

/// Upstream's storage prefix of a resource.
fn storage_prefix(facts: &Facts) -> String {
    let name = match (facts.group.as_str(), facts.plural.as_str()) {
        ("", "services") => "services/specs",
        ("", "endpoints") => "services/endpoints",
        ("", "nodes") => "minions",
        ("networking.k8s.io", "ingresses") => "ingress",
        (_, plural) => plural,
    };
    format!("/registry/{name}/")
}

/// The versions of a built-in kind that is served in several.
fn builtin_versions(facts: &Facts) -> Option<Arc<dyn Versions>> {
    let own = orlop_kinds::conversion(&facts.group, &facts.version, &facts.kind);
    let (group, kind) = match own.map(Conversion::stored_kind) {
        Some((group, kind)) => (group, kind),
        None => (facts.group.as_str(), facts.kind.as_str()),
    };
    let (mut stored, mut converted) = (String::new(), Vec::new());
    for row in orlop_api::resources::all() {
        match orlop_kinds::conversion(&row.group, &row.version, &row.kind) {
            Some(other) if other.stored_kind() == (group, kind) => converted.push(row.group_version()),
            None if (row.group.as_str(), row.kind.as_str()) == (group, kind) => stored = row.group_version(),
            _ => {}
        }
    }
    if converted.is_empty() {
        return None;
    }
    Some(Arc::new(BuiltinVersions { kind: kind.to_owned(), stored, converted }))
}

/// Storage prefix, group and plural of every built-in resource.
pub fn storage_prefixes() -> Vec<(String, String, String)> {
    orlop_api::resources::all()
        .iter()
        // Events of the other group are stored as core Events.
        .filter(|row| row.group != "events.k8s.io")
        .map(|row| (storage_prefix(row), row.group.clone(), row.plural.clone()))
        .collect()
}

/// One state of the table.
#[derive(Default)]
pub struct Table {
    /// Every resource, in the order of discovery.
    pub list: Vec<Arc<Resource>>,
    by_path: HashMap<String, Arc<Resource>>,
    by_kind: HashMap<String, Arc<Resource>>,
    /// How often the table has changed: what was derived from it is stale when this differs.
    pub generation: u64,
}

fn path_key(group: &str, version: &str, plural: &str) -> String {
    [group, "/", version, "/", plural].concat()
}

impl Table {
    fn index(&mut self, resource: &Arc<Resource>) {
        let path = path_key(&resource.group, &resource.version, &resource.plural);
        self.by_path.insert(path, resource.clone());
        let kind = [&resource.group, "/", resource.kind.as_str()].concat();
        self.by_kind.entry(kind).or_insert(resource.clone());
    }

    fn of(list: Vec<Arc<Resource>>, generation: u64) -> Table {
        let mut table = Table { generation, ..Table::default() };
        for resource in &list {
            table.index(resource);
        }
        table.list = list;
        table
    }
}

/// All served resources.
pub struct Resources {
    table: ArcSwap<Table>,
    changed: tokio::sync::watch::Sender<u64>,
}

impl Resources {
    /// Makes a cache, with room for `capacity` recent changes, for every stored kind that shall be served.
    pub fn load(caches: &Caches, capacity: usize, config: &RuntimeConfig) -> Resources {
        let mut list = Vec::new();
        for row in orlop_api::resources::all().iter().filter(|row| config.serves(row)) {
            let facts = row.clone();
            let is_virtual = VIRTUAL.contains(&(facts.group.as_str(), facts.kind.as_str()));
            let strategy = orlop_kinds::strategy(&facts.group, &facts.kind);
            if strategy.is_none() && !is_virtual {
                continue;
            }
            let conversion = orlop_kinds::conversion(&facts.group, &facts.version, &facts.kind);
            // The stored form decides what can be selected.
            let stored = match conversion.map(Conversion::stored_kind) {
                Some((group, kind)) => orlop_kinds::strategy(group, kind),
                None => strategy,
            };
            let strategy = conversion.map(Conversion::strategy).or(strategy);
            let cache = stored.filter(|_| !is_virtual).map(|strategy| {
                let labels: Vec<Arc<str>> = facts
                    .field_labels
                    .iter()
                    .filter(|l| !matches!(l.as_str(), "metadata.name" | "metadata.namespace"))
                    .map(|l| Arc::from(l.as_str()))
                    .collect();
                let fields_of = move |object: &Value| -> Fields {
                    labels
                        .iter()
                        .filter_map(|label| {
                            Some((label.clone(), strategy.selectable_field(object, label)?.into()))
                        })
                        .collect()
                };
                caches.add(&storage_prefix(&facts), capacity, Box::new(fields_of))
            });
            let schema = orlop_api::schema::kind(&facts.group, &facts.version, &facts.kind);
            let strategy = strategy.map(StrategyRef::Builtin);
            let versions = builtin_versions(&facts);
            list.push(Arc::new(Resource {
                facts,
                strategy,
                cache,
                conversion,
                versions,
                schema,
                custom: None,
            }));
        }
        Resources { table: ArcSwap::from_pointee(Table::of(list, 1)), changed: Default::default() }
    }

    /// The table as it is now.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Takes out the resources for which `gone` is true and adds `new` ones behind the others.
    pub fn replace(&self, gone: impl Fn(&Resource) -> bool, new: &[Arc<Resource>]) {
        self.table.rcu(|table| {
            let mut list: Vec<Arc<Resource>> =
                table.list.iter().filter(|resource| !gone(resource)).cloned().collect();
            list.extend(new.iter().cloned());
            Table::of(list, table.generation + 1)
        });
        self.changed.send_replace(self.table.load().generation);
    }

    /// Tells of changes of the table.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The resource at a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.table.load().by_path.get(&path_key(group, version, plural)).cloned()
    }

    /// The resource of a kind; of several versions, the one that is listed first.
    pub fn of_kind(&self, group: &str, kind: &str) -> Option<Arc<Resource>> {
        self.table.load().by_kind.get(&[group, "/", kind].concat()).cloned()
    }

    /// The cache of a kind.
    pub fn cache(&self, group: &str, kind: &str) -> Option<Arc<Cache>> {
        self.of_kind(group, kind)?.cache.clone()
    }
}
