//! Connections between two cores.

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test: a panic is a failure"
)]

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use flowmesh_rt::core::{CoreConfig, spawn_cores, spawn_local};
use flowmesh_rt::net::{Listener, TcpStream, ensure_unused};
use flowmesh_rt::time::timeout;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Far above what anything here takes; only a hang reaches it.
const DEADLINE: Duration = Duration::from_mins(1);

fn on_a_core<F: Future<Output = io::Result<()>> + 'static>(make: impl Fn() -> F + Send + Clone + 'static) {
    let guarded = move |_| {
        let future = make();
        async move { timeout(DEADLINE, future).await.expect("a hang").unwrap() }
    };
    spawn_cores(&[CoreConfig::default()], "net", guarded).unwrap().join().unwrap();
}

async fn pair(listener: &Listener) -> io::Result<(TcpStream, TcpStream)> {
    let connecting = spawn_local(TcpStream::connect(listener.local_addr()));
    let accepted = listener.accept().await?;
    let connected = connecting.await?;
    assert_eq!(accepted.peer_addr(), connected.local_addr()?);
    assert_eq!(connected.peer_addr(), accepted.local_addr()?);
    Ok((accepted, connected))
}

#[test]
fn bytes_go_through_in_order_both_ways() {
    on_a_core(|| async {
        let listener = Listener::bind(LOOPBACK).unwrap();
        let (mut server, mut client) = pair(&listener).await?;
        // Far more than the sockets hold: both sides must wait and be woken.
        let sent: Vec<u8> = (0..20_000_000u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let writer = spawn_local(async move {
            client.write_all(&sent).await?;
            client.shutdown().await?;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await?;
            io::Result::Ok(answer)
        });
        let mut received = Vec::with_capacity(1000);
        server.read_to_end(&mut received).await?;
        assert!(received == expected);
        server.write_all(b"got it").await?;
        drop(server);
        assert_eq!(writer.await?, "got it");
        Ok(())
    });
}

#[test]
fn vectored_writes_send_all_pieces() {
    on_a_core(|| async {
        let listener = Listener::bind(LOOPBACK).unwrap();
        let (mut server, mut client) = pair(&listener).await?;
        assert!(client.is_write_vectored());
        let (head, body) = (vec![1u8; 9], vec![2u8; 3_000_000]);
        let writer = spawn_local(async move {
            let mut written = 0;
            while written < head.len() + body.len() {
                let slices = [
                    IoSlice::new(&head[written.min(head.len())..]),
                    IoSlice::new(&body[written.saturating_sub(head.len())..]),
                ];
                written += poll_fn(|cx| Pin::new(&mut client).poll_write_vectored(cx, &slices)).await?;
            }
            io::Result::Ok(())
        });
        let mut received = Vec::new();
        server.read_to_end(&mut received).await?;
        writer.await?;
        assert_eq!(received.len(), 3_000_009);
        assert!(received[..9].iter().all(|&byte| byte == 1) && received[9..].iter().all(|&byte| byte == 2));
        Ok(())
    });
}

#[test]
fn a_dropped_read_loses_nothing() {
    on_a_core(|| async {
        let listener = Listener::bind(LOOPBACK).unwrap();
        let (mut server, mut client) = pair(&listener).await?;
        let mut byte = [0];
        for round in 0..20 {
            assert!(timeout(Duration::from_millis(1), server.read(&mut byte)).await.is_err());
            client.write_all(&[round]).await?;
            server.read_exact(&mut byte).await?;
            assert_eq!(byte, [round]);
        }
        Ok(())
    });
}

#[test]
fn ends_are_seen() {
    on_a_core(|| async {
        let listener = Listener::bind(LOOPBACK).unwrap();
        let (mut server, client) = pair(&listener).await?;
        drop(client);
        assert_eq!(server.read(&mut [0; 8]).await?, 0);
        // The first write may still be taken by the socket; the answer to it is a reset.
        let failed = loop {
            if let Err(error) = server.write_all(&[0; 1000]).await {
                break error;
            }
            let _ = server.read(&mut [0; 8]).await;
        };
        assert!(matches!(failed.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{failed}");
        Ok(())
    });
}

#[test]
fn an_address_that_cannot_be_used_is_named_with_the_reason() {
    on_a_core(|| async {
        let first = Listener::bind(LOOPBACK).unwrap();
        let taken = first.local_addr();
        // Another core of the same server may listen there too; another server may not.
        let second = Listener::bind(taken).unwrap();
        let refused = ensure_unused(taken).unwrap_err().to_string();
        assert_eq!(refused, format!("cannot listen on {taken}: another process listens there"));
        drop((first, second));
        ensure_unused(taken).unwrap();

        let foreign = Listener::bind("192.0.2.1:80".parse().unwrap()).unwrap_err().to_string();
        assert_eq!(foreign, "cannot listen on 192.0.2.1:80: this machine has no such address");
        assert!(TcpStream::connect(taken).await.is_err(), "nobody listens any more");
        Ok(())
    });
}
