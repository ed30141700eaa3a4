//! Operations in batches: over shards, all or none, and what is asked of whole stores.

use std::collections::BTreeSet;

use bytes::Bytes;
use flowmesh_proto::{rpc, v1};
use tonic::Code;
use v1::operation::{Action, Condition};
use v1::operation_outcome::Result as Came;

use crate::common::client::details;
use crate::common::kv::on;
use crate::common::{Client, Home, refused};

fn increment(key: impl Into<Bytes>) -> v1::Operation {
    on(key, Action::Increment(v1::BytesIncrement { by: 1 }))
}

async fn count(client: &mut Client, store: &str) -> u64 {
    let request = v1::StoreStatusRequest { store: store.into() };
    client.kv.status(request).await.unwrap().into_inner().keys
}

#[tokio::test]
async fn operations_on_one_key_see_those_before_them_and_answers_are_in_order() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    let operations = (0..400).map(|i| increment(format!("key{}", i % 40))).collect();
    let outcomes = client.operate("s", operations, false).await.unwrap();
    for (i, outcome) in outcomes.iter().enumerate() {
        let wanted = i64::try_from(i / 40).unwrap() + 1;
        assert_eq!(outcome.result, Some(Came::Integer(wanted)), "operation {i}");
        assert!(outcome.version > 0);
    }
    assert_eq!(count(&mut client, "s").await, 40);
}

#[tokio::test]
async fn one_that_is_refused_leaves_the_others_alone_unless_all_are_to_be_done() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    let push = |key: &'static str| {
        let values = vec![Bytes::from_static(b"v")];
        on(key, Action::ListPush(v1::ListPush { side: 0, values, if_present: false }))
    };
    let outcomes =
        client.operate("s", vec![increment("{t}a"), push("{t}a"), increment("{t}a")], false).await.unwrap();
    assert_eq!(outcomes[1].error.as_ref().unwrap().reason, "WRONG_TYPE");
    assert_eq!(outcomes[2].result, Some(Came::Integer(2)));

    let batch = vec![increment("{t}a"), increment("{t}b"), push("{t}a")];
    let status =
        refused(client.operate("s", batch.clone(), true).await, Code::FailedPrecondition, "BATCH_REFUSED");
    assert!(status.message().contains("operation 2"), "{status:?}");
    let infos: Vec<rpc::ErrorInfo> = details(&status, "ErrorInfo");
    assert_eq!(infos[0].metadata["operation"], "2");
    client.transcript("s", "GET {t}a => 2\nEXISTS {t}b => 0").await;

    let absent = v1::Operation { condition: Some(Condition::IfAbsent(true)), ..increment("{t}b") };
    let check = v1::Operation {
        condition: Some(Condition::IfValue("2".into())),
        ..on("{t}a", Action::Check(v1::KeyCheck {}))
    };
    let outcomes = client.operate("s", vec![check.clone(), absent.clone()], true).await.unwrap();
    assert_eq!(outcomes[1].result, Some(Came::Integer(1)));
    let status = refused(
        client.operate("s", vec![check, absent], true).await,
        Code::FailedPrecondition,
        "BATCH_REFUSED",
    );
    assert!(status.message().contains("operation 1"), "{status:?}");
    client.transcript("s", "GET {t}a => 2\nGET {t}b => 1").await;
}

#[tokio::test]
async fn keys_that_change_together_must_be_together() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    let apart = client.operate("s", vec![increment("a"), increment("b")], true).await;
    let status = refused(apart, Code::InvalidArgument, "KEYS_APART");
    let infos: Vec<rpc::ErrorInfo> = details(&status, "ErrorInfo");
    assert_eq!((infos[0].metadata["first"].as_str(), infos[0].metadata["other"].as_str()), ("0", "1"));
    let rename = on("a", Action::Rename(v1::KeyRename { to: "b".into(), if_absent: false }));
    let apart = client.operate("s", vec![increment("{t}"), rename], false).await;
    refused(apart, Code::InvalidArgument, "KEYS_APART");
    assert_eq!(client.get("s", "{t}").await, None, "nothing of the call was done");
}

#[tokio::test]
async fn of_many_clients_that_count_on_one_key_none_is_lost() {
    let home = Home::new();
    let server = home.start();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = server.client().await;
        clients.spawn(async move {
            for _ in 0..50 {
                let outcomes = client.operate("s", vec![increment("n"); 2], true).await.unwrap();
                assert!(outcomes.iter().all(|outcome| outcome.error.is_none()));
            }
        });
    }
    clients.join_all().await;
    server.client().await.transcript("s", "GET n => 800").await;
}

#[tokio::test]
async fn a_store_is_counted_drawn_from_and_cleared_over_all_shards() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    let none = client.kv.random(v1::RandomRequest { store: "s".into() }).await;
    refused(none, Code::NotFound, "RESOURCE_NOT_FOUND");
    let operations: Vec<_> = (0..3_000).map(|i| increment(format!("key{i}"))).collect();
    client.operate("s", operations, false).await.unwrap();
    client.transcript("s", "SET short v EX 1000 => OK\nSADD set a b => 2").await;
    let request = v1::StoreStatusRequest { store: "s".into() };
    let status = client.kv.status(request).await.unwrap().into_inner();
    assert_eq!((status.keys, status.expiring), (3_002, 1));
    assert!(status.memory_bytes > 3_000);

    let mut drawn = BTreeSet::new();
    for _ in 0..50 {
        let random = v1::RandomRequest { store: "s".into() };
        let entry = client.kv.random(random).await.unwrap().into_inner().entry.unwrap();
        assert!(client.entry("s", entry.key.clone()).await.unwrap().is_some());
        drawn.insert(entry.key);
    }
    assert!(drawn.len() > 40, "each key is as likely as any other: {drawn:?}");

    let clear = v1::ClearRequest { store: "s".into() };
    assert_eq!(client.kv.clear(clear.clone()).await.unwrap().into_inner().deleted, 3_002);
    assert_eq!(count(&mut client, "s").await, 0);
    assert_eq!(client.kv.clear(clear).await.unwrap().into_inner().deleted, 0);
    let random = v1::RandomRequest { store: "s".into() };
    assert_eq!(client.kv.random(random).await.unwrap().into_inner().entry, None);
}
