//! `flowmesh.v1.Kv`: Get, Exists, Delete and Set. By hand, for these are called most.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{put_varint, varint_len};
use flowmesh_model::command::{SetEntry, SetIf, SetTtl};
use flowmesh_model::kv::past::{PastAsk, PastAt};
use flowmesh_model::reply::EntryValue;
use flowmesh_model::{Batch, Kind, KvCommand, Lsn, Millis, Reject, Reply, ResourceInfo};
use flowmesh_proto::v1;
use prost::Message;

use super::gather::{Spread, dispatch_spread, spread};
use super::kv_operations::moment;
use super::kv_outcomes::key_type;
use super::{attempt, check_items, check_not_empty, put, with_resource};
use crate::edge::backend::{Backend, missing};
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;
use crate::edge::grpc::status::item_error;
use crate::edge::grpc::wire::{
    Fields, Value, bytes_field_len, integer_len, put_bytes_field, put_integer, put_length,
    put_present_integer, wrong_type,
};

/// A `GetRequest`, `DeleteRequest` or `ExistsRequest`.
#[derive(Debug, PartialEq, Eq)]
struct KeysCall<'a> {
    store: &'a str,
    keys: Batch<Bytes>,
    if_version: Option<u64>,
    /// Of a `GetRequest`.
    as_of: Option<PastAt>,
}

impl<'a> KeysCall<'a> {
    fn read(message: &'a Bytes) -> Result<Self, Reject> {
        let mut fields = Fields::new(message);
        let mut call = Self { store: "", keys: Batch::new(), if_version: None, as_of: None };
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Bytes(range)) => call.store = fields.text("store", range)?,
                (2, Value::Bytes(range)) => {
                    call.keys.push(fields.slice(range));
                    check_items("keys", call.keys.len())?;
                }
                (3, Value::Integer(version)) => call.if_version = Some(version),
                (10, Value::Integer(at)) => call.as_of = Some(PastAt::Time(Millis(at))),
                (11, Value::Integer(version)) => call.as_of = Some(PastAt::Version(Lsn(version))),
                (1, _) => return Err(wrong_type("store")),
                (2, _) => return Err(wrong_type("keys")),
                (3, _) => return Err(wrong_type("if_version")),
                (10 | 11, _) => return Err(wrong_type("as_of")),
                _ => {}
            }
        }
        check_not_empty("keys", call.keys.len())?;
        Ok(call)
    }
}

/// `Kv.Get`
pub fn get<B: Backend>(edge: &Rc<Edge<B>>, message: &Bytes, responder: Responder) -> Option<CallFuture> {
    let call = attempt!(responder, KeysCall::read(message));
    let info = attempt!(responder, existing(edge, call.store));
    let keys = spread_keys(edge, &info, call.keys);
    match call.as_of {
        None => dispatch_spread(edge, &info, keys, responder, |keys| KvCommand::Get { keys }, put_values),
        Some(at) => {
            let command = move |keys| KvCommand::Past(PastAsk::Get { at, keys });
            dispatch_spread(edge, &info, keys, responder, command, put_values);
        }
    }
    None
}

/// `Kv.Exists`
pub fn exists<B: Backend>(edge: &Rc<Edge<B>>, message: &Bytes, responder: Responder) -> Option<CallFuture> {
    let call = attempt!(responder, KeysCall::read(message));
    let info = attempt!(responder, existing(edge, call.store));
    let keys = spread_keys(edge, &info, call.keys);
    dispatch_spread(edge, &info, keys, responder, |keys| KvCommand::Exists { keys }, put_flags);
    None
}

/// `Kv.Delete`
pub fn delete<B: Backend>(edge: &Rc<Edge<B>>, message: &Bytes, responder: Responder) -> Option<CallFuture> {
    let call = attempt!(responder, KeysCall::read(message));
    if call.if_version.is_some() && call.keys.len() > 1 {
        responder.fail(Reject::invalid("if_version", "goes with exactly one key"));
        return None;
    }
    let info = attempt!(responder, existing(edge, call.store));
    let if_version = call.if_version.map(Lsn);
    let keys = spread_keys(edge, &info, call.keys);
    let command = move |keys| KvCommand::Delete { keys, if_version };
    dispatch_spread(edge, &info, keys, responder, command, put_flags);
    None
}

/// The store of that name.
pub fn existing<B: Backend>(edge: &Edge<B>, store: &str) -> Result<Arc<ResourceInfo>, Reject> {
    edge.backend.find(Kind::Kv, store).ok_or_else(|| missing(Kind::Kv, store))
}

fn spread_keys<B: Backend>(edge: &Edge<B>, info: &ResourceInfo, keys: Batch<Bytes>) -> Spread<Bytes> {
    spread(keys, edge.backend.shards(), |key| key, |key| edge.backend.shard_of_key(info, key))
}

/// `Kv.Set`
pub fn set<B: Backend>(edge: &Rc<Edge<B>>, message: &Bytes, responder: Responder) -> Option<CallFuture> {
    let (store, entries) = attempt!(responder, read_set(message));
    with_resource(edge, Kind::Kv, store, true, responder, move |edge, info, responder| {
        let shard_of = |key: &[u8]| edge.backend.shard_of_key(&info, key);
        let entries = spread(entries, edge.backend.shards(), |entry| &entry.key, shard_of);
        let command = |entries| KvCommand::Set { entries };
        dispatch_spread(edge, &info, entries, responder, command, put_written);
    })
}

fn read_set(message: &Bytes) -> Result<(&str, Batch<SetEntry>), Reject> {
    let mut fields = Fields::new(message);
    let (mut store, mut entries) = ("", Batch::new());
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(range)) => store = fields.text("store", range)?,
            (2, Value::Bytes(range)) => {
                entries.push(read_entry(&fields, range)?);
                check_items("entries", entries.len())?;
            }
            (1, _) => return Err(wrong_type("store")),
            (2, _) => return Err(wrong_type("entries")),
            _ => {}
        }
    }
    check_not_empty("entries", entries.len())?;
    Ok((store, entries))
}

fn read_entry(fields: &Fields<'_>, range: Range<usize>) -> Result<SetEntry, Reject> {
    let mut fields = fields.nested(range);
    let mut entry =
        SetEntry { key: Bytes::new(), value: Bytes::new(), ttl: SetTtl::Default, condition: SetIf::Always };
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(range)) => entry.key = fields.slice(range),
            (2, Value::Bytes(range)) => entry.value = fields.slice(range),
            (3, Value::Integer(ttl)) => entry.ttl = SetTtl::Millis(ttl),
            (4, Value::Integer(keep)) => entry.ttl = if keep == 0 { SetTtl::Default } else { SetTtl::Keep },
            (5, Value::Integer(yes)) => entry.condition = if_true(yes, SetIf::Absent),
            (6, Value::Integer(yes)) => entry.condition = if_true(yes, SetIf::Present),
            (7, Value::Integer(version)) => entry.condition = SetIf::Version(Lsn(version)),
            (8, Value::Bytes(range)) => entry.condition = SetIf::Value(fields.slice(range)),
            (9, Value::Integer(at)) => entry.ttl = SetTtl::At(moment("expires_at_ms", at)?),
            (1, _) => return Err(wrong_type("key")),
            (2, _) => return Err(wrong_type("value")),
            (3 | 4 | 9, _) => return Err(wrong_type("ttl")),
            (5..=8, _) => return Err(wrong_type("condition")),
            _ => {}
        }
    }
    Ok(entry)
}

fn if_true(yes: u64, condition: SetIf) -> SetIf {
    if yes == 0 { SetIf::Always } else { condition }
}

/// Writes a `GetResponse`.
fn put_values(reply: Reply, out: &mut BytesMut) -> Result<(), Reject> {
    let Reply::Values(values) = reply else { return Err(wrong_reply()) };
    for value in values {
        match value {
            None => put_length(out, 1, 0),
            Some(value) => {
                put_length(out, 1, 2 + entry_value_len(&value));
                put_integer(out, 1, 1);
                put_entry_value(out, &value);
            }
        }
    }
    Ok(())
}

/// Values from here on go out in the memory that they have in the state: a copy of one would hold up the core.
const SHARED_FROM_BYTES: usize = 256 * 1024;

/// A `GetResponse` with its prefix, in pieces, if a value in it is large: what [`put_values`] writes in one.
pub fn large_values(values: &[Option<EntryValue>]) -> Option<Vec<Bytes>> {
    let is_large = |value: &EntryValue| value.value.len() >= SHARED_FROM_BYTES;
    if !values.iter().flatten().any(is_large) {
        return None;
    }
    let entry_len = |value: &Option<EntryValue>| value.as_ref().map_or(0, |value| 2 + entry_value_len(value));
    let field_len = |len: usize| 1 + varint_len(len as u64) + len;
    let bytes: usize = values.iter().map(|value| field_len(entry_len(value))).sum();
    let (mut pieces, mut out) = (Vec::new(), BytesMut::new());
    out.put_u8(0);
    out.put_u32(u32::try_from(bytes).ok()?);
    for value in values {
        put_length(&mut out, 1, entry_len(value));
        let Some(value) = value else { continue };
        put_integer(&mut out, 1, 1);
        if is_large(value) {
            put_length(&mut out, 2, value.value.len());
            pieces.push(out.split().freeze());
            pieces.push(value.value.clone());
            put_entry_value(&mut out, &EntryValue { value: Bytes::new(), ..value.clone() });
        } else {
            put_entry_value(&mut out, value);
        }
    }
    pieces.push(out.freeze());
    Some(pieces)
}

/// Writes value, version, end and type: fields 2 to 5 of `GetEntry` and of `ScanEntry`.
pub fn put_entry_value(out: &mut BytesMut, value: &EntryValue) {
    put_bytes_field(out, 2, &value.value);
    put_integer(out, 3, value.version.get());
    if let Some(end) = value.expires_at {
        put_present_integer(out, 4, end.get());
    }
    put_integer(out, 5, key_type(value.holds) as u64);
}

/// Bytes that [`put_entry_value`] writes.
pub fn entry_value_len(value: &EntryValue) -> usize {
    let version = value.version.get();
    bytes_field_len(value.value.len())
        + if version == 0 { 0 } else { 1 + varint_len(version) }
        + value.expires_at.map_or(0, |end| 1 + varint_len(end.get()))
        + integer_len(key_type(value.holds) as u64)
}

/// Writes a `DeleteResponse` or `ExistsResponse`: one packed field of bools.
fn put_flags(reply: Reply, out: &mut BytesMut) -> Result<(), Reject> {
    let Reply::Flags(flags) = reply else { return Err(wrong_reply()) };
    put_length(out, 1, flags.len());
    out.extend(flags.into_iter().map(u8::from));
    Ok(())
}

/// Writes a `SetResponse`.
fn put_written(reply: Reply, out: &mut BytesMut) -> Result<(), Reject> {
    let Reply::Written(outcomes) = reply else { return Err(wrong_reply()) };
    for outcome in outcomes {
        match outcome {
            Ok(version) => {
                put_length(out, 1, 1 + varint_len(version.get()));
                out.put_u8(1 << 3);
                put_varint(out, version.get());
            }
            Err(reject) => {
                let outcome = v1::SetOutcome { version: 0, error: Some(item_error(&reject)) };
                put_length(out, 1, outcome.encoded_len());
                put(out, &outcome);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::grpc::message::put_message;
    use flowmesh_model::kv::KvType;
    use v1::set_entry::{Condition, Ttl};

    #[test]
    fn entries_are_read_with_their_conditions() {
        let entry = |ttl, condition| v1::SetEntry {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            ttl,
            condition,
        };
        let entries = vec![
            entry(None, None),
            entry(Some(Ttl::TtlMs(5)), Some(Condition::IfAbsent(true))),
            entry(Some(Ttl::KeepTtl(true)), Some(Condition::IfPresent(true))),
            entry(None, Some(Condition::IfVersion(9))),
            entry(Some(Ttl::ExpiresAtMs(7)), Some(Condition::IfValue(Bytes::from_static(b"w")))),
        ];
        let message = Bytes::from(v1::SetRequest { store: "s".into(), entries }.encode_to_vec());
        let (store, entries) = read_set(&message).unwrap();
        assert_eq!(store, "s");
        let read: Vec<_> = entries.iter().map(|entry| (entry.ttl, entry.condition.clone())).collect();
        assert_eq!(
            read,
            [
                (SetTtl::Default, SetIf::Always),
                (SetTtl::Millis(5), SetIf::Absent),
                (SetTtl::Keep, SetIf::Present),
                (SetTtl::Default, SetIf::Version(Lsn(9))),
                (SetTtl::At(Millis(7)), SetIf::Value(Bytes::from_static(b"w"))),
            ]
        );
        assert!(entries.iter().all(|entry| entry.key == "k" && entry.value == "v"));
        let never = entry(Some(Ttl::ExpiresAtMs(0)), None);
        let message = v1::SetRequest { store: "s".into(), entries: vec![never] }.encode_to_vec();
        assert!(matches!(
            read_set(&message.into()),
            Err(Reject::InvalidArgument { field: "expires_at_ms", .. })
        ));
    }

    #[test]
    fn large_values_go_out_as_they_lie_and_say_the_same() {
        let value = |len| EntryValue {
            holds: KvType::Bytes,
            value: Bytes::from(vec![7; len]),
            version: Lsn(300),
            expires_at: Some(Millis(9)),
        };
        assert!(large_values(&[None, Some(value(SHARED_FROM_BYTES - 1))]).is_none());
        let large = value(SHARED_FROM_BYTES);
        let values = [Some(value(3)), Some(large.clone()), None, Some(large.clone()), Some(value(0))];
        let pieces = large_values(&values).unwrap();
        assert!(pieces.iter().filter(|piece| piece.as_ptr() == large.value.as_ptr()).count() == 2);
        let mut whole = BytesMut::new();
        put_message(&mut whole, |out| put_values(Reply::Values(values.into_iter().collect()), out).unwrap());
        assert!(pieces.concat() == whole);
    }

    #[test]
    fn keys_are_read_and_none_is_refused() {
        let keys = vec![Bytes::from_static(b"a"), Bytes::new()];
        let request = v1::DeleteRequest { store: "s".into(), keys, if_version: Some(0) };
        let message = Bytes::from(request.encode_to_vec());
        let call = KeysCall::read(&message).unwrap();
        assert_eq!((call.store, call.keys.len(), call.if_version), ("s", 2, Some(0)));
        assert!(KeysCall::read(&Bytes::new()).is_err());
    }

    #[test]
    fn a_client_reads_the_answers_written_by_hand() {
        let value = |expires_at| EntryValue {
            holds: KvType::Bytes,
            value: Bytes::from_static(b"v"),
            version: Lsn(300),
            expires_at,
        };
        let mut out = BytesMut::new();
        let values = [None, Some(value(None)), Some(value(Some(Millis(1 << 41))))];
        put_values(Reply::Values(values.into_iter().collect()), &mut out).unwrap();
        let read = v1::GetResponse::decode(out.freeze()).unwrap().entries;
        assert_eq!(read[0], v1::GetEntry::default());
        assert_eq!((read[1].found, read[1].version, read[1].expires_at_ms), (true, 300, None));
        assert_eq!((&read[2].value[..], read[2].expires_at_ms), (&b"v"[..], Some(1 << 41)));
        assert!(read[1..].iter().all(|entry| entry.r#type() == v1::KeyType::Bytes));

        let mut out = BytesMut::new();
        put_flags(Reply::Flags([true, false].into_iter().collect()), &mut out).unwrap();
        assert_eq!(v1::ExistsResponse::decode(out.freeze()).unwrap().exists, [true, false]);

        let mut out = BytesMut::new();
        let outcomes = [Ok(Lsn(200)), Err(Reject::ConditionFailed { actual: None })];
        put_written(Reply::Written(outcomes.into_iter().collect()), &mut out).unwrap();
        let read = v1::SetResponse::decode(out.freeze()).unwrap().outcomes;
        assert_eq!(read[0], v1::SetOutcome { version: 200, error: None });
        assert_eq!(read[1].error.as_ref().unwrap().reason, "CONDITION_FAILED");
    }
}
