//! The record of a run: every message that was accepted for a peer, every message that was delivered or reported to an
//! application, and every session. It is kept outside of the sidecars, so that it outlives a crash.

use std::{collections::BTreeMap, sync::Arc};

use devp2pd::{
    node::RegistrationId,
    switch::{attachment::PeerChannel, session::Session},
};

use super::link::{Owner, Socket};

/// A session of one run of one sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SessionKey {
    pub(super) sidecar: usize,
    pub(super) run: u64,
    pub(super) connection: u64,
}

/// A session, and the owner of the other end of its connection.
pub(super) struct Known {
    pub(super) session: Arc<Session>,
    pub(super) socket: Socket,
    pub(super) across: Option<Owner>,
    pub(super) ended: bool,
}

/// The events of one channel that an application received, over all its streams.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Messages that were delivered or reported in gaps.
    pub(super) position: u64,
    pub(super) closed: bool,
}

/// The events that one registration received.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) channels: BTreeMap<(u64, Arc<str>), Tally>,
    /// Lost messages of sessions that were never announced on a stream.
    pub(super) folded: u64,
}

/// The number of every greeting.
pub(super) const GREETING: u64 = u64::MAX;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) sessions: BTreeMap<SessionKey, Known>,
    /// The numbers of the messages that were accepted, by channel, in order.
    accepted: BTreeMap<(SessionKey, Arc<str>), Vec<u64>>,
    pub(super) told: BTreeMap<(usize, u64, RegistrationId), Told>,
    numbered: u64,
    /// The number of messages that were delivered.
    pub(super) delivered: u64,
    /// The number of messages that were reported in gaps.
    pub(super) lost: u64,
}

impl Ledger {
    /// A session has opened. Its greetings have been accepted already.
    pub(super) fn opened(
        &mut self,
        key: SessionKey,
        session: &Arc<Session>,
        socket: Socket,
        across: Option<Owner>,
    ) {
        for channel in &session.channels {
            let greetings = session.outbound.progress(channel.index).call.accepted;
            let numbers = vec![GREETING; usize::try_from(greetings).unwrap()];
            self.accepted.insert((key, Arc::clone(&channel.name)), numbers);
        }
        let known = Known { session: Arc::clone(session), socket, across, ended: false };
        assert!(self.sessions.insert(key, known).is_none(), "one connection becomes a session once");
    }

    /// A session has ended.
    pub(super) fn ended(&mut self, key: SessionKey) {
        let known = self.sessions.get_mut(&key).expect("a session that ends has opened");
        assert!(!std::mem::replace(&mut known.ended, true), "a session ends once");
    }

    /// Sessions of a run that have not ended.
    pub(super) fn open_sessions(
        &self,
        sidecar: usize,
        run: u64,
    ) -> impl Iterator<Item = (&SessionKey, &Known)> {
        let of_run = move |key: &SessionKey| key.sidecar == sidecar && key.run == run;
        self.sessions.iter().filter(move |(key, known)| of_run(key) && !known.ended)
    }

    /// Makes a payload with a number that no other message has. Returns the number and the payload.
    pub(super) fn payload(&mut self, len: usize) -> (u64, Vec<u8>) {
        self.numbered += 1;
        let mut payload = vec![0; len.max(8)];
        payload[..8].copy_from_slice(&self.numbered.to_be_bytes());
        (self.numbered, payload)
    }

    /// A message was accepted for a channel.
    pub(super) fn accepted(&mut self, sidecar: usize, run: u64, channel: &PeerChannel, number: u64) {
        let key = SessionKey { sidecar, run, connection: channel.session.id.0 };
        self.accepted
            .get_mut(&(key, Arc::clone(&channel.channel.name)))
            .expect("an open channel")
            .push(number);
    }

    /// Checks one message that an application received as number `position` (from 0) of its channel.
    pub(super) fn check_message(&self, key: SessionKey, protocol: &Arc<str>, position: u64, payload: &[u8]) {
        let known = &self.sessions[&key];
        let Some(Owner::Sidecar { index, run, connection }) = known.across else { return };
        let number = payload.get(..8).map(|head| u64::from_be_bytes(head.try_into().unwrap()));
        let from = SessionKey { sidecar: index, run, connection };
        let sent = self.accepted.get(&(from, Arc::clone(protocol)));
        let expected = sent.and_then(|sent| sent.get(usize::try_from(position).unwrap()).copied());
        assert_eq!(number, expected, "message {position} of {protocol} from {from:?} to {key:?}");
    }

    /// The number of messages that were accepted for a channel.
    pub(super) fn accepted_on(&self, key: SessionKey, protocol: &Arc<str>) -> u64 {
        self.accepted.get(&(key, Arc::clone(protocol))).map_or(0, |sent| sent.len() as u64)
    }
}
