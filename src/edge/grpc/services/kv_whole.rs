//! `Kv.Random`, `Kv.Status` and `Kv.Clear`: what is asked of a whole store, so of every shard.

use std::rc::Rc;

use bytes::Bytes;
use flowmesh_model::reply::{EntryValue, KvStatus};
use flowmesh_model::{Command, KvCommand, Millis, Reject, Reply, ResourceInfo, ShardId};
use flowmesh_proto::v1;
use futures::future::{join_all, try_join_all};

use super::kv::existing;
use super::kv_outcomes::key_type;
use super::{answer, attempt, decode, unless_over};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;

/// Keys that one command deletes: one entry of the log, and a millisecond or so of a core.
const CLEAR_KEYS_MAX: u32 = 1000;

/// `Kv.Status`
pub fn status<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::StoreStatusRequest = attempt!(responder, decode(message));
    let info = attempt!(responder, existing(edge, &request.store));
    let edge = Rc::clone(edge);
    Some(Box::pin(async move {
        match statuses(&edge, &info).await {
            Ok(statuses) => {
                let sum = |of: fn(&KvStatus) -> u64| statuses.iter().map(of).sum();
                let response = v1::StoreStatusResponse {
                    keys: sum(|status| status.keys),
                    expiring: sum(|status| status.expiring),
                    memory_bytes: sum(|status| status.memory_bytes),
                    cold: sum(|status| status.cold),
                    bytes: sum(|status| status.bytes),
                };
                answer(responder, &response);
            }
            Err(reject) => responder.fail(reject),
        }
    }))
}

async fn statuses<B: Backend>(edge: &Edge<B>, info: &ResourceInfo) -> Result<Vec<KvStatus>, Reject> {
    let ask = |shard| edge.backend.call(ShardId(shard), Command::Kv(info.id, KvCommand::Status));
    let to_status = |reply: Result<Reply, Reject>| match reply? {
        Reply::KvStatus(status) => Ok(status),
        _ => Err(wrong_reply()),
    };
    join_all((0..edge.backend.shards()).map(ask)).await.into_iter().map(to_status).collect()
}

/// `Kv.Random`
pub fn random<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::RandomRequest = attempt!(responder, decode(message));
    let info = attempt!(responder, existing(edge, &request.store));
    let edge = Rc::clone(edge);
    Some(Box::pin(async move {
        match any_key(&edge, &info).await {
            Ok(found) => {
                let entry = found.map(|(key, value)| v1::ScanEntry {
                    key,
                    value: Bytes::new(),
                    version: value.version.get(),
                    expires_at_ms: value.expires_at.map(Millis::get),
                    r#type: key_type(value.holds).into(),
                });
                answer(responder, &v1::RandomResponse { entry });
            }
            Err(reject) => responder.fail(reject),
        }
    }))
}

/// A key by chance: of a shard by chance, of which one with many keys has more.
async fn any_key<B: Backend>(
    edge: &Edge<B>,
    info: &ResourceInfo,
) -> Result<Option<(Bytes, EntryValue)>, Reject> {
    let shards = edge.backend.shards();
    let first = if shards == 1 { 0 } else { pick(&statuses(edge, info).await?, edge.chance()) };
    // Keys may be gone since they were counted: then it is one of another shard.
    for shard in (first..shards).chain(0..first) {
        let command = Command::Kv(info.id, KvCommand::Random { seed: edge.chance() });
        let Reply::Scanned { entries, .. } = edge.backend.call(ShardId(shard), command).await? else {
            return Err(wrong_reply());
        };
        if let Some(found) = entries.into_iter().next() {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The shard that has the key of that number, counted over all of them.
fn pick(statuses: &[KvStatus], chance: u64) -> u16 {
    let keys: u64 = statuses.iter().map(|status| status.keys).sum();
    let mut number = chance % keys.max(1);
    for (shard, status) in (0..).zip(statuses) {
        if number < status.keys {
            return shard;
        }
        number -= status.keys;
    }
    0
}

/// `Kv.Clear`
pub fn clear<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ClearRequest = attempt!(responder, decode(message));
    let info = attempt!(responder, existing(edge, &request.store));
    let edge = Rc::clone(edge);
    Some(Box::pin(async move {
        let deadline = responder.deadline();
        let is_late = || deadline.is_some_and(|at| edge.backend.now() >= at);
        let shards =
            (0..edge.backend.shards()).map(|shard| clear_shard(&edge, &info, ShardId(shard), &is_late));
        let cleared = unless_over(&responder, try_join_all(shards)).await;
        match cleared {
            Some(Ok(deleted)) => {
                answer(responder, &v1::ClearResponse { deleted: deleted.iter().sum() });
            }
            Some(Err(reject)) => responder.fail(reject),
            None => {}
        }
    }))
}

/// Deletes all keys of a shard; says how many.
async fn clear_shard<B: Backend>(
    edge: &Edge<B>,
    info: &ResourceInfo,
    shard: ShardId,
    is_late: &impl Fn() -> bool,
) -> Result<u64, Reject> {
    let mut deleted = 0;
    loop {
        if is_late() {
            return Err(Reject::DeadlineExceeded);
        }
        let command = Command::Kv(info.id, KvCommand::Clear { keys_max: CLEAR_KEYS_MAX });
        let Reply::KvCleared { count, more } = edge.backend.call(shard, command).await? else {
            return Err(wrong_reply());
        };
        deleted += count;
        if !more {
            return Ok(deleted);
        }
        edge.backend.yield_if_needed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_picked_by_how_many_keys_it_has() {
        let keys = |keys| KvStatus { keys, ..KvStatus::default() };
        let statuses = [keys(2), keys(0), keys(3)];
        let picked: Vec<u16> = (0..10).map(|chance| pick(&statuses, chance)).collect();
        assert_eq!(picked, [0, 0, 2, 2, 2, 0, 0, 2, 2, 2]);
        assert_eq!(pick(&[keys(0), keys(0)], 7), 0);
    }
}
