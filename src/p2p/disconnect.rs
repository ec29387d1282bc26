//! Disconnect: the reason a node gives when it leaves.
//!
//! It is written as a list of one integer. It is read as a list or as a bare integer, compressed or not: all four forms
//! are on the network (geth wrote the bare form until 2024, and some stacks never compress it).

use std::fmt;

use super::{MAX_BASE_MESSAGE, wire::Decompressor};
use crate::rlp::{self, Reader};

/// Why a node leaves (rlpx.md, "Disconnect (0x01)").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DisconnectReason {
    /// 0x00: a disconnect was requested at the node.
    Requested,
    /// 0x01: the TCP connection failed. It can hardly arrive, yet some nodes send it.
    NetworkError,
    /// 0x02: a malformed or unexpected message, a wrong tag, an impossible code.
    BreachOfProtocol,
    /// 0x03: no shared capability, or no use for the peer. Healthy nodes send it when they rotate peers.
    UselessPeer,
    /// 0x04: all places are taken.
    TooManyPeers,
    /// 0x05: there is a connection between these nodes already.
    AlreadyConnected,
    /// 0x06: the version of the base protocol is not supported.
    IncompatibleVersion,
    /// 0x07: a Hello without a usable node id.
    InvalidIdentity,
    /// 0x08: the node is shutting down.
    Quitting,
    /// 0x09: Hello has the key of another node than the one in the handshake.
    UnexpectedIdentity,
    /// 0x0a: a node connected to itself.
    ConnectedToSelf,
    /// 0x0b: nothing was read for too long.
    ReadTimeout,
    /// 0x10: the reason of an application.
    SubprotocolError,
    /// A message from which no reason can be read. Never sent.
    Invalid,
    /// A code that is not in the specification.
    Other(u8),
}

impl DisconnectReason {
    /// The reason with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        match code {
            0x00 => Self::Requested,
            0x01 => Self::NetworkError,
            0x02 => Self::BreachOfProtocol,
            0x03 => Self::UselessPeer,
            0x04 => Self::TooManyPeers,
            0x05 => Self::AlreadyConnected,
            0x06 => Self::IncompatibleVersion,
            0x07 => Self::InvalidIdentity,
            0x08 => Self::Quitting,
            0x09 => Self::UnexpectedIdentity,
            0x0a => Self::ConnectedToSelf,
            0x0b => Self::ReadTimeout,
            0x10 => Self::SubprotocolError,
            0xff => Self::Invalid,
            other => Self::Other(other),
        }
    }

    /// The code on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Requested => 0x00,
            Self::NetworkError => 0x01,
            Self::BreachOfProtocol => 0x02,
            Self::UselessPeer => 0x03,
            Self::TooManyPeers => 0x04,
            Self::AlreadyConnected => 0x05,
            Self::IncompatibleVersion => 0x06,
            Self::InvalidIdentity => 0x07,
            Self::Quitting => 0x08,
            Self::UnexpectedIdentity => 0x09,
            Self::ConnectedToSelf => 0x0a,
            Self::ReadTimeout => 0x0b,
            Self::SubprotocolError => 0x10,
            Self::Invalid => 0xff,
            Self::Other(code) => code,
        }
    }

    /// The payload of a Disconnect message, uncompressed.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        let mut stream = ::rlp::RlpStream::new_list(1);
        stream.append(&self.code());
        stream.out().to_vec()
    }

    /// Reads a payload in any of its forms. A payload that cannot be read is [`Self::Invalid`]: the sender has left in
    /// any case.
    #[must_use]
    pub fn decode(payload: &[u8], snappy: bool) -> Self {
        // No uncompressed reason is valid snappy: its first byte would claim more data than follows.
        let decompressed = snappy.then(|| Decompressor::default().decompress(payload, MAX_BASE_MESSAGE).ok());
        let code = decompressed.flatten().and_then(|payload| read(&payload)).or_else(|| read(payload));
        code.map_or(Self::Invalid, Self::from_code)
    }
}

/// Reads the code, in a list (further elements are ignored) or alone.
fn read(payload: &[u8]) -> Option<u8> {
    let code = match Reader::list_prefix(payload) {
        Ok((mut list, _)) => list.u64().ok()?,
        Err(_) => rlp::integer(payload).ok()?,
    };
    u8::try_from(code).ok()
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("disconnect requested"),
            Self::NetworkError => f.write_str("network error"),
            Self::BreachOfProtocol => f.write_str("breach of protocol"),
            Self::UselessPeer => f.write_str("useless peer"),
            Self::TooManyPeers => f.write_str("too many peers"),
            Self::AlreadyConnected => f.write_str("already connected"),
            Self::IncompatibleVersion => f.write_str("incompatible p2p protocol version"),
            Self::InvalidIdentity => f.write_str("invalid node identity"),
            Self::Quitting => f.write_str("client quitting"),
            Self::UnexpectedIdentity => f.write_str("unexpected identity"),
            Self::ConnectedToSelf => f.write_str("connected to self"),
            Self::ReadTimeout => f.write_str("read timeout"),
            Self::SubprotocolError => f.write_str("subprotocol error"),
            Self::Invalid => f.write_str("unreadable disconnect reason"),
            Self::Other(code) => write!(f, "unknown disconnect reason {code:#04x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rlpx::Compressor;

    #[test]
    fn every_code_is_read_back_in_all_four_forms() {
        let mut compressor = Compressor::default();
        for code in 0..=u8::MAX {
            let reason = DisconnectReason::from_code(code);
            assert_eq!(reason.code(), code);
            let bare = ::rlp::encode(&code).to_vec();
            for form in [reason.encode(), bare] {
                assert_eq!(DisconnectReason::decode(&form, false), reason);
                assert_eq!(DisconnectReason::decode(&form, true), reason, "uncompressed after Hello");
                let compressed = compressor.compress(&form).unwrap();
                assert_eq!(DisconnectReason::decode(compressed.as_bytes(), true), reason);
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_invalid() {
        let table: &[&[u8]] =
            &[&[], &[0xc0], &[0xc1], &[0x82, 0x01, 0x00], &[0xc3, 0x82, 0x01, 0x00], &[0xff; 9]];
        for payload in table {
            assert_eq!(DisconnectReason::decode(payload, false), DisconnectReason::Invalid, "{payload:02x?}");
            assert_eq!(DisconnectReason::decode(payload, true), DisconnectReason::Invalid, "{payload:02x?}");
        }
    }

    #[test]
    fn further_elements_and_bytes_are_ignored() {
        assert_eq!(
            DisconnectReason::decode(&[0xc2, 0x04, 0x05, 0xaa], false),
            DisconnectReason::TooManyPeers
        );
    }
}
