//! A call on keys of several shards: one command to each, and one answer once all parts are in, in the order asked.
//!
//! A call whose keys are all on one shard, as most are, pays nothing for this.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use flowmesh_engine::ReplySink;
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
            let gather = Gather { sink: Some(sink), left: parts.len(), items, merged: None, failed: None };
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
    failed: Option<Reject>,
}

/// Replies of the parts, each item at its place.
enum Merged {
    Values(Vec<Option<EntryValue>>),
    Flags(Vec<bool>),
    Written(Vec<Result<Lsn, Reject>>),
}

struct PartSink {
    gather: Rc<RefCell<Gather>>,
    places: Vec<u32>,
}

impl ReplySink for PartSink {
    fn deliver(self: Box<Self>, outcome: Result<Reply, Reject>) {
        let finished = self.gather.borrow_mut().take(&self.places, outcome);
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
        places: &[u32],
        outcome: Result<Reply, Reject>,
    ) -> Option<(Box<dyn ReplySink>, Result<Reply, Reject>)> {
        let placed = outcome.and_then(|reply| self.place(places, reply));
        if let Err(reject) = placed {
            self.place_failure(places, reject);
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
            Reply::Written(outcomes) => put_at(self.written()?, places, outcomes),
            _ => Err(wrong_reply()),
        }
    }

    fn written(&mut self) -> Result<&mut Vec<Result<Lsn, Reject>>, Reject> {
        let items = self.items;
        // Places that no part fills in can only be those of a part that failed.
        let merged = self.merged.get_or_insert_with(|| Merged::Written(vec![Err(Reject::Cancelled); items]));
        match merged {
            Merged::Written(all) => Ok(all),
            Merged::Values(_) | Merged::Flags(_) => Err(wrong_reply()),
        }
    }

    /// A shard that fails makes the call fail; but where keys were set on others, the client is told which.
    fn place_failure(&mut self, places: &[u32], reject: Reject) {
        let failures: Batch<_> = places.iter().map(|_| Err(reject.clone())).collect();
        self.failed.get_or_insert(reject);
        if matches!(self.merged, None | Some(Merged::Written(_)))
            && let Ok(all) = self.written()
        {
            // The places are those of this call.
            let _ = put_at(all, places, failures);
        }
    }

    fn outcome(&mut self) -> Result<Reply, Reject> {
        match (self.merged.take(), self.failed.take()) {
            (Some(Merged::Written(outcomes)), Some(failed)) if outcomes.iter().all(Result::is_err) => {
                Err(failed)
            }
            (Some(Merged::Written(outcomes)), _) => Ok(Reply::Written(outcomes.into())),
            (_, Some(failed)) => Err(failed),
            (Some(Merged::Values(values)), None) => Ok(Reply::Values(values.into())),
            (Some(Merged::Flags(flags)), None) => Ok(Reply::Flags(flags.into())),
            (None, None) => Err(wrong_reply()),
        }
    }
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
