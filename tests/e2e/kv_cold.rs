//! Stores that are larger than the memory there is for them.

use std::collections::BTreeMap;

use bytes::Bytes;
use flowmesh_proto::v1;
use v1::operation::Action;

use crate::common::client::entry;
use crate::common::kv::on;
use crate::common::random::Random;
use crate::common::{Client, Home, Server};

const MEMORY_BYTES: usize = 64 << 20;

/// What the process takes besides what it keeps: buffers of the log, tables of the index, the allocator's share.
const BESIDE_BYTES: u64 = 256 << 20;

const VALUE_BYTES: usize = 2 << 10;

/// Values of one call, within what a reply carries.
const AT_ONCE: usize = 1000;

type Model = BTreeMap<String, Bytes>;

async fn check(client: &mut Client, model: &Model) {
    let keys: Vec<&String> = model.keys().collect();
    for keys in keys.chunks(AT_ONCE) {
        let get = v1::GetRequest {
            store: "s".into(),
            keys: keys.iter().map(|key| Bytes::from(key.to_string())).collect(),
            as_of: None,
        };
        let found = client.kv.get(get).await.unwrap().into_inner().entries;
        assert_eq!(found.len(), keys.len());
        for (key, found) in keys.iter().zip(found) {
            assert!(found.found && found.value == model[*key], "{key}");
        }
    }
}

fn check_memory(server: &Server, model: &Model) {
    let held: usize = model.values().map(Bytes::len).sum();
    let kept = server.metric("flowmesh_memory_bytes", "").unwrap();
    assert!(kept <= MEMORY_BYTES as f64, "{kept} bytes of memory");
    assert!(held > 4 * MEMORY_BYTES, "{held} bytes of values");
    let rss = server.rss_bytes();
    println!("{held} bytes of values, {kept} in memory by the server's word, {rss} of the process");
    assert!(rss < MEMORY_BYTES as u64 + BESIDE_BYTES, "the process has {rss} bytes for {held} of values");
}

#[tokio::test]
async fn a_store_four_times_as_large_as_memory_is_read_back_through_kills() {
    let mut random = Random::new("a_store_four_times");
    let home = Home::new().set("memory_bytes", "64MiB").set("checkpoint_interval_ms", "200ms");
    let mut model = Model::new();
    for round in 1..=5 {
        let server = home.start();
        let mut client = server.client().await;
        while model.values().map(Bytes::len).sum::<usize>() < round * MEMORY_BYTES * 9 / 10 {
            let batch: Vec<(String, Bytes)> = (0..AT_ONCE)
                .map(|_| (format!("key-{:012}", random.below(1 << 40)), random.bytes(VALUE_BYTES).into()))
                .collect();
            let entries = batch.iter().map(|(key, value)| entry(key.clone(), value.clone()));
            let set = v1::SetRequest { store: "s".into(), entries: entries.collect() };
            client.kv.set(set).await.unwrap();
            model.extend(batch);
        }
        // Values that were cold, and are in the log alone when the server is killed.
        let keys: Vec<String> = model.keys().take(20).cloned().collect();
        for key in &keys {
            let append = v1::BytesAppend { value: Bytes::from_static(b"+more") };
            client.operate("s", vec![on(key.clone(), Action::Append(append))], true).await.unwrap();
            let value = model.get_mut(key).unwrap();
            *value = [&value[..], b"+more"].concat().into();
        }
        if round == 5 {
            check(&mut client, &model).await;
            check_memory(&server, &model);
        }
        server.kill9();
    }
    let server = home.start();
    let mut client = server.client().await;
    check(&mut client, &model).await;
    check_memory(&server, &model);
    for (metric, least) in [
        ("flowmesh_cold_value_waits_total", 10.0),
        ("flowmesh_cold_values_read_total", 100.0),
        ("flowmesh_kv_cold_entries", 100.0),
        ("flowmesh_kv_cold_bytes", 2.0 * MEMORY_BYTES as f64),
    ] {
        let found = server.metric(metric, "");
        assert!(found.is_some_and(|found| found > least), "{metric} is {found:?}");
    }
    let first = model.keys().next().unwrap().clone();
    let scanned = client.scan("s", b"key-", 1000).await;
    assert_eq!(scanned.len(), model.len());
    assert!(scanned.iter().all(|entry| model.contains_key(std::str::from_utf8(&entry.key).unwrap())));
    let deleted =
        v1::DeleteRequest { store: "s".into(), keys: vec![first.clone().into()], ..Default::default() };
    client.kv.delete(deleted).await.unwrap();
    assert_eq!(client.get("s", first).await, None);
    server.stop();
}

/// Values of a store with a history and a feed that has what was before.
const KEPT_BYTES: usize = 16 << 10;

#[tokio::test]
async fn what_left_memory_is_in_history_and_feed_as_it_was() {
    let mut random = Random::new("what_left_memory");
    let home = Home::new().set("memory_bytes", "64MiB").set("checkpoint_interval_ms", "200ms");
    let server = home.start();
    let mut client = server.client().await;
    let feed =
        v1::FeedSettings { stream: "changes".into(), old_values: Some(true), ..v1::FeedSettings::default() };
    let settings =
        v1::KvSettings { history_ms: Some(3_600_000), feed: Some(feed), ..v1::KvSettings::default() };
    client.create("kept", v1::settings::Kind::Kv(settings)).await.unwrap();
    let name = |number: usize| format!("key-{number:05}");
    let mut first = Model::new();
    // Three times the memory, then others in their place: what was before is cold mostly.
    let keys = 3 * MEMORY_BYTES / KEPT_BYTES;
    let mut version = 0;
    for round in 0..2 {
        for numbers in (0..keys).collect::<Vec<_>>().chunks(64) {
            let batch: Vec<(String, Bytes)> =
                numbers.iter().map(|number| (name(*number), random.bytes(KEPT_BYTES).into())).collect();
            let entries = batch.iter().map(|(key, value)| entry(key.clone(), value.clone()));
            let set = v1::SetRequest { store: "kept".into(), entries: entries.collect() };
            let set = client.kv.set(set).await.unwrap().into_inner();
            if round == 0 {
                first.extend(batch);
                version = version.max(set.outcomes.iter().map(|outcome| outcome.version).max().unwrap());
            }
        }
    }
    let cold = server.metric("flowmesh_kv_cold_entries", "").unwrap();
    assert!(cold > 100.0, "{cold} keys are cold");
    server.kill9();
    let server = home.start();
    let mut client = server.client().await;
    let names: Vec<&String> = first.keys().collect();
    for names in names.chunks(100) {
        let get = v1::GetRequest {
            store: "kept".into(),
            keys: names.iter().map(|name| Bytes::from(name.to_string())).collect(),
            as_of: Some(v1::get_request::AsOf::AtVersion(version)),
        };
        let found = client.kv.get(get).await.unwrap().into_inner().entries;
        for (name, found) in names.iter().zip(found) {
            assert!(found.found && found.value == first[*name], "{name}");
        }
    }
    server.stop();
}
