//! Values of stores that only the index has: who needs them, and what is said if they are not there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test")]

mod common;

use bytes::Bytes;
use common::World;
use flowmesh_machine::{ColdItem, ColdKeys, Decision};
use flowmesh_model::command::{KeyScan, SetEntry, SetIf, SetTtl};
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::{BytesOp, End, EndIf, KeyOp, KvAction, KvOp};
use flowmesh_model::limits::{KV_FETCHED_BYTES_MAX, VALUE_BYTES_MAX};
use flowmesh_model::{Command, Fact, Kind, KvCommand, Lsn, Millis, Reject, ResourceId};

fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn set(name: &str, value: &[u8], condition: SetIf) -> KvCommand {
    let value = Bytes::copy_from_slice(value);
    let entry = SetEntry { key: key(name), value, ttl: SetTtl::Keep, condition };
    KvCommand::Set { entries: [entry].into_iter().collect() }
}

fn get(names: &[&str]) -> KvCommand {
    KvCommand::Get { keys: names.iter().map(|name| key(name)).collect() }
}

fn run(name: &str, action: KvAction) -> KvCommand {
    let op = KvOp { key: key(name), condition: SetIf::Always, action };
    KvCommand::Run { ops: [op].into_iter().collect(), atomic: true, seed: 0 }
}

fn scan(with_values: bool) -> KvCommand {
    let (start, end, glob, after) = (None, None, None, None);
    KvCommand::Scan(KeyScan {
        prefix: Bytes::new(),
        start,
        end,
        glob,
        reverse: false,
        after,
        keys_max: 10,
        with_values,
    })
}

/// A store with some keys, all of whose values are in the index alone.
fn cold(names: &[&str], value: &[u8]) -> (World, ResourceId) {
    let mut world = World::default();
    let store = world.create(Kind::Kv, "cold");
    for name in names {
        world.run(&Command::Kv(store, set(name, value, SetIf::Always)));
    }
    world.seal();
    world.write();
    world.chill(10);
    assert_eq!(world.machine.stats().keys_cold, names.len() as u64);
    assert_eq!(world.machine.stats().cold_bytes, (names.len() * value.len()) as u64);
    (world, store)
}

/// The keys that a command needs the values of.
fn wanted(world: &World, store: ResourceId, command: KvCommand) -> Vec<Bytes> {
    match world.decide(&Command::Kv(store, command)) {
        Ok(Decision::WarmStore(cold)) => cold.keys,
        Ok(_) => Vec::new(),
        Err(reject) => panic!("{reject}"),
    }
}

#[test]
fn only_who_looks_at_a_value_waits_for_it() {
    let (world, store) = cold(&["a", "b", "c"], b"a value");
    let bytes = |op| run("a", KvAction::Bytes(op));
    let ttl = SetTtl::Keep;
    let keys = || [key("a"), key("nothing")].into_iter().collect();
    for command in [
        set("a", b"other", SetIf::Always),
        set("a", b"other", SetIf::Present),
        set("a", b"other", SetIf::Version(Lsn(2))),
        KvCommand::Exists { keys: keys() },
        KvCommand::Delete { keys: keys(), if_version: None },
        KvCommand::Clear { keys_max: 10 },
        KvCommand::Random { seed: 1 },
        KvCommand::Status,
        scan(false),
        bytes(BytesOp::Length),
        bytes(BytesOp::Set { value: key("other"), ttl, with_old: false }),
        run("a", KvAction::Key(KeyOp::Inspect)),
        run("a", KvAction::Key(KeyOp::Delete)),
        run("a", KvAction::Key(KeyOp::Expire(End::At(Millis(1)), EndIf::Always))),
        run("a", KvAction::Key(KeyOp::Expire(End::Never, EndIf::Always))),
    ] {
        assert_eq!(wanted(&world, store, command.clone()), [""; 0], "{command:?}");
    }
    for command in [
        get(&["a", "nothing", "a"]),
        set("a", b"other", SetIf::Value(key("a value"))),
        bytes(BytesOp::Get),
        bytes(BytesOp::GetRange(0, 1)),
        bytes(BytesOp::Append(key("more"))),
        bytes(BytesOp::Set { value: key("other"), ttl, with_old: true }),
        bytes(BytesOp::GetDelete),
        run("a", KvAction::Key(KeyOp::Expire(End::In(1_000), EndIf::Always))),
    ] {
        assert_eq!(wanted(&world, store, command.clone()), ["a"], "{command:?}");
    }
    assert_eq!(wanted(&world, store, get(&["c", "a", "b", "a"])), ["a", "b", "c"], "all of it at once");
    assert_eq!(wanted(&world, store, scan(true)), ["a", "b", "c"]);
}

#[test]
fn a_key_gets_another_name_with_its_value() {
    let (world, store) = cold(&["a{t}", "b{t}"], b"a value");
    let to = || key("b{t}");
    for op in [KeyOp::Rename { to: to(), if_absent: false }, KeyOp::Copy { to: to(), replace: true }] {
        assert_eq!(wanted(&world, store, run("a{t}", KvAction::Key(op))), ["a{t}"]);
    }
    for op in [KeyOp::Rename { to: to(), if_absent: true }, KeyOp::Copy { to: to(), replace: false }] {
        assert_eq!(wanted(&world, store, run("a{t}", KvAction::Key(op))), [""; 0], "it is not done");
    }
}

/// What is asked of the index for a key.
fn item(world: &World, store: ResourceId, name: &str) -> ColdItem {
    let cold = ColdKeys { store, keys: vec![key(name)] };
    world.machine.cold_items(&cold, false).unwrap().pop().unwrap()
}

#[test]
fn what_the_index_lost_is_named_and_never_shown() {
    let (mut world, store) = cold(&["a", "b"], b"a value");
    let (of_a, of_b) = (item(&world, store, "a"), item(&world, store, "b"));
    let found = |item: &ColdItem| world.index.get(&(item.space, item.index_key.clone())).unwrap().clone();
    let (in_a, in_b) = (found(&of_a), found(&of_b));
    let short = in_a.slice(..in_a.len() - 1);
    let newer = Bytes::from([&[9][..], &in_a[1..]].concat());
    let counter = Bytes::from([&[2][..], &in_a[1..]].concat());
    for (value, what) in [
        (None, "missing"),
        (Some(in_b), "of another version"),
        (Some(short), "of another length"),
        (Some(counter), "of another type"),
        (Some(newer), "index value of an unknown format"),
        (Some(Bytes::new()), "ends early"),
    ] {
        let refused = world.machine.warm_item(store, &of_a, value).unwrap_err();
        let Reject::Damaged { place } = &refused else { panic!("{refused}") };
        let named = r#"default/default/kv/cold: the value of key b"a" with version"#;
        assert!(place.starts_with(named) && place.contains(what), "{place}, not {what}");
        assert_eq!(wanted(&world, store, get(&["a"])), ["a"], "it is still not there");
    }
    world.machine.warm_item(store, &of_a, Some(in_a)).unwrap();
    assert_eq!(wanted(&world, store, get(&["a"])), [""; 0]);
    world.machine.check_all();
}

#[test]
fn what_comes_too_late_changes_nothing() {
    let (mut world, store) = cold(&["a", "b", "c"], b"a value");
    let items = ["a", "b", "c"].map(|name| item(&world, store, name));
    let found = items.each_ref().map(|item| world.index.get(&(item.space, item.index_key.clone())).cloned());
    world.run(&Command::Kv(store, set("a", b"another", SetIf::Always)));
    let keys = [key("b"), key("c")].into_iter().collect();
    world.run(&Command::Kv(store, KvCommand::Delete { keys, if_version: None }));
    world.run(&Command::Kv(store, set("c", b"made anew", SetIf::Always)));
    world.seal();
    world.write();
    world.chill(10);
    let before = world.dump();
    for (item, value) in items.iter().zip(found) {
        for value in [value, None] {
            world.machine.warm_item(store, item, value).unwrap();
        }
    }
    world.machine.check_all();
    assert_eq!(world.dump(), before);
    assert_eq!(wanted(&world, store, get(&["a", "b", "c"])), ["a", "c"]);
}

#[test]
fn one_call_brings_no_more_into_memory_than_it_may() {
    let value = vec![7; VALUE_BYTES_MAX];
    let many = KV_FETCHED_BYTES_MAX / VALUE_BYTES_MAX as u64;
    let names: Vec<String> = (0..=many).map(|number| format!("key-{number:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (world, store) = cold(&names, &value);
    let keys = |count: usize| ColdKeys { store, keys: names[..count].iter().map(|name| key(name)).collect() };
    assert_eq!(world.machine.cold_items(&keys(many as usize), false).unwrap().len() as u64, many);
    let refused = world.machine.cold_items(&keys(many as usize + 1), false).unwrap_err();
    let what = "values that one call reads from the disk";
    let size = (many + 1) * VALUE_BYTES_MAX as u64;
    assert_eq!(refused, Reject::TooLarge { what, size, max: KV_FETCHED_BYTES_MAX });
    // What a reply cannot carry is refused before anything is read.
    let Err(Reject::TooLarge { what, .. }) = world.decide(&Command::Kv(store, get(&names))) else {
        panic!("not refused")
    };
    assert_eq!(what, "values of one reply");
}

#[test]
fn facts_that_keep_a_value_name_it_before_they_are_applied() {
    let (world, store) = cold(&["a"], b"a value");
    let expires_at = Some(Millis(9_000));
    let keeps = [
        KvFact::EndSet { key: key("a"), expires_at },
        KvFact::Renamed { key: key("a"), to: key("b") },
        KvFact::Copied { key: key("a"), to: key("b") },
    ];
    for fact in keeps {
        let cold = world.machine.cold_of(&Fact::Kv(store, fact)).unwrap();
        assert_eq!(cold, ColdKeys { store, keys: vec![key("a")] });
    }
    for fact in [
        Fact::KeySet { store, key: key("a"), value: key("other"), expires_at },
        Fact::KeyDeleted { store, key: key("a") },
        Fact::KeyExpired { store, key: key("a") },
        Fact::Kv(store, KvFact::EndSet { key: key("b"), expires_at }),
    ] {
        assert_eq!(world.machine.cold_of(&fact), None, "{fact:?}");
    }
}
