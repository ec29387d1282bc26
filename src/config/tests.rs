//! The loader as an operator meets it: tables of command lines, variables and files.

use std::{fs, num::NonZeroUsize, time::Duration};

use super::*;
use crate::net::nat::NatMethod;

const HOME: (&str, &str) = ("HOME", "/home/op");

fn load_with(args: &[&str], env: &[(&str, &str)]) -> Result<Request, ConfigError> {
    let args = std::iter::once("devp2pd").chain(args.iter().copied());
    load(args.map(OsString::from), env.iter().map(|(name, value)| (name.into(), value.into())))
}

fn config(args: &[&str], env: &[(&str, &str)]) -> Config {
    match load_with(args, env) {
        Ok(Request::Run(config)) => *config,
        other => panic!("{args:?} {env:?}: {other:?}"),
    }
}

fn error(args: &[&str], env: &[(&str, &str)]) -> String {
    load_with(args, env).expect_err(&format!("{args:?} {env:?}")).to_string()
}

fn printed(args: &[&str], env: &[(&str, &str)]) -> String {
    match load_with(args, env) {
        Ok(Request::Print(text)) => text,
        other => panic!("{args:?} {env:?}: {other:?}"),
    }
}

/// A file with this text, in a directory that lives as long as the first of the pair.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("devp2pd.toml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

fn enode(port: u16) -> String {
    let key = crate::node::NodeKey::from_bytes(&[7; 32]).unwrap();
    format!("enode://{}@192.0.2.7:{port}", key.public())
}

#[test]
fn defaults_are_what_the_documentation_says() {
    let config = config(&[], &[HOME]);
    assert_eq!(config.data_dir.as_deref(), Some(Path::new("/home/op/.local/share/devp2pd")));
    assert_eq!(config.peers.listen_addrs, ["0.0.0.0:30303".parse().unwrap(), "[::]:30303".parse().unwrap()]);
    assert!(config.peers.any_family && config.discovery.rate.is_none());
    assert_eq!((config.peers.max_peers, config.peers.dial), (50, true));
    assert_eq!(config.peers.receive_buffer, 512 << 10);
    assert_eq!(config.grpc.addr, "127.0.0.1:50051".parse().unwrap());
    assert_eq!(config.grpc.socket.as_deref(), Some(Path::new("/home/op/.local/share/devp2pd/grpc.sock")));
    assert!(!config.grpc.socket_asked && config.peers.rehello == Rehello::Rolling);
    assert_eq!(config.http_addr, Some("127.0.0.1:9303".parse().unwrap()));
    assert_eq!((config.log.filter.as_str(), config.log.format), ("info", LogFormat::Auto));
    assert_eq!(config.shutdown_grace, Duration::from_secs(25));
    assert_eq!((config.worker_threads, config.nodekey, config.identity), (None, None, None));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

/// The defaults for a program that runs a sidecar itself equal these flags, so the two sets of defaults cannot differ.
#[test]
fn the_default_in_code_is_a_node_by_itself_on_loopback() {
    let flags = [
        "--network=none",
        "--nat=none",
        "--listen-addr=127.0.0.1",
        "--port=0",
        "--grpc-addr=127.0.0.1:0",
        "--grpc-socket=none",
        "--http-addr=127.0.0.1:0",
    ];
    let loaded = config(&flags, &[HOME]);
    assert_eq!(
        Config { data_dir: loaded.data_dir.clone(), values: loaded.values.clone(), ..Config::default() },
        loaded
    );
}

#[test]
fn flags_go_before_environment_before_file_before_default() {
    let (_dir, path) = file("maxpeers = 1\nport = 1\nidentity = 'file'\nnodial = true\n");
    let env = [HOME, ("DEVP2PD_CONFIG", &*path), ("DEVP2PD_MAXPEERS", "2"), ("DEVP2PD_PORT", "2")];
    let config = config(&["--maxpeers", "3", "--nodial=false"], &env);
    assert_eq!(config.peers.max_peers, 3, "flag");
    assert_eq!(config.peers.port, 2, "environment");
    assert_eq!(config.identity.as_deref(), Some("file"), "file");
    assert!(config.peers.dial, "a switch can be switched off again");
    assert_eq!(config.grpc.addr.port(), 50051, "default");
}

#[test]
fn a_list_replaces_a_list() {
    let (a, b, c) = (enode(1), enode(2), enode(3));
    let (_dir, path) = file(&format!("static-peers = ['{a}']\n"));
    let ports = |args: &[&str], env: &[(&str, &str)]| -> Vec<u16> {
        config(args, env).peers.static_peers.iter().map(|node| node.enode().unwrap().tcp).collect()
    };
    let conf = ["--config", &path];
    assert_eq!(ports(&conf, &[HOME]), [1]);
    let both = format!("{b},{c}");
    assert_eq!(ports(&conf, &[HOME, ("DEVP2PD_STATIC_PEERS", &both)]), [2, 3], "comma-separated");
    assert_eq!(ports(&["--static-peers", &b, "--static-peers", &c], &[HOME]), [2, 3], "repeated");
    let (_dir, empty) = file("static-peers = []\nlisten-addr = ['::1', '127.0.0.1:7']\n");
    assert!(ports(&["--config", &empty], &[HOME]).is_empty());
    let listen = config(&["--config", &empty, "--port", "5"], &[HOME]).peers.listen_addrs;
    assert_eq!(listen, ["[::1]:5".parse().unwrap(), "127.0.0.1:7".parse().unwrap()]);
}

#[test]
fn what_is_set_arrives() {
    for (args, check) in [
        (&["--nolisten"][..], (|c| c.peers.listen_addrs.is_empty()) as fn(&Config) -> bool),
        (&["--http-addr", "none"], |c| c.http_addr.is_none()),
        (&["--grpc-addr", "[::1]:0"], |c| c.grpc.addr.ip().is_loopback() && c.grpc.addr.port() == 0),
        (&["--grpc-addr", "0.0.0.0:1", "--insecure-listen"], |c| c.warnings.len() == 1),
        (&["--nodial", "--nolisten"], |c| {
            c.warnings == ["neither dialing nor listening: this node can have no peers"]
        }),
        (&["--netrestrict", "10.0.0.0/8,fd00::/8"], |c| c.peers.netrestrict.len() == 2),
        (&["--netrestrict", " 10.0.0.0/8, fd00::/8 ,"], |c| c.peers.netrestrict.len() == 2),
        (&["--listen-addr", "::1,[::1]:30303"], |c| c.peers.listen_addrs.len() == 1),
        (&["--listen-addr", "::1, localhost,"], |c| c.peers.listen_addrs.len() == 2),
        (&["--static-peers", ","], |c| c.peers.static_peers.is_empty()),
        (&["--bootnodes", "none,", "--dns-tree", " none"], |c| c.discovery.dns_trees == Some(Vec::new())),
        (&["--grpc-addr", "localhost:9091"], |c| c.grpc.addr == "127.0.0.1:9091".parse().unwrap()),
        (
            &["--nat", "extip:203.0.113.7,2a00::1"],
            |c| matches!(&c.peers.nat, NatMethod::ExtIp(ips) if ips.len() == 2),
        ),
        (&["--max-peers-per-subnet", "0"], |c| c.peers.max_peers_per_subnet == 0),
        (&["--maxpeers", "0"], |c| c.warnings.len() == 1),
        (&["--allowlist-only"], |c| c.warnings.len() == 1),
        (&["--memory", "128MiB"], |c| c.memory == Some(128 << 20)),
        (&["--worker-threads", "3"], |c| c.worker_threads.map(NonZeroUsize::get) == Some(3)),
        (&["--dial-timeout", "500ms"], |c| c.peers.dial_timeout == Duration::from_millis(500)),
        (&["--nodekey", "/run/key"], |c| c.nodekey.as_deref() == Some(Path::new("/run/key"))),
        (&["--log", "info,devp2pd::net=trace", "--log-format", "json"], |c| c.log.format == LogFormat::Json),
        (&["--network", "none", "--nat", "none", "--nodiscover"], |c| {
            c.network == Network::None && c.nat_is_off() && !c.discovery.v4 && !c.discovery.v5
        }),
        (&["--bootnodes", "none", "--dns-tree", "none"], |c| c.discovery.dns_trees == Some(Vec::new())),
        (&["--bootnodes", "none"], |c| c.discovery.bootnodes_v5 == Some(Vec::new())),
        (&["--discv5", "false"], |c| c.warnings.iter().any(|warning| warning.starts_with("discv5 is off"))),
        (&["--discv5", "false", "--nodiscover"], |c| c.warnings.is_empty()),
        (&["--message-counts", "xyz/2=5,wit/1=4"], |c| c.grpc.message_counts.len() == 2),
        (&["--follow-forks", "false"], |c| !c.peers.follow_forks),
        (&["--peer-receive-buffer", "64KiB"], |c| c.peers.receive_buffer == 64 << 10),
    ] {
        assert!(check(&config(args, &[HOME])), "{args:?}");
    }
}

/// Both lists take URLs, with names too, and records; discv5 takes the first list where it has none of its own.
#[test]
fn bootnodes_have_any_form_that_says_where_to_ask() {
    let record = networks::Preset::of(Network::Sepolia).unwrap().bootnodes[0];
    assert!(record.starts_with("enr:"), "the newest bootnodes are records");
    let named = enode(30303).replace("192.0.2.7", "boot.example.org");
    let list = [enode(30303), named, record.to_owned()].join(",");
    let both = config(&["--bootnodes", &list], &[HOME]).discovery;
    let nodes = both.bootnodes_v4.as_ref().unwrap();
    assert_eq!(nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(","), list);
    assert_eq!(both.bootnodes_v5.as_ref(), Some(nodes));
    let apart = config(&["--bootnodes-v5", &list], &[HOME]).discovery;
    assert_eq!((apart.bootnodes_v4, apart.bootnodes_v5.as_ref()), (None, Some(nodes)));
    let own = config(&["--bootnodes", record, "--bootnodes-v5", "none"], &[HOME]).discovery;
    assert_eq!((own.bootnodes_v4.map(|nodes| nodes.len()), own.bootnodes_v5), (Some(1), Some(Vec::new())));
}

impl Config {
    fn nat_is_off(&self) -> bool {
        self.peers.nat == NatMethod::None
    }
}

#[test]
fn errors_name_the_place_and_what_would_be_right() {
    let key = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318";
    let at = |host: &str| enode(30303).replace("192.0.2.7", host);
    let discovery_alone = format!("{}?discport=30301", enode(0));
    config(&["--bootnodes", &discovery_alone, "--trusted-peers", &discovery_alone], &[HOME]);
    for (args, env, expected) in [
        (&["--prot", "1"][..], &[][..], &["unexpected argument '--prot'", "--port"][..]),
        (&["--port", "70000"], &[], &["--port", "70000"]),
        (&["--network", "goerli"], &[], &["goerli", "sepolia"]),
        (&[], &[("DEVP2PD_PROT", "1")], &["DEVP2PD_PROT", "did you mean DEVP2PD_PORT?"]),
        (&[], &[("DEVP2PD_PORT", "x")], &["DEVP2PD_PORT: invalid value 'x'"]),
        (&[], &[("DEVP2PD_PRINT_CONFIG", "true")], &["DEVP2PD_PRINT_CONFIG: no such setting"]),
        (
            &["--grpc-addr", "0.0.0.0:50051"],
            &[],
            &["--grpc-addr: 0.0.0.0:50051", "127.0.0.1", "--insecure-listen"],
        ),
        (&[], &[("DEVP2PD_GRPC_ADDR", "10.0.0.1:1")], &["DEVP2PD_GRPC_ADDR: 10.0.0.1:1 is not a loopback"]),
        (&["--rehello", "maybe"], &[], &["--rehello", "maybe", "rolling", "none"]),
        (&["--grpc-socket", ""], &[], &["--grpc-socket", "a path, `auto` or `none`"]),
        (&["--send-rate", "5"], &[], &["--send-rate", "64KiB"]),
        (
            &["--peer-receive-buffer", "4KiB"],
            &[],
            &["--peer-receive-buffer", "'4KiB'", "16KiB and at most 8MiB"],
        ),
        (
            &[],
            &[("DEVP2PD_PEER_RECEIVE_BUFFER", "512")],
            &["DEVP2PD_PEER_RECEIVE_BUFFER: invalid value '512'", "with a unit: 64KiB"],
        ),
        (&["--churn", "10ms"], &[], &["--churn: must be at least 1s"]),
        (&["--max-shared-stall", "11s"], &[], &["--max-shared-stall: may be at most 9 s"]),
        (&["--nat", "extip:x"], &[], &["--nat", "extip:IP"]),
        (&["--nat", "extip:192.168.001.010"], &[], &["--nat", "extip:IP"]),
        (&["--netrestrict", "10.0.0.0/33"], &[], &["--netrestrict", "0 to 32"]),
        (&["--netrestrict", "192.168.001.010/24"], &[], &["--netrestrict", "no leading zeros"]),
        (&[], &[("DEVP2PD_NETRESTRICT", "10.0.0.1")], &["DEVP2PD_NETRESTRICT: ", "10.0.0.0/24, or /32"]),
        (&["--http-addr", "box:9303"], &[], &["--http-addr", "is a name", "127.0.0.1:50051", "(or `none`)"]),
        (&["--dns-tree", "enrtree://KEY@"], &[], &["--dns-tree: ", "enrtree://KEY@nodes.example.org"]),
        (&["--dns-tree", "https://x"], &[], &["--dns-tree: ", "enrtree://KEY@nodes.example.org"]),
        (&["--listen-addr", ","], &[], &["--listen-addr: names no address", "--nolisten"]),
        (
            &[],
            &[("DEVP2PD_LISTEN_ADDR", ",")],
            &["DEVP2PD_LISTEN_ADDR: names no address", "DEVP2PD_NOLISTEN"],
        ),
        (&["--maxpeers", "many"], &[], &["--maxpeers", "expected a whole number"]),
        (&["--dial-ratio", "0"], &[], &["--dial-ratio", "expected a whole number above 0"]),
        (&["--trusted-peers", "x"], &[], &["--trusted-peers: entry 1: "]),
        (&["--message-counts", "wit/2"], &[], &["--message-counts: entry 1: ", "NAME/VERSION=COUNT"]),
        (&["--message-counts", "a/1=2,eth/69=17"], &[], &["entry 2: eth/69 has 18 messages, not 17"]),
        (&["--message-counts", "a/1=2,a/1=3"], &[], &["entry 2: a/1 stands twice"]),
        (&["--bootnodes", key], &[], &["--bootnodes: entry 1: ", "enode://KEY@IP:PORT", "enr:"]),
        (&["--bootnodes-v5", "enr:-x"], &[], &["--bootnodes-v5: entry 1: "]),
        (&["--static-peers", "enode://xyz"], &[], &["--static-peers: entry 1: "]),
        (
            &["--static-peers", key, "--nodiscover"],
            &[],
            &["--static-peers", "names no address", "enode://KEY@IP:PORT"],
        ),
        (&["--identity", "a/b"], &[], &["--identity", "letters, digits"]),
        (&["--dial-timeout", "0s"], &[], &["--dial-timeout: must be longer"]),
        (&["--max-pending-dials", "0"], &[], &["--max-pending-dials"]),
        (&["--static-peers", &at("0.0.0.0")], &[], &["--static-peers: entry 1 (", "unspecified"]),
        (&["--static-peers", &at("[::]")], &[], &["--static-peers: entry 1 (", "unspecified"]),
        (&["--trusted-peers", &at("224.0.0.1")], &[], &["--trusted-peers: entry 1 (", "multicast"]),
        (&["--static-peers", &at("010.0.0.1")], &[], &["--static-peers: entry 1: ", "without leading zeros"]),
        (&["--static-peers", &discovery_alone], &[], &["--static-peers: entry 1 (", "can be a bootnode"]),
        (&["--log", "devp2pd=loud"], &[], &["--log: \"devp2pd=loud\" is not a log filter"]),
        (&["--config", "/does/not/exist.toml"], &[], &["/does/not/exist.toml: cannot be read: "]),
    ] {
        let env: Vec<_> = env.iter().copied().chain([HOME]).collect();
        let error = error(args, &env);
        for part in expected {
            assert!(error.contains(part), "{args:?} {env:?}: {part:?} not in {error:?}");
        }
    }
    assert!(error(&[], &[]).contains("--data-dir"), "without a home");
    assert!(error(&[], &[("HOME", "relative")]).contains("--data-dir"), "a relative home is none");
}

#[test]
fn errors_in_a_file_name_file_and_line() {
    for (text, expected) in [
        ("port = 1\n\nprot = 2\n", ":3: prot: no such setting, did you mean port?"),
        ("port = 1\nport = 2\n", ": line 2: duplicate key"),
        ("port = \n", ": line 1: "),
        ("# x\nport = 'x'\n", ":2: port: invalid value 'x'"),
        ("port = 70000\n", ":1: port: invalid value '70000'"),
        ("port = 0x10\n", ":1: port: takes strings"),
        ("port = 1.5\n", ":1: port: takes strings"),
        ("port = [1]\n", ":1: port: takes one value, not a list"),
        ("netrestrict = [['10.0.0.0/8']]\n", ":1: netrestrict: takes strings"),
        ("\n[peers]\nport = 1\n", ":2: peers: no such setting; this file has no sections"),
        ("config = 'other.toml'\n", ":1: config: no such setting"),
        ("maxpeers = 5\ngrpc-addr = '10.0.0.1:50051'\n", ":2: grpc-addr: 10.0.0.1:50051 is not a loopback"),
        ("churn = '10ms'\n", ":1: churn: must be at least 1s"),
        (
            "peer-receive-buffer = '9MiB'\n",
            ":1: peer-receive-buffer: invalid value '9MiB': at least 16KiB and at most 8MiB",
        ),
        ("grpc-addr = '10.0.0.1:1'\n", "say insecure-listen if"),
        ("port = 'x'\n", ":1: port: invalid value 'x': expected a whole number"),
        ("grpc-tls-cert = 'c'\n", ":1: grpc-tls-cert: needs its private key: give grpc-tls-key too"),
    ] {
        let (_dir, path) = file(text);
        let error = error(&["--config", &path], &[HOME]);
        assert!(
            error.starts_with(&path) && error.contains(expected),
            "{text:?}: {expected:?} not in {error:?}"
        );
    }
}

/// An operator who corrects a file needs all errors at once.
#[test]
fn all_that_is_wrong_is_said_at_once_and_in_the_words_of_its_place() {
    let (_dir, path) =
        file("prot = 1\nport = 'x'\nnodial = 7\nmaxpeers = [1]\nchurn = 1.5\nidentity = 'fine'\n");
    let error = error(&["--config", &path], &[HOME, ("DEVP2PD_HTTP_ADR", "none"), ("DEVP2PD_NAT", "x")]);
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!((lines[0], lines.len()), ("7 settings are wrong:", 8), "{error}");
    for (at, expected) in [
        (":1: prot: no such setting", true),
        (":2: port: invalid value 'x'", true),
        (":3: nodial: invalid value '7' [possible values: true, false]", true),
        (":4: maxpeers: takes one value", true),
        (":5: churn: takes strings", true),
        ("DEVP2PD_HTTP_ADR: no such setting, did you mean DEVP2PD_HTTP_ADDR?", true),
        ("DEVP2PD_NAT: invalid value 'x'", true),
        ("--", false),
    ] {
        assert_eq!(lines.iter().any(|line| line.contains(at)), expected, "{at:?} in {error}");
    }
    // Errors of several settings together are among them.
    let (_dir, path) = file("grpc-addr = '0.0.0.0:1'\nchurn = '1ms'\ndns-tree = ['x']\n");
    let text = super::load(
        ["devp2pd", "--config", &path].map(OsString::from),
        [(OsString::from("HOME"), OsString::from("/home/op"))],
    )
    .unwrap_err()
    .to_string();
    assert!(text.starts_with("3 settings are wrong:") && !text.contains("--"), "{text}");
}

#[test]
fn a_key_in_the_wrong_place_is_not_repeated() {
    let key = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318";
    let prefixed = format!("0x{key}");
    let (_dir, path) = file(&format!("nodekey = '{key}'\n"));
    for args in [
        &["--nodekey", key][..],
        &["--nodekey", &prefixed],
        &["--nodekey", key, "--print-config"],
        &["--nodekey", key, "--check-config"],
        &["--config", &path],
    ] {
        let error = error(args, &[HOME]);
        assert!(error.contains("takes the path of a file") && !error.contains("4c0883"), "{error}");
    }
}

#[test]
fn variables_that_are_not_ours_are_left_alone() {
    let config = config(
        &[],
        &[
            HOME,
            ("DEVP2PD_SERVICE_HOST", "10.0.0.1"),
            ("DEVP2PD_SERVICE_PORT_GRPC", "50051"),
            ("DEVP2PD_PORT", "tcp://10.0.0.1:30303"),
            ("DEVP2PD_PORT_30303_TCP_ADDR", "10.0.0.1"),
            ("DEVP2PD_GRPC_PORT", "tcp://10.0.0.7:50051"),
            ("DEVP2PD_GRPC_SERVICE_HOST", "10.0.0.7"),
            ("DEVP2PD_GRPC_PORT_50051_TCP_PROTO", "tcp"),
            ("DEVP2PD_MAXPEERS", ""),
            ("DEVP2PDX", "1"),
        ],
    );
    assert_eq!((config.peers.port, config.peers.max_peers), (30303, 50));
}

#[test]
fn questions_are_answered_and_end_there() {
    assert_eq!(printed(&["--check-config"], &[HOME]), "the configuration is valid\n");
    assert!(printed(&["--version"], &[]).starts_with("devp2pd "));
    let help = printed(&["--help"], &[]);
    for part in ["Examples:", "--grpc-addr <IP:PORT>", "[default: 127.0.0.1:50051]"] {
        assert!(help.contains(part), "{part:?} not in\n{help}");
    }
    for (key, _) in layers::keys() {
        assert!(help.contains(&format!("--{key}")), "--{key} is not in the help");
    }
}

#[test]
fn the_printed_configuration_is_golden() {
    let node = enode(30303);
    let (_dir, path) = file(&format!("static-peers = ['{node}']\nmaxpeers = 7\n"));
    let args = ["--config", &path, "--nodial", "--log", "debug", "--print-config"];
    let text = printed(&args, &[HOME, ("DEVP2PD_IDENTITY", "a-1")]);
    let text = text.replace(&path, "FILE").replace(&node, "ENODE");
    assert_eq!(text, include_str!("golden.toml"), "compare src/config/golden.toml");
}

#[test]
fn the_printed_configuration_gives_itself() {
    let node = enode(30303);
    let args =
        ["--static-peers", &node, "--data-dir", "/tmp/a \"b\" \\ é", "--netrestrict", "10.0.0.0/8,::1/128"];
    let text = printed(&[&args[..], &["--print-config"]].concat(), &[HOME]);
    let (_dir, path) = file(&text);
    assert_eq!(config(&["--config", &path], &[]), config(&args, &[HOME]));
}
