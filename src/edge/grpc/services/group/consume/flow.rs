//! The partitions a consumer has, and their records on the way to it: one read in flight for each that has nothing left to
//! push; what was read waits until there is credit. Partitions take turns, and none waits for another.
//!
//! ```text
//! idle ── credit ─► reading ── records ─► full ── credit, its turn ─► pushed; idle again once nothing is left
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use flowmesh_model::command::ReadFrom;
use flowmesh_model::compression::Codecs;
use flowmesh_model::limits::BATCH_ITEMS_MAX;
use flowmesh_model::record::prefix_len;
use flowmesh_model::reply::{RecordRun, RecordRuns};
use flowmesh_model::{Command, Offset, PartitionRef, Reject, Reply, ResourceInfo, StreamCommand};
use futures::StreamExt;
use futures::future::{AbortHandle, Abortable, LocalBoxFuture};
use futures::stream::FuturesUnordered;

use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::message::{PREFIX_BYTES, put_message};
use crate::edge::grpc::respond::wrong_reply;
use crate::edge::grpc::services::next_round;
use crate::edge::grpc::services::records::{batch_len, put_batch};
use crate::edge::grpc::services::unpack::readable;
use crate::edge::grpc::wire::{bytes_field_len, put_bytes_field, put_length};

/// `ConsumeResponse.batches`
const BATCHES: u8 = 1;

/// Bytes of all reads in flight: with many partitions each gets less.
const READS_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The least bytes of a read, however many there are.
const READ_BYTES_MIN: usize = 16 * 1024;

/// Records of one message, and of what is sent in one go.
const MESSAGE_BYTES: usize = 512 * 1024;

/// One partition the consumer has.
struct Flow {
    stream: Rc<str>,
    info: Arc<ResourceInfo>,
    /// Where the next read starts.
    next: Offset,
    /// Where the partition ended when that was last seen.
    end: Offset,
    /// What was read and not pushed.
    ready: VecDeque<RecordRun>,
    reading: Option<AbortHandle>,
    paused: bool,
}

type ReadOutcome = (PartitionRef, Result<RecordRuns, Reject>);

/// All partitions a consumer has.
pub struct Flows<B: Backend> {
    edge: Rc<Edge<B>>,
    batch_bytes: u32,
    accepts: Codecs,
    all: BTreeMap<PartitionRef, Flow>,
    /// Those that have nothing to push and no read in flight.
    idle: BTreeSet<PartitionRef>,
    /// Those that have something to push, in the order of their turns.
    full: VecDeque<PartitionRef>,
    reads: FuturesUnordered<Abortable<LocalBoxFuture<'static, ReadOutcome>>>,
}

/// Where a partition's records start.
#[derive(Clone, Debug)]
pub struct FlowStart {
    /// As the consumer names the stream.
    pub stream: Rc<str>,
    /// The stream.
    pub info: Arc<ResourceInfo>,
    /// Which.
    pub at: PartitionRef,
    /// The first record to push.
    pub offset: Offset,
    /// Where it ends now.
    pub end: Offset,
}

impl<B: Backend> Flows<B> {
    /// None yet; batches of about so many bytes, in codecs that the consumer accepts.
    pub fn new(edge: &Rc<Edge<B>>, batch_bytes: u32, accepts: Codecs) -> Self {
        Self {
            edge: Rc::clone(edge),
            batch_bytes,
            accepts,
            all: BTreeMap::new(),
            idle: BTreeSet::new(),
            full: VecDeque::new(),
            reads: FuturesUnordered::new(),
        }
    }

    /// Whether the consumer has that partition.
    pub fn has(&self, at: PartitionRef) -> bool {
        self.all.contains_key(&at)
    }

    /// The partitions there are.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionRef> {
        self.all.keys().copied()
    }

    /// Where that partition is known to end; it may end later.
    pub fn known_end(&self, at: PartitionRef) -> Option<Offset> {
        self.all.get(&at).map(|flow| flow.end)
    }

    /// Starts a partition, or starts it anew; if it was paused it still is.
    pub fn start(&mut self, start: FlowStart) {
        let FlowStart { stream, info, at, offset, end } = start;
        let paused = self.all.get(&at).is_some_and(|flow| flow.paused);
        self.stop(at);
        let flow = Flow { stream, info, next: offset, end, ready: VecDeque::new(), reading: None, paused };
        self.all.insert(at, flow);
        self.idle.insert(at);
    }

    /// Ends a partition: what was read of it and not pushed never is.
    pub fn stop(&mut self, at: PartitionRef) {
        self.idle.remove(&at);
        self.full.retain(|full| *full != at);
        if let Some(reading) = self.all.remove(&at).and_then(|flow| flow.reading) {
            reading.abort();
        }
    }

    /// Pushes nothing of a partition from now on, or again.
    pub fn pause(&mut self, at: PartitionRef, paused: bool) {
        let Some(flow) = self.all.get_mut(&at) else { return };
        if std::mem::replace(&mut flow.paused, paused) && !paused && !flow.ready.is_empty() {
            self.full.push_back(at);
        }
        if paused {
            self.full.retain(|full| *full != at);
        }
    }

    /// Starts reads where there is nothing to push, and takes in what they bring. A partition whose next record is
    /// gone, or cannot be read for another reason, is an error.
    pub fn poll_reads(&mut self, cx: &mut Context<'_>, credit: u32) -> Result<(), ReadError> {
        if credit > 0 {
            self.start_reads();
        }
        while let Poll::Ready(Some(done)) = self.reads.poll_next_unpin(cx) {
            let Ok((at, outcome)) = done else { continue };
            let Some(flow) = self.all.get_mut(&at) else { continue };
            flow.reading = None;
            let readable = |records| readable(records, self.accepts, self.batch_bytes as usize);
            let records = outcome.and_then(readable).map_err(|reject| ReadError { at, reject })?;
            flow.next = records.next;
            flow.end = records.high_watermark;
            flow.ready.extend(records.runs);
            if flow.ready.is_empty() {
                self.idle.insert(at);
            } else if !flow.paused {
                self.full.push_back(at);
            }
            if credit > 0 {
                self.start_reads();
            }
        }
        Ok(())
    }

    fn start_reads(&mut self) {
        let share = (READS_BYTES_MAX / self.all.len().max(1)).max(READ_BYTES_MIN) as u32;
        let bytes_max = self.batch_bytes.min(share);
        let wait_until = Some(next_round(self.edge.backend.now()));
        let mut paused = BTreeSet::new();
        for at in std::mem::take(&mut self.idle) {
            let Some(flow) = self.all.get_mut(&at) else { continue };
            if flow.paused {
                paused.insert(at);
                continue;
            }
            let read = StreamCommand::Read {
                from: ReadFrom::Offset(flow.next),
                records_max: BATCH_ITEMS_MAX as u32,
                bytes_max,
                bytes_min: 0,
                wait_until,
            };
            let to = self.edge.backend.shard_of_partition(&flow.info, at.partition);
            let reply = self.edge.backend.call(to, Command::Stream(at, read));
            let outcome: LocalBoxFuture<'static, ReadOutcome> = Box::pin(async move {
                let outcome = reply.await.and_then(|reply| match reply {
                    Reply::Records(records) => Ok(records),
                    _ => Err(wrong_reply()),
                });
                (at, outcome)
            });
            let (handle, registration) = AbortHandle::new_pair();
            flow.reading = Some(handle);
            self.reads.push(Abortable::new(outcome, registration));
        }
        self.idle = paused;
    }

    /// Where the next read of a partition starts.
    pub fn next_offset(&self, at: PartitionRef) -> Option<Offset> {
        self.all.get(&at).map(|flow| flow.next)
    }

    /// Records as messages, partitions in turn, as many as there is credit for and room in one go; takes the credit.
    pub fn push(&mut self, credit: &mut u32) -> Option<Bytes> {
        let mut out = BytesMut::new();
        while *credit > 0 && out.len() < MESSAGE_BYTES {
            let Some((stream, at, run)) = self.next_run(*credit) else { break };
            *credit -= run.count;
            put_run(&mut out, &stream, at.partition, &run);
        }
        (!out.is_empty()).then(|| out.freeze())
    }

    /// What comes next, of at most so many records.
    fn next_run(&mut self, records_max: u32) -> Option<(Rc<str>, PartitionRef, RecordRun)> {
        loop {
            let at = self.full.pop_front()?;
            let Some(flow) = self.all.get_mut(&at) else { continue };
            let Some(run) = flow.ready.pop_front() else { continue };
            let (now, later) = split(run, records_max);
            if let Some(later) = later {
                flow.ready.push_front(later);
            }
            if flow.ready.is_empty() {
                self.idle.insert(at);
            } else {
                self.full.push_back(at);
            }
            return Some((Rc::clone(&flow.stream), at, now));
        }
    }
}

/// A partition that cannot be read.
#[derive(Debug)]
pub struct ReadError {
    /// Which.
    pub at: PartitionRef,
    /// Why.
    pub reject: Reject,
}

impl<B: Backend> Drop for Flows<B> {
    fn drop(&mut self) {
        self.all.values().filter_map(|flow| flow.reading.as_ref()).for_each(AbortHandle::abort);
    }
}

/// The first records of a run, and the rest if there is one.
fn split(run: RecordRun, records_max: u32) -> (RecordRun, Option<RecordRun>) {
    if run.count <= records_max {
        return (run, None);
    }
    let run = run.plain().unwrap_or(run);
    let RecordRun { base, count, appended_at, mut records } = run;
    let first = records.split_to(prefix_len(&records, records_max));
    let rest = RecordRun {
        base: Offset(base.get() + u64::from(records_max)),
        count: count - records_max,
        appended_at,
        records,
    };
    (RecordRun { base, count: records_max, appended_at, records: first }, Some(rest))
}

/// Writes a `ConsumeResponse` of one batch, with its prefix.
fn put_run(out: &mut BytesMut, stream: &str, partition: u32, run: &RecordRun) {
    let batch = batch_len(partition, run);
    let group_batch = bytes_field_len(stream.len()) + bytes_field_len(batch);
    out.reserve(PREFIX_BYTES + bytes_field_len(group_batch));
    put_message(out, |out| {
        put_length(out, BATCHES, group_batch);
        put_bytes_field(out, 1, stream.as_bytes());
        put_length(out, 2, batch);
        put_batch(out, partition, run);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_model::Millis;
    use flowmesh_model::record::{RecordPacker, RecordView};
    use flowmesh_proto::v1;
    use prost::Message;

    fn run(base: u64, count: u32) -> RecordRun {
        let mut packer = RecordPacker::default();
        for n in 0..u64::from(count) {
            let value = (base + n).to_string();
            packer.push(&RecordView { value: value.as_bytes(), ..Default::default() });
        }
        RecordRun { base: Offset(base), count, appended_at: Millis(7), records: packer.finish() }
    }

    #[test]
    fn a_run_is_split_between_records() {
        let (first, rest) = split(run(10, 5), 2);
        assert_eq!((first.base, first.count), (Offset(10), 2));
        assert_eq!(first.records, run(10, 2).records);
        assert_eq!(rest, Some(run(12, 3)));
        assert_eq!(split(run(10, 5), 5).1, None);
    }

    #[test]
    fn a_client_reads_what_was_written_by_hand() {
        let mut out = BytesMut::new();
        put_run(&mut out, "logs", 3, &run(9, 2));
        let message = out.split_off(PREFIX_BYTES).freeze();
        let read = v1::ConsumeResponse::decode(message).unwrap();
        let batch = read.batches[0].batch.as_ref().unwrap();
        assert_eq!(read.batches[0].stream, "logs");
        assert_eq!((batch.base_offset, batch.count, batch.partition, batch.appended_at_ms), (9, 2, 3, 7));
        assert_eq!(batch.records[1].value, "10");
    }
}
