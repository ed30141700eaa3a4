//! A stream as it was at a time: records are never changed, so it is what was appended until then, as far as it is still
//! there.

use flowmesh_model::command::ReadFrom;
use flowmesh_model::{Millis, Offset, Reject, ResourceInfo};

use super::offsets::find_offset;
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;

/// The time of a request.
///
/// # Errors
/// It lies in the future: what will have been then nobody knows.
pub fn check_as_of(as_of_ms: Option<u64>, now: Millis) -> Result<Option<Millis>, Reject> {
    match as_of_ms.map(Millis) {
        Some(at) if at > now => {
            Err(Reject::invalid("as_of_ms", format!("is {at}, which lies in the future: it is {now}")))
        }
        at => Ok(at),
    }
}

/// Where a partition ended at that time.
///
/// # Errors
/// Its shard cannot say.
pub async fn end_as_of<B: Backend>(
    edge: &Edge<B>,
    info: &ResourceInfo,
    partition: u32,
    at: Millis,
) -> Result<Offset, Reject> {
    let behind = ReadFrom::Timestamp(at.plus(1));
    Ok(Offset(find_offset(edge, info, partition, behind).await?.offset))
}

/// The same start in a partition that ended there.
///
/// # Errors
/// An offset behind that end.
pub fn start_as_of(from: ReadFrom, earliest: Offset, end: Offset) -> Result<ReadFrom, Reject> {
    match from {
        ReadFrom::Latest => Ok(ReadFrom::Offset(end)),
        ReadFrom::Offset(requested) if requested > end => {
            Err(Reject::OffsetOutOfRange { requested, earliest: earliest.min(end), next: end })
        }
        ReadFrom::Earliest | ReadFrom::Offset(_) | ReadFrom::Timestamp(_) => Ok(from),
    }
}
