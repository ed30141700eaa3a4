//! A schedule is a list of all its times, walked from the first to the last that has come, whatever the clock does, as far
//! as its queue has room.

use bytes::Bytes;
use flowmesh_model::command::{Ack, LeaseRef, NewJob};
use flowmesh_model::limits::{
    SCHEDULE_CATCH_UP_MAX, SCHEDULE_FINISHED_KEPT_MS, SCHEDULE_MISSED_AFTER_MS, SCHEDULE_RETRY_MS,
    SCHEDULE_SKIPPED_COUNTED_MAX,
};
use flowmesh_model::record::{RecordSlices, split_header};
use flowmesh_model::reply::LeasedJob;
use flowmesh_model::schedule::{
    MissedPolicy, ScheduleChanges, ScheduleSpec, ScheduleState, ScheduleStatus, Timing,
};
use flowmesh_model::{
    Batch, Command, Fact, Millis, QueueCommand, QueueSettings, Reject, Reply, ResourceId, ScheduleCommand,
    ScheduleReply, Settings,
};
use proptest::prelude::*;

use crate::common::{Outcome, World, cases};

/// One that fires every so many seconds, or once.
#[derive(Clone, Debug)]
struct Model {
    spec: ScheduleSpec,
    every_ms: u64,
    paused: bool,
    next: Option<u64>,
    finished_at: Option<u64>,
    skipped: u64,
    fired: Vec<u64>,
    /// The queue had no room: nothing is looked at before.
    held_until: u64,
}

impl Model {
    fn after(&self, at: u64) -> Option<u64> {
        let next = match self.spec.timing {
            Timing::Once(once) => Some(once.0).filter(|once| *once > at),
            Timing::Cron { .. } => Some((at / self.every_ms + 1) * self.every_ms),
        };
        next.filter(|next| self.spec.end.is_none_or(|end| *next <= end.0))
    }

    fn set_next(&mut self, next: Option<u64>, now: u64) {
        self.next = next;
        if next.is_none() && !self.paused {
            self.finished_at.get_or_insert(now);
        }
    }

    /// The times that fire at `now`, if the queue has room for so many.
    fn tick(&mut self, now: u64, room: usize) -> Vec<u64> {
        let mut come: Vec<u64> =
            std::iter::successors(self.next, |at| self.after(*at)).take_while(|at| *at <= now).collect();
        let Some(&first) = come.first() else { return Vec::new() };
        if self.held_until > now {
            return Vec::new();
        }
        if room == 0 {
            self.held_until = now + SCHEDULE_RETRY_MS;
            return Vec::new();
        }
        let next = self.after(*come.last().unwrap());
        if now - first > SCHEDULE_MISSED_AFTER_MS {
            let kept = match self.spec.missed {
                MissedPolicy::Skip => come.iter().filter(|at| now - **at <= SCHEDULE_MISSED_AFTER_MS).count(),
                MissedPolicy::Once => 1,
                MissedPolicy::All => come.len().min(SCHEDULE_CATCH_UP_MAX),
            };
            self.skipped += (come.len() - kept).min(SCHEDULE_SKIPPED_COUNTED_MAX as usize) as u64;
            come.drain(..come.len() - kept);
        }
        let left = come.split_off(room.min(come.len()));
        self.fired.extend(&come);
        self.set_next(left.first().copied().or(next), now);
        // What is left was looked at once more, without room.
        self.held_until = if left.is_empty() { 0 } else { now + SCHEDULE_RETRY_MS };
        come
    }

    fn is_forgotten(&self, now: u64) -> bool {
        self.finished_at.is_some_and(|at| at + SCHEDULE_FINISHED_KEPT_MS <= now)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Create {
        seconds: u64,
        missed: MissedPolicy,
        end_after_ms: Option<u64>,
        once: bool,
        paused: bool,
    },
    Pause,
    Resume,
    RunNow,
    Update {
        seconds: Option<u64>,
        missed: MissedPolicy,
    },
    /// Workers take so many jobs and do them.
    Work(u32),
    Delete,
    Pass(u64),
    Back(u64),
    Tick(usize),
    Checkpoint,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let create = (
        prop::sample::select(vec![1u64, 2, 10, 30]),
        prop::sample::select(MissedPolicy::ALL.to_vec()),
        prop::option::weighted(0.3, 0u64..200_000),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.1),
    );
    prop_oneof![
        4 => create.prop_map(|(seconds, missed, end_after_ms, once, paused)| Step::Create {
            seconds, missed, end_after_ms, once, paused
        }),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
        1 => Just(Step::RunNow),
        2 => (prop::option::of(prop::sample::select(vec![1u64, 2, 10, 30])), prop::sample::select(MissedPolicy::ALL.to_vec()))
            .prop_map(|(seconds, missed)| Step::Update { seconds, missed }),
        4 => (1u32..20).prop_map(Step::Work),
        1 => Just(Step::Delete),
        5 => (0u64..5_000).prop_map(Step::Pass),
        2 => (50_000u64..70_000).prop_map(Step::Pass),
        2 => (0u64..3_000_000).prop_map(Step::Pass),
        1 => Just(Step::Pass(SCHEDULE_FINISHED_KEPT_MS)),
        2 => (0u64..100_000).prop_map(Step::Back),
        6 => (2usize..40).prop_map(Step::Tick),
        1 => Just(Step::Checkpoint),
        2 => Just(Step::Crash),
    ]
}

fn ask(world: &mut World, queue: ResourceId, command: ScheduleCommand) -> Result<ScheduleReply, Reject> {
    match world.run(&Command::Queue(queue, QueueCommand::Schedule(command))) {
        Outcome::Changed(Reply::Schedule(reply), _) | Outcome::Answered(Reply::Schedule(reply), _) => {
            Ok(reply)
        }
        Outcome::Rejected(reject) => Err(reject),
        other => panic!("{other:?}"),
    }
}

/// Takes jobs and does them. Returns how many.
fn work(world: &mut World, queue: ResourceId, jobs_max: u32) -> usize {
    let reserve = QueueCommand::Reserve {
        jobs_max,
        visibility_timeout_ms: None,
        worker: Bytes::new(),
        wait_until: None,
    };
    let Reply::Reserved(jobs) = world.run(&Command::Queue(queue, reserve)).reply() else {
        panic!("no jobs were reserved")
    };
    let ack =
        |job: &LeasedJob| Ack { lease: LeaseRef { job: job.job, token: job.token }, result: Bytes::new() };
    let acks: Batch<Ack> = jobs.iter().map(ack).collect();
    if !acks.is_empty() {
        world.run(&Command::Queue(queue, QueueCommand::Ack { acks })).reply();
    }
    jobs.len()
}

/// The times that enqueued jobs say they are for.
fn scheduled_at(facts: &[Fact]) -> Vec<u64> {
    let header = |headers: &Bytes| {
        let values = RecordSlices::new(headers).filter_map(|header| {
            let (name, value) = split_header(header.unwrap()).unwrap();
            (name == b"flowmesh-scheduled-at").then(|| std::str::from_utf8(value).unwrap().parse().unwrap())
        });
        let values: Vec<u64> = values.collect();
        assert_eq!(values.len(), 1, "each job says once what it is for");
        values[0]
    };
    facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::JobEnqueued { headers, .. } => Some(header(headers)),
            _ => None,
        })
        .collect()
}

fn spec(seconds: u64, missed: MissedPolicy, end: Option<Millis>, once: Option<Millis>) -> ScheduleSpec {
    let cron = Timing::Cron { expression: format!("*/{seconds} * * * * *").into(), time_zone: "UTC".into() };
    let timing = once.map_or(cron, Timing::Once);
    ScheduleSpec { timing, end, missed, job: NewJob { payload: "work".into(), ..NewJob::default() } }
}

fn check(status: &ScheduleStatus, model: &Model, by_hand: u64) {
    let state = match (model.paused, model.next) {
        (true, _) => ScheduleState::Paused,
        (false, Some(_)) => ScheduleState::Active,
        (false, None) => ScheduleState::Finished,
    };
    assert_eq!((status.state, status.next_at), (state, model.next.map(Millis)));
    assert_eq!(
        (status.fired_total, status.skipped_total),
        (model.fired.len() as u64 + by_hand, model.skipped)
    );
    assert_eq!(status.held_back, model.held_until > 0);
    assert_eq!((&status.spec, status.finished_at), (&model.spec, model.finished_at.map(Millis)));
}

proptest! {
    #![proptest_config(cases(200))]
    #[test]
    fn a_schedule_is_a_list_of_times(
        jobs_max in prop::option::of(1u64..12),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut world = World { now: Millis(1_790_000_000_000), ..World::default() };
        let settings = QueueSettings { jobs_max, ..QueueSettings::default() };
        let queue = world.create_with("mail", Settings::Queue(settings));
        let (mut model, mut by_hand): (Option<Model>, u64) = (None, 0);
        let mut waiting = 0;
        for step in steps {
            let now = world.machine.clamp(world.now).0;
            let room = |waiting: usize| jobs_max.map_or(usize::MAX, |max| max as usize - waiting);
            match step {
                Step::Create { seconds, missed, end_after_ms, once, paused } => {
                    // At least one time lies before the end.
                    let end = end_after_ms.map(|ms| Millis(now + 60_000 + ms));
                    let spec = spec(seconds, missed, end, once.then(|| Millis(now + seconds * 1_500)));
                    let create = ScheduleCommand::Create { name: "s".into(), spec: spec.clone(), paused };
                    let created = ask(&mut world, queue, create);
                    match &model {
                        None => {
                            let mut new = Model {
                                spec, every_ms: seconds * 1_000, paused, next: None, finished_at: None, skipped: 0, fired: Vec::new(), held_until: 0,
                            };
                            new.next = new.after(now).filter(|_| !paused);
                            prop_assert!(matches!(created, Ok(ScheduleReply::Status(_, true))), "{:?}", created);
                            (model, by_hand) = (Some(new), 0);
                        }
                        Some(model) if model.spec == spec => {
                            prop_assert!(matches!(created, Ok(ScheduleReply::Status(_, false))), "{:?}", created);
                        }
                        Some(_) => prop_assert_eq!(created, Err(Reject::ScheduleExists { name: "s".into() })),
                    }
                }
                Step::Pause => {
                    let paused = ask(&mut world, queue, ScheduleCommand::Pause("s".into()));
                    prop_assert_eq!(paused.is_ok(), model.is_some());
                    if let Some(model) = model.as_mut().filter(|model| model.next.is_some()) {
                        (model.paused, model.next, model.held_until) = (true, None, 0);
                    }
                }
                Step::Resume => {
                    let resumed = ask(&mut world, queue, ScheduleCommand::Resume("s".into()));
                    prop_assert_eq!(resumed.is_ok(), model.is_some());
                    if let Some(model) = model.as_mut().filter(|model| model.paused) {
                        model.paused = false;
                        model.set_next(model.after(now), now);
                    }
                }
                Step::RunNow => {
                    let run = ask(&mut world, queue, ScheduleCommand::RunNow("s".into()));
                    prop_assert_eq!(run.is_ok(), model.is_some() && room(waiting) > 0);
                    if run.is_ok() {
                        (by_hand, waiting) = (by_hand + 1, waiting + 1);
                        model.as_mut().unwrap().held_until = 0;
                    }
                }
                Step::Update { seconds, missed } => {
                    let cron = seconds.map(|seconds| format!("*/{seconds} * * * * *").into());
                    let changes = ScheduleChanges { cron, missed: Some(missed), ..ScheduleChanges::default() };
                    let update = ScheduleCommand::Update { name: "s".into(), changes: Box::new(changes) };
                    let updated = ask(&mut world, queue, update);
                    let mut changed = model.clone();
                    let before = model.as_ref().map(|model| model.spec.clone());
                    if let Some(model) = &mut changed {
                        model.spec.missed = missed;
                        if let Some(seconds) = seconds {
                            model.spec.timing = spec(seconds, missed, None, None).timing;
                            model.every_ms = seconds * 1_000;
                        }
                        let retimed = before.as_ref().is_some_and(|before| before.timing != model.spec.timing);
                        if retimed && !model.paused {
                            model.finished_at = None;
                            model.set_next(model.after(now), now);
                        }
                        if before.as_ref() != Some(&model.spec) {
                            model.held_until = 0;
                        }
                        // A new plan without a time is refused.
                        if retimed && model.after(now).is_none() {
                            let refused = matches!(updated, Err(Reject::InvalidArgument { field: "end_ms", .. }));
                            prop_assert!(refused, "{:?}", updated);
                            continue;
                        }
                    }
                    prop_assert_eq!(updated.is_ok(), model.is_some());
                    model = changed;
                }
                Step::Work(jobs) => {
                    let done = work(&mut world, queue, jobs);
                    prop_assert_eq!(done, waiting.min(jobs as usize));
                    waiting -= done;
                }
                Step::Delete => {
                    let deleted = ask(&mut world, queue, ScheduleCommand::Delete("s".into()));
                    prop_assert_eq!(deleted.is_ok(), model.take().is_some());
                }
                Step::Pass(ms) => world.now = world.now.plus(ms),
                Step::Back(ms) => world.now = Millis(world.now.0 - ms),
                Step::Tick(facts_max) => {
                    let facts = world.tick(facts_max);
                    if model.as_ref().is_some_and(|model| model.is_forgotten(now)) {
                        model = None;
                    }
                    let fired = model.as_mut().map_or(Vec::new(), |model| model.tick(now, room(waiting)));
                    waiting += fired.len();
                    prop_assert_eq!(scheduled_at(&facts), fired);
                    let next = model.as_ref().and_then(|model| Some(model.next?.max(model.held_until)));
                    let due = world.machine.next_due().map_or(u64::MAX, |due| due.0);
                    prop_assert!(due <= next.unwrap_or(u64::MAX), "a firing is late");
                }
                Step::Checkpoint => {
                    world.seal();
                    world.write();
                }
                Step::Crash => {
                    let before = world.machine.dump();
                    world.crash();
                    prop_assert_eq!(world.machine.dump(), before);
                    if let Some(model) = &mut model {
                        model.held_until = 0;
                    }
                }
            }
            world.machine.check_all();
            match (ask(&mut world, queue, ScheduleCommand::Describe("s".into())), &model) {
                (Ok(ScheduleReply::Status(status, false)), Some(model)) => check(&status, model, by_hand),
                (Err(Reject::ScheduleNotFound { .. }), None) => {}
                other => panic!("{other:?}"),
            }
        }
        if let Some(model) = model {
            prop_assert!(model.fired.is_sorted_by(|a, b| a < b), "no time fires twice");
        }
    }
}
