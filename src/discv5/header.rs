//! The packet header of v5.1: masking, flags, and the contents of the header for each of them.
//!
//! ```text
//! packet = masking-iv (16) ‖ masked( static header (23) ‖ authdata ) ‖ message
//! static = "discv5" ‖ version (2) ‖ flag (1) ‖ nonce (12) ‖ authdata size (2)
//! ```
//!
//! The mask is AES-128-CTR under the first 16 bytes of the *receiver's* id. It is no secret, but without the id the
//! packet looks like noise. Our own key schedule never changes, so [`Unmasker`] keeps it, and the question "is this
//! discv5?" ([`Unmasker::looks_like_discv5`]) costs one AES block. That is cheap enough for the demultiplexer to ask it
//! first, before discv4's hash.
//!
//! Left out: the message behind the header ([`super::crypto`], [`super::message`]) and whether a packet is wanted.
//! Source: devp2p, discv5/discv5-wire.md, "Packet Encoding".

use aes::{
    Aes128, Block,
    cipher::{BlockCipherEncrypt, InnerIvInit, KeyInit, StreamCipher, StreamCipherCoreWrapper},
};
use bytes::{BufMut, BytesMut};
use ctr::{CtrCore, flavors::Ctr128BE};

use crate::node::{NodeId, record::MAX_RECORD_BYTES};

/// The most bytes a packet may have (the specification's limit; the least IPv6 MTU).
pub const MAX_PACKET: usize = 1280;
/// The fewest bytes a packet can have: a WHOAREYOU.
pub const MIN_PACKET: usize = CHALLENGE_DATA;
/// A WHOAREYOU before masking: masking IV, static header and 24 bytes of authdata. Both sides feed it to the key
/// derivation and the id signature.
pub const CHALLENGE_DATA: usize = IV + STATIC + WHOAREYOU_AUTH;
/// Bytes of an ordinary message packet around its plaintext: IV, static header, source id, GCM tag.
pub const MESSAGE_OVERHEAD: usize = IV + STATIC + MESSAGE_AUTH + TAG;
/// Bytes of a handshake packet around its plaintext, without the record.
pub const HANDSHAKE_OVERHEAD: usize = IV + STATIC + HANDSHAKE_AUTH + TAG;
/// The most bytes a plaintext may have, in an ordinary message packet.
pub const MAX_MESSAGE: usize = MAX_PACKET - MESSAGE_OVERHEAD;

const IV: usize = 16;
const STATIC: usize = 23;
const MESSAGE_AUTH: usize = 32;
const WHOAREYOU_AUTH: usize = 24;
/// Source id, two sizes, signature, ephemeral key.
const HANDSHAKE_AUTH: usize = 34 + 64 + 33;
const MAX_HEADER: usize = IV + STATIC + HANDSHAKE_AUTH + MAX_RECORD_BYTES;
const TAG: usize = 16;
/// The least size after the static header of all packets but WHOAREYOU. With the 39 bytes before it a request has at
/// least 87 bytes, so its WHOAREYOU of 63 bytes never amplifies.
const MIN_AFTER_STATIC: usize = 48;

/// Protocol id and version: the first eight bytes of every header.
const MAGIC: [u8; 8] = *b"discv5\x00\x01";
/// Sizes of signature and ephemeral key in identity scheme "v4".
const HANDSHAKE_SIZES: [u8; 2] = [64, 33];
const FLAG_MESSAGE: u8 = 0;
const FLAG_WHOAREYOU: u8 = 1;
const FLAG_HANDSHAKE: u8 = 2;

/// A message nonce: names a packet, and is the GCM nonce of its message.
pub type Nonce = [u8; 12];
/// A WHOAREYOU before masking.
pub type ChallengeData = [u8; CHALLENGE_DATA];

/// The reason why bytes are not a discv5 packet for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Outside 63 to 1280 bytes.
    #[error("a discv5 packet has {MIN_PACKET} to {MAX_PACKET} bytes")]
    Size,
    /// The unmasked header does not start with "discv5" and version 1: noise, discv4, or meant for another id.
    #[error("the unmasked header does not start with \"discv5\", version 1")]
    Protocol,
    /// A flag other than 0, 1 and 2.
    #[error("unknown packet flag {0}; there are 0 (message), 1 (WHOAREYOU) and 2 (handshake)")]
    Flag(u8),
    /// The authdata does not have the size that its flag demands, or ends beyond the packet.
    #[error("the authdata has the wrong size for the packet's flag")]
    AuthSize,
    /// A handshake whose signature is not 64 or whose key is not 33 bytes: not identity scheme "v4".
    #[error("the handshake's signature or key has the wrong size; scheme \"v4\" has 64 and 33 bytes")]
    Scheme,
    /// Too short to carry a message, or a WHOAREYOU that carries one.
    #[error("the message part is too short, or stands where there must be none")]
    Message,
}

/// The contents of the header beside the nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth<'a> {
    /// Flag 0: a message under session keys, or random bytes that ask for a challenge.
    Message {
        /// The claimed sender.
        src: NodeId,
    },
    /// Flag 1: the receiver of our packet cannot read it and challenges us.
    WhoAreYou {
        /// The sequence number of our record that the challenger has; 0 for none.
        enr_seq: u64,
        /// The whole packet before masking, for key derivation and signature.
        data: &'a ChallengeData,
    },
    /// Flag 2: the answer to our challenge, with a message.
    Handshake {
        /// The claimed sender.
        src: NodeId,
        /// The signature over challenge data, ephemeral key and our id.
        signature: &'a [u8; 64],
        /// The sender's ephemeral key, compressed and not yet checked.
        ephemeral: &'a [u8; 33],
        /// The sender's record; empty if it was left out.
        record: &'a [u8],
    },
}

/// The arguments of [`write()`].
#[derive(Clone, Copy, Debug)]
pub enum WriteAuth<'a> {
    /// Flag 0.
    Message {
        /// Our id.
        src: NodeId,
    },
    /// Flag 1.
    WhoAreYou {
        /// The bytes that the other side's signature must cover: random, never used twice.
        id_nonce: &'a [u8; 16],
        /// The sequence number of the other side's record that we have; 0 for none.
        enr_seq: u64,
    },
    /// Flag 2.
    Handshake {
        /// Our id.
        src: NodeId,
        /// The signature over challenge data, ephemeral key and the receiver's id.
        signature: &'a [u8; 64],
        /// Our ephemeral key, compressed.
        ephemeral: &'a [u8; 33],
        /// Our record, if the other side has none or an older one; else empty.
        record: &'a [u8],
    },
}

/// A packet with its header unmasked and its message still sealed.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The message nonce; in a WHOAREYOU the nonce of the packet that it answers.
    pub nonce: Nonce,
    /// The kind of this packet, and its sender.
    pub auth: Auth<'a>,
    /// Masking IV and plain header: the additional data of the message's seal.
    pub ad: &'a [u8],
    /// The sealed message; empty in a WHOAREYOU.
    pub message: &'a [u8],
}

/// The buffer of one unmasked header. Reused from packet to packet, so that none of them allocates.
#[derive(Clone)]
pub struct HeaderBuf([u8; MAX_HEADER]);

impl Default for HeaderBuf {
    fn default() -> Self {
        Self([0; MAX_HEADER])
    }
}

/// Takes the mask off packets that are meant for one node id, whose AES key schedule it keeps.
#[derive(Clone)]
pub struct Unmasker {
    cipher: Aes128,
}

impl std::fmt::Debug for Unmasker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unmasker")
    }
}

impl Unmasker {
    /// An unmasker for packets to `local`.
    #[must_use]
    pub fn new(local: &NodeId) -> Self {
        let [key @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = local.0;
        Self { cipher: Aes128::new(&key.into()) }
    }

    /// Returns whether `bytes` have a valid size and unmask to "discv5", version 1. Noise passes once in 2^64 times.
    #[must_use]
    pub fn looks_like_discv5(&self, bytes: &[u8]) -> bool {
        if !(MIN_PACKET..=MAX_PACKET).contains(&bytes.len()) {
            return false;
        }
        let Some((iv, rest)) = bytes.split_first_chunk::<IV>() else { return false };
        let mut mask = Block::from(*iv);
        self.cipher.encrypt_block(&mut mask);
        let masked = rest.iter().zip(&mask).map(|(byte, mask)| byte ^ mask);
        masked.zip(MAGIC).all(|(have, want)| have == want)
    }

    /// Unmasks the header of `bytes` into `buf` and reads it.
    pub fn open<'a>(&self, bytes: &'a [u8], buf: &'a mut HeaderBuf) -> Result<Packet<'a>, HeaderError> {
        if !(MIN_PACKET..=MAX_PACKET).contains(&bytes.len()) {
            return Err(HeaderError::Size);
        }
        if !self.looks_like_discv5(bytes) {
            return Err(HeaderError::Protocol);
        }
        let (iv, rest) = bytes.split_first_chunk::<IV>().ok_or(HeaderError::Size)?;
        let mut mask = StreamCipherCoreWrapper::from_core(CtrCore::<_, Ctr128BE>::inner_iv_init(
            &self.cipher,
            iv.into(),
        ));

        let fixed = rest.get(..STATIC).ok_or(HeaderError::Size)?;
        let room = buf.0.get_mut(..IV + STATIC).ok_or(HeaderError::Size)?;
        let (iv_room, fixed_room) = room.split_at_mut_checked(IV).ok_or(HeaderError::Size)?;
        iv_room.copy_from_slice(iv);
        fixed_room.copy_from_slice(fixed);
        mask.apply_keystream(fixed_room);
        let fixed = StaticHeader::read(fixed_room)?;
        let end = (IV + STATIC).checked_add(fixed.auth_size).ok_or(HeaderError::AuthSize)?;
        fixed.check(bytes.len(), end)?;

        let masked = bytes.get(IV + STATIC..end).ok_or(HeaderError::AuthSize)?;
        let room = buf.0.get_mut(IV + STATIC..end).ok_or(HeaderError::AuthSize)?;
        room.copy_from_slice(masked);
        mask.apply_keystream(room);

        let ad = buf.0.get(..end).ok_or(HeaderError::AuthSize)?;
        let message = bytes.get(end..).ok_or(HeaderError::Message)?;
        Ok(Packet { nonce: fixed.nonce, auth: fixed.read_auth(ad)?, ad, message })
    }
}

struct StaticHeader {
    flag: u8,
    nonce: Nonce,
    auth_size: usize,
}

impl StaticHeader {
    fn read(bytes: &[u8]) -> Result<Self, HeaderError> {
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(HeaderError::Size)?;
        if *magic != MAGIC {
            return Err(HeaderError::Protocol);
        }
        let (&[flag], rest) = rest.split_first_chunk().ok_or(HeaderError::Size)?;
        let (&nonce, rest) = rest.split_first_chunk().ok_or(HeaderError::Size)?;
        let size: [u8; 2] = rest.try_into().map_err(|_| HeaderError::Size)?;
        Ok(Self { flag, nonce, auth_size: usize::from(u16::from_be_bytes(size)) })
    }

    /// Checks sizes: the authdata against the flag, the rest against the packet.
    fn check(&self, packet: usize, end: usize) -> Result<(), HeaderError> {
        let fits = match self.flag {
            FLAG_MESSAGE => self.auth_size == MESSAGE_AUTH,
            FLAG_WHOAREYOU => self.auth_size == WHOAREYOU_AUTH,
            FLAG_HANDSHAKE => (HANDSHAKE_AUTH..=HANDSHAKE_AUTH + MAX_RECORD_BYTES).contains(&self.auth_size),
            flag => return Err(HeaderError::Flag(flag)),
        };
        if !fits || end > packet {
            return Err(HeaderError::AuthSize);
        }
        let message_fits = match self.flag {
            FLAG_WHOAREYOU => end == packet,
            _ => packet >= IV + STATIC + MIN_AFTER_STATIC && packet - end >= TAG,
        };
        if message_fits { Ok(()) } else { Err(HeaderError::Message) }
    }

    fn read_auth<'a>(&self, ad: &'a [u8]) -> Result<Auth<'a>, HeaderError> {
        let auth = ad.get(IV + STATIC..).ok_or(HeaderError::AuthSize)?;
        if self.flag == FLAG_WHOAREYOU {
            let data: &ChallengeData = ad.try_into().map_err(|_| HeaderError::AuthSize)?;
            let (_, seq) = auth.split_last_chunk::<8>().ok_or(HeaderError::AuthSize)?;
            return Ok(Auth::WhoAreYou { enr_seq: u64::from_be_bytes(*seq), data });
        }
        let (&src, rest) = auth.split_first_chunk::<32>().ok_or(HeaderError::AuthSize)?;
        let src = NodeId(src);
        if self.flag == FLAG_MESSAGE {
            return Ok(Auth::Message { src });
        }
        let (sizes, rest) = rest.split_first_chunk::<2>().ok_or(HeaderError::AuthSize)?;
        if *sizes != HANDSHAKE_SIZES {
            return Err(HeaderError::Scheme);
        }
        let (signature, rest) = rest.split_first_chunk::<64>().ok_or(HeaderError::AuthSize)?;
        let (ephemeral, record) = rest.split_first_chunk::<33>().ok_or(HeaderError::AuthSize)?;
        Ok(Auth::Handshake { src, signature, ephemeral, record })
    }
}

/// Appends masking IV and plain header to `out`. The caller appends and seals the message, with these
/// bytes as its additional data, and calls [`mask`] last.
pub fn write(out: &mut BytesMut, iv: &[u8; IV], nonce: &Nonce, auth: &WriteAuth<'_>) {
    let (flag, size) = match auth {
        WriteAuth::Message { .. } => (FLAG_MESSAGE, MESSAGE_AUTH),
        WriteAuth::WhoAreYou { .. } => (FLAG_WHOAREYOU, WHOAREYOU_AUTH),
        WriteAuth::Handshake { record, .. } => (FLAG_HANDSHAKE, HANDSHAKE_AUTH + record.len()),
    };
    out.put_slice(iv);
    out.put_slice(&MAGIC);
    out.put_u8(flag);
    out.put_slice(nonce);
    // A record has at most 300 bytes, so the size always fits.
    out.put_u16(u16::try_from(size).unwrap_or(u16::MAX));
    match auth {
        WriteAuth::Message { src } => out.put_slice(&src.0),
        WriteAuth::WhoAreYou { id_nonce, enr_seq } => {
            out.put_slice(*id_nonce);
            out.put_u64(*enr_seq);
        }
        WriteAuth::Handshake { src, signature, ephemeral, record } => {
            out.put_slice(&src.0);
            out.put_slice(&HANDSHAKE_SIZES);
            out.put_slice(*signature);
            out.put_slice(*ephemeral);
            out.put_slice(record);
        }
    }
}

/// Masks the header of the packet that `packet` holds, for the node `dest`. `header` is the number of bytes that
/// [`write()`] wrote.
pub fn mask(packet: &mut [u8], header: usize, dest: &NodeId) {
    let Some((iv, rest)) = packet.split_first_chunk_mut::<IV>() else { return };
    let Some(header) = rest.get_mut(..header.saturating_sub(IV)) else { return };
    let cipher = Unmasker::new(dest).cipher;
    let core = CtrCore::<_, Ctr128BE>::inner_iv_init(&cipher, (&*iv).into());
    StreamCipherCoreWrapper::from_core(core).apply_keystream(header);
}
