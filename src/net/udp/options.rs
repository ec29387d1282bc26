//! Socket options of discovery that differ from what quinn-udp sets.
//!
//! QUIC forbids fragments, because it measures the path itself. It lets the kernel join packets of one sender, because
//! it moves bulk data. Discovery needs the opposite of both:
//!
//! - Packets of up to 1,280 bytes are valid on every link (discv4, discv5), headers not counted. A link with an MTU of
//!   1,280 bytes carries 1,252 bytes of payload over IPv4 and 1,232 over IPv6. A larger packet must be sent in
//!   fragments. With "don't fragment" the kernel refuses it, or a router drops it.
//! - A slot of ours holds one packet. The kernel may return up to 64 joined packets at once (`UDP_GRO`), and all but
//!   the first would be lost. Joining saves nothing here: a burst of one sender has five packets at most.
//!
//! Left out: options that every system has (buffer sizes, `IPV6_V6ONLY`), which [`super::open`] sets.

use std::io;

use quinn_udp::UdpSocketState;
use tokio::net::UdpSocket;

/// Allows fragments and switches joining off. Call it after quinn-udp has set its own options.
#[cfg(target_os = "linux")]
pub(super) fn for_discovery(socket: &UdpSocket, is_ipv6: bool, state: &UdpSocketState) -> io::Result<()> {
    use nix::sys::socket::{
        setsockopt,
        sockopt::{Ipv6DontFrag, UdpGroSegment},
    };
    use rustix::net::sockopt::{
        Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
    };
    if is_ipv6 {
        supported(set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DONT).map_err(Into::into))?;
        supported(setsockopt(socket, Ipv6DontFrag, &false).map_err(Into::into))?;
    } else {
        supported(set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DONT).map_err(Into::into))?;
    }
    // More than one segment means that the kernel knows the option and that it is on.
    if state.gro_segments() > 1 {
        setsockopt(socket, UdpGroSegment, &false)?;
    }
    Ok(())
}

/// Does nothing: on other systems quinn-udp sets no option that must be undone.
#[cfg(not(target_os = "linux"))]
pub(super) fn for_discovery(_socket: &UdpSocket, _is_ipv6: bool, _state: &UdpSocketState) -> io::Result<()> {
    Ok(())
}

/// Ignores the error of an option that the system does not know: quinn-udp could not set it either, so there is nothing
/// to undo.
#[cfg(target_os = "linux")]
fn supported(outcome: io::Result<()>) -> io::Result<()> {
    use rustix::io::Errno;
    outcome.or_else(|error| match Errno::from_io_error(&error) {
        Some(Errno::NOPROTOOPT | Errno::OPNOTSUPP) => Ok(()),
        _ => Err(error),
    })
}
