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
    /// Seals a packet and queues it. Returns its hash, by which an answer names it.
    pub(super) fn push(
        &mut self,
        crypto: &impl Crypto,
        counters: &mut Counters,
        to: SocketAddr,
        kind: Type,
        append: impl FnOnce(&mut RlpStream),
    ) -> [u8; 32] {
        let mut buffer = self.spare.pop().unwrap_or_else(|| BytesMut::with_capacity(MAX_PACKET));
        let hash = seal(crypto, kind, &mut buffer, append);
        debug_assert!(buffer.len() <= MAX_PACKET);
        if self.waiting.len() < MAX_WAITING {
            counters.sent += 1;
            self.waiting.push_back((to, buffer));
        } else {
            counters.outbox_full += 1;
            self.keep(buffer);
        }
        hash
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
