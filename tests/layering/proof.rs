//! Proves the layering test on itself: snippets that break each rule, and snippets that break none.

use super::{
    File, MAX_CIRCLE, MAX_FUNCTION, excused, impure_crates, judge, judge_circles, long_functions, maps,
    module_of, second_files, source, test_files,
};

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
        ("src/p2p/intake.rs", "use crate::rlpx::Frame;", "in wire.rs alone"),
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
        ("src/main.rs", "use devp2pd::app::App;", "upward arrow"),
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
        ("src/lib.rs", "pub use rpc::Listener;", "at the root"),
        ("src/lib.rs", "use app::App;", "at the root"),
        ("src/net/udp.rs", "use crate::App;", "upward arrow"),
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
        ("src/program.rs", "use crate::{app::App, config};"),
        ("src/main.rs", "fn main() { devp2pd::run_program() }"),
        (
            "src/lib.rs",
            "pub mod net; pub mod node; mod now; pub mod rlp; pub use now::Now; pub use app::App;",
        ),
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

/// Files by name and content, as the rules about many files see them.
fn files(texts: &[(&str, &str)]) -> Vec<File> {
    let file = |(name, text): &(&str, &str)| {
        let module = module_of(name);
        File { name: (*name).to_string(), source: source::read(text, &module, false), module }
    };
    texts.iter().map(file).collect()
}

#[test]
fn a_long_function_is_found_wherever_it_stands() {
    let body = |lines: usize| "    step();\n".repeat(lines);
    let code = format!(
        "struct S {{ f: fn(u8) }}\nimpl S {{\n/// Says.\npub async fn long<T>(\n    &self,\n) -> [u8; 2] {{\n{}}}\n}}\n\
         trait T {{ fn declared(&self); }}\nfn short() {{\n{}}}\n\
         #[cfg(test)]\nmod tests {{ fn table() {{\n{}}} }}\n",
        body(MAX_FUNCTION - 3),
        body(MAX_FUNCTION - 2),
        body(2 * MAX_FUNCTION),
    );
    let read = source::read(&code, &["node".into()], false);
    let names: Vec<&str> = read.functions.iter().map(|function| function.name.as_str()).collect();
    assert_eq!(names, ["long", "declared", "short", "table"]);
    let long = long_functions("src/node/id.rs", &read);
    assert_eq!(long.len(), 1, "{long:?}");
    assert!(long[0].2.starts_with("src/node/id.rs:4: fn long has 81 lines"), "{long:?}");

    assert_eq!(excused(long.clone(), &[], "L").len(), 1);
    assert!(excused(long.clone(), &[("src/node/id.rs", "long")], "L").is_empty());
    let stale = excused(long, &[("src/node/id.rs", "long"), ("src/node/id.rs", "short")], "L");
    assert!(stale.len() == 1 && stale[0].contains("short needs no exception"), "{stale:?}");
}

#[test]
fn methods_in_a_second_file_are_found() {
    let code = "struct Here<T>(T);\nimpl<T: Fn() -> u8> Here<T> { fn f() -> impl Sized {} }\n\
                impl super::far::Engine<u8>\nwhere u8: for<'a> Trait<'a> {}\nimpl<C> Engine<C> {}\n\
                impl From<Engine> for Here<u8> {}\nimpl<T> for_each::Other {}\n\
                #[cfg(test)]\nmod tests { impl Elsewhere { fn rig() {} } }\n";
    let read = source::read(code, &["node".into(), "id".into()], false);
    let found = second_files("src/node/id.rs", &read);
    let types: Vec<&str> = found.iter().map(|(_, of, _)| of.as_str()).collect();
    assert_eq!(types, ["Engine", "Other"]);
    assert!(found[0].2.starts_with("src/node/id.rs:3: methods of Engine"), "{found:?}");
}

#[test]
fn circles_of_files_are_found_through_every_way_of_naming() {
    // Four files: by `use`, by an inline path, by a child's name, and through a name that is passed on.
    let four = [
        (
            "src/policy/mod.rs",
            "pub mod dial; pub mod bans; pub mod rules; pub use bans::Bans; fn f() { dial::g(); }",
        ),
        ("src/policy/dial.rs", "use super::rules::Rules;"),
        ("src/policy/rules.rs", "fn f(b: &crate::policy::Bans) {}"),
        ("src/policy/bans.rs", "use crate::policy::NotPassedOn;"),
    ];
    let found = judge_circles(&files(&four), &[]);
    assert!(found.len() == 1 && found[0].contains("these 4 files"), "{found:?}");
    assert!(judge_circles(&files(&four), &[("src/policy/rules.rs", 4)]).is_empty());
    let grown = judge_circles(&files(&four), &[("src/policy/bans.rs", 3)]);
    assert!(grown.len() == 1 && grown[0].contains("grown from 3 to 4"), "{grown:?}");
    let shrunk = judge_circles(&files(&four), &[("src/policy/bans.rs", 5)]);
    assert!(shrunk.len() == 1 && shrunk[0].contains("write 4"), "{shrunk:?}");

    // Each link that breaks leaves fewer; as many as the rule allows are no complaint.
    assert_eq!(MAX_CIRCLE, 3);
    let three = [four[0], four[1], ("src/policy/rules.rs", "use super::Policy;")];
    assert!(judge_circles(&files(&three), &[]).is_empty());
    let stale = judge_circles(&files(&three), &[("src/policy/rules.rs", 4)]);
    assert!(stale.len() == 1 && stale[0].contains("remove it"), "{stale:?}");
}

#[test]
fn what_is_no_use_makes_no_circle() {
    let apart = [
        // Passing a name on, naming a module for visibility, and using it in tests.
        ("src/policy/mod.rs", "mod a; mod b; mod c; mod d; pub use a::A; pub(crate) use b::B;"),
        ("src/policy/a.rs", "pub(super) struct A; pub(in crate::policy) fn f() {} use super::b::B;"),
        ("src/policy/b.rs", "use super::c::C; #[cfg(test)] mod tests { use crate::policy::A; }"),
        ("src/policy/c.rs", "use super::d::D; // crate::policy::A"),
        ("src/policy/d.rs", "const TEXT: &str = \"crate::policy::A\";"),
    ];
    assert!(judge_circles(&files(&apart), &[]).is_empty());
}

#[test]
fn rooms_that_use_each_other_are_found() {
    let circle = [
        ("src/net/mod.rs", "use crate::http::Probes;"),
        ("src/http/mod.rs", "mod server;"),
        ("src/http/server.rs", "fn f(c: crate::net::Clock) {}"),
    ];
    let found = judge_circles(&files(&circle), &[]);
    assert!(found.len() == 1 && found[0].contains("in a circle: http, net"), "{found:?}");
}

#[test]
fn maps_that_leave_out_a_module_are_found() {
    let names = [
        "src/lib.rs",
        "src/main.rs",
        "src/node/mod.rs",
        "src/node/key.rs",
        "src/node/key/hex.rs",
        "src/rlp.rs",
    ];
    let names = names.map(String::from);
    let text = |lib: &str, node: &str| {
        let (lib, node) = (format!("//! {lib}\npub mod x; // `rlp`"), format!("//! {node}\n"));
        move |name: &str| match name {
            "src/lib.rs" => lib.clone(),
            "src/node/mod.rs" => node.clone(),
            _ => "//! `nothing`".to_string(),
        }
    };
    let whole = maps::missing(&names, text("[`node`] and `rlp`", "See [`key::Key`]."), "main, node and rlp");
    assert!(whole.is_empty(), "{whole:?}");
    let missing = maps::missing(&names, text("[`node`] and rlp", "See key."), "main: nodes");
    assert_eq!(
        missing,
        [
            "docs/architecture.md: does not name node",
            "src/node/mod.rs: its map does not name `key`",
            "src/lib.rs: its map does not name `rlp`",
            "docs/architecture.md: does not name rlp",
        ]
    );
}
