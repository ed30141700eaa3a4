//! Groups: membership by heartbeats, fencing, what a group says of itself, names and limits.

use flowmesh_proto::v1;
use tonic::{Code, Status};

use crate::common::{Client, Home, eventually, refused};

/// One member, as a client library would keep it.
struct Member {
    request: v1::HeartbeatRequest,
    answer: v1::HeartbeatResponse,
}

impl Member {
    async fn join(client: &mut Client, group: &str, instance: &str) -> Self {
        let request = v1::HeartbeatRequest {
            group: group.into(),
            instance_id: instance.into(),
            name: "test".into(),
            streams: vec!["logs".into()],
            ..v1::HeartbeatRequest::default()
        };
        let answer = client.group.heartbeat(request.clone()).await.unwrap().into_inner();
        let mut member = Self { request, answer };
        member.request.streams.clear();
        member.take();
        member
    }

    fn take(&mut self) {
        self.request.member_id.clone_from(&self.answer.member_id);
        self.request.member_epoch = self.answer.member_epoch;
        self.request.known_version = self.answer.version;
    }

    async fn beat(&mut self, client: &mut Client) -> Result<(), Status> {
        self.answer = client.group.heartbeat(self.request.clone()).await?.into_inner();
        self.request.owned = None;
        self.take();
        Ok(())
    }

    /// Lets go of what it must, and says so.
    async fn let_go(&mut self, client: &mut Client) {
        let streams = self.answer.assigned.clone();
        self.request.owned = Some(v1::OwnedPartitions { streams });
        self.beat(client).await.unwrap();
    }

    fn assigned(&self) -> Vec<u32> {
        self.answer.assigned.iter().flat_map(|some| some.partitions.clone()).collect()
    }

    fn revoking(&self) -> Vec<u32> {
        self.answer.revoking.iter().flat_map(|some| some.partitions.clone()).collect()
    }

    async fn commit(
        &self,
        client: &mut Client,
        partition: u32,
        offset: u64,
    ) -> Result<v1::OffsetOutcome, Status> {
        let offsets = vec![at(partition, offset)];
        let request = v1::CommitOffsetsRequest {
            group: self.request.group.clone(),
            member_id: self.request.member_id.clone(),
            member_epoch: self.request.member_epoch,
            instance_id: self.request.instance_id.clone(),
            offsets,
        };
        Ok(client.group.commit(request).await?.into_inner().outcomes.remove(0))
    }
}

fn at(partition: u32, offset: u64) -> v1::GroupOffset {
    v1::GroupOffset { stream: "logs".into(), partition, offset, ..v1::GroupOffset::default() }
}

fn error(outcome: &v1::OffsetOutcome) -> &str {
    outcome.error.as_ref().map_or("", |error| &error.reason)
}

async fn describe(client: &mut Client, group: &str) -> v1::DescribeGroupResponse {
    let request = v1::DescribeGroupRequest { group: group.into(), ..v1::DescribeGroupRequest::default() };
    client.group.describe(request).await.unwrap().into_inner()
}

async fn create_group(client: &mut Client, settings: v1::GroupSettings) {
    client.create("g", v1::settings::Kind::Group(settings)).await.unwrap();
}

#[tokio::test]
async fn a_partition_is_handed_on_only_once_it_was_let_go_of_and_the_old_epoch_is_fenced() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("logs", 4).await;
    client.append("logs", ["x"]).await.unwrap();
    let mut a = Member::join(&mut client, "g", "").await;
    a.beat(&mut client).await.unwrap();
    assert_eq!(a.assigned(), [0, 1, 2, 3]);
    assert_eq!(error(&a.commit(&mut client, 0, 0).await.unwrap()), "");
    let old = Member { request: a.request.clone(), answer: a.answer.clone() };

    let mut b = Member::join(&mut client, "g", "").await;
    b.beat(&mut client).await.unwrap();
    assert!(b.assigned().is_empty(), "nothing was let go of yet");
    a.beat(&mut client).await.unwrap();
    let (keeps, goes) = (a.assigned(), a.revoking());
    assert_eq!((keeps.len(), goes.len()), (2, 2));
    b.beat(&mut client).await.unwrap();
    assert!(b.assigned().is_empty(), "nothing was let go of yet");
    let pending: Vec<u32> = b.answer.pending.iter().flat_map(|some| some.partitions.clone()).collect();
    assert_eq!(pending, goes);
    let described = describe(&mut client, "g").await;
    let held_up = |partition: u32| described.partitions[partition as usize].held_up();
    assert!(goes.iter().all(|&partition| held_up(partition) == v1::HeldUp::NotReleased));
    assert!(keeps.iter().all(|&partition| held_up(partition) == v1::HeldUp::Unspecified));
    // It may still commit what it has not let go of.
    assert_eq!(error(&a.commit(&mut client, goes[0], 0).await.unwrap()), "");

    a.let_go(&mut client).await;
    b.beat(&mut client).await.unwrap();
    assert_eq!(b.assigned(), goes);
    assert_eq!(error(&b.commit(&mut client, goes[0], 0).await.unwrap()), "");
    // What A says of it now comes too late, in whatever epoch.
    assert_eq!(error(&a.commit(&mut client, goes[0], 0).await.unwrap()), "PARTITION_NOT_OWNED");
    match old.commit(&mut client, goes[0], 0).await {
        Ok(outcome) => assert_eq!(error(&outcome), "PARTITION_NOT_OWNED"),
        outcome => drop(refused(outcome, Code::FailedPrecondition, "STALE_MEMBER_EPOCH")),
    }
    let mut future = Member { request: b.request.clone(), answer: b.answer.clone() };
    future.request.member_epoch += 100;
    refused(future.commit(&mut client, goes[0], 0).await, Code::FailedPrecondition, "STALE_MEMBER_EPOCH");
    refused(future.beat(&mut client).await, Code::FailedPrecondition, "STALE_MEMBER_EPOCH");
}

#[tokio::test]
async fn a_silent_member_is_thrown_out_and_its_partitions_move() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("logs", 4).await;
    let settings = v1::GroupSettings { session_timeout_ms: Some(1_000), ..v1::GroupSettings::default() };
    create_group(&mut client, settings).await;
    let mut silent = Member::join(&mut client, "g", "").await;
    assert_eq!(silent.answer.session_timeout_ms, 1_000);
    silent.beat(&mut client).await.unwrap();
    let mut b = Member::join(&mut client, "g", "").await;
    while b.assigned().len() < 4 {
        // Waits for news, and is alive meanwhile.
        b.request.wait_ms = 200;
        b.beat(&mut client).await.unwrap();
    }
    refused(silent.commit(&mut client, 0, 0).await, Code::NotFound, "UNKNOWN_MEMBER");
    refused(silent.beat(&mut client).await, Code::NotFound, "UNKNOWN_MEMBER");
    let described = describe(&mut client, "g").await;
    assert_eq!(described.members.len(), 1);
    assert_eq!(described.members[0].member_id, b.answer.member_id);
    assert_eq!(described.group.unwrap().state(), v1::GroupState::Stable);
    let of = |name: &str| {
        server.metric(&format!("flowmesh_consumer_group_{name}"), "consumer_group=\"g\"").unwrap()
    };
    assert_eq!((of("members"), of("partitions"), of("assigned_partitions")), (1.0, 4.0, 4.0));
    assert!(of("rebalances_total") >= 3.0, "two joined and one is out: {}", of("rebalances_total"));
}

#[tokio::test]
async fn a_waiting_heartbeat_is_answered_when_something_changes() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("logs", 2).await;
    let mut a = Member::join(&mut client, "g", "").await;
    a.beat(&mut client).await.unwrap();
    let mut waiting = client.clone();
    a.request.wait_ms = 20_000;
    let news = tokio::spawn(async move {
        while a.revoking().is_empty() {
            a.beat(&mut waiting).await.unwrap();
        }
        a
    });
    let mut b = Member::join(&mut client, "g", "").await;
    let mut a = crate::common::within("the news", news).await.unwrap();
    a.request.wait_ms = 0;
    a.let_go(&mut client).await;
    b.request.wait_ms = 20_000;
    while b.assigned().is_empty() {
        crate::common::within("the partition", b.beat(&mut client)).await.unwrap();
    }
    // Who leaves is told so, and the other has everything at once.
    let leave = v1::HeartbeatRequest { leave: true, ..b.request.clone() };
    client.group.heartbeat(leave).await.unwrap();
    a.request.wait_ms = 20_000;
    while a.assigned().len() < 2 {
        crate::common::within("the rest", a.beat(&mut client)).await.unwrap();
    }
}

#[tokio::test]
async fn an_instance_is_taken_over_at_once_and_who_had_it_is_fenced() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("logs", 3).await;
    let mut first = Member::join(&mut client, "g", "i").await;
    first.beat(&mut client).await.unwrap();
    assert_eq!(first.assigned(), [0, 1, 2]);
    let second = Member::join(&mut client, "g", "i").await;
    assert_eq!(second.assigned(), [0, 1, 2]);
    assert_eq!(error(&second.commit(&mut client, 1, 0).await.unwrap()), "");
    refused(first.commit(&mut client, 1, 0).await, Code::FailedPrecondition, "FENCED_INSTANCE");
    refused(first.beat(&mut client).await, Code::FailedPrecondition, "FENCED_INSTANCE");

    let remove = v1::RemoveMemberRequest { group: "g".into(), instance_id: "i".into(), ..Default::default() };
    let removed = client.group.remove_member(remove.clone()).await.unwrap().into_inner();
    assert_eq!(removed.member_id, second.answer.member_id);
    refused(client.group.remove_member(remove).await, Code::NotFound, "UNKNOWN_MEMBER");
}

#[tokio::test]
async fn members_epochs_and_offsets_survive_a_kill() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("logs", 4).await;
    client.append("logs", ["a", "b", "c"]).await.unwrap();
    let mut a = Member::join(&mut client, "g", "").await;
    a.beat(&mut client).await.unwrap();
    let next: Vec<u64> = statuses(&mut client).await;
    for (partition, offset) in (0..).zip(&next) {
        assert_eq!(error(&a.commit(&mut client, partition, *offset).await.unwrap()), "");
    }
    server.kill9();
    let server = home.start();
    let mut client = server.client().await;
    let fetch = v1::FetchOffsetsRequest { group: "g".into(), ..v1::FetchOffsetsRequest::default() };
    let fetched = client.group.fetch_offsets(fetch).await.unwrap().into_inner().offsets;
    assert_eq!(fetched.iter().map(|found| found.offset).collect::<Vec<_>>(), next);
    // Its session goes on: same epoch, same partitions.
    let epoch = a.request.member_epoch;
    a.beat(&mut client).await.unwrap();
    assert_eq!((a.answer.member_epoch, a.assigned()), (epoch, vec![0, 1, 2, 3]));
    assert_eq!(error(&a.commit(&mut client, 2, next[2]).await.unwrap()), "");
}

async fn statuses(client: &mut Client) -> Vec<u64> {
    let request = v1::StreamStatusRequest { stream: "logs".into(), ..v1::StreamStatusRequest::default() };
    let partitions = client.stream.status(request).await.unwrap().into_inner().partitions;
    partitions.iter().map(|partition| partition.next_offset).collect()
}

#[tokio::test]
async fn a_group_is_listed_described_and_deleted() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("logs", 2).await;
    let settings = v1::GroupSettings { assignor: Some(v1::Assignor::Range.into()), ..Default::default() };
    create_group(&mut client, settings).await;
    let mut member = Member::join(&mut client, "g", "").await;
    member.beat(&mut client).await.unwrap();
    Member::join(&mut client, "other", "").await;
    let list = v1::ListGroupsRequest { page_size: 1, ..v1::ListGroupsRequest::default() };
    let page = client.group.list(list.clone()).await.unwrap().into_inner();
    assert_eq!((page.groups.len(), page.groups[0].path.as_str()), (1, "default/default/group/g"));
    let summary = &page.groups[0];
    assert_eq!((summary.members, summary.partitions, summary.assigned), (1, 2, 2));
    assert_eq!(summary.state(), v1::GroupState::Stable);
    let list = v1::ListGroupsRequest { page_token: page.next_page_token, ..list };
    let page = client.group.list(list).await.unwrap().into_inner();
    assert_eq!(
        (page.groups[0].path.as_str(), page.next_page_token.as_str()),
        ("default/default/group/other", "")
    );

    let append = |partition, count: usize| v1::AppendRequest {
        stream: "logs".into(),
        partition: Some(partition),
        records: vec![crate::common::client::record("x"); count],
        ..Default::default()
    };
    client.stream.append(append(0, 10)).await.unwrap();
    client.stream.append(append(1, 5)).await.unwrap();
    assert_eq!(error(&member.commit(&mut client, 0, 4).await.unwrap()), "");
    let request = v1::DescribeGroupRequest { group: "g".into(), with_time_lag: true, without_lag: false };
    let described = client.group.describe(request).await.unwrap().into_inner();
    assert_eq!(described.assignor, "range");
    let lags: Vec<_> = described.partitions.iter().map(|p| (p.committed, p.next_offset, p.lag)).collect();
    assert_eq!(lags, [(Some(4), Some(10), Some(6)), (None, Some(5), Some(5))]);
    assert!(described.partitions.iter().all(|p| p.lag_ms.is_some() && p.owner == member.answer.member_id));
    assert_eq!(described.members[0].assigned, member.answer.assigned);

    let delete = |force| v1::DeleteGroupRequest { group: "g".into(), force };
    refused(client.group.delete(delete(false)).await, Code::FailedPrecondition, "GROUP_NOT_EMPTY");
    client.group.delete(delete(true)).await.unwrap();
    refused(client.group.delete(delete(true)).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    refused(member.beat(&mut client).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    // One of that name that comes later shares nothing with it.
    let member = Member::join(&mut client, "g", "").await;
    let fetch = v1::FetchOffsetsRequest { group: "g".into(), ..v1::FetchOffsetsRequest::default() };
    assert!(client.group.fetch_offsets(fetch).await.unwrap().into_inner().offsets.is_empty());
    let leave = v1::HeartbeatRequest { leave: true, ..member.request.clone() };
    client.group.heartbeat(leave).await.unwrap();
    eventually("it can be deleted", || {
        let mut client = client.clone();
        async move { client.group.delete(delete(false)).await.ok() }
    })
    .await;
}

#[tokio::test]
async fn what_is_wrong_is_refused_by_name() {
    let home = Home::new().strict();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("logs", 2).await;
    let join = v1::HeartbeatRequest { group: "g".into(), streams: vec!["logs".into()], ..Default::default() };
    let beat = async |client: &mut Client, request| client.group.heartbeat(request).await;
    refused(beat(&mut client, join.clone()).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    create_group(&mut client, v1::GroupSettings::default()).await;
    let none = v1::HeartbeatRequest { streams: vec!["none".into()], ..join.clone() };
    refused(beat(&mut client, none).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    let nothing = v1::HeartbeatRequest { streams: vec![], ..join.clone() };
    refused(beat(&mut client, nothing).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let long = v1::HeartbeatRequest { member_id: "x".repeat(256), ..join.clone() };
    refused(beat(&mut client, long).await, Code::InvalidArgument, "TOO_LARGE");
    let long = v1::HeartbeatRequest { instance_id: "x".repeat(256), ..join.clone() };
    refused(beat(&mut client, long).await, Code::InvalidArgument, "TOO_LARGE");
    let many = v1::HeartbeatRequest { wait_ms: 60_001, ..join.clone() };
    refused(beat(&mut client, many).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let kind = v1::HeartbeatRequest { group: "default/default/stream/logs".into(), ..join.clone() };
    refused(beat(&mut client, kind).await, Code::InvalidArgument, "WRONG_KIND");
    let unknown = v1::HeartbeatRequest { member_id: "nobody".into(), member_epoch: 3, ..join.clone() };
    refused(beat(&mut client, unknown).await, Code::NotFound, "UNKNOWN_MEMBER");
    let leave = v1::HeartbeatRequest { member_id: "nobody".into(), leave: true, ..join };
    refused(beat(&mut client, leave).await, Code::NotFound, "UNKNOWN_MEMBER");
    let remove =
        v1::RemoveMemberRequest { group: "g".into(), member_id: "nobody".into(), ..Default::default() };
    refused(client.group.remove_member(remove).await, Code::NotFound, "UNKNOWN_MEMBER");
    let remove = v1::RemoveMemberRequest { group: "g".into(), ..Default::default() };
    refused(client.group.remove_member(remove).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let describe = v1::DescribeGroupRequest { group: "none".into(), ..Default::default() };
    refused(client.group.describe(describe).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    for (settings, field) in [
        (v1::GroupSettings { session_timeout_ms: Some(999), ..Default::default() }, "session_timeout_ms"),
        (v1::GroupSettings { rebalance_timeout_ms: Some(0), ..Default::default() }, "rebalance_timeout_ms"),
        (v1::GroupSettings { assignor: Some(9), ..Default::default() }, "assignor"),
    ] {
        let outcome = client.create("bad", v1::settings::Kind::Group(settings)).await;
        let status = refused(outcome, Code::InvalidArgument, "INVALID_ARGUMENT");
        crate::common::client::names_field(&status, field);
    }
}
