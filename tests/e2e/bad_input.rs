//! What a well-formed message with bad contents gets: a named error, and nothing is done.

use bytes::Bytes;
use flowmesh_proto::v1;
use flowmesh_proto::v1::settings::Kind;
use tonic::Code;

use crate::common::client::{entry, job, keyed, names_field, read_at, record};
use crate::common::{Client, Home, refused};

const KEY_MAX: usize = 1024;
const VALUE_MAX: usize = 1 << 20;
const KV_VALUE_MAX: usize = 16 << 20;
const ITEMS_MAX: usize = 10_000;

#[tokio::test]
async fn illegal_names_are_refused_by_their_part() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let long = "x".repeat(256);
    let cases = [
        ("", "name", "INVALID_ARGUMENT"),
        ("a b", "name", "INVALID_ARGUMENT"),
        ("naïve", "name", "INVALID_ARGUMENT"),
        ("..", "name", "INVALID_ARGUMENT"),
        ("a{", "name", "INVALID_ARGUMENT"),
        ("a{}b", "name", "INVALID_ARGUMENT"),
        ("bad tenant/ns/x", "tenant", "INVALID_ARGUMENT"),
        ("t//x", "namespace", "INVALID_ARGUMENT"),
        ("a/b", "path", "INVALID_ARGUMENT"),
        ("a/b/topic/x", "path", "INVALID_ARGUMENT"),
        ("a/b/stream/x/y", "path", "INVALID_ARGUMENT"),
    ];
    for (name, field, why) in cases {
        let status = refused(client.append(name, ["x"]).await, Code::InvalidArgument, why);
        names_field(&status, field);
        refused(client.set(name, "k", "v").await, Code::InvalidArgument, why);
        refused(client.enqueue(name, ["x"]).await, Code::InvalidArgument, why);
    }
    refused(client.append(&long, ["x"]).await, Code::InvalidArgument, "TOO_LARGE");
    client.append(&"x".repeat(255), ["x"]).await.unwrap();
}

#[tokio::test]
async fn a_resource_of_another_kind_is_refused() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    refused(client.append("a/b/queue/x", ["v"]).await, Code::InvalidArgument, "WRONG_KIND");
    refused(client.set("a/b/stream/x", "k", "v").await, Code::InvalidArgument, "WRONG_KIND");
    refused(client.enqueue("a/b/kv/x", ["v"]).await, Code::InvalidArgument, "WRONG_KIND");
    refused(client.stream.read(read_at("a/b/kv/x", 0)).await, Code::InvalidArgument, "WRONG_KIND");
    // The same name in another kind is another resource.
    client.append("same", ["v"]).await.unwrap();
    client.enqueue("same", ["v"]).await.unwrap();
    client.set("same", "k", "v").await.unwrap();
}

#[tokio::test]
async fn settings_outside_of_their_range_are_refused_by_name() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let stream = |partitions| {
        Kind::Stream(v1::StreamSettings { partitions: Some(partitions), ..v1::StreamSettings::default() })
    };
    let queue = v1::QueueSettings::default;
    let cases = [
        (stream(0), "partitions"),
        (stream(1025), "partitions"),
        (
            Kind::Queue(v1::QueueSettings { visibility_timeout_ms: Some(99), ..queue() }),
            "visibility_timeout_ms",
        ),
        (
            Kind::Queue(v1::QueueSettings { visibility_timeout_ms: Some(43_200_001), ..queue() }),
            "visibility_timeout_ms",
        ),
        (Kind::Queue(v1::QueueSettings { max_attempts: Some(0), ..queue() }), "max_attempts"),
        (Kind::Queue(v1::QueueSettings { max_attempts: Some(10_001), ..queue() }), "max_attempts"),
        (Kind::Queue(v1::QueueSettings { backoff_max_ms: Some(u64::MAX), ..queue() }), "backoff_max_ms"),
        (
            Kind::Queue(v1::QueueSettings { backoff_initial_ms: Some(60_001), ..queue() }),
            "backoff_initial_ms",
        ),
        (
            Kind::Kv(v1::KvSettings {
                default_ttl_ms: Some(366 * 86_400_000 + 1),
                ..v1::KvSettings::default()
            }),
            "default_ttl_ms",
        ),
        (Kind::Kv(v1::KvSettings { mode: Some(1), ..v1::KvSettings::default() }), "mode"),
        (
            Kind::Kv(v1::KvSettings { mode: Some(2), entries_max: Some(9), ..v1::KvSettings::default() }),
            "mode",
        ),
        (Kind::Kv(v1::KvSettings { bytes_max: Some(1_048_575), ..v1::KvSettings::default() }), "bytes_max"),
        (
            Kind::Kv(v1::KvSettings { entries_max: Some((1 << 40) + 1), ..v1::KvSettings::default() }),
            "entries_max",
        ),
        (
            Kind::Stream(v1::StreamSettings {
                durability: Some(v1::Durability::Memory as i32),
                ..v1::StreamSettings::default()
            }),
            "durability",
        ),
        (
            Kind::Stream(v1::StreamSettings { durability: Some(77), ..v1::StreamSettings::default() }),
            "durability",
        ),
    ];
    for (settings, field) in cases {
        let said = format!("{settings:?}");
        let outcome = client.create("x", settings).await;
        assert!(outcome.is_err(), "{said} was taken");
        names_field(&refused(outcome, Code::InvalidArgument, "INVALID_ARGUMENT"), field);
    }
    let no_kind = v1::CreateResourceRequest { name: "x".into(), ..v1::CreateResourceRequest::default() };
    refused(client.admin.create_resource(no_kind).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let two_kinds = v1::CreateResourceRequest {
        kind: v1::Kind::Kv as i32,
        name: "x".into(),
        settings: Some(v1::Settings { kind: Some(stream(1)) }),
        ..v1::CreateResourceRequest::default()
    };
    assert_eq!(client.admin.create_resource(two_kinds).await.unwrap_err().code(), Code::InvalidArgument);
    let list = client.admin.list_resources(v1::ListResourcesRequest::default()).await.unwrap().into_inner();
    assert!(list.resources.is_empty(), "nothing of it was made");
}

#[tokio::test]
async fn what_is_larger_than_its_limit_is_refused_and_what_has_its_size_is_taken() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let too_large = |outcome: Result<(), tonic::Status>| {
        refused(outcome, Code::InvalidArgument, "TOO_LARGE");
    };
    let (key, value) = (vec![b'k'; KEY_MAX], vec![b'v'; VALUE_MAX]);
    let (long_key, long_value) = (vec![b'k'; KEY_MAX + 1], vec![b'v'; VALUE_MAX + 1]);

    let append = async |mut client: Client, record| {
        let request = v1::AppendRequest {
            stream: "s".into(),
            partition: None,
            records: vec![record],
            ..Default::default()
        };
        client.stream.append(request).await.map(drop)
    };
    append(client.clone(), keyed(key.clone(), value.clone())).await.unwrap();
    too_large(append(client.clone(), keyed(long_key.clone(), "")).await);
    too_large(append(client.clone(), record(long_value.clone())).await);
    let header =
        |name: usize, value: usize| v1::Header { name: "n".repeat(name), value: vec![0; value].into() };
    let with = |headers| v1::Record { headers, ..record("v") };
    append(client.clone(), with(vec![header(255, 1024); 64])).await.unwrap();
    too_large(append(client.clone(), with(vec![header(256, 0)])).await);
    too_large(append(client.clone(), with(vec![header(1, 1025)])).await);
    too_large(append(client.clone(), with(vec![header(1, 1); 65])).await);

    client.set("s", key.clone(), value.clone()).await.unwrap();
    too_large(client.set("s", long_key.clone(), "").await.map(drop));
    too_large(client.set("s", "k", vec![b'v'; KV_VALUE_MAX + 1]).await.map(drop));
    let status = client.set("s", "", "v").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "an empty key");
    assert_eq!(client.entry("s", long_key).await.unwrap_err().code(), Code::InvalidArgument);

    client.enqueue("s", [value]).await.unwrap();
    too_large(client.enqueue("s", [long_value]).await.map(drop));
}

#[tokio::test]
async fn batches_are_bounded_and_never_empty() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.append("s", vec!["x"; ITEMS_MAX]).await.unwrap();
    client.enqueue("s", vec!["x"; ITEMS_MAX]).await.unwrap();
    client.set("s", "k", "v").await.unwrap();
    refused(client.append("s", vec!["x"; ITEMS_MAX + 1]).await, Code::InvalidArgument, "TOO_LARGE");
    refused(client.enqueue("s", vec!["x"; ITEMS_MAX + 1]).await, Code::InvalidArgument, "TOO_LARGE");
    let entries = vec![entry("k", "v"); ITEMS_MAX + 1];
    refused(
        client.kv.set(v1::SetRequest { store: "s".into(), entries }).await,
        Code::InvalidArgument,
        "TOO_LARGE",
    );
    let keys = vec![Bytes::from("k"); ITEMS_MAX + 1];
    refused(
        client.kv.get(v1::GetRequest { store: "s".into(), keys, as_of: None }).await,
        Code::InvalidArgument,
        "TOO_LARGE",
    );

    let none = Vec::<&str>::new();
    refused(client.append("s", none.clone()).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    refused(client.enqueue("s", none).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let empty = client.kv.set(v1::SetRequest { store: "s".into(), entries: vec![] }).await;
    refused(empty, Code::InvalidArgument, "INVALID_ARGUMENT");
    let empty = client.queue.ack(v1::AckRequest { queue: "s".into(), leases: vec![] }).await;
    refused(empty, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(client.values("s").await.len(), ITEMS_MAX, "of the refused ones nothing was done");
}

#[tokio::test]
async fn a_message_above_4_mib_is_refused_as_a_whole() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let megabyte = vec![0u8; VALUE_MAX];
    let status = client.append("s", vec![megabyte.clone(); 5]).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    // The connection and the server go on.
    client.append("s", vec![megabyte; 3]).await.unwrap();
    server.assert_healthy();
}

#[tokio::test]
async fn numbers_outside_of_their_range_are_refused_by_name() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.append("s", ["x"]).await.unwrap();
    client.enqueue("s", ["x"]).await.unwrap();
    client.set("s", "k", "v").await.unwrap();
    const YEAR_MS: u64 = 366 * 86_400_000;

    let invalid = |outcome: Result<(), tonic::Status>, field: &str| {
        names_field(&refused(outcome, Code::InvalidArgument, "INVALID_ARGUMENT"), field);
    };
    let jobs = |job| vec![job];
    invalid(
        client.enqueue_jobs("s", jobs(v1::NewJob { priority: 256, ..job("x") })).await.map(drop),
        "priority",
    );
    invalid(
        client.enqueue_jobs("s", jobs(v1::NewJob { delay_ms: YEAR_MS + 1, ..job("x") })).await.map(drop),
        "delay_ms",
    );
    invalid(
        client.enqueue_jobs("s", jobs(v1::NewJob { max_attempts: Some(0), ..job("x") })).await.map(drop),
        "max_attempts",
    );
    invalid(client.reserve("s", 1, 99, 0).await.map(drop), "visibility_timeout_ms");
    invalid(client.reserve("s", 1, 43_200_001, 0).await.map(drop), "visibility_timeout_ms");
    invalid(client.reserve("s", 10_001, 1000, 0).await.map(drop), "max_jobs");
    invalid(client.reserve("s", 1, 1000, 60_001).await.map(drop), "wait_ms");
    for ttl in [0, YEAR_MS + 1] {
        let entry = v1::SetEntry { ttl: Some(v1::set_entry::Ttl::TtlMs(ttl)), ..entry("k", "v") };
        invalid(client.set_entry("s", entry).await.map(drop), "ttl_ms");
    }
    let read = v1::ReadRequest { max_records: 10_001, ..read_at("s", 0) };
    invalid(client.stream.read(read).await.map(drop), "max_records");
    let read = v1::ReadRequest { wait_ms: 60_001, ..read_at("s", 0) };
    invalid(client.stream.read(read).await.map(drop), "wait_ms");
    let two =
        v1::DeleteRequest { store: "s".into(), keys: vec!["a".into(), "b".into()], if_version: Some(1) };
    assert_eq!(client.kv.delete(two).await.unwrap_err().code(), Code::InvalidArgument);
    let worker =
        v1::ReserveRequest { queue: "s".into(), worker: "w".repeat(1025), ..v1::ReserveRequest::default() };
    refused(client.queue.reserve(worker).await, Code::InvalidArgument, "TOO_LARGE");
    assert_eq!(client.queue_status("s").await.ready, 1, "nothing was leased or enqueued");
}
