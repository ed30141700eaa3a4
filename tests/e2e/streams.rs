//! Append and Read: round trips, bounds, partitions, waiting.

use bytes::Bytes;
use flowmesh_proto::v1;
use flowmesh_proto::v1::read_request::Start;
use tonic::Code;

use crate::common::client::{keyed, read_at, record};
use crate::common::{Home, eventually, now_ms, refused, within};

#[tokio::test]
async fn what_is_appended_is_read_back_exactly() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let full = v1::Record {
        key: Some(Bytes::from_static(b"k\0")),
        value: Bytes::from_static(b"\xFF\x00value"),
        headers: vec![
            v1::Header { name: "a".into(), value: Bytes::from_static(b"1") },
            v1::Header { name: "a".into(), value: Bytes::new() },
        ],
        timestamp_ms: Some(0),
    };
    let before = now_ms();
    let records = vec![full.clone(), record("plain"), v1::Record::default(), keyed("", "")];
    let request = v1::AppendRequest {
        stream: "logs".into(),
        partition: None,
        records: records.clone(),
        ..Default::default()
    };
    let first = client.stream.append(request).await.unwrap().into_inner();
    assert_eq!((first.partition, first.base_offset, first.count), (0, 0, 4));
    assert!((before..=now_ms()).contains(&first.appended_at_ms));
    let second = client.append("logs", ["x"]).await.unwrap();
    assert_eq!(second.base_offset, 4);

    let read: Vec<v1::Record> = client.read_from("logs", 0, 0).await.into_iter().map(|(_, r)| r).collect();
    assert_eq!(read[..4], records[..]);
    assert_eq!(read[4], record("x"));
}

#[tokio::test]
async fn all_three_forms_of_a_name_mean_the_same_stream() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    for (offset, name) in ["logs", "default/default/logs", "default/default/stream/logs"].iter().enumerate() {
        assert_eq!(client.append(name, ["x"]).await.unwrap().base_offset, offset as u64);
    }
    client.append("acme/prod/logs", ["elsewhere"]).await.unwrap();
    assert_eq!(client.values("logs").await.len(), 3);
    assert_eq!(client.values("acme/prod/stream/logs").await, ["elsewhere"]);
}

#[tokio::test]
async fn reads_start_where_they_are_told_and_stop_at_their_limits() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    for batch in 0..10 {
        client.append("logs", (0..10).map(|i| format!("{:0>100}", batch * 10 + i))).await.unwrap();
    }
    let read = async |start: Option<Start>, max_records, max_bytes| {
        let request = v1::ReadRequest {
            stream: "logs".into(),
            start,
            max_records,
            max_bytes,
            ..v1::ReadRequest::default()
        };
        client.stream.clone().read(request).await.unwrap().into_inner()
    };
    let count = |answer: &v1::ReadResponse| answer.batches.iter().map(|b| b.records.len()).sum::<usize>();

    let all = read(None, 0, 0).await;
    assert_eq!((count(&all), all.next_offset, all.earliest_offset, all.high_watermark), (100, 100, 0, 100));
    // In the middle of an append, across its end, and no more than asked for.
    let some = read(Some(Start::Offset(5)), 7, 0).await;
    assert_eq!((count(&some), some.batches[0].base_offset, some.next_offset), (7, 5, 12));
    assert_eq!(some.batches[0].records[0].value, format!("{:0>100}", 5));
    // At least one record, however small the limit; and never more bytes than it, else.
    assert_eq!(count(&read(Some(Start::Offset(3)), 0, 1).await), 1);
    let bounded = count(&read(Some(Start::Earliest(true)), 0, 1000).await);
    assert!((1..=9).contains(&bounded), "{bounded} records of more than 100 bytes in 1000 bytes");
    // The end is empty, and so is the tail.
    assert_eq!(count(&read(Some(Start::Offset(100)), 0, 0).await), 0);
    let tail = read(Some(Start::Latest(true)), 0, 0).await;
    assert_eq!((count(&tail), tail.next_offset), (0, 100));
}

#[tokio::test]
async fn reading_outside_of_what_exists_names_both_bounds() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.append("logs", ["a", "b"]).await.unwrap();
    let beyond =
        refused(client.stream.read(read_at("logs", 3)).await, Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    assert!(beyond.message().contains("0..=2"), "{beyond:?}");
    refused(client.stream.read(read_at("logs", u64::MAX)).await, Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    refused(client.stream.read(read_at("none", 0)).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    let partition = v1::ReadRequest { partition: 1, ..read_at("logs", 0) };
    refused(client.stream.read(partition).await, Code::InvalidArgument, "NO_SUCH_PARTITION");
}

#[tokio::test]
async fn a_waiting_read_gets_the_next_record() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.append("logs", ["old"]).await.unwrap();
    let mut waiting = client.clone();
    let reader = tokio::spawn(async move {
        let request =
            v1::ReadRequest { wait_ms: 60_000, start: Some(Start::Latest(true)), ..read_at("logs", 0) };
        waiting.stream.read(request).await.unwrap().into_inner()
    });
    // Whether the reader waits already or comes late: a record after `latest` is what ends it. So append until it ends.
    let answer = eventually("the reader is woken", || {
        let (mut client, done) = (client.clone(), reader.is_finished());
        async move {
            client.append("logs", ["new"]).await.unwrap();
            done.then_some(())
        }
    });
    answer.await;
    let answer = reader.await.unwrap();
    assert_eq!(answer.batches[0].records[0].value, "new");

    let empty = v1::ReadRequest { wait_ms: 1, start: Some(Start::Latest(true)), ..read_at("logs", 0) };
    assert!(
        within("a read that waits 1 ms", client.stream.read(empty))
            .await
            .unwrap()
            .into_inner()
            .batches
            .is_empty()
    );
}

#[tokio::test]
async fn records_go_to_partitions_by_key_and_keep_their_order_there() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("wide", 4).await;
    let records: Vec<v1::Record> =
        (0..200).map(|i| keyed(format!("key{}", i % 20), format!("{i}"))).collect();
    let request = v1::AppendRequest {
        stream: "wide".into(),
        partition: None,
        records: records.clone(),
        ..Default::default()
    };
    let answer = client.stream.append(request).await.unwrap().into_inner();
    assert_eq!(answer.partition_of_record.len(), 200);
    assert_eq!(answer.parts.iter().map(|part| part.count).sum::<u32>(), 200);
    assert!(answer.parts.iter().all(|part| part.error.is_none()));
    assert!(answer.parts.len() > 1, "20 keys are on several of 4 partitions");

    for part in &answer.parts {
        let sent: Vec<&v1::Record> = records
            .iter()
            .zip(&answer.partition_of_record)
            .filter_map(|(record, at)| (*at == part.partition).then_some(record))
            .collect();
        let read = client.read_from("wide", part.partition, part.base_offset).await;
        assert_eq!(read.iter().map(|(_, record)| record).collect::<Vec<_>>(), sent);
    }
    // A key's partition never changes, and the hash is documented.
    for (record, at) in records.iter().zip(&answer.partition_of_record) {
        let key = record.key.as_ref().unwrap();
        assert_eq!(u64::from(*at), xxhash_rust::xxh3::xxh3_64(key) % 4);
    }
}

#[tokio::test]
async fn a_named_partition_gets_the_records_and_status_counts_them() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("wide", 3).await;
    for (partition, count) in [(0, 1), (2, 5)] {
        let records = (0..count).map(|i| keyed("same", format!("{i}"))).collect();
        let request = v1::AppendRequest {
            stream: "wide".into(),
            partition: Some(partition),
            records,
            ..Default::default()
        };
        let answer = client.stream.append(request).await.unwrap().into_inner();
        assert_eq!((answer.partition, answer.base_offset, answer.count), (partition, 0, count));
    }
    let status = async |partitions| {
        let request = v1::StreamStatusRequest { stream: "wide".into(), partitions };
        client.stream.clone().status(request).await.map(|answer| answer.into_inner().partitions)
    };
    let all = status(vec![]).await.unwrap();
    assert_eq!(
        all.iter().map(|p| (p.partition, p.next_offset)).collect::<Vec<_>>(),
        [(0, 1), (1, 0), (2, 5)]
    );
    assert!(all[1].bytes == 0 && all[2].bytes > all[0].bytes);
    let some = status(vec![2, 0]).await.unwrap();
    assert_eq!(some.iter().map(|p| p.partition).collect::<Vec<_>>(), [2, 0]);
    refused(status(vec![3]).await, Code::InvalidArgument, "NO_SUCH_PARTITION");
    let far = v1::AppendRequest {
        stream: "wide".into(),
        partition: Some(3),
        records: vec![record("x")],
        ..Default::default()
    };
    refused(client.stream.append(far).await, Code::InvalidArgument, "NO_SUCH_PARTITION");
}

#[tokio::test]
async fn gzip_requests_are_read_from_a_client_that_would_take_gzip_back() {
    use tonic::codec::CompressionEncoding::Gzip;
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.stream = client.stream.send_compressed(Gzip).accept_compressed(Gzip);
    client.kv = client.kv.send_compressed(Gzip).accept_compressed(Gzip);
    let values: Vec<String> = (0..2000).map(|i| format!("value {i} {}", "x".repeat(200))).collect();
    client.append("logs", values.clone()).await.unwrap();
    assert_eq!(client.values("logs").await, values);
    client.set("store", "k", "v".repeat(100_000)).await.unwrap();
    assert_eq!(client.get("store", "k").await.unwrap().len(), 100_000);
}

#[tokio::test]
async fn records_without_a_key_stay_together_and_batches_take_turns() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("wide", 4).await;
    let mut batches = [0; 4];
    for batch in 0..8 {
        let records = (0..10).map(|i| record(format!("{batch}-{i}"))).collect();
        let request = v1::AppendRequest { stream: "wide".into(), records, ..Default::default() };
        let answer = client.stream.append(request).await.unwrap().into_inner();
        let partition = answer.parts.first().map_or(answer.partition, |part| part.partition);
        assert!(answer.parts.len() <= 1 && answer.partition_of_record.iter().all(|at| *at == partition));
        let read = client.read_from("wide", partition, batches[partition as usize] * 10).await;
        let values: Vec<_> = read.iter().map(|(_, record)| record.value.clone()).collect();
        assert_eq!(values, (0..10).map(|i| format!("{batch}-{i}")).collect::<Vec<_>>());
        batches[partition as usize] += 1;
    }
    assert_eq!(batches, [2, 2, 2, 2], "batches of one connection go to all partitions in turn");
}
