//! Regular expressions in Go's notation, with Go's words for what is wrong with one.

use regex::{Regex, RegexBuilder};

/// Bytes that a compiled expression may take.
const SIZE_LIMIT: usize = 4 * 1024 * 1024;

/// Compiles an expression.
///
/// # Errors
/// Go's text: ``error parsing regexp: missing closing ): `((` ``.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .size_limit(SIZE_LIMIT)
        .build()
        .map_err(|error| format!("error parsing regexp: {}", describe(pattern, &error)))
}

fn describe(pattern: &str, error: &regex::Error) -> String {
    if let regex::Error::CompiledTooBig(_) = error {
        return "expression nests too deeply".to_string();
    }
    let text = error.to_string();
    let says = |part: &str| text.contains(part);
    if says("unclosed group") {
        format!("missing closing ): `{pattern}`")
    } else if says("unopened group") {
        format!("unexpected ): `{pattern}`")
    } else if says("unclosed character class") {
        let at = pattern.rfind('[').unwrap_or(0);
        format!("missing closing ]: `{}`", &pattern[at..])
    } else if says("repetition operator missing expression") {
        let at = pattern.find(['*', '+', '?', '{']).unwrap_or(0);
        let end = at + pattern[at..].chars().next().map_or(0, char::len_utf8);
        format!("missing argument to repetition operator: `{}`", &pattern[at..end])
    } else if says("unrecognized escape sequence") || says("look-around") || says("backreferences") {
        escape(pattern)
    } else if says("invalid character class range") {
        "invalid character class range".to_string()
    } else {
        let last = text.lines().last().unwrap_or("").trim_start_matches("error: ");
        format!("{last}: `{pattern}`")
    }
}

/// Escapes and groups that neither engine knows.
fn escape(pattern: &str) -> String {
    for (at, _) in pattern.match_indices("(?") {
        let rest = &pattern[at..];
        if ["(?=", "(?!", "(?<=", "(?<!"].iter().any(|group| rest.starts_with(group)) {
            let length = if rest.starts_with("(?<") { 4 } else { 3 };
            return format!("invalid or unsupported Perl syntax: `{}`", &rest[..length.min(rest.len())]);
        }
    }
    let mut chars = pattern.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == '\\'
            && let Some((_, next)) = chars.next()
            && next.is_ascii_alphanumeric()
            && !"AabBCdDfnpPQEsStvwWxz".contains(next)
        {
            return format!("invalid escape sequence: `{}`", &pattern[at..at + 1 + next.len_utf8()]);
        }
    }
    format!("invalid escape sequence: `{pattern}`")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn errors_are_gos() {
        let check = |pattern: &str, expected: &str| {
            assert_eq!(compile(pattern).unwrap_err(), format!("error parsing regexp: {expected}"));
        };
        check("((", "missing closing ): `((`");
        check("a)", "unexpected ): `a)`");
        check("[a", "missing closing ]: `[a`");
        check("*a", "missing argument to repetition operator: `*`");
        check("(?!a)", "invalid or unsupported Perl syntax: `(?!`");
        check(r"\1", r"invalid escape sequence: `\1`");
        assert!(compile("^[a-z]+$").is_ok());
    }
}
