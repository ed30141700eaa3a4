//! Compaction: of each key the latest record stays, for every kind of reader, over kills.

use std::collections::BTreeMap;

use bytes::Bytes;
use flowmesh_proto::v1;
use tonic::Code;

use super::append_stream::open;
use crate::common::client::{keyed, names_field, read_at, record};
use crate::common::consumer::{Member, hello};
use crate::common::server::disk_bytes;
use crate::common::{Client, Home, Server, eventually, refused, within};

const KEYS: u64 = 20;

fn settings() -> v1::StreamSettings {
    v1::StreamSettings {
        segment_bytes: Some(65_536),
        compaction: Some(true),
        ..v1::StreamSettings::default()
    }
}

/// A home where checkpoints, after which compaction looks for work, come often.
fn home() -> Home {
    Home::new().set("checkpoint_interval_ms", "200ms")
}

async fn start(home: &Home) -> (Server, Client) {
    let server = home.start();
    let mut client = server.client().await;
    client.create("state", v1::settings::Kind::Stream(settings())).await.unwrap();
    (server, client)
}

fn value(number: u64) -> Bytes {
    format!("{number:0>500}").into()
}

/// Appends records number `from..upto`, keys in turn.
async fn fill(client: &mut Client, from: u64, upto: u64) {
    for first in (from..upto).step_by(50) {
        let records =
            (first..upto.min(first + 50)).map(|n| keyed(format!("key{}", n % KEYS), value(n))).collect();
        let append = v1::AppendRequest { stream: "state".into(), records, ..Default::default() };
        client.stream.append(append).await.unwrap();
    }
}

async fn status(client: &mut Client) -> v1::PartitionStatus {
    let request = v1::StreamStatusRequest { stream: "state".into(), partitions: vec![] };
    client.stream.status(request).await.unwrap().into_inner().partitions.remove(0)
}

/// Waits until nothing is left to be compacted, and something was beyond `from`.
async fn compacted(client: &mut Client, from: u64) -> u64 {
    eventually("it is compacted", || {
        let mut client = client.clone();
        async move {
            let status = status(&mut client).await;
            status.clean_upto_offset.filter(|upto| *upto > from && status.dirty_bytes == 0)
        }
    })
    .await
}

type Found = Vec<(u64, v1::Record)>;

/// What Read brings, going on where it says.
async fn read(client: &mut Client) -> Found {
    let (mut found, mut next) = (Found::new(), 0);
    loop {
        let request = v1::ReadRequest { max_records: 100, ..read_at("state", next) };
        let answer = client.stream.read(request).await.unwrap().into_inner();
        for batch in answer.batches {
            assert!(batch.base_offset >= next, "in order");
            next = batch.base_offset + u64::from(batch.count);
            found.extend((batch.base_offset..).zip(batch.records));
        }
        assert!(answer.next_offset >= next);
        next = answer.next_offset;
        if next == answer.high_watermark {
            return found;
        }
    }
}

/// What Subscribe brings until its end.
async fn subscribe(client: &mut Client) -> Found {
    let request = v1::SubscribeRequest {
        stream: "state".into(),
        start: Some(v1::subscribe_request::Start::Earliest(true)),
        stop_at_end: true,
        ..v1::SubscribeRequest::default()
    };
    let mut batches = client.stream.subscribe(request).await.unwrap().into_inner();
    let mut found = Found::new();
    while let Some(batch) = within("a batch", batches.message()).await.unwrap() {
        found.extend((batch.base_offset..).zip(batch.records));
    }
    found
}

/// What a new consumer group gets.
async fn consume(client: &mut Client, group: &str, count: usize) -> Found {
    let from_start = v1::ConsumeHello { ..hello(group, &["state"]) };
    let mut member = Member::open(client, from_start, 10_000).await.unwrap();
    let records = member.records(count).await;
    records.into_iter().map(|(_, offset, record)| (offset, record)).collect()
}

/// The last value of each key.
fn state(found: &Found) -> BTreeMap<Bytes, Bytes> {
    found.iter().map(|(_, record)| (record.key.clone().unwrap(), record.value.clone())).collect()
}

#[tokio::test]
async fn of_each_key_the_latest_record_stays_under_its_offset() {
    let home = home();
    let (mut server, mut client) = start(&home).await;
    fill(&mut client, 0, 2_000).await;
    let upto = compacted(&mut client, 1_000).await;
    let all = read(&mut client).await;
    let expected: Vec<u64> = (upto - KEYS..2_000).collect();
    assert_eq!(all.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), expected);
    for (offset, record) in &all {
        assert_eq!(
            (record.key.as_deref(), &record.value),
            (Some(format!("key{}", offset % KEYS).as_bytes()), &value(*offset))
        );
    }
    for round in 0..2 {
        assert_eq!(read(&mut client).await, all);
        assert_eq!(subscribe(&mut client).await, all);
        assert_eq!(consume(&mut client, &format!("group{round}"), all.len()).await, all);
        let read_counter = server.metric("flowmesh_compaction_records_read_total", "").unwrap();
        assert!(round == 1 || read_counter >= upto as f64, "{read_counter}");
        server.kill9();
        server = home.start();
        client = server.client().await;
    }
}

#[tokio::test]
async fn a_killed_server_keeps_the_last_record_of_every_key() {
    let home = home();
    let (mut server, mut client) = start(&home).await;
    let mut next = 0;
    for round in 0..6u64 {
        fill(&mut client, next, next + 700).await;
        next += 700;
        if round % 2 == 0 {
            // Somewhere in a compaction, perhaps.
            tokio::time::sleep(std::time::Duration::from_millis(150 + 60 * round)).await;
        }
        server.kill9();
        server = home.start();
        client = server.client().await;
        let found = read(&mut client).await;
        let expected: BTreeMap<Bytes, Bytes> =
            (next - KEYS..next).map(|n| (Bytes::from(format!("key{}", n % KEYS)), value(n))).collect();
        assert_eq!(state(&found), expected, "round {round}");
    }
    compacted(&mut client, 3_000).await;
    let dir = home.data_dir().join("shard-000/streams");
    eventually("files are as small as what is left", || async { (disk_bytes(&dir) < 400_000).then_some(()) })
        .await;
}

#[tokio::test]
async fn a_deleted_key_goes_and_its_tombstone_after_its_time() {
    let home = home();
    let (_server, mut client) = start(&home).await;
    let update = v1::UpdateResourceRequest {
        name: "state".into(),
        kind: v1::Kind::Stream.into(),
        settings: Some(v1::Settings {
            kind: Some(v1::settings::Kind::Stream(v1::StreamSettings {
                tombstone_retention_ms: Some(1_000),
                ..v1::StreamSettings::default()
            })),
        }),
    };
    client.admin.update_resource(update).await.unwrap();
    let gone = vec![keyed("gone", value(7)), keyed("gone", Bytes::new())];
    let append = v1::AppendRequest { stream: "state".into(), records: gone, ..Default::default() };
    client.stream.append(append).await.unwrap();
    let mut next = 0;
    let upto = eventually("the key is gone", || {
        let mut client = client.clone();
        // More records bring more checkpoints, and with them looks for what is to be done.
        next += 200;
        async move {
            fill(&mut client, next - 200, next).await;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            let found = read(&mut client).await;
            let has_key = found.iter().any(|(_, record)| record.key.as_deref() == Some(b"gone"));
            (!has_key).then_some(found.len())
        }
    })
    .await;
    assert!(upto > 0);
}

#[tokio::test]
async fn records_without_a_key_and_conflicting_settings_are_refused_by_name() {
    let home = home();
    let (_server, mut client) = start(&home).await;
    let records = vec![keyed("a", "1"), keyed("b", "2"), record("3"), record("4")];
    let append = v1::AppendRequest { stream: "state".into(), records: records.clone(), ..Default::default() };
    let status = refused(client.stream.append(append).await, Code::InvalidArgument, "KEY_MISSING");
    assert!(status.message().contains("record 2"), "{status:?}");
    assert!(read(&mut client).await.is_empty(), "nothing of it was done");
    // Over several partitions the number is that of the call, too.
    let wide = v1::StreamSettings { partitions: Some(4), ..settings() };
    client.create("wide", v1::settings::Kind::Stream(wide)).await.unwrap();
    let append = v1::AppendRequest { stream: "wide".into(), records: records.clone(), ..Default::default() };
    let status = refused(client.stream.append(append).await, Code::InvalidArgument, "KEY_MISSING");
    assert!(status.message().contains("record 2"), "{status:?}");
    // A pipelined producer is told by its sequence.
    let first =
        v1::AppendStreamRequest { stream: "state".into(), records, sequence: 9, ..Default::default() };
    let (_sender, mut answers) = open(&mut client, first).await;
    let answer = within("an answer", answers.message()).await.unwrap().unwrap();
    assert_eq!(answer.acks[0].sequence, 9);
    assert_eq!(answer.acks[0].error.as_ref().unwrap().reason, "KEY_MISSING");
    for (field, wrong) in [
        (
            "tombstone_retention_ms",
            v1::StreamSettings { tombstone_retention_ms: Some(5_000), ..Default::default() },
        ),
        (
            "min_compaction_lag_ms",
            v1::StreamSettings { min_compaction_lag_ms: Some(5_000), ..Default::default() },
        ),
        ("min_dirty_percent", v1::StreamSettings { min_dirty_percent: Some(10), ..Default::default() }),
        ("min_dirty_percent", v1::StreamSettings { min_dirty_percent: Some(101), ..settings() }),
    ] {
        let outcome = client.create("wrong", v1::settings::Kind::Stream(wrong)).await;
        names_field(&refused(outcome, Code::InvalidArgument, "INVALID_ARGUMENT"), field);
    }
}
