//! What a group without members keeps, and for how long: by a clock that is turned, across checkpoints and crashes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a test")]

mod common;

use std::path::Path;

use bytes::Bytes;
use common::{Rig, SimTimer, append};
use flowmesh_model::group::{
    GroupCommand, GroupReply, Heartbeat, HeartbeatReply, MemberRef, NewOffset, ranges,
};
use flowmesh_model::{
    Command, GroupEpoch, GroupSettings, Kind, Lsn, Offset, PartitionRef, Reply, ResourceId, Settings,
};
use flowmesh_sim::SimDisk;

const RETENTION_MS: u64 = 60_000;
/// A clock that is moved while the shard sleeps a little is late by as much.
const A_LITTLE_MS: u64 = 2_000;

fn open(dir: &Path, disk: &SimDisk, timer: &SimTimer) -> Rig {
    Rig::open_quiet(dir, disk, timer, |_| {})
}

fn ask(rig: &mut Rig, group: ResourceId, command: GroupCommand) -> GroupReply {
    match rig.ask(Command::Group(group, command)) {
        Ok(Reply::Group(reply)) => *reply,
        other => panic!("{other:?}"),
    }
}

fn member(epoch: GroupEpoch) -> MemberRef {
    MemberRef { id: "m".into(), epoch, instance: None }
}

/// A heartbeat that says that the member has what it was given.
fn heartbeat(
    rig: &mut Rig,
    group: ResourceId,
    stream: ResourceId,
    last: Option<&HeartbeatReply>,
) -> HeartbeatReply {
    let heartbeat = Heartbeat {
        member: member(last.map_or(GroupEpoch(0), |last| last.epoch)),
        client: "test".into(),
        host: "here".into(),
        known: last.map_or(Lsn(0), |last| last.version),
        subscribed: Some(vec![stream]),
        owned: Some(last.map_or_else(Vec::new, |last| last.assigned.clone())),
        wait_until: None,
    };
    match ask(rig, group, GroupCommand::Heartbeat(Box::new(heartbeat))) {
        GroupReply::Heartbeat(reply) => reply,
        other => panic!("{other:?}"),
    }
}

fn commit(rig: &mut Rig, group: ResourceId, member: Option<MemberRef>, at: PartitionRef, offset: u64) {
    let offset = NewOffset { at, offset: Offset(offset), metadata: Bytes::new() };
    match ask(rig, group, GroupCommand::Commit { member, offsets: [offset].into_iter().collect() }) {
        GroupReply::Committed(outcomes) => assert!(outcomes[0].is_ok(), "{outcomes:?}"),
        other => panic!("{other:?}"),
    }
}

fn committed(rig: &mut Rig, group: ResourceId) -> Vec<(u32, u64)> {
    match ask(rig, group, GroupCommand::FetchOffsets { member: None, of: None }) {
        GroupReply::Offsets(offsets) => {
            offsets.iter().map(|(at, offset)| (at.partition, offset.offset.0)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn offsets_of_an_empty_group_are_forgotten_after_their_time_whatever_happens_meanwhile() {
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(5), SimTimer::default());
    let mut rig = open(dir.path(), &disk, &timer);
    let settings = Settings::default_for(Kind::Stream);
    let stream = rig.create_with("s", settings);
    let settings = GroupSettings { offsets_retention_ms: RETENTION_MS, ..GroupSettings::default() };
    let group = rig.create_with("g", Settings::Group(settings));
    let at = PartitionRef { resource: stream, partition: 0 };
    assert!(rig.ask(append(at, b"one")).is_ok());

    // As long as there is a member, time does not count.
    let mut last = heartbeat(&mut rig, group, stream, None);
    while last.assigned.is_empty() {
        last = heartbeat(&mut rig, group, stream, Some(&last));
    }
    assert_eq!(last.assigned, ranges([at]));
    commit(&mut rig, group, Some(member(last.epoch)), at, 1);
    for _ in 0..2 * RETENTION_MS / 3_000 {
        timer.advance(3_000);
        rig.run();
        last = heartbeat(&mut rig, group, stream, Some(&last));
    }
    assert_eq!(committed(&mut rig, group), [(0, 1)]);

    // From when the last one left it does, and goes on over a checkpoint and a crash.
    let leave = GroupCommand::Leave { member: member(last.epoch), keep_place: false };
    assert_eq!(ask(&mut rig, group, leave), GroupReply::Left);
    timer.advance(RETENTION_MS / 2);
    rig.run();
    rig.pool.run_until(rig.shard.clone().checkpoint()).unwrap();
    drop(rig);
    let disk = disk.crash();
    let mut rig = open(dir.path(), &disk, &timer);
    timer.advance(RETENTION_MS / 2 - A_LITTLE_MS);
    rig.run();
    assert_eq!(committed(&mut rig, group), [(0, 1)], "they went too early");

    // Forgotten without anybody who asks; and for good.
    timer.advance(2 * A_LITTLE_MS);
    rig.run();
    assert!(committed(&mut rig, group).is_empty(), "they are still there");
    drop(rig);
    let disk = disk.crash();
    let mut rig = open(dir.path(), &disk, &timer);
    assert!(committed(&mut rig, group).is_empty(), "they came back");

    // What is committed to an empty group has its time from then on, also while nothing runs.
    commit(&mut rig, group, None, at, 0);
    timer.advance(RETENTION_MS - A_LITTLE_MS);
    rig.run();
    assert_eq!(committed(&mut rig, group), [(0, 0)]);
    drop(rig);
    timer.advance(10 * RETENTION_MS);
    let mut rig = open(dir.path(), &disk.crash(), &timer);
    rig.run();
    assert!(committed(&mut rig, group).is_empty(), "the time that it was down counts");
}
