//! What schedules are refused for, and what they do at their edges.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use bytes::{Bytes, BytesMut};
use common::{Outcome, World};
use flowmesh_model::command::NewJob;
use flowmesh_model::job::{JobKey, JobOptions, JobRef};
use flowmesh_model::limits::{
    ENTRY_BYTES_MAX, HEADERS_MAX, SCHEDULE_MISSED_AFTER_MS, SCHEDULE_NEXT_MAX, SCHEDULE_PAYLOAD_BYTES_MAX,
    SCHEDULES_MAX,
};
use flowmesh_model::record::put_header;
use flowmesh_model::schedule::fact::ScheduleFact;
use flowmesh_model::schedule::{MissedPolicy, ScheduleSpec, ScheduleStatus, Timing};
use flowmesh_model::{
    Command, Fact, JobId, Kind, Millis, QueueCommand, QueueSettings, Reject, Reply, ResourceId,
    ScheduleCommand, ScheduleReply, Settings,
};

struct Driver {
    world: World,
    queue: ResourceId,
}

impl Driver {
    fn new() -> Self {
        let mut world = World { now: Millis(1_790_000_000_000), ..World::default() };
        let settings = QueueSettings { max_attempts: 7, ..QueueSettings::default() };
        let queue = world.create_with("mail", Settings::Queue(settings));
        Self { world, queue }
    }

    fn ask(&mut self, command: ScheduleCommand) -> Result<ScheduleReply, Reject> {
        match self.world.run(&Command::Queue(self.queue, QueueCommand::Schedule(command))) {
            Outcome::Changed(Reply::Schedule(reply), _) | Outcome::Answered(Reply::Schedule(reply), _) => {
                Ok(reply)
            }
            Outcome::Rejected(reject) => Err(reject),
            other => panic!("{other:?}"),
        }
    }

    fn create(&mut self, name: &str, spec: ScheduleSpec) -> Result<ScheduleStatus, Reject> {
        match self.ask(ScheduleCommand::Create { name: name.into(), spec, paused: false })? {
            ScheduleReply::Status(status, _) => Ok(*status),
            other => panic!("{other:?}"),
        }
    }
}

fn cron(expression: &str, time_zone: &str) -> ScheduleSpec {
    with(Timing::Cron { expression: expression.into(), time_zone: time_zone.into() })
}

fn with(timing: Timing) -> ScheduleSpec {
    ScheduleSpec { timing, end: None, missed: MissedPolicy::Once, job: NewJob::default() }
}

fn headers(count: usize, name: &str) -> Bytes {
    let mut out = BytesMut::new();
    (0..count).for_each(|_| put_header(&mut out, name.as_bytes(), b"v"));
    out.freeze()
}

#[test]
fn a_firing_is_the_job_and_the_note_of_it_in_one_entry() {
    let mut driver = Driver::new();
    let mut spec = cron("* * * * *", "");
    let options = JobOptions { ttl_ms: Some(5_000), group: "g".into(), ..JobOptions::default() };
    spec.job = NewJob {
        payload: "work".into(),
        priority: 9,
        headers: headers(1, "n"),
        options: Some(Box::new(options)),
        ..NewJob::default()
    };
    let status = driver.create("s", spec.clone()).unwrap();
    let next = status.next_at.unwrap();
    assert!(next > driver.world.now && next.0.is_multiple_of(60_000));
    assert_eq!(status.spec, ScheduleSpec { timing: cron("* * * * *", "UTC").timing, ..spec.clone() });
    assert!(driver.world.tick(2).is_empty());
    assert_eq!(driver.world.machine.next_due(), Some(next));
    driver.world.now = next;
    let entries = driver.world.log.len();
    let facts = driver.world.tick(2);
    assert_eq!(driver.world.log.len(), entries + 1);
    let Fact::JobEnqueued {
        job, max_attempts, priority, headers: packed, payload, ready_at, options, ..
    } = &facts[0]
    else {
        panic!("{facts:?}")
    };
    assert_eq!((*job, *max_attempts, *priority, *ready_at), (JobId(1), 7, 9, next));
    assert_eq!(payload, "work");
    let options = options.as_ref().unwrap();
    assert_eq!((&options.group[..], options.expires_at), (&b"g"[..], Some(next.plus(5_000))));
    let mut expected = BytesMut::from(&headers(1, "n")[..]);
    put_header(&mut expected, b"flowmesh-schedule", b"s");
    put_header(&mut expected, b"flowmesh-scheduled-at", next.0.to_string().as_bytes());
    assert_eq!(packed, &expected);
    let (name, next_at) = ("s".into(), Some(next.plus(60_000)));
    let fired = ScheduleFact::Fired { name, job: JobId(1), scheduled_for: next, next_at };
    assert_eq!(facts[1..], [Fact::Schedule(driver.queue, fired)]);
    driver.world.crash();
    assert_eq!(driver.create("s", spec).unwrap().fired_total, 1, "what does the same is the same");
}

#[test]
fn all_that_is_wrong_with_a_schedule_is_refused_by_name() {
    let mut driver = Driver::new();
    let now = driver.world.now;
    let illegal = driver.create("s", cron("* 24 * * *", "UTC"));
    assert!(matches!(illegal, Err(Reject::IllegalCron { part: "hour", at: 2, .. })), "{illegal:?}");
    let never = driver.create("s", cron("0 0 30 2 *", "UTC"));
    assert!(
        matches!(&never, Err(Reject::IllegalCron { problem, .. }) if problem.contains("never comes")),
        "{never:?}"
    );
    let zone = driver.create("s", cron("@daily", "Mars/Olympus"));
    assert_eq!(zone, Err(Reject::UnknownTimeZone { name: "Mars/Olympus".into() }));
    let late = Millis(now.0 - SCHEDULE_MISSED_AFTER_MS - 1);
    let past = driver.create("s", with(Timing::Once(late)));
    assert!(matches!(past, Err(Reject::ScheduleInPast { late_ms: 60_001, .. })), "{past:?}");
    let ends = driver.create("s", ScheduleSpec { end: Some(now), ..cron("@daily", "UTC") });
    assert!(matches!(ends, Err(Reject::InvalidArgument { field: "end_ms", .. })), "{ends:?}");
    for (field, spec) in [
        ("at_ms", with(Timing::Once(Millis(u64::MAX)))),
        ("end_ms", ScheduleSpec { end: Some(Millis(u64::MAX)), ..cron("@daily", "UTC") }),
    ] {
        let far = driver.create("s", spec);
        assert!(
            matches!(&far, Err(Reject::InvalidArgument { field: named, .. }) if *named == field),
            "{far:?}"
        );
    }
    for name in ["", "a b", "..", "ü"] {
        let named = driver.create(name, cron("@daily", "UTC"));
        assert!(matches!(named, Err(Reject::InvalidArgument { field: "name", .. })), "{named:?}");
    }
    let mut create = |job: NewJob| driver.create("s", ScheduleSpec { job, ..cron("@daily", "UTC") });
    let large = Bytes::from(vec![0; SCHEDULE_PAYLOAD_BYTES_MAX + 1]);
    let large = create(NewJob { payload: large, ..NewJob::default() });
    assert!(matches!(large, Err(Reject::TooLarge { what: "payload of a schedule's job", .. })), "{large:?}");
    let many = create(NewJob { headers: headers(HEADERS_MAX - 2, "n"), ..NewJob::default() });
    assert!(matches!(many, Err(Reject::TooLarge { what: "headers of a schedule's job", .. })), "{many:?}");
    let ours = create(NewJob { headers: headers(1, "flowmesh-schedule"), ..NewJob::default() });
    assert!(matches!(ours, Err(Reject::InvalidArgument { field: "headers", .. })), "{ours:?}");
    let attempts = create(NewJob { max_attempts: Some(0), ..NewJob::default() });
    assert!(matches!(attempts, Err(Reject::InvalidArgument { field: "max_attempts", .. })), "{attempts:?}");
    for (field, options) in [
        ("run_at_ms", JobOptions { run_at: Some(now), ..JobOptions::default() }),
        (
            "key",
            JobOptions { key: Some(JobKey { key: "k".into(), window_ms: None }), ..JobOptions::default() },
        ),
        ("after", JobOptions { after: vec![JobRef::Job(JobId(1))], ..JobOptions::default() }),
    ] {
        let refused = create(NewJob { options: Some(Box::new(options)), ..NewJob::default() });
        assert!(
            matches!(&refused, Err(Reject::InvalidArgument { field: named, .. }) if *named == field),
            "{refused:?}"
        );
    }
    create(NewJob { headers: headers(HEADERS_MAX - 3, "n"), ..NewJob::default() }).unwrap();
    let other = driver.create("s", cron("@hourly", "UTC"));
    assert_eq!(other, Err(Reject::ScheduleExists { name: "s".into() }));
    let times = driver.ask(ScheduleCommand::Next { name: "s".into(), times_max: SCHEDULE_NEXT_MAX + 1 });
    assert!(matches!(times, Err(Reject::InvalidArgument { field: "times_max", .. })), "{times:?}");
    for command in [
        ScheduleCommand::Delete("t".into()),
        ScheduleCommand::Pause("t".into()),
        ScheduleCommand::Resume("t".into()),
        ScheduleCommand::RunNow("t".into()),
        ScheduleCommand::Describe("t".into()),
        ScheduleCommand::Next { name: "t".into(), times_max: 1 },
    ] {
        assert_eq!(driver.ask(command), Err(Reject::ScheduleNotFound { name: "t".into() }));
    }
}

#[test]
fn a_queue_has_so_many_schedules_and_they_are_listed_page_by_page() {
    let mut driver = Driver::new();
    for number in 0..SCHEDULES_MAX {
        driver.create(&format!("s{number:05}"), cron("@daily", "UTC")).unwrap();
    }
    let full = driver.create("more", cron("@daily", "UTC"));
    assert!(matches!(full, Err(Reject::TooLarge { what: "schedules of the queue", .. })), "{full:?}");
    let (mut after, mut listed) = (None, Vec::new());
    loop {
        let page = driver.ask(ScheduleCommand::List { after: after.clone(), schedules_max: 3_333 }).unwrap();
        let ScheduleReply::List { schedules, more } = page else { panic!("{page:?}") };
        listed.extend(schedules.into_iter().map(|schedule| schedule.name));
        after = listed.last().cloned();
        if !more {
            break;
        }
    }
    assert_eq!(listed.len(), SCHEDULES_MAX);
    assert!(listed.is_sorted());
    // All at midnight, in many ticks.
    driver.world.now = driver.world.now.plus(24 * 3600 * 1000);
    let facts = driver.world.tick(512);
    assert_eq!(facts.len(), 2 * SCHEDULES_MAX);
    driver.world.machine.check_all();
}

#[test]
fn times_to_come_end_with_the_schedule() {
    let mut driver = Driver::new();
    let end = Some(driver.world.now.plus(3 * 24 * 3600 * 1000));
    driver.create("s", ScheduleSpec { end, ..cron("30 2 * * *", "Europe/Berlin") }).unwrap();
    let next = |name: &str| ScheduleCommand::Next { name: name.into(), times_max: 10 };
    let ScheduleReply::Times(times) = driver.ask(next("s")).unwrap() else { panic!("no times") };
    assert_eq!(times.len(), 3);
    assert!(times.windows(2).all(|pair| pair[1].since(pair[0]) == 24 * 3600 * 1000));
    driver.ask(ScheduleCommand::Pause("s".into())).unwrap();
    assert_eq!(driver.ask(next("s")), Ok(ScheduleReply::Times(Vec::new())));
}

#[test]
fn what_fires_at_the_same_time_fits_entries() {
    let mut driver = Driver::new();
    let large = NewJob { payload: vec![0; SCHEDULE_PAYLOAD_BYTES_MAX].into(), ..NewJob::default() };
    for queue in 0..100 {
        driver.queue = driver.world.create(Kind::Queue, &format!("q{queue}"));
        for name in ["s", "t"] {
            driver.create(name, ScheduleSpec { job: large.clone(), ..cron("@hourly", "UTC") }).unwrap();
        }
    }
    driver.world.now = driver.world.now.plus(3_600_000);
    let mut fired = 0;
    while fired < 200 {
        let facts = driver.world.machine.tick(driver.world.now, driver.world.lsn.next(), 512).facts;
        fired += facts.iter().filter(|fact| matches!(fact, Fact::JobEnqueued { .. })).count();
        assert!(facts.iter().map(Fact::encoded_len_max).sum::<usize>() < ENTRY_BYTES_MAX / 2);
        assert!(!facts.is_empty());
        driver.world.commit(facts);
    }
}

#[test]
fn a_schedule_goes_with_its_queue() {
    let mut driver = Driver::new();
    driver.create("s", cron("* * * * *", "UTC")).unwrap();
    driver.world.seal();
    driver.world.write();
    driver.create("t", cron("* * * * *", "UTC")).unwrap();
    driver.world.delete(Kind::Queue, "mail");
    driver.world.now = driver.world.now.plus(100_000);
    assert_eq!(driver.world.tick(10), [Fact::ResourceDropped { id: driver.queue }]);
    assert_eq!(driver.world.machine.next_due(), None);
    driver.world.machine.check_all();
    driver.world.seal();
    driver.world.write();
    assert!(!driver.world.index.keys().any(|(space, _)| *space == flowmesh_model::Space::Jobs));
}
