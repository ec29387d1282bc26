//! Files with secrets: looked at before they are believed.
//!
//! Whoever can read such a file can speak in our name, and whoever can change it decides who is let in. So a file that
//! others can get at is refused, with the command that repairs it. One that the operator names may be a link, and may
//! belong to root with read access for our group: that is how orchestrators hand secrets over. One that we made
//! ourselves may be neither.
//!
//! Left out: what stands in the file (`key_file`, `rpc::access`, `rpc::server::tls`).

use std::{
    fs::{Metadata, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::data_dir::no_links;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileProblem {
    /// It is not there.
    #[error("there is no such file")]
    Missing,
    /// The system said no.
    #[error("cannot be {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It is a directory, a pipe, or the like.
    #[error("is not a regular file")]
    NotAFile,
    /// It belongs to someone who could change it.
    #[error("belongs to user {owner}, and this process runs as user {us}; change the owner (chown {us})")]
    NotOurs {
        /// Its owner.
        owner: u32,
        /// Our user.
        us: u32,
    },
    /// Others can read or change it.
    #[error(
        "is open to others (mode {mode:04o}); if nobody has copied it, make it private (chmod 600), \
         else replace what it holds too"
    )]
    Open {
        /// Its mode.
        mode: u32,
    },
    /// It is something else.
    #[error("is longer than {limit} bytes, so it is something else")]
    TooLong {
        /// Bytes that it may have.
        limit: u64,
    },
}

/// Who made the file, which decides what it may look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// This program, in its data directory.
    Us,
    /// The operator, who named it.
    Operator,
}

/// The text of a file of at most `limit` bytes.
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
    let found = file.metadata().map_err(io("looked at"))?;
    check(&found, maker, rustix::process::geteuid().as_raw())?;
    // Room for all of it at once: a text that grows leaves copies behind.
    let room = usize::try_from(found.len().min(limit)).unwrap_or_default();
    let mut text = Zeroizing::new(String::with_capacity(room + 2));
    file.take(limit + 1).read_to_string(&mut text).map_err(io("read"))?;
    if text.len() as u64 > limit {
        return Err(SecretFileProblem::TooLong { limit });
    }
    Ok(text)
}

/// Whether a file that looks like this can be believed by a process of user `us`.
fn check(found: &Metadata, maker: Maker, us: u32) -> Result<(), SecretFileProblem> {
    if !found.is_file() {
        return Err(SecretFileProblem::NotAFile);
    }
    allowed(found.uid(), found.mode() & 0o7777, maker, us)
}

fn allowed(owner: u32, mode: u32, maker: Maker, us: u32) -> Result<(), SecretFileProblem> {
    let handed_over = maker == Maker::Operator && owner == 0;
    if owner != us && us != 0 && !handed_over {
        return Err(SecretFileProblem::NotOurs { owner, us });
    }
    // What root hands to us through our group is 0440 or 0640.
    let forbidden = if handed_over && us != 0 { 0o037 } else { 0o077 };
    if mode & forbidden != 0 {
        return Err(SecretFileProblem::Open { mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_others_can_get_at_is_refused() {
        use Maker::{Operator, Us};
        for (owner, mode, maker, us, fine) in [
            (1000, 0o600, Us, 1000, true),
            (1000, 0o400, Us, 1000, true),
            (1000, 0o640, Us, 1000, false),
            (1000, 0o604, Us, 1000, false),
            (1000, 0o640, Operator, 1000, false),
            (1000, 0o600, Us, 1001, false),
            (1000, 0o600, Operator, 1001, false),
            // What root hands over.
            (0, 0o440, Operator, 1000, true),
            (0, 0o640, Operator, 1000, true),
            (0, 0o660, Operator, 1000, false),
            (0, 0o444, Operator, 1000, false),
            (0, 0o400, Us, 1000, false),
            // Root itself.
            (0, 0o600, Operator, 0, true),
            (0, 0o640, Operator, 0, false),
            (1000, 0o600, Operator, 0, true),
            (1000, 0o644, Us, 0, false),
        ] {
            let allowed = allowed(owner, mode, maker, us);
            assert_eq!(allowed.is_ok(), fine, "{owner} {mode:o} {maker:?} {us}: {allowed:?}");
        }
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
