//! A queue is a list of jobs, searched from the start for everything.

use bytes::Bytes;
use flowmesh_model::command::{LeaseRef, Nack, NewJob};
use flowmesh_model::reject::LeaseLost;
use flowmesh_model::reply::{LeasedJob, QueueStatus};
use flowmesh_model::{
    Batch, Command, JobId, LeaseToken, Millis, QueueCommand, QueueSettings, Reject, Reply, Settings,
};
use proptest::prelude::*;

use crate::common::{Outcome, World, cases};

const SETTINGS: QueueSettings = QueueSettings {
    visibility_timeout_ms: 100,
    max_attempts: 2,
    backoff_initial_ms: 10,
    backoff_max_ms: 15,
    durability: None,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Waiting(Millis),
    Leased(Millis),
    Dead,
    Done,
}

#[derive(Clone, Debug)]
struct Job {
    id: u64,
    priority: u8,
    payload: Bytes,
    max_attempts: u32,
    enqueued_at: Millis,
    attempts: u32,
    token: u64,
    expired: bool,
    state: State,
}

#[derive(Default)]
struct Model {
    jobs: Vec<Job>,
    last_token: u64,
}

impl Model {
    fn reserve(&mut self, now: Millis, jobs_max: usize, timeout_ms: u64) -> Vec<LeasedJob> {
        let mut ready: Vec<usize> = (0..self.jobs.len())
            .filter(|&n| matches!(self.jobs[n].state, State::Waiting(ready_at) if ready_at <= now))
            .collect();
        ready.sort_by_key(|&n| (std::cmp::Reverse(self.jobs[n].priority), self.jobs[n].id));
        ready.truncate(jobs_max);
        ready.into_iter().map(|n| self.lease(n, now.plus(timeout_ms))).collect()
    }

    fn lease(&mut self, place: usize, until: Millis) -> LeasedJob {
        self.last_token += 1;
        let job = &mut self.jobs[place];
        job.attempts += 1;
        job.token = self.last_token;
        job.state = State::Leased(until);
        LeasedJob {
            job: JobId(job.id),
            token: LeaseToken(job.token),
            attempt: job.attempts,
            priority: job.priority,
            leased_until: until,
            enqueued_at: job.enqueued_at,
            payload: job.payload.clone(),
            headers: Bytes::new(),
        }
    }

    /// The job of a lease that counts.
    fn held(&mut self, now: Millis, lease: LeaseRef) -> Result<&mut Job, Reject> {
        let lost = |reason| Reject::LeaseLost { job: lease.job, reason };
        let job = self.jobs.iter_mut().find(|job| job.id == lease.job.0);
        let job = job.ok_or(Reject::JobNotFound { job: lease.job })?;
        match job.state {
            State::Done => Err(lost(LeaseLost::Settled)),
            _ if lease.token.0 < job.token => Err(lost(LeaseLost::Superseded)),
            State::Leased(until) if until > now => Ok(job),
            State::Leased(_) => Err(lost(LeaseLost::Expired)),
            State::Waiting(_) | State::Dead => {
                Err(lost(if job.expired { LeaseLost::Expired } else { LeaseLost::Settled }))
            }
        }
    }

    fn end(job: &mut Job, ready_at: Millis, expired: bool) {
        job.expired = expired;
        job.state = if job.attempts >= job.max_attempts { State::Dead } else { State::Waiting(ready_at) };
    }

    fn tick(&mut self, now: Millis) {
        for job in &mut self.jobs {
            if matches!(job.state, State::Leased(until) if until <= now) {
                Self::end(job, now, true);
            }
        }
    }

    fn status(&self, now: Millis) -> QueueStatus {
        let count =
            |wanted: &dyn Fn(State) -> bool| self.jobs.iter().filter(|job| wanted(job.state)).count() as u64;
        QueueStatus {
            ready: count(&|state| matches!(state, State::Waiting(at) if at <= now)),
            delayed: count(&|state| matches!(state, State::Waiting(at) if at > now)),
            leased: count(&|state| matches!(state, State::Leased(_))),
            dead: count(&|state| state == State::Dead),
            done_total: count(&|state| state == State::Done),
            enqueued_total: self.jobs.len() as u64,
            oldest_ready_ms: 0,
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Enqueue(Vec<(u8, u64, Option<u32>)>),
    Reserve { jobs_max: u32, timeout_ms: Option<u64> },
    Ack(Vec<usize>),
    Nack(Vec<(usize, Option<u64>)>),
    Extend(Vec<usize>),
    Pass(u64),
    Tick,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let lease = 0usize..1000;
    prop_oneof![
        4 => prop::collection::vec((0u8..4, prop_oneof![Just(0), 0u64..60], prop::option::of(1u32..4)), 1..6).prop_map(Step::Enqueue),
        4 => (1u32..6, prop::option::of(100u64..200)).prop_map(|(jobs_max, timeout_ms)| Step::Reserve { jobs_max, timeout_ms }),
        3 => prop::collection::vec(lease.clone(), 1..5).prop_map(Step::Ack),
        2 => prop::collection::vec((lease.clone(), prop::option::of(0u64..30)), 1..4).prop_map(Step::Nack),
        1 => prop::collection::vec(lease, 1..3).prop_map(Step::Extend),
        4 => (0u64..90).prop_map(Step::Pass),
        3 => Just(Step::Tick),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(cases(300))]
    #[test]
    fn a_queue_is_a_list(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::default();
        let queue = world.create_with("mail", Settings::Queue(SETTINGS));
        let (mut model, mut given) = (Model::default(), vec![LeaseRef { job: JobId(1_000_000), token: LeaseToken(1) }]);
        for step in steps {
            let now = world.now;
            let mut ask = |command| world.run(&Command::Queue(queue, command)).reply();
            match step {
                Step::Enqueue(jobs) => {
                    let first = model.jobs.len() as u64 + 1;
                    let mut new = Batch::new();
                    for (n, (priority, delay_ms, max_attempts)) in (first..).zip(jobs) {
                        let payload = Bytes::from(n.to_string());
                        new.push(NewJob { payload: payload.clone(), priority, delay_ms, max_attempts, ..NewJob::default() });
                        model.jobs.push(Job {
                            id: n, priority, payload, enqueued_at: now, attempts: 0, token: 0, expired: false,
                            max_attempts: max_attempts.unwrap_or(SETTINGS.max_attempts),
                            state: State::Waiting(now.plus(delay_ms)),
                        });
                    }
                    let ids = (first..).take(new.len()).map(JobId).collect();
                    prop_assert_eq!(ask(QueueCommand::Enqueue { jobs: new }), Reply::Enqueued(ids));
                }
                Step::Reserve { jobs_max, timeout_ms } => {
                    let reserve = QueueCommand::Reserve { jobs_max, visibility_timeout_ms: timeout_ms, worker: Bytes::new(), wait_until: None };
                    let leased = model.reserve(now, jobs_max as usize, timeout_ms.unwrap_or(SETTINGS.visibility_timeout_ms));
                    given.extend(leased.iter().map(|job| LeaseRef { job: job.job, token: job.token }));
                    prop_assert_eq!(ask(reserve), Reply::Reserved(leased));
                }
                Step::Ack(which) => {
                    let leases: Batch<_> = which.iter().map(|n| given[n % given.len()]).collect();
                    let outcomes = leases.iter().map(|lease| model.held(now, *lease).map(|job| job.state = State::Done)).collect();
                    prop_assert_eq!(ask(QueueCommand::Ack { leases }), Reply::Settled(outcomes));
                }
                Step::Nack(which) => {
                    let nacks: Batch<_> = which
                        .iter()
                        .map(|(n, delay_ms)| Nack { lease: given[n % given.len()], delay_ms: *delay_ms, error: Bytes::new() })
                        .collect();
                    let outcomes = nacks
                        .iter()
                        .map(|nack| model.held(now, nack.lease).map(|job| {
                            let delay_ms = nack.delay_ms.unwrap_or(SETTINGS.backoff_ms(job.attempts));
                            Model::end(job, now.plus(delay_ms), false);
                        }))
                        .collect();
                    prop_assert_eq!(ask(QueueCommand::Nack { nacks }), Reply::Settled(outcomes));
                }
                Step::Extend(which) => {
                    let leases: Batch<_> = which.iter().map(|n| given[n % given.len()]).collect();
                    let until = now.plus(150);
                    let outcomes = leases
                        .iter()
                        .map(|lease| model.held(now, *lease).map(|job| { job.state = State::Leased(until); until }))
                        .collect();
                    let extend = QueueCommand::Extend { leases, visibility_timeout_ms: Some(150) };
                    prop_assert_eq!(ask(extend), Reply::Extended(outcomes));
                }
                Step::Pass(ms) => world.now = now.plus(ms),
                Step::Tick => {
                    world.tick(3);
                    model.tick(now);
                    let due = world.machine.next_due();
                    let waits = model.jobs.iter().filter_map(|job| match job.state {
                        State::Waiting(at) | State::Leased(at) if at > now => Some(at),
                        _ => None,
                    });
                    prop_assert!(due.unwrap_or(Millis(u64::MAX)) <= waits.min().unwrap_or(Millis(u64::MAX)), "never late");
                }
                Step::Crash => world.crash(),
            }
            world.machine.check_all();
            let Outcome::Answered(Reply::QueueStatus(status), _) = world.run(&Command::Queue(queue, QueueCommand::Status)) else {
                panic!("no status")
            };
            prop_assert_eq!(QueueStatus { oldest_ready_ms: 0, ..status }, model.status(world.now));
        }
        let tokens: std::collections::BTreeSet<_> = given[1..].iter().map(|lease| lease.token).collect();
        prop_assert_eq!(tokens.len(), given.len() - 1, "no token is given out twice");
    }
}
