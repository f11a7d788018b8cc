//! Durations and timestamps: seconds and nanoseconds in upstream's ranges, Go's duration syntax, RFC 3339 times and the
//! accessors with time zones.

use std::fmt;

use jiff::tz::TimeZone;

const NANOS: i128 = 1_000_000_000;
/// 0001-01-01T00:00:00Z.
const MIN_SECONDS: i64 = -62_135_596_800;
/// 9999-12-31T23:59:59Z.
const MAX_SECONDS: i64 = 253_402_300_799;

/// A duration in nanoseconds, within the range of an `i64` as Go's is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub i64);

/// A time in nanoseconds since 1970, between the years 1 and 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(i128);

impl Duration {
    /// Go's `time.ParseDuration`: `1h30m`, `-1.5s`, `100ms`.
    pub fn parse(text: &str) -> Option<Duration> {
        parse_units(text, |unit| {
            Some(match unit {
                "ns" => 1,
                "us" | "µs" | "μs" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                _ => return None,
            })
        })
    }

    /// The OpenAPI format `duration`: Go's, or a number and a unit up to weeks (`2 days`).
    pub fn parse_format(text: &str) -> Option<Duration> {
        if let Some(duration) = Duration::parse(text) {
            return Some(duration);
        }
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit())?;
        let count: i64 = trimmed[..split].parse().ok()?;
        let unit = match trimmed[split..].trim() {
            "ns" | "nanos" | "nanosecond" | "nanoseconds" | "nano" => 1,
            "us" | "µs" | "micros" | "microsecond" | "microseconds" | "micro" => 1_000,
            "ms" | "millis" | "millisecond" | "milliseconds" | "milli" => 1_000_000,
            "s" | "sec" | "secs" | "second" | "seconds" => 1_000_000_000,
            "m" | "min" | "mins" | "minute" | "minutes" => 60_000_000_000,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3_600_000_000_000,
            "d" | "day" | "days" => 86_400_000_000_000,
            "w" | "wk" | "wks" | "week" | "weeks" => 604_800_000_000_000,
            _ => return None,
        };
        count.checked_mul(unit).map(Duration)
    }

    /// Seconds with a fraction, as `string(duration)` prints them: `5400s`, `0.5s`.
    pub fn seconds(&self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// The sum, where it fits.
    pub fn checked_add(self, other: Duration) -> Option<Duration> {
        self.0.checked_add(other.0).map(Duration)
    }

    /// The difference, where it fits.
    pub fn checked_sub(self, other: Duration) -> Option<Duration> {
        self.0.checked_sub(other.0).map(Duration)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.seconds())
    }
}

/// Go's duration grammar: an optional sign, then numbers with fractions and units; "0" alone.
fn parse_units(text: &str, unit_of: impl Fn(&str) -> Option<i128>) -> Option<Duration> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(Duration(0));
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let whole_len = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, mut after) = rest.split_at(whole_len);
        let mut fraction = "";
        if let Some(tail) = after.strip_prefix('.') {
            let len = tail.bytes().take_while(u8::is_ascii_digit).count();
            fraction = &tail[..len];
            after = &tail[len..];
        }
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_len = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let unit = unit_of(&after[..unit_len])?;
        rest = &after[unit_len..];
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? as i128 };
        total += whole * unit;
        let mut scale = unit;
        let mut part: i128 = 0;
        for digit in fraction.bytes().take(18) {
            scale *= 1;
            part = part * 10 + (digit - b'0') as i128;
        }
        let digits = fraction.len().min(18) as u32;
        total += part * scale / 10i128.pow(digits);
        if total > i64::MAX as i128 + 1 {
            return None;
        }
    }
    let total = if negative { -total } else { total };
    i64::try_from(total).ok().map(Duration)
}

impl Timestamp {
    /// A time of seconds since 1970; `None` outside the years 1 to 9999.
    pub fn from_seconds(seconds: i64) -> Option<Timestamp> {
        Timestamp::from_nanos(seconds as i128 * NANOS)
    }

    fn from_nanos(nanos: i128) -> Option<Timestamp> {
        let seconds = nanos.div_euclid(NANOS);
        (MIN_SECONDS as i128..=MAX_SECONDS as i128).contains(&seconds).then_some(Timestamp(nanos))
    }

    /// RFC 3339.
    pub fn parse(text: &str) -> Option<Timestamp> {
        let bytes = text.as_bytes();
        // Years of four digits and a capital T, as Go reads it; `jiff` checks the rest.
        if bytes.len() < 20 || bytes[4] != b'-' || bytes[10] != b'T' || bytes[13] != b':' || bytes[16] != b':'
        {
            return None;
        }
        let zone = match bytes.last()? {
            b'Z' => "Z",
            _ => text.get(text.len() - 6..)?,
        };
        if zone != "Z" && !(zone.starts_with(['+', '-']) && zone.as_bytes()[3] == b':') {
            return None;
        }
        let local = &text[..text.len() - zone.len()];
        let time: jiff::civil::DateTime = local.parse().ok()?;
        let offset = match zone {
            "Z" => 0,
            zone => {
                let hours: i64 = zone[1..3].parse().ok()?;
                let minutes: i64 = zone[4..6].parse().ok()?;
                if hours > 23 || minutes > 59 {
                    return None;
                }
                let seconds = hours * 3600 + minutes * 60;
                if zone.starts_with('-') { -seconds } else { seconds }
            }
        };
        let utc = civil_seconds(time) - offset;
        Timestamp::from_nanos(utc as i128 * NANOS + time.subsec_nanosecond() as i128)
    }

    /// The OpenAPI formats `date` and `date-time`.
    pub fn parse_format(text: &str) -> Option<Timestamp> {
        if text.len() == 10 {
            let date: jiff::civil::Date = text.parse().ok()?;
            return Timestamp::from_seconds(civil_seconds(date.to_datetime(jiff::civil::Time::midnight())));
        }
        Timestamp::parse(text)
    }

    /// Seconds since 1970, rounded down.
    pub fn seconds(&self) -> i64 {
        self.0.div_euclid(NANOS) as i64
    }

    /// The time a duration later.
    pub fn checked_add(self, duration: Duration) -> Option<Timestamp> {
        Timestamp::from_nanos(self.0 + duration.0 as i128)
    }

    /// The time a duration earlier.
    pub fn checked_sub(self, duration: Duration) -> Option<Timestamp> {
        Timestamp::from_nanos(self.0 - duration.0 as i128)
    }

    /// The duration between two times, where it fits.
    pub fn since(self, other: Timestamp) -> Option<Duration> {
        i64::try_from(self.0 - other.0).ok().map(Duration)
    }

    fn civil(self, offset_seconds: i64) -> Option<jiff::civil::DateTime> {
        let total = self.0 + offset_seconds as i128 * NANOS;
        let (days, rest) = (total.div_euclid(86_400 * NANOS), total.rem_euclid(86_400 * NANOS));
        let date =
            jiff::civil::date(1970, 1, 1).checked_add(jiff::Span::new().try_days(days as i64).ok()?).ok()?;
        let (seconds, nanos) = (rest / NANOS, rest % NANOS);
        let time = jiff::civil::Time::new(
            (seconds / 3600) as i8,
            (seconds / 60 % 60) as i8,
            (seconds % 60) as i8,
            nanos as i32,
        );
        Some(date.to_datetime(time.ok()?))
    }

    /// The local date and time in a zone: a name (`Europe/Berlin`), an offset (`-02:00`), or none for UTC. The error is
    /// upstream's text.
    pub fn in_zone(self, zone: Option<&str>) -> Result<jiff::civil::DateTime, String> {
        let zone = zone.unwrap_or("UTC");
        let offset = if let Some((hours, minutes)) = zone.split_once(':') {
            let parse = |text: &str| {
                text.parse::<i64>().map_err(|_| format!("strconv.Atoi: parsing {text:?}: invalid syntax"))
            };
            let (h, m) = (parse(hours)?, parse(minutes)?);
            let magnitude = h.abs().min(1000) * 3600 + m.clamp(-1000, 1000) * 60;
            if hours.starts_with('-') { -magnitude } else { magnitude }
        } else if matches!(zone, "UTC" | "") {
            0
        } else {
            let known = TimeZone::get(zone).map_err(|_| format!("unknown time zone {zone}"))?;
            let time = jiff::Timestamp::from_second(self.seconds()).map_err(|error| error.to_string())?;
            i64::from(known.to_offset(time).seconds())
        };
        self.civil(offset).ok_or_else(|| "timestamp out of range".to_owned())
    }
}

fn civil_seconds(time: jiff::civil::DateTime) -> i64 {
    let days = i64::from(
        time.date()
            .since((jiff::Unit::Day, jiff::civil::date(1970, 1, 1)))
            .map(|s| s.get_days())
            .unwrap_or_default(),
    );
    days * 86_400 + i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second())
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(time) = self.civil(0) else { return f.write_str("timestamp out of range") };
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            time.year(),
            time.month(),
            time.day(),
            time.hour(),
            time.minute(),
            time.second()
        )?;
        let nanos = time.subsec_nanosecond();
        if nanos != 0 {
            let digits = format!("{nanos:09}");
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn durations() {
        let cases = [
            ("1h30m", Some("5400s")),
            ("-1.5s", Some("-1.5s")),
            ("100ms", Some("0.1s")),
            ("0", Some("0s")),
            ("1", None),
            ("", None),
            ("1x", None),
            (".s", None),
            ("9999999999h", None),
        ];
        for (text, want) in cases {
            assert_eq!(Duration::parse(text).map(|d| d.to_string()).as_deref(), want, "{text}");
        }
        assert_eq!(Duration::parse_format("2 days").unwrap().to_string(), "172800s");
    }

    #[test]
    fn times() {
        let cases = [
            ("2023-02-03T23:31:20+01:00", Some("2023-02-03T22:31:20Z")),
            ("1990-12-31T23:59:59.120Z", Some("1990-12-31T23:59:59.12Z")),
            ("0001-01-01T00:00:00Z", Some("0001-01-01T00:00:00Z")),
            ("9999-12-31T23:59:59.999999999Z", Some("9999-12-31T23:59:59.999999999Z")),
            ("2023-02-30T00:00:00Z", None),
            ("2023-02-03", None),
            ("0001-01-01T00:00:00+01:00", None),
        ];
        for (text, want) in cases {
            assert_eq!(Timestamp::parse(text).map(|t| t.to_string()).as_deref(), want, "{text}");
        }
        assert_eq!(Timestamp::parse_format("2023-02-03").unwrap().to_string(), "2023-02-03T00:00:00Z");
        let time = Timestamp::parse("2023-07-01T12:00:00Z").unwrap();
        assert_eq!(time.in_zone(Some("-02:30")).unwrap().hour(), 9);
        assert_eq!(time.in_zone(Some("Europe/Berlin")).unwrap().hour(), 14);
        assert!(time.in_zone(Some("Mars/Base")).is_err());
    }
}
