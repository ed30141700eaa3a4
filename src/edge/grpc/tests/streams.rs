//! Streaming calls.

use bytes::Bytes;
use flowmesh_model::record::{PackedRecords, RecordPacker, RecordView};
use flowmesh_model::{Command, Kind, PartitionRef, ShardId, StreamCommand};
use flowmesh_proto::reflection::server_reflection_request::MessageRequest;
use flowmesh_proto::reflection::{ServerReflectionRequest, ServerReflectionResponse};
use flowmesh_proto::{health, v1};

use super::client::{Call, Rig, framed, run, until};
use super::fake::{Fake, ignore};
use crate::edge::backend::Backend;
use crate::edge::grpc::GrpcConfig;

const APPEND_STREAM: &str = "flowmesh.v1.Stream/AppendStream";
const SUBSCRIBE: &str = "flowmesh.v1.Stream/Subscribe";
const WORK: &str = "flowmesh.v1.Queue/Work";

fn append(stream: &str, sequence: u64, values: &[&str]) -> v1::AppendStreamRequest {
    let record =
        |value: &&str| v1::Record { value: Bytes::copy_from_slice(value.as_bytes()), ..Default::default() };
    let records = values.iter().map(record).collect();
    v1::AppendStreamRequest {
        stream: stream.into(),
        partition: None,
        records,
        sequence,
        ..Default::default()
    }
}

async fn acks(call: &mut Call, count: usize) -> Vec<v1::AppendAck> {
    let mut acks = Vec::new();
    while acks.len() < count {
        let message: v1::AppendStreamResponse = call.next().await.expect("too few acks");
        assert!(!message.acks.is_empty());
        acks.extend(message.acks);
    }
    acks
}

#[test]
fn a_producer_gets_every_append_acknowledged_in_order() {
    run(async {
        let rig = Rig::new().await;
        let mut call = rig.open(APPEND_STREAM).await;
        for sequence in 0..1000 {
            let stream = if sequence == 0 { "new" } else { "" };
            call.send(&append(stream, sequence, &["a", "b"]), sequence == 999);
        }
        for (index, ack) in acks(&mut call, 1000).await.iter().enumerate() {
            assert_eq!((ack.sequence, ack.base_offset, ack.count), (index as u64, index as u64 * 2, 2));
            assert_eq!(ack.error, None);
        }
        assert_eq!(call.status().await, Ok(()));
    });
}

#[test]
fn acknowledgements_share_messages() {
    run(async {
        let rig = Rig::new().await;
        let mut call = rig.open(APPEND_STREAM).await;
        rig.fake.hold();
        for sequence in 0..500 {
            call.send(&append("one", sequence, &["a"]), false);
        }
        until(|| rig.fake.held() == 500).await;
        rig.fake.let_go();
        let message: v1::AppendStreamResponse = call.next().await.unwrap();
        assert!(message.acks.len() >= 100, "only {} acks in the first message", message.acks.len());
    });
}

#[test]
fn an_append_that_fails_is_answered_and_those_after_it_carried_out() {
    run(async {
        let rig = Rig::new().await;
        let mut call = rig.open(APPEND_STREAM).await;
        call.send(&append("one", 1, &["a"]), false);
        call.send(&append("one", 2, &[]), false);
        call.send(&v1::AppendStreamRequest { partition: Some(9), ..append("one", 3, &["a"]) }, false);
        call.send(&append("a b", 4, &["a"]), false);
        call.send(&append("one", 5, &["a"]), true);
        let acks = acks(&mut call, 5).await;
        let mut reasons: Vec<_> =
            acks.iter().map(|ack| (ack.sequence, ack.error.as_ref().map(|e| e.reason.as_str()))).collect();
        reasons.sort_unstable();
        assert_eq!(
            reasons,
            [
                (1, None),
                (2, Some("INVALID_ARGUMENT")),
                (3, Some("NO_SUCH_PARTITION")),
                (4, Some("INVALID_ARGUMENT")),
                (5, None)
            ]
        );
        assert_eq!(call.status().await, Ok(()));
    });
}

#[test]
fn a_producer_whose_message_cannot_be_read_gets_its_acknowledgements_and_an_error() {
    run(async {
        let rig = Rig::new().await;
        let mut call = rig.open(APPEND_STREAM).await;
        call.send(&append("one", 1, &["a"]), false);
        call.send_raw(b"\0\0\0\0\x01\xff", false);
        assert_eq!(acks(&mut call, 1).await[0].sequence, 1);
        assert_eq!(call.status().await.unwrap_err().reason(), "INVALID_ARGUMENT");
        let mut call = rig.open(APPEND_STREAM).await;
        call.send(&append("", 1, &["a"]), true);
        assert_eq!(call.status().await.unwrap_err().reason(), "INVALID_ARGUMENT");
    });
}

#[test]
fn a_producer_faster_than_the_disk_is_pushed_back() {
    run(async {
        let rig = Rig::new().await;
        let mut call = rig.open(APPEND_STREAM).await;
        rig.fake.hold();
        let value = "x".repeat(100 * 1024);
        let message = framed(&append("one", 0, &[&value]));
        let mut sent = 0;
        let mut stalled = 0;
        while stalled < 50 && sent < 400 {
            call.send.reserve_capacity(message.len());
            if call.send.capacity() >= message.len() {
                call.send.send_data(message.clone(), false).unwrap();
                (sent, stalled) = (sent + 1, 0);
            } else {
                stalled += 1;
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
        assert!((80..120).contains(&sent), "{sent} appends of 100 KiB were taken");
        rig.fake.let_go();
        assert_eq!(acks(&mut call, sent).await.len(), sent);
    });
}

#[test]
fn a_producer_that_vanishes_leaves_nothing_behind() {
    run(async {
        let rig = Rig::new().await;
        let mut call = rig.open(APPEND_STREAM).await;
        rig.fake.hold();
        for sequence in 0..100 {
            call.send(&append("one", sequence, &["a"]), false);
        }
        until(|| rig.fake.held() == 100).await;
        rig.connection.abort();
        drop(rig.client);
        rig.server.await.unwrap();
        rig.fake.let_go();
        assert_eq!(rig.edge.counters().connections_open, 0);
    });
}

fn fill(fake: &Fake, stream: &str, partition: u32, batches: usize, batch: usize) {
    let info = fake.find(Kind::Stream, stream).unwrap();
    for _ in 0..batches {
        let mut packer = RecordPacker::default();
        for _ in 0..batch {
            packer.push(&RecordView { value: &[7; 100], ..Default::default() });
        }
        let records = PackedRecords::check(packer.finish()).unwrap();
        let target = PartitionRef { resource: info.id, partition };
        fake.dispatch(ShardId(0), Command::Stream(target, StreamCommand::append(records)), ignore());
    }
}

#[test]
fn a_consumer_gets_what_is_there_and_what_comes() {
    run(async {
        let rig = Rig::new().await;
        fill(&rig.fake, "one", 0, 3, 10);
        let mut call = rig.open(SUBSCRIBE).await;
        call.send(&v1::SubscribeRequest { stream: "one".into(), ..Default::default() }, true);
        for round in 0..3 {
            let batch: v1::RecordBatch = call.next().await.unwrap();
            assert_eq!((batch.base_offset, batch.count, batch.records.len()), (round * 10, 10, 10));
        }
        until(|| rig.fake.waiting() == 1).await;
        fill(&rig.fake, "one", 0, 1, 5);
        assert_eq!(call.next::<v1::RecordBatch>().await.unwrap().base_offset, 30);
        call.send.send_reset(h2::Reason::CANCEL);
        until(|| rig.fake.waiting() == 0).await;
    });
}

#[test]
fn small_batches_share_data_frames() {
    run(async {
        let mut builder = h2::client::Builder::new();
        builder
            .max_frame_size(1024 * 1024)
            .initial_window_size(8 << 20)
            .initial_connection_window_size(8 << 20);
        let rig = Rig::with_client(Fake::new(1), GrpcConfig::default(), &builder).await;
        fill(&rig.fake, "one", 0, 5000, 1);
        let mut call = rig.open(SUBSCRIBE).await;
        let request = v1::SubscribeRequest { stream: "one".into(), stop_at_end: true, ..Default::default() };
        call.send(&request, true);
        let (mut frames, mut bytes) = (0, 0);
        while let Some(data) = call.data().await {
            (frames, bytes) = (frames + 1, bytes + data.len());
        }
        assert!(bytes > 500_000);
        assert!(frames <= 8, "{bytes} bytes came in {frames} frames");
        assert_eq!(call.status().await, Ok(()));
    });
}

#[test]
fn a_consumer_of_many_partitions_gets_each_in_order_and_an_end() {
    run(async {
        let rig = Rig::with(Fake::new(1), GrpcConfig::default()).await;
        for partition in 0..8 {
            fill(&rig.fake, "many", partition, partition as usize * 3, 2);
        }
        let mut call = rig.open(SUBSCRIBE).await;
        let from = vec![v1::PartitionOffset { partition: 7, offset: 40 }];
        let request =
            v1::SubscribeRequest { stream: "many".into(), stop_at_end: true, from, ..Default::default() };
        call.send(&request, true);
        let mut next = [0, 0, 0, 0, 0, 0, 0, 40];
        while let Some(batch) = call.next::<v1::RecordBatch>().await {
            let next = &mut next[batch.partition as usize];
            assert_eq!(batch.base_offset, *next);
            *next += u64::from(batch.count);
        }
        assert_eq!(next, [0, 6, 12, 18, 24, 30, 36, 42]);
        assert_eq!(call.status().await, Ok(()));
    });
}

#[test]
fn a_consumer_that_does_not_read_is_not_read_for() {
    run(async {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(100_000);
        let rig = Rig::with_client(Fake::new(1), GrpcConfig::default(), &builder).await;
        fill(&rig.fake, "one", 0, 1000, 100);
        let before = rig.fake.commands();
        let mut call = rig.open(SUBSCRIBE).await;
        call.send(&v1::SubscribeRequest { stream: "one".into(), ..Default::default() }, true);
        call.headers().await;
        for _ in 0..100 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let reads = rig.fake.commands() - before;
        assert!(reads <= 4, "{reads} reads of 256 KiB for a client that takes nothing");
    });
}

#[test]
fn wrong_subscriptions_are_refused_by_name() {
    run(async {
        let rig = Rig::new().await;
        let request = |stream: &str| v1::SubscribeRequest { stream: stream.into(), ..Default::default() };
        let place = v1::PartitionOffset { partition: 0, offset: 5 };
        for (request, reason) in [
            (request("none"), "RESOURCE_NOT_FOUND"),
            (v1::SubscribeRequest { partitions: vec![1], ..request("one") }, "NO_SUCH_PARTITION"),
            (v1::SubscribeRequest { partitions: vec![0, 0], ..request("one") }, "INVALID_ARGUMENT"),
            (
                v1::SubscribeRequest { partitions: vec![1], from: vec![place], ..request("many") },
                "INVALID_ARGUMENT",
            ),
            (v1::SubscribeRequest { from: vec![place], ..request("one") }, "OFFSET_OUT_OF_RANGE"),
            (
                v1::SubscribeRequest { from: vec![place], stop_at_end: true, ..request("one") },
                "OFFSET_OUT_OF_RANGE",
            ),
        ] {
            let mut call = rig.open(SUBSCRIBE).await;
            call.send(&request, true);
            assert_eq!(call.status().await.unwrap_err().reason(), reason, "{request:?}");
        }
    });
}

fn hello(credit: u32) -> v1::WorkRequest {
    let hello = v1::WorkHello { queue: "q".into(), worker: "w".into(), ..v1::WorkHello::default() };
    v1::WorkRequest { hello: Some(hello), credit, ..Default::default() }
}

async fn enqueue(rig: &Rig, jobs: usize) {
    let jobs = vec![v1::NewJob { payload: Bytes::from_static(b"work"), ..Default::default() }; jobs];
    let request = v1::EnqueueRequest { queue: "q".into(), jobs, wait_ms: 0 };
    rig.call::<v1::EnqueueResponse>("flowmesh.v1.Queue/Enqueue", &request).await.unwrap();
}

#[test]
fn a_worker_gets_jobs_up_to_its_credit() {
    run(async {
        let rig = Rig::new().await;
        enqueue(&rig, 5).await;
        let mut call = rig.open(WORK).await;
        call.send(&hello(3), false);
        let pushed: v1::WorkResponse = call.next().await.unwrap();
        assert_eq!(pushed.jobs.len(), 3);
        let ack =
            |job: &v1::LeasedJob| v1::AckItem { job_id: job.job_id, token: job.token, ..Default::default() };
        let acks = pushed.jobs.iter().map(ack).collect();
        let wrong = v1::NackItem { job_id: 99, token: 1, ..Default::default() };
        call.send(&v1::WorkRequest { acks, nacks: vec![wrong], ..Default::default() }, false);
        let mut outcomes = Vec::new();
        while outcomes.len() < 4 {
            let message: v1::WorkResponse = call.next().await.unwrap();
            assert!(message.jobs.is_empty(), "jobs beyond the credit");
            outcomes.extend(message.outcomes);
        }
        assert!(outcomes.iter().take(3).all(|outcome| outcome.error.is_none()));
        assert_eq!(outcomes[3].error.as_ref().unwrap().reason, "JOB_NOT_FOUND");
        call.send(&v1::WorkRequest { credit: 10, ..Default::default() }, false);
        let pushed: v1::WorkResponse = call.next().await.unwrap();
        assert_eq!(pushed.jobs.len(), 2);
        enqueue(&rig, 1).await;
        let pushed: v1::WorkResponse = call.next().await.unwrap();
        let job = &pushed.jobs[0];
        let extends = vec![v1::Lease { job_id: job.job_id, token: job.token }];
        call.send(&v1::WorkRequest { extends, ..Default::default() }, true);
        let extended: v1::WorkResponse = call.next().await.unwrap();
        assert!(extended.outcomes[0].leased_until_ms > 0);
        assert_eq!(call.status().await, Ok(()));
        assert_eq!(rig.fake.waiting(), 0);
    });
}

#[test]
fn a_worker_must_say_hello_once() {
    run(async {
        let rig = Rig::new().await;
        let mut call = rig.open(WORK).await;
        call.send(&v1::WorkRequest { credit: 1, ..Default::default() }, false);
        assert_eq!(call.status().await.unwrap_err().reason(), "INVALID_ARGUMENT");
        let mut call = rig.open(WORK).await;
        call.send(&hello(0), false);
        call.send(&hello(0), false);
        assert_eq!(call.status().await.unwrap_err().reason(), "INVALID_ARGUMENT");
        let mut call = rig.open(WORK).await;
        call.send(&hello(10_001), false);
        assert_eq!(call.status().await.unwrap_err().reason(), "TOO_LARGE");
    });
}

#[test]
fn a_deadline_ends_a_streaming_call() {
    run(async {
        let rig = Rig::new().await;
        let mut call = rig.open_with(WORK, |request| request.header("grpc-timeout", "30m")).await;
        call.send(&hello(1), false);
        assert_eq!(call.status().await.unwrap_err().code, 4);
        until(|| rig.fake.waiting() == 0).await;
    });
}

#[test]
fn a_watcher_of_health_hears_of_changes() {
    run(async {
        let rig = Rig::new().await;
        let mut call = rig.open("grpc.health.v1.Health/Watch").await;
        call.send(&health::HealthCheckRequest::default(), true);
        let state = |message: Option<health::HealthCheckResponse>| message.unwrap().status().as_str_name();
        assert_eq!(state(call.next().await), "SERVING");
        rig.fake.set_serving(false);
        assert_eq!(state(call.next().await), "NOT_SERVING");
    });
}

#[test]
fn reflection_answers_question_by_question() {
    run(async {
        let rig = Rig::new().await;
        let mut call = rig.open("grpc.reflection.v1.ServerReflection/ServerReflectionInfo").await;
        let ask = |request| ServerReflectionRequest { message_request: Some(request), ..Default::default() };
        call.send(&ask(MessageRequest::ListServices(String::new())), false);
        assert!(call.next::<ServerReflectionResponse>().await.unwrap().message_response.is_some());
        call.send(&ask(MessageRequest::FileContainingSymbol("flowmesh.v1.Kv".into())), true);
        assert!(call.next::<ServerReflectionResponse>().await.unwrap().message_response.is_some());
        assert_eq!(call.status().await, Ok(()));
    });
}
