//! What is not even a gRPC message: a clear status, and the connection and the server go on.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_proto::v1;
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tonic::Code;

use crate::common::client::{read_at, record};
use crate::common::wire::{Answer, GRPC, Wire, frame, frame_of_length, framed, gzip};
use crate::common::{Home, Random, Server, now_ms, within};

fn append(value: &'static str) -> v1::AppendRequest {
    v1::AppendRequest {
        stream: "logs".into(),
        partition: None,
        records: vec![record(value)],
        ..Default::default()
    }
}

#[track_caller]
fn is(answer: &Answer, code: Code) {
    assert_eq!(answer.http_status, 200, "{answer:?}");
    assert_eq!(answer.grpc_status, Some(code as i32), "{answer:?}");
    assert!(answer.trailers_only || code == Code::Ok, "an error comes without a body: {answer:?}");
}

/// What the stream holds shows that nothing of the bad calls was carried out.
async fn only_these(server: &Server, values: &[&'static str]) {
    assert_eq!(server.client().await.values("logs").await, values);
    server.assert_healthy();
}

#[tokio::test]
async fn malformed_messages_are_refused_on_a_connection_that_goes_on() {
    let home = Home::new();
    let server = home.start();
    let mut wire = Wire::connect(server.grpc_port()).await;
    let good = framed(&append("good"));
    is(&wire.grpc("Stream/Append", good.clone()).await, Code::Ok);

    let message = append("bad").encode_to_vec();
    for cut in 1..message.len() {
        // A field that is cut off cannot be read; a cut between fields is another, shorter message.
        let answer = wire.grpc("Stream/Append", frame(0, &message[..cut])).await;
        let whole = v1::AppendRequest::decode(&message[..cut]).is_ok();
        if !whole {
            is(&answer, Code::InvalidArgument);
        }
    }
    is(
        &wire.grpc("Stream/Append", frame(0, b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF")).await,
        Code::InvalidArgument,
    );
    is(&wire.grpc("Kv/Get", frame(0, b"\x0A\xFF\xFF\xFF\xFF\x0F")).await, Code::InvalidArgument);
    // A record with a field that this version does not know: it is stored as it is, so it is refused.
    is(&wire.grpc("Stream/Append", frame(0, b"\x0A\x04logs\x1A\x02\x78\x01")).await, Code::InvalidArgument);
    is(&wire.grpc("Stream/Append", good).await, Code::Ok);
    only_these(&server, &["good", "good"]).await;
}

#[tokio::test]
async fn truncated_frames_are_refused() {
    let home = Home::new();
    let server = home.start();
    let mut wire = Wire::connect(server.grpc_port()).await;
    let good = framed(&append("good"));
    is(&wire.grpc("Stream/Append", good.clone()).await, Code::Ok);
    for cut in 0..good.len() {
        let answer = wire.grpc("Stream/Append", good.slice(..cut)).await;
        assert!(
            matches!(answer.grpc_status, Some(code) if code != 0),
            "{cut} of {} bytes: {answer:?}",
            good.len()
        );
    }
    // A length that promises more than a message may have is refused before the bytes come.
    let huge = wire.grpc("Stream/Append", frame_of_length(0, u32::MAX, b"x")).await;
    is(&huge, Code::ResourceExhausted);
    // Two messages where one is expected.
    let two = [good.as_ref(), good.as_ref()].concat();
    let answer = wire.grpc("Stream/Append", two.into()).await;
    assert_ne!(answer.grpc_status, Some(0), "{answer:?}");
    only_these(&server, &["good"]).await;
}

#[tokio::test]
async fn random_bytes_never_hurt() {
    let home = Home::new();
    let server = home.start();
    let mut random = Random::new("random_bytes_never_hurt");
    let mut wire = Wire::connect(server.grpc_port()).await;
    const METHODS: [&str; 12] = [
        "Stream/Append",
        "Stream/Read",
        "Stream/AppendStream",
        "Stream/Subscribe",
        "Queue/Enqueue",
        "Queue/Reserve",
        "Queue/Ack",
        "Queue/Work",
        "Kv/Set",
        "Kv/Get",
        "Kv/Scan",
        "Admin/CreateResource",
    ];
    for _ in 0..300 {
        let method = METHODS[random.below(12) as usize];
        let len = random.below(200) as usize;
        let noise = random.bytes(len);
        let body = if random.below(2) == 0 { frame(0, &noise) } else { Bytes::from(noise) };
        let answer = wire.grpc(method, body).await;
        assert!(answer.grpc_status.is_some(), "{method}: {answer:?}");
    }
    server.assert_healthy();
}

#[tokio::test]
async fn unknown_methods_and_services_are_named() {
    let home = Home::new();
    let server = home.start();
    let mut wire = Wire::connect(server.grpc_port()).await;
    for path in [
        "/flowmesh.v1.Stream/Nothing",
        "/flowmesh.v2.Stream/Append",
        "/",
        "/x",
        "/flowmesh.v1.Stream/Append/x",
    ] {
        let answer = wire.call(path, &GRPC, framed(&append("x"))).await.unwrap();
        is(&answer, Code::Unimplemented);
        assert!(answer.message.contains("method"), "{answer:?}");
    }
}

#[tokio::test]
async fn what_is_no_grpc_is_told_so_in_http() {
    let home = Home::new();
    let server = home.start();
    let mut wire = Wire::connect(server.grpc_port()).await;
    let answer = wire
        .call("/flowmesh.v1.Stream/Append", &[("content-type", "text/html")], Bytes::new())
        .await
        .unwrap();
    assert_eq!(answer.http_status, 415, "{answer:?}");
    let proto = [("content-type", "application/grpc+proto"), ("te", "trailers")];
    let answer = wire.call("/flowmesh.v1.Stream/Append", &proto, framed(&append("x"))).await.unwrap();
    is(&answer, Code::Ok);
    assert_eq!(answer.headers["content-type"], "application/grpc");
    assert_eq!(v1::AppendResponse::decode(&answer.body[5..]).unwrap().count, 1);
}

#[tokio::test]
async fn compression_is_understood_or_refused_but_never_a_bomb() {
    let home = Home::new();
    let server = home.start();
    let mut wire = Wire::connect(server.grpc_port()).await;
    let zipped = [GRPC[0], GRPC[1], ("grpc-encoding", "gzip")];
    let path = "/flowmesh.v1.Stream/Append";
    let message = append("zipped").encode_to_vec();

    is(&wire.call(path, &zipped, frame(1, &gzip(&message))).await.unwrap(), Code::Ok);
    is(&wire.call(path, &zipped, frame(0, &message)).await.unwrap(), Code::Ok);

    let broken = wire.call(path, &zipped, frame(1, b"this is not gzip")).await.unwrap();
    assert!(matches!(broken.grpc_status, Some(3 | 13)), "{broken:?}");
    let cut = gzip(&message);
    let cut = wire.call(path, &zipped, frame(1, &cut[..cut.len() / 2])).await.unwrap();
    assert!(matches!(cut.grpc_status, Some(3 | 13)), "{cut:?}");
    // Compressed without saying how, and a way nobody knows.
    let unsaid = wire.call(path, &GRPC, frame(1, &gzip(&message))).await.unwrap();
    assert!(matches!(unsaid.grpc_status, Some(3 | 12 | 13)), "{unsaid:?}");
    let unknown = [GRPC[0], GRPC[1], ("grpc-encoding", "brotli")];
    let unknown = wire.call(path, &unknown, frame(1, &message)).await.unwrap();
    is(&unknown, Code::Unimplemented);
    assert!(unknown.headers.contains_key("grpc-accept-encoding"), "it says what it does accept: {unknown:?}");
    let strange = wire.grpc("Stream/Append", frame(7, &message)).await;
    assert!(matches!(strange.grpc_status, Some(3 | 13)), "{strange:?}");

    // 1 GiB of zeros in 1 MiB: refused at the limit, long before it is unpacked.
    let before = server.rss_bytes();
    let bomb = gzip(&vec![0u8; 256 << 20]);
    is(&wire.call(path, &zipped, frame(1, &bomb)).await.unwrap(), Code::ResourceExhausted);
    assert!(server.rss_bytes() < before + (64 << 20));
    only_these(&server, &["zipped", "zipped"]).await;
}

#[tokio::test]
async fn deadlines_that_make_no_sense_are_refused() {
    let home = Home::new();
    let server = home.start();
    let mut wire = Wire::connect(server.grpc_port()).await;
    for timeout in ["", "soon", "5", "-1S", "1X", "123456789S"] {
        let headers = [GRPC[0], GRPC[1], ("grpc-timeout", timeout)];
        let answer = wire.call("/flowmesh.v1.Stream/Append", &headers, framed(&append("x"))).await.unwrap();
        assert_ne!(answer.grpc_status, Some(0), "grpc-timeout {timeout:?}: {answer:?}");
    }
    server.assert_healthy();
}

#[tokio::test]
async fn a_deadline_in_the_past_does_nothing_and_one_ahead_ends_a_wait() {
    let home = Home::new();
    let server = home.start();
    let mut wire = Wire::connect(server.grpc_port()).await;
    is(&wire.grpc("Stream/Append", framed(&append("good"))).await, Code::Ok);
    for past in ["0S", "0n"] {
        let past = [GRPC[0], GRPC[1], ("grpc-timeout", past)];
        let answer = wire.call("/flowmesh.v1.Stream/Append", &past, framed(&append("late"))).await.unwrap();
        is(&answer, Code::DeadlineExceeded);
    }
    // tonic would end the call by itself; here only the server knows of the deadline.
    let wait = v1::ReadRequest { wait_ms: 60_000, ..read_at("logs", 1) };
    let soon = [GRPC[0], GRPC[1], ("grpc-timeout", "200m")];
    let before = now_ms();
    let answer = wire.call("/flowmesh.v1.Stream/Read", &soon, framed(&wait)).await.unwrap();
    is(&answer, Code::DeadlineExceeded);
    assert!(now_ms() >= before + 200);
    only_these(&server, &["good"]).await;
}

#[tokio::test]
async fn headers_without_end_are_cut_off() {
    let home = Home::new();
    let server = home.start();
    let mut wire = Wire::connect(server.grpc_port()).await;
    let long = "x".repeat(60_000);
    let headers = [GRPC[0], GRPC[1], ("long", long.as_str())];
    // HTTP 431, a stream error or a connection error are all clear; hanging or taking it is not.
    if let Ok(answer) = wire.call("/flowmesh.v1.Stream/Append", &headers, framed(&append("x"))).await {
        assert!(answer.http_status == 431 || answer.grpc_status.is_some_and(|code| code != 0), "{answer:?}");
    }
    server.assert_healthy();
}

#[tokio::test]
async fn what_is_no_http2_is_closed() {
    let home = Home::new().set("handshake_timeout_ms", "500ms");
    let server = home.start();
    let mut random = Random::new("what_is_no_http2");
    let mut noise = vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
    ];
    noise.extend((0..20).map(|_| {
        let len = random.below(500) as usize;
        random.bytes(len)
    }));
    // The preface and then noise as frames.
    noise.extend((0..20).map(|_| {
        let mut bytes = BytesMut::from(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..]);
        let len = random.below(300) as usize;
        bytes.put_slice(&random.bytes(len));
        bytes.to_vec()
    }));
    for bytes in noise {
        let mut socket = TcpStream::connect(("127.0.0.1", server.grpc_port())).await.unwrap();
        let _ = socket.write_all(&bytes).await;
        let _ = socket.shutdown().await;
        let mut answer = Vec::new();
        let end = tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut answer);
        let _ = within("the server closes the connection", end).await;
    }
    server.assert_healthy();
    server.client().await.append("logs", ["good"]).await.unwrap();
}

#[tokio::test]
async fn a_client_that_gives_no_sign_of_life_is_closed_and_a_living_one_is_not() {
    let home = Home::new().set("keepalive_ms", "1s").set("keepalive_timeout_ms", "200ms");
    let server = home.start();
    let mut living = server.client().await;
    living.append("logs", ["before"]).await.unwrap();
    let mut dead = TcpStream::connect(("127.0.0.1", server.grpc_port())).await.unwrap();
    dead.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    // It reads, but never answers: neither SETTINGS nor PING.
    let mut answer = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut dead, &mut answer);
    let _ = within("the server gives up on it", end).await;
    living.append("logs", ["after"]).await.unwrap();
    only_these(&server, &["before", "after"]).await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let home = Home::new().set("handshake_timeout_ms", "300ms");
    let server = home.start();
    let mut socket = TcpStream::connect(("127.0.0.1", server.grpc_port())).await.unwrap();
    let mut answer = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut answer);
    let _ = within("the server gives up on it", end).await;
    server.assert_healthy();
}
