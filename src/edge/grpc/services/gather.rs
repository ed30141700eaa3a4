//! A call on keys of several shards: one command to each, and one answer once all parts are in, in the order asked.
//!
//! A call whose keys are all on one shard, as most are, pays nothing for this.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use flowmesh_engine::ReplySink;
use flowmesh_model::kv::KvOutcome;
use flowmesh_model::reply::EntryValue;
use flowmesh_model::{Batch, Command, KvCommand, Lsn, Reject, Reply, ResourceInfo, ShardId};

use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, UnarySink, wrong_reply};

/// Items of a call, by the shard that has their keys.
#[derive(Debug, PartialEq, Eq)]
pub enum Spread<T> {
    /// All on one.
    One(ShardId, Batch<T>),
    /// On several.
    Many(Vec<Part<T>>),
}

/// Items for one shard, each with its place in the call.
#[derive(Debug, PartialEq, Eq)]
pub struct Part<T> {
    shard: ShardId,
    items: Batch<T>,
    places: Vec<u32>,
}

/// Deals items out to the shards of their keys. There is at least one item.
pub fn spread<T>(
    items: Batch<T>,
    shards: u16,
    key: impl Fn(&T) -> &Bytes,
    shard_of: impl Fn(&[u8]) -> ShardId,
) -> Spread<T> {
    let Some(first) = items.first() else { return Spread::One(ShardId(0), items) };
    if shards == 1 {
        return Spread::One(ShardId(0), items);
    }
    let home = shard_of(key(first));
    if items.iter().all(|item| shard_of(key(item)) == home) {
        return Spread::One(home, items);
    }
    let mut parts: Vec<Part<T>> = Vec::new();
    for (place, item) in (0u32..).zip(items) {
        let shard = shard_of(key(&item));
        let index = parts.iter().position(|part| part.shard == shard).unwrap_or_else(|| {
            parts.push(Part { shard, items: Batch::new(), places: Vec::new() });
            parts.len() - 1
        });
        if let Some(part) = parts.get_mut(index) {
            part.items.push(item);
            part.places.push(place);
        }
    }
    Spread::Many(parts)
}

/// Sends the command that `command` makes of the items to their shards, and answers with what `encode` makes of the
/// reply, which is one for all items in their order.
pub fn dispatch_spread<B: Backend, T>(
    edge: &Edge<B>,
    info: &ResourceInfo,
    spread: Spread<T>,
    responder: Responder,
    command: impl Fn(Batch<T>) -> KvCommand,
    encode: impl FnOnce(Reply, &mut BytesMut) -> Result<(), Reject> + 'static,
) {
    let sink = UnarySink::boxed(responder, encode);
    match spread {
        Spread::One(shard, items) => {
            edge.backend.dispatch(shard, Command::Kv(info.id, command(items)), sink);
        }
        Spread::Many(parts) => {
            let items = parts.iter().map(|part| part.items.len()).sum();
            let gather =
                Gather { sink: Some(sink), left: parts.len(), items, merged: None, failed: Vec::new() };
            let gather = Rc::new(RefCell::new(gather));
            for Part { shard, items, places } in parts {
                let sink = Box::new(PartSink { gather: Rc::clone(&gather), places });
                edge.backend.dispatch(shard, Command::Kv(info.id, command(items)), sink);
            }
        }
    }
}

/// The parts that are in.
struct Gather {
    sink: Option<Box<dyn ReplySink>>,
    left: usize,
    items: usize,
    merged: Option<Merged>,
    failed: Vec<(Vec<u32>, Reject)>,
}

/// Replies of the parts, each item at its place.
enum Merged {
    Values(Vec<Option<EntryValue>>),
    Flags(Vec<bool>),
    Written(Vec<Result<Lsn, Reject>>),
    Ran(Vec<Result<KvOutcome, Reject>>),
}

struct PartSink {
    gather: Rc<RefCell<Gather>>,
    places: Vec<u32>,
}

impl ReplySink for PartSink {
    fn deliver(self: Box<Self>, outcome: Result<Reply, Reject>) {
        let finished = self.gather.borrow_mut().take(self.places, outcome);
        if let Some((sink, outcome)) = finished {
            sink.deliver(outcome);
        }
    }

    fn is_closed(&self) -> bool {
        self.gather.borrow().sink.as_ref().is_none_or(|sink| sink.is_closed())
    }
}

impl Gather {
    /// Notes one part; with the last one, gives the whole.
    fn take(
        &mut self,
        places: Vec<u32>,
        outcome: Result<Reply, Reject>,
    ) -> Option<(Box<dyn ReplySink>, Result<Reply, Reject>)> {
        let placed = outcome.and_then(|reply| self.place(&places, reply));
        if let Err(reject) = placed {
            self.failed.push((places, reject));
        }
        self.left -= 1;
        if self.left > 0 {
            return None;
        }
        Some((self.sink.take()?, self.outcome()))
    }

    fn place(&mut self, places: &[u32], reply: Reply) -> Result<(), Reject> {
        let items = self.items;
        match reply {
            Reply::Values(values) => {
                let merged = self.merged.get_or_insert_with(|| Merged::Values(vec![None; items]));
                let Merged::Values(all) = merged else { return Err(wrong_reply()) };
                put_at(all, places, values)
            }
            Reply::Flags(flags) => {
                let merged = self.merged.get_or_insert_with(|| Merged::Flags(vec![false; items]));
                let Merged::Flags(all) = merged else { return Err(wrong_reply()) };
                put_at(all, places, flags)
            }
            // Places that no part fills in can only be those of a part that failed.
            Reply::Written(outcomes) => {
                let none = || Merged::Written(vec![Err(Reject::Cancelled); items]);
                let Merged::Written(all) = self.merged.get_or_insert_with(none) else {
                    return Err(wrong_reply());
                };
                put_at(all, places, outcomes)
            }
            Reply::Kv(outcomes) => {
                let none = || Merged::Ran(vec![Err(Reject::Cancelled); items]);
                let Merged::Ran(all) = self.merged.get_or_insert_with(none) else {
                    return Err(wrong_reply());
                };
                put_at(all, places, outcomes)
            }
            _ => Err(wrong_reply()),
        }
    }

    /// A shard that fails makes the call fail; but where others did their part, the client is told which.
    fn outcome(&mut self) -> Result<Reply, Reject> {
        let failed = std::mem::take(&mut self.failed);
        match self.merged.take() {
            Some(Merged::Written(all)) => Ok(Reply::Written(with_failures(all, failed)?.into())),
            Some(Merged::Ran(all)) => Ok(Reply::Kv(with_failures(all, failed)?.into())),
            merged => match (failed.into_iter().next(), merged) {
                (Some((_, reject)), _) => Err(reject),
                (None, Some(Merged::Values(values))) => Ok(Reply::Values(values.into())),
                (None, Some(Merged::Flags(flags))) => Ok(Reply::Flags(flags.into())),
                (None, _) => Err(wrong_reply()),
            },
        }
    }
}

/// The outcomes of all items, those of shards that failed among them.
fn with_failures<T>(
    mut all: Vec<Result<T, Reject>>,
    failed: Vec<(Vec<u32>, Reject)>,
) -> Result<Vec<Result<T, Reject>>, Reject> {
    for (places, reject) in failed {
        let failures = places.iter().map(|_| Err(reject.clone())).collect();
        put_at(&mut all, &places, failures)?;
    }
    Ok(all)
}

/// Puts items at their places; there must be as many of both.
fn put_at<T>(all: &mut [T], places: &[u32], items: Batch<T>) -> Result<(), Reject> {
    if places.len() != items.len() {
        return Err(Reject::Internal("a shard answered for another number of keys"));
    }
    for (&place, item) in places.iter().zip(items) {
        if let Some(slot) = all.get_mut(place as usize) {
            *slot = item;
        }
    }
    Ok(())
}
