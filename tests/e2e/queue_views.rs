//! What can be seen of a queue and done to many of its jobs: lists, dead letters, redrive, purge, peek, counts.

use flowmesh_proto::v1;
use tonic::Code;

use crate::common::client::{ack_of, job, nack_of};
use crate::common::{Client, Home, Random, now_ms, refused};

const LONG_MS: u64 = 600_000;

fn payloads(jobs: &[v1::Job]) -> Vec<&str> {
    jobs.iter().map(|job| std::str::from_utf8(&job.payload).unwrap()).collect()
}

fn header(name: &str, value: &'static str) -> v1::Header {
    v1::Header { name: name.into(), value: value.into() }
}

/// Enqueues a job and lets it die of this error; its number.
async fn kill(client: &mut Client, job: v1::NewJob, error: &str) -> u64 {
    let id = client.enqueue_jobs("mail", vec![job]).await.unwrap()[0];
    let held = client.reserve("mail", 1, LONG_MS, 0).await.unwrap();
    let nack =
        v1::NackItem { kind: v1::NackKind::NackFinal.into(), error: error.into(), ..nack_of(&held[0]) };
    assert_eq!(client.nack_as("mail", nack).await, None);
    id
}

/// Dead jobs 1 to 4, as the tests below look for them.
async fn some_dead(client: &mut Client) {
    kill(client, v1::NewJob { headers: vec![header("to", "ada")], ..job("1") }, "timeout: 5 s").await;
    kill(client, v1::NewJob { group: "g".into(), ..job("2") }, "timeout: 9 s").await;
    kill(client, v1::NewJob { headers: vec![header("to", "bob")], group: "g".into(), ..job("3") }, "refused")
        .await;
    kill(client, job("4"), "").await;
}

async fn dead(client: &mut Client, filter: v1::JobFilter) -> Vec<u64> {
    client.jobs("mail", v1::JobPhase::Dead, filter).await.iter().map(|job| job.job_id).collect()
}

fn all() -> v1::JobFilter {
    v1::JobFilter::default()
}

#[tokio::test]
async fn dead_jobs_are_listed_and_searched_and_keep_what_happened() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    some_dead(&mut client).await;
    client.enqueue("mail", ["alive"]).await.unwrap();
    let all_dead = client.jobs("mail", v1::JobPhase::Dead, all()).await;
    assert_eq!(payloads(&all_dead), ["1", "2", "3", "4"]);
    let first = &all_dead[0];
    assert_eq!(
        (first.headers[0].value.as_ref(), first.history[0].error.as_str()),
        (&b"ada"[..], "timeout: 5 s")
    );
    let error = |text: &str| v1::JobFilter { error: text.into(), ..all() };
    assert_eq!(dead(&mut client, error("timeout")).await, [1, 2]);
    assert_eq!(dead(&mut client, error("TIMEOUT")).await, [0; 0], "letter for letter");
    let to = |name: &'static str| v1::JobFilter { header: Some(header("to", name)), ..all() };
    assert_eq!(dead(&mut client, to("bob")).await, [3]);
    assert_eq!(dead(&mut client, v1::JobFilter { group: "g".into(), ..all() }).await, [2, 3]);
    assert_eq!(dead(&mut client, v1::JobFilter { group: "g".into(), ..error("timeout") }).await, [2]);
    let at = all_dead[2].moment_ms;
    let since = dead(&mut client, v1::JobFilter { since_ms: at, ..all() }).await;
    let before = dead(&mut client, v1::JobFilter { before_ms: at, ..all() }).await;
    assert!(since.contains(&3) && since.contains(&4) && !before.contains(&3));
    assert_eq!(since.len() + before.len(), 4);
    assert_eq!(dead(&mut client, v1::JobFilter { since_ms: now_ms() + LONG_MS, ..all() }).await, [0; 0]);
}

#[tokio::test]
async fn dead_jobs_are_sent_back_one_some_or_all_that_match() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    some_dead(&mut client).await;
    let redrive = |job_ids: &[u64], filter: Option<v1::JobFilter>| v1::RedriveRequest {
        queue: "mail".into(),
        job_ids: job_ids.to_vec(),
        filter,
        ..v1::RedriveRequest::default()
    };
    client.enqueue_jobs("mail", vec![v1::NewJob { delay_ms: LONG_MS, ..job("5") }]).await.unwrap();
    refused(client.queue.redrive(redrive(&[4, 5], None)).await, Code::FailedPrecondition, "WRONG_PHASE");
    refused(client.queue.redrive(redrive(&[4, 9], None)).await, Code::NotFound, "JOB_NOT_FOUND");
    assert_eq!(client.queue_status("mail").await.dead, 4, "all or none");

    let swept = client.queue.redrive(redrive(&[4], None)).await.unwrap().into_inner();
    assert_eq!((swept.jobs, swept.next), (1, None));
    let back = client.reserve("mail", 10, LONG_MS, 0).await.unwrap();
    assert_eq!((back.len(), back[0].job_id, back[0].attempt), (1, 4, 1), "with all its attempts to come");
    assert_eq!(client.job("mail", 4).await.unwrap().history.len(), 1, "and what happened before");

    let filter = v1::JobFilter { error: "timeout".into(), ..all() };
    assert_eq!(client.queue.redrive(redrive(&[], Some(filter))).await.unwrap().into_inner().jobs, 2);
    assert_eq!(dead(&mut client, all()).await, [3]);
    let status = client.queue_status("mail").await;
    assert_eq!((status.ready + status.blocked, status.died_total), (2, 4));
}

#[tokio::test]
async fn many_dead_jobs_are_sent_back_at_a_rate() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    some_dead(&mut client).await;
    let before = now_ms();
    let request = v1::RedriveRequest {
        queue: "mail".into(),
        per_second: 2,
        delay_ms: LONG_MS,
        ..v1::RedriveRequest::default()
    };
    assert_eq!(client.queue.redrive(request).await.unwrap().into_inner().jobs, 4);
    let jobs = client.jobs("mail", v1::JobPhase::Delayed, all()).await;
    let moments: Vec<u64> = jobs.iter().map(|job| job.moment_ms).collect();
    assert!((before + LONG_MS..=now_ms() + LONG_MS).contains(&moments[0]));
    assert!(moments.windows(2).all(|pair| pair[1] - pair[0] == 500), "two a second: {moments:?}");
}

#[tokio::test]
async fn dead_and_done_jobs_are_purged_and_waiting_ones_are_not() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let settings = v1::QueueSettings { done_retention_ms: Some(LONG_MS), ..v1::QueueSettings::default() };
    client.create_queue("mail", settings).await;
    some_dead(&mut client).await;
    client.enqueue("mail", ["done", "waiting"]).await.unwrap();
    let done = client.reserve("mail", 1, LONG_MS, 0).await.unwrap();
    assert_eq!(client.ack("mail", &done).await, [None]);
    let purge = |job_ids: &[u64], filter: Option<v1::JobFilter>, phase: v1::JobPhase| v1::PurgeRequest {
        queue: "mail".into(),
        job_ids: job_ids.to_vec(),
        filter,
        phase: phase.into(),
        ..v1::PurgeRequest::default()
    };
    let any = v1::JobPhase::Unspecified;
    refused(client.queue.purge(purge(&[1, 6], None, any)).await, Code::FailedPrecondition, "WRONG_PHASE");
    let waiting = client.queue.purge(purge(&[], None, v1::JobPhase::Ready)).await;
    refused(waiting, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(client.queue.purge(purge(&[1], None, any)).await.unwrap().into_inner().jobs, 1);
    let group = v1::JobFilter { group: "g".into(), ..all() };
    assert_eq!(client.queue.purge(purge(&[], Some(group), any)).await.unwrap().into_inner().jobs, 2);
    assert_eq!(dead(&mut client, all()).await, [4]);
    assert_eq!(client.job("mail", 5).await.unwrap().phase(), v1::JobPhase::Done);
    assert_eq!(client.queue.purge(purge(&[], None, v1::JobPhase::Done)).await.unwrap().into_inner().jobs, 1);
    refused(client.job("mail", 5).await, Code::NotFound, "JOB_NOT_FOUND");
    let status = client.queue_status("mail").await;
    assert_eq!((status.purged_total, status.done_total, status.done, status.ready), (3, 1, 0, 1));
}

#[tokio::test]
async fn jobs_are_listed_by_phase_page_by_page() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let delayed = |n: u64| v1::NewJob { delay_ms: LONG_MS * (n % 2), ..job(n.to_string()) };
    client.enqueue_jobs("mail", (0..25).map(delayed).collect()).await.unwrap();
    let held = client.reserve("mail", 3, LONG_MS, 0).await.unwrap();
    let page = |phase: v1::JobPhase, after, max_jobs| v1::ListJobsRequest {
        queue: "mail".into(),
        phase: phase.into(),
        after,
        max_jobs,
        ..v1::ListJobsRequest::default()
    };
    for (phase, count) in [
        (v1::JobPhase::Unspecified, 25),
        (v1::JobPhase::Ready, 10),
        (v1::JobPhase::Delayed, 12),
        (v1::JobPhase::Leased, 3),
        (v1::JobPhase::Blocked, 0),
    ] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let answer = client.queue.list(page(phase, after, 4)).await.unwrap().into_inner();
            assert!(answer.jobs.len() <= 4);
            assert!(answer.jobs.iter().all(|job| phase == v1::JobPhase::Unspecified || job.phase() == phase));
            seen.extend(answer.jobs.iter().map(|job| job.job_id));
            after = answer.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), count, "{phase:?}");
        assert!(seen.is_sorted_by(|a, b| a < b), "each once, in order");
    }
    let leased = client.jobs("mail", v1::JobPhase::Leased, all()).await;
    assert_eq!((leased[0].token, leased[0].worker.as_str()), (held[0].token, "test"));
    let bare = v1::ListJobsRequest { without_bodies: true, ..page(v1::JobPhase::Leased, None, 1) };
    assert_eq!(client.queue.list(bare).await.unwrap().into_inner().jobs[0].payload, "");
}

#[tokio::test]
async fn a_peek_shows_what_would_be_leased_and_leases_nothing() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let jobs = [("low", 0, ""), ("g1", 5, "g"), ("g2", 9, "g"), ("high", 7, "")];
    let jobs = jobs.map(|(name, priority, group)| v1::NewJob { priority, group: group.into(), ..job(name) });
    client.enqueue_jobs("mail", jobs.to_vec()).await.unwrap();
    let request = v1::PeekRequest { queue: "mail".into(), max_jobs: 10 };
    let peeked = client.queue.peek(request).await.unwrap().into_inner().jobs;
    assert!(peeked.iter().all(|job| job.phase() == v1::JobPhase::Ready));
    assert_eq!(client.queue_status("mail").await.leased, 0);
    let leased = client.reserve("mail", 10, LONG_MS, 0).await.unwrap();
    let leased: Vec<u64> = leased.iter().map(|job| job.job_id).collect();
    assert_eq!(peeked.iter().map(|job| job.job_id).collect::<Vec<_>>(), leased);
}

#[tokio::test]
async fn a_status_has_rates_and_times_of_the_last_minutes() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", ["a", "b", "c"]).await.unwrap();
    let held = client.reserve("mail", 3, LONG_MS, 0).await.unwrap();
    assert_eq!(client.ack("mail", &held[..2]).await, [None, None]);
    let status = client.queue_status("mail").await;
    let (rates, wait, run) = (status.rates.unwrap(), status.wait_ms.unwrap(), status.run_ms.unwrap());
    assert!(rates.enqueued > 0.0 && rates.done > 0.0 && rates.died == 0.0, "{rates:?}");
    assert_eq!((wait.count, run.count), (3, 2));
    assert!(wait.p50 <= wait.p95 && wait.p95 <= wait.p99 && wait.p99 <= wait.max, "{wait:?}");
}

/// What `QueueStatusResponse` promises of its counts.
fn adds_up(status: &v1::QueueStatusResponse) -> bool {
    let there = status.ready + status.delayed + status.blocked + status.leased + status.dead;
    let gone = status.done_total
        + status.expired_total
        + status.cancelled_total
        + status.dropped_total
        + status.purged_total;
    status.enqueued_total == there + gone
}

#[tokio::test]
async fn counts_add_up_whatever_happens() {
    let mut random = Random::new("counts_add_up");
    let home = Home::new().set("checkpoint_interval_ms", "100ms");
    let settings = v1::QueueSettings {
        max_attempts: Some(2),
        backoff_initial_ms: Some(0),
        jobs_max: Some(40),
        when_full: Some(v1::WhenFull::DropOldest.into()),
        ..v1::QueueSettings::default()
    };
    home.start().client().await.create_queue("mail", settings).await;
    let mut before = v1::QueueStatusResponse::default();
    for _ in 0..3 {
        let server = home.start();
        let mut client = server.client().await;
        for _ in 0..150 {
            step(&mut client, &mut random).await;
            let status = client.queue_status("mail").await;
            assert!(adds_up(&status), "{status:?}");
            assert!(
                status.enqueued_total >= before.enqueued_total && status.done_total >= before.done_total,
                "{before:?} {status:?}"
            );
            before = status;
        }
        server.kill9();
    }
    assert!(before.done_total > 0 && before.died_total > 0 && before.dropped_total > 0, "{before:?}");
}

/// Something that a caller or a worker may do.
async fn step(client: &mut Client, random: &mut Random) {
    let some_id = |random: &mut Random, last: u64| 1 + random.below(last.max(1));
    let last = client.queue_status("mail").await.enqueued_total;
    match random.below(10) {
        0..=4 => {
            let group = ["", "a", "b"][random.below(3) as usize];
            let new = v1::NewJob {
                priority: random.below(3) as u32,
                delay_ms: [0, 0, LONG_MS][random.below(3) as usize],
                ttl_ms: [0, 0, 1][random.below(3) as usize],
                group: group.into(),
                ..job("x")
            };
            let flow = v1::NewJob { after: vec![0], after_any_end: random.below(2) == 0, ..job("parent") };
            client.enqueue_jobs("mail", vec![new, flow]).await.unwrap();
        }
        5..=7 => {
            let jobs = client.reserve("mail", 3, LONG_MS, 0).await.unwrap();
            let (done, failed) = jobs.split_at(jobs.len() / 2);
            if !done.is_empty() {
                let leases = done.iter().map(ack_of).collect();
                client.queue.ack(v1::AckRequest { queue: "mail".into(), leases }).await.unwrap();
            }
            for job in failed {
                client.nack("mail", job, None).await;
            }
        }
        8 => {
            let job_ids = vec![some_id(random, last), some_id(random, last)];
            client.queue.cancel(v1::CancelJobsRequest { queue: "mail".into(), job_ids }).await.unwrap();
        }
        _ if random.below(2) == 0 => {
            let redrive = v1::RedriveRequest { queue: "mail".into(), ..v1::RedriveRequest::default() };
            client.queue.redrive(redrive).await.unwrap();
        }
        _ => {
            let purge = v1::PurgeRequest { queue: "mail".into(), ..v1::PurgeRequest::default() };
            client.queue.purge(purge).await.unwrap();
        }
    }
}
