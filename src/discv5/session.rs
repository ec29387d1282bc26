//! Sessions: the keys that two peers agreed on, and the stores of them.
//!
//! Two stores of the same size hold them. `theirs` holds sessions that strangers began and in which they have not
//! answered us. `ours` holds those that we began, or whose peer has answered our request. An attacker with thousands of
//! addresses replaces only sessions of other strangers in `theirs`, never sessions in `ours`.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use rand::RngCore;

use super::{
    crypto::{MessageKey, SessionKeys},
    header::Nonce,
    peer::{Peer, PeerStore},
};
use crate::node::Record;

/// The longest time for which keys are used (the specification wants a limit; sigp's crate has the same).
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// The most sessions of one subnet in either store. The table has at most 10 nodes of a subnet, and hosts that run
/// several nodes exist.
pub const MAX_PER_SUBNET: usize = 32;

/// Our role in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We answered their WHOAREYOU.
    Initiator,
    /// They answered ours.
    Recipient,
}

/// The keys that we share with one peer.
#[derive(Debug)]
pub struct Session {
    read: MessageKey,
    write: MessageKey,
    /// The read key before the last handshake. When both sides shake hands at the same time, each ends up with
    /// another handshake as its last; this key lets them understand each other nevertheless.
    previous: Option<MessageKey>,
    sealed: u32,
    since: Instant,
    record: Option<Record>,
}

impl Session {
    /// The session that a handshake at `now` yields with the owner of `record`. We may have begun it
    /// without knowing one.
    #[must_use]
    pub fn new(keys: SessionKeys, role: Role, record: Option<Record>, now: Instant) -> Self {
        let SessionKeys { initiator, recipient } = keys;
        let (read, write) = match role {
            Role::Initiator => (recipient, initiator),
            Role::Recipient => (initiator, recipient),
        };
        Self { read, write, previous: None, sealed: 0, since: now, record }
    }

    /// The peer's record at the time of the handshake.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Opens a message of the peer.
    #[must_use]
    pub fn open(&self, nonce: &Nonce, ad: &[u8], sealed: &[u8], plaintext: &mut Vec<u8>) -> bool {
        self.read.open(nonce, ad, sealed, plaintext)
            || self.previous.as_ref().is_some_and(|key| key.open(nonce, ad, sealed, plaintext))
    }

    /// The key and a nonce for the next message to the peer. None once the nonces are used up.
    ///
    /// A count makes a nonce unique under its key; the random rest makes it hard to guess, because a WHOAREYOU must
    /// name it.
    pub fn seal(&mut self, rng: &mut dyn RngCore) -> Option<(&MessageKey, Nonce)> {
        let count = self.sealed;
        self.sealed = count.checked_add(1)?;
        let mut nonce = [0; 12];
        let (head, tail) = nonce.split_at_mut(4);
        head.copy_from_slice(&count.to_be_bytes());
        rng.fill_bytes(tail);
        Some((&self.write, nonce))
    }

    fn is_spent(&self, now: Instant) -> bool {
        self.sealed == u32::MAX || now.saturating_duration_since(self.since) > MAX_AGE
    }
}

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    ours: PeerStore<Session>,
    theirs: PeerStore<Session>,
}

impl Sessions {
    /// Room for `capacity` sessions, half of them begun by strangers.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let half = NonZeroUsize::new(capacity / 2).unwrap_or(NonZeroUsize::MIN);
        Self { ours: PeerStore::new(half), theirs: PeerStore::new(half) }
    }

    /// How many there are: those that we work with, and strangers'.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.ours.len(), self.theirs.len())
    }

    /// The session with `peer`, which counts as used now. One that is too old, or out of nonces, is removed.
    pub fn get(&mut self, peer: &Peer, now: Instant) -> Option<&mut Session> {
        for store in [&mut self.ours, &mut self.theirs] {
            if store.peek(peer).is_some_and(|session| session.is_spent(now)) {
                store.remove(peer);
            }
        }
        match self.ours.get_mut(peer) {
            Some(session) => Some(session),
            None => self.theirs.get_mut(peer),
        }
    }

    /// Whether there is a session with `peer`, used up or not.
    #[must_use]
    pub fn contains(&self, peer: &Peer) -> bool {
        self.ours.peek(peer).is_some() || self.theirs.peek(peer).is_some()
    }

    /// The record of `peer` in its session.
    #[must_use]
    pub fn record(&self, peer: &Peer) -> Option<&Record> {
        self.ours.peek(peer).or_else(|| self.theirs.peek(peer)).and_then(Session::record)
    }

    /// Stores the result of a handshake. It replaces an earlier session with `peer`, whose read key stays valid for
    /// messages under way. `exempt` frees the peer from the limit per subnet.
    pub fn insert(&mut self, peer: Peer, mut session: Session, role: Role, exempt: bool) {
        let known = self.ours.remove(&peer);
        let ours = known.is_some() || role == Role::Initiator;
        session.previous = known.or_else(|| self.theirs.remove(&peer)).map(|old| old.read);
        let store = if ours { &mut self.ours } else { &mut self.theirs };
        store_bounded(store, peer, session, exempt);
    }

    /// The peer has answered a request of ours: sessions of strangers no longer replace its session.
    pub fn answered(&mut self, peer: &Peer, exempt: bool) {
        if let Some(session) = self.theirs.remove(peer) {
            store_bounded(&mut self.ours, *peer, session, exempt);
        }
    }
}

/// Stores a session. A subnet that has its share gives up its own oldest one.
fn store_bounded(store: &mut PeerStore<Session>, peer: Peer, session: Session, exempt: bool) {
    let ip = peer.addr.ip();
    if !exempt
        && store.in_subnet(ip) >= MAX_PER_SUBNET
        && let Some(oldest) = store.oldest_in_subnet(ip)
    {
        store.remove(&oldest);
    }
    store.insert(peer, session, !exempt);
}

#[cfg(test)]
mod tests;
