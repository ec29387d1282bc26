//! What we are asked: PING, FINDNODE, TALKREQ. Answers go to where the request came from, in its session.

use bytes::{Bytes, BytesMut};

use super::{Action, Engine, TalkAction};
use crate::{
    Now,
    discv5::{
        answer,
        crypto::Crypto,
        header::WriteAuth,
        message::{FindNode, Ping, Pong, TalkRequest, TalkResponse, encode_nodes},
        packet,
        peer::Peer,
        talk::{Admission, Asker},
    },
};

impl<C: Crypto> Engine<C> {
    pub(super) fn pinged(&mut self, now: Now, peer: Peer, ping: Ping) {
        self.counters.requests_received += 1;
        let pong = Pong { id: ping.id, enr_seq: self.record.seq(), recipient: peer.addr };
        self.respond(now, peer, |out| pong.encode(out));
    }

    pub(super) fn asked_for_nodes(&mut self, now: Now, peer: Peer, find: &FindNode<'_>) {
        self.counters.requests_received += 1;
        let records = answer::find(&self.table, &self.record, peer.addr.ip(), find.distances());
        let packets = answer::divide(&records);
        for range in &packets {
            let records = records.get(range.clone()).unwrap_or_default();
            self.respond(now, peer, |out| encode_nodes(out, find.id, packets.len() as u64, records));
        }
    }

    pub(super) fn talked_to(&mut self, now: Now, peer: Peer, talk: &TalkRequest<'_>) {
        self.counters.requests_received += 1;
        let asker = Asker { peer, id: talk.id };
        match self.talk.admit(talk.protocol, asker, now.mono) {
            Admission::Waits(token) => self.actions.push_back(Action::Own(TalkAction::Requested {
                token,
                from: peer,
                protocol: Bytes::copy_from_slice(talk.protocol),
                request: Bytes::copy_from_slice(talk.request),
            })),
            refused => {
                let full = refused == Admission::Full;
                let counter =
                    if full { &mut self.counters.talk_refused } else { &mut self.counters.talk_unknown };
                *counter += 1;
                self.respond_talk(now, &asker, &[]);
            }
        }
    }

    /// Sends a TALKRESP. False if the session is gone.
    pub(super) fn respond_talk(&mut self, now: Now, asker: &Asker, response: &[u8]) -> bool {
        self.respond(now, asker.peer, |out| TalkResponse { id: asker.id, response }.encode(out))
    }

    /// Sends what `encode` writes, in the session with `peer`. False if there is none any more.
    fn respond(&mut self, now: Now, peer: Peer, encode: impl FnOnce(&mut BytesMut)) -> bool {
        let Some(session) = self.sessions.get(&peer, now.mono) else { return false };
        let Some((key, nonce)) = session.seal(&mut self.rng) else { return false };
        self.message.clear();
        encode(&mut self.message);
        let auth = WriteAuth::Message { src: self.record.id() };
        packet::sealed(&mut self.scratch, &mut self.rng, &peer.id, &auth, (key, &nonce), &self.message);
        self.send_scratch(peer.addr);
        true
    }
}
