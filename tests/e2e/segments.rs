//! Segments: retention by age and by bytes, trims, reads from a time, long polls for bytes.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use flowmesh_proto::v1::{self, offsets_for_request, read_request};
use tonic::Code;

use crate::common::client::{read_at, refused};
use crate::common::wait::now_ms;
use crate::common::{Client, Home, eventually, within};
use crate::e2e::shell::{ok, run};

const KIB: u64 = 1024;

/// A stream with segments as small as they may be.
async fn create(client: &mut Client, settings: v1::StreamSettings) {
    let settings = v1::StreamSettings { segment_bytes: Some(64 * KIB), ..settings };
    client.create("logs", v1::settings::Kind::Stream(settings)).await.unwrap();
}

/// So many records of a KiB.
async fn fill(client: &mut Client, records: usize) {
    for _ in 0..records / 16 {
        client.append("logs", vec![vec![b'x'; 1024]; 16]).await.unwrap();
    }
}

async fn status(client: &mut Client) -> v1::PartitionStatus {
    let request = v1::StreamStatusRequest { stream: "logs".into(), partitions: vec![] };
    client.stream.status(request).await.unwrap().into_inner().partitions.remove(0)
}

/// The stream's files.
fn files(home: &Home) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut dirs = vec![home.shard_dir(0).join("streams")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { dirs.push(path) } else { all.push(path) }
        }
    }
    all.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    all.sort();
    all
}

#[tokio::test]
async fn segments_go_by_bytes_from_the_front_and_their_files_with_them() {
    let home = Home::new().set("checkpoint_interval_ms", "100ms");
    let server = home.start();
    let mut client = server.client().await;
    create(&mut client, v1::StreamSettings { retention_bytes: Some(200 * KIB), ..Default::default() }).await;
    fill(&mut client, 1024).await;
    let end = eventually("the oldest segments go", || {
        let mut client = client.clone();
        async move {
            let status = status(&mut client).await;
            (status.earliest_offset > 0 && status.bytes < 280 * KIB).then_some(status)
        }
    })
    .await;
    assert!(end.bytes >= 200 * KIB, "no more than that: {end:?}");
    assert_eq!(end.next_offset, 1024, "offsets go on where they were");
    let read = client.read_from("logs", 0, end.earliest_offset).await;
    assert_eq!(read.len() as u64, 1024 - end.earliest_offset);
    let below = client.stream.read(read_at("logs", end.earliest_offset - 1)).await;
    let status = refused(below, Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    let range = (format!("{}", end.earliest_offset), "1024");
    assert!(status.message().contains(&range.0) && status.message().contains(range.1), "{status:?}");
    eventually("their files go", || async { (files(&home).len() <= 5).then_some(()) }).await;

    server.kill9();
    let server = home.start();
    let after = self::status(&mut server.client().await).await;
    assert!(after.earliest_offset >= end.earliest_offset && after.next_offset == 1024, "{after:?}");
}

#[tokio::test]
async fn what_is_too_old_goes_even_from_a_stream_nobody_uses() {
    let home = Home::new().set("checkpoint_interval_ms", "100ms");
    let server = home.start();
    let mut client = server.client().await;
    create(&mut client, v1::StreamSettings { retention_ms: Some(1_500), ..Default::default() }).await;
    let begin = Instant::now();
    fill(&mut client, 160).await;
    assert_eq!(status(&mut client).await.earliest_offset, 0);
    eventually("all of it is too old", || {
        let mut client = client.clone();
        async move { (status(&mut client).await.earliest_offset == 160).then_some(()) }
    })
    .await;
    assert!(begin.elapsed() >= Duration::from_millis(1_500), "nothing goes before its time");
    eventually("no file is left", || async { files(&home).is_empty().then_some(()) }).await;
    let answer = client.append("logs", ["next"]).await.unwrap();
    assert_eq!(answer.base_offset, 160);
    assert_eq!(client.read_from("logs", 0, 160).await.len(), 1);
}

#[tokio::test]
async fn a_trim_is_exact_and_stays() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    create(&mut client, v1::StreamSettings::default()).await;
    fill(&mut client, 320).await;
    let trim = |before_offset| v1::TrimRequest { stream: "logs".into(), partition: 0, before_offset };
    let answer = client.stream.trim(trim(101)).await.unwrap().into_inner();
    assert_eq!((answer.earliest_offset, answer.next_offset), (101, 320));
    let again = client.stream.trim(trim(7)).await.unwrap().into_inner();
    assert_eq!(again.earliest_offset, 101, "what is gone already changes nothing");
    refused(client.stream.trim(trim(321)).await, Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    refused(client.stream.read(read_at("logs", 100)).await, Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    let wrong = v1::TrimRequest { partition: 1, ..trim(5) };
    refused(client.stream.trim(wrong).await, Code::InvalidArgument, "NO_SUCH_PARTITION");
    assert_eq!(client.read_from("logs", 0, 101).await.len(), 219);

    server.kill9();
    let server = home.start();
    let mut client = server.client().await;
    assert_eq!(client.read_from("logs", 0, 101).await.len(), 219);
    let all = client.stream.trim(trim(320)).await.unwrap().into_inner();
    assert_eq!((all.earliest_offset, all.next_offset), (320, 320));
    server.stop();
    assert!(files(&home).is_empty(), "a trim of everything leaves no file: {:?}", files(&home));
    let server = home.start();
    let out = ok(
        &server,
        &home,
        "flowmesh stream append logs one two; flowmesh stream trim logs --before 321; flowmesh stream read logs",
    );
    assert!(out.ends_with("two\n"), "{out}");
    assert_eq!(run(&server, &home, "flowmesh stream trim logs --before 400").status.code(), Some(1));
}

#[tokio::test]
async fn a_time_finds_its_record_in_memory_and_in_files() {
    let home = Home::new();
    let mut server = home.start();
    let mut times = Vec::new();
    {
        let mut client = server.client().await;
        create(&mut client, v1::StreamSettings::default()).await;
        for _ in 0..12 {
            let answer = client.append("logs", vec![vec![b'x'; 1024]; 16]).await.unwrap();
            times.push((answer.appended_at_ms, answer.base_offset));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for round in ["from memory", "from files"] {
        let mut client = server.client().await;
        for (time, offset) in &times {
            for (asked, expected) in [(*time, *offset), (time + 1, offset + 16)] {
                let start = Some(read_request::Start::TimestampMs(asked));
                let request =
                    v1::ReadRequest { stream: "logs".into(), start, max_records: 1, ..Default::default() };
                let answer = client.stream.read(request).await.unwrap().into_inner();
                // Neighbours may have been appended within the same millisecond.
                let first = answer.batches.first().map_or(answer.next_offset, |batch| batch.base_offset);
                let start = Some(offsets_for_request::Start::TimestampMs(asked));
                let request = v1::OffsetsForRequest { stream: "logs".into(), start, ..Default::default() };
                let found =
                    client.stream.offsets_for(request).await.unwrap().into_inner().partitions.remove(0);
                assert_eq!(first, found.offset, "{round}");
                assert!(
                    found.offset <= expected && found.appended_at_ms.is_none_or(|at| at >= asked),
                    "{round}"
                );
                assert!(found.offset == expected || times.iter().any(|(at, _)| *at == asked), "{round}");
            }
        }
        server.stop();
        server = home.start();
    }
    let out = ok(&server, &home, "flowmesh stream offsets logs --at latest -o json");
    assert!(out.contains("192"), "{out}");
}

#[tokio::test]
async fn a_long_poll_waits_for_bytes_and_no_longer_than_it_says() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.append("logs", [vec![b'x'; 100]]).await.unwrap();
    let wait = |wait_ms, min_bytes| v1::ReadRequest { wait_ms, min_bytes, ..read_at("logs", 0) };
    let begin = now_ms();
    let little = client.stream.read(wait(300, 1000)).await.unwrap().into_inner();
    assert!(now_ms() - begin >= 300, "it waited for more");
    assert_eq!(little.next_offset, 1, "what is there at the end of the wait is returned");
    let mut reader = client.clone();
    let request = wait(60_000, 1000);
    let poll = tokio::spawn(async move { reader.stream.read(request).await.unwrap().into_inner() });
    for _ in 0..10 {
        client.append("logs", [vec![b'x'; 100]]).await.unwrap();
    }
    let enough = within("enough bytes", poll).await.unwrap();
    assert!(enough.next_offset >= 9, "{}", enough.next_offset);
}
