//! Operations on keys: `Operation` messages to [`KvOp`]. What is wrong whatever a key holds is refused here.

use bytes::Bytes;
use flowmesh_model::command::{SetIf, SetTtl};
use flowmesh_model::kv::{
    AddIf, Aggregate, Bound, BytesOp, Combine, End, EndIf, FieldTtl, HashOp, KeyOp, KvAction, KvOp, ListOp,
    PageOf, Real, SetOp, Side, SortedOp, SortedRange,
};
use flowmesh_model::limits::{BATCH_ITEMS_MAX, DELAY_MS_MAX};
use flowmesh_model::settings::within;
use flowmesh_model::{Lsn, Millis, Reject};
use flowmesh_proto::v1;
use v1::operation::{Action, Condition};

use super::check_not_empty;
use super::stream::or_default;

/// Items of a page that does not say how many.
const PAGE_DEFAULT: u32 = 1000;

/// What a message asks for.
///
/// # Errors
/// Something in it is wrong whatever the key holds.
pub fn operation(message: v1::Operation) -> Result<KvOp, Reject> {
    let condition = match message.condition {
        None | Some(Condition::IfAbsent(false) | Condition::IfPresent(false)) => SetIf::Always,
        Some(Condition::IfAbsent(true)) => SetIf::Absent,
        Some(Condition::IfPresent(true)) => SetIf::Present,
        Some(Condition::IfVersion(version)) => SetIf::Version(Lsn(version)),
        Some(Condition::IfValue(value)) => SetIf::Value(value),
    };
    let action = message.action.ok_or_else(|| Reject::invalid("action", "is missing"))?;
    Ok(KvOp { key: message.key, condition, action: to_action(action)? })
}

/// How many fields, members, values and other keys an operation names.
pub fn items_of(action: &KvAction) -> usize {
    match action {
        KvAction::Hash(op) => match op {
            HashOp::Set { fields, .. } => fields.len(),
            HashOp::Get(fields)
            | HashOp::Delete(fields)
            | HashOp::Lengths(fields)
            | HashOp::Expire { fields, .. }
            | HashOp::Ends(fields) => fields.len(),
            _ => 0,
        },
        KvAction::Set(op) => match op {
            SetOp::Add(members) | SetOp::Remove(members) | SetOp::Contains(members) => members.len(),
            SetOp::Combine { others, .. } => others.len(),
            _ => 0,
        },
        KvAction::Sorted(op) => match op {
            SortedOp::Add { members, .. } => members.len(),
            SortedOp::Remove(members) | SortedOp::Scores(members) => members.len(),
            SortedOp::Combine { others, .. } => others.len(),
            _ => 0,
        },
        KvAction::List(ListOp::Push { values, .. }) => values.len(),
        KvAction::Key(_) | KvAction::Bytes(_) | KvAction::List(_) => 0,
    }
}

fn to_action(action: Action) -> Result<KvAction, Reject> {
    use Action as A;
    Ok(match action {
        A::Inspect(_) => KvAction::Key(KeyOp::Inspect),
        A::Check(_) => KvAction::Key(KeyOp::Check),
        A::Delete(_) => KvAction::Key(KeyOp::Delete),
        A::Expire(op) => KvAction::Key(KeyOp::Expire(to_end(op.end)?, to_end_if(op.only)?)),
        A::Rename(op) => KvAction::Key(KeyOp::Rename { to: op.to, if_absent: op.if_absent }),
        A::Copy(op) => KvAction::Key(KeyOp::Copy { to: op.to, replace: op.replace }),

        A::Get(_) => KvAction::Bytes(BytesOp::Get),
        A::Set(op) => {
            let ttl = to_set_ttl(op.ttl)?;
            KvAction::Bytes(BytesOp::Set { value: op.value, ttl, with_old: op.with_old })
        }
        A::GetDelete(_) => KvAction::Bytes(BytesOp::GetDelete),
        A::GetExpire(op) => KvAction::Bytes(BytesOp::GetExpire(to_end(op.end)?)),
        A::Append(op) => KvAction::Bytes(BytesOp::Append(op.value)),
        A::GetRange(op) => KvAction::Bytes(BytesOp::GetRange(op.first, op.last)),
        A::SetRange(op) => KvAction::Bytes(BytesOp::SetRange(op.offset, op.value)),
        A::Length(_) => KvAction::Bytes(BytesOp::Length),
        A::Increment(op) => KvAction::Bytes(BytesOp::Increment(op.by)),
        A::IncrementFloat(op) => KvAction::Bytes(BytesOp::IncrementFloat(finite("by", op.by)?)),

        A::HashSet(op) => KvAction::Hash(hash_set(op)?),
        A::HashGet(op) => KvAction::Hash(HashOp::Get(some("fields", op.fields)?)),
        A::HashDelete(op) => KvAction::Hash(HashOp::Delete(some("fields", op.fields)?)),
        A::HashLengths(op) => KvAction::Hash(HashOp::Lengths(some("fields", op.fields)?)),
        A::HashLen(_) => KvAction::Hash(HashOp::Len),
        A::HashAll(_) => KvAction::Hash(HashOp::All),
        A::HashScan(op) => KvAction::Hash(HashOp::Scan(to_page(op.page)?)),
        A::HashIncrement(op) => KvAction::Hash(HashOp::Increment(op.field, op.by)),
        A::HashIncrementFloat(op) => KvAction::Hash(HashOp::IncrementFloat(op.field, finite("by", op.by)?)),
        A::HashRandom(op) => KvAction::Hash(HashOp::Random(to_random(op.count)?)),
        A::HashExpire(op) => KvAction::Hash(HashOp::Expire {
            fields: some("fields", op.fields)?,
            end: to_end(op.end)?,
            only: to_end_if(op.only)?,
        }),
        A::HashEnds(op) => KvAction::Hash(HashOp::Ends(some("fields", op.fields)?)),

        A::SetAdd(op) => KvAction::Set(SetOp::Add(some("members", op.members)?)),
        A::SetRemove(op) => KvAction::Set(SetOp::Remove(some("members", op.members)?)),
        A::SetContains(op) => KvAction::Set(SetOp::Contains(some("members", op.members)?)),
        A::SetLen(_) => KvAction::Set(SetOp::Len),
        A::SetAll(_) => KvAction::Set(SetOp::All),
        A::SetScan(op) => KvAction::Set(SetOp::Scan(to_page(op.page)?)),
        A::SetPop(op) => KvAction::Set(SetOp::Pop(op.count)),
        A::SetRandom(op) => KvAction::Set(SetOp::Random(to_random(op.count)?)),
        A::SetMove(op) => KvAction::Set(SetOp::Move { to: op.to, member: op.member }),
        A::SetCombine(op) => KvAction::Set(set_combine(op)?),

        A::SortedAdd(op) => KvAction::Sorted(sorted_add(op)?),
        A::SortedIncrement(op) => KvAction::Sorted(SortedOp::Increment {
            member: op.member,
            by: real("by", op.by)?,
            only: to_add_if(op.only)?,
        }),
        A::SortedRemove(op) => KvAction::Sorted(SortedOp::Remove(some("members", op.members)?)),
        A::SortedScores(op) => KvAction::Sorted(SortedOp::Scores(some("members", op.members)?)),
        A::SortedLen(_) => KvAction::Sorted(SortedOp::Len),
        A::SortedCount(op) => KvAction::Sorted(SortedOp::Count(to_part(op.part)?)),
        A::SortedRank(op) => KvAction::Sorted(SortedOp::Rank { member: op.member, reverse: op.reverse }),
        A::SortedRange(op) => KvAction::Sorted(SortedOp::Range {
            range: to_part(op.part)?,
            reverse: op.reverse,
            skip: op.skip,
            limit: op.limit,
            into: op.into,
        }),
        A::SortedRemoveRange(op) => KvAction::Sorted(SortedOp::RemoveRange(to_part(op.part)?)),
        A::SortedPop(op) => KvAction::Sorted(SortedOp::Pop { max: op.max, count: op.count }),
        A::SortedRandom(op) => KvAction::Sorted(SortedOp::Random(to_random(op.count)?)),
        A::SortedScan(op) => KvAction::Sorted(SortedOp::Scan(to_page(op.page)?)),
        A::SortedCombine(op) => KvAction::Sorted(sorted_combine(op)?),

        A::ListPush(op) => KvAction::List(ListOp::Push {
            side: to_side("side", op.side)?,
            values: some("values", op.values)?,
            if_present: op.if_present,
        }),
        A::ListPop(op) => KvAction::List(ListOp::Pop(to_side("side", op.side)?, op.count)),
        A::ListLen(_) => KvAction::List(ListOp::Len),
        A::ListAt(op) => KvAction::List(ListOp::At(op.index)),
        A::ListSetAt(op) => KvAction::List(ListOp::SetAt(op.index, op.value)),
        A::ListInsert(op) => {
            KvAction::List(ListOp::Insert { before: op.before, pivot: op.pivot, value: op.value })
        }
        A::ListRemove(op) => KvAction::List(ListOp::Remove(op.value, op.count)),
        A::ListTrim(op) => KvAction::List(ListOp::Trim(op.first, op.last)),
        A::ListRange(op) => KvAction::List(ListOp::Range(op.first, op.last)),
        A::ListFind(op) => KvAction::List(ListOp::Find {
            value: op.value,
            rank: if op.rank == 0 { 1 } else { op.rank },
            count: op.count,
            look_at: op.look_at,
        }),
        A::ListMove(op) => KvAction::List(ListOp::Move {
            to: op.to,
            from: to_side("from", op.from)?,
            at: to_side("at", op.at)?,
        }),
    })
}

fn hash_set(op: v1::HashSet) -> Result<HashOp, Reject> {
    use v1::hash_set::Ttl;
    let ttl = match op.ttl {
        None | Some(Ttl::KeepTtl(false)) => FieldTtl::Never,
        Some(Ttl::KeepTtl(true)) => FieldTtl::Keep,
        Some(Ttl::End(end)) => FieldTtl::Until(to_end(Some(end))?),
    };
    let fields = some("fields", op.fields)?.into_iter().map(|pair| (pair.field, pair.value)).collect();
    Ok(HashOp::Set { fields, if_absent: op.if_absent, ttl })
}

fn set_combine(op: v1::SetCombine) -> Result<SetOp, Reject> {
    check_combine(op.into.is_some(), op.count_only)?;
    let how = to_combine(op.how)?;
    Ok(SetOp::Combine { how, others: op.others, into: op.into, count_only: op.count_only })
}

fn sorted_add(op: v1::SortedAdd) -> Result<SortedOp, Reject> {
    let only = to_add_if(op.only)?;
    let scored = |one: v1::ScoredMember| real("score", one.score).map(|score| (score, one.member));
    let members = some("members", op.members)?.into_iter().map(scored).collect::<Result<_, _>>()?;
    Ok(SortedOp::Add { members, only, changed: op.changed })
}

fn sorted_combine(op: v1::SortedCombine) -> Result<SortedOp, Reject> {
    check_combine(op.into.is_some(), op.count_only)?;
    let (weights, keys) = (op.weights.len(), op.others.len() + 1);
    if weights != 0 && weights != keys {
        return Err(Reject::invalid(
            "weights",
            format!("are {weights}; allowed: none, or {keys}, one a key"),
        ));
    }
    Ok(SortedOp::Combine {
        how: to_combine(op.how)?,
        others: op.others,
        weights: op.weights.into_iter().map(|weight| real("weights", weight)).collect::<Result<_, _>>()?,
        aggregate: match v1::Aggregate::try_from(op.aggregate) {
            Ok(v1::Aggregate::Sum) => Aggregate::Sum,
            Ok(v1::Aggregate::Min) => Aggregate::Min,
            Ok(v1::Aggregate::Max) => Aggregate::Max,
            Err(_) => return Err(unknown("aggregate", op.aggregate, "0 (sum), 1 (min), 2 (max)")),
        },
        into: op.into,
        count_only: op.count_only,
    })
}

fn check_combine(stores: bool, count_only: Option<u64>) -> Result<(), Reject> {
    if stores && count_only.is_some() {
        return Err(Reject::invalid("count_only", "does not go with into, which answers with a count"));
    }
    Ok(())
}

fn some<T>(what: &'static str, items: Vec<T>) -> Result<Vec<T>, Reject> {
    check_not_empty(what, items.len())?;
    Ok(items)
}

fn real(field: &'static str, value: f64) -> Result<Real, Reject> {
    Real::new(value).ok_or_else(|| Reject::invalid(field, "is NaN; allowed: any other number"))
}

fn finite(field: &'static str, value: f64) -> Result<Real, Reject> {
    Real::new(value)
        .filter(|real| real.get().is_finite())
        .ok_or_else(|| Reject::invalid(field, format!("is {value}; allowed: any finite number")))
}

fn unknown(field: &'static str, number: i32, allowed: &str) -> Reject {
    Reject::invalid(field, format!("is {number}; allowed: {allowed}"))
}

fn to_set_ttl(ttl: Option<v1::bytes_set::Ttl>) -> Result<SetTtl, Reject> {
    use v1::bytes_set::Ttl;
    Ok(match ttl {
        None | Some(Ttl::KeepTtl(false)) => SetTtl::Default,
        Some(Ttl::KeepTtl(true)) => SetTtl::Keep,
        Some(Ttl::TtlMs(ttl_ms)) => SetTtl::Millis(ttl_ms),
        Some(Ttl::ExpiresAtMs(at)) => SetTtl::At(moment("expires_at_ms", at)?),
    })
}

/// A time at which something ends; 0 would mean never.
pub fn moment(field: &'static str, at: u64) -> Result<Millis, Reject> {
    within(field, at, 1, i64::MAX as u64)?;
    Ok(Millis(at))
}

fn to_end(end: Option<v1::End>) -> Result<End, Reject> {
    use v1::end::End as Message;
    match end.and_then(|end| end.end) {
        Some(Message::InMs(ms)) => {
            within("in_ms", ms, 1, DELAY_MS_MAX)?;
            Ok(End::In(ms))
        }
        Some(Message::AtMs(at)) => Ok(End::At(moment("at_ms", at)?)),
        Some(Message::Never(true)) => Ok(End::Never),
        Some(Message::Never(false)) | None => {
            Err(Reject::invalid("end", "is missing; allowed: in_ms, at_ms, never"))
        }
    }
}

fn to_end_if(only: i32) -> Result<EndIf, Reject> {
    match v1::EndIf::try_from(only) {
        Ok(v1::EndIf::Always) => Ok(EndIf::Always),
        Ok(v1::EndIf::None) => Ok(EndIf::None),
        Ok(v1::EndIf::Some) => Ok(EndIf::Some),
        Ok(v1::EndIf::Later) => Ok(EndIf::Later),
        Ok(v1::EndIf::Earlier) => Ok(EndIf::Earlier),
        Err(_) => {
            Err(unknown("only", only, "0 (always), 1 (of what has none), 2 (some), 3 (later), 4 (earlier)"))
        }
    }
}

fn to_combine(how: i32) -> Result<Combine, Reject> {
    match v1::Combine::try_from(how) {
        Ok(v1::Combine::Intersection) => Ok(Combine::Intersection),
        Ok(v1::Combine::Union) => Ok(Combine::Union),
        Ok(v1::Combine::Difference) => Ok(Combine::Difference),
        Err(_) => Err(unknown("how", how, "0 (intersection), 1 (union), 2 (difference)")),
    }
}

fn to_side(field: &'static str, side: i32) -> Result<Side, Reject> {
    match v1::Side::try_from(side) {
        Ok(v1::Side::Front) => Ok(Side::Front),
        Ok(v1::Side::Back) => Ok(Side::Back),
        Err(_) => Err(unknown(field, side, "0 (front), 1 (back)")),
    }
}

fn to_add_if(only: Option<v1::AddIf>) -> Result<AddIf, Reject> {
    let Some(v1::AddIf { absent, present, greater, less }) = only else { return Ok(AddIf::default()) };
    if u8::from(absent) + u8::from(greater) + u8::from(less) > 1 || absent && present {
        return Err(Reject::invalid(
            "only",
            "contradicts itself; allowed: at most one of absent, greater and less; absent not with present",
        ));
    }
    Ok(AddIf { absent, present, greater, less })
}

/// So many by chance; with repetitions there is no end to them by itself.
fn to_random(count: i64) -> Result<i64, Reject> {
    if count < 0 && count.unsigned_abs() > BATCH_ITEMS_MAX as u64 {
        return Err(Reject::invalid("count", format!("is {count}; allowed: -{BATCH_ITEMS_MAX} or more")));
    }
    Ok(count)
}

fn to_page(page: Option<v1::PageOf>) -> Result<PageOf, Reject> {
    let page = page.unwrap_or_default();
    within("limit", page.limit.into(), 0, BATCH_ITEMS_MAX as u64)?;
    Ok(PageOf { after: page.after, glob: page.glob, limit: or_default(page.limit, PAGE_DEFAULT) })
}

fn to_part(part: Option<v1::SortedPart>) -> Result<SortedRange, Reject> {
    use v1::sorted_part::Part;
    match part.and_then(|part| part.part) {
        Some(Part::Ranks(ranks)) => Ok(SortedRange::Rank(ranks.first, ranks.last)),
        Some(Part::Scores(scores)) => {
            Ok(SortedRange::Score(score_bound("min", scores.min)?, score_bound("max", scores.max)?))
        }
        Some(Part::Members(members)) => {
            Ok(SortedRange::Lex(member_bound(members.min), member_bound(members.max)))
        }
        None => Err(Reject::invalid("part", "is missing; allowed: ranks, scores, members")),
    }
}

fn score_bound(field: &'static str, bound: Option<v1::ScoreBound>) -> Result<Bound<Real>, Reject> {
    use v1::score_bound::Bound as Message;
    Ok(match bound.and_then(|bound| bound.bound) {
        None => Bound::Open,
        Some(Message::Included(score)) => Bound::Included(real(field, score)?),
        Some(Message::Excluded(score)) => Bound::Excluded(real(field, score)?),
    })
}

fn member_bound(bound: Option<v1::MemberBound>) -> Bound<Bytes> {
    use v1::member_bound::Bound as Message;
    match bound.and_then(|bound| bound.bound) {
        None => Bound::Open,
        Some(Message::Included(member)) => Bound::Included(member),
        Some(Message::Excluded(member)) => Bound::Excluded(member),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(action: Action) -> (&'static str, String) {
        let message = v1::Operation { key: "k".into(), condition: None, action: Some(action) };
        match operation(message).unwrap_err() {
            Reject::InvalidArgument { field, reason } => (field, reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_wrong_whatever_a_key_holds_is_refused_by_name() {
        let nan = v1::ScoredMember { member: "m".into(), score: f64::NAN };
        let both = v1::AddIf { absent: true, present: true, ..Default::default() };
        let rows: Vec<(Action, &str, &str)> = vec![
            (Action::HashGet(v1::HashGet::default()), "fields", "is empty"),
            (Action::SetAdd(v1::SetAdd::default()), "members", "is empty"),
            (Action::ListPush(v1::ListPush::default()), "values", "is empty"),
            (Action::Expire(v1::KeyExpire::default()), "end", "is missing; allowed: in_ms"),
            (Action::SortedCount(v1::SortedCount::default()), "part", "is missing; allowed: ranks"),
            (Action::IncrementFloat(v1::BytesIncrementFloat { by: f64::INFINITY }), "by", "is inf; allowed"),
            (
                Action::SortedAdd(v1::SortedAdd { members: vec![nan], ..Default::default() }),
                "score",
                "is NaN",
            ),
            (
                Action::SortedAdd(v1::SortedAdd { only: Some(both), ..Default::default() }),
                "only",
                "contradicts itself",
            ),
            (Action::ListPop(v1::ListPop { side: 2, count: 1 }), "side", "is 2; allowed: 0 (front)"),
            (Action::SetRandom(v1::SetRandom { count: -10_001 }), "count", "allowed: -10000 or more"),
            (
                Action::SortedCombine(v1::SortedCombine { weights: vec![1.0, 2.0], ..Default::default() }),
                "weights",
                "are 2; allowed: none, or 1",
            ),
            (
                Action::SetCombine(v1::SetCombine {
                    into: Some("i".into()),
                    count_only: Some(0),
                    ..Default::default()
                }),
                "count_only",
                "does not go with into",
            ),
            (
                Action::HashScan(v1::HashScan {
                    page: Some(v1::PageOf { limit: 10_001, ..Default::default() }),
                }),
                "limit",
                "allowed: 0 to 10000",
            ),
            (
                Action::Expire(v1::KeyExpire {
                    end: Some(v1::End { end: Some(v1::end::End::AtMs(0)) }),
                    only: 0,
                }),
                "at_ms",
                "is 0; allowed: 1 to",
            ),
            (
                Action::Expire(v1::KeyExpire {
                    end: Some(v1::End { end: Some(v1::end::End::Never(true)) }),
                    only: 9,
                }),
                "only",
                "is 9; allowed",
            ),
        ];
        for (action, field, part) in rows {
            let (named, reason) = refused(action.clone());
            assert!(named == field && reason.contains(part), "{action:?}: {named}: {reason}");
        }
        let none = v1::Operation { key: "k".into(), ..Default::default() };
        assert_eq!(operation(none).unwrap_err(), Reject::invalid("action", "is missing"));
    }

    #[test]
    fn an_operation_keeps_its_condition_and_all_it_says() {
        let message = v1::Operation {
            key: "k".into(),
            condition: Some(Condition::IfValue("v".into())),
            action: Some(Action::HashSet(v1::HashSet {
                fields: vec![v1::FieldValue { field: "f".into(), value: "1".into() }],
                if_absent: true,
                ttl: Some(v1::hash_set::Ttl::End(v1::End { end: Some(v1::end::End::InMs(5)) })),
            })),
        };
        let op = operation(message).unwrap();
        assert_eq!((&op.key[..], &op.condition), (&b"k"[..], &SetIf::Value("v".into())));
        let wanted = HashOp::Set {
            fields: vec![("f".into(), "1".into())],
            if_absent: true,
            ttl: FieldTtl::Until(End::In(5)),
        };
        assert_eq!(op.action, KvAction::Hash(wanted));
        assert_eq!(items_of(&op.action), 1);
    }
}
