//! Frames against recorded ones, with cut and changed streams, and with authentic frames that break the format.

use proptest::prelude::*;
use sha3::{Digest, Keccak256};

use super::*;
use crate::rlpx::{
    secrets::{Contribution, Role, Secrets},
    tests::vectors,
};

fn pair() -> (FrameWriter, FrameReader) {
    let mac = || Mac::new(&[2; 32], Keccak256::new().chain_update(b"state"));
    (FrameWriter::new(&[1; 32], mac()), FrameReader::new(&[1; 32], mac()))
}

fn hex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
}

/// go-ethereum, p2p/rlpx/rlpx_test.go, TestFrameReadWrite. Its hash is a fake, so only the parts that do not depend on
/// the MAC can be compared: the ciphertexts of header and body. The recorded session covers the real MAC.
#[test]
fn golden_frame() {
    let empty: [u8; 32] = Keccak256::digest([]).into();
    let mut writer = FrameWriter::new(&empty, Mac::new(&empty, Keccak256::new()));
    let mut out = BytesMut::new();
    writer.write(8, &hex("c401020304"), &mut out).unwrap();
    assert_eq!(out.len(), 64);
    assert_eq!(out[..16], hex("00828ddae471818bb0bfa6b551d1cb42"));
    assert_eq!(out[32..48], hex("ba628a4ba590cb43f7848f41c4382885"));
}

/// One Hello in each direction, with its MAC, as the first implementations recorded it.
#[test]
fn recorded_session() {
    let vectors = vectors(include_str!("../../../tests/vectors/rlpx-session.txt"));
    let agreement = vectors
        .key("initiator_ephemeral_private_key")
        .agree(&vectors.key("receiver_ephemeral_private_key").public());
    let auth = Contribution { nonce: vectors.array("initiator_nonce"), packet: vectors.get("auth") };
    let ack = Contribution { nonce: vectors.array("receiver_nonce"), packet: vectors.get("ack") };
    for (role, sent, received) in [
        (Role::Initiator, "initiator_hello_packet", "receiver_hello_packet"),
        (Role::Recipient, "receiver_hello_packet", "initiator_hello_packet"),
    ] {
        let secrets = Secrets::derive(role, &agreement, auth, ack);
        let mut reader = FrameReader::new(&secrets.aes, Mac::new(&secrets.mac, secrets.ingress));
        let mut bytes = BytesMut::from(vectors.get(received));
        let Frame { code, payload: body, wire_len } = reader.read(&mut bytes, MAX_FRAME).unwrap().unwrap();
        assert_eq!(wire_len, vectors.get(received).len());
        assert_eq!((code, bytes.len()), (0, 0));
        Reader::list(&body).unwrap();

        // The other side writes the same bytes again.
        let other = if role == Role::Initiator { Role::Recipient } else { Role::Initiator };
        let secrets = Secrets::derive(other, &agreement, auth, ack);
        let mut writer = FrameWriter::new(&secrets.aes, Mac::new(&secrets.mac, secrets.egress));
        let mut out = BytesMut::new();
        writer.write(code, &body, &mut out).unwrap();
        assert_eq!(out, vectors.get(received), "{sent}");
    }
}

#[test]
fn codes_are_canonical_rlp() {
    for code in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000, u64::MAX] {
        let (bytes, start) = encode_code(code);
        assert_eq!(bytes[start..], ::rlp::encode(&code)[..], "{code:#x}");
        let mut body = BytesMut::from(&bytes[start..]);
        body.put_u8(0xaa);
        assert_eq!(take_code(&mut body), Some(code));
        assert_eq!(&body[..], [0xaa]);
    }
}

#[test]
fn a_changed_bit_breaks_the_frame_it_is_in() {
    let mut clean = BytesMut::new();
    pair().0.write(3, b"a payload", &mut clean).unwrap();
    for at in 0..clean.len() {
        let mut changed = clean.clone();
        changed[at] ^= 0x10;
        let error = pair().1.read(&mut changed, MAX_FRAME).unwrap_err();
        assert_eq!(error, if at < 32 { FrameError::HeaderTag } else { FrameError::BodyTag }, "byte {at}");
    }
}

#[test]
fn frames_cannot_be_dropped_repeated_or_swapped() {
    let (mut writer, mut reader) = pair();
    let (mut first, mut second) = (BytesMut::new(), BytesMut::new());
    writer.write(1, b"first", &mut first).unwrap();
    writer.write(1, b"second", &mut second).unwrap();
    assert_eq!(pair().1.read(&mut second.clone(), MAX_FRAME), Err(FrameError::HeaderTag));
    reader.read(&mut first.clone(), MAX_FRAME).unwrap().unwrap();
    assert_eq!(reader.read(&mut first, MAX_FRAME), Err(FrameError::HeaderTag));
}

/// A writer that may break the rules of the real one: any body, any announced size.
fn forge(body: &[u8], size: u32) -> BytesMut {
    let (mut writer, _) = pair();
    let mut out = BytesMut::new();
    let mut header = [0; 16];
    header[..3].copy_from_slice(&size.to_be_bytes()[1..]);
    writer.stream.apply_keystream(&mut header);
    out.put_slice(&header);
    out.put_slice(&writer.mac.header(&header));
    let mut padded = body.to_vec();
    padded.resize(body.len().next_multiple_of(BLOCK), 0);
    writer.stream.apply_keystream(&mut padded);
    writer.mac.absorb(&padded);
    out.put_slice(&padded);
    out.put_slice(&writer.mac.body());
    out
}

#[test]
fn authentic_nonsense_is_refused() {
    let table: &[(BytesMut, FrameError)] = &[
        (forge(&[], 0), FrameError::Empty),
        (forge(&[0xc0], 1), FrameError::Code),             // a list
        (forge(&[0x82, 0x00, 0x01], 3), FrameError::Code), // leading zero
        (forge(&[0x81, 0x05], 2), FrameError::Code),       // not the shortest form
        (forge(&[0x82, 0x01], 2), FrameError::Code),       // cut off
        (forge(&[0x89, 1, 0, 0, 0, 0, 0, 0, 0, 0], 10), FrameError::Code), // over 64 bits
        (forge(&[1; 16], 4097), FrameError::TooLarge { size: 4097, limit: 4096 }),
    ];
    for (bytes, error) in table {
        assert_eq!(pair().1.read(&mut bytes.clone(), 4096).unwrap_err(), *error);
    }
    // Header-data other than C2 80 80 (here: none) is ignored.
    let frame = pair().1.read(&mut forge(&[7, 8], 2), 4096).unwrap().unwrap();
    assert_eq!((frame.code, &frame.payload[..]), (7, &[8][..]));
}

/// A frame announces 16 MiB and sends nothing: the reader knows the size, and has reserved nothing.
#[test]
fn an_announced_size_costs_nothing() {
    let (_, mut reader) = pair();
    let mut received = forge(&[], 0x00ff_ffff);
    received.truncate(HEADER_LEN + 5);
    let capacity = received.capacity();
    assert_eq!(reader.read(&mut received, MAX_FRAME), Ok(None));
    assert!(reader.is_inside_frame());
    assert_eq!(received.len(), 5);
    assert!(received.capacity() <= capacity);
}

#[test]
fn the_largest_frame_fits_and_no_larger_one() {
    assert_eq!(body_len(1, MAX_FRAME - 1), Ok(0x00ff_ffff));
    assert!(body_len(1, MAX_FRAME).is_err());
    assert!(body_len(9, usize::MAX).is_err());
    let (mut writer, mut out) = (pair().0, BytesMut::new());
    assert!(writer.write(0x10, &vec![0; MAX_FRAME], &mut out).is_err());
    assert!(out.is_empty());
}

proptest! {
    /// Messages are read as they were written, however the stream was cut.
    #[test]
    fn round_trip_at_any_split(
        messages in proptest::collection::vec((0_u64..400, proptest::collection::vec(any::<u8>(), 0..200)), 1..20),
        cuts in proptest::collection::vec(1_usize..300, 1..20),
    ) {
        let (mut writer, mut reader) = pair();
        let mut wire = BytesMut::new();
        for (code, payload) in &messages {
            writer.write(*code, payload, &mut wire).unwrap();
        }
        let mut received = BytesMut::new();
        let mut read = Vec::new();
        let mut cuts = cuts.iter().cycle();
        while !wire.is_empty() {
            let cut = wire.len().min(*cuts.next().unwrap());
            received.extend_from_slice(&wire.split_to(cut));
            while let Some(frame) = reader.read(&mut received, MAX_FRAME).unwrap() {
                read.push((frame.code, frame.payload.to_vec()));
            }
        }
        prop_assert!(received.is_empty());
        prop_assert_eq!(read, messages);
    }
}
