//! The queue of packets that wait to be sent: one buffer holds their bytes, so that no packet allocates.

use std::{collections::VecDeque, net::SocketAddr};

use bytes::{Buf, BytesMut};

/// The most bytes that wait to be fetched. The driver fetches after every call, so they are reached only if it does
/// not. Then packets are lost, as UDP may lose them.
const MAX_BYTES: usize = 1 << 20;

/// The queue of packets.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    packets: VecDeque<(SocketAddr, usize)>,
    bytes: BytesMut,
}

impl Outbox {
    /// Queues a packet. False if there is no room.
    pub(super) fn push(&mut self, to: SocketAddr, packet: &[u8]) -> bool {
        if self.bytes.len() + packet.len() > MAX_BYTES {
            return false;
        }
        self.packets.push_back((to, packet.len()));
        self.bytes.extend_from_slice(packet);
        true
    }

    /// Appends the next packet to `out`.
    pub(super) fn pop(&mut self, out: &mut BytesMut) -> Option<SocketAddr> {
        let (to, length) = self.packets.pop_front()?;
        if let Some(packet) = self.bytes.get(..length) {
            out.extend_from_slice(packet);
            self.bytes.advance(length);
        }
        Some(to)
    }
}
