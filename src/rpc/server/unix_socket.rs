//! The Unix socket of gRPC. It is private from the moment at which it exists.
//!
//! The socket is bound in a directory of its own that only our user can enter (0700). It gets its mode there (0660: our
//! user and group), and is then renamed to its path. An existing socket at that path is replaced only if it belongs to
//! our user and no process serves it. A link, a file or another user's socket is refused, because its owner might
//! listen in our place.
//!
//! The path of a socket has at most 107 bytes (Linux `sun_path`). That also applies to the path in the directory.

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

/// The most bytes of a path to which clients can connect.
const MAX_PATH: usize = 107;

/// Why the socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path cannot be used, or is in use.
    #[error("cannot make the gRPC socket {}: {problem}", path.display())]
    Taken {
        /// The path of the socket.
        path: PathBuf,
        /// The problem of the path, and a correct value.
        problem: &'static str,
    },
    /// The operating system returned an error.
    #[error("cannot make the gRPC socket {}: {source}", path.display())]
    Io {
        /// The path of the socket.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}

/// The path of a bound socket. Dropping it removes the socket.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// Device and inode of the socket, so that the socket of another process at the same path is not removed.
    identity: (u64, u64),
}

impl Place {
    /// Returns the path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let ours = |meta: fs::Metadata| (meta.dev(), meta.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // If this fails, the next start replaces the socket.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds the socket. Returns its listener, and the place that removes the socket when dropped.
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
            return Err(taken(
                "the path exists and is no socket; remove it, or name another path with --grpc-socket",
            ));
        }
        Ok(meta) if meta.uid() != rustix::process::geteuid().as_raw() => {
            return Err(taken(
                "the socket there belongs to another user; name another path with --grpc-socket",
            ));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(taken("another process serves it; name another path with --grpc-socket"));
        }
        Ok(_) => {}
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let room = parent.join(format!(".{}", std::process::id()));
    // The directory can exist already: an earlier process with our process id may have been killed before it removed
    // it.
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
        // No process serves the socket any more, so it is replaced. Dropping the old place does not remove the new
        // socket.
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
