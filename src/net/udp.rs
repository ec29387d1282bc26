//! The UDP side of discovery: one socket per address family on one port, read in batches.
//!
//! A discovery packet is at most 1,280 bytes, so a slot of that size and one byte more tells a whole packet from a
//! cut one. Reading uses `recvmmsg` where the system has it (quinn-udp): under a flood one system call fetches up to
//! [`BATCH`] packets. A full send buffer drops the packet and counts it: UDP may lose, and discovery asks again.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
};

use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

use super::listener::BindError;
use crate::node::endpoint::canonical;

/// The largest packet of discv4 and discv5 (both specs), and one byte by which a larger one is recognized.
const SLOT: usize = 1280 + 1;

/// Packets fetched by one system call.
const BATCH: usize = quinn_udp::BATCH_SIZE;

/// Kernel buffer for packets that we have not fetched: about 3,000 packets of a burst, where the system allows it.
const KERNEL_BUFFER: usize = 4 * 1024 * 1024;

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
}

/// The sockets of one port.
pub struct UdpPort {
    four: Option<Family>,
    six: Option<Family>,
    port: u16,
    slots: Vec<u8>,
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
        for family in [&self.four, &self.six].into_iter().flatten() {
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
                // The kernel may join packets of one sender (GRO); the stride tells them apart again.
                for packet in slot.get(..meta.len).unwrap_or_default().chunks(meta.stride.max(1)) {
                    self.counters.received += 1;
                    if packet.len() < SLOT {
                        take(from, packet);
                    } else {
                        self.counters.oversize += 1;
                    }
                }
            }
        }
    }

    /// Sends one packet, or drops it and counts.
    pub fn send(&mut self, to: SocketAddr, packet: &[u8]) {
        let family = if to.is_ipv4() { &self.four } else { &self.six };
        let sent = family.as_ref().is_some_and(|family| family.socket.try_send_to(packet, to).is_ok());
        if sent {
            self.counters.sent += 1;
        } else {
            self.counters.unsent += 1;
        }
    }
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
    Ok(Family { socket, state })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_arrive_in_batches_and_oversize_ones_are_counted() {
        let mut port = UdpPort::bind(&["127.0.0.1".parse().unwrap()], 0).unwrap();
        let to = port.local_addrs()[0];
        let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for len in [1_usize, 1280, 1281, 700] {
            sender.send_to(&vec![7; len], to).await.unwrap();
        }
        let mut lengths = Vec::new();
        while port.counters().received < 4 {
            port.readable().await;
            port.receive(|from, packet| {
                assert_eq!(from, sender.local_addr().unwrap());
                lengths.push(packet.len());
            });
        }
        assert_eq!(lengths, [1, 1280, 700]);
        assert_eq!(port.counters().oversize, 1);
        port.send(sender.local_addr().unwrap(), b"answer");
        let mut answer = [0; 16];
        assert_eq!(sender.recv(&mut answer).await.unwrap(), 6);
        port.send("[::1]:9".parse().unwrap(), b"no socket of that family");
        assert_eq!((port.counters().sent, port.counters().unsent), (1, 1));
    }
}
