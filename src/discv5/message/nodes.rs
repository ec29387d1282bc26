//! FINDNODE (0x03) and NODES (0x04): a request for the nodes at given distances from the receiver, and its answer.

use bytes::BytesMut;

use super::{MessageError, MessageType, RequestId, encode};
use crate::{node::Record, rlp::Reader};

/// The most bytes of records in one NODES packet: the whole packet then stays below 1280 bytes (geth's limit).
pub const MAX_NODES_BYTES: usize = 1000;

/// `[request-id, [distance₁, …]]`
#[derive(Clone, Copy, Debug)]
pub struct FindNode<'a> {
    /// The request id.
    pub id: RequestId,
    distances: Reader<'a>,
}

impl<'a> FindNode<'a> {
    pub(super) fn decode(id: RequestId, list: &mut Reader<'a>) -> Result<Self, MessageError> {
        let distances = list.nested()?;
        let mut check = distances;
        while !check.is_empty() {
            check.u64()?;
        }
        Ok(Self { id, distances })
    }

    /// The distances asked for, as the sender wrote them: in any order, perhaps repeated, perhaps over 256.
    pub fn distances(&self) -> impl Iterator<Item = u64> + use<'a> {
        let mut rest = self.distances;
        std::iter::from_fn(move || rest.u64().ok())
    }
}

/// Appends a FINDNODE plaintext.
pub fn encode_findnode(out: &mut BytesMut, id: RequestId, distances: &[u16]) {
    encode(out, MessageType::FindNode, id, 1, |list| {
        list.append_list::<u16, u16>(distances);
    });
}

/// `[request-id, total, [record, …]]`
#[derive(Clone, Copy, Debug)]
pub struct Nodes<'a> {
    /// The FINDNODE's request id.
    pub id: RequestId,
    /// The sender's number of NODES packets in the answer. It may be any number.
    pub total: u64,
    records: Reader<'a>,
}

/// The records of a NODES message as raw RLP, not yet checked.
#[derive(Clone, Copy, Debug)]
pub struct RecordsIter<'a>(Reader<'a>);

impl<'a> Iterator for RecordsIter<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.0.raw().ok()
    }
}

impl<'a> Nodes<'a> {
    pub(super) fn decode(id: RequestId, list: &mut Reader<'a>) -> Result<Self, MessageError> {
        let total = list.u64()?;
        let records = list.nested()?;
        let mut check = records;
        while !check.is_empty() {
            check.raw()?;
        }
        Ok(Self { id, total, records })
    }

    /// The records as raw RLP, in their order.
    #[must_use]
    pub fn records(&self) -> RecordsIter<'a> {
        RecordsIter(self.records)
    }
}

/// Appends a NODES plaintext.
pub fn encode_nodes(out: &mut BytesMut, id: RequestId, total: u64, records: &[Record]) {
    encode(out, MessageType::Nodes, id, 2, |list| {
        list.append(&total).begin_list(records.len());
        for record in records {
            list.append_raw(record.encoded(), 1);
        }
    });
}
