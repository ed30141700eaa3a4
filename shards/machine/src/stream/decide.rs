//! What can be asked of a stream's partition.

use flowmesh_model::command::ReadFrom;
use flowmesh_model::limits::REPLY_BYTES_MAX;
use flowmesh_model::record::PackedRecords;
use flowmesh_model::reply::RecordRuns;
use flowmesh_model::{Fact, Millis, Offset, PartitionRef, Reject, Reply, StreamCommand, StreamSettings};
use smallvec::smallvec;

use super::{EMPTY, Partition, Stream};
use crate::decision::{ColdRead, Decision, WaitKey};
use crate::limit;

/// A partition of a stream, and the time it is.
pub(crate) struct Asked<'a> {
    pub partition: &'a Partition,
    pub at: PartitionRef,
    pub now: Millis,
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

impl Asked<'_> {
    pub fn decide(&self, command: &StreamCommand) -> Result<Decision, Reject> {
        match command {
            StreamCommand::Append { records } => Ok(self.append(records)),
            StreamCommand::Read { from, records_max, bytes_max, wait_until } => {
                limit::wait(*wait_until, self.now)?;
                self.read(*from, *records_max, *bytes_max, *wait_until)
            }
            StreamCommand::Status => Ok(Decision::Answer {
                reply: Reply::StreamStatus {
                    earliest: self.partition.earliest,
                    next: self.partition.next,
                    bytes: self.partition.bytes,
                },
                seen: self.partition.last_lsn,
            }),
        }
    }

    /// Limits of the batch were checked when it was packed (see [`PackedRecords::check`]).
    fn append(&self, records: &PackedRecords) -> Decision {
        let (base, count) = (self.partition.next, records.count());
        Decision::Change {
            facts: smallvec![Fact::RecordsAppended {
                at: self.at,
                base,
                count,
                records: records.bytes().clone(),
            }],
            reply: Reply::Appended { base, count, appended_at: self.now },
        }
    }

    fn read(
        &self,
        from: ReadFrom,
        records_max: u32,
        bytes_max: u32,
        wait_until: Option<Millis>,
    ) -> Result<Decision, Reject> {
        if records_max == 0 {
            return Err(Reject::invalid("records_max", "is 0; at least 1 is needed"));
        }
        let bytes_max = bytes_max.min(REPLY_BYTES_MAX as u32);
        let from = self.start(from)?;
        if from == self.partition.next {
            return Ok(match wait_until {
                Some(until) if until > self.now => Decision::Wait(WaitKey::Stream(self.at)),
                _ => self.records(Vec::new(), from),
            });
        }
        if !self.partition.tail.has(from) {
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

    fn start(&self, from: ReadFrom) -> Result<Offset, Reject> {
        let Partition { earliest, next, .. } = *self.partition;
        match from {
            ReadFrom::Earliest => Ok(earliest),
            ReadFrom::Latest => Ok(next),
            ReadFrom::Offset(offset) if (earliest..=next).contains(&offset) => Ok(offset),
            ReadFrom::Offset(requested) => Err(Reject::OffsetOutOfRange { requested, earliest, next }),
        }
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
