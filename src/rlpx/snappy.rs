//! Snappy for message payloads (raw format, EIP-706). Every length is checked before memory is allocated.
//!
//! A payload has at most 16 MiB - 1 bytes uncompressed. Compressed it must fit a frame together with its code, and the
//! size field of a frame has 24 bits as well. Data that does not compress grows by 3 bytes per 64 KiB and a 4-byte
//! length, so its limit is 16,776,442 bytes.
//!
//! Applications queue the payloads that [`Decompressor`] returns, so a payload must not keep much more memory allocated
//! than its size. Only payloads of up to 256 bytes share an allocation, of 2 KiB. Sharing saves time there (the
//! allocator is a visible part of the cost of a 100-byte message), and 2 KiB bound the memory that one queued message
//! keeps.

use std::fmt;

use bytes::{Bytes, BytesMut};

use super::frame::MAX_FRAME;

/// The most bytes a payload may have before compression and after decompression.
pub const MAX_PAYLOAD: usize = (1 << 24) - 1;

/// The largest compressed payload: a frame without the one byte of a message code below 0x80.
pub const MAX_COMPRESSED: usize = MAX_FRAME - 1;

/// No snappy element writes more than 64 bytes for 3 (a copy with a 16-bit offset), so 22 is above every real ratio. A
/// header that claims more is a decompression bomb, whatever data follows.
const MAX_RATIO: usize = 22;

/// Payloads of at most this many bytes share allocations.
const SMALL: usize = 256;
/// The size of a shared allocation in bytes, and so the most memory that a small payload keeps.
pub const SHARED_CHUNK: usize = 2048;

/// Compression writes to a buffer first, which is kept if it has at most this many bytes.
const KEPT_SCRATCH: usize = 256 * 1024;

/// A message that no frame can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "message too large: {size} bytes {form}; at most {MAX_PAYLOAD} uncompressed and {MAX_COMPRESSED} compressed \
     can be sent (16776442 for data that does not compress)"
)]
pub struct MessageTooLarge {
    /// Its size in bytes.
    size: usize,
    form: &'static str,
}

impl MessageTooLarge {
    fn uncompressed(size: usize) -> Self {
        Self { size, form: "uncompressed" }
    }

    pub(super) fn compressed(size: usize) -> Self {
        Self { size, form: "compressed" }
    }
}

/// Bytes that are not the snappy form of an acceptable payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnappyError {
    /// The header claims more than a message may have, or more than its data could hold.
    #[error("a snappy header claims {claimed} bytes for {compressed} compressed ones")]
    TooLarge {
        /// The size in the header, in bytes.
        claimed: usize,
        /// The size of the compressed data, in bytes.
        compressed: usize,
    },
    /// The data is not in the snappy format.
    #[error("the payload is not valid snappy")]
    Corrupt,
}

/// A compressed payload. A clone is cheap: a payload is compressed once and sent to any number of peers.
#[derive(Clone, PartialEq, Eq)]
pub struct Compressed {
    bytes: Bytes,
    raw_len: usize,
}

impl Compressed {
    /// The compressed bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How many bytes the payload has uncompressed.
    #[must_use]
    pub fn raw_len(&self) -> usize {
        self.raw_len
    }
}

impl fmt::Debug for Compressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Compressed({} of {} bytes)", self.bytes.len(), self.raw_len)
    }
}

/// Compresses payloads. Keeps its tables and buffer from one payload to the next.
#[derive(Debug)]
pub struct Compressor {
    encoder: snap::raw::Encoder,
    scratch: Vec<u8>,
}

impl Default for Compressor {
    fn default() -> Self {
        Self { encoder: snap::raw::Encoder::new(), scratch: Vec::new() }
    }
}

impl Compressor {
    /// Compresses `payload` into an allocation of exactly the size it needs.
    pub fn compress(&mut self, payload: &[u8]) -> Result<Compressed, MessageTooLarge> {
        let raw_len = payload.len();
        if raw_len > MAX_PAYLOAD {
            return Err(MessageTooLarge::uncompressed(raw_len));
        }
        let room = snap::raw::max_compress_len(raw_len);
        if self.scratch.len() < room {
            self.scratch = vec![0; room];
        }
        let len = self
            .encoder
            .compress(payload, &mut self.scratch)
            .map_err(|_| MessageTooLarge::uncompressed(raw_len))?;
        let bytes = Bytes::copy_from_slice(self.scratch.get(..len).unwrap_or_default());
        if self.scratch.len() > KEPT_SCRATCH {
            self.scratch = Vec::new();
        }
        if len > MAX_COMPRESSED {
            Err(MessageTooLarge::compressed(len))
        } else {
            Ok(Compressed { bytes, raw_len })
        }
    }
}

/// Decompresses payloads.
#[derive(Debug, Default)]
pub struct Decompressor {
    chunk: BytesMut,
}

impl Decompressor {
    /// Decompresses `compressed` to a payload of at most `limit` bytes ([`MAX_PAYLOAD`] at most).
    pub fn decompress(&mut self, compressed: &[u8], limit: usize) -> Result<Bytes, SnappyError> {
        let len = snap::raw::decompress_len(compressed).map_err(|_| SnappyError::Corrupt)?;
        if len > limit.min(MAX_PAYLOAD) || len > compressed.len().saturating_mul(MAX_RATIO) {
            return Err(SnappyError::TooLarge { claimed: len, compressed: compressed.len() });
        }
        let mut payload = if len <= SMALL { self.small(len) } else { BytesMut::zeroed(len) };
        match snap::raw::Decoder::new().decompress(compressed, &mut payload) {
            Ok(written) if written == len => Ok(payload.freeze()),
            _ => Err(SnappyError::Corrupt),
        }
    }

    /// Copies a payload that is not compressed, into memory as [`Self::decompress`] allocates it.
    pub fn copy(&mut self, payload: &[u8]) -> Bytes {
        if payload.len() > SMALL {
            return Bytes::copy_from_slice(payload);
        }
        let mut copy = self.small(payload.len());
        copy.copy_from_slice(payload);
        copy.freeze()
    }

    fn small(&mut self, len: usize) -> BytesMut {
        if self.chunk.capacity() < len {
            self.chunk = BytesMut::with_capacity(SHARED_CHUNK);
        }
        self.chunk.resize(len, 0);
        self.chunk.split()
    }

    /// Releases the shared allocation: an idle connection holds no buffer.
    pub fn release(&mut self) {
        self.chunk = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that snappy cannot compress.
    fn noise(len: usize) -> Vec<u8> {
        let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(7);
        let mut bytes = vec![0; len];
        rand::RngCore::fill_bytes(&mut rng, &mut bytes);
        bytes
    }

    #[test]
    fn round_trips_across_the_sharing_limit() {
        let (mut compressor, mut decompressor) = (Compressor::default(), Decompressor::default());
        for len in [0, 1, 55, SMALL - 1, SMALL, SMALL + 1, 5000, 70_000] {
            for payload in [vec![0; len], noise(len)] {
                let compressed = compressor.compress(&payload).unwrap();
                assert_eq!(compressed.raw_len(), len);
                assert_eq!(decompressor.decompress(compressed.as_bytes(), MAX_PAYLOAD).unwrap(), payload);
                assert_eq!(decompressor.copy(&payload), payload);
            }
        }
    }

    #[test]
    fn small_payloads_share_an_allocation_large_ones_do_not() {
        let mut decompressor = Decompressor::default();
        let compressed = Compressor::default().compress(&noise(100)).unwrap();
        let first = decompressor.decompress(compressed.as_bytes(), MAX_PAYLOAD).unwrap();
        let second = decompressor.decompress(compressed.as_bytes(), MAX_PAYLOAD).unwrap();
        assert_eq!(first.as_ptr() as usize + 100, second.as_ptr() as usize);
        decompressor.release();
        assert_eq!(decompressor.chunk.capacity(), 0);
    }

    #[test]
    fn bombs_are_refused_by_their_header() {
        let mut decompressor = Decompressor::default();
        // 2^32 - 1, 16 MiB and 1 MiB claimed by a handful of bytes.
        for bomb in
            [&[0xff, 0xff, 0xff, 0xff, 0x0f, 0][..], &[0x80, 0x80, 0x80, 0x08, 0], &[0x80, 0x80, 0x40, 0]]
        {
            let error = decompressor.decompress(bomb, MAX_PAYLOAD).unwrap_err();
            assert!(matches!(error, SnappyError::TooLarge { .. }), "{error}");
        }
        // A real payload over the caller's limit.
        let compressed = Compressor::default().compress(&[0; 3000]).unwrap();
        let error = decompressor.decompress(compressed.as_bytes(), 2048).unwrap_err();
        assert!(matches!(error, SnappyError::TooLarge { claimed: 3000, .. }), "{error}");
        // The best ratio of real data stays below the ratio that is refused.
        let best = Compressor::default().compress(&vec![0; MAX_PAYLOAD]).unwrap();
        assert_eq!(decompressor.decompress(best.as_bytes(), MAX_PAYLOAD).unwrap().len(), MAX_PAYLOAD);
    }

    #[test]
    fn what_is_not_snappy_is_corrupt() {
        let mut decompressor = Decompressor::default();
        // Nothing; an incomplete length; a length without data; a copy from before the start; data beyond the length.
        for bytes in [&[][..], &[0x80], &[0x05], &[0x04, 0x01, 0x01], &[0x01, 0x04, 0x61, 0x62]] {
            assert_eq!(
                decompressor.decompress(bytes, MAX_PAYLOAD),
                Err(SnappyError::Corrupt),
                "{bytes:02x?}"
            );
        }
    }

    /// The limits in the error text are the real ones.
    #[test]
    fn the_largest_messages() {
        let mut compressor = Compressor::default();
        assert!(compressor.compress(&vec![0; MAX_PAYLOAD]).is_ok());
        let error = compressor.compress(&vec![0; MAX_PAYLOAD + 1]).unwrap_err().to_string();
        assert!(error.contains("16777216 bytes uncompressed") && error.contains("16776442"), "{error}");

        let mut incompressible = noise(16_776_443);
        let error = compressor.compress(&incompressible).unwrap_err().to_string();
        assert!(error.contains("compressed") && error.contains("16777215"), "{error}");
        incompressible.truncate(16_776_442);
        assert_eq!(compressor.compress(&incompressible).unwrap().as_bytes().len(), MAX_COMPRESSED);
    }
}
