//! Hello: a node's name, key and capabilities. It is the first message of each side, and is never compressed.
//!
//! `[version, client, [[name, version], …], listen port, node key, …]` (rlpx.md, "Hello (0x00)"). Any version is
//! accepted and further elements are ignored (EIP-8).

use std::sync::Arc;

use super::{Capability, Fault, LocalCapability, VERSION};
use crate::{
    node::PublicKey,
    rlp::{self, Reader},
};

/// How much of a client's name is kept, in bytes, ours included. The longest names on the network have about 100 bytes.
pub const MAX_CLIENT: usize = 256;

/// How many of a node's capabilities are kept, beside those that we have too. Nodes on the network have fewer than ten;
/// a Hello has room for 640, which would take 50 KiB of memory.
pub const MAX_CAPABILITIES: usize = 32;

/// The Hello of a remote node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteHello {
    /// The version of its base protocol. Below 5 there is no compression.
    pub version: u64,
    /// The name of its software, cut to [`MAX_CLIENT`] bytes. From a stranger: escape it before showing it.
    pub client: String,
    /// The capabilities it offers: all of them, until it is [trimmed](Self::trimmed).
    pub capabilities: Vec<Capability>,
    /// The port it listens on; 0 if it names none (geth never does) or one above 65,535.
    pub listen_port: u16,
}

/// The first version of the base protocol with compression (EIP-706).
const SNAPPY_VERSION: u64 = 5;

impl RemoteHello {
    /// Whether messages after Hello are compressed.
    #[must_use]
    pub fn has_snappy(&self) -> bool {
        self.version >= SNAPPY_VERSION
    }

    /// The Hello without capabilities that are not needed: the first [`MAX_CAPABILITIES`] stay, and those for which
    /// `ours` returns true.
    #[must_use]
    pub fn trimmed(self: Arc<Self>, ours: impl Fn(&Capability) -> bool) -> Arc<Self> {
        if self.capabilities.len() <= MAX_CAPABILITIES {
            return self;
        }
        let kept = self.capabilities.iter().enumerate();
        let kept = kept.filter(|(place, said)| *place < MAX_CAPABILITIES || ours(said));
        let capabilities = kept.map(|(_, said)| said.clone()).collect();
        Arc::new(Self { capabilities, client: self.client.clone(), ..*self })
    }

    /// Reads a Hello. Returns it with the bytes of its node key, which are not checked.
    pub fn decode(payload: &[u8]) -> Result<(Self, &[u8]), Fault> {
        read(payload).map_err(Fault::BadHello)
    }
}

/// Checks that the key in a Hello is that of the node in the handshake.
pub fn check_identity(key: &[u8], remote: &PublicKey) -> Result<(), Fault> {
    if key == remote.to_uncompressed() {
        Ok(())
    } else if key.len() != 64 || key.iter().all(|byte| *byte == 0) {
        Err(Fault::InvalidIdentity)
    } else {
        Err(Fault::UnexpectedIdentity)
    }
}

fn read(payload: &[u8]) -> Result<(RemoteHello, &[u8]), rlp::Error> {
    let (mut list, _) = Reader::list_prefix(payload)?;
    let version = list.u64()?;
    let client = cut(&String::from_utf8_lossy(list.bytes()?)).to_owned();
    let mut entries = list.nested()?;
    let mut capabilities = Vec::new();
    while !entries.is_empty() {
        let mut entry = entries.nested()?;
        let (name, version) = (entry.bytes()?, entry.u64()?);
        // No protocol has a version above 32 bits: it cannot be shared, so it is not kept.
        if let Ok(version) = u32::try_from(version) {
            capabilities.push(Capability { name: String::from_utf8_lossy(name).into_owned(), version });
        }
    }
    let listen_port = u16::try_from(list.u64()?).unwrap_or(0);
    let key = list.bytes()?;
    Ok((RemoteHello { version, client, capabilities, listen_port }, key))
}

/// Cuts `name` to at most [`MAX_CLIENT`] bytes, between characters.
pub(super) fn cut(name: &str) -> &str {
    let end = (0..=MAX_CLIENT.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
    end.and_then(|end| name.get(..end)).unwrap_or_default()
}

/// The payload of our Hello. The listen port is 0: the node's record says where it listens.
#[must_use]
pub fn encode(client: &str, capabilities: &[LocalCapability], key: &PublicKey) -> Vec<u8> {
    let mut sorted: Vec<&LocalCapability> = capabilities.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name).then(a.version.cmp(&b.version)));
    let mut stream = ::rlp::RlpStream::new_list(5);
    stream.append(&VERSION).append(&cut(client));
    stream.begin_list(sorted.len());
    for capability in sorted {
        stream.begin_list(2).append(&&*capability.name).append(&capability.version);
    }
    stream.append(&0_u16).append(&key.to_uncompressed().as_slice());
    stream.out().to_vec()
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::node::NodeKey;

    fn key() -> PublicKey {
        NodeKey::random(&mut StdRng::seed_from_u64(1)).public()
    }

    fn capability(name: &str, version: u32) -> LocalCapability {
        LocalCapability { name: name.into(), version, message_count: 17 }
    }

    /// EIP-8: another version (55, though the text beside the vector says 22) and additional elements at the end.
    #[test]
    fn reads_the_vector() {
        let vectors = crate::rlpx::tests::vectors(include_str!("../../tests/vectors/rlpx-eip8.txt"));
        let (hello, key) = read(vectors.get("hello")).unwrap();
        assert_eq!(hello.version, 55);
        assert_eq!(hello.client, "kneth/v0.91/plan9");
        let capability = |name: &str, version| Capability { name: name.to_owned(), version };
        assert_eq!(hello.capabilities, [capability("eth", 61), capability("mork", 22)]);
        assert_eq!(hello.listen_port, 9999);
        assert_eq!(key[..4], [0xfd, 0xa1, 0xcf, 0xf6]);
    }

    #[test]
    fn what_we_say_is_read_back_sorted() {
        let ours = [capability("snap", 1), capability("eth", 69), capability("eth", 68)];
        let bytes = encode("devp2pd/v0", &ours, &key());
        let (hello, id) = RemoteHello::decode(&bytes).unwrap();
        check_identity(id, &key()).unwrap();
        assert_eq!((hello.version, hello.listen_port, hello.client.as_str()), (5, 0, "devp2pd/v0"));
        let said: Vec<_> = hello.capabilities.iter().map(|c| (c.name.as_str(), c.version)).collect();
        assert_eq!(said, [("eth", 68), ("eth", 69), ("snap", 1)]);
    }

    #[test]
    fn of_many_capabilities_the_first_and_ours_are_kept() {
        let said: Vec<_> = (0..200).map(|n| capability(&format!("c{n:03}"), 1)).collect();
        let bytes = encode("liar", &said, &key());
        let (hello, _) = RemoteHello::decode(&bytes).unwrap();
        let hello = Arc::new(hello);
        assert_eq!(hello.capabilities.len(), 200);
        let kept = Arc::clone(&hello).trimmed(|said| said.name == "c150" || said.name == "c002");
        let names: Vec<_> = kept.capabilities.iter().map(|said| said.name.as_str()).collect();
        assert_eq!(names.len(), MAX_CAPABILITIES + 1);
        assert_eq!((names[0], names[31], names[32]), ("c000", "c031", "c150"));
        let short =
            Arc::new(RemoteHello { capabilities: hello.capabilities[..32].to_vec(), ..(*hello).clone() });
        assert!(Arc::ptr_eq(&short, &Arc::clone(&short).trimmed(|_| false)));
    }

    fn hello(client: &[u8], version: u64, port: u64, id: &[u8]) -> Vec<u8> {
        let mut stream = ::rlp::RlpStream::new_list(5);
        stream.append(&5_u8).append(&client);
        stream.begin_list(2);
        stream.begin_list(2).append(&"a").append(&version);
        stream.begin_list(3).append(&"b").append(&1_u8).append(&"unknown to us");
        stream.append(&port).append(&id);
        stream.out().to_vec()
    }

    #[test]
    fn odd_values_are_tolerated() {
        let id = key().to_uncompressed();
        let bytes = hello(&[0xff; 300], u64::MAX, 70_000, &id);
        let (hello, _) = RemoteHello::decode(&bytes).unwrap();
        assert!(hello.client.len() <= MAX_CLIENT && hello.client.starts_with('\u{fffd}'));
        assert_eq!(hello.capabilities, [Capability { name: "b".to_owned(), version: 1 }]);
        assert_eq!(hello.listen_port, 0);
    }

    #[test]
    fn the_identity_must_be_the_one_that_shook_hands() {
        let other = NodeKey::random(&mut StdRng::seed_from_u64(2)).public().to_uncompressed();
        let table: &[(&[u8], Fault)] = &[
            (&other, Fault::UnexpectedIdentity),
            (&[0; 64], Fault::InvalidIdentity),
            (&[], Fault::InvalidIdentity),
            (&other[..63], Fault::InvalidIdentity),
        ];
        for (id, fault) in table {
            let bytes = hello(b"x", 1, 0, id);
            let (_, id) = RemoteHello::decode(&bytes).unwrap();
            assert_eq!(check_identity(id, &key()), Err(*fault));
        }
    }

    #[test]
    fn cut_off_anywhere_it_is_a_fault() {
        let whole = encode("devp2pd", &[capability("eth", 69)], &key());
        for len in 0..whole.len() {
            assert!(matches!(RemoteHello::decode(&whole[..len]), Err(Fault::BadHello(_))), "{len}");
        }
    }

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"x".repeat(1000)).len(), MAX_CLIENT);
        assert_eq!(cut(&"€".repeat(100)).len(), 255);
    }
}
