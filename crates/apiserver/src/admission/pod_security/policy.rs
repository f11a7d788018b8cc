//! Levels, versions and the labels of a namespace that choose them.

use std::fmt;

use orlop_api::field::{self, ErrorList, Path};

/// How strict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    /// By name.
    pub(super) fn parse(text: &str) -> Result<Level, &'static str> {
        match text {
            "privileged" => Ok(Level::Privileged),
            "baseline" => Ok(Level::Baseline),
            "restricted" => Ok(Level::Restricted),
            _ => Err("must be one of privileged, baseline, restricted"),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        })
    }
}

/// Of which release the checks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// The newest there are.
    Latest,
    /// `v1.N`.
    Minor(u32),
}

impl Version {
    /// `latest` or `v1.N`.
    pub(super) fn parse(text: &str) -> Result<Version, &'static str> {
        const WRONG: &str = "must be \"latest\" or \"v1.x\"";
        if text == "latest" {
            return Ok(Version::Latest);
        }
        let minor = text.strip_prefix("v1.").ok_or(WRONG)?;
        let plain = minor.bytes().all(|b| b.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0'));
        if !plain {
            return Err(WRONG);
        }
        minor.parse().map(Version::Minor).map_err(|_| WRONG)
    }

    /// The minor version whose checks apply; a future one has those of the newest.
    pub(super) fn minor(self) -> u32 {
        match self {
            Version::Latest => u32::MAX,
            Version::Minor(minor) => minor,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Version::Latest => f.write_str("latest"),
            Version::Minor(minor) => write!(f, "v1.{minor}"),
        }
    }
}

/// A level as of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LevelVersion {
    pub(super) level: Level,
    pub(super) version: Version,
}

impl LevelVersion {
    /// Whether both come to the same: privileged is so in every version.
    pub(super) fn is_equivalent(self, other: LevelVersion) -> bool {
        self.level == other.level && (self.level == Level::Privileged || self.version == other.version)
    }
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.level, self.version)
    }
}

/// What a namespace asks for in each mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// What is refused.
    pub(super) enforce: LevelVersion,
    /// What is noted in the audit log.
    pub(super) audit: LevelVersion,
    /// What the client is warned of.
    pub(super) warn: LevelVersion,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "enforce={}, audit={}, warn={}", self.enforce, self.audit, self.warn)
    }
}

impl Policy {
    /// Whether both come to the same in every mode.
    pub(super) fn is_equivalent(&self, other: &Policy) -> bool {
        self.enforce.is_equivalent(other.enforce)
            && self.audit.is_equivalent(other.audit)
            && self.warn.is_equivalent(other.warn)
    }

    /// Anything goes.
    pub(super) const PRIVILEGED: Policy = {
        let any = LevelVersion { level: Level::Privileged, version: Version::Latest };
        Policy { enforce: any, audit: any, warn: any }
    };

    /// By a namespace's labels, with `defaults` where it has none. A label that cannot be read counts as `restricted`
    /// where it enforces and as `privileged` where it only tells; a version as `latest`.
    pub(super) fn of<'a>(defaults: &Policy, label: impl Fn(&str) -> Option<&'a str>) -> (Policy, ErrorList) {
        let mut policy = *defaults;
        let mut errors = ErrorList::new();
        let path = Path::new("metadata").child("labels");
        let modes = [
            ("enforce", &mut policy.enforce, Level::Restricted),
            ("audit", &mut policy.audit, Level::Privileged),
            ("warn", &mut policy.warn, Level::Privileged),
        ];
        for (mode, target, fallback) in modes {
            let key = format!("pod-security.kubernetes.io/{mode}");
            if let Some(text) = label(&key) {
                target.level = Level::parse(text).unwrap_or_else(|message| {
                    errors.push(field::invalid(&path.key(&key), text, message));
                    fallback
                });
            }
            let key = format!("{key}-version");
            if let Some(text) = label(&key) {
                target.version = Version::parse(text).unwrap_or_else(|message| {
                    errors.push(field::invalid(&path.key(&key), text, message));
                    Version::Latest
                });
            }
        }
        (policy, errors)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn labels() {
        let check = |labels: &[(&str, &str)], expected: &str, errors: &[&str]| {
            let (policy, list) = Policy::of(&Policy::PRIVILEGED, |key| {
                let key = key.strip_prefix("pod-security.kubernetes.io/").unwrap();
                labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
            });
            assert_eq!(format!("{} {} {}", policy.enforce, policy.audit, policy.warn), expected);
            let list: Vec<String> = list.iter().map(ToString::to_string).collect();
            assert_eq!(list, errors);
        };
        check(&[], "privileged:latest privileged:latest privileged:latest", &[]);
        check(
            &[("enforce", "baseline"), ("warn", "restricted"), ("warn-version", "v1.25")],
            "baseline:latest privileged:latest restricted:v1.25",
            &[],
        );
        check(
            &[("enforce", "x"), ("audit", "y"), ("warn-version", "v1.01")],
            "restricted:latest privileged:latest privileged:latest",
            &[
                "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"x\": must be one of privileged, baseline, restricted",
                "metadata.labels[pod-security.kubernetes.io/audit]: Invalid value: \"y\": must be one of privileged, baseline, restricted",
                "metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: \"v1.01\": must be \"latest\" or \"v1.x\"",
            ],
        );
    }
}
