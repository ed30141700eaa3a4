//! What a shard counts for each partition of a stream, each queue, and each partition that a group commits: plain numbers, as all its counters, but only
//! so many of each kind have numbers of their own. The rest is counted together, so neither memory nor what a scrape
//! returns grows with the number of resources.
//!
//! A place of one's own goes to who asks first, and is kept until the resource is deleted. So what is counted together
//! only grows, as a counter must.

use std::collections::{BTreeMap, BTreeSet};

use flowmesh_machine::{Machine, Spread};
pub use flowmesh_machine::{PartitionHeld, QueueHeld, QueueTally};
use flowmesh_model::group::fact::GroupFact;
use flowmesh_model::job::fact::QueueFact;
use flowmesh_model::limits::METRIC_RESOURCES_MAX;
use flowmesh_model::transfer::fact::TransferFact;
use flowmesh_model::{
    Command, Fact, Millis, Offset, PartitionRef, QueueCommand, Reply, ResourceId, StreamCommand,
};

use super::stores::{StoreCounts, StoreRows, counts_of, looks_of};
use super::{Operation, Spans};

/// What is counted of a stream's partition since the shard's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionCounts {
    /// Records appended.
    pub records: u64,
    /// Packed bytes of them: keys, values, headers.
    pub bytes_written: u64,
    /// Packed bytes of records that reads returned.
    pub bytes_read: u64,
    /// Appends, from arrival on the shard to the release of the reply.
    pub write_ns: Spans,
    /// Reads, their waits included.
    pub read_ns: Spans,
}

/// What is counted of a queue since the shard's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Jobs enqueued.
    pub enqueued: u64,
    /// Jobs acknowledged.
    pub completed: u64,
    /// Deliveries that failed: given back, or their lease ran out. Those that were the last are among them.
    pub failed: u64,
    /// Jobs, or copies of them, that went to other queues and streams.
    pub sent: u64,
    /// Those that will never get where they were to go.
    pub send_failed: u64,
    /// Enqueues, from arrival on the shard to the release of the reply.
    pub enqueue_ns: Spans,
    /// Reserves, their waits included.
    pub reserve_ns: Spans,
    /// What became of its jobs.
    pub tally: QueueTally,
}

/// What is counted of a group's offsets in one partition since the shard's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetCounts {
    /// Offsets committed.
    pub commits: u64,
}

/// What is counted of a group since the shard's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupCounts {
    /// How often partitions were dealt out anew.
    pub rebalances: u64,
}

/// What a group holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupHolds {
    /// Its members.
    pub members: u64,
    /// Partitions of the streams that they subscribe to.
    pub partitions: u64,
    /// Those that have the owner they shall have.
    pub assigned: u64,
    /// Of the sandbox of a replay session: records that it has gone past, since it was created.
    pub replayed: Option<u64>,
}

/// What a group has of a partition now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OffsetHolds {
    /// The next record to read, where one is committed.
    pub committed: Option<Offset>,
}

/// Numbers that can be taken together.
pub trait Merge: Default {
    /// Adds another's numbers to these.
    fn merge(&mut self, other: &Self);
}

impl Merge for PartitionCounts {
    fn merge(&mut self, other: &Self) {
        self.records += other.records;
        self.bytes_written += other.bytes_written;
        self.bytes_read += other.bytes_read;
        self.write_ns.add(&other.write_ns);
        self.read_ns.add(&other.read_ns);
    }
}

impl Merge for QueueCounts {
    fn merge(&mut self, other: &Self) {
        self.enqueued += other.enqueued;
        self.completed += other.completed;
        self.failed += other.failed;
        self.sent += other.sent;
        self.send_failed += other.send_failed;
        self.enqueue_ns.add(&other.enqueue_ns);
        self.reserve_ns.add(&other.reserve_ns);
        self.tally.add(&other.tally);
    }
}

impl Merge for OffsetCounts {
    fn merge(&mut self, other: &Self) {
        self.commits += other.commits;
    }
}

impl Merge for GroupCounts {
    fn merge(&mut self, other: &Self) {
        self.rebalances += other.rebalances;
    }
}

impl Merge for GroupHolds {
    fn merge(&mut self, other: &Self) {
        self.members += other.members;
        self.partitions += other.partitions;
        self.assigned += other.assigned;
        self.replayed = self.replayed.map_or(other.replayed, |own| Some(own + other.replayed.unwrap_or(0)));
    }
}

impl Merge for OffsetHolds {
    fn merge(&mut self, other: &Self) {
        self.committed = match (self.committed, other.committed) {
            (Some(one), Some(more)) => Some(one.plus(more.0)),
            (one, more) => one.or(more),
        };
    }
}

impl Merge for PartitionHeld {
    fn merge(&mut self, other: &Self) {
        self.earliest = self.earliest.plus(other.earliest.0);
        self.next = self.next.plus(other.next.0);
        self.bytes += other.bytes;
        self.dirty_bytes += other.dirty_bytes;
    }
}

/// What queues hold now; of several, how many are paused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueHolds {
    /// All but whether it is paused: added up, and the age of the oldest ready job of all.
    pub held: QueueHeld,
    /// Queues that give no job out.
    pub paused: u64,
}

impl From<QueueHeld> for QueueHolds {
    fn from(held: QueueHeld) -> Self {
        Self { held, paused: held.status.paused.into() }
    }
}

impl Merge for QueueHolds {
    fn merge(&mut self, other: &Self) {
        let (sum, more) = (&mut self.held, &other.held);
        sum.schedules += more.schedules;
        sum.schedules_held_back += more.schedules_held_back;
        let (sum, more) = (&mut sum.status, &more.status);
        sum.ready += more.ready;
        sum.delayed += more.delayed;
        sum.blocked += more.blocked;
        sum.leased += more.leased;
        sum.dead += more.dead;
        sum.done += more.done;
        sum.outbox += more.outbox;
        sum.waiting_bytes += more.waiting_bytes;
        sum.oldest_ready_ms = sum.oldest_ready_ms.max(more.oldest_ready_ms);
        self.paused += other.paused;
    }
}

/// The numbers of one partition or queue, or of all that have none of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row<C, H> {
    /// What was counted.
    pub counts: C,
    /// What is there now.
    pub holds: H,
}

impl<C: Merge, H: Merge> Merge for Row<C, H> {
    fn merge(&mut self, other: &Self) {
        self.counts.merge(&other.counts);
        self.holds.merge(&other.holds);
    }
}

/// Rows of one kind.
#[derive(Clone, Debug)]
pub struct Rows<K, C, H> {
    /// Those with numbers of their own, in order.
    pub own: Vec<(K, Row<C, H>)>,
    /// All others together.
    pub other: Row<C, H>,
}

impl<K, C: Default, H: Default> Default for Rows<K, C, H> {
    fn default() -> Self {
        Self { own: Vec::new(), other: Row { counts: C::default(), holds: H::default() } }
    }
}

/// Rows of partitions.
pub type PartitionRows = Rows<PartitionRef, PartitionCounts, PartitionHeld>;

/// Rows of queues.
pub type QueueRows = Rows<ResourceId, QueueCounts, QueueHolds>;

/// Rows of groups.
pub type GroupRows = Rows<ResourceId, GroupCounts, GroupHolds>;

/// A group and a partition of a stream.
pub type GroupPartition = (ResourceId, PartitionRef);

/// Rows of groups' partitions.
pub type OffsetRows = Rows<GroupPartition, OffsetCounts, OffsetHolds>;

/// Counts by key, only so many of them.
#[derive(Debug)]
struct Bounded<K, C> {
    own: BTreeMap<K, C>,
    other: C,
    max: usize,
}

impl<K: Copy + Ord, C: Merge + Clone> Bounded<K, C> {
    fn new(max: usize) -> Self {
        Self { own: BTreeMap::new(), other: C::default(), max }
    }

    /// The counts of a key: its own if it has some or there is a place, else those of all others.
    fn of(&mut self, key: K) -> &mut C {
        if self.own.len() < self.max {
            return self.own.entry(key).or_default();
        }
        match self.own.get_mut(&key) {
            Some(own) => own,
            None => &mut self.other,
        }
    }

    /// All rows, with what `walk` says is there now. Places of keys that are not `known` any more go to those that hold
    /// something and have none, the smallest first.
    fn rows<H: Merge + Copy>(
        &mut self,
        known: impl Fn(K) -> bool,
        walk: impl Fn(&mut dyn FnMut(K, H)),
    ) -> Rows<K, C, H> {
        self.own.retain(|key, _| known(*key));
        let free = self.max.saturating_sub(self.own.len());
        if free > 0 {
            let mut first = BTreeSet::new();
            walk(&mut |key, _| {
                if !self.own.contains_key(&key) {
                    first.insert(key);
                    if first.len() > free {
                        first.pop_last();
                    }
                }
            });
            self.own.extend(first.into_iter().map(|key| (key, C::default())));
        }
        let row = |counts: &C| Row { counts: counts.clone(), holds: H::default() };
        let mut own: BTreeMap<K, Row<C, H>> =
            self.own.iter().map(|(key, counts)| (*key, row(counts))).collect();
        let mut other = row(&self.other);
        walk(&mut |key, holds| match own.get_mut(&key) {
            Some(own) => own.holds = holds,
            None => other.holds.merge(&holds),
        });
        Rows { own: own.into_iter().collect(), other }
    }
}

/// Counts of a shard's partitions, queues and groups.
#[derive(Debug)]
pub(crate) struct Resources {
    partitions: Bounded<PartitionRef, PartitionCounts>,
    queues: Bounded<ResourceId, QueueCounts>,
    groups: Bounded<ResourceId, GroupCounts>,
    offsets: Bounded<GroupPartition, OffsetCounts>,
    /// All shards have something of a store, so that dividing places between them would save none.
    stores: Bounded<ResourceId, StoreCounts>,
    lateness: Spread,
}

impl Resources {
    /// At most `max` of each kind have counts of their own.
    pub fn new(max: usize) -> Self {
        Self {
            partitions: Bounded::new(max),
            queues: Bounded::new(max),
            groups: Bounded::new(max),
            offsets: Bounded::new(max),
            stores: Bounded::new(METRIC_RESOURCES_MAX),
            lateness: Spread::default(),
        }
    }

    /// Counts facts that become true. They follow each other by resource, so there is one look-up for each resource.
    pub fn facts<'a>(&mut self, facts: impl IntoIterator<Item = &'a Fact>) {
        let mut queue: Option<(ResourceId, [u64; 3])> = None;
        let mut store: Option<(ResourceId, StoreCounts)> = None;
        for fact in facts {
            let (id, counts) = match fact {
                Fact::RecordsAppended { at, count, records, .. }
                | Fact::RecordsProduced { at, count, records, .. } => {
                    let partition = self.partitions.of(*at);
                    partition.records += u64::from(*count);
                    partition.bytes_written += records.len() as u64;
                    continue;
                }
                Fact::Group(group, GroupFact::OffsetsCommitted(offsets)) => {
                    for new in offsets {
                        self.offsets.of((*group, new.at)).commits += 1;
                    }
                    continue;
                }
                Fact::Group(group, GroupFact::Assigned(..)) => {
                    self.groups.of(*group).rebalances += 1;
                    continue;
                }
                Fact::Transfer(queue, TransferFact::Sent { .. }) => {
                    self.queues.of(*queue).sent += 1;
                    continue;
                }
                Fact::Transfer(queue, TransferFact::SendFailed { .. }) => {
                    self.queues.of(*queue).send_failed += 1;
                    continue;
                }
                Fact::JobEnqueued { queue, .. } => (*queue, [1, 0, 0]),
                Fact::JobDone { queue, .. } | Fact::Queue(queue, QueueFact::Finished { .. }) => {
                    (*queue, [0, 1, 0])
                }
                Fact::JobReturned { queue, .. } | Fact::JobDied { queue, .. } => (*queue, [0, 0, 1]),
                _ => {
                    if let Some((id, counts)) = counts_of(fact) {
                        match &mut store {
                            Some((same, sums)) if *same == id => sums.merge(&counts),
                            _ => self.keys(store.replace((id, counts))),
                        }
                    }
                    continue;
                }
            };
            match &mut queue {
                Some((same, sums)) if *same == id => {
                    sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
                }
                _ => {
                    if let Some((before, sums)) = queue.replace((id, counts)) {
                        self.jobs(before, sums);
                    }
                }
            }
        }
        if let Some((id, sums)) = queue {
            self.jobs(id, sums);
        }
        self.keys(store);
    }

    /// Counts what a command that is decided has read.
    pub fn looked(&mut self, command: &Command, reply: &Reply) {
        self.keys(looks_of(command, reply));
    }

    fn keys(&mut self, counted: Option<(ResourceId, StoreCounts)>) {
        if let Some((id, counts)) = counted {
            self.stores.of(id).merge(&counts);
        }
    }

    fn jobs(&mut self, id: ResourceId, [enqueued, completed, failed]: [u64; 3]) {
        let queue = self.queues.of(id);
        queue.enqueued += enqueued;
        queue.completed += completed;
        queue.failed += failed;
    }

    /// Counts a reply that is released after so long. What was refused does not count.
    pub fn released(&mut self, at: PartitionRef, operation: Operation, reply: &Reply, latency_ns: u64) {
        match operation {
            Operation::StreamAppend => self.partitions.of(at).write_ns.record(latency_ns),
            Operation::StreamRead => {
                let partition = self.partitions.of(at);
                partition.read_ns.record(latency_ns);
                if let Reply::Records(records) = reply {
                    partition.bytes_read +=
                        records.runs.iter().map(|run| run.records.len() as u64).sum::<u64>();
                }
            }
            Operation::QueueEnqueue => self.queues.of(at.resource).enqueue_ns.record(latency_ns),
            Operation::QueueReserve => self.queues.of(at.resource).reserve_ns.record(latency_ns),
            _ => {}
        }
    }

    /// How late jobs of the shard's schedules were enqueued, as of the last [`Resources::rows`].
    pub fn lateness(&self) -> &Spread {
        &self.lateness
    }

    /// Rows of stores, with what the machine holds of them now.
    pub fn stores(&mut self, machine: &Machine) -> StoreRows {
        self.stores.rows(|id| machine.is_known(id), |row| machine.each_store(row))
    }

    /// All other rows, with what the machine holds now.
    pub fn rows(
        &mut self,
        machine: &mut Machine,
        now: Millis,
    ) -> (PartitionRows, QueueRows, GroupRows, OffsetRows) {
        machine.take_tallies(&mut |id, tally| {
            self.lateness.add(&tally.lateness);
            self.queues.of(id).tally.add(tally);
        });
        let machine = &*machine;
        let known = |id| machine.is_known(id);
        let partitions = self.partitions.rows(
            |at| known(at.resource),
            |row| {
                machine.each_partition(row);
            },
        );
        let queues = self.queues.rows(known, |row| {
            machine.each_queue(now, &mut |id, held| row(id, held.into()));
        });
        let groups = self.groups.rows(known, |row| {
            machine.each_group(&mut |id, status| {
                let (members, partitions) = (status.members.into(), status.partitions.into());
                let (assigned, replayed) = (status.assigned.into(), machine.replayed(id));
                row(id, GroupHolds { members, partitions, assigned, replayed });
            });
        });
        let offsets = self.offsets.rows(
            |(group, at)| known(group) && known(at.resource),
            |row| {
                machine.each_committed(&mut |group, at, offset| {
                    row((group, at), OffsetHolds { committed: Some(offset) });
                });
            },
        );
        (partitions, queues, groups, offsets)
    }
}

/// The partition or queue (as its only partition) that a command is counted for when its reply is released.
pub(crate) fn counted_for(command: &Command) -> Option<PartitionRef> {
    match command {
        Command::Stream(at, StreamCommand::Append { .. } | StreamCommand::Read { .. }) => Some(*at),
        Command::Queue(id, QueueCommand::Enqueue { .. } | QueueCommand::Reserve { .. }) => {
            Some(PartitionRef { resource: *id, partition: 0 })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_model::JobId;
    use flowmesh_model::reply::QueueStatus;

    fn done(queue: u64) -> Fact {
        Fact::JobDone { queue: ResourceId(queue), job: JobId(1) }
    }

    fn rows(
        counts: &mut Bounded<u64, QueueCounts>,
        held: &[u64],
        known: &[u64],
    ) -> Rows<u64, QueueCounts, QueueHolds> {
        let status = QueueStatus { ready: 1, oldest_ready_ms: 7, paused: true, ..QueueStatus::default() };
        let holds = QueueHolds::from(QueueHeld { status, ..QueueHeld::default() });
        counts.rows(|key| known.contains(&key), |row| held.iter().for_each(|key| row(*key, holds)))
    }

    #[test]
    fn facts_are_counted_for_their_queue_whatever_their_order() {
        let mut resources = Resources::new(8);
        resources.facts(&[done(1), done(1), done(2), done(1)]);
        resources.facts(&[]);
        let completed = |id| resources.queues.own[&ResourceId(id)].completed;
        assert_eq!((completed(1), completed(2)), (3, 1));
    }

    #[test]
    fn those_beyond_the_limit_are_counted_together() {
        let mut counts = Bounded::<u64, QueueCounts>::new(2);
        for key in [1, 2, 3, 4, 1] {
            counts.of(key).completed += 1;
        }
        let rows = rows(&mut counts, &[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]);
        let own: Vec<_> = rows
            .own
            .iter()
            .map(|(key, row)| (*key, row.counts.completed, row.holds.held.status.ready))
            .collect();
        assert_eq!(own, [(1, 2, 1), (2, 1, 1)]);
        assert_eq!((rows.other.counts.completed, rows.other.holds.held.status.ready), (2, 3));
        assert_eq!(rows.other.holds.held.status.oldest_ready_ms, 7, "ages are not added up");
        assert_eq!(rows.other.holds.paused, 3);
    }

    #[test]
    fn the_place_of_one_that_is_gone_goes_to_another_and_what_was_counted_together_never_shrinks() {
        let mut counts = Bounded::<u64, QueueCounts>::new(2);
        for key in [1, 2, 3] {
            counts.of(key).completed += 1;
        }
        let rows = rows(&mut counts, &[2, 3, 4], &[2, 3, 4]);
        let own: Vec<_> = rows.own.iter().map(|(key, row)| (*key, row.counts.completed)).collect();
        assert_eq!(own, [(2, 1), (3, 0)], "3 holds something and is the smallest; it counts from now on");
        assert_eq!((rows.other.counts.completed, rows.other.holds.held.status.ready), (1, 1));
    }

    #[test]
    fn who_only_holds_something_has_a_row_too() {
        let mut counts = Bounded::<u64, QueueCounts>::new(2);
        let rows = rows(&mut counts, &[9, 8, 7], &[7, 8, 9]);
        assert_eq!(rows.own.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [7, 8]);
        assert_eq!(rows.other.holds.held.status.ready, 1);
    }
}
