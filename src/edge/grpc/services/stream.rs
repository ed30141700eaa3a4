//! `flowmesh.v1.Stream`, the unary calls.

use std::rc::Rc;

use bytes::Bytes;
use flowmesh_model::command::ReadFrom;
use flowmesh_model::limits::{BATCH_ITEMS_MAX, REPLY_BYTES_MAX};
use flowmesh_model::settings::within;
use flowmesh_model::{
    Command, Kind, Millis, Offset, PartitionRef, Reject, Reply, ResourceInfo, StreamCommand,
};
use flowmesh_proto::v1;
use futures::future::join_all;

use super::append::{AppendCall, append as append_records};
use super::as_of::check_as_of;
use super::filter::read_filter;
use super::read_filtered::{FilteredRead, read_filtered};
use super::records::put_read_response;
use super::unpack::{read_codecs, readable};
use super::{answer, attempt, check_wait, decode, dispatch_waiting, with_resource};
use crate::edge::backend::{Backend, missing};
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;

/// Records of a read that does not say how many.
const READ_RECORDS_DEFAULT: u32 = 1000;

/// Bytes of a read that does not say how many.
const READ_BYTES_DEFAULT: u32 = 1024 * 1024;

/// `Stream.Append`
pub fn append<B: Backend>(edge: &Rc<Edge<B>>, message: &Bytes, responder: Responder) -> Option<CallFuture> {
    let AppendCall { stream, options, records, .. } = attempt!(responder, AppendCall::read(message));
    with_resource(edge, Kind::Stream, stream, true, responder, move |edge, info, responder| {
        let conn = responder.conn_rc();
        append_records(edge, &conn, &info, options, records, move |outcome| match outcome {
            Ok(response) => answer(responder, &response),
            Err(reject) => responder.fail(reject),
        });
    })
}

/// `Stream.Read`
pub fn read<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let mut request: v1::ReadRequest = attempt!(responder, decode(message));
    let read = attempt!(responder, read_command(&request));
    let filter = attempt!(responder, read_filter(request.filter.take()));
    let accepts = attempt!(responder, read_codecs(&request.accept_compression));
    let bytes_max = or_default(request.max_bytes, READ_BYTES_DEFAULT) as usize;
    let as_of = attempt!(responder, check_as_of(request.as_of_ms, edge.backend.now()));
    if as_of.is_some() && request.wait_ms > 0 {
        responder.fail(Reject::invalid("wait_ms", "is not for a time that is past"));
        return None;
    }
    let Some(info) = edge.backend.find(Kind::Stream, &request.stream) else {
        responder.fail(missing(Kind::Stream, &request.stream));
        return None;
    };
    attempt!(responder, check_partition(&info, request.partition));
    let to = edge.backend.shard_of_partition(&info, request.partition);
    let target = PartitionRef { resource: info.id, partition: request.partition };
    let partition = request.partition;
    if (filter.is_some() || as_of.is_some())
        && let StreamCommand::Read { from, records_max, bytes_max, bytes_min, .. } = read
    {
        let (filter, wait_ms) = (filter.unwrap_or_default(), request.wait_ms);
        let read = FilteredRead {
            filter,
            info,
            target,
            to,
            from,
            as_of,
            records_max,
            bytes_max,
            bytes_min,
            wait_ms,
        };
        return Some(read_filtered(edge, read, responder));
    }
    dispatch_waiting(
        edge,
        to,
        Command::Stream(target, read),
        request.wait_ms,
        responder,
        move |reply, out| {
            let Reply::Records(records) = reply else { return Err(wrong_reply()) };
            let records = readable(records, accepts, bytes_max)?;
            put_read_response(out, partition, &records);
            Ok(())
        },
    )
}

fn read_command(request: &v1::ReadRequest) -> Result<StreamCommand, Reject> {
    check_wait(request.wait_ms)?;
    within("max_records", request.max_records.into(), 0, BATCH_ITEMS_MAX as u64)?;
    within("max_bytes", request.max_bytes.into(), 0, REPLY_BYTES_MAX as u64)?;
    within("min_bytes", request.min_bytes.into(), 0, REPLY_BYTES_MAX as u64)?;
    let from = match request.start {
        None | Some(v1::read_request::Start::Earliest(_)) => ReadFrom::Earliest,
        Some(v1::read_request::Start::Latest(_)) => ReadFrom::Latest,
        Some(v1::read_request::Start::Offset(offset)) => ReadFrom::Offset(Offset(offset)),
        Some(v1::read_request::Start::TimestampMs(ms)) => ReadFrom::Timestamp(Millis(ms)),
    };
    Ok(StreamCommand::Read {
        from,
        records_max: or_default(request.max_records, READ_RECORDS_DEFAULT),
        bytes_max: or_default(request.max_bytes, READ_BYTES_DEFAULT),
        bytes_min: request.min_bytes,
        wait_until: None,
    })
}

/// `Stream.Status`
pub fn status<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::StreamStatusRequest = attempt!(responder, decode(message));
    let Some(info) = edge.backend.find(Kind::Stream, &request.stream) else {
        responder.fail(missing(Kind::Stream, &request.stream));
        return None;
    };
    let partitions = attempt!(responder, chosen_partitions(&info, &request.partitions));
    let edge = Rc::clone(edge);
    Some(Box::pin(async move {
        let states = partitions.into_iter().map(|partition| partition_status(&edge, &info, partition));
        match join_all(states).await.into_iter().collect::<Result<_, Reject>>() {
            Ok(partitions) => answer(responder, &v1::StreamStatusResponse { partitions }),
            Err(reject) => responder.fail(reject),
        }
    }))
}

/// First and next offset, bytes and segments of one partition.
pub async fn partition_status<B: Backend>(
    edge: &Edge<B>,
    info: &ResourceInfo,
    partition: u32,
) -> Result<v1::PartitionStatus, Reject> {
    let to = edge.backend.shard_of_partition(info, partition);
    let target = PartitionRef { resource: info.id, partition };
    match edge.backend.call(to, Command::Stream(target, StreamCommand::Status)).await? {
        Reply::StreamStatus { earliest, next, bytes, segments, oldest, newest, clean_upto, dirty_bytes } => {
            Ok(v1::PartitionStatus {
                partition,
                earliest_offset: earliest.get(),
                next_offset: next.get(),
                bytes,
                segments,
                oldest_appended_at_ms: oldest.map(Millis::get),
                newest_appended_at_ms: newest.map(Millis::get),
                clean_upto_offset: clean_upto.map(Offset::get),
                dirty_bytes,
            })
        }
        _ => Err(wrong_reply()),
    }
}

/// The partitions named, or all.
///
/// # Errors
/// One that there is not, or that is named twice.
pub fn chosen_partitions(info: &ResourceInfo, named: &[u32]) -> Result<Vec<u32>, Reject> {
    if named.is_empty() {
        return Ok((0..info.settings.partitions()).collect());
    }
    for (place, &partition) in named.iter().enumerate() {
        check_partition(info, partition)?;
        if named.iter().take(place).any(|&before| before == partition) {
            return Err(Reject::invalid("partitions", format!("has {partition} twice")));
        }
    }
    Ok(named.to_vec())
}

/// Refuses a partition that there is not.
pub fn check_partition(info: &ResourceInfo, partition: u32) -> Result<(), Reject> {
    let partitions = info.settings.partitions();
    if partition < partitions { Ok(()) } else { Err(Reject::NoSuchPartition { partition, partitions }) }
}

/// A number, or its default where it is 0.
pub fn or_default(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}
