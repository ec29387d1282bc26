//! The checks that a packet must pass before it is answered or accepted, in the order of their cost.
//!
//! The signature is the expensive one. Before it come the header, the ration of the sender's address or the request
//! that the packet answers, the hash, and the expiration. Left out: whether the sender has proved its address
//! ([`super::bonds`]), and the contents of the packet.

use std::net::SocketAddr;

use super::{
    action::ClockSkew,
    conversation::Conversations,
    crypto::Crypto,
    limits::{Limits, Rates},
    packet::{Header, Packet, Type},
    skew::Skew,
    verdict::{Counters, Verdict},
};
use crate::{
    Now,
    kademlia::Table,
    node::{NodeId, PublicKey},
};

/// A packet that passed.
#[derive(Debug)]
pub(super) struct Checked<'a> {
    pub(super) packet: Packet<'a>,
    /// The key that signed it.
    pub(super) key: PublicKey,
    /// Its hash, by which an answer names it.
    pub(super) hash: [u8; 32],
}

/// The memory of the checks: rations by sender, and the expiration times that show the error of our clock.
#[derive(Debug)]
pub(super) struct Checks {
    limits: Limits,
    skew: Skew,
    found: Option<ClockSkew>,
}

impl Checks {
    pub(super) fn new(rates: Rates) -> Self {
        Self { limits: Limits::new(rates), skew: Skew::default(), found: None }
    }

    /// Checks a datagram of the node whose id is not `own`.
    pub(super) fn check<'a>(
        &mut self,
        now: Now,
        (from, bytes): (SocketAddr, &'a [u8]),
        (own, crypto): (NodeId, &impl Crypto),
        (conversations, table): (&mut Conversations, &Table),
        counters: &mut Counters,
    ) -> Result<Checked<'a>, Verdict> {
        let header = Header::read(bytes)?;
        let packet = self.open(now, from, &header, crypto, (conversations, table))?;
        let expired = packet.expiration().is_some_and(|expiration| expiration.is_past(now.unix));
        if expired && !self.skew.wants_expired(now.mono) {
            return Err(Verdict::Expired);
        }
        counters.recovered += 1;
        let key = header.signer(crypto).ok_or(Verdict::BadSignature)?;
        if key.id() == own {
            return Err(Verdict::Myself);
        }
        if let Some(expiration) = packet.expiration() {
            let ahead = self.skew.vote(now.mono, from.ip(), expiration.seconds_ahead(now.unix));
            self.found = ahead.map(|ahead| ClockSkew { ahead }).or(self.found);
        }
        if expired { Err(Verdict::Expired) } else { Ok(Checked { packet, key, hash: header.hash }) }
    }

    /// Hashes and decodes the packet if its sender's ration allows it: an answer must belong to a request of ours; a
    /// request takes from the ration of its sender's address.
    fn open<'a>(
        &mut self,
        now: Now,
        from: SocketAddr,
        header: &Header<'a>,
        crypto: &impl Crypto,
        (conversations, table): (&mut Conversations, &Table),
    ) -> Result<Packet<'a>, Verdict> {
        let decode = || Packet::decode(header.kind, header.body).map_err(|_| Verdict::Malformed);
        let mut decoded = None;
        let named = match header.kind {
            Type::Pong | Type::EnrResponse => match decoded.insert(decode()?) {
                Packet::Pong(pong) => Some(pong.ping_hash),
                Packet::EnrResponse(response) => Some(response.request_hash),
                _ => None,
            },
            _ => None,
        };
        let expected = match header.kind {
            Type::Ping | Type::FindNode | Type::EnrRequest => false,
            Type::Pong | Type::Neighbors | Type::EnrResponse => {
                conversations.expects(from.ip(), named).ok_or(Verdict::Unsolicited)?
            }
        };
        if !expected && !self.limits.admit(now.mono, from, || table.has_addr(from)) {
            return Err(Verdict::Limited);
        }
        if !header.hash_is_right(crypto) {
            return Err(Verdict::WrongHash);
        }
        decoded.map_or_else(decode, Ok)
    }

    /// The node at this address has proved itself: it has a ration of its own.
    pub(super) fn proved(&mut self, addr: SocketAddr) {
        self.limits.prove(addr);
    }

    /// The error of our clock by the packets checked so far, if it is to be reported.
    pub(super) fn take_skew(&mut self) -> Option<ClockSkew> {
        self.found.take()
    }
}
