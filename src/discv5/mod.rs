//! Node discovery v5.1: encrypted sessions between nodes that prove their identity, and a table of those that live.

pub mod answer;
pub mod budget;
pub mod call;
pub mod challenge;
pub mod crypto;
pub mod engine;
pub mod handshake;
pub mod header;
pub mod message;
pub mod packet;
pub mod peer;
pub mod session;
pub mod talk;
