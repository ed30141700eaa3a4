//! `Stream.Subscribe`: one read in flight for each partition; what they bring is sent together, as many messages in one
//! buffer, and no further read starts before the client has taken it.
//!
//! With a filter only what matches is sent. So that a consumer that resumes need not pass over the same records again, a
//! batch without records tells it now and then how far it is.

use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use flowmesh_model::command::ReadFrom;
use flowmesh_model::compression::Codecs;
use flowmesh_model::filter::RecordFilter;
use flowmesh_model::limits::{FILTER_PROGRESS_MS, FILTER_PROGRESS_RECORDS, REPLY_BYTES_MAX};
use flowmesh_model::reply::RecordRuns;
use flowmesh_model::settings::within;
use flowmesh_model::{
    Command, Kind, Millis, Offset, PartitionRef, Reject, Reply, ResourceInfo, StreamCommand,
};
use flowmesh_proto::v1;
use flowmesh_proto::v1::subscribe_request::Start;
use futures::StreamExt;
use futures::future::{LocalBoxFuture, join_all};
use futures::stream::FuturesUnordered;

use super::as_of::{check_as_of, end_as_of, start_as_of};
use super::filter::{Room, pick, read_filter};
use super::offsets::find_offset;
use super::records::{batch_len, picked_len, put_batch, put_picked, put_progress};
use super::stream::{check_partition, chosen_partitions, or_default, partition_status};
use super::unpack::{read_codecs, readable};
use super::{decode, next_round};
use crate::edge::backend::{Backend, missing};
use crate::edge::grpc::Edge;
use crate::edge::grpc::message::{PREFIX_BYTES, put_message};
use crate::edge::grpc::respond::wrong_reply;
use crate::edge::grpc::streaming::{Ended, StreamCall};

/// Bytes of one read where the client does not say.
const BATCH_BYTES_DEFAULT: u32 = 256 * 1024;

/// Bytes of one read of a consumer that is behind, however few it wants at once: a busy core comes back to it only so often.
/// Others on the core wait while so much is copied and handed to the socket, so it is about 100 µs of work.
const BEHIND_BYTES: u32 = 256 * 1024;

/// Records of one read.
const READ_RECORDS: u32 = 100_000;

/// Bytes of all reads in flight: with many partitions each gets less.
const READS_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What gathers before it is sent, if there is so much.
const SEND_BYTES: usize = 512 * 1024;

/// One partition of the subscription.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    pub partition: u32,
    from: ReadFrom,
    /// Where the subscription ends there.
    end: Option<Offset>,
    /// Bytes of the next read.
    bytes: u32,
    /// With a filter: records that were passed over since the client was last told how far it is, and when that was.
    unsaid: u64,
    told_at: Millis,
}

impl Cursor {
    /// Of one of so many partitions that are read without a filter and without an end.
    pub fn of_many(partition: u32, offset: Offset, partitions: usize) -> Self {
        let share = (READS_BYTES_MAX / partitions.max(1)).max(16 * 1024) as u32;
        let (from, bytes, told_at) = (ReadFrom::Offset(offset), BATCH_BYTES_DEFAULT.min(share), Millis(0));
        Self { partition, from, end: None, bytes, unsaid: 0, told_at }
    }

    /// Where to go on, and with how much: reads grow while they come back full, up to `behind`, and shrink to `wanted` when
    /// the consumer has caught up.
    fn behind(self, records: &RecordRuns, wanted: u32, behind: u32) -> Self {
        let got = records.runs.iter().map(|run| run.records.len()).sum::<usize>() as u32;
        let bytes = match got {
            got if got >= self.bytes / 2 => self.bytes.saturating_mul(2).min(behind.max(wanted)),
            got if got < self.bytes / 4 => (self.bytes / 2).max(wanted),
            _ => self.bytes,
        };
        Self { from: ReadFrom::Offset(records.next), bytes, ..self }
    }

    /// How long a read waits for a record: not beyond the time at which the client is to be told how far it is.
    fn wait_until(&self, now: Millis) -> Millis {
        if self.unsaid > 0 { self.told_at.plus(FILTER_PROGRESS_MS) } else { next_round(now) }
    }

    fn told(&mut self, now: Millis) {
        (self.unsaid, self.told_at) = (0, now);
    }

    /// Whether the client is to be told how far it is, now that records were looked at up to `next`.
    fn owes_progress(&self, next: Offset, now: Millis) -> bool {
        self.unsaid > 0
            && (self.unsaid >= FILTER_PROGRESS_RECORDS
                || now.since(self.told_at) >= FILTER_PROGRESS_MS
                || self.end.is_some_and(|end| next >= end))
    }
}

/// Serves one consumer.
pub async fn subscribe<B: Backend>(edge: &Rc<Edge<B>>, call: &mut StreamCall) -> Result<(), Ended> {
    let mut request: v1::SubscribeRequest = decode(call.only().await?)?;
    let filter = read_filter(request.filter.take())?;
    let accepts =
        if filter.is_none() { read_codecs(&request.accept_compression)? } else { Codecs::default() };
    within("max_batch_bytes", request.max_batch_bytes.into(), 0, REPLY_BYTES_MAX as u64)?;
    let info = edge
        .backend
        .find(Kind::Stream, &request.stream)
        .ok_or_else(|| missing(Kind::Stream, &request.stream))?;
    let mut cursors = cursors(&info, &request, edge.backend.now())?;
    let as_of = check_as_of(request.as_of_ms, edge.backend.now())?;
    if request.stop_at_end || as_of.is_some() {
        set_ends(edge, &info, &mut cursors, as_of).await?;
    }
    let wanted = or_default(request.max_batch_bytes, BATCH_BYTES_DEFAULT);
    let share = (READS_BYTES_MAX / cursors.len().max(1)).max(16 * 1024) as u32;
    let wanted = wanted.min(share);
    // What is looked into is looked into in small steps: others on the core wait meanwhile.
    let behind = if filter.is_some() { wanted } else { share.min(BEHIND_BYTES) };
    call.open()?;
    let mut reads = FuturesUnordered::new();
    for cursor in cursors {
        start_read(edge, &info, Cursor { bytes: wanted, ..cursor }, &mut reads);
    }
    while let Some(first) = call.until_over(reads.next()).await? {
        let mut out = BytesMut::new();
        let (mut next, mut passed_bytes) = (Some(first), 0);
        while let Some((cursor, outcome)) = next {
            // What rests compressed is read as much as fits, and sent as much as that.
            let records = outcome?;
            let cursor = cursor.behind(&records, wanted, behind);
            let records = until(readable(records, accepts, cursor.bytes as usize)?, cursor.end);
            let mut cursor = Cursor { from: ReadFrom::Offset(records.next), ..cursor };
            match &filter {
                None => put_runs(&mut out, cursor.partition, &records),
                Some(filter) => {
                    passed_bytes += put_matching(&mut out, filter, &mut cursor, &records, edge.backend.now());
                }
            }
            start_read(edge, &info, cursor, &mut reads);
            next = if out.len() + passed_bytes < SEND_BYTES { ready_now(&mut reads).await } else { None };
        }
        if !out.is_empty() {
            call.send(out.freeze()).await?;
        }
        if filter.is_some() {
            // Nothing that is sent slows down a search in which nothing matches.
            call.until_over(edge.backend.yield_if_needed()).await?;
        }
    }
    Ok(())
}

pub(super) type ReadOutcome = (Cursor, Result<RecordRuns, Reject>);
pub(super) type Reads = FuturesUnordered<LocalBoxFuture<'static, ReadOutcome>>;

/// A read that is done already, if there is one.
pub(super) async fn ready_now(reads: &mut Reads) -> Option<ReadOutcome> {
    std::future::poll_fn(|cx| match reads.poll_next_unpin(cx) {
        Poll::Ready(done) => Poll::Ready(done),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Reads on, unless the partition's end was reached.
pub(super) fn start_read<B: Backend>(
    edge: &Rc<Edge<B>>,
    info: &Arc<ResourceInfo>,
    cursor: Cursor,
    reads: &mut Reads,
) {
    if let (Some(end), ReadFrom::Offset(next)) = (cursor.end, cursor.from)
        && next >= end
    {
        return;
    }
    let target = PartitionRef { resource: info.id, partition: cursor.partition };
    let read = StreamCommand::Read {
        from: cursor.from,
        records_max: READ_RECORDS,
        bytes_max: cursor.bytes,
        bytes_min: 0,
        wait_until: Some(cursor.wait_until(edge.backend.now())),
    };
    let to = edge.backend.shard_of_partition(info, cursor.partition);
    let reply = edge.backend.call(to, Command::Stream(target, read));
    reads.push(Box::pin(async move {
        let outcome = reply.await.and_then(|reply| match reply {
            Reply::Records(records) => Ok(records),
            _ => Err(wrong_reply()),
        });
        (cursor, outcome)
    }));
}

/// Only what lies before the end.
fn until(mut records: RecordRuns, end: Option<Offset>) -> RecordRuns {
    if let Some(end) = end {
        records.runs.retain(|run| run.base < end);
        records.next = records.next.min(end);
    }
    records
}

fn put_runs(out: &mut BytesMut, partition: u32, records: &RecordRuns) {
    let bytes = |run| batch_len(partition, run) + PREFIX_BYTES;
    out.reserve(records.runs.iter().map(bytes).sum());
    for run in &records.runs {
        put_message(out, |out| put_batch(out, partition, run));
    }
}

/// Writes what matches, and progress where it is due. Returns the bytes that did not match.
fn put_matching(
    out: &mut BytesMut,
    filter: &RecordFilter,
    cursor: &mut Cursor,
    records: &RecordRuns,
    now: Millis,
) -> usize {
    let (partition, mut passed_bytes) = (cursor.partition, 0);
    for run in &records.runs {
        let mut room = Room::UNBOUNDED;
        let picked = pick(filter, run, &mut room);
        passed_bytes += run.records.len() - picked.records.len();
        if picked.count == 0 {
            cursor.unsaid += u64::from(run.count);
            continue;
        }
        let next = Some(picked.next);
        out.reserve(picked_len(partition, &picked, next) + PREFIX_BYTES);
        put_message(out, |out| put_picked(out, partition, &picked, next));
        cursor.told(now);
    }
    if cursor.owes_progress(records.next, now) {
        put_message(out, |out| put_progress(out, partition, records.next));
        cursor.told(now);
    }
    passed_bytes
}

fn cursors(info: &ResourceInfo, request: &v1::SubscribeRequest, now: Millis) -> Result<Vec<Cursor>, Reject> {
    let from = match request.start {
        None | Some(Start::Earliest(_)) => ReadFrom::Earliest,
        Some(Start::Latest(_)) => ReadFrom::Latest,
        Some(Start::Offset(offset)) => ReadFrom::Offset(Offset(offset)),
        Some(Start::TimestampMs(ms)) => ReadFrom::Timestamp(Millis(ms)),
    };
    let mut cursors: Vec<Cursor> = chosen_partitions(info, &request.partitions)?
        .into_iter()
        .map(|partition| Cursor { partition, from, end: None, bytes: 0, unsaid: 0, told_at: now })
        .collect();
    for place in &request.from {
        check_partition(info, place.partition)?;
        let cursor = cursors.iter_mut().find(|cursor| cursor.partition == place.partition);
        let Some(cursor) = cursor else {
            return Err(Reject::invalid(
                "from",
                format!("names partition {}, which `partitions` does not", place.partition),
            ));
        };
        cursor.from = ReadFrom::Offset(Offset(place.offset));
    }
    Ok(cursors)
}

/// Asks where each partition ends now, or ended at a time, and fixes where those start that start there.
async fn set_ends<B: Backend>(
    edge: &Rc<Edge<B>>,
    info: &ResourceInfo,
    cursors: &mut [Cursor],
    as_of: Option<Millis>,
) -> Result<(), Reject> {
    let states = join_all(cursors.iter().map(|cursor| partition_status(edge, info, cursor.partition))).await;
    for (cursor, state) in cursors.iter_mut().zip(states) {
        let mut state = state?;
        if let Some(at) = as_of {
            let end = end_as_of(edge, info, cursor.partition, at).await?;
            (state.next_offset, cursor.end) = (end.get(), Some(end));
            cursor.from = start_as_of(cursor.from, Offset(state.earliest_offset), end)?;
        }
        cursor.end = Some(Offset(state.next_offset));
        cursor.from = match cursor.from {
            ReadFrom::Earliest => ReadFrom::Offset(Offset(state.earliest_offset)),
            ReadFrom::Latest => ReadFrom::Offset(Offset(state.next_offset)),
            ReadFrom::Timestamp(_) => {
                let found = find_offset(edge, info, cursor.partition, cursor.from).await?;
                ReadFrom::Offset(Offset(found.offset))
            }
            offset @ ReadFrom::Offset(offset_value) => {
                let (earliest, next) = (Offset(state.earliest_offset), Offset(state.next_offset));
                if offset_value < earliest || offset_value > next {
                    return Err(Reject::OffsetOutOfRange { requested: offset_value, earliest, next });
                }
                offset
            }
        };
    }
    Ok(())
}
