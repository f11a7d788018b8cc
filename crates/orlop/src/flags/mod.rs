//! The command line of one of upstream's components as values by flag name, read the way upstream's flag library reads
//! them.

pub mod table;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};

use self::table::{Flag, Kind, Table, Use};

/// What was given.
#[derive(Debug, Default)]
pub struct Flags<T> {
    given: BTreeMap<&'static str, Vec<String>>,
    /// What was asked for, so that a flag of the table that nobody reads is found.
    asked: RefCell<BTreeSet<&'static str>>,
    table: PhantomData<T>,
}

impl<T: Table> clap::Args for Flags<T> {
    fn augment_args(mut command: Command) -> Command {
        for (heading, flags) in T::GROUPS {
            for flag in *flags {
                command = command.arg(argument(heading, flag));
            }
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn argument(heading: &'static str, flag: &'static Flag) -> Arg {
    let default =
        if flag.default.is_empty() { String::new() } else { format!(" [default: {}]", flag.default) };
    let help = match flag.means {
        Use::Honoured => format!("{}{default}", flag.help),
        Use::NoEffect(why) => format!("{}{default} (no effect: {why})", flag.help),
        Use::Missing(would) => format!("Not built; it would {would}{default}"),
    };
    let mut argument =
        Arg::new(flag.name).long(flag.name).help_heading(heading).help(help).action(ArgAction::Append);
    if flag.name.len() == 1 {
        argument = argument.short(flag.name.chars().next());
    }
    match flag.kind {
        Kind::Bool => {
            argument.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
        }
        Kind::Text => argument.value_name("TEXT"),
        Kind::List => argument.value_name("A,B"),
        Kind::Repeat => argument.value_name("TEXT"),
        Kind::Int => argument.value_name("INT").allow_negative_numbers(true),
        Kind::Float => argument.value_name("FLOAT"),
        Kind::Duration => argument.value_name("DURATION"),
        Kind::Map => argument.value_name("KEY=VALUE,..."),
    }
}

impl<T: Table> clap::FromArgMatches for Flags<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = T::all()
            .filter_map(|flag| {
                let values: Vec<String> = matches.get_many::<String>(flag.name)?.cloned().collect();
                Some((flag.name, values))
            })
            .collect();
        Ok(Flags { given, asked: RefCell::default(), table: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Upstream's flag names may be written with underscores.
pub fn normalize(arguments: Vec<OsString>) -> Vec<OsString> {
    let upstreams = ["apiserver", "scheduler", "controller-manager"];
    if !arguments.iter().any(|argument| upstreams.iter().any(|name| argument == name)) {
        return arguments;
    }
    let dashed = |argument: OsString| match argument.to_str() {
        Some(text) if text.starts_with("--") => {
            let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
            OsString::from(format!("{}{value}", name.replace('_', "-")))
        }
        _ => argument,
    };
    arguments.into_iter().map(dashed).collect()
}

impl<T: Table> Flags<T> {
    fn flag(&self, name: &str) -> Option<&'static Flag> {
        let flag = T::all().find(|flag| flag.name == name)?;
        self.asked.borrow_mut().insert(flag.name);
        Some(flag)
    }

    /// Whether it was given.
    pub fn has(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// Whether a flag whose name begins so was given.
    pub fn given_with_prefix(&self, prefix: &str) -> bool {
        self.given.keys().any(|name| name.starts_with(prefix))
    }

    /// The last value given, or the default.
    pub fn text(&self, name: &str) -> String {
        let default = self.flag(name).map_or("", |flag| flag.default);
        self.given.get(name).and_then(|values| values.last()).map_or(default, String::as_str).to_string()
    }

    /// A text that may be absent.
    pub fn optional(&self, name: &str) -> Option<String> {
        Some(self.text(name)).filter(|text| !text.is_empty())
    }

    /// A path that may be absent.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.optional(name).map(PathBuf::from)
    }

    /// The text of the file a flag names.
    pub fn file(&self, name: &str) -> anyhow::Result<Option<String>> {
        let Some(path) = self.path(name) else { return Ok(None) };
        let text = std::fs::read_to_string(&path).with_context(|| format!("--{name}: {}", path.display()))?;
        Ok(Some(text))
    }

    /// Every value, commas split for lists.
    pub fn list(&self, name: &str) -> Vec<String> {
        let Some(flag) = self.flag(name) else { return Vec::new() };
        let default = [flag.default.to_string()];
        let values = self.given.get(name).map_or(&default[..], Vec::as_slice);
        let mut list = Vec::new();
        for value in values {
            if flag.kind == Kind::Repeat {
                list.push(value.clone());
            } else {
                list.extend(value.split(',').map(|part| part.trim().to_string()));
            }
        }
        list.retain(|item| !item.is_empty());
        list
    }

    /// `key=value` pairs.
    pub fn map(&self, name: &str) -> anyhow::Result<BTreeMap<String, String>> {
        self.list(name)
            .into_iter()
            .map(|pair| match pair.split_once('=') {
                Some((key, value)) => Ok((key.trim().to_string(), value.trim().to_string())),
                None => bail!("--{name}: malformed pair, expect string=string: {pair:?}"),
            })
            .collect()
    }

    /// `key=true|false` pairs; a key alone is true.
    pub fn bool_map(&self, name: &str) -> anyhow::Result<BTreeMap<String, bool>> {
        self.list(name)
            .into_iter()
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((&pair, "true"));
                Ok((key.trim().to_string(), parse_bool(name, value.trim())?))
            })
            .collect()
    }

    /// A boolean.
    pub fn bool(&self, name: &str) -> anyhow::Result<bool> {
        parse_bool(name, &self.text(name))
    }

    /// A number in a range.
    pub fn number<N: std::str::FromStr>(&self, name: &str) -> anyhow::Result<N>
    where
        N::Err: std::error::Error + Send + Sync + 'static,
    {
        let text = self.text(name);
        text.parse().with_context(|| format!("invalid argument {text:?} for \"--{name}\" flag"))
    }

    /// A duration as Go writes it.
    pub fn duration(&self, name: &str) -> anyhow::Result<Duration> {
        parse_duration(&format!("\"--{name}\" flag"), &self.text(name))
    }

    /// Everything that was given, for those who ask a running server.
    pub fn shown(&self) -> Vec<(String, String)> {
        self.given.iter().map(|(name, values)| (name.to_string(), values.join(","))).collect()
    }

    /// Refuses what Orlop does not have, and says what it takes without effect. Called last, when every flag that is
    /// honoured has been asked for.
    pub fn settle(&self) -> anyhow::Result<()> {
        for (name, values) in &self.given {
            let Some(flag) = T::all().find(|flag| flag.name == *name) else { continue };
            let as_default = values.last().is_some_and(|value| value == flag.default);
            match flag.means {
                Use::Missing(would) if !as_default => {
                    bail!("--{name} is not built: it would {would}; leave it out")
                }
                Use::NoEffect(why) if !as_default => tracing::info!(flag = %name, "no effect: {why}"),
                Use::Honoured if !self.asked.borrow().contains(name) => {
                    bail!("--{name} was not taken in; this is a fault of Orlop")
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A duration as Go writes it, of a flag or field.
pub fn parse_duration(name: &str, text: &str) -> anyhow::Result<Duration> {
    let nanoseconds = orlop_api::decode::scalar::parse_duration(text)
        .map_err(|error| anyhow::anyhow!("invalid argument {text:?} for {name}: {error}"))?;
    u64::try_from(nanoseconds)
        .map(Duration::from_nanos)
        .map_err(|_| anyhow::anyhow!("{name}: must not be negative"))
}

fn parse_bool(name: &str, text: &str) -> anyhow::Result<bool> {
    // The spellings of Go's strconv.ParseBool.
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => bail!("invalid argument {other:?} for \"--{name}\" flag: must be true or false"),
    }
}

#[cfg(test)]
impl<T: Table> Flags<T> {
    /// Reads a command line, for tests.
    pub fn of(arguments: &[&str]) -> Result<Flags<T>, clap::Error> {
        use clap::{Args as _, FromArgMatches as _};
        let all = std::iter::once("orlop").chain(arguments.iter().copied());
        let matches = Self::augment_args(Command::new("orlop")).try_get_matches_from(all)?;
        Self::from_arg_matches(&matches)
    }

    /// Flags that are said to be honoured and that nobody has asked for.
    pub fn forgotten(&self) -> Vec<&'static str> {
        T::all()
            .filter(|flag| flag.means == Use::Honoured && !self.asked.borrow().contains(flag.name))
            .map(|flag| flag.name)
            .collect()
    }
}
