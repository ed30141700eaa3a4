//! Filters of reads and subscriptions.

use std::time::Duration;

use bytes::Bytes;
use flowmesh_model::limits::{FILTER_LOOKED_BYTES_MAX, VALUE_BYTES_MAX};
use flowmesh_model::record::{PackedRecords, RecordPacker, RecordView};
use flowmesh_model::{Command, Kind, PartitionRef, ShardId, StreamCommand};
use flowmesh_proto::v1;
use flowmesh_proto::v1::filter_condition::Condition;

use super::client::{Call, Rig, run, until};
use super::fake::{Fake, ignore};
use crate::edge::backend::Backend;

const READ: &str = "flowmesh.v1.Stream/Read";
const SUBSCRIBE: &str = "flowmesh.v1.Stream/Subscribe";

fn filter(conditions: impl IntoIterator<Item = Condition>) -> v1::Filter {
    let conditions =
        conditions.into_iter().map(|condition| v1::FilterCondition { condition: Some(condition) });
    v1::Filter { conditions: conditions.collect() }
}

fn key(key: &'static str) -> v1::Filter {
    filter([Condition::KeyEquals(Bytes::from_static(key.as_bytes()))])
}

/// One append of records with these keys.
fn pack(keys: &[&str], value: &[u8]) -> PackedRecords {
    let mut packer = RecordPacker::default();
    for key in keys {
        packer.push(&RecordView { key: Some(key.as_bytes()), value, ..RecordView::default() });
    }
    PackedRecords::check(packer.finish()).unwrap()
}

fn append(fake: &Fake, records: &PackedRecords) {
    let info = fake.find(Kind::Stream, "one").unwrap();
    let target = PartitionRef { resource: info.id, partition: 0 };
    let append = StreamCommand::append(records.clone());
    fake.dispatch(ShardId(0), Command::Stream(target, append), ignore());
}

fn read(filter: v1::Filter) -> v1::ReadRequest {
    v1::ReadRequest { stream: "one".into(), filter: Some(filter), ..Default::default() }
}

fn subscribe(filter: v1::Filter) -> v1::SubscribeRequest {
    v1::SubscribeRequest { stream: "one".into(), filter: Some(filter), ..Default::default() }
}

/// Offsets of all records of some batches.
fn offsets<'a>(batches: impl IntoIterator<Item = &'a v1::RecordBatch>) -> Vec<u64> {
    let of = |batch: &v1::RecordBatch| -> Vec<u64> {
        assert_eq!(batch.records.len(), batch.count as usize);
        assert!(batch.offset_deltas.is_empty() || batch.offset_deltas.len() == batch.records.len());
        let delta = |index| batch.offset_deltas.get(index).copied().unwrap_or(index as u64);
        (0..batch.records.len()).map(|index| batch.base_offset + delta(index)).collect()
    };
    batches.into_iter().flat_map(of).collect()
}

#[test]
fn a_read_brings_what_matches_with_its_offsets() {
    run(async {
        let rig = Rig::new().await;
        append(&rig.fake, &pack(&["a", "b", "a"], b"v"));
        append(&rig.fake, &pack(&["b", "b"], b"v"));
        append(&rig.fake, &pack(&["a", "a"], b"v"));
        let answer: v1::ReadResponse = rig.call(READ, &read(key("a"))).await.unwrap();
        assert_eq!(offsets(&answer.batches), [0, 2, 5, 6]);
        assert_eq!((answer.next_offset, answer.earliest_offset, answer.high_watermark), (7, 0, 7));
        assert_eq!(answer.batches.len(), 2, "an append in which nothing matches costs nothing");
        let none: v1::ReadResponse = rig.call(READ, &read(key("c"))).await.unwrap();
        assert_eq!((none.batches.len(), none.next_offset), (0, 7));
        let all: v1::ReadResponse = rig.call(READ, &read(v1::Filter::default())).await.unwrap();
        assert_eq!(offsets(&all.batches).len(), 7, "a filter without conditions is none");
    });
}

#[test]
fn limits_count_what_matches_and_the_next_read_goes_on_behind_it() {
    run(async {
        let rig = Rig::new().await;
        for index in 0..100 {
            append(&rig.fake, &pack(&[if index % 3 == 0 { "a" } else { "b" }], &[7; 100]));
        }
        for limited in [
            v1::ReadRequest { max_records: 5, ..read(key("a")) },
            v1::ReadRequest { max_bytes: 600, ..read(key("a")) },
            v1::ReadRequest { max_bytes: 1, ..read(key("a")) },
        ] {
            let (mut seen, mut next) = (Vec::new(), 0);
            while next < 100 {
                let start = Some(v1::read_request::Start::Offset(next));
                let request = v1::ReadRequest { start, ..limited.clone() };
                let answer: v1::ReadResponse = rig.call(READ, &request).await.unwrap();
                let found = offsets(&answer.batches);
                assert!(found.len() <= 5 && answer.next_offset > next, "{request:?}");
                (next, seen) = (answer.next_offset, [seen, found].concat());
            }
            assert_eq!(seen, (0..100).step_by(3).collect::<Vec<_>>(), "{limited:?}");
        }
    });
}

#[test]
fn a_read_looks_at_so_much_and_no_more_and_says_how_far() {
    run(async {
        let rig = Rig::new().await;
        let large = pack(&["b"; 4], &vec![7; VALUE_BYTES_MAX]);
        let appends = FILTER_LOOKED_BYTES_MAX / large.bytes().len() + 3;
        for _ in 0..appends {
            append(&rig.fake, &large);
        }
        let (mut next, mut calls) = (0, 0);
        while next < appends as u64 * 4 {
            let start = Some(v1::read_request::Start::Offset(next));
            let request =
                v1::ReadRequest { start, wait_ms: 60_000 * u64::from(calls == 0), ..read(key("a")) };
            let answer: v1::ReadResponse = rig.call(READ, &request).await.unwrap();
            assert!(answer.batches.is_empty() && answer.next_offset > next);
            (next, calls) = (answer.next_offset, calls + 1);
        }
        assert_eq!(calls, 2);
    });
}

#[test]
fn a_waiting_read_passes_over_what_does_not_match() {
    run(async {
        let rig = Rig::new().await;
        append(&rig.fake, &pack(&["b"], b"v"));
        let mut call = rig.open(READ).await;
        call.send(&v1::ReadRequest { wait_ms: 60_000, ..read(key("a")) }, true);
        for _ in 0..3 {
            until(|| rig.fake.waiting() == 1).await;
            append(&rig.fake, &pack(&["b"], b"v"));
        }
        until(|| rig.fake.waiting() == 1).await;
        append(&rig.fake, &pack(&["b", "a"], b"v"));
        let answer: v1::ReadResponse = call.only().await.unwrap();
        assert_eq!((offsets(&answer.batches), answer.next_offset), (vec![5], 6));

        // With min_bytes it waits until so much matches.
        let mut call = rig.open(READ).await;
        call.send(&v1::ReadRequest { wait_ms: 60_000, min_bytes: 20, ..read(key("a")) }, true);
        until(|| rig.fake.waiting() == 1).await;
        append(&rig.fake, &pack(&["a", "b"], &[7; 20]));
        let answer: v1::ReadResponse = call.only().await.unwrap();
        assert_eq!((offsets(&answer.batches), answer.next_offset), (vec![5, 6], 8));

        let brief = v1::ReadRequest { wait_ms: 5, ..read(key("c")) };
        let answer: v1::ReadResponse = rig.call(READ, &brief).await.unwrap();
        assert_eq!((answer.batches.len(), answer.next_offset), (0, 8), "the wait is over, progress is kept");

        let mut call = rig.open_with(READ, |request| request.header("grpc-timeout", "20m")).await;
        call.send(&v1::ReadRequest { wait_ms: 60_000, ..read(key("c")) }, true);
        assert_eq!(call.status().await.unwrap_err().code, 4);

        let mut call = rig.open(READ).await;
        call.send(&v1::ReadRequest { wait_ms: 60_000, ..read(key("c")) }, true);
        until(|| rig.fake.waiting() == 1).await;
        call.send.send_reset(h2::Reason::CANCEL);
        until(|| rig.fake.waiting() == 0).await;
    });
}

#[test]
fn a_subscription_brings_what_matches_and_ends_with_how_far_it_looked() {
    run(async {
        let rig = Rig::new().await;
        for keys in [&["a", "b", "a"][..], &["b", "b"], &["a"], &["b"]] {
            append(&rig.fake, &pack(keys, b"v"));
        }
        let mut call = rig.open(SUBSCRIBE).await;
        call.send(&v1::SubscribeRequest { stop_at_end: true, ..subscribe(key("a")) }, true);
        let mut batches = Vec::new();
        while let Some(batch) = call.next::<v1::RecordBatch>().await {
            batches.push(batch);
        }
        assert_eq!(call.status().await, Ok(()));
        assert_eq!(offsets(&batches), [0, 2, 5]);
        assert_eq!(
            batches.iter().map(|batch| batch.next_offset).collect::<Vec<_>>(),
            [Some(3), Some(6), Some(7)]
        );
        let last = batches.last().unwrap();
        assert_eq!((last.count, last.base_offset, last.records.len()), (0, 7, 0));
    });
}

/// Progress of a subscription in which nothing matches, message by message.
async fn progress(call: &mut Call) -> u64 {
    let batch: v1::RecordBatch = call.next().await.expect("progress");
    assert_eq!(batch.count, 0);
    batch.next_offset.unwrap()
}

#[test]
fn a_subscription_in_which_nothing_matches_tells_how_far_it_is() {
    run(async {
        let rig = Rig::new().await;
        let batch = pack(&["b"; 1000], b"");
        for _ in 0..250 {
            append(&rig.fake, &batch);
        }
        let mut call = rig.open(SUBSCRIBE).await;
        call.send(&subscribe(key("a")), true);
        // By the number of records, and what is left over by time.
        let (mut seen, mut last) = (0, 0);
        while last < 250_000 {
            last = progress(&mut call).await;
            seen += 1;
        }
        assert!((2..=50).contains(&seen), "{seen} messages for 250 000 records");
        // At the end too, without another record.
        append(&rig.fake, &pack(&["b"], b""));
        assert_eq!(progress(&mut call).await, 250_001);
        append(&rig.fake, &pack(&["a"], b""));
        let batch: v1::RecordBatch = call.next().await.unwrap();
        assert_eq!((offsets([&batch]), batch.next_offset), (vec![250_001], Some(250_002)));
        // Nothing is told twice.
        until(|| rig.fake.waiting() == 1).await;
        let commands = rig.fake.commands();
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert_eq!(rig.fake.commands(), commands, "a subscription that owes nothing waits");
    });
}

#[test]
fn a_long_search_lets_others_go_on_and_ends_with_its_client() {
    run(async {
        const APPENDS: usize = 5000;
        let rig = Rig::new().await;
        // 5 GB to look at, one megabyte in memory.
        let large = pack(&["b"], &vec![7; VALUE_BYTES_MAX]);
        for _ in 0..APPENDS {
            append(&rig.fake, &large);
        }
        let start = rig.fake.commands();
        let mut call = rig.open(SUBSCRIBE).await;
        call.send(&subscribe(key("a")), true);
        until(|| rig.fake.commands() > start + 20).await;
        let status = v1::StreamStatusRequest { stream: "one".into(), partitions: vec![] };
        for _ in 0..5 {
            let _: v1::StreamStatusResponse = rig.call("flowmesh.v1.Stream/Status", &status).await.unwrap();
        }
        call.send.send_reset(h2::Reason::CANCEL);
        let mut before = 0;
        until(|| std::mem::replace(&mut before, rig.fake.commands()) == rig.fake.commands()).await;
        assert!(before < start + APPENDS, "the search was still going on");
    });
}

#[test]
fn illegal_filters_are_refused_by_name() {
    run(async {
        let rig = Rig::new().await;
        let json = |path: &str, value: &str| {
            Condition::JsonEquals(v1::JsonEquals { path: path.into(), value: value.into() })
        };
        let fine = || Condition::HeaderExists("n".into());
        for (filter, message) in [
            (
                filter([json("$..a", "1")]),
                "filter condition 0, JSON path at byte 2: descendants (..) are not supported",
            ),
            (filter([fine(), json("$.a", "x")]), "filter condition 1, JSON value at byte 0: "),
            (
                filter([Condition::HeaderExists(String::new())]),
                "filter condition 0, header name at byte 0: is empty",
            ),
            (
                filter(std::iter::repeat_with(fine).take(17)),
                "filter condition 16, condition at byte 0: one more than",
            ),
            (
                v1::Filter { conditions: vec![v1::FilterCondition::default()] },
                "filter condition 0, condition at byte 0: is empty",
            ),
        ] {
            let failure = rig.call::<v1::ReadResponse>(READ, &read(filter.clone())).await.unwrap_err();
            assert_eq!((failure.code, failure.reason().as_str()), (3, "ILLEGAL_FILTER"));
            assert!(failure.message.starts_with(message), "{}", failure.message);
            let mut call = rig.open(SUBSCRIBE).await;
            call.send(&subscribe(filter), true);
            assert_eq!(call.status().await.unwrap_err(), failure);
        }
    });
}
