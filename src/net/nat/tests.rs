//! The driver with small gateways of the tests on loopback. No packet leaves the machine.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::*;

const PORTS: Ports = Ports { tcp: 30303, udp: 30304 };
const SOON: Duration = Duration::from_secs(10);

/// The open ports of a gateway, as (protocol, outside port) → inside port, and its behaviour.
#[derive(Debug, Default)]
struct Router {
    ip: Option<Ipv4Addr>,
    open: BTreeMap<(&'static str, u16), u16>,
    requests: usize,
    /// Outside ports that belong to another machine.
    taken: Vec<u16>,
    only_permanent: bool,
    leases: Vec<u32>,
    description: String,
}

type Shared = Arc<Mutex<Router>>;

fn lock(router: &Shared) -> std::sync::MutexGuard<'_, Router> {
    router.lock().unwrap_or_else(PoisonError::into_inner)
}

fn router() -> Shared {
    Arc::new(Mutex::new(Router { ip: Some(Ipv4Addr::new(5, 6, 7, 8)), ..Router::default() }))
}

/// A running driver.
struct Driver {
    mapped: watch::Receiver<Mapped>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Driver {
    fn start(method: NatMethod, search_addr: SocketAddr, timing: Timing) -> Self {
        let (mapped, told) = watch::channel(Mapped::default());
        let (stop, stopped) = watch::channel(false);
        let gateways = Some(vec![Ipv4Addr::LOCALHOST]);
        let config = Config { method, ports: PORTS, timing, search_addr, gateways };
        let resolver = Resolver::with_server("127.0.0.1:9".parse().unwrap()).unwrap();
        let task = tokio::spawn(run(config, resolver, StdRng::seed_from_u64(1), mapped, stopped));
        Self { mapped: told, stop, task }
    }

    async fn until(&mut self, wanted: Mapped) {
        let reached = timeout(SOON, self.mapped.wait_for(|mapped| *mapped == wanted)).await.is_ok();
        assert!(reached, "{:?} instead of {wanted:?}", self.mapped.borrow());
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        timeout(SOON, self.task).await.unwrap().unwrap();
        assert_eq!(*self.mapped.borrow(), Mapped::default());
    }
}

fn mapped(ip: [u8; 4], tcp: u16, udp: u16) -> Mapped {
    Mapped { ip: Some(ip.into()), tcp: Some(tcp), udp: Some(udp) }
}

fn fast() -> Timing {
    let tick = Duration::from_millis(50);
    Timing { lifetime: Duration::from_secs(600), renew: tick, retry: tick, poll: tick, search: tick }
}

fn nowhere() -> SocketAddr {
    "127.0.0.1:9".parse().unwrap()
}

/// A NAT-PMP router on an address of 127/8 that only this process and test use, because the port is fixed (5351).
async fn pmp_router(router: Shared) -> (Ipv4Addr, JoinSet<()>) {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, high | 1, low, NEXT.fetch_add(1, Ordering::Relaxed));
    let socket = UdpSocket::bind((ip, 5351)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut packet = [0; 64];
        while let Ok((len, from)) = socket.recv_from(&mut packet).await {
            let answer = pmp_answer(&router, &packet[..len]);
            let _ = socket.send_to(&answer, from).await;
        }
    });
    (ip, tasks)
}

fn pmp_answer(router: &Shared, packet: &[u8]) -> Vec<u8> {
    let mut router = lock(router);
    router.requests += 1;
    let header = |op: u8, result: u16| [&[0, 128 + op][..], &result.to_be_bytes(), &[0, 0, 0, 9]].concat();
    let Some(ip) = router.ip else { return header(packet[1], 3) };
    if packet == [0, 0] {
        return [header(0, 0), ip.octets().to_vec()].concat();
    }
    let protocol = if packet[1] == 1 { "UDP" } else { "TCP" };
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let lifetime = u32::from_be_bytes(packet[8..12].try_into().unwrap());
    router.leases.push(lifetime);
    let (inside, mut outside) = (port(4), port(6));
    if lifetime == 0 {
        router.open.retain(|key, to| !(key.0 == protocol && *to == inside));
        outside = 0;
    } else {
        while router.taken.contains(&outside) {
            outside += 1000;
        }
        router.open.insert((protocol, outside), inside);
    }
    [
        header(packet[1], 0),
        inside.to_be_bytes().to_vec(),
        outside.to_be_bytes().to_vec(),
        packet[8..12].to_vec(),
    ]
    .concat()
}

#[tokio::test]
async fn nat_pmp_from_beginning_to_end() {
    let router = router();
    let (ip, _tasks) = pmp_router(router.clone()).await;
    let mut driver = Driver::start(NatMethod::Pmp(Some(ip)), nowhere(), fast());
    driver.until(mapped([5, 6, 7, 8], 30303, 30304)).await;
    assert_eq!(lock(&router).open, BTreeMap::from([(("TCP", 30303), 30303), (("UDP", 30304), 30304)]));
    assert!(lock(&router).leases.iter().all(|lease| *lease == 600));
    // The address changes, and the port changes at the next renewal. The driver follows both.
    lock(&router).ip = Some(Ipv4Addr::new(5, 6, 7, 9));
    lock(&router).taken = vec![30303];
    driver.until(mapped([5, 6, 7, 9], 31303, 30304)).await;
    let before = lock(&router).requests;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(lock(&router).requests > before, "renewed and polled");
    lock(&router).open.remove(&("TCP", 30303)); // The earlier mapping has expired.
    driver.stop().await;
    assert_eq!(lock(&router).open, BTreeMap::new());
}

#[tokio::test]
async fn a_gateway_that_fails_is_given_up_and_found_again() {
    let router = router();
    let (ip, _tasks) = pmp_router(router.clone()).await;
    let mut driver = Driver::start(NatMethod::Pmp(Some(ip)), nowhere(), fast());
    driver.until(mapped([5, 6, 7, 8], 30303, 30304)).await;
    lock(&router).ip = None;
    driver.until(Mapped::default()).await;
    lock(&router).ip = Some(Ipv4Addr::new(5, 6, 7, 8));
    driver.until(mapped([5, 6, 7, 8], 30303, 30304)).await;
    driver.stop().await;
}

/// A UPnP gateway. It answers searches on a UDP port, and serves its description and SOAP on a TCP port.
async fn upnp_gateway(router: Shared) -> (SocketAddr, JoinSet<()>) {
    let search = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, location) = (search.local_addr().unwrap(), http.local_addr().unwrap());
    if lock(&router).description.is_empty() {
        lock(&router).description = DESCRIPTION.to_owned();
    }
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut packet = [0; 2048];
        while let Ok((len, from)) = search.recv_from(&mut packet).await {
            let asked = String::from_utf8_lossy(&packet[..len]).into_owned();
            assert!(asked.starts_with("M-SEARCH * HTTP/1.1\r\n"), "{asked}");
            // The first two URLs are not at the gateway's own address, so they must not be followed.
            for url in
                ["http://127.0.0.2:1/x", "http://example.org/x", &format!("http://{location}/desc.xml")]
            {
                let answer = format!("HTTP/1.1 200 OK\r\nLocation: {url}\r\nST: igd\r\n\r\n");
                let _ = search.send_to(answer.as_bytes(), from).await;
            }
        }
    });
    tasks.spawn(async move {
        while let Ok((stream, _)) = http.accept().await {
            serve(stream, &router).await;
        }
    });
    (addr, tasks)
}

const DESCRIPTION: &str = "<?xml version=\"1.0\"?><root><device><deviceList><device><serviceList>\
    <service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><controlURL>/no</controlURL></service>\
    <service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>/ctl</controlURL></service>\
    </serviceList></device></deviceList></device></root>";

async fn serve(mut stream: TcpStream, router: &Shared) {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                let (status, answer) = upnp_answer(router, head, body);
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", answer.len());
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                return;
            }
        }
        match stream.read(&mut chunk).await {
            Ok(len) if len > 0 => request.extend(&chunk[..len]),
            _ => return,
        }
    }
}

fn upnp_answer(router: &Shared, head: &str, body: &str) -> (&'static str, String) {
    let mut router = lock(router);
    router.requests += 1;
    if head.starts_with("GET /desc.xml") {
        return ("200 OK", router.description.clone());
    }
    assert!(head.starts_with("POST /ctl "), "{head}");
    let field = |name: &str| {
        let (_, rest) = body.split_once(&format!("<{name}>")).unwrap();
        rest.split_once('<').unwrap().0.to_owned()
    };
    let fault = |code: u16| ("500 Internal Server Error", format!("<errorCode>{code}</errorCode>"));
    let protocol = || if field("NewProtocol") == "TCP" { "TCP" } else { "UDP" };
    let Some(ip) = router.ip else { return fault(501) };
    if head.contains("#GetExternalIPAddress") {
        return ("200 OK", format!("<NewExternalIPAddress>{ip}</NewExternalIPAddress>"));
    }
    let outside = field("NewExternalPort").parse().unwrap();
    if head.contains("#DeletePortMapping") {
        return router.open.remove(&(protocol(), outside)).map_or(fault(714), |_| ("200 OK", String::new()));
    }
    assert!(head.contains("#AddPortMapping"), "{head}");
    assert_eq!(field("NewInternalClient"), "127.0.0.1");
    let lease = field("NewLeaseDuration").parse().unwrap();
    if router.only_permanent && lease != 0 {
        return fault(725);
    }
    if router.taken.contains(&outside) {
        return fault(718);
    }
    router.leases.push(lease);
    router.open.insert((protocol(), outside), field("NewInternalPort").parse().unwrap());
    ("200 OK", String::new())
}

#[tokio::test]
async fn upnp_from_beginning_to_end() {
    let router = router();
    let (search, _tasks) = upnp_gateway(router.clone()).await;
    let mut driver = Driver::start(NatMethod::Upnp, search, fast());
    driver.until(mapped([5, 6, 7, 8], 30303, 30304)).await;
    assert_eq!(lock(&router).open, BTreeMap::from([(("TCP", 30303), 30303), (("UDP", 30304), 30304)]));
    lock(&router).ip = Some(Ipv4Addr::new(9, 9, 9, 9));
    driver.until(mapped([9, 9, 9, 9], 30303, 30304)).await;
    driver.stop().await;
    assert_eq!(lock(&router).open, BTreeMap::new());
    assert!(lock(&router).leases.iter().all(|lease| *lease == 600));
}

#[tokio::test]
async fn upnp_with_a_taken_port_and_permanent_leases() {
    let router = router();
    lock(&router).taken = vec![30303];
    lock(&router).only_permanent = true;
    let (search, _tasks) = upnp_gateway(router.clone()).await;
    let mut driver = Driver::start(NatMethod::Any, search, fast());
    timeout(SOON, driver.mapped.wait_for(|told| told.tcp.is_some() && told.udp.is_some()))
        .await
        .unwrap()
        .unwrap();
    let told = *driver.mapped.borrow();
    assert_eq!(told.udp, Some(30304));
    assert!(told.tcp.is_some_and(|port| port >= 10_000 && port != 30303), "{told:?}");
    assert!(lock(&router).leases.iter().all(|lease| *lease == 0));
    driver.stop().await;
    assert_eq!(lock(&router).open, BTreeMap::new());
}

#[tokio::test]
async fn descriptions_that_are_no_good_are_not_used() {
    let elsewhere = DESCRIPTION.replace("/ctl", "http://127.0.0.2:80/ctl");
    let huge = format!("{}{DESCRIPTION}", " ".repeat(64 * 1024));
    // Each search waits three seconds. They run together, so that the test waits once.
    let searches = [elsewhere, huge, "<root/>".to_owned(), "\u{0}".to_owned()].map(|description| async {
        let router = router();
        lock(&router).description = description;
        let (search, _tasks) = upnp_gateway(router.clone()).await;
        let error = upnp::Gateway::find(search).await.unwrap_err();
        assert!(matches!(error, Error::NotFound(_)), "{error}");
        assert!(lock(&router).requests >= 1, "its description was read");
    });
    searches.into_iter().collect::<JoinSet<()>>().join_all().await;
}

#[tokio::test]
async fn without_a_gateway_nothing_happens_and_stopping_is_quick() {
    for method in [NatMethod::None, NatMethod::ExtIp(vec![Ipv4Addr::LOCALHOST.into()])] {
        timeout(SOON, Driver::start(method, nowhere(), fast()).task).await.unwrap().unwrap();
    }
    // No gateway answers at this address. The search goes on until it is told to stop.
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let driver = Driver::start(NatMethod::Upnp, silent.local_addr().unwrap(), Timing::default());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begin = clock::now().mono;
    driver.stop().await;
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn stun_tells_the_address_and_opens_nothing() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = server.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut packet = [0; 64];
        while let Ok((len, from)) = server.recv_from(&mut packet).await {
            let address = [0, 1, 0, 8, 0, 1, 0, 80, 5, 6, 7, 8];
            let answer = [&[1, 1, 0, 12], &packet[4..len], &address].concat();
            let _ = server.send_to(&answer, from).await;
        }
    });
    let method = NatMethod::Stun(Some((addr.ip().to_string(), addr.port())));
    let mut driver = Driver::start(method, nowhere(), fast());
    driver.until(Mapped { ip: Some(Ipv4Addr::new(5, 6, 7, 8)), tcp: None, udp: None }).await;
    driver.stop().await;
}
