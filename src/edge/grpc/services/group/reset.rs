//! `Group.ResetOffsets`: where each partition's offset would go, and, unless it is a dry run, a commit without a member.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::command::ReadFrom;
use flowmesh_model::group::{Committed, GroupReply, NewOffset};
use flowmesh_model::limits::BATCH_ITEMS_MAX;
use flowmesh_model::{
    Batch, Command, GroupCommand, Millis, Offset, PartitionRef, Reject, Reply, ResourceInfo, StreamCommand,
};
use flowmesh_proto::v1;
use flowmesh_proto::v1::reset_offsets_request::To;
use futures::StreamExt;

use super::describe::description;
use super::names::{Chosen, chosen, stream_name};
use super::offsets::{ASKED_AT_ONCE, commit_outcome};
use super::{answer_later, ask, existing};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::services::stream::partition_status;
use crate::edge::grpc::services::{attempt, decode};
use crate::edge::grpc::shared::CallFuture;

/// `Group.ResetOffsets`
pub fn reset<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ResetOffsetsRequest = attempt!(responder, decode(message));
    let to = attempt!(responder, request.to.ok_or_else(no_target));
    let info = attempt!(responder, existing(edge, &request.group));
    let named = attempt!(responder, chosen(edge, &request.streams));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let plan = plan(&edge, &info, to, (!request.streams.is_empty()).then_some(named)).await?;
        let outcomes = if request.dry_run { would_be(plan) } else { carry_out(&edge, &info, plan).await? };
        Ok(v1::ResetOffsetsResponse { outcomes, dry_run: request.dry_run })
    }))
}

fn no_target() -> Reject {
    Reject::invalid("to", "is missing; give one of earliest, latest, offset, timestamp_ms, shift")
}

/// One partition: where its offset goes, or why it cannot.
struct Step {
    chosen: Chosen,
    previous: Option<Offset>,
    target: Result<Offset, Reject>,
}

async fn plan<B: Backend>(
    edge: &Edge<B>,
    group: &ResourceInfo,
    to: To,
    named: Option<Vec<Chosen>>,
) -> Result<Vec<Step>, Reject> {
    let description = description(edge, group).await?;
    let in_use: BTreeSet<_> =
        description.members.iter().flat_map(|member| member.subscribed.iter().copied()).collect();
    let committed: BTreeMap<PartitionRef, Offset> = description
        .partitions
        .iter()
        .filter_map(|partition| Some((partition.at, partition.committed.as_ref()?.offset)))
        .collect();
    let catalog = edge.backend.catalog();
    let everything = || {
        let known = |at: PartitionRef| {
            let info = Arc::clone(catalog.get(at.resource)?);
            Some(Chosen { stream: stream_name(&catalog, at.resource), info, at })
        };
        description.partitions.iter().filter_map(|partition| known(partition.at)).collect()
    };
    let steps = named.unwrap_or_else(everything).into_iter().map(|chosen| {
        let previous = committed.get(&chosen.at).copied();
        let in_use = in_use.contains(&chosen.at.resource);
        async move {
            let target = if in_use {
                Err(Reject::PartitionInUse { partition: chosen.at.partition })
            } else {
                target(edge, &chosen, previous, to).await
            };
            Step { chosen, previous, target }
        }
    });
    Ok(futures::stream::iter(steps).buffered(ASKED_AT_ONCE).collect().await)
}

/// Where the offset of one partition goes.
async fn target<B: Backend>(
    edge: &Edge<B>,
    chosen: &Chosen,
    previous: Option<Offset>,
    to: To,
) -> Result<Offset, Reject> {
    let (info, partition) = (&chosen.info, chosen.at.partition);
    if let To::TimestampMs(ms) = to {
        let find = StreamCommand::FindOffset { from: ReadFrom::Timestamp(Millis(ms)) };
        let shard = edge.backend.shard_of_partition(info, partition);
        return match edge.backend.call(shard, Command::Stream(chosen.at, find)).await? {
            Reply::OffsetFound { offset, .. } => Ok(offset),
            _ => Err(wrong_reply()),
        };
    }
    let state = partition_status(edge, info, partition).await?;
    let (earliest, next) = (Offset(state.earliest_offset), Offset(state.next_offset));
    match to {
        To::Earliest(_) => Ok(earliest),
        To::Latest(_) | To::TimestampMs(_) => Ok(next),
        To::Offset(offset) if offset < earliest.get() || offset > next.get() => {
            Err(Reject::OffsetOutOfRange { requested: Offset(offset), earliest, next })
        }
        To::Offset(offset) => Ok(Offset(offset)),
        To::Shift(by) => {
            let from = previous.ok_or(Reject::OffsetNotCommitted { partition })?;
            Ok(Offset(from.get().saturating_add_signed(by).clamp(earliest.get(), next.get())))
        }
    }
}

fn would_be(plan: Vec<Step>) -> Vec<v1::OffsetOutcome> {
    let outcome = |step: Step| {
        let previous = step.previous;
        step_outcome(&step, step.target.clone().map(|_| Committed { previous }))
    };
    plan.into_iter().map(outcome).collect()
}

async fn carry_out<B: Backend>(
    edge: &Edge<B>,
    group: &ResourceInfo,
    plan: Vec<Step>,
) -> Result<Vec<v1::OffsetOutcome>, Reject> {
    let good: Vec<NewOffset> = plan
        .iter()
        .filter_map(|step| {
            let offset = step.target.clone().ok()?;
            Some(NewOffset { at: step.chosen.at, offset, metadata: Bytes::new() })
        })
        .collect();
    let mut committed = Vec::with_capacity(good.len());
    for part in good.chunks(BATCH_ITEMS_MAX) {
        let offsets: Batch<NewOffset> = part.iter().cloned().collect();
        let commit = GroupCommand::Commit { member: None, offsets };
        let GroupReply::Committed(outcomes) = ask(edge, group, commit).await? else {
            return Err(wrong_reply());
        };
        committed.extend(outcomes);
    }
    let mut committed = committed.into_iter();
    let outcome = |step: Step| {
        let outcome =
            step.target.clone().and_then(|_| committed.next().unwrap_or_else(|| Err(wrong_reply())));
        step_outcome(&step, outcome)
    };
    Ok(plan.into_iter().map(outcome).collect())
}

/// A refused step stays where it was.
fn step_outcome(step: &Step, outcome: Result<Committed, Reject>) -> v1::OffsetOutcome {
    let offset = step.target.as_ref().ok().or(step.previous.as_ref()).map_or(0, |offset| offset.get());
    let mut message = commit_outcome(step.chosen.stream.clone(), step.chosen.at.partition, offset, outcome);
    message.previous = step.previous.map(Offset::get);
    message
}
