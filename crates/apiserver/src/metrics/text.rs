//! Counters, gauges and histograms as plain atomics, and the Prometheus text they are shown in.
//!
//! Who counts holds a handle; nothing is looked up by name and no text is made before somebody scrapes.

use std::collections::{BTreeMap, BTreeSet};
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

/// Which metrics are shown, and which values their labels may have.
#[derive(Clone, Debug, Default)]
pub struct Shaping {
    /// `--disabled-metrics`: families that are left out.
    pub disabled: BTreeSet<String>,
    /// `--allow-metric-labels`: by family and label, the values that are shown; any other is `unexpected`.
    pub allowed: BTreeMap<(String, String), BTreeSet<String>>,
}

/// What a label is shown as when its value is not among those allowed.
const UNEXPECTED: &str = "unexpected";

/// A bound as Go writes it: small ones with an exponent of two digits at least.
fn shown(bound: f64) -> String {
    let scientific = format!("{bound:e}");
    match scientific.split_once("e-") {
        Some((digits, exponent)) if bound.abs() < 1e-4 => format!("{digits}e-{exponent:0>2}"),
        _ => bound.to_string(),
    }
}

/// The text that is being written.
#[derive(Default)]
pub struct Exposition {
    text: String,
    shaping: Shaping,
    /// The family that is being written, when it has rules, and its samples: series that have become one are added up.
    merged: Option<(String, Vec<(String, f64)>)>,
    /// Whether the family that is being written is left out.
    left_out: bool,
}

impl Exposition {
    /// An empty text that is shaped so.
    pub fn shaped(shaping: &Shaping) -> Exposition {
        Exposition { shaping: shaping.clone(), ..Exposition::default() }
    }

    /// The finished text.
    pub fn finish(mut self) -> String {
        self.flush();
        self.text
    }

    /// Writes the samples that were held back.
    fn flush(&mut self) {
        for (series, value) in self.merged.take().map(|(_, samples)| samples).unwrap_or_default() {
            let _ = writeln!(self.text, "{series} {value}");
        }
    }

    /// Begins a family. `kind` is `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.flush();
        self.left_out = self.shaping.disabled.contains(name);
        if self.left_out {
            return;
        }
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        if self.shaping.allowed.keys().any(|(family, _)| family == name) {
            self.merged = Some((name.to_owned(), Vec::new()));
        }
    }

    /// The value of a label as it is shown.
    fn allowed<'a>(&self, label: &str, value: &'a str) -> &'a str {
        let Some((family, _)) = &self.merged else { return value };
        match self.shaping.allowed.get(&(family.clone(), label.to_owned())) {
            Some(values) if !values.contains(value) => UNEXPECTED,
            _ => value,
        }
    }

    /// Writes one series, or adds it to those that look the same.
    fn series(&mut self, name: &str, labels: Labels<'_>, le: Option<&str>, value: f64) {
        if self.left_out {
            return;
        }
        let mut series = name.to_owned();
        self.labels(&mut series, labels, le);
        match &mut self.merged {
            None => {
                let _ = writeln!(self.text, "{series} {value}");
            }
            Some((_, samples)) => match samples.iter_mut().find(|(known, _)| *known == series) {
                Some((_, sum)) => *sum += value,
                None => samples.push((series, value)),
            },
        }
    }

    fn labels(&self, out: &mut String, labels: Labels<'_>, le: Option<&str>) {
        if labels.is_empty() && le.is_none() {
            return;
        }
        out.push('{');
        for (at, (name, value)) in labels.iter().copied().chain(le.map(|le| ("le", le))).enumerate() {
            if at > 0 {
                out.push(',');
            }
            out.push_str(name);
            out.push_str("=\"");
            for c in self.allowed(name, value).chars() {
                match c {
                    '\\' => out.push_str("\\\\"),
                    '"' => out.push_str("\\\""),
                    '\n' => out.push_str("\\n"),
                    c => out.push(c),
                }
            }
            out.push('"');
        }
        out.push('}');
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        self.series(name, labels, None, value);
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// The samples of a histogram.
    pub fn histogram(&mut self, name: &str, labels: Labels<'_>, histogram: &Histogram) {
        let buckets: Vec<u64> = histogram.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let sum = histogram.sum.load(Ordering::Relaxed) as f64 / histogram.scale;
        self.distribution(name, labels, histogram.bounds.iter().copied(), &buckets, sum);
    }

    /// The same of counts that are kept elsewhere: one for each bound and one for what lies above, not cumulative.
    pub fn distribution(
        &mut self,
        name: &str,
        labels: Labels<'_>,
        bounds: impl IntoIterator<Item = f64>,
        buckets: &[u64],
        sum: f64,
    ) {
        let bucket = format!("{name}_bucket");
        let (mut below, mut bounds) = (0, bounds.into_iter());
        for count in buckets {
            below += count;
            let bound = bounds.next().map_or("+Inf".to_owned(), shown);
            self.series(&bucket, labels, Some(&bound), below as f64);
        }
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, below as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_written_as_go_writes_them() {
        let check = |bound: f64, expected: &str| assert_eq!(shown(bound), expected);
        check(10e-9, "1e-08");
        check(10e-9 * 10.0 * 10.0 * 10.0, "9.999999999999999e-06");
        check(0.0001, "0.0001");
        check(0.25, "0.25");
        check(1000.0, "1000");
        check(131072.0, "131072");
    }

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

    #[test]
    fn shaping() {
        let values = |values: &[&str]| values.iter().map(|value| value.to_string()).collect();
        let shaping = Shaping {
            disabled: values(&["gone"]),
            allowed: [(("c".to_string(), "verb".to_string()), values(&["GET"]))].into(),
        };
        let mut out = Exposition::shaped(&shaping);
        out.single("gone", "counter", "Gone.", 1.0);
        out.family("c", "counter", "One.");
        for (verb, code, value) in
            [("GET", "200", 1.0), ("LIST", "200", 2.0), ("WATCH", "200", 4.0), ("WATCH", "500", 8.0)]
        {
            out.sample("c", &[("verb", verb), ("code", code)], value);
        }
        let histogram = Histogram::seconds(&[0.1]);
        histogram.time(Duration::from_millis(50));
        out.family("d", "histogram", "Durations.");
        out.histogram("d", &[("verb", "LIST")], &histogram);
        assert_eq!(
            out.finish(),
            "# HELP c One.\n# TYPE c counter\n\
             c{verb=\"GET\",code=\"200\"} 1\nc{verb=\"unexpected\",code=\"200\"} 6\nc{verb=\"unexpected\",code=\"500\"} 8\n\
             # HELP d Durations.\n# TYPE d histogram\n\
             d_bucket{verb=\"LIST\",le=\"0.1\"} 1\nd_bucket{verb=\"LIST\",le=\"+Inf\"} 1\nd_sum{verb=\"LIST\"} 0.05\nd_count{verb=\"LIST\"} 1\n"
        );
    }
}
