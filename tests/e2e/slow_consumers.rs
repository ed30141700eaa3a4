//! A consumer that stops reading holds back only itself.

use flowmesh_proto::v1;
use flowmesh_proto::v1::filter_condition::Condition;
use tonic::Streaming;

use crate::common::client::keyed;
use crate::common::{Client, Home, Random, eventually, within};

const MIB: u64 = 1 << 20;
const RECORDS: u64 = 160;

async fn subscribe(client: &mut Client, filter: Option<v1::Filter>) -> Streaming<v1::RecordBatch> {
    let request = v1::SubscribeRequest { stream: "logs".into(), filter, ..v1::SubscribeRequest::default() };
    within("the call opens", client.stream.subscribe(request)).await.unwrap().into_inner()
}

/// Checksums of the next `count` records, which follow each other from `from` on.
async fn take(batches: &mut Streaming<v1::RecordBatch>, from: u64, count: u64) -> Vec<u32> {
    let mut sums = Vec::new();
    while (sums.len() as u64) < count {
        let batch = within("a batch", batches.message()).await.unwrap().unwrap();
        assert_eq!(batch.base_offset, from + sums.len() as u64, "without a gap");
        sums.extend(batch.records.iter().map(|record| crc32c::crc32c(&record.value)));
    }
    sums
}

/// 160 MiB go by a consumer that does not read, on one core, with a memory budget of 64 MiB.
async fn pass_by(name: &'static str, filter: Option<v1::Filter>) {
    let home = Home::new()
        .shards(1)
        .set("log_bytes_max", "64MiB")
        .set("checkpoint_interval_ms", "200ms")
        .set("memory_bytes", "64MiB");
    let server = home.start();
    let mut client = server.client().await;
    let mut random = Random::new(name);
    let mut append = async |client: &Client, sums: &mut Vec<u32>| {
        let value = random.bytes(MIB as usize);
        sums.push(crc32c::crc32c(&value));
        eventually("the append is taken", || {
            let (mut client, value) = (client.clone(), value.clone());
            let records = vec![keyed("k", value)];
            let request =
                v1::AppendRequest { stream: "logs".into(), records, ..v1::AppendRequest::default() };
            async move { client.stream.append(request).await.ok() }
        })
        .await;
    };
    let mut sums = Vec::new();
    append(&client, &mut sums).await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut client = server.client().await;
        let mut batches = subscribe(&mut client, filter.clone()).await;
        assert_eq!(take(&mut batches, 0, 1).await, sums);
        slow.push((client, batches));
    }
    let mut quick = subscribe(&mut server.client().await, filter).await;
    assert_eq!(take(&mut quick, 0, 1).await, sums);
    let mut peak = 0;
    while (sums.len() as u64) < RECORDS {
        append(&client, &mut sums).await;
        let last = sums.len() - 1;
        assert_eq!(take(&mut quick, last as u64, 1).await, [sums[last]], "the quick one has it at once");
        client.set("store", "key", "value").await.unwrap();
        peak = peak.max(server.rss_bytes());
    }
    println!("{RECORDS} MiB went by, {} MiB resident at most", peak / MIB);
    assert!(peak < 300 * MIB, "{} MiB resident", peak / MIB);
    // Each resumes where it was; what it missed is in segment files by now.
    for (_client, mut batches) in slow {
        let got = take(&mut batches, 1, RECORDS - 1).await;
        assert!(got == sums[1..], "all {} records as they were sent", got.len());
    }
    server.assert_healthy();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_and_other_consumers_go_on_and_it_resumes_where_it_was() {
    pass_by("slow_consumers", None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_filter_too() {
    let key = v1::FilterCondition { condition: Some(Condition::KeyEquals("k".into())) };
    pass_by("slow_consumers_filter", Some(v1::Filter { conditions: vec![key] })).await;
}
