//! The commands of Redis' hash group.

use bytes::Bytes;
use flowmesh_proto::v1;
use v1::operation::Action;

use super::args::{Args, never};
use super::keys::end_if;
use super::show::{Show, Unit};
use super::{Command, Parsed, SyntaxError, one, page};

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command::new("HDEL", "key field [field ...]", "HDEL h a b", |args| {
        fields(args, |fields| Action::HashDelete(v1::HashDelete { fields }), Show::Plain)
    }),
    Command::new("HEXISTS", "key field", "HEXISTS h a", |args| get(args, Show::OneIfFound)),
    Command::new(
        "HEXPIRE",
        "key seconds [NX | XX | GT | LT] FIELDS numfields field [field ...]",
        "HEXPIRE h 60 NX FIELDS 2 a b",
        |args| expire(args, |args| span(args, "seconds", 1000)),
    ),
    Command::new(
        "HEXPIREAT",
        "key unix-time-seconds [NX | XX | GT | LT] FIELDS numfields field [field ...]",
        "HEXPIREAT h 1893456000 FIELDS 1 a",
        |args| expire(args, |args| args.moment("unix-time-seconds", 1000)),
    ),
    Command::new(
        "HEXPIRETIME",
        "key FIELDS numfields field [field ...]",
        "HEXPIRETIME h FIELDS 1 a",
        |args| ends(args, Show::FieldEnds(Unit::Seconds)),
    ),
    Command::new("HGET", "key field", "HGET h a", |args| get(args, Show::First)),
    Command::new("HGETALL", "key", "HGETALL h", |args| all(args, Show::Plain)),
    Command::new("HINCRBY", "key field increment", "HINCRBY h n 3", hincrby),
    Command::new("HINCRBYFLOAT", "key field increment", "HINCRBYFLOAT h n 0.5", hincrbyfloat),
    Command::new("HKEYS", "key", "HKEYS h", |args| all(args, Show::Firsts)),
    Command::new("HLEN", "key", "HLEN h", |args| {
        let key = args.next("key")?;
        one(key, Action::HashLen(v1::HashLen {}), Show::Plain)
    }),
    Command::new("HMGET", "key field [field ...]", "HMGET h a b", |args| {
        fields(args, |fields| Action::HashGet(v1::HashGet { fields }), Show::Plain)
    }),
    Command::new("HMSET", "key field value [field value ...]", "HMSET h a 1 b 2", |args| set(args, Show::Ok)),
    Command::new("HPERSIST", "key FIELDS numfields field [field ...]", "HPERSIST h FIELDS 1 a", persist),
    Command::new(
        "HPEXPIRE",
        "key milliseconds [NX | XX | GT | LT] FIELDS numfields field [field ...]",
        "HPEXPIRE h 60000 FIELDS 1 a",
        |args| expire(args, |args| span(args, "milliseconds", 1)),
    ),
    Command::new(
        "HPEXPIREAT",
        "key unix-time-milliseconds [NX | XX | GT | LT] FIELDS numfields field [field ...]",
        "HPEXPIREAT h 1893456000000 FIELDS 1 a",
        |args| expire(args, |args| args.moment("unix-time-milliseconds", 1)),
    ),
    Command::new(
        "HPEXPIRETIME",
        "key FIELDS numfields field [field ...]",
        "HPEXPIRETIME h FIELDS 1 a",
        |args| ends(args, Show::FieldEnds(Unit::Millis)),
    ),
    Command::new("HPTTL", "key FIELDS numfields field [field ...]", "HPTTL h FIELDS 1 a", |args| {
        ends(args, Show::FieldsLeft(Unit::Millis))
    }),
    Command::new("HRANDFIELD", "key [count [WITHVALUES]]", "HRANDFIELD h 2 WITHVALUES", hrandfield),
    Command::new(
        "HSCAN",
        "key cursor [MATCH pattern] [COUNT count] [NOVALUES]",
        "HSCAN h 0 MATCH a* COUNT 100",
        hscan,
    ),
    Command::new("HSET", "key field value [field value ...]", "HSET h a 1 b 2", |args| {
        set(args, Show::Plain)
    }),
    Command::new("HSETNX", "key field value", "HSETNX h a 1", hsetnx),
    Command::new("HSTRLEN", "key field", "HSTRLEN h a", hstrlen),
    Command::new("HTTL", "key FIELDS numfields field [field ...]", "HTTL h FIELDS 1 a", |args| {
        ends(args, Show::FieldsLeft(Unit::Seconds))
    }),
    Command::new("HVALS", "key", "HVALS h", |args| all(args, Show::Seconds)),
];

fn fields(args: &mut Args<'_>, action: fn(Vec<Bytes>) -> Action, show: Show) -> Parsed {
    let (key, fields) = (args.next("key")?, args.all("field")?);
    one(key, action(fields), show)
}

fn get(args: &mut Args<'_>, show: Show) -> Parsed {
    let (key, field) = (args.next("key")?, args.next("field")?);
    one(key, Action::HashGet(v1::HashGet { fields: vec![field] }), show)
}

fn all(args: &mut Args<'_>, show: Show) -> Parsed {
    let key = args.next("key")?;
    one(key, Action::HashAll(v1::HashAll {}), show)
}

fn set(args: &mut Args<'_>, show: Show) -> Parsed {
    let (key, mut fields) = (args.next("key")?, Vec::new());
    while !args.is_empty() || fields.is_empty() {
        let (field, value) = (args.next("field")?, args.next("value")?);
        fields.push(v1::FieldValue { field, value });
    }
    one(key, Action::HashSet(v1::HashSet { fields, if_absent: false, ttl: None }), show)
}

fn hsetnx(args: &mut Args<'_>) -> Parsed {
    let (key, field, value) = (args.next("key")?, args.next("field")?, args.next("value")?);
    let fields = vec![v1::FieldValue { field, value }];
    one(key, Action::HashSet(v1::HashSet { fields, if_absent: true, ttl: None }), Show::Plain)
}

fn hstrlen(args: &mut Args<'_>) -> Parsed {
    let (key, field) = (args.next("key")?, args.next("field")?);
    one(key, Action::HashLengths(v1::HashLengths { fields: vec![field] }), Show::FirstOrZero)
}

fn hincrby(args: &mut Args<'_>) -> Parsed {
    let (key, field, by) = (args.next("key")?, args.next("field")?, args.integer("increment")?);
    one(key, Action::HashIncrement(v1::HashIncrement { field, by }), Show::Plain)
}

fn hincrbyfloat(args: &mut Args<'_>) -> Parsed {
    let (key, field, by) = (args.next("key")?, args.next("field")?, args.decimal("increment")?);
    one(key, Action::HashIncrementFloat(v1::HashIncrementFloat { field, by }), Show::Plain)
}

fn hrandfield(args: &mut Args<'_>) -> Parsed {
    let key = args.next("key")?;
    if args.is_empty() {
        return one(key, Action::HashRandom(v1::HashRandom { count: 1 }), Show::First);
    }
    let count = args.integer("count")?;
    let show = if args.take("WITHVALUES") { Show::Plain } else { Show::Firsts };
    one(key, Action::HashRandom(v1::HashRandom { count }), show)
}

fn hscan(args: &mut Args<'_>) -> Parsed {
    let key = args.next("key")?;
    let (page, without) = page(args, "NOVALUES")?;
    one(key, Action::HashScan(v1::HashScan { page: Some(page) }), Show::Page { firsts: without })
}

/// `FIELDS numfields field [field ...]`
fn named(args: &mut Args<'_>) -> Result<Vec<Bytes>, SyntaxError> {
    if !args.take("FIELDS") {
        return Err(args.wrong("FIELDS is missing"));
    }
    let count = args.count("numfields", 1)?;
    args.many(usize::try_from(count).unwrap_or(usize::MAX), "numfields")
}

/// A span; unlike that of a key it may not be below 0.
fn span(args: &mut Args<'_>, what: &str, unit_ms: i64) -> Result<v1::End, SyntaxError> {
    args.with(args.peek()).count(what, 0)?;
    args.span(what, unit_ms)
}

fn expire(args: &mut Args<'_>, end: impl FnOnce(&mut Args<'_>) -> Result<v1::End, SyntaxError>) -> Parsed {
    let (key, end) = (args.next("key")?, end(args)?);
    let only = end_if(args)?.into();
    let is_over = end.end == Some(v1::end::End::AtMs(1));
    let action = Action::HashExpire(v1::HashExpire { fields: named(args)?, end: Some(end), only });
    one(key, action, Show::FieldChanges { done: if is_over { 2 } else { 1 }, kept: 0 })
}

fn persist(args: &mut Args<'_>) -> Parsed {
    let (key, fields) = (args.next("key")?, named(args)?);
    let action = Action::HashExpire(v1::HashExpire { fields, end: Some(never()), only: 0 });
    one(key, action, Show::FieldChanges { done: 1, kept: -1 })
}

fn ends(args: &mut Args<'_>, show: Show) -> Parsed {
    let (key, fields) = (args.next("key")?, named(args)?);
    one(key, Action::HashEnds(v1::HashEnds { fields }), show)
}
