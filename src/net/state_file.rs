//! Small files for state that must not be lost: our record's sequence number, the lists of peers.
//!
//! A store is atomic and durable. The state is written to a temporary file beside the target and synced. Then the file
//! is renamed to the target, and the directory is synced. After a crash the file has either the old or the new content,
//! complete. A file that cannot be read is an error that names the file. It is never replaced without the operator,
//! because it holds what the operator or a caller asked us to keep.
//!
//! The content is JSON, readable by its owner only. [`StateFile::load`] and [`StateFile::store`] block for as long as
//! the disk takes, so they are for the start. While the sidecar runs, [`StateFile::keep`] stores each change.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use super::running::Running;

/// The largest file that is read, in bytes. Ten thousand peers with URLs and reasons take a tenth of it.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Why state could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file exists and cannot be read.
    #[error("cannot read the state file {}: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The file exists, and its content is not valid.
    #[error(
        "the state file {} is damaged ({error}); restore it, or move it away to start without its content",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The problem of the content, and its place.
        error: String,
    },
    /// The file cannot be written. The state that was stored before is still there.
    #[error("cannot write the state file {}: {error}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
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
    /// Returns the state file at `path`. Nothing is read or written yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), content: std::marker::PhantomData }
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the state. Returns `None` if there is no file.
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

    /// Stores the state. When this returns `Ok`, the state is not lost by a power failure.
    pub fn store(&self, state: &T) -> Result<(), StateError> {
        let write = |error| StateError::Write { path: self.path.clone(), error };
        let mut bytes = serde_json::to_vec_pretty(state).map_err(|error| write(error.into()))?;
        bytes.push(b'\n');
        replace(&self.path, &bytes).map_err(write)
    }

    /// Starts to store the state whenever `changed` changes. It ends when the sender of `changed` is dropped or the
    /// order to stop comes; a change before that is stored first. Only the newest value is stored. As a value is the
    /// whole state, a value that was replaced before it was stored is not needed. `state` returns the state to store,
    /// if there is any. A store that fails is tried again with the next change. `lost` is the log line for that: it
    /// says what a restart would lose.
    pub fn keep<U: Send + Sync + 'static>(
        self,
        name: &'static str,
        changed: watch::Receiver<U>,
        state: impl Fn(&U) -> Option<T> + Send + 'static,
        lost: &'static str,
    ) -> Running
    where
        T: Send + 'static,
    {
        Running::start(name, async move |mut stop| {
            let (file, mut changed) = (Arc::new(self), changed);
            loop {
                // A change comes before the order to stop, so that the last change is stored.
                tokio::select! {
                    biased;
                    told = changed.changed() => if told.is_err() { return },
                    _ = &mut stop => return,
                }
                let Some(state) = state(&changed.borrow_and_update()) else { continue };
                let target = Arc::clone(&file);
                match tokio::task::spawn_blocking(move || target.store(&state)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::error!(%error, "{lost}"),
                    // The runtime is stopping.
                    Err(_) => return,
                }
            }
        })
    }
}

/// Replaces the file at `path` by `bytes`. If this fails, the file keeps its content.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // A file that a crash left behind may belong to another user or have another mode, so it is removed and made anew.
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
    // The rename is durable only after the directory is synced.
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

    /// A change just before the end is stored, whether the sender was dropped or the order to stop came.
    #[tokio::test]
    async fn a_change_before_the_end_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let far = crate::net::clock::now().mono + std::time::Duration::from_secs(3_600);
        for (number, sender_goes) in [(1_u64, true), (2, false)] {
            let (sender, changed) = watch::channel(0_u64);
            let file = StateFile::<u64>::new(&path);
            let running = file.clone().keep("the file", changed, |value| Some(*value), "it is lost");
            sender.send(number).unwrap();
            let held = Some(sender).filter(|_| !sender_goes);
            assert!(running.stop(far).await);
            assert_eq!(file.load().unwrap(), Some(number));
            drop(held);
        }
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
        // A file that a crash left behind is open to all users. The new file must be private.
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
        // A directory has the name of the temporary file.
        std::fs::create_dir(dir.path().join("state.json.new")).unwrap();
        let error = file.store(&kept(2)).unwrap_err().to_string();
        assert!(error.contains("cannot write the state file"), "{error}");
        assert_eq!(file.load().unwrap(), Some(kept(1)));
        let nowhere = StateFile::<Kept>::new(dir.path().join("missing/state.json"));
        assert!(matches!(nowhere.store(&kept(1)), Err(StateError::Write { .. })));
    }
}
