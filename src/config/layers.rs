//! The layers of assignments: flags, environment and file, and their order.
//!
//! A layer holds text, not values. All layers are read by the one parser of [`Settings`], so that a value means the
//! same wherever it stands. Each assignment has its [`Origin`], so that an error can name the place.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{FromArgMatches as _, error::ErrorKind, parser::ValueSource};

use super::{
    ConfigError, links,
    settings::{Settings, command},
};

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// No layer sets it.
    Default,
    /// The file, with the line.
    File(Arc<Path>, usize),
    /// A variable of the environment.
    Environment,
    /// The command line.
    Flag,
}

/// One layer's assignment to one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    /// One value; for a list any number.
    pub(super) values: Vec<String>,
    pub(super) origin: Origin,
}

/// The assignments of one layer, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layer(pub(super) BTreeMap<String, Assignment>);

impl Layer {
    /// The file that this layer names.
    pub(super) fn config(&self) -> Option<&str> {
        self.0.get("config")?.values.first().map(String::as_str)
    }
}

/// The contents of the command line.
pub(super) enum Flags {
    /// Settings.
    Set(Layer),
    /// A question: help or version, with its answer.
    Print(String),
}

/// The settings that a file or the environment may have, in the order of the help; whether each is a list.
pub(super) fn keys() -> Vec<(String, bool)> {
    let parser = command();
    let long = parser.get_arguments().filter_map(|arg| {
        let list = matches!(arg.get_action(), clap::ArgAction::Append);
        Some((arg.get_long()?.to_owned(), list))
    });
    // These ask about a configuration, they are no part of it.
    long.filter(|(key, _)| {
        !matches!(key.as_str(), "help" | "version" | "config" | "check-config" | "print-config")
    })
    .collect()
}

/// The known key that `unknown` most likely means.
pub(super) fn nearest(unknown: &str) -> Option<String> {
    keys()
        .into_iter()
        .map(|(key, _)| (strsim::jaro_winkler(unknown, &key), key))
        // Below this, suggestions are noise; clap draws the line for flags at the same place.
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, key)| key)
}

/// Reads the command line.
pub(super) fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Flags, ConfigError> {
    let parser = command();
    let matches = match parser.clone().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => {
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Flags::Print(error.to_string())),
                _ => {
                    let text = error.to_string();
                    let text = text.strip_prefix("error: ").unwrap_or(&text);
                    Err(ConfigError::Usage(plain(text.trim_end())))
                }
            };
        }
    };
    let mut layer = Layer::default();
    for arg in parser.get_arguments() {
        let id = arg.get_id().as_str();
        let (Some(key), Some(ValueSource::CommandLine)) = (arg.get_long(), matches.value_source(id)) else {
            continue;
        };
        let raw = matches.get_raw(id).into_iter().flatten();
        let values = raw
            .map(|value| text(value).ok_or_else(|| wrong(&Origin::Flag, key, "is not UTF-8".to_owned())))
            .collect::<Result<_, _>>()?;
        layer.0.insert(key.to_owned(), Assignment { values, origin: Origin::Flag });
    }
    Ok(Flags::Set(layer))
}

/// Reads the variables `DEVP2PD_…`; those that are wrong go to `errors`, all of them. An empty one counts as not set,
/// as compose files write it.
pub(super) fn from_env(env: &BTreeMap<OsString, OsString>, errors: &mut Vec<ConfigError>) -> Layer {
    let mut layer = Layer::default();
    for (name, value) in env {
        let Some(name) = name.to_str() else { continue };
        let Some(rest) = name.strip_prefix("DEVP2PD_") else { continue };
        if value.is_empty() || links::is_link(rest, &value.to_string_lossy()) {
            continue;
        }
        let key = rest.to_ascii_lowercase().replace('_', "-");
        if key != "config" && !keys().iter().any(|(known, _)| *known == key) {
            let hint =
                nearest(&key).map(|key| format!(", did you mean {}?", variable(&key))).unwrap_or_default();
            let problem = format!("no such setting{hint}");
            errors.push(ConfigError::Setting { place: name.to_owned(), problem });
            continue;
        }
        let Some(value) = text(value) else {
            errors.push(wrong(&Origin::Environment, &key, "is not UTF-8".to_owned()));
            continue;
        };
        layer.0.insert(key, Assignment { values: vec![value], origin: Origin::Environment });
    }
    check_each(&layer, errors);
    layer
}

/// Parses each assignment by itself, so that an error names the right place.
pub(super) fn check_each(layer: &Layer, errors: &mut Vec<ConfigError>) {
    for (key, assignment) in &layer.0 {
        let flags = assignment.values.iter().map(|value| format!("--{key}={value}"));
        if let Err(error) = command().try_get_matches_from(std::iter::once("devp2pd".to_owned()).chain(flags))
        {
            // The place names the setting already.
            let problem = brief(&error);
            let problem = match problem.split_once(&format!(" for '--{key}")) {
                Some((value, rest)) => {
                    format!("{value}{}", rest.split_once('\'').map_or("", |(_, problem)| problem))
                }
                None => problem,
            };
            errors.push(wrong(&assignment.origin, key, problem));
        }
    }
}

/// All layers, the winning one on top.
#[derive(Debug, Default)]
pub(super) struct Layers(BTreeMap<String, Assignment>);

impl Layers {
    /// The defaults.
    pub(super) fn new() -> Self {
        let parser = command();
        let known = keys();
        let default = |arg: &clap::Arg| {
            let key = arg.get_long()?;
            let values: Vec<_> = arg.get_default_values().iter().filter_map(|value| text(value)).collect();
            let wanted = !values.is_empty() && known.iter().any(|(known, _)| known == key);
            wanted.then(|| (key.to_owned(), Assignment { values, origin: Origin::Default }))
        };
        Self(parser.get_arguments().filter_map(default).collect())
    }

    /// Puts a layer on top.
    pub(super) fn add(&mut self, layer: Layer) {
        self.0.extend(layer.0);
    }

    /// The data directory of the user of the process, unless a layer sets another.
    pub(super) fn set_default_data_dir(&mut self, env: &BTreeMap<OsString, OsString>) {
        let absolute =
            |name: &str| env.get(OsStr::new(name)).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
        let path = base.and_then(|base| base.join("devp2pd").to_str().map(str::to_owned));
        if let Some(path) = path {
            let default = || Assignment { values: vec![path], origin: Origin::Default };
            self.0.entry("data-dir".to_owned()).or_insert_with(default);
        }
    }

    /// The assignment that wins.
    pub(super) fn get(&self, key: &str) -> Option<&Assignment> {
        self.0.get(key)
    }

    /// Each setting as it was written, by key; lists in their parts.
    pub(super) fn values(&self) -> BTreeMap<String, Vec<String>> {
        let values = |key: String, list: bool| {
            let written = &self.get(&key)?.values;
            Some((key, if list { parts(written).map(str::to_owned).collect() } else { written.clone() }))
        };
        keys().into_iter().filter_map(|(key, list)| values(key, list)).collect()
    }

    /// All of it as values.
    pub(super) fn parse(&self) -> Result<Settings, ConfigError> {
        let flags = self.0.iter().flat_map(|(key, assignment)| {
            // The questions take no value.
            let bare = matches!(key.as_str(), "check-config" | "print-config");
            assignment.values.iter().map(
                move |value| {
                    if bare { format!("--{key}") } else { format!("--{key}={value}") }
                },
            )
        });
        command()
            .try_get_matches_from(std::iter::once("devp2pd".to_owned()).chain(flags))
            .and_then(|matches| Settings::from_arg_matches(&matches))
            .map_err(|error| ConfigError::Usage(error.to_string()))
    }

    /// The error that `key` is wrong, naming the place where it stands.
    pub(super) fn wrong(&self, key: &str, problem: impl fmt::Display) -> ConfigError {
        let origin = self.get(key).map_or(&Origin::Default, |assignment| &assignment.origin);
        wrong(origin, key, problem.to_string())
    }
}

fn wrong(origin: &Origin, key: &str, problem: String) -> ConfigError {
    let problem = in_words_of(origin, &problem);
    let place = match origin {
        Origin::Flag => format!("--{key}"),
        Origin::Default => format!("--{key} (by default)"),
        Origin::Environment => variable(key),
        Origin::File(path, line) => format!("{}:{line}: {key}", path.display()),
    };
    ConfigError::Setting { place, problem }
}

/// Names the settings in `problem` as the layer of `origin` does: flags are variables in the environment, and keys in
/// the file.
fn in_words_of(origin: &Origin, problem: &str) -> String {
    if matches!(origin, Origin::Flag | Origin::Default) {
        return problem.to_owned();
    }
    let known = keys();
    let mut out = String::new();
    let mut rest = problem;
    while let Some((before, after)) = rest.split_once("--") {
        let length = after.bytes().take_while(|byte| byte.is_ascii_lowercase() || *byte == b'-').count();
        let (name, tail) = after.split_at_checked(length).unwrap_or((after, ""));
        out.push_str(before);
        match origin {
            _ if !known.iter().any(|(key, _)| key == name) => out.push_str(&format!("--{name}")),
            Origin::Environment => out.push_str(&variable(name)),
            _ => out.push_str(name),
        }
        rest = tail;
    }
    out + rest
}

fn variable(key: &str) -> String {
    format!("DEVP2PD_{}", key.to_ascii_uppercase().replace('-', "_"))
}

/// The parts of a list: those between commas, without spaces around them and without empty ones.
pub(super) fn parts(values: &[String]) -> impl Iterator<Item = &str> {
    values.iter().flat_map(|value| value.split(',')).map(str::trim).filter(|part| !part.is_empty())
}

fn text(value: &OsStr) -> Option<String> {
    value.to_str().map(str::to_owned)
}

/// Adds what was expected, where the error of the standard library has only what its parser met.
fn plain(text: &str) -> String {
    text.replace("invalid digit found in string", "expected a whole number")
        .replace("cannot parse integer from empty string", "expected a whole number")
        .replace("number would be zero for non-zero type", "expected a whole number above 0")
        .replace("number too large to fit in target type", "the number is too large")
}

/// The first paragraph of clap's message, on one line: the rest is about flags.
fn brief(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim);
    let line = lines.collect::<Vec<_>>().join(" ");
    plain(line.strip_prefix("error: ").unwrap_or(&line))
}
