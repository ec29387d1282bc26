//! Binding the ports of peers and of discovery.
//!
//! By default both address families are bound, as far as the machine has them. Peers and discovery share one port
//! number, in both families, because an enode URL has room for one: where the system chooses, it chooses until all of
//! them are free.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::SockRef;
use tokio::net::TcpListener;

use crate::{
    config::Config,
    net::{
        listener::{self, BindError},
        peer_socket::{self, RECEIVE_BUFFER},
        udp::UdpPort,
    },
    node::local::Ports,
};

/// Tries to find a port that is free everywhere, when the system chooses.
const PORT_TRIES: usize = 16;

/// The listening sockets of peers and of discovery.
pub(super) struct Sockets {
    pub(super) tcp: Vec<TcpListener>,
    pub(super) udp: Option<UdpPort>,
    pub(super) listen_addrs: Vec<SocketAddr>,
}

impl Sockets {
    /// Binds both. Discovery takes the peers' addresses and port unless it has an address of its own.
    pub(super) fn bind(config: &Config) -> Result<Self, BindError> {
        let peers = &config.peers;
        let system_chooses = peers.listen_addrs.iter().any(|addr| addr.port() == 0);
        let mut tries = 1;
        loop {
            match Self::try_bind(config) {
                Ok(sockets) => return Ok(sockets),
                // The port that was chosen for one socket is taken for its twin: let the system choose again.
                Err(error) if system_chooses && error.is_taken() && tries < PORT_TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn try_bind(config: &Config) -> Result<Self, BindError> {
        let peers = &config.peers;
        let tcp = bind_tcp(&peers.listen_addrs, peers.any_family, peers.receive_buffer)?;
        let listen_addrs: Vec<SocketAddr> =
            tcp.iter().filter_map(|socket| socket.local_addr().ok()).collect();
        if !(config.discovery.v4 || config.discovery.v5) {
            return Ok(Self { tcp, udp: None, listen_addrs });
        }
        let udp = match config.discovery.addr {
            Some(addr) => UdpPort::bind(&[addr.ip()], addr.port())?,
            // Without a listener discovery still runs, where peers would have been accepted.
            None if listen_addrs.is_empty() => {
                let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
                bind_udp(&any, peers.port)?
            }
            None => {
                let port = listen_addrs.first().map_or(peers.port, SocketAddr::port);
                bind_udp(&one_of_each_family(&listen_addrs), port)?
            }
        };
        Ok(Self { tcp, udp: Some(udp), listen_addrs })
    }

    /// The ports that our record announces.
    pub(super) fn ports(&self) -> Ports {
        Ports {
            tcp: self.listen_addrs.first().map_or(0, SocketAddr::port),
            udp: self.udp.as_ref().map_or(0, UdpPort::port),
        }
    }
}

/// Binds all addresses. Those with port 0 get one port, which the system chooses.
fn bind_tcp(
    addrs: &[SocketAddr],
    any_family: bool,
    receive_buffer: usize,
) -> Result<Vec<TcpListener>, BindError> {
    let mut chosen = 0;
    let mut listeners = Vec::new();
    for addr in addrs {
        let addr = if addr.port() == 0 { SocketAddr::new(addr.ip(), chosen) } else { *addr };
        match listener::bind(addr, receive_buffer) {
            Ok(listener) => {
                let local = listener.local_addr().map_err(|source| BindError { addr, source })?;
                if addr.port() == 0 {
                    chosen = local.port();
                }
                check_receive_buffer(&listener, receive_buffer);
                listeners.push(listener);
            }
            Err(source) if any_family && lacks_family(&source) => {
                tracing::info!(%addr, %source, "this machine lacks the address family; peers of it are not accepted");
            }
            Err(source) => return Err(BindError { addr, source }),
        }
    }
    Ok(listeners)
}

/// The kernel caps receive buffers without an error. An operator who set one gets a warning with the size that holds.
fn check_receive_buffer(listener: &TcpListener, asked: usize) {
    if let Ok(got) = peer_socket::receive_buffer(&SockRef::from(listener))
        && got < asked
        && asked != RECEIVE_BUFFER
    {
        tracing::warn!(
            asked,
            got,
            "the kernel allows smaller receive buffers than --peer-receive-buffer; raise net.core.rmem_max (sysctl)"
        );
    }
}

/// Binds one socket per family; a family that the machine lacks is left out while there is another.
fn bind_udp(ips: &[IpAddr], port: u16) -> Result<UdpPort, BindError> {
    match UdpPort::bind(ips, port) {
        Err(error) if ips.len() > 1 && lacks_family(&error.source) => {
            let rest: Vec<IpAddr> = ips.iter().copied().filter(|ip| *ip != error.addr.ip()).collect();
            UdpPort::bind(&rest, port)
        }
        bound => bound,
    }
}

fn one_of_each_family(addrs: &[SocketAddr]) -> Vec<IpAddr> {
    let four = addrs.iter().find(|addr| addr.is_ipv4());
    let six = addrs.iter().find(|addr| addr.is_ipv6());
    [four, six].into_iter().flatten().map(SocketAddr::ip).collect()
}

/// Whether the system has no such address family: not compiled in (EAFNOSUPPORT) or without any address.
fn lacks_family(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.raw_os_error() == Some(EAFNOSUPPORT) || error.kind() == io::ErrorKind::AddrNotAvailable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn addresses_with_port_0_share_a_port_and_others_keep_theirs() {
        let free = std::net::TcpListener::bind("127.0.0.3:0").unwrap().local_addr().unwrap();
        let wanted = [addrs(&["127.0.0.1:0", "127.0.0.2:0"]), vec![free]].concat();
        let listeners = bind_tcp(&wanted, false, RECEIVE_BUFFER).unwrap();
        let bound: Vec<SocketAddr> = listeners.iter().map(|socket| socket.local_addr().unwrap()).collect();
        assert_eq!(bound[0].port(), bound[1].port());
        assert_eq!((bound[1].ip(), bound[2]), (wanted[1].ip(), free));
        for addr in bound {
            std::net::TcpStream::connect(addr).unwrap();
        }
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_an_error_unless_any_family_will_do() {
        // Documentation addresses belong to no machine.
        let wanted = addrs(&["127.0.0.1:0", "192.0.2.1:0"]);
        assert_eq!(bind_tcp(&wanted, false, RECEIVE_BUFFER).unwrap_err().addr.ip(), wanted[1].ip());
        assert_eq!(bind_tcp(&wanted, true, RECEIVE_BUFFER).unwrap().len(), 1);
        let ips: Vec<IpAddr> = wanted.iter().map(SocketAddr::ip).collect();
        assert_eq!(bind_udp(&ips, 0).unwrap().local_addrs().len(), 1);
        assert!(bind_udp(&ips[1..], 0).is_err());
    }

    #[tokio::test]
    async fn the_setting_of_receive_buffers_reaches_the_listening_sockets() {
        let mut config = Config::default();
        for size in [16 << 10, 32 << 10] {
            config.peers.receive_buffer = size;
            let sockets = Sockets::bind(&config).unwrap();
            assert_eq!(peer_socket::receive_buffer(&SockRef::from(&sockets.tcp[0])).unwrap(), size);
        }
    }
}
