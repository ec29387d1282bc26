//! Messages against the examples of the specification, and against malformed ones.

use data_encoding::HEXLOWER;

use super::*;
use crate::node::Record;

fn hex(text: &str) -> Vec<u8> {
    HEXLOWER.decode(text.as_bytes()).unwrap()
}

/// The message encodings that an early version of devp2p's discv5-wire-test-vectors.md gave ("Protocol Message
/// Encodings"); PING, PONG and NODES have not changed since.
#[test]
fn encodings_of_the_specification() {
    let id = RequestId::new(&[1]).unwrap();
    let mut out = BytesMut::new();
    Ping { id, enr_seq: 1 }.encode(&mut out);
    assert_eq!(out, hex("01c20101"));
    out.clear();
    Pong { id, enr_seq: 1, recipient: "127.0.0.1:5000".parse().unwrap() }.encode(&mut out);
    assert_eq!(out, hex("02ca0101847f000001821388"));
    out.clear();
    // v5.1 made the one distance a list.
    encode_findnode(&mut out, id, &[256]);
    assert_eq!(out, hex("03c501c3820100"));

    let records: [Record; 2] = [
        "enr:-HW4QBzimRxkmT18hMKaAL3IcZF1UcfTMPyi3Q1pxwZZbcZVRI8DC5infUAB_UauARLOJtYTxaagKoGmIjzQxO2qUygBgmlkgnY0iXNlY3AyNTZrMaEDymNMrg1JrLQB2KTGtv6MVbcNEVv0AHacwUAPMljNMTg",
        "enr:-HW4QNfxw543Ypf4HXKXdYxkyzfcxcO-6p9X986WldfVpnVTQX1xlTnWrktEWUbeTZnmgOuAY_KUhbVV1Ft98WoYUBMBgmlkgnY0iXNlY3AyNTZrMaEDDiy3QkHAxPyOgWbxp5oF1bDdlYE6dLCUUp8xfVw50jU",
    ]
    .map(|text| text.parse().unwrap());
    out.clear();
    encode_nodes(&mut out, id, 2, &records);
    let Message::Nodes(nodes) = Message::decode(&out).unwrap() else { panic!("not NODES") };
    assert_eq!((nodes.id, nodes.total), (id, 2));
    let read: Vec<Record> = nodes.records().map(|raw| Record::decode(raw).unwrap()).collect();
    assert_eq!(read, records);
}

#[test]
fn round_trips() {
    for id in [RequestId::default(), RequestId::new(&[0, 7]).unwrap(), RequestId::from_u64(u64::MAX)] {
        let mut out = BytesMut::new();
        let pong = Pong { id, enr_seq: u64::MAX, recipient: "[2001:db8::1]:30303".parse().unwrap() };
        pong.encode(&mut out);
        assert!(matches!(Message::decode(&out), Ok(Message::Pong(read)) if read == pong));
        out.clear();
        let request = TalkRequest { id, protocol: b"p", request: &[0; 300] };
        request.encode(&mut out);
        assert!(matches!(Message::decode(&out), Ok(Message::TalkRequest(read)) if read == request));
        out.clear();
        let response = TalkResponse { id, response: b"" };
        response.encode(&mut out);
        assert!(matches!(Message::decode(&out), Ok(Message::TalkResponse(read)) if read == response));
        out.clear();
        encode_findnode(&mut out, id, &[0, 256, 3]);
        let Message::FindNode(find) = Message::decode(&out).unwrap() else { panic!("not FINDNODE") };
        assert_eq!(find.distances().collect::<Vec<_>>(), [0, 256, 3]);
        assert_eq!(find.id, id);
    }
}

/// A mapped IPv4 address is the IPv4 address, both ways.
#[test]
fn pong_addresses_are_canonical() {
    let mut out = BytesMut::new();
    let id = RequestId::default();
    Pong { id, enr_seq: 0, recipient: "[::ffff:1.2.3.4]:9".parse().unwrap() }.encode(&mut out);
    let Message::Pong(pong) = Message::decode(&out).unwrap() else { panic!("not PONG") };
    assert_eq!(pong.recipient.to_string(), "1.2.3.4:9");
    // The same in the 16 byte form, which others send from sockets of both families.
    let mapped = hex("02d480809000000000000000000000ffff0102030409");
    assert!(matches!(Message::decode(&mapped), Ok(Message::Pong(read)) if read == pong));
}

#[test]
fn malformed_messages_are_refused_with_the_reason() {
    let table: &[(&str, MessageError)] = &[
        ("", MessageError::Empty),
        ("00c0", MessageError::Unknown(0)),
        ("07c20101", MessageError::Unknown(7)), // the topic messages
        ("08c20101", MessageError::Unknown(8)),
        ("09c20101", MessageError::Unknown(9)),
        ("0ac20101", MessageError::Unknown(10)),
        ("01cb8900000000000000000101", MessageError::RequestId), // nine bytes
        ("01", rlp::Error::Truncated.into()),
        ("01c101", rlp::Error::MissingElement.into()),
        ("01c3010101", rlp::Error::Trailing.into()),
        ("01c2010100", rlp::Error::Trailing.into()),
        ("01c3018101", rlp::Error::NotCanonical.into()),
        ("02c90101837f0000821388", rlp::Error::WrongLength.into()), // three bytes of address
        ("02cb0101847f00000183138888", rlp::Error::WrongLength.into()), // port over 16 bits
        ("03c20180", rlp::Error::ExpectedList.into()),
        ("03c301c1c0", rlp::Error::ExpectedString.into()),
        ("04c2c001", rlp::Error::ExpectedString.into()),
        ("05c20161", rlp::Error::MissingElement.into()),
    ];
    for (text, error) in table {
        assert_eq!(Message::decode(&hex(text)).unwrap_err(), *error, "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn decoding_is_total(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), kind in 0u8..8) {
        let mut bytes = bytes;
        bytes.insert(0, kind);
        if let Ok(Message::Nodes(nodes)) = Message::decode(&bytes) {
            for raw in nodes.records() {
                let _ = Record::decode(raw);
            }
        }
    }
}
