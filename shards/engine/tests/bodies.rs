//! What jobs are about, when memory has it no longer: fetched ahead of those who ask, whatever happens to the jobs meanwhile.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a test")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use common::{Rig, SimTimer};
use flowmesh_model::command::{LeaseRef, Nack, NewJob};
use flowmesh_model::job::{JobCursor, JobFilter, JobPhase, NackKind, Which};
use flowmesh_model::reply::LeasedJob;
use flowmesh_model::{Command, JobId, Kind, QueueCommand, Reply, ResourceId};
use flowmesh_sim::{Random, SimDisk};

/// A shard that makes a checkpoint only when it is told to, and keeps 16 KiB of bodies.
fn open(dir: &Path, disk: &SimDisk) -> Rig {
    Rig::open_quiet(dir, disk, &SimTimer::default(), |_| {})
}

fn payload(job: u64) -> Bytes {
    let mut payload = job.to_string().into_bytes();
    payload.resize(100, b'.');
    payload.into()
}

/// Enqueues the jobs `first` to `last`, whose payloads say their numbers.
fn fill(rig: &mut Rig, queue: ResourceId, first: u64, last: u64) {
    let numbers: Vec<u64> = (first..=last).collect();
    for numbers in numbers.chunks(1000) {
        let job = |number: &u64| NewJob {
            payload: payload(*number),
            headers: Bytes::new(),
            priority: 0,
            delay_ms: 0,
            max_attempts: None,
            options: None,
        };
        let jobs = numbers.iter().map(job).collect();
        rig.ask(Command::Queue(queue, QueueCommand::enqueue(jobs))).unwrap();
    }
}

fn checkpoint(rig: &mut Rig) {
    let shard = rig.shard.clone();
    rig.pool.run_until(async move { shard.checkpoint().await }).unwrap();
    rig.shard.check_all();
}

fn reserve(rig: &mut Rig, queue: ResourceId, jobs_max: u32) -> Vec<LeasedJob> {
    let reserve = QueueCommand::Reserve {
        jobs_max,
        visibility_timeout_ms: Some(600_000),
        worker: Bytes::new(),
        wait_until: None,
    };
    let Ok(Reply::Reserved(jobs)) = rig.ask(Command::Queue(queue, reserve)) else { panic!("not reserved") };
    for job in &jobs {
        assert_eq!(job.payload, payload(job.job.get()), "job {}", job.job);
    }
    jobs
}

fn lease(job: &LeasedJob) -> LeaseRef {
    LeaseRef { job: job.job, token: job.token }
}

#[test]
fn jobs_of_a_deep_queue_come_with_their_payloads_whatever_goes_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(3);
    let mut rig = open(dir.path(), &disk);
    let queue = rig.create(Kind::Queue, "deep");
    let mut other = Some(rig.create(Kind::Queue, "other"));
    let mut random = Random::new(11);
    let mut waiting: BTreeSet<u64> = BTreeSet::new();
    let mut last = 0;
    for round in 0..6 {
        fill(&mut rig, queue, last + 1, last + 6_000);
        if let Some(other) = other {
            fill(&mut rig, other, round * 3_000 + 1, (round + 1) * 3_000);
        }
        waiting.extend(last + 1..=last + 6_000);
        last += 6_000;
        checkpoint(&mut rig);
        let mut leased = Vec::new();
        for _ in 0..40 {
            for job in reserve(&mut rig, queue, 1 + random.below(90) as u32) {
                assert_eq!(waiting.pop_first(), Some(job.job.get()));
                leased.push(job);
            }
            // Jobs that are wanted next go while they may be on their way into memory: cancelled, or with all of a queue.
            let next: Vec<u64> = waiting.iter().copied().skip(random.below(3000) as usize).take(20).collect();
            let cancel = QueueCommand::Cancel { jobs: next.iter().map(|job| JobId(*job)).collect() };
            let cancelled = rig.submit(Command::Queue(queue, cancel));
            if random.below(2) == 0 {
                let acks = QueueCommand::ack(leased.drain(..).map(|job| lease(&job)));
                if !matches!(&acks, QueueCommand::Ack { acks } if acks.is_empty()) {
                    rig.submit(Command::Queue(queue, acks));
                }
            }
            // Its answer comes after theirs.
            rig.ask(Command::Queue(queue, QueueCommand::Status)).unwrap();
            assert!(
                matches!(&*cancelled.borrow(), Some(Ok(Reply::Cancelled(_)))),
                "{:?}",
                cancelled.borrow()
            );
            waiting.retain(|job| !next.contains(job));
        }
        if round == 3
            && let Some(other) = other.take()
        {
            reserve(&mut rig, other, 200);
            rig.delete(Kind::Queue, "other");
        }
        rig.shard.check_all();
        if round % 2 == 1 {
            // As after kill -9; what was leased stays so.
            drop(rig);
            rig = open(dir.path(), &disk);
        }
    }
    // To the end: every one that waits, once, in order.
    checkpoint(&mut rig);
    while !waiting.is_empty() {
        for job in reserve(&mut rig, queue, 500) {
            assert_eq!(waiting.pop_first(), Some(job.job.get()));
        }
    }
    assert!(reserve(&mut rig, queue, 1).is_empty());
}

#[test]
fn what_comes_next_is_in_memory_before_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(4);
    let mut rig = open(dir.path(), &disk);
    let queue = rig.create(Kind::Queue, "deep");
    fill(&mut rig, queue, 1, 20_000);
    checkpoint(&mut rig);
    drop(rig);
    let mut rig = open(dir.path(), &disk);
    // After a start nothing is in memory: the first one waits, and brings those behind it along.
    reserve(&mut rig, queue, 100);
    let mut waited = 0;
    for _ in 0..150 {
        let reserve = QueueCommand::Reserve {
            jobs_max: 100,
            visibility_timeout_ms: Some(600_000),
            worker: Bytes::new(),
            wait_until: None,
        };
        let waits = rig.shard.stats().body_waits;
        let Ok(Reply::Reserved(jobs)) = rig.ask(Command::Queue(queue, reserve)) else {
            panic!("not reserved")
        };
        assert_eq!(jobs.len(), 100);
        waited += rig.shard.stats().body_waits - waits;
        // The disk keeps up.
        while rig.shard.stats().body_looks > 0 {
            rig.run();
            std::thread::yield_now();
        }
    }
    assert_eq!(waited, 0, "reserves that waited for payloads");
}

#[test]
fn what_is_purged_while_payloads_are_on_their_way_is_gone_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(5);
    let mut rig = open(dir.path(), &disk);
    let queue = rig.create(Kind::Queue, "deep");
    let mut random = Random::new(12);
    let (mut waiting, mut dead, mut purged) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut last = 0;
    for round in 0..8 {
        fill(&mut rig, queue, last + 1, last + 3_000);
        waiting.extend(last + 1..=last + 3_000);
        last += 3_000;
        let jobs = reserve(&mut rig, queue, 800);
        let nack = |job: &LeasedJob| Nack {
            lease: lease(job),
            kind: NackKind::Final,
            delay_ms: None,
            error: Bytes::from_static(b"no"),
        };
        let nacks = jobs.iter().map(nack).collect();
        rig.ask(Command::Queue(queue, QueueCommand::Nack { nacks })).unwrap();
        for job in &jobs {
            assert!(waiting.remove(&job.job.get()) && dead.insert(job.job.get()));
        }
        checkpoint(&mut rig);
        // Looks at dead ones, and looks ahead at what waits, begin; some of both go before their payloads are there.
        for _ in 0..9 {
            let list = QueueCommand::List {
                phase: Some(JobPhase::Dead),
                filter: JobFilter::default(),
                after: JobCursor::default(),
                jobs_max: 500,
                with_bodies: true,
            };
            let listed = rig.submit(Command::Queue(queue, list));
            let back: Vec<u64> = some_of(&dead, &mut random, 20);
            let which = Which::Jobs(back.iter().map(|job| JobId(*job)).collect());
            let redriven = rig.submit(Command::Queue(
                queue,
                QueueCommand::Redrive { which, per_second: None, delay_ms: 0 },
            ));
            dead.retain(|job| !back.contains(job));
            waiting.extend(&back);
            let one = rig.submit(Command::Queue(queue, QueueCommand::Peek { jobs_max: 50 }));
            let gone = some_of(&dead, &mut random, 60);
            let which = Which::Jobs(gone.iter().map(|job| JobId(*job)).collect());
            let purge = QueueCommand::Purge { which, phase: JobPhase::Dead };
            let purges = rig.submit(Command::Queue(queue, purge));
            dead.retain(|job| !gone.contains(job));
            let cancelled = some_of(&waiting, &mut random, 20);
            let cancel = QueueCommand::Cancel { jobs: cancelled.iter().map(|job| JobId(*job)).collect() };
            let cancels = rig.submit(Command::Queue(queue, cancel));
            waiting.retain(|job| !cancelled.contains(job));
            purged.extend(gone.into_iter().chain(cancelled));
            rig.ask(Command::Queue(queue, QueueCommand::Status)).unwrap();
            while listed.borrow().is_none() || one.borrow().is_none() {
                rig.run();
                std::thread::yield_now();
            }
            for answer in [&redriven, &purges, &cancels, &listed, &one] {
                assert!(matches!(&*answer.borrow(), Some(Ok(_))), "{:?}", answer.borrow());
            }
            for answer in [&listed, &one] {
                let Some(Ok(Reply::Jobs { jobs, .. })) = answer.borrow_mut().take() else {
                    panic!("no jobs")
                };
                for job in &jobs {
                    assert_eq!(job.payload, payload(job.job.get()), "job {}", job.job);
                }
            }
        }
        rig.shard.check_all();
        if round % 3 == 2 {
            drop(rig);
            rig = open(dir.path(), &disk);
        }
    }
    checkpoint(&mut rig);
    drop(rig);
    let mut rig = open(dir.path(), &disk);
    let all = Which::Matching(JobFilter::default(), JobCursor::default());
    let redrive = QueueCommand::Redrive { which: all, per_second: None, delay_ms: 0 };
    rig.ask(Command::Queue(queue, redrive)).unwrap();
    waiting.extend(&dead);
    let mut found = BTreeSet::new();
    loop {
        let jobs = reserve(&mut rig, queue, 500);
        if jobs.is_empty() {
            break;
        }
        for job in jobs {
            assert!(found.insert(job.job.get()), "job {} twice", job.job);
        }
    }
    assert_eq!(found, waiting, "all that waits or is dead, and nothing that went");
    assert!(purged.len() > 1_000 && purged.is_disjoint(&found));
}

/// So many of these, next to each other.
fn some_of(jobs: &BTreeSet<u64>, random: &mut Random, count: usize) -> Vec<u64> {
    let first = random.below(jobs.len() as u64) as usize;
    jobs.iter().copied().skip(first).take(count).collect()
}
