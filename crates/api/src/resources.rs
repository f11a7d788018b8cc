//! What a default server serves: one row a resource, with its subresources, field labels and printed columns.

use std::sync::LazyLock;

use serde::Deserialize;

static RESOURCES: LazyLock<Vec<Resource>> = LazyLock::new(|| {
    // A row that cannot be read would be a broken build, which the test below finds.
    include_str!("../data/resources.jsonl")
        .lines()
        .filter_map(|line| orlop_json::from_str(line).ok())
        .collect()
});

/// A served resource.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    /// The API group; empty = core.
    pub group: String,
    /// `v1`, …
    pub version: String,
    /// The name in paths: `pods`.
    pub plural: String,
    /// The name for one: `pod`.
    pub singular: String,
    /// The kind: `Pod`.
    pub kind: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// What can be asked: `get`, `list`, …
    pub verbs: Vec<String>,
    /// kubectl's short names.
    pub short_names: Vec<String>,
    /// Groups of resources: `all`.
    pub categories: Vec<String>,
    /// Subresources.
    pub subresources: Vec<Subresource>,
    /// Discovery's hash of the stored type; empty when nothing is stored.
    #[serde(default)]
    pub storage_version_hash: String,
    /// The columns of Table answers.
    pub columns: Vec<Column>,
    /// The labels that field selectors may use.
    pub field_labels: Vec<String>,
    /// Upstream's refusal of the unknown label `spec.containers`; a pattern for other labels.
    #[serde(default)]
    unsupported_field_label_message: String,
}

/// A subresource.
#[derive(Clone, Debug, Deserialize)]
pub struct Subresource {
    /// `status`, `scale`, …
    pub name: String,
    /// The kind it speaks.
    pub kind: String,
    /// What can be asked.
    pub verbs: Vec<String>,
    /// The kind's group, where it differs from the resource's.
    pub group: Option<String>,
    /// The kind's version, where it differs from the resource's.
    pub version: Option<String>,
}

/// A column of Table answers.
#[derive(Clone, Debug, Deserialize)]
pub struct Column {
    /// The heading.
    pub name: String,
    /// `string`, `integer`, `date`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// `name` for the object's name, else mostly empty.
    pub format: String,
    /// 0 = always shown; higher = only in wide output.
    pub priority: i32,
    /// What it says; empty for the heading's own words.
    #[serde(default)]
    pub description: String,
}

impl Resource {
    /// `apps/v1`, `v1`.
    pub fn group_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Upstream's refusal of a field label that this resource does not know.
    pub fn unsupported_field_label(&self, label: &str) -> String {
        if self.unsupported_field_label_message.is_empty() {
            return format!("field label not supported: {label}");
        }
        self.unsupported_field_label_message.replace("spec.containers", label)
    }
}

/// All resources, in the order of discovery.
pub fn all() -> &'static [Resource] {
    &RESOURCES
}

/// The resource at a path: `find("apps", "v1", "deployments")`.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.plural == plural && r.group == group && r.version == version)
}

/// The resource of a kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.kind == kind && r.group == group && r.version == version)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_row_is_read() {
        assert_eq!(all().len(), include_str!("../data/resources.jsonl").lines().count());
        let pods = find("", "v1", "pods").unwrap();
        assert!(
            pods.namespaced
                && pods.columns[0].name == "Name"
                && pods.field_labels.iter().any(|l| l == "spec.nodeName")
        );
        assert_eq!(find_kind("apps", "v1", "Deployment").unwrap().plural, "deployments");
        assert_eq!(
            find("batch", "v1", "jobs").unwrap().unsupported_field_label("x"),
            "field label \"x\" not supported for Job"
        );
    }
}
