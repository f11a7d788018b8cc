//! The formats of strings that values are checked against (`strfmt`).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use base64::Engine as _;
use regex::Regex;

/// Whether a format (without dashes) says anything about strings.
pub fn applies(format: &str) -> bool {
    !format.is_empty() && !matches!(format, "int32" | "int64" | "float" | "double")
}

/// The formats of strings, without dashes.
const OF_STRINGS: [&str; 26] = [
    "bsonobjectid",
    "byte",
    "cidr",
    "creditcard",
    "date",
    "datetime",
    "duration",
    "email",
    "hexcolor",
    "hostname",
    "ipv4",
    "ipv6",
    "isbn",
    "isbn10",
    "isbn13",
    "k8slongname",
    "k8sshortname",
    "mac",
    "password",
    "rgbcolor",
    "ssn",
    "uri",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
];

/// Whether a format means something for values of a type.
pub fn is_known(ty: &str, format: &str) -> bool {
    match ty {
        "" | "string" => OF_STRINGS.contains(&format.replace('-', "").as_str()),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

macro_rules! patterns {
    ($($name:ident = $pattern:literal;)*) => {
        $(
            // The pattern is a literal, and compiling it is tested.
            static $name: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new($pattern).ok());
        )*
        #[cfg(test)]
        fn all_compile() -> bool {
            [$($name.is_some()),*].into_iter().all(|ok| ok)
        }
    };
}

patterns! {
    UUID = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID3 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID4 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    UUID5 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    HEX_COLOR = r"^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$";
    RGB_COLOR = r"^rgb\(\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*\)$";
    SSN = r"^\d{3}[- ]?\d{2}[- ]?\d{4}$";
    BSON = r"^[0-9a-fA-F]{24}$";
    HOSTNAME = r"^([a-zA-Z0-9\x{00a1}-\x{ffff}]([a-zA-Z0-9\x{00a1}-\x{ffff}-]{0,62}[a-zA-Z0-9\x{00a1}-\x{ffff}])?)(\.[a-zA-Z0-9\x{00a1}-\x{ffff}]([a-zA-Z0-9\x{00a1}-\x{ffff}-]{0,62}))*?(\.[a-zA-Z\x{00a1}-\x{ffff}]{2,63})?$";
    DATE_TIME = r"^\d{4}-\d{2}-\d{2}([Tt ]\d{2}:\d{2}:\d{2}([.,]\d+)?)([Zz]|[+-]\d{2}:?\d{2})?$";
    DURATION_WORDS = r"^(\d+)\s*([A-Za-zµ]+)$";
    EMAIL = r#"^(?:[^<>()\[\]\\.,;:\s@"]+(?:\.[^<>()\[\]\\.,;:\s@"]+)*|"[^"]+")@(?:\[[0-9A-Fa-f:.]+\]|[^\s@<>()\[\]\\,;:"]+)$"#;
}

fn fits(pattern: &LazyLock<Option<Regex>>, text: &str) -> bool {
    pattern.as_ref().is_some_and(|pattern| pattern.is_match(text))
}

/// Whether a text is of a format, named without dashes. Formats that are not known fit everything.
pub fn check(format: &str, text: &str) -> bool {
    match format {
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "datetime" => date_time(text),
        "duration" => duration(text),
        "email" => fits(&EMAIL, text),
        "hostname" => hostname(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.contains(':') && text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => mac(text),
        "uri" => uri(text),
        "uuid" => fits(&UUID, text),
        "uuid3" => fits(&UUID3, text),
        "uuid4" => fits(&UUID4, text),
        "uuid5" => fits(&UUID5, text),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "creditcard" => credit_card(text),
        "ssn" => fits(&SSN, text),
        "hexcolor" => fits(&HEX_COLOR, text),
        "rgbcolor" => fits(&RGB_COLOR, text),
        "bsonobjectid" => fits(&BSON, text),
        "k8sshortname" => orlop_api::names::is_dns1123_label(text).is_empty(),
        "k8slongname" => orlop_api::names::is_dns1123_subdomain(text).is_empty(),
        _ => true,
    }
}

fn date_time(text: &str) -> bool {
    if text.len() < 4 || !fits(&DATE_TIME, text) {
        return false;
    }
    let upper = text.to_ascii_uppercase().replace(',', ".");
    let zoned = upper.ends_with('Z') || upper.get(19..).is_some_and(|rest| rest.contains(['+', '-']));
    if zoned {
        upper.parse::<jiff::Timestamp>().is_ok()
    } else {
        upper.parse::<jiff::civil::DateTime>().is_ok()
    }
}

/// Go's notation (`1h30m`), or a number and a word (`3 days`).
fn duration(text: &str) -> bool {
    if go_duration(text) {
        return true;
    }
    let Some(words) = DURATION_WORDS.as_ref().and_then(|pattern| pattern.captures(text)) else {
        return false;
    };
    let unit = words[2].to_lowercase();
    matches!(
        unit.as_str(),
        "ns" | "nano"
            | "nanosecond"
            | "nanoseconds"
            | "us"
            | "µs"
            | "micro"
            | "microsecond"
            | "microseconds"
            | "ms"
            | "milli"
            | "millisecond"
            | "milliseconds"
            | "s"
            | "sec"
            | "secs"
            | "second"
            | "seconds"
            | "m"
            | "min"
            | "minute"
            | "minutes"
            | "h"
            | "hr"
            | "hour"
            | "hours"
            | "d"
            | "day"
            | "days"
            | "w"
            | "wk"
            | "week"
            | "weeks"
    )
}

fn go_duration(text: &str) -> bool {
    let mut rest = text.trim_start_matches(['+', '-']);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() || text.len() - rest.len() > 1 {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let number = &rest[..digits];
        if digits == 0 || number == "." || number.matches('.').count() > 1 {
            return false;
        }
        rest = &rest[digits..];
        let Some(unit) = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"].into_iter().find(|unit| {
            rest.strip_prefix(unit).is_some_and(|after| {
                after.is_empty() || after.starts_with(|c: char| c.is_ascii_digit() || c == '.')
            })
        }) else {
            return false;
        };
        rest = &rest[unit.len()..];
    }
    true
}

fn hostname(text: &str) -> bool {
    // A last label of one letter is no top-level domain to upstream.
    let last = text.rsplit('.').next().unwrap_or("");
    text.len() <= 255
        && text.split('.').all(|label| (1..=63).contains(&label.len()))
        && fits(&HOSTNAME, text)
        && (!text.contains('.') || last.chars().count() >= 2)
}

fn cidr(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else { return false };
    let plain = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit()) && prefix.len() <= 3;
    let Ok(prefix) = prefix.parse::<u8>() else { return false };
    plain
        && match address.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V4(_)) => prefix <= 32,
            Ok(std::net::IpAddr::V6(_)) => prefix <= 128,
            Err(_) => false,
        }
}

fn mac(text: &str) -> bool {
    let groups = |separator: char, digits: usize, counts: &[usize]| {
        let parts: Vec<&str> = text.split(separator).collect();
        counts.contains(&parts.len())
            && parts.iter().all(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    groups(':', 2, &[6, 8, 20]) || groups('-', 2, &[6, 8, 20]) || groups('.', 4, &[3, 4, 10])
}

/// What Go's `url.ParseRequestURI` accepts: an absolute URI or an absolute path.
fn uri(text: &str) -> bool {
    if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let named = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let escapes = text.match_indices('%').all(|(at, _)| {
        text.get(at + 1..at + 3).is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
    });
    named && escapes && (!rest.starts_with("//") || !rest[2..].split('/').next().unwrap_or("").contains(' '))
}

fn digits(text: &str) -> Vec<char> {
    text.chars().filter(|c| !matches!(c, '-' | ' ')).collect()
}

fn isbn10(text: &str) -> bool {
    let chars = digits(text);
    if chars.len() != 10 {
        return false;
    }
    let mut sum = 0;
    for (at, c) in chars.iter().enumerate() {
        let digit = match c {
            'X' | 'x' if at == 9 => 10,
            c => match c.to_digit(10) {
                Some(digit) => digit,
                None => return false,
            },
        };
        sum += digit * (at as u32 + 1);
    }
    sum % 11 == 0
}

fn isbn13(text: &str) -> bool {
    let chars = digits(text);
    let values: Option<Vec<u32>> = chars.iter().map(|c| c.to_digit(10)).collect();
    values.is_some_and(|values| {
        values.len() == 13
            && values.iter().enumerate().map(|(at, d)| if at % 2 == 0 { *d } else { 3 * d }).sum::<u32>() % 10
                == 0
    })
}

fn credit_card(text: &str) -> bool {
    let chars = digits(text);
    let values: Option<Vec<u32>> = chars.iter().map(|c| c.to_digit(10)).collect();
    values.is_some_and(|values| {
        let luhn = |(at, digit): (usize, &u32)| match (at % 2, digit * 2) {
            (0, _) => *digit,
            (_, double) if double > 9 => double - 9,
            (_, double) => double,
        };
        (12..=19).contains(&values.len()) && values.iter().rev().enumerate().map(luhn).sum::<u32>() % 10 == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known() {
        let check = |ty: &str, format: &str, expected: bool| {
            assert_eq!(is_known(ty, format), expected, "{ty} {format}")
        };
        check("string", "date-time", true);
        check("", "k8s-short-name", true);
        check("string", "int32", false);
        // Upstream means to know it one day.
        check("string", "quantity", false);
        check("integer", "int64", true);
        check("integer", "uint32", false);
        check("number", "double", true);
        check("object", "date", false);
    }

    #[test]
    fn formats() {
        assert!(all_compile());
        let cases: [(&str, &[&str], &[&str]); 17] = [
            ("byte", &["YQ==", ""], &["***", "a"]),
            ("date", &["2020-01-01"], &["x", "2020-13-01", "2020-1-1"]),
            (
                "datetime",
                &["2020-01-01T00:00:00Z", "2020-01-01T00:00:00.123+02:00"],
                &["x", "2020-01-01", "2020-99-01T00:00:00Z"],
            ),
            ("duration", &["5s", "1h30m", "1.5h", "3 days", "0"], &["x", "5", "5x"]),
            ("email", &["a@b.cc"], &["x", "@b", "a b@c"]),
            ("hostname", &["a.bc", "example.com", "a"], &["_", "a.b", "-a", ""]),
            ("ipv4", &["1.2.3.4"], &["x", "1.2.3", "::1"]),
            ("ipv6", &["::1", "fe80::1"], &["1.2.3.4", "x"]),
            ("cidr", &["10.0.0.0/8", "::/0"], &["x", "10.0.0.0", "10.0.0.0/33"]),
            ("mac", &["01:02:03:04:ab:cd"], &["01:02", "x"]),
            ("uri", &["http://a", "/a", "urn:x"], &["x", "", "%zz:"]),
            ("uuid", &["11111111-2222-3333-8444-555555555555"], &["x"]),
            ("uuid4", &["11111111-2222-4333-8444-555555555555"], &["11111111-2222-3333-8444-555555555555"]),
            ("isbn", &["978-0-306-40615-7", "0-306-40615-2"], &["1"]),
            ("creditcard", &["4111 1111 1111 1111"], &["4111 1111 1111 1112"]),
            ("hexcolor", &["#fff", "a0b1c2"], &["#ffff"]),
            ("rgbcolor", &["rgb(1, 2,3)"], &["rgb(1,2,300)"]),
        ];
        for (format, good, bad) in cases {
            for text in good {
                assert!(check(format, text), "{format} {text}");
            }
            for text in bad {
                assert!(!check(format, text), "{format} {text}");
            }
        }
    }
}
