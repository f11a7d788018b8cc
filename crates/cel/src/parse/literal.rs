//! String and bytes literals: quotes, raw strings, escapes.

use std::sync::Arc;

/// The content of a literal. Bytes literals hold bytes of escapes (`\xff`) and the UTF-8 of everything else.
pub struct Content {
    text: String,
    bytes: Vec<u8>,
}

impl Content {
    pub fn into_text(self) -> Arc<str> {
        Arc::from(self.text)
    }

    pub fn into_bytes(self) -> Arc<[u8]> {
        Arc::from(self.bytes)
    }

    fn push(&mut self, c: char) {
        self.text.push(c);
        self.bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }

    /// An escape that means a byte in bytes and a code point in strings.
    fn push_byte(&mut self, byte: u8) {
        self.text.push(char::from(byte));
        self.bytes.push(byte);
    }
}

/// The literal whose quotes begin after `prefix` characters, and its whole length; the length of the text that is no
/// literal otherwise.
pub fn string(chars: &[char], prefix: usize, raw: bool) -> Result<(Content, usize), usize> {
    let quote = chars[prefix];
    let triple = chars[prefix..].iter().take(3).filter(|c| **c == quote).count() == 3;
    let mut content = Content { text: String::new(), bytes: Vec::new() };
    let mut at = prefix + if triple { 3 } else { 1 };
    loop {
        let Some(&c) = chars.get(at) else { return Err(at) };
        if c == quote {
            if !triple {
                return Ok((content, at + 1));
            }
            if chars[at..].iter().take(3).filter(|c| **c == quote).count() == 3 {
                return Ok((content, at + 3));
            }
        }
        if !triple && matches!(c, '\n' | '\r') {
            return Err(at + 1);
        }
        if c == '\\' && !raw {
            at += escape(&chars[at..], &mut content).ok_or(at + 2)?;
            continue;
        }
        content.push(c);
        at += 1;
    }
}

/// One escape; gives its length.
fn escape(chars: &[char], content: &mut Content) -> Option<usize> {
    let code = |from: usize, count: usize, radix: u32| {
        let digits: String = chars.get(from..from + count)?.iter().collect();
        digits.chars().all(|c| c.is_digit(radix)).then(|| u32::from_str_radix(&digits, radix).ok())?
    };
    let c = *chars.get(1)?;
    match c {
        'a' => content.push('\u{7}'),
        'b' => content.push('\u{8}'),
        'f' => content.push('\u{c}'),
        'n' => content.push('\n'),
        'r' => content.push('\r'),
        't' => content.push('\t'),
        'v' => content.push('\u{b}'),
        '\\' | '\'' | '"' | '`' | '?' => content.push(c),
        'x' | 'X' => {
            content.push_byte(code(2, 2, 16)? as u8);
            return Some(4);
        }
        'u' => {
            content.push(char::from_u32(code(2, 4, 16)?)?);
            return Some(6);
        }
        'U' => {
            content.push(char::from_u32(code(2, 8, 16)?)?);
            return Some(10);
        }
        '0'..='3' => {
            content.push_byte(code(1, 3, 8)? as u8);
            return Some(4);
        }
        _ => return None,
    }
    Some(2)
}
