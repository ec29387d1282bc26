//! `--print-config`: the configuration as a file that gives the same configuration, each line with its origin.
//!
//! No setting is a secret: the key is in a file of its own, and a key given instead of its file is refused before
//! anything is printed.

use super::layers::{Layers, Origin, keys, parts};

/// The text of the file.
pub(super) fn print(layers: &Layers) -> String {
    let mut out = String::new();
    for (key, list) in keys() {
        let Some(assignment) = layers.get(&key) else {
            out.push_str(&format!("# {key} is not set\n"));
            continue;
        };
        let values: Vec<_> = parts(&assignment.values).map(literal).collect();
        let value = match (list, assignment.values.as_slice()) {
            (true, _) => format!("[{}]", values.join(", ")),
            (false, [value]) => literal(value),
            (false, _) => continue,
        };
        let origin = match &assignment.origin {
            Origin::Default => "default".to_owned(),
            Origin::Environment => "environment".to_owned(),
            Origin::Flag => "flag".to_owned(),
            Origin::File(path, line) => format!("{}:{line}", path.display()),
        };
        // A path may hold anything but must stay in its comment.
        out.push_str(&format!("{key} = {value} # {}\n", origin.escape_debug()));
    }
    out
}

/// A value in TOML: numbers and booleans bare, everything else a basic string.
fn literal(value: &str) -> String {
    let bare =
        value == "true" || value == "false" || value.parse::<i64>().is_ok_and(|n| n.to_string() == value);
    if bare {
        return value.to_owned();
    }
    let mut out = String::from('"');
    for char in value.chars() {
        match char {
            '"' | '\\' => out.extend(['\\', char]),
            char if char.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(char))),
            char => out.push(char),
        }
    }
    out.push('"');
    out
}
