//! What a replay session refuses, and what it says when its stream is gone.

use flowmesh_proto::v1;
use flowmesh_proto::v1::create_replay_request::{End, Start};
use tonic::Code;

use super::replays::{
    Got, append_all, commit, create, describe, ended, late, positions, start, until, which, work,
};
use crate::common::consumer::Member;
use crate::common::{Home, eventually, refused};

#[tokio::test]
async fn a_replay_group_that_names_a_production_group_is_refused() {
    let home = Home::new();
    let (_server, mut client) = start(&home, 1).await;
    append_all(&mut client, 1, 3).await;
    client.create("orders", v1::settings::Kind::Group(v1::GroupSettings::default())).await.unwrap();
    let named = v1::CreateReplayRequest { group: "orders".into(), ..late() };
    refused(client.replay.create(named).await, Code::FailedPrecondition, "GROUP_NOT_SANDBOX");
    refused(client.replay.describe(which()).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    create(&mut client, v1::CreateReplayRequest { group: "mine".into(), ..late() }).await;
    // Nor is a sandbox a group for others.
    let hello = crate::common::consumer::hello("mine", &["logs"]);
    let mut member = Member::open(&mut client, hello, 1).await.unwrap();
    refused(member.answers.message().await, Code::FailedPrecondition, "SANDBOX_GROUP");
    let commits =
        v1::CommitOffsetsRequest { group: "mine".into(), offsets: vec![commit(0, 1)], ..Default::default() };
    refused(client.group.commit(commits).await, Code::FailedPrecondition, "SANDBOX_GROUP");
    let streams = vec![v1::StreamPartitions { stream: "logs".into(), partitions: vec![] }];
    let reset = v1::ResetOffsetsRequest {
        group: "mine".into(),
        to: Some(v1::reset_offsets_request::To::Latest(true)),
        streams: streams.clone(),
        ..Default::default()
    };
    refused(client.group.reset_offsets(reset).await, Code::FailedPrecondition, "SANDBOX_GROUP");
    let forget = v1::DeleteOffsetsRequest { group: "mine".into(), streams };
    refused(client.group.delete_offsets(forget).await, Code::FailedPrecondition, "SANDBOX_GROUP");
    let delete = v1::DeleteGroupRequest { group: "mine".into(), force: true };
    refused(client.group.delete(delete).await, Code::FailedPrecondition, "SANDBOX_GROUP");
    let sandbox = v1::GroupSettings { sandbox: Some(true), ..Default::default() };
    let outcome = client.create("by-hand", v1::settings::Kind::Group(sandbox)).await;
    refused(outcome, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(positions(&describe(&mut client).await), [0]);
}

#[tokio::test]
async fn what_cannot_be_replayed_is_refused_by_name() {
    let home = Home::new();
    let (_server, mut client) = start(&home, 1).await;
    append_all(&mut client, 1, 3).await;
    let at = |partition, offset| vec![v1::PartitionOffset { partition, offset }];
    let cases = [
        (v1::CreateReplayRequest { stream: "none".into(), ..late() }, Code::NotFound, "RESOURCE_NOT_FOUND"),
        (
            v1::CreateReplayRequest { session: "a b".into(), ..late() },
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
        ),
        (
            v1::CreateReplayRequest { partitions: vec![4], ..late() },
            Code::InvalidArgument,
            "NO_SUCH_PARTITION",
        ),
        (v1::CreateReplayRequest { from: at(4, 0), ..late() }, Code::InvalidArgument, "INVALID_ARGUMENT"),
        (v1::CreateReplayRequest { from: at(0, 9), ..late() }, Code::OutOfRange, "OFFSET_OUT_OF_RANGE"),
        (v1::CreateReplayRequest { until: at(0, 9), ..late() }, Code::OutOfRange, "OFFSET_OUT_OF_RANGE"),
        (
            v1::CreateReplayRequest { from: at(0, 2), until: at(0, 1), ..late() },
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
        ),
        (
            v1::CreateReplayRequest {
                start: Some(Start::TimestampMs(9)),
                end: Some(End::UntilTimestampMs(8)),
                ..late()
            },
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
        ),
        (v1::CreateReplayRequest { speed: -1.0, ..late() }, Code::InvalidArgument, "INVALID_ARGUMENT"),
        (v1::CreateReplayRequest { speed: f64::NAN, ..late() }, Code::InvalidArgument, "INVALID_ARGUMENT"),
        (
            v1::CreateReplayRequest {
                filter: Some(v1::Filter { conditions: vec![v1::FilterCondition { condition: None }] }),
                ..late()
            },
            Code::InvalidArgument,
            "ILLEGAL_FILTER",
        ),
    ];
    for (request, code, reason) in cases {
        refused(client.replay.create(request).await, code, reason);
    }
    create(&mut client, late()).await;
    refused(client.replay.create(late()).await, Code::AlreadyExists, "RESOURCE_EXISTS");
    let seek = |all, to| v1::SeekReplayRequest { session: "late".into(), all, to };
    refused(client.replay.seek(seek(None, vec![])).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    refused(client.replay.seek(seek(None, at(0, 4))).await, Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    refused(client.replay.seek(seek(None, at(1, 0))).await, Code::InvalidArgument, "NO_SUCH_PARTITION");
    let step = v1::StepReplayRequest { session: "late".into(), count: 1001 };
    refused(client.replay.step(step).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let fail = v1::FailReplayRequest { session: "late".into(), error: "x".into() };
    refused(client.replay.fail(fail).await, Code::FailedPrecondition, "REPLAY_STATE");
    let by_hand =
        v1::CreateResourceRequest { kind: v1::Kind::Replay.into(), name: "x".into(), ..Default::default() };
    refused(client.admin.create_resource(by_hand).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let none = v1::ReplayRequest { session: "none".into() };
    refused(client.replay.start(none.clone()).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    refused(client.replay.delete(none).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    let mut member = Member::open_replay(&mut client, "late", 1).await.unwrap();
    until(&mut member, &mut Got::default(), "the state", |got| !got.states.is_empty()).await;
    // Records that retention or a trim took are passed over.
    let trim = v1::TrimRequest { stream: "logs".into(), partition: 0, before_offset: 2 };
    client.stream.trim(trim).await.unwrap();
    client.replay.start(which()).await.unwrap();
    let mut got = Got::default();
    member.send(v1::ConsumeRequest { credit: 10, ..Default::default() });
    work(&mut member, &mut got).await;
    assert_eq!(got.values(), ["2"]);
}

#[tokio::test]
async fn a_session_whose_stream_is_deleted_says_so() {
    let home = Home::new();
    let (_server, mut client) = start(&home, 1).await;
    append_all(&mut client, 1, 3).await;
    create(&mut client, v1::CreateReplayRequest { end: Some(End::Follow(true)), ..late() }).await;
    client.replay.start(which()).await.unwrap();
    let mut member = Member::open_replay(&mut client, "late", 100).await.unwrap();
    until(&mut member, &mut Got::default(), "what there was", |got| got.records.len() == 3).await;
    let delete = v1::DeleteResourceRequest { kind: v1::Kind::Stream.into(), name: "logs".into() };
    client.admin.delete_resource(delete).await.unwrap();
    refused(ended(&mut member).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    let session = eventually("the error is kept", || {
        let mut client = client.clone();
        async move { Some(describe(&mut client).await).filter(|s| s.state() == v1::ReplayState::Error) }
    })
    .await;
    assert!(session.error.contains("cannot be read"), "{}", session.error);
    assert!(session.stream.contains("deleted"), "{}", session.stream);
    let again = Member::open_replay(&mut client, "late", 1).await.map(|_| ());
    refused(again, Code::NotFound, "RESOURCE_NOT_FOUND");
    client.replay.delete(which()).await.unwrap();
}
