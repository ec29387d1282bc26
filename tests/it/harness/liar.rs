//! A scripted peer: honest where the script does not say otherwise, and able to stop, lie or fall silent at every step.

use std::{io, net::SocketAddr};

use bytes::BytesMut;
use devp2pd::{
    node::{NodeKey, PublicKey},
    p2p::{DisconnectReason, LocalCapability, RemoteHello, hello},
    rlpx::{Compressor, Decompressor, handshake::take_packet, snappy::MAX_PAYLOAD},
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    Sidecar, soon,
    wire::{self, Auth, Codec, Forger},
};

/// Code of Hello.
pub(crate) const HELLO: u64 = 0x00;
/// Code of Disconnect.
pub(crate) const DISCONNECT: u64 = 0x01;
/// Code of Ping.
pub(crate) const PING: u64 = 0x02;
/// Code of Pong.
pub(crate) const PONG: u64 = 0x03;
/// Where the codes of the first shared protocol begin.
pub(crate) const FIRST: u64 = 0x10;

/// The end of a TCP connection to a sidecar that plays another node.
pub(crate) struct Liar {
    pub(crate) key: NodeKey,
    remote: PublicKey,
    stream: TcpStream,
    received: BytesMut,
    codec: Option<Codec>,
    rng: StdRng,
}

impl Liar {
    /// Connects by TCP and sends nothing yet. `seed` decides its key.
    pub(crate) async fn connect(sidecar: &Sidecar, seed: u64) -> Self {
        let stream = TcpStream::connect(sidecar.peer_addr()).await.unwrap();
        Self::over(stream, sidecar.public_key(), seed)
    }

    /// Over a connection that is there.
    pub(crate) fn over(stream: TcpStream, remote: PublicKey, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let key = NodeKey::random(&mut rng);
        Self { key, remote, stream, received: BytesMut::new(), codec: None, rng }
    }

    /// A whole honest start: keys, and Hellos with `echo/1`.
    pub(crate) async fn established(sidecar: &Sidecar, seed: u64) -> Self {
        let mut liar = Self::connect(sidecar, seed).await;
        liar.shake_hands().await;
        liar.say_hello(&[("echo", 1)]).await;
        liar.hear_hello().await;
        liar
    }

    /// The key of the liar with this seed, before it exists.
    pub(crate) fn key_of(seed: u64) -> NodeKey {
        NodeKey::random(&mut StdRng::seed_from_u64(seed))
    }

    /// Its node id, as the API writes it.
    pub(crate) fn id(&self) -> String {
        self.key.id().to_string()
    }

    /// An honest auth, not sent.
    pub(crate) fn auth(&mut self) -> Auth {
        let claim = self.key.public().to_uncompressed();
        Auth::new(&self.key, &claim, &self.remote, &mut self.rng)
    }

    /// An auth that claims any bytes for its sender's key.
    pub(crate) fn auth_claiming(&mut self, claim: &[u8; 64]) -> Auth {
        Auth::new(&self.key, claim, &self.remote, &mut self.rng)
    }

    /// Auth and ack: keys exist.
    pub(crate) async fn shake_hands(&mut self) {
        let auth = self.auth();
        self.write(&auth.packet).await;
        let ack = self.packet().await;
        self.codec = Some(auth.finish(&self.key, &ack));
    }

    /// The other role: reads auth, answers with ack.
    pub(crate) async fn answer(&mut self) {
        let auth = self.packet().await;
        let (ack, codec) = wire::answer(&self.key, &auth, &mut self.rng);
        self.write(&ack).await;
        self.codec = Some(codec);
    }

    async fn packet(&mut self) -> bytes::Bytes {
        loop {
            if let Some(packet) = take_packet(&mut self.received).unwrap() {
                return packet;
            }
            assert!(self.fill().await, "closed before the handshake's answer");
        }
    }

    /// Says Hello with these capabilities.
    pub(crate) async fn say_hello(&mut self, capabilities: &[(&str, u32)]) {
        let key = self.key.public();
        self.say_hello_as(capabilities, &key).await;
    }

    /// Says Hello in the name of any key.
    pub(crate) async fn say_hello_as(&mut self, capabilities: &[(&str, u32)], key: &PublicKey) {
        let capabilities: Vec<LocalCapability> = capabilities
            .iter()
            .map(|&(name, version)| LocalCapability { name: name.into(), version, message_count: 8 })
            .collect();
        let hello = hello::encode("liar/v1", &capabilities, key);
        self.write_frame(HELLO, &hello).await;
    }

    /// Reads the sidecar's Hello.
    pub(crate) async fn hear_hello(&mut self) -> RemoteHello {
        let (code, payload) = self.frame().await.expect("a Hello");
        assert_eq!(code, HELLO);
        RemoteHello::decode(&payload).unwrap().0
    }

    /// The frame writer.
    pub(crate) fn forger(&mut self) -> &mut Forger {
        &mut self.codec.as_mut().expect("keys").writer
    }

    /// Writes bytes. If the other side has closed, the next read reports it.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let _ = soon("a write", self.stream.write_all(bytes)).await;
    }

    /// Writes an honest frame around a payload as it is.
    pub(crate) async fn write_frame(&mut self, code: u64, payload: &[u8]) {
        let frame = self.forger().frame(code, payload);
        self.write(&frame).await;
    }

    /// Writes a message as a peer does after Hello: compressed.
    pub(crate) async fn send(&mut self, code: u64, payload: &[u8]) {
        let compressed = Compressor::default().compress(payload).unwrap();
        self.write_frame(code, compressed.as_bytes()).await;
    }

    /// The next frame as it is on the wire; `None` once the connection is closed.
    pub(crate) async fn frame(&mut self) -> Option<(u64, BytesMut)> {
        loop {
            let reader = &mut self.codec.as_mut().expect("keys").reader;
            if let Some(frame) = reader.read(&mut self.received, (1 << 24) - 1).expect("an honest frame") {
                return Some((frame.code, frame.payload));
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The next message that is no Ping, decompressed. Pings are answered.
    pub(crate) async fn receive(&mut self) -> Option<(u64, Vec<u8>)> {
        loop {
            let (code, payload) = self.frame().await?;
            let payload = Decompressor::default().decompress(&payload, MAX_PAYLOAD).unwrap();
            if code != PING {
                return Some((code, payload.to_vec()));
            }
            self.send(PONG, &[0xc0]).await;
        }
    }

    /// The reason with which the sidecar leaves: reads until Disconnect, then until the end. `None`: without a word.
    pub(crate) async fn reason(&mut self) -> Option<DisconnectReason> {
        while let Some((code, payload)) = self.frame().await {
            if code == DISCONNECT {
                assert!(!self.fill().await, "the sidecar goes on after Disconnect");
                return Some(DisconnectReason::decode(&payload, true));
            }
        }
        None
    }

    /// Waits until the sidecar closes; fails if it sends anything.
    pub(crate) async fn closed_in_silence(&mut self) {
        assert!(!self.fill().await, "{} bytes came", self.received.len());
    }

    /// Whether the sidecar has closed the connection by now. Nothing may have come before.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.stream.try_read_buf(&mut self.received) {
            Ok(0) => true,
            Ok(count) => panic!("{count} bytes came"),
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Reads whatever comes until the sidecar closes the connection.
    pub(crate) async fn drained(&mut self) {
        while self.fill().await {
            self.received.clear();
        }
    }

    /// Closes its sending side, as a process does that has sent everything.
    pub(crate) async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Goes with a reset, as a process does that is killed with bytes unread.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// Reads once. False: the connection is closed or reset.
    async fn fill(&mut self) -> bool {
        let count = soon("bytes or an end", self.stream.read_buf(&mut self.received)).await;
        count.is_ok_and(|count| count > 0)
    }
}

/// The address of a node that follows the script once it is dialed.
pub(crate) struct Trap {
    listener: TcpListener,
    seed: u64,
}

impl Trap {
    /// Listens as the liar with this seed.
    pub(crate) async fn set(seed: u64) -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), seed }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// The URL under which a sidecar dials it.
    pub(crate) fn enode(&self) -> String {
        devp2pd::node::Enode::at(Liar::key_of(self.seed).public(), self.addr()).to_string()
    }

    /// The next connection, from this sidecar.
    pub(crate) async fn caught(&self, sidecar: &Sidecar) -> Liar {
        let (stream, _) = soon("a dial", self.listener.accept()).await.unwrap();
        Liar::over(stream, sidecar.public_key(), self.seed)
    }
}
