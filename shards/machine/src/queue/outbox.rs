//! Jobs of the queue that are on their way to other queues and streams.
//!
//! Each entry has a number that only grows, and a job is in at most one. Until its target has it, or never will, nothing
//! else happens to the job: it is neither redriven nor purged, and its retention waits. Entries of one target, a **lane**,
//! are sent in the order of their numbers.
//!
//! With `dead_letters_to` all dead letters go that way, in the order in which they died; how far that is is noted with the
//! last that did. Those that are still to come are held like those in the outbox.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, detached, put_bytes, put_varint};
use flowmesh_model::job::JobPhase;
use flowmesh_model::job::fact::one_of;
use flowmesh_model::limits::OUTBOX_JOBS_MAX;
use flowmesh_model::placement::key_partition;
use flowmesh_model::transfer::fact::TransferFact;
use flowmesh_model::transfer::{FailedTransfer, Lane, TransferMode};
use flowmesh_model::{Catalog, Fact, JobId, Millis, PartitionRef, ResourceId, ResourceInfo, Settings, Space};

use super::Queue;
use super::apply::End;
use crate::changes::Seals;
use crate::held::Apply;
use crate::items::{Indexed, Item, Items, Key, item_bytes};
use crate::keys::{self, Home};

/// A place in the order of dead jobs, or of those that are done.
type Place = (Millis, JobId);

/// What an entry takes in memory: itself, its job's place and its place in its lane.
const ENTRY_BYTES: u64 = item_bytes::<u64, Outgoing>() + 96;

/// A job on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub job: JobId,
    pub to: PartitionRef,
    pub mode: TransferMode,
    pub ready_at: Millis,
    pub since: Millis,
}

impl Key for u64 {
    type Home = Home;

    const SPACE: Space = Space::Jobs;

    fn in_index(&self, home: &Home) -> Bytes {
        home.outbox_key(*self)
    }
}

/// An entry of the outbox in the index.
///
/// | field | size |
/// |---|---|
/// | format | 1 |
/// | job, target, its partition, ready at, since | varint each |
/// | mode | 1: 0 move, 1 dead letter, 2 replay |
impl Item for Outgoing {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(48);
        out.put_u8(keys::FORMAT);
        let Self { job, to, mode, ready_at, since } = self;
        for number in [job.0, to.resource.0, u64::from(to.partition), ready_at.0, since.0] {
            put_varint(&mut out, number);
        }
        out.put_u8(*mode as u8);
        out.freeze()
    }
}

impl Outgoing {
    fn decode(value: Bytes) -> Result<Self, Malformed> {
        let mut reader = keys::open(value)?;
        let job = JobId(reader.varint()?);
        let to = PartitionRef { resource: ResourceId(reader.varint()?), partition: reader.varint_u32()? };
        let (ready_at, since) = (Millis(reader.varint()?), Millis(reader.varint()?));
        let mode = one_of(&TransferMode::ALL, reader.byte()?)?;
        keys::close(&reader)?;
        Ok(Self { job, to, mode, ready_at, since })
    }
}

/// What an outbox counts, in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Whole;

impl Key for Whole {
    type Home = Home;

    const SPACE: Space = Space::Jobs;

    fn in_index(&self, home: &Home) -> Bytes {
        home.outbox_totals_key()
    }
}

/// What an outbox counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// The number of the last entry. Only grows.
    pub last_sequence: u64,
    /// The last dead letter that went where the settings say.
    pub forwarded: Place,
    pub moved: u64,
    pub copied: u64,
    pub failed: u64,
    pub last_failed: Option<FailedTransfer>,
}

/// What an outbox counts in the index.
///
/// | field | size |
/// |---|---|
/// | format | 1 |
/// | last number; when the last dead letter died that went on, its number; moved, copied, failed | varint each |
/// | the last that failed | absent, or: job, time (varint each), error (varint length + bytes) |
impl Item for Totals {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(keys::FORMAT);
        let Self { last_sequence, forwarded: (moment, job), moved, copied, failed, last_failed } = self;
        for number in [*last_sequence, moment.0, job.0, *moved, *copied, *failed] {
            put_varint(&mut out, number);
        }
        if let Some(FailedTransfer { job, at, error }) = last_failed {
            put_varint(&mut out, job.0);
            put_varint(&mut out, at.0);
            put_bytes(&mut out, error);
        }
        out.freeze()
    }
}

impl Totals {
    fn decode(value: Bytes) -> Result<Self, Malformed> {
        let mut reader = keys::open(value)?;
        let last_sequence = reader.varint()?;
        let forwarded = (Millis(reader.varint()?), JobId(reader.varint()?));
        let (moved, copied, failed) = (reader.varint()?, reader.varint()?, reader.varint()?);
        let mut last_failed = None;
        if !reader.is_empty() {
            let (job, at) = (JobId(reader.varint()?), Millis(reader.varint()?));
            let error = Bytes::copy_from_slice(&reader.bytes()?);
            last_failed = Some(FailedTransfer { job, at, error });
        }
        keys::close(&reader)?;
        Ok(Self { last_sequence, forwarded, moved, copied, failed, last_failed })
    }
}

/// The outbox of a queue that ever sent a job elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    entries: Items<u64, Outgoing>,
    totals: Items<Whole, Totals>,
    by_job: BTreeMap<JobId, u64>,
    lanes: BTreeMap<PartitionRef, BTreeSet<u64>>,
    /// Lanes that have something since they had nothing. Not part of the state, as all that follows.
    begun: BTreeSet<PartitionRef>,
    /// Why the last try of a lane did not get there.
    errors: BTreeMap<PartitionRef, Bytes>,
    /// All before that are over, of those that are dead or done, are on their way.
    pub dead_from: Place,
    pub done_from: Place,
}

impl Outbox {
    fn memory_bytes(&self) -> u64 {
        size_of::<Self>() as u64 + self.entries.len() as u64 * ENTRY_BYTES
    }

    pub fn totals(&self) -> Totals {
        self.totals.get(&Whole).cloned().unwrap_or_default()
    }

    fn forwarded(&self) -> Place {
        self.totals.get(&Whole).map_or_else(Place::default, |totals| totals.forwarded)
    }

    /// The number of the last entry.
    pub fn last_sequence(&self) -> u64 {
        self.totals.get(&Whole).map_or(0, |totals| totals.last_sequence)
    }

    /// How many jobs are on their way.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many more there may be.
    pub fn room(&self) -> usize {
        OUTBOX_JOBS_MAX.saturating_sub(self.len())
    }

    pub fn has(&self, job: JobId) -> bool {
        self.by_job.contains_key(&job)
    }

    /// Entries of a lane, in order.
    pub fn lane(&self, to: PartitionRef) -> impl Iterator<Item = (u64, &Outgoing)> {
        let numbers = self.lanes.get(&to).into_iter().flatten();
        numbers.filter_map(|number| Some((*number, self.entries.get(number)?)))
    }

    /// What is on its way, by target.
    pub fn lanes(&self) -> Vec<Lane> {
        let lane = |(to, numbers): (&PartitionRef, &BTreeSet<u64>)| {
            let oldest = numbers.first().and_then(|number| self.entries.get(number));
            Lane {
                to: *to,
                jobs: numbers.len() as u64,
                since: oldest.map_or(Millis(0), |entry| entry.since),
                error: self.errors.get(to).cloned().unwrap_or_default(),
            }
        };
        self.lanes.iter().map(lane).collect()
    }

    fn count(&mut self, cx: &mut Apply<'_>, count: impl FnOnce(&mut Totals)) {
        self.totals.change(cx.home, cx.seals, &Whole, Totals::default, count);
    }

    /// Puts an entry where it belongs besides the entries themselves.
    fn place(&mut self, number: u64, entry: &Outgoing) -> bool {
        let lane = self.lanes.entry(entry.to).or_default();
        if lane.is_empty() {
            self.begun.insert(entry.to);
        }
        lane.insert(number);
        self.by_job.insert(entry.job, number).is_none()
    }

    fn take(&mut self, cx: &mut Apply<'_>, number: u64) -> Outgoing {
        let entry = self.entries.remove(cx.home, cx.seals, &number);
        let Some(entry) = entry else { panic!("no such entry of an outbox: {number}") };
        self.by_job.remove(&entry.job);
        if let Some(lane) = self.lanes.get_mut(&entry.to) {
            lane.remove(&number);
            if lane.is_empty() {
                self.lanes.remove(&entry.to);
                self.begun.remove(&entry.to);
                self.errors.remove(&entry.to);
            }
        }
        entry
    }

    /// Takes the lanes that have something since they had nothing.
    pub fn take_begun(&mut self) -> BTreeSet<PartitionRef> {
        std::mem::take(&mut self.begun)
    }

    /// Notes why a try of a lane did not get there; empty if it did.
    pub fn note(&mut self, to: PartitionRef, error: &Bytes) {
        if error.is_empty() || !self.lanes.contains_key(&to) {
            self.errors.remove(&to);
        } else {
            self.errors.insert(to, detached(error));
        }
    }

    pub fn restore_entry(&mut self, number: u64, value: Bytes) -> Result<JobId, Malformed> {
        let entry = Outgoing::decode(value)?;
        if !self.entries.restore(number, entry) || !self.place(number, &entry) {
            return Err(Malformed("the same job on its way twice"));
        }
        Ok(entry.job)
    }

    pub fn restore_totals(&mut self, value: Bytes) -> Result<(), Malformed> {
        let new = self.totals.restore(Whole, Totals::decode(value)?);
        if new { Ok(()) } else { Err(Malformed("the counts of an outbox twice")) }
    }

    /// What checkpoints take of it.
    pub fn indexed(&mut self) -> [&mut dyn Indexed<Home>; 2] {
        [&mut self.entries, &mut self.totals]
    }
}

impl Queue {
    pub fn outbox_bytes(&self) -> u64 {
        self.outbox.as_ref().map_or(0, |outbox| outbox.memory_bytes())
    }

    pub fn outbox(&self) -> Option<&Outbox> {
        self.outbox.as_deref()
    }

    pub fn outbox_mut(&mut self) -> &mut Outbox {
        self.outbox.get_or_insert_default()
    }

    /// The last dead letter that went where the settings say.
    fn forwarded(&self) -> Place {
        self.outbox().map_or_else(Place::default, Outbox::forwarded)
    }

    /// Whether a job is on its way elsewhere, or is a dead letter that is to be, so that nothing else may happen to it.
    pub fn is_in_transit(&self, id: JobId) -> bool {
        if self.outbox.is_none() && !self.limits.forwards {
            return false;
        }
        let is_dead = |job: &&super::job::Job| job.phase() == JobPhase::Dead;
        self.outbox().is_some_and(|outbox| outbox.has(id))
            || (self.limits.forwards
                && self.jobs.get(id).filter(is_dead).is_some_and(|job| (job.moment(), id) > self.forwarded()))
    }

    /// Takes the lanes that have something since they had nothing.
    pub fn take_begun(&mut self) -> BTreeSet<PartitionRef> {
        self.outbox.as_mut().map_or_else(BTreeSet::new, |outbox| outbox.take_begun())
    }

    /// Notes why a try of a lane did not get there; empty if it did.
    pub fn note_transfer(&mut self, to: PartitionRef, error: &Bytes) {
        self.outbox.as_mut().into_iter().for_each(|outbox| outbox.note(to, error));
    }

    /// What became true of a job on its way.
    pub fn apply_transfer(&mut self, cx: &mut Apply<'_>, fact: TransferFact) {
        match fact {
            TransferFact::Sending { sequence, job, to, mode, ready_at } => {
                let since = cx.at.time;
                self.sending(cx, sequence, Outgoing { job, to, mode, ready_at, since });
            }
            TransferFact::Sent { sequence } => self.sent(cx, sequence),
            TransferFact::SendFailed { sequence, error } => {
                let at = cx.at.time;
                let entry = self.left_outbox(cx, sequence);
                let failed = FailedTransfer { job: entry.job, at, error: detached(&error) };
                self.outbox_mut().count(cx, |totals| {
                    totals.failed += 1;
                    totals.last_failed = Some(failed);
                });
            }
            TransferFact::Received { source, sequence, .. } => {
                self.received.get_or_insert_default().received(cx, 0, source, sequence);
            }
            TransferFact::ReceivedForgotten { source } => {
                self.received.get_or_insert_default().forgotten(cx, source);
            }
        }
        self.counters.last_lsn = cx.at.lsn;
    }

    fn sending(&mut self, cx: &mut Apply<'_>, sequence: u64, entry: Outgoing) {
        let job = self.jobs.get(entry.job);
        let Some((phase, moment)) = job.map(|job| (job.phase(), job.moment())) else {
            panic!("a job is sent that is not there: {}", entry.job)
        };
        let may = phase == JobPhase::Dead || (entry.mode == TransferMode::Replay && phase == JobPhase::Done);
        assert!(may, "a job is sent that is neither dead nor, for a replay, done");
        let outbox = self.outbox_mut();
        outbox.count(cx, |totals| {
            assert!(sequence > totals.last_sequence, "numbers of an outbox only grow");
            totals.last_sequence = sequence;
            if entry.mode == TransferMode::DeadLetter {
                assert!((moment, entry.job) > totals.forwarded, "dead letters go in order");
                totals.forwarded = (moment, entry.job);
            }
        });
        outbox.entries.change(cx.home, cx.seals, &sequence, || entry, |_| ());
        assert!(outbox.place(sequence, &entry), "a job is on its way once");
    }

    fn sent(&mut self, cx: &mut Apply<'_>, sequence: u64) {
        let Outgoing { job, mode, .. } = self.left_outbox(cx, sequence);
        let moves = mode == TransferMode::Move;
        self.outbox_mut().count(cx, |totals| {
            *(if moves { &mut totals.moved } else { &mut totals.copied }) += 1;
        });
        if moves {
            self.remove(cx, job);
            self.ended(cx, job, End::Gone, &Bytes::new());
        }
    }

    fn left_outbox(&mut self, cx: &mut Apply<'_>, sequence: u64) -> Outgoing {
        let entry = self.outbox_mut().take(cx, sequence);
        let moment = self.jobs.get(entry.job).map_or(Millis(0), super::job::Job::moment);
        let outbox = self.outbox_mut();
        outbox.dead_from = outbox.dead_from.min((moment, entry.job));
        outbox.done_from = outbox.done_from.min((moment, entry.job));
        entry
    }

    /// From where on dead jobs, and those that are done, may be over that are not on their way.
    pub fn over_from(&self) -> (Place, Place) {
        self.outbox().map_or_else(Default::default, |outbox| (outbox.dead_from, outbox.done_from))
    }

    /// Up to where dead jobs may be over: not those that are still to go where the settings say.
    pub fn dead_upto(&self) -> Place {
        if self.limits.forwards { self.forwarded() } else { (Millis(u64::MAX), JobId(u64::MAX)) }
    }

    /// Notes that jobs are on their way which would be over at `now`, so that nobody looks at them again until they have
    /// left. At most `most` of each kind.
    pub fn pass_over(&mut self, now: Millis, most: usize) {
        let Some(outbox) = &mut self.outbox else { return };
        let kept_from = self.limits.dead_retention_ms.map(|ms| Millis(now.0.saturating_sub(ms)));
        for (order, from, upto) in
            [(&self.dead, &mut outbox.dead_from, kept_from), (&self.done, &mut outbox.done_from, Some(now))]
        {
            let due = order.range(*from..).take_while(|(at, _)| upto.is_some_and(|upto| *at <= upto));
            let held = due.take(most).take_while(|(_, id)| outbox.by_job.contains_key(id));
            if let Some((at, id)) = held.last() {
                *from = (*at, JobId(id.0 + 1));
            }
        }
    }

    /// The next dead letter to go where the settings say, if one may.
    fn next_forwarded(&self) -> Option<Place> {
        if !self.limits.forwards || self.outbox().is_some_and(|outbox| outbox.room() == 0) {
            return None;
        }
        let next = *self.dead.range((Excluded(self.forwarded()), Unbounded)).next()?;
        // One that is on its way already, to elsewhere, goes first.
        (!self.outbox().is_some_and(|outbox| outbox.has(next.1))).then_some(next)
    }

    /// When a dead letter is to go where the settings say: once no more can die before it.
    pub fn forward_due(&self) -> Option<Millis> {
        self.next_forwarded().map(|(since, _)| since.plus(1))
    }

    /// Appends at most `facts_max` facts about dead letters that go where the settings say.
    pub fn forward(
        &mut self,
        id: ResourceId,
        to: Option<&str>,
        catalog: &Catalog,
        now: Millis,
        facts_max: usize,
        facts: &mut Vec<Fact>,
    ) {
        if self.next_forwarded().is_none() {
            return;
        }
        let target = to.and_then(|to| flowmesh_model::transfer::target_path(to).ok());
        let Some(target) = target.and_then(|path| catalog.find_path(&path)) else {
            // The catalog keeps what is named; this only says that nothing is due.
            self.limits.forwards = false;
            return;
        };
        let outbox = self.outbox();
        let (room, last) =
            outbox.map_or((OUTBOX_JOBS_MAX, 0), |outbox| (outbox.room(), outbox.last_sequence()));
        let dead = self.dead.range((Excluded(self.forwarded()), Unbounded)).take(room.min(facts_max));
        let dead =
            dead.take_while(|(since, job)| *since < now && !outbox.is_some_and(|outbox| outbox.has(*job)));
        for (sequence, (_, job)) in (last + 1..).zip(dead) {
            let to = self.target_partition(target, *job);
            let mode = TransferMode::DeadLetter;
            let sending = TransferFact::Sending { sequence, job: *job, to, mode, ready_at: now };
            facts.push(Fact::Transfer(id, sending));
        }
    }

    /// Which partition of a target a job goes to: it is written down, so that it is the same with each try.
    fn target_partition(&self, target: &ResourceInfo, id: JobId) -> PartitionRef {
        let partition = match &target.settings {
            Settings::Stream(settings) => key_partition(&self.record_key(id), settings.partitions),
            _ => 0,
        };
        PartitionRef { resource: target.id, partition }
    }

    /// The key of the record that a job becomes: its group, or its number.
    pub fn record_key(&self, id: JobId) -> Bytes {
        let group = self.jobs.get(id).map_or_else(Bytes::new, |job| self.ready.key(job.group));
        if group.is_empty() { id.to_string().into() } else { group }
    }

    /// Checks every invariant.
    pub fn check_outbox(&self, seals: &Seals) {
        if let Some(received) = &self.received {
            received.check(seals);
        }
        let Some(outbox) = self.outbox() else { return };
        outbox.entries.check(seals);
        outbox.totals.check(seals);
        assert!(outbox.len() <= OUTBOX_JOBS_MAX, "an outbox is bounded");
        assert_eq!(outbox.by_job.len(), outbox.len(), "a job is on its way once");
        assert_eq!(outbox.lanes.values().map(BTreeSet::len).sum::<usize>(), outbox.len());
        let (totals, (dead_from, done_from)) = (outbox.totals(), self.over_from());
        for (number, entry) in outbox.entries.iter() {
            assert!(*number <= totals.last_sequence);
            assert_eq!(outbox.by_job.get(&entry.job), Some(number));
            assert!(outbox.lanes.get(&entry.to).is_some_and(|lane| lane.contains(number)));
            let phase = self.jobs.get(entry.job).map(super::job::Job::phase);
            let may = phase == Some(JobPhase::Dead)
                || (entry.mode == TransferMode::Replay && phase == Some(JobPhase::Done));
            assert!(may, "job {} is on its way and {phase:?}", entry.job);
        }
        for (order, from) in [(&self.dead, dead_from), (&self.done, done_from)] {
            assert!(
                order.range(..from).all(|(_, id)| outbox.has(*id)),
                "only those on their way are passed over"
            );
        }
    }

    /// The state as text.
    pub fn dump_outbox(&self, out: &mut String) {
        use std::fmt::Write;
        if let Some(outbox) = self.outbox().filter(|outbox| outbox.totals() != Totals::default()) {
            let _ = writeln!(out, "  outbox {:?}", outbox.totals());
            for (number, entry) in outbox.entries.iter() {
                let _ = writeln!(out, "  sending {number} {entry:?}");
            }
        }
        if let Some(received) = &self.received {
            received.dump(out);
        }
    }
}
