//! One line of a CRI log: `<RFC 3339 time> <stdout|stderr> <P|F[:...]> <content>`. Pure.

use jiff::Timestamp;

/// A parsed line; borrows from the file's bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// The time as written.
    pub stamp: &'a [u8],
    /// `stdout` or `stderr`.
    pub stream: &'a [u8],
    /// The output's line goes on in the next log line.
    pub partial: bool,
    /// Without line feed.
    pub content: &'a [u8],
}

impl Line<'_> {
    pub(crate) fn time(&self) -> Option<Timestamp> {
        std::str::from_utf8(self.stamp).ok()?.parse().ok()
    }
}

/// Parses a line, with or without its line feed; `None` when it is none.
pub(crate) fn parse(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |b| *b == b' ');
    let stamp = parts.next().filter(|stamp| !stamp.is_empty())?;
    let stream = parts.next().filter(|s| matches!(*s, b"stdout" | b"stderr"))?;
    let tags = parts.next()?;
    let tag = tags.split(|b| *b == b':').next()?;
    let content = parts.next().unwrap_or_default();
    match tag {
        b"P" => Some(Line { stamp, stream, partial: true, content }),
        b"F" => Some(Line { stamp, stream, partial: false, content }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines() {
        let full = parse(b"2026-01-02T03:04:05.123456789Z stdout F hello world\n").unwrap();
        assert_eq!(
            (full.stream, full.partial, full.content),
            (b"stdout".as_slice(), false, b"hello world".as_slice())
        );
        assert_eq!(full.time().unwrap().to_string(), "2026-01-02T03:04:05.123456789Z");
        assert!(parse(b"2026-01-02T03:04:05Z stderr P part").unwrap().partial);
        assert_eq!(parse(b"2026-01-02T03:04:05Z stdout F:x \n").unwrap().content, b"");
        assert_eq!(parse(b"2026-01-02T03:04:05Z stdout F\n").unwrap().content, b"");
        for wrong in [b"".as_slice(), b"\n", b"hello", b"2026 stdin F x", b"2026 stdout X x"] {
            assert_eq!(parse(wrong), None, "{}", String::from_utf8_lossy(wrong));
        }
    }
}
