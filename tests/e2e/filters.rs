//! Filters: what matches comes, with its offset; what does not costs no network; progress is kept either way.

use std::process::Command;

use bytes::Bytes;
use flowmesh_proto::v1;
use flowmesh_proto::v1::filter_condition::Condition;
use flowmesh_proto::v1::subscribe_request::Start;
use tonic::{Code, Streaming};

use crate::common::client::{names_field, read_at};
use crate::common::server::binary;
use crate::common::wire::{Wire, framed};
use crate::common::{Client, Home, Server, refused, within};

const RECORDS: u64 = 2000;

fn header(name: &str, value: impl Into<Bytes>) -> v1::Header {
    v1::Header { name: name.to_owned(), value: value.into() }
}

/// Record number `i`; every 17th value is not JSON.
fn record(i: u64) -> v1::Record {
    let mut headers = vec![header("type", if i.is_multiple_of(50) { "refund" } else { "order" })];
    if i % 100 == 7 {
        headers.push(header("marked", ""));
    }
    let end = if i.is_multiple_of(17) { "," } else { "}" };
    let tags = format!(r#"["a","b{}"]"#, i % 10);
    let pad = "x".repeat(400);
    let value = format!(r#"{{"pad":"{pad}","n":{i},"user":{{"id":{},"tags":{tags}}}{end}"#, i % 100);
    v1::Record {
        key: Some(format!("user:{}", i % 100).into()),
        value: value.into(),
        headers,
        timestamp_ms: Some(i),
    }
}

fn is_json(i: u64) -> bool {
    !i.is_multiple_of(17)
}

fn filter(conditions: impl IntoIterator<Item = Condition>) -> Option<v1::Filter> {
    let conditions =
        conditions.into_iter().map(|condition| v1::FilterCondition { condition: Some(condition) });
    Some(v1::Filter { conditions: conditions.collect() })
}

fn json(path: &str, value: &str) -> Condition {
    Condition::JsonEquals(v1::JsonEquals { path: path.to_owned(), value: value.to_owned() })
}

fn key(key: &str) -> Condition {
    Condition::KeyEquals(Bytes::copy_from_slice(key.as_bytes()))
}

type Wanted = fn(u64) -> bool;

/// Every form of condition, and which records match.
fn forms() -> Vec<(Vec<Condition>, Wanted)> {
    vec![
        (vec![key("user:7")], |i| i % 100 == 7),
        (vec![key("user:")], |_| false),
        (vec![Condition::KeyPrefix("user:9".into())], |i| i % 100 == 9 || i % 100 >= 90),
        (vec![Condition::HeaderEquals(header("type", "refund"))], |i| i.is_multiple_of(50)),
        (vec![Condition::HeaderExists("marked".into())], |i| i % 100 == 7),
        (vec![json("$.user.tags[1]", r#""b3""#)], |i| i % 10 == 3 && is_json(i)),
        (vec![json("$['n']", "1234.0")], |i| i == 1234),
        (vec![json("$.user", "null")], |_| false),
        (
            vec![
                Condition::KeyPrefix("user:".into()),
                json("$.user.id", "50"),
                Condition::HeaderEquals(header("type", "refund")),
            ],
            |i| i % 100 == 50 && is_json(i),
        ),
    ]
}

/// A server with the records in memory: appends of 1 to 40 of them.
async fn filled(home: &Home) -> Server {
    let server = home.start();
    let mut client = server.client().await;
    let (mut next, mut size) = (0, 1);
    while next < RECORDS {
        let end = (next + size).min(RECORDS);
        let records = (next..end).map(record).collect();
        let append = v1::AppendRequest { stream: "logs".into(), records, ..v1::AppendRequest::default() };
        client.stream.append(append).await.unwrap();
        (next, size) = (end, size % 40 + 1);
    }
    server
}

/// The records of a batch with their offsets.
fn records(batch: v1::RecordBatch) -> Vec<(u64, v1::Record)> {
    assert_eq!(batch.records.len(), batch.count as usize);
    let deltas = batch.offset_deltas;
    assert!(deltas.is_empty() || deltas.len() == batch.records.len());
    let offset = |index: usize| batch.base_offset + deltas.get(index).copied().unwrap_or(index as u64);
    batch.records.into_iter().enumerate().map(|(index, record)| (offset(index), record)).collect()
}

async fn read_all(
    client: &mut Client,
    filter: Option<v1::Filter>,
    max_records: u32,
) -> Vec<(u64, v1::Record)> {
    let (mut found, mut next) = (Vec::new(), 0);
    loop {
        let request = v1::ReadRequest { filter: filter.clone(), max_records, ..read_at("logs", next) };
        let answer = client.stream.read(request).await.unwrap().into_inner();
        found.extend(answer.batches.into_iter().flat_map(records));
        assert!(max_records == 0 || found.last().is_none_or(|(offset, _)| *offset < answer.next_offset));
        if answer.next_offset == answer.high_watermark {
            return found;
        }
        assert!(answer.next_offset > next, "every call comes further");
        next = answer.next_offset;
    }
}

fn subscription(filter: Option<v1::Filter>, from: u64, stop_at_end: bool) -> v1::SubscribeRequest {
    let start = Some(Start::Offset(from));
    v1::SubscribeRequest {
        stream: "logs".into(),
        start,
        filter,
        stop_at_end,
        ..v1::SubscribeRequest::default()
    }
}

async fn subscribe(client: &mut Client, request: v1::SubscribeRequest) -> Streaming<v1::RecordBatch> {
    within("the call opens", client.stream.subscribe(request)).await.unwrap().into_inner()
}

async fn next(batches: &mut Streaming<v1::RecordBatch>) -> Option<v1::RecordBatch> {
    within("a batch", batches.message()).await.unwrap()
}

async fn check_every_form(server: &Server) {
    let mut client = server.client().await;
    for (conditions, wanted) in forms() {
        let expected: Vec<_> = (0..RECORDS).filter(|i| wanted(*i)).map(|i| (i, record(i))).collect();
        let filter = filter(conditions);
        for max_records in [0, 1, 3] {
            let read = read_all(&mut client, filter.clone(), max_records).await;
            assert!(read == expected, "Read with {filter:?}: {} of {}", read.len(), expected.len());
        }
        let mut batches = subscribe(&mut client, subscription(filter.clone(), 0, true)).await;
        let (mut got, mut reached) = (Vec::new(), 0);
        while let Some(batch) = next(&mut batches).await {
            assert!(batch.next_offset.unwrap() > reached, "every message comes further");
            reached = batch.next_offset.unwrap();
            got.extend(records(batch));
        }
        assert!(got == expected, "Subscribe with {filter:?}: {} of {}", got.len(), expected.len());
        assert_eq!(reached, RECORDS, "the end says that all was looked at");
    }
}

#[tokio::test]
async fn every_form_brings_what_matches_from_memory_and_from_segment_files() {
    let home = Home::new();
    let server = filled(&home).await;
    check_every_form(&server).await;
    // After an orderly stop nothing is left in the log: what is read comes from segment files.
    server.stop();
    let server = home.start();
    check_every_form(&server).await;
}

#[tokio::test]
async fn what_does_not_match_costs_no_network() {
    let home = Home::new();
    let server = filled(&home).await;
    let mut wire = Wire::connect(server.grpc_port()).await;
    let one_in_a_hundred = || filter([key("user:7")]);
    let mut bytes = Vec::new();
    for filter in [None, one_in_a_hundred()] {
        let read = v1::ReadRequest {
            max_records: 10_000,
            max_bytes: 4 << 20,
            filter: filter.clone(),
            ..read_at("logs", 0)
        };
        let answer = wire.grpc("Stream/Read", framed(&read)).await;
        assert_eq!(answer.grpc_status, Some(0));
        let pushed = wire.grpc("Stream/Subscribe", framed(&subscription(filter, 0, true))).await;
        assert_eq!(pushed.grpc_status, Some(0));
        bytes.push((answer.body.len(), pushed.body.len()));
    }
    println!("bytes of Read and Subscribe, all and one in a hundred: {bytes:?}");
    assert!(bytes[1].0 * 50 < bytes[0].0 && bytes[1].1 * 50 < bytes[0].1, "{bytes:?}");
}

#[tokio::test]
async fn a_read_that_finds_nothing_says_how_far_it_looked() {
    const MIB: usize = 1 << 20;
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    for _ in 0..80 {
        client.append("logs", [vec![b' '; MIB]]).await.unwrap();
    }
    let server = {
        server.stop();
        home.start()
    };
    let mut client = server.client().await;
    let mut places = Vec::new();
    while places.last() != Some(&80) {
        let from = places.last().copied().unwrap_or(0);
        let request = v1::ReadRequest { filter: filter([json("$.a", "1")]), ..read_at("logs", from) };
        let answer = within("a bounded read", client.stream.read(request)).await.unwrap().into_inner();
        assert!(answer.batches.is_empty() && answer.next_offset > from);
        places.push(answer.next_offset);
    }
    assert_eq!(places.len(), 2, "64 MiB a call: {places:?}");
}

#[tokio::test]
async fn a_subscription_keeps_its_progress_where_nothing_matches() {
    let home = Home::new();
    let server = filled(&home).await;
    let mut client = server.client().await;
    let nobody = || filter([key("nobody")]);
    let mut batches = subscribe(&mut client.clone(), subscription(nobody(), 0, false)).await;
    let mut reached = 0;
    while reached < RECORDS {
        let progress = next(&mut batches).await.unwrap();
        assert_eq!((progress.count, progress.records.len()), (0, 0));
        reached = progress.next_offset.unwrap();
    }
    drop(batches);
    // It resumes there, and what matches from then on comes.
    let mut batches = subscribe(&mut client.clone(), subscription(nobody(), reached, false)).await;
    let one = v1::Record { key: Some("nobody".into()), ..v1::Record::default() };
    let request = v1::AppendRequest {
        stream: "logs".into(),
        records: vec![record(1), one.clone()],
        ..v1::AppendRequest::default()
    };
    client.stream.append(request).await.unwrap();
    let batch = next(&mut batches).await.unwrap();
    assert_eq!(batch.next_offset, Some(RECORDS + 2));
    assert_eq!(records(batch), [(RECORDS + 1, one)]);
}

#[tokio::test]
async fn a_waiting_read_waits_for_what_matches() {
    let home = Home::new();
    let server = filled(&home).await;
    let mut client = server.client().await;
    let request = v1::ReadRequest { wait_ms: 60_000, filter: filter([key("late")]), ..read_at("logs", 0) };
    let mut waiting = client.clone();
    let reader = tokio::spawn(async move { waiting.stream.read(request).await.unwrap().into_inner() });
    for name in ["early", "early", "late"] {
        let records = vec![v1::Record { key: Some(name.into()), ..v1::Record::default() }];
        let append = v1::AppendRequest { stream: "logs".into(), records, ..v1::AppendRequest::default() };
        client.stream.append(append).await.unwrap();
    }
    let answer = within("the wait ends", reader).await.unwrap();
    assert_eq!((answer.batches[0].base_offset, answer.next_offset), (RECORDS + 2, RECORDS + 3));
}

#[tokio::test]
async fn illegal_filters_are_refused_by_name_with_the_place() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.append("logs", ["x"]).await.unwrap();
    for (conditions, place) in [
        (vec![json("$.a[*]", "1")], "condition 0, JSON path at byte 4"),
        (vec![key("k"), json("a", "1")], "condition 1, JSON path at byte 0"),
        (vec![json("$", "[1]")], "condition 0, JSON value at byte 0"),
        (vec![Condition::KeyPrefix(vec![b'k'; 1025].into())], "condition 0, key prefix at byte 1024"),
        (vec![Condition::HeaderExists("n".repeat(256))], "condition 0, header name at byte 255"),
        (vec![key("k"); 17], "condition 16, condition at byte 0"),
    ] {
        let read = v1::ReadRequest { filter: filter(conditions.clone()), ..read_at("logs", 0) };
        let status = refused(client.stream.read(read).await, Code::InvalidArgument, "ILLEGAL_FILTER");
        assert!(status.message().contains(place), "{status:?}");
        names_field(&status, "filter");
        let outcome = match client.stream.subscribe(subscription(filter(conditions), 0, true)).await {
            Ok(batches) => batches.into_inner().message().await,
            Err(status) => Err(status),
        };
        refused(outcome, Code::InvalidArgument, "ILLEGAL_FILTER");
    }
}

/// Runs the command line against the server: exit code, standard output, standard error.
fn flowmesh(server: &Server, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(binary())
        .args(arguments)
        .env("FLOWMESH_ADDR", format!("http://127.0.0.1:{}", server.grpc_port()))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn the_command_line_reads_what_matches() {
    let home = Home::new();
    let server = filled(&home).await;
    let offsets = |filters: &[&str]| -> Vec<u64> {
        let arguments = [&["stream", "read", "logs", "-o", "json"], filters].concat();
        let (code, out, err) = flowmesh(&server, &arguments);
        assert_eq!(code, 0, "{err}");
        let offset =
            |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["offset"].as_u64().unwrap();
        out.lines().map(offset).collect()
    };
    let expected = |wanted: Wanted| (0..RECORDS).filter(|i| wanted(*i)).collect::<Vec<_>>();
    assert_eq!(offsets(&["--filter", "key=user:7"]), expected(|i| i % 100 == 7));
    assert_eq!(offsets(&["--filter", "header:marked"]), expected(|i| i % 100 == 7));
    let both = ["--filter", "key^=user:3", "--filter", "json:$.user.tags[1]=b3"];
    assert_eq!(offsets(&both), expected(|i| (i % 100 == 3 || i % 100 == 33) && is_json(i)));
    assert_eq!(offsets(&["--filter", "header:type=refund", "-n", "2"]), [0, 50]);
    let (code, _, err) = flowmesh(&server, &["stream", "read", "logs", "--filter", "json:$..a=1"]);
    assert!(code == 2 && err.contains("JSON path at byte 2"), "{err}");
}

#[tokio::test]
async fn the_command_line_shows_the_records_around_an_offset() {
    let home = Home::new();
    let server = filled(&home).await;
    let inspect =
        |arguments: &[&str]| flowmesh(&server, &[&["stream", "inspect", "logs"], arguments].concat());
    let shown = |arguments: &[&str]| -> Vec<(u64, bool)> {
        let (code, out, err) = inspect(&[arguments, &["-o", "json"]].concat());
        assert_eq!(code, 0, "{err}");
        let parsed = out.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        parsed.map(|line| (line["offset"].as_u64().unwrap(), line["asked_for"].as_bool().unwrap())).collect()
    };
    let around = |asked: u64, range: std::ops::Range<u64>| range.map(|i| (i, i == asked)).collect::<Vec<_>>();
    assert_eq!(shown(&["--offset", "107", "--around", "3"]), around(107, 104..111));
    assert_eq!(shown(&["--offset", "1", "--partition", "0"]), around(1, 0..7));
    assert_eq!(shown(&["--offset", "1999", "--around", "0"]), around(1999, 1999..2000));
    let (code, out, _) = inspect(&["--offset", "107", "--around", "1"]);
    assert_eq!(code, 0);
    for part in [
        "  106  appended ",
        "> 107  appended ",
        "key     user:7  (6 bytes)",
        "header  marked = ",
        "the producer's time 1970-01-01T00:00:00.107Z",
    ] {
        assert!(out.contains(part), "`{part}` is missing from:\n{out}");
    }
    let (code, _, err) = inspect(&["--offset", "2000"]);
    assert!(code == 1 && err.contains("OFFSET_OUT_OF_RANGE") && err.contains("there are 0 to 1999"), "{err}");
    let (code, _, err) = inspect(&["--offset", "0", "--partition", "1"]);
    assert!(code == 1 && err.contains("NO_SUCH_PARTITION"), "{err}");
}
