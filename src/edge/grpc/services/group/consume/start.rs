//! Where a consumer starts in a partition: at what was committed, if that is still there, else at one of the ends.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::group::{GroupReply, MemberRef, ranges};
use flowmesh_model::replay::ReplayProgress;
use flowmesh_model::{GroupCommand, Offset, PartitionRef, Reject, ResourceInfo};
use flowmesh_proto::v1;
use futures::StreamExt;

use super::flow::FlowStart;
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::wrong_reply;
use crate::edge::grpc::services::group::ask;
use crate::edge::grpc::services::group::offsets::ASKED_AT_ONCE;
use crate::edge::grpc::services::replay::Session;
use crate::edge::grpc::services::stream::partition_status;

/// A partition, and what the consumer calls its stream.
#[derive(Clone, Debug)]
pub struct Place {
    /// As the consumer names it.
    pub stream: Rc<str>,
    /// The stream.
    pub info: Arc<ResourceInfo>,
    /// Which.
    pub at: PartitionRef,
}

/// Where partitions are wanted to start.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// At what was committed.
    Committed(Vec<Place>),
    /// Here.
    At(Place, Offset),
    /// At one of the ends: the next record is gone.
    AtEnd(Place),
}

/// Where a partition starts.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where.
    pub start: FlowStart,
    /// What was committed there.
    pub metadata: Bytes,
    /// Of a replay session: where it is in that partition.
    pub committed: Offset,
}

impl Wanted {
    /// The partitions.
    pub fn places(&self) -> &[Place] {
        match self {
            Self::Committed(places) => places,
            Self::At(place, _) | Self::AtEnd(place) => std::slice::from_ref(place),
        }
    }
}

/// Finds where partitions start.
///
/// # Errors
/// As of the group's `FetchOffsets`, or that a stream is no more.
pub async fn find_starts<B: Backend>(
    edge: &Edge<B>,
    group: &ResourceInfo,
    member: MemberRef,
    end: v1::StartAt,
    wanted: &Wanted,
) -> Result<Vec<Found>, Reject> {
    let mut offsets: BTreeMap<PartitionRef, (Offset, Bytes)> = BTreeMap::new();
    match wanted {
        Wanted::Committed(places) => {
            let of = Some(ranges(places.iter().map(|place| place.at)));
            let fetch = GroupCommand::FetchOffsets { member: Some(member), of };
            let GroupReply::Offsets(committed) = ask(edge, group, fetch).await? else {
                return Err(wrong_reply());
            };
            offsets.extend(committed.into_iter().map(|(at, found)| (at, (found.offset, found.metadata))));
        }
        Wanted::At(place, offset) => {
            offsets.insert(place.at, (*offset, Bytes::new()));
        }
        Wanted::AtEnd(_) => {}
    }
    let found: Vec<_> = futures::stream::iter(wanted.places())
        .map(|place| find_start(edge, place, offsets.get(&place.at).cloned(), end))
        .buffered(ASKED_AT_ONCE)
        .collect()
        .await;
    found.into_iter().collect()
}

async fn find_start<B: Backend>(
    edge: &Edge<B>,
    place: &Place,
    offset: Option<(Offset, Bytes)>,
    end: v1::StartAt,
) -> Result<Found, Reject> {
    let state = partition_status(edge, &place.info, place.at.partition).await?;
    let there = state.earliest_offset..=state.next_offset;
    let (offset, metadata) =
        offset.filter(|(offset, _)| there.contains(&offset.get())).unwrap_or_else(|| {
            let offset = match end {
                v1::StartAt::Latest => state.next_offset,
                v1::StartAt::Earliest | v1::StartAt::Unspecified => state.earliest_offset,
            };
            (Offset(offset), Bytes::new())
        });
    let Place { stream, info, at } = place.clone();
    let end = Offset(state.next_offset);
    Ok(Found { start: FlowStart { stream, info, at, offset, end, until: None }, metadata, committed: offset })
}

/// Finds where partitions start in a replay session; those that are not the session's do not.
///
/// # Errors
/// As of `Replay.Describe`, or that the stream is no more.
pub async fn find_replay_starts<B: Backend>(
    edge: &Edge<B>,
    session: &Session,
    wanted: &Wanted,
) -> Result<Vec<Found>, Reject> {
    let status = session.status(edge).await?;
    let known = |place: &Place| {
        let at = place.at.partition;
        status.partitions.iter().find(|progress| progress.range.partition == at).copied()
    };
    let places = wanted.places().iter().filter_map(|place| Some((place, known(place)?)));
    let found: Vec<_> = futures::stream::iter(places)
        .map(|(place, progress)| find_replay_start(edge, place, progress, wanted))
        .buffered(ASKED_AT_ONCE)
        .collect()
        .await;
    found.into_iter().collect()
}

/// What is gone is passed over, up to the session's end.
async fn find_replay_start<B: Backend>(
    edge: &Edge<B>,
    place: &Place,
    progress: ReplayProgress,
    wanted: &Wanted,
) -> Result<Found, Reject> {
    let state = partition_status(edge, &place.info, place.at.partition).await?;
    let (earliest, end) = (Offset(state.earliest_offset), Offset(state.next_offset));
    let ReplayProgress { range, position } = progress;
    let offset = match wanted {
        Wanted::Committed(_) => position,
        Wanted::At(_, offset) => (*offset).max(range.from),
        Wanted::AtEnd(_) => position.max(earliest),
    };
    let until = range.until;
    let offset = offset.max(earliest).min(until.unwrap_or(end));
    let Place { stream, info, at } = place.clone();
    let start = FlowStart { stream, info, at, offset, end, until };
    Ok(Found { start, metadata: Bytes::new(), committed: position })
}
