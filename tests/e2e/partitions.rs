//! A stream gets more partitions: records with a key go where the new number says, what is there stays.

use flowmesh_model::placement::key_partition;
use flowmesh_proto::v1::{self, subscribe_request::Start};
use tonic::Code;

use crate::common::client::{keyed, record};
use crate::common::{Client, Home, refused, within};
use crate::e2e::shell::ok;

async fn grow(client: &mut Client, name: &str, partitions: u32) -> Result<(), tonic::Status> {
    let stream = v1::StreamSettings { partitions: Some(partitions), ..Default::default() };
    let settings = v1::Settings { kind: Some(v1::settings::Kind::Stream(stream)) };
    let request = v1::UpdateResourceRequest {
        kind: v1::Kind::Stream.into(),
        name: name.into(),
        settings: Some(settings),
    };
    client.admin.update_resource(request).await.map(|_| ())
}

async fn append_keys(client: &mut Client, keys: u32) -> Vec<u32> {
    let records = (0..keys).map(|key| keyed(format!("key{key}"), format!("{key}"))).collect();
    let request = v1::AppendRequest { stream: "wide".into(), records, ..Default::default() };
    client.stream.append(request).await.unwrap().into_inner().partition_of_record
}

fn expected(keys: u32, partitions: u32) -> Vec<u32> {
    (0..keys).map(|key| key_partition(format!("key{key}").as_bytes(), partitions)).collect()
}

#[tokio::test]
async fn more_partitions_take_new_records_and_keep_the_old_ones_where_they_are() {
    const KEYS: u32 = 100;
    let home = Home::new().shards(2);
    let mut server = home.start();
    let mut client = server.client().await;
    client.create_stream("wide", 2).await;
    assert_eq!(append_keys(&mut client, KEYS).await, expected(KEYS, 2));
    let before = [client.read_from("wide", 0, 0).await, client.read_from("wide", 1, 0).await];

    let follow = v1::SubscribeRequest {
        stream: "wide".into(),
        start: Some(Start::Latest(true)),
        ..Default::default()
    };
    let mut old = client.stream.subscribe(follow.clone()).await.unwrap().into_inner();
    grow(&mut client, "wide", 5).await.unwrap();
    for core in [0, 1] {
        // Every core knows at once.
        assert_eq!(append_keys(&mut server.client_of_core(core).await, KEYS).await, expected(KEYS, 5));
    }
    for (partition, before) in (0..).zip(before) {
        assert!(client.read_from("wide", partition, 0).await.starts_with(&before), "what is there stays");
    }
    assert_eq!(client.read_from("wide", 4, 0).await[0].0, 0, "a new partition starts at offset 0");

    // Subscriptions have the partitions there were when they began.
    let mut seen = std::collections::BTreeSet::new();
    let wanted = expected(KEYS, 5).iter().filter(|partition| **partition < 2).count() * 2;
    let mut records = 0;
    while records < wanted {
        let batch = within("a batch", old.message()).await.unwrap().unwrap();
        records += batch.records.len();
        seen.insert(batch.partition);
    }
    assert!(seen.iter().all(|partition| *partition < 2), "{seen:?}");
    let all = v1::SubscribeRequest { start: Some(Start::Earliest(true)), stop_at_end: true, ..follow };
    let mut new = client.stream.subscribe(all).await.unwrap().into_inner();
    let mut records = 0;
    while let Some(batch) = within("a batch", new.message()).await.unwrap() {
        records += batch.records.len() as u32;
    }
    assert_eq!(records, 3 * KEYS);

    let fewer = grow(&mut client, "wide", 4).await;
    refused(fewer, Code::FailedPrecondition, "PARTITIONS_LOWERED");
    refused(grow(&mut client, "wide", 1025).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    server.kill9();
    server = home.start();
    client = server.client().await;
    assert_eq!(append_keys(&mut client, KEYS).await, expected(KEYS, 5));
    let far = v1::AppendRequest {
        stream: "wide".into(),
        partition: Some(5),
        records: vec![record("x")],
        ..Default::default()
    };
    refused(client.stream.append(far).await, Code::InvalidArgument, "NO_SUCH_PARTITION");
}

#[test]
fn a_shell_raises_the_number_of_partitions() {
    let home = Home::new();
    let server = home.start();
    ok(
        &server,
        &home,
        r"
        flowmesh resources create stream logs --partitions 2
        flowmesh resources update stream logs --partitions 4
        flowmesh resources update stream logs --set partitions=6 --set producer_retention_ms=1h
        test $(flowmesh stream status logs -o json | wc -l) = 6
        code=0; flowmesh resources update stream logs --partitions 3 2> said || code=$?
        test $code = 5; grep -q PARTITIONS_LOWERED said
        ",
    );
}
