//! Filters of group members: what matches comes, the rest costs neither network nor credit, and the group's place moves on
//! past it.

use std::collections::BTreeMap;

use flowmesh_proto::v1;
use flowmesh_proto::v1::filter_condition::Condition;
use tonic::Code;

use super::shell::{ok, run};
use crate::common::client::{keyed, names_field};
use crate::common::consumer::{Member, hello};
use crate::common::{Client, Home, refused};

/// Records that are searched.
const RECORDS: u64 = 2_000;

/// Every so many one has the key that is wanted.
const EVERY: u64 = 100;

fn filter(key: &str) -> Option<v1::Filter> {
    let condition = Some(Condition::KeyEquals(key.to_owned().into()));
    Some(v1::Filter { conditions: vec![v1::FilterCondition { condition }] })
}

fn filtered(key: &str) -> v1::ConsumeHello {
    v1::ConsumeHello { filter: filter(key), ..hello("g", &["logs"]) }
}

/// Batches of a wanted record and many that are not, of a kilobyte each; the last ones are not wanted.
async fn fill(client: &mut Client) {
    client.create_stream("logs", 1).await;
    let value = "x".repeat(1_000);
    for base in (0..RECORDS).step_by(50) {
        let key = |offset: u64| if offset.is_multiple_of(EVERY) { "wanted" } else { "other" };
        let records = (base..base + 50).map(|offset| keyed(key(offset), value.clone())).collect();
        let append = v1::AppendRequest { stream: "logs".into(), records, ..Default::default() };
        client.stream.append(append).await.unwrap();
    }
}

fn commit(offset: u64) -> v1::ConsumeRequest {
    let commits = vec![v1::GroupOffset { stream: "logs".into(), offset, ..Default::default() }];
    v1::ConsumeRequest { commits, ..Default::default() }
}

/// Takes messages until one says that there is nothing before `upto`. Returns offsets of records, and bytes of all messages.
async fn search(member: &mut Member, upto: u64) -> (Vec<u64>, usize) {
    let (mut found, mut bytes, mut next) = (Vec::new(), 0, 0);
    while next < upto {
        let message = member.next().await;
        bytes += prost::Message::encoded_len(&message);
        for batch in message.batches.into_iter().filter_map(|batch| batch.batch) {
            assert_eq!(batch.records.len(), batch.count as usize);
            assert!(batch.records.iter().all(|record| record.key.as_deref() == Some(b"wanted")));
            let deltas = batch.offset_deltas;
            let delta = |index: usize| deltas.get(index).copied().unwrap_or(index as u64);
            found.extend((0..batch.records.len()).map(|index| batch.base_offset + delta(index)));
            let behind = batch.next_offset.expect("a filtered batch says where to go on");
            assert!(behind >= next && found.last().is_none_or(|last| behind > *last));
            next = behind;
        }
    }
    (found, bytes)
}

async fn committed(client: &mut Client) -> Option<u64> {
    let request = v1::FetchOffsetsRequest { group: "g".into(), ..Default::default() };
    let offsets = client.group.fetch_offsets(request).await.unwrap().into_inner().offsets;
    offsets.first().map(|offset| offset.offset)
}

#[tokio::test]
async fn a_member_gets_what_matches_and_commits_past_the_rest_which_a_crash_does_not_take_back() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    fill(&mut client).await;
    // Credit for one record more than match: what does not takes none, and the search goes on as long as there is some.
    let wanted: Vec<u64> = (0..RECORDS).step_by(EVERY as usize).collect();
    let mut member = Member::open(&mut client, filtered("wanted"), wanted.len() as u32 + 1).await.unwrap();
    let (found, bytes) = search(&mut member, RECORDS).await;
    assert_eq!(found, wanted);
    assert!(bytes < wanted.len() * 2_000, "{bytes} bytes for {} records of 1 KB", wanted.len());
    member.send(commit(RECORDS));
    assert_eq!(member.outcomes(1).await[0].error, None);
    server.kill9();

    let server = home.start();
    let mut client = server.client().await;
    assert_eq!(committed(&mut client).await, Some(RECORDS));
    // Another member of the group wants something else; the group's place is the same for all of them.
    let mut next = Member::open(&mut client, filtered("other"), 10).await.unwrap();
    drop(member);
    assert_eq!(next.assigned(1).await[0].offset, RECORDS);
}

#[tokio::test]
async fn a_member_for_whom_there_is_nothing_learns_how_far_the_search_is() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    fill(&mut client).await;
    let mut member = Member::open(&mut client, filtered("nobody"), 2).await.unwrap();
    let (found, bytes) = search(&mut member, RECORDS).await;
    assert!(found.is_empty() && bytes < 1_000, "{} records, {bytes} bytes", found.len());
    member.send(commit(RECORDS));
    let outcome = member.outcomes(1).await.remove(0);
    assert_eq!((outcome.error, outcome.offset), (None, RECORDS));
    // What comes later and matches comes at once, and what does not is told of again.
    for key in ["other", "nobody", "other"] {
        let records = vec![keyed(key, "late")];
        let append = v1::AppendRequest { stream: "logs".into(), records, ..Default::default() };
        client.stream.append(append).await.unwrap();
    }
    let mut seen = BTreeMap::new();
    while seen.keys().last() != Some(&(RECORDS + 3)) {
        for batch in member.next().await.batches.into_iter().filter_map(|batch| batch.batch) {
            seen.insert(batch.next_offset.unwrap(), batch.count);
        }
    }
    assert_eq!(seen.values().sum::<u32>(), 1, "{seen:?}");
}

#[tokio::test]
async fn an_illegal_filter_and_one_of_a_replay_are_refused_by_name() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    fill(&mut client).await;
    let json = |path: &str| {
        let condition =
            Some(Condition::JsonEquals(v1::JsonEquals { path: path.to_owned(), value: "1".to_owned() }));
        let filter = Some(v1::Filter { conditions: vec![v1::FilterCondition { condition }] });
        v1::ConsumeHello { filter, ..hello("g", &["logs"]) }
    };
    let outcome = match Member::open(&mut client, json("$..a"), 1).await {
        Ok(mut member) => member.answers.message().await,
        Err(status) => Err(status),
    };
    refused(outcome, Code::InvalidArgument, "ILLEGAL_FILTER");
    let create = v1::CreateReplayRequest {
        session: "again".into(),
        stream: "logs".into(),
        start: Some(v1::create_replay_request::Start::Earliest(true)),
        ..Default::default()
    };
    client.replay.create(create).await.unwrap();
    let hello = v1::ConsumeHello { filter: filter("wanted"), ..hello("again", &[]) };
    let first = v1::ConsumeRequest { hello: Some(hello), credit: 1, ..Default::default() };
    let outcome = match client.replay.consume(futures::stream::iter([first])).await {
        Ok(answers) => answers.into_inner().message().await,
        Err(status) => Err(status),
    };
    names_field(&refused(outcome, Code::InvalidArgument, "INVALID_ARGUMENT"), "filter");
}

#[test]
fn a_shell_consumes_what_matches_and_its_group_moves_past_the_rest() {
    let home = Home::new();
    let server = home.start();
    ok(
        &server,
        &home,
        "flowmesh resources create stream logs
         for i in 1 2 3 4 5 6; do flowmesh stream append logs -k k$((i % 3)) v$i; done",
    );
    let found = ok(&server, &home, "flowmesh stream consume logs --group g --filter key=k1 --max 2");
    assert_eq!(found, "v1\nv4\n");
    assert_eq!(ok(&server, &home, "flowmesh group offsets g -o json").matches("\"offset\":4").count(), 1);
    // Nothing matches: the group is moved on until it has no lag, by a consumer that never gets a record.
    let moved = ok(
        &server,
        &home,
        "flowmesh stream consume logs --group g --filter header:none & consumer=$!
         until flowmesh group offsets g -o json | grep -q '\"offset\":6'; do sleep 0.1; done
         kill -TERM $consumer; wait $consumer",
    );
    assert_eq!(moved, "");
    let refused = run(&server, &home, "flowmesh stream consume logs --group g --filter json:nonsense");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("allowed: key=VALUE"));
}
