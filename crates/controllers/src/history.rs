//! What a workload's pod template used to be, kept in ControllerRevisions: naming, comparing, creating, adopting and
//! cutting the history. Answers to upstream's `pkg/controller/history`.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{Api, DeleteParams, PostParams};
use orlop_client::Informer;
use serde_json::{Value, json};

use crate::claim::{Namespaced, claim_all};
use crate::error::{Error, is_already_exists, unless_gone};
use crate::objects::{Labels, Meta, claimable, controller_ref};

/// On a pod: which revision it was made from.
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";
/// A name is tried with so many hashes; that many equal hashes are no accident.
const MAX_COLLISIONS: usize = 50;

/// The patch that brings a workload's template back: what a revision stores and `kubectl rollout undo` applies.
pub(crate) fn template_patch(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    if let Some(fields) = template.as_object_mut() {
        fields.insert("$patch".to_owned(), json!("replace"));
    }
    let mut patch = json!({"spec": {"template": template}});
    patch.sort_all_objects();
    patch
}

/// The template that a revision stores; `None` when it holds something else.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = data(revision).pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

fn data(revision: &ControllerRevision) -> &Value {
    revision.data.as_ref().map_or(&Value::Null, |data| &data.0)
}

/// The hash of a revision's data, as upstream computes it: FNV-1 over the JSON text as Go writes it, and the number of
/// collisions. The same template gets the same name here and there.
pub(crate) fn data_hash(data: &Value, collisions: i32) -> String {
    let mut sorted = data.clone();
    sorted.sort_all_objects();
    let text = sorted.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    let bytes = text.bytes().chain(collisions.to_string().into_bytes());
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(byte));
    safe_encode(&hash.to_string())
}

/// Spells a number in an alphabet that makes no words and has no look-alikes.
pub(crate) fn safe_encode(text: &str) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    text.bytes().map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])).collect()
}

/// `<workload>-<hash>`, the first part cut to leave room for the hash.
fn revision_name(workload: &str, hash: &str) -> String {
    format!("{}-{hash}", workload.get(..223).unwrap_or(workload))
}

/// A revision of `owner` that stores `data`, marked with its hash under `label`.
pub(crate) fn new_revision<O: Namespaced>(
    owner: &O,
    template: &PodTemplateSpec,
    data: &Value,
    (label, hash): (&str, &str),
    revision: i64,
) -> ControllerRevision {
    let mut labels: Labels =
        template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(label.to_owned(), hash.to_owned());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(revision_name(owner.name(), hash)),
            namespace: Some(owner.namespace().to_owned()),
            labels: Some(labels),
            annotations: Meta::meta(owner).annotations.clone(),
            owner_references: Some(vec![controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data.clone())),
        revision,
    }
}

/// How the revision of a workload's present template comes about.
#[derive(Debug, PartialEq)]
pub(crate) enum Newest {
    /// It is the newest already.
    Is(Arc<ControllerRevision>),
    /// It is an old one, which becomes the newest again under this number: a rollback.
    Renumber(Arc<ControllerRevision>, i64),
    /// There is none; it gets this number.
    Create(i64),
}

/// Finds the revision with `wanted` data. `revisions` are [sorted](sort).
pub(crate) fn newest(revisions: &[Arc<ControllerRevision>], wanted: &Value) -> Newest {
    let next = revisions.last().map_or(1, |last| last.revision + 1);
    match revisions.iter().rposition(|revision| data(revision) == wanted) {
        Some(place) if place + 1 == revisions.len() => Newest::Is(revisions[place].clone()),
        Some(place) => Newest::Renumber(revisions[place].clone(), next),
        None => Newest::Create(next),
    }
}

/// Oldest first.
pub(crate) fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    revisions.sort_by(|a, b| {
        let by_age = || a.created().cmp(&b.created()).then_with(|| a.name().cmp(b.name()));
        a.revision.cmp(&b.revision).then_with(by_age)
    });
}

/// Reads and writes the histories of one controller's workloads.
pub(crate) struct History {
    pub(crate) revisions: Informer<ControllerRevision>,
    pub(crate) client: kube::Client,
}

impl History {
    /// The revisions of `owner`, oldest first; adopts those that nobody controls.
    pub(crate) async fn of<O: Namespaced>(
        &self,
        owner: &O,
        selector: &LabelSelector,
    ) -> Result<Vec<Arc<ControllerRevision>>, Error> {
        let candidates = claimable(&self.revisions, Meta::meta(owner));
        let mut claimed = claim_all(&self.client, owner, selector, candidates, |_| true).await?;
        sort(&mut claimed);
        Ok(claimed)
    }

    fn api(&self, namespace: &str) -> Api<ControllerRevision> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates the revision that `build` makes for a number of collisions. A name that is taken by the same data is
    /// ours, which the cache does not show yet; taken by other data, it costs one more collision.
    pub(crate) async fn create(
        &self,
        collisions: &mut i32,
        build: impl Fn(i32) -> ControllerRevision,
    ) -> Result<ControllerRevision, Error> {
        for _ in 0..MAX_COLLISIONS {
            let wanted = build(*collisions);
            let api = self.api(wanted.namespace());
            match api.create(&PostParams::default(), &wanted).await {
                Ok(created) => return Ok(created),
                Err(error) if is_already_exists(&error) => {
                    let present = api.get(wanted.name()).await?;
                    if data(&present) == data(&wanted) {
                        return Ok(present);
                    }
                    *collisions += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Object(format!("no free name for a revision after {MAX_COLLISIONS} collisions")))
    }

    pub(crate) async fn renumber(
        &self,
        revision: &ControllerRevision,
        number: i64,
    ) -> Result<ControllerRevision, Error> {
        let mut changed = revision.clone();
        changed.revision = number;
        Ok(self.api(revision.namespace()).replace(revision.name(), &PostParams::default(), &changed).await?)
    }

    pub(crate) async fn delete(&self, revision: &ControllerRevision) -> Result<(), Error> {
        Ok(unless_gone(
            self.api(revision.namespace()).delete(revision.name(), &DeleteParams::default()).await,
        )?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objects::testing::object;
    use pretty_assertions::assert_eq;

    fn revision(name: &str, number: i64, data: Value) -> Arc<ControllerRevision> {
        Arc::new(object(json!({"metadata": {"name": name}, "revision": number, "data": data})))
    }

    #[test]
    fn the_present_template_finds_its_revision() {
        let (one, two) = (json!({"spec": 1}), json!({"spec": 2}));
        let check = |revisions: &[(&str, i64, &Value)], expected: &str| {
            let mut all: Vec<_> = revisions
                .iter()
                .map(|(name, number, data)| revision(name, *number, (*data).clone()))
                .collect();
            sort(&mut all);
            let shown = match newest(&all, &one) {
                Newest::Is(revision) => format!("is {}", revision.name()),
                Newest::Renumber(revision, number) => format!("renumber {} to {number}", revision.name()),
                Newest::Create(number) => format!("create {number}"),
            };
            assert_eq!(shown, expected, "{revisions:?}");
        };
        check(&[], "create 1");
        check(&[("a", 1, &one)], "is a");
        check(&[("b", 2, &one), ("a", 1, &two)], "is b");
        check(&[("a", 1, &one), ("b", 2, &two)], "renumber a to 3");
        check(&[("a", 1, &one), ("b", 3, &one), ("c", 7, &two)], "renumber b to 8");
        check(&[("a", 4, &two)], "create 5");
    }

    #[test]
    fn a_template_comes_back_from_its_revision() {
        let template: PodTemplateSpec = object(json!({"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "web:1"}]}}));
        let patch = template_patch(&template);
        assert_eq!(
            patch.to_string(),
            r#"{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"image":"web:1","name":"c"}]}}}}"#
        );
        assert_eq!(template_of(&revision("a", 1, patch)), Some(template));
        assert_eq!(template_of(&revision("a", 1, json!({"spec": {}}))), None);
    }

    #[test]
    fn hashes_depend_on_data_and_collisions_only() {
        let (one, same) = (json!({"a": 1, "b": "<&>"}), json!({"b": "<&>", "a": 1}));
        assert_eq!(data_hash(&one, 0), data_hash(&same, 0));
        assert_ne!(data_hash(&one, 0), data_hash(&one, 1));
        assert_eq!(data_hash(&json!({}), 0), safe_encode(&fnv1(b"{}0").to_string()));
        assert_eq!(revision_name(&"a".repeat(250), "bcd").len(), 227);
    }

    fn fnv1(bytes: &[u8]) -> u32 {
        let mut hash: u64 = 2_166_136_261;
        for byte in bytes {
            hash = (hash * 16_777_619) % (1 << 32);
            hash ^= u64::from(*byte);
        }
        u32::try_from(hash).unwrap()
    }
}
