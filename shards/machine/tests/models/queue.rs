//! A queue is a list of jobs, searched from the start for everything.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use bytes::Bytes;
use flowmesh_model::command::{Ack, LeaseRef, Nack, NewJob};
use flowmesh_model::job::{
    AttemptEnd, JobCursor, JobFilter, JobKey, JobOptions, JobPhase, JobRef, NackKind, Which,
};
use flowmesh_model::reject::LeaseLost;
use flowmesh_model::reply::{Cancelled, EnqueuedJob, Extended, LeasedJob, QueueStatus};
use flowmesh_model::settings::WhenFull;
use flowmesh_model::worker::WorkCounts;
use flowmesh_model::{
    Batch, Command, JobId, LeaseToken, Millis, QueueCommand, QueueSettings, Reject, Reply, Settings,
};
use proptest::prelude::*;

use crate::common::{Outcome, World, cases};

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Ready at; whether a tick or an apply has seen that its time has come.
    Waiting(Millis, bool),
    Blocked(Millis),
    Leased(Millis),
    Dead(Millis),
    /// Kept until.
    Done(Millis),
    Gone,
}

#[derive(Clone, Debug)]
struct Job {
    id: u64,
    priority: u8,
    group: u8,
    payload: Bytes,
    max_attempts: u32,
    expires_at: Option<Millis>,
    key: Option<(u8, Option<Millis>)>,
    after: Vec<u64>,
    any_end: bool,
    enqueued_at: Millis,
    attempts: u32,
    crashes: u32,
    /// Who had it last.
    worker: usize,
    token: u64,
    last_end: Option<AttemptEnd>,
    cancel: bool,
    state: State,
}

impl Job {
    fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting(..) | State::Blocked(_))
    }

    fn is_ready(&self) -> bool {
        matches!(self.state, State::Waiting(_, true))
    }

    /// Its time to live may be over before a tick removes it.
    fn is_to_be_had(&self, now: Millis) -> bool {
        self.is_ready() && self.expires_at.is_none_or(|at| at > now)
    }
}

#[derive(Default)]
struct Model {
    settings: QueueSettings,
    jobs: Vec<Job>,
    last_token: u64,
    /// When each group was served last, in turns; 0: jobs without one.
    turns: BTreeMap<u8, u64>,
    turn: u64,
    /// Until a crash, after which they may be others.
    turns_known: bool,
    paused: bool,
    totals: QueueStatus,
    work: [WorkCounts; WORKERS.len()],
}

/// Names that jobs are reserved with; nothing is counted for who has none.
const WORKERS: [&str; 4] = ["", "ada", "bob", "cy"];

impl Model {
    fn find(&mut self, id: u64) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.id == id && job.state != State::Gone)
    }

    /// Jobs that may be leased now, of each group its first whose time to live is not over.
    fn candidates(&self, now: Millis) -> Vec<&Job> {
        let leased = |group: u8| {
            let of = self.jobs.iter().filter(|job| job.group == group);
            of.filter(|job| matches!(job.state, State::Leased(_))).count() as u32
        };
        let retries = |group: u8| {
            let mut of = self.jobs.iter().filter(|job| job.group == group);
            of.any(|job| matches!(job.state, State::Waiting(_, false)) && job.attempts > 0)
        };
        let limit = self.settings.group_concurrency;
        if self.paused
            || self.settings.concurrency.is_some_and(|most| self.status().leased >= u64::from(most))
        {
            return Vec::new();
        }
        let may =
            |job: &Job| job.group == 0 || (leased(job.group) < limit && (limit > 1 || !retries(job.group)));
        // Of a group only its first job is looked at.
        let first = |job: &Job| {
            let mut before = self.jobs.iter().take_while(|other| other.id < job.id);
            job.group == 0 || !before.any(|other| other.group == job.group && other.is_to_be_had(now))
        };
        self.jobs.iter().filter(|job| job.is_to_be_had(now) && may(job) && first(job)).collect()
    }

    /// Those of them that must come: where the time of one of its jobs is over, a group may lose its turn.
    fn sure_candidates(&self, now: Millis) -> Vec<&Job> {
        let is_over = |job: &Job| job.is_ready() && !job.is_to_be_had(now);
        let loses = |group: u8| self.jobs.iter().any(|job| job.group == group && is_over(job));
        let mut candidates = self.candidates(now);
        candidates.retain(|job| job.group == 0 || !loses(job.group));
        candidates
    }

    /// How soon a job is: smaller is sooner. Without a group by number, too.
    fn order(&self, job: &Job) -> (Reverse<u8>, u64, u64) {
        let turn = if self.turns_known { self.turns.get(&job.group).copied().unwrap_or(0) } else { 0 };
        let number = if job.group == 0 { job.id } else { 0 };
        (Reverse(job.priority), turn, number)
    }

    /// Leases a job, which must be one of those that come next.
    fn reserve(&mut self, now: Millis, timeout_ms: u64, worker: usize, leased: &LeasedJob) {
        let (candidates, sure) = (self.candidates(now), self.sure_candidates(now));
        let place = |job: &Job| self.order(job);
        let chosen = candidates.iter().find(|job| job.id == leased.job.0).expect("the job is to be had");
        let sooner = sure.iter().find(|job| {
            let (a, b) = (place(job), place(chosen));
            // Numbers only count among jobs without a group.
            (a.0, a.1) < (b.0, b.1) || (job.group == 0 && chosen.group == 0 && a < b)
        });
        assert!(sooner.is_none(), "{sooner:?} comes before {chosen:?}");
        let (id, group) = (chosen.id, chosen.group);
        self.turn += 1;
        self.last_token += 1;
        self.turns.insert(group, self.turn);
        let (token, job) = (self.last_token, self.find(id).unwrap());
        job.attempts += 1;
        job.token = token;
        job.worker = worker;
        job.state = State::Leased(now.plus(timeout_ms));
        let found =
            (leased.token.0, leased.attempt, leased.enqueued_at, leased.leased_until, &leased.payload);
        assert_eq!(found, (token, job.attempts, job.enqueued_at, now.plus(timeout_ms), &job.payload));
    }

    /// A group without jobs is forgotten, and with it when it was served.
    fn forget_groups(&mut self) {
        let jobs = &self.jobs;
        self.turns.retain(|group, _| {
            *group == 0 || jobs.iter().any(|job| job.group == *group && job.state != State::Gone)
        });
    }

    /// The job of a lease that counts.
    fn held(&mut self, now: Millis, lease: LeaseRef) -> Result<&mut Job, Reject> {
        let lost = |reason| Reject::LeaseLost { job: lease.job, reason };
        let job = self.jobs.iter_mut().find(|job| job.id == lease.job.0);
        let job = job.ok_or(Reject::JobNotFound { job: lease.job })?;
        match job.state {
            State::Gone | State::Done(_) => Err(lost(LeaseLost::Settled)),
            _ if lease.token.0 < job.token => Err(lost(LeaseLost::Superseded)),
            State::Leased(until) if until > now => Ok(job),
            State::Leased(_) => Err(lost(LeaseLost::Expired)),
            _ => Err(lost(match job.last_end {
                Some(AttemptEnd::Expired | AttemptEnd::Quarantined) => LeaseLost::Expired,
                _ => LeaseLost::Settled,
            })),
        }
    }

    fn return_or_die(&mut self, id: u64, now: Millis, end: AttemptEnd, ready_at: Millis) {
        let quarantine = self.settings.quarantine_after;
        let job = self.find(id).unwrap();
        job.last_end = Some(end);
        let mut dies = job.attempts >= job.max_attempts || end == AttemptEnd::Final;
        let (worker, cancel) = (job.worker, job.cancel);
        match end {
            AttemptEnd::Released => (job.attempts, dies) = (job.attempts - 1, false),
            AttemptEnd::Expired => {
                job.crashes += 1;
                dies |= quarantine.is_some_and(|most| job.crashes >= most);
            }
            _ => {}
        }
        if !cancel {
            let work = &mut self.work[worker];
            work.last_seen = now;
            match end {
                AttemptEnd::Nacked | AttemptEnd::Final => work.failed += 1,
                AttemptEnd::Expired => work.lost += 1,
                _ => {}
            }
        }
        let job = self.find(id).unwrap();
        if cancel {
            self.gone(id, now);
            self.totals.cancelled_total += 1;
        } else if dies {
            self.die(id, now);
        } else {
            job.state = State::Waiting(ready_at, ready_at <= now);
            self.totals.retried_total += u64::from(end != AttemptEnd::Released);
        }
    }

    fn die(&mut self, id: u64, now: Millis) {
        self.find(id).unwrap().state = State::Dead(now);
        self.totals.died_total += 1;
        self.ended(id, now, false, false);
    }

    fn gone(&mut self, id: u64, now: Millis) {
        let job = self.find(id).unwrap();
        let was_done = matches!(job.state, State::Done(_));
        job.state = State::Gone;
        self.forget_groups();
        if !was_done {
            self.ended(id, now, false, true);
        }
    }

    fn done(&mut self, id: u64, now: Millis) {
        let keep = self.settings.done_retention_ms;
        let job = self.find(id).unwrap();
        job.state = keep.map_or(State::Gone, |ms| State::Done(now.plus(ms)));
        let worker = job.worker;
        let work = &mut self.work[worker];
        (work.acked, work.last_seen) = (work.acked + 1, now);
        self.forget_groups();
        self.totals.done_total += 1;
        self.ended(id, now, true, true);
    }

    /// Those that wait for a job go on, wait on, or die.
    fn ended(&mut self, id: u64, now: Millis, done: bool, gone: bool) {
        let waiters =
            self.jobs.iter().filter(|job| matches!(job.state, State::Blocked(_)) && job.after.contains(&id));
        for waiter in waiters.map(|job| job.id).collect::<Vec<_>>() {
            let job = self.find(waiter).unwrap();
            if done || job.any_end {
                job.after.retain(|other| *other != id);
                if let (true, State::Blocked(at)) = (job.after.is_empty(), job.state) {
                    job.state = State::Waiting(at, at <= now);
                }
            } else if gone {
                job.last_end = Some(AttemptEnd::Final);
                self.die(waiter, now);
            }
        }
    }

    /// What time brings: first for those whose time has come, then for leases, times to live, and what is kept.
    fn tick(&mut self, now: Millis) {
        for job in &mut self.jobs {
            if let State::Waiting(at, false) = job.state {
                job.state = State::Waiting(at, at <= now);
            }
        }
        let dead_ms = self.settings.dead_retention_ms;
        let lease = |job: &Job| if let State::Leased(until) = job.state { Some(until) } else { None };
        for id in self.due(now, lease) {
            self.return_or_die(id, now, AttemptEnd::Expired, now);
        }
        for id in self.due(now, |job| job.expires_at.filter(|_| job.is_waiting())) {
            // It may have died because one before it is gone.
            if self.find(id).is_some_and(|job| job.is_waiting()) {
                self.totals.expired_total += 1;
                self.gone(id, now);
            }
        }
        for id in self.due(now, |job| if let State::Done(until) = job.state { Some(until) } else { None }) {
            self.gone(id, now);
        }
        for id in
            self.due(
                now,
                |job| if let State::Dead(since) = job.state { Some(since.plus(dead_ms?)) } else { None },
            )
        {
            self.totals.purged_total += 1;
            self.gone(id, now);
        }
    }

    /// Jobs whose time has come, in order.
    fn due(&self, now: Millis, time: impl Fn(&Job) -> Option<Millis>) -> Vec<u64> {
        let mut due: Vec<(Millis, u64)> = self
            .jobs
            .iter()
            .filter_map(|job| Some((time(job)?, job.id)))
            .filter(|(at, _)| *at <= now)
            .collect();
        due.sort_unstable();
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// The job that a key stands for.
    fn known(&self, key: u8, now: Millis) -> Option<&Job> {
        let of_key = |job: &&Job| job.key.is_some_and(|(of, _)| of == key);
        self.jobs.iter().rev().filter(of_key).find(|job| match job.key {
            Some((_, Some(until))) => until > now,
            _ => !matches!(job.state, State::Gone | State::Done(_)),
        })
    }

    fn status(&self) -> QueueStatus {
        let count = |wanted: &dyn Fn(&Job) -> bool| self.jobs.iter().filter(|job| wanted(job)).count() as u64;
        QueueStatus {
            delayed: count(&|job| matches!(job.state, State::Waiting(_, false))),
            leased: count(&|job| matches!(job.state, State::Leased(_))),
            dead: count(&|job| matches!(job.state, State::Dead(_))),
            done: count(&|job| matches!(job.state, State::Done(_))),
            enqueued_total: self.jobs.len() as u64,
            paused: self.paused,
            waiting_bytes: self
                .jobs
                .iter()
                .filter(|job| job.is_waiting())
                .map(|job| job.payload.len() as u64)
                .sum(),
            ..self.totals
        }
    }

    /// Jobs that are ready or held back by others.
    fn waiting_now(&self) -> u64 {
        self.jobs.iter().filter(|job| job.is_ready() || matches!(job.state, State::Blocked(_))).count() as u64
    }

    fn waiting(&self) -> u64 {
        self.jobs.iter().filter(|job| job.is_waiting()).count() as u64
    }
}

#[derive(Clone, Debug)]
struct New {
    priority: u8,
    group: u8,
    delay_ms: u64,
    max_attempts: Option<u32>,
    ttl_ms: Option<u64>,
    key: Option<(u8, Option<u64>)>,
    payload: u8,
    /// How many numbers before its own, of jobs it waits for.
    after: Vec<u64>,
    any_end: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Enqueue(Vec<New>),
    Reserve { jobs_max: u32, timeout_ms: u64 },
    Ack(Vec<usize>),
    Nack(Vec<(usize, NackKind, Option<u64>)>),
    Extend(Vec<usize>),
    Cancel(Vec<u64>),
    Change(u64, Option<u8>, Option<u64>),
    Redrive(Option<u32>, u64),
    Purge(JobPhase),
    Pause(bool),
    Pass(u64),
    Tick,
    Checkpoint,
    Crash,
}

fn new_job() -> impl Strategy<Value = New> {
    let groups = prop_oneof![3 => Just(0u8), 4 => 1u8..4];
    let key = prop::option::weighted(0.3, (0u8..4, prop::option::of(10u64..60)));
    let delay = prop_oneof![2 => Just(0), 1 => 0u64..60];
    let after = prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(1u64..6, 1..3)];
    (
        0u8..4,
        groups,
        delay,
        prop::option::of(1u32..4),
        prop::option::weighted(0.2, 1u64..80),
        key,
        0u8..2,
        after,
        any::<bool>(),
    )
        .prop_map(|(priority, group, delay_ms, max_attempts, ttl_ms, key, payload, after, any_end)| {
            New { priority, group, delay_ms, max_attempts, ttl_ms, key, payload, after, any_end }
        })
}

fn step() -> impl Strategy<Value = Step> {
    let lease = 0usize..1000;
    let kind = prop_oneof![Just(NackKind::Failed), Just(NackKind::Final), Just(NackKind::Released)];
    prop_oneof![
        6 => prop::collection::vec(new_job(), 1..5).prop_map(Step::Enqueue),
        5 => (1u32..6, 100u64..200).prop_map(|(jobs_max, timeout_ms)| Step::Reserve { jobs_max, timeout_ms }),
        4 => prop::collection::vec(lease.clone(), 1..5).prop_map(Step::Ack),
        3 => prop::collection::vec((lease.clone(), kind, prop::option::of(0u64..30)), 1..4).prop_map(Step::Nack),
        1 => prop::collection::vec(lease, 1..3).prop_map(Step::Extend),
        2 => prop::collection::vec(1u64..40, 1..4).prop_map(Step::Cancel),
        1 => (1u64..40, prop::option::of(0u8..4), prop::option::of(0u64..50)).prop_map(|(job, priority, at)| Step::Change(job, priority, at)),
        1 => (prop::option::of(1u32..2000), 0u64..20).prop_map(|(rate, delay)| Step::Redrive(rate, delay)),
        1 => prop::sample::select(vec![JobPhase::Dead, JobPhase::Done]).prop_map(Step::Purge),
        1 => prop_oneof![1 => Just(true), 3 => Just(false)].prop_map(Step::Pause),
        4 => (0u64..90).prop_map(Step::Pass),
        3 => Just(Step::Tick),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Crash),
    ]
}

fn settings() -> impl Strategy<Value = QueueSettings> {
    let full =
        prop_oneof![Just(WhenFull::Refuse), Just(WhenFull::DropOldest), Just(WhenFull::DropLowestPriority)];
    let retention = prop::option::of(20u64..200);
    (
        1u32..3,
        prop::option::of(1u32..5),
        prop::option::of(1u32..3),
        prop::option::of((4u64..12, full)),
        retention.clone(),
        retention,
    )
        .prop_map(
            |(
                group_concurrency,
                concurrency,
                quarantine_after,
                full,
                dead_retention_ms,
                done_retention_ms,
            )| QueueSettings {
                visibility_timeout_ms: 100,
                max_attempts: 2,
                backoff_initial_ms: 10,
                backoff_max_ms: 15,
                group_concurrency,
                concurrency,
                quarantine_after,
                jobs_max: full.map(|(max, _)| max),
                when_full: full.map_or(WhenFull::Refuse, |(_, when)| when),
                dead_retention_ms,
                done_retention_ms,
                ..QueueSettings::default()
            },
        )
}

struct Test {
    world: World,
    queue: flowmesh_model::ResourceId,
    model: Model,
    given: Vec<LeaseRef>,
}

impl Test {
    fn new(settings: QueueSettings) -> Self {
        let mut world = World::default();
        let queue = world.create_with("mail", Settings::Queue(settings.clone()));
        let given = vec![LeaseRef { job: JobId(1_000_000), token: LeaseToken(1) }];
        Self { world, queue, model: Model { settings, turns_known: true, ..Model::default() }, given }
    }

    fn ask(&mut self, command: QueueCommand) -> Outcome {
        self.world.run(&Command::Queue(self.queue, command))
    }

    fn enqueue(&mut self, new: &[New]) {
        let now = self.world.now;
        let mut last = self.model.jobs.len() as u64;
        let (mut ids, mut jobs, mut models) = (Batch::new(), Batch::new(), Vec::<Job>::new());
        let mut expected: Option<Reject> = None;
        for new in new {
            let payload = Bytes::from(vec![b'a' + new.payload; 3]);
            let here = models
                .iter()
                .find(|job| new.key.is_some() && job.key.map(|(key, _)| key) == new.key.map(|(key, _)| key));
            let known = here.or_else(|| new.key.and_then(|(key, _)| self.model.known(key, now)));
            let (known, same) = (known.map(|job| job.id), known.is_none_or(|job| job.payload == payload));
            if let (Some(job), false, None) = (known, same, &expected) {
                expected = Some(Reject::KeyConflict { job: JobId(job) });
            }
            let id = known.unwrap_or(last + 1);
            let after: Vec<u64> =
                new.after.iter().filter_map(|back| id.checked_sub(*back)).filter(|id| *id > 0).collect();
            let place = |id: u64| {
                ids.iter().position(|enqueued: &EnqueuedJob| enqueued.job.0 == id && !enqueued.existing)
            };
            let refs = after
                .iter()
                .map(|id| place(*id).map_or(JobRef::Job(JobId(*id)), |place| JobRef::InBatch(place as u32)));
            let options = JobOptions {
                ttl_ms: new.ttl_ms,
                key: new.key.map(|(key, window_ms)| JobKey { key: Bytes::from(vec![b'k', key]), window_ms }),
                group: if new.group == 0 { Bytes::new() } else { Bytes::from(vec![b'g', new.group]) },
                after: if known.is_some() { Vec::new() } else { refs.collect() },
                after_any_end: new.any_end && known.is_none(),
                ..JobOptions::default()
            };
            jobs.push(NewJob {
                payload: payload.clone(),
                priority: new.priority,
                delay_ms: new.delay_ms,
                max_attempts: new.max_attempts,
                options: (options != JobOptions::default()).then(|| Box::new(options)),
                ..NewJob::default()
            });
            ids.push(EnqueuedJob { job: JobId(id), existing: known.is_some() });
            if known.is_some() {
                continue;
            }
            last += 1;
            models.push(Job {
                id,
                priority: new.priority,
                group: new.group,
                payload,
                max_attempts: new.max_attempts.unwrap_or(self.model.settings.max_attempts),
                expires_at: new.ttl_ms.map(|ms| now.plus(ms)),
                key: new.key.map(|(key, window)| (key, window.map(|ms| now.plus(ms)))),
                after,
                any_end: new.any_end,
                enqueued_at: now,
                attempts: 0,
                crashes: 0,
                worker: 0,
                token: 0,
                last_end: None,
                cancel: false,
                state: State::Waiting(now.plus(new.delay_ms), new.delay_ms == 0),
            });
        }
        let there = |id: u64| self.model.jobs.iter().any(|job| job.id == id && job.state != State::Gone);
        let here = |id: u64| models.iter().any(|job| job.id == id);
        let dropped = self.dropped(&models);
        let stays = |id: u64| there(id) && !dropped.iter().flatten().any(|job| *job == id);
        let missing = models.iter().any(|job| job.after.iter().any(|id| !stays(*id) && !here(*id)));
        let outcome = self.ask(QueueCommand::enqueue(jobs));
        match (expected, dropped) {
            (Some(reject), _) => assert_eq!(outcome, Outcome::Rejected(reject)),
            (None, None) => {
                assert!(matches!(outcome, Outcome::Rejected(Reject::QueueFull { .. })), "{outcome:?}");
            }
            (None, Some(_)) if missing => {
                assert!(matches!(outcome, Outcome::Rejected(Reject::FlowMissing { .. })), "{outcome:?}");
            }
            (None, Some(dropped)) => {
                assert_eq!(outcome.reply(), Reply::Enqueued(ids));
                for job in dropped {
                    // It may have died because one before it is gone.
                    if self.model.find(job).is_some_and(|job| job.is_waiting()) {
                        self.model.totals.dropped_total += 1;
                        self.model.gone(job, now);
                    }
                }
                for mut job in models {
                    let found = |id: u64| self.model.jobs.iter().find(|job| job.id == id);
                    let any_end = job.any_end;
                    job.after.sort_unstable();
                    job.after.dedup();
                    job.after.retain(|id| match found(*id).map(|job| job.state) {
                        Some(State::Done(_)) => false,
                        Some(State::Dead(_)) => !any_end,
                        _ => true,
                    });
                    if let (false, State::Waiting(at, _)) = (job.after.is_empty(), job.state) {
                        job.state = State::Blocked(at);
                    }
                    self.model.jobs.push(job);
                }
            }
        }
    }

    /// Which jobs are dropped for the new ones; `None` if there is no room for them.
    fn dropped(&self, new: &[Job]) -> Option<Vec<u64>> {
        let Some(max) = self.model.settings.jobs_max else { return Some(Vec::new()) };
        if new.is_empty() {
            return Some(Vec::new());
        }
        let over = (self.model.waiting() + new.len() as u64).saturating_sub(max);
        let mut waiting: Vec<&Job> = self.model.jobs.iter().filter(|job| job.is_waiting()).collect();
        match self.model.settings.when_full {
            WhenFull::DropOldest => {}
            WhenFull::DropLowestPriority => {
                let lowest = new.iter().map(|job| job.priority).min()?;
                waiting.retain(|job| job.priority < lowest);
                waiting.sort_by_key(|job| (job.priority, Reverse(job.id)));
            }
            _ => waiting.clear(),
        }
        waiting.truncate(over as usize);
        (waiting.len() as u64 == over).then(|| waiting.iter().map(|job| job.id).collect())
    }

    fn step(&mut self, step: Step) {
        let now = self.world.now;
        let lease = |given: &[LeaseRef], n: usize| given[n % given.len()];
        match step {
            Step::Enqueue(new) => self.enqueue(&new),
            Step::Reserve { jobs_max, timeout_ms } => {
                let worker = jobs_max as usize % WORKERS.len();
                let reserve = QueueCommand::Reserve {
                    jobs_max,
                    visibility_timeout_ms: Some(timeout_ms),
                    worker: Bytes::from_static(WORKERS[worker].as_bytes()),
                    wait_until: None,
                };
                let Reply::Reserved(leased) = self.ask(reserve).reply() else { panic!() };
                for job in &leased {
                    self.model.reserve(now, timeout_ms, worker, job);
                }
                let more = self.model.sure_candidates(now);
                assert!(leased.len() == jobs_max as usize || more.is_empty(), "{more:?} could be had");
                self.given.extend(leased.iter().map(|job| LeaseRef { job: job.job, token: job.token }));
            }
            Step::Ack(which) => {
                let leases: Vec<_> = which.iter().map(|n| lease(&self.given, *n)).collect();
                let outcomes = leases.iter().map(|lease| {
                    let id = self.model.held(now, *lease)?.id;
                    self.model.done(id, now);
                    Ok(())
                });
                let outcomes = outcomes.collect();
                let acks = leases.into_iter().map(|lease| Ack { lease, result: Bytes::new() }).collect();
                assert_eq!(self.ask(QueueCommand::Ack { acks }).reply(), Reply::Settled(outcomes));
            }
            Step::Nack(which) => {
                let nack = |(n, kind, delay_ms): &(usize, NackKind, Option<u64>)| Nack {
                    lease: lease(&self.given, *n),
                    kind: *kind,
                    delay_ms: *delay_ms,
                    error: Bytes::from_static(b"no"),
                };
                let mut nacks: Batch<Nack> = which.iter().map(nack).collect();
                // What the second of the same job is told depends on what the first one was.
                nacks.dedup_by_key(|nack| nack.lease.job);
                nacks.truncate(if nacks.len() == 3 && nacks[0].lease.job == nacks[2].lease.job {
                    2
                } else {
                    3
                });
                let outcomes = nacks.iter().map(|nack| {
                    let job = self.model.held(now, nack.lease)?;
                    let (id, attempts) = (job.id, job.attempts);
                    let (end, default_ms) = match nack.kind {
                        NackKind::Failed => (AttemptEnd::Nacked, [10, 15][attempts.min(2) as usize - 1]),
                        NackKind::Final => (AttemptEnd::Final, 0),
                        NackKind::Released => (AttemptEnd::Released, 0),
                    };
                    self.model.return_or_die(id, now, end, now.plus(nack.delay_ms.unwrap_or(default_ms)));
                    Ok(())
                });
                let outcomes = outcomes.collect();
                assert_eq!(self.ask(QueueCommand::Nack { nacks }).reply(), Reply::Settled(outcomes));
            }
            Step::Extend(which) => {
                let leases: Batch<_> = which.iter().map(|n| lease(&self.given, *n)).collect();
                let until = now.plus(150);
                let outcomes = leases.iter().map(|lease| {
                    let job = self.model.held(now, *lease)?;
                    job.state = State::Leased(until);
                    Ok(Extended { until, cancel_requested: job.cancel })
                });
                let outcomes = outcomes.collect();
                let extend = QueueCommand::Extend { leases, visibility_timeout_ms: Some(150) };
                assert_eq!(self.ask(extend).reply(), Reply::Extended(outcomes));
            }
            Step::Cancel(jobs) => self.cancel(jobs),
            Step::Change(id, priority, at) => {
                let ready_at = at.map(|ms| now.plus(ms));
                let change = QueueCommand::Change { job: JobId(id), priority, ready_at };
                let outcome = self.ask(change);
                match self.model.find(id) {
                    None => assert_eq!(outcome, Outcome::Rejected(Reject::JobNotFound { job: JobId(id) })),
                    Some(job) if job.is_waiting() => {
                        assert_eq!(outcome.reply(), Reply::Settled(Batch::from_elem(Ok(()), 1)));
                        let same = priority.is_none_or(|new| new == job.priority);
                        job.priority = priority.unwrap_or(job.priority);
                        match job.state {
                            State::Blocked(is) => job.state = State::Blocked(ready_at.unwrap_or(is)),
                            State::Waiting(is, seen) if same && ready_at.is_none_or(|at| at == is) => {
                                job.state = State::Waiting(is, seen);
                            }
                            State::Waiting(is, _) => {
                                let at = ready_at.unwrap_or(is);
                                job.state = State::Waiting(at, at <= now);
                            }
                            _ => {}
                        }
                    }
                    Some(_) => assert!(matches!(outcome, Outcome::Rejected(Reject::WrongPhase { .. }))),
                }
            }
            Step::Redrive(per_second, delay_ms) => {
                let mut dead: Vec<(Millis, u64)> = self
                    .model
                    .jobs
                    .iter()
                    .filter_map(|job| match job.state {
                        State::Dead(since) => Some((since, job.id)),
                        _ => None,
                    })
                    .collect();
                dead.sort_unstable();
                let which = Which::Matching(JobFilter::default(), JobCursor::default());
                let redrive = QueueCommand::Redrive { which, per_second, delay_ms };
                let count = dead.len() as u64;
                assert_eq!(self.ask(redrive).reply(), Reply::Swept { count, next: None });
                for (place, (_, id)) in (0u64..).zip(dead) {
                    let at =
                        now.plus(delay_ms + per_second.map_or(0, |rate| place * 1_000 / u64::from(rate)));
                    let job = self.model.find(id).unwrap();
                    (job.attempts, job.crashes, job.state) = (0, 0, State::Waiting(at, at <= now));
                }
            }
            Step::Purge(phase) => {
                let kept = |job: &&Job| match job.state {
                    State::Dead(_) => phase == JobPhase::Dead,
                    State::Done(_) => phase == JobPhase::Done,
                    _ => false,
                };
                let ids: Vec<u64> = self.model.jobs.iter().filter(kept).map(|job| job.id).collect();
                let which = Which::Matching(JobFilter::default(), JobCursor::default());
                let count = ids.len() as u64;
                assert_eq!(
                    self.ask(QueueCommand::Purge { which, phase }).reply(),
                    Reply::Swept { count, next: None }
                );
                for id in ids {
                    self.model.totals.purged_total += u64::from(phase == JobPhase::Dead);
                    self.model.gone(id, now);
                }
            }
            Step::Pause(paused) => {
                self.ask(QueueCommand::Pause(paused)).reply();
                self.model.paused = paused;
            }
            Step::Pass(ms) => self.world.now = now.plus(ms),
            Step::Tick => self.tick(),
            Step::Checkpoint => {
                self.world.seal();
                self.world.write();
                self.world.evict_bodies(1);
            }
            Step::Crash => {
                self.world.crash();
                self.model.turns_known = false;
                // A start sees which times have come by the newest entry, and its first tick the rest.
                self.tick();
            }
        }
    }

    fn cancel(&mut self, mut jobs: Vec<u64>) {
        let now = self.world.now;
        jobs.dedup();
        let outcomes = jobs.iter().map(|&id| {
            let job = JobId(id);
            // A job that dies because another of the batch is cancelled was there when it was looked at.
            let found = self.model.find(id).ok_or(Reject::JobNotFound { job })?;
            match found.state {
                State::Leased(_) => {
                    found.cancel = true;
                    Ok(Cancelled::Requested)
                }
                _ if found.is_waiting() => Ok(Cancelled::Removed),
                State::Dead(_) => {
                    Err(Reject::WrongPhase { job, phase: JobPhase::Dead, wanted: "waiting or leased" })
                }
                _ => Err(Reject::WrongPhase { job, phase: JobPhase::Done, wanted: "waiting or leased" }),
            }
        });
        let mut seen = std::collections::BTreeSet::new();
        let outcomes: Batch<_> = outcomes.collect();
        let outcomes: Batch<_> = jobs
            .iter()
            .zip(outcomes)
            .map(|(id, outcome)| match outcome {
                Ok(Cancelled::Removed) if !seen.insert(*id) => Err(Reject::JobNotFound { job: JobId(*id) }),
                outcome => outcome,
            })
            .collect();
        for (id, outcome) in jobs.iter().zip(&outcomes) {
            if *outcome == Ok(Cancelled::Removed) {
                self.model.totals.cancelled_total += 1;
                self.model.gone(*id, now);
            }
        }
        let jobs = jobs.into_iter().map(JobId).collect();
        assert_eq!(self.ask(QueueCommand::Cancel { jobs }).reply(), Reply::Cancelled(outcomes));
    }

    fn tick(&mut self) {
        self.world.tick(3);
        self.model.tick(self.world.now);
    }

    fn check(&mut self) {
        self.world.machine.check_all();
        self.check_work();
        let Outcome::Answered(Reply::QueueStatus(status, _), _) = self.ask(QueueCommand::Status) else {
            panic!("no status")
        };
        let model = self.model.status();
        assert_eq!(status.ready + status.blocked, self.model.waiting_now());
        assert_eq!(QueueStatus { oldest_ready_ms: 0, ready: 0, blocked: 0, ..status }, model);
        let kept = status.waiting() + status.leased + status.dead;
        let ended = status.done_total + status.expired_total + status.cancelled_total + status.dropped_total;
        assert_eq!(status.enqueued_total, kept + ended + status.purged_total, "jobs add up");
    }
}

impl Test {
    /// Who has what, and what became of what they had.
    fn check_work(&mut self) {
        for (number, name) in WORKERS.into_iter().enumerate().skip(1) {
            let worker = Bytes::from_static(name.as_bytes());
            let look = |after| QueueCommand::Worker { worker: worker.clone(), after, jobs_max: 2 };
            let (mut after, mut jobs, mut running) = (JobCursor::default(), Vec::new(), 0);
            loop {
                let Outcome::Answered(Reply::WorkerOnQueue(seen), _) = self.ask(look(after)) else {
                    panic!("no look at {name}")
                };
                assert_eq!(seen.counts, self.model.work[number]);
                jobs.extend(seen.jobs);
                running = running.max(seen.running);
                let Some(next) = seen.next else { break };
                after = next;
            }
            let found: Vec<_> = jobs.iter().map(|job| (job.until, job.job.0, job.attempt)).collect();
            let leases = self.model.jobs.iter().filter(|job| job.worker == number);
            let mut expected: Vec<_> = leases
                .filter_map(|job| match job.state {
                    State::Leased(until) => Some((until, job.id, job.attempts)),
                    _ => None,
                })
                .collect();
            expected.sort_unstable();
            assert_eq!((found, running), (expected.clone(), expected.len() as u64));
        }
    }
}

proptest! {
    #![proptest_config(cases(400))]
    #[test]
    fn a_queue_is_a_list(settings in settings(), steps in prop::collection::vec(step(), 1..80)) {
        let mut test = Test::new(settings);
        for step in steps {
            test.step(step);
            test.check();
        }
        let tokens: std::collections::BTreeSet<_> = test.given[1..].iter().map(|lease| lease.token).collect();
        prop_assert_eq!(tokens.len(), test.given.len() - 1, "no token is given out twice");
    }
}
