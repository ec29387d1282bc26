//! Liars: peers that do not keep to the protocol. Each of their connections has one fault, at its own stage.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use devp2pd::{
    PublicKey,
    node::NodeKey,
    p2p::{DisconnectReason, LocalCapability, hello},
    rlpx::{Compressor, Initiator, Recipient, Session, handshake::take_packet},
};
use rand::{Rng as _, RngCore as _};

use super::{
    link::{Owner, Socket},
    net::Net,
};

/// The fault of a liar's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lie {
    /// It sends nothing.
    Silence,
    /// Bytes that are no handshake.
    Garbage,
    /// It ends the connection when the first bytes arrive.
    HangsUp,
    /// A handshake and no Hello.
    NoHello,
    /// A Hello with another key than the handshake's.
    WrongIdentity,
    /// A Hello that is not valid RLP.
    BadHello,
    /// A Hello without a capability that both sides have.
    Useless,
    /// A Disconnect in the place of the Hello.
    Refuses,
    /// A Hello, and a Disconnect soon after.
    Leaves,
    /// A message with a code that was not negotiated.
    WrongCode,
    /// A frame that was changed on the way.
    BrokenFrame,
    /// A payload that does not decompress.
    BrokenPayload,
    /// Messages, and no answer to any Ping.
    NoPongs,
    /// Messages that follow the Hello in the same write, before the session is open.
    Eager,
}

const LIES: [Lie; 14] = [
    Lie::Silence,
    Lie::Garbage,
    Lie::HangsUp,
    Lie::NoHello,
    Lie::WrongIdentity,
    Lie::BadHello,
    Lie::Useless,
    Lie::Refuses,
    Lie::Leaves,
    Lie::WrongCode,
    Lie::BrokenFrame,
    Lie::BrokenPayload,
    Lie::NoPongs,
    Lie::Eager,
];

/// The stage of a connection.
enum Stage {
    Dialed(Box<Initiator>),
    Accepted,
    Keys(Box<Session>),
    Spoken,
}

/// One connection of a liar.
pub(super) struct Liar {
    socket: Socket,
    key: NodeKey,
    lie: Lie,
    stage: Stage,
    received: BytesMut,
    /// The latest time at which it closes the connection.
    until: Instant,
    pub(super) gone: bool,
}

impl Liar {
    /// A liar that dials the node with the public key `remote`, or accepts if there is none.
    pub(super) fn new(net: &mut Net, key: NodeKey, socket: Socket, remote: Option<PublicKey>) -> Self {
        net.links.own(socket, Owner::Liar);
        let lie = LIES[net.rng.random_range(0..LIES.len())];
        net.note(("liar", lie));
        let until = net.now.mono + Duration::from_millis(net.rng.random_range(100..60_000));
        let (mut out, mut stage) = (BytesMut::new(), Stage::Accepted);
        if lie == Lie::Garbage {
            let mut garbage = [0; 700];
            net.rng.fill_bytes(&mut garbage);
            out.extend_from_slice(&garbage[..net.rng.random_range(1..700)]);
            stage = Stage::Spoken;
        } else if lie == Lie::Silence {
            stage = Stage::Spoken;
        } else if let Some(remote) = remote {
            stage = Stage::Dialed(Box::new(Initiator::start(&key, remote, &mut net.rng, &mut out)));
        }
        let liar = Self { socket, key, lie, stage, received: BytesMut::new(), until, gone: false };
        liar.write(net, &out);
        liar
    }

    pub(super) fn is_ready(&self, net: &Net) -> bool {
        self.until <= net.now.mono || net.links.is_readable(net.now.mono, self.socket)
    }

    pub(super) fn next(&self, net: &Net) -> Instant {
        net.links.read_time(self.socket).map_or(self.until, |at| at.min(self.until))
    }

    fn write(&self, net: &mut Net, bytes: &[u8]) {
        // Bytes that do not fit the buffer are not sent.
        let _ = net.links.write(net.now.mono, self.socket, bytes);
    }

    /// Closes the connection.
    pub(super) fn leave(&mut self, net: &mut Net) {
        if !std::mem::replace(&mut self.gone, true) {
            let reset = net.rng.random_bool(0.3);
            net.links.close(net.now.mono, self.socket, reset);
        }
    }

    pub(super) fn step(&mut self, net: &mut Net) {
        if self.until <= net.now.mono {
            return self.leave(net);
        }
        match net.links.read(net.now.mono, self.socket, 64 << 10, &mut self.received) {
            Ok(Some(0)) | Err(_) => return self.leave(net),
            Ok(_) => {}
        }
        if self.lie == Lie::HangsUp {
            return self.leave(net);
        }
        let mut out = BytesMut::new();
        self.stage = match std::mem::replace(&mut self.stage, Stage::Spoken) {
            Stage::Spoken => {
                self.received.clear();
                return;
            }
            Stage::Keys(session) => Stage::Keys(session),
            waits => {
                let Ok(Some(packet)) = take_packet(&mut self.received) else {
                    self.stage = waits;
                    return;
                };
                let session = match waits {
                    Stage::Dialed(initiator) => initiator.finish(&self.key, &packet),
                    _ => Recipient.answer(&self.key, &packet, &mut net.rng, &mut out),
                };
                match session {
                    Ok(session) => Stage::Keys(Box::new(session)),
                    Err(_) => return self.leave(net),
                }
            }
        };
        if let Stage::Keys(session) = &mut self.stage {
            speak(self.lie, &self.key, session, &mut out);
            self.stage = Stage::Spoken;
        }
        self.write(net, &out);
    }
}

/// Writes all that the liar sends after the handshake.
fn speak(lie: Lie, key: &NodeKey, session: &mut Session, out: &mut BytesMut) {
    let capability = |name: &str| LocalCapability { name: name.into(), version: 1, message_count: 4 };
    let names: &[&str] = if lie == Lie::Useless { &["other"] } else { &["alpha", "beta"] };
    let capabilities: Vec<_> = names.iter().map(|name| capability(name)).collect();
    let identity =
        if lie == Lie::WrongIdentity { NodeKey::from_bytes(&[7; 32]).unwrap() } else { key.clone() };
    let hello = hello::encode("liar", &capabilities, &identity.public());
    let compressed = |payload: &[u8]| Compressor::default().compress(payload).unwrap().as_bytes().to_vec();
    let mut say = |code, payload: &[u8]| session.writer.write(code, payload, out).unwrap();
    match lie {
        Lie::NoHello | Lie::Silence | Lie::Garbage | Lie::HangsUp => return,
        Lie::BadHello => return say(0, b"no list"),
        Lie::Refuses => return say(1, &DisconnectReason::TooManyPeers.encode()),
        _ => say(0, &hello),
    }
    match lie {
        Lie::Leaves => say(1, &compressed(&DisconnectReason::Requested.encode())),
        Lie::WrongCode => say(0x99, &compressed(b"x")),
        Lie::BrokenPayload => say(0x10, b"\xff\xff\xff\xff\xff\xff"),
        Lie::NoPongs | Lie::Eager => (0..20).for_each(|_| say(0x10, &compressed(b"not the first message"))),
        Lie::BrokenFrame => {
            say(0x10, &compressed(b"x"));
            if let Some(last) = out.last_mut() {
                *last ^= 1;
            }
        }
        _ => {}
    }
}
