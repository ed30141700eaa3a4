//! `flowmesh.v1.Stream`: which offsets a start stands for, and trims.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use flowmesh_model::command::ReadFrom;
use flowmesh_model::{
    Command, Kind, Millis, Offset, PartitionRef, Reject, Reply, ResourceInfo, StreamCommand,
};
use flowmesh_proto::v1;
use flowmesh_proto::v1::offsets_for_request::Start;
use futures::future::join_all;
use prost::Message;

use super::stream::{check_partition, chosen_partitions};
use super::{answer, attempt, decode, dispatch};
use crate::edge::backend::{Backend, missing};
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;

/// `Stream.OffsetsFor`
pub fn offsets_for<B: Backend>(
    edge: &Rc<Edge<B>>,
    message: Bytes,
    responder: Responder,
) -> Option<CallFuture> {
    let request: v1::OffsetsForRequest = attempt!(responder, decode(message));
    let Some(info) = edge.backend.find(Kind::Stream, &request.stream) else {
        responder.fail(missing(Kind::Stream, &request.stream));
        return None;
    };
    let partitions = attempt!(responder, chosen_partitions(&info, &request.partitions));
    let from = match request.start {
        None | Some(Start::Earliest(_)) => ReadFrom::Earliest,
        Some(Start::Latest(_)) => ReadFrom::Latest,
        Some(Start::Offset(offset)) => ReadFrom::Offset(Offset(offset)),
        Some(Start::TimestampMs(ms)) => ReadFrom::Timestamp(Millis(ms)),
    };
    let edge = Rc::clone(edge);
    Some(Box::pin(async move {
        let found = partitions.into_iter().map(|partition| find_offset(&edge, &info, partition, from));
        match join_all(found).await.into_iter().collect::<Result<_, Reject>>() {
            Ok(partitions) => answer(responder, &v1::OffsetsForResponse { partitions }),
            Err(reject) => responder.fail(reject),
        }
    }))
}

/// The offset that a start stands for in one partition.
pub async fn find_offset<B: Backend>(
    edge: &Edge<B>,
    info: &ResourceInfo,
    partition: u32,
    from: ReadFrom,
) -> Result<v1::FoundOffset, Reject> {
    let to = edge.backend.shard_of_partition(info, partition);
    let target = PartitionRef { resource: info.id, partition };
    match edge.backend.call(to, Command::Stream(target, StreamCommand::FindOffset { from })).await? {
        Reply::OffsetFound { offset, appended_at } => Ok(v1::FoundOffset {
            partition,
            offset: offset.get(),
            appended_at_ms: appended_at.map(Millis::get),
        }),
        _ => Err(wrong_reply()),
    }
}

/// `Stream.Trim`
pub fn trim<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::TrimRequest = attempt!(responder, decode(message));
    let Some(info) = edge.backend.find(Kind::Stream, &request.stream) else {
        responder.fail(missing(Kind::Stream, &request.stream));
        return None;
    };
    attempt!(responder, check_partition(&info, request.partition));
    let to = edge.backend.shard_of_partition(&info, request.partition);
    let target = PartitionRef { resource: info.id, partition: request.partition };
    let trim = StreamCommand::Trim { upto: Offset(request.before_offset) };
    dispatch(edge, to, Command::Stream(target, trim), responder, put_trimmed);
    None
}

#[expect(clippy::needless_pass_by_value, reason = "as the others that put replies")]
fn put_trimmed(reply: Reply, out: &mut BytesMut) -> Result<(), Reject> {
    let Reply::Trimmed { earliest, next } = reply else { return Err(wrong_reply()) };
    let response = v1::TrimResponse { earliest_offset: earliest.get(), next_offset: next.get() };
    // Fails only if the buffer is full, and it grows.
    let _ = response.encode(out);
    Ok(())
}
