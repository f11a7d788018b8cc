//! The text of an expression and its places. Places are counted in code points, as upstream counts them.

use std::fmt;
use std::sync::Arc;

use crate::error::Issue;

/// An expression's text.
#[derive(Clone, Debug)]
pub struct Source {
    text: Arc<str>,
    /// For each line, the offset of its first code point.
    lines: Arc<[usize]>,
}

impl Source {
    /// The source of a text.
    pub fn new(text: &str) -> Source {
        let mut lines = vec![0];
        for (offset, c) in text.chars().enumerate() {
            if c == '\n' {
                lines.push(offset + 1);
            }
        }
        Source { text: Arc::from(text), lines: Arc::from(lines) }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line (from 1) and column (from 0) of an offset in code points.
    pub fn place(&self, offset: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= offset).max(1);
        (line, offset - self.lines[line - 1])
    }

    pub(crate) fn write_issue(&self, f: &mut fmt::Formatter<'_>, issue: &Issue) -> fmt::Result {
        if issue.line == 0 {
            return write!(f, "ERROR: <input>:-1:0: {}", issue.message);
        }
        write!(f, "ERROR: <input>:{}:{}: {}", issue.line, issue.column + 1, issue.message)?;
        let Some(line) = self.text.split('\n').nth(issue.line - 1) else { return Ok(()) };
        let line = line.replace('\t', " ");
        write!(f, "\n | {line}\n | ")?;
        let mut chars = line.chars();
        for _ in 0..issue.column {
            match chars.next() {
                Some(c) if c.len_utf8() > 1 => f.write_str("．")?,
                Some(_) => f.write_str(".")?,
                None => break,
            }
        }
        match chars.next() {
            Some(c) if c.len_utf8() > 1 => f.write_str("＾"),
            _ => f.write_str("^"),
        }
    }
}
