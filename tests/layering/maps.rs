//! Checks the maps: the page of the crate names each room, and the first file of a room names each module in it.

use std::collections::BTreeSet;

use super::module_of;

/// The files that the maps leave out. `names` are the files that are no tests, `text` returns a file's content, and
/// `architecture` is `docs/architecture.md`.
pub(crate) fn missing(names: &[String], text: impl Fn(&str) -> String, architecture: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let modules: Vec<Vec<String>> = names.iter().map(|name| module_of(name)).collect();
    let rooms: BTreeSet<&String> = modules.iter().filter_map(|module| module.first()).collect();
    let root = named(&text("src/lib.rs"));
    let words: BTreeSet<&str> = architecture.split(|c: char| !is_word(c)).collect();
    for room in &rooms {
        // The program is not a module of the library.
        if *room != "main" && !root.contains(*room) {
            complaints.push(format!("src/lib.rs: its map does not name `{room}`"));
        }
        if !words.contains(room.as_str()) {
            complaints.push(format!("docs/architecture.md: does not name {room}"));
        }
        let first = names.iter().zip(&modules).find(|(_, module)| module.as_slice() == [(*room).clone()]);
        let Some((first, _)) = first else { continue };
        let map = named(&text(first));
        let inner: BTreeSet<&String> = modules
            .iter()
            .filter(|module| module.first() == Some(room))
            .filter_map(|module| module.get(1))
            .collect();
        for module in inner {
            if !map.contains(module) {
                complaints.push(format!("{first}: its map does not name `{module}`"));
            }
        }
    }
    complaints
}

/// The words in backticks of a file's own description at its top.
fn named(text: &str) -> BTreeSet<String> {
    let header: String =
        text.lines().take_while(|line| line.starts_with("//!")).map(|line| format!("{line}\n")).collect();
    let quoted = header.split('`').skip(1).step_by(2);
    quoted.flat_map(|span| span.split(|c: char| !is_word(c))).map(str::to_owned).collect()
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}
