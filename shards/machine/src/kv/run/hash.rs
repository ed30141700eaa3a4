//! Operations on hashes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::{End, EndIf, FieldTtl, HashOp, KvResult, KvType};
use flowmesh_model::{Millis, Reject};

use super::bytes::{add_real, add_whole, read_real, read_whole};
use super::found::{Found, Members, members};
use super::{
    Answer, Done, Facts, Run, check_count, check_looked, check_member, check_members, check_value, end_at,
    integer, items, may_end,
};

pub(in crate::kv) use super::found::ended_fields;

impl Run<'_> {
    pub(super) fn hash_op(&self, key: &Bytes, found: Option<Found<'_>>, op: &HashOp) -> Answer {
        let hash = members(found.as_ref(), KvType::Hash)?;
        match op {
            HashOp::Set { fields, if_absent, ttl } => self.set_fields(key, hash, fields, *if_absent, *ttl),
            HashOp::Get(fields) => {
                check_members("fields", fields)?;
                let get = |field: &Bytes| -> Result<Option<Bytes>, Reject> {
                    let value = hash.as_ref().map(|hash| hash.field(field)).transpose()?.flatten();
                    Ok(value.map(|(_, value)| Bytes::copy_from_slice(value)))
                };
                Done::nothing(KvResult::Values(fields.iter().map(get).collect::<Result<_, _>>()?))
            }
            HashOp::Lengths(fields) => {
                check_members("fields", fields)?;
                let len = |field: &Bytes| -> Result<Option<i64>, Reject> {
                    let value = hash.as_ref().map(|hash| hash.field(field)).transpose()?.flatten();
                    Ok(value.map(|(_, value)| i64::try_from(value.len()).unwrap_or(i64::MAX)))
                };
                Done::nothing(KvResult::Integers(fields.iter().map(len).collect::<Result<_, _>>()?))
            }
            HashOp::Delete(fields) => self.delete_fields(key, hash, fields),
            HashOp::Len => {
                let len = hash.map(|hash| hash.live_len()).transpose()?;
                Done::nothing(integer(len.unwrap_or_default()))
            }
            HashOp::All => {
                let pairs = hash.as_ref().map(all_pairs).transpose()?.unwrap_or_default();
                Done::nothing(KvResult::Pairs(pairs))
            }
            HashOp::Scan(page) => {
                let (pairs, next) = match &hash {
                    Some(hash) => hash.page(page, |item| {
                        hash.live_field(item).map(|(_, value)| Bytes::copy_from_slice(value))
                    })?,
                    None => (Vec::new(), None),
                };
                Done::nothing(KvResult::Page { items: Box::new(KvResult::Pairs(pairs)), next })
            }
            HashOp::Increment(field, by) => {
                let before = field_of(hash.as_ref(), field)?;
                let number = before.as_ref().map_or(Ok(0), |(_, value)| read_whole("the field", value))?;
                let after = add_whole("the field", number, *by)?;
                let end = before.and_then(|(end, _)| end);
                self.set_field(key, hash, field, after.to_string().into(), end, KvResult::Integer(after))
            }
            HashOp::IncrementFloat(field, by) => {
                let before = field_of(hash.as_ref(), field)?;
                let number =
                    before.as_ref().map_or(Ok(flowmesh_model::kv::Real::default()), |(_, value)| {
                        read_real("the field", value)
                    })?;
                let after = add_real("the field", number, *by)?;
                let end = before.and_then(|(end, _)| end);
                self.set_field(key, hash, field, after.to_string().into(), end, KvResult::Float(after))
            }
            HashOp::Random(count) => {
                check_count("count", count.unsigned_abs())?;
                let pairs = hash.as_ref().map(|hash| self.random_fields(hash, *count)).transpose()?;
                Done::nothing(KvResult::Pairs(pairs.unwrap_or_default()))
            }
            HashOp::Expire { fields, end, only } => self.end_fields(key, hash, fields, *end, *only),
            HashOp::Ends(fields) => {
                check_members("fields", fields)?;
                let end = |field: &Bytes| -> Result<Option<Option<Millis>>, Reject> {
                    let value = hash.as_ref().map(|hash| hash.field(field)).transpose()?.flatten();
                    Ok(value.map(|(end, _)| end))
                };
                Done::nothing(KvResult::Ends(fields.iter().map(end).collect::<Result<_, _>>()?))
            }
        }
    }

    fn set_field(
        &self,
        key: &Bytes,
        hash: Option<Members<'_>>,
        field: &Bytes,
        value: Bytes,
        expires_at: Option<Millis>,
        result: KvResult,
    ) -> Answer {
        let mut facts = Facts::new();
        if hash.is_none() {
            self.begin(key, &mut facts);
        }
        let fact = KvFact::FieldSet { key: key.clone(), field: field.clone(), value, expires_at };
        facts.push(self.fact(fact));
        if hash.is_none() {
            self.end_of_new(key, &mut facts);
        }
        Done::new(facts, result)
    }

    fn set_fields(
        &self,
        key: &Bytes,
        hash: Option<Members<'_>>,
        fields: &[(Bytes, Bytes)],
        if_absent: bool,
        ttl: FieldTtl,
    ) -> Answer {
        items("fields", fields.len())?;
        let new_end = match ttl {
            FieldTtl::Until(end) => end_at(end, self.now())?,
            FieldTtl::Never | FieldTtl::Keep => None,
        };
        if new_end.is_some_and(|end| end <= self.now()) {
            return Err(Reject::invalid("ttl", "has passed; take the fields away instead"));
        }
        let mut facts = Facts::new();
        if hash.is_none() {
            self.begin(key, &mut facts);
        }
        let (mut named, mut new) = (BTreeSet::new(), 0);
        for (field, value) in fields {
            check_member(field)?;
            check_value(value)?;
            let before = match &hash {
                Some(hash) => hash.field(field)?.map(|(end, _)| end),
                None => None,
            };
            let is_named = !named.insert(field);
            if if_absent && (is_named || before.is_some()) {
                continue;
            }
            new += u64::from(!is_named && before.is_none());
            let expires_at = match ttl {
                FieldTtl::Keep => before.flatten(),
                FieldTtl::Never | FieldTtl::Until(_) => new_end,
            };
            let (key, field, value) = (key.clone(), field.clone(), value.clone());
            facts.push(self.fact(KvFact::FieldSet { key, field, value, expires_at }));
        }
        if hash.is_none() {
            self.end_of_new(key, &mut facts);
        }
        Done::new(facts, integer(new))
    }

    fn delete_fields(&self, key: &Bytes, hash: Option<Members<'_>>, fields: &[Bytes]) -> Answer {
        check_members("fields", fields)?;
        let Some(hash) = hash else { return Done::nothing(integer(0)) };
        let (mut facts, mut named) = (Facts::new(), BTreeSet::new());
        for field in fields {
            if hash.field(field)?.is_some() && named.insert(field) {
                let (key, field) = (key.clone(), field.clone());
                facts.push(self.fact(KvFact::FieldRemoved { key, field, expired: false }));
            }
        }
        let removed = facts.len() as u64;
        if removed > 0 && removed == hash.live_len()? {
            facts.push(self.deleted(key));
        }
        Done::new(facts, integer(removed))
    }

    fn end_fields(
        &self,
        key: &Bytes,
        hash: Option<Members<'_>>,
        fields: &[Bytes],
        end: End,
        only: EndIf,
    ) -> Answer {
        check_members("fields", fields)?;
        let expires_at = end_at(end, self.now())?;
        let Some(hash) = hash else { return Done::nothing(KvResult::Changes(vec![None; fields.len()])) };
        // By field that was named before: what its end is now, if it is still there.
        let (mut facts, mut changes, mut named) = (Facts::new(), Vec::new(), BTreeMap::new());
        let over = expires_at.is_some_and(|end| end <= self.now());
        for field in fields {
            let before = match named.get(field) {
                Some(end) => *end,
                None => hash.field(field)?.map(|(end, _)| end),
            };
            let changes_it = before.map(|before| before != expires_at && may_end(only, before, expires_at));
            changes.push(changes_it);
            if changes_it == Some(true) {
                named.insert(field, if over { None } else { Some(expires_at) });
                let (key, field) = (key.clone(), field.clone());
                facts.push(self.fact(if over {
                    KvFact::FieldRemoved { key, field, expired: true }
                } else {
                    KvFact::FieldEndSet { key, field, expires_at }
                }));
            }
        }
        if over && !facts.is_empty() && facts.len() as u64 == hash.live_len()? {
            facts.push(self.deleted(key));
        }
        Done::new(facts, KvResult::Changes(changes))
    }

    fn random_fields(&self, hash: &Members<'_>, count: i64) -> Result<Vec<(Bytes, Bytes)>, Reject> {
        if hash.ended_len()? > 0 {
            // Some are to be passed over: rare, for ticks remove them.
            let all = all_pairs(hash)?;
            let places = self.chance.borrow_mut().places(count, all.len() as u64);
            return Ok(places.into_iter().filter_map(|place| all.get(place as usize).cloned()).collect());
        }
        let places = self.chance.borrow_mut().places(count, hash.len());
        let mut pairs = Vec::with_capacity(places.len());
        for place in places {
            let item = hash.at(place)?;
            let live = item.and_then(|(field, item)| hash.live_field(item).map(|(_, value)| (field, value)));
            pairs.extend(
                live.map(|(field, value)| (Bytes::copy_from_slice(field), Bytes::copy_from_slice(value))),
            );
        }
        Ok(pairs)
    }
}

/// End and value of a field that is there.
fn field_of(hash: Option<&Members<'_>>, field: &Bytes) -> Result<Option<(Option<Millis>, Bytes)>, Reject> {
    check_member(field)?;
    let found = hash.map(|hash| hash.field(field)).transpose()?.flatten();
    Ok(found.map(|(end, value)| (end, Bytes::copy_from_slice(value))))
}

fn all_pairs(hash: &Members<'_>) -> Result<Vec<(Bytes, Bytes)>, Reject> {
    check_looked(hash.len())?;
    let mut cursor = hash.items_from(0)?;
    let mut pairs = Vec::new();
    while let Some((field, item)) = cursor.forward()? {
        if let Some((_, value)) = hash.live_field(item) {
            pairs.push((Bytes::copy_from_slice(field), Bytes::copy_from_slice(value)));
        }
    }
    Ok(pairs)
}
