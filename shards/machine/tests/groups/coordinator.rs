//! Many processes that join, heartbeat, lose answers, die, come back; streams that grow, go and come back; a shard that
//! crashes.

use std::collections::{BTreeMap, BTreeSet};

use flowmesh_model::group::{GroupReply, GroupState, Heartbeat, MemberName, MemberRef, NewOffset};
use flowmesh_model::settings::Assignor;
use flowmesh_model::{
    CatalogCommand, Command, GroupCommand, GroupEpoch, Kind, Offset, PartitionRef, Reject, ResourceId,
    ResourcePath, Settings, StreamSettings,
};
use proptest::prelude::*;

use crate::clients::{
    Client, RETENTION_MS, Rig, SESSION_MS, send, spread, stream_name, stream_settings, would_wait,
};
use crate::common::{self, restored, written_afresh};

const CLIENTS: usize = 5;
const STREAMS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// A process starts, if its place is empty: named by the server, by itself, or with an instance.
    Start {
        client: usize,
        name: u8,
        streams: u8,
    },
    Beat {
        client: usize,
        lost: bool,
        release: bool,
    },
    Leave {
        client: usize,
        keep_place: bool,
    },
    /// It says nothing more; what it said before may still come.
    Die {
        client: usize,
    },
    /// It has forgotten everything but its names.
    Forget {
        client: usize,
    },
    Subscribe {
        client: usize,
        streams: u8,
    },
    Remove {
        client: usize,
    },
    Commit {
        client: usize,
        partition: usize,
    },
    /// An old heartbeat comes late.
    Late {
        which: usize,
    },
    Grow {
        stream: usize,
    },
    Recreate {
        stream: usize,
    },
    Reset {
        partition: usize,
        forget: bool,
    },
    Assignor {
        assignor: usize,
    },
    Pass {
        ms: u64,
    },
    Tick,
    Seal,
    Collect {
        items: usize,
    },
    Write,
    Fail,
    Crash,
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..CLIENTS;
    prop_oneof![
        6 => (client.clone(), 0u8..3, 1u8..8).prop_map(|(client, name, streams)| Step::Start { client, name, streams }),
        20 => (client.clone(), prop::bool::weighted(0.3), any::<bool>())
            .prop_map(|(client, lost, release)| Step::Beat { client, lost, release }),
        1 => (client.clone(), any::<bool>()).prop_map(|(client, keep_place)| Step::Leave { client, keep_place }),
        2 => client.clone().prop_map(|client| Step::Die { client }),
        1 => client.clone().prop_map(|client| Step::Forget { client }),
        2 => (client.clone(), 0u8..8).prop_map(|(client, streams)| Step::Subscribe { client, streams }),
        1 => client.clone().prop_map(|client| Step::Remove { client }),
        6 => (client, any::<usize>()).prop_map(|(client, partition)| Step::Commit { client, partition }),
        3 => any::<usize>().prop_map(|which| Step::Late { which }),
        1 => (0..STREAMS).prop_map(|stream| Step::Grow { stream }),
        1 => (0..STREAMS).prop_map(|stream| Step::Recreate { stream }),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(partition, forget)| Step::Reset { partition, forget }),
        1 => (0usize..3).prop_map(|assignor| Step::Assignor { assignor }),
        5 => (0u64..700).prop_map(|ms| Step::Pass { ms }),
        1 => Just(Step::Pass { ms: RETENTION_MS }),
        6 => Just(Step::Tick),
        2 => Just(Step::Seal),
        4 => (1usize..6).prop_map(|items| Step::Collect { items }),
        1 => Just(Step::Write),
        1 => Just(Step::Fail),
        1 => Just(Step::Crash),
        1 => Just(Step::Settle),
    ]
}

struct Driver {
    rig: Rig,
    /// The processes that live, and what all that ever lived knew last.
    living: [Option<Client>; CLIENTS],
    gone: Vec<Client>,
    late: Vec<Heartbeat>,
    started: usize,
    committed: BTreeMap<PartitionRef, Offset>,
}

impl Driver {
    fn new(assignor: Assignor) -> Self {
        Self {
            rig: Rig::new(assignor, &[1, 3, 4]),
            living: Default::default(),
            gone: Vec::new(),
            late: Vec::new(),
            started: 0,
            committed: BTreeMap::new(),
        }
    }

    fn streams(&self, mask: u8) -> Vec<ResourceId> {
        (0..STREAMS).filter(|n| mask & (1 << n) != 0).map(|n| self.rig.streams[n]).collect()
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Start { client, name, streams } => self.start(*client, *name, *streams),
            Step::Beat { client, lost, release } => self.beat(*client, *lost, *release),
            Step::Leave { client, keep_place } => self.leave(*client, *keep_place),
            Step::Die { client } => self.die(*client),
            Step::Forget { client } => {
                if let Some(client) = &mut self.living[*client] {
                    self.gone.push(client.clone());
                    let (id, instance) = (client.id.clone(), client.instance.clone());
                    *client = Client::new(&id, instance.as_deref(), client.streams.clone());
                }
            }
            Step::Subscribe { client, streams } => {
                let streams = self.streams(*streams);
                if let Some(client) = &mut self.living[*client] {
                    client.streams = streams;
                }
            }
            Step::Remove { client } => {
                if let Some(client) = &self.living[*client] {
                    let member = MemberName::Id(client.id.clone());
                    let _ = self.rig.ask(GroupCommand::Remove { member });
                }
            }
            Step::Commit { client, partition } => self.commit(*client, *partition),
            Step::Late { which } => {
                if !self.late.is_empty() {
                    self.late(self.late[which % self.late.len()].clone());
                }
            }
            Step::Grow { stream } => self.grow(*stream),
            Step::Recreate { stream } => self.recreate(*stream),
            Step::Reset { partition, forget } => self.reset(*partition, *forget),
            Step::Assignor { assignor } => {
                let settings = crate::clients::group_settings(Assignor::ALL[*assignor]);
                let path = ResourcePath::parse(Kind::Group, "g").unwrap();
                let update = CatalogCommand::Update { path, settings: Settings::Group(settings) };
                self.rig.world.run(&Command::Catalog(update));
            }
            Step::Pass { ms } => self.rig.world.now = self.rig.world.now.plus(*ms),
            Step::Tick => self.tick(),
            Step::Seal if self.rig.world.sealed.is_none() => self.rig.world.seal(),
            Step::Seal => {}
            Step::Collect { items } => self.rig.world.collect(*items),
            Step::Write => self.write(),
            Step::Fail => self.rig.world.unseal(),
            Step::Crash => {
                let before = self.rig.world.machine.dump();
                self.rig.world.crash();
                assert_eq!(self.rig.world.machine.dump(), before);
            }
            Step::Settle => self.settle(),
        }
    }

    fn start(&mut self, place: usize, name: u8, streams: u8) {
        if self.living[place].is_some() {
            return;
        }
        self.started += 1;
        let streams = self.streams(streams);
        let client = match name {
            0 => Client::new("", None, streams),
            1 => Client::new(&format!("process-{}", self.started), None, streams),
            _ => Client::new("", Some(&format!("instance-{place}")), streams),
        };
        self.living[place] = Some(client);
    }

    fn beat(&mut self, place: usize, lost: bool, release: bool) {
        let Some(client) = &mut self.living[place] else { return };
        if release {
            client.release();
        }
        let heartbeat = client.heartbeat();
        if client.epoch > GroupEpoch(0) {
            self.late.push(heartbeat.clone());
        }
        match send(&mut self.rig, heartbeat) {
            Ok(reply) => {
                let (assigned, revoking) = (spread(&reply.assigned), spread(&reply.revoking));
                assert!(assigned.is_disjoint(&revoking) && assigned.is_disjoint(&spread(&reply.pending)));
                client.told(&reply);
                if lost && client.id.is_empty() {
                    // It will never hear of the member that it was.
                    let ghost = Client { id: reply.member.clone(), epoch: reply.epoch, ..client.clone() };
                    self.gone.push(ghost);
                } else if !lost {
                    client.take(&reply);
                    // What it must let go of and never heard that it had, it lets go of at once.
                    let has_said_all = client.revoking == revoking;
                    let client = client.clone();
                    assert!(!has_said_all || would_wait(&self.rig, &client), "it was told all");
                }
            }
            Err(Reject::ResourceNotFound { .. }) => client.streams.retain(|s| self.rig.streams.contains(s)),
            Err(Reject::UnknownMember { .. } | Reject::FencedInstance { .. }) => self.die(place),
            // However many answers were lost, no member falls so far behind.
            Err(other) => panic!("{other:?}"),
        }
    }

    /// A heartbeat comes that was on its way for long. Its answer finds nobody, and counts all the same.
    fn late(&mut self, heartbeat: Heartbeat) {
        let from = heartbeat.member.clone();
        let Ok(reply) = send(&mut self.rig, heartbeat) else { return };
        let processes = self.living.iter_mut().flatten().chain(&mut self.gone);
        processes
            .filter(|process| process.id == from.id && process.epochs.contains(&from.epoch))
            .for_each(|process| process.told(&reply));
    }

    fn leave(&mut self, place: usize, keep_place: bool) {
        let Some(client) = &self.living[place] else { return };
        let keep_place = keep_place && client.instance.is_some();
        let left = self.rig.ask(GroupCommand::Leave { member: client.member(), keep_place });
        assert!(matches!(
            left,
            Ok(GroupReply::Left) | Err(Reject::UnknownMember { .. } | Reject::FencedInstance { .. })
        ));
        self.die(place);
    }

    fn die(&mut self, place: usize) {
        self.gone.extend(self.living[place].take());
    }

    fn commit(&mut self, place: usize, partition: usize) {
        let Some(client) = &self.living[place] else { return };
        let Some(at) = client.owned.iter().nth(partition % client.owned.len().max(1)).copied() else {
            return;
        };
        let offset = partition as u64 % 1_000;
        let (member, offset) = (client.member(), Offset(offset));
        self.commit_as(Some(member), at, offset);
    }

    fn commit_as(&mut self, member: Option<MemberRef>, at: PartitionRef, offset: Offset) {
        let offsets = [NewOffset { at, offset, metadata: bytes::Bytes::from_static(b"m") }];
        let commit = GroupCommand::Commit { member, offsets: offsets.into_iter().collect() };
        if let Ok(GroupReply::Committed(outcomes)) = self.rig.ask(commit)
            && let Ok(committed) = &outcomes[0]
        {
            assert_eq!(committed.previous, self.committed.insert(at, offset));
        }
    }

    fn reset(&mut self, partition: usize, forget: bool) {
        let at =
            PartitionRef { resource: self.rig.streams[partition % STREAMS], partition: partition as u32 % 4 };
        if !forget {
            return self.commit_as(None, at, Offset(7));
        }
        let forgotten = self.rig.ask(GroupCommand::ForgetOffsets { of: [at].into_iter().collect() });
        if let Ok(GroupReply::Forgotten(outcomes)) = forgotten
            && let Ok(offset) = &outcomes[0]
        {
            assert_eq!(self.committed.remove(&at), Some(*offset));
        }
    }

    fn grow(&mut self, stream: usize) {
        let path = ResourcePath::parse(Kind::Stream, &stream_name(stream)).unwrap();
        let catalog = self.rig.world.machine.catalog_snapshot();
        let partitions = catalog.find_path(&path).unwrap().settings.partitions();
        let settings = StreamSettings { partitions: (partitions + 1).min(8), ..StreamSettings::default() };
        let update = CatalogCommand::Update { path, settings: Settings::Stream(settings) };
        self.rig.world.run(&Command::Catalog(update));
    }

    fn recreate(&mut self, stream: usize) {
        let old = self.rig.streams[stream];
        self.rig.world.delete(Kind::Stream, &stream_name(stream));
        self.tick();
        self.rig.streams[stream] = self.rig.world.create_with(&stream_name(stream), stream_settings(2));
        self.committed.retain(|at, _| at.resource != old);
        let new = self.rig.streams[stream];
        for client in self.living.iter_mut().flatten() {
            for subscribed in client.streams.iter_mut().filter(|subscribed| **subscribed == old) {
                *subscribed = new;
            }
            client.owned.retain(|at| at.resource != old);
            client.revoking.retain(|at| at.resource != old);
        }
    }

    fn tick(&mut self) {
        self.rig.world.tick(2);
        let description = self.rig.describe();
        if description.status.empty_since.is_some() {
            // What is left of the offsets is right; that they go in time is a case of its own.
            let left: BTreeSet<_> =
                description.partitions.iter().filter(|p| p.committed.is_some()).map(|p| p.at).collect();
            self.committed.retain(|at, _| left.contains(at));
        }
    }

    fn write(&mut self) {
        let world = &mut self.rig.world;
        if world.write() {
            let replayed = world.replayed(world.index_lsn);
            assert_eq!(restored(&world.index).dump(), replayed.dump(), "the index is the state at the seal");
            assert_eq!(world.index, written_afresh(replayed), "the index has no more than that");
        }
    }

    /// Those who live heartbeat until the dead are out and everything is where it shall be.
    fn settle(&mut self) {
        let dead_are_out = (SESSION_MS / 250 + 2) as usize;
        for round in 0..dead_are_out + 4 {
            for place in 0..CLIENTS {
                let lives = self.living[place].is_some();
                self.beat(place, false, true);
                // Who was silent before may be out already, or be out before it can do what it is told now.
                assert!(round < 2 || self.living[place].is_some() == lives, "who heartbeats stays");
            }
            self.rig.world.now = self.rig.world.now.plus(250);
            self.tick();
        }
        let description = self.rig.describe();
        let living: Vec<&Client> = self.living.iter().flatten().collect();
        let expected = if living.is_empty() { GroupState::Empty } else { GroupState::Stable };
        assert_eq!(description.status.state, expected, "{description:#?}");
        assert_eq!(description.members.len(), living.len(), "only those who live are members");
        let mut owned = BTreeSet::new();
        for client in &living {
            assert!(client.owned.iter().all(|at| owned.insert(*at)), "two work on one partition");
            assert!(client.owned.iter().all(|at| client.streams.contains(&at.resource)));
            assert!(
                would_wait(&self.rig, client),
                "there is nothing new for who knows everything: {client:?}"
            );
        }
        let catalog = self.rig.world.machine.catalog_snapshot();
        let subscribed: BTreeSet<ResourceId> =
            living.iter().flat_map(|client| &client.streams).copied().collect();
        let all = subscribed.iter().flat_map(|stream| {
            let partitions = catalog.get(*stream).unwrap().settings.partitions();
            (0..partitions).map(|partition| PartitionRef { resource: *stream, partition })
        });
        assert_eq!(owned, all.collect(), "every partition has one who works on it");
        for partition in description.partitions.iter().filter(|p| owned.contains(&p.at)) {
            assert_eq!(partition.held_up, None);
        }
    }

    /// Nobody but one process may commit a partition, in whichever of its epochs its message speaks.
    fn check_owners(&self) {
        let processes: Vec<&Client> = self.living.iter().flatten().chain(&self.gone).collect();
        let processes: Vec<&Client> = processes.into_iter().rev().take(24).collect();
        let mut places: BTreeSet<PartitionRef> = BTreeSet::new();
        for stream in &self.rig.streams {
            places.extend((0..8).map(|partition| PartitionRef { resource: *stream, partition }));
        }
        for at in places {
            let mut owners = BTreeSet::new();
            for (number, process) in processes.iter().enumerate() {
                for epoch in &process.epochs {
                    let member = MemberRef { epoch: *epoch, ..process.member() };
                    if self.rig.may_commit(&member, at) {
                        owners.insert(number);
                        let since = process.granted.get(&at);
                        assert!(
                            since.is_some_and(|since| since <= epoch),
                            "{at} in {epoch}, had since {since:?}"
                        );
                    }
                }
            }
            assert!(owners.len() <= 1, "{at} has the owners {owners:?} of {processes:#?}");
        }
    }

    /// No two members work on one partition: it is handed on only once its owner has let go, has left, or is out.
    fn check_workers(&mut self) {
        let description = self.rig.describe();
        let members: BTreeSet<&str> = description.members.iter().map(|member| &*member.id).collect();
        let mut worked_on = BTreeSet::new();
        for client in self.living.iter().flatten().filter(|client| members.contains(&*client.id)) {
            assert!(client.owned.iter().all(|at| worked_on.insert(*at)), "two work on one partition");
        }
    }

    fn check_offsets(&mut self) {
        match self.rig.ask(GroupCommand::FetchOffsets { member: None, of: None }) {
            Ok(GroupReply::Offsets(offsets)) => {
                let offsets: BTreeMap<_, _> =
                    offsets.into_iter().map(|(at, kept)| (at, kept.offset)).collect();
                assert_eq!(offsets, self.committed);
            }
            other => panic!("{other:?}"),
        }
    }

    fn check(&self) {
        let recovered = self.rig.world.recovered();
        recovered.check_all();
        assert_eq!(recovered.dump(), self.rig.world.machine.dump());
    }
}

/// Whose each partition is, of those that are with whom they shall be.
fn kept(driver: &mut Driver) -> BTreeMap<PartitionRef, (String, Option<String>)> {
    let description = driver.rig.describe();
    let instances: BTreeMap<_, _> = description
        .members
        .iter()
        .map(|m| (m.id.to_string(), m.instance.as_ref().map(ToString::to_string)))
        .collect();
    let kept = description.partitions.iter().filter(|p| p.owner.is_some() && p.owner == p.target);
    kept.map(|p| (p.at, p.owner.as_ref().unwrap().to_string()))
        .map(|(at, owner)| (at, (owner.clone(), instances[&owner].clone())))
        .collect()
}

/// Who keeps a partition is not asked to let go of it: what was owned and is meant for the same member still is owned.
fn check_kept(before: &BTreeMap<PartitionRef, (String, Option<String>)>, driver: &mut Driver) {
    let description = driver.rig.describe();
    let revoking: BTreeMap<_, _> =
        description.members.iter().map(|m| (m.id.to_string(), spread(&m.revoking))).collect();
    for partition in &description.partitions {
        let (Some((owner, _)), Some(target)) = (before.get(&partition.at), &partition.target) else {
            continue;
        };
        if owner.as_str() == &**target {
            assert_eq!(partition.owner.as_ref(), Some(target), "{} paused", partition.at);
            assert!(!revoking[owner].contains(&partition.at));
        }
    }
}

proptest! {
    #![proptest_config(common::cases(400))]
    #[test]
    fn a_partition_has_one_owner_and_never_none_for_long(
        assignor in 0usize..3,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut driver = Driver::new(Assignor::ALL[assignor]);
        for (number, step) in steps.iter().enumerate() {
            let before = kept(&mut driver);
            driver.step(step);
            driver.rig.world.machine.check_all();
            if !matches!(step, Step::Settle | Step::Recreate { .. }) {
                check_kept(&before, &mut driver);
            }
            driver.check_owners();
            driver.check_workers();
            if number % 8 == 7 {
                driver.check();
                driver.check_offsets();
            }
        }
        driver.settle();
        driver.check_owners();
        driver.check();
        driver.write();
        driver.check();
    }
}
