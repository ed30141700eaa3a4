//! What came of operations on keys: [`KvOutcome`] to `OperationOutcome` messages.

use bytes::Bytes;
use flowmesh_model::kv::{KeyInfo, KvOutcome, KvResult, KvType, Real};
use flowmesh_model::{Millis, Reject};
use flowmesh_proto::v1;
use v1::operation_outcome::Result as Shown;

use crate::edge::grpc::status::item_error;

/// As the API has it.
pub const fn key_type(holds: KvType) -> v1::KeyType {
    match holds {
        KvType::Bytes => v1::KeyType::Bytes,
        KvType::Counter => v1::KeyType::Counter,
        KvType::Hash => v1::KeyType::Hash,
        KvType::Set => v1::KeyType::Set,
        KvType::SortedSet => v1::KeyType::SortedSet,
        KvType::List => v1::KeyType::List,
    }
}

/// The message that says so.
pub fn outcome(outcome: Result<KvOutcome, Reject>) -> v1::OperationOutcome {
    match outcome {
        Ok(outcome) => v1::OperationOutcome {
            version: outcome.version.get(),
            error: None,
            result: Some(shown(outcome.result)),
        },
        Err(reject) => v1::OperationOutcome { version: 0, error: Some(item_error(&reject)), result: None },
    }
}

fn shown(result: KvResult) -> Shown {
    match result {
        KvResult::Done => Shown::Done(true),
        KvResult::Flag(flag) => Shown::Flag(flag),
        KvResult::Flags(flags) => Shown::Flags(v1::Flags { flags }),
        KvResult::Integer(integer) => Shown::Integer(integer),
        KvResult::Integers(integers) => {
            let integers = integers.into_iter().map(|integer| v1::MaybeInteger { integer }).collect();
            Shown::Integers(v1::Integers { integers })
        }
        KvResult::Float(real) => Shown::Decimal(real.get()),
        KvResult::MaybeFloat(real) => Shown::MaybeDecimal(maybe(real)),
        KvResult::Floats(reals) => {
            Shown::Decimals(v1::Decimals { decimals: reals.into_iter().map(maybe).collect() })
        }
        KvResult::Value(value) => Shown::Value(v1::MaybeValue { value }),
        KvResult::Values(values) => {
            let values = values.into_iter().map(|value| v1::MaybeValue { value }).collect();
            Shown::Values(v1::Values { values })
        }
        KvResult::Members(members) => Shown::Members(v1::Members { members }),
        KvResult::Pairs(pairs) => Shown::Pairs(to_pairs(pairs)),
        KvResult::Scored(scored) => Shown::Scored(to_scored(scored)),
        KvResult::Rank(rank) => Shown::Rank(rank.map_or_else(Default::default, |(rank, score)| v1::Rank {
            found: true,
            rank,
            score: score.get(),
        })),
        KvResult::Info(info) => Shown::Info(info.map_or_else(Default::default, to_info)),
        KvResult::Changes(changes) => {
            let change = |change| match change {
                Some(true) => v1::Change::Done,
                Some(false) => v1::Change::Kept,
                None => v1::Change::Absent,
            };
            let changes = changes.into_iter().map(|each| change(each).into()).collect();
            Shown::Changes(v1::Changes { changes })
        }
        KvResult::Ends(ends) => {
            let end = |end: Option<Option<Millis>>| v1::FieldEnd {
                found: end.is_some(),
                expires_at_ms: end.flatten().map(Millis::get),
            };
            Shown::Ends(v1::Ends { ends: ends.into_iter().map(end).collect() })
        }
        KvResult::Page { items, next } => Shown::Page(v1::Page { items: page_items(*items), next }),
    }
}

fn page_items(items: KvResult) -> Option<v1::page::Items> {
    use v1::page::Items;
    match items {
        KvResult::Members(members) => Some(Items::Members(v1::Members { members })),
        KvResult::Pairs(pairs) => Some(Items::Pairs(to_pairs(pairs))),
        KvResult::Scored(scored) => Some(Items::Scored(to_scored(scored))),
        // Pages are of nothing else.
        _ => None,
    }
}

fn maybe(real: Option<Real>) -> v1::MaybeDecimal {
    v1::MaybeDecimal { decimal: real.map(Real::get) }
}

fn to_pairs(pairs: Vec<(Bytes, Bytes)>) -> v1::Pairs {
    v1::Pairs { pairs: pairs.into_iter().map(|(field, value)| v1::FieldValue { field, value }).collect() }
}

fn to_scored(scored: Vec<(Bytes, Real)>) -> v1::Scored {
    let one = |(member, score): (Bytes, Real)| v1::ScoredMember { member, score: score.get() };
    v1::Scored { members: scored.into_iter().map(one).collect() }
}

fn to_info(info: KeyInfo) -> v1::KeyInfo {
    v1::KeyInfo {
        found: true,
        r#type: key_type(info.holds).into(),
        version: info.version.get(),
        expires_at_ms: info.expires_at.map(Millis::get),
        len: info.len,
        memory_bytes: info.memory_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_model::Lsn;

    #[test]
    fn what_is_not_there_differs_from_what_is_empty_or_zero() {
        let of = |result| outcome(Ok(KvOutcome { version: Lsn(7), result })).result.unwrap();
        let value = |value| Shown::Value(v1::MaybeValue { value });
        assert_eq!(of(KvResult::Value(None)), value(None));
        assert_eq!(of(KvResult::Value(Some(Bytes::new()))), value(Some(Bytes::new())));
        assert_eq!(of(KvResult::Rank(None)), Shown::Rank(v1::Rank::default()));
        assert_eq!(
            of(KvResult::Rank(Some((0, Real::default())))),
            Shown::Rank(v1::Rank { found: true, rank: 0, score: 0.0 })
        );
        let ends = KvResult::Ends(vec![None, Some(None), Some(Some(Millis(5)))]);
        let end = |found, expires_at_ms| v1::FieldEnd { found, expires_at_ms };
        let ends_shown = vec![end(false, None), end(true, None), end(true, Some(5))];
        assert_eq!(of(ends), Shown::Ends(v1::Ends { ends: ends_shown }));
    }

    #[test]
    fn an_operation_that_was_refused_says_why() {
        let refused = outcome(Err(Reject::WrongType { expected: KvType::Hash, actual: KvType::SortedSet }));
        let error = refused.error.unwrap();
        assert_eq!((refused.version, refused.result, error.reason.as_str()), (0, None, "WRONG_TYPE"));
        assert!(error.message.contains("sorted_set"), "{}", error.message);
    }
}
