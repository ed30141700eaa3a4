//! The commands of Redis' list group.

use flowmesh_proto::v1;
use v1::operation::Action;

use super::args::Args;
use super::show::Show;
use super::{Command, Parsed, SyntaxError, one};
use v1::Side::{Back, Front};

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command::new("LINDEX", "key index", "LINDEX l -1", lindex),
    Command::new("LINSERT", "key BEFORE | AFTER pivot element", "LINSERT l BEFORE b a", linsert),
    Command::new("LLEN", "key", "LLEN l", |args| {
        let key = args.next("key")?;
        one(key, Action::ListLen(v1::ListLen {}), Show::Plain)
    }),
    Command::new(
        "LMOVE",
        "source destination LEFT | RIGHT LEFT | RIGHT",
        "LMOVE {t}a {t}b LEFT RIGHT",
        lmove,
    ),
    Command::new("LMPOP", "numkeys key LEFT | RIGHT [COUNT count]", "LMPOP 1 l LEFT COUNT 2", lmpop),
    Command::new("LPOP", "key [count]", "LPOP l 2", |args| pop(args, Front)),
    Command::new(
        "LPOS",
        "key element [RANK rank] [COUNT num] [MAXLEN len]",
        "LPOS l a RANK -1 COUNT 0",
        lpos,
    ),
    Command::new("LPUSH", "key element [element ...]", "LPUSH l a b", |args| push(args, Front, false)),
    Command::new("LPUSHX", "key element [element ...]", "LPUSHX l a b", |args| push(args, Front, true)),
    Command::new("LRANGE", "key start stop", "LRANGE l 0 -1", lrange),
    Command::new("LREM", "key count element", "LREM l -2 a", lrem),
    Command::new("LSET", "key index element", "LSET l 0 a", lset),
    Command::new("LTRIM", "key start stop", "LTRIM l 0 99", ltrim),
    Command::new("RPOP", "key [count]", "RPOP l", |args| pop(args, Back)),
    Command::new("RPOPLPUSH", "source destination", "RPOPLPUSH {t}a {t}b", |args| {
        let (key, to) = (args.next("source")?, args.next("destination")?);
        moved(key, to, Back, Front)
    }),
    Command::new("RPUSH", "key element [element ...]", "RPUSH l a b", |args| push(args, Back, false)),
    Command::new("RPUSHX", "key element [element ...]", "RPUSHX l a b", |args| push(args, Back, true)),
];

fn push(args: &mut Args<'_>, side: v1::Side, if_present: bool) -> Parsed {
    let (key, values) = (args.next("key")?, args.all("element")?);
    one(key, Action::ListPush(v1::ListPush { side: side.into(), values, if_present }), Show::Plain)
}

fn pop(args: &mut Args<'_>, side: v1::Side) -> Parsed {
    let key = args.next("key")?;
    let (count, show) =
        if args.is_empty() { (1, Show::First) } else { (args.count("count", 0)?, Show::NilIfEmpty) };
    one(key, Action::ListPop(v1::ListPop { side: side.into(), count }), show)
}

fn lmpop(args: &mut Args<'_>) -> Parsed {
    let key = args.one_numbered_key()?;
    let side = side(args)?.into();
    let count = if args.take("COUNT") { args.count("count", 1)? } else { 1 };
    one(key, Action::ListPop(v1::ListPop { side, count }), Show::KeyAndItems)
}

fn side(args: &mut Args<'_>) -> Result<v1::Side, SyntaxError> {
    match args.word().as_deref() {
        Some("LEFT") => Ok(Front),
        Some("RIGHT") => Ok(Back),
        Some(other) => Err(args.unknown(other)),
        None => Err(args.wrong("LEFT or RIGHT is missing")),
    }
}

fn lindex(args: &mut Args<'_>) -> Parsed {
    let (key, index) = (args.next("key")?, args.integer("index")?);
    one(key, Action::ListAt(v1::ListAt { index }), Show::Plain)
}

fn linsert(args: &mut Args<'_>) -> Parsed {
    let key = args.next("key")?;
    let before = match args.word().as_deref() {
        Some("BEFORE") => true,
        Some("AFTER") => false,
        Some(other) => return Err(args.unknown(other)),
        None => return Err(args.wrong("BEFORE or AFTER is missing")),
    };
    let (pivot, value) = (args.next("pivot")?, args.next("element")?);
    one(key, Action::ListInsert(v1::ListInsert { before, pivot, value }), Show::Plain)
}

fn lmove(args: &mut Args<'_>) -> Parsed {
    let (key, to) = (args.next("source")?, args.next("destination")?);
    let (from, at) = (side(args)?, side(args)?);
    moved(key, to, from, at)
}

fn moved(key: bytes::Bytes, to: bytes::Bytes, from: v1::Side, at: v1::Side) -> Parsed {
    one(key, Action::ListMove(v1::ListMove { to, from: from.into(), at: at.into() }), Show::Plain)
}

fn lpos(args: &mut Args<'_>) -> Parsed {
    let (key, value) = (args.next("key")?, args.next("element")?);
    let mut find = v1::ListFind { value, rank: 1, count: 1, look_at: 0 };
    let mut show = Show::First;
    while let Some(word) = args.word() {
        match word.as_str() {
            "RANK" => match args.integer("rank")? {
                0 => {
                    return Err(
                        args.wrong("rank is 0; allowed: 1 and up from the front, -1 and down from the back")
                    );
                }
                rank => find.rank = rank,
            },
            "COUNT" => (find.count, show) = (args.count("num", 0)?, Show::Plain),
            "MAXLEN" => find.look_at = args.count("len", 0)?,
            other => return Err(args.unknown(other)),
        }
    }
    one(key, Action::ListFind(find), show)
}

fn lrange(args: &mut Args<'_>) -> Parsed {
    let (key, first, last) = (args.next("key")?, args.integer("start")?, args.integer("stop")?);
    one(key, Action::ListRange(v1::ListRange { first, last }), Show::Plain)
}

fn lrem(args: &mut Args<'_>) -> Parsed {
    let (key, count, value) = (args.next("key")?, args.integer("count")?, args.next("element")?);
    one(key, Action::ListRemove(v1::ListRemove { value, count }), Show::Plain)
}

fn lset(args: &mut Args<'_>) -> Parsed {
    let (key, index, value) = (args.next("key")?, args.integer("index")?, args.next("element")?);
    one(key, Action::ListSetAt(v1::ListSetAt { index, value }), Show::Plain)
}

fn ltrim(args: &mut Args<'_>) -> Parsed {
    let (key, first, last) = (args.next("key")?, args.integer("start")?, args.integer("stop")?);
    one(key, Action::ListTrim(v1::ListTrim { first, last }), Show::Plain)
}
