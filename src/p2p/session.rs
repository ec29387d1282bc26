//! The words that a connection and the owner of peers exchange, as values: what is asked at the two checkpoints, what is
//! told to a running connection, how it ended, and the door through which messages leave ([`MessageSink`]).
//!
//! Left out: how a word gets there (`net::connection` has tasks and reply channels for that), and what is decided
//! (`switch`, `policy`).

