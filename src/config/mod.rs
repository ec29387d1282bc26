//! The configuration: one loader for flags, environment and file, and the [`Config`] that everything else reads.
//!
//! Every setting has one name. `--grpc-addr`, `DEVP2PD_GRPC_ADDR` and the key `grpc-addr` of the TOML file are the same
//! setting, read by the same parser. The file has no sections, so that a setting has one spelling. Where several layers
//! set it, flags go before environment, environment before file, file before default; a list replaces a list. Unknown
//! names are errors with the nearest known name.
//!
//! Parsed, not validated: a [`Config`] that exists is consistent, and its types (addresses, nodes, durations) need no
//! second look. Errors name where the value stands: the flag, the variable, or the line of the file.
//!
//! Reading order: `sections` ([`Config`] and its defaults in code), `settings` (all settings, with their
//! documentation), `values` (the types of their values), `layers` (the order of flags, environment and file), `links`
//! (variables that are not settings), `file`, `resolve` (settings to [`Config`]), `networks` (the presets), `print`,
//! `error`.
//!
//! Left out: files that settings name (`net::key_file`), and changing settings while running.

mod error;
mod file;
mod layers;
mod links;
pub mod networks;
mod print;
mod resolve;
mod sections;
mod settings;
mod values;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

pub use error::ConfigError;
pub use sections::{Config, Discovery, Grpc, Log, Peers, Tls};
pub use values::{LogFormat, Network, Rehello};

/// The request of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Run with this configuration.
    Run(Box<Config>),
    /// Write this to standard output and exit with success: help, version, the configuration.
    Print(String),
}

/// Loads the configuration from `args` (the first is the program's name) and `env`, and from the file that they name.
pub fn load(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Request, ConfigError> {
    let env: BTreeMap<OsString, OsString> = env.into_iter().collect();
    let flags = match layers::from_args(args)? {
        layers::Flags::Print(text) => return Ok(Request::Print(text)),
        layers::Flags::Set(flags) => flags,
    };
    let mut layers = layers::Layers::new();
    let mut errors = Vec::new();
    let environment = layers::from_env(&env, &mut errors);
    let path = flags.config().or_else(|| environment.config()).map(PathBuf::from);
    if let Some(path) = &path {
        layers.add(file::read(Path::new(path), &mut errors)?);
    }
    ConfigError::all(errors)?;
    layers.add(environment);
    layers.add(flags);
    layers.set_default_data_dir(&env);

    let settings = layers.parse()?;
    let config = resolve::resolve(&settings, &layers)?;
    if settings.print_config {
        return Ok(Request::Print(print::print(&layers)));
    }
    if settings.check_config {
        return Ok(Request::Print("the configuration is valid\n".to_owned()));
    }
    Ok(Request::Run(Box::new(config)))
}

#[cfg(test)]
mod tests;
