//! The steps of a start, and why each of them may fail: one line for the operator.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::{
    net::{
        data_dir::DataDirError,
        key_file::KeyFileError,
        listener::{self, BindError},
        state_file::StateError,
    },
    policy::lists::ListsError,
    rpc::{access::credentials::CredentialError, server::unix_socket::SocketError},
    switch::peers::ListError,
};

/// Why a sidecar did not start: one line for the operator. Nothing of it was left running.
///
/// The error of the system, if there was one, is among its sources.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StartError(#[from] StartFailure);

/// Why a step of the start failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartFailure {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The node key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// A file of an earlier run cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The lists of an earlier run are damaged.
    #[error("the peer lists in {}: {error}", path.display())]
    Lists {
        /// The file.
        path: PathBuf,
        /// The problem.
        error: ListsError,
    },
    /// A peer of the configuration cannot be listed.
    #[error("static-peers or trusted-peers: {0}")]
    Peers(#[from] ListError),
    /// A port is taken, or an address is not ours.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The same for gRPC and the probes.
    #[error("cannot serve {what} on {addr}: {}", listener::bind_problem(*addr, flag, source))]
    Serve {
        /// The service that was to be served.
        what: &'static str,
        /// The flag that chooses the address.
        flag: &'static str,
        /// Where.
        addr: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The Unix socket that was asked for cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The access file cannot be used, or TLS cannot be served.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// Our record cannot be signed.
    #[error("cannot sign our node record: {0}")]
    Record(String),
    /// The gRPC services cannot be put together.
    #[error("cannot build the gRPC services: {0}")]
    Services(String),
    /// The system has no randomness.
    #[error("the system gives no randomness: {0}")]
    Entropy(String),
    /// A test asked for it.
    #[cfg(test)]
    #[error("fault injected at {0:?}")]
    Injected(Step),
}

/// The steps of a start, in order. Tests let each of them fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// The data directory is locked.
    DataDir,
    /// The key is loaded or made.
    Key,
    /// Lists and sequence number are read.
    State,
    /// Peers' port is bound.
    Listen,
    /// Discovery runs.
    Discovery,
    /// The switch runs.
    Switch,
    /// gRPC serves.
    Grpc,
    /// The probes serve.
    Http,
}
