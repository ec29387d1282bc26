//! The gRPC port under attacks that HTTP/2 makes cheap, written frame by frame. Each ends with its connection closed, or
//! with the attacker not being read any more; and another client is served meanwhile and after.

use std::{net::SocketAddr, time::Duration};

use devp2pd::rpc::proto::GetNodeInfoRequest;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};

use crate::harness::{Sidecar, soon};

// Frame types and flags of RFC 9113, section 6.
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let header = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [header, payload.to_vec()].concat()
}

/// The headers of a call, as HPACK writes them without a table of its own (RFC 7541).
fn call() -> Vec<u8> {
    let literal =
        |first: &[u8], value: &str| [first, &[u8::try_from(value.len()).unwrap()], value.as_bytes()].concat();
    [
        vec![0x83, 0x86],
        literal(&[0x04], "/devp2p.v1.NodeService/GetNodeInfo"),
        literal(&[0x01], "localhost"),
        literal(&[0x0f, 0x10], "application/grpc"),
        literal(&[0x00, 2, b't', b'e'], "trailers"),
    ]
    .concat()
}

/// What became of an attacker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its connection was closed.
    Closed,
    /// Nobody reads what it sends.
    Unread,
    /// All that it wanted to send was read.
    Read,
}

/// Sends frames without reading an answer, `count` times what `next` makes.
async fn flood(addr: SocketAddr, count: u32, mut next: impl FnMut(u32) -> Vec<u8>) -> End {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    stream.write_all(&[&preface[..], &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    for number in 0..count {
        match timeout(Duration::from_secs(10), stream.write_all(&next(number))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return End::Closed,
            Err(_) => return End::Unread,
        }
    }
    // What was sent last may still be on its way to being refused.
    for _ in 0..50 {
        if stream.write_all(&frame(PING, 0, 0, &[0; 8])).await.is_err() {
            return End::Closed;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    End::Read
}

/// Another client's call.
async fn serves(sidecar: &Sidecar) {
    soon("another client's call", sidecar.node().get_node_info(GetNodeInfoRequest {})).await.unwrap();
}

#[tokio::test]
async fn floods_of_frames_end_with_their_connection_and_others_are_served() {
    let sidecar = Sidecar::start().await;
    let addr = sidecar.started().grpc_addr;
    let stream = |number: u32| 2 * number + 1;
    let rapid_reset = |number: u32| {
        let cancel = frame(RST_STREAM, 0, stream(number), &8_u32.to_be_bytes());
        [frame(HEADERS, END_HEADERS, stream(number), &call()), cancel].concat()
    };
    // CVE-2025-8671: the attacker makes the server reset the streams.
    let made_you_reset = |number: u32| {
        let nothing = frame(WINDOW_UPDATE, 0, stream(number), &0_u32.to_be_bytes());
        [frame(HEADERS, END_HEADERS, stream(number), &call()), nothing].concat()
    };
    let continuation = |number: u32| match number {
        0 => frame(HEADERS, 0, 1, &call()),
        _ => {
            frame(CONTINUATION, 0, 1, &[&[0x00, 1, b'x', 0x7f][..], &[0xff, 0x7f], &[b'y'; 16_000]].concat())
        }
    };
    let empty_continuation = |number: u32| match number {
        0 => frame(HEADERS, 0, 1, &call()),
        _ => frame(CONTINUATION, 0, 1, &[]),
    };
    let settings = |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(1_000);
    let pings = |_| frame(PING, 0, 0, &[7; 8]).repeat(1_000);
    let ended = [
        ("rapid reset", flood(addr, 20_000, rapid_reset).await),
        ("made you reset", flood(addr, 20_000, made_you_reset).await),
        ("CONTINUATION", flood(addr, 10_000, continuation).await),
        ("empty CONTINUATION", flood(addr, 1_000_000, empty_continuation).await),
    ];
    for (attack, end) in ended {
        assert_eq!(end, End::Closed, "{attack}");
        serves(&sidecar).await;
    }
    // Each of these asks for an answer, and the attacker reads none: the server stops reading it, or lets it go.
    let (settings, pings, ()) =
        tokio::join!(flood(addr, 10_000, settings), flood(addr, 10_000, pings), async {
            for _ in 0..50 {
                serves(&sidecar).await;
            }
        });
    assert!(settings != End::Read && pings != End::Read, "SETTINGS: {settings:?}, PING: {pings:?}");
    serves(&sidecar).await;
}

/// Headers beyond 16 KiB are refused call by call, and silent connections take nobody's place for long.
#[tokio::test]
async fn large_headers_are_refused_and_silence_locks_nobody_out() {
    let sidecar = Sidecar::start().await;
    let addr = sidecar.started().grpc_addr;
    for (size, passes) in [(8 << 10, true), (20 << 10, false)] {
        let mut request = tonic::Request::new(GetNodeInfoRequest {});
        request.metadata_mut().insert("x", "y".repeat(size).parse().unwrap());
        let answer = soon("an answer", sidecar.node().get_node_info(request)).await;
        assert_eq!(answer.is_ok(), passes, "{size} bytes: {answer:?}");
    }
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(addr).await.unwrap());
    }
    serves(&sidecar).await;
    drop(silent);
    serves(&sidecar).await;
}
