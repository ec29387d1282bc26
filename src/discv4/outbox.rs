//! Packets on their way out, sealed and ready, in buffers that are used again.

use std::{collections::VecDeque, net::SocketAddr};

use ::rlp::RlpStream;
use bytes::BytesMut;

use super::{
    crypto::Crypto,
    packet::{MAX_PACKET, Type, seal},
    verdict::Counters,
};

/// The most packets that wait to be sent, at most 5 MiB. When it is full, packets are dropped and counted: UDP may
/// lose, and requests time out.
const MAX_WAITING: usize = 4096;
/// The most spare buffers kept.
const MAX_SPARE: usize = 64;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<(SocketAddr, BytesMut)>,
    spare: Vec<BytesMut>,
}

impl Outbox {
    /// Seals a packet and queues it.
    pub(super) fn push(
        &mut self,
        crypto: &impl Crypto,
        counters: &mut Counters,
        to: SocketAddr,
        kind: Type,
        append: impl FnOnce(&mut RlpStream),
    ) {
        let mut buffer = self.spare.pop().unwrap_or_else(|| BytesMut::with_capacity(MAX_PACKET));
        seal(crypto, kind, &mut buffer, append);
        debug_assert!(buffer.len() <= MAX_PACKET);
        self.queue(counters, to, buffer);
    }

    /// Queues a packet that is sealed already.
    pub(super) fn push_sealed(&mut self, counters: &mut Counters, to: SocketAddr, packet: &[u8]) {
        let mut buffer = self.spare.pop().unwrap_or_else(|| BytesMut::with_capacity(MAX_PACKET));
        buffer.clear();
        buffer.extend_from_slice(packet);
        self.queue(counters, to, buffer);
    }

    fn queue(&mut self, counters: &mut Counters, to: SocketAddr, buffer: BytesMut) {
        if self.waiting.len() < MAX_WAITING {
            counters.sent += 1;
            self.waiting.push_back((to, buffer));
        } else {
            counters.outbox_full += 1;
            self.keep(buffer);
        }
    }

    /// Moves the next packet into `out`, which is cleared.
    pub(super) fn pop(&mut self, out: &mut BytesMut) -> Option<SocketAddr> {
        let (to, mut buffer) = self.waiting.pop_front()?;
        std::mem::swap(out, &mut buffer);
        self.keep(buffer);
        Some(to)
    }

    fn keep(&mut self, buffer: BytesMut) {
        if self.spare.len() < MAX_SPARE {
            self.spare.push(buffer);
        }
    }
}
