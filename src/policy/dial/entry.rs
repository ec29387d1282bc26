//! An entry of the static and trusted lists: what the operator said, how it goes, and how that is shown.
//!
//! One node has one entry, static, trusted or both, so that a peer that is removed from one list stays on the other.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::super::{bans::Ban, cause::Cause, refusal::Refusal};
use super::TaskId;
use crate::{
    Now,
    node::{AddressClass, Enode, Host, NodeId, NodeRef, PublicKey},
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
    /// Where it is, as the operator said; else as discovery found.
    pub enode: Option<Enode>,
    /// Who made it static, if it is.
    pub as_static: Option<ListSource>,
    /// Who made it trusted, if it is.
    pub as_trusted: Option<ListSource>,
    /// How it goes.
    pub state: EntryState,
    /// What went wrong last, connected or not.
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
    /// No address, and nobody to ask.
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

/// An entry as the scheduler holds it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: NodeId,
    pub(super) public_key: Option<PublicKey>,
    /// As the operator said.
    pub(super) given: Option<Enode>,
    /// As discovery found, while it is preferred to what was given.
    pub(super) found: Option<Enode>,
    pub(super) as_static: Option<ListSource>,
    pub(super) as_trusted: Option<ListSource>,
    pub(super) standing: Option<Standing>,
    pub(super) task: Option<TaskId>,
    /// When to dial, if it is a matter of time alone. Mirrored in the scheduler's order of due entries.
    pub(super) due: Option<Instant>,
    pub(super) failures: u32,
    /// When somebody accepted our last connection.
    pub(super) reached: Option<Instant>,
    pub(super) last_error: Option<LastError>,
    pub(super) resolving: bool,
    pub(super) resolve_failures: u32,
    /// Discovery is not asked again before.
    pub(super) next_resolve: Option<Instant>,
    /// The widest reach its addresses ever had: a global name that turns private is not followed.
    pub(super) widest: Option<AddressClass>,
    /// Why the last attempt was not made, until the next.
    pub(super) refused: Option<Refusal>,
}

impl Entry {
    pub(super) fn new(id: NodeId) -> Self {
        Self {
            id,
            public_key: None,
            given: None,
            found: None,
            as_static: None,
            as_trusted: None,
            standing: None,
            task: None,
            due: None,
            failures: 0,
            reached: None,
            last_error: None,
            resolving: false,
            resolve_failures: 0,
            next_resolve: None,
            widest: None,
            refused: None,
        }
    }

    /// Takes over what a reference says. Whether that is an address that was not known.
    pub(super) fn learn(&mut self, node: &NodeRef) -> bool {
        self.public_key = self.public_key.or(node.public_key());
        match node.enode() {
            Some(enode) if self.given.as_ref() != Some(&enode) => {
                self.given = Some(enode);
                self.found = None;
                self.widest = None;
                true
            }
            _ => false,
        }
    }

    /// The address to dial now.
    pub(super) fn target(&self) -> Option<&Enode> {
        self.found.as_ref().or(self.given.as_ref())
    }

    /// The address to dial now, if it is one and no name.
    pub(super) fn addr(&self) -> Option<SocketAddr> {
        match self.target()? {
            Enode { host: Host::Ip(ip), tcp, .. } => Some(SocketAddr::new(*ip, *tcp)),
            _ => None,
        }
    }

    /// Whether it has to be dialed at all: static ones always, trusted ones when an address is known.
    pub(super) fn wants_dial(&self) -> bool {
        self.as_static.is_some() || self.target().is_some()
    }
}

/// `at` as wall time.
pub(super) fn wall(now: Now, at: Instant) -> Duration {
    match at.checked_duration_since(now.mono) {
        Some(ahead) => now.unix.saturating_add(ahead),
        None => now.unix.saturating_sub(now.mono.saturating_duration_since(at)),
    }
}

impl Entry {
    /// Notes the reach of an address that is dialed.
    pub(super) fn saw(&mut self, ip: std::net::IpAddr) {
        self.widest = self.widest.max(Some(AddressClass::of(ip)));
    }

    /// Notes what went wrong.
    pub(super) fn set_error(&mut self, now: Now, cause: Cause, detail: &str) {
        let detail = super::super::bans::cut_at(detail, MAX_DETAIL_BYTES).to_owned();
        self.last_error = Some(LastError { time: now.unix, cause, detail });
    }
}

/// The most bytes of an error's detail that are kept: a line.
const MAX_DETAIL_BYTES: usize = 200;
