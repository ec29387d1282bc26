//! The identity of a node in input from strangers: enode URLs, node records, and RLP.

use devp2pd::node::{Enode, NodeKey, NodeRef, Record, RecordBuilder};
use devp2pd::rlp::{Reader, validate};

/// An accepted URL is equal after it is written and read again.
pub fn enode_url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(enode) = text.parse::<Enode>() {
        let again: Enode = enode.to_string().parse().expect("an enode URL that we wrote");
        assert_eq!(again, enode, "{text}");
        assert_eq!(again.to_string(), enode.to_string());
    }
    // `NodeRef` parses the other three forms as well. The text of an error has a bounded length.
    match text.parse::<NodeRef>() {
        Ok(node) => assert_eq!(node.id().to_string().len(), 64),
        Err(error) => assert!(error.to_string().len() < 1024, "{error}"),
    }
}

/// A decoded record keeps its bytes. A record that is signed over entries of any content can be read again, and is
/// refused after one bit of it is changed.
pub fn record(data: &[u8]) {
    if let Ok(record) = Record::decode(data) {
        assert_eq!(record.encoded(), data);
        assert_eq!(record.to_string().parse::<Record>().as_ref(), Ok(&record));
        let _ =
            (record.endpoint(), record.endpoint4(), record.endpoint6(), record.udp_addr(), record.tcp_addr());
    }

    // The first byte selects the byte to change. The rest is entries: key length, value length, key and value.
    let Some((change, mut rest)) = data.split_first() else { return };
    let mut builder = RecordBuilder::new(u64::from(*change));
    while let [key_len, value_len, tail @ ..] = rest {
        let (key, tail) = tail.split_at(usize::from(key_len % 16).min(tail.len()));
        let (value, tail) = tail.split_at(usize::from(value_len % 64).min(tail.len()));
        if validate(value).is_ok() {
            builder.set_raw(key, value);
        } else {
            builder.set_raw(key, &::rlp::encode(&value));
        }
        rest = tail;
    }
    let key = NodeKey::from_bytes(&[1; 32]).expect("one of the valid keys");
    let Ok(signed) = builder.sign(&key) else { return };
    assert_eq!(Record::decode(signed.encoded()).as_ref(), Ok(&signed));
    let mut forged = signed.encoded().to_vec();
    let at = usize::from(*change) % forged.len();
    forged[at] ^= 1;
    assert!(Record::decode(&forged).is_err(), "a changed record was accepted: byte {at}");
}

/// Valid RLP is canonical: items that are read and written again give the same bytes. The reader and the validation
/// agree on which items are lists.
pub fn rlp(data: &[u8]) {
    if validate(data).is_ok() {
        let mut stream = ::rlp::RlpStream::new();
        rewrite(data, &mut stream);
        assert_eq!(stream.out(), data);
    } else if let Ok(mut items) = Reader::list(data) {
        while let Ok(item) = items.raw() {
            assert!(!item.is_empty() && item.len() <= data.len());
        }
    }
}

fn rewrite(item: &[u8], stream: &mut ::rlp::RlpStream) {
    match Reader::list(item) {
        Ok(mut items) => {
            stream.begin_unbounded_list();
            while !items.is_empty() {
                rewrite(items.raw().expect("an item of a valid list"), stream);
            }
            stream.finalize_unbounded_list();
        }
        Err(_) => {
            stream.append(&devp2pd::rlp::string(item).expect("what is no list is a string"));
        }
    }
}
