//! Which pods belong together when their spec does not say: those of a Service or of one controller. Answers to
//! upstream's `helper.DefaultSelector`.

use std::collections::{BTreeMap, HashMap};

use orlop_client::ObjectKey;

use crate::pod_info::PodInfo;
use crate::selector::{Labels, Selector};

/// How many answers are remembered.
const MAX_ANSWERS: usize = 4096;

/// The selectors of Services and of controllers.
#[derive(Debug, Default)]
pub struct Workloads {
    services: HashMap<String, BTreeMap<String, Labels>>,
    /// By kind (`ReplicaSet`, …).
    controllers: HashMap<(&'static str, ObjectKey), Selector>,
    answers: HashMap<String, Option<Selector>>,
}

impl Workloads {
    /// A Service's selector; `None` when it is gone or has none.
    pub fn set_service(&mut self, key: &ObjectKey, selector: Option<Labels>) {
        let selector = selector.filter(|selector| !selector.is_empty());
        let services = self.services.entry(key.namespace.clone()).or_default();
        if services.get(&key.name) == selector.as_ref() {
            return;
        }
        match selector {
            Some(selector) => _ = services.insert(key.name.clone(), selector),
            None => _ = services.remove(&key.name),
        }
        self.answers.clear();
    }

    /// A controller's selector; `None` when it is gone.
    pub fn set_controller(&mut self, kind: &'static str, key: ObjectKey, selector: Option<Selector>) {
        let changed = match selector {
            None => self.controllers.remove(&(kind, key)).is_some(),
            Some(selector) => {
                let old = self.controllers.insert((kind, key.clone()), selector);
                old.as_ref() != self.controllers.get(&(kind, key))
            }
        };
        if changed {
            self.answers.clear();
        }
    }

    /// Finds the selector for a pod without constraints, unless it is known from an equal one.
    pub fn resolve(&mut self, pod: &PodInfo) {
        if self.services.is_empty() && self.controllers.is_empty() {
            return;
        }
        let question = question(pod);
        if self.answers.contains_key(&question) {
            return;
        }
        if self.answers.len() >= MAX_ANSWERS {
            self.answers.clear();
        }
        let answer = self.compute(pod);
        self.answers.insert(question, answer);
    }

    /// What [`resolve`](Self::resolve) has found.
    pub fn selector_of(&self, pod: &PodInfo) -> Option<&Selector> {
        if self.answers.is_empty() {
            return None;
        }
        self.answers.get(&question(pod))?.as_ref()
    }

    fn compute(&self, pod: &PodInfo) -> Option<Selector> {
        let labels = pod.labels();
        let services = self.services.get(&pod.key.namespace).into_iter().flat_map(BTreeMap::values);
        let matching =
            services.filter(|wanted| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)));
        let merged: Labels = matching.flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
        let mut selector = Selector::from_labels(&merged);
        if let Some((kind, name)) = owner(pod) {
            let kind = ["ReplicationController", "ReplicaSet", "StatefulSet"]
                .into_iter()
                .find(|known| *known == kind);
            let key = ObjectKey::new(pod.key.namespace.clone(), name);
            if let Some(own) = kind.and_then(|kind| self.controllers.get(&(kind, key))) {
                selector.extend(own.clone());
            }
        }
        Some(selector).filter(|selector| !selector.is_everything())
    }
}

fn owner(pod: &PodInfo) -> Option<(&str, &str)> {
    let owners = pod.pod.metadata.owner_references.iter().flatten();
    let mut controlling = owners.filter(|owner| owner.controller == Some(true));
    controlling.next().map(|owner| (owner.kind.as_str(), owner.name.as_str()))
}

/// Everything of a pod that the answer depends on. No part can hold the separator.
fn question(pod: &PodInfo) -> String {
    let (kind, name) = owner(pod).unwrap_or_default();
    let mut question = format!("{} {kind} {name}", pod.key.namespace);
    for (key, value) in pod.labels() {
        question.push(' ');
        question.push_str(key);
        question.push('=');
        question.push_str(value);
    }
    question
}
