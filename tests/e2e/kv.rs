//! Key-value stores: conditions, versions, TTL, scans.

use std::collections::BTreeMap;

use bytes::Bytes;
use flowmesh_proto::v1;
use flowmesh_proto::v1::set_entry::{Condition, Ttl};
use tonic::Code;

use crate::common::client::entry;
use crate::common::{Client, Home, Random, eventually, now_ms, refused};

fn deleting(store: &str, keys: &[&'static str], if_version: Option<u64>) -> v1::DeleteRequest {
    v1::DeleteRequest {
        store: store.into(),
        keys: keys.iter().map(|key| Bytes::from_static(key.as_bytes())).collect(),
        if_version,
    }
}

async fn gone(client: &Client, store: &'static str, key: &'static str) {
    eventually("the key is gone", || {
        let mut client = client.clone();
        async move { client.get(store, key).await.is_none().then_some(()) }
    })
    .await;
}

#[tokio::test]
async fn a_key_is_set_read_overwritten_and_deleted() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let first = client.set("users", "ada", "1").await.unwrap();
    let second = client.set("users", "ada", "2").await.unwrap();
    assert!(second > first, "versions grow");
    let got = client.entry("users", "ada").await.unwrap().unwrap();
    assert_eq!((got.value.as_ref(), got.version, got.expires_at_ms), (&b"2"[..], second, None));
    assert_eq!(client.get("users", "bob").await, None);

    let keys = vec![Bytes::from("ada"), Bytes::from("bob")];
    let exists = v1::ExistsRequest { store: "users".into(), keys };
    assert_eq!(client.kv.exists(exists).await.unwrap().into_inner().exists, [true, false]);
    let deleted =
        client.kv.delete(deleting("users", &["ada", "bob", "ada"], None)).await.unwrap().into_inner();
    assert_eq!(deleted.deleted, [true, false, false]);
    assert_eq!(client.get("users", "ada").await, None);
    assert!(client.set("users", "ada", "3").await.unwrap() > second, "and grow on after a delete");
}

#[tokio::test]
async fn several_keys_in_one_call_are_answered_in_order() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let entries: Vec<v1::SetEntry> =
        (0..1000).map(|i| entry(format!("key{i}"), format!("value{i}"))).collect();
    let outcomes =
        client.kv.set(v1::SetRequest { store: "many".into(), entries }).await.unwrap().into_inner().outcomes;
    assert!(outcomes.len() == 1000 && outcomes.iter().all(|outcome| outcome.error.is_none()));
    let keys = (0..1000).rev().step_by(3).map(|i| Bytes::from(format!("key{i}"))).collect();
    let got = client
        .kv
        .get(v1::GetRequest { store: "many".into(), keys, as_of: None })
        .await
        .unwrap()
        .into_inner()
        .entries;
    for (i, entry) in (0..1000).rev().step_by(3).zip(&got) {
        assert_eq!(entry.value, format!("value{i}"));
    }
}

#[tokio::test]
async fn a_key_is_set_only_if_its_condition_holds() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let mut set = async |value: &'static str, condition| {
        let entry = v1::SetEntry { condition: Some(condition), ..entry("k", value) };
        let outcome = client.set_entry("store", entry).await.unwrap();
        outcome.error.map_or(Ok(outcome.version), |error| Err((error.code, error.reason)))
    };
    let fails = Err((Code::FailedPrecondition as i32, "CONDITION_FAILED".to_owned()));
    assert_eq!(set("0", Condition::IfPresent(true)).await, fails);
    assert_eq!(set("0", Condition::IfVersion(1)).await, fails);
    let first = set("1", Condition::IfAbsent(true)).await.unwrap();
    assert_eq!(set("2", Condition::IfAbsent(true)).await, fails);
    let second = set("3", Condition::IfVersion(first)).await.unwrap();
    assert_eq!(set("4", Condition::IfVersion(first)).await, fails, "as of two clients with one version");
    let third = set("5", Condition::IfPresent(true)).await.unwrap();
    assert_eq!(client.get("store", "k").await.unwrap(), "5");

    let stale = client.kv.delete(deleting("store", &["k"], Some(second))).await;
    refused(stale, Code::FailedPrecondition, "CONDITION_FAILED");
    let fresh = client.kv.delete(deleting("store", &["k"], Some(third))).await.unwrap().into_inner();
    assert_eq!(fresh.deleted, [true]);
}

#[tokio::test]
async fn of_many_clients_that_want_one_key_exactly_one_gets_it() {
    let home = Home::new();
    let server = home.start();
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..16 {
        let mut client = server.client().await;
        clients.spawn(async move {
            let entry = v1::SetEntry {
                condition: Some(Condition::IfAbsent(true)),
                ..entry("lock", number.to_string())
            };
            client.set_entry("locks", entry).await.unwrap().error.is_none().then_some(number)
        });
    }
    let winners: Vec<i32> = clients.join_all().await.into_iter().flatten().collect();
    let [winner] = winners.as_slice() else { panic!("one winner: {winners:?}") };
    assert_eq!(server.client().await.get("locks", "lock").await.unwrap(), winner.to_string());
}

#[tokio::test]
async fn a_key_lives_as_long_as_its_ttl() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let with = |key: &'static str, ttl| v1::SetEntry { ttl, ..entry(key, "v") };
    let before = now_ms();
    for short in [with("short", Some(Ttl::TtlMs(400))), with("kept", Some(Ttl::TtlMs(600_000)))] {
        assert_eq!(client.set_entry("store", short).await.unwrap().error, None);
    }
    let expires = async |mut client: Client, key: &'static str| {
        client.entry("store", key).await.unwrap().and_then(|entry| entry.expires_at_ms)
    };
    let end = expires(client.clone(), "kept").await.unwrap();
    assert!((before + 600_000..=now_ms() + 600_000).contains(&end));
    client.set_entry("store", with("kept", Some(Ttl::KeepTtl(true)))).await.unwrap();
    assert_eq!(expires(client.clone(), "kept").await, Some(end));
    client.set("store", "kept", "w").await.unwrap();
    assert_eq!(expires(client.clone(), "kept").await, None, "a plain set is for ever");

    gone(&client, "store", "short").await;
    assert!(now_ms() >= before + 400, "and not shorter");
    let keys: Vec<Bytes> = client.scan("store", b"", 0).await.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, ["kept"], "what expired is in no scan");
    let free = v1::SetEntry { condition: Some(Condition::IfAbsent(true)), ..entry("short", "again") };
    assert_eq!(client.set_entry("store", free).await.unwrap().error, None, "an expired key is absent");
}

#[tokio::test]
async fn a_store_has_a_default_ttl() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let settings = v1::KvSettings { default_ttl_ms: Some(300), ..v1::KvSettings::default() };
    client.create("cache", v1::settings::Kind::Kv(settings)).await.unwrap();
    client.set("cache", "k", "v").await.unwrap();
    let own = v1::SetEntry { ttl: Some(Ttl::TtlMs(600_000)), ..entry("own", "v") };
    client.set_entry("cache", own).await.unwrap();
    gone(&client, "cache", "k").await;
    assert!(client.get("cache", "own").await.is_some());
}

#[tokio::test]
async fn a_scan_shows_every_key_of_the_prefix_once_in_order() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let mut random = Random::new("a_scan_shows_every_key");
    let mut model = BTreeMap::new();
    let mut entries = Vec::new();
    for i in 0..2000u64 {
        let prefix = [&b"a/"[..], b"b/", b"\xFF", b""][random.below(4) as usize];
        let key = [prefix, &random.below(1000).to_be_bytes()[5..]].concat();
        model.insert(key.clone(), i.to_string());
        entries.push(entry(key, i.to_string()));
    }
    for chunk in entries.chunks(500) {
        client.kv.set(v1::SetRequest { store: "s".into(), entries: chunk.to_vec() }).await.unwrap();
    }
    for prefix in [&b""[..], b"a/", b"\xFF", b"nothing"] {
        for page in [0, 7, 1000] {
            let got: Vec<(Bytes, Bytes)> =
                client.scan("s", prefix, page).await.into_iter().map(|e| (e.key, e.value)).collect();
            let expected: Vec<(Bytes, Bytes)> = model
                .iter()
                .filter(|(key, _)| key.starts_with(prefix))
                .map(|(key, value)| (Bytes::from(key.clone()), Bytes::from(value.clone())))
                .collect();
            assert_eq!(got, expected, "prefix {prefix:?}, pages of {page}");
        }
    }
    let keys_only = v1::ScanRequest { store: "s".into(), keys_only: true, ..v1::ScanRequest::default() };
    let keys = client.kv.scan(keys_only).await.unwrap().into_inner().entries;
    assert!(!keys.is_empty() && keys.iter().all(|entry| entry.value.is_empty() && entry.version > 0));
}

/// Over the keys of two shards, page by page.
#[tokio::test]
async fn a_scan_goes_over_a_range_and_back_and_by_a_glob() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    let all: Vec<String> = (0..300).map(|i| format!("user:{i:03}")).collect();
    let entries = all.iter().map(|key| entry(key.clone(), "v")).collect();
    client.kv.set(v1::SetRequest { store: "s".into(), entries }).await.unwrap();
    let bytes = |text: &str| Some(Bytes::copy_from_slice(text.as_bytes()));
    let ranges = [
        (None, None, None),
        (bytes("user:100"), bytes("user:201"), None),
        (None, bytes("user:05"), bytes("user:?[0-4]*")),
        (bytes("user:2"), None, bytes("*7")),
        (bytes("user:9"), bytes("user:1"), None),
    ];
    for (start, end, glob) in ranges {
        for reverse in [false, true] {
            let in_range = |key: &&String| {
                start.as_ref().is_none_or(|start| key.as_bytes() >= &start[..])
                    && end.as_ref().is_none_or(|end| key.as_bytes() < &end[..])
                    && match glob.as_deref() {
                        Some(b"*7") => key.ends_with('7'),
                        Some(_) => (b'0'..=b'4').contains(&key.as_bytes()[6]),
                        None => true,
                    }
            };
            let mut expected: Vec<String> = all.iter().filter(in_range).cloned().collect();
            if reverse {
                expected.reverse();
            }
            let (mut got, mut after) = (Vec::new(), None);
            loop {
                let request = v1::ScanRequest {
                    store: "s".into(),
                    prefix: Bytes::from_static(b"user:"),
                    start: start.clone(),
                    end: end.clone(),
                    glob: glob.clone(),
                    reverse,
                    after,
                    limit: 17,
                    keys_only: true,
                    as_of: None,
                };
                let page = client.kv.scan(request).await.unwrap().into_inner();
                got.extend(page.entries.iter().map(|entry| String::from_utf8(entry.key.to_vec()).unwrap()));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(got, expected, "{start:?} {end:?} {glob:?} {reverse}");
        }
    }
    let foreign = v1::ScanRequest {
        store: "s".into(),
        prefix: Bytes::from_static(b"user:"),
        after: bytes("other"),
        ..v1::ScanRequest::default()
    };
    refused(client.kv.scan(foreign).await, Code::InvalidArgument, "FOREIGN_CURSOR");
}

#[tokio::test]
async fn large_values_are_scanned_in_bounded_pages() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    for i in 0..12 {
        client.set("big", format!("k{i:02}"), vec![i as u8; 1 << 20]).await.unwrap();
    }
    let entries = client.scan("big", b"", 0).await;
    assert_eq!(entries.len(), 12);
    assert!(entries.iter().enumerate().all(|(i, e)| e.value.len() == 1 << 20 && e.value[0] == i as u8));
}

#[tokio::test]
async fn reading_a_store_that_is_not_there_creates_none() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    refused(client.entry("none", "k").await, Code::NotFound, "RESOURCE_NOT_FOUND");
    refused(client.kv.delete(deleting("none", &["k"], None)).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    refused(
        client.kv.scan(v1::ScanRequest { store: "none".into(), ..v1::ScanRequest::default() }).await,
        Code::NotFound,
        "RESOURCE_NOT_FOUND",
    );
}
