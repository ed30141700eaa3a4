//! Operations on a few keys by chance: of every sort, at every edge.

use bytes::Bytes;
use flowmesh_model::Millis;
use flowmesh_model::command::{SetIf, SetTtl};
use flowmesh_model::kv::{
    AddIf, Aggregate, Bound, BytesOp, Combine, End, EndIf, FieldTtl, HashOp, KeyOp, KvAction, KvOp, ListOp,
    PageOf, Real, SetOp, Side, SortedOp, SortedRange,
};
use proptest::prelude::*;

/// Names of the keys: they are on one partition.
pub const KEYS: [&str; 4] = ["a{t}", "b{t}", "c{t}", "d{t}"];

pub fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(KEYS.to_vec()).prop_map(|key| Bytes::from_static(key.as_bytes()))
}

/// A few names, long ones among them, so that collections get pages.
fn member() -> impl Strategy<Value = Bytes> {
    (0usize..80).prop_map(|n| Bytes::from(format!("{n:02}{}", "x".repeat(n % 5 * 90))))
}

fn names() -> impl Strategy<Value = Vec<Bytes>> {
    prop_oneof![3 => prop::collection::vec(member(), 1..4), 1 => prop::collection::vec(member(), 20..60)]
}

pub fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        (-20i64..20).prop_map(|number| Bytes::from(number.to_string())),
        "[ab]{0,3}".prop_map(Bytes::from),
        (0usize..4).prop_map(|n| Bytes::from(vec![b'v'; n * 300])),
        Just(Bytes::from_static(b"9223372036854775807")),
        Just(Bytes::from_static(b"1.5")),
    ]
}

fn real() -> impl Strategy<Value = Real> {
    (-8i32..8).prop_map(|half| Real::new(f64::from(half) / 2.0).unwrap())
}

fn index() -> impl Strategy<Value = i64> {
    prop_oneof![-6i64..6, Just(i64::MAX), Just(i64::MIN + 1)]
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        (0u64..120).prop_map(End::In),
        (1u64..2_500).prop_map(|at| End::At(Millis(at))),
        Just(End::Never)
    ]
}

fn only() -> impl Strategy<Value = EndIf> {
    prop::sample::select(vec![EndIf::Always, EndIf::None, EndIf::Some, EndIf::Later, EndIf::Earlier])
}

fn side() -> impl Strategy<Value = Side> {
    prop::sample::select(vec![Side::Front, Side::Back])
}

fn how() -> impl Strategy<Value = Combine> {
    prop::sample::select(vec![Combine::Intersection, Combine::Union, Combine::Difference])
}

fn page() -> impl Strategy<Value = PageOf> {
    (prop::option::of(member()), 1u32..9).prop_map(|(after, limit)| PageOf { after, glob: None, limit })
}

fn add_if() -> impl Strategy<Value = AddIf> {
    prop::sample::select(vec![(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 1, 0, 1)]).prop_map(
        |(absent, present, greater, less)| AddIf {
            absent: absent == 1,
            present: present == 1,
            greater: greater == 1,
            less: less == 1,
        },
    )
}

fn range() -> impl Strategy<Value = SortedRange> {
    let bound =
        || prop_oneof![Just(Bound::Open), real().prop_map(Bound::Included), real().prop_map(Bound::Excluded)];
    prop_oneof![
        (index(), index()).prop_map(|(from, to)| SortedRange::Rank(from, to)),
        (bound(), bound()).prop_map(|(min, max)| SortedRange::Score(min, max)),
    ]
}

fn key_op() -> impl Strategy<Value = KeyOp> {
    prop_oneof![
        Just(KeyOp::Inspect),
        Just(KeyOp::Delete),
        (end(), only()).prop_map(|(end, only)| KeyOp::Expire(end, only)),
        (key(), any::<bool>()).prop_map(|(to, if_absent)| KeyOp::Rename { to, if_absent }),
        (key(), any::<bool>()).prop_map(|(to, replace)| KeyOp::Copy { to, replace }),
    ]
}

fn bytes_op() -> impl Strategy<Value = BytesOp> {
    let ttl = prop_oneof![
        3 => Just(SetTtl::Default), 1 => Just(SetTtl::Keep), 1 => (1u64..90).prop_map(SetTtl::Millis)
    ];
    prop_oneof![
        Just(BytesOp::Get),
        (value(), ttl, any::<bool>()).prop_map(|(value, ttl, with_old)| BytesOp::Set {
            value,
            ttl,
            with_old
        }),
        Just(BytesOp::GetDelete),
        end().prop_map(BytesOp::GetExpire),
        value().prop_map(BytesOp::Append),
        (index(), index()).prop_map(|(from, to)| BytesOp::GetRange(from, to)),
        (0u64..9, value()).prop_map(|(offset, over)| BytesOp::SetRange(offset, over)),
        Just(BytesOp::Length),
        (-9i64..9).prop_map(BytesOp::Increment),
        real().prop_map(BytesOp::IncrementFloat),
    ]
}

fn hash_op() -> impl Strategy<Value = HashOp> {
    let ttl = prop_oneof![
        3 => Just(FieldTtl::Never), 1 => Just(FieldTtl::Keep),
        1 => (1u64..90).prop_map(|ms| FieldTtl::Until(End::In(ms)))
    ];
    let fields = names().prop_flat_map(|names| {
        let len = names.len();
        (Just(names), prop::collection::vec(value(), len..=len))
            .prop_map(|(names, values)| names.into_iter().zip(values).collect())
    });
    prop_oneof![
        4 => (fields, any::<bool>(), ttl).prop_map(|(fields, if_absent, ttl)| HashOp::Set { fields, if_absent, ttl }),
        1 => names().prop_map(HashOp::Get),
        1 => names().prop_map(HashOp::Lengths),
        2 => names().prop_map(HashOp::Delete),
        1 => Just(HashOp::Len),
        1 => Just(HashOp::All),
        1 => page().prop_map(HashOp::Scan),
        1 => (member(), -9i64..9).prop_map(|(field, by)| HashOp::Increment(field, by)),
        1 => (-5i64..5).prop_map(HashOp::Random),
        2 => (names(), end(), only()).prop_map(|(fields, end, only)| HashOp::Expire { fields, end, only }),
        1 => names().prop_map(HashOp::Ends),
    ]
}

fn set_op() -> impl Strategy<Value = SetOp> {
    prop_oneof![
        4 => names().prop_map(SetOp::Add),
        2 => names().prop_map(SetOp::Remove),
        1 => names().prop_map(SetOp::Contains),
        1 => Just(SetOp::Len),
        1 => Just(SetOp::All),
        1 => page().prop_map(SetOp::Scan),
        1 => (0u64..30).prop_map(SetOp::Pop),
        1 => (-5i64..30).prop_map(SetOp::Random),
        1 => (key(), member()).prop_map(|(to, member)| SetOp::Move { to, member }),
        2 => (how(), prop::collection::vec(key(), 0..3), prop::option::of(key()), prop::option::of(0u64..4))
            .prop_map(|(how, others, into, count_only)| SetOp::Combine { how, others, into, count_only }),
    ]
}

fn sorted_op() -> impl Strategy<Value = SortedOp> {
    let scored = names().prop_flat_map(|names| {
        let len = names.len();
        (Just(names), prop::collection::vec(real(), len..=len))
            .prop_map(|(names, scores)| scores.into_iter().zip(names).collect())
    });
    let weights = |others: &Vec<Bytes>, weighted: bool| {
        if weighted { vec![Real::new(2.0).unwrap(); others.len() + 1] } else { Vec::new() }
    };
    let aggregate = prop::sample::select(vec![Aggregate::Sum, Aggregate::Min, Aggregate::Max]);
    prop_oneof![
        5 => (scored, add_if(), any::<bool>())
            .prop_map(|(members, only, changed)| SortedOp::Add { members, only, changed }),
        1 => (member(), real(), add_if()).prop_map(|(member, by, only)| SortedOp::Increment { member, by, only }),
        2 => names().prop_map(SortedOp::Remove),
        1 => names().prop_map(SortedOp::Scores),
        1 => Just(SortedOp::Len),
        1 => range().prop_map(SortedOp::Count),
        2 => (member(), any::<bool>()).prop_map(|(member, reverse)| SortedOp::Rank { member, reverse }),
        3 => (range(), any::<bool>(), 0u64..3, prop::option::of(0u64..9), prop::option::of(key())).prop_map(
            |(range, reverse, skip, limit, into)| {
                let by_rank = matches!(range, SortedRange::Rank(..));
                let (skip, limit) = if by_rank { (0, None) } else { (skip, limit) };
                SortedOp::Range { range, reverse, skip, limit, into }
            }
        ),
        1 => range().prop_map(SortedOp::RemoveRange),
        1 => (any::<bool>(), 0u64..9).prop_map(|(max, count)| SortedOp::Pop { max, count }),
        1 => (-5i64..9).prop_map(SortedOp::Random),
        1 => page().prop_map(SortedOp::Scan),
        2 => (how(), prop::collection::vec(key(), 0..3), any::<bool>(), aggregate, prop::option::of(key()), prop::option::of(0u64..4))
            .prop_map(move |(how, others, weighted, aggregate, into, count_only)| {
                let weights = weights(&others, weighted);
                SortedOp::Combine { how, others, weights, aggregate, into, count_only }
            }),
    ]
}

fn list_op() -> impl Strategy<Value = ListOp> {
    let values = || prop_oneof![3 => prop::collection::vec(value(), 1..4), 1 => prop::collection::vec(value(), 20..60)];
    let rank = prop_oneof![-3i64..0, 1i64..4];
    prop_oneof![
        5 => (side(), values(), prop::bool::weighted(0.2))
            .prop_map(|(side, values, if_present)| ListOp::Push { side, values, if_present }),
        1 => (side(), 0u64..40).prop_map(|(side, count)| ListOp::Pop(side, count)),
        1 => Just(ListOp::Len),
        1 => index().prop_map(ListOp::At),
        1 => (index(), value()).prop_map(|(index, value)| ListOp::SetAt(index, value)),
        1 => (any::<bool>(), value(), value())
            .prop_map(|(before, pivot, value)| ListOp::Insert { before, pivot, value }),
        1 => (value(), -3i64..4).prop_map(|(value, count)| ListOp::Remove(value, count)),
        1 => (index(), index()).prop_map(|(from, to)| ListOp::Trim(from, to)),
        1 => (index(), index()).prop_map(|(from, to)| ListOp::Range(from, to)),
        1 => (value(), rank, 0u64..4, 0u64..40)
            .prop_map(|(value, rank, count, look_at)| ListOp::Find { value, rank, count, look_at }),
        2 => (key(), side(), side()).prop_map(|(to, from, at)| ListOp::Move { to, from, at }),
    ]
}

pub fn op() -> impl Strategy<Value = KvOp> {
    let action = prop_oneof![
        3 => key_op().prop_map(KvAction::Key),
        3 => bytes_op().prop_map(KvAction::Bytes),
        5 => hash_op().prop_map(KvAction::Hash),
        5 => set_op().prop_map(KvAction::Set),
        5 => sorted_op().prop_map(KvAction::Sorted),
        5 => list_op().prop_map(KvAction::List),
    ];
    let condition = prop_oneof![
        12 => Just(SetIf::Always), 1 => Just(SetIf::Absent), 1 => Just(SetIf::Present),
        1 => value().prop_map(SetIf::Value)
    ];
    (key(), condition, action).prop_map(|(key, condition, action)| KvOp { key, condition, action })
}
