//! Holds the two rules of the crate map: arrows between rooms point one way, and pure rooms stay pure.
//!
//! It reads every path in `src/`, in `use` and inline, and complains about an upward arrow; about a clock, task,
//! socket, file, thread or ambient randomness in a pure room; about a file that does not say what it is for, or that is
//! too long to be one idea; about a function that is too long; about a type with methods in a second file; about
//! circles of files that use each other; and about a map that leaves out a module. `layering/proof.rs` proves it on
//! snippets that break each rule.
//!
//! Some rules have exceptions, which are older than the rule. Each exception must be needed: one that is not needed any
//! more fails the test, so that the list shrinks and never grows.

#![allow(clippy::indexing_slicing, clippy::expect_used, reason = "a test may fail loudly")]

#[path = "layering/circles.rs"]
mod circles;
#[path = "layering/maps.rs"]
mod maps;
#[path = "layering/source.rs"]
mod source;

use circles::File;
use source::Path;
use std::fs;
use std::path::{Path as FilePath, PathBuf};

/// The pure rooms and the names that each may use beside its own.
const PURE: &[(&str, &[&str])] = &[
    ("node", &[]),
    ("kademlia", &["node"]),
    ("discv4", &["kademlia", "node"]),
    ("discv5", &["kademlia", "node"]),
    ("dnsdisc", &["node"]),
    ("rlpx", &["node"]),
    ("p2p", &["rlpx", "node"]),
    ("policy", &["p2p", "node"]),
    ("delivery", &[]),
    ("lease", &["delivery", "policy", "node"]),
    ("watch", &[]),
    ("switch", &["p2p", "policy", "delivery", "lease", "watch", "node", "rlpx"]),
];

/// The rooms that do I/O, lowest first. Each may use all pure rooms and the rooms of its row. `rpc` and `http` stand
/// side by side and do not use each other. A component's settings are its own type. `config` reads that type and `app`
/// hands over the value, so the drivers do not use `config`.
const DRIVERS: &[(&str, &[&str])] = &[
    ("process", &[]),
    ("net", &[]),
    ("config", &["net"]),
    ("telemetry", &["config"]),
    ("rpc", &["net"]),
    ("http", &["net"]),
    ("app", &["config", "http", "net", "process", "rpc", "telemetry"]),
    ("program", &["app", "config", "process", "telemetry"]),
    // The binary calls one function of the library.
    ("main", &["run_program"]),
];

/// Names at the crate root that belong to no room and are open to all.
const SHARED: &[&str] = &["budget", "rlp", "now", "Now", "wake", "Wake", "WakeSlot"];

/// Dependencies that pure rooms may use: arithmetic and encodings. Any other one of Cargo.toml is refused there.
const PURE_CRATES: &[&str] = &[
    "aes",
    "aes_gcm",
    "bytes",
    "ctr",
    "data_encoding",
    "hkdf",
    "hmac",
    "ipnet",
    "lru",
    "rand",
    "rlp",
    "secp256k1",
    "serde",
    "sha2",
    "sha3",
    "snap",
    "thiserror",
    "url",
    "zeroize",
];

/// The names that a pure room may not use, by the segments that a path starts or ends with, and why.
const IMPURE: &[(&[&str], &str)] = &[
    (&["SystemTime"], "a clock; take crate::Now"),
    (&["std", "time", "*"], "a glob that hides a clock"),
    (&["std", "thread"], "a thread"),
    (&["thread_local"], "a thread"),
    (&["async"], "a task"),
    (&["await"], "a task"),
    (&["std", "future"], "a task"),
    (&["std", "task"], "a task"),
    (&["std", "sync", "mpsc"], "a channel between threads"),
    (&["std", "net", "*"], "a glob that hides sockets"),
    (&["TcpStream"], "a socket"),
    (&["TcpListener"], "a socket"),
    (&["UdpSocket"], "a socket"),
    (&["ToSocketAddrs"], "name resolution, which is a socket"),
    (&["std", "os"], "the operating system"),
    (&["std", "fs"], "a file"),
    (&["std", "env"], "the environment"),
    (&["std", "process"], "a process"),
    (&["std", "io", "stdin"], "a file"),
    (&["std", "io", "stdout"], "a file"),
    (&["std", "io", "stderr"], "a file"),
    (&["println"], "a file"),
    (&["eprintln"], "a file"),
    (&["rand", "rng"], "ambient randomness"),
    (&["rand", "random"], "ambient randomness"),
    (&["OsRng"], "ambient randomness"),
    (&["ThreadRng"], "ambient randomness"),
    (&["from_os_rng"], "ambient randomness"),
    (&["try_from_os_rng"], "ambient randomness"),
    (&["getrandom"], "ambient randomness"),
];

/// Lines a file may have, tests included. Beyond it a file has stopped being one idea.
const MAX_LINES: usize = 700;

/// Lines a function may have outside of tests, from `fn` to its last brace.
const MAX_FUNCTION: usize = 80;

/// Longer functions that are older than the rule: file and name.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];

/// Methods of a type outside of the file that declares it, older than the rule: file and type.
const SECOND_FILES: &[(&str, &str)] = &[];

/// Files of one room that may need each other. Three are a parent and two parts that use each other.
const MAX_CIRCLE: usize = 3;

/// Larger circles that are older than the rule: a file that is in the circle, and how many files are.
const LARGE_CIRCLES: &[(&str, usize)] = &[];

/// Rooms that `lib.rs` shows to programs that embed a sidecar. No room can use these names, because a room names
/// another one by its path.
const SHOWN: &[&str] = &["app", "config", "lease", "net", "node", "program"];

#[test]
fn rooms_keep_their_rules() {
    let root = FilePath::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("Cargo.toml");
    let banned = impure_crates(&manifest);
    let files = rust_files(&root.join("src"));
    let names: Vec<String> = files.iter().map(|file| relative(file, root)).collect();
    for must in ["src/lib.rs", "src/main.rs", "src/node/mod.rs", "src/rlp.rs"] {
        assert!(
            names.iter().any(|name| name == must),
            "{must} was not found: is the test reading the right tree?"
        );
    }
    let texts: Vec<String> =
        files.iter().map(|file| fs::read_to_string(file).expect("a source file")).collect();
    let tests = test_files(&names, &texts);
    let mut complaints = Vec::new();
    let mut long = Vec::new();
    let mut second = Vec::new();
    let mut files = Vec::new();
    for (name, text) in names.iter().zip(&texts) {
        let is_test = tests.contains(name);
        complaints.extend(judge(name, text, is_test, &banned));
        let source = source::read(text, &module_of(name), is_test);
        long.extend(long_functions(name, &source));
        second.extend(second_files(name, &source));
        if !is_test {
            files.push(File { name: name.clone(), module: module_of(name), source });
        }
    }
    complaints.extend(excused(long, LONG_FUNCTIONS, "LONG_FUNCTIONS"));
    complaints.extend(excused(second, SECOND_FILES, "SECOND_FILES"));
    complaints.extend(judge_circles(&files, LARGE_CIRCLES));
    let kept: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
    let architecture = fs::read_to_string(root.join("docs/architecture.md")).expect("docs/architecture.md");
    let text = |name: &str| fs::read_to_string(root.join(name)).expect("a source file");
    complaints.extend(maps::missing(&kept, text, &architecture));
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Something that a rule may make an exception of: its file, its name, and the complaint about it.
type Found = (String, String, String);

/// The types to which a file adds methods although it does not declare them. A type owns its fields in one file; where
/// a second one seems needed, part of the state wants to be a type of its own.
fn second_files(name: &str, source: &source::Source) -> Vec<Found> {
    let foreign = source.impls.iter().filter(|block| !block.in_test && !source.types.contains(&block.of));
    let mut found: Vec<Found> = foreign
        .map(|block| {
            let complaint = format!(
                "{name}:{}: methods of {}, which another file declares: a type has its methods in one file",
                block.line, block.of
            );
            (name.to_string(), block.of.clone(), complaint)
        })
        .collect();
    found.dedup_by(|one, other| one.1 == other.1);
    found
}

/// The functions of a file that are too long.
fn long_functions(name: &str, source: &source::Source) -> Vec<Found> {
    let long = source.functions.iter().filter(|function| !function.in_test && function.lines > MAX_FUNCTION);
    long.map(|function| {
        let (line, lines) = (function.line, function.lines);
        let complaint = format!(
            "{name}:{line}: fn {} has {lines} lines; more than {MAX_FUNCTION} are more than one step",
            function.name
        );
        (name.to_string(), function.name.clone(), complaint)
    })
    .collect()
}

/// The complaints that are no exception, and the exceptions in `list` that are not needed.
fn excused(found: Vec<Found>, exceptions: &[(&str, &str)], list: &str) -> Vec<String> {
    let is = |(file, name): &(&str, &str), (of, found, _): &Found| file == of && name == found;
    let stale = exceptions
        .iter()
        .filter(|exception| !found.iter().any(|found| is(exception, found)))
        .map(|(file, name)| format!("{file}: {name} needs no exception any more: remove it from {list}"));
    let stale: Vec<String> = stale.collect();
    let wrong = found.iter().filter(|found| !exceptions.iter().any(|exception| is(exception, found)));
    wrong.map(|(_, _, complaint)| complaint.clone()).chain(stale).collect()
}

/// The complaints about circles of rooms, about circles of files that are too large, and about exceptions that are not
/// needed as they stand.
fn judge_circles(files: &[File], exceptions: &[(&str, usize)]) -> Vec<String> {
    let mut complaints: Vec<String> = circles::of_rooms(files)
        .iter()
        .map(|circle| format!("these rooms use each other in a circle: {}", circle.join(", ")))
        .collect();
    let circles = circles::of_files(files);
    let size =
        |file: &str| circles.iter().find(|circle| circle.iter().any(|name| name == file)).map_or(1, Vec::len);
    for circle in circles.iter().filter(|circle| circle.len() > MAX_CIRCLE) {
        if !exceptions.iter().any(|(file, _)| circle.iter().any(|name| name == file)) {
            complaints.push(format!(
                "these {} files use each other in a circle, which may have {MAX_CIRCLE}: {}",
                circle.len(),
                circle.join(", ")
            ));
        }
    }
    for (file, allowed) in exceptions {
        match size(file) {
            now if now > *allowed => {
                complaints.push(format!("{file}: its circle has grown from {allowed} to {now} files"));
            }
            now if now < *allowed => {
                let what = if now > MAX_CIRCLE { format!("write {now}") } else { "remove it".to_string() };
                complaints.push(format!("{file}: its circle has only {now} files: {what} in LARGE_CIRCLES"));
            }
            _ => {}
        }
    }
    complaints
}

/// Everything that is wrong with one file.
fn judge(name: &str, text: &str, is_test: bool, banned: &[String]) -> Vec<String> {
    let mut complaints = Vec::new();
    if !text.starts_with("//!") {
        complaints.push(format!("{name}:1: does not open with //! saying what the file is for"));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        complaints.push(format!("{name}: {lines} lines; more than {MAX_LINES} are more than one idea"));
    }
    let module = module_of(name);
    let room = module.first().map_or("lib", String::as_str);
    let pure = PURE.iter().any(|(pure, _)| *pure == room) || SHARED.contains(&room);
    let source = source::read(text, &module, is_test);
    for path in &source.paths {
        let mut wrong = arrow(room, path).or_else(|| beside_the_wire(name, path));
        if pure {
            wrong = wrong.or_else(|| impurity(path, banned));
        }
        if let Some(wrong) = wrong {
            complaints.push(format!("{name}:{}: {} is {wrong}", path.line, path.segments.join("::")));
        }
    }
    for (method, line, in_test) in &source.methods {
        let wrong = match method.as_str() {
            "elapsed" if !in_test => "a clock; subtract from the Now that was passed in",
            "await" => "a task",
            _ => continue,
        };
        if pure {
            complaints.push(format!("{name}:{line}: .{method} is {wrong}"));
        }
    }
    complaints
}

/// Why a path leads to a place that it may not use, if it does.
fn arrow(room: &str, path: &Path) -> Option<String> {
    let segments: Vec<&str> = path.segments.iter().map(String::as_str).collect();
    let to = match segments.as_slice() {
        ["#path"] | ["include"] => {
            return Some("code from another place, which the folders do not show".to_string());
        }
        ["crate" | "devp2pd", "*" | "as", ..] => {
            return Some("the crate root under another name, which would hide an arrow".to_string());
        }
        ["crate" | "devp2pd", to, ..] => *to,
        [first, ..] if room == "lib" && path.in_use && SHOWN.contains(first) && path.passed_on => {
            return None;
        }
        [first, ..] if room == "lib" && path.in_use => *first,
        _ => return None,
    };
    if to == room || SHARED.contains(&to) {
        return None;
    }
    let (allowed, and) = match (rule(PURE, room), rule(DRIVERS, room)) {
        (Some(allowed), _) => (allowed, ""),
        (_, Some(allowed)) if rule(PURE, to).is_some() || allowed.contains(&to) => return None,
        (_, Some(allowed)) => (allowed, "the pure rooms and "),
        _ if room == "lib" => return Some("named at the root, where it would hide an arrow".to_string()),
        _ if SHARED.contains(&room) => return Some(format!("an upward arrow: {room} is below all rooms")),
        _ => return Some(format!("in {room}, which is no room: tests/layering.rs has the table")),
    };
    (!allowed.contains(&to)).then(|| format!("an upward arrow: {room} may use only {and}{allowed:?}"))
}

/// The engine of a connection uses a message wire, and names its transport in one file.
fn beside_the_wire(name: &str, path: &Path) -> Option<String> {
    let in_engine = name.starts_with("src/p2p/") && name != "src/p2p/wire.rs" && !path.in_test;
    let segments: Vec<&str> = path.segments.iter().map(String::as_str).collect();
    let transport = matches!(segments.as_slice(), ["crate" | "devp2pd", "rlpx", ..]);
    (in_engine && transport).then(|| "the transport, which p2p knows in wire.rs alone".to_string())
}

fn rule<'a>(table: &'a [(&str, &'a [&'a str])], room: &str) -> Option<&'a [&'a str]> {
    table.iter().find(|(name, _)| *name == room).map(|(_, allowed)| *allowed)
}

/// Why a path must not stand in a pure room, if it must not.
fn impurity(path: &Path, banned: &[String]) -> Option<String> {
    let segments: Vec<&str> =
        path.segments.iter().map(|segment| if segment == "core" { "std" } else { segment }).collect();
    let first = *segments.first()?;
    if banned.iter().any(|name| name == first) && (segments.len() > 1 || path.in_use) {
        return Some(format!("from {first}, which pure rooms do not use"));
    }
    if !path.in_test {
        let reads_clock = segments.len() > 1 && segments.last() == Some(&"now") && first != "crate";
        let renamed = path.in_use && segments.ends_with(&["Instant", "as"]);
        if reads_clock || renamed {
            return Some("a clock; take crate::Now".to_string());
        }
    }
    IMPURE
        .iter()
        .find(|(banned, _)| match banned {
            [name] if *name == "SystemTime" => !path.in_test && segments.contains(name),
            [name] => segments.contains(name),
            _ => segments.starts_with(banned),
        })
        .map(|(_, why)| (*why).to_string())
}

/// The dependencies that pure rooms may not use: all of `[dependencies]` but [`PURE_CRATES`], as they are written in
/// code.
fn impure_crates(manifest: &str) -> Vec<String> {
    let section = manifest.split("\n[dependencies]\n").nth(1).expect("[dependencies]");
    let section = section.split("\n[").next().expect("the text before the next section");
    let names = section
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name.trim().replace('-', "_"));
    let banned: Vec<String> =
        names.filter(|name| !PURE_CRATES.contains(&name.as_str()) && !name.starts_with('#')).collect();
    banned.into_iter().chain(["tokio", "futures", "tonic", "tracing"].map(String::from)).collect()
}

/// `src/node/key.rs` is `["node", "key"]`, `src/lib.rs` is `[]`.
fn module_of(name: &str) -> Vec<String> {
    let inner = name.trim_start_matches("src/").trim_end_matches(".rs");
    let mut module: Vec<String> = inner.split('/').map(String::from).collect();
    if module.last().is_some_and(|last| last == "mod" || (last == "lib" && module.len() == 1)) {
        module.pop();
    }
    module
}

/// The files that are test code as a whole: declared by `#[cfg(test)] mod name;`, and the files in their folders.
fn test_files(names: &[String], texts: &[String]) -> Vec<String> {
    let mut roots: Vec<Vec<String>> = Vec::new();
    for (name, text) in names.iter().zip(texts) {
        let module = module_of(name);
        for child in source::read(text, &module, false).test_modules {
            roots.push(module.iter().cloned().chain([child]).collect());
        }
    }
    names.iter().filter(|name| roots.iter().any(|root| module_of(name).starts_with(root))).cloned().collect()
}

fn relative(file: &FilePath, root: &FilePath) -> String {
    file.strip_prefix(root).expect("a file below the root").to_string_lossy().replace('\\', "/")
}

fn rust_files(folder: &FilePath) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            files.extend(rust_files(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            files.push(entry);
        }
    }
    files.sort();
    files
}

#[path = "layering/proof.rs"]
mod proof;
