//! The handshake against the EIP-8 vectors and against malformed packets.

use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::rlpx::{frame::MAX_FRAME, tests::vectors};

const EIP_8: &str = include_str!("../../../tests/vectors/rlpx-eip8.txt");

fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

#[test]
fn reads_the_auth_vectors() {
    let vectors = vectors(EIP_8);
    let (a, b) = (vectors.key("static_key_a"), vectors.key("static_key_b"));
    for name in ["auth2", "auth3"] {
        let mut received = BytesMut::from(vectors.get(name));
        let packet = take_packet(&mut received).unwrap().unwrap();
        assert!(received.is_empty());
        let auth = Auth::decode(&unseal(&b, &packet).unwrap()).unwrap();
        assert_eq!(auth.initiator, a.public(), "{name}");
        assert_eq!(&auth.nonce, vectors.array("nonce_a"), "{name}");
        let digest = challenge(&b, &auth.initiator, &auth.nonce);
        let ephemeral = PublicKey::recover(&digest, &auth.signature).unwrap();
        assert_eq!(ephemeral, vectors.key("ephemeral_key_a").public(), "{name}");
        // The recipient answers it as well.
        let mut out = BytesMut::new();
        let session = Recipient.answer(&b, &packet, &mut rng(1), &mut out).unwrap();
        assert_eq!(session.remote, a.public());
        assert!(take_packet(&mut out).unwrap().is_some());
    }
}

#[test]
fn reads_the_ack_vectors() {
    let vectors = vectors(EIP_8);
    for name in ["ack2", "ack3"] {
        let ack = Ack::decode(&unseal(&vectors.key("static_key_a"), vectors.get(name)).unwrap()).unwrap();
        assert_eq!(ack.ephemeral, vectors.key("ephemeral_key_b").public(), "{name}");
        assert_eq!(&ack.nonce, vectors.array("nonce_b"), "{name}");
    }
}

#[test]
fn both_sides_get_the_same_session() {
    let (a, b) = (NodeKey::random(&mut rng(1)), NodeKey::random(&mut rng(2)));
    let (mut auth, mut ack) = (BytesMut::new(), BytesMut::new());
    let initiator = Initiator::start(&a, b.public(), &mut rng(3), &mut auth);
    let auth = take_packet(&mut auth).unwrap().unwrap();
    let mut recipient = Recipient.answer(&b, &auth, &mut rng(4), &mut ack).unwrap();
    let ack = take_packet(&mut ack).unwrap().unwrap();
    let mut initiator = initiator.finish(&a, &ack).unwrap();
    assert_eq!((initiator.remote, recipient.remote), (b.public(), a.public()));

    let mut wire = BytesMut::new();
    initiator.writer.write(0, b"to the recipient", &mut wire).unwrap();
    let frame = recipient.reader.read(&mut wire, MAX_FRAME).unwrap().unwrap();
    assert_eq!((frame.code, &frame.payload[..]), (0, &b"to the recipient"[..]));
    recipient.writer.write(1, b"to the initiator", &mut wire).unwrap();
    let frame = initiator.reader.read(&mut wire, MAX_FRAME).unwrap().unwrap();
    assert_eq!((frame.code, &frame.payload[..]), (1, &b"to the initiator"[..]));
}

/// Packets of one side vary in size, within the bounds of EIP-8 and of what all implementations accept.
#[test]
fn sizes_vary() {
    let (a, b) = (NodeKey::random(&mut rng(1)), NodeKey::random(&mut rng(2)));
    let mut sizes = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let mut auth = BytesMut::new();
        let _ = Initiator::start(&a, b.public(), &mut rng(seed), &mut auth);
        // Signature, key, nonce, version and their headers are 171 bytes.
        assert!((2 + ecies::OVERHEAD + 171 + 100..=2 + ecies::OVERHEAD + 171 + 300).contains(&auth.len()));
        sizes.insert(auth.len());
    }
    assert!(sizes.len() > 10);
}

#[test]
fn packets_are_taken_as_they_arrive() {
    let vectors = vectors(EIP_8);
    let mut received = BytesMut::new();
    for (at, byte) in vectors.get("auth2").iter().enumerate() {
        assert_eq!(take_packet(&mut received).unwrap(), None, "{at} bytes");
        received.put_u8(*byte);
    }
    received.put_slice(b"the next frame");
    assert_eq!(take_packet(&mut received).unwrap().unwrap(), vectors.get("auth2"));
    assert_eq!(&received[..], b"the next frame");
}

/// A size is refused at its second byte: an auth of 64 KiB never fills a buffer.
#[test]
fn impossible_sizes_are_refused_at_once() {
    for (size, fits) in [(0, false), (112, false), (113, true), (2048, true), (2049, false), (0xffff, false)]
    {
        let mut received = BytesMut::from(&u16::to_be_bytes(size)[..]);
        assert_eq!(take_packet(&mut received).is_ok(), fits, "{size}");
    }
    // The first bytes of an HTTP request, of TLS, and of the format before EIP-8 (04 and a coordinate).
    for garbage in [&b"GET / HTTP/1.1"[..], &[0x16, 0x03, 0x01, 0x02], &[0x04, 0x8c, 0xa7, 0x9a]] {
        let mut received = BytesMut::from(garbage);
        let refused = take_packet(&mut received).is_err();
        assert!(refused || u16::from_be_bytes([garbage[0], garbage[1]]) <= 2048, "{garbage:02x?}");
    }
}

/// Every way in which the contents of a packet that decrypts can be wrong.
#[test]
fn refuses_bad_contents() {
    let (a, b) = (NodeKey::random(&mut rng(1)), NodeKey::random(&mut rng(2)));
    let nonce = [5; 32];
    let signature = NodeKey::random(&mut rng(3)).sign_recoverable(&challenge(&a, &b.public(), &nonce));
    let answer = |body: Vec<u8>| {
        let mut out = BytesMut::new();
        let result = Recipient.answer(&b, &seal(&b.public(), body, &mut rng(4)), &mut rng(5), &mut out);
        assert_eq!(result.is_err(), out.is_empty(), "an ack goes out if and only if auth was good");
        result.map(|session| session.remote)
    };
    let good = Auth { signature, initiator: a.public(), nonce };
    assert_eq!(answer(good.encode()), Ok(a.public()));

    // A recovery id above 3; a zero signature. A signature over other data gives another key: that cannot be detected.
    let mut bad = signature;
    bad[64] = 4;
    assert_eq!(answer(Auth { signature: bad, ..good }.encode()), Err(Refused));
    assert_eq!(answer(Auth { signature: [0; 65], initiator: a.public(), nonce }.encode()), Err(Refused));
    assert_eq!(answer(vec![]), Err(Refused));
    assert_eq!(answer(vec![0xc0]), Err(Refused));
    assert_eq!(answer(vec![0x80]), Err(Refused));
    assert_eq!(answer(vec![0xf8]), Err(Refused));
    // An initiator key off the curve.
    let mut stream = ::rlp::RlpStream::new_list(4);
    stream
        .append(&signature.as_slice())
        .append(&[1_u8; 64].as_slice())
        .append(&nonce.as_slice())
        .append(&4_u8);
    assert_eq!(answer(stream.out().to_vec()), Err(Refused));
}

/// An ack for another attempt gives a session whose first frame does not verify; a changed ack gives no session.
#[test]
fn an_ack_belongs_to_its_auth() {
    let (a, b) = (NodeKey::random(&mut rng(1)), NodeKey::random(&mut rng(2)));
    let (mut auth, mut other, mut ack) = (BytesMut::new(), BytesMut::new(), BytesMut::new());
    let first = Initiator::start(&a, b.public(), &mut rng(3), &mut auth);
    let second = Initiator::start(&a, b.public(), &mut rng(4), &mut other);
    let mut recipient = Recipient.answer(&b, &auth, &mut rng(5), &mut ack).unwrap();
    let mut frame = BytesMut::new();
    recipient.writer.write(0, b"hello", &mut frame).unwrap();
    let mut wrong = second.finish(&a, &ack).unwrap();
    assert!(wrong.reader.read(&mut frame.clone(), MAX_FRAME).is_err());

    let mut changed = ack.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    assert!(first.finish(&a, &changed).is_err());
}
