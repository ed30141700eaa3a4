//! What can be asked of a stream's partition.

use flowmesh_model::command::ReadFrom;
use flowmesh_model::limits::REPLY_BYTES_MAX;
use flowmesh_model::record::PackedRecords;
use flowmesh_model::reply::RecordRuns;
use flowmesh_model::{
    Batch, Fact, Millis, Offset, PartitionRef, ProducerStamp, Reject, Reply, StreamCommand, StreamSettings,
};
use smallvec::smallvec;

use super::find::Start;
use super::producers::decide as producers;
use super::{EMPTY, Partition, Stream};
use crate::decision::{ColdFind, ColdRead, Decision, WaitKey};
use crate::limit;

/// A partition of a stream, and the time it is.
pub(crate) struct Asked<'a> {
    pub partition: &'a Partition,
    pub at: PartitionRef,
    pub now: Millis,
    pub producers: producers::Asked<'a>,
}

/// The partition that is asked, if the stream has one of that number.
pub(crate) fn find<'a>(
    stream: Option<&'a Stream>,
    settings: &StreamSettings,
    at: PartitionRef,
) -> Result<&'a Partition, Reject> {
    if at.partition >= settings.partitions {
        return Err(Reject::NoSuchPartition { partition: at.partition, partitions: settings.partitions });
    }
    Ok(stream.and_then(|stream| stream.partition(at.partition)).unwrap_or(&EMPTY))
}

impl Partition {
    /// Whether the next record begins a new segment.
    pub fn rolls(&self, settings: &StreamSettings, now: Millis, bytes: usize) -> bool {
        let active = self.segments.active();
        active.base < self.next
            && (active.bytes + bytes as u64 > settings.segment_bytes
                || now.since(active.first_time) >= settings.segment_age_ms())
    }
}

/// How much a read wants.
#[derive(Clone, Copy)]
struct Limits {
    records_max: u32,
    bytes_max: u32,
    bytes_min: u32,
}

impl Limits {
    /// Whether a read from an offset need not wait: as much is there as it wants at least, or as it may have at most.
    fn have_enough(self, partition: &Partition, from: Offset) -> bool {
        let bytes_min = self.bytes_min.min(self.bytes_max);
        if from == partition.next {
            return false;
        }
        bytes_min <= 1
            || partition.next.0 - from.0 >= u64::from(self.records_max)
            || !partition.tail.has(from)
            || partition.tail.has_bytes(from, bytes_min.into())
    }
}

impl Asked<'_> {
    pub fn decide(&self, command: &StreamCommand) -> Result<Decision, Reject> {
        match command {
            StreamCommand::Append { records, producer, expected_offset } => {
                self.append(records, *producer, *expected_offset)
            }
            StreamCommand::InitProducer { name } => self.producers.init(name),
            StreamCommand::FenceProducer { id, epoch } => Ok(self.producers.fence(*id, *epoch)),
            StreamCommand::Read { from, records_max, bytes_max, bytes_min, wait_until } => {
                limit::wait(*wait_until, self.now)?;
                let limits =
                    Limits { records_max: *records_max, bytes_max: *bytes_max, bytes_min: *bytes_min };
                self.read(*from, limits, *wait_until)
            }
            StreamCommand::FindOffset { from } => self.partition.find_offset(self.at, *from),
            StreamCommand::Trim { upto } => self.trim(*upto),
            StreamCommand::Status => Ok(self.status()),
            StreamCommand::Receive(_) => Err(Reject::Internal("a transfer without a catalog")),
        }
    }

    fn status(&self) -> Decision {
        let Partition { earliest, next, bytes, .. } = *self.partition;
        let segments = self.partition.segments.count(next);
        let oldest = self.partition.segments.oldest().first_time;
        let clean_upto = self.partition.clean_upto();
        Decision::Answer {
            reply: Reply::StreamStatus {
                earliest,
                next,
                bytes,
                segments,
                oldest: (segments > 0 && oldest.0 > 0).then_some(oldest),
                newest: (segments > 0).then_some(self.partition.last_time),
                clean_upto: (clean_upto.0 > 0).then_some(clean_upto),
                dirty_bytes: if self.producers.settings.compaction {
                    self.partition.dirty_bytes()
                } else {
                    0
                },
            },
            seen: self.partition.last_lsn,
        }
    }

    /// Deletes the records before `upto`.
    fn trim(&self, upto: Offset) -> Result<Decision, Reject> {
        let Partition { earliest, next, .. } = *self.partition;
        if upto > next {
            return Err(Reject::OffsetOutOfRange { requested: upto, earliest, next });
        }
        let facts: Batch<Fact> = self.partition.trim_facts(self.at, upto).collect();
        let reply = Reply::Trimmed { earliest: upto.max(earliest), next };
        Ok(if facts.is_empty() {
            Decision::Answer { reply, seen: self.partition.last_lsn }
        } else {
            Decision::Change { facts, reply }
        })
    }

    /// Limits of the batch were checked when it was packed (see [`PackedRecords::check`]).
    pub(super) fn append(
        &self,
        records: &PackedRecords,
        producer: Option<ProducerStamp>,
        expected_offset: Option<Offset>,
    ) -> Result<Decision, Reject> {
        let (base, count) = (self.partition.next, records.count());
        // What was appended before is answered as then, whatever came since.
        if let Some(stamp) = producer
            && let Some(before) = self.producers.append(stamp, count)?
        {
            return Ok(before);
        }
        records.check_for(self.producers.settings)?;
        if let Some(expected) = expected_offset.filter(|expected| *expected != base) {
            return Err(Reject::OffsetMismatch { expected, next: base });
        }
        let (at, records) = (self.at, records.bytes().clone());
        let rolls = self.partition.rolls(self.producers.settings, self.now, records.len());
        let fact = match producer {
            None => Fact::RecordsAppended { at, base, count, records },
            Some(producer) => Fact::RecordsProduced { at, base, count, producer, records },
        };
        let reply = Reply::Appended { base, count, appended_at: self.now, duplicate: false };
        let facts = if rolls { smallvec![Fact::SegmentRolled { at, base }, fact] } else { smallvec![fact] };
        Ok(Decision::Change { facts, reply })
    }

    fn read(&self, from: ReadFrom, limits: Limits, wait_until: Option<Millis>) -> Result<Decision, Reject> {
        let Limits { records_max, bytes_max, .. } = limits;
        if records_max == 0 {
            return Err(Reject::invalid("records_max", "is 0; at least 1 is needed"));
        }
        let bytes_max = bytes_max.min(REPLY_BYTES_MAX as u32);
        let from = match self.partition.start(from)? {
            Start::At(from) => from,
            Start::Cold { from, since } => return Ok(Decision::Find(ColdFind { at: self.at, from, since })),
        };
        if wait_until.is_some_and(|until| until > self.now) && !limits.have_enough(self.partition, from) {
            return Ok(Decision::Wait(WaitKey::Stream(self.at)));
        }
        if from == self.partition.next {
            return Ok(self.records(Vec::new(), from));
        }
        if !self.partition.tail.has(from) || from < self.partition.gaps_upto() {
            return Ok(Decision::Fetch(ColdRead {
                at: self.at,
                from,
                records_max,
                bytes_max,
                earliest: self.partition.earliest,
                high_watermark: self.partition.next,
            }));
        }
        Ok(self.records(self.partition.tail.read(from, records_max, bytes_max as usize), from))
    }

    /// The reply shows the high watermark, so it shows the last append.
    fn records(&self, runs: Vec<flowmesh_model::reply::RecordRun>, from: Offset) -> Decision {
        let next = runs.last().map_or(from, |run| run.base.plus(u64::from(run.count)));
        Decision::Answer {
            reply: Reply::Records(RecordRuns {
                runs,
                next,
                earliest: self.partition.earliest,
                high_watermark: self.partition.next,
            }),
            seen: self.partition.last_lsn,
        }
    }
}
