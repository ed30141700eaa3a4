//! tonic, an independent implementation of gRPC, as the client, over TCP.

use std::rc::Rc;

use flowmesh_proto::v1;
use flowmesh_proto::v1::kv_client::KvClient;
use flowmesh_proto::v1::stream_client::StreamClient;
use tokio::net::TcpListener;
use tokio::task::spawn_local;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Channel, Endpoint};

use super::client::run;
use super::fake::Fake;
use crate::edge::grpc::{Edge, GrpcConfig, serve_connection};

async fn channel() -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        let fake = Fake::new(1);
        let edge = Edge::new(fake.clone(), GrpcConfig::default(), fake.facts());
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            spawn_local(serve_connection(socket, Rc::clone(&edge), std::future::pending()));
        }
    });
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

fn entry(key: &'static str, value: String) -> v1::SetEntry {
    v1::SetEntry { key: key.into(), value: value.into(), ..Default::default() }
}

#[test]
fn tonic_calls_and_reads_errors() {
    run(async {
        let mut kv = KvClient::new(channel().await).send_compressed(CompressionEncoding::Gzip);
        let entries = vec![entry("a", "1".repeat(100_000))];
        kv.set(v1::SetRequest { store: "s".into(), entries }).await.unwrap();
        let read =
            kv.get(v1::GetRequest { store: "s".into(), keys: vec!["a".into()], as_of: None }).await.unwrap();
        assert_eq!(read.into_inner().entries[0].value.len(), 100_000);
        let none = kv
            .get(v1::GetRequest { store: "none".into(), keys: vec!["a".into()], as_of: None })
            .await
            .unwrap_err();
        assert_eq!(none.code(), tonic::Code::NotFound);
        assert!(none.message().contains("default/default/kv/none"));
    });
}

#[test]
fn tonic_streams_both_ways() {
    run(async {
        let mut streams = StreamClient::new(channel().await);
        let record = v1::Record { value: vec![1; 1000].into(), ..Default::default() };
        let append = move |sequence| v1::AppendStreamRequest {
            stream: "one".into(),
            records: vec![record.clone(); 10],
            sequence,
            ..Default::default()
        };
        let appends = futures::stream::iter((0..500).map(append));
        let mut acks = streams.append_stream(appends).await.unwrap().into_inner();
        let mut acknowledged = 0;
        while let Some(message) = acks.message().await.unwrap() {
            acknowledged += message.acks.len();
        }
        assert_eq!(acknowledged, 500);

        let request = v1::SubscribeRequest { stream: "one".into(), stop_at_end: true, ..Default::default() };
        let mut batches = streams.subscribe(request).await.unwrap().into_inner();
        let mut next = 0;
        while let Some(batch) = batches.message().await.unwrap() {
            assert_eq!(batch.base_offset, next);
            next += batch.records.len() as u64;
        }
        assert_eq!(next, 5000);
    });
}
