//! Which release is answered as, what `/metrics` shows, and how others are reached.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use orlop_apiserver::Options;
use orlop_apiserver::metrics::Shaping;
use serde_json::Value;

use super::flags::Flags;

/// The release this server is of, and the one before.
const OWN: &str = "1.36";
const FORMER: &str = "1.35";

/// Takes these flags in.
pub fn options(flags: &Flags, options: Options) -> anyhow::Result<Options> {
    release(flags, "emulated-version", OWN)?;
    release(flags, "min-compatibility-version", FORMER)?;
    if let Some(version) = flags.optional("show-hidden-metrics-for-version") {
        ensure!(
            version == FORMER,
            "--show-hidden-metrics-for-version must be omitted or have the value '{FORMER}'. Only the previous minor version is allowed"
        );
    }
    if let Some(path) = flags.path("egress-selector-config-file") {
        egress(&path).with_context(|| format!("--egress-selector-config-file {}", path.display()))?;
    }
    Ok(Options { metrics: shaping(flags)?, kubelet_timeout: flags.duration("kubelet-timeout")?, ..options })
}

/// Releases by component, of which there is one here.
fn release(flags: &Flags, name: &str, only: &str) -> anyhow::Result<()> {
    for item in flags.list(name) {
        let (component, version) = item.split_once('=').unwrap_or(("kube", &item));
        ensure!(component == "kube", "--{name}: component not registered: {component}");
        let plain = version.trim_start_matches('v');
        ensure!(
            plain == only || plain.strip_prefix(only) == Some(".0"),
            "--{name} {item}: this server knows the behaviour of {OWN} alone; use kube={only} or leave it out"
        );
    }
    Ok(())
}

fn shaping(flags: &Flags) -> anyhow::Result<Shaping> {
    let mut shaping =
        Shaping { disabled: flags.list("disabled-metrics").into_iter().collect(), ..Shaping::default() };
    for text in flags.list("allow-metric-labels") {
        for pair in pairs(&text) {
            let (key, values) = pair
                .split_once('=')
                .with_context(|| format!("--allow-metric-labels: {pair:?} must be formatted as key=value"))?;
            allow(&mut shaping, key, values).context("--allow-metric-labels")?;
        }
    }
    if let Some(path) = flags.path("allow-metric-labels-manifest") {
        let said = || format!("--allow-metric-labels-manifest {}", path.display());
        for (key, values) in document(&path).with_context(said)?.as_object().into_iter().flatten() {
            let values =
                values.as_str().with_context(|| format!("{key}: must be a text")).with_context(said)?;
            allow(&mut shaping, key, values).with_context(said)?;
        }
    }
    Ok(shaping)
}

/// The pairs of a flag's value. One alone may have commas; of several, those that have are in quotes.
fn pairs(text: &str) -> Vec<String> {
    if text.matches('=').count() <= 1 {
        return vec![text.trim_matches('"').to_owned()];
    }
    let (mut pairs, mut quoted) = (vec![String::new()], false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => pairs.push(String::new()),
            c => {
                if let Some(pair) = pairs.last_mut() {
                    pair.push(c);
                }
            }
        }
    }
    pairs
}

/// `METRIC,LABEL` and its values.
fn allow(shaping: &mut Shaping, key: &str, values: &str) -> anyhow::Result<()> {
    let name = |text: &str| {
        let mut chars = text.chars();
        chars.next().is_some_and(|c| c.is_ascii_alphabetic() || matches!(c, '_' | ':'))
            && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))
    };
    let Some((metric, label)) = key.split_once(',').filter(|(metric, label)| name(metric) && name(label))
    else {
        bail!("{key:?} must be METRIC,LABEL");
    };
    let values: BTreeSet<String> =
        values.trim_matches('\'').split(',').map(|v| v.trim().to_owned()).collect();
    shaping.allowed.insert((metric.to_owned(), label.to_owned()), values);
    Ok(())
}

fn document(path: &Path) -> anyhow::Result<Value> {
    Ok(serde_saphyr::from_str(&std::fs::read_to_string(path)?)?)
}

/// Checks a file of ways out: this server has the direct one.
fn egress(path: &Path) -> anyhow::Result<()> {
    let file = document(path)?;
    ensure!(
        file["kind"] == "EgressSelectorConfiguration"
            && file["apiVersion"].as_str().is_some_and(|version| version.starts_with("apiserver.k8s.io/v1")),
        "no kind {} is registered for version {}",
        file["kind"],
        file["apiVersion"]
    );
    for selection in file["egressSelections"].as_array().into_iter().flatten() {
        let name = selection["name"].as_str().unwrap_or("");
        ensure!(
            matches!(name, "controlplane" | "cluster" | "etcd"),
            "egressSelections: {name:?} is none of controlplane, cluster and etcd"
        );
        let protocol = selection.pointer("/connection/proxyProtocol").and_then(Value::as_str).unwrap_or("");
        ensure!(
            protocol == "Direct",
            "egressSelections {name:?}: proxyProtocol {protocol:?} is not built; use Direct, and let the network route to {name}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(arguments: &[&str]) -> Result<Options, String> {
        let flags = Flags::of(arguments).unwrap();
        options(&flags, Options::default()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn releases() {
        for good in [
            "--emulated-version=1.36",
            "--emulated-version=kube=v1.36",
            "--min-compatibility-version=kube=1.35",
        ] {
            assert!(read(&[good]).is_ok(), "{good}");
        }
        let check = |argument: &str, expected: &str| {
            let error = read(&[argument]).err().unwrap();
            assert!(error.contains(expected), "{error}");
        };
        check("--emulated-version=kube=1.35", "use kube=1.36 or leave it out");
        check("--emulated-version=wardle=1.2", "component not registered: wardle");
        check("--min-compatibility-version=1.33", "use kube=1.35 or leave it out");
        check("--show-hidden-metrics-for-version=1.34", "must be omitted or have the value '1.35'");
        assert!(read(&["--show-hidden-metrics-for-version=1.35"]).is_ok());
    }

    #[test]
    fn metrics() {
        let check = |arguments: &[&str], expected: &[(&str, &str, &[&str])]| {
            let allowed = read(arguments).unwrap().metrics.allowed;
            let expected = expected.iter().map(|(metric, label, values)| {
                let values: BTreeSet<String> = values.iter().map(|value| value.to_string()).collect();
                ((metric.to_string(), label.to_string()), values)
            });
            assert_eq!(allowed, expected.collect(), "{arguments:?}");
        };
        check(&["--allow-metric-labels=m,l=a,b"], &[("m", "l", &["a", "b"])]);
        check(
            &["--allow-metric-labels=m,l='a,b'", "--allow-metric-labels=m,k=c"],
            &[("m", "l", &["a", "b"]), ("m", "k", &["c"])],
        );
        check(
            &[r#"--allow-metric-labels="m,l=a,b","n,l=c""#],
            &[("m", "l", &["a", "b"]), ("n", "l", &["c"])],
        );
        let dir = tempfile::tempdir().unwrap();
        let manifest = dir.path().join("manifest");
        std::fs::write(&manifest, "\"m,l\": a,b\n").unwrap();
        check(
            &[&format!("--allow-metric-labels-manifest={}", manifest.display())],
            &[("m", "l", &["a", "b"])],
        );
        assert!(read(&["--allow-metric-labels=m=a"]).err().unwrap().contains("must be METRIC,LABEL"));
        assert!(read(&["--allow-metric-labels=m"]).err().unwrap().contains("must be formatted as key=value"));
        assert_eq!(read(&["--disabled-metrics=a,b"]).unwrap().metrics.disabled.len(), 2);
        assert_eq!(read(&["--kubelet-timeout=7s"]).unwrap().kubelet_timeout.as_secs(), 7);
    }

    #[test]
    fn ways_out() {
        let dir = tempfile::tempdir().unwrap();
        let check = |text: &str, expected: Option<&str>| {
            let path = dir.path().join("egress.yaml");
            std::fs::write(&path, text).unwrap();
            let error = read(&[&format!("--egress-selector-config-file={}", path.display())]).err();
            match (error, expected) {
                (None, None) => {}
                (Some(error), Some(expected)) => assert!(error.contains(expected), "{error}"),
                (error, expected) => panic!("{error:?} is not {expected:?}"),
            }
        };
        let file = |name: &str, protocol: &str| {
            format!(
                "apiVersion: apiserver.k8s.io/v1beta1\nkind: EgressSelectorConfiguration\negressSelections:\n- name: {name}\n  connection: {{proxyProtocol: {protocol}}}\n"
            )
        };
        check(&file("cluster", "Direct"), None);
        check(&file("cluster", "GRPC"), Some("proxyProtocol \"GRPC\" is not built; use Direct"));
        check(&file("moon", "Direct"), Some("\"moon\" is none of"));
        check("kind: Foo\napiVersion: v1\n", Some("no kind"));
    }
}
