//! A slow link: a TCP proxy that passes a number of bytes a second each way. The kernel's own buffers on both sides of
//! it are made small, so that they do not hide the rate.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Where one connection to `to` is accepted and slowed down.
pub(crate) async fn slow(to: SocketAddr, bytes_per_second: f64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(to).await else { continue };
            for stream in [&near, &far] {
                let socket = socket2::SockRef::from(stream);
                let _ = socket.set_recv_buffer_size(64 << 10);
                let _ = socket.set_send_buffer_size(64 << 10);
            }
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            for (mut from, mut into) in [(near_read, far_write), (far_read, near_write)] {
                tokio::spawn(async move {
                    let (mut buffer, mut passed, started) = (vec![0; 16 << 10], 0.0, Instant::now());
                    while let Ok(count @ 1..) = from.read(&mut buffer).await {
                        if into.write_all(&buffer[..count]).await.is_err() {
                            return;
                        }
                        passed += count as f64;
                        let due = started + Duration::from_secs_f64(passed / bytes_per_second);
                        tokio::time::sleep_until(due.into()).await;
                    }
                    let _ = into.shutdown().await;
                });
            }
        }
    });
    address
}
