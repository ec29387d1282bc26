//! The access file and the TLS files, which are read again when they change.
//!
//! Tokens are replaced and certificates expire while the sidecar runs. Each second the files are checked, and a changed
//! file is read. If it is right, it applies from the next call (access) or connection (TLS) on. If it is wrong, the
//! version before it stays in use, and the log says so: a typing error must not lock out all callers.
//!
//! The files are polled, because inotify does not follow the links and mounts by which orchestrators replace files.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::ServerConfig;
use tokio::sync::watch;

use super::{
    super::server::tls::{self, TlsError, TlsFiles},
    Access, AccessError,
};
use crate::net::secret_file::{self, Maker, SecretFileProblem};

/// The pause between two checks of the files.
const EVERY: Duration = Duration::from_secs(1);

/// The most bytes of an access file: enough for the most credentials at their longest, with comments.
const MAX_ACCESS_BYTES: u64 = 256 * 1024;

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The access file cannot be read, or others can read it.
    #[error("the access file {}: {problem}", path.display())]
    Access {
        /// The file.
        path: PathBuf,
        /// The problem.
        problem: SecretFileProblem,
    },
    /// The content of the access file is wrong.
    #[error("the access file {}: {error}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The problem.
        error: AccessError,
    },
    /// Certificate, key or CA cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The credentials in use: receivers that always hold the newest valid version.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The access file. `None`: there is no access file.
    pub access: watch::Receiver<Option<Arc<Access>>>,
    /// TLS of the TCP port. `None`: the port has no TLS.
    pub tls: Option<watch::Receiver<Arc<ServerConfig>>>,
}

/// What shows that files have changed since they were read: device, inode, size, and time of the last change in seconds
/// and nanoseconds. `None` for a file that cannot be read.
type Seal = Vec<Option<(u64, u64, u64, i64, i64)>>;

fn seal<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Seal {
    let one = |path: &Path| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
    };
    paths.into_iter().map(one).collect()
}

/// Files, their state when they were read, and the channel to the users of their content.
#[derive(Debug)]
struct WatchedFile<F, T> {
    files: F,
    seal: Seal,
    now: watch::Sender<T>,
}

/// Checks the files of credentials, and reads those that changed.
#[derive(Debug)]
pub struct Keeper {
    access: Option<WatchedFile<PathBuf, Option<Arc<Access>>>>,
    tls: Option<WatchedFile<TlsFiles, Arc<ServerConfig>>>,
}

fn paths(files: &TlsFiles) -> impl Iterator<Item = &Path> {
    [&files.cert, &files.key].into_iter().chain(&files.client_ca).map(PathBuf::as_path)
}

fn read_access(path: &Path) -> Result<Arc<Access>, CredentialError> {
    let text = secret_file::read(path, Maker::Operator, MAX_ACCESS_BYTES)
        .map_err(|problem| CredentialError::Access { path: path.to_owned(), problem })?;
    let access =
        Access::parse(&text).map_err(|error| CredentialError::Content { path: path.to_owned(), error })?;
    Ok(Arc::new(access))
}

/// Reads the given files. Returns the credentials, and the keeper that must run to notice changes.
pub fn load(
    access: Option<PathBuf>,
    tls: Option<TlsFiles>,
) -> Result<(Credentials, Keeper), CredentialError> {
    // The seals are taken before the files are read, so that a file that changes in between is read again.
    let access_seal = seal(access.as_deref());
    let first = access.as_deref().map(read_access).transpose()?;
    let (now, access_held) = watch::channel(first);
    let access = access.map(|files| WatchedFile { files, seal: access_seal, now });
    let (mut kept, mut held) = (None, None);
    if let Some(files) = tls {
        let seal = seal(paths(&files));
        let (now, receiver) = watch::channel(tls::load(&files)?);
        (kept, held) = (Some(WatchedFile { files, seal, now }), Some(receiver));
    }
    Ok((Credentials { access: access_held, tls: held }, Keeper { access, tls: kept }))
}

impl Keeper {
    /// Checks the files each second. Returns only if there are no files, or if a check panics.
    pub async fn run(mut self) {
        while self.access.is_some() || self.tls.is_some() {
            tokio::time::sleep(EVERY).await;
            // On a thread for blocking work: the files may be on a network, and messages must not wait for them.
            match tokio::task::spawn_blocking(move || {
                self.look();
                self
            })
            .await
            {
                Ok(keeper) => self = keeper,
                Err(_) => return,
            }
        }
    }

    fn look(&mut self) {
        if let Some(WatchedFile { files: path, seal: have, now }) = &mut self.access {
            let found = seal([path.as_path()]);
            if found != *have {
                *have = found;
                match read_access(path) {
                    Ok(access) => {
                        tracing::info!(credentials = ?access, "the access file has changed and applies from now on");
                        now.send_replace(Some(access));
                    }
                    Err(error) => {
                        tracing::error!(%error, "the changed access file is wrong; the version before it stays in use");
                    }
                }
            }
        }
        if let Some(WatchedFile { files, seal: have, now }) = &mut self.tls {
            let found = seal(paths(files));
            if found != *have {
                *have = found;
                match tls::load(files) {
                    Ok(config) => {
                        tracing::info!("the certificates have changed; they apply to new connections");
                        now.send_replace(config);
                    }
                    Err(error) => {
                        tracing::error!(%error, "the changed certificates are wrong; those before them stay in use");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn write(path: &Path, text: &str) {
        // Orchestrators replace a file in this way: a new file is renamed to the place of the old one.
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&new, path).unwrap();
    }

    #[test]
    fn a_change_holds_and_a_mistake_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access");
        let told = |credentials: &Credentials| format!("{:?}", credentials.access.borrow().as_ref().unwrap());
        let error = load(Some(path.clone()), None).unwrap_err().to_string();
        assert!(error.contains("the access file") && error.contains("no such file"), "{error}");
        write(&path, "a read uid:1\nb reed uid:2");
        let error = load(Some(path.clone()), None).unwrap_err().to_string();
        assert!(error.contains("line 2: the role"), "{error}");
        write(&path, "a read uid:1");
        let (credentials, mut keeper) = load(Some(path.clone()), None).unwrap();
        assert_eq!(told(&credentials), "Access(1 credentials)");
        write(&path, "a read uid:1\nb read uid:2");
        keeper.look();
        assert_eq!(told(&credentials), "Access(2 credentials)");
        write(&path, "c");
        keeper.look();
        assert_eq!(told(&credentials), "Access(2 credentials)");
        fs::remove_file(&path).unwrap();
        keeper.look();
        assert_eq!(told(&credentials), "Access(2 credentials)");
        // An empty access file lets no caller in. It is valid, as the operator may want that.
        write(&path, "");
        keeper.look();
        assert_eq!(told(&credentials), "Access(0 credentials)");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load(Some(path), None).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }
}
