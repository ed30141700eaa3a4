//! Operations on whatever a key holds.

use bytes::Bytes;
use flowmesh_model::Reject;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::{KeyOp, KvResult};
use flowmesh_model::limits::KV_LOOKED_MAX;
use smallvec::smallvec;

use super::found::Found;
use super::{Answer, Done, Facts, Run, end_at, flag, may_end};

impl Run<'_> {
    pub(super) fn key_op(&self, key: &Bytes, found: Option<Found<'_>>, op: &KeyOp) -> Answer {
        match op {
            KeyOp::Inspect => Done::nothing(KvResult::Info(found.map(|found| found.info()).transpose()?)),
            KeyOp::Check => Done::nothing(KvResult::Done),
            KeyOp::Delete => {
                let facts: Facts = found.iter().map(|_| self.deleted(key)).collect();
                Done::new(facts, flag(found.is_some()))
            }
            KeyOp::Expire(end, only) => {
                let expires_at = end_at(*end, self.now())?;
                let Some(found) = found.filter(|found| may_end(*only, found.expires_at, expires_at)) else {
                    return Done::nothing(flag(false));
                };
                if expires_at == found.expires_at {
                    // What has no end cannot lose one.
                    return Done::nothing(flag(expires_at.is_some()));
                }
                if expires_at.is_some_and(|at| at <= self.now()) {
                    let expired = flowmesh_model::Fact::KeyExpired { store: self.asked.id, key: key.clone() };
                    return Done::new(smallvec![expired], flag(true));
                }
                found.keep()?;
                let fact = KvFact::EndSet { key: key.clone(), expires_at };
                Done::new(smallvec![self.fact(fact)], flag(true))
            }
            KeyOp::Rename { to, if_absent } => {
                let Some(found) = found else { return Err(Reject::NoSuchKey) };
                if *if_absent && self.find(to).is_some() {
                    return Done::nothing(flag(false));
                }
                if key == to {
                    return Done::nothing(flag(true));
                }
                found.keep()?;
                let fact = KvFact::Renamed { key: key.clone(), to: to.clone() };
                Done::new(smallvec![self.fact(fact)], flag(true))
            }
            KeyOp::Copy { to, replace } => {
                if key == to {
                    return Err(Reject::invalid("to", "is the key itself; a copy needs another name"));
                }
                let Some(found) = found.filter(|_| *replace || self.find(to).is_none()) else {
                    return Done::nothing(flag(false));
                };
                let len = found.value.collection().map_or(0, |collection| collection.items.len());
                if len > KV_LOOKED_MAX {
                    let what = "members of a collection to be copied";
                    return Err(Reject::TooLarge { what, size: len, max: KV_LOOKED_MAX });
                }
                found.keep()?;
                let fact = KvFact::Copied { key: key.clone(), to: to.clone() };
                Done::new(smallvec![self.fact(fact)], flag(true))
            }
        }
    }
}
