//! Strict, total RLP decoding for bytes from strangers.
//!
//! The `rlp` crate encodes for us, but its decoder accepts trailing bytes and long-form lengths of short strings,
//! and `decode_list` panics on malformed input. This reader accepts exactly the canonical encoding (Ethereum yellow
//! paper, appendix B), borrows from the input, allocates nothing and cannot panic: every slice is a checked `get`.
//!
//! A [`Reader`] reads a list front to back. The caller decides whether extra elements are an error ([`Reader::finish`]
//! refuses them; readers of EIP-8 messages do not call it).

use std::fmt;

/// Why a byte string is not the RLP that the caller expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The input ends before the item does.
    #[error("RLP ends before the item does")]
    Truncated,
    /// A length, integer or single byte is not in its shortest form.
    #[error("RLP is not in its canonical (shortest) form")]
    NotCanonical,
    /// A list was found, but a string was expected.
    #[error("an RLP string was expected, a list was found")]
    ExpectedString,
    /// A string was found, but a list was expected.
    #[error("an RLP list was expected, a string was found")]
    ExpectedList,
    /// The list has fewer elements than the message needs.
    #[error("the RLP list has too few elements")]
    MissingElement,
    /// Bytes follow the end of the item.
    #[error("bytes follow the end of the RLP item")]
    Trailing,
    /// An integer does not fit, or a string has another length than the field's.
    #[error("the RLP string has the wrong length for its field")]
    WrongLength,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    String,
    List,
}

/// An item's kind, its payload, the whole item, and the bytes after it.
type Split<'a> = (Kind, &'a [u8], &'a [u8], &'a [u8]);

/// Splits the first item off `input`.
fn split(input: &[u8]) -> Result<Split<'_>, Error> {
    let first = *input.first().ok_or(Error::Truncated)?;
    let (kind, header, len) = match first {
        0x00..=0x7f => (Kind::String, 0, 1),
        0x80..=0xb7 => (Kind::String, 1, usize::from(first - 0x80)),
        0xb8..=0xbf => (Kind::String, 1 + usize::from(first - 0xb7), long_length(input, first - 0xb7)?),
        0xc0..=0xf7 => (Kind::List, 1, usize::from(first - 0xc0)),
        0xf8..=0xff => (Kind::List, 1 + usize::from(first - 0xf7), long_length(input, first - 0xf7)?),
    };
    let end = header.checked_add(len).ok_or(Error::Truncated)?;
    let item = input.get(..end).ok_or(Error::Truncated)?;
    let rest = input.get(end..).ok_or(Error::Truncated)?;
    let payload = item.get(header..).ok_or(Error::Truncated)?;
    if kind == Kind::String && header == 1 && matches!(payload, [0x00..=0x7f]) {
        return Err(Error::NotCanonical);
    }
    Ok((kind, payload, item, rest))
}

fn long_length(input: &[u8], width: u8) -> Result<usize, Error> {
    let bytes = input.get(1..1 + usize::from(width)).ok_or(Error::Truncated)?;
    if bytes.first() == Some(&0) {
        return Err(Error::NotCanonical);
    }
    let mut len: usize = 0;
    for byte in bytes {
        len = len.checked_mul(256).ok_or(Error::Truncated)? | usize::from(*byte);
    }
    if len <= 55 { Err(Error::NotCanonical) } else { Ok(len) }
}

fn uint(payload: &[u8]) -> Result<u64, Error> {
    if payload.len() > 8 {
        return Err(Error::WrongLength);
    }
    if payload.first() == Some(&0) {
        return Err(Error::NotCanonical);
    }
    Ok(payload.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
}

/// Reads the elements of one list, front to back.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({} bytes left)", self.rest.len())
    }
}

impl<'a> Reader<'a> {
    /// Opens `input`, which must be one list and nothing else.
    pub fn list(input: &'a [u8]) -> Result<Self, Error> {
        let (reader, rest) = Self::list_prefix(input)?;
        if rest.is_empty() { Ok(reader) } else { Err(Error::Trailing) }
    }

    /// Opens the list at the start of `input`, and returns the bytes that follow it (readers ignore them by EIP-8).
    pub fn list_prefix(input: &'a [u8]) -> Result<(Self, &'a [u8]), Error> {
        match split(input)? {
            (Kind::List, payload, _, rest) => Ok((Self { rest: payload }, rest)),
            (Kind::String, ..) => Err(Error::ExpectedList),
        }
    }

    /// Reads the elements in `items`, which is a sequence of items without a list header.
    #[must_use]
    pub fn items(items: &'a [u8]) -> Self {
        Self { rest: items }
    }

    /// Whether no element is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Checks that no element is left.
    pub fn finish(self) -> Result<(), Error> {
        if self.rest.is_empty() { Ok(()) } else { Err(Error::Trailing) }
    }

    fn next(&mut self) -> Result<(Kind, &'a [u8], &'a [u8]), Error> {
        if self.rest.is_empty() {
            return Err(Error::MissingElement);
        }
        let (kind, payload, item, rest) = split(self.rest)?;
        self.rest = rest;
        Ok((kind, payload, item))
    }

    /// The next element, which must be a string.
    pub fn bytes(&mut self) -> Result<&'a [u8], Error> {
        match self.next()? {
            (Kind::String, payload, _) => Ok(payload),
            (Kind::List, ..) => Err(Error::ExpectedString),
        }
    }

    /// The next element, a string of exactly `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.bytes()?.try_into().map_err(|_| Error::WrongLength)
    }

    /// The next element, an unsigned integer of at most 64 bits.
    pub fn u64(&mut self) -> Result<u64, Error> {
        uint(self.bytes()?)
    }

    /// The next element, an unsigned integer of at most 32 bits.
    pub fn u32(&mut self) -> Result<u32, Error> {
        u32::try_from(self.u64()?).map_err(|_| Error::WrongLength)
    }

    /// The next element, an unsigned integer of at most 16 bits.
    pub fn u16(&mut self) -> Result<u16, Error> {
        u16::try_from(self.u64()?).map_err(|_| Error::WrongLength)
    }

    /// The next element, which must be a list.
    pub fn nested(&mut self) -> Result<Reader<'a>, Error> {
        match self.next()? {
            (Kind::List, payload, _) => Ok(Reader { rest: payload }),
            (Kind::String, ..) => Err(Error::ExpectedList),
        }
    }

    /// The next element of any kind, as its bytes with the header. Its contents are not checked.
    pub fn raw(&mut self) -> Result<&'a [u8], Error> {
        self.next().map(|(_, _, item)| item)
    }
}

/// Reads `input` as one string and nothing else.
pub fn string(input: &[u8]) -> Result<&[u8], Error> {
    match split(input)? {
        (Kind::String, payload, _, []) => Ok(payload),
        (Kind::String, ..) => Err(Error::Trailing),
        (Kind::List, ..) => Err(Error::ExpectedString),
    }
}

/// Reads `input` as one unsigned integer and nothing else.
pub fn integer(input: &[u8]) -> Result<u64, Error> {
    uint(string(input)?)
}

/// How deep a value may nest; a deeper one is refused. Node records in use nest twice.
const MAX_DEPTH: usize = 16;

/// Checks that `input` is exactly one item, canonical in all its parts.
pub fn validate(input: &[u8]) -> Result<(), Error> {
    let (_, _, _, rest) = split(input)?;
    if !rest.is_empty() {
        return Err(Error::Trailing);
    }
    validate_items(input, MAX_DEPTH)
}

fn validate_items(mut input: &[u8], depth: usize) -> Result<(), Error> {
    while !input.is_empty() {
        let (kind, payload, _, rest) = split(input)?;
        if kind == Kind::List {
            validate_items(payload, depth.checked_sub(1).ok_or(Error::NotCanonical)?)?;
        }
        input = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_not_canonical() {
        let table: &[(&[u8], Error)] = &[
            (&[], Error::Truncated),
            (&[0x81, 0x01], Error::NotCanonical), // a single byte below 0x80 stands for itself
            (&[0xb8, 0x01, 0x61], Error::NotCanonical), // long form of a short string
            (&[0xb9, 0x00, 0x38], Error::NotCanonical), // length with a leading zero
            (&[0x83, 0x61, 0x62], Error::Truncated), // string cut off
            (&[0xbf, 255, 255, 255, 255, 255, 255, 255, 255], Error::Truncated), // length beyond usize
            (&[0x61, 0x62], Error::Trailing),
            (&[0xc1, 0x61], Error::ExpectedString),
        ];
        for (input, error) in table {
            assert_eq!(string(input), Err(*error), "{input:02x?}");
        }
        assert_eq!(integer(&[0x82, 0x00, 0x01]), Err(Error::NotCanonical));
        assert_eq!(integer(&[0x00]), Err(Error::NotCanonical));
        assert_eq!(integer(&[0x80]), Ok(0));
        assert_eq!(integer(&[0x89, 1, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Error::WrongLength));
    }

    #[test]
    fn reads_a_list_front_to_back() {
        let mut reader = Reader::list(&[0xc7, 0x01, 0x82, 0x01, 0x00, 0xc1, 0x05, 0x61]).unwrap();
        assert_eq!(reader.u16(), Ok(1));
        assert_eq!(reader.raw(), Ok(&[0x82, 0x01, 0x00][..]));
        let mut nested = reader.nested().unwrap();
        assert_eq!(nested.u64(), Ok(5));
        nested.finish().unwrap();
        assert_eq!(reader.finish(), Err(Error::Trailing));
        assert_eq!(reader.bytes(), Ok(&b"a"[..]));
        assert_eq!(reader.bytes(), Err(Error::MissingElement));
    }

    #[test]
    fn nesting_without_end_is_refused_not_followed() {
        // 50 lists inside each other, as an attacker would use to overflow the stack.
        let mut bytes = vec![0xc0];
        for _ in 0..50 {
            let mut outer = vec![0xc0 + u8::try_from(bytes.len()).unwrap()];
            outer.append(&mut bytes);
            bytes = outer;
        }
        assert_eq!(validate(&bytes), Err(Error::NotCanonical));
    }

    proptest::proptest! {
        /// The `rlp` crate reads everything that this reader accepts in the same way.
        #[test]
        fn agrees_with_the_rlp_crate(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            if let Ok(payload) = string(&bytes) {
                proptest::prop_assert_eq!(::rlp::Rlp::new(&bytes).data().unwrap(), payload);
            }
            if let Ok(mut reader) = Reader::list(&bytes) {
                let theirs = ::rlp::Rlp::new(&bytes);
                let mut index = 0;
                while let Ok(item) = reader.raw() {
                    proptest::prop_assert_eq!(theirs.at(index).unwrap().as_raw(), item);
                    index += 1;
                }
            }
        }
    }
}
