//! Concurrent operations on single keys, through killed servers, are linearizable: each happened at one moment between its
//! call and its answer, and one whose answer was lost at some moment after its call, or never.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use flowmesh_model::placement::{PlacementHash, SlotMap};
use flowmesh_model::{Kind, ResourcePath, ShardId};
use flowmesh_proto::v1;
use flowmesh_proto::v1::operation::{Action, Condition};
use flowmesh_proto::v1::operation_outcome::Result as Said;
use tokio::task::JoinSet;
use tonic::Status;

use crate::common::key::{Key, KeyAnswer, KeyOperation};
use crate::common::linear::{Event, assert_linearizable, linearize};
use crate::common::{Client, Home, Random, eventually};

const CLIENTS: u16 = 8;
/// What most is done with a key.
const USES: [&str; 4] = ["word", "text", "number", "items"];
/// Kills between which the clients go on.
const KILLS: usize = 3;
const OPERATIONS_BETWEEN: usize = 1000;

/// A key a use, on one shard and the other in turn.
fn keys() -> Vec<&'static str> {
    let hash = PlacementHash::of(&ResourcePath::parse(Kind::Kv, "store").unwrap());
    let slots = SlotMap::new(2);
    let key = |(use_of, shard): (&str, u16)| -> &'static str {
        let names = (0..).map(|number: u32| format!("{use_of}-{number}"));
        let on_shard = |name: &String| slots.shard(hash.key_slot(name.as_bytes())) == ShardId(shard);
        names.into_iter().find(on_shard).unwrap().leak()
    };
    USES.into_iter().zip([0, 1, 0, 1]).map(key).collect()
}

type History = Vec<(&'static str, Event<Key>)>;

/// What a client chooses next, by what it has last seen of the key.
fn choose(random: &mut Random, key: &str, fresh: Bytes, seen: &(u64, Bytes)) -> KeyOperation {
    let choices = match key.split('-').next().unwrap() {
        "word" => &[0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 6][..],
        "text" => &[0, 0, 0, 1, 2, 3, 5, 5, 5, 6],
        "number" => &[0, 0, 2, 4, 4, 4, 4, 10, 10, 6, 5],
        _ => &[7, 7, 7, 8, 8, 8, 9, 9, 6],
    };
    let any = random.below(20) == 0;
    let choice = if any { random.below(11) } else { choices[random.below(choices.len() as u64) as usize] };
    match choice {
        0 => KeyOperation::Get,
        1 => KeyOperation::Set(fresh),
        2 => KeyOperation::SetIfVersion(seen.0, fresh),
        3 => KeyOperation::SetIfValue(seen.1.clone(), fresh),
        4 => KeyOperation::Increment(1 + random.below(1000) as i64),
        5 => KeyOperation::Append(fresh),
        6 => KeyOperation::Delete,
        7 => KeyOperation::PushBack(fresh),
        8 => KeyOperation::PopFront,
        9 => KeyOperation::Range,
        _ => KeyOperation::Set((1_000_000 * random.below(1_000_000)).to_string().into()),
    }
}

fn request(key: &'static str, operation: &KeyOperation) -> v1::RunRequest {
    let (condition, action) = match operation.clone() {
        KeyOperation::Get => (None, Action::Get(v1::BytesGet {})),
        KeyOperation::Set(value) => (None, set(value)),
        KeyOperation::SetIfVersion(version, value) => (Some(Condition::IfVersion(version)), set(value)),
        KeyOperation::SetIfValue(wanted, value) => (Some(Condition::IfValue(wanted)), set(value)),
        KeyOperation::Increment(by) => (None, Action::Increment(v1::BytesIncrement { by })),
        KeyOperation::Append(value) => (None, Action::Append(v1::BytesAppend { value })),
        KeyOperation::Delete => (None, Action::Delete(v1::KeyDelete {})),
        KeyOperation::PushBack(value) => {
            let side = v1::Side::Back.into();
            (None, Action::ListPush(v1::ListPush { side, values: vec![value], if_present: false }))
        }
        KeyOperation::PopFront => {
            (None, Action::ListPop(v1::ListPop { side: v1::Side::Front.into(), count: 1 }))
        }
        KeyOperation::Range => (None, Action::ListRange(v1::ListRange { first: 0, last: -1 })),
    };
    let operation = v1::Operation { key: key.into(), condition, action: Some(action) };
    v1::RunRequest { store: "store".into(), operations: vec![operation], atomic: false, as_of: None }
}

fn set(value: Bytes) -> Action {
    Action::Set(v1::BytesSet { value, ..v1::BytesSet::default() })
}

fn answer(outcome: v1::OperationOutcome) -> KeyAnswer {
    let version = outcome.version;
    if let Some(error) = outcome.error {
        return match error.reason.as_str() {
            "CONDITION_FAILED" => KeyAnswer::ConditionFailed(error.details["version"].parse().unwrap()),
            "WRONG_TYPE" => KeyAnswer::WrongType,
            "NOT_A_NUMBER" => KeyAnswer::NotANumber,
            _ => panic!("refused: {error:?}"),
        };
    }
    match outcome.result.unwrap() {
        Said::Done(true) => KeyAnswer::Done(version),
        Said::Value(value) => KeyAnswer::Value(value.value, version),
        Said::Integer(number) => KeyAnswer::Integer(number, version),
        Said::Flag(flag) => KeyAnswer::Flag(flag, version),
        Said::Members(members) => KeyAnswer::Members(members.members, version),
        other => panic!("another kind of answer: {other:?}"),
    }
}

/// `Get`, `Set` and `Delete` have calls of their own, which come to the same.
async fn ask_alone(
    client: &mut Client,
    key: &'static str,
    operation: &KeyOperation,
) -> Result<KeyAnswer, Status> {
    let entry = match operation.clone() {
        KeyOperation::Get => {
            let Some(entry) = client.entry("store", key).await? else { return Ok(KeyAnswer::Value(None, 0)) };
            return Ok(match entry.r#type() {
                v1::KeyType::Bytes | v1::KeyType::Counter => {
                    KeyAnswer::Value(Some(entry.value), entry.version)
                }
                _ => KeyAnswer::WrongType,
            });
        }
        KeyOperation::Delete => {
            let request =
                v1::DeleteRequest { store: "store".into(), keys: vec![key.into()], if_version: None };
            let deleted = client.kv.delete(request).await?.into_inner().deleted;
            return Ok(KeyAnswer::Flag(deleted[0], 0));
        }
        KeyOperation::Set(value) => v1::SetEntry { key: key.into(), value, ..v1::SetEntry::default() },
        KeyOperation::SetIfVersion(version, value) => {
            let condition = Some(v1::set_entry::Condition::IfVersion(version));
            v1::SetEntry { key: key.into(), value, condition, ..v1::SetEntry::default() }
        }
        other => return ask(client, key, &other).await,
    };
    let v1::SetOutcome { version, error } = client.set_entry("store", entry).await?;
    Ok(error.map_or(KeyAnswer::Done(version), |error| {
        answer(v1::OperationOutcome { error: Some(error), ..v1::OperationOutcome::default() })
    }))
}

async fn ask(client: &mut Client, key: &'static str, operation: &KeyOperation) -> Result<KeyAnswer, Status> {
    let mut outcomes = client.kv.run(request(key, operation)).await?.into_inner().outcomes;
    assert_eq!(outcomes.len(), 1);
    Ok(answer(outcomes.remove(0)))
}

/// Works on the keys through whatever happens, until it is told to stop; what it did.
async fn work(
    number: u16,
    port: u16,
    mut random: Random,
    clock: Instant,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
) -> History {
    let now = || u64::try_from(clock.elapsed().as_nanos()).unwrap();
    let (keys, mut history) = (keys(), History::new());
    let mut seen: BTreeMap<&str, (u64, Bytes)> = BTreeMap::new();
    let mut client = Client::connect(port).await;
    while !stop.load(Ordering::Relaxed) {
        let key = keys[random.below(keys.len() as u64) as usize];
        let fresh = Bytes::from(format!("{number}.{};", history.len()));
        let operation = choose(&mut random, key, fresh, seen.entry(key).or_default());
        let call = now();
        let said = if random.below(2) == 0 {
            ask(&mut client, key, &operation).await
        } else {
            ask_alone(&mut client, key, &operation).await
        };
        let said = match said {
            Ok(said) => {
                count.fetch_add(1, Ordering::Relaxed);
                let seen = seen.entry(key).or_default();
                match (&said, &operation) {
                    (KeyAnswer::Value(value, version), _) => {
                        *seen = (*version, value.clone().unwrap_or_default());
                    }
                    (KeyAnswer::Done(version), KeyOperation::Set(value)) => *seen = (*version, value.clone()),
                    (KeyAnswer::ConditionFailed(version), _) => seen.0 = *version,
                    _ => {}
                }
                Some((now(), said))
            }
            Err(_) => None,
        };
        let lost = said.is_none();
        history.push((key, Event { call, answer: said, operation }));
        if lost {
            client =
                eventually("the server is back", || async { Client::try_connect(port).await.ok() }).await;
        }
    }
    history
}

#[tokio::test]
async fn operations_on_a_key_have_an_order_through_killed_servers() {
    let home = Home::new().shards(2).set("checkpoint_interval_ms", "100ms");
    let mut server = home.start();
    server.client().await.create("store", v1::settings::Kind::Kv(v1::KvSettings::default())).await.unwrap();
    let mut random = Random::new("operations_on_a_key_have_an_order");
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (clock, mut clients) = (Instant::now(), JoinSet::new());
    for number in 0..CLIENTS {
        let port = server.core_port(number % 2);
        clients.spawn(work(number, port, random.fork(), clock, Arc::clone(&stop), Arc::clone(&count)));
    }
    for kill in 0..=KILLS {
        let enough = count.load(Ordering::Relaxed) + OPERATIONS_BETWEEN;
        eventually("the clients go on", || async { (count.load(Ordering::Relaxed) >= enough).then_some(()) })
            .await;
        if kill < KILLS {
            server.kill9();
            server = home.start();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut histories: BTreeMap<&str, Vec<Event<Key>>> = BTreeMap::new();
    for (key, event) in clients.join_all().await.into_iter().flatten() {
        histories.entry(key).or_default().push(event);
    }
    assert_eq!(histories.len(), USES.len());
    let lost = histories.values().flatten().filter(|event| event.answer.is_none()).count();
    assert!(lost > 0, "no answer was lost by {KILLS} kills");
    for (key, history) in &histories {
        assert_linearizable(key, history);
    }
    server.assert_healthy();
}

fn event(call: u64, answer: Option<(u64, KeyAnswer)>, operation: KeyOperation) -> Event<Key> {
    Event { call, answer, operation }
}

fn set_at(call: u64, end: u64, value: &'static str, version: u64) -> Event<Key> {
    event(call, Some((end, KeyAnswer::Done(version))), KeyOperation::Set(value.into()))
}

fn got_at(call: u64, end: u64, value: Option<&'static str>, version: u64) -> Event<Key> {
    event(call, Some((end, KeyAnswer::Value(value.map(Bytes::from), version))), KeyOperation::Get)
}

fn lost_set(call: u64, value: &'static str) -> Event<Key> {
    event(call, None, KeyOperation::Set(value.into()))
}

fn added_at(call: u64, end: u64, by: i64, sum: i64, version: u64) -> Event<Key> {
    event(call, Some((end, KeyAnswer::Integer(sum, version))), KeyOperation::Increment(by))
}

#[track_caller]
fn explained(history: &[Event<Key>]) {
    assert_linearizable("a history that has an order", history);
}

#[track_caller]
fn unexplained(history: &[Event<Key>]) {
    let order = linearize(history);
    assert!(order.is_err(), "{order:?} is no order of these");
}

#[test]
fn a_history_is_explained_by_an_order_that_its_times_allow() {
    explained(&[]);
    // Of two that overlap either may be first; one that ended before the other began is.
    explained(&[set_at(0, 10, "a", 1), got_at(1, 9, None, 0), got_at(2, 8, Some("a"), 1)]);
    explained(&[set_at(0, 10, "a", 2), set_at(1, 9, "b", 1), got_at(11, 12, Some("a"), 2)]);
    explained(&[added_at(0, 10, 2, 5, 7), added_at(0, 10, 3, 3, 4), got_at(11, 12, Some("5"), 7)]);
    let popped = |first: &'static str, version| KeyAnswer::Members(vec![first.into()], version);
    let push = |call, len, version, value: &'static str| {
        event(call, Some((call + 1, KeyAnswer::Integer(len, version))), KeyOperation::PushBack(value.into()))
    };
    let pop = |call, said| event(call, Some((call + 5, said)), KeyOperation::PopFront);
    explained(&[push(0, 1, 1, "a"), push(2, 2, 2, "b"), pop(4, popped("b", 0)), pop(4, popped("a", 3))]);
    unexplained(&[push(0, 1, 1, "a"), push(2, 2, 2, "b"), pop(4, popped("b", 0)), pop(14, popped("a", 3))]);
    unexplained(&[push(0, 1, 1, "a"), pop(4, popped("a", 0)), pop(4, popped("a", 0))]);
}

#[test]
fn a_stale_read_has_no_order() {
    unexplained(&[set_at(0, 1, "a", 1), set_at(2, 3, "b", 2), got_at(4, 5, Some("a"), 1)]);
    unexplained(&[set_at(0, 1, "a", 1), got_at(2, 3, None, 0)]);
    // Two reads, one after the other, of which the second shows what was before the first.
    unexplained(&[set_at(0, 9, "a", 1), got_at(1, 2, Some("a"), 1), got_at(3, 4, None, 0)]);
    unexplained(&[got_at(0, 1, Some("never set"), 1)]);
}

#[test]
fn a_lost_update_has_no_order() {
    unexplained(&[added_at(0, 5, 1, 1, 1), added_at(0, 5, 1, 1, 2)]);
    unexplained(&[added_at(0, 5, 1, 1, 1), added_at(0, 5, 2, 3, 2), got_at(6, 7, Some("2"), 2)]);
    let swap =
        |from, to: &'static str, said| event(2, Some((5, said)), KeyOperation::SetIfVersion(from, to.into()));
    let won = |version| KeyAnswer::Done(version);
    let first = || set_at(0, 1, "a", 1);
    explained(&[first(), swap(1, "b", won(2)), swap(1, "c", KeyAnswer::ConditionFailed(2))]);
    unexplained(&[first(), swap(1, "b", won(2)), swap(1, "c", won(3))]);
    unexplained(&[first(), swap(1, "c", KeyAnswer::ConditionFailed(1))]);
    let swap = |to: &'static str, said| {
        event(2, Some((5, said)), KeyOperation::SetIfValue("a".into(), Bytes::from(to)))
    };
    explained(&[first(), swap("b", won(2)), swap("c", KeyAnswer::ConditionFailed(2))]);
    unexplained(&[first(), swap("b", won(2)), swap("c", won(3))]);
}

#[test]
fn versions_that_do_not_grow_have_no_order() {
    unexplained(&[set_at(0, 1, "a", 2), set_at(2, 3, "b", 1)]);
    unexplained(&[set_at(0, 1, "a", 1), got_at(2, 3, Some("a"), 2)]);
    let deleted = event(2, Some((3, KeyAnswer::Flag(true, 0))), KeyOperation::Delete);
    unexplained(&[set_at(0, 1, "a", 5), deleted, set_at(4, 5, "b", 5)]);
}

#[test]
fn what_had_no_answer_happened_at_some_time_or_never() {
    explained(&[set_at(0, 1, "a", 1), lost_set(2, "b"), got_at(4, 5, Some("a"), 1)]);
    explained(&[set_at(0, 1, "a", 1), lost_set(2, "b"), got_at(4, 5, Some("b"), 2)]);
    // Its answer was lost, and it came late.
    explained(&[
        set_at(0, 1, "a", 1),
        lost_set(2, "b"),
        got_at(4, 5, Some("a"), 1),
        got_at(6, 7, Some("b"), 2),
        set_at(8, 9, "c", 3),
    ]);
    // But not before it was asked for, not twice, not with two versions, and not undone.
    unexplained(&[got_at(0, 1, Some("b"), 2), lost_set(2, "b")]);
    let late =
        [lost_set(0, "b"), got_at(1, 2, Some("b"), 2), set_at(3, 4, "c", 3), got_at(5, 6, Some("b"), 4)];
    unexplained(&late);
    unexplained(&[lost_set(0, "b"), got_at(1, 2, Some("b"), 2), got_at(3, 4, Some("b"), 3)]);
    unexplained(&[lost_set(0, "b"), got_at(1, 2, Some("b"), 2), got_at(3, 4, None, 0)]);
}

#[test]
fn an_acknowledged_write_that_a_crash_lost_has_no_order() {
    let lost_by_the_crash = [set_at(0, 1, "a", 1), set_at(2, 3, "b", 2), lost_set(2, "c")];
    let then = |value, version| [&lost_by_the_crash[..], &[got_at(10, 11, Some(value), version)]].concat();
    explained(&then("b", 2));
    explained(&then("c", 3));
    unexplained(&then("a", 1));
    // An increment of which only the answer survived.
    unexplained(&[added_at(0, 1, 1, 1, 1), added_at(2, 3, 1, 2, 2), got_at(9, 10, Some("1"), 1)]);
}
