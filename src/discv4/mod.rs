//! discv4, the older of the two discovery protocols (discv4.md, EIP-8, EIP-868).

pub mod crypto;
pub mod packet;

pub use crypto::Crypto;
