//! `Replay.Create`: what is replayed becomes offsets, once.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::command::ReadFrom;
use flowmesh_model::replay::ReplayRange;
use flowmesh_model::{
    CatalogCommand, Command, Kind, Millis, Offset, Reject, ReplayCommand, ReplaySettings, Reply,
    ResourceInfo, ResourcePath, Settings, ShardId,
};
use flowmesh_proto::v1;
use flowmesh_proto::v1::create_replay_request::{End, Start};
use futures::StreamExt;

use super::describe::session_message;
use super::{Session, speed_of};
use crate::edge::backend::{Backend, missing};
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::services::filter::read_conditions;
use crate::edge::grpc::services::group::answer_later;
use crate::edge::grpc::services::group::offsets::ASKED_AT_ONCE;
use crate::edge::grpc::services::offsets::find_offset;
use crate::edge::grpc::services::stream::{chosen_partitions, partition_status};
use crate::edge::grpc::services::{attempt, decode};
use crate::edge::grpc::shared::CallFuture;

/// What a sandbox is called that is not named: this and the session's name.
const SANDBOX_PREFIX: &str = "replay.";

/// `Replay.Create`
pub fn create<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let mut request: v1::CreateReplayRequest = attempt!(responder, decode(message));
    let path = attempt!(responder, ResourcePath::parse(Kind::Replay, &request.session));
    let group = attempt!(responder, sandbox_path(&path, &request.group));
    let speed = attempt!(responder, speed_of(request.speed));
    let filter = attempt!(responder, read_conditions(request.filter.take()));
    attempt!(responder, check_times(&request));
    let stream = edge.backend.find(Kind::Stream, &request.stream);
    let stream = attempt!(responder, stream.ok_or_else(|| missing(Kind::Stream, &request.stream)));
    let mut partitions = attempt!(responder, chosen_partitions(&stream, &request.partitions));
    partitions.sort_unstable();
    attempt!(responder, check_named("from", &partitions, &request.from));
    attempt!(responder, check_named("until", &partitions, &request.until));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let ranges = futures::stream::iter(partitions)
            .map(|partition| range(&edge, &stream, &request, partition))
            .buffered(ASKED_AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let partitions = ranges.into_iter().collect::<Result<_, Reject>>()?;
        let group = group.to_string();
        let settings =
            ReplaySettings { stream: stream.id, group, partitions, speed, filter, durability: None };
        let session = create_session(&edge, path, settings).await?;
        let status = session.ask(&edge, ReplayCommand::Begin).await?;
        Ok(session_message(&session, &status))
    }))
}

async fn create_session<B: Backend>(
    edge: &Edge<B>,
    path: ResourcePath,
    settings: ReplaySettings,
) -> Result<Session, Reject> {
    settings.validate()?;
    let create = CatalogCommand::Create { path, settings: Settings::Replay(settings), or_existing: false };
    match edge.backend.call(ShardId(0), Command::Catalog(create)).await? {
        Reply::Resource { info, .. } => Session::of(edge, info),
        _ => Err(wrong_reply()),
    }
}

/// What the sandbox is called: it is in the session's tenant and namespace unless it is named in full.
fn sandbox_path(session: &ResourcePath, group: &str) -> Result<ResourcePath, Reject> {
    match group {
        "" => {
            let name = format!("{SANDBOX_PREFIX}{}", session.name());
            ResourcePath::new(session.tenant(), session.namespace(), Kind::Group, &name)
        }
        name if name.contains('/') => ResourcePath::parse(Kind::Group, name),
        name => ResourcePath::new(session.tenant(), session.namespace(), Kind::Group, name),
    }
}

fn check_times(request: &v1::CreateReplayRequest) -> Result<(), Reject> {
    match (request.start, request.end) {
        (Some(Start::TimestampMs(start)), Some(End::UntilTimestampMs(end))) if end < start => {
            Err(Reject::invalid("end", format!("is {end}, which lies before the start, {start}")))
        }
        _ => Ok(()),
    }
}

fn check_named(field: &'static str, partitions: &[u32], named: &[v1::PartitionOffset]) -> Result<(), Reject> {
    match named.iter().find(|place| partitions.binary_search(&place.partition).is_err()) {
        None => Ok(()),
        Some(place) => {
            let partition = place.partition;
            Err(Reject::invalid(field, format!("names partition {partition}, which is not replayed")))
        }
    }
}

/// What is replayed of one partition.
async fn range<B: Backend>(
    edge: &Edge<B>,
    stream: &Arc<ResourceInfo>,
    request: &v1::CreateReplayRequest,
    partition: u32,
) -> Result<ReplayRange, Reject> {
    let state = partition_status(edge, stream, partition).await?;
    let (earliest, next) = (Offset(state.earliest_offset), Offset(state.next_offset));
    let there = |offset: u64| match Offset(offset) {
        requested if requested < earliest || requested > next => {
            Err(Reject::OffsetOutOfRange { requested, earliest, next })
        }
        offset => Ok(offset),
    };
    let named = |places: &[v1::PartitionOffset]| {
        places.iter().find(|place| place.partition == partition).map(|place| place.offset)
    };
    let at_time = |ms| find_offset(edge, stream, partition, ReadFrom::Timestamp(Millis(ms)));
    let from = match (named(&request.from), request.start) {
        (Some(offset), _) | (None, Some(Start::Offset(offset))) => there(offset)?,
        (None, Some(Start::TimestampMs(ms))) => Offset(at_time(ms).await?.offset),
        (None, None | Some(Start::Earliest(_))) => earliest,
    };
    let until = match (named(&request.until), request.end) {
        (Some(offset), _) => Some(there(offset)?),
        (None, Some(End::UntilTimestampMs(ms))) => Some(Offset(at_time(ms).await?.offset).min(next)),
        (None, Some(End::Follow(_))) => None,
        // What came since it was asked where it ends lies behind its end.
        (None, None | Some(End::Now(_))) => Some(next.max(from)),
    };
    Ok(ReplayRange { partition, from, until })
}
