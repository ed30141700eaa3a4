//! Stores that are larger than the memory there is for them: what leaves memory comes back as it was, whatever happens to its
//! keys meanwhile and whenever the power fails.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a test")]
// Lengths and counts here are small.
#![allow(clippy::cast_possible_wrap)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use common::{Answer, Rig, SimTimer, seeds};
use flowmesh_engine::Timer;
use flowmesh_model::command::{KeyScan, SetEntry, SetIf, SetTtl};
use flowmesh_model::kv::{BytesOp, End, EndIf, KeyOp, KvAction, KvOp, KvResult};
use flowmesh_model::{
    Command, FeedSettings, Kind, KvCommand, KvSettings, Millis, Reject, Reply, ResourceId, Settings,
};
use flowmesh_sim::{Random, SimDisk};

const MEMORY_BYTES: u64 = 128 << 10;

/// Names of keys; with their values they take several times the memory.
const KEYS: u64 = 600;

fn open(dir: &Path, disk: &SimDisk, timer: &SimTimer) -> Rig {
    disk.put_dir(dir);
    Rig::open_with(dir, disk.clone(), timer.clone(), |config| {
        config.memory_bytes = MEMORY_BYTES;
        config.checkpoint_log_bytes = 32 << 10;
        config.checkpoint_interval_ms = 3_600_000;
    })
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{{t}}{number:04}"))
}

/// Says whose and which it is, and is of any length: packed or apart.
fn value(key: &Bytes, number: u64, random: &mut Random) -> Bytes {
    let mut value = format!("{}:{number}:", String::from_utf8_lossy(key)).into_bytes();
    let len = if random.below(5) == 0 { 1500 + random.below(2500) } else { random.below(1200) };
    value.resize(value.len() + len as usize, b'.');
    value.into()
}

fn set(key: &Bytes, value: Bytes, condition: SetIf) -> KvCommand {
    let entry = SetEntry { key: key.clone(), value, ttl: SetTtl::Keep, condition };
    KvCommand::Set { entries: [entry].into_iter().collect() }
}

fn get(keys: impl IntoIterator<Item = Bytes>) -> KvCommand {
    KvCommand::Get { keys: keys.into_iter().collect() }
}

fn run(ops: impl IntoIterator<Item = (Bytes, KvAction)>) -> KvCommand {
    let op = |(key, action)| KvOp { key, condition: SetIf::Always, action };
    KvCommand::Run { ops: ops.into_iter().map(op).collect(), atomic: true, seed: 0 }
}

/// Keys end between eras, and no command lasts so long that it sees two of them.
const ERA_MS: u64 = 1_000_000;

fn next_era(now: Millis) -> Millis {
    Millis((now.0 / ERA_MS + 1) * ERA_MS)
}

/// What keys hold, and until when.
type Model = BTreeMap<Bytes, (Bytes, Option<Millis>)>;

fn shown(model: &Model, key: &Bytes, now: Millis) -> Option<Bytes> {
    model.get(key).filter(|(_, end)| end.is_none_or(|end| end > now)).map(|(value, _)| value.clone())
}

/// What is read of keys.
fn read(rig: &mut Rig, store: ResourceId, keys: &[Bytes]) -> Vec<Option<Bytes>> {
    let answer = rig.ask(Command::Kv(store, get(keys.iter().cloned())));
    let Ok(Reply::Values(values)) = answer else { panic!("not read: {answer:?}") };
    values.into_iter().map(|value| value.map(|value| value.value)).collect()
}

fn check(rig: &mut Rig, store: ResourceId, model: &Model) {
    let keys: Vec<Bytes> = (0..KEYS).map(key).collect();
    for keys in keys.chunks(97) {
        let now = rig.timer.now();
        let expected: Vec<_> = keys.iter().map(|key| shown(model, key, now)).collect();
        assert!(read(rig, store, keys) == expected, "keys from {:?} on", keys[0]);
    }
    rig.shard.check_all();
}

/// One change or look, and what is said of it compared with the model.
fn step(rig: &mut Rig, store: ResourceId, model: &mut Model, random: &mut Random, number: u64) {
    let (one, other) = (key(random.below(KEYS)), key(random.below(KEYS)));
    let now = rig.timer.now();
    let held = shown(model, &one, now);
    let end_of = |model: &Model| model.get(&one).and_then(|(_, end)| *end);
    let mut ask = |command| match rig.ask(Command::Kv(store, command)) {
        Ok(Reply::Kv(outcomes)) => Ok(outcomes.into_iter().map(|outcome| outcome.unwrap().result).collect()),
        Ok(reply) => panic!("{reply:?}"),
        Err(reject) => Err(reject),
    };
    let mut ask_one =
        |action| ask(run([(one.clone(), action)])).map(|results: Vec<KvResult>| results[0].clone());
    match random.below(13) {
        0..=3 => {
            let value = value(&one, number, random);
            let command = Command::Kv(store, set(&one, value.clone(), SetIf::Always));
            let Ok(Reply::Written(_)) = rig.ask(command) else { panic!("not set") };
            let end = held.and_then(|_| end_of(model));
            model.insert(one, (value, end));
        }
        4 => {
            let is_it = held.clone().unwrap_or_default();
            let value = value(&one, number, random);
            let condition =
                SetIf::Value(if random.coin() { is_it.clone() } else { Bytes::from_static(b"no") });
            let holds = held.is_some() && condition == SetIf::Value(is_it);
            let Ok(Reply::Written(outcomes)) =
                rig.ask(Command::Kv(store, set(&one, value.clone(), condition)))
            else {
                panic!("not set")
            };
            assert_eq!(outcomes[0].is_ok(), holds);
            if holds {
                let end = end_of(model);
                model.insert(one, (value, end));
            }
        }
        5 => {
            let more = Bytes::from_static(b"+more");
            let after = [&held.clone().unwrap_or_default()[..], &more].concat();
            let len = KvResult::Integer(after.len() as i64);
            assert_eq!(ask_one(KvAction::Bytes(BytesOp::Append(more))), Ok(len));
            let end = held.and_then(|_| end_of(model));
            model.insert(one, (after.into(), end));
        }
        6 => {
            let renamed = ask_one(KvAction::Key(KeyOp::Rename { to: other.clone(), if_absent: false }));
            assert_eq!(renamed.is_ok_and(|result| result == KvResult::Flag(true)), held.is_some());
            if held.is_some() {
                let entry = model.remove(&one).unwrap();
                model.insert(other, entry);
            }
        }
        7 if one != other => {
            let copied = ask_one(KvAction::Key(KeyOp::Copy { to: other.clone(), replace: true }));
            assert_eq!(copied, Ok(KvResult::Flag(held.is_some())));
            if held.is_some() {
                model.insert(other, model[&one].clone());
            }
        }
        8 => {
            let end = next_era(now).plus(random.below(2) * ERA_MS);
            let expires = ask_one(KvAction::Key(KeyOp::Expire(End::At(end), EndIf::Always)));
            assert_eq!(expires, Ok(KvResult::Flag(held.is_some())));
            if held.is_some() {
                model.get_mut(&one).unwrap().1 = Some(end);
            }
        }
        9 => {
            let took = ask_one(KvAction::Bytes(BytesOp::GetDelete));
            assert_eq!(took, Ok(KvResult::Value(held)));
            model.remove(&one);
        }
        10 => {
            let ops = [one.clone(), other.clone()].map(|key| (key, KvAction::Bytes(BytesOp::Length)));
            let len = |key| KvResult::Integer(shown(model, key, now).map_or(0, |value| value.len() as i64));
            assert_eq!(ask(run(ops)), Ok(vec![len(&one), len(&other)]));
        }
        11 => {
            let scan = KeyScan {
                prefix: Bytes::from_static(b"key-"),
                start: Some(one.clone()),
                end: None,
                glob: None,
                reverse: false,
                after: None,
                keys_max: 20,
                with_values: true,
            };
            let Ok(Reply::Scanned { entries, .. }) = rig.ask(Command::Kv(store, KvCommand::Scan(scan)))
            else {
                panic!("not scanned")
            };
            let there =
                model.range(one..).filter_map(|(key, _)| Some((key.clone(), shown(model, key, now)?)));
            let expected: Vec<_> = there.take(20).collect();
            assert!(entries.into_iter().map(|(key, value)| (key, value.value)).eq(expected));
        }
        _ => {
            let keys: Vec<Bytes> = (0..=random.below(30)).map(|_| key(random.below(KEYS))).collect();
            let expected: Vec<_> = keys.iter().map(|key| shown(model, key, now)).collect();
            assert!(read(rig, store, &keys) == expected);
        }
    }
    if random.below(100) == 0 {
        let now = rig.timer.now();
        rig.timer.advance(next_era(now).since(now) + 1);
    }
}

/// Sets all keys.
fn fill(rig: &mut Rig, store: ResourceId, model: &mut Model, random: &mut Random) {
    for key in (0..KEYS).map(key) {
        let value = value(&key, 0, random);
        rig.ask(Command::Kv(store, set(&key, value.clone(), SetIf::Always))).unwrap();
        model.insert(key, (value, None));
    }
}

/// How many values were read from the index.
fn lives(seed: u64, settings: &KvSettings) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let timer = SimTimer::default();
    let mut random = Random::new(seed);
    let mut disk = SimDisk::new(seed);
    let mut model = Model::new();
    let mut fetched = 0;
    let store = {
        let mut rig = open(dir.path(), &disk, &timer);
        let store = rig.create_with("k", Settings::Kv(settings.clone()));
        disk = rig.disk.crash();
        store
    };
    for life in 0..4_u64 {
        let mut rig = open(dir.path(), &disk, &timer);
        check(&mut rig, store, &model);
        if life == 0 {
            fill(&mut rig, store, &mut model, &mut random);
        }
        for number in 0..400 {
            step(&mut rig, store, &mut model, &mut random, life * 1000 + number);
        }
        check(&mut rig, store, &model);
        // What was just read leaves memory again, what changed once the index has it.
        let mut stats = rig.shard.stats();
        for _ in 0..5_000 {
            if stats.memory_bytes <= MEMORY_BYTES {
                break;
            }
            rig.run();
            std::thread::sleep(std::time::Duration::from_millis(1));
            stats = rig.shard.stats();
        }
        fetched += stats.values_read;
        assert!(stats.memory_bytes <= MEMORY_BYTES, "{} bytes of memory", stats.memory_bytes);
        let held: u64 = model.values().map(|(value, _)| value.len() as u64).sum();
        assert!(held > 2 * MEMORY_BYTES, "{held} bytes of values are not many");
        assert!(stats.state.keys_cold > 0 && stats.state.cold_bytes > MEMORY_BYTES);
        disk = rig.disk.crash();
    }
    fetched
}

#[test]
fn a_store_larger_than_memory_is_as_one_that_is_not() {
    for seed in 0..seeds(4) {
        let fetched = lives(seed, &KvSettings::default());
        assert!(fetched > 1_000, "seed {seed}: {fetched} values were fetched");
    }
}

/// What a key held when its time was up is fetched for its feed.
#[test]
fn a_feed_with_old_values_has_those_that_were_not_in_memory() {
    let feed = FeedSettings {
        stream: "default/default/stream/k-changes".to_owned(),
        partitions: 1,
        old_values: true,
        late: false,
    };
    for seed in 0..seeds(2) {
        lives(seed, &KvSettings { feed: Some(feed.clone()), ..KvSettings::default() });
    }
}

/// Which change a value is of.
fn change_of(key: &Bytes, value: &Bytes) -> u64 {
    let text = String::from_utf8_lossy(value).into_owned();
    let mut parts = text.split(':');
    assert_eq!(parts.next().map(str::as_bytes), Some(&key[..]), "a value of another key");
    parts.next().unwrap().parse().unwrap()
}

/// A look that is on its way, and what was acknowledged of each key when it began.
struct Look {
    keys: Vec<Bytes>,
    acknowledged: Vec<u64>,
    answer: Answer,
}

#[test]
fn what_changes_while_values_are_on_their_way_is_never_shown_as_it_was() {
    for seed in 0..seeds(4) {
        let dir = tempfile::tempdir().unwrap();
        let (timer, mut random) = (SimTimer::default(), Random::new(seed));
        let mut rig = open(dir.path(), &SimDisk::new(seed), &timer);
        let store = rig.create(Kind::Kv, "k");
        let mut sent: BTreeMap<Bytes, Vec<(u64, Answer)>> = BTreeMap::new();
        let mut looks: Vec<Look> = Vec::new();
        let acknowledged = |sent: &BTreeMap<Bytes, Vec<(u64, Answer)>>, key: &Bytes| {
            let of_key = sent.get(key).into_iter().flatten();
            let done = of_key.filter(|(_, answer)| matches!(&*answer.borrow(), Some(Ok(_))));
            done.map(|(number, _)| *number).max().unwrap_or(0)
        };
        for number in 1..2_500 {
            if random.below(3) > 0 {
                let key = key(random.below(KEYS));
                let value = value(&key, number, &mut random);
                let answer = rig.submit(Command::Kv(store, set(&key, value, SetIf::Always)));
                sent.entry(key).or_default().push((number, answer));
            } else {
                let keys: Vec<Bytes> = (0..=random.below(8)).map(|_| key(random.below(KEYS))).collect();
                let acknowledged = keys.iter().map(|key| acknowledged(&sent, key)).collect();
                let answer = rig.submit(Command::Kv(store, get(keys.iter().cloned())));
                looks.push(Look { keys, acknowledged, answer });
            }
            rig.go_on(&mut random);
            // The threads of the index keep up.
            let waits = |looks: &[Look]| looks.iter().any(|look| look.answer.borrow().is_none());
            while number % 16 == 0 && (rig.shard.stats().stalled_writes > 0 || waits(&looks)) {
                rig.run();
                rig.timer.advance(1);
                std::thread::yield_now();
            }
            looks.retain(|look| {
                let Some(answer) = look.answer.borrow_mut().take() else { return true };
                let values = match answer {
                    Ok(Reply::Values(values)) => values,
                    Err(Reject::Overloaded { .. }) => return false,
                    other => panic!("seed {seed}: {other:?}"),
                };
                for ((key, least), value) in look.keys.iter().zip(&look.acknowledged).zip(values) {
                    let shown = value.map_or(0, |value| change_of(key, &value.value));
                    assert!(shown >= *least, "seed {seed}: {key:?} is as of {shown}, not {least}");
                }
                false
            });
        }
        let waits = rig.shard.stats().value_waits;
        assert!(waits > 100, "seed {seed}: {waits} looks waited for values");
        rig.shard.check_all();
    }
}

/// Of names alone there is no end: writes are refused, reads and deletes go on.
#[test]
fn names_that_take_all_the_memory_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let timer = SimTimer::default();
    let mut rig = open(dir.path(), &SimDisk::new(1), &timer);
    let store = rig.create(Kind::Kv, "k");
    let name = |number: u64| Bytes::from(format!("{number:0500}"));
    let mut refused = None;
    for number in 0..2_000 {
        match rig.ask(Command::Kv(store, set(&name(number), Bytes::from_static(b"value"), SetIf::Always))) {
            Ok(_) => {}
            Err(reject) => {
                refused = Some((number, reject));
                break;
            }
        }
    }
    let (count, reject) = refused.expect("memory has an end");
    assert_eq!(reject, Reject::Overloaded { what: "memory budget", retry_after_ms: 1_000 });
    let values = read(&mut rig, store, &[name(0), name(count - 1), name(count)]);
    assert_eq!(values.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, false]);
    let keys = (0..count / 2).map(name).collect();
    rig.ask(Command::Kv(store, KvCommand::Delete { keys, if_version: None })).unwrap();
    rig.ask(Command::Kv(store, set(&name(count), Bytes::from_static(b"value"), SetIf::Always))).unwrap();
    rig.shard.check_all();
}
