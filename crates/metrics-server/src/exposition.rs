//! The kubelet's answer, in Prometheus' text format, as a reading of each of its containers and of the node.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

/// What a node or container had used at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Point {
    /// When it started, nanoseconds since the Unix epoch; 0 when nobody says.
    pub start: i64,
    /// When it was read, nanoseconds since the Unix epoch.
    pub at: i64,
    /// CPU time used since the start, nanoseconds of one core.
    pub cpu: u64,
    /// Memory that cannot be reclaimed at once, bytes.
    pub memory: u64,
    /// Swap space, bytes; `None` when the kubelet does not know.
    pub swap: Option<u64>,
}

impl Point {
    /// Whether both of what everybody wants is there: a reading without them says nothing.
    fn is_complete(&self) -> bool {
        self.at != 0 && self.cpu != 0 && self.memory != 0
    }
}

/// Namespace and name.
pub(crate) type PodName = (String, String);

/// One answer of one kubelet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The node itself, when what it says is complete.
    pub node: Option<Point>,
    /// The containers of each pod, by name.
    pub pods: HashMap<PodName, BTreeMap<String, Point>>,
}

/// One line.
struct Series<'a> {
    name: &'a str,
    labels: Vec<(&'a str, Cow<'a, str>)>,
    value: f64,
    /// Milliseconds since the Unix epoch.
    at: Option<i64>,
}

impl Series<'_> {
    fn label(&self, name: &str) -> String {
        let found = self.labels.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| value.to_string()).unwrap_or_default()
    }
}

/// Reads an answer. What has no time of its own was read at `now`, milliseconds since the Unix epoch.
///
/// # Errors
/// The line that cannot be read, and why.
pub(crate) fn parse(text: &str, now: i64) -> Result<Reading, String> {
    let mut node = Point::default();
    let mut pods: HashMap<PodName, BTreeMap<String, Point>> = HashMap::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let series = series(line).map_err(|error| format!("line {}: {error}", at + 1))?;
        let Some((of, what)) = series.name.split_once('_') else { continue };
        let point = match of {
            "node" if is_known(what) => &mut node,
            "container" if is_known(what) => pods
                .entry((series.label("namespace"), series.label("pod")))
                .or_default()
                .entry(series.label("container"))
                .or_default(),
            _ => continue,
        };
        // A float that does not fit becomes the nearest integer; not-a-number becomes 0.
        match what {
            "cpu_usage_seconds_total" => point.cpu = (series.value * 1e9) as u64,
            "memory_working_set_bytes" => point.memory = series.value as u64,
            "swap_usage_bytes" => point.swap = Some(series.value as u64),
            _ => {
                point.start = (series.value * 1e9) as i64;
                continue;
            }
        }
        point.at = series.at.unwrap_or(now).saturating_mul(1_000_000);
    }
    pods.retain(|_, containers| {
        // A start alone is of a container that is gone.
        containers.retain(|_, point| point.at != 0);
        !containers.is_empty() && containers.values().all(Point::is_complete)
    });
    Ok(Reading { node: Some(node).filter(Point::is_complete), pods })
}

fn is_known(what: &str) -> bool {
    matches!(
        what,
        "cpu_usage_seconds_total" | "memory_working_set_bytes" | "swap_usage_bytes" | "start_time_seconds"
    )
}

/// So much of what cannot be read is repeated in an error.
fn cut(text: &str) -> &str {
    text.char_indices().nth(40).map_or(text, |(at, _)| &text[..at])
}

fn series(line: &str) -> Result<Series<'_>, String> {
    let end = line.find(|c: char| c == '{' || c.is_whitespace()).ok_or("a name without a value")?;
    let (name, mut rest) = line.split_at(end);
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':') {
        return Err(format!("{:?} is no name", cut(name)));
    }
    let mut found = Vec::new();
    if let Some(open) = rest.strip_prefix('{') {
        rest = labels(open, &mut found)?;
    }
    let mut fields = rest.split_whitespace();
    let value = fields.next().ok_or("no value")?;
    let value = value.parse().map_err(|_| format!("{:?} is no number", cut(value)))?;
    let at = match fields.next() {
        Some(text) => Some(text.parse().map_err(|_| format!("{:?} is no timestamp", cut(text)))?),
        None => None,
    };
    match fields.next() {
        Some(more) => Err(format!("unexpected {:?}", cut(more))),
        None => Ok(Series { name, labels: found, value, at }),
    }
}

/// The labels up to the closing brace; what follows it.
fn labels<'a>(mut rest: &'a str, found: &mut Vec<(&'a str, Cow<'a, str>)>) -> Result<&'a str, String> {
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return Ok(after);
        }
        let (name, quoted) = rest.split_once('=').ok_or("a label without a value")?;
        let quoted = quoted.trim_start().strip_prefix('"').ok_or("a label's value without quotes")?;
        let (value, after) = unquote(quoted)?;
        found.push((name.trim(), value));
        rest = after;
    }
}

/// A label's value up to the closing quote; what follows it.
fn unquote(text: &str) -> Result<(Cow<'_, str>, &str), String> {
    let end = text.find(['"', '\\']).ok_or("a label's value does not end")?;
    if text.as_bytes()[end] == b'"' {
        return Ok((Cow::Borrowed(&text[..end]), &text[end + 1..]));
    }
    let mut value = text[..end].to_owned();
    let mut chars = text[end..].char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Cow::Owned(value), &text[end + at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped)) => value.push(escaped),
                None => break,
            },
            c => value.push(c),
        }
    }
    Err("a label's value does not end".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn garbage_is_an_error_that_stays_short() {
        let long = "x".repeat(1 << 20);
        for text in [
            long.clone(),
            format!("-{long} 1"),
            format!("a {long}"),
            format!("a 1 {long}"),
            format!("a 1 2 {long}"),
            format!("a{{b=\"{long}"),
            format!("a{{{long}"),
            "a{b=c} 1".to_owned(),
            "{} 1".to_owned(),
            "\u{0}\u{ffff} 1".to_owned(),
        ] {
            let error = parse(&text, 0).unwrap_err();
            assert!(error.len() < 200, "{error}");
        }
        // What has nothing to do with containers and nodes is passed over, however odd it is.
        let odd =
            format!("{long} NaN\nnode_cpu_usage_seconds_total 1e999\nnode_memory_working_set_bytes -1\n");
        assert!(parse(&odd, 1).unwrap().pods.is_empty());
    }

    #[test]
    fn readings() {
        let text = "\
# HELP container_cpu_usage_seconds_total [STABLE] Cumulative cpu time
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container=\"web\",namespace=\"default\",pod=\"a\"} 4.7 1633253809720
container_cpu_usage_seconds_total{container=\"side\",namespace=\"default\",pod=\"a\"} 1.5e+01 1633253810000
container_memory_working_set_bytes{container=\"web\",namespace=\"default\",pod=\"a\"} 1.253376e+06 1633253809720
container_memory_working_set_bytes{container=\"side\",namespace=\"default\",pod=\"a\"} 2048 1633253810000
container_swap_usage_bytes{container=\"web\",namespace=\"default\",pod=\"a\"} 0 1633253809720
container_start_time_seconds{container=\"web\",namespace=\"default\",pod=\"a\"} 1.63325e+09
container_start_time_seconds{container=\"gone\",namespace=\"default\",pod=\"b\"} 1.63325e+09
container_cpu_usage_seconds_total{container=\"c\",namespace=\"default\",pod=\"half\"} 1
node_cpu_usage_seconds_total 357.25 1633253809720
node_memory_working_set_bytes 1.616273408e+09 1633253809720
pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"a\"} 19.7
scrape_error 0
";
        let got = parse(text, 7).unwrap();
        let node = Point {
            start: 0,
            at: 1_633_253_809_720_000_000,
            cpu: 357_250_000_000,
            memory: 1_616_273_408,
            swap: None,
        };
        assert_eq!(got.node, Some(node));
        // A pod of which one container is not complete is left out, as is one that has only a start.
        let names: Vec<_> = got.pods.keys().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["a"]);
        let containers = &got.pods[&("default".to_owned(), "a".to_owned())];
        let web = Point {
            start: 1_633_250_000_000_000_000,
            at: 1_633_253_809_720_000_000,
            cpu: 4_700_000_000,
            memory: 1_253_376,
            swap: Some(0),
        };
        assert_eq!(containers["web"], web);
        assert_eq!((containers["side"].start, containers["side"].cpu), (0, 15_000_000_000));
    }

    #[test]
    fn lines() {
        type Parts<'a> = (&'a str, &'a [(&'a str, &'a str)], f64, Option<i64>);
        let check = |line: &str, expected: Result<Parts, &str>| {
            let got = series(line);
            let got = got.as_ref().map(|s| {
                let labels: Vec<_> = s.labels.iter().map(|(k, v)| (*k, v.as_ref())).collect();
                (s.name, labels, s.value, s.at)
            });
            let expected = expected.map(|(name, labels, value, at)| (name, labels.to_vec(), value, at));
            assert_eq!(got.map_err(String::as_str), expected, "{line}");
        };
        check("up 1", Ok(("up", &[], 1.0, None)));
        check("up{} +Inf -5", Ok(("up", &[], f64::INFINITY, Some(-5))));
        check("a:b{x=\"1\",y=\"\",} 2", Ok(("a:b", &[("x", "1"), ("y", "")], 2.0, None)));
        check(r#"a{ x = "q\"\\\n}" } 3"#, Ok(("a", &[("x", "q\"\\\n}")], 3.0, None)));
        check("up", Err("a name without a value"));
        check("{a=\"1\"} 2", Err("\"\" is no name"));
        check("up{a} 1", Err("a label without a value"));
        check("up{a=1} 1", Err("a label's value without quotes"));
        check("up{a=\"1} 1", Err("a label's value does not end"));
        check("up{a=\"1\\", Err("a label's value does not end"));
        check("up{a=\"1\"}", Err("no value"));
        check("up x", Err("\"x\" is no number"));
        check("up 1 x", Err("\"x\" is no timestamp"));
        check("up 1 2 3", Err("unexpected \"3\""));
    }

    #[test]
    fn numbers_that_do_not_fit() {
        let check = |value: &str, expected: Option<u64>| {
            let text = format!("node_cpu_usage_seconds_total {value}\nnode_memory_working_set_bytes 1\n");
            assert_eq!(parse(&text, 7).unwrap().node.map(|node| node.cpu), expected, "{value}");
        };
        check("1", Some(1_000_000_000));
        check("NaN", None);
        check("-1", None);
        check("+Inf", Some(u64::MAX));
        assert!(parse("node_cpu_usage_seconds_total 1 x", 0).unwrap_err().starts_with("line 1: "));
    }
}
