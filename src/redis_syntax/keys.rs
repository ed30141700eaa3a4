//! The commands of Redis' generic group.

use flowmesh_proto::v1;
use v1::operation::Action;

use super::args::{Args, never};
use super::show::{Show, Unit};
use super::{Command, Parsed, Request, SyntaxError, one, op};

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command::new("COPY", "source destination [REPLACE]", "COPY {t}a {t}b REPLACE", copy),
    Command::new("DEL", "key [key ...]", "DEL a b", |args| each(args, &Action::Delete(v1::KeyDelete {}))),
    Command::new("EXISTS", "key [key ...]", "EXISTS a b", |args| each(args, &inspect())),
    Command::new("EXPIRE", "key seconds [NX | XX | GT | LT]", "EXPIRE k 60 NX", |args| {
        expire(args, |args| args.span("seconds", 1000))
    }),
    Command::new("EXPIREAT", "key unix-time-seconds [NX | XX | GT | LT]", "EXPIREAT k 1893456000", |args| {
        expire(args, |args| args.moment("unix-time-seconds", 1000))
    }),
    Command::new("EXPIRETIME", "key", "EXPIRETIME k", |args| info(args, Show::KeyEnd(Unit::Seconds))),
    Command::new("PERSIST", "key", "PERSIST k", persist),
    Command::new("PEXPIRE", "key milliseconds [NX | XX | GT | LT]", "PEXPIRE k 60000", |args| {
        expire(args, |args| args.span("milliseconds", 1))
    }),
    Command::new(
        "PEXPIREAT",
        "key unix-time-milliseconds [NX | XX | GT | LT]",
        "PEXPIREAT k 1893456000000 GT",
        |args| expire(args, |args| args.moment("unix-time-milliseconds", 1)),
    ),
    Command::new("PEXPIRETIME", "key", "PEXPIRETIME k", |args| info(args, Show::KeyEnd(Unit::Millis))),
    Command::new("PTTL", "key", "PTTL k", |args| info(args, Show::KeyLeft(Unit::Millis))),
    Command::new("RANDOMKEY", "", "RANDOMKEY", |_| Ok(Request::random())),
    Command::new("RENAME", "key newkey", "RENAME {t}a {t}b", |args| rename(args, false, Show::Ok)),
    Command::new("RENAMENX", "key newkey", "RENAMENX {t}a {t}b", |args| rename(args, true, Show::Plain)),
    Command::new("TOUCH", "key [key ...]", "TOUCH a b", |args| each(args, &inspect())),
    Command::new("TTL", "key", "TTL k", |args| info(args, Show::KeyLeft(Unit::Seconds))),
    Command::new("TYPE", "key", "TYPE k", |args| info(args, Show::TypeWord)),
    Command::new("UNLINK", "key [key ...]", "UNLINK a b", |args| {
        each(args, &Action::Delete(v1::KeyDelete {}))
    }),
];

fn inspect() -> Action {
    Action::Inspect(v1::KeyInspect {})
}

fn copy(args: &mut Args<'_>) -> Parsed {
    let (key, to) = (args.next("source")?, args.next("destination")?);
    let replace = args.take("REPLACE");
    if args.take("DB") {
        return Err(args.wrong("knows no DB: stores have no numbered databases, and a copy is in its store"));
    }
    one(key, Action::Copy(v1::KeyCopy { to, replace }), Show::Plain)
}

/// One operation a key; the answer is of how many it is true.
fn each(args: &mut Args<'_>, action: &Action) -> Parsed {
    let operations = args.all("key")?.into_iter().map(|key| op(key, action.clone())).collect();
    Ok(Request::run(operations, Show::HowMany))
}

fn info(args: &mut Args<'_>, show: Show) -> Parsed {
    let key = args.next("key")?;
    one(key, inspect(), show)
}

fn expire(args: &mut Args<'_>, end: impl FnOnce(&mut Args<'_>) -> Result<v1::End, SyntaxError>) -> Parsed {
    let (key, end) = (args.next("key")?, Some(end(args)?));
    let only = end_if(args)?.into();
    one(key, Action::Expire(v1::KeyExpire { end, only }), Show::Plain)
}

/// `[NX | XX | GT | LT]`
pub fn end_if(args: &mut Args<'_>) -> Result<v1::EndIf, SyntaxError> {
    let words = [
        ("NX", v1::EndIf::None),
        ("XX", v1::EndIf::Some),
        ("GT", v1::EndIf::Later),
        ("LT", v1::EndIf::Earlier),
    ];
    let mut found = None;
    while let Some((word, only)) = words.iter().find(|(word, _)| args.take(word)) {
        if found.replace(*only).is_some() {
            return Err(args.wrong(format!("`{word}` contradicts what stands before it")));
        }
    }
    Ok(found.unwrap_or_default())
}

fn persist(args: &mut Args<'_>) -> Parsed {
    let key = args.next("key")?;
    one(key, Action::Expire(v1::KeyExpire { end: Some(never()), only: 0 }), Show::Plain)
}

fn rename(args: &mut Args<'_>, if_absent: bool, show: Show) -> Parsed {
    let (key, to) = (args.next("key")?, args.next("newkey")?);
    one(key, Action::Rename(v1::KeyRename { to, if_absent }), show)
}
