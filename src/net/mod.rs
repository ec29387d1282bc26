//! The drivers: each drives one socket, file or clock. They move bytes between the operating system and the pure rooms,
//! and decide as little as they can.
//!
//! | file | what it drives |
//! | --- | --- |
//! | [`clock`] | the only place that reads the clocks |
//! | [`running`] | a task of a component, and how it is stopped |
//! | [`data_dir`], [`key_file`] | the data directory with its lock, and the node key in it |
//! | [`secret_file`] | files that other users must not read |
//! | [`listener`], [`dialer`] | TCP connections that are accepted, and those that we open |
//! | [`peer_socket`] | limits for the kernel buffers of one connection |
//! | [`connection`] | one connection: its socket and its engine |
//! | [`bandwidth`] | caps on the bytes per second of connections |
//! | [`buffers`] | receive buffers, and the budget for all of them |
//! | [`turns`] | turns for the arithmetic of handshakes |
//! | [`wake`] | tasks that wait for a change in pure rooms |
//! | [`udp`], [`discovery`] | the sockets of discovery, and the task that feeds its engines |
//! | [`bootnode_names`] | bootnodes that are given by host name |
//! | [`node_db`] | nodes that were alive, for the next start |
//! | [`nat`] | gateways: our outside address, and the ports that are open for us there |
//! | [`resolver`] | lookups of addresses and TXT records |
//! | [`dns_discovery`] | node lists in the DNS: the tree client and the resolver |
//! | [`switch`] | the loop around the owner of peers and registrations, and the way into it |
//! | [`state_file`] | small files for state that must not be lost |

pub mod bandwidth;
pub mod bootnode_names;
pub mod buffers;
pub mod clock;
pub mod connection;
pub mod data_dir;
pub mod dialer;
pub mod discovery;
pub mod dns_discovery;
pub mod key_file;
pub mod listener;
pub mod nat;
pub mod node_db;
pub mod peer_socket;
pub mod resolver;
pub mod running;
pub mod secret_file;
pub mod state_file;
pub mod switch;
#[cfg(test)]
pub(crate) mod test_dns;
pub mod turns;
pub mod udp;
pub mod wake;
