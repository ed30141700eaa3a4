//! Streams as they were at a time.

use flowmesh_proto::v1;
use flowmesh_proto::v1::read_request::Start;
use tonic::Code;

use super::shell::{ok, run};
use crate::common::client::record;
use crate::common::{Client, Home, eventually, now_ms, refused};

/// Appends one record in a millisecond of its own; its time.
async fn append(client: &mut Client, partition: u32, value: &str) -> u64 {
    let append = v1::AppendRequest {
        stream: "logs".into(),
        partition: Some(partition),
        records: vec![record(value.to_owned())],
        ..Default::default()
    };
    let at = client.stream.append(append).await.unwrap().into_inner().appended_at_ms;
    eventually("the next millisecond", || async { (now_ms() > at).then_some(()) }).await;
    at
}

fn read(as_of_ms: u64, start: Start) -> v1::ReadRequest {
    v1::ReadRequest {
        stream: "logs".into(),
        start: Some(start),
        as_of_ms: Some(as_of_ms),
        ..Default::default()
    }
}

fn values(batches: &[v1::RecordBatch]) -> Vec<String> {
    let records = batches.iter().flat_map(|batch| &batch.records);
    records.map(|record| String::from_utf8(record.value.to_vec()).unwrap()).collect()
}

#[tokio::test]
async fn a_stream_is_read_as_it_was() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("logs", 2).await;
    let before = now_ms() - 1;
    let mut times = Vec::new();
    for number in 0..6u32 {
        times.push(append(&mut client, number % 2, &number.to_string()).await);
    }
    // Partition 0 has 0, 2 and 4.
    for (as_of, start, expected, end) in [
        (times[3], Start::Earliest(true), vec!["0", "2"], 2),
        (times[4] - 1, Start::Earliest(true), vec!["0", "2"], 2),
        (times[4], Start::Earliest(true), vec!["0", "2", "4"], 3),
        (times[3], Start::Offset(1), vec!["2"], 2),
        (times[3], Start::Offset(2), vec![], 2),
        (times[3], Start::Latest(true), vec![], 2),
        (times[3], Start::TimestampMs(times[1]), vec!["2"], 2),
        (times[3], Start::TimestampMs(times[4]), vec![], 2),
        (before, Start::Earliest(true), vec![], 0),
    ] {
        let answer = client.stream.read(read(as_of, start)).await.unwrap().into_inner();
        assert_eq!(
            (values(&answer.batches), answer.high_watermark),
            (expected.iter().map(|&v| v.to_owned()).collect(), end),
            "{start:?} as of {as_of}"
        );
        assert_eq!(answer.next_offset, end);
    }
    // As many as are asked for, and the rest from there.
    let few = v1::ReadRequest { max_records: 1, ..read(times[3], Start::Earliest(true)) };
    let answer = client.stream.read(few).await.unwrap().into_inner();
    assert_eq!(
        (values(&answer.batches), answer.next_offset, answer.high_watermark),
        (vec!["0".to_owned()], 1, 2)
    );

    // A subscription ends there, whatever comes meanwhile.
    let subscribe =
        v1::SubscribeRequest { stream: "logs".into(), as_of_ms: Some(times[3]), ..Default::default() };
    let mut batches = client.stream.subscribe(subscribe).await.unwrap().into_inner();
    append(&mut client, 0, "late").await;
    let mut all = Vec::new();
    while let Some(batch) = batches.message().await.unwrap() {
        all.extend(values(&[batch]));
    }
    all.sort();
    assert_eq!(all, ["0", "1", "2", "3"]);

    refused(
        client.stream.read(read(times[3], Start::Offset(3))).await,
        Code::OutOfRange,
        "OFFSET_OUT_OF_RANGE",
    );
    let future = read(now_ms() + 60_000, Start::Earliest(true));
    refused(client.stream.read(future).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let waits = v1::ReadRequest { wait_ms: 5, ..read(times[3], Start::Earliest(true)) };
    refused(client.stream.read(waits).await, Code::InvalidArgument, "INVALID_ARGUMENT");

    // What a trim took is gone all the same.
    let trim = v1::TrimRequest { stream: "logs".into(), partition: 0, before_offset: 1 };
    client.stream.trim(trim).await.unwrap();
    let answer = client.stream.read(read(times[3], Start::Earliest(true))).await.unwrap().into_inner();
    assert_eq!((values(&answer.batches), answer.earliest_offset), (vec!["2".to_owned()], 1));

    let shell = |arguments: String| ok(&server, &home, &format!("flowmesh stream read logs {arguments}"));
    assert_eq!(shell(format!("-p 1 --as-of @{}", times[3])), "1\n3\n");
    assert_eq!(shell(format!("-p 1 --as-of @{} --from latest", times[3])), "");
    assert_eq!(shell(format!("-p 1 --as-of @{} --from @{}", times[3], times[2])), "3\n");
    assert_eq!(shell(format!("-p 1 --as-of @{} --from @{}", times[3], times[5])), "");
    assert_eq!(shell("-p 1 --as-of -1d".to_owned()), "");
    for wrong in ["--as-of latest", "--as-of 7", "--as-of -1h --follow"] {
        let outcome = run(&server, &home, &format!("flowmesh stream read logs {wrong}"));
        assert_eq!(outcome.status.code(), Some(2), "{wrong}");
    }
}
