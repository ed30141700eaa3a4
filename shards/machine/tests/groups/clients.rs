//! A shard with one group and some streams, and the processes that are or were its members.

use std::collections::{BTreeMap, BTreeSet};

use flowmesh_model::group::{
    GroupDescription, GroupReply, Heartbeat, HeartbeatReply, MemberRef, Name, NewOffset, PartitionRange,
    ranges,
};
use flowmesh_model::settings::Assignor;
use flowmesh_model::{
    Command, GroupCommand, GroupEpoch, GroupSettings, Lsn, Millis, Offset, PartitionRef, Reject, Reply,
    ResourceId, Settings, StreamSettings,
};

use crate::common::{Outcome, World};

pub const SESSION_MS: u64 = 1_000;
pub const REBALANCE_MS: u64 = 3_000;
pub const RETENTION_MS: u64 = 20_000;

pub struct Rig {
    pub world: World,
    pub group: ResourceId,
    pub streams: Vec<ResourceId>,
}

pub fn group_settings(assignor: Assignor) -> GroupSettings {
    GroupSettings {
        session_timeout_ms: SESSION_MS,
        rebalance_timeout_ms: REBALANCE_MS,
        offsets_retention_ms: RETENTION_MS,
        assignor,
        ..GroupSettings::default()
    }
}

pub fn stream_name(number: usize) -> String {
    format!("s{number}")
}

pub fn stream_settings(partitions: u32) -> Settings {
    Settings::Stream(StreamSettings { partitions, ..StreamSettings::default() })
}

impl Rig {
    pub fn new(assignor: Assignor, partitions: &[u32]) -> Self {
        let mut world = World::default();
        let streams = partitions
            .iter()
            .enumerate()
            .map(|(number, count)| world.create_with(&stream_name(number), stream_settings(*count)))
            .collect();
        let group = world.create_with("g", Settings::Group(group_settings(assignor)));
        Self { world, group, streams }
    }

    pub fn at(&self, stream: usize, partition: u32) -> PartitionRef {
        PartitionRef { resource: self.streams[stream], partition }
    }

    pub fn ask(&mut self, command: GroupCommand) -> Result<GroupReply, Reject> {
        match self.world.run(&Command::Group(self.group, command)) {
            Outcome::Changed(Reply::Group(reply), _) | Outcome::Answered(Reply::Group(reply), _) => {
                Ok(*reply)
            }
            Outcome::Rejected(reject) => Err(reject),
            other => panic!("{other:?}"),
        }
    }

    pub fn describe(&mut self) -> GroupDescription {
        match self.ask(GroupCommand::Describe) {
            Ok(GroupReply::Description(description)) => description,
            other => panic!("{other:?}"),
        }
    }

    pub fn pass(&mut self, ms: u64) {
        self.world.now = self.world.now.plus(ms);
        self.world.tick(2);
    }

    /// Whether a commit would be taken. Changes nothing.
    pub fn may_commit(&self, member: &MemberRef, at: PartitionRef) -> bool {
        let offsets = [NewOffset { at, offset: Offset(1), metadata: bytes::Bytes::new() }];
        let commit =
            GroupCommand::Commit { member: Some(member.clone()), offsets: offsets.into_iter().collect() };
        match self.world.decide(&Command::Group(self.group, commit)) {
            Ok(flowmesh_machine::Decision::Change { .. }) => true,
            Ok(flowmesh_machine::Decision::Answer { .. }) | Err(_) => false,
            Ok(other) => panic!("{other:?}"),
        }
    }
}

/// A member's process: what it knows.
#[derive(Clone, Debug)]
pub struct Client {
    pub id: Name,
    pub instance: Option<Name>,
    pub epoch: GroupEpoch,
    /// All epochs it was ever in: a late message may speak in any.
    pub epochs: BTreeSet<GroupEpoch>,
    pub known: Lsn,
    pub streams: Vec<ResourceId>,
    /// What it works on.
    pub owned: BTreeSet<PartitionRef>,
    /// What it was told to let go of and works on still.
    pub revoking: BTreeSet<PartitionRef>,
    /// What the group thinks it owns, and since which epoch: answers count whether or not they came.
    pub granted: BTreeMap<PartitionRef, GroupEpoch>,
}

impl Client {
    pub fn new(id: &str, instance: Option<&str>, streams: Vec<ResourceId>) -> Self {
        Self {
            id: id.into(),
            instance: instance.map(Name::from),
            epoch: GroupEpoch(0),
            epochs: BTreeSet::new(),
            known: Lsn(0),
            streams,
            owned: BTreeSet::new(),
            revoking: BTreeSet::new(),
            granted: BTreeMap::new(),
        }
    }

    pub fn member(&self) -> MemberRef {
        MemberRef { id: self.id.clone(), epoch: self.epoch, instance: self.instance.clone() }
    }

    /// Its next heartbeat, with all that it could say.
    pub fn heartbeat(&self) -> Heartbeat {
        Heartbeat {
            member: self.member(),
            client: "test".into(),
            host: "here".into(),
            known: self.known,
            subscribed: Some(self.streams.clone()),
            owned: Some(ranges(self.owned.iter().copied())),
            wait_until: None,
        }
    }

    /// Sends a heartbeat and takes in the answer.
    pub fn beat(&mut self, rig: &mut Rig) -> Result<HeartbeatReply, Reject> {
        let reply = send(rig, self.heartbeat())?;
        self.told(&reply);
        self.take(&reply);
        Ok(reply)
    }

    pub fn beaten(mut self, rig: &mut Rig) -> Self {
        self.beat(rig).unwrap();
        self
    }

    /// What the group told it, whether or not it hears of it.
    pub fn told(&mut self, reply: &HeartbeatReply) {
        self.epochs.insert(reply.epoch);
        let owned: BTreeSet<PartitionRef> =
            spread(&reply.assigned).union(&spread(&reply.revoking)).copied().collect();
        self.granted.retain(|at, _| owned.contains(at));
        for at in owned {
            self.granted.entry(at).or_insert(reply.epoch);
        }
    }

    /// Works on what it was given, and on no more than that.
    pub fn take(&mut self, reply: &HeartbeatReply) {
        self.id = reply.member.clone();
        self.epoch = reply.epoch;
        self.known = reply.version;
        let assigned = spread(&reply.assigned);
        let revoking = spread(&reply.revoking);
        self.owned.retain(|at| assigned.contains(at) || revoking.contains(at));
        self.owned.extend(&assigned);
        self.revoking = revoking.intersection(&self.owned).copied().collect();
    }

    /// Lets go of what it must.
    pub fn release(&mut self) {
        self.owned.retain(|at| !self.revoking.contains(at));
        self.revoking.clear();
    }

    pub fn commit(&self, rig: &mut Rig, at: PartitionRef, offset: u64) -> Result<GroupReply, Reject> {
        let offsets = [NewOffset { at, offset: Offset(offset), metadata: bytes::Bytes::new() }];
        rig.ask(GroupCommand::Commit { member: Some(self.member()), offsets: offsets.into_iter().collect() })
    }

    /// Partition numbers of a stream that it works on.
    pub fn partitions(&self, stream: ResourceId) -> Vec<u32> {
        self.owned.iter().filter(|at| at.resource == stream).map(|at| at.partition).collect()
    }
}

pub fn send(rig: &mut Rig, heartbeat: Heartbeat) -> Result<HeartbeatReply, Reject> {
    match rig.ask(GroupCommand::Heartbeat(Box::new(heartbeat)))? {
        GroupReply::Heartbeat(reply) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

/// Whether a heartbeat would wait for something new: all there is to know is known.
pub fn would_wait(rig: &Rig, client: &Client) -> bool {
    let wait_until = Some(Millis(rig.world.now.0 + 100));
    let heartbeat = Heartbeat { wait_until, ..client.heartbeat() };
    let command = Command::Group(rig.group, GroupCommand::Heartbeat(Box::new(heartbeat)));
    matches!(rig.world.decide(&command), Ok(flowmesh_machine::Decision::Wait(_)))
}

pub fn spread(ranges: &[PartitionRange]) -> BTreeSet<PartitionRef> {
    ranges.iter().flat_map(|range| range.iter()).collect()
}
