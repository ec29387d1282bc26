//! The encrypted transport, with input from strangers and from peers that have keys.

use bytes::{BufMut, BytesMut};
use devp2pd::node::NodeKey;
use devp2pd::rlpx::frame::{Frame, FrameReader, MAX_FRAME, wire_len};
use devp2pd::rlpx::handshake::take_packet;
use devp2pd::rlpx::snappy::MAX_PAYLOAD;
use devp2pd::rlpx::{Compressor, Decompressor, Initiator, Recipient, Session, ecies};
use rand::{SeedableRng, rngs::StdRng};

fn key(byte: u8) -> NodeKey {
    NodeKey::from_bytes(&[byte; 32]).expect("one of the valid keys")
}

/// Reads any bytes as the first packet, and any bytes inside a packet that decrypts. A refused packet gets no answer.
pub fn rlpx_handshake(data: &[u8]) {
    let (ours, theirs) = (key(1), key(2));
    let mut received = BytesMut::from(data);
    if let Ok(Some(packet)) = take_packet(&mut received) {
        assert!((113..=2048).contains(&(packet.len() - 2)));
        assert_eq!([&packet[..], &received[..]].concat(), data);
        answer(&ours, &packet);
    }

    let mut rng = StdRng::seed_from_u64(1);
    let Ok(size) = u16::try_from(data.len() + ecies::OVERHEAD) else { return };
    let mut sealed = BytesMut::new();
    sealed.put_u16(size);
    ecies::encrypt(&ours.public(), data, &size.to_be_bytes(), &mut rng, &mut sealed);
    let taken = take_packet(&mut sealed);
    assert_eq!(taken.is_ok(), size <= 2048);
    if let Ok(Some(packet)) = taken {
        answer(&ours, &packet);
        let initiator = Initiator::start(&ours, theirs.public(), &mut rng, &mut BytesMut::new());
        let _ = initiator.finish(&ours, &packet);
    }
}

fn answer(key: &NodeKey, packet: &[u8]) {
    let mut out = BytesMut::new();
    match Recipient.answer(key, packet, &mut StdRng::seed_from_u64(2), &mut out) {
        Ok(_) => assert!(take_packet(&mut out).expect("an ack of a good size").is_some() && out.is_empty()),
        Err(_) => assert!(out.is_empty()),
    }
}

/// Any bytes are refused as a ciphertext. As a plaintext they are equal after encryption and decryption, and a changed
/// ciphertext is refused.
pub fn rlpx_ecies(data: &[u8]) {
    let key = key(1);
    assert!(ecies::decrypt(&key, data, b"").is_err(), "forged in one try");
    let mut message = BytesMut::new();
    ecies::encrypt(&key.public(), data, b"size", &mut StdRng::seed_from_u64(1), &mut message);
    assert_eq!(ecies::decrypt(&key, &message, b"size").as_deref(), Ok(data));
    let at = data.iter().map(|byte| usize::from(*byte)).sum::<usize>() % message.len();
    message[at] ^= 1;
    assert!(ecies::decrypt(&key, &message, b"size").is_err());
}

fn sessions() -> (Session, Session) {
    let (a, b) = (key(1), key(2));
    let (mut auth, mut ack) = (BytesMut::new(), BytesMut::new());
    let initiator = Initiator::start(&a, b.public(), &mut StdRng::seed_from_u64(1), &mut auth);
    let recipient =
        Recipient.answer(&b, &auth, &mut StdRng::seed_from_u64(2), &mut ack).expect("a good auth");
    (initiator.finish(&a, &ack).expect("a good ack"), recipient)
}

/// Writes messages of any code and length, cuts the stream anywhere and changes at most one byte. The reader returns
/// the messages in order, up to the change. A stream of any other bytes is refused at the first header.
pub fn rlpx_frame(data: &[u8]) {
    let (a, b) = sessions();
    let mut garbage = BytesMut::from(data);
    let mut reader = b.reader;
    assert_eq!(reader.read(&mut garbage, MAX_FRAME).is_err(), data.len() >= 32);

    let (mut writer, mut reader) = (b.writer, a.reader);
    let [change, cut, rest @ ..] = data else { return };
    let mut messages = Vec::new();
    let mut wire = BytesMut::new();
    for piece in rest.chunks(usize::from(*cut) + 9) {
        let (code, payload) = piece.split_first_chunk::<8>().unwrap_or((&[0; 8], piece));
        let code = u64::from_be_bytes(*code) >> (piece.len() % 64);
        writer.write(code, payload, &mut wire).expect("a small message");
        messages.push((code, payload));
    }
    let mut changed_at = wire.len();
    if *change < 128 && !wire.is_empty() {
        changed_at = usize::from(*change) * 7 % wire.len();
        wire[changed_at] ^= 0x40;
    }
    let mut expected = messages.iter();
    let (mut received, mut consumed) = (BytesMut::new(), 0);
    for piece in wire.chunks(usize::from(*cut) % 61 + 1) {
        received.extend_from_slice(piece);
        loop {
            match reader.read(&mut received, MAX_FRAME) {
                Ok(Some(Frame { code, payload, wire_len: len })) => {
                    let (wrote, body) = expected.next().expect("no more than was written");
                    assert_eq!((code, &payload[..]), (*wrote, *body));
                    consumed += len;
                    assert!(consumed <= changed_at && len >= wire_len(payload.len()));
                }
                Ok(None) => break,
                Err(_) => return assert!(changed_at < wire.len(), "a good stream was refused"),
            }
        }
    }
    assert_eq!(changed_at, wire.len(), "a changed stream was accepted");
    assert!(expected.next().is_none() && received.is_empty());
    idle(&reader);
}

fn idle(reader: &FrameReader) {
    assert!(!reader.is_inside_frame());
}

/// A decompressed payload is bounded, and equal to the result of another decoder. A payload is equal after compression
/// and decompression.
pub fn snappy(data: &[u8]) {
    let mut decompressor = Decompressor::default();
    if let Ok(payload) = decompressor.decompress(data, MAX_PAYLOAD) {
        assert!(payload.len() <= data.len() * 22);
        assert_eq!(snap::raw::Decoder::new().decompress_vec(data).expect("snappy"), payload);
        let small = decompressor.decompress(data, payload.len() / 2);
        assert!(small.is_err() || payload.len() <= 1);
    }
    let compressed = Compressor::default().compress(data).expect("a small payload");
    assert_eq!(compressed.raw_len(), data.len());
    assert_eq!(decompressor.decompress(compressed.as_bytes(), MAX_PAYLOAD).expect("our own"), data);
    assert_eq!(decompressor.copy(data), data);
}
