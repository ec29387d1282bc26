//! The data directory. It is private, and one process uses it at a time.
//!
//! Two processes in one directory would be two nodes with one identity, two tables and two sets of leases. So the
//! directory is locked while the process lives. The lock is the operating system's (`flock`), which ends with the
//! process in any case. The text of the lock file is only used for the error that the next process gets.
//!
//! The files in the directory (key, lists, node database) must not be read or replaced by others. So the directory is
//! made private (0700) if it is empty or was used by us before. A directory with other files may have another purpose,
//! so its mode is not changed. It is used if only its owner and our groups have access, and refused if all users have.
//!
//! The root of a volume can be the data directory, too. A new file system has `lost+found` in it, which does not count
//! as a file. Kubernetes gives the directory to root and to our group (`fsGroup`). So a directory of root is used if
//! our group may write to it and others may not. Its mode is not changed, as we do not own it.

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process,
};

use rand::Rng;
use rustix::fs::OFlags;

use super::secret_file::Group;

/// The name of the lock file.
const LOCK: &str = "lock";

/// The directory for files that a file system check finds. The root of a new ext4 volume has it.
const LOST_AND_FOUND: &str = "lost+found";

/// The most bytes that are read of another process's lock file. A lock file of devp2pd has far fewer.
const HOLDER_BYTES: u64 = 200;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The operating system returned an error.
    #[error("the data directory {}: cannot {what}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The operation that failed.
        what: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Another process uses the directory.
    #[error(
        "the data directory {} is in use by {holder}; stop that process, or give this one another --data-dir",
        path.display()
    )]
    Held {
        /// The directory.
        path: PathBuf,
        /// The other process's note about itself.
        holder: String,
    },
    /// The directory belongs to another user.
    #[error(
        "the data directory {} belongs to user {owner} (mode {mode:04o}), and this process runs as user {us}; \
         change its owner (chown {us}), or name a directory below it that does not exist yet (--data-dir {}/devp2pd)",
        path.display(), path.display()
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
        /// The mode of the directory.
        mode: u32,
        /// Our user id.
        us: u32,
    },
    /// Other users can read or change the files in the directory.
    #[error(
        "the data directory {} is open to other users (mode {mode:04o}) and holds files that are not ours; make it \
         private (chmod 700), or name a directory that does not exist yet (--data-dir {}/devp2pd)",
        path.display(), path.display()
    )]
    Open {
        /// The directory.
        path: PathBuf,
        /// The mode of the directory.
        mode: u32,
    },
}

/// The data directory, locked for as long as this value lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    lock: File,
    /// Whether dropping this value removes the directory and its files.
    temporary: bool,
}

impl DataDir {
    /// Creates the directory if it does not exist, and locks it.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |what| move |source| DataDirError::Io { path: path.to_owned(), what, source };
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
                made.map_err(failed("be created"))?;
            }
            Err(error) => return Err(failed("be examined")(error)),
            Ok(_) => {}
        }
        make_private(path)?;

        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(no_links())
            .open(path.join(LOCK))
            .map_err(|error| {
                let denied = error.kind() == io::ErrorKind::PermissionDenied;
                failed(if denied {
                    "open its lock file (if another user ran devp2pd here, change the owner: chown -R)"
                } else {
                    "open its lock file"
                })(error)
            })?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DataDirError::Held { path: path.to_owned(), holder: read_holder(&mut lock) });
            }
            Err(TryLockError::Error(error)) => return Err(failed("be locked")(error)),
        }
        let mut dir = Self { path: path.to_owned(), lock, temporary: false };
        dir.announce(None).map_err(failed("write its lock file"))?;
        Ok(dir)
    }

    /// Creates a new directory in the system's directory for temporary files. Dropping the returned value removes it.
    pub fn temporary(rng: &mut impl Rng) -> Result<Self, DataDirError> {
        let path = env::temp_dir().join(format!("devp2pd-{:016x}", rng.random::<u64>()));
        // A directory that exists already belongs to another program, so it is not used.
        DirBuilder::new().mode(0o700).create(&path).map_err(|source| DataDirError::Io {
            path: path.clone(),
            what: "be created",
            source,
        })?;
        let mut dir = Self::open(&path)?;
        dir.temporary = true;
        Ok(dir)
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes our process id to the lock file, and the address of gRPC once that is known. A process that finds the
    /// directory locked shows this text in its error.
    pub fn announce(&mut self, address: Option<&str>) -> io::Result<()> {
        let at = address.map(|address| format!(", gRPC on {address}")).unwrap_or_default();
        self.lock.set_len(0)?;
        self.lock.rewind()?;
        writeln!(self.lock, "process {}{at}", process::id())
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // The lock file stays: if it were removed, two processes could lock two files of the same name. Its text is
        // removed, as it is not true any more. If that fails, no harm is done: only the lock decides.
        let _ = self.lock.set_len(0);
        if self.temporary {
            // Files that cannot be removed stay until the system clears its temporary files.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Returns the flags for opening files that we make ourselves. No link is followed, as another user may have put it
/// there.
pub(super) fn no_links() -> i32 {
    i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default()
}

fn make_private(path: &Path) -> Result<(), DataDirError> {
    let failed = |what| move |source| DataDirError::Io { path: path.to_owned(), what, source };
    let found = fs::metadata(path).map_err(failed("be examined"))?;
    if !found.is_dir() {
        return Err(failed("be used")(io::ErrorKind::NotADirectory.into()));
    }
    let us = rustix::process::geteuid().as_raw();
    let mode = found.mode() & 0o7777;
    let group = Group::of(&found);
    // A process of root may use any directory: containers run as root with directories that are mounted from outside.
    if found.uid() != us && us != 0 {
        if is_shared_with_us(found.uid(), group, mode) {
            return Ok(());
        }
        return Err(DataDirError::NotOurs { path: path.to_owned(), owner: found.uid(), mode, us });
    }
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let used = path.join(LOCK).symlink_metadata().is_ok_and(|lock| lock.is_file());
    if used || is_empty(path).map_err(failed("be read"))? {
        match fs::set_permissions(path, Permissions::from_mode(0o700)) {
            Ok(()) if mode & 0o007 == 0 => tracing::warn!(
                path = %path.display(),
                "the data directory was open to its group (mode {mode:04o}) and is private again"
            ),
            Ok(()) => {}
            // Some file systems have one fixed mode.
            Err(error) if mode & 0o007 == 0 && group.ours => tracing::warn!(
                path = %path.display(),
                %error,
                "the data directory is open to our group (mode {mode:04o}) and cannot be made private"
            ),
            Err(error) => return Err(failed("be made private")(error)),
        }
        return Ok(());
    }
    if mode & 0o007 == 0 && group.ours {
        return Ok(());
    }
    Err(DataDirError::Open { path: path.to_owned(), mode })
}

/// Whether root owns the directory and shares it with our group, as it does with the root of a volume.
fn is_shared_with_us(owner: u32, group: Group, mode: u32) -> bool {
    owner == 0 && group.ours && mode & 0o070 == 0o070 && mode & 0o002 == 0
}

/// Whether the directory has no files. `lost+found` does not count.
fn is_empty(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        if entry?.file_name() != LOST_AND_FOUND {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the text of the lock file with control characters escaped.
fn read_holder(lock: &mut File) -> String {
    let mut bytes = Vec::new();
    let read = lock.take(HOLDER_BYTES).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    if read.is_err() || text.is_empty() {
        return "another process".to_owned();
    }
    text.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_temporary_directory_is_private_and_goes_with_its_holder() {
        let mut rng = StdRng::from_os_rng();
        let [first, second] = [(); 2].map(|()| DataDir::temporary(&mut rng).unwrap());
        let (path, other) = (first.path().to_owned(), second.path().to_owned());
        assert_ne!(path, other);
        assert_eq!(mode(&path), 0o700);
        fs::write(path.join("nodekey"), "x").unwrap();
        drop(first);
        assert!(!path.exists() && other.exists());
        drop(second);
        assert!(!other.exists());
    }

    #[test]
    fn one_process_holds_it_and_the_next_learns_who() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        let mut first = DataDir::open(&path).unwrap();
        assert_eq!((mode(&path), mode(&path.join("lock"))), (0o700, 0o600));
        let held = || DataDir::open(&path).unwrap_err().to_string();
        let me = format!("in use by process {}", process::id());
        assert!(held().contains(&format!("{me};")), "{}", held());
        first.announce(Some("127.0.0.1:50051")).unwrap();
        assert!(held().contains(&format!("{me}, gRPC on 127.0.0.1:50051;")), "{}", held());
        drop(first);
        assert_eq!(fs::read(path.join("lock")).unwrap(), b"", "nobody is announced");
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_dead_holder_holds_nothing() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("lock"), "process 1, gRPC on 192.0.2.1:1\n").unwrap();
        DataDir::open(temp.path()).unwrap();
    }

    #[test]
    fn a_lock_file_that_others_wrote_is_printed_harmlessly() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path();
        for (bytes, expected) in [
            (&b"\x1b[31mred\nroot"[..], "in use by \\u{1b}[31mred\\nroot;"),
            (b"", "in use by another process;"),
            (b" \n", "in use by another process;"),
            (b"\xff\xfe", "in use by \u{fffd}\u{fffd};"),
        ] {
            let holder = File::create(path.join("lock")).unwrap();
            holder.lock().unwrap();
            fs::write(path.join("lock"), bytes).unwrap();
            let error = DataDir::open(path).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected:?} not in {error:?}");
        }
    }

    #[test]
    fn it_is_made_private_only_where_that_harms_nobody() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path();
        chmod(path, 0o777);
        drop(DataDir::open(path).expect("an empty one becomes ours"));
        assert_eq!(mode(path), 0o700);
        fs::write(path.join("more"), "").unwrap();
        chmod(path, 0o755);
        drop(DataDir::open(path).expect("one that we used is ours"));
        assert_eq!(mode(path), 0o700);
        fs::remove_file(path.join("lock")).unwrap();
        chmod(path, 0o755);
        let error = DataDir::open(path).expect_err("somebody else's").to_string();
        assert!(error.contains("mode 0755") && error.contains("chmod 700"), "{error}");
        assert_eq!(mode(path), 0o755, "and it is left as it was");
        chmod(path, 0o700);
        DataDir::open(path).expect("private as it is");
    }

    /// A volume as a container sees it: its root has `lost+found`, and each mount gives rights to a group.
    #[test]
    fn the_root_of_a_volume_works() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path();
        DirBuilder::new().mode(0o700).create(path.join(LOST_AND_FOUND)).unwrap();
        for widened in [0o755, 0o2770, 0o2770] {
            chmod(path, widened);
            drop(DataDir::open(path).unwrap_or_else(|error| panic!("{widened:o}: {error}")));
            assert_eq!(mode(path) & 0o777, 0o700, "{widened:o}");
        }
        // The directory has files of another program, so its mode is not changed.
        fs::remove_file(path.join(LOCK)).unwrap();
        fs::create_dir(path.join("other")).unwrap();
        chmod(path, 0o2770);
        drop(DataDir::open(path).expect("our group is ours"));
        assert_eq!(mode(path), 0o2770);
    }

    #[test]
    fn a_directory_of_root_is_used_if_it_is_shared_with_our_group() {
        const OURS: fn(u32) -> bool = |mode| is_shared_with_us(0, Group::new(2000, true), mode);
        assert!(OURS(0o2770) && OURS(0o770) && OURS(0o2775));
        assert!(!OURS(0o2750) && !OURS(0o755) && !OURS(0o777) && !OURS(0o1777) && !OURS(0o700));
        assert!(!is_shared_with_us(0, Group::new(100, false), 0o2770), "a foreign group");
        assert!(!is_shared_with_us(1001, Group::new(2000, true), 0o2770), "another user");
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below"), PathBuf::from("/proc/nowhere")] {
            let error = DataDir::open(&path).unwrap_err();
            assert!(matches!(error, DataDirError::Io { .. }), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
        let dir = temp.path().join("dir");
        DirBuilder::new().mode(0o700).create(&dir).unwrap();
        symlink(&file, dir.join("lock")).unwrap();
        let error = DataDir::open(&dir).expect_err("a link in the lock's place").to_string();
        assert!(error.contains("lock file"), "{error}");
    }
}
