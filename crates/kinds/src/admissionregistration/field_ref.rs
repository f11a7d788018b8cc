//! The references from a policy's status to the fields that its warnings are about: JSON paths as in `kubectl -o jsonpath`.
//!
//! Only whether one can be read is decided here, with the words of upstream's `client-go/util/jsonpath`; nothing is
//! evaluated.

use std::str::Chars;

use orlop_api::field::{self, ErrorList, Path};

/// Filters within filters; more are not read.
const MAX_DEPTH: usize = 16;

/// A reference that is there and can be read.
pub(super) fn validate(errs: &mut ErrorList, path: &Path, reference: &str) {
    let reference = reference.trim();
    if reference.is_empty() {
        errs.push(field::required(path, ""));
    } else if let Err(why) = read_action(reference, 0) {
        errs.push(field::invalid(path, reference, format!("invalid JSONPath: {why}")));
    }
}

type Read<T = ()> = Result<T, String>;

/// Reads what stands in braces. Whether the last thing in them descends recursively.
fn read_action(text: &str, depth: usize) -> Read<bool> {
    if depth > MAX_DEPTH {
        return Err("filters are nested too deeply".to_owned());
    }
    let text: Vec<char> = format!("{{{text}}}").chars().collect();
    let mut reader = Reader { text: &text, at: 0, depth };
    let mut first = None;
    // A brace may close early and another action follow.
    while let Some(open) = reader.rest().iter().position(|c| *c == '{') {
        reader.at += open + 1;
        let descends = reader.action()?;
        first.get_or_insert(descends);
    }
    Ok(first.unwrap_or(false))
}

struct Reader<'a> {
    text: &'a [char],
    at: usize,
    depth: usize,
}

fn ends_word(c: Option<char>) -> bool {
    c.is_none_or(|c| matches!(c, ' ' | '\t' | '\r' | '\n' | '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}'))
}

impl Reader<'_> {
    fn rest(&self) -> &[char] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    fn starts_with(&self, prefix: &str) -> bool {
        let rest = self.rest();
        prefix.chars().enumerate().all(|(i, c)| rest.get(i) == Some(&c))
    }

    fn since(&self, start: usize) -> String {
        self.text.get(start..self.at).unwrap_or_default().iter().collect()
    }

    /// Everything up to the closing brace.
    fn action(&mut self) -> Read<bool> {
        let mut descends = false;
        loop {
            let start = self.at;
            if self.starts_with("..") {
                if descends {
                    return Err("invalid multiple recursive descent".to_owned());
                }
                self.at += 2;
                descends = true;
                if self.peek().is_some_and(|c| c == '_' || c.is_alphanumeric()) {
                    self.field();
                    descends = false;
                }
                continue;
            }
            if self.starts_with("[?(") {
                self.filter()?;
                descends = false;
                continue;
            }
            match self.next() {
                Some('}') => return Ok(descends),
                None | Some('\r' | '\n') => return Err("unclosed action".to_owned()),
                Some(' ' | '@' | '$') => continue,
                Some('[') => descends = self.array(start)?,
                Some(quote @ ('"' | '\'')) => {
                    self.quoted(start, quote)?;
                    descends = false;
                }
                Some('.') => {
                    self.field();
                    descends = false;
                }
                Some(c) if c == '+' || c == '-' || c.is_numeric() => {
                    self.number(start)?;
                    descends = false;
                }
                Some(c) if c == '_' || c.is_alphabetic() => {
                    while !ends_word(self.peek()) {
                        self.at += 1;
                    }
                    descends = false;
                }
                Some(c) => return Err(format!("unrecognized character in action: {}", code_point(c))),
            }
        }
    }

    /// A name after a dot; a backslash takes the next character as it is.
    fn field(&mut self) {
        while !ends_word(self.peek()) {
            if self.next() == Some('\\') {
                self.next();
            }
        }
    }

    fn number(&mut self, start: usize) -> Read {
        while self.peek().is_some_and(|c| c == '.' || c.is_numeric()) {
            self.at += 1;
        }
        let text = self.since(start);
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(()),
            _ => Err(format!("cannot parse number {text}")),
        }
    }

    fn quoted(&mut self, start: usize, quote: char) -> Read {
        loop {
            match self.next() {
                None | Some('\n') => return Err("unterminated quoted string".to_owned()),
                Some(c) if c == quote && self.text.get(self.at - 2) != Some(&'\\') => break,
                Some(_) => {}
            }
        }
        let text = self.since(start);
        if unquotes(&text, quote) {
            Ok(())
        } else {
            Err(format!("unquote string {text} error invalid syntax"))
        }
    }

    /// An index, a slice, a quoted key, or several of them. Whether the action descends after it.
    fn array(&mut self, start: usize) -> Read<bool> {
        loop {
            match self.next() {
                None | Some('\n') => return Err("unterminated array".to_owned()),
                Some(']') => break,
                Some(_) => {}
            }
        }
        let text = self.since(start);
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or_default();
        if inner == "*" {
            return Ok(false);
        }
        if inner.contains(',') {
            for member in inner.split(',') {
                read_action(&format!("[{}]", member.trim_matches(' ')), self.depth + 1)?;
            }
            return Ok(false);
        }
        let key = inner.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
        if let Some(key) = key.filter(|key| !key.contains('\'')) {
            return read_action(&format!(".{key}"), self.depth + 1);
        }
        validate_slice(inner)?;
        Ok(false)
    }

    fn filter(&mut self) -> Read {
        self.at += 3;
        let start = self.at;
        let (mut quote, mut closed) = (None, false);
        loop {
            match self.next() {
                None | Some('\n') => return Err("unterminated filter".to_owned()),
                Some(c @ ('"' | '\'')) => match quote {
                    None => quote = Some(c),
                    Some(open) => closed |= c == open && self.text.get(self.at - 2) != Some(&'\\'),
                },
                Some(')') if quote.is_some() == closed => break,
                Some(_) => {}
            }
        }
        let end = self.at - 1;
        if self.next() != Some(']') {
            return Err("unclosed array expect ]".to_owned());
        }
        let inner = self.text.get(start..end).unwrap_or_default();
        let text = |part: &[char]| part.iter().collect::<String>();
        let depth = self.depth + 1;
        match comparison(inner) {
            Some((left, right)) => {
                read_action(&text(left), depth)?;
                read_action(&text(right), depth)?;
            }
            None => {
                read_action(&text(inner), depth)?;
            }
        }
        Ok(())
    }
}

/// The two sides of a filter's operator; `None` when there is no comparison in it.
fn comparison(inner: &[char]) -> Option<(&[char], &[char])> {
    let operator = |c: &char| matches!(c, '!' | '<' | '>' | '=');
    let from = inner.iter().position(operator).filter(|at| *at > 0)?;
    let length = inner[from..].iter().take_while(|c| operator(c)).count();
    // An operator at the end gives its last character to the right side.
    let to = if from + length == inner.len() { inner.len() - 1 } else { from + length };
    (to > from).then(|| (&inner[..from], &inner[to..]))
}

/// `from:to:step`, each of them optional.
fn validate_slice(text: &str) -> Read {
    let parts: Vec<&str> = text.split(':').collect();
    let digits = |part: &&str| part.strip_prefix('-').unwrap_or(part).bytes().all(|b| b.is_ascii_digit());
    if parts.len() > 3 || !parts.iter().all(digits) {
        return Err(format!("invalid array index {text}"));
    }
    match parts.iter().find(|part| !part.is_empty() && part.parse::<i64>().is_err()) {
        Some(part) => Err(format!("array index {part} is not a number")),
        None => Ok(()),
    }
}

/// Whether Go can unquote the text, where single quotes hold strings too.
fn unquotes(text: &str, quote: char) -> bool {
    let Some(inner) = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) else {
        return false;
    };
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c == quote {
            return false;
        }
        if c != '\\' {
            continue;
        }
        let valid = match chars.next() {
            Some('a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\') => true,
            Some('x') => number_of(&mut chars, 0, 2, 16).is_some(),
            Some('u') => number_of(&mut chars, 0, 4, 16).and_then(char::from_u32).is_some(),
            Some('U') => number_of(&mut chars, 0, 8, 16).and_then(char::from_u32).is_some(),
            Some(c) => match c.to_digit(8) {
                Some(first) => number_of(&mut chars, first, 2, 8).is_some_and(|value| value <= 255),
                None => c == quote,
            },
            None => false,
        };
        if !valid {
            return false;
        }
    }
    true
}

/// `value` followed by so many digits.
fn number_of(chars: &mut Chars, value: u32, digits: usize, radix: u32) -> Option<u32> {
    (0..digits).try_fold(value, |value, _| {
        let digit = chars.next()?.to_digit(radix)?;
        value.checked_mul(radix)?.checked_add(digit)
    })
}

/// A character as Go's `%#U` prints it.
fn code_point(c: char) -> String {
    let code = format!("U+{:04X}", u32::from(c));
    if c.is_control() { code } else { format!("{code} '{c}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let check = |reference: &str, why: &str| {
            let mut errs = ErrorList::new();
            validate(&mut errs, &Path::new("fieldRef"), reference);
            let found: Vec<String> = errs.iter().map(|e| e.detail.clone()).collect();
            let expected: Vec<String> =
                (!why.is_empty()).then(|| format!("invalid JSONPath: {why}")).into_iter().collect();
            assert_eq!(found, expected, "{reference}");
        };
        for fine in [
            "spec.validations[0].expression",
            " spec.validations[0].messageExpression\t",
            "$.a",
            "@",
            ".",
            "..a",
            "..a..b",
            "..[0]..b",
            "a[*]",
            "a[]",
            "a[-1:]",
            "a[0:4:2]",
            "a['b.c']",
            "a[0,1,'x']",
            r"a\.b",
            "a.b\\.c",
            r#"a[?(@.b=="c")]"#,
            r#"a[?(@.b=="c)")].d"#,
            "a[?(@.b)]",
            "a[?(@.b>=1.5)]",
            "a[?(@.b=)]",
            "'text' 1 -1.5 +2 true",
            r#"'it\'s' "\x41\u00e9\101""#,
            "range",
            "a} and {b",
            "a} and text",
        ] {
            check(fine, "");
        }
        check("spec.validations[0", "unterminated array");
        check("spec.validations[x]", "invalid array index x");
        check("spec.validations[0][a,b]", "invalid array index a");
        check("a[1:2:3:4]", "invalid array index 1:2:3:4");
        check("a[-]", "array index - is not a number");
        check("a[99999999999999999999]", "array index 99999999999999999999 is not a number");
        check("(a)", "unrecognized character in action: U+0028 '('");
        check("a,b", "unrecognized character in action: U+002C ','");
        check("\u{1}", "unrecognized character in action: U+0001");
        check("a\nb", "unclosed action");
        check("a {b", "unrecognized character in action: U+007B '{'");
        check("....a", "invalid multiple recursive descent");
        check("..['.']..a", "invalid multiple recursive descent");
        check("1.2.3", "cannot parse number 1.2.3");
        check("-", "cannot parse number -");
        check("'a", "unterminated quoted string");
        check(r"'\q'", r"unquote string '\q' error invalid syntax");
        check(r"'\777'", r"unquote string '\777' error invalid syntax");
        check(r"'\ud800'", r"unquote string '\ud800' error invalid syntax");
        check("a[?(@.b]", "unterminated filter");
        check("a[?(@.b)", "unclosed array expect ]");
        check(r#"a[?(@.b=="c)]"#, "unterminated filter");
        check("a[?(@.b==(1))]", "unclosed array expect ]");
    }

    #[test]
    fn nesting_is_bounded() {
        let mut text = "a".to_owned();
        for _ in 0..1000 {
            text = format!(r#"a\"[?({text})]\""#);
        }
        assert!(read_action(&text, 0).is_err());
        assert!(read_action(&"[0]".repeat(100_000), 0).is_ok());
        assert!(read_action(&"..".repeat(2), 0).is_err());
    }
}
