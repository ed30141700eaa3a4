//! `Stream.Subscribe`: one read in flight for each partition; what they bring is sent together, as many messages in one
//! buffer, and no further read starts before the client has taken it.

use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use flowmesh_model::command::ReadFrom;
use flowmesh_model::limits::{BATCH_ITEMS_MAX, REPLY_BYTES_MAX};
use flowmesh_model::reply::RecordRuns;
use flowmesh_model::settings::within;
use flowmesh_model::{Command, Kind, Offset, PartitionRef, Reject, Reply, ResourceInfo, StreamCommand};
use flowmesh_proto::v1;
use flowmesh_proto::v1::subscribe_request::Start;
use futures::StreamExt;
use futures::future::{LocalBoxFuture, join_all};
use futures::stream::FuturesUnordered;

use super::records::{batch_len, put_batch};
use super::stream::{check_partition, chosen_partitions, or_default, partition_status};
use super::{decode, next_round};
use crate::edge::backend::{Backend, missing};
use crate::edge::grpc::Edge;
use crate::edge::grpc::message::{PREFIX_BYTES, put_message};
use crate::edge::grpc::respond::wrong_reply;
use crate::edge::grpc::streaming::{Ended, StreamCall};

/// Bytes of one read where the client does not say.
const BATCH_BYTES_DEFAULT: u32 = 256 * 1024;

/// Bytes of all reads in flight: with many partitions each gets less.
const READS_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What gathers before it is sent, if there is so much.
const SEND_BYTES: usize = 512 * 1024;

/// One partition of the subscription.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    partition: u32,
    from: ReadFrom,
    /// Where the subscription ends there.
    end: Option<Offset>,
}

/// Serves one consumer.
pub async fn subscribe<B: Backend>(edge: &Rc<Edge<B>>, call: &mut StreamCall) -> Result<(), Ended> {
    let request: v1::SubscribeRequest = decode(call.only().await?)?;
    within("max_batch_bytes", request.max_batch_bytes.into(), 0, REPLY_BYTES_MAX as u64)?;
    let info = edge
        .backend
        .find(Kind::Stream, &request.stream)
        .ok_or_else(|| missing(Kind::Stream, &request.stream))?;
    let mut cursors = cursors(&info, &request)?;
    if request.stop_at_end {
        set_ends(edge, &info, &mut cursors).await?;
    }
    let wanted = or_default(request.max_batch_bytes, BATCH_BYTES_DEFAULT);
    let share = (READS_BYTES_MAX / cursors.len().max(1)).max(16 * 1024) as u32;
    call.open()?;
    let mut reads = FuturesUnordered::new();
    for cursor in cursors {
        start_read(edge, &info, cursor, wanted.min(share), &mut reads);
    }
    while let Some(first) = call.until_over(reads.next()).await? {
        let mut out = BytesMut::new();
        let mut next = Some(first);
        while let Some((cursor, outcome)) = next {
            let records = outcome?;
            put_runs(&mut out, cursor.partition, &records);
            let cursor = Cursor { from: ReadFrom::Offset(records.next), ..cursor };
            start_read(edge, &info, cursor, wanted.min(share), &mut reads);
            next = if out.len() < SEND_BYTES { ready_now(&mut reads).await } else { None };
        }
        if !out.is_empty() {
            call.send(out.freeze()).await?;
        }
    }
    Ok(())
}

type ReadOutcome = (Cursor, Result<RecordRuns, Reject>);
type Reads = FuturesUnordered<LocalBoxFuture<'static, ReadOutcome>>;

/// A read that is done already, if there is one.
async fn ready_now(reads: &mut Reads) -> Option<ReadOutcome> {
    std::future::poll_fn(|cx| match reads.poll_next_unpin(cx) {
        Poll::Ready(done) => Poll::Ready(done),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Reads on, unless the partition's end was reached.
fn start_read<B: Backend>(
    edge: &Rc<Edge<B>>,
    info: &Arc<ResourceInfo>,
    cursor: Cursor,
    bytes_max: u32,
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
        records_max: BATCH_ITEMS_MAX as u32,
        bytes_max,
        wait_until: Some(next_round(edge.backend.now())),
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

fn put_runs(out: &mut BytesMut, partition: u32, records: &RecordRuns) {
    let bytes = |run| batch_len(partition, run) + PREFIX_BYTES;
    out.reserve(records.runs.iter().map(bytes).sum());
    for run in &records.runs {
        put_message(out, |out| put_batch(out, partition, run));
    }
}

fn cursors(info: &ResourceInfo, request: &v1::SubscribeRequest) -> Result<Vec<Cursor>, Reject> {
    let from = match request.start {
        None | Some(Start::Earliest(_)) => ReadFrom::Earliest,
        Some(Start::Latest(_)) => ReadFrom::Latest,
        Some(Start::Offset(offset)) => ReadFrom::Offset(Offset(offset)),
    };
    let mut cursors: Vec<Cursor> = chosen_partitions(info, &request.partitions)?
        .into_iter()
        .map(|partition| Cursor { partition, from, end: None })
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

/// Asks where each partition ends now, and fixes where those start that start there.
async fn set_ends<B: Backend>(
    edge: &Rc<Edge<B>>,
    info: &ResourceInfo,
    cursors: &mut [Cursor],
) -> Result<(), Reject> {
    let states = join_all(cursors.iter().map(|cursor| partition_status(edge, info, cursor.partition))).await;
    for (cursor, state) in cursors.iter_mut().zip(states) {
        let state = state?;
        cursor.end = Some(Offset(state.next_offset));
        cursor.from = match cursor.from {
            ReadFrom::Earliest => ReadFrom::Offset(Offset(state.earliest_offset)),
            ReadFrom::Latest => ReadFrom::Offset(Offset(state.next_offset)),
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
