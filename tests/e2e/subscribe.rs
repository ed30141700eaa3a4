//! Subscribe: the consumer that is pushed to.

use flowmesh_proto::v1;
use flowmesh_proto::v1::subscribe_request::Start;
use tonic::{Code, Status, Streaming};

use crate::common::client::keyed;
use crate::common::{Client, Home, Random, refused, within};

fn request(stream: &str, start: Start) -> v1::SubscribeRequest {
    v1::SubscribeRequest { stream: stream.into(), start: Some(start), ..v1::SubscribeRequest::default() }
}

async fn subscribe(client: &mut Client, request: v1::SubscribeRequest) -> Streaming<v1::RecordBatch> {
    within("the call opens", client.stream.subscribe(request)).await.unwrap().into_inner()
}

/// The next records, at least `count`, with partition and offset.
async fn take(batches: &mut Streaming<v1::RecordBatch>, count: usize) -> Vec<(u32, u64, v1::Record)> {
    let mut records = Vec::new();
    while records.len() < count {
        let Some(batch) = within("a batch", batches.message()).await.unwrap() else { break };
        assert_eq!(batch.records.len(), batch.count as usize);
        assert!(batch.count > 0);
        for (offset, record) in (batch.base_offset..).zip(batch.records) {
            records.push((batch.partition, offset, record));
        }
    }
    records
}

#[tokio::test]
async fn a_subscriber_gets_what_is_there_and_what_comes() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.append("logs", (0..2500).map(|i| i.to_string())).await.unwrap();
    let mut batches = subscribe(&mut client.clone(), request("logs", Start::Earliest(true))).await;
    let mut records = take(&mut batches, 2500).await;
    for i in 2500..2600 {
        client.append("logs", [i.to_string()]).await.unwrap();
    }
    records.extend(take(&mut batches, 2600 - records.len()).await);
    assert_eq!(records.len(), 2600);
    for (i, (partition, offset, record)) in records.iter().enumerate() {
        assert_eq!((*partition, *offset, record.value.as_ref()), (0, i as u64, i.to_string().as_bytes()));
    }
}

#[tokio::test]
async fn it_starts_where_it_is_told_and_ends_at_the_end_if_asked() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.append("logs", (0..100).map(|i| i.to_string())).await.unwrap();
    let ending = |start| v1::SubscribeRequest { stop_at_end: true, ..request("logs", start) };
    let mut offsets = async |request| {
        let records = take(&mut subscribe(&mut client, request).await, usize::MAX).await;
        records.into_iter().map(|(_, offset, _)| offset).collect::<Vec<_>>()
    };
    assert_eq!(offsets(ending(Start::Earliest(true))).await, (0..100).collect::<Vec<_>>());
    assert_eq!(offsets(ending(Start::Offset(42))).await, (42..100).collect::<Vec<_>>());
    assert!(offsets(ending(Start::Latest(true))).await.is_empty());
    let small = v1::SubscribeRequest { max_batch_bytes: 1, ..ending(Start::Offset(90)) };
    assert_eq!(offsets(small).await, (90..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn partitions_are_followed_together_each_in_order() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("wide", 4).await;
    for round in 0..50 {
        let records = (0..40).map(|i| keyed(format!("key{i}"), format!("{round}"))).collect();
        let append =
            v1::AppendRequest { stream: "wide".into(), partition: None, records, ..Default::default() };
        client.stream.append(append).await.unwrap();
    }
    let from = vec![v1::PartitionOffset { partition: 1, offset: 3 }];
    let all = v1::SubscribeRequest { from, stop_at_end: true, ..request("wide", Start::Earliest(true)) };
    let records = take(&mut subscribe(&mut client.clone(), all).await, usize::MAX).await;
    let mut missing = 0;
    for partition in 0..4 {
        let first = if partition == 1 { 3 } else { 0 };
        let expected = client.read_from("wide", partition, first).await;
        missing += if partition == 1 { 3 } else { 0 };
        let got: Vec<(u64, v1::Record)> =
            records.iter().filter(|(at, ..)| *at == partition).map(|(_, o, r)| (*o, r.clone())).collect();
        assert_eq!(got, expected, "partition {partition}");
    }
    assert_eq!(records.len(), 2000 - missing);

    let one = v1::SubscribeRequest {
        partitions: vec![2],
        stop_at_end: true,
        ..request("wide", Start::Earliest(true))
    };
    let records = take(&mut subscribe(&mut client, one).await, usize::MAX).await;
    assert!(!records.is_empty() && records.iter().all(|(partition, ..)| *partition == 2));
}

#[tokio::test]
async fn a_slow_consumer_misses_nothing_and_holds_nobody_up() {
    const RECORDS: usize = 400;
    const BYTES: usize = 64 * 1024;
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let mut random = Random::new("a_slow_consumer");
    client.append("logs", ["first"]).await.unwrap();
    // A connection of its own, so that its flow control is its own.
    let mut slow = subscribe(&mut server.client().await, request("logs", Start::Earliest(true))).await;
    let mut got = take(&mut slow, 1).await;
    // 25 MiB: more than every window and buffer on the way. Nobody reads meanwhile.
    let mut sent = Vec::new();
    for _ in 0..RECORDS {
        let value = random.bytes(BYTES);
        within("an append while a consumer is slow", client.append("logs", [value.clone()])).await.unwrap();
        sent.push(value);
    }
    got.extend(take(&mut slow, RECORDS + 1 - got.len()).await);
    for (i, value) in sent.iter().enumerate() {
        assert!(got[i + 1].2.value == value, "record {} is as it was sent", i + 1);
    }
}

#[tokio::test]
async fn it_is_refused_outside_of_what_exists_and_ends_when_the_stream_goes() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.append("logs", ["x"]).await.unwrap();
    let mut outcome = async |request| -> Result<Option<v1::RecordBatch>, Status> {
        client.stream.subscribe(request).await?.into_inner().message().await
    };
    refused(outcome(request("none", Start::Earliest(true))).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    refused(outcome(request("logs", Start::Offset(2))).await, Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    let far = v1::SubscribeRequest { partitions: vec![1], ..request("logs", Start::Earliest(true)) };
    refused(outcome(far).await, Code::InvalidArgument, "NO_SUCH_PARTITION");

    let mut batches = subscribe(&mut client.clone(), request("logs", Start::Earliest(true))).await;
    take(&mut batches, 1).await;
    let delete = v1::DeleteResourceRequest { kind: v1::Kind::Stream as i32, name: "logs".into() };
    client.admin.delete_resource(delete).await.unwrap();
    let end = within("the subscription ends", batches.message()).await;
    refused(end, Code::NotFound, "RESOURCE_NOT_FOUND");
}
