//! Settings whose part this version does not have yet.
//!
//! Their names are known from the first version on, so that command lines and files can be written once; but a value
//! that nothing would obey is refused, never ignored. When a part lands, its rows go.

use clap::Arg;

use super::{ConfigError, layers::Layers};

/// One setting that has to stay off.
struct Row {
    /// The setting.
    key: &'static str,
    /// The value that means off, which is also its default here. Empty for a list: no entries.
    off: &'static str,
    /// What it would need.
    part: &'static str,
}

const UNAVAILABLE: &[Row] = &[
    Row { key: "rehello", off: "none", part: "late registration" },
    Row { key: "grpc-socket", off: "none", part: "the Unix socket" },
];

/// Makes the off value the default, and says so in the help.
pub(super) fn restrict(command: clap::Command) -> clap::Command {
    command.mut_args(|arg: Arg| {
        let Some(row) = UNAVAILABLE.iter().find(|row| arg.get_long() == Some(row.key)) else { return arg };
        let help = format!("{} [not in this version]", arg.get_help().cloned().unwrap_or_default());
        let arg = arg.help(help);
        if row.off.is_empty() { arg } else { arg.default_value(row.off) }
    })
}

/// Refuses everything but the off values.
pub(super) fn check(layers: &Layers) -> Result<(), ConfigError> {
    for row in UNAVAILABLE {
        let Some(assignment) = layers.get(row.key) else { continue };
        if let Some(value) = assignment.values.iter().find(|value| value.as_str() != row.off) {
            let only = match row.off {
                "" => "it must stay empty".to_owned(),
                off => format!("only `{off}` is accepted"),
            };
            return Err(layers.wrong(
                row.key,
                format!("{value:?} needs {}, which this version does not have yet; {only}", row.part),
            ));
        }
    }
    Ok(())
}
