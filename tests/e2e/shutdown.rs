//! A graceful stop: open calls end, connections get GOAWAY, the data is as it was.

use std::time::Duration;

use flowmesh_proto::health::HealthCheckRequest;
use flowmesh_proto::health::health_check_response::ServingStatus;
use flowmesh_proto::health::health_client::HealthClient;
use flowmesh_proto::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::client::read_at;
use crate::common::wire::{GOAWAY, PREFACE};
use crate::common::{Home, within};
use crate::e2e::append_stream;

/// The types of all frames in these bytes.
fn frame_types(bytes: &[u8]) -> Vec<u8> {
    let (mut types, mut rest) = (Vec::new(), bytes);
    while let Some((head, after)) = rest.split_at_checked(9) {
        let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        types.push(head[3]);
        rest = after.get(len..).unwrap_or_default();
    }
    types
}

#[tokio::test]
async fn an_idle_connection_gets_goaway_and_is_closed() {
    let home = Home::new();
    let server = home.start();
    let mut socket = TcpStream::connect(("127.0.0.1", server.grpc_port())).await.unwrap();
    socket.write_all(PREFACE).await.unwrap();
    let mut bytes = vec![0u8; 9];
    within("the server's settings", socket.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(bytes[3], 4, "a SETTINGS frame comes first");
    server.terminate();
    within("the end of the connection", socket.read_to_end(&mut bytes)).await.unwrap();
    assert!(frame_types(&bytes).contains(&GOAWAY), "{:?}", frame_types(&bytes));
    assert!(server.wait_end().success());
}

#[tokio::test]
async fn open_calls_end_and_nothing_acknowledged_is_lost() {
    let home = Home::new().set("shutdown_timeout_ms", "5s");
    let server = home.start();
    let mut client = server.client().await;
    client.append("logs", ["x"]).await.unwrap();
    client.enqueue("mail", ["x"]).await.unwrap();

    let mut reader = client.clone();
    let reading = tokio::spawn(async move {
        reader.stream.read(v1::ReadRequest { wait_ms: 60_000, ..read_at("logs", 1) }).await
    });
    let mut subscriber = server.client().await;
    let request = v1::SubscribeRequest { stream: "logs".into(), ..v1::SubscribeRequest::default() };
    let mut batches = subscriber.stream.subscribe(request).await.unwrap().into_inner();
    within("the first batch", batches.message()).await.unwrap().unwrap();
    let mut producer = server.client().await;
    let (sender, mut answers) =
        append_stream::open(&mut producer, append_stream::append("logs", 1, &["y".into()])).await;
    let first = within("an ack", answers.message()).await.unwrap().unwrap();
    assert_eq!(first.acks[0].error, None);

    server.terminate();
    // A subscriber's call ends, one way or another, so that it can go elsewhere; a wait is answered.
    let end = within("the subscription ends", async {
        loop {
            match batches.message().await {
                Ok(Some(_)) => {}
                other => return other.map(drop),
            }
        }
    })
    .await;
    println!("the subscription ended with {end:?}");
    let waited = within("the waiting read is answered", reading).await.unwrap();
    println!("the waiting read got {:?}", waited.map(|_| "an answer").map_err(|status| status.code()));
    drop(sender);
    within("the producer's call ends", async { while let Ok(Some(_)) = answers.message().await {} }).await;
    assert!(server.wait_end().success());

    let server = home.start();
    let mut client = server.client().await;
    assert_eq!(client.values("logs").await, ["x", "y"]);
    assert_eq!(client.queue_status("mail").await.ready, 1);
}

#[tokio::test]
async fn writers_that_are_cut_off_by_a_stop_lose_nothing() {
    let home = Home::new().shards(2);
    let mut next = 0u64;
    for _ in 0..3 {
        let server = home.start();
        let mut client = server.client().await;
        let writer = tokio::spawn(async move {
            let mut last = None;
            while let Ok(answer) = client.append("logs", ["x"]).await {
                last = Some(answer.base_offset);
            }
            last
        });
        tokio::time::sleep(Duration::from_millis(100)).await; // any moment will do
        server.stop();
        if let Some(last) = within("the writer notices", writer).await.unwrap() {
            next = last + 1;
        }
    }
    let server = home.start();
    assert!(server.client().await.values("logs").await.len() as u64 >= next);
}

#[tokio::test]
async fn a_call_that_never_ends_does_not_hold_the_server_up() {
    let home = Home::new().set("shutdown_timeout_ms", "300ms");
    let server = home.start();
    let mut client = server.client().await;
    // A producer that neither sends nor closes.
    let (_sender, _answers) =
        append_stream::open(&mut client, append_stream::append("logs", 1, &["x".into()])).await;
    let mut raw = TcpStream::connect(("127.0.0.1", server.grpc_port())).await.unwrap();
    raw.write_all(b"PRI * HTTP/2.0").await.unwrap();
    server.terminate();
    assert!(tokio::task::spawn_blocking(|| server.wait_end()).await.unwrap().success());
}

#[tokio::test]
async fn watchers_of_health_see_it_end() {
    let home = Home::new();
    let server = home.start();
    let mut health = HealthClient::new(server.client().await.channel);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let first = within("the state now", watch.message()).await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    server.terminate();
    let next = within("the end", watch.message()).await;
    assert!(!matches!(&next, Ok(Some(answer)) if answer.status() == ServingStatus::Serving), "{next:?}");
    assert!(server.wait_end().success());
}
