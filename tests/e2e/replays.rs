//! Replay sessions: a stream once more, without touching who reads it for real.

use std::time::Instant;

use flowmesh_proto::v1;
use flowmesh_proto::v1::create_replay_request::{End, Start};
use flowmesh_proto::v1::filter_condition::Condition;
use flowmesh_proto::v1::seek_replay_request::All;
use tonic::Code;

use crate::common::client::record;
use crate::common::consumer::Member;
use crate::common::{Client, Home, Server, eventually, now_ms, refused, within};

pub async fn start(home: &Home, partitions: u32) -> (Server, Client) {
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("logs", partitions).await;
    (server, client)
}

/// Appends one record; when that was, and where it is.
pub async fn append(client: &mut Client, partition: u32, record: v1::Record) -> (u64, u64) {
    let append = v1::AppendRequest {
        stream: "logs".into(),
        partition: Some(partition),
        records: vec![record],
        ..Default::default()
    };
    let appended = client.stream.append(append).await.unwrap().into_inner();
    (appended.appended_at_ms, appended.base_offset)
}

pub async fn append_all(client: &mut Client, partitions: u32, rounds: u64) {
    for round in 0..rounds {
        for partition in 0..partitions {
            append(client, partition, record(round.to_string())).await;
        }
    }
}

pub fn late() -> v1::CreateReplayRequest {
    v1::CreateReplayRequest { session: "late".into(), stream: "logs".into(), ..Default::default() }
}

pub fn which() -> v1::ReplayRequest {
    v1::ReplayRequest { session: "late".into() }
}

pub async fn create(client: &mut Client, request: v1::CreateReplayRequest) -> v1::ReplaySession {
    client.replay.create(request).await.unwrap().into_inner()
}

pub async fn describe(client: &mut Client) -> v1::ReplaySession {
    client.replay.describe(which()).await.unwrap().into_inner()
}

pub fn positions(session: &v1::ReplaySession) -> Vec<u64> {
    session.partitions.iter().map(|partition| partition.position).collect()
}

pub fn commit(partition: u32, offset: u64) -> v1::GroupOffset {
    v1::GroupOffset { stream: "logs".into(), partition, offset, ..Default::default() }
}

/// What a consumer got.
#[derive(Default)]
pub struct Got {
    pub records: Vec<(u32, u64, v1::Record)>,
    pub arrivals: Vec<Instant>,
    pub states: Vec<v1::ReplayState>,
    pub outcomes: Vec<v1::OffsetOutcome>,
    pub assigned: Vec<(u32, u64)>,
}

impl Got {
    fn take(&mut self, message: v1::ConsumeResponse) {
        self.states.extend(message.replay.iter().map(v1::ReplayUpdate::state));
        self.outcomes.extend(message.outcomes);
        self.assigned.extend(message.assigned.iter().map(|at| (at.partition, at.offset)));
        for batch in message.batches {
            let batch = batch.batch.unwrap();
            for (index, record) in batch.records.into_iter().enumerate() {
                let delta = batch.offset_deltas.get(index).copied().unwrap_or(index as u64);
                self.records.push((batch.partition, batch.base_offset + delta, record));
                self.arrivals.push(Instant::now());
            }
        }
    }

    pub fn values(&self) -> Vec<String> {
        let text = |record: &v1::Record| String::from_utf8(record.value.to_vec()).unwrap();
        self.records.iter().map(|(_, _, record)| text(record)).collect()
    }
}

/// Takes messages until that is so.
pub async fn until(member: &mut Member, got: &mut Got, what: &str, done: impl Fn(&Got) -> bool) {
    while !done(got) {
        let message = within(what, member.answers.message()).await.unwrap();
        got.take(message.unwrap_or_else(|| panic!("the call ended before: {what}")));
    }
}

/// How a call ends.
pub async fn ended(member: &mut Member) -> Result<(), tonic::Status> {
    while within("the end", member.answers.message()).await?.is_some() {}
    Ok(())
}

/// Works on everything until the session is over: commits each batch.
pub async fn work(member: &mut Member, got: &mut Got) {
    while let Some(message) = within("the end", member.answers.message()).await.unwrap() {
        let batches: Vec<_> = message.batches.iter().map(|batch| batch.batch.clone().unwrap()).collect();
        let released = message.revoked.clone();
        got.take(message);
        if !released.is_empty() {
            let _ = member.sender.send(v1::ConsumeRequest { released, ..Default::default() });
        }
        for batch in batches {
            let last = batch.offset_deltas.last().copied().unwrap_or(u64::from(batch.count) - 1);
            let commits = vec![commit(batch.partition, batch.base_offset + last + 1)];
            let _ =
                member.sender.send(v1::ConsumeRequest { commits, credit: batch.count, ..Default::default() });
        }
    }
}

#[tokio::test]
async fn a_session_replays_what_there_was_and_touches_no_other_group() {
    let home = Home::new().shards(2);
    let (server, mut client) = start(&home, 3).await;
    append_all(&mut client, 3, 10).await;
    // A group of production, somewhere in the middle.
    let commits = v1::CommitOffsetsRequest {
        group: "orders".into(),
        offsets: (0..3).map(|partition| commit(partition, 4)).collect(),
        ..Default::default()
    };
    client.create("orders", v1::settings::Kind::Group(v1::GroupSettings::default())).await.unwrap();
    client.group.commit(commits).await.unwrap();
    let fetch = || v1::FetchOffsetsRequest { group: "orders".into(), ..Default::default() };
    let before = client.group.fetch_offsets(fetch()).await.unwrap().into_inner();

    let created = create(&mut client, late()).await;
    assert_eq!(
        (created.state(), created.left, created.stream.as_str()),
        (v1::ReplayState::Created, Some(30), "logs")
    );
    assert_eq!(
        (created.path.as_str(), created.group.as_str()),
        ("default/default/replay/late", "default/default/group/replay.late")
    );
    // What comes later is not replayed.
    append_all(&mut client, 3, 2).await;
    let mut member = Member::open_replay(&mut client, "late", 100).await.unwrap();
    client.replay.start(which()).await.unwrap();
    let mut got = Got::default();
    work(&mut member, &mut got).await;
    assert_eq!(got.records.len(), 30);
    for partition in 0..3 {
        let of: Vec<u64> = got.records.iter().filter(|(p, ..)| *p == partition).map(|(_, o, _)| *o).collect();
        assert_eq!(of, (0..10).collect::<Vec<_>>());
    }
    for (_, offset, record) in &got.records {
        assert_eq!(record.value, offset.to_string());
        let headers: Vec<_> = record.headers.iter().map(|h| (h.name.as_str(), &h.value[..])).collect();
        assert_eq!(headers, [("x-flowmesh-replay", &b"true"[..]), ("x-flowmesh-replay-session", b"late")]);
    }
    assert!(got.outcomes.iter().all(|outcome| outcome.error.is_none()), "{:?}", got.outcomes);
    assert_eq!(got.states.last(), Some(&v1::ReplayState::Completed));
    let done = describe(&mut client).await;
    assert_eq!((done.state(), done.left, done.records_total), (v1::ReplayState::Completed, Some(0), 30));
    assert_eq!(client.group.fetch_offsets(fetch()).await.unwrap().into_inner(), before);
    // The stream itself has no such headers.
    assert!(client.read_from("logs", 0, 0).await.iter().all(|(_, record)| record.headers.is_empty()));

    let metric = |name: &str, labels: &str| server.metric(name, labels);
    assert_eq!(metric("flowmesh_replay_sessions", "state=\"completed\""), Some(1.0));
    assert_eq!(metric("flowmesh_replay_session_records", ""), Some(30.0));
    let session = "tenant=\"default\",namespace=\"default\",session=\"late\"";
    assert_eq!(metric("flowmesh_replay_records", session), Some(30.0));

    // Who comes when it is over is told so.
    let mut member = Member::open_replay(&mut client, "late", 100).await.unwrap();
    let mut got = Got::default();
    work(&mut member, &mut got).await;
    assert_eq!((got.states.as_slice(), got.records.len()), (&[v1::ReplayState::Completed][..], 0));
    let list = client.replay.list(v1::ListReplaysRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.sessions, [describe(&mut client).await]);
    client.replay.delete(which()).await.unwrap();
    refused(client.replay.describe(which()).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    let group = v1::DescribeGroupRequest { group: "replay.late".into(), ..Default::default() };
    refused(client.group.describe(group).await, Code::NotFound, "RESOURCE_NOT_FOUND");
}

#[tokio::test]
async fn consumers_of_one_session_share_its_partitions() {
    let home = Home::new().shards(2);
    let (server, mut client) = start(&home, 4).await;
    append_all(&mut client, 4, 20).await;
    create(&mut client, late()).await;
    let mut other = server.client_of_core(1).await;
    let (mut a, mut b) = (
        Member::open_replay(&mut client, "late", 100).await.unwrap(),
        Member::open_replay(&mut other, "late", 100).await.unwrap(),
    );
    let (mut got_a, mut got_b) = (Got::default(), Got::default());
    let start = async {
        eventually("both have partitions", || {
            let mut client = client.clone();
            async move {
                let group = v1::DescribeGroupRequest { group: "replay.late".into(), ..Default::default() };
                let group = client.group.describe(group).await.unwrap().into_inner();
                let shares = group.members.iter().filter(|member| !member.assigned.is_empty());
                (shares.count() == 2 && group.group.unwrap().state() == v1::GroupState::Stable).then_some(())
            }
        })
        .await;
        client.clone().replay.start(which()).await.unwrap();
    };
    tokio::join!(work(&mut a, &mut got_a), work(&mut b, &mut got_b), start);
    assert!(!got_a.records.is_empty());
    assert!(!got_b.records.is_empty());
    let mut all: Vec<(u32, u64)> =
        got_a.records.iter().chain(&got_b.records).map(|(p, o, _)| (*p, *o)).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, (0..4).flat_map(|p| (0..20).map(move |o| (p, o))).collect::<Vec<_>>());
    assert_eq!(describe(&mut client).await.state(), v1::ReplayState::Completed);
}

#[tokio::test]
async fn a_pause_holds_at_once_wherever_the_consumer_is() {
    let home = Home::new().shards(2);
    let (server, mut client) = start(&home, 1).await;
    append_all(&mut client, 1, 50).await;
    create(&mut client, late()).await;
    client.replay.start(which()).await.unwrap();
    for core in 0..2 {
        let mut other = server.client_of_core(core).await;
        let mut member = Member::open_replay(&mut other, "late", 1).await.unwrap();
        let mut got = Got::default();
        until(&mut member, &mut got, "one record", |got| got.records.len() == 1).await;
        client.replay.pause(which()).await.unwrap();
        until(&mut member, &mut got, "the pause", |got| got.states.last() == Some(&v1::ReplayState::Paused))
            .await;
        let first = got.records[0].1;
        let request =
            v1::ConsumeRequest { credit: 4, commits: vec![commit(0, first + 1)], ..Default::default() };
        member.send(request);
        // The server has the credit, and the session is paused: nothing comes.
        until(&mut member, &mut got, "the outcome", |got| got.outcomes.len() == 1).await;
        assert_eq!((got.outcomes[0].error.as_ref(), got.records.len()), (None, 1));
        refused(client.replay.pause(which()).await, Code::FailedPrecondition, "REPLAY_STATE");
        client.replay.resume(which()).await.unwrap();
        until(&mut member, &mut got, "more records", |got| got.records.len() == 5).await;
        // It goes on where it was; nothing comes twice.
        let offsets: Vec<u64> = got.records.iter().map(|(_, offset, _)| *offset).collect();
        assert_eq!(offsets, (first..first + 5).collect::<Vec<_>>());
        member.send(v1::ConsumeRequest { commits: vec![commit(0, first + 5)], ..Default::default() });
        until(&mut member, &mut got, "the outcome", |got| got.outcomes.len() == 2).await;
    }
    let session = describe(&mut client).await;
    assert_eq!((positions(&session), session.state()), (vec![10], v1::ReplayState::Active));
}

#[tokio::test]
async fn a_seek_begins_anew_and_what_was_before_cannot_be_committed() {
    let home = Home::new();
    let (_server, mut client) = start(&home, 2).await;
    append_all(&mut client, 2, 10).await;
    create(&mut client, late()).await;
    client.replay.start(which()).await.unwrap();
    let mut member = Member::open_replay(&mut client, "late", 100).await.unwrap();
    let mut got = Got::default();
    until(&mut member, &mut got, "all records", |got| got.records.len() == 20).await;
    let to = vec![v1::PartitionOffset { partition: 0, offset: 7 }];
    let seek = v1::SeekReplayRequest { session: "late".into(), all: Some(All::End(true)), to };
    let moved = client.replay.seek(seek).await.unwrap().into_inner();
    assert_eq!((positions(&moved), moved.generation, moved.left), (vec![7, 10], 2, Some(3)));
    let stale = v1::ConsumeRequest { commits: vec![commit(0, 10)], generation: 1, ..Default::default() };
    member.send(stale);
    until(&mut member, &mut got, "the outcome", |got| got.outcomes.len() == 1).await;
    assert_eq!(got.outcomes[0].error.as_ref().unwrap().reason, "REPLAY_MOVED");
    until(&mut member, &mut got, "the rest", |got| got.records.len() == 23).await;
    assert_eq!(got.values()[20..], ["7", "8", "9"]);
    assert!(got.assigned.contains(&(0, 7)));
    member.send(v1::ConsumeRequest { commits: vec![commit(0, 10)], generation: 2, ..Default::default() });
    work(&mut member, &mut got).await;
    // A completed session can be looked at again from anywhere, and is paused then.
    let seek = v1::SeekReplayRequest { session: "late".into(), all: Some(All::Start(true)), to: vec![] };
    let back = client.replay.seek(seek).await.unwrap().into_inner();
    assert_eq!((back.state(), positions(&back)), (v1::ReplayState::Paused, vec![0, 0]));
}

#[tokio::test]
async fn records_come_no_sooner_than_they_did_at_that_speed() {
    const MS: u64 = 120;
    let home = Home::new();
    let (_server, mut client) = start(&home, 2).await;
    let mut times = Vec::new();
    for number in 0..4 {
        times.push(append(&mut client, number % 2, record(number.to_string())).await.0);
        // The records are to be that far apart: nothing waits for a condition here.
        tokio::time::sleep(std::time::Duration::from_millis(MS)).await;
    }
    create(&mut client, v1::CreateReplayRequest { speed: 0.5, ..late() }).await;
    let mut member = Member::open_replay(&mut client, "late", 100).await.unwrap();
    let began = Instant::now();
    let started = client.replay.start(which()).await.unwrap().into_inner();
    assert!((started.speed - 0.5).abs() < f64::EPSILON);
    let mut got = Got::default();
    work(&mut member, &mut got).await;
    assert_eq!(got.records.len(), 4);
    for (arrival, value) in got.arrivals.iter().zip(got.values()) {
        let at_least = u128::from((times[value.parse::<usize>().unwrap()] - times[0]) * 2);
        // Clocks are read in milliseconds.
        let took = arrival.duration_since(began).as_millis() + 2;
        assert!(took >= at_least, "after {took} ms; at half the speed {at_least} lie between");
    }
    // Ten thousand times as fast: speed can be changed while it goes on.
    let seek = v1::SeekReplayRequest { session: "late".into(), all: Some(All::Start(true)), to: vec![] };
    client.replay.seek(seek).await.unwrap();
    let speed = |speed| v1::SetReplaySpeedRequest { session: "late".into(), speed };
    client.replay.set_speed(speed(0.001)).await.unwrap();
    client.replay.resume(which()).await.unwrap();
    let mut member = Member::open_replay(&mut client, "late", 100).await.unwrap();
    let mut got = Got::default();
    until(&mut member, &mut got, "the first record", |got| got.records.len() == 1).await;
    client.replay.set_speed(speed(0.0)).await.unwrap();
    until(&mut member, &mut got, "the others", |got| got.records.len() == 4).await;
}

#[tokio::test]
async fn steps_show_one_record_after_the_other() {
    let home = Home::new().shards(2);
    let (_server, mut client) = start(&home, 3).await;
    let mut order = Vec::new();
    for number in 0..9u32 {
        let partition = [2, 0, 0, 1, 2, 1, 0, 2, 1][number as usize];
        let (at, offset) = append(&mut client, partition, record(number.to_string())).await;
        order.push((at, partition, offset, number.to_string()));
    }
    order.sort();
    create(&mut client, late()).await;
    let step = |count| v1::StepReplayRequest { session: "late".into(), count };
    let mut shown = Vec::new();
    for count in [0, 1, 3] {
        let stepped = client.replay.step(step(count)).await.unwrap().into_inner();
        assert_eq!(stepped.records.len() as u32, count.max(1));
        assert_eq!(stepped.session.unwrap().state(), v1::ReplayState::Created);
        shown.extend(stepped.records);
    }
    let session = describe(&mut client).await;
    assert_eq!((session.left, session.records_total), (Some(4), 5));
    // Started and paused, it goes on by hand, and is completed with the last one.
    client.replay.start(which()).await.unwrap();
    refused(client.replay.step(step(1)).await, Code::FailedPrecondition, "REPLAY_STATE");
    client.replay.pause(which()).await.unwrap();
    let last = client.replay.step(step(1000)).await.unwrap().into_inner();
    assert_eq!(last.session.unwrap().state(), v1::ReplayState::Completed);
    shown.extend(last.records);
    let seen: Vec<_> = shown
        .iter()
        .map(|at| {
            let record = at.record.as_ref().unwrap();
            assert_eq!(record.headers[0].name, "x-flowmesh-replay");
            let value = String::from_utf8(record.value.to_vec()).unwrap();
            (at.appended_at_ms, at.partition, at.offset, value)
        })
        .collect();
    assert_eq!(seen, order);
}

#[tokio::test]
async fn steps_at_the_same_time_show_each_record_once() {
    let home = Home::new();
    let (_server, mut client) = start(&home, 2).await;
    append_all(&mut client, 2, 10).await;
    create(&mut client, late()).await;
    let steps = (0..20).map(|_| {
        let mut client = client.clone();
        async move {
            loop {
                let step = v1::StepReplayRequest { session: "late".into(), count: 1 };
                match client.replay.step(step).await {
                    Ok(stepped) => return stepped.into_inner().records[0].clone(),
                    Err(status) => assert!(status.message().contains("moved"), "{status}"),
                }
            }
        }
    });
    let shown = within("all steps", futures::future::join_all(steps)).await;
    let mut places: Vec<_> = shown.iter().map(|record| (record.partition, record.offset)).collect();
    places.sort_unstable();
    assert_eq!(places, (0..2).flat_map(|p| (0..10).map(move |o| (p, o))).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_killed_server_goes_on_where_the_session_was() {
    let home = Home::new().shards(2);
    let (mut server, mut client) = start(&home, 2).await;
    append_all(&mut client, 2, 20).await;
    create(&mut client, v1::CreateReplayRequest { speed: 1000.0, ..late() }).await;
    // A consumer of the killed server is not waited for that long.
    let settings = v1::GroupSettings { session_timeout_ms: Some(1_000), ..Default::default() };
    let settings = v1::Settings { kind: Some(v1::settings::Kind::Group(settings)) };
    let update = v1::UpdateResourceRequest {
        name: "replay.late".into(),
        settings: Some(settings),
        ..Default::default()
    };
    client.admin.update_resource(update).await.unwrap();
    client.replay.start(which()).await.unwrap();
    let mut seen: Vec<(u32, u64)> = Vec::new();
    for round in 1..=3u64 {
        let mut member = Member::open_replay(&mut client, "late", 4).await.unwrap();
        let mut got = Got::default();
        until(&mut member, &mut got, "some records", |got| got.records.len() == 4).await;
        // One is worked on and committed, the others are not.
        let (partition, offset, _) = got.records[0].clone();
        member
            .send(v1::ConsumeRequest { commits: vec![commit(partition, offset + 1)], ..Default::default() });
        until(&mut member, &mut got, "the outcome", |got| got.outcomes.len() == 1).await;
        assert_eq!(got.outcomes[0].error, None);
        seen.push((partition, offset));
        let before = describe(&mut client).await;
        assert_eq!(before.records_total, round);
        server.kill9();
        server = home.start();
        client = server.client().await;
        let after = describe(&mut client).await;
        assert_eq!((positions(&after), after.state()), (positions(&before), v1::ReplayState::Active));
        assert_eq!((after.generation, after.records_total), (before.generation, round));
    }
    client.replay.set_speed(v1::SetReplaySpeedRequest { session: "late".into(), speed: 0.0 }).await.unwrap();
    let mut member = Member::open_replay(&mut client, "late", 100).await.unwrap();
    let mut got = Got::default();
    work(&mut member, &mut got).await;
    seen.extend(got.records.iter().map(|(partition, offset, _)| (*partition, *offset)));
    seen.sort_unstable();
    assert_eq!(seen, (0..2).flat_map(|p| (0..20).map(move |o| (p, o))).collect::<Vec<_>>());
    server.kill9();
    let server = home.start();
    assert_eq!(describe(&mut server.client().await).await.state(), v1::ReplayState::Completed);
}

#[tokio::test]
async fn what_went_wrong_is_kept_until_it_goes_on() {
    let home = Home::new();
    let (server, mut client) = start(&home, 1).await;
    append_all(&mut client, 1, 3).await;
    create(&mut client, late()).await;
    client.replay.start(which()).await.unwrap();
    let mut member = Member::open_replay(&mut client, "late", 1).await.unwrap();
    let mut got = Got::default();
    until(&mut member, &mut got, "a record", |got| got.records.len() == 1).await;
    let fail = v1::FailReplayRequest { session: "late".into(), error: "cannot read order 7".into() };
    client.replay.fail(fail).await.unwrap();
    until(&mut member, &mut got, "the error", |got| got.states.last() == Some(&v1::ReplayState::Error)).await;
    server.kill9();
    let server = home.start();
    let mut client = server.client().await;
    let failed = describe(&mut client).await;
    assert_eq!((failed.state(), failed.error.as_str()), (v1::ReplayState::Error, "cannot read order 7"));
    let resumed = client.replay.resume(which()).await.unwrap().into_inner();
    assert_eq!((resumed.state(), resumed.error.as_str()), (v1::ReplayState::Active, ""));
    let stopped = client.replay.stop(which()).await.unwrap().into_inner();
    assert_eq!(stopped.state(), v1::ReplayState::Stopped);
    refused(client.replay.resume(which()).await, Code::FailedPrecondition, "REPLAY_STATE");
}

#[tokio::test]
async fn a_filter_leaves_out_and_a_session_of_which_nothing_matches_is_completed() {
    let home = Home::new();
    let (_server, mut client) = start(&home, 1).await;
    for number in 0..40u64 {
        let key = if number % 10 == 3 { "wanted" } else { "other" };
        let body = v1::Record { key: Some(key.into()), ..record(number.to_string()) };
        append(&mut client, 0, body).await;
    }
    let only = |key: &str| {
        let condition = Some(Condition::KeyEquals(key.to_owned().into()));
        Some(v1::Filter { conditions: vec![v1::FilterCondition { condition }] })
    };
    for (key, wanted) in [("wanted", vec!["3", "13", "23", "33"]), ("nobody", vec![])] {
        let created = create(&mut client, v1::CreateReplayRequest { filter: only(key), ..late() }).await;
        assert_eq!(created.filter, only(key));
        client.replay.start(which()).await.unwrap();
        let mut member = Member::open_replay(&mut client, "late", 2).await.unwrap();
        let mut got = Got::default();
        work(&mut member, &mut got).await;
        assert_eq!(got.values(), wanted);
        let done = describe(&mut client).await;
        assert_eq!(
            (done.state(), positions(&done), done.records_total),
            (v1::ReplayState::Completed, vec![40], 40)
        );
        client.replay.delete(which()).await.unwrap();
    }
    // Steps go past what nobody wants, too.
    create(&mut client, v1::CreateReplayRequest { filter: only("wanted"), ..late() }).await;
    let step = v1::StepReplayRequest { session: "late".into(), count: 3 };
    let stepped = client.replay.step(step.clone()).await.unwrap().into_inner();
    let offsets: Vec<u64> = stepped.records.iter().map(|record| record.offset).collect();
    assert_eq!((offsets, stepped.session.unwrap().left), (vec![3, 13, 23], Some(40 - 24)));
    let stepped = client.replay.step(step).await.unwrap().into_inner();
    assert_eq!((stepped.records.len(), stepped.session.unwrap().state()), (1, v1::ReplayState::Completed));
}

#[tokio::test]
async fn a_session_begins_and_ends_at_offsets_and_times() {
    let home = Home::new();
    let (_server, mut client) = start(&home, 2).await;
    let mut times = Vec::new();
    for number in 0..6u64 {
        let (at, _) = append(&mut client, 0, record(number.to_string())).await;
        times.push(at);
        // So that each has a time of its own.
        eventually("the next millisecond", || async { (now_ms() > at).then_some(()) }).await;
    }
    let bounds = |session: &v1::ReplaySession| {
        session.partitions.iter().map(|p| (p.partition, p.from, p.until)).collect::<Vec<_>>()
    };
    let at = |partition, offset| v1::PartitionOffset { partition, offset };
    let cases = [
        (late(), vec![(0, 0, Some(6)), (1, 0, Some(0))]),
        (
            v1::CreateReplayRequest {
                partitions: vec![0],
                from: vec![at(0, 2)],
                until: vec![at(0, 5)],
                ..late()
            },
            vec![(0, 2, Some(5))],
        ),
        (
            v1::CreateReplayRequest {
                start: Some(Start::TimestampMs(times[2])),
                end: Some(End::UntilTimestampMs(times[4])),
                ..late()
            },
            vec![(0, 2, Some(4)), (1, 0, Some(0))],
        ),
        (
            v1::CreateReplayRequest { start: Some(Start::Offset(6)), partitions: vec![0], ..late() },
            vec![(0, 6, Some(6))],
        ),
        (
            v1::CreateReplayRequest { end: Some(End::Follow(true)), partitions: vec![0], ..late() },
            vec![(0, 0, None)],
        ),
    ];
    for (request, expected) in cases {
        let session = create(&mut client, request).await;
        assert_eq!(bounds(&session), expected);
        client.replay.delete(which()).await.unwrap();
    }
    // One that follows goes on with what comes.
    create(&mut client, v1::CreateReplayRequest { end: Some(End::Follow(true)), ..late() }).await;
    client.replay.start(which()).await.unwrap();
    let mut member = Member::open_replay(&mut client, "late", 100).await.unwrap();
    let mut got = Got::default();
    until(&mut member, &mut got, "what there was", |got| got.records.len() == 6).await;
    append(&mut client, 1, record("new")).await;
    until(&mut member, &mut got, "what came", |got| got.records.len() == 7).await;
    assert_eq!(describe(&mut client).await.left, None);
    // Who consumes a session that is deleted is told so.
    client.replay.delete(which()).await.unwrap();
    refused(ended(&mut member).await, Code::NotFound, "RESOURCE_NOT_FOUND");
}
