//! The commands of Redis' string group.

use bytes::Bytes;
use flowmesh_proto::v1;
use v1::operation::{Action, Condition};

use super::args::{Args, at, never};
use super::show::Show;
use super::{Command, Parsed, Request, SyntaxError, one, op};

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command::new("APPEND", "key value", "APPEND k v", append),
    Command::new("DECR", "key", "DECR n", |args| by(args, -1)),
    Command::new("DECRBY", "key decrement", "DECRBY n 3", decrby),
    Command::new("GET", "key", "GET k", |args| plain(args, Action::Get(v1::BytesGet {}))),
    Command::new("GETDEL", "key", "GETDEL k", |args| plain(args, Action::GetDelete(v1::BytesGetDelete {}))),
    Command::new(
        "GETEX",
        "key [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds | PERSIST]",
        "GETEX k EX 60",
        getex,
    ),
    Command::new("GETRANGE", "key start end", "GETRANGE k 0 -1", getrange),
    Command::new("GETSET", "key value", "GETSET k v", getset),
    Command::new("INCR", "key", "INCR n", |args| by(args, 1)),
    Command::new("INCRBY", "key increment", "INCRBY n 3", incrby),
    Command::new("INCRBYFLOAT", "key increment", "INCRBYFLOAT n 0.5", incrbyfloat),
    Command::new("MGET", "key [key ...]", "MGET a b", mget),
    Command::new("MSET", "key value [key value ...]", "MSET a 1 b 2", mset),
    Command::new("MSETNX", "key value [key value ...]", "MSETNX {t}a 1 {t}b 2", msetnx),
    Command::new("PSETEX", "key milliseconds value", "PSETEX k 60000 v", |args| {
        setex(args, "milliseconds", 1)
    }),
    Command::new(
        "SET",
        "key value [NX | XX] [GET] [EX seconds | PX milliseconds | EXAT unix-time-seconds | \
         PXAT unix-time-milliseconds | KEEPTTL]",
        "SET k v NX EX 60",
        set,
    ),
    Command::new("SETEX", "key seconds value", "SETEX k 60 v", |args| setex(args, "seconds", 1000)),
    Command::new("SETNX", "key value", "SETNX k v", setnx),
    Command::new("SETRANGE", "key offset value", "SETRANGE k 2 v", setrange),
    Command::new("STRLEN", "key", "STRLEN k", |args| plain(args, Action::Length(v1::BytesLength {}))),
    Command::new("SUBSTR", "key start end", "SUBSTR k 0 -1", getrange),
];

fn plain(args: &mut Args<'_>, action: Action) -> Parsed {
    let key = args.next("key")?;
    one(key, action, Show::Plain)
}

fn put(value: Bytes, ttl: Option<v1::bytes_set::Ttl>, with_old: bool) -> Action {
    Action::Set(v1::BytesSet { value, ttl, with_old })
}

fn append(args: &mut Args<'_>) -> Parsed {
    let (key, value) = (args.next("key")?, args.next("value")?);
    one(key, Action::Append(v1::BytesAppend { value }), Show::Plain)
}

fn by(args: &mut Args<'_>, by: i64) -> Parsed {
    plain(args, Action::Increment(v1::BytesIncrement { by }))
}

fn incrby(args: &mut Args<'_>) -> Parsed {
    let (key, by) = (args.next("key")?, args.integer("increment")?);
    one(key, Action::Increment(v1::BytesIncrement { by }), Show::Plain)
}

fn decrby(args: &mut Args<'_>) -> Parsed {
    let (key, by) = (args.next("key")?, args.integer("decrement")?);
    let by = by.checked_neg().ok_or_else(|| args.wrong(format!("decrement {by} cannot be taken")))?;
    one(key, Action::Increment(v1::BytesIncrement { by }), Show::Plain)
}

fn incrbyfloat(args: &mut Args<'_>) -> Parsed {
    let (key, by) = (args.next("key")?, args.decimal("increment")?);
    one(key, Action::IncrementFloat(v1::BytesIncrementFloat { by }), Show::Plain)
}

fn getex(args: &mut Args<'_>) -> Parsed {
    let key = args.next("key")?;
    let end = match args.word().as_deref() {
        None => return one(key, Action::Get(v1::BytesGet {}), Show::Plain),
        Some("EX") => within(args.positive("seconds", 1000)?),
        Some("PX") => within(args.positive("milliseconds", 1)?),
        Some("EXAT") => at(args.positive("unix-time-seconds", 1000)?),
        Some("PXAT") => at(args.positive("unix-time-milliseconds", 1)?),
        Some("PERSIST") => never(),
        Some(other) => return Err(args.unknown(other)),
    };
    one(key, Action::GetExpire(v1::BytesGetExpire { end: Some(end) }), Show::Plain)
}

fn within(ms: u64) -> v1::End {
    v1::End { end: Some(v1::end::End::InMs(ms)) }
}

fn getrange(args: &mut Args<'_>) -> Parsed {
    let (key, first, last) = (args.next("key")?, args.integer("start")?, args.integer("end")?);
    one(key, Action::GetRange(v1::BytesGetRange { first, last }), Show::Plain)
}

fn getset(args: &mut Args<'_>) -> Parsed {
    let (key, value) = (args.next("key")?, args.next("value")?);
    one(key, put(value, None, true), Show::Plain)
}

fn mget(args: &mut Args<'_>) -> Parsed {
    let operations = args.all("key")?.into_iter().map(|key| op(key, Action::Get(v1::BytesGet {})));
    Ok(Request::run(operations.collect(), Show::EachOrNil))
}

fn pairs(args: &mut Args<'_>, condition: Option<&Condition>) -> Result<Vec<v1::Operation>, SyntaxError> {
    let mut operations = Vec::new();
    while !args.is_empty() || operations.is_empty() {
        let (key, value) = (args.next("key")?, args.next("value")?);
        let condition = condition.cloned();
        operations.push(v1::Operation { condition, ..op(key, put(value, None, false)) });
    }
    Ok(operations)
}

fn mset(args: &mut Args<'_>) -> Parsed {
    Ok(Request::run(pairs(args, None)?, Show::Plain))
}

fn msetnx(args: &mut Args<'_>) -> Parsed {
    let operations = pairs(args, Some(&Condition::IfAbsent(true)))?;
    Ok(Request { atomic: true, ..Request::run(operations, Show::OneIfDone) })
}

fn setex(args: &mut Args<'_>, what: &str, unit_ms: i64) -> Parsed {
    let (key, ttl_ms, value) = (args.next("key")?, args.positive(what, unit_ms)?, args.next("value")?);
    one(key, put(value, Some(v1::bytes_set::Ttl::TtlMs(ttl_ms)), false), Show::Plain)
}

fn setnx(args: &mut Args<'_>) -> Parsed {
    let (key, value) = (args.next("key")?, args.next("value")?);
    let condition = Some(Condition::IfAbsent(true));
    let operation = v1::Operation { condition, ..op(key, put(value, None, false)) };
    Ok(Request::run(vec![operation], Show::OneIfDone))
}

fn setrange(args: &mut Args<'_>) -> Parsed {
    let (key, offset, value) = (args.next("key")?, args.count("offset", 0)?, args.next("value")?);
    one(key, Action::SetRange(v1::BytesSetRange { offset, value }), Show::Plain)
}

fn set(args: &mut Args<'_>) -> Parsed {
    use v1::bytes_set::Ttl;
    let (key, value) = (args.next("key")?, args.next("value")?);
    let (mut condition, mut ttl, mut with_old) = (None, None, false);
    while let Some(word) = args.word() {
        let (new_condition, new_ttl) = match word.as_str() {
            "NX" => (Some(Condition::IfAbsent(true)), None),
            "XX" => (Some(Condition::IfPresent(true)), None),
            "GET" => {
                with_old = true;
                continue;
            }
            "EX" => (None, Some(Ttl::TtlMs(args.positive("seconds", 1000)?))),
            "PX" => (None, Some(Ttl::TtlMs(args.positive("milliseconds", 1)?))),
            "EXAT" => (None, Some(Ttl::ExpiresAtMs(args.positive("unix-time-seconds", 1000)?))),
            "PXAT" => (None, Some(Ttl::ExpiresAtMs(args.positive("unix-time-milliseconds", 1)?))),
            "KEEPTTL" => (None, Some(Ttl::KeepTtl(true))),
            other => return Err(args.unknown(other)),
        };
        if condition.is_some() && new_condition.is_some() || ttl.is_some() && new_ttl.is_some() {
            return Err(args.wrong(format!("`{word}` contradicts what stands before it")));
        }
        (condition, ttl) = (condition.or(new_condition), ttl.or(new_ttl));
    }
    let is_conditional = condition.is_some();
    // What the key holds is also shown if it was not set: then it is read before.
    let read_before = is_conditional && with_old;
    let set = v1::Operation { condition, ..op(key.clone(), put(value, ttl, with_old && !read_before)) };
    Ok(match (read_before, is_conditional) {
        (true, _) => {
            let get = op(key, Action::Get(v1::BytesGet {}));
            Request::run(vec![get, set], Show::FirstOfTwo)
        }
        (false, true) => Request::run(vec![set], Show::NilIfNot),
        (false, false) => Request::run(vec![set], Show::Plain),
    })
}
