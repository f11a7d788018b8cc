//! `meta/v1` Time and MicroTime as text.

use jiff::Timestamp;

/// A Time: UTC, seconds: `2026-01-02T03:04:05Z`.
pub fn format_time(time: Timestamp) -> String {
    format_seconds(time.as_second())
}

/// A MicroTime: UTC, six digits of the second: `2026-01-02T03:04:05.000006Z`.
pub fn format_micro_time(time: Timestamp) -> String {
    let micros = time.as_microsecond();
    format_micros(micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000) as u32)
}

/// Reads a Time or a MicroTime.
pub fn parse(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// Seconds since 1970 as a Time.
pub fn format_seconds(seconds: i64) -> String {
    let mut out = civil(seconds);
    out.push('Z');
    out
}

/// Seconds since 1970 and microseconds as a MicroTime.
pub fn format_micros(seconds: i64, micros: u32) -> String {
    let mut out = civil(seconds);
    out.push_str(&format!(".{micros:06}Z"));
    out
}

/// Days and seconds to a calendar date (the proleptic Gregorian calendar, eras of 400 years).
fn civil(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times() {
        for text in
            ["1970-01-01T00:00:00Z", "2024-02-29T23:59:59Z", "1999-12-31T12:00:01Z", "2100-03-01T00:00:00Z"]
        {
            assert_eq!(format_time(parse(text).unwrap()), text);
        }
        assert_eq!(
            format_micro_time(parse("2024-01-01T00:00:00.5Z").unwrap()),
            "2024-01-01T00:00:00.500000Z"
        );
    }
}
