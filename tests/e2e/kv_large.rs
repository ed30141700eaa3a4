//! Values of stores as large as they may be: through every way in and out, over a kill, and beside others.

use std::time::Duration;

use bytes::Bytes;
use flowmesh_proto::v1::watch_request::Start;
use flowmesh_proto::v1::{self, KvChangeKind as Change};
use tokio::task::JoinSet;
use tonic::Code;
use v1::operation::Action;
use v1::operation_outcome::Result as Shown;

use super::kv_feed::feed;
use super::shell::{fails, ok};
use crate::common::client::{entry, reason};
use crate::common::kv::on;
use crate::common::wire::{GRPC, Wire, frame_of_length, gzip_frame};
use crate::common::{Home, Server, eventually, refused, within};

const MIB: usize = 1024 * 1024;
const LARGEST: usize = 16 * MIB;

/// Bytes that differ with the number, and from place to place.
fn value(number: u64, len: usize) -> Bytes {
    let mut bytes = vec![number as u8; len];
    let mut state = number;
    for byte in bytes.iter_mut().skip(2).step_by(509) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    bytes.into()
}

fn bytes_set(value: Bytes, with_old: bool) -> Action {
    Action::Set(v1::BytesSet { value, ttl: None, with_old })
}

fn shown(outcome: &v1::OperationOutcome) -> &Bytes {
    match &outcome.result {
        Some(Shown::Value(v1::MaybeValue { value: Some(value) })) => value,
        other => panic!("no value: {:?}", other.as_ref().map(std::mem::discriminant)),
    }
}

#[tokio::test]
async fn the_largest_value_survives_a_kill_and_one_more_byte_is_refused() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    let (first, second) = (value(1, LARGEST), value(2, LARGEST));
    client.set("files", "a", first.clone()).await.unwrap();
    // What was there comes back.
    let outcomes =
        client.operate("files", vec![on("a", bytes_set(second.clone(), true))], true).await.unwrap();
    assert!(*shown(&outcomes[0]) == first);
    let outcome = client.set_entry("files", entry("a", value(3, LARGEST + 1))).await;
    let status = refused(outcome, Code::InvalidArgument, "TOO_LARGE");
    assert!(status.message().contains("16777217") && status.message().contains("16777216"), "{status}");
    // Several in one call, on whatever shard they are; read again one by one.
    let many: Vec<_> = (0..5).map(|n| entry(format!("m{n}"), value(n, 3 * MIB))).collect();
    let request = v1::SetRequest { store: "files".into(), entries: many };
    let outcomes = client.kv.set(request).await.unwrap().into_inner().outcomes;
    assert!(outcomes.iter().all(|outcome| outcome.error.is_none()));
    let keys = vec!["m0".into(), "m1".into(), "m2".into(), "m3".into(), "m4".into(), "a".into()];
    let request = v1::GetRequest { store: "files".into(), keys, as_of: None };
    let status = refused(client.kv.get(request).await, Code::InvalidArgument, "TOO_LARGE");
    assert!(status.message().contains("values of one reply"), "{status}");
    server.kill9();

    let server = home.start();
    let mut client = server.client().await;
    assert!(client.get("files", "a").await.unwrap() == second);
    for n in 0..5 {
        assert!(client.get("files", format!("m{n}")).await.unwrap() == value(n, 3 * MIB), "{n}");
    }
    // A page of a scan has at least one.
    let all = client.scan("files", b"", 10).await;
    assert_eq!(all.iter().map(|entry| entry.value.len()).sum::<usize>(), LARGEST + 15 * MIB);
    // From the index.
    server.stop();
    let server = home.start();
    assert!(server.client().await.get("files", "a").await.unwrap() == second);
}

#[tokio::test]
async fn a_kill_in_the_middle_leaves_the_whole_value_or_the_one_before() {
    let home = Home::new();
    for round in 0..6 {
        let server = home.start();
        let mut client = server.client().await;
        if round > 0 {
            let held = client.get("files", "a").await.expect("the first value was acknowledged");
            assert!(*held == value(u64::from(held[1]), held.len()), "round {round}: {} bytes", held.len());
        }
        let number = round + 1;
        if round == 0 {
            client.set("files", "a", value(number, LARGEST)).await.unwrap();
        }
        let mut writer = server.client().await;
        let writing = tokio::spawn(async move {
            let mut written = 0;
            while writer.set("files", "a", value(number, 12 * MIB)).await.is_ok() {
                written += 1;
            }
            written
        });
        tokio::time::sleep(Duration::from_millis(40 + 13 * round)).await;
        server.kill9();
        writing.await.unwrap();
    }
}

#[tokio::test]
async fn what_is_too_large_for_a_message_is_refused_at_its_first_bytes() {
    let home = Home::new();
    let server = home.start();
    let mut wire = Wire::connect(server.grpc_port()).await;
    let lengths = [("Kv/Set", 20 * MIB), ("Kv/Run", 20 * MIB), ("Kv/Get", 4 * MIB)];
    for (method, max) in lengths {
        let body = frame_of_length(0, max as u32 + 1, b"");
        let answer = within("an answer", wire.grpc(method, body)).await;
        assert_eq!(answer.grpc_status, Some(8), "{method}");
        assert!(answer.message.contains(&format!("at most {max}")), "{method}: {}", answer.message);
    }
    // What is compressed may not become more than before.
    let request = v1::SetRequest { store: "s".into(), entries: vec![entry("a", vec![0; 5 * MIB])] };
    let (zipped, body) =
        ([GRPC[0], GRPC[1], ("grpc-encoding", "gzip")], prost::Message::encode_to_vec(&request));
    let answer = wire.call("/flowmesh.v1.Kv/Set", &zipped, gzip_frame(&body)).await.unwrap();
    assert_eq!(answer.grpc_status, Some(8));
    assert!(answer.message.contains("at most 4194304"), "{}", answer.message);
    server.assert_healthy();
}

#[test]
fn a_shell_writes_reads_exports_and_imports_them() {
    let home = Home::new();
    let server = home.start();
    let file = home.scratch().join("large");
    std::fs::write(&file, value(1, LARGEST)).unwrap();
    std::fs::write(home.scratch().join("larger"), value(1, LARGEST + 1)).unwrap();
    std::fs::write(home.scratch().join("text"), "\u{1}".repeat(LARGEST)).unwrap();
    ok(
        &server,
        &home,
        "flowmesh kv set files a --file large
         flowmesh kv get files a -o value | cmp - large
         flowmesh kv set files t --file text
         flowmesh kv export files all.json
         flowmesh kv import copy all.json
         flowmesh kv get copy a -o value | cmp - large
         flowmesh kv get copy t -o value | cmp - text",
    );
    let said = fails(&server, &home, "flowmesh kv set files b --file larger", 1);
    assert!(said.contains("TOO_LARGE") && said.contains("16777216"), "{said}");
}

#[tokio::test]
async fn a_feed_and_a_watch_say_how_large_a_value_is() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create("files", feed("files-changes", 4, Some(true))).await.unwrap();
    let largest = value(1, LARGEST);
    let version = client.set("files", "a", largest.clone()).await.unwrap();
    client.set("files", "a", value(2, MIB)).await.unwrap();
    client.set("files", "a", value(3, MIB + 1)).await.unwrap();
    let request = v1::WatchRequest { store: "files".into(), keys: None, start: Some(Start::Earliest(true)) };
    let mut messages = client.kv.watch(request).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let message = within("a message", messages.message()).await.unwrap().unwrap();
        seen.extend(message.events.into_iter().map(|event| event.change.unwrap()));
    }
    let said = |change: &v1::KvChange| {
        let old = change.old.as_ref().map(|old| (old.value.as_ref().map_or(0, Bytes::len), old.value_bytes));
        (change.kind(), change.value.len(), change.value_bytes, old)
    };
    let large = |bytes: usize| Some(bytes as u64);
    assert_eq!(said(&seen[0]), (Change::Set, 0, large(LARGEST), None));
    assert_eq!(said(&seen[1]), (Change::Set, MIB, None, Some((0, large(LARGEST)))));
    assert_eq!(said(&seen[2]), (Change::Set, 0, large(MIB + 1), Some((MIB, None))));
    assert_eq!(seen[0].version, version);
    // A snapshot says the same.
    let request = v1::WatchRequest { store: "files".into(), keys: None, start: Some(Start::Snapshot(true)) };
    let mut messages = client.kv.watch(request).await.unwrap().into_inner();
    let message = within("a message", messages.message()).await.unwrap().unwrap();
    let change = message.events[0].change.as_ref().unwrap();
    assert_eq!(said(change), (Change::Present, 0, large(MIB + 1), None));
}

#[tokio::test]
async fn a_store_with_a_history_refuses_large_values_by_name() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let settings = v1::KvSettings { history_ms: Some(60_000), ..v1::KvSettings::default() };
    client.create("past", v1::settings::Kind::Kv(settings)).await.unwrap();
    client.set("past", "a", value(1, MIB)).await.unwrap();
    let outcome = client.set_entry("past", entry("a", value(1, MIB + 1))).await;
    let status = refused(outcome, Code::InvalidArgument, "TOO_LARGE");
    assert!(status.message().contains("value in a store with a history"), "{status}");
}

/// Sets until it is taken: what is too much at once is said, and comes in again.
async fn set_at_last(server: &Server, key: &str, value: Bytes) {
    let mut client = server.client().await;
    eventually("a set is taken", || {
        let (mut client, key, value) = (client.clone(), key.to_owned(), value.clone());
        async move {
            match client.set("files", key, value).await {
                Ok(_) => Some(()),
                Err(status) => {
                    assert_eq!(reason(&status), "OVERLOADED", "{status}");
                    None
                }
            }
        }
    })
    .await;
    assert!(client.get("files", key.to_owned()).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_in_a_row_and_at_once_pass_through_a_log_that_holds_few() {
    let home = Home::new().set("log_bytes_max", "64MiB").set("memory_bytes", "512MiB");
    let server = home.start();
    for number in 0..20 {
        set_at_last(&server, &format!("k{}", number % 4), value(number, LARGEST)).await;
    }
    let mut writers = JoinSet::new();
    let server = std::sync::Arc::new(server);
    for writer in 0..6u64 {
        let server = std::sync::Arc::clone(&server);
        writers.spawn(async move {
            for number in 0..4 {
                set_at_last(&server, &format!("w{writer}"), value(10 * writer + number, LARGEST)).await;
            }
        });
    }
    within("all writers", writers.join_all()).await;
    std::sync::Arc::into_inner(server).unwrap().kill9();
    let server = home.start();
    let mut client = server.client().await;
    for writer in 0..6 {
        assert!(client.get("files", format!("w{writer}")).await.unwrap() == value(10 * writer + 3, LARGEST));
    }
}

#[tokio::test]
async fn a_server_with_little_memory_refuses_by_name_and_lives() {
    let home = Home::new().set("memory_bytes", "64MiB");
    let server = home.start();
    let mut client = server.client().await;
    let mut held = Vec::new();
    for number in 0..20 {
        match client.set_entry("files", entry(format!("k{number}"), value(number, LARGEST))).await {
            Ok(outcome) => {
                assert_eq!(outcome.error, None);
                held.push(number);
            }
            Err(status) => {
                assert_eq!(reason(&status), "OVERLOADED", "{status}");
                assert!(status.message().contains("memory budget"), "{status}");
            }
        }
    }
    assert!(!held.is_empty(), "none was taken");
    for &number in &held {
        assert!(client.get("files", format!("k{number}")).await.unwrap() == value(number, LARGEST));
    }
    // Room again once some are gone.
    let keys = held.iter().map(|number| format!("k{number}").into()).collect();
    let request = v1::DeleteRequest { store: "files".into(), keys, if_version: None };
    client.kv.delete(request).await.unwrap();
    set_at_last(&server, "again", value(7, LARGEST)).await;
    server.assert_healthy();
}
