//! `resource.Quantity`: a fixed-point number with a suffix (`500m`, `1Gi`, `2e3`).
//!
//! Answers to `k8s.io/apimachinery/pkg/api/resource`. The canonical form keeps the family of suffixes the value was
//! written in. Values are held in billionths; what is finer rounds away from zero, as upstream does.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Neg, Sub};
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
/// A stand-in for decimal values that do not fit.
const HUGE: i128 = 10i128.pow(38);
/// Upstream's cap for binary suffixes, 2^63 - 1, in billionths.
const CAP: i128 = i64::MAX as i128 * NANO;

/// The family of suffixes a quantity is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `1e3`.
    DecimalExponent,
    /// `1Ki`, `1Mi`, …
    BinarySI,
    /// `1m`, `1k`, `1M`, …
    DecimalSI,
}

/// A number of something: bytes, cores, pods.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is not a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// It does not have the shape of one.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number is no number.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix is none of the known ones.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSI };

    /// So many whole units.
    pub fn new(value: i64, format: Format) -> Quantity {
        Quantity { nanos: i128::from(value) * NANO, format }
    }

    /// So many thousandths.
    pub fn from_milli(value: i64, format: Format) -> Quantity {
        Quantity { nanos: i128::from(value) * 1_000_000, format }
    }

    /// Reads a quantity.
    ///
    /// # Errors
    /// [`QuantityError`] with upstream's words.
    pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Format);
        }
        let (negative, body) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, rest) = body.split_at(digits(body));
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(digits(rest)),
            None => ("", rest),
        };
        let (base, exponent, format) = parse_suffix(suffix)?;
        let whole = whole.trim_start_matches('0');
        let nanos = scale(whole, fraction, base, exponent)?;
        let nanos = if negative { -nanos } else { nanos };
        // Less than one of a binary suffix reads better with decimal ones.
        let format =
            if format == Format::BinarySI && nanos > 0 && nanos < NANO { Format::DecimalSI } else { format };
        Ok(Quantity { nanos, format })
    }

    /// The text that upstream's API answers with for a quantity written as `text`: canonical, but for the few
    /// notations that its parser takes for canonical already (`1E3`, `1.500`).
    ///
    /// # Errors
    /// [`QuantityError`] with upstream's words.
    pub fn normalise(text: &str) -> Result<String, QuantityError> {
        let quantity = Quantity::parse(text)?;
        if quantity.format != Format::BinarySI && !quantity.is_zero() {
            let body = text.trim_start_matches(['+', '-']).trim_start_matches('0');
            let whole = body.bytes().take_while(u8::is_ascii_digit).count();
            let (number, rest) = body.split_at(whole);
            let fraction = rest
                .strip_prefix('.')
                .map_or("", |rest| &rest[..rest.bytes().take_while(u8::is_ascii_digit).count()]);
            let suffix = rest.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
            let exponent = parse_suffix(suffix).map_or(0, |(_, exponent, _)| exponent);
            let scale = exponent - fraction.len() as i32;
            let digits = number.len().max(1) + fraction.len();
            let mut last = fraction.bytes().rev().chain(number.bytes().rev());
            let thousands = digits >= 3 && last.by_ref().take(3).all(|digit| digit == b'0');
            if digits <= 18 && scale >= -9 && scale % 3 == 0 && !thousands && !number.is_empty() {
                return Ok(text.to_owned());
            }
        }
        if quantity.format == Format::BinarySI && is_shortest_binary(text) {
            return Ok(text.to_owned());
        }
        Ok(quantity.to_string())
    }

    /// Whole units, rounded away from zero.
    pub fn value(&self) -> i64 {
        self.scaled(NANO)
    }

    /// Thousandths, rounded away from zero.
    pub fn milli_value(&self) -> i64 {
        self.scaled(1_000_000)
    }

    fn scaled(&self, unit: i128) -> i64 {
        let (quotient, rest) = (self.nanos / unit, self.nanos % unit);
        let rounded = quotient + rest.signum();
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }

    /// The value as a float, for averages and utilisation.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// The same value rounded up (away from zero) to thousandths, as upstream keeps resource lists.
    #[must_use]
    pub fn round_up_milli(self) -> Quantity {
        let rest = self.nanos % 1_000_000;
        let nanos = if rest == 0 { self.nanos } else { self.nanos - rest + rest.signum() * 1_000_000 };
        Quantity { nanos, ..self }
    }

    /// Whether the value is whole thousandths.
    pub fn is_whole_milli(&self) -> bool {
        self.nanos % 1_000_000 == 0
    }

    /// Whether the value is whole units.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// Whether this is nothing.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    /// The family of suffixes.
    pub fn format(&self) -> Format {
        self.format
    }
}

/// Whether `text` is what [`Quantity`]'s `Display` writes for a few common binary quantities: a small whole number that
/// no larger suffix divides.
fn is_shortest_binary(text: &str) -> bool {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    digits <= 6
        && !number.starts_with('0')
        && matches!(suffix, "Ki" | "Mi" | "Gi" | "Ti")
        && number.parse::<u32>().is_ok_and(|number| number % 1024 != 0)
}

fn parse_suffix(suffix: &str) -> Result<(u32, i32, Format), QuantityError> {
    let known = match suffix {
        "" => Some((10, 0, Format::DecimalSI)),
        "n" => Some((10, -9, Format::DecimalSI)),
        "u" => Some((10, -6, Format::DecimalSI)),
        "m" => Some((10, -3, Format::DecimalSI)),
        "k" => Some((10, 3, Format::DecimalSI)),
        "M" => Some((10, 6, Format::DecimalSI)),
        "G" => Some((10, 9, Format::DecimalSI)),
        "T" => Some((10, 12, Format::DecimalSI)),
        "P" => Some((10, 15, Format::DecimalSI)),
        "E" => Some((10, 18, Format::DecimalSI)),
        "Ki" => Some((2, 10, Format::BinarySI)),
        "Mi" => Some((2, 20, Format::BinarySI)),
        "Gi" => Some((2, 30, Format::BinarySI)),
        "Ti" => Some((2, 40, Format::BinarySI)),
        "Pi" => Some((2, 50, Format::BinarySI)),
        "Ei" => Some((2, 60, Format::BinarySI)),
        _ => None,
    };
    if let Some(known) = known {
        return Ok(known);
    }
    // The shape first: letters of the set, a sign, digits; then the meaning.
    let rest = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    if !rest.bytes().all(|b| b.is_ascii_digit()) {
        return Err(QuantityError::Format);
    }
    match suffix.strip_prefix(['e', 'E']) {
        Some(exponent) => {
            let exponent: i32 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
            Ok((10, exponent, Format::DecimalExponent))
        }
        None => Err(QuantityError::Suffix),
    }
}

/// `whole.fraction * base^exponent` in billionths, rounded up and capped.
fn scale(whole: &str, fraction: &str, base: u32, exponent: i32) -> Result<i128, QuantityError> {
    // What nearly every quantity is: a small whole number.
    if fraction.is_empty()
        && whole.len() <= 9
        && exponent.unsigned_abs() <= if base == 2 { 30 } else { 9 }
        && let Ok(number) = whole.parse::<u32>()
    {
        let unit = if base == 2 { NANO << exponent } else { 10i128.pow((9 + exponent).unsigned_abs()) };
        return Ok(i128::from(number) * unit);
    }
    let fraction = fraction.trim_end_matches('0');
    let mantissa = format!("{whole}{fraction}");
    let mantissa = mantissa.trim_start_matches('0');
    if mantissa.is_empty() {
        return Ok(0);
    }
    let (mantissa, dropped) = if mantissa.len() > 36 { mantissa.split_at(36) } else { (mantissa, "") };
    let mut number: i128 = mantissa.parse().map_err(|_| QuantityError::Numeric)?;
    let mut power = 9i64 - fraction.len() as i64 + dropped.len() as i64;
    let mut inexact = dropped.bytes().any(|b| b != b'0');
    if base == 2 {
        // Trailing zeros first, so that the product fits as often as possible.
        while number % 10 == 0 && number != 0 {
            number /= 10;
            power += 1;
        }
        match number.checked_mul(1i128 << exponent) {
            Some(product) => number = product,
            None => return Ok(CAP),
        }
    } else {
        power += i64::from(exponent);
    }
    while power > 0 {
        match number.checked_mul(10) {
            Some(product) => number = product,
            // Beyond what anything can hold; only its being huge matters.
            None => return Ok(if base == 2 { CAP } else { HUGE }),
        }
        power -= 1;
    }
    while power < 0 && number != 0 {
        inexact |= number % 10 != 0;
        number /= 10;
        power += 1;
    }
    if inexact {
        number = number.saturating_add(1);
    }
    Ok(if base == 2 { number.min(CAP) } else { number })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        if self.format == Format::BinarySI && !small && self.is_integer() {
            let mut number = self.nanos / NANO;
            let mut power = 0;
            while number % 1024 == 0 && power < 6 {
                number /= 1024;
                power += 1;
            }
            return write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let (mut number, mut exponent) = (self.nanos, -9i32);
        while number % 10 == 0 {
            number /= 10;
            exponent += 1;
        }
        let over = exponent.rem_euclid(3);
        number *= 10i128.pow(over.unsigned_abs());
        exponent -= over;
        if self.format == Format::DecimalExponent || exponent > 18 {
            return if exponent == 0 { write!(f, "{number}") } else { write!(f, "{number}e{exponent}") };
        }
        let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][((exponent + 9) / 3) as usize];
        write!(f, "{number}{suffix}")
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Quantity, QuantityError> {
        Quantity::parse(text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Quantity;

    /// Keeps the left side's format, unless it is zero.
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl Sub for Quantity {
    type Output = Quantity;

    fn sub(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_sub(other.nanos), format }
    }
}

impl Neg for Quantity {
    type Output = Quantity;

    fn neg(self) -> Quantity {
        Quantity { nanos: -self.nanos, ..self }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn canonical_forms() {
        let cases = [
            ("0", "0"),
            ("0Gi", "0"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            ("100", "100"),
            ("1000", "1k"),
            ("2500", "2500"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("1024Ki", "1Mi"),
            ("1000Ki", "1000Ki"),
            ("0.5Ki", "512"),
            ("0.1Ki", "102400m"),
            ("1e3", "1e3"),
            ("12E6", "12e6"),
            ("100E-3", "100e-3"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("-1.5", "-1500m"),
            ("+5", "5"),
            ("1.", "1"),
            (".5", "500m"),
            ("1G", "1G"),
            ("123456789", "123456789"),
            ("9223372036854775807", "9223372036854775807"),
            ("99999999999999999999", "99999999999999999999"),
            ("8Ei", "9223372036854775807"),
            ("666666666666666666Ei", "9223372036854775807"),
            ("1E", "1E"),
        ];
        for (text, want) in cases {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), want, "{text}");
        }
    }

    #[test]
    fn some_notations_are_kept() {
        let cases = [
            ("1E3", "1E3"),
            ("12e6", "12e6"),
            ("1.500", "1.500"),
            ("1000", "1k"),
            ("1500m", "1500m"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1Gi", "1Gi"),
            ("1024Mi", "1Gi"),
            ("100", "100"),
            ("0", "0"),
            ("1000m", "1"),
        ];
        for (text, want) in cases {
            assert_eq!(Quantity::normalise(text).unwrap(), want, "{text}");
        }
    }

    /// Small whole numbers are read by a shorter way; `1.0` takes the long one.
    #[test]
    fn short_and_long_way_agree() {
        let suffixes = [
            "", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e3", "e-9",
            "e12",
        ];
        for number in [
            "0",
            "1",
            "007",
            "1000",
            "1023",
            "1024",
            "1025",
            "2048",
            "999999",
            "1048576",
            "999999999",
            "4294967296",
        ] {
            for suffix in suffixes {
                let (short, long) = (format!("{number}{suffix}"), format!("{number}.0{suffix}"));
                let quantity = Quantity::parse(&short).unwrap();
                assert_eq!(quantity, Quantity::parse(&long).unwrap(), "{short}");
                if suffix.ends_with('i') {
                    assert_eq!(Quantity::normalise(&short).unwrap(), quantity.to_string(), "{short}");
                }
            }
        }
    }

    #[test]
    fn errors() {
        let cases = [
            ("", QuantityError::Format),
            ("abc", QuantityError::Format),
            ("1x", QuantityError::Format),
            ("1KiB", QuantityError::Format),
            ("1 Gi", QuantityError::Format),
            ("1mm", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1K", QuantityError::Suffix),
            ("1.2.3", QuantityError::Format),
        ];
        for (text, want) in cases {
            assert_eq!(Quantity::parse(text).unwrap_err(), want, "{text}");
        }
    }

    #[test]
    fn arithmetic() {
        let q = |text: &str| Quantity::parse(text).unwrap();
        assert_eq!((q("500m") + q("1")).to_string(), "1500m");
        assert_eq!((q("1Gi") - q("512Mi")).to_string(), "512Mi");
        assert_eq!(q("1001m").value(), 2);
        assert_eq!(q("1Gi").value(), 1 << 30);
        assert_eq!(q("0.0001").milli_value(), 1);
        assert!(q("1Gi") > q("1G") && q("1000m") == q("1"));
        assert_eq!(q("-1").sign(), -1);
    }
}
