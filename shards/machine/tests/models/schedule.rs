//! A schedule is a list of all its times, walked from the first to the last that has come, whatever the clock does.

use bytes::Bytes;
use flowmesh_model::command::NewJob;
use flowmesh_model::limits::{
    SCHEDULE_CATCH_UP_MAX, SCHEDULE_FINISHED_KEPT_MS, SCHEDULE_MISSED_AFTER_MS, SCHEDULE_SKIPPED_COUNTED_MAX,
};
use flowmesh_model::record::{RecordSlices, split_header};
use flowmesh_model::schedule::{MissedPolicy, ScheduleSpec, ScheduleState, ScheduleStatus, Timing};
use flowmesh_model::{
    Command, Fact, Kind, Millis, QueueCommand, Reject, Reply, ResourceId, ScheduleCommand, ScheduleReply,
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

    /// The times that fire at `now`.
    fn tick(&mut self, now: u64) -> Vec<u64> {
        let mut come: Vec<u64> =
            std::iter::successors(self.next, |at| self.after(*at)).take_while(|at| *at <= now).collect();
        let Some(&first) = come.first() else { return Vec::new() };
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
        self.fired.extend(&come);
        self.set_next(next, now);
        come
    }

    fn is_forgotten(&self, now: u64) -> bool {
        self.finished_at.is_some_and(|at| at + SCHEDULE_FINISHED_KEPT_MS <= now)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Create { seconds: u64, missed: MissedPolicy, end_after_ms: Option<u64>, once: bool, paused: bool },
    Pause,
    Resume,
    RunNow,
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
    assert_eq!((&status.spec, status.finished_at), (&model.spec, model.finished_at.map(Millis)));
}

proptest! {
    #![proptest_config(cases(200))]
    #[test]
    fn a_schedule_is_a_list_of_times(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World { now: Millis(1_790_000_000_000), ..World::default() };
        let queue = world.create(Kind::Queue, "mail");
        let (mut model, mut by_hand): (Option<Model>, u64) = (None, 0);
        for step in steps {
            let now = world.machine.clamp(world.now).0;
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
                                spec, every_ms: seconds * 1_000, paused, next: None, finished_at: None, skipped: 0, fired: Vec::new(),
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
                        (model.paused, model.next) = (true, None);
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
                    prop_assert_eq!(run.is_ok(), model.is_some());
                    by_hand += 1;
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
                    let fired = model.as_mut().map_or(Vec::new(), |model| model.tick(now));
                    prop_assert_eq!(scheduled_at(&facts), fired);
                    let next = model.as_ref().and_then(|model| model.next);
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
