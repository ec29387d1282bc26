//! Endpoints as packets carry them: `[ip, udp-port, tcp-port]`.

use std::net::IpAddr;

use ::rlp::RlpStream;

use crate::{
    node::{Endpoint, endpoint::canonical},
    rlp::{Error, Reader},
};

/// An endpoint in a packet. Nobody is held to it: addresses of neither family's length are read as none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireEndpoint {
    /// The address, if it is one.
    pub ip: Option<IpAddr>,
    /// The UDP port.
    pub udp: u16,
    /// The TCP port; 0 where it does not matter.
    pub tcp: u16,
}

impl From<Endpoint> for WireEndpoint {
    fn from(endpoint: Endpoint) -> Self {
        Self { ip: Some(endpoint.ip), udp: endpoint.udp, tcp: endpoint.tcp }
    }
}

impl WireEndpoint {
    pub(super) fn read(list: &mut Reader<'_>) -> Result<Self, Error> {
        let mut list = list.nested()?;
        Ok(Self { ip: ip(list.bytes()?), udp: list.u16()?, tcp: list.u16()? })
    }

    pub(super) fn append(&self, stream: &mut RlpStream) {
        stream.begin_list(3);
        append_ip(stream, self.ip);
        stream.append(&self.udp).append(&self.tcp);
    }
}

pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|sixteen| canonical(sixteen.into()))
}

pub(super) fn append_ip(stream: &mut RlpStream, ip: Option<IpAddr>) {
    match ip {
        Some(IpAddr::V4(ip)) => stream.append(&ip.octets().as_slice()),
        Some(IpAddr::V6(ip)) => stream.append(&ip.octets().as_slice()),
        None => stream.append_empty_data(),
    };
}
