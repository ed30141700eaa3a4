//! Caches keep within their limits, through `kill -9` and with less memory than they may have; full durable stores refuse.

use bytes::Bytes;
use flowmesh_proto::v1::{self, KvMode};
use tonic::Code;

use super::shell::ok;
use crate::common::client::entry;
use crate::common::{Client, Home, Server, eventually, refused};

const STORE: &str = "cart";

fn settings(mode: KvMode, bytes_max: u64, entries_max: u64) -> v1::settings::Kind {
    v1::settings::Kind::Kv(v1::KvSettings {
        mode: Some(mode.into()),
        bytes_max: Some(bytes_max),
        entries_max: Some(entries_max),
        ..v1::KvSettings::default()
    })
}

fn metric(server: &Server, name: &str) -> f64 {
    let label = format!("store=\"{STORE}\"");
    server.metric(&format!("flowmesh_kv_{name}"), &label).unwrap_or(0.0)
}

async fn keys(client: &mut Client) -> Vec<Bytes> {
    client.scan(STORE, b"", 1_000).await.into_iter().map(|entry| entry.key).collect()
}

async fn fill(client: &mut Client, numbers: std::ops::Range<u32>, bytes: usize) {
    let numbers: Vec<u32> = numbers.collect();
    for numbers in numbers.chunks(200) {
        let entries = numbers.iter().map(|n| entry(format!("key-{n:06}"), vec![b'v'; bytes])).collect();
        let request = v1::SetRequest { store: STORE.into(), entries };
        let outcomes = client.kv.set(request).await.unwrap().into_inner().outcomes;
        assert!(outcomes.iter().all(|outcome| outcome.error.is_none()), "a cache refuses nothing");
    }
}

#[tokio::test]
async fn a_cache_keeps_within_its_entries_through_kills() {
    let home = Home::new().shards(2).set("checkpoint_interval_ms", "100ms");
    let mut server = home.start();
    let mut client = server.client().await;
    client.create(STORE, settings(KvMode::Cache, 0, 1_001)).await.unwrap();
    for round in 0..4 {
        fill(&mut client, round * 2_000..(round + 1) * 2_000, 100).await;
        let before = keys(&mut client).await;
        assert!((900..=1_002).contains(&before.len()), "{}: each shard has a half, rounded up", before.len());
        assert_eq!(metric(&server, "entries"), before.len() as f64);
        let came = if round == 0 { 0 } else { 900 };
        assert!(metric(&server, "evicted_total") >= f64::from(came + 2_000 - 1_002));
        let there = client.get(STORE, before[0].clone()).await;
        assert_eq!(there.unwrap().len(), 100);
        server.kill9();
        server = home.start();
        client = server.client().await;
        assert_eq!(keys(&mut client).await, before, "what went stays gone, what stayed is there");
        assert_eq!(metric(&server, "evicted_total"), 0.0);
    }
    // A smaller limit is reached without anyone doing anything.
    let smaller = ok(&server, &home, &format!("flowmesh resources update kv {STORE} --set entries_max=100"));
    assert!(smaller.contains("entries_max") && smaller.contains("cache"), "{smaller}");
    eventually("the cache is as small as it is to be", || async {
        (metric(&server, "entries") == 100.0).then_some(())
    })
    .await;
    assert_eq!(keys(&mut client).await.len(), 100);
}

/// The cache may have more than there is memory: then it loses as much as it gets, and refuses nothing.
#[tokio::test]
async fn a_cache_with_less_memory_than_it_may_have_refuses_nothing() {
    const MIB: u64 = 1 << 20;
    let home = Home::new().set("memory_bytes", "64MiB").set("checkpoint_interval_ms", "100ms");
    let server = home.start();
    let mut client = server.client().await;
    client.create(STORE, settings(KvMode::Cache, 1 << 30, 0)).await.unwrap();
    for round in 0..30 {
        fill(&mut client, round * 1_000..(round + 1) * 1_000, 8_000).await;
        let bytes = server.metric("flowmesh_memory_bytes", "").unwrap();
        assert!(bytes < (70 * MIB) as f64, "{bytes} bytes of state in round {round}");
    }
    assert!(metric(&server, "evicted_total") > 20_000.0);
    assert!(metric(&server, "entries") > 1_000.0, "and it has what there is memory for");
}

#[tokio::test]
async fn a_full_store_refuses_by_name_what_makes_it_larger() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create(STORE, settings(KvMode::Durable, 0, 2)).await.unwrap();
    client.set(STORE, "a", "1").await.unwrap();
    client.set(STORE, "b", "2").await.unwrap();
    let refusal = refused(client.set(STORE, "c", "3").await, Code::ResourceExhausted, "STORE_FULL");
    let said = refusal.message().to_owned();
    assert!(
        said.contains("its entries is 2, it has 2 and would have 3") && said.contains("entries_max"),
        "{said}"
    );
    client.set(STORE, "a", "longer than before").await.unwrap();
    client.redis(STORE, "DEL b").await.unwrap();
    client.redis(STORE, "HSET h f v").await.unwrap();
    let refusal = client.redis(STORE, "SADD s m").await.unwrap_err();
    assert!(refusal.contains("STORE_FULL"), "{refusal}");
    ok(
        &server,
        &home,
        &format!("flowmesh resources update kv {STORE} --set entries_max=0 --set bytes_max=1MiB"),
    );
    client.set(STORE, "c", vec![b'v'; 900_000]).await.unwrap();
    refused(client.set(STORE, "d", vec![b'v'; 200_000]).await, Code::ResourceExhausted, "STORE_FULL");
    client.set(STORE, "c", "3").await.unwrap();
    client.set(STORE, "d", vec![b'v'; 200_000]).await.unwrap();
}
