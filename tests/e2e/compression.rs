//! Compressed batches: kept as they came, sent as they rest to who knows the codec, and plain to everybody else. The
//! frames are those of other implementations' encoders.

use bytes::Bytes;
use flowmesh_proto::v1::{self, Compression};
use prost::Message;
use tonic::Code;

use crate::common::client::{keyed, names_field, read_at, record, refused};
use crate::common::{Client, Home, within};
use crate::e2e::shell::ok;

fn records(from: u32, count: u32) -> Vec<v1::Record> {
    let json = |n: u32| format!("{{\"user\":{n},\"action\":\"login\",\"even\":{}}}", n.is_multiple_of(2));
    (from..from + count).map(|n| keyed(format!("key{n}"), json(n))).collect()
}

fn lz4(plain: &[u8]) -> Vec<u8> {
    use std::io::Write;
    // Small linked blocks and every checksum, as the command line tool makes them.
    let frame = lz4_flex::frame::FrameInfo::new()
        .block_mode(lz4_flex::frame::BlockMode::Linked)
        .block_checksums(true)
        .content_checksum(true);
    let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(frame, Vec::new());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// The records as a client in another language would compress them.
fn compressed(codec: Compression, records: &[v1::Record]) -> v1::CompressedRecords {
    let plain = v1::AppendRequest { records: records.to_vec(), ..Default::default() }.encode_to_vec();
    let data = match codec {
        Compression::Lz4 => lz4(&plain),
        _ => zstd::stream::encode_all(&plain[..], 9).unwrap(),
    };
    assert!(data.len() < plain.len());
    v1::CompressedRecords { codec: codec.into(), plain_bytes: plain.len() as u32, data: data.into() }
}

fn append(stream: &str, compressed: v1::CompressedRecords) -> v1::AppendRequest {
    v1::AppendRequest { stream: stream.into(), compressed: Some(compressed), ..Default::default() }
}

fn accepting(codecs: &[Compression], offset: u64) -> v1::ReadRequest {
    let accept_compression = codecs.iter().map(|codec| i32::from(*codec)).collect();
    v1::ReadRequest { accept_compression, max_bytes: 4 << 20, max_records: 10_000, ..read_at("logs", offset) }
}

async fn read(client: &mut Client, request: v1::ReadRequest) -> Vec<v1::RecordBatch> {
    client.stream.read(request).await.unwrap().into_inner().batches
}

/// Whatever is asked of the stream that [`what_was_appended_compressed_is_what_is_read`] made.
async fn check_reads(client: &mut Client, sent: &[v1::CompressedRecords; 2]) {
    let all: Vec<(u64, v1::Record)> = (0..).zip(records(0, 1300)).collect();
    assert_eq!(client.read_from("logs", 0, 0).await, all, "plain to who knows no codec");
    assert_eq!(client.read_from("logs", 0, 777).await, all[777..], "from the middle of a batch");

    let both = read(client, accepting(&[Compression::Lz4, Compression::Zstd], 0)).await;
    let shape: Vec<_> = both.iter().map(|b| (b.base_offset, b.count, b.compressed.clone())).collect();
    let [first, second] = sent.clone();
    assert_eq!(shape, [(0, 500, Some(first.clone())), (500, 300, None), (800, 500, Some(second))]);
    let one = read(client, accepting(&[Compression::Lz4], 0)).await;
    assert_eq!((one[0].compressed.as_ref(), one[2].records.len()), (Some(&first), 500));

    // A part of a batch comes plain, exactly as much as was asked for.
    let part = read(client, v1::ReadRequest { max_records: 3, ..accepting(&[Compression::Lz4], 100) }).await;
    assert_eq!((part.len(), part[0].base_offset, part[0].count), (1, 100, 3));
    assert_eq!(part[0].records, records(100, 3));
    let small = read(client, v1::ReadRequest { max_bytes: 500, ..accepting(&[], 0) }).await;
    assert!(small[0].encoded_len() < 700 && small[0].count > 3, "{}", small[0].count);

    let even = v1::JsonEquals { path: "$.even".into(), value: "true".into() };
    let condition = Some(v1::filter_condition::Condition::JsonEquals(even));
    let filter = Some(v1::Filter { conditions: vec![v1::FilterCondition { condition }] });
    let subscribe = v1::SubscribeRequest {
        stream: "logs".into(),
        stop_at_end: true,
        filter: filter.clone(),
        accept_compression: vec![1, 2],
        ..Default::default()
    };
    for (filter, expected) in [(filter, 650), (None, 1300)] {
        let request = v1::SubscribeRequest { filter, accept_compression: vec![], ..subscribe.clone() };
        let mut batches = client.stream.subscribe(request).await.unwrap().into_inner();
        let mut seen = 0;
        while let Some(batch) = within("a batch", batches.message()).await.unwrap() {
            seen += batch.records.len();
        }
        assert_eq!(seen, expected);
    }
    let subscribe = v1::SubscribeRequest { filter: None, ..subscribe };
    let mut batches = client.stream.subscribe(subscribe).await.unwrap().into_inner();
    let first = within("a batch", batches.message()).await.unwrap().unwrap();
    assert_eq!(first.compressed.as_ref(), Some(&sent[0]));
}

#[tokio::test]
async fn what_was_appended_compressed_is_what_is_read() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let sent =
        [compressed(Compression::Lz4, &records(0, 500)), compressed(Compression::Zstd, &records(800, 500))];
    let answer = client.stream.append(append("logs", sent[0].clone())).await.unwrap().into_inner();
    assert_eq!((answer.base_offset, answer.count), (0, 500));
    let request =
        v1::AppendRequest { stream: "logs".into(), records: records(500, 300), ..Default::default() };
    client.stream.append(request).await.unwrap();
    // Of a pipelined producer too.
    let message = v1::AppendStreamRequest {
        stream: "logs".into(),
        compressed: Some(sent[1].clone()),
        ..Default::default()
    };
    let call = client.stream.append_stream(futures::stream::iter([message])).await.unwrap();
    let acks = call.into_inner().message().await.unwrap().unwrap().acks;
    assert_eq!((acks[0].base_offset, acks[0].count), (800, 500));
    check_reads(&mut client, &sent).await;

    // From the log, and from the segment files.
    server.kill9();
    let server = home.start();
    check_reads(&mut server.client().await, &sent).await;
    server.stop();
    let server = home.start();
    check_reads(&mut server.client().await, &sent).await;
}

#[tokio::test]
async fn batches_that_need_not_stay_together_are_taken_apart() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("wide", 4).await;
    let sent = records(0, 200);
    let answer = client.stream.append(append("wide", compressed(Compression::Zstd, &sent))).await.unwrap();
    let placed = answer.into_inner().partition_of_record;
    let plain = v1::AppendRequest { stream: "wide".into(), records: sent, ..Default::default() };
    let again = client.stream.append(plain).await.unwrap().into_inner().partition_of_record;
    assert_eq!((placed.len(), &placed), (200, &again), "as if they had come plain");
    for partition in 0..4 {
        let all = client.read_from("wide", partition, 0).await;
        let (first, second) = all.split_at(all.len() / 2);
        assert!(first.iter().zip(second).all(|((_, a), (_, b))| a == b));
    }
}

#[tokio::test]
async fn a_stream_can_ask_the_server_to_compress() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let all = records(0, 2000);
    for (name, compression) in [("plain", None), ("lz4", Some(1)), ("zstd", Some(2))] {
        let settings = v1::StreamSettings { compression, ..Default::default() };
        client.create(name, v1::settings::Kind::Stream(settings)).await.unwrap();
        let append = v1::AppendRequest { stream: name.into(), records: all.clone(), ..Default::default() };
        client.stream.append(append).await.unwrap();
        assert_eq!(client.read_from(name, 0, 0).await, (0..).zip(all.clone()).collect::<Vec<_>>());
    }
    let mut bytes = Vec::new();
    for stream in ["plain", "lz4", "zstd"] {
        let request = v1::StreamStatusRequest { stream: stream.into(), partitions: vec![] };
        bytes.push(client.stream.status(request).await.unwrap().into_inner().partitions[0].bytes);
    }
    assert!(bytes[1] * 2 < bytes[0] && bytes[2] < bytes[1], "{bytes:?}");

    let wrong = v1::StreamSettings { compression: Some(7), ..Default::default() };
    let status = client.create("wrong", v1::settings::Kind::Stream(wrong)).await;
    names_field(&refused(status, Code::InvalidArgument, "INVALID_ARGUMENT"), "compression");
}

#[tokio::test]
async fn a_batch_that_lies_is_refused_and_nothing_of_it_is_there() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.append("logs", ["first"]).await.unwrap();
    let good = compressed(Compression::Zstd, &records(0, 100));
    let bomb = zstd::stream::encode_all(&vec![0u8; 256 << 20][..], 1).unwrap();
    let mut nested = compressed(Compression::Lz4, &[record("x".repeat(5000))]);
    nested.data = lz4(&append("", nested.clone()).encode_to_vec().repeat(100)).into();
    let with = |change: &dyn Fn(&mut v1::CompressedRecords)| {
        let mut batch = good.clone();
        change(&mut batch);
        append("logs", batch)
    };
    let beside = v1::AppendRequest { records: vec![record("beside")], ..append("logs", good.clone()) };
    let oversize = compressed(Compression::Zstd, &[record("x".repeat((1 << 20) + 1))]);
    for (what, request, code, reason) in [
        ("an unknown codec", with(&|b| b.codec = 3), Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("no codec", with(&|b| b.codec = 0), Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("another codec", with(&|b| b.codec = 1), Code::InvalidArgument, "INVALID_ARGUMENT"),
        (
            "cut off",
            with(&|b| b.data = b.data.slice(..b.data.len() - 9)),
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
        ),
        ("longer than said", with(&|b| b.plain_bytes -= 1), Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("shorter than said", with(&|b| b.plain_bytes += 1), Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("empty", with(&|b| b.data = Bytes::new()), Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("a bomb", with(&|b| b.data = bomb.clone().into()), Code::InvalidArgument, "INVALID_ARGUMENT"),
        (
            "a bomb that says so",
            with(&|b| (b.data, b.plain_bytes) = (bomb.clone().into(), 256 << 20)),
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
        ),
        ("nested", append("logs", nested), Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("records beside it", beside, Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("an oversize value", append("logs", oversize), Code::InvalidArgument, "TOO_LARGE"),
    ] {
        println!("{what}");
        refused(client.stream.append(request).await, code, reason);
    }
    assert_eq!(client.values("logs").await, ["first"]);
    let status =
        client.stream.read(v1::ReadRequest { accept_compression: vec![5], ..read_at("logs", 0) }).await;
    names_field(&refused(status, Code::InvalidArgument, "INVALID_ARGUMENT"), "accept_compression");
    assert!(server.rss_bytes() < 200 << 20, "nothing was decoded beyond the limit");
    server.assert_healthy();
}

#[test]
fn from_a_shell() {
    let home = Home::new();
    let server = home.start();
    let out = ok(
        &server,
        &home,
        "seq 1 3000 | sed 's/^/the same words in every line /' > in.log
         for codec in lz4 zstd; do
             flowmesh stream append $codec --compression $codec --file in.log >&2
             flowmesh stream read $codec | diff - in.log && echo same
             flowmesh stream consume $codec --group g-$codec --max 3000 | diff - in.log && echo same
         done
         flowmesh resources create stream packed --set compression=zstd >&2
         flowmesh stream append packed --file in.log >&2
         flowmesh stream read packed | diff - in.log && echo same
         flowmesh resources describe stream packed -o json",
    );
    assert_eq!(out.matches("same\n").count(), 5, "{out}");
    assert!(out.contains(r#""compression":"zstd""#), "{out}");
}
