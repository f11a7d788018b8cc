//! Durations as Go writes them (`1h30m`, `500ms`): those of the configuration.

/// In nanoseconds; `None` when the text is none, or more than fits.
pub fn parse(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: f64 = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        const UNITS: [(&str, f64); 8] = [
            ("ns", 1.0),
            ("us", 1e3),
            ("µs", 1e3),
            ("μs", 1e3),
            ("ms", 1e6),
            ("s", 1e9),
            ("m", 6e10),
            ("h", 3.6e12),
        ];
        let (unit, nanos) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit))?;
        total += number * nanos;
        rest = &rest[unit.len()..];
    }
    let fits = !text.is_empty() && total < i64::MAX as f64;
    // Within the range of an i64, and whole nanoseconds are all that counts.
    fits.then_some(if negative { -(total as i64) } else { total as i64 })
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations() {
        let check = |text: &str, expected: Option<i64>| assert_eq!(super::parse(text), expected, "{text}");
        check("0", Some(0));
        check("5s", Some(5_000_000_000));
        check("1m30s", Some(90_000_000_000));
        check("1.5ms", Some(1_500_000));
        check("-1s", Some(-1_000_000_000));
        check("5", None);
        check("s", None);
        check("999999999h", None);
    }
}
