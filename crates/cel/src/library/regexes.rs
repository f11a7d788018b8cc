//! Patterns in RE2's syntax, matched by an engine that is linear in the text as RE2 is.

use regex::{Regex, RegexBuilder};

use super::mismatch;
use crate::error::EvalError;
use crate::val::{Res, Val};

/// The most memory a compiled pattern may take, in bytes.
const SIZE_LIMIT: usize = 4 << 20;
/// RE2's bound of a counted repetition.
const MAX_REPEAT: u32 = 1000;

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Res<'a> {
    let Some(pattern) = args.get(1).and_then(Val::as_str) else { return Err(mismatch(function, args)) };
    let regex = compile_pattern(pattern)?;
    match_pattern(function, &regex, args)
}

/// `matches`, `find` and `findAll` with a compiled pattern.
pub fn match_pattern<'a>(function: &str, regex: &Regex, args: &[Val<'a>]) -> Res<'a> {
    match (function, args) {
        ("matches", [Val::String(text), _]) => Ok(Val::Bool(regex.is_match(text.as_str()))),
        ("find", [Val::String(text), _]) => {
            Ok(Val::string(regex.find(text.as_str()).map_or("", |found| found.as_str())))
        }
        ("findAll", [Val::String(text), _]) => Ok(find_all(regex, text.as_str(), usize::MAX)),
        ("findAll", [Val::String(text), _, Val::Int(limit)]) => {
            // Negative: no limit.
            Ok(find_all(regex, text.as_str(), usize::try_from(*limit).unwrap_or(usize::MAX)))
        }
        _ => Err(mismatch(function, args)),
    }
}

fn find_all<'a>(regex: &Regex, text: &str, limit: usize) -> Val<'a> {
    Val::list(regex.find_iter(text).take(limit).map(|found| Val::string(found.as_str())).collect())
}

/// Whether a pattern is valid.
pub fn check_pattern(pattern: &str) -> bool {
    compile_pattern(pattern).is_ok()
}

/// A pattern, compiled. The error begins as upstream's does.
pub fn compile_pattern(pattern: &str) -> Result<Regex, EvalError> {
    let translated = translate(pattern).map_err(|what| problem(what, pattern))?;
    RegexBuilder::new(&translated).size_limit(SIZE_LIMIT).nest_limit(250).build().map_err(|error| match error
    {
        regex::Error::CompiledTooBig(_) => problem("expression too large", pattern),
        regex::Error::Syntax(text) => {
            let what = text.lines().rev().find_map(|line| line.strip_prefix("error: ")).unwrap_or("invalid");
            problem(what, pattern)
        }
        other => problem(&other.to_string(), pattern),
    })
}

fn problem(what: &str, pattern: &str) -> EvalError {
    let shown: String = pattern.chars().take(200).collect();
    // RE2's words for the commonest mistakes.
    let what = match what {
        "unclosed group" => "missing closing )",
        "unopened group" => "unexpected )",
        "unclosed character class" => "missing closing ]",
        "repetition operator missing expression" => "missing argument to repetition operator",
        other => other,
    };
    EvalError::text(format!("error parsing regexp: {what}: `{shown}`"))
}

/// RE2's syntax in that of the engine: Perl classes are ASCII, brackets and `&&` inside classes are characters,
/// `\Q…\E` quotes, repetitions are bounded.
fn translate(pattern: &str) -> Result<String, &'static str> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut at = 0;
    let mut class_start: Option<usize> = None;
    while at < chars.len() {
        let c = chars[at];
        let in_class = class_start.is_some();
        match c {
            '\\' => {
                let Some(&escaped) = chars.get(at + 1) else {
                    return Err("trailing backslash at end of expression");
                };
                at += 2;
                match (escaped, in_class) {
                    ('Q', false) => {
                        while at < chars.len() && !(chars[at] == '\\' && chars.get(at + 1) == Some(&'E')) {
                            out.push_str(&regex::escape(&chars[at].to_string()));
                            at += 1;
                        }
                        at = (at + 2).min(chars.len());
                    }
                    ('d', _) => out.push_str("[0-9]"),
                    ('D', _) => out.push_str("[^0-9]"),
                    ('w', _) => out.push_str("[0-9A-Za-z_]"),
                    ('W', _) => out.push_str("[^0-9A-Za-z_]"),
                    ('s', _) => out.push_str("[\\t\\n\\f\\r ]"),
                    ('S', _) => out.push_str("[^\\t\\n\\f\\r ]"),
                    ('b', false) => out.push_str("(?-u:\\b)"),
                    ('0'..='7', _) => {
                        let digits: String =
                            chars[at - 1..].iter().take(3).take_while(|c| ('0'..='7').contains(c)).collect();
                        if digits.len() == 1 && escaped != '0' {
                            return Err("invalid escape sequence");
                        }
                        at += digits.len() - 1;
                        let code = u32::from_str_radix(&digits, 8).map_err(|_| "invalid escape sequence")?;
                        out.push_str(&format!("\\x{{{code:x}}}"));
                    }
                    (
                        'Z' | 'G' | 'K' | 'R' | 'X' | 'h' | 'H' | 'V' | 'k' | 'N' | '<' | '>' | 'u' | 'U',
                        _,
                    ) => {
                        return Err("invalid escape sequence");
                    }
                    (other, _) => {
                        out.push('\\');
                        out.push(other);
                    }
                }
                continue;
            }
            '[' if !in_class => {
                out.push('[');
                at += 1;
                if chars.get(at) == Some(&'^') {
                    out.push('^');
                    at += 1;
                }
                class_start = Some(at);
                continue;
            }
            '[' if chars.get(at + 1) == Some(&':') => match named_class(&chars[at..]) {
                Some(length) => {
                    out.extend(&chars[at..at + length]);
                    at += length;
                    continue;
                }
                None => out.push_str("\\["),
            },
            '[' => out.push_str("\\["),
            // A bracket that comes first is a member of its class.
            ']' if class_start == Some(at) => out.push_str("\\]"),
            ']' if in_class => {
                class_start = None;
                out.push(']');
            }
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            '-' if in_class && chars.get(at + 1) == Some(&'-') => out.push_str("\\-"),
            '{' if !in_class => match repetition(&chars[at..]) {
                Some(Ok(length)) => {
                    out.extend(&chars[at..at + length]);
                    at += length;
                    continue;
                }
                Some(Err(())) => return Err("invalid repeat count"),
                None => out.push_str("\\{"),
            },
            '}' if !in_class => out.push_str("\\}"),
            other => out.push(other),
        }
        at += 1;
    }
    Ok(out)
}

/// The length of `[:alpha:]`.
fn named_class(chars: &[char]) -> Option<usize> {
    let end = chars.iter().take(16).skip(2).position(|c| *c == ':')? + 2;
    (chars.get(end + 1) == Some(&']')).then_some(end + 2)
}

/// The length of `{2,3}`; `Err` where the counts are too large, `None` where this is no repetition.
fn repetition(chars: &[char]) -> Option<Result<usize, ()>> {
    let end = chars.iter().take(32).position(|c| *c == '}')?;
    let body: String = chars[1..end].iter().collect();
    let (low, high) = body.split_once(',').unwrap_or((&body, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if low.is_empty() || !digits(low) || !digits(high) {
        return None;
    }
    let within = |text: &str| text.is_empty() || text.parse::<u32>().is_ok_and(|count| count <= MAX_REPEAT);
    Some(if within(low) && within(high) { Ok(end + 1) } else { Err(()) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn syntax_is_re2s() {
        let cases = [
            (r"^\d+$", "12", true),
            (r"^\d+$", "١٢", false),
            (r"^\w+$", "é", false),
            (r"^[[:alpha:]]+$", "abc", true),
            (r"[a[b]", "[", true),
            (r"^[]a]+$", "]a", true),
            (r"^a{,2}$", "a{,2}", true),
            (r"^\Qa.b\E$", "a.b", true),
            (r"^\Qa.b\E$", "axb", false),
            (r"^[a-z&&[^b]]$", "&]", true),
            (r"^\141$", "a", true),
            (r"(?i)ABC", "xabc", true),
        ];
        for (pattern, text, matches) in cases {
            assert_eq!(compile_pattern(pattern).unwrap().is_match(text), matches, "{pattern} {text}");
        }
    }

    #[test]
    fn bad_patterns() {
        let cases = [
            ("(", "error parsing regexp: missing closing ): `(`"),
            ("[a", "error parsing regexp: missing closing ]: `[a`"),
            ("*", "error parsing regexp: missing argument to repetition operator: `*`"),
            ("a{1001}", "error parsing regexp: invalid repeat count: `a{1001}`"),
            (
                "((a{1000}){1000}){1000}",
                "error parsing regexp: expression too large: `((a{1000}){1000}){1000}`",
            ),
        ];
        for (pattern, want) in cases {
            assert_eq!(compile_pattern(pattern).unwrap_err().to_string(), want);
        }
        assert!(compile_pattern(r"(?=a)").is_err());
    }
}
