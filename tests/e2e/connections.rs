//! What ends a connection, and what does not.

use flowmesh_proto::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::wire::PREFACE;
use crate::common::{Home, within};
use crate::e2e::shutdown::{GOAWAY, frame_types};

#[tokio::test]
async fn an_idle_connection_gets_goaway_and_a_busy_one_stays() {
    let home = Home::new().set("idle_timeout_ms", "1s").set("shutdown_timeout_ms", "200ms");
    let server = home.start();
    let mut busy = server.client().await;
    busy.append("logs", ["one"]).await.unwrap();
    let request = v1::SubscribeRequest { stream: "logs".into(), ..v1::SubscribeRequest::default() };
    let mut batches = busy.stream.subscribe(request).await.unwrap().into_inner();
    within("what is there", batches.message()).await.unwrap().unwrap();

    let mut idle = TcpStream::connect(("127.0.0.1", server.grpc_port())).await.unwrap();
    idle.write_all(PREFACE).await.unwrap();
    let mut bytes = Vec::new();
    within("the end of the idle connection", idle.read_to_end(&mut bytes)).await.unwrap();
    assert!(frame_types(&bytes).contains(&GOAWAY), "{:?}", frame_types(&bytes));

    // The busy one is older, and has been as silent.
    server.client().await.append("logs", ["two"]).await.unwrap();
    let batch = within("what came since", batches.message()).await.unwrap().unwrap();
    assert_eq!(batch.records[0].value, "two");
    assert_eq!(server.metric("flowmesh_connections_total", ""), Some(3.0), "nobody had to connect again");
}
