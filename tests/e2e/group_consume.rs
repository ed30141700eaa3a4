//! Consume: members that share partitions on one call each.

use std::collections::BTreeSet;

use flowmesh_proto::v1;
use tonic::{Code, Status, Streaming};

use crate::common::client::record;
use crate::common::consumer::{Member, Worker, hello, no_work};
use crate::common::{Client, Home, Server, eventually, refused, within};

const PARTITIONS: u32 = 6;

async fn start(home: &Home) -> (Server, Client) {
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("logs", PARTITIONS).await;
    (server, client)
}

/// Sets how long a silent member keeps its place.
async fn create_group(client: &mut Client, name: &str, session_timeout_ms: u64) {
    let settings =
        v1::GroupSettings { session_timeout_ms: Some(session_timeout_ms), ..v1::GroupSettings::default() };
    client.create(name, v1::settings::Kind::Group(settings)).await.unwrap();
}

/// Appends one record to every partition, `rounds` times; values count up within a partition.
async fn append_rounds(client: &mut Client, from: u64, rounds: u64) {
    for round in from..from + rounds {
        for partition in 0..PARTITIONS {
            let records = vec![record(round.to_string())];
            let append = v1::AppendRequest {
                stream: "logs".into(),
                partition: Some(partition),
                records,
                ..Default::default()
            };
            client.stream.append(append).await.unwrap();
        }
    }
}

/// Partitions that each have one owner among the workers.
fn disjoint(workers: &[&Worker]) -> Option<BTreeSet<u32>> {
    let mut all = BTreeSet::new();
    for worker in workers {
        for partition in worker.owned() {
            if !all.insert(partition) {
                return None;
            }
        }
    }
    Some(all)
}

async fn all_owned(workers: &[&Worker]) {
    eventually("every partition has one owner", || async {
        disjoint(workers).filter(|all| all.len() == PARTITIONS as usize)
    })
    .await;
}

/// Records of all workers, sorted, each once.
fn worked_on(workers: &[&Worker]) -> Vec<(u32, u64)> {
    let mut all: Vec<(u32, u64)> = workers
        .iter()
        .flat_map(|worker| {
            worker.look(|seen| seen.records.iter().map(|(p, o, _)| (*p, *o)).collect::<Vec<_>>())
        })
        .collect();
    all.sort_unstable();
    all
}

fn every_record(rounds: u64) -> Vec<(u32, u64)> {
    (0..PARTITIONS).flat_map(|partition| (0..rounds).map(move |offset| (partition, offset))).collect()
}

#[tokio::test]
async fn three_members_share_partitions_and_each_record_is_worked_on_once() {
    let home = Home::new();
    let (server, mut client) = start(&home).await;
    let a = Worker::start(&server, hello("g", &["logs"]), no_work());
    a.owns(6).await;
    append_rounds(&mut client, 0, 10).await;
    let b = Worker::start(&server, hello("g", &["logs"]), no_work());
    let _ = (a.owns(3).await, b.owns(3).await);
    append_rounds(&mut client, 10, 10).await;
    let c = Worker::start(&server, hello("g", &["logs"]), no_work());
    let _ = (a.owns(2).await, b.owns(2).await, c.owns(2).await);
    assert_eq!(disjoint(&[&a, &b, &c]).unwrap().len(), 6);
    append_rounds(&mut client, 20, 10).await;
    eventually("all records", || async { Some(()).filter(|()| worked_on(&[&a, &b, &c]).len() >= 6 * 30) })
        .await;
    // Nobody was lost and everything was let go of in order: nothing was worked on twice.
    assert_eq!(worked_on(&[&a, &b, &c]), every_record(30));
    for worker in [&a, &b, &c] {
        assert_eq!(worker.look(|seen| seen.refused.clone()), Vec::<String>::new());
    }
    // Only what moved was taken: A gave up four of six, B one of three.
    assert_eq!((a.look(|seen| seen.revoked.len()), b.look(|seen| seen.revoked.len())), (4, 1));
}

#[tokio::test]
async fn partitions_of_a_consumer_that_is_gone_move_and_the_others_never_pause() {
    let home = Home::new();
    let (server, mut client) = start(&home).await;
    create_group(&mut client, "g", 2_000).await;
    let a = Worker::start(&server, hello("g", &["logs"]), no_work());
    let b = Worker::start(&server, hello("g", &["logs"]), no_work());
    // One that would keep its place: its partitions move once its session is over, and no sooner.
    let lasting = v1::ConsumeHello { instance_id: "c-1".into(), ..hello("g", &["logs"]) };
    let c = Worker::start(&server, lasting, no_work());
    let _ = (a.owns(2).await, b.owns(2).await, c.owns(2).await);
    let before = (a.owned(), b.owned());
    let revoked = (a.look(|seen| seen.revoked.len()), b.look(|seen| seen.revoked.len()));
    c.kill().await;
    append_rounds(&mut client, 0, 5).await;
    all_owned(&[&a, &b]).await;
    assert!(a.owned().is_superset(&before.0) && b.owned().is_superset(&before.1));
    assert_eq!((a.look(|seen| seen.revoked.len()), b.look(|seen| seen.revoked.len())), revoked);
    eventually("all records", || async { Some(()).filter(|()| worked_on(&[&a, &b]).len() >= 30) }).await;
    assert_eq!(worked_on(&[&a, &b]), every_record(5));
    // One without an instance leaves with its connection.
    b.kill().await;
    a.owns(6).await;
    assert!(a.owned().is_superset(&before.0));
}

#[tokio::test]
async fn a_static_member_comes_back_to_its_partitions_without_a_rebalance() {
    let home = Home::new();
    let (server, mut client) = start(&home).await;
    create_group(&mut client, "g", 600_000).await;
    let instance = |id: &str| v1::ConsumeHello { instance_id: id.into(), ..hello("g", &["logs"]) };
    let a = Worker::start(&server, instance("a"), no_work());
    let b = Worker::start(&server, instance("b"), no_work());
    let (of_a, of_b) = (a.owns(3).await, b.owns(3).await);
    append_rounds(&mut client, 0, 3).await;
    eventually("all records", || async { Some(()).filter(|()| worked_on(&[&a, &b]).len() == 18) }).await;
    let described = eventually("all is committed and settled", || {
        let mut client = client.clone();
        async move {
            let group = describe(&mut client, "g").await;
            Some(group).filter(|group| group.partitions.iter().all(|p| p.lag == Some(0)))
        }
    })
    .await;
    let given = a.look(|seen| seen.given.len());
    b.kill().await;
    let away = eventually("its place is kept", || {
        let mut client = client.clone();
        async move { Some(describe(&mut client, "g").await).filter(|g| g.members.iter().any(|m| m.away)) }
    })
    .await;
    let why =
        |group: &v1::DescribeGroupResponse, partition: u32| group.partitions[partition as usize].held_up();
    assert!(of_b.iter().all(|&partition| why(&away, partition) == v1::HeldUp::Away));
    assert!(of_a.iter().all(|&partition| why(&away, partition) == v1::HeldUp::Unspecified));

    let b = Worker::start(&server, instance("b"), no_work());
    assert_eq!(b.owns(3).await, of_b);
    append_rounds(&mut client, 3, 1).await;
    eventually("the new records", || async { Some(()).filter(|()| b.look(|seen| seen.records.len()) == 3) })
        .await;
    assert_eq!(a.look(|seen| (seen.given.len(), seen.owned.clone())), (given, of_a));
    let epoch = |group: &v1::DescribeGroupResponse| group.group.as_ref().unwrap().epoch;
    assert_eq!(epoch(&describe(&mut client, "g").await), epoch(&described), "nothing was assigned anew");
}

async fn describe(client: &mut Client, group: &str) -> v1::DescribeGroupResponse {
    let request = v1::DescribeGroupRequest { group: group.into(), ..v1::DescribeGroupRequest::default() };
    client.group.describe(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn no_more_records_are_pushed_than_there_is_credit() {
    let home = Home::new();
    let (_server, mut client) = start(&home).await;
    append_rounds(&mut client, 0, 20).await;
    let mut member = Member::open(&mut client.clone(), hello("g", &["logs"]), 7).await.unwrap();
    assert_eq!(member.records(7).await.len(), 7);
    // A commit is answered, and no record comes before.
    let commits = vec![v1::GroupOffset { stream: "logs".into(), ..Default::default() }];
    member.send(v1::ConsumeRequest { commits, ..Default::default() });
    let answer = member.next().await;
    assert!(answer.batches.is_empty() && answer.outcomes[0].error.is_none(), "{answer:?}");
    member.send(v1::ConsumeRequest { credit: 1_000, ..Default::default() });
    let mut rest = member.records(113).await;
    assert_eq!(rest.len(), 113);
    rest.sort_by_key(|(partition, offset, _)| (*partition, *offset));
    assert!(rest.iter().all(|(_, offset, record)| record.value == offset.to_string()));
}

#[tokio::test]
async fn a_paused_partition_holds_up_no_other_and_a_seek_goes_where_it_is_told() {
    let home = Home::new();
    let (_server, mut client) = start(&home).await;
    let mut member = Member::open(&mut client.clone(), hello("g", &["logs"]), 100_000).await.unwrap();
    member.assigned(6).await;
    let some = |partition| vec![v1::StreamPartitions { stream: "logs".into(), partitions: vec![partition] }];
    member.send(v1::ConsumeRequest { pause: some(2), ..Default::default() });
    // The answer to a commit says that the pause has arrived.
    let commits = vec![v1::GroupOffset { stream: "logs".into(), ..Default::default() }];
    member.send(v1::ConsumeRequest { commits, ..Default::default() });
    member.outcomes(1).await;
    append_rounds(&mut client, 0, 10).await;
    let records = member.records(50).await;
    assert!(records.iter().all(|(partition, ..)| *partition != 2), "nothing of a paused one");
    member.send(v1::ConsumeRequest { resume: some(2), ..Default::default() });
    let records = member.records(10).await;
    assert!(
        records.iter().enumerate().all(|(n, (partition, offset, _))| (*partition, *offset) == (2, n as u64))
    );

    let to = |partition, offset| v1::GroupOffset {
        stream: "logs".into(),
        partition,
        offset,
        ..Default::default()
    };
    member.send(v1::ConsumeRequest { seek: vec![to(4, 7)], ..Default::default() });
    let again: Vec<(u32, u64)> = member.records(3).await.into_iter().map(|(p, o, _)| (p, o)).collect();
    assert_eq!(again, [(4, 7), (4, 8), (4, 9)]);
}

#[tokio::test]
async fn a_member_starts_where_its_group_is_and_at_the_end_it_was_told_where_nothing_was_committed() {
    let home = Home::new();
    let (_server, mut client) = start(&home).await;
    append_rounds(&mut client, 0, 4).await;
    let commit = |offset, metadata: &'static str| v1::GroupOffset {
        stream: "logs".into(),
        partition: 1,
        offset,
        metadata: metadata.into(),
    };
    let commits =
        v1::CommitOffsetsRequest { group: "g".into(), offsets: vec![commit(3, "m")], ..Default::default() };
    create_group(&mut client, "g", 45_000).await;
    client.group.commit(commits).await.unwrap();
    let latest = v1::ConsumeHello { start_at: v1::StartAt::Latest.into(), ..hello("g", &["logs"]) };
    let mut member = Member::open(&mut client.clone(), latest, 1_000).await.unwrap();
    let assigned = member.assigned(6).await;
    for at in &assigned {
        let expected = if at.partition == 1 { (3, "m") } else { (4, "") };
        assert_eq!((at.offset, at.metadata.as_ref()), (expected.0, expected.1.as_bytes()), "{at:?}");
    }
    assert_eq!(member.records(1).await[0].1, 3);
    // Half-closed: what was sent is answered, then the call ends and the member is gone.
    member.send(v1::ConsumeRequest { commits: vec![commit(4, ""), commit(9, "")], ..Default::default() });
    let Member { sender, mut answers } = member;
    drop(sender);
    let mut outcomes = Vec::new();
    while let Some(message) = within("the last answers", answers.message()).await.unwrap() {
        outcomes.extend(message.outcomes);
    }
    assert_eq!(outcomes.len(), 2);
    assert_eq!((outcomes[0].error.clone(), outcomes[0].previous), (None, Some(3)));
    assert_eq!(outcomes[1].error.as_ref().unwrap().reason, "OFFSET_OUT_OF_RANGE");
    eventually("the group is empty", || {
        let mut client = client.clone();
        async move { describe(&mut client, "g").await.members.is_empty().then_some(()) }
    })
    .await;
}

/// How a call ends that is to fail.
async fn end_of(mut answers: Streaming<v1::ConsumeResponse>) -> Result<(), Status> {
    while within("a refusal", answers.message()).await?.is_some() {}
    Ok(())
}

#[tokio::test]
async fn a_call_that_starts_wrong_is_refused_and_one_whose_stream_goes_ends() {
    let home = Home::new();
    let (_server, mut client) = start(&home).await;
    let outcome = async |client: &mut Client, hello: v1::ConsumeHello, credit| {
        end_of(Member::open(client, hello, credit).await?.answers).await
    };
    let none = outcome(&mut client, hello("g", &["none"]), 1).await;
    refused(none, Code::NotFound, "RESOURCE_NOT_FOUND");
    let no_stream = outcome(&mut client, hello("g", &[]), 1).await;
    refused(no_stream, Code::InvalidArgument, "INVALID_ARGUMENT");
    let twice = outcome(&mut client, hello("g", &["logs", "default/default/logs"]), 1).await;
    refused(twice, Code::InvalidArgument, "INVALID_ARGUMENT");
    let greedy = outcome(&mut client, hello("g", &["logs"]), 1_000_001).await;
    refused(greedy, Code::InvalidArgument, "TOO_LARGE");
    let kind = outcome(&mut client, hello("default/default/stream/logs", &["logs"]), 1).await;
    refused(kind, Code::InvalidArgument, "WRONG_KIND");
    let long = v1::ConsumeHello { name: "x".repeat(256), ..hello("g", &["logs"]) };
    refused(outcome(&mut client, long, 1).await, Code::InvalidArgument, "TOO_LARGE");

    let mut member = Member::open(&mut client.clone(), hello("g", &["logs"]), 1).await.unwrap();
    member.assigned(6).await;
    let delete = v1::DeleteResourceRequest { kind: v1::Kind::Stream.into(), name: "logs".into() };
    client.admin.delete_resource(delete).await.unwrap();
    refused(end_of(member.answers).await, Code::NotFound, "RESOURCE_NOT_FOUND");

    client.create_stream("more", 1).await;
    let member = Member::open(&mut client.clone(), hello("g", &["more"]), 1).await.unwrap();
    let hello_again = v1::ConsumeRequest { hello: Some(hello("g", &["more"])), ..Default::default() };
    member.send(hello_again);
    refused(end_of(member.answers).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let member = Member::open(&mut client.clone(), hello("g", &["more"]), 1).await.unwrap();
    let seek = vec![v1::GroupOffset { stream: "more".into(), partition: 1, ..Default::default() }];
    member.send(v1::ConsumeRequest { seek, ..Default::default() });
    refused(end_of(member.answers).await, Code::InvalidArgument, "NO_SUCH_PARTITION");
}
