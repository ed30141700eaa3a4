//! A client that goes away in the middle of anything leaves nothing behind.

use std::time::Duration;

use bytes::Bytes;
use flowmesh_proto::v1;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::common::client::record;
use crate::common::wire::{Wire, frame_of_length, framed};
use crate::common::{Client, Home, Random, Server, eventually, within};

/// Connections the server knows of, by its own word.
async fn connections(server: &Server, wanted: f64) {
    eventually("the server has let go of the connections", || async {
        let open = server.metric("flowmesh_connections_open", "")?;
        (open <= wanted).then_some(())
    })
    .await;
}

async fn healthy(server: &Server, client: &mut Client) {
    server.assert_healthy();
    within("an append", client.append("logs", ["alive"])).await.unwrap();
}

#[tokio::test]
async fn in_the_middle_of_a_message() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    for method in ["Stream/Append", "Kv/Set", "Queue/Enqueue", "Stream/AppendStream", "Queue/Work"] {
        let mut wire = Wire::connect(server.grpc_port()).await;
        let (answer, mut body) = wire.open(method).await;
        body.send_data(frame_of_length(0, 1000, b"the beginning of a message"), false).unwrap();
        tokio::task::yield_now().await;
        wire.abort();
        drop((answer, body));
        healthy(&server, &mut client).await;
    }
    connections(&server, 1.0).await;
}

#[tokio::test]
async fn in_the_middle_of_a_frame() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let mut random = Random::new("in_the_middle_of_a_frame");
    // A whole conversation as bytes, recorded by a proxy that is no more than a socket; cut anywhere.
    let conversation = record_conversation().await;
    for _ in 0..60 {
        let cut = random.below(conversation.len() as u64) as usize;
        let mut socket = TcpStream::connect(("127.0.0.1", server.grpc_port())).await.unwrap();
        socket.write_all(&conversation[..cut]).await.unwrap();
        if random.below(2) == 0 {
            // With RST instead of FIN.
            socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(socket);
    }
    healthy(&server, &mut client).await;
    connections(&server, 1.0).await;
}

/// The bytes that a client sends for an append of a thousand records.
async fn record_conversation() -> Vec<u8> {
    use tokio::io::AsyncReadExt;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let request = v1::AppendRequest {
        stream: "cut".into(),
        partition: None,
        records: (0..1000).map(|i| record(format!("record {i}"))).collect(),
        ..Default::default()
    };
    let body = framed(&request);
    let client = tokio::spawn(async move {
        let mut wire = Wire::connect(port).await;
        let (_answer, mut stream) = wire.open("Stream/Append").await;
        stream.send_data(body, true).unwrap();
        std::future::pending::<()>().await;
    });
    let (mut socket, _) = listener.accept().await.unwrap();
    // An empty SETTINGS frame is all a client needs to begin.
    socket.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut bytes = vec![0u8; 16 * 1024];
    let mut len = 0;
    while len < 12 * 1024 {
        len += within("the client's bytes", socket.read(&mut bytes[len..])).await.unwrap();
    }
    client.abort();
    bytes.truncate(len);
    bytes
}

#[tokio::test]
async fn while_it_waits() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.append("logs", ["x"]).await.unwrap();
    client.enqueue("mail", ["x"]).await.unwrap();
    let taken = client.reserve("mail", 1, 600_000, 0).await.unwrap();
    for _ in 0..20 {
        let mut leaving = server.client().await;
        let wait = v1::ReserveRequest {
            queue: "mail".into(),
            wait_ms: 60_000,
            visibility_timeout_ms: Some(600_000),
            ..v1::ReserveRequest::default()
        };
        let call = tokio::spawn(async move { leaving.queue.reserve(wait).await });
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(2)).await; // any moment will do
        call.abort();
    }
    connections(&server, 1.0).await;
    // A job that comes now goes to somebody who is there, not to one of those who left.
    client.enqueue("mail", ["y"]).await.unwrap();
    let job = within("the job", client.reserve("mail", 1, 600_000, 60_000)).await.unwrap();
    assert_eq!(job[0].payload, "y");
    client.ack("mail", &[taken, job].concat()).await;
    healthy(&server, &mut client).await;
}

#[tokio::test]
async fn while_it_is_pushed_to() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    for _ in 0..40 {
        client.append("logs", [vec![1u8; 256 * 1024]]).await.unwrap();
    }
    for _ in 0..20 {
        let mut leaving = server.client().await;
        let request = v1::SubscribeRequest { stream: "logs".into(), ..v1::SubscribeRequest::default() };
        let mut batches = leaving.stream.subscribe(request).await.unwrap().into_inner();
        within("a batch", batches.message()).await.unwrap().unwrap();
        drop((batches, leaving));
    }
    connections(&server, 1.0).await;
    healthy(&server, &mut client).await;
}

#[tokio::test]
async fn with_writes_under_way_that_then_count_or_not_but_whole() {
    const BATCH: usize = 100;
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.append("logs", ["alive"]).await.unwrap();
    for round in 0..30 {
        let mut wire = Wire::connect(server.grpc_port()).await;
        let records = (0..BATCH).map(|i| record(format!("{round}/{i}"))).collect();
        let request =
            v1::AppendRequest { stream: "cut".into(), partition: None, records, ..Default::default() };
        let (answer, mut body) = wire.open("Stream/Append").await;
        body.send_data(framed(&request), true).unwrap();
        tokio::task::yield_now().await;
        wire.abort();
        drop((answer, body));
    }
    connections(&server, 1.0).await;
    client.append("cut", ["end"]).await.unwrap();
    let values = client.values("cut").await;
    let (end, batches) = values.split_last().unwrap();
    assert_eq!(end, "end");
    assert_eq!(batches.len() % BATCH, 0, "all of an append or nothing");
    for batch in batches.chunks(BATCH) {
        let round = std::str::from_utf8(&batch[0]).unwrap().split('/').next().unwrap().to_owned();
        let expected: Vec<Bytes> = (0..BATCH).map(|i| Bytes::from(format!("{round}/{i}"))).collect();
        assert_eq!(batch, expected);
    }
}

/// What a server keeps for its clients, by its own word.
fn kept(server: &Server) -> [f64; 6] {
    [
        "flowmesh_connections_open",
        "flowmesh_waiting_commands",
        "flowmesh_parked_replies",
        "flowmesh_stalled_writes",
        "flowmesh_hops_pending",
        "flowmesh_memory_bytes",
    ]
    .map(|name| server.metric(name, "").unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_the_middle_of_a_stream_and_everything_is_given_back() {
    const MIB: u64 = 1 << 20;
    const CLIENTS: usize = 40;
    const ROUNDS: usize = 6;
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    client.append("logs", ["x"]).await.unwrap();
    client.append("cut", ["x"]).await.unwrap();
    client.enqueue("mail", ["x"]).await.unwrap();
    let leased = client.reserve("mail", 1, 600_000, 0).await.unwrap();
    let before = kept(&server);
    let mut resident = Vec::new();
    for _ in 0..ROUNDS {
        let mut leaving = Vec::new();
        for number in 0..CLIENTS {
            // On both cores: some of what waits does so on another core than its connection's.
            let mut wire = Wire::connect(server.core_port((number % 2) as u16)).await;
            let mut calls = Vec::new();
            // An append that is answered, and the beginning of another one.
            let append = v1::AppendStreamRequest { stream: "cut".into(), sequence: 1, ..Default::default() };
            let (answer, mut body) = wire.open("Stream/AppendStream").await;
            let append = v1::AppendStreamRequest { records: vec![record("whole")], ..append };
            body.send_data(framed(&append), false).unwrap();
            body.send_data(frame_of_length(0, 3 << 20, &[1; 30_000]), false).unwrap();
            calls.push((answer, body));
            // A subscriber and a worker that have all there is and wait for more.
            let subscribe = v1::SubscribeRequest { stream: "logs".into(), ..Default::default() };
            let hello = v1::WorkHello { queue: "mail".into(), ..Default::default() };
            let work = v1::WorkRequest { hello: Some(hello), credit: 10, ..Default::default() };
            for (method, message) in [("Stream/Subscribe", framed(&subscribe)), ("Queue/Work", framed(&work))]
            {
                let (answer, mut body) = wire.open(method).await;
                body.send_data(message, method == "Stream/Subscribe").unwrap();
                calls.push((answer, body));
            }
            leaving.push((wire, calls));
        }
        eventually("all of them wait", || async {
            (server.metric("flowmesh_waiting_commands", "")? == 2.0 * CLIENTS as f64).then_some(())
        })
        .await;
        for (wire, calls) in leaving {
            wire.abort();
            drop(calls);
        }
        eventually("nothing of them is left", || async { (kept(&server)[..5] == before[..5]).then_some(()) })
            .await;
        resident.push(server.rss_bytes());
    }
    // The first rounds bring buffers that are used again; from then on nothing more is taken.
    let (settled, last) = (resident[1], resident[ROUNDS - 1]);
    println!("resident, MiB: {:?}", resident.iter().map(|bytes| bytes / MIB).collect::<Vec<_>>());
    assert!(
        last < settled + 16 * MIB,
        "{} MiB more after {} disconnects",
        (last - settled) / MIB,
        4 * CLIENTS
    );
    // The state has grown by the records that were acknowledged or could have been, and by nothing else.
    let grown = kept(&server)[5] - before[5];
    let appended = (CLIENTS * ROUNDS) as f64;
    assert!(grown <= appended * 256.0, "{grown} bytes of state for {appended} small records");
    client.ack("mail", &leased).await;
    healthy(&server, &mut client).await;
}
