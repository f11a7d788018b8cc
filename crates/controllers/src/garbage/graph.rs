//! Who owns whom, as far as the watches tell: objects by uid, with their owners and dependents. Answers to upstream's
//! `GraphBuilder`. Pure: it only says which objects deserve a look.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::discovery::Resource;

pub(crate) const ORPHAN: &str = "orphan";
pub(crate) const FOREGROUND: &str = "foregroundDeletion";

/// Where an object is found.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) resource: Arc<Resource>,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

#[derive(Debug)]
pub(crate) struct Node {
    /// `None` for an owner that is only known from its dependents' references.
    pub(crate) place: Option<Place>,
    pub(crate) owners: Vec<OwnerReference>,
    pub(crate) dependents: HashSet<String>,
    /// It has a deletion timestamp.
    pub(crate) deleting: bool,
    /// It waits for its dependents to be deleted first.
    pub(crate) deleting_dependents: bool,
    orphaning: bool,
}

/// What to look at after a change.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Look {
    /// Objects that may have to be deleted, by uid.
    pub(crate) delete: Vec<String>,
    /// Owners whose dependents shall be set free, by uid.
    pub(crate) orphan: Vec<String>,
    /// Objects that name an owner of another namespace, with the uid of that owner.
    pub(crate) invalid: Vec<(String, String)>,
}

#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: HashMap<String, Node>,
}

fn has(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|present| present == finalizer)
}

impl Graph {
    pub(crate) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// An object is there, in this state.
    pub(crate) fn seen(&mut self, place: Place, meta: &ObjectMeta) -> Look {
        let mut look = Look::default();
        let Some(uid) = meta.uid.clone() else { return look };
        let owners = meta.owner_references.clone().unwrap_or_default();
        let deleting = meta.deletion_timestamp.is_some();
        let known = self.nodes.entry(uid.clone()).or_insert_with(Node::unknown);
        let before = std::mem::replace(&mut known.owners, owners.clone());
        known.place = Some(place.clone());
        known.deleting = deleting;
        let begins_orphaning = deleting && has(meta, ORPHAN) && !known.orphaning;
        known.orphaning = deleting && has(meta, ORPHAN);
        let begins_waiting = deleting && has(meta, FOREGROUND) && !known.deleting_dependents;
        known.deleting_dependents = deleting && has(meta, FOREGROUND);
        let dependents: Vec<_> = known.dependents.iter().cloned().collect();

        for owner in owners.iter().filter(|owner| !before.iter().any(|old| old.uid == owner.uid)) {
            let node = self.nodes.entry(owner.uid.clone()).or_insert_with(|| {
                // Nobody has seen this owner yet: it may be gone for good.
                look.delete.push(owner.uid.clone());
                Node::unknown()
            });
            node.dependents.insert(uid.clone());
            if let Some(place_of_owner) = &node.place
                && place_of_owner.resource.namespaced
                && place_of_owner.namespace != place.namespace
            {
                look.invalid.push((uid.clone(), owner.uid.clone()));
                look.delete.push(uid.clone());
            }
            // The owner ends with its dependents, and this one came late.
            if node.deleting_dependents {
                look.delete.push(uid.clone());
            }
        }
        for old in &before {
            let now = owners.iter().find(|owner| owner.uid == old.uid);
            let released = old.block_owner_deletion == Some(true)
                && now.is_none_or(|owner| owner.block_owner_deletion != Some(true));
            let Some(node) = self.nodes.get_mut(&old.uid) else { continue };
            if now.is_none() {
                node.dependents.remove(&uid);
            }
            if released && node.deleting_dependents {
                look.delete.push(old.uid.clone());
            }
        }
        if begins_orphaning {
            look.orphan.push(uid);
        } else if begins_waiting {
            look.delete.extend(dependents);
            look.delete.push(uid);
        }
        look
    }

    /// An object is gone: for certain, by its watch or by a live look.
    pub(crate) fn gone(&mut self, uid: &str) -> Look {
        let mut look = Look::default();
        let Some(node) = self.nodes.remove(uid) else { return look };
        for owner in &node.owners {
            let Some(owner_node) = self.nodes.get_mut(&owner.uid) else { continue };
            owner_node.dependents.remove(uid);
            if owner_node.deleting_dependents {
                look.delete.push(owner.uid.clone());
            }
            if owner_node.place.is_none() && owner_node.dependents.is_empty() {
                self.nodes.remove(&owner.uid);
            }
        }
        if !node.dependents.is_empty() {
            // Keeps the edges: the dependents still name it.
            let dependents = node.dependents;
            look.delete.extend(dependents.iter().cloned());
            self.nodes.insert(uid.to_owned(), Node { dependents, ..Node::unknown() });
        }
        look
    }

    /// The dependents that hold up the foreground deletion of `uid`.
    pub(crate) fn blocking(&self, uid: &str) -> Vec<String> {
        let Some(node) = self.nodes.get(uid) else { return Vec::new() };
        let blocks = |dependent: &&String| {
            self.nodes.get(*dependent).is_some_and(|node| {
                node.owners.iter().any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
            })
        };
        node.dependents.iter().filter(blocks).cloned().collect()
    }

    /// Whether every owner of `uid` is there and stays, so that no request is needed to know that it stays too. Should an
    /// owner go, its watch will tell.
    pub(crate) fn is_settled(&self, uid: &str) -> bool {
        let Some(node) = self.nodes.get(uid) else { return false };
        let Some(place) = &node.place else { return false };
        let stays = |owner: &OwnerReference| {
            self.nodes.get(&owner.uid).is_some_and(|node| {
                let reachable = node
                    .place
                    .as_ref()
                    .is_some_and(|owner| !owner.resource.namespaced || owner.namespace == place.namespace);
                reachable && !node.deleting
            })
        };
        !node.deleting && node.owners.iter().all(stays)
    }

    /// Whether a dependent of `uid` waits for its own dependents, as it does when owners form a ring.
    pub(crate) fn in_ring(&self, uid: &str) -> bool {
        let dependents = self.nodes.get(uid).into_iter().flat_map(|node| &node.dependents);
        dependents.filter_map(|dependent| self.nodes.get(dependent)).any(|node| node.deleting_dependents)
    }

    /// The reference to `owner` as one of its dependents has it, with where that dependent is.
    pub(crate) fn reference_to(&self, owner: &str) -> Option<(OwnerReference, Place)> {
        self.nodes.get(owner)?.dependents.iter().find_map(|dependent| {
            let node = self.nodes.get(dependent)?;
            let reference = node.owners.iter().find(|reference| reference.uid == owner)?;
            Some((reference.clone(), node.place.clone()?))
        })
    }
}

impl Node {
    fn unknown() -> Self {
        Self {
            place: None,
            owners: Vec::new(),
            dependents: HashSet::new(),
            deleting: false,
            deleting_dependents: false,
            orphaning: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;
    use kube::api::ApiResource;
    use serde_json::{Value, json};

    fn place(namespace: &str) -> Place {
        let api = ApiResource {
            group: String::new(),
            version: "v1".into(),
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            plural: "configmaps".into(),
        };
        let resource = Arc::new(Resource { api, namespaced: true, verbs: vec![] });
        Place { resource, namespace: namespace.into(), name: "x".into() }
    }

    fn meta(uid: &str, owners: &[(&str, bool)], extra: Value) -> ObjectMeta {
        let references: Vec<_> = owners
            .iter()
            .map(|(uid, block)| {
                json!({"apiVersion": "v1", "kind": "ConfigMap",
            "name": "o", "uid": uid, "blockOwnerDeletion": block})
            })
            .collect();
        let mut meta = json!({"uid": uid, "name": uid, "ownerReferences": references});
        if let (Some(meta), Some(extra)) = (meta.as_object_mut(), extra.as_object()) {
            meta.extend(extra.clone());
        }
        object(meta)
    }

    fn dying(finalizer: &str) -> Value {
        json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [finalizer]})
    }

    fn sorted(mut look: Look) -> Look {
        look.delete.sort();
        look
    }

    fn deletes(uids: &[&str]) -> Look {
        Look { delete: uids.iter().map(|uid| (*uid).to_owned()).collect(), ..Look::default() }
    }

    #[test]
    fn background() {
        let mut graph = Graph::default();
        assert_eq!(graph.seen(place("a"), &meta("o", &[], json!({}))), Look::default());
        assert_eq!(graph.seen(place("a"), &meta("d", &[("o", true)], json!({}))), Look::default());
        assert_eq!(graph.gone("o"), deletes(&["d"]));
        assert_eq!(graph.gone("d"), Look::default());
        assert!(graph.nodes.is_empty(), "nothing is remembered for ever");
    }

    #[test]
    fn an_owner_nobody_saw_is_looked_up() {
        let mut graph = Graph::default();
        assert_eq!(graph.seen(place("a"), &meta("d", &[("o", true)], json!({}))), deletes(&["o"]));
        assert_eq!(graph.reference_to("o").map(|(reference, _)| reference.uid).as_deref(), Some("o"));
        assert_eq!(graph.gone("o"), deletes(&["d"]));
    }

    #[test]
    fn foreground_waits_for_those_that_block() {
        let mut graph = Graph::default();
        graph.seen(place("a"), &meta("o", &[], json!({})));
        graph.seen(place("a"), &meta("d", &[("o", true)], json!({})));
        graph.seen(place("a"), &meta("e", &[("o", false)], json!({})));
        assert_eq!(
            sorted(graph.seen(place("a"), &meta("o", &[], dying(FOREGROUND)))),
            deletes(&["d", "e", "o"])
        );
        assert_eq!(graph.blocking("o"), ["d"]);
        assert_eq!(
            graph.seen(place("a"), &meta("l", &[("o", true)], json!({}))),
            deletes(&["l"]),
            "a late-comer"
        );
        assert_eq!(graph.gone("d"), deletes(&["o"]), "the owner looks again");
        assert_eq!(
            graph.seen(place("a"), &meta("l", &[("o", false)], json!({}))),
            deletes(&["o"]),
            "it blocks no more"
        );
        assert!(graph.blocking("o").is_empty());
    }

    #[test]
    fn what_is_settled_needs_no_look() {
        let mut graph = Graph::default();
        graph.seen(place("a"), &meta("d", &[("o", true)], json!({})));
        assert!(!graph.is_settled("d"), "its owner may be gone");
        graph.seen(place("a"), &meta("o", &[], json!({})));
        assert!(graph.is_settled("d") && graph.is_settled("o"));
        graph.seen(place("b"), &meta("e", &[("o", true)], json!({})));
        assert!(!graph.is_settled("e"), "its owner is elsewhere");
        graph.seen(place("a"), &meta("o", &[], dying(FOREGROUND)));
        assert!(!graph.is_settled("d") && !graph.is_settled("o"));
    }

    #[test]
    fn orphaning_begins_once() {
        let mut graph = Graph::default();
        graph.seen(place("a"), &meta("d", &[("o", true)], json!({})));
        let expected = Look { orphan: vec!["o".into()], ..Look::default() };
        assert_eq!(graph.seen(place("a"), &meta("o", &[], dying(ORPHAN))), expected);
        assert_eq!(graph.seen(place("a"), &meta("o", &[], dying(ORPHAN))), Look::default());
    }

    #[test]
    fn an_owner_elsewhere_is_told() {
        let mut graph = Graph::default();
        graph.seen(place("a"), &meta("o", &[], json!({})));
        let look = graph.seen(place("b"), &meta("d", &[("o", true)], json!({})));
        assert_eq!(look.invalid, [("d".to_owned(), "o".to_owned())]);
    }
}
