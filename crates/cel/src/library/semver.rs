//! Semantic versions, read as the library upstream uses reads them, with its errors.

use std::cmp::Ordering;

/// A version.
#[derive(Debug)]
pub struct Version {
    pub major: u64,
    pub minor: u64,
    pub patch: u64,
    pre: Vec<Part>,
}

/// A part of the pre-release. Numbers come before words.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Word(String),
}

impl Version {
    /// Reads a version; `normalise` accepts a leading `v`, missing parts and leading zeros.
    pub fn parse(text: &str, normalise: bool) -> Result<Version, String> {
        if text.is_empty() {
            return Err("Version string empty".to_owned());
        }
        let normalised;
        let text = match normalise {
            true => {
                normalised = normal(text);
                &normalised
            }
            false => text,
        };
        let mut parts = text.splitn(3, '.');
        let (Some(major), Some(minor), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("No Major.Minor.Patch elements found".to_owned());
        };
        let (rest, build) = match rest.split_once('+') {
            Some((rest, build)) => (rest, Some(build)),
            None => (rest, None),
        };
        let (patch, pre) = match rest.split_once('-') {
            Some((patch, pre)) => (patch, Some(pre)),
            None => (rest, None),
        };
        let version = Version {
            major: number("major", "Major", major)?,
            minor: number("minor", "Minor", minor)?,
            patch: number("patch", "Patch", patch)?,
            pre: pre.map(|pre| pre.split('.').map(part).collect()).transpose()?.unwrap_or_default(),
        };
        for word in build.into_iter().flat_map(|build| build.split('.')) {
            if word.is_empty() {
                return Err("Build meta data is empty".to_owned());
            }
            if !word.bytes().all(is_word) {
                return Err(format!("Invalid character(s) found in build meta data {word:?}"));
            }
        }
        Ok(version)
    }

    /// The order of versions; builds do not matter.
    pub fn compare(&self, other: &Version) -> Ordering {
        let numbers = |version: &Version| (version.major, version.minor, version.patch);
        numbers(self).cmp(&numbers(other)).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => self.pre.cmp(&other.pre),
        })
    }
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'-'
}

fn number(what: &str, capital: &str, text: &str) -> Result<u64, String> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("Invalid character(s) found in {what} number {text:?}"));
    }
    if text.len() > 1 && text.starts_with('0') {
        return Err(format!("{capital} number must not contain leading zeroes {text:?}"));
    }
    text.parse().map_err(|_| {
        let why = if text.is_empty() { "invalid syntax" } else { "value out of range" };
        format!("strconv.ParseUint: parsing {text:?}: {why}")
    })
}

fn part(text: &str) -> Result<Part, String> {
    if text.is_empty() {
        return Err("Prerelease is empty".to_owned());
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        if text.len() > 1 && text.starts_with('0') {
            return Err(format!("Numeric PreRelease version must not contain leading zeroes {text:?}"));
        }
        return text
            .parse()
            .map(Part::Number)
            .map_err(|_| format!("strconv.ParseUint: parsing {text:?}: value out of range"));
    }
    if !text.bytes().all(is_word) {
        return Err(format!("Invalid character(s) found in prerelease {text:?}"));
    }
    Ok(Part::Word(text.to_owned()))
}

fn normal(text: &str) -> String {
    let text = text.trim().strip_prefix('v').unwrap_or(text.trim());
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (core, rest) = text.split_at(end);
    let mut parts: Vec<String> = core
        .splitn(3, '.')
        .map(|part| {
            let bare = part.trim_start_matches('0');
            if bare.is_empty() && !part.is_empty() { "0".to_owned() } else { bare.to_owned() }
        })
        .collect();
    while parts.len() < 3 && rest.is_empty() {
        parts.push("0".to_owned());
    }
    format!("{}{rest}", parts.join("."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn versions() {
        let order =
            ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-2a", "1.0.0", "1.0.1", "1.10.0"];
        let parsed: Vec<Version> = order.iter().map(|text| Version::parse(text, false).unwrap()).collect();
        assert!(parsed[0].compare(&parsed[1]).is_lt());
        assert!(parsed[4].compare(&parsed[3]).is_gt());
        assert!(parsed[6].compare(&parsed[5]).is_gt());
        assert_eq!(Version::parse("1.0", false).unwrap_err(), "No Major.Minor.Patch elements found");
        assert_eq!(Version::parse("v01.1", true).unwrap().major, 1);
        assert!(Version::parse("1.2.3+", false).is_err());
    }
}
