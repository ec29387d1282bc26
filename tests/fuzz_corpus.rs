//! Replays the fuzzing corpus: runs every kept input through the function of its target.
//!
//! It also checks that each target has its four parts (see `tests/fuzz_targets/mod.rs`): function, line in the table,
//! binary in `fuzz/Cargo.toml`, and corpus. A target without one of them would not be fuzzed, or not be replayed.

#![allow(clippy::indexing_slicing, clippy::expect_used, clippy::panic, reason = "a test may fail loudly")]
#![allow(unreachable_pub, reason = "fuzz/ includes the same files, where the targets must be public")]

mod fuzz_targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fuzz_targets::TARGETS;

#[test]
fn every_input_of_the_corpus_runs() {
    for (name, run) in TARGETS {
        let inputs = files(&root().join("fuzz/corpus").join(name));
        assert!(
            !inputs.is_empty(),
            "fuzz/corpus/{name}/ has no input: a target without one is replayed by nobody"
        );
        for input in inputs {
            println!("{}", input.display()); // the last line before a panic names the input
            run(&fs::read(&input).expect("an input"));
        }
    }
}

#[test]
fn table_binaries_functions_and_corpus_agree() {
    let table: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_string()).collect();
    assert_eq!(table.len(), TARGETS.len(), "a name stands twice in TARGETS");

    let corpus: BTreeSet<String> =
        entries(&root().join("fuzz/corpus")).iter().map(|path| file_name(path)).collect();
    assert_eq!(corpus, table, "left: folders of fuzz/corpus, right: TARGETS");

    let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).expect("fuzz/Cargo.toml");
    let binaries = words_between(&manifest, "{ name = \"", "\", path = \"fuzz_targets/target.rs\"");
    assert_eq!(binaries, table, "left: binaries of fuzz/Cargo.toml, right: TARGETS");

    let mut functions = BTreeSet::new();
    for file in files(&root().join("tests/fuzz_targets")) {
        functions.extend(words_between(
            &fs::read_to_string(file).expect("a source file"),
            "pub fn ",
            "(data: &[u8])",
        ));
    }
    assert_eq!(functions, table, "left: functions in tests/fuzz_targets, right: TARGETS");
}

/// Returns the text between `before` and `after` of each line that has both.
fn words_between(text: &str, before: &str, after: &str) -> BTreeSet<String> {
    let word = |line: &str| Some(line.split_once(before)?.1.split_once(after)?.0.to_string());
    text.lines().filter_map(word).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let listing = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut entries: Vec<PathBuf> = listing.map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    entries
}

fn files(folder: &Path) -> Vec<PathBuf> {
    entries(folder).into_iter().filter(|path| path.is_file()).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}
