//! Checks that each test which a table of `docs/` names exists under that name, and that each budget has its row.
//!
//! A name is written in backticks in the last column of a table, as `room::file::tests::name` for a unit test,
//! `it::topic::name` and `sim::topic::name` for those binaries, `interop::name` for a case of `tests/interop`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail loudly")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use devp2pd::budget::{MAX_MEMORY, MIN_MEMORY, Resource};

/// Documents with such tables, and the least number of test names in each. A table that loses its names fails the test.
const DOCUMENTS: [(&str, usize); 3] =
    [("docs/grpc.md", 25), ("docs/operating.md", 15), ("docs/security.md", 40)];

#[test]
fn every_test_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = tests_below(root);
    assert!(tests.len() > 500, "only {} tests found: is this the right tree?", tests.len());
    let mut missing = Vec::new();
    for (document, at_least) in DOCUMENTS {
        let text = fs::read_to_string(root.join(document)).expect(document);
        let named = names(&text);
        assert!(named.len() >= at_least, "{document} names {} tests, not {at_least}", named.len());
        missing.extend(named.into_iter().filter(|name| !tests.contains(name)).map(|name| (document, name)));
    }
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}

/// The table names each budget once, and its limits.
#[test]
fn every_budget_has_its_row_in_the_security_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/security.md")).unwrap();
    for resource in Resource::ALL {
        let start = format!("| `{}`: ", resource.name());
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with(&start)).collect();
        let [row] = rows[..] else { panic!("{} rows for the budget {}", rows.len(), resource.name()) };
        let mib = |memory| resource.limit(memory) >> 20;
        let limits = format!("| {} MiB, {} MiB |", mib(MIN_MEMORY), mib(MAX_MEMORY));
        assert!(row.contains(&limits), "{row}\nhas other limits than {limits}");
        assert!(!names(row).is_empty(), "{row}\nnames no test");
    }
}

#[test]
fn a_name_is_what_stands_in_backticks_in_the_last_column() {
    let text = "| `a::b` | x |\n| y | `node::key::tests::one`, `it::lists::two` |\n| z | `--flag` |\nno `c::d` table\n";
    assert_eq!(names(text), ["node::key::tests::one", "it::lists::two"]);
}

/// The names in the last columns of a document's tables.
fn names(text: &str) -> Vec<String> {
    let last = |line: &str| -> Option<String> {
        let row = line.strip_prefix('|')?.trim_end().strip_suffix('|')?;
        row.rsplit('|').next().map(str::to_owned)
    };
    text.lines()
        .filter_map(last)
        .flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>())
        .filter(|name| name.contains("::"))
        .collect()
}

/// The full names of all tests.
fn tests_below(root: &Path) -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for (folder, prefix) in [("src", None), ("tests/it", Some("it")), ("tests/sim", Some("sim"))] {
        let folder = root.join(folder);
        for file in files(&folder, "rs") {
            let inner = file.strip_prefix(&folder).unwrap().with_extension("");
            let mut module: Vec<String> =
                inner.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            if module.last().is_some_and(|last| last == "mod" || last == "main") {
                module.pop();
            }
            let module: Vec<String> = prefix.map(str::to_owned).into_iter().chain(module).collect();
            let text = fs::read_to_string(&file).unwrap();
            // Tests beside the code are in a module `tests`. A file that has only tests is the module itself.
            let inline = text.contains("mod tests {");
            for name in functions(&text) {
                let path = if inline { format!("{}::tests", module.join("::")) } else { module.join("::") };
                tests.insert(format!("{path}::{name}"));
            }
        }
    }
    for file in files(&root.join("tests/interop"), "py") {
        for line in fs::read_to_string(file).unwrap().lines() {
            if let Some(name) = line.strip_prefix("def ").and_then(|rest| rest.strip_suffix("(case):")) {
                tests.insert(format!("interop::{name}"));
            }
        }
    }
    tests
}

/// The names of the functions with a test attribute.
fn functions(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "))
            && std::mem::take(&mut is_test)
        {
            found.extend(rest.split('(').next());
        }
    }
    found
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.extend(files(&entry, extension));
        } else if entry.extension().is_some_and(|of| of == extension) {
            found.push(entry);
        }
    }
    found
}
