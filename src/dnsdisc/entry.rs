//! The TXT records of a tree: root, branch, link, node record; and the hash that names each.
//!
//! Parsing is strict and bounded. An entry has one spelling, so a hash names one text, and a text has one hash. So a
//! client can follow hashes without remembering every entry it has seen.

use std::{fmt, str::FromStr};

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};

use super::Link;
use crate::node::{PublicKey, Record, id::keccak256, record::RecordError};

/// The longest entry that is read, in bytes. Records have at most 404, the branches of the known trees 367. DNS itself
/// would allow 64 KiB, and so thousands of hashes in one answer.
pub const MAX_ENTRY_BYTES: usize = 4096;

const ROOT: &str = "enrtree-root:v1 ";
const BRANCH: &str = "enrtree-branch:";
const LINK: &str = "enrtree://";
const RECORD: &str = "enr:";

/// The reason why a text is not the expected entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// None of the known kinds.
    #[error("not an entry of a node tree")]
    Unknown,
    /// Longer than any entry needs.
    #[error("the entry has {0} bytes; {MAX_ENTRY_BYTES} are allowed")]
    TooLong(usize),
    /// Not in the form of a root.
    #[error("a root looks like: enrtree-root:v1 e=<hash> l=<hash> seq=<number> sig=<base64url>")]
    RootForm,
    /// The root's signature does not have 65 bytes, or is not made by the tree's key.
    #[error("the signature of the root is not by the key in the tree's link")]
    Signature,
    /// Not a hash.
    #[error("a hash is 12 to 32 bytes in base32, upper case, without padding")]
    Hash,
    /// The key in a link is not a key.
    #[error("the key in the link is not a compressed secp256k1 point in base32")]
    LinkKey,
    /// A link without a key.
    #[error("a link looks like enrtree://<key>@<domain>; the key is missing")]
    NoKey,
    /// The domain in a link is not a domain name.
    #[error("the domain in the link is not a domain name of at most 200 characters")]
    Domain,
    /// The record is not valid.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The name of an entry: the first 12 to 32 bytes of the Keccak-256 of its text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash {
    bytes: [u8; 32],
    len: u8,
}

impl Hash {
    /// The hash of the length that go-ethereum's trees have: 16 bytes.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn of(text: &str) -> Self {
        let mut bytes = keccak256(&[text.as_bytes()]);
        bytes.iter_mut().skip(16).for_each(|byte| *byte = 0);
        Self { bytes, len: 16 }
    }

    /// Whether this is the hash of `text`.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        keccak256(&[text.as_bytes()]).starts_with(self.as_bytes())
    }

    /// The bytes of the hash, 12 to 32.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// The first eight bytes. An attacker who makes two entries of a tree share them hides only one of the two.
    pub(super) fn short(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.bytes;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl FromStr for Hash {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        // Bits beyond the last byte must be zero: one hash, one name.
        let decoded = BASE32_NOPAD.decode(text.as_bytes()).map_err(|_| EntryError::Hash)?;
        if decoded.len() < 12 {
            return Err(EntryError::Hash);
        }
        let mut bytes = [0; 32];
        bytes.get_mut(..decoded.len()).ok_or(EntryError::Hash)?.copy_from_slice(&decoded);
        Ok(Self { bytes, len: u8::try_from(decoded.len()).map_err(|_| EntryError::Hash)? })
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(self.as_bytes()))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The root of a tree, with its signature checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// First entry of the subtree of node records.
    pub nodes: Hash,
    /// First entry of the subtree of links.
    pub links: Hash,
    /// The sequence number, which grows with every change of the tree.
    pub seq: u64,
}

impl Root {
    /// Whether a TXT record claims to be a root. Other TXT records may exist at the same name.
    #[must_use]
    pub fn is_root(text: &str) -> bool {
        text.starts_with(ROOT)
    }

    /// Reads a root and checks that `key` signed it.
    pub fn parse(text: &str, key: &PublicKey) -> Result<Self, EntryError> {
        if text.len() > MAX_ENTRY_BYTES {
            return Err(EntryError::TooLong(text.len()));
        }
        let (signed, signature) = text.split_once(" sig=").ok_or(EntryError::RootForm)?;
        let fields = signed.strip_prefix(ROOT).ok_or(EntryError::RootForm)?;
        let mut fields = fields.split(' ');
        let mut field = |name: &str| {
            let value = fields.next().and_then(|field| field.strip_prefix(name));
            value.ok_or(EntryError::RootForm)
        };
        let (nodes, links, seq) = (field("e=")?.parse()?, field("l=")?.parse()?, field("seq=")?);
        if fields.next().is_some() || !seq.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(EntryError::RootForm);
        }
        let seq = seq.parse().map_err(|_| EntryError::RootForm)?;
        let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).map_err(|_| EntryError::Signature)?;
        // r ‖ s ‖ v; the key is known, so v is not needed.
        let signature: [u8; 65] = signature.try_into().map_err(|_| EntryError::Signature)?;
        let [rs @ .., _] = signature;
        key.verify(&keccak256(&[signed.as_bytes()]), &rs).map_err(|_| EntryError::Signature)?;
        Ok(Self { nodes, links, seq })
    }
}

/// An entry below the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// More entries.
    Branch(Vec<Hash>),
    /// Another tree.
    Link(Link),
    /// A node.
    Record(Record),
}

impl FromStr for Entry {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        if text.len() > MAX_ENTRY_BYTES {
            return Err(EntryError::TooLong(text.len()));
        }
        if let Some(children) = text.strip_prefix(BRANCH) {
            if children.is_empty() {
                return Ok(Self::Branch(Vec::new()));
            }
            return children.split(',').map(str::parse).collect::<Result<_, _>>().map(Self::Branch);
        }
        if text.starts_with(LINK) {
            return text.parse().map(Self::Link);
        }
        if text.starts_with(RECORD) {
            return Ok(Self::Record(text.parse()?));
        }
        Err(EntryError::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of go-ethereum's test trees, as it is written in their links.
    const LINK_TEXT: &str =
        "enrtree://AKPYQIUQIL7PSIACI32J7FGZW56E5FKHEFCCOFHILBIMW3M6LWXS2@nodes.example.org";

    fn signer(root: &str) -> PublicKey {
        let (signed, signature) = root.split_once(" sig=").unwrap();
        let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap().try_into().unwrap();
        PublicKey::recover(&keccak256(&[signed.as_bytes()]), &signature).unwrap()
    }

    /// The cases of go-ethereum's p2p/dnsdisc/tree_test.go, TestParseRoot. They do not give the key; the good root's
    /// key is recovered from its signature.
    #[test]
    fn roots() {
        let key = LINK_TEXT.parse::<Link>().unwrap().public_key;
        let sig =
            "sig=N-YY6UB9xD0hFx1Gmnt7v0RfSxch5tKyry2SRDoLx7B4GfPXagwLxQqyf7gAMvApFn_ORwZQekMWa_pXrcGCtw";
        let hash = "TO4Q75OQ2N7DX4EOOR7X66A6OM";
        let good = "enrtree-root:v1 e=QFT4PBCRX4XQCV3VUYJ6BTCEPU l=JGUFMSAGI7KZYB3P7IZW4S5Y3A seq=3 sig=3FmXuVwpa8Y7OstZTx9PIb1mt8FrW7VpDOFv4AaGCsZ2EIHmhraWhe4NxYhQDlw5MjeFXYMbJjsPeKlHzmJREQE";
        let root = Root::parse(good, &signer(good)).unwrap();
        assert_eq!(root.nodes.to_string(), "QFT4PBCRX4XQCV3VUYJ6BTCEPU");
        assert_eq!((root.links.to_string().as_str(), root.seq), ("JGUFMSAGI7KZYB3P7IZW4S5Y3A", 3));
        assert_eq!(Root::parse(good, &key), Err(EntryError::Signature), "another's tree");
        assert_eq!(Root::parse(&good.replace("seq=3", "seq=4"), &signer(good)), Err(EntryError::Signature));
        let table = [
            (format!("enrtree-root:v1 e={hash} seq=3 {sig}"), EntryError::RootForm),
            (format!("enrtree-root:v1 e={hash} l={hash} seq=3 {sig}"), EntryError::Signature),
            (format!("enrtree-root:v1 e={hash} l={hash} seq=3"), EntryError::RootForm),
            (format!("enrtree-root:v2 e={hash} l={hash} seq=3 {sig}"), EntryError::RootForm),
            (format!("enrtree-root:v1 e={hash} l={hash} seq=+3 {sig}"), EntryError::RootForm),
            (format!("enrtree-root:v1 e={hash} l={hash} seq= {sig}"), EntryError::RootForm),
            (
                format!("enrtree-root:v1 e={hash} l={hash} seq=99999999999999999999 {sig}"),
                EntryError::RootForm,
            ),
            (format!("enrtree-root:v1 e={hash} l={hash} seq=3 x=1 {sig}"), EntryError::RootForm),
            (format!("enrtree-root:v1 e={hash} l=AAAA seq=3 {sig}"), EntryError::Hash),
            (format!("enrtree-root:v1 e={hash} l={hash} seq=3 {sig}A"), EntryError::Signature),
            ("x".repeat(5000), EntryError::TooLong(5000)),
        ];
        for (text, error) in table {
            assert_eq!(Root::parse(&text, &key), Err(error), "{text}");
        }
    }

    /// The cases of go-ethereum's p2p/dnsdisc/tree_test.go, TestParseEntry, and some more.
    #[test]
    fn entries() {
        let hash = |text: &str| text.parse::<Hash>().unwrap();
        let branch = |children: &[&str]| Ok(Entry::Branch(children.iter().map(|text| hash(text)).collect()));
        let a20 = "A".repeat(20);
        let enr = "enr:-HW4QES8QIeXTYlDzbfr1WEzE-XKY4f8gJFJzjJL-9D7TC9lJb4Z3JPRRz1lP4pL_N_QpT6rGQjAU9Apnc-C1iMP36OAgmlkgnY0iXNlY3AyNTZrMaED5IdwfMxdmR8W37HqSFdQLjDkIwBd4Q_MjxgZifgKSdM";
        let padded = "enr:-HW4QLZHjM4vZXkbp-5xJoHsKSbE7W39FPC8283X-y8oHcHPTnDDlIlzL5ArvDUlHZVDPgmFASrh7cWgLOLxj4wprRkHgmlkgnY0iXNlY3AyNTZrMaEC3t2jLMhDpCDX5mbSEwDn4L3iUfyXzoO8G28XvjGRkrAg=";
        let table = [
            ("enrtree-branch:1,2".to_owned(), Err(EntryError::Hash)),
            (format!("enrtree-branch:{}", "A".repeat(53)), Err(EntryError::Hash)),
            ("enrtree-branch:".to_owned(), Ok(Entry::Branch(vec![]))),
            (format!("enrtree-branch:{a20}"), branch(&[&a20])),
            (format!("enrtree-branch:{a20},BBBBBBBBBBBBBBBBBBBA"), branch(&[&a20, "BBBBBBBBBBBBBBBBBBBA"])),
            // go-ethereum accepts the next one, whose last four bits are not part of a byte. See `Hash::from_str`.
            (format!("enrtree-branch:{a20},BBBBBBBBBBBBBBBBBBBB"), Err(EntryError::Hash)),
            (format!("enrtree-branch:{a20},"), Err(EntryError::Hash)),
            (format!("enrtree-branch:{}", a20.to_lowercase()), Err(EntryError::Hash)),
            (LINK_TEXT.to_owned(), Ok(Entry::Link(LINK_TEXT.parse().unwrap()))),
            ("enrtree://nodes.example.org".to_owned(), Err(EntryError::NoKey)),
            (enr.to_owned(), Ok(Entry::Record(enr.parse().unwrap()))),
            (padded.to_owned(), Err(EntryError::Record(RecordError::Text))),
            (String::new(), Err(EntryError::Unknown)),
            ("foo".to_owned(), Err(EntryError::Unknown)),
            ("enrtree".to_owned(), Err(EntryError::Unknown)),
            ("enrtree-x=".to_owned(), Err(EntryError::Unknown)),
            ("v=spf1 -all".to_owned(), Err(EntryError::Unknown)),
            (format!("enrtree-branch:{}", "A".repeat(5000)), Err(EntryError::TooLong(5015))),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Entry>(), expected, "{text}");
        }
    }

    #[test]
    fn hashes_name_their_text() {
        // EIP-1459's example: the branch below the root.
        let text =
            "enrtree-branch:2XS2367YHAXJFGLZHVAWLQD4ZY,H4FHT4B454P6UXFD7JCYQ5PWDY,MHTDO6TMUBRIA2XWG5LUDACK24";
        let hash: Hash = "JWXYDBPXYWG6FX3GMDIBFA6CJ4".parse().unwrap();
        assert!(hash.matches(text));
        assert_eq!(Hash::of(text), hash);
        assert!(!hash.matches("enrtree-branch:"));
    }
}
