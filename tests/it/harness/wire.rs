//! RLPx for a liar: a handshake with every field at hand, and frames with wrong contents.
//!
//! Packets are sealed and keys derived with the crate's own functions, which the official vectors test. Built here by
//! hand are only the parts that honest code refuses to build.

use aes::Aes256;
use bytes::{BufMut, BytesMut};
use ctr::{
    Ctr128BE,
    cipher::{KeyIvInit, StreamCipher},
};
use devp2pd::{
    node::{NodeKey, PublicKey},
    rlp::Reader,
    rlpx::{
        ecies,
        frame::FrameReader,
        mac::Mac,
        secrets::{Contribution, Role, Secrets},
    },
};
use rand::{RngCore, rngs::StdRng};

/// An auth that was sent, and the secrets for reading the answer.
pub(crate) struct Auth {
    pub(crate) packet: BytesMut,
    ephemeral: NodeKey,
    nonce: [u8; 32],
}

impl Auth {
    /// An auth from `key` to `remote`. `claim`: the public key that stands in it.
    pub(crate) fn new(key: &NodeKey, claim: &[u8; 64], remote: &PublicKey, rng: &mut StdRng) -> Self {
        let (ephemeral, nonce) = (NodeKey::random(rng), nonce(rng));
        let mut digest = key.agree(remote).x();
        digest.iter_mut().zip(nonce).for_each(|(digest, nonce)| *digest ^= nonce);
        let signature = ephemeral.sign_recoverable(&digest);
        let mut body = ::rlp::RlpStream::new_list(4);
        body.append(&signature.as_slice()).append(&claim.as_slice()).append(&nonce.as_slice()).append(&4_u8);
        Self { packet: seal(remote, &body.out(), rng), ephemeral, nonce }
    }

    /// Reads the ack and derives the keys.
    pub(crate) fn finish(&self, key: &NodeKey, ack: &[u8]) -> Codec {
        let (size, message) = ack.split_first_chunk::<2>().unwrap();
        let body = ecies::decrypt(key, message, size).expect("an ack for us");
        let (mut list, _) = Reader::list_prefix(&body).unwrap();
        let theirs = PublicKey::from_uncompressed(&list.array().unwrap()).unwrap();
        let nonce: [u8; 32] = list.array().unwrap();
        let secrets = Secrets::derive(
            Role::Initiator,
            &self.ephemeral.agree(&theirs),
            Contribution { nonce: &self.nonce, packet: &self.packet },
            Contribution { nonce: &nonce, packet: ack },
        );
        Codec::new(secrets)
    }
}

/// Answers an auth as the node with `key` would, and derives the keys.
pub(crate) fn answer(key: &NodeKey, auth: &[u8], rng: &mut StdRng) -> (BytesMut, Codec) {
    let (size, message) = auth.split_first_chunk::<2>().unwrap();
    let body = ecies::decrypt(key, message, size).expect("an auth for us");
    let (mut list, _) = Reader::list_prefix(&body).unwrap();
    let signature: [u8; 65] = list.array().unwrap();
    let initiator = PublicKey::from_uncompressed(&list.array().unwrap()).unwrap();
    let their_nonce: [u8; 32] = list.array().unwrap();
    let mut digest = key.agree(&initiator).x();
    digest.iter_mut().zip(their_nonce).for_each(|(digest, nonce)| *digest ^= nonce);
    let theirs = PublicKey::recover(&digest, &signature).unwrap();

    let (ephemeral, nonce) = (NodeKey::random(rng), nonce(rng));
    let mut body = ::rlp::RlpStream::new_list(3);
    body.append(&ephemeral.public().to_uncompressed().as_slice()).append(&nonce.as_slice()).append(&4_u8);
    let ack = seal(&initiator, &body.out(), rng);
    let secrets = Secrets::derive(
        Role::Recipient,
        &ephemeral.agree(&theirs),
        Contribution { nonce: &their_nonce, packet: auth },
        Contribution { nonce: &nonce, packet: &ack },
    );
    (ack, Codec::new(secrets))
}

fn nonce(rng: &mut StdRng) -> [u8; 32] {
    let mut nonce = [0; 32];
    rng.fill_bytes(&mut nonce);
    nonce
}

/// A handshake packet with this content.
pub(crate) fn seal(to: &PublicKey, body: &[u8], rng: &mut StdRng) -> BytesMut {
    let body = [body, &[0; 150]].concat();
    let size = u16::try_from(body.len() + ecies::OVERHEAD).unwrap().to_be_bytes();
    let mut packet = BytesMut::from(&size[..]);
    ecies::encrypt(to, &body, &size, rng, &mut packet);
    packet
}

/// Both directions of a connection that has keys.
pub(crate) struct Codec {
    pub(crate) writer: Forger,
    pub(crate) reader: FrameReader,
}

impl Codec {
    fn new(secrets: Secrets) -> Self {
        let Secrets { aes, mac, egress, ingress } = secrets;
        let stream = Ctr128BE::<Aes256>::new((&*aes).into(), &[0; 16].into());
        Self {
            writer: Forger { stream, mac: Mac::new(&mac, egress) },
            reader: FrameReader::new(&aes, Mac::new(&mac, ingress)),
        }
    }
}

/// Writes frames of which every part can be a lie. The authentication is right unless the caller breaks it.
pub(crate) struct Forger {
    stream: Ctr128BE<Aes256>,
    mac: Mac,
}

impl Forger {
    /// A header that announces `size` bytes, with its tag.
    pub(crate) fn header(&mut self, size: usize) -> BytesMut {
        let [_, size @ ..] = u32::try_from(size).unwrap().to_be_bytes();
        let mut header = [0; 16];
        header[..3].copy_from_slice(&size);
        header[3..6].copy_from_slice(&[0xc2, 0x80, 0x80]);
        self.stream.apply_keystream(&mut header);
        let mut out = BytesMut::from(&header[..]);
        out.put_slice(&self.mac.header(&header));
        out
    }

    /// A piece of a body, encrypted; no tag yet.
    pub(crate) fn piece(&mut self, bytes: &[u8]) -> BytesMut {
        let mut out = BytesMut::from(bytes);
        self.stream.apply_keystream(&mut out);
        self.mac.absorb(&out);
        out
    }

    /// The tag of the body whose pieces were written.
    pub(crate) fn tag(&mut self) -> [u8; 16] {
        self.mac.body()
    }

    /// A whole, honest frame.
    pub(crate) fn frame(&mut self, code: u64, payload: &[u8]) -> BytesMut {
        let mut body = ::rlp::encode(&code).to_vec();
        body.extend_from_slice(payload);
        let mut out = self.header(body.len());
        body.resize(body.len().next_multiple_of(16), 0);
        let body = self.piece(&body);
        out.put_slice(&body);
        out.put_slice(&self.tag());
        out
    }
}
