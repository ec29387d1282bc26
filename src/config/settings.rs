//! The settings: each of them once, with the documentation that `--help` prints.
//!
//! The defaults stand here too, so that help, `--print-config` and the program cannot disagree.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
};

use clap::{ArgAction, CommandFactory as _};

use super::values::{
    Address, ByteRate, Item, ListenAddr, LogFormat, Memory, Net, Network, OrNone, ReceiveBuffer, Rehello,
    SocketPath, Span,
};

const EXAMPLES: &str = "\
Examples:
  devp2pd --network none                             a node by itself: no bootnodes, peers by hand
  devp2pd --network none --data-dir /tmp/b --port 0 --grpc-addr 127.0.0.1:50052 --http-addr none
                                                     a second one beside it
  devp2pd --network none --static-peers enode://KEY@192.0.2.7:30303
                                                     keep a connection to one node
  devp2pd --grpc-addr 10.0.0.7:50051 --grpc-access access --grpc-tls-cert cert.pem --grpc-tls-key key.pem
                                                     serve other machines; a line of `access`: node protocol token:…
  devp2pd --config devp2pd.toml --print-config       what would be used, and where each value comes from

Then, with no proto file at hand:
  grpcurl -plaintext 127.0.0.1:50051 list
  grpcurl -plaintext 127.0.0.1:50051 devp2p.v1.NodeService/GetNodeInfo

Every flag is also a key of the file and a variable: --grpc-addr is `grpc-addr = \"…\"` and DEVP2PD_GRPC_ADDR.
Flags go before variables, variables before the file. Lists are separated by commas, or the flag is repeated.";

/// Value name of the settings that are switches: off by default, on when given without a value.
const SWITCH: &str = "BOOL";

/// The parser.
pub(super) fn command() -> clap::Command {
    Settings::command().mut_args(|arg| {
        if arg.get_value_names().is_none_or(|names| names.iter().all(|name| name != SWITCH)) {
            return arg;
        }
        // With `=` only, because `--nodial x` must not take x for its value.
        arg.required(false)
            .num_args(0..=1)
            .require_equals(true)
            .default_value("false")
            .default_missing_value("true")
    })
}

/// The settings, as one parser reads them from flags, environment and file.
#[derive(Debug, clap::Parser)]
#[command(name = "devp2pd", version, max_term_width = 110, after_help = EXAMPLES)]
#[command(about = "The devp2p stack as a sidecar: discovery, RLPx and peers, served over gRPC")]
pub(super) struct Settings {
    /// Read settings from this TOML file.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Check the configuration, print the result, and exit.
    #[arg(long)]
    pub(super) check_config: bool,
    /// Print the configuration as a TOML file, with the origin of each value, and exit.
    #[arg(long)]
    pub(super) print_config: bool,

    /// Keep everything that must survive a restart in this directory. Default: devp2pd in $XDG_DATA_HOME, else in
    /// ~/.local/share.
    #[arg(long, value_name = "DIR", help_heading = "Node")]
    pub(super) data_dir: Option<PathBuf>,
    /// Use the bootnodes, DNS tree and fork filter of this network.
    #[arg(long, value_name = "NAME", default_value = "mainnet", help_heading = "Node")]
    pub(super) network: Network,
    /// Read the node's key (64 hex digits) from this file. Default: nodekey in the data directory, made at first
    /// start.
    #[arg(long, value_name = "FILE", help_heading = "Node")]
    pub(super) nodekey: Option<PathBuf>,
    /// Put this word into the name that peers see: devp2pd/WORD/v….
    #[arg(long, value_name = "WORD", help_heading = "Node")]
    pub(super) identity: Option<String>,
    /// Run tasks on this many threads; 0 is one per core.
    #[arg(long, value_name = "N", default_value = "0", help_heading = "Node")]
    pub(super) worker_threads: usize,
    /// Use about this much memory at most (128MiB, 1GiB). What peers and callers can make the process hold is scaled to
    /// it; more than 1GiB changes nothing. `auto`: three quarters of what the control group allows, else 1GiB.
    #[arg(long, value_name = "SIZE", default_value = "auto", help_heading = "Node")]
    pub(super) memory: Memory,
    /// Exit at most this long after a signal or call to stop.
    #[arg(long, value_name = "TIME", default_value = "25s", help_heading = "Node")]
    pub(super) shutdown_grace: Span,

    /// Use this port for peers, TCP and UDP; 0 lets the system choose.
    #[arg(long, value_name = "PORT", default_value = "30303", help_heading = "Peers")]
    pub(super) port: u16,
    /// Accept peers on these addresses, each with its own port or with --port; `any` is all addresses, IPv4 and IPv6.
    #[arg(
        long,
        value_name = "IP[:PORT]",
        default_value = "any",
        value_delimiter = ',',
        help_heading = "Peers"
    )]
    pub(super) listen_addr: Vec<Item<ListenAddr>>,
    /// Find out our address and open the gateway: any, none, upnp, pmp, pmp:IP, extip:IP (extip:V4,V6 for
    /// one of each family), stun, stun:HOST, stun:HOST:PORT.
    #[arg(long, value_name = "HOW", default_value = "any", help_heading = "Peers")]
    pub(super) nat: crate::net::nat::NatMethod,
    /// Keep at most this many peers; static and trusted peers come on top.
    #[arg(long, value_name = "N", default_value = "50", help_heading = "Peers")]
    pub(super) maxpeers: usize,
    /// Always keep a connection to these nodes (enode:// or enr:), at most 1024 with the trusted ones. The node itself may
    /// be among them.
    #[arg(long, value_name = "NODES", value_delimiter = ',', help_heading = "Peers")]
    pub(super) static_peers: Vec<Item<String>>,
    /// Accept these nodes even when all slots are taken, at most 1024 with the static ones.
    #[arg(long, value_name = "NODES", value_delimiter = ',', help_heading = "Peers")]
    pub(super) trusted_peers: Vec<Item<String>>,
    /// Dial and accept static and trusted peers only.
    #[arg(long, value_name = SWITCH, action = ArgAction::Set, help_heading = "Peers")]
    pub(super) allowlist_only: bool,
    /// Communicate with these networks only (192.0.2.0/24); default: all networks.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', help_heading = "Peers")]
    pub(super) netrestrict: Vec<Item<Net>>,
    /// Dial no peers.
    #[arg(long, value_name = SWITCH, action = ArgAction::Set, help_heading = "Peers")]
    pub(super) nodial: bool,
    /// Accept no peers.
    #[arg(long, value_name = SWITCH, action = ArgAction::Set, help_heading = "Peers")]
    pub(super) nolisten: bool,
    /// Fill one of every N slots by dialing; the others are for peers that dial this node.
    #[arg(long, value_name = "N", default_value = "3", help_heading = "Peers")]
    pub(super) dial_ratio: NonZeroUsize,
    /// Give up a dial after this time.
    #[arg(long, value_name = "TIME", default_value = "15s", help_heading = "Peers")]
    pub(super) dial_timeout: Span,
    /// Dial at most this many nodes at a time.
    #[arg(long, value_name = "N", default_value = "50", help_heading = "Peers")]
    pub(super) max_pending_dials: NonZeroUsize,
    /// Keep at most this many accepted connections that have not authenticated.
    #[arg(long, value_name = "N", default_value = "50", help_heading = "Peers")]
    pub(super) max_pending_inbound: NonZeroUsize,
    /// Accept one connection per IP address (IPv6: per /64) in this time; 0s accepts any number.
    #[arg(long, value_name = "TIME", default_value = "30s", help_heading = "Peers")]
    pub(super) inbound_throttle: Span,
    /// Keep at most this many peers from one network (IPv4 /24, IPv6 /64; a /48 twice as many); 0 is no limit.
    #[arg(long, value_name = "N", default_value = "5", help_heading = "Peers")]
    pub(super) max_peers_per_subnet: usize,
    /// Keep at most this many unauthenticated connections from one network; 0 is no limit.
    #[arg(long, value_name = "N", default_value = "4", help_heading = "Peers")]
    pub(super) max_pending_per_subnet: usize,
    /// When all slots are taken, replace one peer about this often.
    #[arg(long, value_name = "TIME", default_value = "none", help_heading = "Peers")]
    pub(super) churn: OrNone<Span>,
    /// Dial private addresses that DNS trees and host names give, even from a public address.
    #[arg(long, value_name = SWITCH, action = ArgAction::Set, help_heading = "Peers")]
    pub(super) allow_lan: bool,
    /// Receive at most this many bytes per second from each peer (64KiB, 1MiB).
    #[arg(long, value_name = "RATE", default_value = "none", help_heading = "Peers")]
    pub(super) peer_receive_rate: OrNone<ByteRate>,
    /// Send at most this many bytes per second to each peer.
    #[arg(long, value_name = "RATE", default_value = "none", help_heading = "Peers")]
    pub(super) peer_send_rate: OrNone<ByteRate>,
    /// Receive at most this many bytes per second from all peers together.
    #[arg(long, value_name = "RATE", default_value = "none", help_heading = "Peers")]
    pub(super) receive_rate: OrNone<ByteRate>,
    /// Send at most this many bytes per second to all peers together.
    #[arg(long, value_name = "RATE", default_value = "none", help_heading = "Peers")]
    pub(super) send_rate: OrNone<ByteRate>,
    /// Let the kernel hold about this many received bytes for each peer (16KiB to 8MiB); a restart applies a change.
    #[arg(long, value_name = "SIZE", default_value = "512KiB", help_heading = "Peers")]
    pub(super) peer_receive_buffer: ReceiveBuffer,
    /// Offer a protocol that is registered late to connected peers by reconnecting them one by one.
    #[arg(long, value_name = "HOW", default_value = "rolling", help_heading = "Peers")]
    pub(super) rehello: Rehello,

    /// Run discv4.
    #[arg(long, value_name = "true|false", default_value = "true", action = ArgAction::Set, help_heading = "Discovery")]
    pub(super) discv4: bool,
    /// Run discv5.
    #[arg(long, value_name = "true|false", default_value = "true", action = ArgAction::Set, help_heading = "Discovery")]
    pub(super) discv5: bool,
    /// Read these DNS trees (enrtree://…) instead of the network's; `none` reads none.
    #[arg(long, value_name = "URLS", value_delimiter = ',', help_heading = "Discovery")]
    pub(super) dns_tree: Vec<Item<String>>,
    /// Turn discv4, discv5 and DNS off.
    #[arg(long, value_name = SWITCH, action = ArgAction::Set, help_heading = "Discovery")]
    pub(super) nodiscover: bool,
    /// Start discovery at these nodes (enode:// or enr:) instead of the network's; `none` starts at none.
    #[arg(long, value_name = "NODES", value_delimiter = ',', help_heading = "Discovery")]
    pub(super) bootnodes: Vec<Item<String>>,
    /// Start discv5 at these nodes (enode:// or enr:) instead of those of --bootnodes; `none` starts at none.
    #[arg(long, value_name = "NODES", value_delimiter = ',', help_heading = "Discovery")]
    pub(super) bootnodes_v5: Vec<Item<String>>,

    /// Dial nodes that have passed a fork which the fork schedule lacks, when nodes of several networks announce it.
    #[arg(long, value_name = "true|false", default_value = "true", action = ArgAction::Set, help_heading = "Discovery")]
    pub(super) follow_forks: bool,

    /// Bind discovery's UDP here instead of on the peers' addresses and port.
    #[arg(long, value_name = "IP:PORT", default_value = "none", help_heading = "Discovery")]
    pub(super) discovery_addr: OrNone<Address>,
    /// Send at most this many discovery packets per second, for firewalls and NATs that count flows; further packets
    /// are dropped. A bootnode needs hundreds.
    #[arg(long, value_name = "N", default_value = "none", help_heading = "Discovery")]
    pub(super) discovery_rate: OrNone<NonZeroU32>,
    /// Ask this DNS server for trees instead of the system's.
    #[arg(long, value_name = "IP:PORT", default_value = "none", help_heading = "Discovery")]
    pub(super) dns_server: OrNone<Address>,

    /// Serve gRPC on this TCP address; port 0 lets the system choose.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:50051", help_heading = "gRPC")]
    pub(super) grpc_addr: Address,
    /// Serve gRPC on this Unix socket too; `auto` is grpc.sock in the data directory, `none` makes none.
    #[arg(long, value_name = "PATH", default_value = "auto", help_heading = "gRPC")]
    pub(super) grpc_socket: SocketPath,
    /// Accept only the callers in this file (tokens, certificates, users) over TCP; a change takes effect within a second.
    #[arg(long, value_name = "FILE", help_heading = "gRPC")]
    pub(super) grpc_access: Option<PathBuf>,
    /// Serve the TCP address with TLS and this certificate (PEM, followed by its intermediate certificates).
    #[arg(long, value_name = "FILE", help_heading = "gRPC")]
    pub(super) grpc_tls_cert: Option<PathBuf>,
    /// The private key of that certificate (PEM); a file that other users can read is refused.
    #[arg(long, value_name = "FILE", help_heading = "gRPC")]
    pub(super) grpc_tls_key: Option<PathBuf>,
    /// Require client certificates of this CA (PEM); the access file says what each client may do.
    #[arg(long, value_name = "FILE", help_heading = "gRPC")]
    pub(super) grpc_tls_client_ca: Option<PathBuf>,
    /// Allow a gRPC address off loopback without an access file. Every host that reaches it can then make nearly every
    /// call.
    #[arg(long, value_name = SWITCH, action = ArgAction::Set, help_heading = "gRPC")]
    pub(super) insecure_listen: bool,
    /// Require the resume token in calls for a registration; its name is not enough.
    #[arg(long, value_name = SWITCH, action = ArgAction::Set, help_heading = "gRPC")]
    pub(super) require_resume_token: bool,
    /// Let a slow application hold a peer that another application uses too, for at most this time without a proof of
    /// progress (up to 9s).
    #[arg(long, value_name = "TIME", default_value = "500ms", help_heading = "gRPC")]
    pub(super) max_shared_stall: Span,
    /// Let an application end a connection that another application uses too.
    #[arg(long, value_name = SWITCH, action = ArgAction::Set, help_heading = "gRPC")]
    pub(super) end_shared_sessions: bool,
    /// Accept registrations of known protocols (eth, snap) with a message count that differs from the known one.
    #[arg(long, value_name = SWITCH, action = ArgAction::Set, help_heading = "gRPC")]
    pub(super) any_message_count: bool,
    /// Refuse to register these protocols with other message counts (NAME/VERSION=COUNT); common ones are known.
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', help_heading = "gRPC")]
    pub(super) message_counts: Vec<String>,

    /// Serve the probes /livez and /readyz on this TCP address; `none` serves none.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9303", help_heading = "Operation")]
    pub(super) http_addr: OrNone<Address>,
    /// Log these events: a level (error, warn, info, debug, trace), or levels by module: info,devp2pd::net=debug.
    #[arg(long, value_name = "FILTER", default_value = "info", help_heading = "Operation")]
    pub(super) log: String,
    /// Write events in this format; auto is text on a terminal and JSON elsewhere.
    #[arg(long, value_name = "FORMAT", default_value = "auto", help_heading = "Operation")]
    pub(super) log_format: LogFormat,
}
