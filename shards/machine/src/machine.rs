//! The machine: which part of the state a command or fact is for, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::command::ReadFrom;
use flowmesh_model::replay::ReplayRef;
use flowmesh_model::transfer::fact::TransferFact;
use flowmesh_model::{
    Catalog, Cleaned, Command, CompactedSegment, Fact, GroupCommand, GroupSettings, Kind, KvCommand,
    KvSettings, Lsn, Millis, PartitionRef, QueueCommand, QueueSettings, Reject, ReplaySettings, Reply,
    ResourceId, ResourceInfo, Settings, ShardId, StreamCommand, StreamSettings,
};
use rustc_hash::FxBuildHasher;

use crate::catalog::CatalogState;
use crate::changes::{Seals, Touch};
use crate::checkpoint::Checkpoint;
use crate::decision::{CatalogNews, ColdKeys, Decision, EntryContext, MachineConfig, WaitKey};
use crate::group::Group;
use crate::held::{Apply, HELD_BYTES, Held, Parts};
use crate::keys::Home;
use crate::kv::Store;
use crate::kv::cold::{NOT_IN_MEMORY, Wanted};
use crate::kv::feed::Feed;
use crate::kv::past::rows::PastRows;
use crate::queue::Enqueued;
use crate::queue::Queue;
use crate::queue::decide::transfer;
use crate::siphash::SipKey;
use crate::stream::producers::decide as producers;
use crate::stream::tail::Arena;
use crate::ticks::BYTES_PER_TICK;
use crate::woken::Woken;
use crate::workers::{self, Workers};
use crate::{group, kv, queue, replay, stream};

/// The state of one shard.
#[derive(Debug)]
pub struct Machine {
    pub(crate) config: MachineConfig,
    pub(crate) sip: SipKey,
    /// The largest time of an entry: part of the state.
    pub(crate) entry_time: Millis,
    /// The largest time seen at all.
    pub(crate) clock: Millis,
    pub(crate) snapshot: Option<Arc<Catalog>>,
    pub(crate) catalog: CatalogState,
    pub(crate) workers: Workers,
    /// Iterated only where the order cannot show. Numbers are ours, so no client can choose them to collide.
    pub(crate) held: hashbrown::HashMap<ResourceId, Box<Held>, FxBuildHasher>,
    /// Held groups.
    pub(crate) groups: BTreeSet<ResourceId>,
    /// Held streams whose settings ask for compaction.
    pub(crate) compacted: BTreeSet<ResourceId>,
    /// What is asked where nothing is held yet.
    blank_queue: Queue,
    blank_store: Store,
    blank_group: Group,
    /// Held resources by the moment something may be due: never later than it is, at times earlier.
    pub(crate) timers: BTreeSet<(Millis, ResourceId)>,
    /// Held resources that the snapshot no longer has.
    pub(crate) drops: BTreeSet<ResourceId>,
    /// Queues whose jobs held queues and streams got, and which.
    pub(crate) sources: BTreeMap<ResourceId, BTreeSet<ResourceId>>,
    /// What held queues and streams, the first, remember of those that the snapshot no longer has, the second.
    pub(crate) forgets: BTreeSet<(ResourceId, ResourceId)>,
    /// Held queues that have something to send since they had nothing. Not part of the state.
    pub(crate) outgoing: BTreeSet<ResourceId>,
    /// Caches in which room is to be made for what they got last. Not part of the state.
    pub(crate) crowded: BTreeSet<ResourceId>,
    /// Whether memory is so short that caches make room even within their limits. Not part of the state.
    pub(crate) tight: bool,
    pub(crate) woken: Woken,
    pub(crate) arena: Arena,
    pub(crate) seals: Seals,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) memory_bytes: u64,
    /// Memory that values of stores take which could leave it, once the index has them.
    pub(crate) could_go: u64,
    /// What ticks need that is not in memory. Not part of the state.
    pub(crate) cold_due: Vec<ColdKeys>,
    /// At start: values beyond so much memory stay in the index.
    pub(crate) restore_bytes_max: u64,
}

impl Machine {
    /// An empty state.
    pub fn new(config: MachineConfig) -> Self {
        let sip = SipKey::new(config.hash_seed);
        Self {
            config,
            sip,
            entry_time: Millis(0),
            clock: Millis(0),
            snapshot: None,
            catalog: CatalogState::default(),
            workers: Workers::default(),
            held: hashbrown::HashMap::default(),
            groups: BTreeSet::new(),
            compacted: BTreeSet::new(),
            blank_queue: Queue::default(),
            blank_store: Store::new(sip),
            blank_group: Group::default(),
            timers: BTreeSet::new(),
            drops: BTreeSet::new(),
            sources: BTreeMap::new(),
            forgets: BTreeSet::new(),
            outgoing: BTreeSet::new(),
            crowded: BTreeSet::new(),
            tight: false,
            woken: Woken::default(),
            arena: Arena::default(),
            seals: Seals::new(config.checkpoints),
            checkpoint: Checkpoint::default(),
            memory_bytes: 0,
            could_go: 0,
            cold_due: Vec::new(),
            restore_bytes_max: u64::MAX,
        }
    }

    /// Uses a newer snapshot of the catalog: what exists and with which settings. Not part of the replayed state.
    /// State of resources that the snapshot no longer has is dropped by ticks.
    /// A snapshot that is not newer than the one in use is ignored.
    ///
    /// Looks only at what changed since the one in use, or at all that is held if that is too long ago.
    pub fn set_catalog(&mut self, catalog: Arc<Catalog>) -> CatalogNews {
        let news = match &self.snapshot {
            Some(current) if current.version() >= catalog.version() => return CatalogNews::Of(Vec::new()),
            Some(current) => catalog.changed_since(current.version()).map(<[ResourceId]>::to_vec),
            None => None,
        };
        let news = news.map_or(CatalogNews::OfAny, CatalogNews::Of);
        let (held, drops, timers) = (&mut self.held, &mut self.drops, &mut self.timers);
        let (compacted, now, shares) = (&mut self.compacted, self.clock, self.config.shares);
        let could_go = &mut self.could_go;
        let mut look = |id: ResourceId, held: &mut Held| {
            let before = held.parts.could_go();
            held.set_info(catalog.get(id).cloned(), now, shares);
            *could_go = *could_go + held.parts.could_go() - before;
            list_compacted(compacted, held);
            arm_earlier(timers, held);
            // A larger number is not deleted but newer than the snapshot.
            if held.info.is_none() && id <= catalog.last_id() {
                drops.insert(id);
            }
        };
        match &news {
            CatalogNews::Of(changed) => {
                for id in changed {
                    held.get_mut(id).into_iter().for_each(|held| look(*id, held));
                }
            }
            CatalogNews::OfAny => held.iter_mut().for_each(|(id, held)| look(*id, held)),
        }
        self.forget_sources(&catalog, &news);
        let before = self.snapshot.replace(catalog);
        if before.is_none() {
            self.workers.begin_sessions();
        }
        self.tell_groups(before.as_deref(), &news);
        news
    }

    /// What is remembered of queues that are gone is forgotten with the next tick.
    fn forget_sources(&mut self, catalog: &Catalog, news: &CatalogNews) {
        if self.sources.is_empty() {
            return;
        }
        let is_gone = |id: &ResourceId| *id <= catalog.last_id() && catalog.get(*id).is_none();
        let gone: Vec<ResourceId> = match news {
            CatalogNews::Of(changed) => changed.iter().copied().filter(is_gone).collect(),
            CatalogNews::OfAny => self.sources.keys().copied().filter(is_gone).collect(),
        };
        for source in gone {
            let targets = self.sources.get(&source).into_iter().flatten();
            self.forgets.extend(targets.map(|target| (*target, source)));
        }
    }

    /// Groups that know a stream that changed look at it with the next tick. The first catalog ends a start: only then
    /// do sessions of members begin.
    fn tell_groups(&mut self, before: Option<&Catalog>, news: &CatalogNews) {
        for id in &self.groups {
            let Some(held) = self.held.get_mut(id) else { continue };
            let Parts::Group(group) = &mut held.parts else { continue };
            match (before, news) {
                (None, _) => group.begin_sessions(),
                // A stream that was not there before is not known to any group.
                (Some(before), CatalogNews::Of(changed)) => {
                    let old = |stream: &&ResourceId| **stream <= before.last_id();
                    if changed.iter().filter(old).any(|stream| group.knows(*stream)) {
                        group.look_at_all();
                    }
                }
                (Some(_), CatalogNews::OfAny) => group.look_at_all(),
            }
            arm_earlier(&mut self.timers, held);
        }
    }

    /// On the catalog's owner: the catalog as its own facts say. Costs next to nothing.
    pub fn catalog_snapshot(&self) -> Arc<Catalog> {
        self.catalog.snapshot()
    }

    /// The time that counts: `now`, or the largest time seen if the clock went back.
    #[inline]
    pub fn clamp(&self, now: Millis) -> Millis {
        now.max(self.clock)
    }

    /// Decides on a command. `lsn` is the one its entry will get. Changes nothing.
    ///
    /// # Errors
    /// The named rejection.
    pub fn decide(&self, now: Millis, lsn: Lsn, command: &Command) -> Result<Decision, Reject> {
        let now = self.clamp(now);
        match command {
            Command::Stream(at, command) => {
                let (held, info) = self.find(at.resource, Kind::Stream)?;
                let stream = match held {
                    Some(Held { parts: Parts::Stream(stream), .. }) => Some(stream),
                    _ => None,
                };
                let settings = info.settings.stream()?;
                if let Some(of) = settings.feed_of.as_ref().filter(|_| appends(command)) {
                    return Err(Reject::FeedStream { path: info.path.to_string(), of: of.clone() });
                }
                let partition = stream::decide::find(stream, settings, *at)?;
                let (producers, shard) = (stream.and_then(stream::Stream::producers), self.config.shard);
                let producers = producers::Asked { producers, settings, at: *at, now, lsn, shard };
                let asked = stream::decide::Asked { partition, at: *at, now, producers };
                let decision = if let StreamCommand::Receive(arrival) = command {
                    transfer::check_source(self.snapshot.as_deref(), arrival)?;
                    let received = stream.and_then(stream::Stream::received);
                    let known = received.map(|received| received.upto(at.partition, arrival.source));
                    asked.receive(arrival, known.unwrap_or((0, Lsn(0))))?
                } else {
                    asked.decide(command)?
                };
                Ok(introduce(decision, held, info))
            }
            Command::Queue(id, command) => {
                let (held, info) = self.find(*id, Kind::Queue)?;
                let queue = match held {
                    Some(Held { parts: Parts::Queue(queue), .. }) => queue.as_ref(),
                    _ => &self.blank_queue,
                };
                let settings = info.settings.queue()?;
                let asked = queue::decide::Asked { queue, id: *id, settings, now };
                let decision = if let QueueCommand::Transfer(command) = command {
                    let around = transfer::Around { info, catalog: self.snapshot.as_deref() };
                    asked.transfer(&around, command)?
                } else {
                    asked.decide(command)?
                };
                Ok(introduce(decision, held, info))
            }
            Command::Kv(_, KvCommand::Past(_)) => self.past(now, lsn, command, &PastRows::default()),
            Command::Kv(id, command) => {
                let (held, info) = self.find(*id, Kind::Kv)?;
                let store = match held {
                    Some(Held { parts: Parts::Kv(store), .. }) => store.as_ref(),
                    _ => &self.blank_store,
                };
                let asked = self.ask_store(store, info, now, lsn)?;
                let decided = self.decide_of_store(&asked, info, command);
                match decided {
                    Err(reject) if reject != NOT_IN_MEMORY => Err(reject),
                    _ if !asked.wanted.is_empty() => {
                        let keys = asked.wanted.into_keys();
                        Ok(Decision::WarmStore(ColdKeys { store: *id, keys }))
                    }
                    decided => Ok(introduce(decided?, held, info)),
                }
            }
            Command::Group(id, command) => {
                let (held, info) = self.find(*id, Kind::Group)?;
                let group = match held {
                    Some(Held { parts: Parts::Group(group), .. }) => group.as_ref(),
                    _ => &self.blank_group,
                };
                let (settings, catalog) = (info.settings.group()?, self.snapshot.as_deref());
                if settings.sandbox && !is_look(command) {
                    return Err(Reject::SandboxGroup { path: info.path.to_string() });
                }
                let asked = group::decide::Asked { group, id: *id, settings, catalog, now, lsn };
                Ok(introduce(asked.decide(command)?, held, info))
            }
            Command::Replay(ReplayRef { session, group: id }, command) => {
                let (held, info) = self.find(*id, Kind::Group)?;
                let group = match held {
                    Some(Held { parts: Parts::Group(group), .. }) => group.as_ref(),
                    _ => &self.blank_group,
                };
                let replayed = self.replay_of(*session, info)?;
                let (settings, catalog) = (info.settings.group()?, self.snapshot.as_deref());
                let group = group::decide::Asked { group, id: *id, settings, catalog, now, lsn };
                let asked = replay::decide::Asked { settings: replayed, group };
                Ok(introduce(asked.decide(command)?, held, info))
            }
            Command::Worker(command) => {
                workers::decide::Asked { workers: &self.workers, now, lsn }.decide(command)
            }
            Command::Catalog(command) if self.config.catalog_owner => {
                self.catalog.decide(now, self.config.shards, command)
            }
            Command::Catalog(_) => {
                Err(Reject::Internal("a catalog command for a shard that does not own it"))
            }
        }
    }

    /// What is asked of a store.
    pub(crate) fn ask_store<'a>(
        &self,
        store: &'a Store,
        info: &'a ResourceInfo,
        now: Millis,
        lsn: Lsn,
    ) -> Result<kv::decide::Asked<'a>, Reject> {
        let (settings, placement) = (info.settings.kv()?, &info.placement);
        let (id, shares, wanted) = (info.id, self.config.shares, Wanted::default());
        Ok(kv::decide::Asked { store, id, settings, placement, now, lsn, shares, wanted })
    }

    /// Decides on a command on keys; what it needs that is not in memory is noted.
    fn decide_of_store(
        &self,
        asked: &kv::decide::Asked<'_>,
        info: &ResourceInfo,
        command: &KvCommand,
    ) -> Result<Decision, Reject> {
        let decision = asked.decide(command)?;
        if !asked.wanted.is_empty() {
            return Ok(decision);
        }
        if let Decision::Change { facts, .. } = &decision {
            asked.check_room(facts)?;
        }
        let decision = asked.keep_old(decision);
        if !asked.wanted.is_empty() {
            return Ok(decision);
        }
        keep_history(self.feed(asked, info, decision)?, asked)
    }

    /// Decides on a command about what was, with what was read of the index so far. Changes nothing.
    ///
    /// # Errors
    /// The named rejection.
    pub fn past(
        &self,
        now: Millis,
        lsn: Lsn,
        command: &Command,
        rows: &PastRows,
    ) -> Result<Decision, Reject> {
        let Command::Kv(id, KvCommand::Past(ask)) = command else {
            return Err(Reject::Internal("a command that is not about what was"));
        };
        let (held, info) = self.find(*id, Kind::Kv)?;
        let store = match held {
            Some(Held { parts: Parts::Kv(store), .. }) => store.as_ref(),
            _ => &self.blank_store,
        };
        let asked = self.ask_store(store, info, self.clamp(now), lsn)?;
        asked.past(ask, &info.path, rows, self.config.checkpoints)
    }

    /// Adds to what changes a store what its feed gets, if it has one.
    fn feed(
        &self,
        asked: &kv::decide::Asked<'_>,
        info: &ResourceInfo,
        decision: Decision,
    ) -> Result<Decision, Reject> {
        let Decision::Change { mut facts, mut reply } = decision else { return Ok(decision) };
        if asked.settings.feed.is_some() {
            kv::feed::check_place(asked.settings, &info.path, self.config.shards)?;
            let feed = self.feed_of(asked.settings)?.ok_or(Reject::Internal("a store without its feed"))?;
            // Of a clear an entry has as many keys as it has room for; of all else, all or none.
            let bytes_max =
                if matches!(reply, Reply::KvCleared { .. }) { BYTES_PER_TICK } else { usize::MAX };
            let (records, taken) = feed.records(asked, &facts, bytes_max)?;
            if taken < facts.len() {
                facts.truncate(taken);
                reply = Reply::KvCleared { count: taken as u64, more: true };
            }
            facts.extend(records);
        }
        Ok(Decision::Change { facts, reply })
    }

    /// The feed that a store's settings name, if there is one.
    pub(crate) fn feed_of<'a>(&'a self, settings: &'a KvSettings) -> Result<Option<Feed<'a>>, Reject> {
        let Some(settings) = &settings.feed else { return Ok(None) };
        let Some(info) = self.snapshot.as_ref().and_then(|catalog| catalog.find_path_text(&settings.stream))
        else {
            return Ok(None);
        };
        let stream = match self.held.get(&info.id).map(|held| &held.parts) {
            Some(Parts::Stream(stream)) => Some(stream),
            _ => None,
        };
        if !info.settings.is_feed() {
            return Err(Reject::Internal("the feed of a store is another stream"));
        }
        Ok(Some(Feed { settings, info, stream }))
    }

    /// The resource as it is held, if it is, and as the snapshot has it.
    #[inline]
    fn find(&self, id: ResourceId, kind: Kind) -> Result<(Option<&Held>, &Arc<ResourceInfo>), Reject> {
        let held = self.held.get(&id).map(|held| &**held);
        let info = match held {
            Some(held) => held.info.as_ref(),
            None => self.snapshot.as_ref().and_then(|catalog| catalog.get(id)),
        };
        match info {
            Some(info) if info.path.kind() == kind => Ok((held, info)),
            Some(info) => {
                let (path, actual) = (info.path.to_string(), info.path.kind());
                Err(Reject::WrongKind { path, expected: kind, actual })
            }
            None => Err(not_found(id, held)),
        }
    }

    /// The settings of a session whose sandbox this group is.
    fn replay_of(&self, session: ResourceId, group: &ResourceInfo) -> Result<&ReplaySettings, Reject> {
        let path = group.path.to_string();
        if !group.settings.group()?.sandbox {
            return Err(Reject::GroupNotSandbox { path });
        }
        let info = self.snapshot.as_ref().and_then(|catalog| catalog.get(session));
        match info.map(|info| &info.settings) {
            Some(Settings::Replay(settings)) if settings.group == path => Ok(settings),
            _ => Err(not_found(session, None)),
        }
    }

    /// Makes a command that waits mean the same later: a read from `Latest` or a time becomes one from the offset that
    /// is now. Of a job whose end is awaited it is noted.
    pub fn pin(&mut self, command: &mut Command) {
        if let Command::Queue(id, QueueCommand::Get { job, .. }) = command
            && let Some(Parts::Queue(queue)) = self.held.get_mut(id).map(|held| &mut held.parts)
        {
            queue.watch(*job);
        }
        let Command::Stream(at, StreamCommand::Read { from, .. }) = command else { return };
        if !matches!(from, ReadFrom::Latest | ReadFrom::Timestamp(_)) {
            return;
        }
        let partition = match self.held.get(&at.resource).map(|held| &held.parts) {
            Some(Parts::Stream(stream)) => stream.partition(at.partition),
            _ => None,
        };
        // Before the first record both are offset 0.
        match partition.map(|partition| partition.start(*from)) {
            Some(Ok(stream::find::Start::At(offset))) => *from = ReadFrom::Offset(offset),
            Some(_) => {}
            None => *from = ReadFrom::Offset(flowmesh_model::Offset(0)),
        }
    }

    /// Makes a fact true. Facts of an entry are applied in order, entries in order of their LSN.
    ///
    /// # Panics
    /// If the fact contradicts the state: then the log is not this machine's.
    pub fn apply(&mut self, at: EntryContext, fact: Fact) {
        debug_assert!(at.time >= self.entry_time, "an entry's time goes back");
        self.entry_time = self.entry_time.max(at.time);
        self.clock = self.clock.max(at.time);
        match fact {
            Fact::ResourceCreated { id, path, settings } => self.catalog.created(at, id, path, *settings),
            Fact::ResourceUpdated { id, settings } => self.catalog.updated(at, id, *settings),
            Fact::ResourceDeleted { id } => self.catalog.deleted(at, id),
            Fact::ResourceHeld { id, path } => self.hold(Home::new(id, path)),
            Fact::FeedHeld { id, path } => self.hold(Home::of_feed(id, path)),
            Fact::ResourceDropped { id } => self.drop_resource(id),
            Fact::RecordsAppended { at: place, base, count, records } => {
                self.change_stream(at, place.resource, |cx, stream| {
                    let partition = stream.appended(cx, place.partition, base, count, &records);
                    cx.woken.wake(&mut partition.woken, WaitKey::Stream(place));
                });
            }
            Fact::SegmentRolled { at: place, base } => {
                self.change_stream(at, place.resource, |cx, stream| stream.rolled(cx, place.partition, base));
            }
            Fact::RecordsTrimmed { at: place, earliest } => {
                self.change_stream(at, place.resource, |cx, stream| {
                    let partition = stream.trimmed(cx, place.partition, earliest);
                    cx.woken.wake(&mut partition.woken, WaitKey::Stream(place));
                });
            }
            Fact::SegmentsCompacted { at: place, base, end, bytes, first_time, last_time } => {
                let segment = CompactedSegment { base, end, bytes, times: Some((first_time, last_time)) };
                self.change_stream(at, place.resource, |cx, stream| {
                    stream.compacted(cx, place.partition, segment);
                });
            }
            Fact::PartitionCleaned { at: place, upto, tombstone } => {
                self.change_stream(at, place.resource, |cx, stream| {
                    stream.cleaned(cx, place.partition, Cleaned { upto, tombstone });
                });
            }
            Fact::RecordsProduced { at: place, base, count, producer, records } => {
                self.change_stream(at, place.resource, |cx, stream| {
                    let partition = stream.appended(cx, place.partition, base, count, &records);
                    cx.woken.wake(&mut partition.woken, WaitKey::Stream(place));
                    stream.producers_mut().produced(cx, place.partition, producer, base, count);
                });
            }
            Fact::ProducerInitialised { at: place, id, epoch, name } => {
                self.change_stream(at, place.resource, |cx, stream| {
                    stream.producers_mut().initialised(cx, place.partition, id, epoch, &name);
                });
            }
            Fact::ProducerForgotten { at: place, id } => {
                self.change_stream(at, place.resource, |cx, stream| {
                    stream.producers_mut().forgotten(cx, place.partition, id);
                });
            }
            Fact::JobEnqueued { queue, job, ready_at, max_attempts, priority, headers, payload, options } => {
                let new = Enqueued { job, ready_at, max_attempts, priority, headers, payload, options };
                self.change_queue(at, queue, |cx, queue| queue.enqueued(cx, &new));
            }
            Fact::JobLeased { queue, job, token, until, worker } => {
                self.change_queue(at, queue, |cx, queue| queue.leased(cx, job, token, until, &worker));
            }
            Fact::LeaseExtended { queue, job, until } => {
                self.change_queue(at, queue, |cx, queue| queue.extended(cx, job, until));
            }
            Fact::JobDone { queue: id, job } => {
                self.change_queue(at, id, |cx, queue| {
                    queue.wake_watchers(cx, id, job);
                    queue.done(cx, job);
                });
            }
            Fact::JobReturned { queue, job, ready_at, cause, error } => {
                self.change_queue(at, queue, |cx, queue| queue.returned(cx, job, ready_at, cause, &error));
            }
            Fact::JobDied { queue: id, job, cause, error } => {
                self.change_queue(at, id, |cx, queue| {
                    queue.wake_watchers(cx, id, job);
                    queue.died(cx, job, cause, &error);
                });
            }
            Fact::Queue(id, fact) => self.change_queue(at, id, |cx, queue| queue.apply(cx, id, fact)),
            Fact::KeySet { store, key, value, expires_at } => {
                self.change_store(at, store, |cx, store| store.set(cx, &key, &value, expires_at));
            }
            // Whoever reads the log makes of them what they say.
            Fact::ValuePart { .. } => {}
            Fact::KeySetOfParts { key, .. } => panic!("the value of {key:?} was not put together"),
            Fact::KeyDeleted { store, key } | Fact::KeyExpired { store, key } => {
                self.change_store(at, store, |cx, store| store.removed(cx, &key));
            }
            Fact::Kv(id, fact) => self.change_store(at, id, |cx, store| store.apply(cx, &fact)),
            Fact::Group(id, fact) => self.change(at, id, |cx, parts| {
                let Parts::Group(group) = parts else { wrong_kind(cx) };
                if group.apply(cx, fact) {
                    cx.woken.wake(&mut group.woken, WaitKey::Group(id));
                }
            }),
            Fact::Schedule(id, fact) => {
                self.change_queue(at, id, |cx, queue| queue.apply_schedule(cx, fact));
            }
            Fact::Worker(fact) => self.workers.apply(at, &mut self.seals, fact),
            Fact::Transfer(id, fact) => self.apply_transfer(at, id, fact),
            Fact::Replay(id, fact) => self.change(at, id, |cx, parts| {
                let Parts::Group(group) = parts else { wrong_kind(cx) };
                group.apply_replay(cx, fact);
                cx.woken.wake(&mut group.woken, WaitKey::Group(id));
            }),
        }
    }

    /// What became true of jobs on their way from a queue, or to a queue or stream.
    fn apply_transfer(&mut self, at: EntryContext, id: ResourceId, fact: TransferFact) {
        match &fact {
            TransferFact::Sending { .. } => drop(self.outgoing.insert(id)),
            TransferFact::Received { source, .. } => {
                self.sources.entry(*source).or_default().insert(id);
            }
            TransferFact::ReceivedForgotten { source } => {
                self.forgets.remove(&(id, *source));
                self.forget_source(*source, id);
            }
            TransferFact::Sent { .. } | TransferFact::SendFailed { .. } => {}
        }
        let is_stream = matches!(self.held.get(&id).map(|held| &held.parts), Some(Parts::Stream(_)));
        if !is_stream {
            return self.change_queue(at, id, |cx, queue| queue.apply_transfer(cx, fact));
        }
        self.change_stream(at, id, |cx, stream| match fact {
            TransferFact::Received { partition, source, sequence } => {
                stream.received_mut().received(cx, partition, source, sequence);
            }
            TransferFact::ReceivedForgotten { source } => stream.received_mut().forgotten(cx, source),
            other => panic!("a stream sends nothing: {other:?}"),
        });
    }

    fn forget_source(&mut self, source: ResourceId, target: ResourceId) {
        if let Some(targets) = self.sources.get_mut(&source) {
            targets.remove(&target);
            if targets.is_empty() {
                self.sources.remove(&source);
            }
        }
    }

    /// Takes what can be sent since there was nothing: queues, and where their jobs go.
    pub fn take_outgoing(&mut self) -> Vec<(ResourceId, PartitionRef)> {
        let mut lanes = Vec::new();
        for id in std::mem::take(&mut self.outgoing) {
            if let Some(Parts::Queue(queue)) = self.held.get_mut(&id).map(|held| &mut held.parts) {
                lanes.extend(queue.take_begun().into_iter().map(|to| (id, to)));
            }
        }
        lanes
    }

    /// Whether [`Machine::take_outgoing`] may have something. Costs next to nothing.
    #[inline]
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Notes why what a queue sends did not get there; empty if it did. Not part of the state.
    pub fn note_transfer(&mut self, queue: ResourceId, to: PartitionRef, error: &Bytes) {
        if let Some(Parts::Queue(queue)) = self.held.get_mut(&queue).map(|held| &mut held.parts) {
            queue.note_transfer(to, error);
        }
    }

    /// `ResourceHeld` or `FeedHeld`.
    fn hold(&mut self, home: Home) {
        let id = home.id;
        let mut held = Held::new(home, self.sip);
        let info = self.snapshot.as_ref().and_then(|catalog| catalog.get(id)).cloned();
        held.set_info(info, self.clock, self.config.shares);
        list_compacted(&mut self.compacted, &held);
        if self.seals.touch(&mut held.mark) != Touch::Known {
            self.checkpoint.list(id);
        }
        self.memory_bytes += HELD_BYTES + held.parts.memory_bytes();
        if matches!(held.parts, Parts::Group(_)) {
            self.groups.insert(id);
        }
        let before = self.held.insert(id, Box::new(held));
        assert!(before.is_none(), "resource {id} was held already");
    }

    /// `ResourceDropped`.
    fn drop_resource(&mut self, id: ResourceId) {
        self.drops.remove(&id);
        self.groups.remove(&id);
        self.compacted.remove(&id);
        let Some(mut held) = self.held.remove(&id) else {
            panic!("a resource was dropped that was not held: {id}")
        };
        if let Some(armed) = held.armed {
            self.timers.remove(&(armed, id));
        }
        self.outgoing.remove(&id);
        self.crowded.remove(&id);
        for source in held.parts.sources() {
            self.forgets.remove(&(id, source));
            self.forget_source(source, id);
        }
        match &mut held.parts {
            Parts::Stream(stream) => {
                for (partition, held) in stream.partitions_mut() {
                    self.woken
                        .wake(&mut held.woken, WaitKey::Stream(PartitionRef { resource: id, partition }));
                }
            }
            Parts::Queue(queue) => {
                self.woken.wake(&mut queue.woken, WaitKey::Queue(id));
                self.woken.wake(&mut queue.room_woken, WaitKey::Room(id));
            }
            Parts::Kv(store) => self.could_go -= store.could_go(),
            Parts::Group(group) => self.woken.wake(&mut group.woken, WaitKey::Group(id)),
        }
        self.bury(id, *held);
    }

    #[inline]
    fn change_stream(
        &mut self,
        at: EntryContext,
        id: ResourceId,
        change: impl FnOnce(&mut Apply<'_>, &mut stream::Stream),
    ) {
        self.change(at, id, |cx, parts| {
            let Parts::Stream(stream) = parts else { wrong_kind(cx) };
            change(cx, stream);
        });
    }

    fn change_queue(
        &mut self,
        at: EntryContext,
        id: ResourceId,
        change: impl FnOnce(&mut Apply<'_>, &mut Queue),
    ) {
        self.change(at, id, |cx, parts| {
            let Parts::Queue(queue) = parts else { wrong_kind(cx) };
            let waiting = queue.waiting();
            change(cx, queue);
            if queue.is_leasable(cx.at.time) {
                cx.woken.wake(&mut queue.woken, WaitKey::Queue(id));
            }
            if queue.waiting() < waiting {
                cx.woken.wake(&mut queue.room_woken, WaitKey::Room(id));
            }
        });
    }

    fn change_store(
        &mut self,
        at: EntryContext,
        id: ResourceId,
        change: impl FnOnce(&mut Apply<'_>, &mut Store),
    ) {
        let (tight, mut is_crowded, mut could_go) = (self.tight, false, (0, 0));
        self.change(at, id, |cx, parts| {
            let Parts::Kv(store) = parts else { wrong_kind(cx) };
            let before = store.taken();
            could_go.0 = store.could_go();
            change(cx, store);
            could_go.1 = store.could_go();
            is_crowded = store.changed(before, tight);
        });
        self.could_go = self.could_go + could_go.1 - could_go.0;
        if is_crowded {
            self.crowded.insert(id);
        }
    }

    /// Changes what is held of a resource, and what hangs on it: the list of changes, the memory it takes, its timer.
    #[inline]
    fn change(&mut self, at: EntryContext, id: ResourceId, change: impl FnOnce(&mut Apply<'_>, &mut Parts)) {
        let Some(held) = self.held.get_mut(&id) else {
            panic!("a fact about a resource that is not held: {id}")
        };
        if self.seals.touch(&mut held.mark) != Touch::Known {
            self.checkpoint.list(id);
        }
        let before = held.parts.memory_bytes();
        let mut cx = Apply {
            at,
            home: &held.home,
            seals: &mut self.seals,
            woken: &mut self.woken,
            arena: &mut self.arena,
        };
        change(&mut cx, &mut held.parts);
        self.memory_bytes = self.memory_bytes + held.parts.memory_bytes() - before;
        arm_earlier(&mut self.timers, held);
    }

    /// Takes one key for which something became available, each once, first come first served.
    pub fn take_woken(&mut self) -> Option<WaitKey> {
        let key = self.woken.pop()?;
        let id = match key {
            WaitKey::Stream(at) => at.resource,
            WaitKey::Queue(id) | WaitKey::Room(id) | WaitKey::Job(id, _) | WaitKey::Group(id) => id,
        };
        match (key, self.held.get_mut(&id).map(|held| &mut held.parts)) {
            (WaitKey::Stream(at), Some(Parts::Stream(stream))) => {
                if let Some(partition) = stream.partition_mut(at.partition) {
                    partition.woken = 0;
                }
            }
            (WaitKey::Queue(_), Some(Parts::Queue(queue))) => queue.woken = 0,
            (WaitKey::Room(_), Some(Parts::Queue(queue))) => queue.room_woken = 0,
            (WaitKey::Group(_), Some(Parts::Group(group))) => group.woken = 0,
            _ => {}
        }
        Some(key)
    }

    /// Forgets what became available, because nobody waits. Costs next to nothing.
    #[inline]
    pub fn forget_woken(&mut self) {
        self.woken.forget();
    }

    /// Whether jobs of a queue are wanted soon that only the index knows all of.
    #[inline]
    pub fn looks_ahead(&self) -> bool {
        self.woken.looks_ahead()
    }

    /// Takes a queue whose next jobs are to be brought into memory; see [`Machine::bodies_ahead`].
    pub fn take_ahead(&mut self) -> Option<ResourceId> {
        self.woken.pop_ahead()
    }

    /// Whose state it is.
    pub fn shard(&self) -> ShardId {
        self.config.shard
    }

    /// An estimate of the memory the state takes.
    #[inline]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes + self.catalog.memory_bytes() + self.workers.memory_bytes()
    }
}

/// Lists a held stream if its settings ask for compaction.
fn list_compacted(compacted: &mut BTreeSet<ResourceId>, held: &Held) {
    if held.info.is_some() && matches!(&held.parts, Parts::Stream(stream) if stream.is_compacted()) {
        compacted.insert(held.home.id);
    } else {
        compacted.remove(&held.home.id);
    }
}

/// Puts a held resource under another moment of the timers.
pub(crate) fn arm(timers: &mut BTreeSet<(Millis, ResourceId)>, held: &mut Held, due: Option<Millis>) {
    if let Some(armed) = held.armed.take() {
        timers.remove(&(armed, held.home.id));
    }
    if let Some(due) = due {
        timers.insert((due, held.home.id));
        held.armed = Some(due);
    }
}

/// Puts a held resource under an earlier moment if something is due before the one it is under.
#[inline]
pub(crate) fn arm_earlier(timers: &mut BTreeSet<(Millis, ResourceId)>, held: &mut Held) {
    if let Some(due) = held.parts.next_due()
        && held.armed.is_none_or(|armed| due < armed)
    {
        arm(timers, held, Some(due));
    }
}

/// The first change of a resource says what it is.
#[inline]
fn introduce(decision: Decision, held: Option<&Held>, info: &ResourceInfo) -> Decision {
    match decision {
        Decision::Change { mut facts, reply } if held.is_none() => {
            let (id, path) = (info.id, info.path.clone());
            let is_feed = info.placement.is_feed();
            let fact = if is_feed { Fact::FeedHeld { id, path } } else { Fact::ResourceHeld { id, path } };
            facts.insert(0, fact);
            Decision::Change { facts, reply }
        }
        other => other,
    }
}

/// What changes a store is noted from the first change on that comes after its settings say so.
#[inline]
fn keep_history(decision: Decision, asked: &kv::decide::Asked<'_>) -> Result<Decision, Reject> {
    let wanted_ms = asked.settings.history_ms.unwrap_or(0);
    let Decision::Change { mut facts, reply } = decision else { return Ok(decision) };
    if wanted_ms > 0 {
        facts.iter().try_for_each(kv::past::check_noted)?;
    }
    if let Some(fact) = asked.store.history_fact(wanted_ms) {
        facts.insert(0, Fact::Kv(asked.id, fact));
    }
    Ok(Decision::Change { facts, reply })
}

/// Whether a command adds something to a stream.
fn appends(command: &StreamCommand) -> bool {
    matches!(
        command,
        StreamCommand::Append { .. }
            | StreamCommand::InitProducer { .. }
            | StreamCommand::FenceProducer { .. }
            | StreamCommand::Receive(_)
    )
}

/// Whether a command only looks at a group: that may be done to a sandbox, too.
fn is_look(command: &GroupCommand) -> bool {
    matches!(
        command,
        GroupCommand::FetchOffsets { member: None, .. } | GroupCommand::Status | GroupCommand::Describe
    )
}

#[cold]
fn not_found(id: ResourceId, held: Option<&Held>) -> Reject {
    let path = held.map_or_else(|| format!("number {id}"), |held| held.home.path.to_string());
    Reject::ResourceNotFound { path }
}

#[cold]
fn wrong_kind(cx: &Apply<'_>) -> ! {
    panic!("a fact of another kind about {}", cx.home.path)
}

/// Settings of the kind that a command needs.
trait SettingsOf {
    fn stream(&self) -> Result<&StreamSettings, Reject>;
    fn queue(&self) -> Result<&QueueSettings, Reject>;
    fn kv(&self) -> Result<&KvSettings, Reject>;
    fn group(&self) -> Result<&GroupSettings, Reject>;
}

const MISMATCH: Reject = Reject::Internal("settings of another kind than the path");

impl SettingsOf for Settings {
    #[inline]
    fn stream(&self) -> Result<&StreamSettings, Reject> {
        if let Self::Stream(settings) = self { Ok(settings) } else { Err(MISMATCH) }
    }

    #[inline]
    fn queue(&self) -> Result<&QueueSettings, Reject> {
        if let Self::Queue(settings) = self { Ok(settings) } else { Err(MISMATCH) }
    }

    #[inline]
    fn kv(&self) -> Result<&KvSettings, Reject> {
        if let Self::Kv(settings) = self { Ok(settings) } else { Err(MISMATCH) }
    }

    #[inline]
    fn group(&self) -> Result<&GroupSettings, Reject> {
        if let Self::Group(settings) = self { Ok(settings) } else { Err(MISMATCH) }
    }
}
