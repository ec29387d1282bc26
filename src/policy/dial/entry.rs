//! An entry of the static and trusted lists as it is shown, and why one is not added or removed.
//!
//! One node has one entry, static, trusted or both, so that a peer that is removed from one list stays on the other.
//! Left out: how entries are kept (`listed`).

use std::time::Duration;

use super::super::{bans::Ban, cause::Cause, refusal::Refusal};
use crate::{
    Now,
    node::{Enode, NodeId, PublicKey},
};

/// Who put something on a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListSource {
    /// The configuration; a call cannot remove it.
    Config,
    /// A call at run time; kept over restarts.
    Call,
}

/// The last thing that went wrong with a listed peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// When, since the Unix epoch.
    pub time: Duration,
    /// What.
    pub cause: Cause,
    /// In more words, at most 200 bytes.
    pub detail: String,
}

/// How it goes with a listed peer. Times are since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// Connected.
    Connected {
        /// Since when.
        since: Duration,
        /// Whether they dialed us.
        inbound: bool,
    },
    /// Being dialed, from the name lookup to the end of the handshake.
    Dialing {
        /// Since when.
        since: Duration,
    },
    /// Discovery is asked for its address.
    Resolving,
    /// To be dialed again; see the last error.
    BackingOff {
        /// When.
        until: Duration,
    },
    /// To be dialed as soon as a protocol is registered.
    WaitingForProtocol,
    /// To be dialed as soon as fewer dials are in progress, or its own attempt to reach us has ended.
    WaitingForSlot,
    /// Not dialed.
    Refused(Refusal),
}

/// A listed peer as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct ListEntry {
    /// Who it is.
    pub id: NodeId,
    /// Its key, if it was given or found.
    pub public_key: Option<PublicKey>,
    /// Its address: the operator's if given, else the one from discovery.
    pub enode: Option<Enode>,
    /// Who made it static, if it is.
    pub as_static: Option<ListSource>,
    /// Who made it trusted, if it is.
    pub as_trusted: Option<ListSource>,
    /// How it goes.
    pub state: EntryState,
    /// The last error, connected or not.
    pub last_error: Option<LastError>,
    /// When it is dialed next, since the Unix epoch, if that is known.
    pub next_dial: Option<Duration>,
}

/// Why an entry was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// It is us.
    #[error("that is our own identity")]
    OwnIdentity,
    /// It is banned.
    #[error("the node is banned by {} until {} (Unix time): {:?}; lift the ban first", .0.target, .0.until.as_secs(), .0.reason)]
    Banned(Box<Ban>),
    /// There is no address, and no discovery to find one.
    #[error("the node's address is unknown and discovery is off; give an enode:// or enr: with a TCP port")]
    AddressUnknown,
    /// Too many.
    #[error("the static and trusted lists together hold {max} nodes already")]
    Full {
        /// The bound.
        max: usize,
    },
}

/// Why an entry was not removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// Not there.
    #[error("the node is not on this list")]
    NotListed,
    /// Not by a call.
    #[error("the entry comes from the configuration; remove it there and restart")]
    FromConfig,
}

/// An entry removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Connected at this moment.
    pub connected: bool,
    /// On the other list still.
    pub still_listed: bool,
}

/// A connection that stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) since: Now,
    pub(super) inbound: bool,
}
