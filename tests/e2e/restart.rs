//! Checkpoints: a restart brings back everything, the log stays bounded, memory mode has no files.

use std::fs;

use bytes::Bytes;
use flowmesh_proto::v1;

use crate::common::client::entry;
use crate::common::server::disk_bytes;
use crate::common::{Client, Home, Random, Server, eventually};

const MIB: u64 = 1 << 20;

/// Everything of all three kinds that a client can see, as text, to be compared.
async fn dump(client: &mut Client) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for partition in 0..3 {
        for (offset, record) in client.read_from("wide", partition, 0).await {
            writeln!(out, "wide {partition} {offset} {:?} {:?}", record.key, record.value).unwrap();
        }
    }
    for entry in client.scan("store", b"", 0).await {
        writeln!(out, "store {:?} {:?} {} {:?}", entry.key, entry.value, entry.version, entry.expires_at_ms)
            .unwrap();
    }
    let status = client.queue_status("mail").await;
    // What was of late begins anew with a start.
    let (rates, wait_ms, run_ms) = (None, None, None);
    let status = v1::QueueStatusResponse { oldest_ready_ms: 0, rates, wait_ms, run_ms, ..status };
    writeln!(out, "mail {status:?}").unwrap();
    let list = client.admin.list_resources(v1::ListResourcesRequest::default()).await.unwrap().into_inner();
    writeln!(out, "{:?}", list.resources).unwrap();
    out
}

/// Writes some of everything.
async fn fill(client: &mut Client, random: &mut Random) {
    for _ in 0..30 {
        let records = (0..20)
            .map(|_| {
                let (key, len) = (random.below(50), random.below(300) as usize);
                crate::common::client::keyed(format!("key{key}"), random.bytes(len))
            })
            .collect();
        let append =
            v1::AppendRequest { stream: "wide".into(), partition: None, records, ..Default::default() };
        client.stream.append(append).await.unwrap();
        let entries =
            (0..20).map(|_| entry(format!("key{}", random.below(300)), random.next().to_string())).collect();
        client.kv.set(v1::SetRequest { store: "store".into(), entries }).await.unwrap();
        let gone = Bytes::from(format!("key{}", random.below(300)));
        client
            .kv
            .delete(v1::DeleteRequest { store: "store".into(), keys: vec![gone], if_version: None })
            .await
            .unwrap();
        client.enqueue("mail", (0..10).map(|i| i.to_string())).await.unwrap();
        let jobs = client.reserve("mail", 5, 3_600_000, 0).await.unwrap();
        client.ack("mail", &jobs[..3]).await;
        client.nack("mail", &jobs[3], Some(3_600_000)).await;
    }
}

async fn checkpointed(server: &Server, since: f64) -> f64 {
    eventually("a checkpoint", || async {
        let count = server.metric("flowmesh_checkpoint_duration_seconds_count", "")?;
        (count > since).then_some(count)
    })
    .await
}

#[tokio::test]
async fn everything_is_there_after_a_kill_with_and_without_checkpoints() {
    let mut random = Random::new("everything_is_there");
    for interval in ["1h", "100ms"] {
        let home = Home::new().shards(2).set("checkpoint_interval_ms", interval);
        let mut before = String::new();
        for round in 0..3 {
            let server = home.start();
            let mut client = server.client().await;
            if round == 0 {
                client.create_stream("wide", 3).await;
            } else {
                assert_eq!(dump(&mut client).await, before, "round {round}, checkpoints every {interval}");
            }
            fill(&mut client, &mut random).await;
            before = dump(&mut client).await;
            server.kill9();
        }
    }
}

#[tokio::test]
async fn everything_is_there_after_a_graceful_stop_with_nothing_to_replay() {
    let mut random = Random::new("a_graceful_stop");
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("wide", 3).await;
    fill(&mut client, &mut random).await;
    let before = dump(&mut client).await;
    server.stop();
    let server = home.start();
    assert_eq!(dump(&mut server.client().await).await, before);
    assert_eq!(server.metric("flowmesh_recovered_facts_total", ""), Some(0.0), "a stop checkpoints");
}

#[tokio::test]
async fn the_log_does_not_grow_with_history() {
    let home = Home::new().set("log_bytes_max", "64MiB").set("checkpoint_interval_ms", "200ms");
    let server = home.start();
    let mut client = server.client().await;
    // 300 MiB of writes, all on the same ten keys: what is live is 10 MiB.
    for i in 0..300u64 {
        let value = vec![i as u8; MIB as usize];
        eventually("the write is taken", || {
            let (mut client, value) = (client.clone(), value.clone());
            async move { client.set("store", format!("key{}", i % 10), value).await.ok() }
        })
        .await;
    }
    let log = disk_bytes(&home.shard_dir(0).join("log"));
    assert!(log <= 64 * MIB + 48 * MIB, "{} MiB of log after 300 MiB of writes", log / MIB);
    let since = server.metric("flowmesh_checkpoint_duration_seconds_count", "").unwrap();
    client.set("store", "last", "x").await.unwrap();
    checkpointed(&server, since).await;
    server.kill9();
    let server = home.start();
    let replayed = server.metric("flowmesh_recovered_facts_total", "").unwrap();
    assert!(replayed < 200.0, "{replayed} facts replayed of more than 300");
    let mut client = server.client().await;
    for i in 290..300u64 {
        assert!(client.get("store", format!("key{}", i % 10)).await.unwrap()[0] == i as u8);
    }
}

#[tokio::test]
async fn log_and_disk_shrink_although_an_old_job_is_never_acknowledged() {
    const LONG_MS: u64 = 3_600_000;
    let home = Home::new().set("log_bytes_max", "64MiB").set("checkpoint_interval_ms", "200ms");
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", ["old"]).await.unwrap();
    let old = client.reserve("mail", 1, LONG_MS, 0).await.unwrap().remove(0);
    let mut random = Random::new("log_and_disk_shrink");
    // 400 MiB of jobs, of which at most 16 MiB are there at a time: long enough for checkpoints to write them.
    for i in 0..400 {
        let payload = random.bytes(MIB as usize);
        eventually("the job is taken", || {
            let (mut client, payload) = (client.clone(), payload.clone());
            async move { client.enqueue("mail", [payload]).await.ok() }
        })
        .await;
        if i >= 16 {
            let jobs = client.reserve("mail", 1, LONG_MS, 0).await.unwrap();
            assert_eq!(client.ack("mail", &jobs).await, [None]);
        }
    }
    let shard = home.shard_dir(0);
    let log = disk_bytes(&shard.join("log"));
    assert!(log <= 64 * MIB + 48 * MIB, "{} MiB of log after 400 MiB of jobs", log / MIB);
    while let Some(job) = client.reserve("mail", 1, LONG_MS, 0).await.unwrap().pop() {
        assert_eq!(client.ack("mail", &[job]).await, [None]);
    }
    // What the index keeps of them is bounded by its journal and by tables that are too small to be worth compacting.
    let index = || disk_bytes(&shard) - disk_bytes(&shard.join("log"));
    eventually("the disk has its space back", || async { (index() <= 200 * MIB).then_some(()) }).await;
    server.kill9();
    let server = home.start();
    let mut client = server.client().await;
    let status = client.queue_status("mail").await;
    assert_eq!((status.leased, status.ready, status.done_total), (1, 0, 400));
    assert_eq!(client.ack("mail", &[old]).await, [None], "the lease is as good as on its first day");
}

#[tokio::test]
async fn records_that_left_the_log_are_read_from_segment_files() {
    let home = Home::new()
        .set("log_bytes_max", "64MiB")
        .set("checkpoint_interval_ms", "200ms")
        .set("memory_bytes", "64MiB");
    let server = home.start();
    let client = server.client().await;
    let mut random = Random::new("records_that_left_the_log");
    let mut sums = Vec::new();
    for _ in 0..200 {
        let value = random.bytes(MIB as usize);
        sums.push(crc32c::crc32c(&value));
        eventually("the append is taken", || {
            let (mut client, value) = (client.clone(), value.clone());
            async move { client.append("logs", [value]).await.ok() }
        })
        .await;
    }
    let check = async |mut client: Client| {
        let read: Vec<u32> = client.values("logs").await.iter().map(|value| crc32c::crc32c(value)).collect();
        assert!(read == sums, "{} records, all as they were sent", read.len());
    };
    check(client).await;
    assert!(server.rss_bytes() < 300 * MIB, "{} MiB resident", server.rss_bytes() / MIB);
    server.kill9();
    let server = home.start();
    check(server.client().await).await;
}

#[tokio::test]
async fn a_deleted_resource_gives_its_space_back() {
    let home = Home::new().set("log_bytes_max", "64MiB").set("checkpoint_interval_ms", "200ms");
    let server = home.start();
    let mut client = server.client().await;
    for _ in 0..100 {
        eventually("the append is taken", || {
            let mut client = client.clone();
            async move { client.append("logs", [vec![7u8; MIB as usize]]).await.ok() }
        })
        .await;
    }
    let streams = home.shard_dir(0).join("streams");
    eventually("the records are in segment files", || async {
        (disk_bytes(&streams) > 30 * MIB).then_some(())
    })
    .await;
    let delete = v1::DeleteResourceRequest { kind: v1::Kind::Stream as i32, name: "logs".into() };
    client.admin.delete_resource(delete).await.unwrap();
    eventually("the segment files are gone", || async { (disk_bytes(&streams) < MIB).then_some(()) }).await;
    server.kill9();
    let server = home.start();
    let list = server.client().await.admin.list_resources(v1::ListResourcesRequest::default()).await.unwrap();
    assert!(list.into_inner().resources.is_empty());
}

#[tokio::test]
async fn memory_mode_serves_everything_and_makes_no_files() {
    let home = Home::new().shards(2).set("durability", "memory");
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("wide", 3).await;
    let mut random = Random::new("memory_mode");
    fill(&mut client, &mut random).await;
    dump(&mut client).await;
    assert!(!home.data_dir().exists() || fs::read_dir(home.data_dir()).unwrap().next().is_none());
    server.stop();
    let server = home.start();
    let list = server.client().await.admin.list_resources(v1::ListResourcesRequest::default()).await.unwrap();
    assert!(list.into_inner().resources.is_empty(), "and forgets everything");
}

#[tokio::test]
async fn a_resource_has_a_durability_of_its_own() {
    let home = Home::new().set("durability", "never").set("checkpoint_interval_ms", "1h");
    let server = home.start();
    let mut client = server.client().await;
    let settings = v1::StreamSettings {
        durability: Some(v1::Durability::Always as i32),
        ..v1::StreamSettings::default()
    };
    client.create("careful", v1::settings::Kind::Stream(settings)).await.unwrap();
    let synced = |server: &Server| server.metric("flowmesh_synced_lsn", "").unwrap();
    let written = |server: &Server| server.metric("flowmesh_log_entries_total", "").unwrap();
    client.append("careless", ["x"]).await.unwrap();
    let before = synced(&server);
    for _ in 0..20 {
        client.append("careless", ["x"]).await.unwrap();
    }
    assert_eq!(synced(&server), before, "nobody waited for a sync");
    client.append("careful", ["x"]).await.unwrap();
    assert_eq!(synced(&server), written(&server), "acknowledged means on disk");
}
