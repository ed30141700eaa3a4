//! Every limit the machine guards: what is just allowed passes, what is just beyond is refused by name.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use bytes::Bytes;
use common::{CONFIG, Outcome, World};
use flowmesh_machine::{EntryContext, Machine};
use flowmesh_model::command::{KeyScan, LeaseRef, Nack, NewJob, SetEntry, SetIf, SetTtl};
use flowmesh_model::job::NackKind;
use flowmesh_model::kv::{BytesOp, KeyOp, KvAction, KvOp, ListOp, Side};
use flowmesh_model::limits::{
    ATTEMPTS_MAX, BATCH_ITEMS_MAX, DELAY_MS_MAX, HEADERS_MAX, KEY_BYTES_MAX, KV_LARGE_BYTES_MAX,
    KV_VALUE_BYTES_MAX, LOG_PIECE_BYTES, REPLY_BYTES_MAX, RESOURCES_MAX, TEXT_BYTES_MAX, VALUE_BYTES_MAX,
    VISIBILITY_MS_MAX, VISIBILITY_MS_MIN, WAIT_MS_MAX,
};
use flowmesh_model::record::put_header;
use flowmesh_model::{
    Batch, CatalogCommand, Code, Command, Fact, JobId, Kind, KvCommand, KvSettings, LeaseToken, Lsn, Millis,
    QueueCommand, Reject, Reply, ResourceId, ResourcePath, Settings,
};

fn bytes(len: usize) -> Bytes {
    Bytes::from(vec![b'x'; len])
}

/// The outcome is a refusal that names `what`.
#[track_caller]
fn refused(outcome: Outcome, what: &str) {
    let Outcome::Rejected(reject) = outcome else { panic!("accepted: {outcome:?}") };
    assert_eq!(reject.code(), Code::InvalidArgument);
    assert!(reject.to_string().contains(what), "{reject} does not name {what}");
}

#[track_caller]
fn accepted(outcome: Outcome) -> Reply {
    outcome.reply()
}

struct Queue(World, ResourceId);

impl Queue {
    fn new() -> Self {
        let mut world = World::default();
        let queue = world.create(Kind::Queue, "mail");
        Self(world, queue)
    }

    fn ask(&mut self, command: QueueCommand) -> Outcome {
        self.0.run(&Command::Queue(self.1, command))
    }

    fn enqueue(&mut self, job: NewJob) -> Outcome {
        self.ask(QueueCommand::enqueue(Batch::from_vec(vec![job])))
    }

    fn reserve(&mut self, jobs_max: u32, timeout_ms: Option<u64>, worker: usize, wait_ms: u64) -> Outcome {
        let wait_until = Some(self.0.now.plus(wait_ms));
        let worker = bytes(worker);
        self.ask(QueueCommand::Reserve { jobs_max, visibility_timeout_ms: timeout_ms, worker, wait_until })
    }
}

#[test]
fn what_is_enqueued() {
    let mut queue = Queue::new();
    let with_headers = |count: usize| {
        let mut headers = Vec::new();
        (0..count).for_each(|_| put_header(&mut headers, b"name", b"value"));
        NewJob { headers: headers.into(), ..NewJob::default() }
    };
    accepted(queue.enqueue(NewJob { payload: bytes(VALUE_BYTES_MAX), ..NewJob::default() }));
    refused(
        queue.enqueue(NewJob { payload: bytes(VALUE_BYTES_MAX + 1), ..NewJob::default() }),
        "job payload",
    );
    accepted(queue.enqueue(with_headers(HEADERS_MAX)));
    refused(queue.enqueue(with_headers(HEADERS_MAX + 1)), "headers of a job");
    refused(queue.enqueue(NewJob { headers: bytes(5), ..NewJob::default() }), "headers");
    accepted(queue.enqueue(NewJob { delay_ms: DELAY_MS_MAX, ..NewJob::default() }));
    refused(queue.enqueue(NewJob { delay_ms: DELAY_MS_MAX + 1, ..NewJob::default() }), "delay_ms");
    accepted(queue.enqueue(NewJob { max_attempts: Some(ATTEMPTS_MAX), ..NewJob::default() }));
    refused(
        queue.enqueue(NewJob { max_attempts: Some(ATTEMPTS_MAX + 1), ..NewJob::default() }),
        "max_attempts",
    );
    let jobs = Batch::from_elem(NewJob::default(), BATCH_ITEMS_MAX);
    accepted(queue.ask(QueueCommand::enqueue(jobs)));
    let jobs = Batch::from_elem(NewJob::default(), BATCH_ITEMS_MAX + 1);
    refused(queue.ask(QueueCommand::enqueue(jobs)), "jobs");
}

#[test]
fn what_is_reserved_and_settled() {
    let mut queue = Queue::new();
    accepted(queue.enqueue(NewJob::default()));
    refused(queue.reserve(0, None, 1, 0), "jobs_max");
    refused(queue.reserve(BATCH_ITEMS_MAX as u32 + 1, None, 1, 0), "jobs_max");
    refused(queue.reserve(1, Some(VISIBILITY_MS_MIN - 1), 1, 0), "visibility_timeout_ms");
    refused(queue.reserve(1, Some(VISIBILITY_MS_MAX + 1), 1, 0), "visibility_timeout_ms");
    refused(queue.reserve(1, None, TEXT_BYTES_MAX + 1, 0), "worker");
    refused(queue.reserve(1, None, 1, 2 * WAIT_MS_MAX), "wait_ms");
    let all = queue.reserve(BATCH_ITEMS_MAX as u32, Some(VISIBILITY_MS_MAX), TEXT_BYTES_MAX, WAIT_MS_MAX);
    assert!(matches!(accepted(all), Reply::Reserved(jobs) if jobs.len() == 1));
    let lease = LeaseRef { job: JobId(1), token: LeaseToken(1) };
    let nack = |delay_ms, error| {
        let nack = Nack { lease, kind: NackKind::Failed, delay_ms: Some(delay_ms), error: bytes(error) };
        QueueCommand::Nack { nacks: Batch::from_elem(nack, 1) }
    };
    refused(queue.ask(nack(DELAY_MS_MAX + 1, 0)), "delay_ms");
    refused(queue.ask(nack(0, TEXT_BYTES_MAX + 1)), "error");
    refused(queue.ask(QueueCommand::ack(vec![lease; BATCH_ITEMS_MAX + 1])), "leases");
    accepted(queue.ask(nack(DELAY_MS_MAX, TEXT_BYTES_MAX)));
}

#[test]
fn a_reply_carries_no_more_payload_than_one_message_takes() {
    let mut queue = Queue::new();
    let fit = REPLY_BYTES_MAX / VALUE_BYTES_MAX;
    for _ in 0..=fit {
        accepted(queue.enqueue(NewJob { payload: bytes(VALUE_BYTES_MAX), ..NewJob::default() }));
    }
    assert!(matches!(accepted(queue.reserve(100, None, 1, 0)), Reply::Reserved(jobs) if jobs.len() == fit));
    assert!(matches!(accepted(queue.reserve(100, None, 1, 0)), Reply::Reserved(jobs) if jobs.len() == 1));
}

#[test]
fn leases_with_a_long_worker_name_fit_an_entry() {
    let mut queue = Queue::new();
    accepted(queue.ask(QueueCommand::enqueue(Batch::from_elem(NewJob::default(), BATCH_ITEMS_MAX))));
    let outcome = queue.reserve(BATCH_ITEMS_MAX as u32, None, TEXT_BYTES_MAX, 0);
    let Outcome::Changed(Reply::Reserved(jobs), facts) = outcome else { panic!() };
    let bytes: usize = facts.iter().map(Fact::encoded_len_max).sum();
    assert!(bytes <= flowmesh_model::limits::ENTRY_BYTES_MAX);
    assert!(jobs.len() > BATCH_ITEMS_MAX / 2);
}

#[test]
fn keys_and_values() {
    let mut world = World::default();
    let store = world.create(Kind::Kv, "cart");
    let mut ask = |command| world.run(&Command::Kv(store, command));
    let set = |key, value, ttl| {
        let entry = SetEntry { key: bytes(key), value: bytes(value), ttl, condition: SetIf::Always };
        KvCommand::Set { entries: Batch::from_vec(vec![entry]) }
    };
    accepted(ask(set(KEY_BYTES_MAX, VALUE_BYTES_MAX, SetTtl::Millis(DELAY_MS_MAX))));
    refused(ask(set(0, 1, SetTtl::Default)), "key");
    refused(ask(set(KEY_BYTES_MAX + 1, 1, SetTtl::Default)), "key");
    accepted(ask(set(1, KV_VALUE_BYTES_MAX, SetTtl::Default)));
    refused(ask(set(1, KV_VALUE_BYTES_MAX + 1, SetTtl::Default)), "value");
    refused(ask(set(1, 1, SetTtl::Millis(DELAY_MS_MAX + 1))), "ttl_ms");
    let keys = |count, len| Batch::from_elem(bytes(len), count);
    refused(ask(KvCommand::Get { keys: keys(BATCH_ITEMS_MAX + 1, 1) }), "keys");
    refused(ask(KvCommand::Get { keys: keys(1, KEY_BYTES_MAX + 1) }), "key");
    refused(ask(KvCommand::Exists { keys: keys(1, 0) }), "key");
    refused(ask(KvCommand::Delete { keys: keys(0, 0), if_version: None }), "keys");
    let fit = REPLY_BYTES_MAX / VALUE_BYTES_MAX;
    accepted(ask(KvCommand::Get { keys: keys(fit, KEY_BYTES_MAX) }));
    refused(ask(KvCommand::Get { keys: keys(fit + 1, KEY_BYTES_MAX) }), "values of one reply");
    // One that is large, alone and with little beside it.
    accepted(ask(KvCommand::Get { keys: keys(1, 1) }));
    accepted(ask(KvCommand::Get { keys: [bytes(1), bytes(KEY_BYTES_MAX)].into_iter().collect() }));
    refused(ask(KvCommand::Get { keys: keys(2, 1) }), "values of one reply");
    let scan = |prefix, keys_max| {
        KvCommand::Scan(KeyScan { prefix: bytes(prefix), keys_max, with_values: true, ..KeyScan::default() })
    };
    accepted(ask(scan(KEY_BYTES_MAX, BATCH_ITEMS_MAX as u32)));
    refused(ask(scan(KEY_BYTES_MAX + 1, 1)), "prefix");
    refused(ask(scan(1, BATCH_ITEMS_MAX as u32 + 1)), "keys_max");
}

#[test]
fn what_keys_hold_and_what_collections_hold() {
    let mut world = World::default();
    let store = world.create(Kind::Kv, "cart");
    let mut ask = |ops: Vec<KvAction>| {
        let op = |action| KvOp { key: Bytes::from_static(b"k{t}"), condition: SetIf::Always, action };
        let ops = ops.into_iter().map(op).collect();
        match world.run(&Command::Kv(store, KvCommand::Run { ops, atomic: false, seed: 0 })) {
            Outcome::Rejected(reject) => Err(reject),
            outcome => match outcome.reply() {
                Reply::Kv(outcomes) => outcomes.into_iter().collect::<Result<Vec<_>, _>>(),
                other => panic!("{other:?}"),
            },
        }
    };
    let set =
        |len, with_old| KvAction::Bytes(BytesOp::Set { value: bytes(len), ttl: SetTtl::Default, with_old });
    let grow = |len| KvAction::Bytes(BytesOp::Append(bytes(len)));
    let over = |at, len| KvAction::Bytes(BytesOp::SetRange(at as u64, bytes(len)));
    let too_large = |what: &'static str, size: usize, max: usize| {
        Err(Reject::TooLarge { what, size: size as u64, max: max as u64 })
    };
    assert!(ask(vec![set(KV_VALUE_BYTES_MAX, false)]).is_ok());
    let beyond = KV_VALUE_BYTES_MAX + 1;
    assert_eq!(ask(vec![set(beyond, false)]), too_large("value", beyond, KV_VALUE_BYTES_MAX));
    assert_eq!(ask(vec![grow(1)]), too_large("value", beyond, KV_VALUE_BYTES_MAX));
    assert_eq!(ask(vec![over(KV_VALUE_BYTES_MAX, 1)]), too_large("value", beyond, KV_VALUE_BYTES_MAX));
    assert!(ask(vec![over(KV_VALUE_BYTES_MAX - 1, 1)]).is_ok());
    // What was there is a result, and so is what is.
    assert!(ask(vec![set(1, true)]).is_ok());
    assert!(ask(vec![set(KV_VALUE_BYTES_MAX, false), KvAction::Bytes(BytesOp::Get)]).is_ok());
    let twice = ask(vec![KvAction::Bytes(BytesOp::Get); 2]).unwrap_err();
    assert!(matches!(twice, Reject::TooLarge { what: "results of one call", .. }), "{twice}");
    // Values that one call brings.
    let halves = vec![set(KV_LARGE_BYTES_MAX / 2, false); 2];
    assert!(ask(halves.clone()).is_ok());
    let more = [halves, vec![set(LOG_PIECE_BYTES + 1, false)]].concat();
    let size = KV_LARGE_BYTES_MAX + LOG_PIECE_BYTES + 1;
    assert_eq!(ask(more), too_large("large values of one call", size, KV_LARGE_BYTES_MAX));
    // What lies in pages is smaller.
    let push = |len| vec![KvAction::Key(KeyOp::Delete), push(bytes(len))];
    assert!(ask(push(VALUE_BYTES_MAX)).is_ok());
    let beyond = VALUE_BYTES_MAX + 1;
    assert_eq!(ask(push(beyond)), too_large("value in a collection", beyond, VALUE_BYTES_MAX));
}

fn push(value: Bytes) -> KvAction {
    KvAction::List(ListOp::Push { side: Side::Back, values: vec![value], if_present: false })
}

#[test]
fn a_store_that_keeps_its_past_takes_no_large_values() {
    let mut world = World::default();
    let settings = KvSettings { history_ms: Some(60_000), ..KvSettings::default() };
    let store = world.create_with("past", Settings::Kv(settings));
    let mut set = |len| {
        let (key, value) = (Bytes::from_static(b"k"), bytes(len));
        let entry = SetEntry { key, value, ttl: SetTtl::Default, condition: SetIf::Always };
        world.run(&Command::Kv(store, KvCommand::Set { entries: Batch::from_vec(vec![entry]) }))
    };
    accepted(set(VALUE_BYTES_MAX));
    refused(set(VALUE_BYTES_MAX + 1), "value in a store with a history");
}

#[test]
fn resources() {
    let mut machine = Machine::new(CONFIG);
    let path = |number: usize| ResourcePath::new("t", "n", Kind::Kv, &format!("r{number}")).unwrap();
    let at = EntryContext { lsn: Lsn(1), time: Millis(1) };
    let settings = Settings::default_for(Kind::Kv);
    let create = |number| {
        let settings = settings.clone();
        Command::Catalog(CatalogCommand::Create { path: path(number), settings, or_existing: false })
    };
    for number in 1..RESOURCES_MAX {
        let (id, path, settings) = (ResourceId(number as u64), path(number), settings.clone());
        machine.apply(at, Fact::ResourceCreated { id, path, settings: Box::new(settings) });
    }
    assert!(machine.decide(Millis(1), Lsn(2), &create(RESOURCES_MAX)).is_ok());
    let (id, path) = (ResourceId(RESOURCES_MAX as u64), path(RESOURCES_MAX));
    machine.apply(at, Fact::ResourceCreated { id, path, settings: Box::new(settings.clone()) });
    let refused = machine.decide(Millis(1), Lsn(2), &create(RESOURCES_MAX + 1)).unwrap_err();
    assert!(refused.to_string().contains("catalog"), "{refused}");
}
