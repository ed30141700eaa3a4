//! `Kv.Run`: operations on keys, dealt out to the shards that have them.

use std::ops::Range;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use flowmesh_model::kv::KvOp;
use flowmesh_model::kv::past::{PastAsk, PastAt};
use flowmesh_model::placement::PlacementHash;
use flowmesh_model::{Batch, Kind, KvCommand, Lsn, Millis, Reject, Reply};
use flowmesh_proto::v1;

use super::gather::{dispatch_spread, spread};
use super::kv_operations::{items_of, operation};
use super::kv_outcomes::outcome;
use super::{attempt, check_items, check_not_empty, decode, put, with_resource};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;
use crate::edge::grpc::wire::{Fields, Value, wrong_type};

/// `Kv.Run`
pub fn run<B: Backend>(edge: &Rc<Edge<B>>, message: &Bytes, responder: Responder) -> Option<CallFuture> {
    let RunCall { store, ops, atomic, as_of } = attempt!(responder, RunCall::read(message));
    let writes = ops.iter().position(|op| op.action.is_write());
    if let Some(index) = writes.filter(|_| as_of.is_some()) {
        responder.fail(Reject::PastChange { index: index as u32 });
        return None;
    }
    with_resource(edge, Kind::Kv, store, writes.is_some(), responder, move |edge, info, responder| {
        if let Err(reject) = check_together(&info.placement, &ops, atomic) {
            return responder.fail(reject);
        }
        let shard_of = |key: &[u8]| edge.backend.shard_of_key(&info, key);
        let ops = spread(ops, edge.backend.shards(), |op| &op.key, shard_of);
        let command = |ops| match as_of {
            None => KvCommand::Run { ops, atomic, seed: edge.chance() },
            Some(at) => KvCommand::Past(PastAsk::Run { at, ops, seed: edge.chance() }),
        };
        let backend = edge.backend.clone();
        dispatch_spread(edge, &info, ops, responder, command, move |reply, out| {
            let now = if let Some(PastAt::Time(then)) = as_of { then } else { backend.now() };
            put_outcomes(reply, now, out)
        });
    })
}

/// A `RunRequest`.
struct RunCall<'a> {
    store: &'a str,
    ops: Batch<KvOp>,
    atomic: bool,
    as_of: Option<PastAt>,
}

impl<'a> RunCall<'a> {
    fn read(message: &'a Bytes) -> Result<Self, Reject> {
        let mut fields = Fields::new(message);
        let (mut call, mut items) = (Self { store: "", ops: Batch::new(), atomic: false, as_of: None }, 0);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Bytes(range)) => call.store = fields.text("store", range)?,
                (2, Value::Bytes(range)) => {
                    let place = call.ops.len();
                    let op = read_operation(&fields, range).map_err(|reject| placed(place, reject))?;
                    items += items_of(&op.action);
                    check_items("items of operations", items)?;
                    call.ops.push(op);
                    check_items("operations", call.ops.len())?;
                }
                (3, Value::Integer(atomic)) => call.atomic = atomic != 0,
                (10, Value::Integer(at)) => call.as_of = Some(PastAt::Time(Millis(at))),
                (11, Value::Integer(version)) => call.as_of = Some(PastAt::Version(Lsn(version))),
                (1, _) => return Err(wrong_type("store")),
                (2, _) => return Err(wrong_type("operations")),
                (3, _) => return Err(wrong_type("atomic")),
                (10 | 11, _) => return Err(wrong_type("as_of")),
                _ => {}
            }
        }
        check_not_empty("operations", call.ops.len())?;
        Ok(call)
    }
}

fn read_operation(fields: &Fields<'_>, range: Range<usize>) -> Result<KvOp, Reject> {
    let mut inner = fields.nested(range.clone());
    while let Some((number, _)) = inner.next()? {
        if !is_known(number) {
            return Err(Reject::invalid(
                "operations",
                format!("has field {number}, a condition or action that this server does not know"),
            ));
        }
    }
    operation(decode::<v1::Operation>(fields.slice(range))?)
}

/// Whether an `Operation` has such a field. Other fields of messages may be passed over, but what is to be done may not.
const fn is_known(number: u64) -> bool {
    matches!(number, 1..=5 | 10..=15 | 20..=29 | 40..=51 | 60..=69 | 80..=92 | 100..=110)
}

/// Says which operation it was.
fn placed(place: usize, reject: Reject) -> Reject {
    match reject {
        Reject::InvalidArgument { field, reason } => {
            Reject::invalid(field, format!("{reason} (operation {place}, counted from 0)"))
        }
        other => other,
    }
}

/// Keys that one operation names, or one batch that is all or none, are on one partition.
fn check_together(placement: &PlacementHash, ops: &[KvOp], atomic: bool) -> Result<(), Reject> {
    let mut home = None;
    let mut place = 0;
    for op in ops {
        if !atomic {
            home = None;
        }
        let mut others = op.action.other_keys().peekable();
        if !atomic && others.peek().is_none() {
            place += 1;
            continue;
        }
        for key in std::iter::once(&op.key).chain(others) {
            let slot = placement.key_slot(key);
            let (first, wanted) = *home.get_or_insert((place, slot));
            if slot != wanted {
                return Err(Reject::KeysApart { first, other: place });
            }
            place += 1;
        }
    }
    Ok(())
}

/// Writes a `RunResponse`.
fn put_outcomes(reply: Reply, now: Millis, out: &mut BytesMut) -> Result<(), Reject> {
    let Reply::Kv(outcomes) = reply else { return Err(wrong_reply()) };
    let outcomes = outcomes.into_iter().map(outcome).collect();
    put(out, &v1::RunResponse { outcomes, now_ms: now.get() });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_model::ResourcePath;
    use flowmesh_model::limits::BATCH_ITEMS_MAX;
    use prost::Message;
    use v1::operation::Action;

    fn on(key: &'static str, action: Action) -> v1::Operation {
        v1::Operation { key: key.into(), condition: None, action: Some(action) }
    }

    fn read(operations: Vec<v1::Operation>) -> Result<Batch<KvOp>, Reject> {
        let request = v1::RunRequest { store: "s".into(), operations, atomic: true, as_of: None };
        let message = Bytes::from(request.encode_to_vec());
        let call = RunCall::read(&message)?;
        assert!(call.store == "s" && call.atomic);
        Ok(call.ops)
    }

    fn reason(reject: &Reject) -> String {
        reject.to_string()
    }

    #[test]
    fn the_fields_of_an_operation_are_those_of_the_proto_file() {
        let set = prost_types::FileDescriptorSet::decode(flowmesh_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut messages = set.file.iter().flat_map(|file| &file.message_type);
        let operation = messages.find(|message| message.name() == "Operation").unwrap();
        let declared: Vec<u64> =
            operation.field.iter().map(|field| field.number().try_into().unwrap()).collect();
        assert!(declared.len() > 60);
        let known: Vec<u64> = (0..1000).filter(|&number| is_known(number)).collect();
        assert_eq!(declared, known);
    }

    #[test]
    fn an_action_or_condition_of_a_newer_api_is_refused_and_not_passed_over() {
        let mut op = on("k", Action::Get(v1::BytesGet {})).encode_to_vec();
        op.extend([0xCA, 0x3E, 0]); // field 1001, empty
        let mut message = vec![0x12, op.len() as u8];
        message.extend(op);
        let refused = RunCall::read(&message.into()).err().unwrap();
        assert!(reason(&refused).contains("field 1001"), "{refused}");
    }

    #[test]
    fn a_batch_is_bounded_and_says_where_it_is_wrong() {
        let many = |count| vec![on("k", Action::Length(v1::BytesLength {})); count];
        assert_eq!(read(many(BATCH_ITEMS_MAX)).unwrap().len(), BATCH_ITEMS_MAX);
        assert!(matches!(read(many(BATCH_ITEMS_MAX + 1)), Err(Reject::TooLarge { what: "operations", .. })));
        assert!(reason(&read(vec![]).unwrap_err()).contains("is empty"));
        let members = |count: usize| vec![Bytes::from_static(b"m"); count];
        let add = |count| on("k", Action::SetAdd(v1::SetAdd { members: members(count) }));
        assert_eq!(read(vec![add(6_000), add(4_000)]).unwrap().len(), 2);
        let refused = read(vec![add(6_000), add(4_001)]).unwrap_err();
        assert!(matches!(refused, Reject::TooLarge { what: "items of operations", size: 10_001, .. }));
        let empty = on("k", Action::SetAdd(v1::SetAdd::default()));
        let refused = read(vec![add(1), empty]).unwrap_err();
        assert!(reason(&refused).contains("operation 1, counted from 0"), "{refused}");
    }

    #[test]
    fn keys_must_be_together_where_they_change_together() {
        let placement = PlacementHash::of(&ResourcePath::parse(Kind::Kv, "s").unwrap());
        let get = |key| on(key, Action::Get(v1::BytesGet {}));
        let rename = |key, to: &'static str| {
            on(key, Action::Rename(v1::KeyRename { to: to.into(), if_absent: false }))
        };
        let check = |operations, atomic| check_together(&placement, &read(operations).unwrap(), atomic);
        assert_eq!(check(vec![get("a"), get("b")], false), Ok(()));
        let apart = |first, other| Err(Reject::KeysApart { first, other });
        assert_eq!(check(vec![get("a"), get("a"), get("b")], true), apart(0, 2));
        assert_eq!(check(vec![get("{t}a"), get("{t}b"), rename("{t}c", "{t}d")], true), Ok(()));
        assert_eq!(check(vec![get("a"), rename("{t}c", "{t}d"), rename("e", "f")], false), apart(3, 4));
        assert_eq!(check(vec![get("{t}a"), rename("{t}c", "d")], true), apart(0, 2));
    }
}
