//! The commands of Redis' sorted-set group.

use bytes::Bytes;
use flowmesh_proto::v1;
use v1::Combine::{Difference, Intersection, Union};
use v1::operation::Action;
use v1::sorted_part::Part;

use super::args::Args;
use super::show::Show;
use super::{Command, Parsed, SyntaxError, one, page};

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command::new(
        "ZADD",
        "key [NX | XX] [GT | LT] [CH] [INCR] score member [score member ...]",
        "ZADD z GT CH 1 a 2.5 b",
        zadd,
    ),
    Command::new("ZCARD", "key", "ZCARD z", |args| {
        let key = args.next("key")?;
        one(key, Action::SortedLen(v1::SortedLen {}), Show::Plain)
    }),
    Command::new("ZCOUNT", "key min max", "ZCOUNT z (1 +inf", |args| count(args, scores)),
    Command::new("ZDIFF", "numkeys key [key ...] [WITHSCORES]", "ZDIFF 2 {t}a {t}b", |args| {
        combine(args, Difference)
    }),
    Command::new("ZDIFFSTORE", "destination numkeys key [key ...]", "ZDIFFSTORE {t}c 2 {t}a {t}b", |args| {
        store(args, Difference)
    }),
    Command::new("ZINCRBY", "key increment member", "ZINCRBY z 2 a", zincrby),
    Command::new(
        "ZINTER",
        "numkeys key [key ...] [WEIGHTS weight [weight ...]] [AGGREGATE SUM | MIN | MAX] [WITHSCORES]",
        "ZINTER 2 {t}a {t}b WEIGHTS 1 2 WITHSCORES",
        |args| combine(args, Intersection),
    ),
    Command::new(
        "ZINTERCARD",
        "numkeys key [key ...] [LIMIT limit]",
        "ZINTERCARD 2 {t}a {t}b LIMIT 10",
        zintercard,
    ),
    Command::new(
        "ZINTERSTORE",
        "destination numkeys key [key ...] [WEIGHTS weight [weight ...]] [AGGREGATE SUM | MIN | MAX]",
        "ZINTERSTORE {t}c 2 {t}a {t}b AGGREGATE MAX",
        |args| store(args, Intersection),
    ),
    Command::new("ZLEXCOUNT", "key min max", "ZLEXCOUNT z [a (c", |args| count(args, members)),
    Command::new("ZMPOP", "numkeys key MIN | MAX [COUNT count]", "ZMPOP 1 z MIN COUNT 2", zmpop),
    Command::new("ZMSCORE", "key member [member ...]", "ZMSCORE z a b", |args| {
        let (key, members) = (args.next("key")?, args.all("member")?);
        one(key, Action::SortedScores(v1::SortedScores { members }), Show::Plain)
    }),
    Command::new("ZPOPMAX", "key [count]", "ZPOPMAX z 2", |args| zpop(args, true)),
    Command::new("ZPOPMIN", "key [count]", "ZPOPMIN z", |args| zpop(args, false)),
    Command::new("ZRANDMEMBER", "key [count [WITHSCORES]]", "ZRANDMEMBER z 2 WITHSCORES", zrandmember),
    Command::new(
        "ZRANGE",
        "key start stop [BYSCORE | BYLEX] [REV] [LIMIT offset count] [WITHSCORES]",
        "ZRANGE z +inf (1 BYSCORE REV LIMIT 0 10 WITHSCORES",
        |args| {
            let key = args.next("key")?;
            zrange(args, key, None)
        },
    ),
    Command::new(
        "ZRANGEBYLEX",
        "key min max [LIMIT offset count]",
        "ZRANGEBYLEX z [a (c LIMIT 0 10",
        |args| ranged(args, members, false),
    ),
    Command::new(
        "ZRANGEBYSCORE",
        "key min max [WITHSCORES] [LIMIT offset count]",
        "ZRANGEBYSCORE z -inf (5 WITHSCORES LIMIT 0 10",
        |args| ranged(args, scores, false),
    ),
    Command::new(
        "ZRANGESTORE",
        "destination source min max [BYSCORE | BYLEX] [REV] [LIMIT offset count]",
        "ZRANGESTORE {t}b {t}a 0 9",
        |args| {
            let (into, key) = (args.next("destination")?, args.next("source")?);
            zrange(args, key, Some(into))
        },
    ),
    Command::new("ZRANK", "key member [WITHSCORE]", "ZRANK z a WITHSCORE", |args| rank(args, false)),
    Command::new("ZREM", "key member [member ...]", "ZREM z a b", |args| {
        let (key, members) = (args.next("key")?, args.all("member")?);
        one(key, Action::SortedRemove(v1::SortedRemove { members }), Show::Plain)
    }),
    Command::new("ZREMRANGEBYLEX", "key min max", "ZREMRANGEBYLEX z [a (c", |args| remove(args, members)),
    Command::new("ZREMRANGEBYRANK", "key start stop", "ZREMRANGEBYRANK z 0 -11", |args| remove(args, ranks)),
    Command::new("ZREMRANGEBYSCORE", "key min max", "ZREMRANGEBYSCORE z -inf 5", |args| remove(args, scores)),
    Command::new("ZREVRANGE", "key start stop [WITHSCORES]", "ZREVRANGE z 0 9 WITHSCORES", |args| {
        ranged(args, ranks, true)
    }),
    Command::new("ZREVRANGEBYLEX", "key max min [LIMIT offset count]", "ZREVRANGEBYLEX z (c [a", |args| {
        ranged(args, members_reversed, true)
    }),
    Command::new(
        "ZREVRANGEBYSCORE",
        "key max min [WITHSCORES] [LIMIT offset count]",
        "ZREVRANGEBYSCORE z 5 -inf",
        |args| ranged(args, scores_reversed, true),
    ),
    Command::new("ZREVRANK", "key member [WITHSCORE]", "ZREVRANK z a", |args| rank(args, true)),
    Command::new("ZSCAN", "key cursor [MATCH pattern] [COUNT count]", "ZSCAN z 0 COUNT 100", |args| {
        let key = args.next("key")?;
        let (page, _) = page(args, "")?;
        one(key, Action::SortedScan(v1::SortedScan { page: Some(page) }), Show::Page { firsts: false })
    }),
    Command::new("ZSCORE", "key member", "ZSCORE z a", |args| {
        let (key, member) = (args.next("key")?, args.next("member")?);
        one(key, Action::SortedScores(v1::SortedScores { members: vec![member] }), Show::First)
    }),
    Command::new(
        "ZUNION",
        "numkeys key [key ...] [WEIGHTS weight [weight ...]] [AGGREGATE SUM | MIN | MAX] [WITHSCORES]",
        "ZUNION 2 {t}a {t}b WITHSCORES",
        |args| combine(args, Union),
    ),
    Command::new(
        "ZUNIONSTORE",
        "destination numkeys key [key ...] [WEIGHTS weight [weight ...]] [AGGREGATE SUM | MIN | MAX]",
        "ZUNIONSTORE {t}c 2 {t}a {t}b WEIGHTS 1 2",
        |args| store(args, Union),
    ),
];

fn zadd(args: &mut Args<'_>) -> Parsed {
    let key = args.next("key")?;
    let (mut only, mut changed, mut adds) = (v1::AddIf::default(), false, false);
    loop {
        if args.take("NX") {
            only.absent = true;
        } else if args.take("XX") {
            only.present = true;
        } else if args.take("GT") {
            only.greater = true;
        } else if args.take("LT") {
            only.less = true;
        } else if args.take("CH") {
            changed = true;
        } else if args.take("INCR") {
            adds = true;
        } else {
            break;
        }
    }
    if u8::from(only.absent) + u8::from(only.greater) + u8::from(only.less) > 1 || only.absent && only.present
    {
        return Err(args.wrong("takes at most one of NX, GT and LT, and not NX with XX"));
    }
    let mut members = Vec::new();
    while !args.is_empty() || members.is_empty() {
        let (score, member) = (args.decimal("score")?, args.next("member")?);
        members.push(v1::ScoredMember { member, score });
    }
    let only = Some(only);
    if !adds {
        return one(key, Action::SortedAdd(v1::SortedAdd { members, only, changed }), Show::Plain);
    }
    match <[v1::ScoredMember; 1]>::try_from(members) {
        Ok([v1::ScoredMember { member, score }]) => {
            one(key, Action::SortedIncrement(v1::SortedIncrement { member, by: score, only }), Show::Plain)
        }
        Err(_) => Err(args.wrong("takes one score and member with INCR")),
    }
}

fn zincrby(args: &mut Args<'_>) -> Parsed {
    let (key, by, member) = (args.next("key")?, args.decimal("increment")?, args.next("member")?);
    one(key, Action::SortedIncrement(v1::SortedIncrement { member, by, only: None }), Show::Plain)
}

fn zpop(args: &mut Args<'_>, max: bool) -> Parsed {
    let key = args.next("key")?;
    let count = if args.is_empty() { 1 } else { args.count("count", 0)? };
    one(key, Action::SortedPop(v1::SortedPop { max, count }), Show::Plain)
}

fn zmpop(args: &mut Args<'_>) -> Parsed {
    let key = args.one_numbered_key()?;
    let max = match args.word().as_deref() {
        Some("MIN") => false,
        Some("MAX") => true,
        Some(other) => return Err(args.unknown(other)),
        None => return Err(args.wrong("MIN or MAX is missing")),
    };
    let count = if args.take("COUNT") { args.count("count", 1)? } else { 1 };
    one(key, Action::SortedPop(v1::SortedPop { max, count }), Show::KeyAndItems)
}

fn zrandmember(args: &mut Args<'_>) -> Parsed {
    let key = args.next("key")?;
    if args.is_empty() {
        return one(key, Action::SortedRandom(v1::SortedRandom { count: 1 }), Show::First);
    }
    let count = args.integer("count")?;
    let show = if args.take("WITHSCORES") { Show::Plain } else { Show::Firsts };
    one(key, Action::SortedRandom(v1::SortedRandom { count }), show)
}

fn rank(args: &mut Args<'_>, reverse: bool) -> Parsed {
    let (key, member) = (args.next("key")?, args.next("member")?);
    let show = if args.take("WITHSCORE") { Show::RankWithScore } else { Show::Plain };
    one(key, Action::SortedRank(v1::SortedRank { member, reverse }), show)
}

type PartOf = fn(&mut Args<'_>) -> Result<Part, SyntaxError>;

fn count(args: &mut Args<'_>, part: PartOf) -> Parsed {
    let (key, part) = (args.next("key")?, part(args)?);
    let part = Some(v1::SortedPart { part: Some(part) });
    one(key, Action::SortedCount(v1::SortedCount { part }), Show::Plain)
}

fn remove(args: &mut Args<'_>, part: PartOf) -> Parsed {
    let (key, part) = (args.next("key")?, part(args)?);
    let part = Some(v1::SortedPart { part: Some(part) });
    one(key, Action::SortedRemoveRange(v1::SortedRemoveRange { part }), Show::Plain)
}

/// The older commands, each for one kind of range and one direction.
fn ranged(args: &mut Args<'_>, part: PartOf, reverse: bool) -> Parsed {
    let (key, part) = (args.next("key")?, part(args)?);
    let mut range = range_of(part, reverse);
    let mut with_scores = false;
    while let Some(word) = args.word() {
        match (word.as_str(), &range.part) {
            ("WITHSCORES", Some(v1::SortedPart { part: Some(Part::Scores(_) | Part::Ranks(_)) })) => {
                with_scores = true;
            }
            ("LIMIT", Some(v1::SortedPart { part: Some(Part::Scores(_) | Part::Members(_)) })) => {
                limit(args, &mut range)?;
            }
            _ => return Err(args.unknown(&word)),
        }
    }
    one(key, Action::SortedRange(range), if with_scores { Show::Plain } else { Show::Firsts })
}

fn range_of(part: Part, reverse: bool) -> v1::SortedGetRange {
    v1::SortedGetRange { part: Some(v1::SortedPart { part: Some(part) }), reverse, ..Default::default() }
}

/// `offset count`: a count below 0 is all, an offset below 0 nothing.
fn limit(args: &mut Args<'_>, range: &mut v1::SortedGetRange) -> Result<(), SyntaxError> {
    let (offset, count) = (args.integer("offset")?, args.integer("count")?);
    match u64::try_from(offset) {
        Ok(skip) => (range.skip, range.limit) = (skip, u64::try_from(count).ok()),
        Err(_) => range.limit = Some(0),
    }
    Ok(())
}

/// `ZRANGE` and `ZRANGESTORE`: the words behind the range say what it is of.
fn zrange(args: &mut Args<'_>, key: Bytes, into: Option<Bytes>) -> Parsed {
    let ends = args.many(2, "start and stop")?;
    let (mut part_of, mut reverse, mut with_scores): (PartOf, _, _) = (ranks, false, false);
    let mut limited = None;
    while let Some(word) = args.word() {
        match word.as_str() {
            "BYSCORE" => part_of = scores,
            "BYLEX" => part_of = members,
            "REV" => reverse = true,
            "LIMIT" => limit(args, limited.insert(v1::SortedGetRange::default()))?,
            "WITHSCORES" if into.is_none() => with_scores = true,
            other => return Err(args.unknown(other)),
        }
    }
    let part = {
        let is_by_rank = std::ptr::fn_addr_eq(part_of, ranks as PartOf);
        if is_by_rank && limited.is_some() {
            return Err(args.wrong("takes LIMIT only with BYSCORE or BYLEX"));
        }
        if with_scores && std::ptr::fn_addr_eq(part_of, members as PartOf) {
            return Err(args.wrong("takes WITHSCORES not with BYLEX, where all scores are the same"));
        }
        let mut ends = ends;
        if reverse && !is_by_rank {
            ends.reverse();
        }
        part_of(&mut args.with(&ends))?
    };
    let v1::SortedGetRange { skip, limit, .. } = limited.unwrap_or_default();
    let show = if with_scores || into.is_some() { Show::Plain } else { Show::Firsts };
    one(key, Action::SortedRange(v1::SortedGetRange { skip, limit, into, ..range_of(part, reverse) }), show)
}

fn ranks(args: &mut Args<'_>) -> Result<Part, SyntaxError> {
    let (first, last) = (args.integer("start")?, args.integer("stop")?);
    Ok(Part::Ranks(v1::RankRange { first, last }))
}

fn scores(args: &mut Args<'_>) -> Result<Part, SyntaxError> {
    let (min, max) = (score_bound(args, "min")?, score_bound(args, "max")?);
    Ok(Part::Scores(v1::ScoreRange { min, max }))
}

fn scores_reversed(args: &mut Args<'_>) -> Result<Part, SyntaxError> {
    let (max, min) = (score_bound(args, "max")?, score_bound(args, "min")?);
    Ok(Part::Scores(v1::ScoreRange { min, max }))
}

fn score_bound(args: &mut Args<'_>, what: &str) -> Result<Option<v1::ScoreBound>, SyntaxError> {
    use v1::score_bound::Bound;
    let text = args.next(what)?;
    let bound = match text.strip_prefix(b"(") {
        Some(text) => Bound::Excluded(args.to_decimal(what, text)?),
        None => Bound::Included(args.to_decimal(what, &text)?),
    };
    Ok(Some(v1::ScoreBound { bound: Some(bound) }))
}

fn members(args: &mut Args<'_>) -> Result<Part, SyntaxError> {
    let (min, max) = (args.next("min")?, args.next("max")?);
    member_range(args, &min, &max)
}

fn members_reversed(args: &mut Args<'_>) -> Result<Part, SyntaxError> {
    let (max, min) = (args.next("max")?, args.next("min")?);
    member_range(args, &min, &max)
}

fn member_range(args: &Args<'_>, min: &Bytes, max: &Bytes) -> Result<Part, SyntaxError> {
    use v1::member_bound::Bound;
    let bound = |what: &str, text: &Bytes| match text.split_first() {
        Some((b'[', _)) => Ok(Some(Bound::Included(text.slice(1..)))),
        Some((b'(', _)) => Ok(Some(Bound::Excluded(text.slice(1..)))),
        _ if text == "-" || text == "+" => Ok(None),
        _ => Err(args.wrong(format!(
            "{what} is `{}`; allowed: -, +, [MEMBER or (MEMBER",
            String::from_utf8_lossy(text)
        ))),
    };
    let (mut lowest, mut highest) = (bound("min", min)?, bound("max", max)?);
    if min == "+" || max == "-" {
        // Nothing lies behind the greatest or before the smallest.
        (lowest, highest) = (None, Some(Bound::Excluded(Bytes::new())));
    }
    let message = |bound| Some(v1::MemberBound { bound });
    Ok(Part::Members(v1::MemberRange { min: message(lowest), max: message(highest) }))
}

/// `[WEIGHTS …] [AGGREGATE …]`, and `[WITHSCORES]` if it may be: whether that stood there.
fn options(
    args: &mut Args<'_>,
    combine: &mut v1::SortedCombine,
    may_show: bool,
) -> Result<bool, SyntaxError> {
    let mut with_scores = false;
    let weighs = combine.how() != Difference;
    while let Some(word) = args.word() {
        match word.as_str() {
            "WEIGHTS" if weighs => {
                let weights = args.many(combine.others.len() + 1, "weights")?;
                combine.weights =
                    weights.iter().map(|text| args.to_decimal("weight", text)).collect::<Result<_, _>>()?;
            }
            "AGGREGATE" if weighs => {
                let aggregate = match args.word().as_deref() {
                    Some("SUM") => v1::Aggregate::Sum,
                    Some("MIN") => v1::Aggregate::Min,
                    Some("MAX") => v1::Aggregate::Max,
                    _ => return Err(args.wrong("AGGREGATE takes SUM, MIN or MAX")),
                };
                combine.aggregate = aggregate.into();
            }
            "WITHSCORES" if may_show => with_scores = true,
            other => return Err(args.unknown(other)),
        }
    }
    Ok(with_scores)
}

fn combined(how: v1::Combine, others: Vec<Bytes>) -> v1::SortedCombine {
    v1::SortedCombine { how: how.into(), others, ..Default::default() }
}

fn combine(args: &mut Args<'_>, how: v1::Combine) -> Parsed {
    let (key, others) = args.numbered_keys()?;
    let mut combine = combined(how, others);
    let with_scores = options(args, &mut combine, true)?;
    one(key, Action::SortedCombine(combine), if with_scores { Show::Plain } else { Show::Firsts })
}

fn store(args: &mut Args<'_>, how: v1::Combine) -> Parsed {
    let into = args.next("destination")?;
    let (key, others) = args.numbered_keys()?;
    let mut combine = v1::SortedCombine { into: Some(into), ..combined(how, others) };
    options(args, &mut combine, false)?;
    one(key, Action::SortedCombine(combine), Show::Plain)
}

fn zintercard(args: &mut Args<'_>) -> Parsed {
    let (key, others) = args.numbered_keys()?;
    let limit = if args.take("LIMIT") { args.count("limit", 0)? } else { 0 };
    let count = v1::SortedCombine { count_only: Some(limit), ..combined(Intersection, others) };
    one(key, Action::SortedCombine(count), Show::Plain)
}
