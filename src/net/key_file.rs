//! The file with the node key. It is made once, it is private, and its owner and mode are checked before it is used
//! (`secret_file`).
//!
//! A process that has the key can act as the node. So the file is made with mode 0600 in a private directory, and no
//! link is followed. A file that the operator names (`--nodekey`) may be a link.
//!
//! The format is go-ethereum's: 64 hex digits. `0x` may come before them, as many tools write it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rand::RngCore;

use super::{
    data_dir::{DataDir, no_links},
    secret_file::{self, Maker, SecretFileProblem},
};
use crate::node::{NodeKey, key::KeyError};

/// The name of the key file in the data directory.
const NAME: &str = "nodekey";

/// The name of the key file while it is written. It is renamed when it is complete and on the disk.
const NEW_NAME: &str = "nodekey.new";

/// The most bytes of a key file: 64 digits, and space around them. A longer file is not a key file.
const MAX_BYTES: u64 = 128;

/// Why there is no node key.
#[derive(Debug, thiserror::Error)]
#[error("the node key {}: {problem}", path.display())]
pub struct KeyFileError {
    /// The file.
    pub path: PathBuf,
    /// The problem.
    pub problem: KeyFileProblem,
}

/// The problem of a key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileProblem {
    /// The file cannot be read, or it is open to others.
    #[error(transparent)]
    File(SecretFileProblem),
    /// The file could not be created.
    #[error("cannot be created: {0}")]
    Made(io::Error),
    /// The content is not a key.
    #[error("does not hold a key: {0}")]
    Content(#[from] KeyError),
    /// The file is too long for a key.
    #[error("does not hold a key: it is longer than 64 hex digits")]
    TooLong,
}

/// Returns the key of the data directory. Makes one from `rng` if there is none yet. The directory is locked, so no
/// other process makes one at the same time.
pub fn load_or_make(dir: &DataDir, rng: &mut dyn RngCore) -> Result<NodeKey, KeyFileError> {
    let path = dir.path().join(NAME);
    match read(&path, Maker::Us) {
        Err(KeyFileProblem::File(SecretFileProblem::Missing)) => {}
        Err(problem) => return Err(KeyFileError { path, problem }),
        Ok(key) => return Ok(key),
    }
    let key = NodeKey::random(rng);
    match make(dir.path(), &key).map_err(KeyFileProblem::Made) {
        Ok(()) => Ok(key),
        Err(problem) => Err(KeyFileError { path, problem }),
    }
}

/// Returns the key in a file that the operator named.
pub fn load(path: &Path) -> Result<NodeKey, KeyFileError> {
    read(path, Maker::Operator).map_err(|problem| KeyFileError { path: path.to_owned(), problem })
}

fn make(dir: &Path, key: &NodeKey) -> io::Result<()> {
    let new = dir.join(NEW_NAME);
    // An earlier start that was interrupted may have left this file behind. That key was never used.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(no_links()).open(&new)?;
    file.write_all(key.to_hex().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&new, dir.join(NAME))?;
    // Peers will know this key, so it must not be lost by a power failure.
    File::open(dir)?.sync_all()
}

fn read(path: &Path, maker: Maker) -> Result<NodeKey, KeyFileProblem> {
    let text = secret_file::read(path, maker, MAX_BYTES).map_err(|problem| match problem {
        SecretFileProblem::TooLong { .. } => KeyFileProblem::TooLong,
        problem => KeyFileProblem::File(problem),
    })?;
    let digits = text.trim();
    Ok(NodeKey::from_hex(digits.strip_prefix("0x").unwrap_or(digits))?)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    };

    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_is_made_once_and_kept() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        // An interrupted start leaves a file behind that is not used as the key.
        fs::write(temp.path().join(NEW_NAME), "12").unwrap();
        let first = load_or_make(&dir, &mut StdRng::seed_from_u64(1)).unwrap();
        let path = temp.path().join(NAME);
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.mode() & 0o7777, found.len()), (0o600, 65));
        assert!(!temp.path().join(NEW_NAME).exists());
        let again = load_or_make(&dir, &mut StdRng::seed_from_u64(2)).unwrap();
        assert_eq!(again.id(), first.id());
        assert_eq!(load(&path).unwrap().id(), first.id());
    }

    #[test]
    fn what_is_no_key_is_a_clear_error_and_never_printed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("key");
        let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
        let secret = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318";
        for (content, expected) in [
            ("0".repeat(64), "above zero and below the order"),
            (order.to_owned(), "above zero and below the order"),
            (order.replace("4141", "4142"), "above zero and below the order"),
            (String::new(), "64 hex digits"),
            (secret.trim_start_matches('4').to_owned(), "64 hex digits"),
            (format!("{secret}00"), "64 hex digits"),
            (secret.replace('4', "x"), "64 hex digits"),
            (secret.repeat(3), "longer than 64 hex digits"),
            ("\0".repeat(64), "64 hex digits"),
        ] {
            fs::write(&path, &content).unwrap();
            chmod(&path, 0o600);
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{content:?}: {expected:?} not in {error:?}");
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            assert!(!error.contains("4c0883") && !error.contains("ffff"), "{error}");
        }
        fs::write(&path, [0xff; 64]).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("cannot be read"));
        for content in
            [secret.to_owned(), format!(" {secret}\r\n"), secret.to_uppercase(), format!("0x{secret}\n")]
        {
            fs::write(&path, &content).unwrap();
            load(&path).unwrap_or_else(|error| panic!("{content:?}: {error}"));
        }
        assert!(load(&temp.path().join("none")).unwrap_err().to_string().contains("no such file"));
        assert!(load(temp.path()).unwrap_err().to_string().contains("not a regular file"));
    }

    #[test]
    fn a_damaged_key_of_ours_is_never_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let path = temp.path().join(NAME);
        fs::write(&path, "damaged").unwrap();
        chmod(&path, 0o600);
        load_or_make(&dir, &mut StdRng::seed_from_u64(1)).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"damaged");
    }

    #[test]
    fn links_are_followed_for_the_operator_alone() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let target = temp.path().join("elsewhere");
        fs::write(&target, NodeKey::random(&mut StdRng::seed_from_u64(1)).to_hex().as_str()).unwrap();
        chmod(&target, 0o600);
        let link = temp.path().join(NAME);
        symlink(&target, &link).unwrap();
        load(&link).unwrap();
        let error = load_or_make(&dir, &mut StdRng::seed_from_u64(2)).unwrap_err();
        assert!(
            matches!(error.problem, KeyFileProblem::File(SecretFileProblem::Io { what: "opened", .. })),
            "{error}"
        );
    }

    #[test]
    fn a_key_that_others_can_get_at_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        load_or_make(&dir, &mut StdRng::seed_from_u64(1)).unwrap();
        let path = temp.path().join(NAME);
        chmod(&path, 0o644);
        let error = load_or_make(&dir, &mut StdRng::seed_from_u64(1)).unwrap_err().to_string();
        assert!(error.contains("mode 0644") && error.contains("chmod 600"), "{error}");
        // A Kubernetes mount with an fsGroup opens the file to our group. The node must keep its identity.
        chmod(&path, 0o660);
        load_or_make(&dir, &mut StdRng::seed_from_u64(1)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    }
}
