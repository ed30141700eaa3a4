//! Schedules of a queue: each time enqueues one job, none before its time, and none is left out.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use flowmesh_engine::Timer;
use flowmesh_model::command::{LeaseRef, NewJob};
use flowmesh_model::schedule::{
    MissedPolicy, SCHEDULED_AT_HEADER, ScheduleCommand, ScheduleReply, ScheduleSpec, Timing,
};
use flowmesh_model::{Command, JobId, LeaseToken, Millis, QueueCommand, Reply, ResourceId, ShardId};
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::{Known, Site, Workload};

/// What must be so.
#[derive(Default)]
pub(crate) struct Model {
    /// Those that fire once: when, whether that is known to be so, and their job.
    once: BTreeMap<Bytes, (Millis, bool, Option<JobId>)>,
    refused: BTreeSet<Bytes>,
    /// The times at which the one fired that goes on and on, and its jobs.
    times: BTreeMap<u64, JobId>,
    done: BTreeMap<JobId, LeaseToken>,
    next: u64,
}

/// A queue with schedules.
#[derive(Clone)]
pub(crate) struct Schedules {
    pub site: Site,
    pub queue: ResourceId,
    pub shard: ShardId,
    pub model: Rc<RefCell<Model>>,
}

/// What fires each second.
const SECONDS: &str = "seconds";

/// So much later all has fired that was to fire once.
const LONG: Duration = Duration::from_secs(5);

/// The time that a job is for, as its headers say.
fn scheduled_for(headers: &[u8]) -> u64 {
    let name = SCHEDULED_AT_HEADER.as_bytes();
    let at = headers.windows(name.len()).position(|part| part == name).expect("the header is there");
    // The value's tag and length stand before it.
    let value = headers.get(at + name.len() + 2..).unwrap_or_default();
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

impl Schedules {
    async fn call(&self, who: &str, command: QueueCommand) -> Known {
        self.site.call(who, self.shard, Command::Queue(self.queue, command)).await
    }

    async fn go_on(self) {
        loop {
            match self.site.shared.below(6) {
                0 => self.create_once().await,
                1 => self.create_seconds().await,
                _ => drop(self.work().await),
            }
            self.site.pause().await;
        }
    }

    fn spec(timing: Timing, payload: Bytes) -> ScheduleSpec {
        let job = NewJob { payload, ..NewJob::default() };
        ScheduleSpec { timing, end: None, missed: MissedPolicy::All, job }
    }

    async fn create_once(&self) {
        let at = self.site.shared.clock.now().plus(1 + self.site.shared.below(300));
        let name = {
            let model = &mut *self.model.borrow_mut();
            model.next += 1;
            let name = format!("once-{}", model.next);
            model.once.insert(name.clone().into(), (at, false, None));
            name
        };
        let spec = Self::spec(Timing::Once(at), name.clone().into());
        let create = ScheduleCommand::Create { name: name.as_str().into(), spec, paused: false };
        let known = self.call("schedule", QueueCommand::Schedule(create)).await;
        let model = &mut *self.model.borrow_mut();
        match known {
            Known::Done(Reply::Schedule(ScheduleReply::Status(..))) => {
                model.once.get_mut(name.as_bytes()).expect("it was put there").1 = true;
            }
            Known::Done(other) => panic!("a schedule is answered with {other:?}"),
            Known::Not => {
                let (_, _, job) = model.once.remove(name.as_bytes()).expect("it was put there");
                assert!(job.is_none(), "schedule {name} was refused, and fired");
                model.refused.insert(name.into());
            }
            Known::Unknown => {}
        }
    }

    /// The second time it is there.
    async fn create_seconds(&self) {
        let timing = Timing::Cron { expression: "* * * * * *".into(), time_zone: "UTC".into() };
        let spec = Self::spec(timing, SECONDS.into());
        let create = ScheduleCommand::Create { name: SECONDS.into(), spec, paused: false };
        self.call("schedule", QueueCommand::Schedule(create)).await;
    }

    /// Leases jobs and does them. How many; nothing if no answer came.
    async fn work(&self) -> Option<usize> {
        let reserve = QueueCommand::Reserve {
            jobs_max: 8,
            visibility_timeout_ms: Some(100 + self.site.shared.below(50)),
            worker: Bytes::from_static(b"w"),
            wait_until: None,
        };
        let Known::Done(reply) = self.call("reserve fired", reserve).await else { return None };
        let Reply::Reserved(leased) = reply else { panic!("a reserve is answered with {reply:?}") };
        let highest = self.site.shared.clock.highest();
        for job in &leased {
            let model = &mut *self.model.borrow_mut();
            // The answer to a lease that ended may come after the acknowledgement of a later one.
            let is_later = model.done.get(&job.job).is_some_and(|acked| job.token > *acked);
            assert!(!is_later, "{job:?} is done, and given out");
            let at = scheduled_for(&job.headers);
            assert!(at <= highest.0, "{job:?} fired at {highest} at the latest, before its time {at}");
            if job.payload == SECONDS {
                assert_eq!(at % 1_000, 0, "{job:?} is for no second");
                let first = *model.times.entry(at).or_insert(job.job);
                assert_eq!(first, job.job, "{at} fired twice");
                continue;
            }
            let Some(once) = model.once.get_mut(&job.payload) else {
                panic!("{job:?} of no schedule, refused: {}", model.refused.contains(&job.payload))
            };
            assert_eq!(once.0.0, at, "{job:?} fired at another time");
            let first = *once.2.get_or_insert(job.job);
            assert_eq!(first, job.job, "{:?} fired twice", job.payload);
        }
        for job in &leased {
            let ack = QueueCommand::ack([LeaseRef { job: job.job, token: job.token }]);
            if let Known::Done(Reply::Settled(settled)) = self.call("ack fired", ack).await
                && settled[0].is_ok()
            {
                self.model.borrow_mut().done.insert(job.job, job.token);
            }
        }
        Some(leased.len())
    }

    /// All that was to fire has fired.
    async fn check_all(self) -> bool {
        self.site.shared.clock.sleep(LONG).await;
        let pause = ScheduleCommand::Pause(SECONDS.into());
        self.call("pause", QueueCommand::Schedule(pause)).await;
        loop {
            if self.work().await.is_none() {
                return false;
            }
            let Known::Done(reply) = self.call("status", QueueCommand::Status).await else { return false };
            let Reply::QueueStatus(status, _) = reply else { panic!("a status is {reply:?}") };
            if status.waiting() + status.leased == 0 {
                break;
            }
            self.site.shared.delay(20_000).await;
        }
        let model = self.model.borrow();
        for (name, (at, is_known, job)) in &model.once {
            assert!(!is_known || job.is_some(), "schedule {name:?} did not fire at {at}");
        }
        for (time, next) in model.times.keys().zip(model.times.keys().skip(1)) {
            assert_eq!(time + 1_000, *next, "a second was left out");
        }
        true
    }
}

impl Workload for Schedules {
    fn use_it(&self, _client: u64) -> LocalBoxFuture<'static, ()> {
        self.clone().go_on().boxed_local()
    }

    fn check(&self, site: Site) -> LocalBoxFuture<'static, bool> {
        Self { site, ..self.clone() }.check_all().boxed_local()
    }
}
