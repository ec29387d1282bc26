//! RLPx: the encrypted, authenticated transport under every devp2p connection. It reads and writes bytes in buffers.
//!
//! A connection starts with one packet in each direction ([`handshake`]: EIP-8 auth and ack, encrypted with [`ecies`]),
//! from which both sides derive keys ([`secrets`]). From then on there are frames ([`frame`]): AES-256-CTR under a
//! chained Keccak MAC ([`mac`]), one message in each frame. Its payload is compressed with snappy ([`snappy`]) once
//! both sides have sent Hello.
//!
//! Everything works on buffers that the caller owns: frames are encrypted where they are written and decrypted where
//! they were received, and nothing is allocated per frame. The specification is ethereum/devp2p, rlpx.md.
//!
//! # Security
//!
//! - A point from outside is parsed (on the curve, canonical) before any arithmetic with our static key.
//! - A refused handshake has one error for all reasons ([`Refused`]). Everything up to the check of the tag takes the
//!   same time whatever is wrong. So neither an answer nor its delay reveals anything about our key.
//! - A known weakness of the protocol, which we cannot fix: both directions use the same CTR key stream (rlpx.md,
//!   "Known issues"). RLPx authenticates; do not promise confidentiality.
//!
//! Left out: the meaning of messages (`p2p`), and when to read, write or give up (`p2p`, `net`).

pub mod ecies;
pub mod frame;
pub mod handshake;
pub mod mac;
pub mod secrets;
pub mod snappy;

pub use ecies::Refused;
pub use frame::{Frame, FrameError};
pub use handshake::{Initiator, Recipient, Session};
pub use snappy::{Compressed, Compressor, Decompressor, MessageTooLarge, SnappyError};

#[cfg(test)]
pub(crate) mod tests;
