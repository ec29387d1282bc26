//! STUN (RFC 8489): one Binding request, and one answer with the address from which our packet came.
//!
//! A request without attributes has twenty bytes. The answer is used if it has our transaction id, which only the
//! server has seen. Only the address is used, because the port is the one of the socket that sent the request.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use rand::{RngCore, rngs::StdRng};
use tokio::{net::UdpSocket, time::timeout};

use crate::node::endpoint::canonical;

/// The magic cookie, by which a STUN packet is recognized (RFC 8489).
const MAGIC: [u8; 4] = 0x2112_a442_u32.to_be_bytes();

const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;

/// The largest answer that is read, in bytes: every IPv6 path carries so many without fragments.
const MAX_ANSWER: usize = 1280;

/// The number of tries, and the time that each waits.
const TRIES: usize = 3;
const WAIT: Duration = Duration::from_secs(1);

/// The servers to ask when the operator names none. They belong to large operators, which learn little from our
/// request.
pub(super) const SERVERS: &[(&str, u16)] =
    &[("stun.cloudflare.com", 3478), ("stun.l.google.com", 19302), ("stun.nextcloud.com", 3478)];

/// Asks `server` for our outside address.
pub(super) async fn external_ip(server: SocketAddr, rng: &mut StdRng) -> io::Result<IpAddr> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // The socket is connected, so packets from other addresses do not reach it.
    socket.connect(server).await?;
    let mut transaction = [0; 12];
    rng.fill_bytes(&mut transaction);
    let request = [&BINDING_REQUEST[..], &[0, 0], &MAGIC, &transaction].concat();
    let mut answer = [0; MAX_ANSWER];
    for _ in 0..TRIES {
        socket.send(&request).await?;
        let received = timeout(WAIT, async {
            loop {
                let len = socket.recv(&mut answer).await?;
                if let Some(addr) = answer.get(..len).and_then(|answer| parse(answer, &transaction)) {
                    return Ok(addr);
                }
            }
        });
        if let Ok(addr) = received.await {
            return addr.map(|addr: SocketAddr| canonical(addr.ip()));
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Returns the address in a Binding success response to `transaction`; `None` for any other packet.
fn parse(answer: &[u8], transaction: &[u8; 12]) -> Option<SocketAddr> {
    let (kind, rest) = answer.split_first_chunk::<2>()?;
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let (magic, rest) = rest.split_first_chunk::<4>()?;
    let (theirs, attributes) = rest.split_first_chunk::<12>()?;
    if *kind != BINDING_SUCCESS || *magic != MAGIC || theirs != transaction {
        return None;
    }
    let mut attributes = attributes.get(..usize::from(u16::from_be_bytes(*len)))?;
    let mut plain = None;
    while let Some((kind, rest)) = attributes.split_first_chunk::<2>() {
        let (len, rest) = rest.split_first_chunk::<2>()?;
        let len = usize::from(u16::from_be_bytes(*len));
        let value = rest.get(..len)?;
        match u16::from_be_bytes(*kind) {
            // This address is XORed with the magic cookie and the transaction id, so that a gateway that rewrites
            // addresses in payloads does not find it.
            XOR_MAPPED_ADDRESS => return address(value, &[&MAGIC[..], transaction].concat()),
            MAPPED_ADDRESS => plain = address(value, &[0; 16]),
            _ => {}
        }
        // Attributes are padded to four bytes.
        attributes = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    plain
}

/// Reads `[0, family, port, address]`. Each byte of port and address is XORed with the mask.
fn address(value: &[u8], mask: &[u8]) -> Option<SocketAddr> {
    let ([_, family, port @ ..], ip) = value.split_first_chunk::<4>()?;
    let unmask =
        |bytes: &[u8]| -> Vec<u8> { bytes.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect() };
    let port: [u8; 2] = unmask(port).try_into().ok()?;
    let ip = match family {
        1 => IpAddr::from(<[u8; 4]>::try_from(unmask(ip)).ok().filter(|_| ip.len() == 4)?),
        2 => IpAddr::from(<[u8; 16]>::try_from(unmask(ip)).ok().filter(|_| ip.len() == 16)?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(port)))
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use rand::SeedableRng;

    use super::*;

    /// RFC 5769, section 2.2 and 2.3: sample responses, IPv4 and IPv6.
    const RESPONSE_V4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";
    const RESPONSE_V6: &str = "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c";

    fn transaction() -> [u8; 12] {
        HEXLOWER.decode(b"b7e7a701bc34d686fa87dfae").unwrap().try_into().unwrap()
    }

    #[test]
    fn the_samples_of_rfc_5769() {
        for (hex, addr) in
            [(RESPONSE_V4, "192.0.2.1:32853"), (RESPONSE_V6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853")]
        {
            let bytes = HEXLOWER.decode(hex.as_bytes()).unwrap();
            assert_eq!(parse(&bytes, &transaction()), Some(addr.parse().unwrap()));
            assert_eq!(parse(&bytes, &[0; 12]), None, "another's transaction");
            // A response that is cut at any place is not a response, and does not cause a panic.
            for len in 0..bytes.len() {
                assert_eq!(parse(&bytes[..len], &transaction()), None, "{len}");
            }
        }
    }

    #[test]
    fn old_servers_say_it_plainly() {
        let plain = [&[1, 1, 0, 12][..], &MAGIC, &transaction(), &[0, 1, 0, 8, 0, 1, 0x12, 0x34, 9, 8, 7, 6]];
        assert_eq!(parse(&plain.concat(), &transaction()), Some("9.8.7.6:4660".parse().unwrap()));
        // An unknown family; an address that is too short.
        for value in [[0, 3, 0, 0, 1, 2, 3, 4], [0, 2, 0, 0, 1, 2, 3, 4]] {
            let bad = [&[1, 1, 0, 12][..], &MAGIC, &transaction(), &[0, 1, 0, 8], &value];
            assert_eq!(parse(&bad.concat(), &transaction()), None);
        }
    }

    #[tokio::test]
    async fn a_lost_packet_and_a_liar_do_not_matter() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = server.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut packet = [0; 64];
            server.recv_from(&mut packet).await.unwrap(); // lost
            let (len, from) = server.recv_from(&mut packet).await.unwrap();
            assert_eq!(packet[..len][..8], [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
            let body = [0, 0x20, 0, 8, 0, 1, 0x21, 0x13, 9 ^ 0x21, 9 ^ 0x12, 9 ^ 0xa4, 9 ^ 0x42];
            let liar = [&[1, 1, 0, 12][..], &MAGIC, &[0; 12], &body].concat();
            server.send_to(&liar, from).await.unwrap();
            let honest = [&[1, 1, 0, 12][..], &MAGIC, &packet[8..20], &body].concat();
            server.send_to(&honest, from).await.unwrap();
        });
        let ip = external_ip(addr, &mut StdRng::seed_from_u64(1)).await.unwrap();
        assert_eq!(ip, "9.9.9.9".parse::<IpAddr>().unwrap());
        serving.await.unwrap();
    }
}
