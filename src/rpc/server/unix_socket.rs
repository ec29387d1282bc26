//! The Unix socket of gRPC: private from its first instant, and nobody else's.
//!
//! It is bound in a directory of its own that only we can enter (0700), gets its mode there (0660: our user and group),
//! and is then renamed to its place. What stands there already is replaced only if it is a socket of ours that nobody
//! serves: a link, a file, or another user's socket is refused, because whoever put it there might listen in our place.
//!
//! The path of a socket has at most 107 bytes (Linux `sun_path`), counted for the first place too.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::{UnixListener as StdListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

/// Bytes of a path that clients can connect to.
const MAX_PATH: usize = 107;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Something else stands there.
    #[error("cannot make the gRPC socket {}: {problem}", path.display())]
    Taken {
        /// Where.
        path: PathBuf,
        /// What it is, and what would be right.
        problem: &'static str,
    },
    /// The system said no.
    #[error("cannot make the gRPC socket {}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A bound socket's place; the socket goes with it.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// Device and inode, so that another process's socket is not removed.
    identity: (u64, u64),
}

impl Place {
    /// Where the socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let ours = |meta: fs::Metadata| (meta.dev(), meta.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // A socket that stays is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds the socket.
pub fn bind(path: &Path) -> Result<(UnixListener, Place), SocketError> {
    let taken = |problem| SocketError::Taken { path: path.to_owned(), problem };
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    if path.as_os_str().len() > MAX_PATH {
        return Err(taken("a socket's path has at most 107 bytes; name a shorter one with --grpc-socket"));
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(taken("what stands there is no socket; remove it, or name another path"));
        }
        Ok(meta) if meta.uid() != rustix::process::geteuid().as_raw() => {
            return Err(taken("the socket there belongs to another user"));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(taken("another process serves it; name another path"));
        }
        Ok(_) => {}
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let room = parent.join(format!(".{}", std::process::id()));
    // Left over by a process with our number that was killed in the next three lines.
    let _ = fs::remove_dir_all(&room);
    DirBuilder::new().mode(0o700).create(&room).map_err(failed)?;
    let made = make(&room.join("s"), path);
    let _ = fs::remove_dir_all(&room);
    let (listener, identity) = made.map_err(failed)?;
    let place = Place { path: path.to_owned(), identity };
    listener.set_nonblocking(true).map_err(failed)?;
    Ok((UnixListener::from_std(listener).map_err(failed)?, place))
}

fn make(first: &Path, path: &Path) -> io::Result<(StdListener, (u64, u64))> {
    let listener = StdListener::bind(first)?;
    fs::set_permissions(first, Permissions::from_mode(0o660))?;
    let meta = fs::symlink_metadata(first)?;
    fs::rename(first, path)?;
    Ok((listener, (meta.dev(), meta.ino())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_private_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grpc.sock");
        let (listener, place) = bind(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o660);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        UnixStream::connect(&path).unwrap();
        let error = bind(&path).unwrap_err().to_string();
        assert!(error.contains("another process serves it"), "{error}");
        drop(listener);
        // Nobody serves it any more: it is replaced, and the old owner's end leaves the new one alone.
        let (_listener, _place) = bind(&path).unwrap();
        drop(place);
        UnixStream::connect(&path).unwrap();
        drop(_place);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_not_ours_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grpc.sock");
        fs::write(&path, "a file").unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("no socket"));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("no socket"), "a link");
        let missing = dir.path().join("missing/grpc.sock");
        assert!(bind(&missing).unwrap_err().to_string().contains("missing"));
        let long = dir.path().join("x".repeat(200));
        assert!(bind(&long).unwrap_err().to_string().contains("at most 107 bytes"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    }
}
