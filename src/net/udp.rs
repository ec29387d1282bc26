//! The UDP side of discovery: one socket per address family on one port, read in batches.
//!
//! A discovery packet is at most 1,280 bytes, so a slot of that size and one byte more tells a whole packet from a
//! cut one. Reading uses `recvmmsg` where the system has it (quinn-udp): under a flood one system call fetches up to
//! [`BATCH`] packets. Writing uses `sendmmsg` likewise (rustix): what one round writes leaves together. A full send
//! buffer drops the packet and counts it: UDP may lose, and discovery asks again.
//!
//! quinn-udp configures a socket for QUIC. [`options`] takes back what does not fit discovery.
//!
//! A socket that is bound to all addresses of the machine remembers at which of them each remote address reached us, and
//! writes to it from there. A node that asked one address takes an answer from another one for a stranger's, and so does
//! its NAT. What goes to an address that never wrote to us leaves from where the kernel says.

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

/// The largest packet of discv4 and discv5 (both specs), and one byte by which a larger one is recognized.
const SLOT: usize = 1280 + 1;

/// Packets fetched by one system call.
const BATCH: usize = quinn_udp::BATCH_SIZE;

/// Packets sent by one system call, at most 80 KiB: what a round of either engine writes fits many times.
const SEND_BATCH: usize = 64;

/// Kernel buffer for packets that we have not fetched: about 3,000 packets of a burst, where the system allows it.
const KERNEL_BUFFER: usize = 4 * 1024 * 1024;

/// Remote addresses of which a socket remembers where they reached us. Answers that wait longest are those of
/// applications, at most 1,024; the rest is for the nodes of the tables. When it is full, the address that has been
/// silent for the longest time is forgotten, and the kernel chooses from where it is written to.
const REACHED_AT: NonZeroUsize = NonZeroUsize::new(2048).unwrap();

/// Counters of the sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpCounters {
    /// Packets read.
    pub received: u64,
    /// Packets longer than any discovery packet, dropped.
    pub oversize: u64,
    /// Packets handed to the kernel.
    pub sent: u64,
    /// Packets that the kernel did not take, dropped.
    pub unsent: u64,
}

struct Family {
    socket: UdpSocket,
    state: UdpSocketState,
    /// At which address of ours a remote one reached us. Only where the socket has more than one.
    reached_at: Option<LruCache<SocketAddr, IpAddr>>,
}

/// The sockets of one port.
pub struct UdpPort {
    four: Option<Family>,
    six: Option<Family>,
    port: u16,
    slots: Vec<u8>,
    /// Packets taken and not sent yet, and their bytes one after the other.
    addressed: Vec<Addressed>,
    outgoing: Vec<u8>,
    counters: UdpCounters,
}

impl UdpPort {
    /// Binds `port` on each of `ips`, at most one per family. Port 0 lets the system choose one for both.
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

    /// The port both families use.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The bound addresses.
    #[must_use]
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        [&self.four, &self.six]
            .into_iter()
            .flatten()
            .filter_map(|family| family.socket.local_addr().ok())
            .collect()
    }

    /// The counters so far.
    #[must_use]
    pub fn counters(&self) -> UdpCounters {
        self.counters
    }

    /// Waits until packets are there.
    pub async fn readable(&self) {
        let ready = async |family: &Option<Family>| match family {
            // An error here shows again at the read, where it is dealt with.
            Some(family) => drop(family.socket.readable().await),
            None => std::future::pending().await,
        };
        tokio::select! {
            () = ready(&self.four) => {}
            () = ready(&self.six) => {}
        }
    }

    /// Fetches what is there, up to one batch per family, and hands each packet to `take`.
    pub fn receive(&mut self, mut take: impl FnMut(SocketAddr, &[u8])) {
        for family in [&mut self.four, &mut self.six].into_iter().flatten() {
            let mut meta = [RecvMeta::default(); BATCH];
            let fetched = family.socket.try_io(Interest::READABLE, || {
                let mut slices = self.slots.chunks_mut(SLOT).map(IoSliceMut::new);
                let mut slices: [IoSliceMut<'_>; BATCH] =
                    std::array::from_fn(|_| slices.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
                family.state.recv(UdpSockRef::from(&family.socket), &mut slices, &mut meta)
            });
            // Errors of unconnected UDP sockets concern earlier sends (ICMP); there is nothing to do about them.
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

    /// Takes a packet to be sent by [`Self::flush`], which is called here too when a batch is full.
    pub fn send(&mut self, to: SocketAddr, packet: &[u8]) {
        let begin = self.outgoing.len();
        self.outgoing.extend_from_slice(packet);
        self.addressed.push((to, begin..self.outgoing.len()));
        if self.addressed.len() >= SEND_BATCH {
            self.flush();
        }
    }

    /// Hands what was taken to the kernel, each family with as few system calls as there are. What the kernel does not
    /// take is dropped and counted.
    pub fn flush(&mut self) {
        // By family and otherwise in order: a stable sort.
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

/// A packet on its way: to whom, and where its bytes stand.
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
                // No room in the kernel's buffer: another address of ours would not help.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It cannot be sent from there. The address may have left the machine, or was one of a broadcast.
                Err(_) => {
                    reached_at.pop(to);
                    rest.push((*to, range.clone()));
                }
            }
        }
        sent + send_all(&self.socket, &rest, bytes)
    }
}

/// Sends packets in their order, and answers how many the kernel took. One that cannot be sent (no route, no room) is
/// passed over.
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
        // Without asking the runtime, which does not know of a young socket yet that it can be written to.
        match sendmmsg(socket, rest, SendFlags::DONTWAIT) {
            Ok(count @ 1..) => (at, sent) = (at + count, sent + count),
            // No room for this one, so for none of the rest.
            Err(rustix::io::Errno::AGAIN) => break,
            // The error is about the first: the next may have a route.
            Ok(_) | Err(_) => at += 1,
        }
    }
    sent
}

/// The same where the system sends one packet a call.
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
