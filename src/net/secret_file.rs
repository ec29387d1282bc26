//! Files with secrets: their owner and mode are checked before they are used.
//!
//! A process that can read such a file can act in our name. A process that can change it decides which callers are let
//! in. So a file that other users, or a group that is not ours, can read or change is refused. The error has the
//! command that repairs it. Our own groups are trusted, because orchestrators provide secrets as files of root that our
//! group can read (0440, 0640).
//!
//! A file that the operator names may be a link and may belong to root. A file that we made may be neither. If a file
//! of ours was opened to our group later, it is made private again with a warning: Kubernetes opens every file of a
//! volume at each mount (`fsGroup`).
//!
//! Left out: the content of the file (`key_file`, `rpc::access`, `rpc::server::tls`).

use std::{
    fs::{Metadata, OpenOptions, Permissions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use rustix::{fs::OFlags, process};
use zeroize::Zeroizing;

use super::data_dir::no_links;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileProblem {
    /// The file does not exist.
    #[error("there is no such file")]
    Missing,
    /// The operating system returned an error.
    #[error("cannot be {what}: {source}")]
    Io {
        /// The operation that failed.
        what: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The path is a directory, a pipe, or the like.
    #[error("is not a regular file")]
    NotAFile,
    /// The file belongs to another user, who could change it.
    #[error("belongs to user {owner}, and this process runs as user {us}; change the owner (chown {us})")]
    NotOurs {
        /// The user id of the owner.
        owner: u32,
        /// Our user id.
        us: u32,
    },
    /// All users can read or change the file.
    #[error(
        "is open to others (mode {mode:04o}): all users of this machine can read or change it; make it private \
         (chmod 600), and replace the secret if another user may have copied it"
    )]
    Open {
        /// The mode of the file.
        mode: u32,
    },
    /// A group that is not ours can read or change the file.
    #[error(
        "is open to group {group} (mode {mode:04o}), and this process is not in that group; make the file private \
         (chmod 600), and replace the secret if another user may have copied it"
    )]
    OpenToGroup {
        /// The group id.
        group: u32,
        /// The mode of the file.
        mode: u32,
    },
    /// The file is too long for its purpose.
    #[error(
        "is longer than {limit} bytes, which is the limit for such a file; check that it is the right file"
    )]
    TooLong {
        /// The most bytes that the file may have.
        limit: u64,
    },
}

/// The maker of the file, which decides on the owner, mode and links that are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// This program, in its data directory.
    Us,
    /// The operator, who named it.
    Operator,
}

/// Returns the text of a file of at most `limit` bytes, after its owner and mode are checked.
pub fn read(path: &Path, maker: Maker, limit: u64) -> Result<Zeroizing<String>, SecretFileProblem> {
    let io = |what| move |source| SecretFileProblem::Io { what, source };
    // Without NONBLOCK, opening a pipe would wait for its writer.
    let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let links = if maker == Maker::Us { no_links() } else { 0 };
    let file = OpenOptions::new().read(true).custom_flags(nonblock | links).open(path);
    let file = file.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => SecretFileProblem::Missing,
        _ => SecretFileProblem::Io { what: "opened", source },
    })?;
    let found = file.metadata().map_err(io("examined"))?;
    if !found.is_file() {
        return Err(SecretFileProblem::NotAFile);
    }
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    if allowed(owner, Group::of(&found), mode, maker, process::geteuid().as_raw())? == Verdict::Narrow {
        match file.set_permissions(Permissions::from_mode(mode & !0o070)) {
            Ok(()) => tracing::warn!(
                path = %path.display(),
                "this file was open to our group (mode {mode:04o}) and is private again; Kubernetes opens the files of \
                 a volume at each mount if the pod has an fsGroup"
            ),
            // Some file systems have one fixed mode. The group is ours, so the file is used.
            Err(error) => tracing::warn!(
                path = %path.display(),
                %error,
                "this file is open to our group (mode {mode:04o}) and cannot be made private"
            ),
        }
    }
    // Reserve room for the whole text at once: a text that grows leaves copies of the secret in memory.
    let room = usize::try_from(found.len().min(limit)).unwrap_or_default();
    let mut text = Zeroizing::new(String::with_capacity(room + 2));
    file.take(limit + 1).read_to_string(&mut text).map_err(io("read"))?;
    if text.len() as u64 > limit {
        return Err(SecretFileProblem::TooLong { limit });
    }
    Ok(text)
}

/// How a file that may be used is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Use it as it is.
    Use,
    /// Remove the rights of its group first.
    Narrow,
}

/// The group of a file, and whether this process is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    id: u32,
    pub(super) ours: bool,
}

impl Group {
    #[cfg(test)]
    pub(super) const fn new(id: u32, ours: bool) -> Self {
        Self { id, ours }
    }

    pub(super) fn of(found: &Metadata) -> Self {
        let id = found.gid();
        let ours = process::getegid().as_raw() == id
            || process::getgroups().is_ok_and(|groups| groups.iter().any(|group| group.as_raw() == id));
        Self { id, ours }
    }
}

/// Checks whether a process of user `us` may use a file of this owner, group and mode. Returns how to handle it, or why
/// it must not be used.
fn allowed(owner: u32, group: Group, mode: u32, maker: Maker, us: u32) -> Result<Verdict, SecretFileProblem> {
    let handed_over = maker == Maker::Operator && owner == 0;
    if owner != us && us != 0 && !handed_over {
        return Err(SecretFileProblem::NotOurs { owner, us });
    }
    if mode & 0o007 != 0 {
        return Err(SecretFileProblem::Open { mode });
    }
    match (mode & 0o070 != 0, group.ours, maker) {
        (false, ..) | (true, true, Maker::Operator) => Ok(Verdict::Use),
        (true, true, Maker::Us) => Ok(Verdict::Narrow),
        (true, false, _) => Err(SecretFileProblem::OpenToGroup { group: group.id, mode }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_used_unless_others_or_a_foreign_group_can_get_at_it() {
        use Maker::{Operator, Us};
        const OURS: Group = Group { id: 2000, ours: true };
        const THEIRS: Group = Group { id: 100, ours: false };
        let (fine, narrow) = (Some(Verdict::Use), Some(Verdict::Narrow));
        for (owner, group, mode, maker, us, expected) in [
            (1000, OURS, 0o600, Us, 1000, fine),
            (1000, THEIRS, 0o400, Us, 1000, fine),
            (1000, OURS, 0o604, Us, 1000, None),
            (1000, OURS, 0o602, Operator, 1000, None),
            (1000, OURS, 0o600, Us, 1001, None),
            (1000, OURS, 0o600, Operator, 1001, None),
            // Kubernetes (fsGroup) gives our group rights to a file that we made.
            (1000, OURS, 0o660, Us, 1000, narrow),
            (1000, OURS, 0o640, Us, 1000, narrow),
            (1000, THEIRS, 0o660, Us, 1000, None),
            (1000, THEIRS, 0o640, Us, 1000, None),
            (0, OURS, 0o660, Us, 0, narrow),
            // The operator or root makes a file for our group.
            (1000, OURS, 0o640, Operator, 1000, fine),
            (0, OURS, 0o440, Operator, 1000, fine),
            (0, OURS, 0o640, Operator, 1000, fine),
            (0, OURS, 0o660, Operator, 1000, fine),
            (0, THEIRS, 0o440, Operator, 1000, None),
            (0, OURS, 0o444, Operator, 1000, None),
            (0, OURS, 0o400, Us, 1000, None),
            // The process runs as root.
            (0, OURS, 0o600, Operator, 0, fine),
            (0, OURS, 0o440, Operator, 0, fine),
            (0, THEIRS, 0o640, Operator, 0, None),
            (1000, THEIRS, 0o600, Operator, 0, fine),
            (1000, THEIRS, 0o644, Us, 0, None),
        ] {
            let allowed = allowed(owner, group, mode, maker, us);
            assert_eq!(
                allowed.as_ref().ok().copied(),
                expected,
                "{owner} {group:?} {mode:o} {maker:?} {us}: {allowed:?}"
            );
        }
    }

    /// A Kubernetes fsGroup changes a file of ours in this way: its group is one of ours, and can read and write.
    #[test]
    fn a_file_of_ours_that_was_opened_to_our_group_is_private_again() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("secret");
        let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
        fs::write(&path, "secret").unwrap();
        for widened in [0o660, 0o640] {
            fs::set_permissions(&path, fs::Permissions::from_mode(widened)).unwrap();
            assert_eq!(*read(&path, Maker::Operator, 8).unwrap(), "secret");
            assert_eq!(mode(), widened, "an operator's file is left as it is");
            assert_eq!(*read(&path, Maker::Us, 8).unwrap(), "secret");
            assert_eq!(mode(), 0o600);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = read(&path, Maker::Us, 8).unwrap_err().to_string();
        assert!(error.contains("0644") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_file_has_its_size_and_is_a_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("secret");
        fs::write(&path, "12345678").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(*read(&path, Maker::Operator, 8).unwrap(), "12345678");
        let long = read(&path, Maker::Operator, 7).unwrap_err().to_string();
        assert!(long.contains("longer than 7 bytes"), "{long}");
        assert!(matches!(read(temp.path(), Maker::Operator, 8), Err(SecretFileProblem::NotAFile)));
        let none = temp.path().join("none");
        assert!(matches!(read(&none, Maker::Operator, 8), Err(SecretFileProblem::Missing)));
    }
}
