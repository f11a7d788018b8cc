//! The configuration file: a YAML map whose keys are the flags of the subcommand. What the command line says wins.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

const DEFAULT: &str = "/etc/orlop/config.yaml";

/// Puts the file's flags between the subcommand and the flags given by hand. Only `server` reads a file.
pub fn with_file(mut arguments: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    let Some(position) = arguments.iter().position(|argument| argument == "server") else {
        return Ok(arguments);
    };
    let Some(path) = path(&arguments) else { return Ok(arguments) };
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("configuration file {}", path.display()))?;
    let flags = flags(&text).with_context(|| format!("configuration file {}", path.display()))?;
    arguments.splice(position + 1..position + 1, flags.into_iter().map(OsString::from));
    Ok(arguments)
}

fn path(arguments: &[OsString]) -> Option<PathBuf> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--config" {
            return rest.next().map(PathBuf::from);
        }
        if let Some(path) = argument.to_str().and_then(|text| text.strip_prefix("--config=")) {
            return Some(PathBuf::from(path));
        }
    }
    Some(PathBuf::from(DEFAULT)).filter(|path| Path::exists(path))
}

fn flags(text: &str) -> anyhow::Result<Vec<String>> {
    let keys: Value = serde_saphyr::from_str(text).context("not valid YAML")?;
    let mut flags = Vec::new();
    match keys {
        Value::Null => {}
        Value::Object(keys) => {
            for (key, value) in &keys {
                let values = match value {
                    Value::Array(values) => values.as_slice(),
                    one => std::slice::from_ref(one),
                };
                for value in values {
                    flags.extend(flag(key, value)?);
                }
            }
        }
        _ => bail!("must be a map of flag names to values, such as `node-name: n1`"),
    }
    Ok(flags)
}

fn flag(key: &str, value: &Value) -> anyhow::Result<Option<String>> {
    Ok(match value {
        Value::Bool(true) => Some(format!("--{key}")),
        Value::Bool(false) | Value::Null => None,
        Value::String(text) => Some(format!("--{key}={text}")),
        Value::Number(number) => Some(format!("--{key}={number}")),
        Value::Array(_) | Value::Object(_) => {
            bail!("{key}: must be a text, a number, true, false or a list of these")
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::flags;

    #[test]
    fn keys_become_flags() {
        let check = |text: &str, expected: &[&str]| assert_eq!(flags(text).unwrap(), expected, "{text}");
        check("", &[]);
        check("node-name: n1\nhttps-listen-port: 7443\n", &["--node-name=n1", "--https-listen-port=7443"]);
        check("disable-agent: true\n", &["--disable-agent"]);
        check("disable-agent: false\n", &[]);
        check("tls-san: [a.example, 10.0.0.1]\n", &["--tls-san=a.example", "--tls-san=10.0.0.1"]);
    }

    #[test]
    fn a_wrong_file_says_what_is_wrong() {
        let check = |text: &str, expected: &str| {
            let error = format!("{:#}", flags(text).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("- a", "must be a map");
        check("node-name: {a: b}", "node-name: must be a text");
        check("a: [", "not valid YAML");
    }
}
