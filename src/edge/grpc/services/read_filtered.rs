//! `Stream.Read` with a filter, or as of a time: reads on until enough matches, but never for ever.

use std::rc::Rc;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use flowmesh_model::command::ReadFrom;
use flowmesh_model::compression::Codecs;
use flowmesh_model::filter::RecordFilter;
use flowmesh_model::limits::{BATCH_ITEMS_MAX, FILTER_LOOKED_BYTES_MAX};
use flowmesh_model::reply::RecordRuns;
use flowmesh_model::{
    Command, Millis, Offset, PartitionRef, Reject, Reply, ResourceInfo, ShardId, StreamCommand,
};

use super::as_of::{end_as_of, start_as_of};
use super::filter::{Room, pick};
use super::records::{picked_len, put_picked, put_read_end};
use super::stream::partition_status;
use super::unless_over;
use super::unpack::readable;
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;
use crate::edge::grpc::wire::put_length;

/// Bytes of one read of the shard: what is looked at before others on the core have a turn.
const STEP_BYTES: u32 = 256 * 1024;

/// What to read.
#[derive(Debug)]
pub struct FilteredRead {
    /// Which records.
    pub filter: RecordFilter,
    /// The stream.
    pub info: Arc<ResourceInfo>,
    /// The partition.
    pub target: PartitionRef,
    /// Its shard.
    pub to: ShardId,
    /// Where to start.
    pub from: ReadFrom,
    /// Only what was there at this time.
    pub as_of: Option<Millis>,
    /// At most so many records.
    pub records_max: u32,
    /// Stop before more packed bytes than this; the first record always comes.
    pub bytes_max: u32,
    /// Wait at the end until so many packed bytes match; 0 as 1.
    pub bytes_min: u32,
    /// How long to wait.
    pub wait_ms: u64,
}

/// What was found so far.
struct Found {
    /// `ReadResponse.batches` as they are sent.
    batches: BytesMut,
    room: Room,
    matched_bytes: usize,
    looked_bytes: usize,
    next: Offset,
    earliest: Offset,
    high_watermark: Offset,
    /// Where the partition ends, as it was.
    end: Offset,
    is_full: bool,
}

/// Carries the read out.
pub fn read_filtered<B: Backend>(edge: &Rc<Edge<B>>, read: FilteredRead, responder: Responder) -> CallFuture {
    let edge = Rc::clone(edge);
    Box::pin(async move {
        match scan(&edge, &read, &responder).await {
            Some(Ok(found)) => responder.answer(found.batches.len() + 64, |out| {
                out.put_slice(&found.batches);
                put_read_end(out, found.next, found.earliest, found.high_watermark);
            }),
            Some(Err(reject)) => responder.fail(reject),
            None => {}
        }
    })
}

/// `None`: the client is gone.
async fn scan<B: Backend>(
    edge: &Edge<B>,
    read: &FilteredRead,
    responder: &Responder,
) -> Option<Result<Found, Reject>> {
    let deadline = responder.deadline();
    let wait_until = (read.wait_ms > 0).then(|| {
        let until = edge.backend.now().plus(read.wait_ms);
        deadline.map_or(until, |deadline| deadline.min(until))
    });
    let mut found = Found::new(read);
    let mut from = match start(edge, read, &mut found).await {
        Ok(from) => from,
        Err(reject) => return Some(Err(reject)),
    };
    loop {
        let step = StreamCommand::Read {
            from,
            records_max: BATCH_ITEMS_MAX as u32,
            bytes_max: STEP_BYTES,
            bytes_min: 0,
            wait_until: wait_until.filter(|_| !found.is_enough(read)),
        };
        let reply = edge.backend.call(read.to, Command::Stream(read.target, step));
        let records = match unless_over(responder, reply).await? {
            Ok(Reply::Records(records)) => match readable(records, Codecs::default(), STEP_BYTES as usize) {
                Ok(records) => records,
                Err(reject) => return Some(Err(reject)),
            },
            Ok(_) => return Some(Err(wrong_reply())),
            Err(reject) => return Some(Err(reject)),
        };
        found.look_at(read, &records);
        let now = edge.backend.now();
        let in_time = deadline.is_none_or(|deadline| now < deadline);
        if !in_time && found.batches.is_empty() {
            return Some(Err(Reject::DeadlineExceeded));
        }
        if !in_time || found.is_done(read, wait_until, now) {
            return Some(Ok(found));
        }
        if responder.is_cancelled() {
            return None;
        }
        from = ReadFrom::Offset(found.next);
        edge.backend.yield_if_needed().await;
    }
}

/// Where to start. As of a time, `found` ends where the partition did then.
async fn start<B: Backend>(
    edge: &Edge<B>,
    read: &FilteredRead,
    found: &mut Found,
) -> Result<ReadFrom, Reject> {
    let Some(at) = read.as_of else { return Ok(read.from) };
    let partition = read.target.partition;
    found.end = end_as_of(edge, &read.info, partition, at).await?;
    let earliest = Offset(partition_status(edge, &read.info, partition).await?.earliest_offset);
    start_as_of(read.from, earliest, found.end)
}

impl Found {
    fn new(read: &FilteredRead) -> Self {
        Self {
            batches: BytesMut::new(),
            room: Room { records: read.records_max, bytes: read.bytes_max as usize, even_larger: true },
            matched_bytes: 0,
            looked_bytes: 0,
            next: Offset(0),
            earliest: Offset(0),
            high_watermark: Offset(0),
            end: Offset(u64::MAX),
            is_full: false,
        }
    }

    fn look_at(&mut self, read: &FilteredRead, records: &RecordRuns) {
        let end = self.end;
        (self.earliest, self.high_watermark) = (records.earliest, records.high_watermark.min(end));
        // A run has one time, so that none lies on both sides of a time's end.
        for run in records.runs.iter().filter(|run| run.base < end) {
            let picked = pick(&read.filter, run, &mut self.room);
            self.looked_bytes += run.records.len();
            self.matched_bytes += picked.records.len();
            self.next = picked.next;
            if picked.count > 0 {
                put_length(&mut self.batches, 1, picked_len(read.target.partition, &picked, None));
                put_picked(&mut self.batches, read.target.partition, &picked, None);
            }
            if self.room.records == 0 || picked.next < run.base.plus(run.count.into()) {
                self.is_full = true;
                return;
            }
        }
        self.next = records.next.min(end);
    }

    /// Whether there is no reason to wait.
    fn is_enough(&self, read: &FilteredRead) -> bool {
        self.matched_bytes >= read.bytes_min.max(1) as usize
    }

    /// Whether it is time to answer.
    fn is_done(&self, read: &FilteredRead, wait_until: Option<Millis>, now: Millis) -> bool {
        let at_end = self.next >= self.high_watermark;
        let may_wait = !self.is_enough(read) && wait_until.is_some_and(|until| now < until);
        self.is_full || self.looked_bytes >= FILTER_LOOKED_BYTES_MAX || (at_end && !may_wait)
    }
}
