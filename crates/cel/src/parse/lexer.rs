//! Tokens.

use std::sync::Arc;

use super::{issue_at, literal};
use crate::error::Issue;
use crate::source::Source;

/// What a token is.
#[derive(Clone, Debug, PartialEq)]
pub enum Tok {
    Int,
    Uint,
    Float,
    Str(Arc<str>),
    Bytes(Arc<[u8]>),
    Ident,
    /// An operator, a bracket or one of the words `in`, `true`, `false`, `null`.
    Sym(&'static str),
    Eof,
}

/// A token, its text and its place in code points.
#[derive(Clone, Debug)]
pub struct Token {
    pub tok: Tok,
    pub text: Arc<str>,
    pub offset: usize,
}

impl Token {
    pub fn is(&self, symbol: &str) -> bool {
        matches!(self.tok, Tok::Sym(s) if s == symbol)
    }
}

const SYMBOLS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":",
    "+", "*", "/", "%",
];

/// All tokens, ending with `Eof`, and what is no token.
pub fn tokens(text: &str, source: &Source) -> (Vec<Token>, Vec<Issue>) {
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    let (mut tokens, mut issues) = (Vec::new(), Vec::new());
    while at < chars.len() {
        let c = chars[at];
        if matches!(c, ' ' | '\t' | '\r' | '\n' | '\u{c}') {
            at += 1;
            continue;
        }
        if c == '/' && chars.get(at + 1) == Some(&'/') {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
            continue;
        }
        match token(&chars[at..]) {
            Ok((tok, length)) => {
                let text: String = chars[at..at + length].iter().collect();
                tokens.push(Token { tok, text: Arc::from(text), offset: at });
                at += length;
            }
            Err(length) => {
                let end = (at + length).min(chars.len());
                let bad: String = chars[at..end].iter().collect();
                let bad = bad.replace('\n', "\\n").replace('\t', "\\t").replace('\r', "\\r");
                let message = format!("Syntax error: token recognition error at: '{bad}'");
                if issues.len() < 100 {
                    issues.push(issue_at(source, Some(at), message));
                }
                at = end;
            }
        }
    }
    tokens.push(Token { tok: Tok::Eof, text: Arc::from("<EOF>"), offset: chars.len() });
    (tokens, issues)
}

/// The token at the beginning and its length, or how many characters are no token.
fn token(chars: &[char]) -> Result<(Tok, usize), usize> {
    let c = chars[0];
    if let Some((prefix, raw, bytes)) = string_prefix(chars) {
        return literal::string(chars, prefix, raw).map(|(value, length)| {
            (if bytes { Tok::Bytes(value.into_bytes()) } else { Tok::Str(value.into_text()) }, length)
        });
    }
    if c.is_ascii_alphabetic() || c == '_' {
        let length = chars.iter().take_while(|c| c.is_ascii_alphanumeric() || **c == '_').count();
        let word: String = chars[..length].iter().collect();
        let tok = match word.as_str() {
            "in" => Tok::Sym("in"),
            "true" => Tok::Sym("true"),
            "false" => Tok::Sym("false"),
            "null" => Tok::Sym("null"),
            _ => Tok::Ident,
        };
        return Ok((tok, length));
    }
    if c.is_ascii_digit() || (c == '.' && chars.get(1).is_some_and(char::is_ascii_digit)) {
        return Ok(number(chars));
    }
    for symbol in SYMBOLS {
        if symbol.chars().enumerate().all(|(i, s)| chars.get(i) == Some(&s)) {
            return Ok((Tok::Sym(symbol), symbol.len()));
        }
    }
    // A half operator takes the character that disappointed with it.
    Err(if matches!(c, '&' | '|' | '=') { 2 } else { 1 })
}

/// Where a string begins: the length of `rb`-like letters, whether it is raw, whether it is bytes.
fn string_prefix(chars: &[char]) -> Option<(usize, bool, bool)> {
    let (mut raw, mut bytes, mut length) = (false, false, 0);
    while let Some(c) = chars.get(length) {
        match c {
            '"' | '\'' => return Some((length, raw, bytes)),
            'r' | 'R' if !raw => raw = true,
            // Bytes come first: `br"…"`, not `rb"…"`.
            'b' | 'B' if !bytes && length == 0 => bytes = true,
            _ => return None,
        }
        length += 1;
    }
    None
}

fn number(chars: &[char]) -> (Tok, usize) {
    let digits =
        |from: usize| chars[from.min(chars.len())..].iter().take_while(|c| c.is_ascii_digit()).count();
    let suffixed = |length: usize, tok: Tok| match chars.get(length) {
        Some('u' | 'U') => (Tok::Uint, length + 1),
        _ => (tok, length),
    };
    if chars[0] == '0' && chars.get(1) == Some(&'x') {
        let hex = chars[2..].iter().take_while(|c| c.is_ascii_hexdigit()).count();
        if hex > 0 {
            return suffixed(2 + hex, Tok::Int);
        }
    }
    let mut length = digits(0);
    let mut float = false;
    if chars.get(length) == Some(&'.') && digits(length + 1) > 0 {
        float = true;
        length += 1 + digits(length + 1);
    }
    if matches!(chars.get(length), Some('e' | 'E')) {
        let sign = usize::from(matches!(chars.get(length + 1), Some('+' | '-')));
        let exponent = digits(length + 1 + sign);
        if exponent > 0 {
            float = true;
            length += 1 + sign + exponent;
        }
    }
    if float { (Tok::Float, length) } else { suffixed(length, Tok::Int) }
}
