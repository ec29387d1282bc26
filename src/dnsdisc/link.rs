//! Links: `enrtree://<public key>@<domain>`, the name of a tree and the key that must have signed it.
//!
//! A tree is trusted because the author of its link is. So a link in a tree extends the trust in that tree.

use std::{fmt, str::FromStr, sync::Arc};

use data_encoding::BASE32_NOPAD;

use super::entry::EntryError;
use crate::node::PublicKey;

/// The longest domain, in characters: with a 32-byte hash (52 characters) and a dot before it, the name stays below the
/// 253 characters that DNS allows.
const MAX_DOMAIN: usize = 200;

/// The name of a tree, and the key that signs it. Cloning shares the domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Link {
    /// The key that signs the tree.
    pub public_key: PublicKey,
    /// The domain of the tree; lower case, without the final dot.
    pub domain: Arc<str>,
}

impl FromStr for Link {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        let rest = text.strip_prefix("enrtree://").ok_or(EntryError::Unknown)?;
        let (key, domain) = rest.split_once('@').ok_or(EntryError::NoKey)?;
        let key = BASE32_NOPAD.decode(key.as_bytes()).map_err(|_| EntryError::LinkKey)?;
        let key: [u8; 33] = key.try_into().map_err(|_| EntryError::LinkKey)?;
        let public_key = PublicKey::from_compressed(&key).map_err(|_| EntryError::LinkKey)?;
        let domain = domain.strip_suffix('.').unwrap_or(domain);
        if domain.len() > MAX_DOMAIN || !domain.split('.').all(is_label) {
            return Err(EntryError::Domain);
        }
        Ok(Self { public_key, domain: domain.to_ascii_lowercase().into() })
    }
}

/// Whether `label` has the form that resolvers accept in practice: letters, digits, hyphens and underscores.
fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "enrtree://{}@{}", BASE32_NOPAD.encode(&self.public_key.to_compressed()), self.domain)
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::node::NodeKey;

    impl Link {
        /// A fixed key for signing test trees.
        pub(crate) fn test_key(seed: u64) -> NodeKey {
            NodeKey::random(&mut StdRng::seed_from_u64(seed))
        }
    }

    #[test]
    fn links_round_trip() {
        // The default tree of mainnet (go-ethereum, params/bootnodes.go).
        let text = "enrtree://AKA3AM6LPBYEUDMVNU3BSVQJ5AD45Y7YPOHJLEF6W26QOE4VTUDPE@all.mainnet.ethdisco.net";
        let link: Link = text.parse().unwrap();
        assert_eq!(&*link.domain, "all.mainnet.ethdisco.net");
        assert_eq!(link.to_string(), text);
        assert_eq!(text.replace("mainnet", "MainNet").parse(), Ok(link.clone()), "names have no case");
        assert_eq!(format!("{text}.").parse(), Ok(link), "the final dot may be left out");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let key = "AKA3AM6LPBYEUDMVNU3BSVQJ5AD45Y7YPOHJLEF6W26QOE4VTUDPE";
        let table = [
            ("https://example.org".to_owned(), EntryError::Unknown),
            ("enrtree://nodes.example.org".to_owned(), EntryError::NoKey),
            // go-ethereum's cases: too short; not a point.
            (
                "enrtree://AP62DT7WOTEQZGQZOU474PP3KMEGVTTE7A7NPRXKX3DUD57@n.org".to_owned(),
                EntryError::LinkKey,
            ),
            (
                "enrtree://AP62DT7WONEQZGQZOU474PP3KMEGVTTE7A7NPRXKX3DUD57TQHGIA@n.org".to_owned(),
                EntryError::LinkKey,
            ),
            (format!("enrtree://{key}@"), EntryError::Domain),
            (format!("enrtree://{key}@a..b"), EntryError::Domain),
            (format!("enrtree://{key}@a b"), EntryError::Domain),
            (format!("enrtree://{key}@a\u{0}b"), EntryError::Domain),
            (format!("enrtree://{key}@{}", "a".repeat(64)), EntryError::Domain),
            (format!("enrtree://{key}@{}", "a.".repeat(101) + "a"), EntryError::Domain),
        ];
        for (text, error) in table {
            assert_eq!(text.parse::<Link>(), Err(error), "{text}");
        }
    }
}
