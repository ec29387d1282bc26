//! The drivers: one socket or file each. They move bytes between the world and the pure rooms, and decide as little
//! as they can.
//!
//! | file | what it drives |
//! | --- | --- |
//! | [`clock`] | the one reader of the clocks |
//! | [`running`] | a task of a component, and how it is stopped |
//! | [`data_dir`], [`key_file`] | what survives a restart: who may use it, and who we are |
//! | [`secret_file`] | files that nobody else may read |
//! | [`listener`], [`dialer`] | how TCP connections come about |
//! | [`peer_socket`] | what the kernel may hold for one connection |
//! | [`connection`] | one connection: its socket and its engine |
//! | [`bandwidth`] | caps on what goes over connections |
//! | [`buffers`] | receive buffers and what they may hold in all |
//! | [`turns`] | whose turn it is to do the arithmetic of a handshake |
//! | [`wake`] | tasks that wait for what pure rooms hold |
//! | [`udp`], [`discovery`] | the sockets of discovery, and the task that feeds its engines |
//! | [`bootnode_names`] | bootnodes that are given by host name |
//! | [`node_db`] | nodes that were alive, for the next start |
//! | [`nat`] | gateways: our outside address, our ports open there |
//! | [`resolver`] | names to addresses and TXT records |
//! | [`dns_discovery`] | node lists in the DNS: the tree client and the resolver |
//! | [`switch`] | the loop around the owner of peers and registrations, and the way into it |
//! | [`state_file`] | small files for what must not be lost |

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
