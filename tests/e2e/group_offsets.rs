//! Offsets of groups: commit, fetch, forget, reset.

use flowmesh_proto::v1;
use flowmesh_proto::v1::reset_offsets_request::To;
use tonic::{Code, Status};

use crate::common::client::record;
use crate::common::consumer::{Member, hello};
use crate::common::{Client, Home, Server, eventually, now_ms, refused};

/// A stream of 2 partitions with 10 and 20 records, and a group.
async fn start(home: &Home) -> (Server, Client) {
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("logs", 2).await;
    append(&mut client, 0, 10).await;
    append(&mut client, 1, 20).await;
    client.create("g", v1::settings::Kind::Group(v1::GroupSettings::default())).await.unwrap();
    (server, client)
}

async fn append(client: &mut Client, partition: u32, count: usize) {
    let records = vec![record("x"); count];
    let append = v1::AppendRequest {
        stream: "logs".into(),
        partition: Some(partition),
        records,
        ..Default::default()
    };
    client.stream.append(append).await.unwrap();
}

fn at(partition: u32, offset: u64) -> v1::GroupOffset {
    v1::GroupOffset { stream: "logs".into(), partition, offset, ..v1::GroupOffset::default() }
}

async fn commit(
    client: &mut Client,
    offsets: Vec<v1::GroupOffset>,
) -> Result<Vec<v1::OffsetOutcome>, Status> {
    let request = v1::CommitOffsetsRequest { group: "g".into(), offsets, ..Default::default() };
    Ok(client.group.commit(request).await?.into_inner().outcomes)
}

async fn committed(client: &mut Client) -> Vec<(u32, u64)> {
    let request = v1::FetchOffsetsRequest { group: "g".into(), ..Default::default() };
    let offsets = client.group.fetch_offsets(request).await.unwrap().into_inner().offsets;
    assert!(offsets.iter().all(|offset| offset.stream == "logs"));
    offsets.iter().map(|offset| (offset.partition, offset.offset)).collect()
}

fn reasons(outcomes: &[v1::OffsetOutcome]) -> Vec<&str> {
    outcomes.iter().map(|outcome| outcome.error.as_ref().map_or("", |error| error.reason.as_str())).collect()
}

#[tokio::test]
async fn a_commit_beyond_the_end_is_refused_with_the_end_and_one_backwards_is_kept_and_said() {
    let home = Home::new();
    let (_server, mut client) = start(&home).await;
    let outcomes = commit(&mut client, vec![at(0, 11), at(1, 20), at(2, 0)]).await.unwrap();
    assert_eq!(reasons(&outcomes), ["OFFSET_OUT_OF_RANGE", "", "NO_SUCH_PARTITION"]);
    let message = &outcomes[0].error.as_ref().unwrap().message;
    assert!(message.contains("11") && message.contains("0..=10"), "{message}");
    assert_eq!((outcomes[1].previous, outcomes[1].backwards), (None, false));
    assert_eq!(committed(&mut client).await, [(1, 20)]);

    let outcomes = commit(&mut client, vec![at(1, 5)]).await.unwrap();
    assert_eq!(reasons(&outcomes), [""]);
    assert_eq!((outcomes[0].previous, outcomes[0].backwards), (Some(20), true));
    assert_eq!(committed(&mut client).await, [(1, 5)]);

    let nowhere = v1::GroupOffset { stream: "none".into(), ..at(0, 0) };
    let large = v1::GroupOffset { metadata: vec![0; 1025].into(), ..at(0, 1) };
    let fits = v1::GroupOffset { metadata: vec![0; 1024].into(), ..at(1, 1) };
    let outcomes = commit(&mut client, vec![nowhere, large, fits]).await.unwrap();
    assert_eq!(reasons(&outcomes), ["RESOURCE_NOT_FOUND", "TOO_LARGE", ""]);
    refused(commit(&mut client, vec![]).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let many = commit(&mut client, vec![at(0, 0); 10_001]).await;
    refused(many, Code::InvalidArgument, "TOO_LARGE");
}

#[tokio::test]
async fn offsets_come_back_with_their_metadata_and_are_forgotten_by_name() {
    let home = Home::new();
    let (_server, mut client) = start(&home).await;
    let before = now_ms();
    commit(&mut client, vec![v1::GroupOffset { metadata: "why".into(), ..at(0, 3) }]).await.unwrap();
    let of = |partitions: Vec<u32>| vec![v1::StreamPartitions { stream: "logs".into(), partitions }];
    let fetch = |streams| v1::FetchOffsetsRequest { group: "g".into(), streams, ..Default::default() };
    let found = client.group.fetch_offsets(fetch(of(vec![0]))).await.unwrap().into_inner().offsets;
    assert_eq!((found[0].offset, found[0].metadata.as_ref()), (3, b"why".as_slice()));
    assert!(found[0].committed_at_ms + 5_000 >= before);
    assert!(client.group.fetch_offsets(fetch(of(vec![1]))).await.unwrap().into_inner().offsets.is_empty());
    let far = client.group.fetch_offsets(fetch(of(vec![7]))).await;
    refused(far, Code::InvalidArgument, "NO_SUCH_PARTITION");

    let delete = |streams| v1::DeleteOffsetsRequest { group: "g".into(), streams };
    let outcomes = client.group.delete_offsets(delete(of(vec![0, 1]))).await.unwrap().into_inner().outcomes;
    assert_eq!(reasons(&outcomes), ["", "OFFSET_NOT_COMMITTED"]);
    assert_eq!(outcomes[0].offset, 3);
    assert!(committed(&mut client).await.is_empty());
    let outcomes = client.group.delete_offsets(delete(of(vec![]))).await.unwrap().into_inner().outcomes;
    assert!(outcomes.is_empty(), "of a whole stream only what is there counts");
    refused(client.group.delete_offsets(delete(vec![])).await, Code::InvalidArgument, "INVALID_ARGUMENT");
}

async fn reset(client: &mut Client, to: To, partitions: &[u32], dry_run: bool) -> Vec<v1::OffsetOutcome> {
    let streams = vec![v1::StreamPartitions { stream: "logs".into(), partitions: partitions.to_vec() }];
    let request = v1::ResetOffsetsRequest { group: "g".into(), streams, dry_run, to: Some(to) };
    let answer = client.group.reset_offsets(request).await.unwrap().into_inner();
    assert_eq!(answer.dry_run, dry_run);
    answer.outcomes
}

#[tokio::test]
async fn a_reset_goes_where_it_is_told_and_a_dry_run_only_says_so() {
    let home = Home::new();
    let (_server, mut client) = start(&home).await;
    commit(&mut client, vec![at(0, 4)]).await.unwrap();
    let offsets =
        |outcomes: &[v1::OffsetOutcome]| -> Vec<u64> { outcomes.iter().map(|o| o.offset).collect() };

    let outcomes = reset(&mut client, To::Latest(true), &[], true).await;
    assert_eq!((offsets(&outcomes), outcomes[0].previous), (vec![10, 20], Some(4)));
    assert_eq!(committed(&mut client).await, [(0, 4)], "a dry run changes nothing");
    let outcomes = reset(&mut client, To::Shift(3), &[], false).await;
    assert_eq!(reasons(&outcomes), ["", "OFFSET_NOT_COMMITTED"]);
    assert_eq!(committed(&mut client).await, [(0, 7)]);
    reset(&mut client, To::Shift(-100), &[0], false).await;
    assert_eq!(committed(&mut client).await, [(0, 0)], "as far as there are records");
    reset(&mut client, To::Latest(true), &[], false).await;
    assert_eq!(committed(&mut client).await, [(0, 10), (1, 20)]);
    let outcomes = reset(&mut client, To::Offset(15), &[], false).await;
    assert_eq!(reasons(&outcomes), ["OFFSET_OUT_OF_RANGE", ""]);
    assert!(outcomes[1].backwards);
    assert_eq!(committed(&mut client).await, [(0, 10), (1, 15)]);
    reset(&mut client, To::Earliest(true), &[1], false).await;
    assert_eq!(committed(&mut client).await, [(0, 10), (1, 0)]);

    // By time: what comes from now on is after it.
    let between = eventually("the clock goes on", || {
        let mut client = client.clone();
        async move {
            append(&mut client, 0, 1).await;
            let request = v1::ReadRequest {
                stream: "logs".into(),
                start: Some(v1::read_request::Start::Earliest(true)),
                ..Default::default()
            };
            let batches = client.stream.read(request).await.unwrap().into_inner().batches;
            let (first, last) = (batches.first().unwrap(), batches.last().unwrap());
            (first.appended_at_ms < last.appended_at_ms).then_some((last.appended_at_ms, last.base_offset))
        }
    })
    .await;
    reset(&mut client, To::TimestampMs(between.0), &[0], false).await;
    assert_eq!(committed(&mut client).await[0].1, between.1);

    // Everything that is known, where nothing is named.
    let all =
        v1::ResetOffsetsRequest { group: "g".into(), to: Some(To::Earliest(true)), ..Default::default() };
    let outcomes = client.group.reset_offsets(all).await.unwrap().into_inner().outcomes;
    assert_eq!(offsets(&outcomes), [0, 0]);
    let nowhere = v1::ResetOffsetsRequest { group: "g".into(), ..Default::default() };
    refused(client.group.reset_offsets(nowhere).await, Code::InvalidArgument, "INVALID_ARGUMENT");
}

#[tokio::test]
async fn what_members_use_is_reset_and_forgotten_by_nobody_else() {
    let home = Home::new();
    let (_server, mut client) = start(&home).await;
    commit(&mut client, vec![at(0, 4)]).await.unwrap();
    let mut member = Member::open(&mut client.clone(), hello("g", &["logs"]), 0).await.unwrap();
    member.assigned(2).await;
    for dry_run in [true, false] {
        let outcomes = reset(&mut client, To::Earliest(true), &[], dry_run).await;
        assert_eq!(reasons(&outcomes), ["PARTITION_IN_USE"; 2]);
    }
    assert_eq!(reasons(&commit(&mut client, vec![at(0, 5)]).await.unwrap()), ["PARTITION_IN_USE"]);
    let streams = vec![v1::StreamPartitions { stream: "logs".into(), partitions: vec![0] }];
    let delete = v1::DeleteOffsetsRequest { group: "g".into(), streams };
    let outcomes = client.group.delete_offsets(delete).await.unwrap().into_inner().outcomes;
    assert_eq!(reasons(&outcomes), ["PARTITION_IN_USE"]);
    assert_eq!(committed(&mut client).await, [(0, 4)]);
    drop(member);
    eventually("the member is gone", || {
        let mut client = client.clone();
        async move {
            let outcomes = reset(&mut client, To::Earliest(true), &[], false).await;
            outcomes.iter().all(|outcome| outcome.error.is_none()).then_some(())
        }
    })
    .await;
}
