//! A store is a map with times.

use std::collections::BTreeMap;

use bytes::Bytes;
use flowmesh_model::command::{KeyScan, SetEntry, SetIf, SetTtl};
use flowmesh_model::kv::KvType;
use flowmesh_model::reply::EntryValue;
use flowmesh_model::{Batch, Command, KvCommand, KvSettings, Lsn, Millis, Reject, Reply, Settings};
use proptest::prelude::*;

use crate::common::{Outcome, World, cases};

const DEFAULT_TTL_MS: u64 = 70;

#[derive(Default)]
struct Model(BTreeMap<Bytes, EntryValue>);

impl Model {
    fn get(&self, key: &[u8], now: Millis) -> Option<&EntryValue> {
        self.0.get(key).filter(|entry| entry.expires_at.is_none_or(|at| at > now))
    }

    fn set(&mut self, entry: &SetEntry, now: Millis, lsn: Lsn) -> Result<Lsn, Reject> {
        let before = self.get(&entry.key, now).cloned();
        let actual = before.as_ref().map(|entry| entry.version);
        let holds = match &entry.condition {
            SetIf::Always => true,
            SetIf::Absent => actual.is_none(),
            SetIf::Present => actual.is_some(),
            SetIf::Version(version) => actual == Some(*version),
            SetIf::Value(value) => before.as_ref().is_some_and(|before| before.value == *value),
        };
        if !holds {
            return Err(Reject::ConditionFailed { actual });
        }
        let expires_at = match (entry.ttl, before) {
            (SetTtl::Millis(ttl_ms), _) => Some(now.plus(ttl_ms)),
            (SetTtl::At(at), _) => Some(at),
            (SetTtl::Keep, Some(before)) => before.expires_at,
            (SetTtl::Default | SetTtl::Keep, _) => Some(now.plus(DEFAULT_TTL_MS)),
        };
        self.0.insert(
            entry.key.clone(),
            EntryValue { holds: KvType::Bytes, value: entry.value.clone(), version: lsn, expires_at },
        );
        Ok(lsn)
    }

    /// What a scan shows, without a limit.
    fn scan(&self, scan: &KeyScan, now: Millis) -> Vec<(Bytes, EntryValue)> {
        let mut all: Vec<_> = self
            .0
            .iter()
            .filter(|(key, _)| in_range(scan, key) && self.get(key, now).is_some())
            .filter(|(key, _)| scan.glob.is_none() || key.ends_with(b"a"))
            .map(|(key, entry)| (key.clone(), entry.clone()))
            .collect();
        if scan.reverse {
            all.reverse();
        }
        let behind = |key: &Bytes, after: &Bytes| if scan.reverse { key < after } else { key > after };
        all.retain(|(key, _)| scan.after.as_ref().is_none_or(|after| behind(key, after)));
        all
    }
}

fn in_range(scan: &KeyScan, key: &Bytes) -> bool {
    key.starts_with(&scan.prefix)
        && scan.start.as_ref().is_none_or(|start| key >= start)
        && scan.end.as_ref().is_none_or(|end| key < end)
}

#[derive(Clone, Debug)]
enum Step {
    Set(Vec<(Bytes, u8, u8, u8)>),
    Get(Vec<Bytes>),
    Exists(Vec<Bytes>),
    Delete(Vec<Bytes>),
    DeleteVersion(Bytes, u64),
    Scan(KeyScan),
    Pass(u64),
    Tick,
    Chill,
    Crash,
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(0xff)], 1..4).prop_map(Bytes::from)
}

fn keys() -> impl Strategy<Value = Vec<Bytes>> {
    prop::collection::vec(key(), 1..4)
}

fn scan() -> impl Strategy<Value = KeyScan> {
    let prefix = prop::collection::vec(prop_oneof![Just(b'a'), Just(0xff)], 0..2).prop_map(Bytes::from);
    let glob = prop::option::weighted(0.3, Just(Bytes::from_static(b"*a")));
    let bound = || prop::option::weighted(0.3, key());
    (prefix, bound(), bound(), glob, any::<bool>(), prop::option::of(key()), 1u32..9).prop_map(
        |(prefix, start, end, glob, reverse, after, keys_max)| KeyScan {
            prefix,
            start,
            end,
            glob,
            reverse,
            after,
            keys_max,
            with_values: true,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec((key(), any::<u8>(), 0u8..4, 0u8..7), 1..6).prop_map(Step::Set),
        3 => keys().prop_map(Step::Get),
        1 => keys().prop_map(Step::Exists),
        2 => keys().prop_map(Step::Delete),
        2 => (key(), 0u64..20).prop_map(|(key, version)| Step::DeleteVersion(key, version)),
        5 => scan().prop_map(Step::Scan),
        4 => (0u64..50).prop_map(Step::Pass),
        2 => Just(Step::Tick),
        3 => Just(Step::Chill),
        1 => Just(Step::Crash),
    ]
}

fn entry(&(ref key, value, ttl, condition): &(Bytes, u8, u8, u8), lsn: Lsn) -> SetEntry {
    SetEntry {
        key: key.clone(),
        // Some are so short that they stay in memory.
        value: Bytes::from(vec![value; usize::from(value % 7) * 3]),
        ttl: match ttl {
            0 => SetTtl::Keep,
            1 => SetTtl::Default,
            other => SetTtl::Millis(u64::from(other) * 20),
        },
        condition: match condition {
            0 => SetIf::Absent,
            1 => SetIf::Present,
            2 => SetIf::Version(Lsn(lsn.0.saturating_sub(u64::from(value % 4)))),
            3 => SetIf::Value(Bytes::from(vec![value ^ 1; usize::from((value ^ 1) % 7) * 3])),
            _ => SetIf::Always,
        },
    }
}

proptest! {
    #![proptest_config(cases(300))]
    #[test]
    fn a_store_is_a_map(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::default();
        let settings = KvSettings { default_ttl_ms: Some(DEFAULT_TTL_MS), ..KvSettings::default() };
        let store = world.create_with("cart", Settings::Kv(settings));
        let mut model = Model::default();
        for step in steps {
            let (now, lsn) = (world.now, world.lsn.next());
            let mut ask = |command| world.run(&Command::Kv(store, command));
            match step {
                Step::Set(entries) => {
                    let entries: Batch<_> = entries.iter().map(|new| entry(new, lsn)).collect();
                    let outcomes = entries.iter().map(|entry| model.set(entry, now, lsn)).collect();
                    prop_assert_eq!(ask(KvCommand::Set { entries }).reply(), Reply::Written(outcomes));
                }
                Step::Get(keys) => {
                    let values = keys.iter().map(|key| model.get(key, now).cloned()).collect();
                    prop_assert_eq!(ask(KvCommand::Get { keys: keys.into() }).reply(), Reply::Values(values));
                }
                Step::Exists(keys) => {
                    let flags = keys.iter().map(|key| model.get(key, now).is_some()).collect();
                    prop_assert_eq!(ask(KvCommand::Exists { keys: keys.into() }).reply(), Reply::Flags(flags));
                }
                Step::Delete(keys) => {
                    let flags = keys
                        .iter()
                        .map(|key| {
                            let there = model.get(key, now).is_some();
                            if there { model.0.remove(key); }
                            there
                        })
                        .collect();
                    let delete = KvCommand::Delete { keys: keys.into(), if_version: None };
                    prop_assert_eq!(ask(delete).reply(), Reply::Flags(flags));
                }
                Step::DeleteVersion(key, back) => {
                    let version = Lsn(lsn.0.saturating_sub(back));
                    let actual = model.get(&key, now).map(|entry| entry.version);
                    let delete = KvCommand::Delete { keys: Batch::from_elem(key.clone(), 1), if_version: Some(version) };
                    match ask(delete) {
                        Outcome::Rejected(reject) => {
                            prop_assert_eq!(reject, Reject::ConditionFailed { actual });
                            prop_assert_ne!(actual, Some(version));
                        }
                        other => {
                            prop_assert_eq!(other.reply(), Reply::Flags(Batch::from_elem(true, 1)));
                            prop_assert_eq!(actual, Some(version));
                            model.0.remove(&key);
                        }
                    }
                }
                Step::Scan(scan) => {
                    let mut all = model.scan(&scan, now);
                    let outcome = ask(KvCommand::Scan(scan.clone()));
                    if scan.after.as_ref().is_some_and(|after| !in_range(&scan, after)) {
                        prop_assert_eq!(outcome, Outcome::Rejected(Reject::ForeignCursor));
                        continue;
                    }
                    let Reply::Scanned { entries, next } = outcome.reply() else { panic!("no scan") };
                    let more = all.len() > scan.keys_max as usize;
                    all.truncate(scan.keys_max as usize);
                    prop_assert!(next.is_some() || !more, "nothing is left out unsaid");
                    if let (Some(next), Some((last, _))) = (&next, entries.last()) {
                        let in_order = if scan.reverse { next <= last } else { next >= last };
                        prop_assert!(in_order);
                    }
                    prop_assert_eq!(entries, all);
                }
                Step::Pass(ms) => world.now = now.plus(ms),
                Step::Tick => {
                    world.tick(3);
                    let held = world.machine.stats().keys;
                    model.0.retain(|_, entry| entry.expires_at.is_none_or(|at| at > now));
                    prop_assert_eq!(held, model.0.len() as u64, "a tick leaves no key whose time is up");
                }
                Step::Chill => {
                    world.seal();
                    world.write();
                    world.chill(2);
                }
                Step::Crash => world.crash(),
            }
            world.machine.check_all();
        }
    }
}
