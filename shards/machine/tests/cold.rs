//! Values of stores that only the index has: who needs them, and what is said if they are not there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test")]

mod common;

use bytes::Bytes;
use common::{Outcome, World};
use flowmesh_machine::{ColdItem, ColdKeys, Decision};
use flowmesh_model::command::{KeyScan, SetEntry, SetIf, SetTtl};
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::past::{PastAsk, PastAt};
use flowmesh_model::kv::{BytesOp, End, EndIf, KeyOp, KvAction, KvOp};
use flowmesh_model::limits::{KV_FETCHED_BYTES_MAX, VALUE_BYTES_MAX};
use flowmesh_model::{
    CatalogCommand, Command, Fact, Kind, KvCommand, KvMode, KvSettings, Lsn, Millis, Reject, Reply,
    ResourceId, ResourcePath, Settings,
};

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

fn settings(change: impl FnOnce(&mut KvSettings)) -> Settings {
    let mut settings = KvSettings::default();
    change(&mut settings);
    Settings::Kv(settings)
}

fn update(world: &mut World, name: &str, change: impl FnOnce(&mut KvSettings)) {
    let (path, settings) = (ResourcePath::parse(Kind::Kv, name).unwrap(), settings(change));
    let outcome = world.run(&Command::Catalog(CatalogCommand::Update { path, settings }));
    assert!(matches!(outcome, Outcome::Changed(..)), "{outcome:?}");
}

fn values_at(world: &mut World, store: ResourceId, at: PastAt, names: &[&str]) -> Vec<Option<Bytes>> {
    let keys = names.iter().map(|name| key(name)).collect();
    let ask = Command::Kv(store, KvCommand::Past(PastAsk::Get { at, keys }));
    let Reply::Values(values) = world.run(&ask).reply() else { panic!("no values") };
    values.iter().map(|value| value.as_ref().map(|value| value.value.clone())).collect()
}

#[test]
fn a_history_that_begins_over_cold_values_has_what_they_were() {
    let (mut world, store) = cold(&["a", "b", "c", "d"], b"a value");
    world.now = world.now.plus(10);
    update(&mut world, "cold", |settings| settings.history_ms = Some(60_000));
    assert_eq!(wanted(&world, store, set("a", b"other", SetIf::Always)), ["a"], "what it was is noted");
    let keys = [key("b"), key("nothing")].into_iter().collect();
    assert_eq!(wanted(&world, store, KvCommand::Delete { keys, if_version: None }), ["b"]);
    world.tick(10);
    world.now = world.now.plus(10);
    let then = PastAt::Time(world.now);
    world.now = world.now.plus(10);
    world.run(&Command::Kv(store, set("a", b"other", SetIf::Always)));
    let end = End::At(world.now.plus(5));
    world.run(&Command::Kv(store, run("b", KvAction::Key(KeyOp::Expire(end, EndIf::Always)))));
    world.seal();
    world.write();
    world.chill(10);
    assert_eq!(world.machine.stats().keys_cold, 4);
    world.now = world.now.plus(10);
    world.tick(10);
    assert_eq!(world.machine.stats().keys, 3, "what ended is gone, and was fetched before");
    let all = ["a", "b", "c", "d"];
    assert_eq!(values_at(&mut world, store, then, &all), vec![Some(key("a value")); 4]);
    let after = PastAt::Time(world.now);
    let values = values_at(&mut world, store, after, &all);
    let is = |text: &str| Some(key(text));
    assert_eq!(values, [is("other"), None, is("a value"), is("a value")]);
    assert_eq!(world.machine.stats().keys_cold, 3, "who reads what was takes nothing into memory");
    let ask =
        PastAsk::Scan { at: then, scan: KeyScan { keys_max: 10, with_values: true, ..KeyScan::default() } };
    let Reply::Scanned { entries, next } = world.run(&Command::Kv(store, KvCommand::Past(ask))).reply()
    else {
        panic!("no scan")
    };
    assert_eq!((entries.len(), next), (4, None), "one page, whatever is cold");
    world.crash();
    assert_eq!(values_at(&mut world, store, then, &all), vec![Some(key("a value")); 4]);
}

#[test]
fn what_the_index_lost_is_no_past() {
    let (mut world, store) = cold(&["a", "b"], b"a value");
    update(&mut world, "cold", |settings| settings.history_ms = Some(60_000));
    world.tick(10);
    let at = PastAt::Time(world.now);
    let of_a = item(&world, store, "a");
    world.index.remove(&(of_a.space, of_a.index_key));
    let keys = [key("a")].into_iter().collect();
    let outcome = world.run(&Command::Kv(store, KvCommand::Past(PastAsk::Get { at, keys })));
    let Outcome::Rejected(Reject::Damaged { place }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(place, r#"the value of key b"a" in the index"#);
    assert_eq!(values_at(&mut world, store, at, &["b"]), [Some(key("a value"))]);
}

#[test]
fn a_clear_whose_values_are_noted_takes_no_more_into_memory_than_one_entry_has() {
    let value = vec![7; VALUE_BYTES_MAX];
    let many = KV_FETCHED_BYTES_MAX as usize / VALUE_BYTES_MAX + 8;
    let names: Vec<String> = (0..many).map(|number| format!("key-{number:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (mut world, store) = cold(&names, &value);
    update(&mut world, "cold", |settings| settings.history_ms = Some(60_000));
    world.tick(10);
    let clear = KvCommand::Clear { keys_max: 1_000 };
    assert!(wanted(&world, store, clear.clone()).len() < 8);
    let (mut cleared, mut calls) = (0, 0);
    loop {
        let Reply::KvCleared { count, more } = world.run(&Command::Kv(store, clear.clone())).reply() else {
            panic!("not cleared")
        };
        cleared += count;
        calls += 1;
        assert!(count > 0 || !more, "each call clears something");
        if !more {
            break;
        }
    }
    assert_eq!(cleared as usize, many);
    assert!(calls >= many / 8, "{calls}");
    assert_eq!(world.machine.stats().keys, 0);
}

#[test]
fn a_store_that_becomes_a_cache_loses_cold_keys_as_well() {
    let names: Vec<String> = (0..200).map(|number| format!("key-{number:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (mut world, store) = cold(&names, &[7; 100]);
    assert_eq!(world.machine.could_go(), 0);
    for name in &names[..10] {
        world.run(&Command::Kv(store, get(&[name])));
    }
    assert!(world.machine.could_go() > 0);
    let limit = |settings: &mut KvSettings| {
        (settings.mode, settings.entries_max) = (KvMode::Cache, Some(20));
    };
    update(&mut world, "cold", limit);
    assert_eq!(world.machine.could_go(), 0, "values of caches do not leave memory: they go for good");
    world.machine.check_all();
    world.tick(10);
    assert!(world.machine.stats().keys <= 20, "{}", world.machine.stats().keys);
    world.machine.check_all();
    for name in &names {
        world.run(&Command::Kv(store, get(&[name])));
        world.machine.check_all();
    }
    assert_eq!(world.machine.stats().keys_cold, 0);
    update(&mut world, "cold", |settings| settings.entries_max = Some(1_000));
    assert!(world.machine.could_go() > 0, "a durable store's do");
    world.seal();
    world.write();
    world.chill(10);
    assert_eq!(world.machine.stats().keys_cold, world.machine.stats().keys);
}

#[test]
fn what_a_store_may_have_counts_values_that_left_memory() {
    let mut world = World::default();
    let limited = settings(|settings| settings.bytes_max = Some(4 * 1024 * 1024));
    let store = world.create_with("cold", limited);
    let value = vec![7; 512 * 1024];
    let fill = |world: &mut World| {
        (0..32).find_map(|number| {
            match world.run(&Command::Kv(store, set(&format!("key-{number}"), &value, SetIf::Always))) {
                Outcome::Rejected(Reject::StoreFull { held, .. }) => Some((number, held)),
                _ => None,
            }
        })
    };
    let (full_at, held) = fill(&mut world).unwrap();
    world.seal();
    world.write();
    world.chill(10);
    assert_eq!(world.machine.stats().keys_cold, full_at);
    assert_eq!(fill(&mut world), Some((full_at, held)), "what is cold is there");
}

#[test]
fn values_go_that_are_few_among_what_stays() {
    let mut world = World::default();
    let store = world.create(Kind::Kv, "cold");
    for number in 0..2_000 {
        let action = KvAction::Bytes(BytesOp::Increment(1));
        world.run(&Command::Kv(store, run(&format!("counter-{number}"), action)));
    }
    world.seal();
    world.write();
    world.chill(100);
    for number in 0..20 {
        world.run(&Command::Kv(store, set(&format!("key-{number}"), b"a value", SetIf::Always)));
    }
    world.seal();
    world.write();
    world.chill(100);
    assert_eq!(world.machine.stats().keys_cold, 20);
}
