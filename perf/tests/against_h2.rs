//! The load client against the h2 crate's server, an implementation it shares no code with.

// This whole file is a test.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::missing_docs_in_private_items)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flowmesh_perf::http2::unary::CallError;
use flowmesh_perf::http2::{Deframer, Event, Methods, Peer, Poll, UnaryClient};
use http::{HeaderMap, Response};
use proptest::prelude::*;

const ECHO: &str = "/test.Echo/Echo";
const FAIL: &str = "/test.Echo/Fail";
const MANY: &str = "/test.Echo/Many";
const RESET: &str = "/test.Echo/Reset";

/// How the server behaves.
#[derive(Clone, Copy, Debug)]
struct Server {
    stream_window: u32,
    connection_window: u32,
    frame_bytes_max: u32,
    table_bytes: u32,
    chunk: usize,
}

const PLAIN: Server = Server {
    stream_window: 1 << 20,
    connection_window: 4 << 20,
    frame_bytes_max: 65_536,
    table_bytes: 4096,
    chunk: 1 << 20,
};

/// Serves on a thread of its own until the process ends.
fn serve(server: Server) -> SocketAddr {
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            tx.send(listener.local_addr().unwrap()).unwrap();
            while let Ok((socket, _)) = listener.accept().await {
                tokio::task::spawn_local(connection(socket, server));
            }
        });
    });
    rx.recv().unwrap()
}

async fn connection(socket: tokio::net::TcpStream, server: Server) {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(server.stream_window)
        .initial_connection_window_size(server.connection_window)
        .max_frame_size(server.frame_bytes_max)
        .header_table_size(server.table_bytes)
        .handshake::<_, Bytes>(socket)
        .await
        .unwrap();
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::task::spawn_local(answer(request, respond, server.chunk));
    }
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    chunk: usize,
) {
    let path = request.uri().path().to_owned();
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert_eq!(request.headers()["te"], "trailers");
    let head = |status: Option<&'static str>| {
        let mut head = Response::builder().status(200).header("content-type", "application/grpc");
        if let Some(status) = status {
            head = head.header("grpc-status", status).header("grpc-message", "no%20such thing");
        }
        head.body(()).unwrap()
    };
    match path.as_str() {
        FAIL => return drop(respond.send_response(head(Some("5")), true).unwrap()),
        RESET => return respond.send_reset(h2::Reason::REFUSED_STREAM),
        _ => {}
    }
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    while let Some(part) = body.data().await {
        let part = part.unwrap();
        body.flow_control().release_capacity(part.len()).unwrap();
        bytes.extend_from_slice(&part);
    }
    if path == MANY {
        bytes = bytes.repeat(50);
    }
    let mut send = respond.send_response(head(None), false).unwrap();
    for part in bytes.chunks(chunk.max(1)) {
        let mut part = Bytes::copy_from_slice(part);
        while !part.is_empty() {
            send.reserve_capacity(part.len());
            let Some(Ok(room)) = std::future::poll_fn(|cx| send.poll_capacity(cx)).await else { return };
            send.send_data(part.split_to(room.min(part.len())), false).unwrap();
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    send.send_trailers(trailers).unwrap();
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

#[derive(Default)]
struct Call {
    deframer: Deframer,
    messages: Vec<Vec<u8>>,
    status: Option<u32>,
}

/// Makes all calls at once, `streams` at a time, and returns what came back.
fn call_all(address: SocketAddr, bodies: &[Vec<u8>], streams: usize, path: &'static str) -> Vec<Call> {
    let mut methods = Methods::default();
    let method = methods.id(path);
    let mut peer = Peer::connect(address, &methods, streams).unwrap();
    let poll = Poll::new().unwrap();
    poll.add(&peer, 0).unwrap();
    let mut calls: HashMap<u32, Call> = HashMap::new();
    let (mut begun, mut done, mut buffer) = (0, 0, Vec::new());
    let deadline = Instant::now() + Duration::from_secs(20);
    while done < bodies.len() {
        while begun < bodies.len() && begun - done < streams {
            let stream = peer.connection.open(method, begun as u32);
            // Some bodies go in two parts, so that the end comes with the rest or alone.
            let body = framed(&bodies[begun]);
            let cut = if begun % 3 == 0 { body.len() } else { body.len() / 2 };
            peer.connection.send(stream, &body[..cut], false);
            peer.connection.send(stream, &body[cut..], true);
            begun += 1;
        }
        peer.flush(&poll, 0).unwrap();
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{done} of {} answers came in time", bodies.len());
        poll.wait(left, &mut Vec::new()).unwrap();
        let mut input = peer.receive(&mut buffer).unwrap();
        while let Some(event) = peer.connection.next_event(&mut input).unwrap() {
            match event {
                Event::Data { tag, bytes, end } => {
                    assert!(!end);
                    let Call { deframer, messages, .. } = calls.entry(tag).or_default();
                    deframer.push(bytes, |message| messages.push(message.to_vec())).unwrap();
                }
                Event::Headers { tag, answer, end } => {
                    if end {
                        calls.entry(tag).or_default().status = answer.grpc_status;
                        done += 1;
                    } else {
                        assert_eq!(answer.http_status, 200);
                    }
                }
                Event::Reset { .. } => panic!("reset"),
            }
        }
        let rest = input.to_vec();
        peer.keep(&rest);
    }
    assert_eq!(peer.connection.streams_open(), 0);
    (0..bodies.len() as u32).map(|tag| calls.remove(&tag).unwrap_or_default()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_body_comes_back_whatever_the_windows(
        lengths in proptest::collection::vec(prop_oneof![0usize..200, 0usize..200_000], 1..40),
        streams in 1usize..20,
        stream_window in prop_oneof![1u32..2000, 60_000u32..100_000],
        connection_window in 65_535u32..200_000,
        frame_bytes_max in 16_384u32..100_000,
        table_bytes in prop_oneof![Just(0u32), Just(4096), Just(65_536)],
        chunk in 200usize..100_000,
    ) {
        let server = Server { stream_window, connection_window, frame_bytes_max, table_bytes, chunk };
        // A tiny window needs a round trip for each bit of a body.
        let most = if stream_window < 2000 { 3000 } else { usize::MAX };
        let bodies: Vec<Vec<u8>> = lengths.iter().enumerate()
            .map(|(at, &length)| (0..length.min(most)).map(|i| (i * 7 + at) as u8).collect())
            .collect();
        let calls = call_all(serve(server), &bodies, streams, ECHO);
        for (call, body) in calls.iter().zip(&bodies) {
            prop_assert_eq!(call.status, Some(0));
            prop_assert!(!call.deframer.is_inside());
            prop_assert_eq!(&call.messages, &vec![body.clone()]);
        }
    }
}

#[test]
fn thousands_of_calls_share_one_connection() {
    let bodies: Vec<Vec<u8>> = (0..5000u32).map(|i| i.to_le_bytes().to_vec()).collect();
    let calls = call_all(serve(PLAIN), &bodies, 64, ECHO);
    for (call, body) in calls.iter().zip(&bodies) {
        assert_eq!((call.status, &call.messages[0]), (Some(0), body));
    }
}

#[test]
fn an_answer_of_many_messages_larger_than_our_window_arrives() {
    let body: Vec<u8> = (0..900_000u32).map(|i| i as u8).collect();
    let calls = call_all(serve(PLAIN), std::slice::from_ref(&body), 1, MANY);
    assert_eq!(calls[0].messages.len(), 50);
    assert!(calls[0].messages.iter().all(|message| *message == body));
}

#[test]
fn failures_carry_status_and_message() {
    let address = serve(PLAIN);
    let mut client = UnaryClient::connect(address, &[ECHO, FAIL, RESET]).unwrap();
    for _ in 0..3 {
        match client.call_bytes(FAIL, &framed(b"x")) {
            Err(CallError::Status { status: 5, message }) => assert_eq!(message, "no%20such thing"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(client.call_bytes(RESET, &framed(b"x")), Err(CallError::Reset(7))));
        assert_eq!(client.call_bytes(ECHO, &framed(b"hello")).unwrap(), b"hello");
    }
}
