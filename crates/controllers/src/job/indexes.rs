//! Sets of completion indexes, kept and written as intervals (`1,3-5,7`): a Job may have a hundred thousand indexes.

use std::fmt;

use k8s_openapi::api::batch::v1::SuccessPolicy;
use k8s_openapi::api::core::v1::Pod;

use crate::objects::Meta;

/// Annotation and label of a pod of an Indexed Job.
pub(crate) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Indexes as ordered, disjoint, non-adjacent intervals, both ends inclusive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Indexes(Vec<(u32, u32)>);

impl Indexes {
    /// Reads the text form; indexes from `completions` on are left out, and what cannot be read is skipped.
    pub(crate) fn parse(text: &str, completions: u32) -> Self {
        let interval = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        let within = text.split(',').filter_map(interval).filter(|(first, last)| first <= last);
        within
            .take_while(|(first, _)| *first < completions)
            .map(|(first, last): (u32, u32)| (first, last.min(completions - 1)))
            .collect::<Self>()
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        self.0.iter().chain(&other.0).copied().collect()
    }

    pub(crate) fn with(&self, indexes: impl IntoIterator<Item = u32>) -> Self {
        self.0.iter().copied().chain(indexes.into_iter().map(|index| (index, index))).collect()
    }

    pub(crate) fn has(&self, index: u32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    pub(crate) fn total(&self) -> i32 {
        let count: u64 = self.0.iter().map(|(first, last)| u64::from(last - first) + 1).sum();
        i32::try_from(count).unwrap_or(i32::MAX)
    }

    /// The first `count` indexes below `completions` that are not in the set.
    pub(crate) fn first_missing(&self, count: usize, completions: u32) -> Vec<u32> {
        let mut starts = 0;
        let mut gaps = Vec::new();
        for (first, last) in &self.0 {
            gaps.push(starts..(*first).min(completions));
            starts = last.saturating_add(1);
        }
        gaps.push(starts..completions);
        gaps.into_iter().flatten().take(count).collect()
    }

    /// How many indexes are in both sets.
    fn common(&self, other: &Self) -> i32 {
        let (mut ours, mut theirs, mut count) = (self.0.iter().peekable(), other.0.iter().peekable(), 0_u64);
        while let (Some(a), Some(b)) = (ours.peek(), theirs.peek()) {
            let (first, last) = (a.0.max(b.0), a.1.min(b.1));
            if first <= last {
                count += u64::from(last - first) + 1;
            }
            if a.1 < b.1 {
                ours.next()
            } else {
                theirs.next()
            };
        }
        i32::try_from(count).unwrap_or(i32::MAX)
    }
}

impl FromIterator<(u32, u32)> for Indexes {
    fn from_iter<I: IntoIterator<Item = (u32, u32)>>(intervals: I) -> Self {
        let mut all: Vec<_> = intervals.into_iter().collect();
        all.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (first, last)) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// The index that a pod stands for; `None` when it has none or one that is no number.
pub(crate) fn index_of(pod: &Pod) -> Option<u32> {
    pod.annotation(INDEX)?.parse().ok()
}

/// The message when a rule of the success policy is met.
pub(crate) fn success(policy: &SuccessPolicy, completions: u32, succeeded: &Indexes) -> Option<String> {
    if succeeded.0.is_empty() {
        return None;
    }
    let met = policy.rules.iter().position(|rule| match (&rule.succeeded_indexes, rule.succeeded_count) {
        (Some(text), count) => {
            let required = Indexes::parse(text, completions);
            let common = required.common(succeeded);
            required.total() > 0 && (common == required.total() || count.is_some_and(|count| common >= count))
        }
        (None, Some(count)) => succeeded.total() >= count,
        (None, None) => false,
    })?;
    Some(format!("Matched rules at index {met}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objects::testing::object;
    use pretty_assertions::assert_eq;
    use serde_json::{Value, json};

    #[test]
    fn intervals_read_and_write() {
        let check = |text: &str, completions, expected: &str, total| {
            let read = Indexes::parse(text, completions);
            assert_eq!(
                (read.to_string().as_str(), read.total()),
                (expected, total),
                "{text} below {completions}"
            );
        };
        check("", 5, "", 0);
        check("0", 5, "0", 1);
        check("0,1", 5, "0,1", 2);
        check("0-1", 5, "0,1", 2);
        check("0,1,2", 5, "0-2", 3);
        check("0-2,4", 5, "0-2,4", 4);
        check("0-2,4-9", 6, "0-2,4,5", 5);
        check("0-2,9", 5, "0-2", 3);
        check("x,1,2-y,3", 5, "1,3", 2);
        check("4-2", 5, "", 0);
        check("0-4294967295", 100_000, "0-99999", 100_000);
    }

    #[test]
    fn sets_grow_and_show_gaps() {
        let set = Indexes::parse("1-3,7", 10);
        assert_eq!(set.with([5, 4, 9, 5]).to_string(), "1-5,7,9");
        assert_eq!(set.union(&Indexes::parse("0,6-8", 10)).to_string(), "0-3,6-8");
        assert_eq!([0, 1, 3, 4, 7, 8].map(|index| set.has(index)), [false, true, true, false, true, false]);
        assert_eq!(set.first_missing(3, 10), [0, 4, 5]);
        assert_eq!(set.first_missing(9, 10), [0, 4, 5, 6, 8, 9]);
        assert_eq!(set.first_missing(9, 3), [0]);
        assert_eq!(set.first_missing(0, 10), Vec::<u32>::new());
    }

    #[test]
    fn success_policies() {
        let check = |rules: Value, succeeded: &str, expected: Option<&str>| {
            let policy: SuccessPolicy = object(json!({"rules": rules}));
            let met = success(&policy, 10, &Indexes::parse(succeeded, 10));
            assert_eq!(met.as_deref(), expected, "{rules} with {succeeded}");
        };
        check(json!([{"succeededCount": 1}]), "", None);
        check(json!([{"succeededCount": 2}]), "4", None);
        check(json!([{"succeededCount": 2}]), "4,6", Some("Matched rules at index 0"));
        check(json!([{"succeededIndexes": "0,2-3"}]), "0-2", None);
        check(json!([{"succeededIndexes": "0,2-3"}]), "0-3", Some("Matched rules at index 0"));
        check(
            json!([{"succeededIndexes": "0,2-3", "succeededCount": 2}]),
            "2-5",
            Some("Matched rules at index 0"),
        );
        check(
            json!([{"succeededIndexes": "12"}, {"succeededCount": 1}]),
            "5",
            Some("Matched rules at index 1"),
        );
        check(json!([{"succeededIndexes": "0-9", "succeededCount": 4}]), "0,2,4", None);
        check(
            json!([{"succeededIndexes": "0-9", "succeededCount": 4}]),
            "0,2,4,9",
            Some("Matched rules at index 0"),
        );
    }
}
