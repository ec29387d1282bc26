//! Proves the layering test on itself: snippets that break each rule, and snippets that break none.

use super::{impure_crates, judge, module_of, source, test_files};

const MANIFEST: &str = "[package]\nname = \"x\"\n\n[dependencies]\nbytes = \"1\"\ntokio-util = { version = \"0.7\" } # why\n\
                        redb = \"4\"\n\n[dev-dependencies]\nproptest = \"1\"\n";

fn complaints(name: &str, code: &str) -> Vec<String> {
    let test = name.ends_with("tests.rs");
    judge(name, &format!("//! Says what it is for.\n{code}"), test, &impure_crates(MANIFEST))
}

#[test]
fn complaints_are_made() {
    let table: &[(&str, &str, &str)] = &[
        // arrows, in every way of writing them
        ("src/node/id.rs", "use crate::rlpx::Frame;", "upward arrow"),
        ("src/node/id.rs", "use crate::{rlp, p2p::{Hello, self}};", "p2p is an upward arrow"),
        (
            "src/node/id.rs",
            "fn f() { let x = crate::net::listen(); }",
            "crate::net::listen is an upward arrow",
        ),
        (
            "src/node/id.rs",
            "use super::super::policy::Admission;",
            "crate::policy::Admission is an upward arrow",
        ),
        ("src/node/mod.rs", "use super::kademlia;", "upward arrow"),
        ("src/node/id.rs", "mod inner { use super::super::super::switch; }", "upward arrow"),
        ("src/discv4/engine.rs", "type T = Vec<crate::discv5::Session>;", "upward arrow"),
        ("src/discv5/mod.rs", "pub use crate::discv4::Ping;", "upward arrow"),
        ("src/rlpx/mod.rs", "impl From<crate::p2p::Reason> for u8 {}", "upward arrow"),
        ("src/dnsdisc/tree.rs", "use crate::kademlia::Table;", "upward arrow"),
        ("src/policy/bans.rs", "use crate::rlpx::Secrets;", "upward arrow"),
        ("src/net/udp.rs", "use crate::rpc::Status;", "upward arrow"),
        ("src/switch/mod.rs", "use crate::net::connection::Event;", "upward arrow"),
        ("src/switch/engine.rs", "fn f() { tokio::spawn(g()); }", "from tokio"),
        ("src/http/mod.rs", "use crate::rpc::Open;", "upward arrow"),
        ("src/rpc/mod.rs", "use crate::app::App;", "upward arrow"),
        ("src/rlp.rs", "use crate::node::NodeId;", "below all rooms"),
        ("src/node/id.rs", "#[cfg(test)]\nmod tests { use crate::p2p::Hello; }", "upward arrow"),
        ("src/node/tests.rs", "use crate::p2p::Hello;", "upward arrow"),
        ("src/node/id.rs", "macro_rules! m { () => { $crate::net::x() } }", "upward arrow"),
        // arrows in hiding
        ("src/node/id.rs", "use crate as c;", "crate root"),
        ("src/node/id.rs", "use crate::*;", "crate root"),
        ("src/node/mod.rs", "use super::*;", "crate root"),
        ("src/node/id.rs", "use crate::Frame;", "upward arrow"),
        ("src/lib.rs", "pub use net::Listener;", "at the root"),
        ("src/lib.rs", "pub use crate::net::Listener;", "at the root"),
        ("src/node/id.rs", "include!(\"../net/clock.rs\");", "code from another place"),
        ("src/node/id.rs", "#[path = \"../net/clock.rs\"] mod clock;", "code from another place"),
        ("src/utils/mod.rs", "use crate::node::NodeId;", "no room"),
        // purity
        ("src/p2p/engine.rs", "fn f() { std::time::Instant::now(); }", "a clock"),
        ("src/p2p/engine.rs", "use std::time::Instant; fn f() { Instant::now(); }", "a clock"),
        ("src/p2p/engine.rs", "use std::time::Instant as I;", "a clock"),
        ("src/p2p/engine.rs", "use std::time::*;", "a glob"),
        ("src/p2p/engine.rs", "use std::time::{Duration, SystemTime};", "a clock"),
        ("src/p2p/engine.rs", "fn f(t: Instant) { t.elapsed(); }", "a clock"),
        ("src/p2p/engine.rs", "use tokio::sync::mpsc;", "from tokio"),
        ("src/p2p/engine.rs", "fn f() { tokio_util::x(); }", "from tokio_util"),
        ("src/node/db.rs", "use redb::Database;", "from redb"),
        ("src/p2p/engine.rs", "pub async fn f() {}", "a task"),
        ("src/p2p/engine.rs", "fn f() { g().await; }", "a task"),
        ("src/p2p/engine.rs", "fn f() { std::thread::spawn(|| ()); }", "a thread"),
        ("src/rlpx/ecies.rs", "use std::net::TcpStream;", "a socket"),
        ("src/rlpx/ecies.rs", "use std::net::{IpAddr, UdpSocket as U};", "a socket"),
        ("src/node/key.rs", "use std::{fs, fmt};", "a file"),
        ("src/node/key.rs", "fn f() { std::fs::read(\"key\"); }", "a file"),
        ("src/node/key.rs", "fn f() { println!(\"\"); }", "a file"),
        ("src/rlpx/ecies.rs", "fn f() { rand::rng().fill(); }", "ambient randomness"),
        ("src/rlpx/ecies.rs", "use rand::{rngs::{OsRng, StdRng}, Rng};", "ambient randomness"),
        ("src/rlpx/ecies.rs", "fn f() { StdRng::from_os_rng(); }", "ambient randomness"),
        (
            "src/node/id.rs",
            "#[cfg(test)] mod tests { fn f() { rand::random::<u8>(); std::fs::read(\"\"); } }",
            "randomness",
        ),
        ("src/now.rs", "fn f() { Instant::now(); }", "a clock"),
    ];
    for (name, code, expected) in table {
        let found = complaints(name, code).join("\n");
        assert!(found.contains(expected), "{name}: {code}\n  expected: {expected}\n  found: {found:?}");
    }
    let headless = judge("src/node/id.rs", "use std::fmt;", false, &[]);
    assert!(headless.join("").contains("does not open with //!"), "{headless:?}");
    let long = complaints("src/node/id.rs", &"\n".repeat(700));
    assert!(long.join("").contains("701 lines"), "{long:?}");
}

#[test]
fn no_complaint_without_a_reason() {
    let table: &[(&str, &str)] = &[
        ("src/node/id.rs", "use crate::{Now, rlp::{self, Reader}}; use super::key::NodeKey; use self::x::Y;"),
        ("src/kademlia/mod.rs", "use crate::node::NodeId; pub(crate) fn f(now: Now) { now.mono; }"),
        ("src/policy/dial.rs", "use crate::p2p::Hello; use crate::node::NodeId;"),
        (
            "src/rpc/mod.rs",
            "use crate::switch::Handle; use crate::net::X; use crate::discv5::Talk; use tonic::Status;",
        ),
        ("src/net/clock.rs", "fn f() { std::time::Instant::now(); std::fs::read(\"\"); async {}; }"),
        ("src/app.rs", "use crate::{config, http, net, rpc, switch};"),
        ("src/main.rs", "use devp2pd::{app::App, config};"),
        ("src/lib.rs", "pub mod net; pub mod node; mod now; pub mod rlp; pub use now::Now;"),
        // words that are not code
        (
            "src/node/id.rs",
            "// tokio::spawn, std::fs\n/* crate::net /* nested */ Instant::now() */ const A: &str = \"std::fs\";",
        ),
        (
            "src/node/id.rs",
            "const A: &str = r#\"crate::net \"quoted\" Instant::now\"#; const B: &[u8] = b\"rand::rng\";",
        ),
        (
            "src/node/id.rs",
            "fn f<'a>(x: &'a str) -> char { let c = '\"'; let d = '\\''; let e = 'x'; c } // crate::net",
        ),
        ("src/node/id.rs", "/// [`crate::net`] reads the clock.\nstruct A;"),
        // a base time in tests
        ("src/node/id.rs", "#[cfg(test)]\nmod tests { use std::time::Instant; fn f() { Instant::now(); } }"),
        ("src/node/id.rs", "#[cfg(test)]\n#[allow(x)]\nfn base() -> Now { Now { mono: Instant::now() } }"),
        ("src/node/tests.rs", "fn base() { std::time::Instant::now(); std::time::SystemTime::now(); }"),
        ("src/p2p/engine.rs", "fn f() { let now = 1; let x = a..now; b.now; struct S { rng: u8 } }"),
        ("src/p2p/engine.rs", "fn f() -> impl Iterator + use<'_> { bytes::Bytes::new() }"),
    ];
    for (name, code) in table {
        let found = complaints(name, code);
        assert!(found.is_empty(), "{name}: {code}\n  found: {found:?}");
    }
}

#[test]
fn code_after_a_test_item_is_judged_again() {
    let code = "#[cfg(test)]\nmod tests { fn f() { Instant::now(); } }\nfn g() { Instant::now(); }\n#[cfg(not(test))]\nfn h() { Instant::now(); }";
    let found = complaints("src/node/id.rs", code);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("id.rs:4:") && found[1].contains("id.rs:6:"), "{found:?}");
}

#[test]
fn test_modules_in_files_are_found() {
    let names = ["src/p2p/mod.rs", "src/p2p/tests.rs", "src/p2p/tests/peer.rs", "src/p2p/engine.rs"]
        .map(String::from);
    let texts = ["#[cfg(test)]\nmod tests;\nmod engine;", "mod peer;", "", ""].map(String::from);
    assert_eq!(test_files(&names, &texts), ["src/p2p/tests.rs", "src/p2p/tests/peer.rs"]);
}

#[test]
fn files_and_paths_are_named_as_the_compiler_names_them() {
    assert_eq!(module_of("src/node/key.rs"), ["node", "key"]);
    assert_eq!(module_of("src/node/mod.rs"), ["node"]);
    assert!(module_of("src/lib.rs").is_empty());
    let read = source::read("use super::a::{self, b::C as D, e::*};", &["x".into(), "y".into()], false);
    let paths: Vec<String> = read.paths.iter().map(|path| path.segments.join("::")).collect();
    assert_eq!(paths, ["crate::x::a", "crate::x::a::b::C::as", "crate::x::a::e::*"]);
}
