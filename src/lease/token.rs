//! Resume tokens: the proof that a caller is the process that holds a registration.
//!
//! A token is the registration's id, which is public, and a secret of 128 random bits. The id lets the sidecar find the
//! registration without keeping retired tokens: a known id with a wrong secret is an old token, and an unknown id is a
//! registration that has ended. Ids are random so that this holds after a restart of the sidecar too.

use std::fmt;

use crate::node::RegistrationId;
use data_encoding::HEXLOWER;
use rand::Rng;
use rand::rngs::StdRng;
use zeroize::Zeroize;

/// The secret half of a token. Wiped when dropped, never printed, compared in constant time.
#[derive(Clone)]
pub(super) struct Secret([u8; 16]);

impl Secret {
    pub(super) fn random(rng: &mut StdRng) -> Self {
        Self(rng.random())
    }

    /// Whether both are equal, in a time that does not depend on where they differ.
    pub(super) fn is(&self, other: &Self) -> bool {
        let difference =
            self.0.iter().zip(&other.0).fold(0, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
        std::hint::black_box(difference) == 0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A resume token. [`expose`](Self::expose) is the only method that returns its text.
#[derive(Clone, Debug)]
pub struct ResumeToken {
    pub(super) id: RegistrationId,
    pub(super) secret: Secret,
}

impl ResumeToken {
    /// The text of the token, which only its holder may get: 48 lowercase hex digits.
    #[must_use]
    pub fn expose(&self) -> String {
        format!("{}{}", self.id, HEXLOWER.encode(&self.secret.0))
    }

    /// Parses a token. Returns `None` if the text does not have the form of a token.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.split_at_checked(16)?;
        let mut secret = HEXLOWER.decode(secret.as_bytes()).ok()?;
        let bytes = <[u8; 16]>::try_from(secret.as_slice()).ok();
        secret.zeroize();
        Some(Self { id: RegistrationId::parse(id)?, secret: Secret(bytes?) })
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_token_is_read_back_and_never_printed() {
        let mut rng = StdRng::seed_from_u64(1);
        let token = ResumeToken { id: RegistrationId::random(&mut rng), secret: Secret::random(&mut rng) };
        let text = token.expose();
        assert_eq!(text.len(), 48);
        let read = ResumeToken::parse(&text).unwrap();
        assert_eq!(read.id, token.id);
        assert!(read.secret.is(&token.secret));
        assert!(!read.secret.is(&Secret::random(&mut rng)));
        let printed = format!("{token:?}");
        let (_, secret) = text.split_at(16);
        assert!(!printed.contains(secret) && printed.contains("(secret)"), "{printed}");
        for bad in
            ["", "abc", text.split_at(47).0, &format!("{text}0"), &text.to_uppercase(), &"\u{e9}".repeat(24)]
        {
            assert!(ResumeToken::parse(bad).is_none(), "{bad:?}");
        }
    }
}
