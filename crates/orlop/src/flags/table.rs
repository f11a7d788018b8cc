//! Flags of upstream's components as facts: name, kind, default, and what Orlop makes of each.
//!
//! A flag is never ignored in silence: it is used, or it is taken with a note because nothing here depends on it, or it
//! is refused with what it would do.

/// How a flag's value is written, as upstream's flag library reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `--flag`, `--flag=false`.
    Bool,
    /// A text.
    Text,
    /// Texts with commas between them; may be repeated.
    List,
    /// A text; may be repeated.
    Repeat,
    /// An integer.
    Int,
    /// A number.
    Float,
    /// `1h2m3s`.
    Duration,
    /// `key=value` with commas between; may be repeated.
    Map,
}

/// What Orlop makes of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It does what it does upstream.
    Honoured,
    /// It is accepted and changes nothing, for this reason.
    NoEffect(&'static str),
    /// Another value than the default is refused: it would do this, and Orlop does not have it.
    Missing(&'static str),
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Without the dashes.
    pub name: &'static str,
    /// Kind of its value.
    pub kind: Kind,
    /// Default value; empty for none.
    pub default: &'static str,
    /// What comes of it.
    pub means: Use,
    /// A line for the help.
    pub help: &'static str,
}

/// The flags of one component, by the headings of upstream's `--help`.
pub trait Table: std::fmt::Debug + Default + Send + Sync + 'static {
    /// Headings and flags.
    const GROUPS: &'static [(&'static str, &'static [Flag])];

    /// Every flag.
    fn all() -> impl Iterator<Item = &'static Flag> {
        Self::GROUPS.iter().flat_map(|(_, flags)| flags.iter())
    }
}

/// A flag that does what it does upstream.
pub const fn used(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind, default, means: Use::Honoured, help }
}

/// A flag that changes nothing, and why.
pub const fn idle(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    why: &'static str,
    help: &'static str,
) -> Flag {
    Flag { name, kind, default, means: Use::NoEffect(why), help }
}

/// A flag that is refused, and what it would do.
pub const fn lacks(name: &'static str, kind: Kind, default: &'static str, would: &'static str) -> Flag {
    Flag { name, kind, default, means: Use::Missing(would), help: would }
}

use Kind::{Bool, Duration, Int, Text};

const OWN_LOGS: &str = "Orlop's logs are set with --log-level and --log-format";

/// What every component says of its logs.
pub const LOGS: &[Flag] = &[
    idle("log-flush-frequency", Duration, "5s", OWN_LOGS, "How often logs are flushed"),
    idle("log-json-info-buffer-size", Text, "0", OWN_LOGS, "Buffer of info lines"),
    idle("log-json-split-stream", Bool, "false", OWN_LOGS, "Errors and infos in two streams"),
    idle("log-text-info-buffer-size", Text, "0", OWN_LOGS, "Buffer of info lines"),
    idle("log-text-split-stream", Bool, "false", OWN_LOGS, "Errors and infos in two streams"),
    idle("logging-format", Text, "text", OWN_LOGS, "text or json"),
    idle("v", Int, "0", OWN_LOGS, "How much is logged"),
    idle("vmodule", Text, "", OWN_LOGS, "How much is logged, by file"),
];
