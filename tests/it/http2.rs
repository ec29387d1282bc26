//! The gRPC port under attacks that HTTP/2 makes cheap, written frame by frame. Each ends with its connection closed,
//! or with the attacker not being read any more; and another client is served meanwhile and after.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use devp2pd::rpc::proto::{
    GetNodeInfoRequest, SendMessageRequest, message_service_client::MessageServiceClient,
    node_service_client::NodeServiceClient,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::harness::{MAX_RESPONSE, Sidecar, connect, refused, soon};

// Frame types and flags of RFC 9113, section 6.
const DATA: u8 = 0;
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
    call_to("/devp2p.v1.NodeService/GetNodeInfo")
}

fn call_to(path: &str) -> Vec<u8> {
    let literal =
        |first: &[u8], value: &str| [first, &[u8::try_from(value.len()).unwrap()], value.as_bytes()].concat();
    [
        vec![0x83, 0x86],
        literal(&[0x04], path),
        literal(&[0x01], "localhost"),
        literal(&[0x0f, 0x10], "application/grpc"),
        literal(&[0x00, 2, b't', b'e'], "trailers"),
    ]
    .concat()
}

/// The result for an attacker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its connection was closed.
    Closed,
    /// The server's bytes are not read.
    Unread,
    /// All that it wanted to send was read.
    Read,
}

/// Sends frames without reading an answer: `count` times the result of `next`.
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
    // The last frames may still be on their way to being refused.
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
    // Each of these asks for an answer, and the attacker reads none: the server stops reading it, or closes it.
    let (settings, pings, ()) =
        tokio::join!(flood(addr, 10_000, settings), flood(addr, 10_000, pings), async {
            for _ in 0..50 {
                serves(&sidecar).await;
            }
        });
    assert!(settings != End::Read && pings != End::Read, "SETTINGS: {settings:?}, PING: {pings:?}");
    serves(&sidecar).await;
}

/// Headers beyond 16 KiB are refused call by call, and silent connections hold no slot for long.
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

/// A process of its own, so that its memory can be looked at. It ends with its owner.
struct Process {
    child: Child,
    grpc_addr: SocketAddr,
    _data_dir: tempfile::TempDir,
}

impl Process {
    fn start() -> Self {
        let data_dir = tempfile::tempdir().unwrap();
        let flags = ["--network=none", "--nat=none", "--nodiscover", "--nolisten", "--grpc-addr=127.0.0.1:0"];
        let mut child = Command::new(env!("CARGO_BIN_EXE_devp2pd"))
            .args(flags)
            .args(["--http-addr=none", "--data-dir"])
            .arg(data_dir.path())
            .env_clear()
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addr = lines.map(Result::unwrap).find_map(|line| {
            let (addr, _) = line.trim().strip_prefix("gRPC")?.split_once(',')?;
            Some(addr.trim().parse().unwrap())
        });
        Self { child, grpc_addr: addr.expect("it prints where it serves"), _data_dir: data_dir }
    }

    /// Its resident memory, in bytes.
    fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// 1,024 calls that each announce 16 MiB and send all that HTTP/2 lets them, but the end.
#[tokio::test]
async fn a_thousand_halves_of_messages_cost_bounded_memory_and_others_are_served() {
    let process = Process::start();
    let mut node = NodeServiceClient::new(connect(process.grpc_addr).await);
    node.get_node_info(GetNodeInfoRequest {}).await.unwrap();
    let before = process.memory();
    let mut stream = TcpStream::connect(process.grpc_addr).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    stream.write_all(&[&preface[..], &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let (mut from, mut to) = stream.into_split();
    let announced = [&[0][..], &(16_u32 << 20).to_be_bytes()].concat();
    let open: Vec<u8> = (0..1_024_u32)
        .flat_map(|number| {
            let id = 2 * number + 1;
            let headers = frame(HEADERS, END_HEADERS, id, &call_to("/devp2p.v1.MessageService/SendMessage"));
            [headers, frame(DATA, 0, id, &announced)].concat()
        })
        .collect();
    to.write_all(&open).await.unwrap();
    // It sends on wherever the server gives it room, for as long as the test runs.
    let attack = tokio::spawn(async move {
        let mut bytes = vec![0; 1 << 16];
        let mut pending: Vec<u8> = Vec::new();
        let mut sent = 0_usize;
        loop {
            let count = match from.read(&mut bytes).await {
                Ok(0) | Err(_) => return sent,
                Ok(count) => count,
            };
            pending.extend(&bytes[..count]);
            while pending.len() >= 9 {
                let length = u32::from_be_bytes([0, pending[0], pending[1], pending[2]]) as usize;
                if pending.len() < 9 + length {
                    break;
                }
                let kind = pending[3];
                let id = u32::from_be_bytes(pending[5..9].try_into().unwrap());
                let room = (kind == WINDOW_UPDATE && id != 0)
                    .then(|| u32::from_be_bytes(pending[9..13].try_into().unwrap()) as usize);
                pending.drain(..9 + length);
                for _ in 0..room.unwrap_or(0) / 16_384 {
                    if to.write_all(&frame(DATA, 0, id, &[1; 16_384])).await.is_err() {
                        return sent;
                    }
                    sent += 16_384;
                }
            }
        }
    });
    // Through the first evictions: another caller asks small things and sends large ones.
    let mut messages =
        MessageServiceClient::new(connect(process.grpc_addr).await).max_encoding_message_size(MAX_RESPONSE);
    let mut peak = 0;
    for _ in 0..12 {
        soon("a small call", node.get_node_info(GetNodeInfoRequest {})).await.unwrap();
        let large = SendMessageRequest {
            node: "00".repeat(32),
            protocol: "echo".to_owned(),
            payload: vec![7; 16 << 20].into(),
            ..Default::default()
        };
        let status = soon("a large call", messages.send_message(large)).await.unwrap_err();
        assert_eq!(refused(&status).kind().1, "PROTOCOL_NOT_REGISTERED");
        peak = peak.max(process.memory());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // The most that one connection may hold of messages and in HTTP/2's window, our own large message on its way, and
    // slack.
    let bound = (128 + 32 + 3 * 17 + 32) << 20;
    assert!(peak - before < bound, "{} MiB more than the {} MiB before", (peak - before) >> 20, before >> 20);
    attack.abort();
}
