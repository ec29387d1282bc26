//! Errors of a configuration, in words for the operator.

use std::path::PathBuf;

/// A configuration that is wrong, in words for the operator: one line for each setting that is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The command line does not parse. The text has its own layout and ends with a hint.
    #[error("{0}")]
    Usage(String),
    /// A setting is wrong.
    #[error("{place}: {problem}")]
    Setting {
        /// Where it stands.
        place: String,
        /// The problem, and a correct value.
        problem: String,
    },
    /// The file cannot be read or is no TOML.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The problem, with the line where there is one.
        problem: String,
    },
    /// More than one of them, a line each.
    #[error("{} settings are wrong:{}", .0.len(), .0.iter().map(|error| format!("\n  {error}")).collect::<String>())]
    Several(Vec<ConfigError>),
}

impl ConfigError {
    /// One error for all of `errors`; `Ok` if there are none.
    pub(super) fn all(errors: Vec<Self>) -> Result<(), Self> {
        let mut all = Vec::new();
        for error in errors {
            match error {
                Self::Several(several) => all.extend(several),
                error => all.push(error),
            }
        }
        match (all.len(), all.pop()) {
            (_, None) => Ok(()),
            (1, Some(error)) => Err(error),
            (_, Some(last)) => {
                all.push(last);
                Err(Self::Several(all))
            }
        }
    }
}
