//! `Stream.InitProducer`: a number and an epoch, and the end of older epochs in every partition.

use std::rc::Rc;

use bytes::Bytes;
use flowmesh_model::{Command, Kind, PartitionRef, ProducerId, Reject, Reply, ResourceInfo, StreamCommand};
use flowmesh_proto::v1;
use futures::{StreamExt, TryStreamExt, stream};

use super::{answer, attempt, decode};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;

/// Partitions that are told at once: one call does not fill the channels between cores.
const FENCES_AT_ONCE: usize = 64;

/// `Stream.InitProducer`
pub fn init<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::InitProducerRequest = attempt!(responder, decode(message));
    let edge = Rc::clone(edge);
    Some(Box::pin(async move {
        match initialise(&edge, request).await {
            Ok(response) => answer(responder, &response),
            Err(reject) => responder.fail(reject),
        }
    }))
}

/// Answers only once no partition takes anything of an older epoch: whoever has the answer is alone.
async fn initialise<B: Backend>(
    edge: &Edge<B>,
    request: v1::InitProducerRequest,
) -> Result<v1::InitProducerResponse, Reject> {
    let info = edge.backend.resolve(Kind::Stream, &request.stream, true).await?;
    let init = StreamCommand::InitProducer { name: request.name.into() };
    let (id, epoch) = call(edge, &info, 0, init).await?;
    if epoch > 0 {
        let fence = |partition| call(edge, &info, partition, StreamCommand::FenceProducer { id, epoch });
        let others = 1..info.settings.partitions();
        stream::iter(others.map(fence))
            .buffer_unordered(FENCES_AT_ONCE)
            .try_for_each(|_| async { Ok(()) })
            .await?;
    }
    Ok(v1::InitProducerResponse { id: id.get(), epoch })
}

async fn call<B: Backend>(
    edge: &Edge<B>,
    info: &ResourceInfo,
    partition: u32,
    command: StreamCommand,
) -> Result<(ProducerId, u32), Reject> {
    let to = edge.backend.shard_of_partition(info, partition);
    let target = PartitionRef { resource: info.id, partition };
    match edge.backend.call(to, Command::Stream(target, command)).await? {
        Reply::Producer { id, epoch } => Ok((id, epoch)),
        _ => Err(wrong_reply()),
    }
}
