//! Vectors for the tests of this room: `name = hex` lines of the files under `tests/vectors/`.

use std::collections::HashMap;

use data_encoding::HEXLOWER;

use crate::node::NodeKey;

pub(crate) struct Vectors(HashMap<&'static str, Vec<u8>>);

pub(crate) fn vectors(text: &'static str) -> Vectors {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    Vectors(
        lines
            .map(|line| {
                let (name, hex) = line.split_once(" = ").expect("name = hex");
                (name, HEXLOWER.decode(hex.as_bytes()).expect(name))
            })
            .collect(),
    )
}

impl Vectors {
    pub(crate) fn get(&self, name: &str) -> &[u8] {
        &self.0[name]
    }

    pub(crate) fn array<const N: usize>(&self, name: &str) -> &[u8; N] {
        self.get(name).try_into().expect(name)
    }

    pub(crate) fn key(&self, name: &str) -> NodeKey {
        NodeKey::from_bytes(self.array(name)).expect(name)
    }
}
