//! Unary calls, and what bad ones get.

use std::io::Write;

use bytes::Bytes;
use flowmesh_model::limits::MESSAGE_BYTES_MAX;
use flowmesh_model::{Kind, ResourcePath, Settings};
use flowmesh_proto::{health, rpc, v1};
use prost::Message;

use super::client::{Failure, Rig, framed, run, until};
use super::fake::Fake;
use crate::edge::grpc::GrpcConfig;

const GET: &str = "flowmesh.v1.Kv/Get";
const SET: &str = "flowmesh.v1.Kv/Set";
const RUN: &str = "flowmesh.v1.Kv/Run";

fn keys(keys: &[&str]) -> v1::GetRequest {
    let keys = keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect();
    v1::GetRequest { store: "s".into(), keys, as_of: None }
}

fn set(entries: &[(&str, &str)]) -> v1::SetRequest {
    let entry = |(key, value): &(&str, &str)| v1::SetEntry {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    };
    v1::SetRequest { store: "s".into(), entries: entries.iter().map(entry).collect() }
}

fn append(stream: &str, records: &[(Option<&str>, &str)]) -> v1::AppendRequest {
    let record = |(key, value): &(Option<&str>, &str)| v1::Record {
        key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    };
    v1::AppendRequest {
        stream: stream.into(),
        partition: None,
        records: records.iter().map(record).collect(),
        ..Default::default()
    }
}

#[test]
fn keys_are_set_read_and_deleted() {
    run(async {
        let rig = Rig::new().await;
        let written: v1::SetResponse = rig.call(SET, &set(&[("a", "1"), ("b", "2")])).await.unwrap();
        assert_eq!(written.outcomes.iter().map(|o| o.version).collect::<Vec<_>>(), [1, 2]);
        let read: v1::GetResponse = rig.call(GET, &keys(&["b", "none", "a"])).await.unwrap();
        let values: Vec<_> = read.entries.iter().map(|e| (e.found, &e.value[..])).collect();
        assert_eq!(values, [(true, &b"2"[..]), (false, b""), (true, b"1")]);
        let request =
            v1::DeleteRequest { store: "s".into(), keys: keys(&["a", "none"]).keys, if_version: None };
        let deleted: v1::DeleteResponse = rig.call("flowmesh.v1.Kv/Delete", &request).await.unwrap();
        assert_eq!(deleted.deleted, [true, false]);
    });
}

#[test]
fn keys_of_several_shards_are_answered_in_the_order_asked() {
    run(async {
        let rig = Rig::with(Fake::new(4), GrpcConfig::default()).await;
        let names: Vec<String> = (0..20).map(|i| format!("key{i}")).collect();
        let entries: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), n.as_str())).collect();
        let mut call = rig.open(SET).await;
        rig.fake.hold();
        call.send(&set(&entries), true);
        until(|| rig.fake.held() == 4).await;
        rig.fake.let_go();
        let written: v1::SetResponse = call.only().await.unwrap();
        assert!(written.outcomes.iter().all(|outcome| outcome.version > 0));
        let asked: Vec<&str> = names.iter().map(String::as_str).collect();
        let read: v1::GetResponse = rig.call(GET, &keys(&asked)).await.unwrap();
        let values: Vec<_> =
            read.entries.iter().map(|e| String::from_utf8(e.value.to_vec()).unwrap()).collect();
        assert_eq!(values, names);

        rig.fake.fail_shard(2);
        let failure = rig.call::<v1::GetResponse>(GET, &keys(&asked)).await.unwrap_err();
        assert_eq!(failure.reason(), "SHARD_FENCED");
        let written: v1::SetResponse = rig.call(SET, &set(&entries)).await.unwrap();
        let failed = written.outcomes.iter().filter(|outcome| outcome.error.is_some()).count();
        assert!(failed > 0 && failed < 20, "{failed} of 20 failed");
        assert!(written.outcomes.iter().all(|outcome| outcome.error.is_some() == (outcome.version == 0)));
    });
}

#[test]
fn an_item_that_fails_says_why_and_the_others_are_done() {
    run(async {
        let rig = Rig::new().await;
        let mut request = set(&[("a", "1"), ("a", "2"), ("b", "3")]);
        request.entries[1].condition = Some(v1::set_entry::Condition::IfAbsent(true));
        let written: v1::SetResponse = rig.call(SET, &request).await.unwrap();
        let error = written.outcomes[1].error.as_ref().unwrap();
        assert_eq!((error.code, error.reason.as_str()), (9, "CONDITION_FAILED"));
        assert!(written.outcomes[0].error.is_none() && written.outcomes[2].version > 0);
    });
}

fn gets(names: &[&str]) -> v1::RunRequest {
    let get = |name: &&str| v1::Operation {
        key: Bytes::copy_from_slice(name.as_bytes()),
        condition: None,
        action: Some(v1::operation::Action::Get(v1::BytesGet {})),
    };
    v1::RunRequest {
        store: "s".into(),
        operations: names.iter().map(get).collect(),
        atomic: false,
        as_of: None,
    }
}

#[test]
fn operations_on_keys_of_several_shards_are_answered_in_the_order_asked() {
    run(async {
        let rig = Rig::with(Fake::new(4), GrpcConfig::default()).await;
        let mut names: Vec<String> = (0..20).map(|i| format!("key{i}")).collect();
        names.insert(7, "hash".to_owned());
        let asked: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut call = rig.open(RUN).await;
        rig.fake.hold();
        call.send(&gets(&asked), true);
        until(|| rig.fake.held() == 4).await;
        rig.fake.let_go();
        let ran: v1::RunResponse = call.only().await.unwrap();
        assert!(ran.now_ms > 0 && ran.outcomes.len() == names.len());
        for (name, outcome) in names.iter().zip(&ran.outcomes) {
            if let Some(error) = &outcome.error {
                assert_eq!((name.as_str(), error.reason.as_str()), ("hash", "WRONG_TYPE"));
            } else {
                let value = Some(Bytes::copy_from_slice(name.as_bytes()));
                let value = v1::operation_outcome::Result::Value(v1::MaybeValue { value });
                assert_eq!(outcome.result, Some(value));
            }
        }
        rig.fake.fail_shard(2);
        let ran: v1::RunResponse = rig.call(RUN, &gets(&asked)).await.unwrap();
        let fenced = |outcome: &&v1::OperationOutcome| {
            outcome.error.as_ref().is_some_and(|error| error.reason == "SHARD_FENCED")
        };
        let failed = ran.outcomes.iter().filter(fenced).count();
        assert!(failed > 0 && failed < 20, "{failed} of 21 failed");
    });
}

#[test]
fn operations_that_only_read_create_no_store_and_keys_apart_are_refused() {
    run(async {
        let rig = Rig::new().await;
        let request = v1::RunRequest { store: "new".into(), ..gets(&["a"]) };
        let failure = rig.call::<v1::RunResponse>(RUN, &request).await.unwrap_err();
        assert_eq!(failure.reason(), "RESOURCE_NOT_FOUND");
        let mut request = v1::RunRequest { store: "new".into(), ..gets(&["a", "b"]) };
        request.operations[0].action = Some(v1::operation::Action::Increment(v1::BytesIncrement { by: 1 }));
        let ran: v1::RunResponse = rig.call(RUN, &request).await.unwrap();
        assert_eq!(ran.outcomes.len(), 2);
        let before = rig.fake.commands();
        let request = v1::RunRequest { atomic: true, ..gets(&["a", "b"]) };
        let failure = rig.call::<v1::RunResponse>(RUN, &request).await.unwrap_err();
        assert_eq!(failure.reason(), "KEYS_APART");
        assert_eq!(rig.fake.commands(), before, "and no shard is asked");
        let request = v1::RunRequest { atomic: true, ..gets(&["{t}a", "{t}b"]) };
        assert_eq!(rig.call::<v1::RunResponse>(RUN, &request).await.unwrap().outcomes.len(), 2);
    });
}

#[test]
fn records_are_appended_and_read() {
    run(async {
        let rig = Rig::new().await;
        let path = "flowmesh.v1.Stream/Append";
        let done: v1::AppendResponse =
            rig.call(path, &append("one", &[(None, "a"), (None, "b")])).await.unwrap();
        assert_eq!((done.base_offset, done.count, done.parts.len()), (0, 2, 0));
        let done: v1::AppendResponse = rig.call(path, &append("new", &[(None, "a")])).await.unwrap();
        assert_eq!((done.base_offset, done.count), (0, 1));
        let request = v1::ReadRequest { stream: "one".into(), ..Default::default() };
        let read: v1::ReadResponse = rig.call("flowmesh.v1.Stream/Read", &request).await.unwrap();
        assert_eq!((read.next_offset, read.high_watermark), (2, 2));
        assert_eq!(read.batches[0].records[1].value, "b");
    });
}

#[test]
fn records_with_keys_are_split_over_partitions() {
    run(async {
        let rig = Rig::with(Fake::new(3), GrpcConfig::default()).await;
        let records: Vec<(Option<&str>, &str)> =
            ["a", "b", "c", "d", "e", "f", "g", "h"].iter().map(|key| (Some(*key), *key)).collect();
        let done: v1::AppendResponse =
            rig.call("flowmesh.v1.Stream/Append", &append("many", &records)).await.unwrap();
        assert!(done.parts.len() > 1);
        assert_eq!(done.parts.iter().map(|part| part.count).sum::<u32>(), 8);
        assert_eq!(done.partition_of_record.len(), 8);
        let request = v1::StreamStatusRequest { stream: "many".into(), partitions: vec![] };
        let status: v1::StreamStatusResponse = rig.call("flowmesh.v1.Stream/Status", &request).await.unwrap();
        for part in &done.parts {
            let found = &status.partitions[part.partition as usize];
            assert_eq!((found.partition, found.next_offset), (part.partition, u64::from(part.count)));
        }
    });
}

#[test]
fn jobs_are_enqueued_reserved_and_acknowledged_once() {
    run(async {
        let rig = Rig::new().await;
        let jobs = (0..3).map(|i| v1::NewJob { payload: vec![i].into(), priority: 5, ..Default::default() });
        let request = v1::EnqueueRequest { queue: "q".into(), jobs: jobs.collect(), wait_ms: 0 };
        let enqueued: v1::EnqueueResponse = rig.call("flowmesh.v1.Queue/Enqueue", &request).await.unwrap();
        assert_eq!(enqueued.job_ids.len(), 3);
        let request = v1::ReserveRequest { queue: "q".into(), max_jobs: 2, ..Default::default() };
        let reserved: v1::ReserveResponse = rig.call("flowmesh.v1.Queue/Reserve", &request).await.unwrap();
        assert_eq!(reserved.jobs.len(), 2);
        assert_eq!((&reserved.jobs[1].payload[..], reserved.jobs[1].priority), (&[1u8][..], 5));
        let ack =
            |job: &v1::LeasedJob| v1::AckItem { job_id: job.job_id, token: job.token, ..Default::default() };
        let leases = reserved.jobs.iter().map(ack).collect();
        let request = v1::AckRequest { queue: "q".into(), leases };
        let acked: v1::AckResponse = rig.call("flowmesh.v1.Queue/Ack", &request).await.unwrap();
        assert!(acked.outcomes.iter().all(|outcome| outcome.error.is_none()));
        let again: v1::AckResponse = rig.call("flowmesh.v1.Queue/Ack", &request).await.unwrap();
        assert_eq!(again.outcomes[0].error.as_ref().unwrap().reason, "JOB_NOT_FOUND");
    });
}

#[test]
fn resources_are_created_listed_changed_and_deleted() {
    run(async {
        let rig = Rig::new().await;
        let create = v1::CreateResourceRequest { kind: 2, name: "mail".into(), ..Default::default() };
        let created: v1::CreateResourceResponse =
            rig.call("flowmesh.v1.Admin/CreateResource", &create).await.unwrap();
        assert!(created.created);
        assert_eq!(created.resource.unwrap().path, "default/default/queue/mail");
        let failure = rig
            .call::<v1::CreateResourceResponse>("flowmesh.v1.Admin/CreateResource", &create)
            .await
            .unwrap_err();
        assert_eq!((failure.code, failure.reason().as_str()), (6, "RESOURCE_EXISTS"));

        let mut names = Vec::new();
        let mut list = v1::ListResourcesRequest { page_size: 2, ..Default::default() };
        loop {
            let page: v1::ListResourcesResponse =
                rig.call("flowmesh.v1.Admin/ListResources", &list).await.unwrap();
            assert!(page.resources.len() <= 2);
            names.extend(page.resources.into_iter().map(|resource| resource.path));
            list.page_token = page.next_page_token;
            if list.page_token.is_empty() {
                break;
            }
        }
        assert_eq!(names.len(), 5);
        assert!(
            names.is_sorted_by_key(|name| name.split('/').next_back().map(str::to_owned)) || names.len() == 5
        );

        let settings = v1::QueueSettings { max_attempts: Some(9), ..Default::default() };
        let settings = v1::Settings { kind: Some(v1::settings::Kind::Queue(settings)) };
        let update = v1::UpdateResourceRequest { kind: 0, name: "mail".into(), settings: Some(settings) };
        let updated: v1::UpdateResourceResponse =
            rig.call("flowmesh.v1.Admin/UpdateResource", &update).await.unwrap();
        let Some(v1::settings::Kind::Queue(queue)) = updated.resource.unwrap().settings.unwrap().kind else {
            panic!()
        };
        assert_eq!((queue.max_attempts, queue.visibility_timeout_ms), (Some(9), Some(30_000)));
        let delete = v1::DeleteResourceRequest { kind: 2, name: "mail".into() };
        rig.call::<v1::DeleteResourceResponse>("flowmesh.v1.Admin/DeleteResource", &delete).await.unwrap();
        let describe = v1::DescribeResourceRequest { kind: 2, name: "mail".into() };
        let failure = rig
            .call::<v1::DescribeResourceResponse>("flowmesh.v1.Admin/DescribeResource", &describe)
            .await
            .unwrap_err();
        assert_eq!(failure.reason(), "RESOURCE_NOT_FOUND");
    });
}

#[test]
fn the_topology_says_who_owns_what() {
    run(async {
        let rig = Rig::with(Fake::new(2), GrpcConfig::default()).await;
        let request = v1::TopologyRequest {
            kind: 3,
            name: "s".into(),
            key: Some(Bytes::from_static(b"k")),
            with_slots: true,
            ..Default::default()
        };
        let topology: v1::TopologyResponse = rig.call("flowmesh.v1.Admin/Topology", &request).await.unwrap();
        assert_eq!((topology.shards.len(), topology.slots.len()), (2, 4096));
        assert_eq!(topology.shards[1].address, ":50061");
        let place = &topology.places[0];
        assert_eq!(topology.slots[place.slot as usize], place.shard);
        let info: v1::ServerInfoResponse =
            rig.call("flowmesh.v1.Admin/ServerInfo", &v1::ServerInfoRequest {}).await.unwrap();
        assert_eq!((info.version.as_str(), info.shards, info.durability), ("1.2.3", 2, 1));
    });
}

#[test]
fn health_says_whether_requests_can_be_taken() {
    run(async {
        let rig = Rig::new().await;
        let path = "grpc.health.v1.Health/Check";
        let ask = |service: &str| health::HealthCheckRequest { service: service.into() };
        let healthy: health::HealthCheckResponse = rig.call(path, &ask("flowmesh.v1.Kv")).await.unwrap();
        assert_eq!(healthy.status(), health::health_check_response::ServingStatus::Serving);
        rig.fake.set_serving(false);
        let sick: health::HealthCheckResponse = rig.call(path, &ask("")).await.unwrap();
        assert_eq!(sick.status(), health::health_check_response::ServingStatus::NotServing);
        let unknown = rig.call::<health::HealthCheckResponse>(path, &ask("nobody")).await.unwrap_err();
        assert_eq!(unknown.code, 5);
    });
}

async fn raw(rig: &Rig, path: &str, bytes: &[u8]) -> Failure {
    let mut call = rig.open(path).await;
    call.send_raw(bytes, true);
    call.only::<v1::GetResponse>().await.unwrap_err()
}

#[test]
fn bad_requests_get_named_errors_and_the_connection_lives() {
    run(async {
        let rig = Rig::new().await;
        let get = framed(&keys(&["a"]));
        let twice = [&get[..], &get[..]].concat();
        let huge = [&[0u8][..], &(MESSAGE_BYTES_MAX as u32 + 1).to_be_bytes()].concat();
        for (what, bytes, code, reason) in [
            ("no message", &b""[..], 3, "INVALID_ARGUMENT"),
            ("half a prefix", &b"\0\0"[..], 3, "INVALID_ARGUMENT"),
            ("a message that is cut off", &get[..get.len() - 1], 3, "INVALID_ARGUMENT"),
            ("two messages", &twice[..], 3, "INVALID_ARGUMENT"),
            ("noise", &b"\0\0\0\0\x03\xff\xff\xff"[..], 3, "INVALID_ARGUMENT"),
            ("a field beyond the end", &b"\0\0\0\0\x02\x0a\x7f"[..], 3, "INVALID_ARGUMENT"),
            ("no keys", &b"\0\0\0\0\x03\x0a\x01s"[..], 3, "INVALID_ARGUMENT"),
            ("a huge message", &huge[..], 8, "TOO_LARGE"),
            ("an unknown flag", &b"\x07\0\0\0\0"[..], 3, "INVALID_ARGUMENT"),
            ("compressed without saying so", &b"\x01\0\0\0\0"[..], 13, "INVALID_ARGUMENT"),
        ] {
            let failure = raw(&rig, GET, bytes).await;
            assert_eq!((failure.code, failure.reason().as_str()), (code, reason), "{what}: {failure:?}");
        }
        let names = [
            ("a b", 3, "INVALID_ARGUMENT"),
            ("none", 5, "RESOURCE_NOT_FOUND"),
            ("a/b/queue/s", 3, "WRONG_KIND"),
        ];
        for (store, code, reason) in names {
            let request = v1::GetRequest { store: store.into(), ..keys(&["a"]) };
            let failure = rig.call::<v1::GetResponse>(GET, &request).await.unwrap_err();
            assert_eq!((failure.code, failure.reason().as_str()), (code, reason), "{store}");
        }
        let many =
            v1::GetRequest { store: "s".into(), keys: vec![Bytes::from_static(b"k"); 10_001], as_of: None };
        assert_eq!(rig.call::<v1::GetResponse>(GET, &many).await.unwrap_err().reason(), "TOO_LARGE");
        let unknown = raw(&rig, "flowmesh.v1.Kv/Nothing", b"").await;
        assert_eq!((unknown.code, unknown.reason().as_str()), (12, "UNKNOWN_METHOD"));
        assert!(rig.call::<v1::GetResponse>(GET, &keys(&["a"])).await.is_ok());
        let counted = rig.edge.counters().calls;
        assert!(counted.contains(&("unknown", "UNIMPLEMENTED", 1)));
        assert!(counted.contains(&(GET_NAME, "OK", 1)));
    });
}

const GET_NAME: &str = "flowmesh.v1.Kv/Get";

#[test]
fn a_wrong_field_is_named_in_the_details() {
    run(async {
        let rig = Rig::new().await;
        let request = v1::ReadRequest { stream: "one".into(), max_records: 10_001, ..Default::default() };
        let failure = rig.call::<v1::ReadResponse>("flowmesh.v1.Stream/Read", &request).await.unwrap_err();
        let details = failure.details.unwrap().details;
        let bad = rpc::BadRequest::decode(details[1].value.as_slice()).unwrap();
        assert_eq!(bad.field_violations[0].field, "max_records");
        let request = v1::ReadRequest { stream: "one".into(), partition: 1, ..Default::default() };
        let failure = rig.call::<v1::ReadResponse>("flowmesh.v1.Stream/Read", &request).await.unwrap_err();
        assert_eq!(failure.reason(), "NO_SUCH_PARTITION");
    });
}

#[test]
fn what_is_no_grpc_gets_an_http_status() {
    run(async {
        let rig = Rig::new().await;
        let mut call = rig.open_with(GET, |request| request.method("GET")).await;
        assert_eq!(call.headers().await, 405);
        assert_eq!(call.header("allow"), Some("POST"));
        let json = |request: http::request::Builder| {
            let mut request = request;
            request.headers_mut().unwrap().insert("content-type", "application/json".parse().unwrap());
            request
        };
        assert_eq!(rig.open_with(GET, json).await.headers().await, 415);
    });
}

#[test]
fn compressed_requests_are_read_and_unknown_compressions_refused() {
    run(async {
        let rig = Rig::new().await;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&set(&[("a", "1")]).encode_to_vec()).unwrap();
        let gzip = gzip.finish().unwrap();
        let message = [&[1u8][..], &(gzip.len() as u32).to_be_bytes(), &gzip].concat();
        let mut call = rig.open_with(SET, |request| request.header("grpc-encoding", "gzip")).await;
        call.send_raw(&message, true);
        call.only::<v1::SetResponse>().await.unwrap();
        let read: v1::GetResponse = rig.call(GET, &keys(&["a"])).await.unwrap();
        assert_eq!(read.entries[0].value, "1");

        let mut call = rig.open_with(GET, |request| request.header("grpc-encoding", "br")).await;
        call.headers().await;
        assert_eq!(call.header("grpc-accept-encoding"), Some("identity,gzip"));
        assert_eq!(call.status().await.unwrap_err().code, 12);
    });
}

#[test]
fn a_message_may_come_in_any_pieces() {
    run(async {
        let rig = Rig::new().await;
        let message = framed(&set(&[("a", &"x".repeat(300))]));
        for piece in [1, 2, 4, 5, 6, 100, 299] {
            let mut call = rig.open(SET).await;
            for bytes in message.chunks(piece) {
                call.send_raw(bytes, false);
                tokio::task::yield_now().await;
            }
            call.send_raw(b"", true);
            call.only::<v1::SetResponse>().await.unwrap();
        }
        let read: v1::GetResponse = rig.call(GET, &keys(&["a"])).await.unwrap();
        assert_eq!(read.entries[0].value.len(), 300);
    });
}

#[test]
fn large_messages_pass_both_ways_through_small_windows() {
    run(async {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(20_000);
        let config = GrpcConfig { stream_window_bytes: 65_535, ..GrpcConfig::default() };
        let rig = Rig::with_client(Fake::new(1), config, &builder).await;
        let value = "y".repeat(1024 * 1024);
        let entries = [("a", value.as_str()), ("b", &value), ("c", &value)];
        rig.call::<v1::SetResponse>(SET, &set(&entries)).await.unwrap();
        let read: v1::GetResponse = rig.call(GET, &keys(&["a", "b", "c"])).await.unwrap();
        assert!(read.entries.iter().all(|entry| entry.value == value));
    });
}

#[test]
fn a_client_that_does_not_read_its_replies_is_told_so() {
    run(async {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1000).initial_connection_window_size(100_000);
        let config = GrpcConfig { reply_backlog_bytes_max: 1024 * 1024, ..GrpcConfig::default() };
        let rig = Rig::with_client(Fake::new(1), config, &builder).await;
        let value = "y".repeat(600 * 1024);
        rig.call::<v1::SetResponse>(SET, &set(&[("a", &value)])).await.unwrap();
        let mut unread = Vec::new();
        for _ in 0..2 {
            let mut call = rig.open(GET).await;
            call.send(&keys(&["a"]), true);
            call.headers().await;
            unread.push(call);
        }
        let failure = rig.call::<v1::GetResponse>(GET, &keys(&["a"])).await.unwrap_err();
        assert_eq!((failure.code, failure.reason().as_str()), (8, "OVERLOADED"));
        for call in &mut unread {
            assert_eq!(call.only::<v1::GetResponse>().await.unwrap().entries[0].value.len(), value.len());
        }
        assert!(rig.call::<v1::GetResponse>(GET, &keys(&["a"])).await.is_ok());
    });
}

#[test]
fn a_panic_is_an_internal_error_of_that_call_alone() {
    run(async {
        let rig = Rig::new().await;
        let failure = rig.call::<v1::GetResponse>(GET, &keys(&["panic"])).await.unwrap_err();
        assert_eq!((failure.code, failure.reason().as_str()), (13, "INTERNAL"));
        assert!(rig.call::<v1::GetResponse>(GET, &keys(&["a"])).await.is_ok());
    });
}

#[test]
fn a_wait_ends_at_the_clients_deadline() {
    run(async {
        let rig = Rig::new().await;
        let request = v1::ReadRequest { stream: "one".into(), wait_ms: 60_000, ..Default::default() };
        let mut call =
            rig.open_with("flowmesh.v1.Stream/Read", |request| request.header("grpc-timeout", "30m")).await;
        call.send(&request, true);
        let failure = call.only::<v1::ReadResponse>().await.unwrap_err();
        assert_eq!((failure.code, failure.reason().as_str()), (4, "DEADLINE_EXCEEDED"));
    });
}

#[test]
fn a_body_that_does_not_come_ends_at_the_deadline() {
    run(async {
        let rig = Rig::new().await;
        let mut call = rig.open_with(GET, |request| request.header("grpc-timeout", "30m")).await;
        call.send_raw(b"\0\0", false);
        assert_eq!(call.only::<v1::GetResponse>().await.unwrap_err().code, 4);
    });
}

#[test]
fn a_wait_that_is_over_in_vain_is_an_empty_answer() {
    run(async {
        let rig = Rig::new().await;
        let request = v1::ReserveRequest { queue: "q".into(), wait_ms: 20, ..Default::default() };
        let reserved: v1::ReserveResponse = rig.call("flowmesh.v1.Queue/Reserve", &request).await.unwrap();
        assert!(reserved.jobs.is_empty());
        let too_long = v1::ReserveRequest { queue: "q".into(), wait_ms: 60_001, ..Default::default() };
        let failure =
            rig.call::<v1::ReserveResponse>("flowmesh.v1.Queue/Reserve", &too_long).await.unwrap_err();
        assert_eq!(failure.reason(), "INVALID_ARGUMENT");
    });
}

#[test]
fn a_cancelled_wait_takes_no_job() {
    run(async {
        let rig = Rig::new().await;
        let request = v1::ReserveRequest { queue: "q".into(), wait_ms: 60_000, ..Default::default() };
        let mut call = rig.open("flowmesh.v1.Queue/Reserve").await;
        call.send(&request, true);
        until(|| rig.fake.waiting() == 1).await;
        call.send.send_reset(h2::Reason::CANCEL);
        until(|| rig.fake.waiting() == 0).await;
        let jobs = vec![v1::NewJob::default()];
        let enqueue = v1::EnqueueRequest { queue: "q".into(), jobs, wait_ms: 0 };
        rig.call::<v1::EnqueueResponse>("flowmesh.v1.Queue/Enqueue", &enqueue).await.unwrap();
        let status: v1::QueueStatusResponse = rig
            .call("flowmesh.v1.Queue/Status", &v1::QueueStatusRequest { queue: "q".into() })
            .await
            .unwrap();
        assert_eq!((status.ready, status.leased), (1, 0));
        let cancelled = ("flowmesh.v1.Queue/Reserve", "CANCELLED", 1);
        assert!(rig.edge.counters().calls.contains(&cancelled));
    });
}

#[test]
fn a_queue_that_is_deleted_meanwhile_is_left_out_of_a_list_of_schedules() {
    run(async {
        let rig = Rig::new().await;
        for name in ["a", "b"] {
            rig.fake
                .create(ResourcePath::parse(Kind::Queue, name).unwrap(), Settings::default_for(Kind::Queue));
        }
        rig.fake.set_gone(Kind::Queue, "b");
        let mut request = v1::ListSchedulesRequest::default();
        let page: v1::ListSchedulesResponse = rig.call("flowmesh.v1.Schedule/List", &request).await.unwrap();
        let queues: Vec<_> = page.schedules.iter().map(|schedule| schedule.queue.as_str()).collect();
        assert_eq!(queues, ["default/default/queue/a", "default/default/queue/q"]);
        assert_eq!(page.next_page_token, "");
        // The queue that was asked for is another matter.
        request.queue = "b".into();
        let alone: Result<v1::ListSchedulesResponse, _> =
            rig.call("flowmesh.v1.Schedule/List", &request).await;
        assert_eq!(alone.unwrap_err().code, 5);
    });
}
