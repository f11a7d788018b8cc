//! JSON's tokens, with the texts of Go's `encoding/json` for what is malformed.

use std::borrow::Cow;

use orlop_json::{Map, Number, Value};

/// How deep lists and objects may nest. Everything inside reads JSON with `serde_json`, whose limit this is; upstream
/// stops at 10,000.
pub const MAX_DEPTH: usize = 127;

/// The body is not JSON: Go's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syntax(pub String);

/// Reads tokens from bytes.
#[derive(Debug)]
pub struct Lexer<'a> {
    data: &'a [u8],
    pos: usize,
    depth: usize,
    /// Objects' repeated keys, as paths; only [`Lexer::any`] fills it.
    pub duplicates: Vec<String>,
}

impl<'a> Lexer<'a> {
    /// Starts at the beginning.
    pub fn new(data: &'a [u8]) -> Lexer<'a> {
        Lexer { data, pos: 0, depth: 0, duplicates: Vec::new() }
    }

    /// Skips white space and looks at the next byte.
    pub fn peek(&mut self) -> Option<u8> {
        while let Some(b) = self.data.get(self.pos) {
            if !matches!(b, b' ' | b'\t' | b'\r' | b'\n') {
                return Some(*b);
            }
            self.pos += 1;
        }
        None
    }

    /// The next byte must begin a value.
    pub fn begin(&mut self) -> Result<u8, Syntax> {
        match self.peek() {
            Some(b @ (b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n')) => Ok(b),
            _ => Err(self.unexpected("looking for beginning of value")),
        }
    }

    /// Where the reader stands, to take raw text with [`Lexer::raw`].
    pub fn position(&self) -> usize {
        self.pos
    }

    /// The text since `from`.
    pub fn raw(&self, from: usize) -> &'a [u8] {
        &self.data[from..self.pos]
    }

    /// The error for the byte under the reader.
    pub fn unexpected(&self, context: &str) -> Syntax {
        match self.data.get(self.pos) {
            None => Syntax("unexpected end of JSON input".into()),
            Some(b) => Syntax(format!("invalid character {} {context}", quote_byte(*b))),
        }
    }

    /// After the value of the document nothing may follow.
    pub fn end(&mut self) -> Result<(), Syntax> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("after top-level value")),
        }
    }

    fn enter(&mut self) -> Result<(), Syntax> {
        self.pos += 1;
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(Syntax("exceeded max depth".into())) } else { Ok(()) }
    }

    fn leave(&mut self) {
        self.pos += 1;
        self.depth -= 1;
    }

    /// Enters an object; false = it is empty and already left.
    pub fn object_begin(&mut self) -> Result<bool, Syntax> {
        self.enter()?;
        if self.peek() == Some(b'}') {
            self.leave();
            return Ok(false);
        }
        Ok(true)
    }

    /// A key and its colon.
    pub fn object_key(&mut self) -> Result<Cow<'a, str>, Syntax> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("looking for beginning of object key string"));
        }
        let key = self.string()?;
        if self.peek() != Some(b':') {
            return Err(self.unexpected("after object key"));
        }
        self.pos += 1;
        Ok(key)
    }

    /// After a value in an object: true = another key follows.
    pub fn object_next(&mut self) -> Result<bool, Syntax> {
        match self.peek() {
            Some(b',') => {
                self.pos += 1;
                Ok(true)
            }
            Some(b'}') => {
                self.leave();
                Ok(false)
            }
            _ => Err(self.unexpected("after object key:value pair")),
        }
    }

    /// Enters a list; false = it is empty and already left.
    pub fn array_begin(&mut self) -> Result<bool, Syntax> {
        self.enter()?;
        if self.peek() == Some(b']') {
            self.leave();
            return Ok(false);
        }
        Ok(true)
    }

    /// After a value in a list: true = another follows.
    pub fn array_next(&mut self) -> Result<bool, Syntax> {
        match self.peek() {
            Some(b',') => {
                self.pos += 1;
                Ok(true)
            }
            Some(b']') => {
                self.leave();
                Ok(false)
            }
            _ => Err(self.unexpected("after array element")),
        }
    }

    /// `true`, `false` or `null`; the first byte was seen.
    pub fn literal(&mut self, word: &'static str) -> Result<(), Syntax> {
        for expected in word.bytes() {
            if self.data.get(self.pos) != Some(&expected) {
                return Err(
                    self.unexpected(&format!("in literal {word} (expecting {})", quote_byte(expected)))
                );
            }
            self.pos += 1;
        }
        Ok(())
    }

    /// A number's text.
    pub fn number(&mut self) -> Result<&'a str, Syntax> {
        let start = self.pos;
        let byte = |at: usize| self.data.get(at).copied();
        let mut at = start;
        if byte(at) == Some(b'-') {
            at += 1;
        }
        match byte(at) {
            Some(b'0') => at += 1,
            Some(b'1'..=b'9') => {
                while byte(at).is_some_and(|b| b.is_ascii_digit()) {
                    at += 1;
                }
            }
            _ => {
                self.pos = at;
                return Err(self.unexpected("in numeric literal"));
            }
        }
        if byte(at) == Some(b'.') {
            at += 1;
            if !byte(at).is_some_and(|b| b.is_ascii_digit()) {
                self.pos = at;
                return Err(self.unexpected("after decimal point in numeric literal"));
            }
            while byte(at).is_some_and(|b| b.is_ascii_digit()) {
                at += 1;
            }
        }
        if matches!(byte(at), Some(b'e' | b'E')) {
            at += 1;
            if matches!(byte(at), Some(b'+' | b'-')) {
                at += 1;
            }
            if !byte(at).is_some_and(|b| b.is_ascii_digit()) {
                self.pos = at;
                return Err(self.unexpected("in exponent of numeric literal"));
            }
            while byte(at).is_some_and(|b| b.is_ascii_digit()) {
                at += 1;
            }
        }
        self.pos = at;
        // Only ASCII was accepted.
        Ok(std::str::from_utf8(&self.data[start..at]).unwrap_or("0"))
    }

    /// A string; what is not UTF-8 becomes U+FFFD, as in Go.
    pub fn string(&mut self) -> Result<Cow<'a, str>, Syntax> {
        self.pos += 1;
        let start = self.pos;
        loop {
            match self.data.get(self.pos) {
                Some(b'"') => {
                    let text = String::from_utf8_lossy(&self.data[start..self.pos]);
                    self.pos += 1;
                    return Ok(text);
                }
                Some(b'\\') => return self.escaped_string(start).map(Cow::Owned),
                Some(b) if *b < 0x20 => return Err(self.unexpected("in string literal")),
                Some(_) => self.pos += 1,
                None => return Err(self.unexpected("")),
            }
        }
    }

    fn escaped_string(&mut self, start: usize) -> Result<String, Syntax> {
        let mut out = self.data[start..self.pos].to_vec();
        loop {
            match self.data.get(self.pos) {
                Some(b'"') => {
                    self.pos += 1;
                    return Ok(match String::from_utf8(out) {
                        Ok(text) => text,
                        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
                    });
                }
                Some(b'\\') => {
                    self.pos += 1;
                    let plain = match self.data.get(self.pos) {
                        Some(b'"') => b'"',
                        Some(b'\\') => b'\\',
                        Some(b'/') => b'/',
                        Some(b'b') => 8,
                        Some(b'f') => 12,
                        Some(b'n') => b'\n',
                        Some(b'r') => b'\r',
                        Some(b't') => b'\t',
                        Some(b'u') => {
                            self.pos += 1;
                            let c = self.unicode_escape()?;
                            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                            continue;
                        }
                        _ => return Err(self.unexpected("in string escape code")),
                    };
                    out.push(plain);
                    self.pos += 1;
                }
                Some(b) if *b < 0x20 => return Err(self.unexpected("in string literal")),
                Some(b) => {
                    out.push(*b);
                    self.pos += 1;
                }
                None => return Err(self.unexpected("")),
            }
        }
    }

    /// After `\u`: the character; half surrogates become U+FFFD.
    fn unicode_escape(&mut self) -> Result<char, Syntax> {
        let first = self.hex4()?;
        if (0xd800..0xdc00).contains(&first) && self.data[self.pos..].starts_with(b"\\u") {
            let back = self.pos;
            self.pos += 2;
            let second = self.hex4()?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or('\u{fffd}'));
            }
            self.pos = back;
        }
        Ok(char::from_u32(first).unwrap_or('\u{fffd}'))
    }

    fn hex4(&mut self) -> Result<u32, Syntax> {
        let mut code = 0;
        for _ in 0..4 {
            let Some(digit) = self.data.get(self.pos).and_then(|b| (*b as char).to_digit(16)) else {
                return Err(self.unexpected("in \\u hexadecimal character escape"));
            };
            code = code * 16 + digit;
            self.pos += 1;
        }
        Ok(code)
    }

    /// Any value, without a schema. Repeated keys are noted under their path and the last one stays.
    pub fn any(&mut self, path: &mut String) -> Result<Value, Syntax> {
        match self.begin()? {
            b'{' => {
                let mut map = Map::new();
                let mut more = self.object_begin()?;
                while more {
                    let key = self.object_key()?;
                    let length = path.len();
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(&key);
                    if map.contains_key(&key) {
                        self.note_duplicate(path);
                    }
                    let value = self.any(path)?;
                    path.truncate(length);
                    map.insert(key.into(), value);
                    more = self.object_next()?;
                }
                Ok(Value::Object(map))
            }
            b'[' => {
                let mut items = Vec::new();
                let mut more = self.array_begin()?;
                while more {
                    let length = path.len();
                    path.push_str(&format!("[{}]", items.len()));
                    items.push(self.any(path)?);
                    path.truncate(length);
                    more = self.array_next()?;
                }
                Ok(Value::Array(items))
            }
            b'"' => Ok(Value::String(self.string()?.into_owned())),
            b't' => self.literal("true").map(|()| Value::Bool(true)),
            b'f' => self.literal("false").map(|()| Value::Bool(false)),
            b'n' => self.literal("null").map(|()| Value::Null),
            _ => Ok(number(self.number()?)),
        }
    }

    fn note_duplicate(&mut self, path: &str) {
        if self.duplicates.len() < 100 && !self.duplicates.iter().any(|known| known == path) {
            self.duplicates.push(path.to_owned());
        }
    }
}

/// A number as Kubernetes keeps it: 64 bits with sign when it is whole and fits, else a float.
pub fn number(text: &str) -> Value {
    if let Ok(whole) = text.parse::<i64>() {
        return Value::from(whole);
    }
    text.parse::<f64>().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

fn quote_byte(b: u8) -> String {
    match b {
        b'\'' => "'\\''".into(),
        b'"' => "'\"'".into(),
        b => {
            let quoted = crate::field::go_quote(&char::from(b).to_string());
            format!("'{}'", &quoted[1..quoted.len() - 1])
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;

    fn read(text: &str) -> Result<Value, String> {
        let mut lexer = Lexer::new(text.as_bytes());
        let value = lexer.any(&mut String::new()).map_err(|e| e.0)?;
        lexer.end().map_err(|e| e.0)?;
        Ok(value)
    }

    #[test]
    fn values() {
        let cases = [
            (
                r#" {"a": [1, -2.5, "x", null, true, false], "b": {}} "#,
                json!({"a": [1, -2.5, "x", null, true, false], "b": {}}),
            ),
            (
                r#""a\"\\\/\b\f\n\r\t\u0041\ud83d\ude00\ud800""#,
                json!("a\"\\/\u{8}\u{c}\n\r\tA\u{1f600}\u{fffd}"),
            ),
            ("[]", json!([])),
            ("9223372036854775807", json!(i64::MAX)),
            ("1e3", json!(1000.0)),
        ];
        for (text, want) in cases {
            assert_eq!(read(text).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn errors_are_gos() {
        let cases = [
            ("", "unexpected end of JSON input"),
            ("not", "invalid character 'o' in literal null (expecting 'u')"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("{a:1}", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 \"b\"}", "invalid character '\"' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("[01]", "invalid character '1' after array element"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            ("\"\\q\"", "invalid character 'q' in string escape code"),
            ("\"\\u12g4\"", "invalid character 'g' in \\u hexadecimal character escape"),
            ("\"a\nb\"", "invalid character '\\n' in string literal"),
            ("\"a", "unexpected end of JSON input"),
            ("{\"a\":'x'}", "invalid character '\\'' looking for beginning of value"),
        ];
        for (text, want) in cases {
            assert_eq!(read(text).unwrap_err(), want, "{text}");
        }
        assert_eq!(read(&"[".repeat(100_000)).unwrap_err(), "exceeded max depth");
    }
}
