//! Offsets: commit, fetch, forget. Whether there is such an offset is asked of the partition, which may be on any shard;
//! whether this member may commit it is the group's to say.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::group::{Committed, CommittedOffset, GroupReply, MemberRef, NewOffset};
use flowmesh_model::limits::BATCH_ITEMS_MAX;
use flowmesh_model::{Batch, GroupCommand, Offset, PartitionRef, Reject, ResourceInfo};
use flowmesh_proto::v1;
use futures::StreamExt;

use super::names::{Chosen, chosen, chosen_ranges, some_member, stream, stream_name};
use super::{answer_later, ask, existing};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::services::stream::{check_partition, partition_status};
use crate::edge::grpc::services::{attempt, check_items, check_not_empty, decode};
use crate::edge::grpc::shared::CallFuture;
use crate::edge::grpc::status::item_error;

/// Partitions that are asked at a time.
pub const ASKED_AT_ONCE: usize = 256;

/// `Group.Commit`
pub fn commit<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::CommitOffsetsRequest = attempt!(responder, decode(message));
    attempt!(responder, check_not_empty("offsets", request.offsets.len()));
    attempt!(responder, check_items("offsets", request.offsets.len()));
    let info = attempt!(responder, existing(edge, &request.group));
    let member = some_member(&request.member_id, request.member_epoch, &request.instance_id);
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let outcomes = commit_checked(&edge, &info, member, request.offsets).await?;
        Ok(v1::CommitOffsetsResponse { outcomes })
    }))
}

/// Commits those offsets that there are; one outcome each, in order.
///
/// # Errors
/// What the group says of the whole: the member is no more, or its epoch is of the past.
pub async fn commit_checked<B: Backend>(
    edge: &Edge<B>,
    group: &ResourceInfo,
    member: Option<MemberRef>,
    offsets: Vec<v1::GroupOffset>,
) -> Result<Vec<v1::OffsetOutcome>, Reject> {
    let checked = check_all(edge, &offsets).await;
    let good: Batch<NewOffset> = checked.iter().filter_map(|checked| checked.clone().ok()).collect();
    let mut committed = Batch::new();
    if !good.is_empty() {
        let commit = GroupCommand::Commit { member, offsets: good };
        let GroupReply::Committed(outcomes) = ask(edge, group, commit).await? else {
            return Err(wrong_reply());
        };
        committed = outcomes;
    }
    let mut committed = committed.into_iter();
    let outcome = |(offset, checked): (v1::GroupOffset, Result<NewOffset, Reject>)| {
        let outcome = checked.and_then(|_| committed.next().unwrap_or_else(|| Err(wrong_reply())));
        commit_outcome(offset.stream, offset.partition, offset.offset, outcome)
    };
    Ok(offsets.into_iter().zip(checked).map(outcome).collect())
}

/// What became of a commit, as a message.
pub fn commit_outcome(
    stream: String,
    partition: u32,
    offset: u64,
    outcome: Result<Committed, Reject>,
) -> v1::OffsetOutcome {
    let mut message = v1::OffsetOutcome { stream, partition, offset, ..Default::default() };
    match outcome {
        Ok(Committed { previous }) => {
            message.previous = previous.map(Offset::get);
            message.backwards = previous.is_some_and(|previous| previous.get() > offset);
        }
        Err(reject) => message.error = Some(item_error(&reject)),
    }
    message
}

/// Looks each offset up: its stream, its partition, and where that ends.
async fn check_all<B: Backend>(
    edge: &Edge<B>,
    offsets: &[v1::GroupOffset],
) -> Vec<Result<NewOffset, Reject>> {
    let mut found = Vec::with_capacity(offsets.len());
    let mut asked = BTreeMap::new();
    for offset in offsets {
        let place = place_of(edge, offset);
        if let Ok((info, at)) = &place {
            asked.entry(*at).or_insert_with(|| Arc::clone(info));
        }
        found.push(place.map(|(_, at)| at));
    }
    let states: BTreeMap<PartitionRef, _> = futures::stream::iter(asked)
        .map(|(at, info)| async move { (at, partition_status(edge, &info, at.partition).await) })
        .buffer_unordered(ASKED_AT_ONCE)
        .collect()
        .await;
    let checked = |(offset, at): (&v1::GroupOffset, Result<PartitionRef, Reject>)| {
        let at = at?;
        let state = states.get(&at).cloned().unwrap_or_else(|| Err(wrong_reply()))?;
        let (requested, next) = (Offset(offset.offset), Offset(state.next_offset));
        if requested > next {
            let earliest = Offset(state.earliest_offset);
            return Err(Reject::OffsetOutOfRange { requested, earliest, next });
        }
        Ok(NewOffset { at, offset: requested, metadata: offset.metadata.clone() })
    };
    offsets.iter().zip(found).map(checked).collect()
}

fn place_of<B: Backend>(
    edge: &Edge<B>,
    offset: &v1::GroupOffset,
) -> Result<(Arc<ResourceInfo>, PartitionRef), Reject> {
    let info = stream(edge, &offset.stream)?;
    check_partition(&info, offset.partition)?;
    let at = PartitionRef { resource: info.id, partition: offset.partition };
    Ok((info, at))
}

/// `Group.FetchOffsets`
pub fn fetch_offsets<B: Backend>(
    edge: &Rc<Edge<B>>,
    message: Bytes,
    responder: Responder,
) -> Option<CallFuture> {
    let request: v1::FetchOffsetsRequest = attempt!(responder, decode(message));
    let info = attempt!(responder, existing(edge, &request.group));
    let of = attempt!(responder, chosen(edge, &request.streams));
    let of = (!request.streams.is_empty()).then(|| chosen_ranges(&of));
    let member = some_member(&request.member_id, request.member_epoch, &request.instance_id);
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let fetch = GroupCommand::FetchOffsets { member, of };
        let GroupReply::Offsets(offsets) = ask(&edge, &info, fetch).await? else { return Err(wrong_reply()) };
        let catalog = edge.backend.catalog();
        let message = |(at, committed): (PartitionRef, CommittedOffset)| v1::CommittedOffset {
            stream: stream_name(&catalog, at.resource),
            partition: at.partition,
            offset: committed.offset.get(),
            metadata: committed.metadata,
            committed_at_ms: committed.committed_at.get(),
        };
        Ok(v1::FetchOffsetsResponse { offsets: offsets.into_iter().map(message).collect() })
    }))
}

/// `Group.DeleteOffsets`
pub fn delete_offsets<B: Backend>(
    edge: &Rc<Edge<B>>,
    message: Bytes,
    responder: Responder,
) -> Option<CallFuture> {
    let request: v1::DeleteOffsetsRequest = attempt!(responder, decode(message));
    attempt!(responder, check_not_empty("streams", request.streams.len()));
    let info = attempt!(responder, existing(edge, &request.group));
    let named = attempt!(responder, chosen(edge, &request.streams));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let outcomes = forget(&edge, &info, &request.streams, named).await?;
        Ok(v1::DeleteOffsetsResponse { outcomes })
    }))
}

/// Forgets what was chosen; of a stream that was named as a whole, what was committed.
async fn forget<B: Backend>(
    edge: &Edge<B>,
    group: &ResourceInfo,
    named: &[v1::StreamPartitions],
    chosen: Vec<Chosen>,
) -> Result<Vec<v1::OffsetOutcome>, Reject> {
    let fetch = GroupCommand::FetchOffsets { member: None, of: Some(chosen_ranges(&chosen)) };
    let GroupReply::Offsets(committed) = ask(edge, group, fetch).await? else { return Err(wrong_reply()) };
    let is_whole =
        |chosen: &Chosen| named.iter().any(|some| some.stream == chosen.stream && some.partitions.is_empty());
    let is_committed = |chosen: &Chosen| committed.iter().any(|(at, _)| *at == chosen.at);
    let mut left: Vec<Chosen> = chosen;
    left.retain(|chosen| is_committed(chosen) || !is_whole(chosen));
    let mut outcomes = Vec::with_capacity(left.len());
    for part in left.chunks(BATCH_ITEMS_MAX) {
        let forget = GroupCommand::ForgetOffsets { of: part.iter().map(|chosen| chosen.at).collect() };
        let GroupReply::Forgotten(forgotten) = ask(edge, group, forget).await? else {
            return Err(wrong_reply());
        };
        outcomes.extend(part.iter().zip(forgotten).map(|(chosen, outcome)| v1::OffsetOutcome {
            stream: chosen.stream.clone(),
            partition: chosen.at.partition,
            offset: outcome.as_ref().map_or(0, |offset| offset.get()),
            previous: outcome.as_ref().ok().map(|offset| offset.get()),
            backwards: false,
            error: outcome.as_ref().err().map(item_error),
        }));
    }
    Ok(outcomes)
}
