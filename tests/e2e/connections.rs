//! What ends a connection, and what does not.

use flowmesh_proto::v1;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use crate::common::client::{read_at, record};
use crate::common::wire::{
    GOAWAY, GRPC, HEADERS, RST_STREAM, Wire, connect_raw, framed, gzip_frame, next_frame, raw_call,
};
use crate::common::{Client, Home, Server, eventually, within};

/// Until so many commands wait for something to arrive, over all shards.
async fn waiting(server: &Server, wanted: f64) {
    eventually("so many commands wait", || async {
        (server.metric("flowmesh_waiting_commands", "")? == wanted).then_some(())
    })
    .await;
}

fn status(stream: &str) -> v1::StreamStatusRequest {
    v1::StreamStatusRequest { stream: stream.into(), partitions: vec![] }
}

#[tokio::test]
async fn an_idle_connection_gets_goaway_and_a_busy_one_stays() {
    let home = Home::new().set("idle_timeout_ms", "1s").set("shutdown_timeout_ms", "200ms");
    let server = home.start();
    let mut busy = server.client().await;
    busy.append("logs", ["one"]).await.unwrap();
    let request = v1::SubscribeRequest { stream: "logs".into(), ..v1::SubscribeRequest::default() };
    let mut batches = busy.stream.subscribe(request).await.unwrap().into_inner();
    within("what is there", batches.message()).await.unwrap().unwrap();

    let mut idle = connect_raw(server.grpc_port()).await;
    within("GOAWAY", next_frame(&mut idle, GOAWAY)).await;
    let mut rest = Vec::new();
    within("the end of the idle connection", idle.read_to_end(&mut rest)).await.unwrap();

    // The busy one is older, and has been as silent.
    server.client().await.append("logs", ["two"]).await.unwrap();
    let batch = within("what came since", batches.message()).await.unwrap().unwrap();
    assert_eq!(batch.records[0].value, "two");
    assert_eq!(server.metric("flowmesh_connections_total", ""), Some(3.0), "nobody had to connect again");
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_closed_without_a_word_and_one_that_ends_lets_another_in() {
    let home = Home::new().set("connections_max", "2");
    let server = home.start();
    let mut first = server.client().await;
    let mut second = server.client().await;
    first.append("logs", ["x"]).await.unwrap();
    second.append("logs", ["x"]).await.unwrap();

    let mut beyond = TcpStream::connect(("127.0.0.1", server.grpc_port())).await.unwrap();
    let mut bytes = Vec::new();
    // The end, or a reset where the client's words had come before.
    let _ = within("it is closed", beyond.read_to_end(&mut bytes)).await;
    assert!(bytes.is_empty(), "{bytes:?}");
    let status =
        async { Client::try_connect(server.grpc_port()).await.ok()?.append("logs", ["x"]).await.err() };
    if let Some(status) = within("a call is refused", status).await {
        // Whichever word the client has for a connection that ends: the server said none.
        let lost = [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled];
        assert!(lost.contains(&status.code()), "{status:?}");
    }
    assert!(server.log().contains("connections_max"), "the log names the setting");

    drop(first);
    let mut third = eventually("there is room again", || async {
        let mut client = Client::try_connect(server.grpc_port()).await.ok()?;
        client.append("logs", ["x"]).await.ok().map(|_| client)
    })
    .await;
    // Those that had a place before still have it.
    second.append("logs", ["x"]).await.unwrap();
    third.append("logs", ["x"]).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_vanished_gives_its_place_and_its_waits_back() {
    let home = Home::new()
        .set("keepalive_ms", "1s")
        .set("keepalive_timeout_ms", "200ms")
        .set("connections_max", "1");
    let server = home.start();
    server.client().await.append("logs", ["x"]).await.unwrap();
    eventually("the first one's place is free", || async {
        (server.metric("flowmesh_connections_open", "")? == 0.0).then_some(())
    })
    .await;
    // It reads nothing and answers nothing, but its socket stays: as if its cable was pulled.
    let mut gone = connect_raw(server.grpc_port()).await;
    let wait = v1::ReadRequest { wait_ms: 60_000, ..read_at("logs", 1) };
    gone.write_all(&raw_call(1, "/flowmesh.v1.Stream/Read", &framed(&wait))).await.unwrap();
    waiting(&server, 1.0).await;
    waiting(&server, 0.0).await;
    eventually("its place is free", || async {
        let mut client = Client::try_connect(server.grpc_port()).await.ok()?;
        client.append("logs", ["x"]).await.ok()
    })
    .await;
    drop(gone);
}

#[tokio::test]
async fn streams_beyond_the_limit_wait_or_are_refused_and_the_connection_goes_on() {
    const STREAMS: u32 = 4;
    let home = Home::new().set("connection_streams_max", &STREAMS.to_string());
    let server = home.start();
    let mut client = server.client().await;
    for stream in 0..=STREAMS {
        client.append(&format!("s{stream}"), ["x"]).await.unwrap();
    }
    let read =
        |stream: u32| framed(&v1::ReadRequest { wait_ms: 60_000, ..read_at(&format!("s{stream}"), 1) });

    // A client that keeps to what SETTINGS say waits with the fifth call until one of the four has ended.
    let mut wire = Wire::connect(server.grpc_port()).await;
    let mut calls = Vec::new();
    for stream in 0..STREAMS {
        let (answer, mut body) = wire.open("Stream/Read").await;
        body.send_data(read(stream), true).unwrap();
        calls.push(answer);
    }
    waiting(&server, f64::from(STREAMS)).await;
    let fifth = tokio::spawn(async move { wire.grpc("Stream/Status", framed(&status("s0"))).await });
    client.append("s0", ["y"]).await.unwrap();
    let first = within("the first call", calls.remove(0)).await.unwrap();
    assert_eq!(first.status(), 200);
    drop(first);
    assert_eq!(within("the fifth call", fifth).await.unwrap().grpc_status, Some(0));
    drop(calls);
    waiting(&server, 0.0).await;

    // One that does not keep to it has that call refused, as RFC 9113 says: safe to try again.
    for stream in 1..=STREAMS {
        client.append(&format!("s{stream}"), ["y"]).await.unwrap();
    }
    let read =
        |stream: u32| framed(&v1::ReadRequest { wait_ms: 60_000, ..read_at(&format!("s{stream}"), 2) });
    let mut raw = connect_raw(server.grpc_port()).await;
    for stream in 0..=STREAMS {
        raw.write_all(&raw_call(2 * stream + 1, "/flowmesh.v1.Stream/Read", &read(stream))).await.unwrap();
    }
    let refused = within("a refusal", next_frame(&mut raw, RST_STREAM)).await;
    assert_eq!((refused.stream, refused.payload.as_slice()), (2 * STREAMS + 1, &[0, 0, 0, 7][..]));
    waiting(&server, f64::from(STREAMS)).await;
    client.append("s1", ["z"]).await.unwrap();
    let answered = within("an answer on the same connection", next_frame(&mut raw, HEADERS)).await;
    assert_eq!(answered.stream, 3);
}

#[tokio::test]
async fn headers_beyond_the_limit_are_answered_431_and_the_connection_goes_on() {
    const HEADERS_BYTES_MAX: usize = 16 * 1024;
    let home = Home::new();
    let server = home.start();
    server.client().await.append("logs", ["x"]).await.unwrap();
    let mut wire = Wire::connect(server.grpc_port()).await;
    for (bytes, http_status) in
        [(HEADERS_BYTES_MAX - 1024, 200), (HEADERS_BYTES_MAX + 1024, 431), (HEADERS_BYTES_MAX - 1024, 200)]
    {
        let long = "x".repeat(bytes);
        let headers = [GRPC[0], GRPC[1], ("long", long.as_str())];
        let answer =
            wire.call("/flowmesh.v1.Stream/Status", &headers, framed(&status("logs"))).await.unwrap();
        assert_eq!(answer.http_status, http_status, "{bytes} bytes: {answer:?}");
    }
    server.assert_healthy();
}

#[tokio::test]
async fn a_message_that_is_too_large_only_once_unpacked_is_refused_by_name() {
    let home = Home::new();
    let server = home.start();
    let mut wire = Wire::connect(server.grpc_port()).await;
    let zipped = [GRPC[0], GRPC[1], ("grpc-encoding", "gzip")];
    let packed = |records: usize| {
        let records = vec![record(vec![0u8; 1 << 20]); records];
        let request =
            v1::AppendRequest { stream: "logs".into(), partition: None, records, ..Default::default() };
        gzip_frame(&request.encode_to_vec())
    };
    for (megabytes, code) in [(3, Code::Ok), (5, Code::ResourceExhausted), (3, Code::Ok)] {
        let body = packed(megabytes);
        assert!(body.len() < 64 * 1024, "small on the way");
        let answer = wire.call("/flowmesh.v1.Stream/Append", &zipped, body).await.unwrap();
        assert_eq!(answer.grpc_status, Some(code as i32), "{megabytes} MiB: {answer:?}");
    }
    assert_eq!(server.client().await.values("logs").await.len(), 6, "of the refused one nothing was done");
}

#[tokio::test]
async fn a_wait_whose_deadline_has_passed_takes_nothing_whichever_core_it_waits_on() {
    const SHARDS: u16 = 2;
    let home = Home::new().shards(SHARDS);
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", ["first"]).await.unwrap();
    let taken = client.reserve("mail", 1, 600_000, 0).await.unwrap();
    assert_eq!(client.ack("mail", &taken).await, [None]);
    let reserve =
        v1::ReserveRequest { queue: "mail".into(), max_jobs: 1, wait_ms: 60_000, ..Default::default() };
    for shard in 0..SHARDS {
        let mut wire = Wire::connect(server.core_port(shard)).await;
        let soon = [GRPC[0], GRPC[1], ("grpc-timeout", "100m")];
        let answer = wire.call("/flowmesh.v1.Queue/Reserve", &soon, framed(&reserve)).await.unwrap();
        assert_eq!(answer.grpc_status, Some(Code::DeadlineExceeded as i32), "{answer:?}");
    }
    waiting(&server, 0.0).await;
    client.enqueue("mail", ["second"]).await.unwrap();
    let job = client.reserve("mail", 1, 600_000, 0).await.unwrap();
    assert_eq!((job.len(), job[0].attempt), (1, 1), "it was leased to nobody before");
}
