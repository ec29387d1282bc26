//! The planted faults, in the folder `faults`, are patches of the current code: each must still apply.
//!
//! Left out: whether the simulation finds them, which takes builds and thousands of seeds (`.ci/full seeds`).

use std::{fs, path::Path, process::Command};

#[test]
fn every_planted_fault_applies_to_the_tree() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = |args: &[&str]| Command::new("git").arg("-C").arg(root).args(args).output();
    if !git(&["rev-parse", "--git-dir"]).is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: there is no git here, or this tree is not in a repository");
        return;
    }
    let mut patches = 0;
    for entry in fs::read_dir(root.join("tests/sim/sidecars/faults")).unwrap() {
        let path = entry.unwrap().path();
        let output = git(&["apply", "--check", path.to_str().unwrap()]).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} does not apply any more: {said}", path.display());
        patches += 1;
    }
    assert_eq!(patches, 20, "planted faults");
}
