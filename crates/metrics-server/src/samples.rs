//! The last two readings of each node, and what was used between them.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use orlop_api::Quantity;
use orlop_api::quantity::Format;

use crate::exposition::{PodName, Point, Reading};

/// A container younger than this has not run long enough for its start to count as a reading.
const FRESH: i64 = 10_000_000_000;

/// What was used of each resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Billionths of a core.
    pub cpu: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes; `None` when the kubelet does not know.
    pub swap: Option<u64>,
}

impl Usage {
    /// Resources and quantities, by name.
    pub(crate) fn quantities(&self) -> Vec<(&'static str, String)> {
        let bytes = |bytes: u64| {
            Quantity::new(i64::try_from(bytes).unwrap_or(i64::MAX), Format::BinarySI).to_string()
        };
        let cpu = Quantity::parse(&format!("{}n", self.cpu)).unwrap_or(Quantity::ZERO).to_string();
        let mut list = vec![("cpu", cpu), ("memory", bytes(self.memory))];
        list.extend(self.swap.map(|swap| ("swap", bytes(swap))));
        list
    }

    /// Of several containers.
    pub(crate) fn sum<'a>(all: impl IntoIterator<Item = &'a Usage>) -> Usage {
        all.into_iter().fold(Usage::default(), |sum, usage| Usage {
            cpu: sum.cpu.saturating_add(usage.cpu),
            memory: sum.memory.saturating_add(usage.memory),
            swap: match (sum.swap, usage.swap) {
                (None, None) => None,
                (a, b) => Some(a.unwrap_or(0).saturating_add(b.unwrap_or(0))),
            },
        })
    }
}

/// The time between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Window {
    /// The later reading, nanoseconds since the Unix epoch.
    pub at: i64,
    /// Nanoseconds.
    pub length: i64,
}

/// What a pod's containers used, by name.
pub(crate) type Containers = Vec<(String, Usage)>;

/// Two readings of a node.
#[derive(Debug, Default)]
struct Pair {
    last: Reading,
    /// Only points that can be compared with those of `last`: earlier ones of the same run.
    before: Reading,
}

/// The readings of all nodes.
#[derive(Debug, Default)]
pub(crate) struct Samples(HashMap<String, Pair>);

impl Samples {
    /// Takes the readings of one round. Nodes that gave none are forgotten.
    pub(crate) fn advance(&mut self, round: Vec<(String, Reading)>, resolution: Duration) {
        let mut known = std::mem::take(&mut self.0);
        self.0 = round
            .into_iter()
            .map(|(node, reading)| {
                let pair = known.remove(&node).unwrap_or_default();
                (node, pair.advance(reading, resolution))
            })
            .collect();
    }

    /// What a node used.
    pub(crate) fn node(&self, name: &str) -> Option<(Window, Usage)> {
        let pair = self.0.get(name)?;
        between(pair.before.node.as_ref()?, pair.last.node.as_ref()?)
    }

    /// What the containers of a pod used, as its node says: `None` until there are two readings of each of them.
    pub(crate) fn pod(&self, node: &str, pod: &PodName) -> Option<(Window, Containers)> {
        let pair = self.0.get(node)?;
        let (last, before) = (pair.last.pods.get(pod)?, pair.before.pods.get(pod)?);
        let mut window: Option<Window> = None;
        let mut containers = Vec::with_capacity(last.len());
        for (name, point) in last {
            // A counter that went backwards belongs to another run; the others can still be told.
            let Some((found, usage)) = between(before.get(name)?, point) else { continue };
            if window.is_none_or(|window| window.at > found.at) {
                window = Some(found);
            }
            containers.push((name.clone(), usage));
        }
        Some((window?, containers))
    }
}

impl Pair {
    fn advance(self, reading: Reading, resolution: Duration) -> Pair {
        let mut before = Reading::default();
        if let (Some(new), Some(last)) = (reading.node, self.last.node) {
            before.node = earlier(&new, &last, self.before.node.as_ref());
        }
        for (pod, containers) in &reading.pods {
            let (last, older) = (self.last.pods.get(pod), self.before.pods.get(pod));
            let found: BTreeMap<String, Point> = containers
                .iter()
                .filter_map(|(name, new)| {
                    let point = since_start(new, resolution).or_else(|| {
                        earlier(new, last?.get(name)?, older.and_then(|older| older.get(name)))
                    })?;
                    Some((name.clone(), point))
                })
                .collect();
            if !found.is_empty() {
                before.pods.insert(pod.clone(), found);
            }
        }
        Pair { last: reading, before }
    }
}

/// A container that started since the last round: its start counts as a reading of nothing used, once it has run for a while.
fn since_start(new: &Point, resolution: Duration) -> Option<Point> {
    let age = new.at - new.start;
    let round = i64::try_from(resolution.as_nanos()).unwrap_or(i64::MAX);
    (new.start > 0 && age >= FRESH && age < round).then_some(Point { at: new.start, cpu: 0, ..*new })
}

/// The point to compare a new one with: the last one, or the one before it when the kubelet told the same again.
fn earlier(new: &Point, last: &Point, older: Option<&Point>) -> Option<Point> {
    // Started after the last reading: another run.
    if new.start >= last.at {
        return None;
    }
    if new.at > last.at {
        return Some(*last);
    }
    older.filter(|older| older.at < new.at).copied()
}

/// What was used from one point to a later one of the same run.
fn between(before: &Point, last: &Point) -> Option<(Window, Usage)> {
    let length = last.at - before.at;
    if last.start < before.start || length <= 0 {
        return None;
    }
    let used = last.cpu.checked_sub(before.cpu)?;
    let cpu = (used as f64 / (length as f64 / 1e9)) as u64;
    Some((Window { at: last.at, length }, Usage { cpu, memory: last.memory, swap: last.swap }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const S: i64 = 1_000_000_000;

    /// Times in seconds, CPU in seconds of one core.
    fn point(start: i64, at: i64, cpu: u64) -> Point {
        Point { start: start * S, at: at * S, cpu: cpu * S as u64, memory: 1 << 20, swap: None }
    }

    fn reading(containers: &[(&str, Point)]) -> Reading {
        let containers = containers.iter().map(|(name, point)| ((*name).to_owned(), *point)).collect();
        Reading { node: Some(point(0, 1, 1)), pods: [(pod(), containers)].into() }
    }

    fn pod() -> PodName {
        ("default".into(), "p".into())
    }

    #[test]
    fn what_a_pod_used() {
        // Each round gives the containers' points; the answer is the window and the thousandths of cores of each.
        type Expected<'a> = Option<(i64, i64, &'a [(&'a str, u64)])>;
        let check = |what: &str, rounds: &[&[(&str, Point)]], expected: Expected| {
            let mut samples = Samples::default();
            for round in rounds {
                samples.advance(vec![("n".into(), reading(round))], Duration::from_secs(15));
            }
            let got = samples.pod("n", &pod()).map(|(window, containers)| {
                let used: Vec<_> =
                    containers.into_iter().map(|(name, usage)| (name, usage.cpu / 1_000_000)).collect();
                (window.at / S, window.length / S, used)
            });
            let expected = expected.map(|(at, length, used)| {
                (
                    at,
                    length,
                    used.iter().map(|(name, milli)| ((*name).to_owned(), *milli)).collect::<Vec<_>>(),
                )
            });
            assert_eq!(got, expected, "{what}");
        };
        check("one reading", &[&[("c", point(10, 100, 5))]], None);
        check(
            "two readings",
            &[&[("c", point(10, 100, 5))], &[("c", point(10, 110, 10))]],
            Some((110, 10, &[("c", 500)])),
        );
        check(
            "the kubelet told the same twice",
            &[&[("c", point(10, 100, 5))], &[("c", point(10, 110, 10))], &[("c", point(10, 110, 10))]],
            Some((110, 10, &[("c", 500)])),
        );
        check("an older reading than both", &[&[("c", point(10, 100, 5))], &[("c", point(10, 90, 4))]], None);
        check("a restart", &[&[("c", point(10, 100, 5))], &[("c", point(105, 110, 1))]], None);
        check(
            "a restart, a round later",
            &[&[("c", point(10, 100, 5))], &[("c", point(105, 110, 1))], &[("c", point(105, 120, 3))]],
            Some((120, 10, &[("c", 200)])),
        );
        check(
            "a counter that went backwards hides its container only",
            &[
                &[("a", point(10, 100, 5)), ("b", point(10, 100, 5))],
                &[("a", point(10, 110, 4)), ("b", point(10, 111, 6))],
            ],
            Some((111, 11, &[("b", 90)])),
        );
        check("all counters went backwards", &[&[("a", point(1, 100, 5))], &[("a", point(1, 110, 4))]], None);
        check("a fresh container", &[&[("c", point(98, 110, 6))]], Some((110, 12, &[("c", 500)])));
        check("a fresher one", &[&[("c", point(101, 110, 6))]], None);
        check("not fresh any more", &[&[("c", point(95, 110, 6))]], None);
        check(
            "one container is new: the pod waits",
            &[&[("a", point(10, 100, 5))], &[("a", point(10, 110, 6)), ("b", point(108, 110, 1))]],
            None,
        );
        check(
            "the earliest window counts",
            &[
                &[("a", point(10, 100, 5)), ("b", point(10, 101, 5))],
                &[("a", point(10, 112, 11)), ("b", point(10, 111, 6))],
            ],
            Some((111, 10, &[("a", 500), ("b", 100)])),
        );
    }

    #[test]
    fn nodes() {
        let mut samples = Samples::default();
        let round = |at: i64, cpu: u64| {
            vec![("n".to_owned(), Reading { node: Some(point(0, at, cpu)), pods: HashMap::new() })]
        };
        let every = Duration::from_secs(15);
        samples.advance(round(100, 50), every);
        assert_eq!(samples.node("n"), None);
        samples.advance(round(115, 65), every);
        let (window, usage) = samples.node("n").unwrap();
        assert_eq!((window.length / S, usage.cpu, usage.memory), (15, S as u64, 1 << 20));
        // The machine was started again: its counter is small.
        samples.advance(round(130, 1), every);
        assert_eq!(samples.node("n"), None);
        samples.advance(round(145, 2), every);
        assert!(samples.node("n").is_some());
        // A node that did not answer is forgotten, and begins anew.
        samples.advance(Vec::new(), every);
        assert_eq!(samples.node("n"), None);
        samples.advance(round(160, 3), every);
        assert_eq!(samples.node("n"), None);
        // What another node says of a pod counts for nothing.
        samples.advance(vec![("m".into(), reading(&[("c", point(150, 161, 1))]))], every);
        assert!(samples.pod("m", &pod()).is_some() && samples.pod("n", &pod()).is_none());
    }

    #[test]
    fn quantities() {
        let check = |usage: Usage, expected: &[&str]| {
            let got: Vec<String> = usage.quantities().into_iter().map(|(_, quantity)| quantity).collect();
            assert_eq!(got, expected);
        };
        let usage = |cpu, memory, swap| Usage { cpu, memory, swap };
        check(usage(12_345, 1234 << 10, None), &["12345n", "1234Ki"]);
        check(usage(1_500_000_000, 3 << 20, Some(0)), &["1500m", "3Mi", "0"]);
        check(usage(250_000, 1000, Some(4096)), &["250u", "1k", "4Ki"]);
        check(usage(0, 0, None), &["0", "0"]);
        check(Usage::sum(&[usage(1, 2, None), usage(10, 20, Some(3))]), &["11n", "22", "3"]);
        check(Usage::sum(&[]), &["0", "0"]);
    }
}
