//! Values that go into the log in pieces, on a simulated disk whose power fails at any operation: all or nothing of each, and
//! what was acknowledged is there.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a test")]

mod common;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use common::{Answer, Rig, SimTimer, seeds};
use flowmesh_engine::ReplySink;
use flowmesh_model::command::{SetEntry, SetIf, SetTtl};
use flowmesh_model::kv::{BytesOp, KvAction, KvOp, KvResult};
use flowmesh_model::limits::{KV_VALUE_BYTES_MAX, LOG_PIECE_BYTES};
use flowmesh_model::{Command, Kind, KvCommand, Reject, Reply, ResourceId};
use flowmesh_sim::{Random, SimDisk};

const MIB: usize = 1024 * 1024;

/// Bytes that differ with the number, and from place to place.
fn value(number: u64, len: usize) -> Bytes {
    let mut random = Random::new(number);
    let mut bytes = vec![number as u8; len];
    bytes.iter_mut().step_by(997).for_each(|byte| *byte = random.next_u64() as u8);
    bytes.into()
}

fn set(store: ResourceId, entries: &[(&str, Bytes)]) -> Command {
    let entry = |(key, value): &(&str, Bytes)| SetEntry {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.clone(),
        ttl: SetTtl::Default,
        condition: SetIf::Always,
    };
    Command::Kv(store, KvCommand::Set { entries: entries.iter().map(entry).collect() })
}

fn op(key: &str, op: BytesOp) -> KvOp {
    let key = Bytes::copy_from_slice(key.as_bytes());
    KvOp { key, condition: SetIf::Always, action: KvAction::Bytes(op) }
}

fn run(store: ResourceId, ops: impl IntoIterator<Item = KvOp>) -> Command {
    Command::Kv(store, KvCommand::Run { ops: ops.into_iter().collect(), atomic: true, seed: 0 })
}

fn get(rig: &mut Rig, store: ResourceId, key: &str) -> Option<Bytes> {
    let keys = [Bytes::copy_from_slice(key.as_bytes())].into_iter().collect();
    let answer = rig.ask(Command::Kv(store, KvCommand::Get { keys }));
    let Ok(Reply::Values(mut values)) = answer else { panic!("not read: {answer:?}") };
    values.pop().unwrap().map(|value| value.value)
}

fn quiet(dir: &std::path::Path, disk: &SimDisk) -> Rig {
    Rig::open_quiet(dir, disk, &SimTimer::default(), |config| config.memory_bytes = 256 << 20)
}

/// After a crash.
fn restarted(dir: &std::path::Path, rig: Rig) -> Rig {
    let disk = rig.disk.crash();
    drop(rig);
    quiet(dir, &disk)
}

#[test]
fn the_largest_value_comes_back_from_the_log_and_from_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(1);
    let mut rig = quiet(dir.path(), &disk);
    let store = rig.create(Kind::Kv, "k");
    let (largest, other) = (value(1, KV_VALUE_BYTES_MAX), value(2, 3 * MIB));
    assert!(rig.ask(set(store, &[("a", largest.clone())])).is_ok());
    // Two in one entry, and what is too small for pieces.
    let small = value(3, LOG_PIECE_BYTES);
    let many = [("b", other.clone()), ("c", small.clone()), ("d", value(4, LOG_PIECE_BYTES + 1))];
    assert!(rig.ask(set(store, &many)).is_ok());
    for again in 0..3 {
        assert!(get(&mut rig, store, "a") == Some(largest.clone()), "{again}");
        assert!(get(&mut rig, store, "b") == Some(other.clone()), "{again}");
        assert!(get(&mut rig, store, "c") == Some(small.clone()), "{again}");
        assert_eq!(get(&mut rig, store, "d").unwrap().len(), LOG_PIECE_BYTES + 1);
        rig.shard.check_all();
        if again == 1 {
            rig.pool.run_until(rig.shard.checkpoint()).unwrap();
        }
        rig = restarted(dir.path(), rig);
        let from_log = rig.shard.stats().recovered_facts;
        assert_eq!(from_log > 64, again == 0, "{from_log} facts");
    }
}

#[test]
fn what_is_appended_and_written_over_goes_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = quiet(dir.path(), &SimDisk::new(2));
    let store = rig.create(Kind::Kv, "k");
    let (first, more) = (value(1, MIB), value(2, 700_000));
    assert!(rig.ask(set(store, &[("a", first.clone())])).is_ok());
    let answer = rig.ask(run(store, [op("a", BytesOp::Append(more.clone()))]));
    let Ok(Reply::Kv(outcomes)) = answer else { panic!("{answer:?}") };
    let len = i64::try_from(first.len() + more.len()).unwrap();
    assert_eq!(outcomes[0].as_ref().unwrap().result, KvResult::Integer(len));
    assert!(rig.ask(run(store, [op("a", BytesOp::SetRange(5, Bytes::from_static(b"over")))])).is_ok());
    let mut expected = [first, more].concat();
    expected[5..9].copy_from_slice(b"over");
    let mut rig = restarted(dir.path(), rig);
    assert!(get(&mut rig, store, "a").unwrap() == expected);
    // One that is too long by a byte changes nothing.
    let rest = (KV_VALUE_BYTES_MAX - expected.len()) as u64;
    let end = |at| run(store, [op("a", BytesOp::SetRange(at, Bytes::from_static(b"x")))]);
    let refused = rig.ask(end(expected.len() as u64 + rest)).unwrap_err();
    assert!(refused.to_string().contains("16777217"), "{refused}");
    assert!(rig.ask(end(expected.len() as u64 + rest - 1)).is_ok());
    assert_eq!(get(&mut rig, store, "a").unwrap().len(), KV_VALUE_BYTES_MAX);
}

/// A client that can go away.
struct Client(Rc<Cell<bool>>, Answer);

impl ReplySink for Client {
    fn deliver(self: Box<Self>, outcome: Result<Reply, Reject>) {
        *self.1.borrow_mut() = Some(outcome);
    }

    fn is_closed(&self) -> bool {
        self.0.get()
    }
}

#[test]
fn small_writes_go_between_the_pieces_and_a_client_that_leaves_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(3).with_polls_max(3);
    let mut rig = quiet(dir.path(), &disk);
    let store = rig.create(Kind::Kv, "k");
    let (gone, answer) = (Rc::new(Cell::new(false)), Answer::default());
    let client = Client(Rc::clone(&gone), Rc::clone(&answer));
    rig.shard.submit(set(store, &[("large", value(1, 8 * MIB))]), Box::new(client));
    // Each is answered while pieces are on their way.
    for number in 0..4 {
        assert!(rig.ask_stepwise(set(store, &[("small", value(number, 10))])).is_ok());
        assert!(answer.borrow().is_none(), "the large value did not wait for {number}");
    }
    assert_eq!(get_stepwise(&mut rig, store, "large"), None, "nothing is seen of it");
    gone.set(true);
    rig.run();
    assert!(answer.borrow().is_none());
    assert_eq!(get(&mut rig, store, "large"), None);
    // Another begins behind pieces that nobody names.
    let other = value(9, 2 * MIB);
    assert!(rig.ask(set(store, &[("other", other.clone())])).is_ok());
    let mut rig = restarted(dir.path(), rig);
    assert!(get(&mut rig, store, "other") == Some(other));
    assert_eq!(get(&mut rig, store, "large"), None);
    assert_eq!(get(&mut rig, store, "small").unwrap(), value(3, 10));
}

fn get_stepwise(rig: &mut Rig, store: ResourceId, key: &str) -> Option<Bytes> {
    let keys = [Bytes::copy_from_slice(key.as_bytes())].into_iter().collect();
    let answer = rig.ask_stepwise(Command::Kv(store, KvCommand::Get { keys }));
    let Ok(Reply::Values(mut values)) = answer else { panic!("not read: {answer:?}") };
    values.pop().unwrap().map(|value| value.value)
}

#[test]
fn a_checkpoint_waits_for_the_pieces_and_a_log_that_is_full_for_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(4).with_polls_max(2);
    disk.put_dir(dir.path());
    let mut rig = Rig::open_with(dir.path(), disk, SimTimer::default(), |config| {
        config.memory_bytes = 256 << 20;
        config.log_bytes_max = 4 << 20;
        config.checkpoint_log_bytes = 1 << 20;
    });
    let store = rig.create(Kind::Kv, "k");
    let keys = ["a", "b", "c", "d", "e"];
    // Each is larger than the log may be.
    let answers: Vec<Answer> = (0..10u64)
        .map(|number| rig.submit(set(store, &[(keys[number as usize % 5], value(number, 5 * MIB))])))
        .collect();
    for answer in &answers {
        for _ in 0..100_000 {
            rig.run();
            if answer.borrow().is_some() {
                break;
            }
            rig.timer.advance(1);
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
        let outcome = answer.borrow_mut().take();
        assert!(matches!(outcome, Some(Ok(_))), "{outcome:?}");
    }
    assert!(rig.shard.stats().checkpoint_lsn > 0);
    let mut rig = restarted(dir.path(), rig);
    for (number, key) in (5..10).zip(keys) {
        assert!(get(&mut rig, store, key) == Some(value(number, 5 * MIB)), "{key}");
    }
    rig.shard.check_all();
}

#[test]
fn too_many_at_once_and_too_little_memory_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = quiet(dir.path(), &SimDisk::new(5));
    let store = rig.create(Kind::Kv, "k");
    let largest = value(1, KV_VALUE_BYTES_MAX);
    let keys = ["a", "b", "c", "d", "e", "f"];
    let answers: Vec<Answer> =
        keys.iter().map(|key| rig.submit(set(store, &[(key, largest.clone())]))).collect();
    let said = |answer: &Answer| match &*answer.borrow() {
        Some(Err(Reject::Overloaded { what, .. })) => Some(*what),
        _ => None,
    };
    let refused: Vec<_> = answers.iter().filter_map(said).collect();
    assert_eq!(refused, ["large values on their way to the log"; 2]);
    rig.run();
    assert!(answers[..4].iter().all(|answer| matches!(&*answer.borrow(), Some(Ok(_)))));
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_quiet(dir.path(), &SimDisk::new(6), &SimTimer::default(), |config| {
        config.memory_bytes = 20 << 20;
    });
    let store = rig.create(Kind::Kv, "k");
    let first = rig.submit(set(store, &[("a", value(1, 12 * MIB))]));
    let second = rig.submit(set(store, &[("b", value(2, 12 * MIB))]));
    assert_eq!(said(&second), Some("memory budget"));
    rig.run();
    assert!(matches!(&*first.borrow(), Some(Ok(_))));
    // There is room again once the first has left memory.
    let taken = (0..1000).find_map(|_| rig.ask(set(store, &[("b", value(2, 12 * MIB))])).ok());
    assert!(taken.is_some(), "what leaves memory makes no room");
    for (number, key) in (1..).zip(["a", "b"]) {
        assert!(get(&mut rig, store, key).unwrap() == value(number, 12 * MIB), "{key}");
    }
}

/// Sets of a few keys, some of them of values of several pieces; the power fails at any operation.
fn crash_run(seed: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed);
    let mut disk = SimDisk::new(seed).with_polls_max(random.below(4));
    disk.put_dir(dir.path());
    let timer = SimTimer::default();
    let keys = ["a", "b", "c"];
    // By key the numbers of values that it may hold: the last acknowledged one, and those behind it.
    let mut held: BTreeMap<&str, Vec<u64>> = keys.iter().map(|key| (*key, vec![0])).collect();
    let (mut number, mut acknowledged) = (0, 0);
    let len_of = |number: u64| match number % 3 {
        0 => 100,
        1 => LOG_PIECE_BYTES + 1 + number as usize,
        _ => 2 * LOG_PIECE_BYTES + 7 * number as usize,
    };
    let store = {
        let mut rig = Rig::open(dir.path(), disk.clone(), timer.clone());
        let store = rig.create(Kind::Kv, "k");
        disk = rig.disk.crash();
        store
    };
    for life in 0..4 {
        let mut rig = Rig::open_with(dir.path(), disk.clone(), timer.clone(), |config| {
            config.log_bytes_max = 3 << 20;
        });
        for (key, may) in &mut held {
            let found = get(&mut rig, store, key);
            let is = |number: &u64| match (*number, &found) {
                (0, None) => true,
                (number, Some(found)) => number > 0 && *found == value(number, len_of(number)),
                _ => false,
            };
            let Some(found) = may.iter().copied().find(is) else {
                let len = found.map(|found| found.len());
                panic!("seed {seed}: {key} holds none of {may:?}, but {len:?} bytes")
            };
            *may = vec![found];
        }
        rig.shard.check_all();
        if life == 3 {
            break;
        }
        rig.disk.power_cut_after(1 + random.below(200));
        let mut sent: Vec<(&str, u64, Answer)> = Vec::new();
        for _ in 0..random.below(20) {
            number += 1;
            let key = keys[random.below(3) as usize];
            // The order of sets of one key is known only one behind the other.
            if sent.iter().any(|(of, _, answer)| *of == key && answer.borrow().is_none()) {
                rig.go_on(&mut random);
                continue;
            }
            let answer = rig.submit(set(store, &[(key, value(number, len_of(number)))]));
            sent.push((key, number, answer));
            rig.go_on(&mut random);
        }
        rig.run();
        for (key, number, answer) in sent {
            let Some(may) = held.get_mut(key) else { continue };
            match &*answer.borrow() {
                Some(Ok(_)) => *may = vec![number],
                _ => may.push(number),
            }
            acknowledged += u64::from(matches!(&*answer.borrow(), Some(Ok(_))));
        }
        disk = rig.disk.crash();
    }
    acknowledged
}

#[test]
fn a_power_cut_at_any_operation_leaves_all_of_a_value_or_nothing() {
    let count = seeds(24);
    let acknowledged: u64 = (0..count).map(crash_run).sum();
    assert!(acknowledged > 3 * count, "only {acknowledged} sets in {count} runs");
}
