//! The files that decide who is let in, read again when they change.
//!
//! Tokens are replaced and certificates expire while the sidecar runs. Each second the files are looked at; what
//! changed is read, and if it is right, it holds from the next call (access) or connection (TLS) on. If it is wrong,
//! what held before goes on, and the log says so: an editor's mistake must not lock everybody out.
//!
//! Looking, instead of being told: inotify does not see through the links and mounts by which orchestrators hand files
//! over.

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

/// How often the files are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Bytes of an access file: its credentials at their longest, with comments.
const MAX_ACCESS_BYTES: u64 = 256 * 1024;

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The access file is not there, or not private.
    #[error("the access file {}: {problem}", path.display())]
    Access {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: SecretFileProblem,
    },
    /// It is no access file.
    #[error("the access file {}: {error}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: AccessError,
    },
    /// Certificate, key or CA cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What holds now.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The access file. `None`: there is none.
    pub access: watch::Receiver<Option<Arc<Access>>>,
    /// TLS of the TCP port. `None`: there is none.
    pub tls: Option<watch::Receiver<Arc<ServerConfig>>>,
}

/// What tells files from those that were read: device, inode, size, and when they changed.
type Seal = Vec<Option<(u64, u64, u64, i64, i64)>>;

fn seal<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Seal {
    let one = |path: &Path| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
    };
    paths.into_iter().map(one).collect()
}

/// Files, what they looked like when they were read, and who uses what they say.
#[derive(Debug)]
struct Watched<F, T> {
    files: F,
    seal: Seal,
    now: watch::Sender<T>,
}

/// Looks at the files of credentials, and reads those that changed.
#[derive(Debug)]
pub struct Keeper {
    access: Option<Watched<PathBuf, Option<Arc<Access>>>>,
    tls: Option<Watched<TlsFiles, Arc<ServerConfig>>>,
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

/// Reads the files that are named.
pub fn load(
    access: Option<PathBuf>,
    tls: Option<TlsFiles>,
) -> Result<(Credentials, Keeper), CredentialError> {
    // Sealed before they are read: what changes meanwhile is read again.
    let access_seal = seal(access.as_deref());
    let first = access.as_deref().map(read_access).transpose()?;
    let (now, access_held) = watch::channel(first);
    let access = access.map(|files| Watched { files, seal: access_seal, now });
    let (mut kept, mut held) = (None, None);
    if let Some(files) = tls {
        let seal = seal(paths(&files));
        let (now, receiver) = watch::channel(tls::load(&files)?);
        (kept, held) = (Some(Watched { files, seal, now }), Some(receiver));
    }
    Ok((Credentials { access: access_held, tls: held }, Keeper { access, tls: kept }))
}

impl Keeper {
    /// Looks at the files for as long as somebody asks for what they say.
    pub async fn run(mut self) {
        while self.access.is_some() || self.tls.is_some() {
            tokio::time::sleep(EVERY).await;
            // Away from the tasks that move messages: the files may be on a network.
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
        if let Some(Watched { files: path, seal: have, now }) = &mut self.access {
            let found = seal([path.as_path()]);
            if found != *have {
                *have = found;
                match read_access(path) {
                    Ok(access) => {
                        tracing::info!(credentials = ?access, "the access file has changed, and holds from now on");
                        now.send_replace(Some(access));
                    }
                    Err(error) => tracing::error!(%error, "the credentials before this change go on"),
                }
            }
        }
        if let Some(Watched { files, seal: have, now }) = &mut self.tls {
            let found = seal(paths(files));
            if found != *have {
                *have = found;
                match tls::load(files) {
                    Ok(config) => {
                        tracing::info!("certificates have changed, and hold from now on");
                        now.send_replace(config);
                    }
                    Err(error) => tracing::error!(%error, "the certificates before this change go on"),
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
        // As orchestrators do it: a new file in the place of the old one.
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
        // Nobody is let in by an empty one, and that may be meant.
        write(&path, "");
        keeper.look();
        assert_eq!(told(&credentials), "Access(0 credentials)");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load(Some(path), None).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }
}
