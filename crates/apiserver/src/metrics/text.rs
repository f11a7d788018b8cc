//! Counters, gauges and histograms as plain atomics, and the Prometheus text they are shown in.
//!
//! Who counts holds a handle; nothing is looked up by name and no text is made before somebody scrapes.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds `n`, which may be negative; the new value.
    pub fn add(&self, n: i64) -> i64 {
        self.0.fetch_add(n, Ordering::Relaxed) + n
    }

    /// Sets it.
    pub fn set(&self, n: i64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A distribution over fixed buckets.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound and one for what lies above; not cumulative.
    buckets: Box<[AtomicU64]>,
    /// In units of `1 / scale`, so that adding is one instruction.
    sum: AtomicU64,
    scale: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64], scale: f64) -> Histogram {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, buckets, sum: AtomicU64::new(0), scale }
    }

    /// Of durations; bounds in seconds.
    pub fn seconds(bounds: &'static [f64]) -> Histogram {
        Histogram::new(bounds, 1e9)
    }

    /// Of whole numbers: bytes, objects, seats.
    pub fn numbers(bounds: &'static [f64]) -> Histogram {
        Histogram::new(bounds, 1.0)
    }

    fn put(&self, value: f64, sum: u64) {
        let at = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(sum, Ordering::Relaxed);
    }

    /// Notes a duration.
    pub fn time(&self, elapsed: Duration) {
        self.put(elapsed.as_secs_f64(), u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Notes a number.
    pub fn number(&self, value: u64) {
        self.put(value as f64, value);
    }

    /// How many values were noted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).sum()
    }
}

/// Labels of a sample, in order.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// The text that is being written.
#[derive(Default)]
pub struct Exposition(String);

impl Exposition {
    /// The finished text.
    pub fn finish(self) -> String {
        self.0
    }

    /// Begins a family. `kind` is `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn labels(&mut self, labels: Labels<'_>, le: Option<&str>) {
        if labels.is_empty() && le.is_none() {
            return;
        }
        self.0.push('{');
        for (at, (name, value)) in labels.iter().copied().chain(le.map(|le| ("le", le))).enumerate() {
            if at > 0 {
                self.0.push(',');
            }
            self.0.push_str(name);
            self.0.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
        }
        self.0.push('}');
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        self.0.push_str(name);
        self.labels(labels, None);
        let _ = writeln!(self.0, " {value}");
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// The samples of a histogram.
    pub fn histogram(&mut self, name: &str, labels: Labels<'_>, histogram: &Histogram) {
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (at, count) in histogram.buckets.iter().enumerate() {
            below += count.load(Ordering::Relaxed);
            let bound = histogram.bounds.get(at).map_or("+Inf".to_string(), f64::to_string);
            self.0.push_str(&bucket);
            self.labels(labels, Some(&bound));
            let _ = writeln!(self.0, " {below}");
        }
        let sum = histogram.sum.load(Ordering::Relaxed) as f64 / histogram.scale;
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, below as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text() {
        let histogram = Histogram::seconds(&[0.1, 1.0]);
        for millis in [50, 500, 5000] {
            histogram.time(Duration::from_millis(millis));
        }
        let mut out = Exposition::default();
        out.family("d", "histogram", "Durations.");
        out.histogram("d", &[("verb", "a\"b\\c\nd")], &histogram);
        out.single("c", "counter", "One.", 3.0);
        let label = r#"verb="a\"b\\c\nd""#;
        assert_eq!(
            out.finish(),
            format!(
                "# HELP d Durations.\n# TYPE d histogram\nd_bucket{{{label},le=\"0.1\"}} 1\nd_bucket{{{label},le=\"1\"}} 2\n\
                 d_bucket{{{label},le=\"+Inf\"}} 3\nd_sum{{{label}}} 5.55\nd_count{{{label}}} 3\n\
                 # HELP c One.\n# TYPE c counter\nc 3\n"
            )
        );
    }
}
