//! Small files for what must not be lost: our record's sequence number, the lists of peers.
//!
//! A store is atomic and durable: written to a temporary file beside the target, synced, renamed over it, and the
//! directory synced. After a crash either the old or the new content is there, whole. What cannot be read is an error
//! that names the file; it is never replaced in silence, because it holds what somebody asked us to keep.
//!
//! The content is JSON, readable by its owner only. Calls block for as long as the disk takes: at start they are
//! called directly, later through `spawn_blocking`.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// The largest file that is read, bytes: ten thousand peers with URLs and reasons are a tenth of it.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Why state could not be kept or read back.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file is there and cannot be read.
    #[error("cannot read the state file {}: {error}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file is there and its content is not ours.
    #[error(
        "the state file {} is damaged ({error}); restore it, or move it away to start without what it held",
        .path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, and where.
        error: String,
    },
    /// The file cannot be written. What was stored before is still there.
    #[error("cannot write the state file {}: {error}", .path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// One file and its content of type `T`.
#[derive(Clone, Debug)]
pub struct StateFile<T> {
    path: PathBuf,
    content: std::marker::PhantomData<fn(T) -> T>,
}

impl<T: Serialize + DeserializeOwned> StateFile<T> {
    /// The state in the file at `path`. Nothing is read or written yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), content: std::marker::PhantomData }
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the state; `None` if it was never stored.
    pub fn load(&self) -> Result<Option<T>, StateError> {
        let read = |error| StateError::Read { path: self.path.clone(), error };
        let damaged = |error| StateError::Damaged { path: self.path.clone(), error };
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(read)?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(damaged(format!("it is larger than {MAX_BYTES} bytes")));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|error| damaged(error.to_string()))
    }

    /// Stores the state. When this returns `Ok`, it outlives a power failure.
    pub fn store(&self, state: &T) -> Result<(), StateError> {
        let write = |error| StateError::Write { path: self.path.clone(), error };
        let mut bytes = serde_json::to_vec_pretty(state).map_err(|error| write(error.into()))?;
        bytes.push(b'\n');
        replace(&self.path, &bytes).map_err(write)
    }
}

/// Puts `bytes` in place of the file at `path`, wholly or not at all.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // One left behind by a crash could have been made by another user with other rights; ours is new.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    // The rename itself is durable once the directory is.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Kept {
        seq: u64,
        peers: Vec<String>,
    }

    fn kept(seq: u64) -> Kept {
        Kept { seq, peers: vec!["enode://…".into()] }
    }

    #[test]
    fn what_was_stored_last_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::<Kept>::new(dir.path().join("state.json"));
        assert_eq!(file.load().unwrap(), None);
        file.store(&kept(1)).unwrap();
        file.store(&kept(u64::MAX)).unwrap();
        assert_eq!(file.load().unwrap(), Some(kept(u64::MAX)));
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["state.json"], "nothing is left behind");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::<Kept>::new(dir.path().join("state.json"));
        // A leftover of a crash with open rights does not lend them to the new file.
        let left = dir.path().join("state.json.new");
        std::fs::write(&left, "").unwrap();
        std::fs::set_permissions(&left, std::fs::Permissions::from_mode(0o666)).unwrap();
        file.store(&kept(1)).unwrap();
        assert_eq!(std::fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it_and_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::<Kept>::new(dir.path().join("state.json"));
        file.store(&kept(1)).unwrap();
        let whole = std::fs::read(file.path()).unwrap();
        let large = vec![b' '; usize::try_from(MAX_BYTES).unwrap() + 1];
        for bytes in [&b""[..], &whole[..whole.len() / 2], b"{}", b"\xff", &large] {
            std::fs::write(file.path(), bytes).unwrap();
            let error = file.load().unwrap_err().to_string();
            assert!(error.contains("state.json is damaged"), "{error}");
            assert_eq!(std::fs::read(file.path()).unwrap(), bytes);
        }
    }

    #[test]
    fn a_store_that_fails_keeps_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::<Kept>::new(dir.path().join("state.json"));
        file.store(&kept(1)).unwrap();
        // A directory stands where the temporary file would.
        std::fs::create_dir(dir.path().join("state.json.new")).unwrap();
        let error = file.store(&kept(2)).unwrap_err().to_string();
        assert!(error.contains("cannot write the state file"), "{error}");
        assert_eq!(file.load().unwrap(), Some(kept(1)));
        let nowhere = StateFile::<Kept>::new(dir.path().join("missing/state.json"));
        assert!(matches!(nowhere.store(&kept(1)), Err(StateError::Write { .. })));
    }
}
