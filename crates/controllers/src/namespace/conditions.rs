//! The five conditions that tell why a namespace is still there, with upstream's words.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Type, and reason and message when all is well.
const FINE: [(&str, &str, &str); 5] = [
    ("NamespaceDeletionDiscoveryFailure", "ResourcesDiscovered", "All resources successfully discovered"),
    (
        "NamespaceDeletionGroupVersionParsingFailure",
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed",
    ),
    (
        "NamespaceDeletionContentFailure",
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
    ),
    ("NamespaceContentRemaining", "ContentRemoved", "All content successfully removed"),
    ("NamespaceFinalizersRemaining", "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
];

/// What one pass over a namespace found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Groups that could not be asked for their resources.
    pub(crate) undiscovered: Vec<(String, String)>,
    pub(crate) failures: Vec<String>,
    /// Objects left, by `resource.group`.
    pub(crate) remaining: BTreeMap<String, usize>,
    /// Objects left, by finalizer.
    pub(crate) finalizers: BTreeMap<String, usize>,
}

impl Findings {
    fn problem(&self, kind: &str) -> Option<(&'static str, String)> {
        let counted = |all: &BTreeMap<String, usize>, verb: &str| {
            let parts: Vec<_> =
                all.iter().map(|(name, count)| format!("{name} {verb} {count} resource instances")).collect();
            parts.join(", ")
        };
        match kind {
            "NamespaceDeletionDiscoveryFailure" if !self.undiscovered.is_empty() => {
                let parts: Vec<_> =
                    self.undiscovered.iter().map(|(group, error)| format!("{group}: {error}")).collect();
                let count = parts.len();
                Some((
                    "DiscoveryFailed",
                    format!(
                        "Discovery failed for some groups, {count} failing: unable to retrieve the complete list of server APIs: {}",
                        parts.join(", ")
                    ),
                ))
            }
            "NamespaceDeletionContentFailure" if !self.failures.is_empty() => {
                let count = self.failures.len();
                let list = self.failures.join(", ");
                let list = if count == 1 { list } else { format!("[{list}]") };
                Some((
                    "ContentDeletionFailed",
                    format!("Failed to delete all resource types, {count} remaining: {list}"),
                ))
            }
            "NamespaceContentRemaining" if !self.remaining.is_empty() => Some((
                "SomeResourcesRemain",
                format!("Some resources are remaining: {}", counted(&self.remaining, "has")),
            )),
            "NamespaceFinalizersRemaining" if !self.finalizers.is_empty() => Some((
                "SomeFinalizersRemain",
                format!(
                    "Some content in the namespace has finalizers remaining: {}",
                    counted(&self.finalizers, "in")
                ),
            )),
            _ => None,
        }
    }

    /// Writes the findings into a status. Returns whether anything changed.
    pub(crate) fn apply(&self, status: &mut NamespaceStatus, now: Timestamp) -> bool {
        let mut changed = false;
        let conditions = status.conditions.get_or_insert_default();
        for (kind, reason, message) in FINE {
            let (value, reason, message) = match self.problem(kind) {
                Some((reason, message)) => ("True", reason, message),
                None => ("False", reason, message.to_owned()),
            };
            let (reason, message) = (Some(reason.to_owned()), Some(message));
            match conditions.iter_mut().find(|condition| condition.type_ == kind) {
                Some(known)
                    if known.status == value && known.reason == reason && known.message == message =>
                {
                    continue;
                }
                Some(known) => {
                    if known.status != value {
                        known.last_transition_time = Some(Time(now));
                    }
                    known.status = value.to_owned();
                    known.reason = reason;
                    known.message = message;
                }
                None => conditions.push(NamespaceCondition {
                    type_: kind.to_owned(),
                    status: value.to_owned(),
                    reason,
                    message,
                    last_transition_time: Some(Time(now)),
                }),
            }
            changed = true;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_is_left_and_then_that_nothing_is() {
        let now = Timestamp::UNIX_EPOCH;
        let mut status = NamespaceStatus::default();
        let findings = Findings {
            failures: vec!["a".into(), "b".into()],
            remaining: [("pods.".into(), 2), ("widgets.example.com".into(), 1)].into(),
            finalizers: [("example.com/keep".into(), 1)].into(),
            ..Findings::default()
        };
        assert!(findings.apply(&mut status, now));
        assert!(!findings.apply(&mut status, now), "the same findings change nothing");
        let shown = |status: &NamespaceStatus| -> Vec<String> {
            let conditions = status.conditions.iter().flatten();
            conditions.map(|c| format!("{} {}", c.status, c.message.clone().unwrap_or_default())).collect()
        };
        assert_eq!(
            shown(&status),
            [
                "False All resources successfully discovered",
                "False All legacy kube types successfully parsed",
                "True Failed to delete all resource types, 2 remaining: [a, b]",
                "True Some resources are remaining: pods. has 2 resource instances, widgets.example.com has 1 resource instances",
                "True Some content in the namespace has finalizers remaining: example.com/keep in 1 resource instances",
            ]
        );
        assert!(Findings::default().apply(&mut status, now));
        assert!(shown(&status).iter().all(|line| line.starts_with("False All ")));
    }
}
