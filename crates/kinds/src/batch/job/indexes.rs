//! Sets of completion indexes as text, such as `1,3-5`: upstream's `validateIndexesFormat` and what it calls.

use orlop_api::field::go_quote;

/// An interval of indexes, both ends in it.
type Interval = (i64, i64);

fn number(text: &str, completions: i64) -> Result<i64, String> {
    let n = text
        .parse::<i64>()
        .map_err(|_| format!("cannot convert string to integer for index: {}", go_quote(text)))?;
    if n >= completions { Err(format!("too large index: {}", go_quote(text))) } else { Ok(n) }
}

fn interval(text: &str, completions: i64) -> Result<Interval, String> {
    let limits: Vec<&str> = text.split('-').collect();
    if limits.len() > 2 {
        return Err(format!(
            "the fragment {} violates the requirement that an index interval can have at most two parts separated by '-'",
            go_quote(text)
        ));
    }
    let first = number(limits[0], completions)?;
    let Some(end) = limits.get(1) else { return Ok((first, first)) };
    let last = number(end, completions)?;
    if first >= last {
        return Err(format!("non-increasing order, previous: {first}, current: {last}"));
    }
    Ok((first, last))
}

/// How many indexes the text names, or what is wrong with it.
pub(super) fn parse(text: &str, completions: i64) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let (mut total, mut previous) = (0, None);
    for part in text.split(',') {
        let (first, last) = interval(part, completions)?;
        if let Some(previous) = previous
            && previous >= first
        {
            return Err(format!("non-increasing order, previous: {previous}, current: {first}"));
        }
        total += last - first + 1;
        previous = Some(last);
    }
    Ok(total)
}

/// The first index that both ascending texts name, as upstream's message; parts that cannot be read are passed over.
pub(super) fn overlap(completed: &str, failed: &str, completions: i64) -> Option<String> {
    let read = |text: &str| -> Vec<Interval> {
        text.split(',').filter_map(|part| interval(part, completions).ok()).collect()
    };
    let (completed, failed) = (read(completed), read(failed));
    let (mut c, mut f) = (completed.iter().peekable(), failed.iter().peekable());
    while let (Some(done), Some(bad)) = (c.peek(), f.peek()) {
        if done.0 <= bad.1 && bad.0 <= done.1 {
            let at = done.0.max(bad.0);
            return Some(format!("failedIndexes and completedIndexes overlap at index: {at}"));
        }
        if done.0 <= bad.0 {
            c.next();
        } else {
            f.next();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let check = |text: &str, expected: Result<i64, &str>| {
            assert_eq!(parse(text, 10), expected.map_err(str::to_owned), "{text}");
        };
        check("", Ok(0));
        check("1,3-5", Ok(4));
        check("x", Err("cannot convert string to integer for index: \"x\""));
        check("1-", Err("cannot convert string to integer for index: \"\""));
        check("11", Err("too large index: \"11\""));
        check("3-12", Err("too large index: \"12\""));
        check("3-3", Err("non-increasing order, previous: 3, current: 3"));
        check("3,3", Err("non-increasing order, previous: 3, current: 3"));
        check(
            "1-2-3",
            Err(
                "the fragment \"1-2-3\" violates the requirement that an index interval can have at most two parts separated by '-'",
            ),
        );
    }

    #[test]
    fn overlaps() {
        assert_eq!(overlap("0-2", "3,5", 10), None);
        assert_eq!(
            overlap("0-2,6-8", "4,7-8", 10).as_deref(),
            Some("failedIndexes and completedIndexes overlap at index: 7")
        );
    }
}
