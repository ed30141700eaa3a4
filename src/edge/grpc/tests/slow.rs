//! A consumer that stops reading holds back itself and nobody else.

use bytes::Bytes;
use flowmesh_model::record::{PackedRecords, RecordPacker, RecordView};
use flowmesh_model::{Command, Kind, PartitionRef, ShardId, StreamCommand};
use flowmesh_proto::v1;
use flowmesh_proto::v1::filter_condition::Condition;

use super::client::{Call, Rig, run, until};
use super::fake::{Fake, ignore};
use crate::edge::backend::Backend;
use crate::edge::grpc::GrpcConfig;

const SUBSCRIBE: &str = "flowmesh.v1.Stream/Subscribe";
const RECORD_BYTES: usize = 32 * 1024;

/// A record whose value starts with its number.
fn append(fake: &Fake, number: u64) {
    let mut value = vec![0; RECORD_BYTES];
    value[..8].copy_from_slice(&number.to_be_bytes());
    let mut packer = RecordPacker::default();
    packer.push(&RecordView { key: Some(b"k"), value: &value, ..RecordView::default() });
    let info = fake.find(Kind::Stream, "one").unwrap();
    let target = PartitionRef { resource: info.id, partition: 0 };
    let records = PackedRecords::check(packer.finish()).unwrap();
    fake.dispatch(ShardId(0), Command::Stream(target, StreamCommand::append(records)), ignore());
}

/// Reads records up to `count` and checks that they follow each other from `from` on.
async fn take(call: &mut Call, from: u64, count: u64) {
    let mut next = from;
    while next < from + count {
        let batch: v1::RecordBatch = call.next().await.expect("a batch");
        for record in &batch.records {
            assert_eq!(record.value[..8], next.to_be_bytes());
            next += 1;
        }
    }
}

/// Windows of 256 KiB a stream, and room for all of them in the connection's.
async fn rig() -> Rig {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(256 * 1024).initial_connection_window_size(16 << 20);
    Rig::with_client(Fake::new(1), GrpcConfig::default(), &builder).await
}

async fn open(rig: &Rig, filter: Option<v1::Filter>) -> Call {
    let mut call = rig.open(SUBSCRIBE).await;
    call.send(&v1::SubscribeRequest { stream: "one".into(), filter, ..Default::default() }, true);
    call.headers().await;
    call
}

/// 16 MiB pass by a consumer that does not read, on the connection that it shares with others.
async fn pass_by(filter: Option<v1::Filter>) {
    const RECORDS: u64 = 512;
    let rig = rig().await;
    append(&rig.fake, 0);
    let mut slow = open(&rig, filter.clone()).await;
    take(&mut slow, 0, 1).await;
    let mut quick = open(&rig, filter).await;
    take(&mut quick, 0, 1).await;
    for number in 1..=RECORDS {
        append(&rig.fake, number);
        // Nobody waits for the slow one: neither producers nor the other consumer nor another call.
        take(&mut quick, number, 1).await;
    }
    let status = v1::StreamStatusRequest { stream: "one".into(), partitions: vec![] };
    let _: v1::StreamStatusResponse = rig.call("flowmesh.v1.Stream/Status", &status).await.unwrap();
    // It resumes where it was.
    take(&mut slow, 1, RECORDS).await;
    until(|| rig.fake.waiting() == 2).await;
}

#[test]
fn producers_and_other_consumers_go_on_and_it_resumes_where_it_was() {
    run(pass_by(None));
}

#[test]
fn with_a_filter_too() {
    let key = Condition::KeyEquals(Bytes::from_static(b"k"));
    run(pass_by(Some(v1::Filter { conditions: vec![v1::FilterCondition { condition: Some(key) }] })));
}

#[test]
fn no_more_is_read_for_it_than_it_can_take() {
    run(async {
        let rig = rig().await;
        for number in 0..512 {
            append(&rig.fake, number);
        }
        let before = rig.fake.commands();
        let mut slow = Vec::new();
        for _ in 0..10 {
            slow.push(open(&rig, None).await);
        }
        let mut quick = open(&rig, None).await;
        take(&mut quick, 0, 512).await;
        until(|| rig.fake.waiting() == 1).await;
        // Seven records a read of 256 KiB, and a read that waits. The ten others have what fits their windows, what is to
        // be sent next, and a read in advance.
        let reads = rig.fake.commands() - before;
        assert!(reads <= 512 / 7 + 2 + 10 * 4, "{reads} reads for ten consumers that take nothing");
        drop(slow);
    });
}
