//! Scalars with a notation of their own: times, durations, base64.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Go's `StdEncoding`: padding is required, stray bits in the last symbol are not looked at.
static GO_BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Base64 in its canonical form; line breaks are skipped.
///
/// # Errors
/// Go's text.
pub fn normalise_base64(text: &str) -> Result<String, String> {
    let clean: String;
    let input = if text.contains(['\r', '\n']) {
        clean = text.replace(['\r', '\n'], "");
        &clean
    } else {
        text
    };
    match GO_BASE64.decode(input) {
        Ok(bytes) => Ok(GO_BASE64.encode(bytes)),
        Err(error) => {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => input.len(),
            };
            Err(format!("illegal base64 data at input byte {at}"))
        }
    }
}

const RFC3339: &str = "2006-01-02T15:04:05Z07:00";
const RFC3339_MICRO: &str = "2006-01-02T15:04:05.000000Z07:00";

/// A time in UTC with seconds: `2026-01-02T03:04:05Z`.
///
/// # Errors
/// Go's text.
pub fn normalise_time(text: &str) -> Result<String, String> {
    let (seconds, _) = parse_time(text, RFC3339)?;
    Ok(crate::time::format_seconds(seconds))
}

/// A time in UTC with six digits of the second.
///
/// # Errors
/// Go's text.
pub fn normalise_micro_time(text: &str) -> Result<String, String> {
    let (seconds, micros) = parse_time(text, RFC3339_MICRO)?;
    Ok(crate::time::format_micros(seconds, micros))
}

/// Seconds since 1970 and microseconds of RFC 3339.
fn parse_time(text: &str, layout: &str) -> Result<(i64, u32), String> {
    let quoted = crate::field::go_quote(text);
    let fail = |rest: &str, wanted: &str| {
        format!(
            "parsing time {quoted} as \"{layout}\": cannot parse {} as \"{wanted}\"",
            crate::field::go_quote(rest)
        )
    };
    let mut rest = text;
    let digits = |rest: &mut &str, count: usize, wanted: &str| -> Result<i64, String> {
        match rest.get(..count) {
            Some(part) if part.bytes().all(|b| b.is_ascii_digit()) => {
                *rest = &rest[count..];
                Ok(part.parse().unwrap_or(0))
            }
            _ => Err(fail(rest, wanted)),
        }
    };
    let literal = |rest: &mut &str, wanted: &str| -> Result<(), String> {
        *rest = rest.strip_prefix(wanted).ok_or_else(|| fail(rest, wanted))?;
        Ok(())
    };
    let year = digits(&mut rest, 4, "2006")?;
    literal(&mut rest, "-")?;
    let month = digits(&mut rest, 2, "01")?;
    literal(&mut rest, "-")?;
    let day = digits(&mut rest, 2, "02")?;
    literal(&mut rest, "T")?;
    let hour = digits(&mut rest, 2, "15")?;
    literal(&mut rest, ":")?;
    let minute = digits(&mut rest, 2, "04")?;
    literal(&mut rest, ":")?;
    let second = digits(&mut rest, 2, "05")?;
    let mut micros = 0;
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let count = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if count > 0 {
            let six: String = fraction[..count].chars().chain("000000".chars()).take(6).collect();
            micros = six.parse().unwrap_or(0);
            rest = &fraction[count..];
        }
    } else if layout == RFC3339_MICRO {
        return Err(fail(rest, ".000000"));
    }
    let offset = if let Some(after) = rest.strip_prefix('Z') {
        rest = after;
        0
    } else {
        let sign = match rest.as_bytes().first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return Err(fail(rest, "Z07:00")),
        };
        let whole = rest;
        rest = &rest[1..];
        let hours = digits(&mut rest, 2, "Z07:00").map_err(|_| fail(whole, "Z07:00"))?;
        literal(&mut rest, ":").map_err(|_| fail(whole, "Z07:00"))?;
        let minutes = digits(&mut rest, 2, "Z07:00").map_err(|_| fail(whole, "Z07:00"))?;
        sign * (hours * 3600 + minutes * 60)
    };
    if !rest.is_empty() {
        return Err(format!("parsing time {quoted}: extra text: {}", crate::field::go_quote(rest)));
    }
    let range = |what: &str| format!("parsing time {quoted}: {what} out of range");
    if !(1..=12).contains(&month) {
        return Err(range("month"));
    }
    if hour > 23 {
        return Err(range("hour"));
    }
    if minute > 59 {
        return Err(range("minute"));
    }
    if second > 59 {
        return Err(range("second"));
    }
    let date = jiff::civil::Date::new(year as i16, month as i8, day as i8).map_err(|_| range("day"))?;
    let time = date.at(hour as i8, minute as i8, second as i8, 0);
    let zoned = time.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| range("year"))?;
    Ok((zoned.timestamp().as_second() - offset, micros))
}

/// A duration as Go prints it: `1h30m0s`.
///
/// # Errors
/// Go's text.
pub fn normalise_duration(text: &str) -> Result<String, String> {
    parse_duration(text).map(format_duration)
}

/// Nanoseconds of a duration in Go's notation.
///
/// # Errors
/// Go's text.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    let quoted = crate::field::go_quote(text);
    let invalid = || format!("time: invalid duration {quoted}");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let whole = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number = &rest[..whole];
        rest = &rest[whole..];
        let mut fraction = "";
        if let Some(after) = rest.strip_prefix('.') {
            let count = after.bytes().take_while(u8::is_ascii_digit).count();
            fraction = &after[..count];
            rest = &after[count..];
        }
        if number.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_length = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = &rest[..unit_length];
        rest = &rest[unit_length..];
        let scale: i128 = match unit {
            "" => return Err(format!("time: missing unit in duration {quoted}")),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            other => {
                return Err(format!(
                    "time: unknown unit {} in duration {quoted}",
                    crate::field::go_quote(other)
                ));
            }
        };
        let number: i128 = if number.is_empty() { 0 } else { number.parse().map_err(|_| invalid())? };
        total = total.saturating_add(number.saturating_mul(scale));
        if !fraction.is_empty() {
            let digits = &fraction[..fraction.len().min(18)];
            let part: i128 = digits.parse().map_err(|_| invalid())?;
            total += part * scale / 10i128.pow(digits.len() as u32);
        }
    }
    let total = if negative { -total } else { total };
    i64::try_from(total).map_err(|_| invalid())
}

/// Nanoseconds as Go prints a duration.
pub fn format_duration(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".into();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let total = nanos.unsigned_abs();
    let decimal = |value: u64, unit: u64| {
        let fraction = format!("{:0width$}", value % unit, width = unit.to_string().len() - 1);
        let fraction = fraction.trim_end_matches('0');
        if fraction.is_empty() { (value / unit).to_string() } else { format!("{}.{fraction}", value / unit) }
    };
    if total < 1_000 {
        return format!("{sign}{total}ns");
    }
    if total < 1_000_000 {
        return format!("{sign}{}µs", decimal(total, 1_000));
    }
    if total < 1_000_000_000 {
        return format!("{sign}{}ms", decimal(total, 1_000_000));
    }
    let (hours, minutes) = (total / 3_600_000_000_000, total / 60_000_000_000 % 60);
    let seconds = decimal(total % 60_000_000_000, 1_000_000_000);
    if hours > 0 {
        format!("{sign}{hours}h{minutes}m{seconds}s")
    } else if minutes > 0 {
        format!("{sign}{minutes}m{seconds}s")
    } else {
        format!("{sign}{seconds}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars() {
        let ok = |text: &str| Ok::<String, String>(text.to_owned());
        assert_eq!(normalise_base64("YQ=="), ok("YQ=="));
        assert_eq!(normalise_base64("Y\nQ=="), ok("YQ=="));
        assert_eq!(normalise_base64("***"), Err("illegal base64 data at input byte 0".into()));
        assert_eq!(normalise_time("2020-01-02T03:04:05.9+02:00"), ok("2020-01-02T01:04:05Z"));
        assert_eq!(normalise_micro_time("2020-01-02T03:04:05.9Z"), ok("2020-01-02T03:04:05.900000Z"));
        assert_eq!(
            normalise_time("abc"),
            Err("parsing time \"abc\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"abc\" as \"2006\""
                .into())
        );
        for (text, want) in
            [("90s", "1m30s"), ("1h", "1h0m0s"), ("0", "0s"), ("1.5ms", "1.5ms"), ("-2m", "-2m0s")]
        {
            assert_eq!(normalise_duration(text), ok(want));
        }
        assert_eq!(normalise_duration("x"), Err("time: invalid duration \"x\"".into()));
        assert_eq!(normalise_duration("5"), Err("time: missing unit in duration \"5\"".into()));
    }
}
