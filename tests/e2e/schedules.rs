//! Schedules: they fire at their time, once for each, whatever is killed and restarted in between.

use flowmesh_proto::v1;
use flowmesh_proto::v1::create_schedule_request::Timing;
use tonic::{Code, Status};

use super::shell::{ok, run};
use crate::common::client::{job, names_field};
use crate::common::{Client, Home, eventually, now_ms, refused};

const LONG_MS: u64 = 600_000;

fn cron(queue: &str, name: &str, expression: &str) -> v1::CreateScheduleRequest {
    v1::CreateScheduleRequest {
        queue: queue.into(),
        name: name.into(),
        timing: Some(Timing::Cron(expression.into())),
        missed: v1::MissedPolicy::All.into(),
        job: Some(job("work")),
        ..Default::default()
    }
}

fn once(queue: &str, name: &str, at_ms: u64) -> v1::CreateScheduleRequest {
    v1::CreateScheduleRequest { timing: Some(Timing::AtMs(at_ms)), ..cron(queue, name, "") }
}

fn which(queue: &str, name: &str) -> v1::ScheduleRequest {
    v1::ScheduleRequest { queue: queue.into(), name: name.into() }
}

async fn create(client: &mut Client, request: v1::CreateScheduleRequest) -> Result<v1::ScheduleInfo, Status> {
    let created = client.schedule.create(request).await?.into_inner();
    assert!(created.created);
    Ok(created.schedule.unwrap())
}

async fn describe(client: &mut Client, queue: &str, name: &str) -> v1::ScheduleInfo {
    client.schedule.describe(which(queue, name)).await.unwrap().into_inner()
}

/// Waits until it has fired so often.
async fn fired(client: &Client, name: &str, times: u64) -> v1::ScheduleInfo {
    eventually("the schedule has fired", || {
        let mut client = client.clone();
        async move { Some(describe(&mut client, "mail", name).await).filter(|info| info.fired_total >= times) }
    })
    .await
}

fn scheduled_at(job: &v1::LeasedJob) -> u64 {
    let header = job.headers.iter().find(|header| header.name == "flowmesh-scheduled-at").unwrap();
    std::str::from_utf8(&header.value).unwrap().parse().unwrap()
}

/// Every job of the queue: the times they are for, in the order in which they were enqueued.
async fn all_times(client: &mut Client, queue: &str) -> Vec<u64> {
    let mut jobs = client.reserve(queue, 10_000, LONG_MS, 0).await.unwrap();
    jobs.sort_by_key(|job| job.job_id);
    jobs.iter().map(scheduled_at).collect()
}

#[tokio::test]
async fn a_schedule_enqueues_its_job_at_its_times() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    let trace = v1::Header { name: "trace".into(), value: "abc".into() };
    let rich = v1::NewJob { priority: 7, headers: vec![trace.clone()], max_attempts: Some(2), ..job("pay") };
    let request = v1::CreateScheduleRequest { job: Some(rich.clone()), ..cron("mail", "s", "* * * * * *") };
    let created = create(&mut client, request.clone()).await.unwrap();
    assert_eq!((created.queue.as_str(), created.name.as_str()), ("default/default/queue/mail", "s"));
    assert_eq!((created.state(), created.time_zone.as_str()), (v1::ScheduleState::Active, "UTC"));
    assert_eq!(created.job, Some(rich));
    let next = created.next_at_ms.unwrap();
    assert!(next % 1_000 == 0 && next > created.created_at_ms);
    let info = fired(&client, "s", 2).await;
    assert!(now_ms() >= next + 1_000, "never before its time");
    assert!(info.next_at_ms.unwrap() > info.last_scheduled_at_ms.unwrap());
    let jobs = client.reserve("mail", 2, LONG_MS, 0).await.unwrap();
    for (job, at) in jobs.iter().zip([next, next + 1_000]) {
        assert_eq!((job.payload.as_ref(), job.priority), (&b"pay"[..], 7));
        let names: Vec<&str> = job.headers.iter().map(|header| header.name.as_str()).collect();
        assert_eq!(names, ["trace", "flowmesh-schedule", "flowmesh-scheduled-at"]);
        assert_eq!((&job.headers[0], job.headers[1].value.as_ref()), (&trace, &b"s"[..]));
        assert_eq!(scheduled_at(job), at);
        assert!(job.enqueued_at_ms >= at);
    }
    // The same once more is no other schedule; another one of that name is refused.
    let again = client.schedule.create(request.clone()).await.unwrap().into_inner();
    assert!(!again.created && again.schedule.unwrap().created_at_ms == created.created_at_ms);
    let other = v1::CreateScheduleRequest { time_zone: "Europe/Berlin".into(), ..request };
    refused(client.schedule.create(other).await, Code::AlreadyExists, "SCHEDULE_EXISTS");
}

#[tokio::test]
async fn each_second_fires_once_through_kills_and_restarts() {
    let home = Home::new();
    let mut server = home.start();
    let mut client = server.client().await;
    create(&mut client, cron("mail", "s", "* * * * * *")).await.unwrap();
    for round in 1..=5 {
        fired(&client, "s", round).await;
        server.kill9();
        server = home.start();
        client = server.client().await;
    }
    let paused = client.schedule.pause(which("mail", "s")).await.unwrap().into_inner();
    let times = all_times(&mut client, "mail").await;
    assert_eq!(times.len() as u64, paused.fired_total);
    assert_eq!(paused.skipped_total, 0);
    assert!(times.windows(2).all(|pair| pair[1] == pair[0] + 1_000), "each second once: {times:?}");
    assert_eq!(Some(times[times.len() - 1]), paused.last_scheduled_at_ms);
}

#[tokio::test]
async fn a_full_queue_holds_its_schedules_back_and_none_of_their_times_is_lost_or_fires_twice() {
    let home = Home::new();
    let mut server = home.start();
    let mut client = server.client().await;
    client.create_queue("mail", v1::QueueSettings { jobs_max: Some(2), ..Default::default() }).await;
    create(&mut client, cron("mail", "s", "* * * * * *")).await.unwrap();
    let mut times = Vec::new();
    for round in 1..=4 {
        let held = eventually("the queue is full", || {
            let mut client = client.clone();
            async move {
                let info = describe(&mut client, "mail", "s").await;
                Some(info).filter(|info| info.held_back && info.fired_total >= 2 * round)
            }
        })
        .await;
        assert_eq!((held.fired_total, held.skipped_total), (2 * round, 0));
        assert!(held.next_at_ms > held.last_scheduled_at_ms && held.next_at_ms.unwrap() <= now_ms());
        refused(client.schedule.run_now(which("mail", "s")).await, Code::ResourceExhausted, "QUEUE_FULL");
        // Each time that has come is due still, after a kill too.
        server.kill9();
        server = home.start();
        client = server.client().await;
        times.extend(all_times(&mut client, "mail").await);
    }
    assert_eq!(times.len(), 8);
    assert!(times.windows(2).all(|pair| pair[1] == pair[0] + 1_000), "each second once: {times:?}");
    client.queue.pause(v1::PauseQueueRequest { queue: "mail".into() }).await.unwrap();
    fired(&client, "s", 9).await;
}

#[tokio::test]
async fn a_schedule_drops_what_the_queue_says_is_to_be_dropped() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let when_full = Some(v1::WhenFull::DropOldest.into());
    let settings = v1::QueueSettings { jobs_max: Some(2), when_full, ..Default::default() };
    client.create_queue("mail", settings).await;
    client.enqueue("mail", ["old", "old"]).await.unwrap();
    create(&mut client, cron("mail", "s", "* * * * * *")).await.unwrap();
    let info = fired(&client, "s", 3).await;
    assert!(!info.held_back);
    let paused = client.schedule.pause(which("mail", "s")).await.unwrap().into_inner();
    let times = all_times(&mut client, "mail").await;
    assert_eq!(times.len(), 2, "the last two are left");
    assert_eq!(Some(times[1]), paused.last_scheduled_at_ms);
}

#[tokio::test]
async fn a_schedule_is_changed_and_stays_the_same_one() {
    let home = Home::new();
    let mut server = home.start();
    let mut client = server.client().await;
    let created = create(&mut client, cron("mail", "s", "* * * * * *")).await.unwrap();
    fired(&client, "s", 2).await;
    let yearly = v1::UpdateScheduleRequest {
        queue: "mail".into(),
        name: "s".into(),
        timing: Some(v1::update_schedule_request::Timing::Cron("@yearly".into())),
        time_zone: "europe/berlin".into(),
        missed: v1::MissedPolicy::Skip.into(),
        job: Some(job("other")),
        ..Default::default()
    };
    let changed = client.schedule.update(yearly.clone()).await.unwrap().into_inner();
    assert_eq!((changed.time_zone.as_str(), changed.missed()), ("Europe/Berlin", v1::MissedPolicy::Skip));
    assert_eq!(changed.created_at_ms, created.created_at_ms);
    assert!(changed.fired_total >= 2 && changed.last_job_id == Some(changed.fired_total));
    assert_eq!(client.schedule.update(yearly.clone()).await.unwrap().into_inner(), changed);
    server.kill9();
    server = home.start();
    client = server.client().await;
    assert_eq!(describe(&mut client, "mail", "s").await, changed);
    // The job alone: the next time stays.
    let alone = v1::UpdateScheduleRequest {
        timing: None,
        time_zone: String::new(),
        job: Some(job("third")),
        ..yearly.clone()
    };
    let third = client.schedule.update(alone).await.unwrap().into_inner();
    assert_eq!((third.next_at_ms, third.time_zone.as_str()), (changed.next_at_ms, "Europe/Berlin"));
    let run = client.schedule.run_now(which("mail", "s")).await.unwrap().into_inner().job_id;
    let jobs = client.reserve("mail", 100, LONG_MS, 0).await.unwrap();
    let by_hand = jobs.iter().find(|job| job.job_id == run).unwrap();
    assert_eq!(by_hand.payload, "third");
    let marked = |job: &v1::LeasedJob| job.headers.iter().any(|header| header.name == "flowmesh-trigger");
    assert_eq!(jobs.iter().filter(|job| marked(job)).count(), 1);
    assert!(marked(by_hand));
    let past = v1::UpdateScheduleRequest {
        timing: Some(v1::update_schedule_request::Timing::AtMs(now_ms() - 1_000)),
        time_zone: String::new(),
        ..yearly.clone()
    };
    refused(client.schedule.update(past).await, Code::FailedPrecondition, "SCHEDULE_IN_PAST");
    let end = v1::UpdateScheduleRequest { end_ms: Some(1), ..yearly.clone() };
    names_field(
        &refused(client.schedule.update(end).await, Code::InvalidArgument, "INVALID_ARGUMENT"),
        "end_ms",
    );
    let none = v1::UpdateScheduleRequest { name: "none".into(), ..yearly };
    refused(client.schedule.update(none).await, Code::NotFound, "SCHEDULE_NOT_FOUND");
}

#[tokio::test]
async fn a_paused_schedule_lets_its_times_pass() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    create(&mut client, cron("mail", "s", "* * * * * *")).await.unwrap();
    create(&mut client, cron("mail", "clock", "* * * * * *")).await.unwrap();
    fired(&client, "s", 1).await;
    let paused = client.schedule.pause(which("mail", "s")).await.unwrap().into_inner();
    assert_eq!((paused.state(), paused.next_at_ms), (v1::ScheduleState::Paused, None));
    // Another one shows that time goes on.
    let ticked = describe(&mut client, "mail", "clock").await.fired_total;
    fired(&client, "clock", ticked + 2).await;
    assert_eq!(describe(&mut client, "mail", "s").await, paused);
    let none = v1::NextTimesRequest { queue: "mail".into(), name: "s".into(), count: 3 };
    assert!(client.schedule.next(none).await.unwrap().into_inner().times_ms.is_empty());
    // By hand it fires all the same.
    let job_id = client.schedule.run_now(which("mail", "s")).await.unwrap().into_inner().job_id;
    let run = describe(&mut client, "mail", "s").await;
    assert_eq!((run.state(), run.last_job_id), (v1::ScheduleState::Paused, Some(job_id)));
    let before = now_ms();
    let resumed = client.schedule.resume(which("mail", "s")).await.unwrap().into_inner();
    assert!(resumed.next_at_ms.unwrap() > before);
    let info = fired(&client, "s", run.fired_total + 1).await;
    assert!(info.last_scheduled_at_ms >= resumed.next_at_ms, "what passed meanwhile is left out");
    client.schedule.delete(which("mail", "s")).await.unwrap();
    refused(client.schedule.describe(which("mail", "s")).await, Code::NotFound, "SCHEDULE_NOT_FOUND");
}

#[tokio::test]
async fn a_one_off_fires_once_and_is_finished() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let at = now_ms() + 300;
    let created = create(&mut client, once("mail", "s", at)).await.unwrap();
    assert_eq!(created.next_at_ms, Some(at));
    let info = fired(&client, "s", 1).await;
    assert_eq!((info.state(), info.next_at_ms), (v1::ScheduleState::Finished, None));
    assert!(info.finished_at_ms.unwrap() >= at);
    assert_eq!(all_times(&mut client, "mail").await, [at]);
    // One whose time has just passed fires at once, and the same once more is the same.
    let late = create(&mut client, once("mail", "late", now_ms() - 1_000)).await.unwrap();
    fired(&client, "late", 1).await;
    let again = once("mail", "late", late.next_at_ms.unwrap());
    assert!(!client.schedule.create(again).await.unwrap().into_inner().created);
}

#[tokio::test]
async fn times_to_come_follow_the_clocks_of_the_zone() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let berlin = v1::CreateScheduleRequest {
        time_zone: "europe/berlin".into(),
        end_ms: Some(now_ms() + 366 * 24 * 3_600_000),
        ..cron("mail", "s", "30 6 * * *")
    };
    assert_eq!(create(&mut client, berlin).await.unwrap().time_zone, "Europe/Berlin");
    let next = v1::NextTimesRequest { queue: "mail".into(), name: "s".into(), count: 1_000 };
    let times = client.schedule.next(next).await.unwrap().into_inner().times_ms;
    assert!((365..=367).contains(&times.len()), "a year's: {}", times.len());
    // By UTC it is 05:30 in winter and 04:30 in summer.
    let minutes: std::collections::BTreeSet<u64> =
        times.iter().map(|at| at % (24 * 3_600_000) / 60_000).collect();
    assert_eq!(minutes.into_iter().collect::<Vec<_>>(), [270, 330]);
}

#[tokio::test]
async fn schedules_are_listed_over_all_queues_page_by_page() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    let mut expected = Vec::new();
    for queue in ["a", "b", "other", "c"] {
        client.enqueue(queue, ["x"]).await.unwrap();
        for name in ["s1", "s2", "s3"].into_iter().take(if queue == "b" { 0 } else { 3 }) {
            create(&mut client, cron(queue, name, "@yearly")).await.unwrap();
            expected.push(format!("default/default/queue/{queue} {name}"));
        }
    }
    expected.sort();
    let counted = Some(expected.len() as f64);
    eventually("the metric counts them", || async {
        (server.metric("flowmesh_schedules", "") == counted).then_some(())
    })
    .await;
    for (queue, prefix, size) in
        [("", "", 100), ("", "", 1), ("", "", 2), ("", "", 3), ("other", "", 2), ("", "o", 2)]
    {
        let (mut listed, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListSchedulesRequest {
                queue: queue.into(),
                prefix: prefix.into(),
                page_size: size,
                page_token,
            };
            let page = client.schedule.list(request).await.unwrap().into_inner();
            assert!(page.schedules.len() <= size as usize);
            listed.extend(page.schedules.iter().map(|info| format!("{} {}", info.queue, info.name)));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        let wanted =
            expected.iter().filter(|one| (queue.is_empty() && prefix.is_empty()) || one.contains("other"));
        assert_eq!(listed, wanted.cloned().collect::<Vec<_>>(), "{queue:?} {prefix:?} {size}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_schedule_is_named() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let mut illegal = async |expression: &str, words: &[&str]| {
        let refusal = client.schedule.create(cron("mail", "s", expression)).await;
        let status = refused(refusal, Code::InvalidArgument, "ILLEGAL_CRON");
        names_field(&status, "cron");
        assert!(words.iter().all(|word| status.message().contains(word)), "{}", status.message());
    };
    illegal("0 25 * * *", &["hour at byte 2", "`25`", "allowed: 0 to 23"]).await;
    illegal("0 0 * * MOON", &["day of week at byte 8"]).await;
    illegal("0 0 * *", &["has 4 fields", "allowed: 5"]).await;
    illegal("0 0 31 2 *", &["never comes"]).await;
    let create = |request| {
        let mut client = client.clone();
        async move { client.schedule.create(request).await }
    };
    let zone = v1::CreateScheduleRequest { time_zone: "Mars/Olympus".into(), ..cron("mail", "s", "@daily") };
    let status = refused(create(zone).await, Code::InvalidArgument, "UNKNOWN_TIME_ZONE");
    names_field(&status, "time_zone");
    let past = once("mail", "s", now_ms() - 120_000);
    refused(create(past).await, Code::FailedPrecondition, "SCHEDULE_IN_PAST");
    let nothing = v1::CreateScheduleRequest { timing: None, ..cron("mail", "s", "") };
    names_field(&refused(create(nothing).await, Code::InvalidArgument, "INVALID_ARGUMENT"), "cron");
    let name = create(cron("mail", "a b", "@daily")).await;
    names_field(&refused(name, Code::InvalidArgument, "INVALID_ARGUMENT"), "name");
    let priority = v1::NewJob { priority: 256, ..job("x") };
    let priority = v1::CreateScheduleRequest { job: Some(priority), ..cron("mail", "s", "@daily") };
    names_field(&refused(create(priority).await, Code::InvalidArgument, "INVALID_ARGUMENT"), "priority");
    let large = v1::CreateScheduleRequest { job: Some(job(vec![0; 65_537])), ..cron("mail", "s", "@daily") };
    refused(create(large).await, Code::InvalidArgument, "TOO_LARGE");
    let mut client = client.clone();
    refused(client.schedule.pause(which("mail", "s")).await, Code::NotFound, "SCHEDULE_NOT_FOUND");
    refused(client.schedule.run_now(which("none", "s")).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    let pages = v1::ListSchedulesRequest { page_size: 1_001, ..Default::default() };
    names_field(
        &refused(client.schedule.list(pages).await, Code::InvalidArgument, "INVALID_ARGUMENT"),
        "page_size",
    );
    server.assert_healthy();
}

#[test]
fn schedules_from_a_shell() {
    let home = Home::new();
    let server = home.start();
    let created = ok(
        &server,
        &home,
        "flowmesh schedule create mail report '{\"kind\":\"daily\"}' --cron '30 6 * * MON-FRI' --time-zone Europe/Berlin -H a=b",
    );
    assert!(created.starts_with("report of mail is active, next at 20"), "{created}");
    let again = ok(
        &server,
        &home,
        "printf '{\"kind\":\"daily\"}' | flowmesh schedule create mail report - --cron '30 6 * * MON-FRI' -z Europe/Berlin -H a=b",
    );
    assert!(again.contains("it existed already"), "{again}");
    let reminder = ok(
        &server,
        &home,
        "flowmesh schedule create jobs reminder 'call Ada' --at +10m --missed skip --group g --ttl 1h \
         --backoff fixed:1s:1m:5% -o json",
    );
    let reminder: serde_json::Value = serde_json::from_str(&reminder).unwrap();
    let kept = ["group", "ttl_ms", "backoff"].map(|name| reminder["job"][name].clone());
    assert_eq!(kept, ["g".into(), serde_json::Value::from(3_600_000), "fixed:1s:1m:5%".into()]);
    let list = ok(&server, &home, "flowmesh schedule list");
    assert!(list.contains("30 6 * * MON-FRI Europe/Berlin") && list.contains("once at 20"), "{list}");
    assert_eq!(ok(&server, &home, "flowmesh schedule list jobs -o json").lines().count(), 1);
    assert_eq!(ok(&server, &home, "flowmesh schedule next mail report -n 3").lines().count(), 3);
    assert_eq!(ok(&server, &home, "flowmesh schedule pause mail report"), "report of mail is paused\n");
    let shown = ok(&server, &home, "flowmesh schedule describe mail report");
    assert!(shown.contains("fired 0") && shown.contains("{\"kind\":\"daily\"}"), "{shown}");
    assert_eq!(ok(&server, &home, "flowmesh schedule trigger mail report"), "1 job enqueued in mail: 1\n");
    let updated = ok(&server, &home, "flowmesh schedule update mail report --priority 7 --cron '45 6 * * *'");
    assert_eq!(updated, "report of mail is paused\n");
    let shown = ok(&server, &home, "flowmesh schedule describe mail report");
    assert!(shown.contains("45 6 * * * Europe/Berlin"), "{shown}");
    assert!(shown.contains("priority 7") && shown.contains("{\"kind\":\"daily\"}"), "{shown}");
    ok(&server, &home, "flowmesh schedule resume mail report");
    let json: serde_json::Value =
        serde_json::from_str(&ok(&server, &home, "flowmesh schedule describe mail report -o json")).unwrap();
    assert_eq!((&json["state"], &json["last_job_id"]), (&"active".into(), &1.into()));
    assert_eq!((&json["missed"], &json["job"]["headers"]["a"]), (&"once".into(), &"b".into()));
    ok(&server, &home, "flowmesh schedule delete mail report --yes");
    assert_eq!(run(&server, &home, "flowmesh schedule describe mail report").status.code(), Some(3));
    let refused = run(&server, &home, "flowmesh schedule create mail bad x --cron '0 25 * * *'");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && why.contains("hour at byte 2"), "{why}");
    for wrong in
        ["create mail s x", "create mail s x --at tomorrow", "create mail s x --at +1m --cron @daily"]
    {
        let refused = run(&server, &home, &format!("flowmesh schedule {wrong}"));
        assert_eq!(refused.status.code(), Some(2), "{wrong}");
    }
}
