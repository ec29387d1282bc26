//! Node records (ENR, EIP-778): signed key/value lists with which nodes publish their key and their addresses.
//!
//! A [`Record`] that exists is valid: canonical RLP, keys sorted and unique, at most 300 bytes, identity scheme "v4",
//! signature checked. It is shared by reference count, because tables, answers and events all hold the same ones.
//! Values are kept as the RLP in which they came; [`Record::get`] returns any of them, and typed getters return the
//! ones we know. A known key with a malformed value counts as absent, as in geth: one bad entry must not hide a good
//! node.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use data_encoding::BASE64URL_NOPAD;

use super::{
    AddressClass, Endpoint, NodeId, NodeKey, PublicKey, endpoint::canonical, id::keccak256, key::KeyError,
};
use crate::rlp::{self, Reader};

/// The largest size of an encoded record, in bytes (EIP-778).
pub const MAX_RECORD_BYTES: usize = 300;

/// The reason why bytes or text are not a record, or why entries cannot become one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Over 300 bytes.
    #[error("the node record has {0} bytes; EIP-778 allows {MAX_RECORD_BYTES}")]
    TooLarge(usize),
    /// The bytes are not the RLP of a record.
    #[error("the node record is malformed: {0}")]
    Rlp(#[from] rlp::Error),
    /// The keys are not sorted, or one is there twice.
    #[error("the keys of the node record are not sorted and unique")]
    KeyOrder,
    /// `id` is missing or not "v4".
    #[error("the node record's identity scheme is not \"v4\"")]
    Scheme,
    /// The `secp256k1` entry is missing or is not a point.
    #[error("the node record has no valid secp256k1 key")]
    PublicKey,
    /// The signature is not that of the record's key.
    #[error("the node record's signature is not valid")]
    Signature,
    /// The text form is not `enr:` and base64url.
    #[error("a node record in text starts with enr: and continues in base64url without padding")]
    Text,
}

/// One entry: its key and its value as RLP.
type Pair = (Vec<u8>, Vec<u8>);

struct Content {
    encoded: Vec<u8>,
    signature: [u8; 64],
    seq: u64,
    pairs: Vec<Pair>,
    public_key: PublicKey,
    id: NodeId,
}

/// A valid, signed node record. Cloning shares it.
#[derive(Clone)]
pub struct Record(Arc<Content>);

impl Record {
    /// Reads a record: exactly one RLP list, and nothing after it.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLarge(bytes.len()));
        }
        let mut list = Reader::list(bytes)?;
        let signature: [u8; 64] = list.array()?;
        let seq = list.u64()?;
        let mut pairs: Vec<Pair> = Vec::new();
        while !list.is_empty() {
            let key = list.bytes()?;
            let value = list.raw()?;
            rlp::validate(value)?;
            if pairs.last().is_some_and(|(last, _)| last.as_slice() >= key) {
                return Err(RecordError::KeyOrder);
            }
            pairs.push((key.to_vec(), value.to_vec()));
        }
        let public_key = identity(&pairs)?;
        public_key
            .verify(&keccak256(&[&signed_content(seq, &pairs)]), &signature)
            .map_err(|_: KeyError| RecordError::Signature)?;
        let id = public_key.id();
        Ok(Self(Arc::new(Content { encoded: bytes.to_vec(), signature, seq, pairs, public_key, id })))
    }

    /// The record as RLP.
    #[must_use]
    pub fn encoded(&self) -> &[u8] {
        &self.0.encoded
    }

    /// The sequence number: of two records of a node the higher one is newer.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.0.seq
    }

    /// The node's public key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.0.public_key
    }

    /// The node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.0.id
    }

    /// The signature, `r ‖ s`.
    #[must_use]
    pub fn signature(&self) -> &[u8; 64] {
        &self.0.signature
    }

    /// The value of `key` as RLP.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        lookup(&self.0.pairs, key)
    }

    /// All entries in key order, values as RLP.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.pairs.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// The `ip` entry. An IPv4 address only.
    #[must_use]
    pub fn ip4(&self) -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = self.string(b"ip")?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    }

    /// The `ip6` entry. An IPv4-mapped address is returned unchanged.
    #[must_use]
    pub fn ip6(&self) -> Option<Ipv6Addr> {
        let bytes: [u8; 16] = self.string(b"ip6")?.try_into().ok()?;
        Some(Ipv6Addr::from(bytes))
    }

    /// A port entry: one of `tcp`, `udp`, `tcp6`, `udp6`, `quic`, `quic6`.
    #[must_use]
    pub fn port(&self, key: &str) -> Option<u16> {
        let value = rlp::integer(self.get(key.as_bytes())?).ok()?;
        u16::try_from(value).ok()
    }

    /// The IPv4 endpoint, with 0 for ports that are missing.
    #[must_use]
    pub fn endpoint4(&self) -> Option<Endpoint> {
        let ip = IpAddr::V4(self.ip4()?);
        usable(Endpoint { ip, udp: self.port("udp").unwrap_or(0), tcp: self.port("tcp").unwrap_or(0) })
    }

    /// The IPv6 endpoint. `udp6` and `tcp6` fall back to `udp` and `tcp`, as EIP-778 says and geth does.
    #[must_use]
    pub fn endpoint6(&self) -> Option<Endpoint> {
        let ip = canonical(IpAddr::V6(self.ip6()?));
        let port = |six: &str, four: &str| self.port(six).or_else(|| self.port(four)).unwrap_or(0);
        usable(Endpoint { ip, udp: port("udp6", "udp"), tcp: port("tcp6", "tcp") })
    }

    /// The endpoint to use when a record has both families: the one of wider reach, or IPv4 when they are equal (geth's
    /// rule).
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        match (self.endpoint4(), self.endpoint6()) {
            (Some(four), Some(six)) if AddressClass::of(six.ip) > AddressClass::of(four.ip) => Some(six),
            (Some(four), _) => Some(four),
            (None, six) => six,
        }
    }

    /// The address for discovery packets to this node, if the record has one.
    #[must_use]
    pub fn udp_addr(&self) -> Option<SocketAddr> {
        self.endpoint()?.udp_addr()
    }

    /// The address for RLPx connections to this node, if the record has one.
    #[must_use]
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.endpoint()?.tcp_addr()
    }

    /// A builder with this record's entries and sequence number, to make a changed record.
    #[must_use]
    pub fn to_builder(&self) -> RecordBuilder {
        RecordBuilder { seq: self.0.seq, pairs: self.0.pairs.clone() }
    }

    fn string(&self, key: &[u8]) -> Option<&[u8]> {
        rlp::string(self.get(key)?).ok()
    }
}

/// A multicast or unspecified address is not the address of a node.
fn usable(endpoint: Endpoint) -> Option<Endpoint> {
    (!endpoint.ip.is_multicast() && !endpoint.ip.is_unspecified()).then_some(endpoint)
}

fn lookup<'a>(pairs: &'a [Pair], key: &[u8]) -> Option<&'a [u8]> {
    let index = pairs.binary_search_by(|(have, _)| have.as_slice().cmp(key)).ok()?;
    pairs.get(index).map(|(_, value)| value.as_slice())
}

fn identity(pairs: &[Pair]) -> Result<PublicKey, RecordError> {
    let scheme = lookup(pairs, b"id").and_then(|value| rlp::string(value).ok());
    if scheme != Some(b"v4") {
        return Err(RecordError::Scheme);
    }
    let point = lookup(pairs, b"secp256k1").and_then(|value| rlp::string(value).ok());
    let point: &[u8; 33] = point.and_then(|bytes| bytes.try_into().ok()).ok_or(RecordError::PublicKey)?;
    PublicKey::from_compressed(point).map_err(|_| RecordError::PublicKey)
}

fn append_content(stream: &mut ::rlp::RlpStream, seq: u64, pairs: &[Pair]) {
    stream.append(&seq);
    for (key, value) in pairs {
        stream.append(key);
        stream.append_raw(value, 1);
    }
}

fn signed_content(seq: u64, pairs: &[Pair]) -> Vec<u8> {
    let mut stream = ::rlp::RlpStream::new_list(1 + 2 * pairs.len());
    append_content(&mut stream, seq, pairs);
    stream.out().to_vec()
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.0.encoded == other.0.encoded
    }
}

impl Eq for Record {}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "enr:{}", BASE64URL_NOPAD.encode(&self.0.encoded))
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({:?} seq {} at {:?})", self.0.id, self.0.seq, self.endpoint())
    }
}

impl FromStr for Record {
    type Err = RecordError;

    fn from_str(text: &str) -> Result<Self, RecordError> {
        let body = text.strip_prefix("enr:").ok_or(RecordError::Text)?;
        // 300 bytes are 400 characters; a longer text is refused without decoding.
        if body.len() > MAX_RECORD_BYTES.div_ceil(3) * 4 {
            return Err(RecordError::TooLarge(body.len() / 4 * 3));
        }
        Self::decode(&BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| RecordError::Text)?)
    }
}

/// The entries of a record that is not signed yet.
#[derive(Clone, Debug, Default)]
pub struct RecordBuilder {
    seq: u64,
    pairs: Vec<Pair>,
}

impl RecordBuilder {
    /// An empty record with this sequence number.
    #[must_use]
    pub fn new(seq: u64) -> Self {
        Self { seq, pairs: Vec::new() }
    }

    /// Sets the sequence number.
    pub fn seq(&mut self, seq: u64) -> &mut Self {
        self.seq = seq;
        self
    }

    /// Sets `key` to a value that is already RLP (one item; see [`rlp::validate`]).
    pub fn set_raw(&mut self, key: &[u8], value: &[u8]) -> &mut Self {
        match self.pairs.binary_search_by(|(have, _)| have.as_slice().cmp(key)) {
            Ok(index) => {
                if let Some(pair) = self.pairs.get_mut(index) {
                    pair.1 = value.to_vec();
                }
            }
            Err(index) => self.pairs.insert(index, (key.to_vec(), value.to_vec())),
        }
        self
    }

    /// Sets `key` to a string.
    pub fn set_bytes(&mut self, key: &str, value: &[u8]) -> &mut Self {
        self.set_raw(key.as_bytes(), &::rlp::encode(&value))
    }

    /// Sets an address entry: `ip` or `ip6` by its family.
    pub fn ip(&mut self, ip: IpAddr) -> &mut Self {
        match ip {
            IpAddr::V4(ip) => self.set_bytes("ip", &ip.octets()),
            IpAddr::V6(ip) => self.set_bytes("ip6", &ip.octets()),
        }
    }

    /// Sets a port entry such as `tcp` or `udp6`.
    pub fn port(&mut self, key: &str, port: u16) -> &mut Self {
        self.set_raw(key.as_bytes(), &::rlp::encode(&port))
    }

    /// Removes `key`, if it exists.
    pub fn remove(&mut self, key: &[u8]) -> &mut Self {
        self.pairs.retain(|(have, _)| have != key);
        self
    }

    /// The value of `key` as RLP.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        lookup(&self.pairs, key)
    }

    /// Signs the record with scheme "v4". Fails only when it would exceed 300 bytes.
    pub fn sign(&self, key: &NodeKey) -> Result<Record, RecordError> {
        let mut entries = self.clone();
        entries.set_bytes("id", b"v4");
        entries.set_bytes("secp256k1", &key.public().to_compressed());
        let Self { seq, pairs } = entries;
        let signature = key.sign(&keccak256(&[&signed_content(seq, &pairs)]));
        let mut stream = ::rlp::RlpStream::new_list(2 + 2 * pairs.len());
        stream.append(&signature.as_slice());
        append_content(&mut stream, seq, &pairs);
        let encoded = stream.out().to_vec();
        if encoded.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLarge(encoded.len()));
        }
        let public_key = key.public();
        let id = public_key.id();
        Ok(Record(Arc::new(Content { encoded, signature, seq, pairs, public_key, id })))
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    /// EIP-778, section "Test Vectors".
    const EXAMPLE: &str = "enr:-IS4QHCYrYZbAKWCBRlAy5zzaDZXJBGkcnh4MHcBFZntXNFrdvJjX04jRzjzCBOonrkTfj499SZuOh8R33Ls8RRcy5wBgmlkgnY0gmlwhH8AAAGJc2VjcDI1NmsxoQPKY0yuDUmstAHYpMa2_oxVtw0RW_QAdpzBQA8yWM0xOIN1ZHCCdl8";
    const EXAMPLE_KEY: &str = "b71c71a67e1177ad4e901695e1b4b9ee17ae16c6668d313eac2f96dbcda3f291";

    fn key(seed: u64) -> NodeKey {
        NodeKey::random(&mut StdRng::seed_from_u64(seed))
    }

    #[test]
    fn eip_778_example() {
        let record: Record = EXAMPLE.parse().unwrap();
        assert_eq!(record.seq(), 1);
        assert_eq!(
            record.id().to_string(),
            "a448f24c6d18e575453db13171562b71999873db5b286df957af199ec94617f7"
        );
        assert_eq!(record.udp_addr().unwrap().to_string(), "127.0.0.1:30303");
        assert_eq!(record.tcp_addr(), None);
        assert_eq!(record.to_string(), EXAMPLE);
        // Signatures are deterministic (RFC 6979), so building it again gives the same bytes.
        let mut builder = RecordBuilder::new(1);
        builder.ip("127.0.0.1".parse().unwrap()).port("udp", 30303);
        assert_eq!(builder.sign(&NodeKey::from_hex(EXAMPLE_KEY).unwrap()).unwrap(), record);
    }

    #[test]
    fn malformed_records_are_refused_with_the_reason() {
        let good = EXAMPLE.parse::<Record>().unwrap();
        let mut forged = good.encoded().to_vec();
        forged[80] ^= 1;
        assert!(Record::decode(&forged).is_err());
        let mut signature = good.encoded().to_vec();
        signature[10] ^= 1;
        assert_eq!(Record::decode(&signature), Err(RecordError::Signature));
        let mut trailing = good.encoded().to_vec();
        trailing.push(0);
        assert_eq!(Record::decode(&trailing), Err(RecordError::Rlp(rlp::Error::Trailing)));
        assert_eq!(Record::decode(&[0; 301]), Err(RecordError::TooLarge(301)));
        assert_eq!("enr:".parse::<Record>(), Err(RecordError::Rlp(rlp::Error::Truncated)));
        assert_eq!("enr:=".parse::<Record>(), Err(RecordError::Text));
        assert_eq!("enode://".parse::<Record>(), Err(RecordError::Text));
    }

    /// A signed record with entries that [`RecordBuilder`] would not produce.
    fn odd(pairs: &[(&[u8], &[u8])], key: &NodeKey) -> Vec<u8> {
        let pairs: Vec<Pair> = pairs.iter().map(|(k, v)| (k.to_vec(), ::rlp::encode(v).to_vec())).collect();
        let signature = key.sign(&keccak256(&[&signed_content(1, &pairs)]));
        let mut stream = ::rlp::RlpStream::new_list(2 + 2 * pairs.len());
        stream.append(&signature.as_slice());
        append_content(&mut stream, 1, &pairs);
        stream.out().to_vec()
    }

    #[test]
    fn order_scheme_and_key_are_checked() {
        let key = key(1);
        let point = key.public().to_compressed();
        type Entries<'a> = &'a [(&'a [u8], &'a [u8])];
        let table: [(Entries<'_>, RecordError); 5] = [
            (&[(b"secp256k1", &point), (b"id", b"v4")], RecordError::KeyOrder),
            (&[(b"id", b"v4"), (b"id", b"v4"), (b"secp256k1", &point)], RecordError::KeyOrder),
            (&[(b"id", b"v5"), (b"secp256k1", &point)], RecordError::Scheme),
            (&[(b"secp256k1", &point)], RecordError::Scheme),
            (&[(b"id", b"v4"), (b"secp256k1", &[5; 33])], RecordError::PublicKey),
        ];
        for (pairs, error) in table {
            assert_eq!(Record::decode(&odd(pairs, &key)).unwrap_err(), error, "{pairs:?}");
        }
        // Malformed known entries count as absent.
        let bytes =
            odd(&[(b"id", b"v4"), (b"ip", &[1, 2, 3]), (b"secp256k1", &point), (b"tcp", &[0, 1])], &key);
        let record = Record::decode(&bytes).unwrap();
        assert_eq!((record.ip4(), record.port("tcp"), record.endpoint()), (None, None, None));
    }

    #[test]
    fn the_limit_is_300_bytes() {
        let key = key(2);
        let mut builder = RecordBuilder::new(1);
        builder.set_bytes("x", &[7; 160]);
        let fits = builder.sign(&key).unwrap().encoded().len();
        builder.set_bytes("x", &vec![7; 160 + MAX_RECORD_BYTES - fits]);
        assert_eq!(builder.sign(&key).unwrap().encoded().len(), MAX_RECORD_BYTES);
        builder.set_bytes("x", &vec![7; 161 + MAX_RECORD_BYTES - fits]);
        assert_eq!(builder.sign(&key), Err(RecordError::TooLarge(301)));
    }

    /// The preference cases of geth's p2p/enode/node_test.go.
    #[test]
    fn endpoint_preference() {
        let table: [(&[&str], Option<&str>, u16); 8] = [
            (&["127.0.0.1"], Some("127.0.0.1"), 9),
            (&["2001:4860::1"], Some("2001:4860::1"), 9),
            (&["127.0.0.1", "2001:4860::1"], Some("2001:4860::1"), 9),
            (&["127.0.0.1", "::1"], Some("127.0.0.1"), 9),
            (&["8.8.8.8", "2001:4860::1"], Some("8.8.8.8"), 9),
            (&["10.0.0.1", "fd00::1"], Some("10.0.0.1"), 9),
            (&["224.0.0.1", "fd00::1"], Some("fd00::1"), 9),
            (&["::ffff:8.8.8.8"], Some("8.8.8.8"), 9),
        ];
        for (ips, expected, udp) in table {
            let mut builder = RecordBuilder::new(1);
            ips.iter().for_each(|ip| {
                builder.ip(ip.parse().unwrap());
            });
            let endpoint = builder.port("udp", udp).sign(&key(3)).unwrap().endpoint();
            assert_eq!(endpoint.map(|e| e.ip), expected.map(|ip| ip.parse().unwrap()), "{ips:?}");
            assert_eq!(endpoint.map(|e| e.udp), Some(udp));
        }
        let mut builder = RecordBuilder::new(1);
        builder.ip("::1".parse().unwrap()).port("udp", 1).port("udp6", 2).port("tcp", 3);
        let endpoint = builder.sign(&key(4)).unwrap().endpoint().unwrap();
        assert_eq!((endpoint.udp, endpoint.tcp), (2, 3));
    }

    proptest::proptest! {
        /// The `enr` crate accepts the records that we sign, and reads the same values.
        #[test]
        fn agrees_with_the_enr_crate(seed: u64, seq: u64, ip: [u8; 4], port: u16, extra in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            let ours = key(seed);
            let mut builder = RecordBuilder::new(seq);
            builder.ip(IpAddr::from(ip)).port("udp", port).set_bytes("extra", &extra);
            let record = builder.sign(&ours).unwrap();
            let theirs: enr::Enr<enr::k256::ecdsa::SigningKey> = record.to_string().parse().unwrap();
            proptest::prop_assert_eq!(theirs.seq(), seq);
            proptest::prop_assert_eq!(theirs.node_id().raw(), record.id().0);
            proptest::prop_assert_eq!(theirs.udp4(), Some(port));
            proptest::prop_assert_eq!(Record::decode(record.encoded()).unwrap(), record);
        }

        #[test]
        fn decoding_is_total(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..320)) {
            let _ = Record::decode(&bytes);
        }
    }
}
