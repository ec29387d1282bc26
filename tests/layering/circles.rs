//! Finds import circles: files that cannot be understood without each other.
//!
//! An edge leads from a file to each file that it names an item of, outside of tests. A name that a module passes on
//! (`pub use`) is followed to the file that declares it, and passing it on is no edge by itself: a room's first file
//! shows what is in the room without depending on it.

use std::collections::{BTreeMap, BTreeSet};

use super::source::Source;

/// A module path: `["node", "key"]`; empty for the crate root.
type Module = Vec<String>;

/// A file: its module, its name, and the result of reading it.
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) module: Module,
    pub(crate) source: Source,
}

/// How often a name may be passed on before this gives up.
const MAX_STEPS: usize = 8;

/// The circles of files, the files of each in order. A file alone is none.
pub(crate) fn of_files(files: &[File]) -> Vec<Vec<String>> {
    let edges = edges(files);
    circles(
        &edges.iter().map(|(from, to)| (from.as_str(), to.iter().map(String::as_str).collect())).collect(),
    )
}

/// The circles of rooms, where a room is what [`super::module_of`] begins with.
pub(crate) fn of_rooms(files: &[File]) -> Vec<Vec<String>> {
    let room: BTreeMap<&str, &str> =
        files.iter().filter_map(|file| Some((file.name.as_str(), file.module.first()?.as_str()))).collect();
    let mut rooms: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let edges = edges(files);
    for (from, to) in &edges {
        let Some(from) = room.get(from.as_str()) else { continue };
        let to = to.iter().filter_map(|to| room.get(to.as_str())).filter(|to| *to != from);
        rooms.entry(from).or_default().extend(to);
    }
    circles(&rooms)
}

fn edges(files: &[File]) -> BTreeMap<String, BTreeSet<String>> {
    let by_module: BTreeMap<&[String], &File> =
        files.iter().map(|file| (file.module.as_slice(), file)).collect();
    let mut edges = BTreeMap::new();
    for file in files {
        let mut to = BTreeSet::new();
        for path in file.source.paths.iter().filter(|path| !path.in_test && !path.passed_on) {
            let target =
                absolute(&path.segments, file, &by_module).and_then(|path| declared(path, &by_module));
            to.extend(target.filter(|target| target.name != file.name).map(|target| target.name.clone()));
        }
        edges.insert(file.name.clone(), to);
    }
    edges
}

/// The path from the crate root, if it leads into this crate.
fn absolute(segments: &[String], file: &File, by_module: &BTreeMap<&[String], &File>) -> Option<Module> {
    match segments.split_first()? {
        (first, rest) if first == "crate" || first == "devp2pd" => Some(rest.to_vec()),
        // A child module, named from its parent.
        (first, _) => {
            let child: Module = file.module.iter().chain([first]).cloned().collect();
            let path: Module = file.module.iter().chain(segments).cloned().collect();
            by_module.contains_key(child.as_slice()).then_some(path)
        }
    }
}

/// The file that declares the item at a path: that of the longest module in it, or where its name is passed on from.
fn declared<'a>(mut path: Module, by_module: &BTreeMap<&[String], &'a File>) -> Option<&'a File> {
    for _ in 0..MAX_STEPS {
        let length = (0..=path.len()).rev().find(|length| by_module.contains_key(&path[..*length]))?;
        let file = by_module.get(&path[..length])?;
        let Some(name) = path.get(length) else { return Some(file) };
        let brought = |segments: &[String]| {
            let named = segments.last() == Some(name) && segments.len() > 1;
            absolute(segments, file, by_module).filter(|found| named && *found != path)
        };
        let uses = file.source.paths.iter().filter(|path| path.in_use && !path.in_test);
        match uses.filter_map(|path| brought(&path.segments)).next() {
            Some(from) => path = from.into_iter().chain(path[length + 1..].iter().cloned()).collect(),
            None => return Some(file),
        }
    }
    None
}

/// The strongly connected components of more than one node: two nodes are in one circle if each can be reached from the
/// other.
fn circles<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<Vec<String>> {
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        edges.keys().map(|from| (*from, reachable(from, edges))).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for (from, to) in &reached {
        let back = |other: &&&str| reached.get(**other).is_some_and(|there| there.contains(from));
        let circle: Vec<String> = to.iter().filter(back).map(ToString::to_string).collect();
        if circle.len() > 1 && seen.insert(circle.clone()) {
            found.push(circle);
        }
    }
    found
}

/// The nodes that can be reached from a node by one edge or more.
fn reachable<'a>(from: &str, edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&str> = edges.get(from).into_iter().flatten().copied().collect();
    while let Some(node) = next.pop() {
        if found.insert(node) {
            next.extend(edges.get(node).into_iter().flatten());
        }
    }
    found
}
