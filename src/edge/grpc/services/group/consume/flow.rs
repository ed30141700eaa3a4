//! The partitions a consumer has, and their records on the way to it: one read in flight for each that has nothing left to
//! push; what was read waits until there is credit. Partitions take turns, and none waits for another.
//!
//! ```text
//! idle ── credit ─► reading ── records ─► full ── credit, its turn ─► pushed; idle again once nothing is left
//! ```
//!
//! With a filter only what matches is pushed, and now and then how far the search is, so that the consumer can commit past
//! what it never got.
//!
//! Of a replay session, what is read is first cut at the session's end, filtered and marked, and records have their turn
//! only once they are due. A session that is not active gives no turns and starts no reads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use flowmesh_model::command::ReadFrom;
use flowmesh_model::compression::{Codecs, plain};
use flowmesh_model::filter::RecordFilter;
use flowmesh_model::limits::{BATCH_ITEMS_MAX, FILTER_PROGRESS_MS, FILTER_PROGRESS_RECORDS};
use flowmesh_model::record::prefix_len;
use flowmesh_model::replay::{Pace, Speed};
use flowmesh_model::reply::{RecordRun, RecordRuns};
use flowmesh_model::{Command, Millis, Offset, PartitionRef, Reject, Reply, ResourceInfo, StreamCommand};
use futures::StreamExt;
use futures::future::{AbortHandle, Abortable, LocalBoxFuture};
use futures::stream::FuturesUnordered;

use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::message::{PREFIX_BYTES, put_message};
use crate::edge::grpc::respond::wrong_reply;
use crate::edge::grpc::services::filter::{PickedRun, Room, pick};
use crate::edge::grpc::services::next_round;
use crate::edge::grpc::services::records::{picked_len, put_picked};
use crate::edge::grpc::services::replay::marked::Mark;
use crate::edge::grpc::services::unpack::readable;
use crate::edge::grpc::wire::{bytes_field_len, put_bytes_field, put_length};

/// `ConsumeResponse.batches`
const BATCHES: u8 = 1;

/// Bytes of all reads in flight: with many partitions each gets less.
const READS_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The least bytes of a read, however many there are.
const READ_BYTES_MIN: usize = 16 * 1024;

/// Reads taken in before others on the core have a turn: of a search in which little matches.
const READS_TURN_MAX: usize = 32;

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
    /// Where it ends for good.
    until: Option<Offset>,
    /// What was read and not pushed.
    ready: VecDeque<PickedRun>,
    reading: Option<AbortHandle>,
    paused: bool,
    /// With a filter: up to where the consumer was told that there is nothing else for it, and when.
    told: Offset,
    told_at: Millis,
}

impl Flow {
    /// Whether nothing is left to read.
    fn is_through(&self) -> bool {
        self.until.is_some_and(|until| self.next >= until)
    }

    /// Takes in what a read brought.
    fn take(&mut self, records: RecordRuns, replay: Option<&Replay>, filter: Option<&RecordFilter>) {
        let until = self.until.unwrap_or(Offset(u64::MAX));
        self.next = records.next.min(until);
        self.end = records.high_watermark;
        let runs = records.runs.into_iter().filter(|run| run.base < until).map(|run| {
            let left = u32::try_from(until.get() - run.base.get()).unwrap_or(u32::MAX);
            if run.count > left { split(whole(run), left).0 } else { whole(run) }
        });
        match (replay, filter) {
            (Some(replay), _) => self.ready.extend(runs.filter_map(|run| replay.shape(run))),
            (None, Some(filter)) => {
                self.ready.extend(runs.map(|run| matching(filter, run)).filter(|run| run.count > 0));
            }
            (None, None) => self.ready.extend(runs),
        }
    }

    /// Takes note that the consumer knows how far it is.
    fn told(&mut self, next: Offset, now: Millis) {
        (self.told, self.told_at) = (next, now);
    }

    /// Whether there is nothing to push, and more was passed over than the consumer was told.
    fn has_passed(&self) -> bool {
        self.ready.is_empty() && self.next > self.told
    }

    /// Whether the consumer is to be told by now.
    fn owes_progress(&self, now: Millis) -> bool {
        self.has_passed()
            && (self.next.get() - self.told.get() >= FILTER_PROGRESS_RECORDS
                || now.since(self.told_at) >= FILTER_PROGRESS_MS)
    }
}

/// What a replay session makes of records.
#[derive(Debug)]
pub struct Replay {
    /// Which are wanted.
    pub filter: RecordFilter,
    /// What they all have.
    pub mark: Mark,
    /// Whether records flow.
    pub is_active: bool,
    /// When they are due.
    pub pace: Pace,
}

impl Replay {
    /// What is wanted of a run, marked.
    fn shape(&self, run: PickedRun) -> Option<PickedRun> {
        let picked = if self.filter.is_empty() { run } else { matching(&self.filter, run) };
        let records = self.mark.mark(&picked.records, picked.count);
        (picked.count > 0).then_some(PickedRun { records, ..picked })
    }
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
    /// What makes them those of a replay session.
    replay: Option<Replay>,
    /// Which records the consumer wants; `None`: all.
    filter: Option<RecordFilter>,
    /// Partitions of which the consumer is to be told how far they are.
    owed: Vec<PartitionRef>,
    /// When the first records are due that were not yet.
    due: Option<Millis>,
    /// What was pushed last of partitions of a replay session: up to where.
    pushed: Vec<(PartitionRef, Offset)>,
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
    /// Where it ends for good, if it does.
    pub until: Option<Offset>,
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
            replay: None,
            filter: None,
            owed: Vec::new(),
            due: None,
            pushed: Vec::new(),
        }
    }

    /// Only records that match.
    #[must_use]
    pub fn with_filter(mut self, filter: RecordFilter) -> Self {
        self.filter = Some(filter);
        self
    }

    /// Makes them those of a replay session, or changes what that is.
    pub fn set_replay(&mut self, replay: Replay) {
        self.replay = Some(replay);
    }

    /// Lets records flow at that pace, or not.
    pub fn set_pace(&mut self, is_active: bool, pace: Pace) {
        if let Some(replay) = &mut self.replay {
            (replay.is_active, replay.pace) = (is_active, pace);
        }
    }

    /// Whether records flow.
    fn is_active(&self) -> bool {
        self.replay.as_ref().is_none_or(|replay| replay.is_active)
    }

    /// When the first records are due that were not at the last push.
    pub fn due(&self) -> Option<Millis> {
        self.due.filter(|_| self.is_active())
    }

    /// What was pushed of partitions of a replay session since this was last asked.
    pub fn take_pushed(&mut self) -> Vec<(PartitionRef, Offset)> {
        std::mem::take(&mut self.pushed)
    }

    /// Partitions with nothing left to push, and up to where they were looked at.
    pub fn looked(&self) -> impl Iterator<Item = (PartitionRef, Offset)> {
        self.all.iter().filter(|(_, flow)| flow.ready.is_empty()).map(|(at, flow)| (*at, flow.next))
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
        let FlowStart { stream, info, at, offset, end, until } = start;
        let paused = self.all.get(&at).is_some_and(|flow| flow.paused);
        self.stop(at);
        let ready = VecDeque::new();
        let (reading, told, told_at) = (None, offset, self.edge.backend.now());
        let flow = Flow { stream, info, next: offset, end, until, ready, reading, paused, told, told_at };
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
        let mut turns = 0;
        if credit > 0 {
            self.start_reads();
        }
        while let Poll::Ready(Some(done)) = self.reads.poll_next_unpin(cx) {
            let Ok((at, outcome)) = done else { continue };
            let Some(flow) = self.all.get_mut(&at) else { continue };
            flow.reading = None;
            let readable = |records| readable(records, self.accepts, self.batch_bytes as usize);
            let records = outcome.and_then(readable).map_err(|reject| ReadError { at, reject })?;
            flow.take(records, self.replay.as_ref(), self.filter.as_ref());
            if flow.ready.is_empty() {
                self.idle.insert(at);
                if self.filter.is_some() && flow.owes_progress(self.edge.backend.now()) {
                    self.owed.push(at);
                }
            } else if !flow.paused {
                self.full.push_back(at);
            }
            turns += 1;
            if turns == READS_TURN_MAX {
                cx.waker().wake_by_ref();
                break;
            }
            if credit > 0 {
                self.start_reads();
            }
        }
        Ok(())
    }

    fn start_reads(&mut self) {
        if !self.is_active() {
            return;
        }
        let share = (READS_BYTES_MAX / self.all.len().max(1)).max(READ_BYTES_MIN) as u32;
        let bytes_max = self.batch_bytes.min(share);
        let round = next_round(self.edge.backend.now());
        let mut paused = BTreeSet::new();
        for at in std::mem::take(&mut self.idle) {
            let Some(flow) = self.all.get_mut(&at) else { continue };
            if flow.is_through() {
                continue;
            }
            if flow.paused {
                paused.insert(at);
                continue;
            }
            // Not beyond the time at which the consumer is to be told how far it is.
            let wait_until = if self.filter.is_some() && flow.has_passed() {
                round.min(flow.told_at.plus(FILTER_PROGRESS_MS))
            } else {
                round
            };
            let read = StreamCommand::Read {
                from: ReadFrom::Offset(flow.next),
                records_max: BATCH_ITEMS_MAX as u32,
                bytes_max,
                bytes_min: 0,
                wait_until: Some(wait_until),
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
        if !self.is_active() {
            return None;
        }
        self.due = None;
        let mut out = BytesMut::new();
        while *credit > 0 && out.len() < MESSAGE_BYTES {
            let Some((stream, at, run)) = self.next_run(*credit) else { break };
            *credit -= run.count;
            let next = (self.replay.is_some() || self.filter.is_some()).then_some(run.next);
            if self.replay.is_some() {
                self.pushed.push((at, run.next));
            }
            put_run(&mut out, &stream, at.partition, &run, next);
        }
        self.put_progress(&mut out);
        (!out.is_empty()).then(|| out.freeze())
    }

    /// Writes how far partitions are of which the consumer is to be told, unless there is something to push by now.
    fn put_progress(&mut self, out: &mut BytesMut) {
        let now = if self.owed.is_empty() { return } else { self.edge.backend.now() };
        for at in std::mem::take(&mut self.owed) {
            if let Some(flow) = self.all.get_mut(&at).filter(|flow| flow.has_passed()) {
                flow.told(flow.next, now);
                put_run(out, &flow.stream, at.partition, &nothing_before(flow.next), Some(flow.next));
            }
        }
    }

    /// What comes next, of at most so many records.
    fn next_run(&mut self, records_max: u32) -> Option<(Rc<str>, PartitionRef, PickedRun)> {
        if let Some(pace) = self.replay.as_ref().map(|replay| replay.pace)
            && pace.speed != Speed::MAX
        {
            let (place, due) = self.first_due(pace)?;
            if due > self.edge.backend.now() {
                self.due = Some(due);
                return None;
            }
            self.full.rotate_left(place);
        }
        while let Some(at) = self.full.pop_front() {
            let Some(flow) = self.all.get_mut(&at) else { continue };
            let Some(run) = flow.ready.pop_front() else { continue };
            let (now, later) = if run.count > records_max { split(run, records_max) } else { (run, None) };
            if let Some(later) = later {
                flow.ready.push_front(later);
            }
            if self.filter.is_some() {
                flow.told(now.next, self.edge.backend.now());
            }
            if flow.ready.is_empty() {
                self.idle.insert(at);
            } else {
                self.full.push_back(at);
            }
            return Some((Rc::clone(&flow.stream), at, now));
        }
        None
    }

    /// Which turn has the record that is due first, and when: that with the smallest time.
    fn first_due(&self, pace: Pace) -> Option<(usize, Millis)> {
        let head = |at: &PartitionRef| self.all.get(at)?.ready.front();
        let times =
            self.full.iter().enumerate().filter_map(|(place, at)| Some((head(at)?.appended_at, place)));
        times.min().map(|(appended_at, place)| (place, pace.due(appended_at)))
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

/// A run of which everything is wanted.
fn whole(run: RecordRun) -> PickedRun {
    let RecordRun { base, count, appended_at, records } = run;
    PickedRun { base, count, appended_at, records, deltas: Vec::new(), next: base.plus(u64::from(count)) }
}

/// What is wanted of a run.
fn matching(filter: &RecordFilter, run: PickedRun) -> PickedRun {
    let PickedRun { base, count, appended_at, records, .. } = run;
    pick(filter, &RecordRun { base, count, appended_at, records }, &mut Room::UNBOUNDED.clone())
}

/// No records, and that there are none for the consumer before `next`.
fn nothing_before(next: Offset) -> PickedRun {
    let (records, deltas) = (Bytes::new(), Vec::new());
    PickedRun { base: next, count: 0, appended_at: Millis(0), records, deltas, next }
}

/// The first records of a run that has more, and the rest.
fn split(mut run: PickedRun, records_max: u32) -> (PickedRun, Option<PickedRun>) {
    let place = records_max as usize;
    run.records = plain(&run.records).unwrap_or(run.records);
    let first = run.records.split_to(prefix_len(&run.records, records_max));
    let deltas = if run.deltas.is_empty() { Vec::new() } else { run.deltas.split_off(place) };
    let behind = deltas.first().copied().unwrap_or(u64::from(records_max));
    let rest = PickedRun {
        base: run.base.plus(behind),
        count: run.count - records_max,
        appended_at: run.appended_at,
        records: run.records,
        deltas: deltas.into_iter().map(|delta| delta - behind).collect(),
        next: run.next,
    };
    let last = run.deltas.last().copied().unwrap_or(u64::from(records_max).saturating_sub(1));
    let next = run.base.plus(last + 1);
    (PickedRun { count: records_max, records: first, next, ..run }, Some(rest))
}

/// Writes a `ConsumeResponse` of one batch, with its prefix; with where to go on, if that is given.
fn put_run(out: &mut BytesMut, stream: &str, partition: u32, run: &PickedRun, next: Option<Offset>) {
    let batch = picked_len(partition, run, next);
    let group_batch = bytes_field_len(stream.len()) + bytes_field_len(batch);
    out.reserve(PREFIX_BYTES + bytes_field_len(group_batch));
    put_message(out, |out| {
        put_length(out, BATCHES, group_batch);
        put_bytes_field(out, 1, stream.as_bytes());
        put_length(out, 2, batch);
        put_picked(out, partition, run, next);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let (first, rest) = split(whole(run(10, 5)), 2);
        assert_eq!((first.base, first.count, first.next), (Offset(10), 2, Offset(12)));
        assert_eq!(first.records, run(10, 2).records);
        assert_eq!(rest, Some(whole(run(12, 3))));
    }

    #[test]
    fn what_a_filter_left_is_split_with_its_offsets() {
        let gaps = PickedRun { deltas: vec![0, 3, 4, 9], next: Offset(30), ..whole(run(10, 4)) };
        let (first, rest) = split(gaps, 2);
        assert_eq!((first.base, first.count, first.next), (Offset(10), 2, Offset(14)));
        assert_eq!(first.deltas, [0, 3]);
        let rest = rest.unwrap();
        assert_eq!((rest.base, rest.count, rest.next), (Offset(14), 2, Offset(30)));
        assert_eq!((rest.deltas, rest.records), (vec![0, 5], run(12, 2).records));
    }

    #[test]
    fn a_client_reads_what_was_written_by_hand() {
        let mut out = BytesMut::new();
        put_run(&mut out, "logs", 3, &nothing_before(Offset(40)), Some(Offset(40)));
        let read = v1::ConsumeResponse::decode(out.split_off(PREFIX_BYTES).freeze()).unwrap();
        let batch = read.batches[0].batch.as_ref().unwrap();
        assert_eq!((batch.count, batch.partition, batch.next_offset), (0, 3, Some(40)));
        for next in [None, Some(Offset(30))] {
            let mut out = BytesMut::new();
            put_run(&mut out, "logs", 3, &whole(run(9, 2)), next);
            let message = out.split_off(PREFIX_BYTES).freeze();
            let read = v1::ConsumeResponse::decode(message).unwrap();
            let batch = read.batches[0].batch.as_ref().unwrap();
            assert_eq!(read.batches[0].stream, "logs");
            assert_eq!((batch.base_offset, batch.count, batch.partition, batch.appended_at_ms), (9, 2, 3, 7));
            assert_eq!((&batch.records[1].value[..], batch.next_offset), (&b"10"[..], next.map(Offset::get)));
        }
    }
}
