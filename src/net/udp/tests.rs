//! Packets through real sockets on loopback: batches, sizes, joining and fragments.

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
    port.flush();
    let mut answer = [0; 16];
    assert_eq!(sender.recv(&mut answer).await.unwrap(), 6);
    port.send("[::1]:9".parse().unwrap(), b"no socket of that family");
    port.flush();
    assert_eq!((port.counters().sent, port.counters().unsent), (1, 1));
}

#[tokio::test]
async fn a_batch_leaves_in_order_and_what_cannot_be_sent_holds_up_nobody() {
    let mut port = UdpPort::bind(&["127.0.0.1".parse().unwrap()], 0).unwrap();
    let reader = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = reader.local_addr().unwrap();
    // A packet to port 0 cannot be sent. The others fill more than one batch.
    for number in 0..100_u8 {
        if number % 10 == 3 {
            port.send("127.0.0.1:0".parse().unwrap(), b"to nobody");
        }
        port.send(to, &[number; 9]);
    }
    port.flush();
    let mut packet = [0; 32];
    for number in 0..100_u8 {
        let length = reader.recv(&mut packet).await.unwrap();
        assert_eq!(packet[..length], [number; 9]);
    }
    assert_eq!((port.counters().sent, port.counters().unsent), (100, 10));
}

/// With the kernel's segmentation offload, several packets are sent as one, and arrive as one if the receiver allows
/// joining. On loopback this has the same effect as a network card that joins packets.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn packets_that_travel_joined_arrive_one_by_one() {
    for ip in ["127.0.0.1", "::1"] {
        let Ok(mut port) = UdpPort::bind(&[ip.parse().unwrap()], 0) else {
            assert_eq!(ip, "::1", "some machines have no IPv6");
            continue;
        };
        let to = port.local_addrs()[0];
        let sender = UdpSocket::bind((to.ip(), 0)).await.unwrap();
        let state = UdpSocketState::new(UdpSockRef::from(&sender)).unwrap();
        assert!(state.max_gso_segments() > 1, "the kernel cannot send joined packets");
        let contents: Vec<u8> = (0..5_u8).flat_map(|number| [number; 1280]).collect();
        let transmit = quinn_udp::Transmit {
            destination: to,
            ecn: None,
            contents: &contents,
            segment_size: Some(1280),
            src_ip: None,
        };
        sender.writable().await.unwrap();
        state.try_send(UdpSockRef::from(&sender), &transmit).unwrap();
        let mut came = Vec::new();
        let receiving = async {
            while port.counters().received < 5 {
                port.readable().await;
                port.receive(|_, packet| came.push(packet.to_vec()));
            }
        };
        // A lost packet never arrives. After a minute a missing packet is not just slow.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(60), receiving).await;
        assert_eq!(came.len(), 5, "{ip}: of five packets");
        assert_eq!(came, (0..5_u8).map(|number| vec![number; 1280]).collect::<Vec<_>>(), "{ip}");
        assert_eq!(port.counters().oversize, 0);
    }
}

/// Checks the options for packets above the MTU of a link. The case `small_mtu` of `tests/interop` has such a link, and
/// shows that they arrive.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn packets_may_leave_in_fragments() {
    use nix::sys::socket::{getsockopt, sockopt::Ipv6DontFrag};
    use rustix::net::sockopt::{
        Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu_discover, ipv6_mtu_discover,
    };
    let port = UdpPort::bind(&["127.0.0.1".parse().unwrap()], 0).unwrap();
    let socket = &port.four.as_ref().unwrap().socket;
    assert_eq!(ip_mtu_discover(socket).unwrap(), Ipv4PathMtuDiscovery::DONT);
    if let Ok(port) = UdpPort::bind(&["::1".parse().unwrap()], 0) {
        let socket = &port.six.as_ref().unwrap().socket;
        assert_eq!(ipv6_mtu_discover(socket).unwrap(), Ipv6PathMtuDiscovery::DONT);
        assert!(!getsockopt(socket, Ipv6DontFrag).unwrap());
    }
}

/// Sends a packet from `client` to `to`, an address of a port that is bound to all addresses. Returns the address from
/// which the answer comes.
#[cfg(target_os = "linux")]
async fn answered_from(port: &mut UdpPort, client: &UdpSocket, to: SocketAddr) -> SocketAddr {
    client.send_to(b"question", to).await.unwrap();
    let mut asker = None;
    while asker.is_none() {
        port.readable().await;
        port.receive(|from, _| asker = Some(from));
    }
    port.send(asker.unwrap(), b"answer");
    port.flush();
    client.recv_from(&mut [0; 16]).await.unwrap().1
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_answer_leaves_from_the_address_that_was_asked() {
    let mut port = UdpPort::bind(&["0.0.0.0".parse().unwrap()], 0).unwrap();
    let (client, other) =
        (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    // All of 127.0.0.0/8 is this machine. Without a choice of ours, the kernel writes to 127.0.0.1 from that address.
    for ip in ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.1"] {
        let to = SocketAddr::new(ip.parse().unwrap(), port.port());
        assert_eq!(answered_from(&mut port, &client, to).await, to);
    }
    // A packet to an address that never wrote to us.
    port.send(other.local_addr().unwrap(), b"question");
    port.flush();
    let from = other.recv_from(&mut [0; 16]).await.unwrap().1;
    assert_eq!(from, SocketAddr::new("127.0.0.1".parse().unwrap(), port.port()));
    assert_eq!((port.counters().sent, port.counters().unsent), (5, 0));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_address_that_the_machine_lost_does_not_silence_us() {
    let mut port = UdpPort::bind(&["0.0.0.0".parse().unwrap()], 0).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = client.local_addr().unwrap();
    // An address for documentation (RFC 5737), which no machine has.
    let reached_at = port.four.as_mut().unwrap().reached_at.as_mut().unwrap();
    reached_at.put(to, "192.0.2.1".parse().unwrap());
    port.send(to, b"answer");
    port.flush();
    assert_eq!(client.recv_from(&mut [0; 16]).await.unwrap().0, 6);
    assert_eq!((port.counters().sent, port.counters().unsent), (1, 0));
}
