//! Verdicts of plugins. Answers to upstream's `fwk.Status`, `Diagnosis` and `FitError`.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use crate::cache::NodeIndex;

/// What a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Something failed that should not; worth another attempt.
    Error,
    /// The removal of pods from the node could change it.
    Unschedulable,
    /// Nothing that preemption can do changes it.
    UnschedulableAndUnresolvable,
}

/// One or several reasons, mostly constants: a refused node must not cost an allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reasons {
    One(Cow<'static, str>),
    Many(Vec<Cow<'static, str>>),
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub code: Code,
    reasons: Reasons,
    /// Name of the plugin; empty until the framework fills it in.
    pub plugin: &'static str,
}

impl Status {
    pub fn new(code: Code, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { code, reasons: Reasons::One(reason.into()), plugin: "" }
    }

    pub fn unschedulable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unschedulable, reason)
    }

    pub fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::UnschedulableAndUnresolvable, reason)
    }

    pub fn error(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Error, reason)
    }

    pub fn with_reasons(code: Code, mut reasons: Vec<Cow<'static, str>>) -> Self {
        let reasons = match reasons.len() {
            1 => Reasons::One(reasons.swap_remove(0)),
            _ => Reasons::Many(reasons),
        };
        Self { code, reasons, plugin: "" }
    }

    pub fn by(mut self, plugin: &'static str) -> Self {
        self.plugin = plugin;
        self
    }

    pub fn reasons(&self) -> &[Cow<'static, str>] {
        match &self.reasons {
            Reasons::One(reason) => std::slice::from_ref(reason),
            Reasons::Many(reasons) => reasons,
        }
    }

    /// Whether the pod was refused, as opposed to something having failed.
    pub fn is_rejected(&self) -> bool {
        self.code != Code::Error
    }

    pub fn message(&self) -> String {
        self.reasons().join(", ")
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

/// How many nodes were refused for each reason. Few reasons, so a list serves better than a map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<(String, usize)>,
}

impl Histogram {
    pub fn add(&mut self, reason: &str, nodes: usize) {
        match self.counts.iter_mut().find(|(known, _)| known == reason) {
            Some((_, count)) => *count += nodes,
            None => self.counts.push((reason.to_owned(), nodes)),
        }
    }

    fn sorted(&self) -> Vec<String> {
        let counts = self.counts.iter().filter(|(_, count)| *count > 0);
        let mut lines: Vec<_> = counts.map(|(reason, count)| format!("{count} {reason}")).collect();
        lines.sort();
        lines
    }
}

/// Why no node can take a pod. Displays as the message of `FailedScheduling` and of the pod's condition.
#[derive(Debug, Clone, Default)]
pub struct Diagnosis {
    /// How many nodes there are.
    pub nodes: usize,
    /// The verdict on each node that was looked at.
    pub statuses: Vec<(NodeIndex, Code)>,
    reasons: Histogram,
    /// The verdict on all others.
    pub absent: Option<Status>,
    /// What PreFilter said, when it refused the pod as a whole.
    pub pre_filter: String,
    /// What PostFilter said.
    pub post_filter: String,
    /// The plugins that refused.
    pub unschedulable_plugins: BTreeSet<&'static str>,
    /// Those that wait for something under way.
    pub pending_plugins: BTreeSet<&'static str>,
}

impl Diagnosis {
    pub fn new(nodes: usize) -> Self {
        Self { nodes, ..Self::default() }
    }

    /// One node's verdict.
    pub fn refuse(&mut self, node: NodeIndex, status: &Status) {
        self.statuses.push((node, status.code));
        for reason in status.reasons() {
            self.reasons.add(reason, 1);
        }
        self.note_plugin(status);
    }

    /// Remembers who refused, for the queueing hints.
    pub fn note_plugin(&mut self, status: &Status) {
        if status.is_rejected() {
            self.unschedulable_plugins.insert(status.plugin);
        }
    }

    /// The verdict on a node.
    pub fn code(&self, node: NodeIndex) -> Option<Code> {
        let own = self.statuses.iter().find(|(other, _)| *other == node).map(|(_, code)| *code);
        own.or_else(|| self.absent.as_ref().map(|status| status.code))
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available:", self.nodes)?;
        if self.pre_filter.is_empty() {
            let mut reasons = self.reasons.clone();
            let absent = self.nodes.saturating_sub(self.statuses.len());
            for reason in self.absent.iter().flat_map(Status::reasons) {
                reasons.add(reason, absent);
            }
            let lines = reasons.sorted();
            if !lines.is_empty() {
                write!(f, " {}.", lines.join(", "))?;
            }
        } else {
            write!(f, " {}.", self.pre_filter)?;
        }
        if !self.post_filter.is_empty() {
            write!(f, " {}", self.post_filter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_upstreams() {
        let check = |nodes: usize, statuses: &[Status], absent: Option<&str>, post: &str, expected: &str| {
            let mut diagnosis = Diagnosis::new(nodes);
            for (number, status) in (0..).zip(statuses) {
                diagnosis.refuse(NodeIndex(number), status);
            }
            diagnosis.absent = absent.map(|reason| Status::unresolvable(reason.to_owned()));
            diagnosis.post_filter = post.to_owned();
            assert_eq!(diagnosis.to_string(), expected);
        };
        check(0, &[], None, "", "no nodes available to schedule pods");
        let cpu = Status::unschedulable("Insufficient cpu");
        let taint = Status::unresolvable("node(s) had untolerated taint(s)");
        check(
            3,
            &[taint, cpu.clone(), cpu.clone()],
            None,
            "preemption: not eligible due to preemptionPolicy=Never.",
            "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu. preemption: not eligible \
             due to preemptionPolicy=Never.",
        );
        let both = Status::with_reasons(
            Code::Unschedulable,
            vec!["Insufficient cpu".into(), "Too many pods".into()],
        );
        check(
            4,
            &[both, cpu],
            Some("node(s) didn't satisfy plugin(s) [NodeAffinity]"),
            "",
            "0/4 nodes are available: 1 Too many pods, 2 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) \
             [NodeAffinity].",
        );
    }

    #[test]
    fn what_pre_filter_says_stands_alone() {
        let mut diagnosis = Diagnosis::new(2);
        diagnosis.pre_filter = "pod has unbound immediate PersistentVolumeClaims".to_owned();
        diagnosis.absent = Some(Status::unresolvable(diagnosis.pre_filter.clone()));
        diagnosis.post_filter = "not found".to_owned();
        assert_eq!(
            diagnosis.to_string(),
            "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"
        );
    }
}
