//! Operations on bytes and counters.

use bytes::{Bytes, BytesMut};
use flowmesh_model::command::SetTtl;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::{BytesOp, KvResult, Number, Real};
use flowmesh_model::limits::{DELAY_MS_MAX, KV_VALUE_BYTES_MAX};
use flowmesh_model::settings::within;
use flowmesh_model::{Fact, Millis, Reject};
use smallvec::smallvec;

use super::found::Found;
use super::{Answer, Done, Facts, Run, end_at, integer, part};
use crate::kv::entry::View;
use crate::kv::value::Value;

/// What can be counted.
const WHOLE: &str = "64-bit integer";
const DECIMAL: &str = "finite decimal";

impl Run<'_> {
    pub(super) fn bytes_op(&self, key: &Bytes, found: Option<Found<'_>>, op: &BytesOp) -> Answer {
        let found = found.as_ref();
        match op {
            BytesOp::Get => Done::nothing(KvResult::Value(text(found)?)),
            BytesOp::Set { value, ttl, with_old } => {
                check_len(value.len() as u64)?;
                let result = if *with_old { KvResult::Value(text(found)?) } else { KvResult::Done };
                let expires_at = self.end_of_set(*ttl, found)?;
                Done::new(smallvec![self.set(key, value.clone(), expires_at)], result)
            }
            BytesOp::GetDelete => {
                let value = text(found)?;
                let facts: Facts = value.iter().map(|_| self.deleted(key)).collect();
                Done::new(facts, KvResult::Value(value))
            }
            BytesOp::GetExpire(end) => {
                let (value, expires_at) = (text(found)?, end_at(*end, self.now())?);
                if found.is_none_or(|found| found.expires_at == expires_at) {
                    return Done::nothing(KvResult::Value(value));
                }
                let over = expires_at.is_some_and(|at| at <= self.now());
                let fact = if over {
                    Fact::KeyExpired { store: self.asked.id, key: key.clone() }
                } else {
                    self.fact(KvFact::EndSet { key: key.clone(), expires_at })
                };
                Done::new(smallvec![fact], KvResult::Value(value))
            }
            BytesOp::Append(more) => {
                let before = text(found)?.unwrap_or_default();
                check_len((before.len() + more.len()) as u64)?;
                let mut value = BytesMut::with_capacity(before.len() + more.len());
                value.extend_from_slice(&before);
                value.extend_from_slice(more);
                self.changed(key, found, value.freeze())
            }
            BytesOp::GetRange(from, to) => {
                let value = text(found)?.unwrap_or_default();
                let range = part(*from, *to, value.len() as u64);
                let value = value.slice(range.start as usize..range.end as usize);
                Done::nothing(KvResult::Value(Some(value)))
            }
            BytesOp::SetRange(offset, over) => {
                let before = text(found)?.unwrap_or_default();
                if over.is_empty() {
                    return Done::nothing(integer(before.len() as u64));
                }
                check_len(offset.saturating_add(over.len() as u64))?;
                let (start, end) = (*offset as usize, *offset as usize + over.len());
                let mut value = BytesMut::from(&before[..]);
                value.resize(value.len().max(end), 0);
                if let Some(place) = value.get_mut(start..end) {
                    place.copy_from_slice(over);
                }
                self.changed(key, found, value.freeze())
            }
            BytesOp::Length => Done::nothing(integer(found.map_or(Ok(0), Found::text_len)?)),
            BytesOp::Increment(by) => {
                let before = found.map_or(Ok(0), integer_of)?;
                let after = add_whole("the counter", before, *by)?;
                self.counted(key, found, Number::Integer(after), KvResult::Integer(after))
            }
            BytesOp::IncrementFloat(by) => {
                let before = found.map_or(Ok(Real::default()), real_of)?;
                let after = add_real("the counter", before, *by)?;
                self.counted(key, found, Number::Float(after), KvResult::Float(after))
            }
        }
    }

    fn set(&self, key: &Bytes, value: Bytes, expires_at: Option<Millis>) -> Fact {
        Fact::KeySet { store: self.asked.id, key: key.clone(), value, expires_at }
    }

    /// The end that a key gets with a new value.
    fn end_of_set(&self, ttl: SetTtl, found: Option<&Found<'_>>) -> Result<Option<Millis>, Reject> {
        Ok(match ttl {
            SetTtl::Millis(ttl_ms) => {
                within("ttl_ms", ttl_ms, 1, DELAY_MS_MAX)?;
                Some(self.now().plus(ttl_ms))
            }
            SetTtl::At(at) => Some(at.max(Millis(1))),
            SetTtl::Default => self.default_end(),
            SetTtl::Keep => self.end_of(found),
        })
    }

    /// The end that a key keeps; of a new one the store's.
    fn end_of(&self, found: Option<&Found<'_>>) -> Option<Millis> {
        found.map_or_else(|| self.default_end(), |found| found.expires_at)
    }

    /// The bytes change, and what comes of it is their length.
    fn changed(&self, key: &Bytes, found: Option<&Found<'_>>, value: Bytes) -> Answer {
        let result = integer(value.len() as u64);
        Done::new(smallvec![self.set(key, value, self.end_of(found))], result)
    }

    fn counted(&self, key: &Bytes, found: Option<&Found<'_>>, number: Number, result: KvResult) -> Answer {
        let fact = KvFact::Counted { key: key.clone(), number, expires_at: self.end_of(found) };
        Done::new(smallvec![self.fact(fact)], result)
    }
}

fn text(found: Option<&Found<'_>>) -> Result<Option<Bytes>, Reject> {
    found.map(Found::text).transpose()
}

fn check_len(len: u64) -> Result<(), Reject> {
    if len > KV_VALUE_BYTES_MAX as u64 {
        return Err(Reject::TooLarge { what: "value", size: len, max: KV_VALUE_BYTES_MAX as u64 });
    }
    Ok(())
}

fn integer_of(found: &Found<'_>) -> Result<i64, Reject> {
    match found.value {
        View::Value(Value::Counter(Number::Integer(value))) => Ok(*value),
        _ => read_whole("the value", &found.text()?),
    }
}

fn real_of(found: &Found<'_>) -> Result<Real, Reject> {
    match found.value {
        View::Value(Value::Counter(Number::Float(value))) => Ok(*value),
        _ => read_real("the value", &found.text()?),
    }
}

/// An integer as its shortest text, as Redis takes it.
pub(super) fn read_whole(what: &'static str, text: &[u8]) -> Result<i64, Reject> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
    number
        .filter(|number| number.to_string().as_bytes() == text)
        .ok_or(Reject::NotANumber { what, wanted: WHOLE })
}

/// A finite decimal.
pub(super) fn read_real(what: &'static str, text: &[u8]) -> Result<Real, Reject> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<f64>().ok());
    number
        .filter(|number| number.is_finite())
        .and_then(Real::new)
        .ok_or(Reject::NotANumber { what, wanted: DECIMAL })
}

pub(super) fn add_whole(what: &'static str, before: i64, by: i64) -> Result<i64, Reject> {
    before.checked_add(by).ok_or(Reject::CounterOverflow { what, range: WHOLE })
}

pub(super) fn add_real(what: &'static str, before: Real, by: Real) -> Result<Real, Reject> {
    let sum = Some(before.get() + by.get()).filter(|sum| sum.is_finite());
    sum.and_then(Real::new).ok_or(Reject::CounterOverflow { what, range: DECIMAL })
}
