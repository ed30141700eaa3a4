//! What time and size bring: whole segments go from the front, by age or by bytes.
//!
//! A segment goes once its **last** record is older than `retention_ms`, or once the segments behind it alone have
//! `retention_bytes`. The active one goes too when all of it is too old: it is rolled first.

use flowmesh_model::{Fact, Millis, Offset, PartitionRef, ResourceId, StreamSettings};

use super::{Partition, Stream};

/// Settings that retention needs. Not part of the state: they come with the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// `u64::MAX`: for ever.
    age_ms: u64,
    /// `u64::MAX`: without bound.
    bytes: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { age_ms: u64::MAX, bytes: u64::MAX }
    }
}

impl Rules {
    pub fn of(settings: &StreamSettings) -> Self {
        Self {
            age_ms: settings.retention_ms.unwrap_or(u64::MAX),
            bytes: settings.retention_bytes.unwrap_or(u64::MAX),
        }
    }

    /// When a segment with this last record goes.
    fn end_of(self, last_time: Millis) -> Option<Millis> {
        (self.age_ms < u64::MAX).then(|| last_time.plus(self.age_ms))
    }

    /// When the oldest segment of a partition goes, if nothing is appended meanwhile.
    fn due(self, partition: &Partition) -> Option<Millis> {
        if partition.segments.active().base == partition.next && partition.segments.closed_count() == 0 {
            return None;
        }
        let oldest = partition.segments.oldest();
        if partition.segments.closed_count() > 0 && partition.bytes - oldest.bytes >= self.bytes {
            return Some(Millis(0));
        }
        self.end_of(oldest.last_time)
    }

    /// Where the records start that stay.
    fn keeps_from(self, partition: &Partition, now: Millis) -> Offset {
        let mut bytes = partition.bytes;
        for (segment, end) in partition.segments.ranges(partition.next) {
            let is_active = end == partition.next && segment == partition.segments.active();
            let too_much = !is_active && bytes - segment.bytes >= self.bytes;
            let too_old = self.end_of(segment.last_time).is_some_and(|at| at <= now);
            if segment.base == end || !(too_much || too_old) {
                return segment.base;
            }
            bytes -= segment.bytes;
        }
        partition.next
    }
}

impl Stream {
    /// Uses other settings from now on.
    pub fn set_rules(&mut self, rules: Rules) {
        if self.rules != rules {
            self.rules = rules;
            self.look_for_due();
        }
    }

    /// When something is due next; may be early, never late.
    #[inline]
    pub fn next_due(&self) -> Option<Millis> {
        [self.due, self.producers_due()].into_iter().flatten().min()
    }

    /// Looks when retention is due next. Walks over the partitions.
    fn look_for_due(&mut self) {
        let rules = self.rules;
        self.due = self.partitions().filter_map(|(_, partition)| rules.due(partition)).min();
    }

    /// Takes note that a partition changed.
    #[inline]
    pub(super) fn note_due(&mut self, number: u32) {
        if self.rules == Rules::default() {
            return;
        }
        let due = self.partition(number).and_then(|partition| self.rules.due(partition));
        self.due = match (self.due, due) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// Appends the facts that are due, at most `facts_max`; if there are none, looks when there will be.
    pub fn expire(&mut self, stream: ResourceId, now: Millis, facts_max: usize, facts: &mut Vec<Fact>) {
        let (before, upto) = (facts.len(), facts.len() + facts_max);
        self.expire_producers(stream, now, facts_max, facts);
        if self.due.is_some_and(|due| due <= now) {
            self.expire_segments(stream, now, upto, facts);
        }
        if facts.len() == before {
            self.look_for_due();
        }
    }

    fn expire_segments(&self, stream: ResourceId, now: Millis, upto: usize, facts: &mut Vec<Fact>) {
        for (number, partition) in self.partitions() {
            if self.rules.due(partition).is_none_or(|due| due > now) {
                continue;
            }
            let at = PartitionRef { resource: stream, partition: number };
            for fact in partition.trim_facts(at, self.rules.keeps_from(partition, now)) {
                if facts.len() >= upto {
                    return;
                }
                facts.push(fact);
            }
        }
    }
}

impl Partition {
    /// What makes `earliest` the first record, which lies behind the one now: nothing, or a trim, with all records gone
    /// after a roll, so that the last file goes too.
    pub fn trim_facts(&self, at: PartitionRef, earliest: Offset) -> impl Iterator<Item = Fact> {
        let roll = earliest == self.next && self.segments.active().base < self.next;
        let rolled = roll.then_some(Fact::SegmentRolled { at, base: self.next });
        let trimmed = (earliest > self.earliest).then_some(Fact::RecordsTrimmed { at, earliest });
        rolled.into_iter().chain(trimmed)
    }
}
