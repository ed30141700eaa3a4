//! The commands of Redis' set group.

use bytes::Bytes;
use flowmesh_proto::v1;
use v1::Combine::{Difference, Intersection, Union};
use v1::operation::Action;

use super::args::Args;
use super::show::Show;
use super::{Command, Parsed, one, page};

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command::new("SADD", "key member [member ...]", "SADD s a b", |args| {
        members(args, |members| Action::SetAdd(v1::SetAdd { members }))
    }),
    Command::new("SCARD", "key", "SCARD s", |args| {
        let key = args.next("key")?;
        one(key, Action::SetLen(v1::SetLen {}), Show::Plain)
    }),
    Command::new("SDIFF", "key [key ...]", "SDIFF {t}a {t}b", |args| combine(args, Difference)),
    Command::new("SDIFFSTORE", "destination key [key ...]", "SDIFFSTORE {t}c {t}a {t}b", |args| {
        store(args, Difference)
    }),
    Command::new("SINTER", "key [key ...]", "SINTER {t}a {t}b", |args| combine(args, Intersection)),
    Command::new(
        "SINTERCARD",
        "numkeys key [key ...] [LIMIT limit]",
        "SINTERCARD 2 {t}a {t}b LIMIT 10",
        sintercard,
    ),
    Command::new("SINTERSTORE", "destination key [key ...]", "SINTERSTORE {t}c {t}a {t}b", |args| {
        store(args, Intersection)
    }),
    Command::new("SISMEMBER", "key member", "SISMEMBER s a", |args| {
        let (key, member) = (args.next("key")?, args.next("member")?);
        one(key, Action::SetContains(v1::SetContains { members: vec![member] }), Show::First)
    }),
    Command::new("SMEMBERS", "key", "SMEMBERS s", |args| {
        let key = args.next("key")?;
        one(key, Action::SetAll(v1::SetAll {}), Show::Plain)
    }),
    Command::new("SMISMEMBER", "key member [member ...]", "SMISMEMBER s a b", |args| {
        members(args, |members| Action::SetContains(v1::SetContains { members }))
    }),
    Command::new("SMOVE", "source destination member", "SMOVE {t}a {t}b m", smove),
    Command::new("SPOP", "key [count]", "SPOP s 2", spop),
    Command::new("SRANDMEMBER", "key [count]", "SRANDMEMBER s -5", srandmember),
    Command::new("SREM", "key member [member ...]", "SREM s a b", |args| {
        members(args, |members| Action::SetRemove(v1::SetRemove { members }))
    }),
    Command::new("SSCAN", "key cursor [MATCH pattern] [COUNT count]", "SSCAN s 0 COUNT 100", sscan),
    Command::new("SUNION", "key [key ...]", "SUNION {t}a {t}b", |args| combine(args, Union)),
    Command::new("SUNIONSTORE", "destination key [key ...]", "SUNIONSTORE {t}c {t}a {t}b", |args| {
        store(args, Union)
    }),
];

fn members(args: &mut Args<'_>, action: fn(Vec<Bytes>) -> Action) -> Parsed {
    let (key, members) = (args.next("key")?, args.all("member")?);
    one(key, action(members), Show::Plain)
}

fn combined(how: v1::Combine, others: Vec<Bytes>) -> v1::SetCombine {
    v1::SetCombine { how: how.into(), others, into: None, count_only: None }
}

fn combine(args: &mut Args<'_>, how: v1::Combine) -> Parsed {
    let key = args.next("key")?;
    let others = args.many(args.len(), "key")?;
    one(key, Action::SetCombine(combined(how, others)), Show::Plain)
}

fn store(args: &mut Args<'_>, how: v1::Combine) -> Parsed {
    let (into, key) = (args.next("destination")?, args.next("key")?);
    let others = args.many(args.len(), "key")?;
    one(key, Action::SetCombine(v1::SetCombine { into: Some(into), ..combined(how, others) }), Show::Plain)
}

fn sintercard(args: &mut Args<'_>) -> Parsed {
    let (key, others) = args.numbered_keys()?;
    let limit = if args.take("LIMIT") { args.count("limit", 0)? } else { 0 };
    let count = v1::SetCombine { count_only: Some(limit), ..combined(Intersection, others) };
    one(key, Action::SetCombine(count), Show::Plain)
}

fn smove(args: &mut Args<'_>) -> Parsed {
    let (key, to, member) = (args.next("source")?, args.next("destination")?, args.next("member")?);
    one(key, Action::SetMove(v1::SetMove { to, member }), Show::Plain)
}

fn spop(args: &mut Args<'_>) -> Parsed {
    let key = args.next("key")?;
    if args.is_empty() {
        return one(key, Action::SetPop(v1::SetPop { count: 1 }), Show::First);
    }
    let count = args.count("count", 0)?;
    one(key, Action::SetPop(v1::SetPop { count }), Show::Plain)
}

fn srandmember(args: &mut Args<'_>) -> Parsed {
    let key = args.next("key")?;
    if args.is_empty() {
        return one(key, Action::SetRandom(v1::SetRandom { count: 1 }), Show::First);
    }
    let count = args.integer("count")?;
    one(key, Action::SetRandom(v1::SetRandom { count }), Show::Plain)
}

fn sscan(args: &mut Args<'_>) -> Parsed {
    let key = args.next("key")?;
    let (page, _) = page(args, "")?;
    one(key, Action::SetScan(v1::SetScan { page: Some(page) }), Show::Page { firsts: false })
}
