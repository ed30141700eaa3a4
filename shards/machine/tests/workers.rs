//! Workers at their edges: how many there may be, what a start means for them, what queues count of them.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use bytes::Bytes;
use common::{Outcome, World};
use flowmesh_model::command::{LeaseRef, NewJob};
use flowmesh_model::job::JobCursor;
use flowmesh_model::limits::{QUEUE_WORKERS_MAX, WORKER_JOBS_SHOWN_MAX, WORKERS_MAX};
use flowmesh_model::worker::fact::WorkerChange;
use flowmesh_model::worker::{
    Registration, WorkerFilter, WorkerOnQueue, WorkerReply, WorkerState, WorkerStatus,
};
use flowmesh_model::{
    Batch, Code, Command, Fact, Kind, Lsn, Millis, QueueCommand, Reject, Reply, ResourceId, WorkerCommand,
    WorkerPath,
};

fn path(name: &str) -> WorkerPath {
    WorkerPath::parse(name).unwrap()
}

fn register(world: &mut World, name: &str) -> Result<WorkerStatus, Reject> {
    let registration = Registration {
        queues: vec!["default/default/queue/mail".into()],
        concurrency: 1,
        session_timeout_ms: 10_000,
        retention_ms: 60_000,
        ..Registration::default()
    };
    ask(world, WorkerCommand::Register { path: path(name), registration: Box::new(registration) })
}

fn ask(world: &mut World, command: WorkerCommand) -> Result<WorkerStatus, Reject> {
    match world.run(&Command::Worker(command)) {
        Outcome::Changed(Reply::Worker(WorkerReply::Status(status, _)), _)
        | Outcome::Answered(Reply::Worker(WorkerReply::Status(status, _)), _) => Ok(*status),
        Outcome::Rejected(reject) => Err(reject),
        other => panic!("{other:?}"),
    }
}

fn state(world: &mut World, name: &str) -> WorkerState {
    ask(world, WorkerCommand::Describe(path(name))).unwrap().state
}

/// A shard after its start.
fn started() -> World {
    let mut world = World::default();
    world.create(Kind::Queue, "mail");
    world
}

#[test]
fn a_silent_worker_is_dead_exactly_after_its_session() {
    let mut world = started();
    let status = register(&mut world, "w").unwrap();
    assert_eq!((status.heard_at, status.until), (Some(Millis(1_000)), Some(Millis(11_000))));
    world.now = Millis(10_999);
    assert!(world.tick(2).is_empty());
    assert_eq!(world.machine.next_due(), Some(Millis(11_000)));
    world.now = Millis(11_000);
    let facts = world.tick(2);
    assert!(matches!(&facts[..], [Fact::Worker(fact)] if fact.change == WorkerChange::Died), "{facts:?}");
    assert_eq!(state(&mut world, "w"), WorkerState::Dead);
}

#[test]
fn after_a_start_a_worker_has_a_whole_session_again() {
    for checkpoint in [false, true] {
        let mut world = started();
        let epoch = register(&mut world, "w").unwrap().epoch;
        if checkpoint {
            world.seal();
            world.write();
        }
        world.now = Millis(900_000);
        world.crash();
        // Time goes by before the first tick, and before the catalog is known nobody is missed.
        assert!(world.tick(2).is_empty());
        world.now = Millis(909_999);
        assert!(world.tick(2).is_empty());
        assert_eq!(state(&mut world, "w"), WorkerState::Alive);
        ask(&mut world, WorkerCommand::Heartbeat { path: path("w"), epoch }).unwrap();
        world.now = Millis(910_000);
        assert!(world.tick(2).is_empty(), "it was heard of");
        world.now = Millis(919_999);
        assert_eq!(world.tick(2).len(), 1);
        assert_eq!(state(&mut world, "w"), WorkerState::Dead);
    }
}

#[test]
fn nobody_is_missed_before_the_start_is_over() {
    let mut world = started();
    register(&mut world, "w").unwrap();
    let mut machine = world.replayed(world.lsn);
    let tick = machine.tick(Millis(900_000), Lsn(9), 2);
    assert!(tick.facts.is_empty() && tick.next.is_none(), "{tick:?}");
    machine.set_catalog(machine.catalog_snapshot());
    assert_eq!(machine.tick(Millis(900_000), Lsn(9), 2).next, Some(Millis(910_000)));
}

#[test]
fn epochs_only_grow_across_starts_and_after_a_worker_was_forgotten() {
    let mut world = started();
    let mut last = register(&mut world, "w").unwrap().epoch;
    for round in 0..6 {
        if round % 2 == 0 {
            world.seal();
            world.write();
        }
        if round % 3 == 0 {
            ask(&mut world, WorkerCommand::Leave { path: path("w"), epoch: last }).unwrap();
            ask(&mut world, WorkerCommand::Forget(path("w"))).unwrap();
        }
        world.crash();
        let next = register(&mut world, "w").unwrap().epoch;
        assert!(next > last);
        let stale = ask(&mut world, WorkerCommand::Heartbeat { path: path("w"), epoch: last }).unwrap_err();
        assert_eq!(stale.reason(), "STALE_WORKER");
        assert_eq!(stale.details(), [("epoch", last.0), ("current", next.0)]);
        last = next;
    }
}

#[test]
fn a_full_shard_forgets_who_is_gone_for_longest_and_refuses_if_all_are_there() {
    let mut world = started();
    for number in 0..WORKERS_MAX {
        register(&mut world, &format!("w{number}")).unwrap();
    }
    let refused = register(&mut world, "more").unwrap_err();
    assert_eq!((refused.reason(), refused.code()), ("TOO_MANY_WORKERS", Code::ResourceExhausted));
    assert_eq!(refused.details(), [("max", WORKERS_MAX as u64)]);
    // Who is there may register anew.
    register(&mut world, "w7").unwrap();
    for name in ["w5", "w3"] {
        world.now = world.now.plus(1);
        let epoch = ask(&mut world, WorkerCommand::Describe(path(name))).unwrap().epoch;
        ask(&mut world, WorkerCommand::Leave { path: path(name), epoch }).unwrap();
    }
    register(&mut world, "more").unwrap();
    let found = ask(&mut world, WorkerCommand::Describe(path("w5"))).map(|status| status.state);
    assert_eq!(found, Err(Reject::WorkerNotFound { path: "default/default/worker/w5".to_owned() }));
    assert_eq!(state(&mut world, "w3"), WorkerState::Left);
    world.machine.check_all();
    assert_eq!(world.machine.stats().workers, [WORKERS_MAX as u64 - 1, 0, 1, 0]);
    assert!(world.machine.memory_bytes() < WORKERS_MAX as u64 * 1024, "{}", world.machine.memory_bytes());
}

#[test]
fn a_list_goes_on_where_it_ended_and_looks_at_no_more_than_it_may() {
    let mut world = started();
    for number in 0..12_000 {
        register(&mut world, &format!("w{number:05}")).unwrap();
    }
    let mut page = |after, prefix: &str, workers_max| {
        let filter = WorkerFilter { prefix: prefix.into(), ..WorkerFilter::default() };
        let list = WorkerCommand::List { after, filter, workers_max };
        match world.run(&Command::Worker(list)).reply() {
            Reply::Worker(WorkerReply::List { workers, next }) => (workers, next),
            other => panic!("{other:?}"),
        }
    };
    let (first, next) = page(None, "", 5_000);
    assert_eq!((first.len(), &next), (5_000, &Some(path("w04999"))));
    let (second, next) = page(next, "", 5_000);
    assert_eq!((second.len(), second[0].path.name()), (5_000, "w05000"));
    let (third, next) = page(next, "", 5_000);
    assert_eq!((third.len(), next), (2_000, None));
    assert!(page(None, "", 10_000).0.len() < 10_000, "a reply is bounded in bytes, too");
    // What is wanted lies beyond what one call looks at.
    let (none, next) = page(None, "default/default/worker/w119", 10);
    assert_eq!((none.len(), &next), (0, &Some(path("w09999"))));
    let (found, next) = page(next, "default/default/worker/w119", 10);
    assert_eq!((found.len(), found[0].path.name(), next), (10, "w11900", Some(path("w11909"))));
}

fn queue(world: &mut World, queue: ResourceId, command: QueueCommand) -> Reply {
    world.run(&Command::Queue(queue, command)).reply()
}

fn work(world: &mut World, id: ResourceId, worker: &str, after: JobCursor, jobs_max: u32) -> WorkerOnQueue {
    let worker = Bytes::copy_from_slice(worker.as_bytes());
    match queue(world, id, QueueCommand::Worker { worker, after, jobs_max }) {
        Reply::WorkerOnQueue(seen) => *seen,
        other => panic!("{other:?}"),
    }
}

/// Enqueues a job, reserves it under that name, and acknowledges it if it is to.
fn work_one(world: &mut World, id: ResourceId, worker: &str, ack: bool) {
    queue(world, id, QueueCommand::enqueue(Batch::from_elem(NewJob::default(), 1)));
    let worker = Bytes::copy_from_slice(worker.as_bytes());
    let reserve = QueueCommand::Reserve {
        jobs_max: 1,
        visibility_timeout_ms: Some(1_000_000),
        worker,
        wait_until: None,
    };
    let Reply::Reserved(jobs) = queue(world, id, reserve) else { panic!("no job") };
    if ack {
        let leases = jobs.iter().map(|job| LeaseRef { job: job.job, token: job.token });
        queue(world, id, QueueCommand::ack(leases));
    }
}

#[test]
fn a_queue_counts_for_so_many_names_and_forgets_the_idle_first() {
    let mut world = World::default();
    let id = world.create(Kind::Queue, "mail");
    // Idle for longest, but one of them has a job.
    work_one(&mut world, id, "old", true);
    work_one(&mut world, id, "busy", true);
    work_one(&mut world, id, "busy", false);
    let mut names = 2;
    while names < QUEUE_WORKERS_MAX {
        world.now = world.now.plus(1);
        work_one(&mut world, id, &format!("w{names}"), true);
        names += 1;
    }
    let acked = |world: &mut World, name: &str| work(world, id, name, JobCursor::default(), 0).counts.acked;
    assert_eq!((acked(&mut world, "old"), acked(&mut world, "busy")), (1, 1));
    world.now = world.now.plus(1);
    work_one(&mut world, id, "new", true);
    assert_eq!((acked(&mut world, "old"), acked(&mut world, "busy"), acked(&mut world, "new")), (0, 1, 1));
    assert_eq!((acked(&mut world, "w2"), acked(&mut world, &format!("w{}", names - 1))), (0, 1));
    world.machine.check_all();
    world.seal();
    world.write();
    world.crash();
    assert_eq!((acked(&mut world, "busy"), acked(&mut world, "old")), (1, 0));
    world.machine.check_all();
}

#[test]
fn what_a_worker_has_is_shown_in_pages() {
    let mut world = World::default();
    let id = world.create(Kind::Queue, "mail");
    for number in 0..30 {
        world.now = world.now.plus(1);
        work_one(&mut world, id, ["ada", "bob"][number % 2], false);
    }
    let (mut after, mut jobs) = (JobCursor::default(), Vec::new());
    loop {
        let seen = work(&mut world, id, "bob", after, 4);
        assert_eq!(seen.running, 15);
        assert!(seen.jobs.len() <= 4);
        jobs.extend(seen.jobs);
        let Some(next) = seen.next else { break };
        after = next;
    }
    assert_eq!(
        jobs.iter().map(|job| job.job.0).collect::<Vec<_>>(),
        (1..=15).map(|n| 2 * n).collect::<Vec<_>>()
    );
    assert!(jobs.iter().all(|job| job.attempt == 1 && job.until == job.since.plus(1_000_000)));
    let wide = QueueCommand::Worker { worker: "ada".into(), after, jobs_max: WORKER_JOBS_SHOWN_MAX + 1 };
    let Outcome::Rejected(refused) = world.run(&Command::Queue(id, wide)) else { panic!("accepted") };
    assert!(refused.to_string().starts_with("jobs_max"), "{refused}");
}
