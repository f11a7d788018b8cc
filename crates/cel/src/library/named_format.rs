//! The named formats of `format.named(…)` and `format.dns1123Label()`.

use base64::Engine;
use orlop_api::names;

use super::url::Url;
use crate::time::Timestamp;

/// What the estimate assumes of a format's pattern.
pub const MAX_NAME_FORMAT_REGEX_SIZE: u64 = 128;

/// A format.
#[derive(Debug)]
pub struct NamedFormat {
    /// Its name.
    pub name: &'static str,
    /// The problems of a text; none where it is valid.
    pub validate: fn(&str) -> Vec<String>,
    /// The length of the pattern it stands for, for the runtime cost.
    pub max_regex_size: u64,
}

static FORMATS: &[NamedFormat] = &[
    NamedFormat { name: "dns1123Label", validate: names::is_dns1123_label, max_regex_size: 30 },
    NamedFormat { name: "dns1123Subdomain", validate: names::is_dns1123_subdomain, max_regex_size: 60 },
    NamedFormat { name: "dns1035Label", validate: names::is_dns1035_label, max_regex_size: 30 },
    NamedFormat { name: "qualifiedName", validate: names::is_qualified_name, max_regex_size: 60 },
    NamedFormat {
        name: "dns1123LabelPrefix",
        validate: |text| names::is_dns1123_label(&names::mask_trailing_dash(text)),
        max_regex_size: 30,
    },
    NamedFormat {
        name: "dns1123SubdomainPrefix",
        validate: |text| names::is_dns1123_subdomain(&names::mask_trailing_dash(text)),
        max_regex_size: 60,
    },
    NamedFormat {
        name: "dns1035LabelPrefix",
        validate: |text| names::is_dns1035_label(&names::mask_trailing_dash(text)),
        max_regex_size: 30,
    },
    NamedFormat { name: "labelValue", validate: names::is_valid_label_value, max_regex_size: 40 },
    NamedFormat { name: "uri", validate: uri, max_regex_size: 1000 },
    NamedFormat {
        name: "uuid",
        validate: |text| unless(is_uuid(text), "does not match the UUID format"),
        max_regex_size: 36,
    },
    NamedFormat {
        name: "byte",
        validate: |text| unless(is_base64(text), "invalid base64"),
        max_regex_size: 0,
    },
    NamedFormat { name: "date", validate: |text| unless(is_date(text), "invalid date"), max_regex_size: 0 },
    NamedFormat {
        name: "datetime",
        validate: |text| unless(Timestamp::parse(text).is_some(), "invalid datetime"),
        max_regex_size: 0,
    },
];

/// A format by name.
pub fn find(name: &str) -> Option<&'static NamedFormat> {
    FORMATS.iter().find(|format| format.name == name)
}

fn unless(valid: bool, problem: &str) -> Vec<String> {
    if valid { Vec::new() } else { vec![problem.to_owned()] }
}

fn uri(text: &str) -> Vec<String> {
    Url::parse(text).err().into_iter().collect()
}

fn is_uuid(text: &str) -> bool {
    // Dashes are optional, as in upstream's pattern.
    let mut groups = [8, 4, 4, 4, 12].into_iter().peekable();
    let mut rest = text;
    while let Some(length) = groups.next() {
        match rest.get(..length) {
            Some(group) if group.bytes().all(|b| b.is_ascii_hexdigit()) => rest = &rest[length..],
            _ => return false,
        }
        if groups.peek().is_some() {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
    }
    rest.is_empty()
}

fn is_base64(text: &str) -> bool {
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && Timestamp::parse_format(text).is_some()
}
