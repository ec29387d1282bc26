//! The HTTP port as a client sees it, over real sockets.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;

/// Starts a server on a port that the system chooses. It ends with the test's runtime.
async fn start() -> (SocketAddr, Probes) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let probes = Probes::default();
    tokio::spawn(serve(listener, probes.clone(), None));
    (addr, probes)
}

/// Writes `bytes`, and returns all bytes that come back until the server closes.
async fn exchange(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // Writing fails if the server closes before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ =
        timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("the server closes");
    String::from_utf8(answer).unwrap()
}

async fn ask(addr: SocketAddr, method: &str, path: &str, host: &str) -> String {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    exchange(addr, request.as_bytes()).await
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("none")
}

#[tokio::test]
async fn probes_follow_the_life_of_the_process() {
    let (addr, probes) = start().await;
    for (stage, ready, word) in [
        (Stage::Starting, "503", "starting\n"),
        (Stage::Ready, "200", "ready\n"),
        (Stage::Draining, "503", "draining\n"),
    ] {
        probes.set(stage);
        let answer = ask(addr, "GET", "/readyz", "127.0.0.1").await;
        assert_eq!((status(&answer), answer.ends_with(word)), (ready, true), "{stage:?}: {answer}");
        assert_eq!(status(&ask(addr, "GET", "/livez", "127.0.0.1").await), "200", "{stage:?}");
    }
}

#[tokio::test]
async fn only_get_by_address_is_answered() {
    let (addr, _probes) = start().await;
    for (method, path, host, expected) in [
        ("GET", "/livez", "127.0.0.1:9303", "200"),
        ("GET", "/livez", "localhost", "200"),
        ("GET", "/livez", "LOCALHOST:1", "200"),
        ("GET", "/livez", "[::1]:9303", "200"),
        ("GET", "/livez", "[::1]", "200"),
        ("GET", "/livez?verbose", "10.0.0.1", "200"),
        ("GET", "/livez", "evil.example", "403"),
        ("GET", "/livez", "evil.example:9303", "403"),
        ("GET", "/livez", "127.0.0.1.evil.example", "403"),
        ("GET", "/livez", "localhost.evil.example", "403"),
        ("GET", "/livez", "", "403"),
        ("GET", "http://evil.example/livez", "127.0.0.1", "403"),
        ("GET", "/", "127.0.0.1", "404"),
        ("GET", "/livez/", "127.0.0.1", "404"),
        ("POST", "/livez", "127.0.0.1", "405"),
        ("HEAD", "/livez", "127.0.0.1", "405"),
        ("OPTIONS", "*", "127.0.0.1", "405"),
        ("DELETE", "/readyz", "127.0.0.1", "405"),
    ] {
        let answer = ask(addr, method, path, host).await;
        assert_eq!(status(&answer), expected, "{method} {path} {host}: {answer}");
        assert!(!answer.to_ascii_lowercase().contains("access-control"), "{answer}");
    }
    let two = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&exchange(addr, two).await), "403");
    assert_eq!(status(&exchange(addr, b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n").await), "403");
    assert_eq!(status(&exchange(addr, b"GET /livez HTTP/1.0\r\n\r\n").await), "200");
}

#[tokio::test]
async fn what_is_no_request_harms_nobody() {
    let (addr, _probes) = start().await;
    let long_line = format!("GET /{} HTTP/1.1\r\n", "x".repeat(100_000)).into_bytes();
    let many_fields = format!("GET /livez HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(500)).into_bytes();
    for (bytes, expected) in [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), ["400", "none", "505"]),
        (vec![0; 4_096], ["400", "none", "none"]),
        (long_line, ["414", "431", "400"]),
        (many_fields, ["431", "400", "none"]),
    ] {
        let answer = exchange(addr, &bytes).await;
        assert!(expected.contains(&status(&answer)), "{answer}");
    }
    assert_eq!(status(&ask(addr, "GET", "/livez", "127.0.0.1").await), "200");
}

#[tokio::test]
async fn silent_connections_lock_nobody_out() {
    let (addr, _probes) = start().await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(addr).await.unwrap());
    }
    assert_eq!(status(&ask(addr, "GET", "/livez", "127.0.0.1").await), "200");
    // The oldest connections were closed to make room for newer ones.
    let closed = timeout(Duration::from_secs(5), silent.first_mut().unwrap().read(&mut [0; 1])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
}

#[tokio::test]
async fn half_a_request_is_closed_in_time() {
    let (addr, _probes) = start().await;
    let answer = exchange(addr, b"GET /livez HTTP/1.1\r\nHost:").await;
    assert!(matches!(status(&answer), "none" | "408"), "{answer}");
}
