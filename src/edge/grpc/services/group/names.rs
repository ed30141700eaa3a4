//! Between streams and partitions as clients name them and as groups do.

use std::sync::Arc;

use flowmesh_model::group::{MemberRef, Name, PartitionRange, ranges};
use flowmesh_model::limits::NAME_BYTES_MAX;
use flowmesh_model::{Catalog, GroupEpoch, Kind, PartitionRef, Reject, ResourceId, ResourceInfo};
use flowmesh_proto::v1;

use crate::edge::backend::{Backend, missing};
use crate::edge::grpc::Edge;
use crate::edge::grpc::services::stream::chosen_partitions;

/// What a client calls the stream: its name alone where tenant and namespace are the defaults, else in full.
pub fn stream_name(catalog: &Catalog, id: ResourceId) -> String {
    match catalog.get(id) {
        Some(info) if info.path.is_default_scope() => info.path.name().to_owned(),
        Some(info) => info.path.to_string(),
        None => format!("deleted stream {id}"),
    }
}

/// Ranges as a message has them: each stream once.
pub fn stream_partitions(catalog: &Catalog, owned: &[PartitionRange]) -> Vec<v1::StreamPartitions> {
    owned
        .chunk_by(|a, b| a.stream == b.stream)
        .filter_map(|same| {
            let stream = stream_name(catalog, same.first()?.stream);
            let partitions = same.iter().flat_map(|range| range.iter()).map(|at| at.partition).collect();
            Some(v1::StreamPartitions { stream, partitions })
        })
        .collect()
}

/// The stream of that name.
///
/// # Errors
/// There is none.
pub fn stream<B: Backend>(edge: &Edge<B>, name: &str) -> Result<Arc<ResourceInfo>, Reject> {
    edge.backend.find(Kind::Stream, name).ok_or_else(|| missing(Kind::Stream, name))
}

/// A partition that was chosen, and what the client calls its stream.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// As the client names it.
    pub stream: String,
    /// The stream.
    pub info: Arc<ResourceInfo>,
    /// Which.
    pub at: PartitionRef,
}

/// The partitions named; all of a stream where none is.
///
/// # Errors
/// A stream or a partition that there is not, or that is named twice.
pub fn chosen<B: Backend>(edge: &Edge<B>, named: &[v1::StreamPartitions]) -> Result<Vec<Chosen>, Reject> {
    let mut all = Vec::new();
    for some in named {
        let info = stream(edge, &some.stream)?;
        for partition in chosen_partitions(&info, &some.partitions)? {
            let at = PartitionRef { resource: info.id, partition };
            all.push(Chosen { stream: some.stream.clone(), info: Arc::clone(&info), at });
        }
    }
    all.sort_by_key(|chosen| chosen.at);
    match all.iter().zip(all.iter().skip(1)).find(|(a, b)| a.at == b.at) {
        None => Ok(all),
        Some((twice, _)) => Err(Reject::invalid("streams", format!("has {} twice", twice.stream))),
    }
}

/// The partitions of what was chosen, as ranges.
pub fn chosen_ranges(chosen: &[Chosen]) -> Vec<PartitionRange> {
    ranges(chosen.iter().map(|chosen| chosen.at))
}

/// What a member says it owns. What is not there (any more) it cannot own.
pub fn owned_ranges<B: Backend>(edge: &Edge<B>, owned: &[v1::StreamPartitions]) -> Vec<PartitionRange> {
    let mut all: Vec<PartitionRef> = owned
        .iter()
        .filter_map(|some| Some((edge.backend.find(Kind::Stream, &some.stream)?, &some.partitions)))
        .flat_map(|(info, partitions)| {
            partitions.iter().map(move |&partition| PartitionRef { resource: info.id, partition })
        })
        .collect();
    all.sort_unstable();
    all.dedup();
    ranges(all)
}

/// A client's own name.
///
/// # Errors
/// It is too long.
pub fn client_name(text: &str) -> Result<Name, Reject> {
    if text.len() > NAME_BYTES_MAX {
        let (size, max) = (text.len() as u64, NAME_BYTES_MAX as u64);
        return Err(Reject::TooLarge { what: "name", size, max });
    }
    Ok(Name::from(text))
}

/// Who speaks.
pub fn member_ref(id: &str, epoch: u64, instance: &str) -> MemberRef {
    MemberRef { id: Name::from(id), epoch: GroupEpoch(epoch), instance: some_name(instance) }
}

/// Who speaks, if it is a member.
pub fn some_member(id: &str, epoch: u64, instance: &str) -> Option<MemberRef> {
    (!id.is_empty()).then(|| member_ref(id, epoch, instance))
}

/// A name that may be left out.
pub fn some_name(text: &str) -> Option<Name> {
    (!text.is_empty()).then(|| Name::from(text))
}
