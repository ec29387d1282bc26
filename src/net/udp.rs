//! The UDP side of discovery: one socket per address family on one port, read in batches.
//!
//! A discovery packet has at most 1,280 bytes. A slot has one byte more, so that a packet that was cut is recognized.
//! Reading uses `recvmmsg` where the system has it (quinn-udp): one system call fetches up to [`BATCH`] packets of a
//! flood. Writing uses `sendmmsg` in the same way (rustix): the packets of one round are sent together. If the send
//! buffer is full, the packet is dropped and counted, as UDP may lose packets and discovery asks again.
//!
//! quinn-udp configures a socket for QUIC. [`options`] undoes the settings that do not fit discovery.
//!
//! A socket that is bound to all addresses of the machine remembers, for each remote address, the local address that it
//! wrote to, and answers from that one. A node that asked one address does not accept an answer from another one, and
//! neither does its NAT. For a remote address that never wrote to us, the kernel chooses the local address.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    ops::Range,
};

#[cfg(target_os = "linux")]
use std::io::IoSlice;

use lru::LruCache;
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

mod options;

use super::listener::BindError;
use crate::node::endpoint::canonical;

/// Bytes of a slot: the largest packet of discv4 and discv5 (both specs), and one byte by which a larger packet is
/// recognized.
const SLOT: usize = 1280 + 1;

/// The most packets that one system call fetches.
const BATCH: usize = quinn_udp::BATCH_SIZE;

/// The most packets that one system call sends, at most 80 KiB: many times what one round of an engine writes.
const SEND_BATCH: usize = 64;

/// Bytes of the kernel buffer for packets that we have not fetched: about 3,000 packets of a burst, where the system
/// allows it.
const KERNEL_BUFFER: usize = 4 * 1024 * 1024;

/// The most remote addresses for which a socket remembers the local address. The answers of applications take the
/// longest, and at most 1,024 of them are open; the rest is for the nodes of the tables. When it is full, the address
/// that has been silent for the longest time is forgotten, and the kernel chooses the local address for it.
const REACHED_AT: NonZeroUsize = NonZeroUsize::new(2048).unwrap();

/// Counters of the sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpCounters {
    /// Packets read.
    pub received: u64,
    /// Packets longer than any discovery packet, dropped.
    pub oversize: u64,
    /// Packets that the kernel took.
    pub sent: u64,
    /// Packets that the kernel did not take, dropped.
    pub unsent: u64,
}

struct Family {
    socket: UdpSocket,
    state: UdpSocketState,
    /// The local address to which each remote address wrote. `None` for a socket that is bound to one address.
    reached_at: Option<LruCache<SocketAddr, IpAddr>>,
}

/// The sockets of one port.
pub struct UdpPort {
    four: Option<Family>,
    six: Option<Family>,
    port: u16,
    slots: Vec<u8>,
    /// Packets that are not sent yet, and their bytes one after the other.
    addressed: Vec<Addressed>,
    outgoing: Vec<u8>,
    counters: UdpCounters,
}

impl UdpPort {
    /// Binds `port` on each of `ips`, at most one per family. With port 0 the system chooses one port for both
    /// families.
    pub fn bind(ips: &[IpAddr], port: u16) -> Result<Self, BindError> {
        let mut bound = Self {
            four: None,
            six: None,
            port,
            slots: vec![0; SLOT * BATCH],
            addressed: Vec::new(),
            outgoing: Vec::new(),
            counters: UdpCounters::default(),
        };
        for ip in ips {
            let addr = SocketAddr::new(*ip, bound.port);
            let family = open(addr).map_err(|source| BindError { addr, source })?;
            bound.port = family.socket.local_addr().map_err(|source| BindError { addr, source })?.port();
            let slot = if addr.is_ipv4() { &mut bound.four } else { &mut bound.six };
            *slot = Some(family);
        }
        Ok(bound)
    }

    /// Returns the port, which both families use.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the bound addresses.
    #[must_use]
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        [&self.four, &self.six]
            .into_iter()
            .flatten()
            .filter_map(|family| family.socket.local_addr().ok())
            .collect()
    }

    /// Returns the counters since the start.
    #[must_use]
    pub fn counters(&self) -> UdpCounters {
        self.counters
    }

    /// Waits until there are packets to receive.
    pub async fn readable(&self) {
        let ready = async |family: &Option<Family>| match family {
            // The read returns such an error again, and handles it.
            Some(family) => drop(family.socket.readable().await),
            None => std::future::pending().await,
        };
        tokio::select! {
            () = ready(&self.four) => {}
            () = ready(&self.six) => {}
        }
    }

    /// Fetches the packets that are there, at most one batch per family, and passes each to `take`.
    pub fn receive(&mut self, mut take: impl FnMut(SocketAddr, &[u8])) {
        for family in [&mut self.four, &mut self.six].into_iter().flatten() {
            let mut meta = [RecvMeta::default(); BATCH];
            let fetched = family.socket.try_io(Interest::READABLE, || {
                let mut slices = self.slots.chunks_mut(SLOT).map(IoSliceMut::new);
                let mut slices: [IoSliceMut<'_>; BATCH] =
                    std::array::from_fn(|_| slices.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
                family.state.recv(UdpSockRef::from(&family.socket), &mut slices, &mut meta)
            });
            // An error of an unconnected UDP socket is about an earlier send (ICMP), so it is ignored.
            let Ok(fetched) = fetched else { continue };
            for (slot, meta) in self.slots.chunks(SLOT).zip(meta).take(fetched) {
                let from = SocketAddr::new(canonical(meta.addr.ip()), meta.addr.port());
                if let (Some(reached_at), Some(ip)) = (&mut family.reached_at, meta.dst_ip) {
                    reached_at.put(from, ip);
                }
                let packet = slot.get(..meta.len).unwrap_or_default();
                self.counters.received += 1;
                if packet.len() < SLOT {
                    take(from, packet);
                } else {
                    self.counters.oversize += 1;
                }
            }
        }
    }

    /// Takes a packet for [`Self::flush`] to send. Calls `flush` itself when a batch is full.
    pub fn send(&mut self, to: SocketAddr, packet: &[u8]) {
        let begin = self.outgoing.len();
        self.outgoing.extend_from_slice(packet);
        self.addressed.push((to, begin..self.outgoing.len()));
        if self.addressed.len() >= SEND_BATCH {
            self.flush();
        }
    }

    /// Hands the packets to the kernel, with as few system calls per family as possible. Packets that the kernel does
    /// not take are dropped and counted.
    pub fn flush(&mut self) {
        // Sort by family. The sort is stable, so the packets of a family keep their order.
        self.addressed.sort_by_key(|(to, _)| to.is_ipv6());
        let six = self.addressed.partition_point(|(to, _)| to.is_ipv4());
        let (four, six) = self.addressed.split_at(six);
        for (family, packets) in [(&mut self.four, four), (&mut self.six, six)] {
            let sent = family.as_mut().map_or(0, |family| family.send(packets, &self.outgoing));
            self.counters.sent += sent as u64;
            self.counters.unsent += packets.len().saturating_sub(sent) as u64;
        }
        self.addressed.clear();
        self.outgoing.clear();
    }
}

/// A packet that is not sent yet: its destination, and the range of its bytes in `outgoing`.
type Addressed = (SocketAddr, Range<usize>);

impl Family {
    /// Sends packets, and returns how many the kernel took. Those to one remote address keep their order.
    fn send(&mut self, packets: &[Addressed], bytes: &[u8]) -> usize {
        let Some(reached_at) = &mut self.reached_at else { return send_all(&self.socket, packets, bytes) };
        let (mut sent, mut rest) = (0, Vec::with_capacity(packets.len()));
        for (to, range) in packets {
            let Some(src_ip) = reached_at.get(to).copied() else {
                rest.push((*to, range.clone()));
                continue;
            };
            let contents = bytes.get(range.clone()).unwrap_or_default();
            let transmit =
                Transmit { destination: *to, ecn: None, contents, segment_size: None, src_ip: Some(src_ip) };
            match self.state.try_send(UdpSockRef::from(&self.socket), &transmit) {
                Ok(()) => sent += 1,
                // The kernel's buffer is full, so another local address would not help.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The packet cannot be sent from this local address: the machine may have lost it, or it is a broadcast
                // address.
                Err(_) => {
                    reached_at.pop(to);
                    rest.push((*to, range.clone()));
                }
            }
        }
        sent + send_all(&self.socket, &rest, bytes)
    }
}

/// Sends packets in their order, and returns how many the kernel took. A packet without a route is skipped. When the
/// kernel's buffer is full, the rest is not sent.
#[cfg(target_os = "linux")]
fn send_all(socket: &UdpSocket, packets: &[Addressed], bytes: &[u8]) -> usize {
    use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
    let addrs: Vec<SocketAddrAny> = packets.iter().map(|(to, _)| (*to).into()).collect();
    let slices: Vec<[IoSlice<'_>; 1]> = packets
        .iter()
        .map(|(_, range)| [IoSlice::new(bytes.get(range.clone()).unwrap_or_default())])
        .collect();
    let mut control: Vec<SendAncillaryBuffer<'_, '_, '_>> =
        packets.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let mut messages: Vec<MMsgHdr<'_>> = addrs
        .iter()
        .zip(&slices)
        .zip(&mut control)
        .map(|((addr, slice), control)| MMsgHdr::new_with_addr(addr, slice, control))
        .collect();
    let (mut at, mut sent) = (0, 0);
    while let Some(rest) = messages.get_mut(at..).filter(|rest| !rest.is_empty()) {
        // The runtime is not asked whether the socket is writable: for a new socket it does not know that yet.
        match sendmmsg(socket, rest, SendFlags::DONTWAIT) {
            Ok(count @ 1..) => (at, sent) = (at + count, sent + count),
            // There is no room for this packet, so there is none for the rest.
            Err(rustix::io::Errno::AGAIN) => break,
            // The error is about the first packet. The next one may have a route.
            Ok(_) | Err(_) => at += 1,
        }
    }
    sent
}

/// Sends packets, and returns how many the kernel took. These systems send one packet with each call.
#[cfg(not(target_os = "linux"))]
fn send_all(socket: &UdpSocket, packets: &[Addressed], bytes: &[u8]) -> usize {
    let taken = |(to, range): &&Addressed| {
        socket.try_send_to(bytes.get(range.clone()).unwrap_or_default(), *to).is_ok()
    };
    packets.iter().filter(taken).count()
}

fn open(addr: SocketAddr) -> io::Result<Family> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // The system may grant less; discovery works with any size.
    let _ = socket.set_recv_buffer_size(KERNEL_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
    options::for_discovery(&socket, addr.is_ipv6(), &state)?;
    let reached_at = addr.ip().is_unspecified().then(|| LruCache::sparse(REACHED_AT));
    Ok(Family { socket, state, reached_at })
}

#[cfg(test)]
mod tests;
