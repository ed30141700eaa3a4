//! What becomes of jobs: retries, ways to give one back, progress, cancelling, changing, quarantine, results, flows.

use flowmesh_proto::v1;
use tonic::Code;

use crate::common::client::{ack_of, job, lease, nack_of, names_field, reason};
use crate::common::{Client, Home, eventually, now_ms, refused, within};

const LONG_MS: u64 = 600_000;

/// Leases one job that must be there, or come soon.
async fn next(client: &mut Client, queue: &str) -> v1::LeasedJob {
    let mut jobs = within("a job", client.reserve(queue, 1, LONG_MS, 60_000)).await.unwrap();
    assert_eq!(jobs.len(), 1, "a job is ready in {queue}");
    jobs.remove(0)
}

async fn change(
    client: &mut Client,
    job_id: u64,
    priority: Option<u32>,
    run_at_ms: Option<u64>,
) -> Result<(), tonic::Status> {
    let request = v1::ChangeJobRequest { queue: "mail".into(), job_id, priority, run_at_ms };
    client.queue.change(request).await.map(|_| ())
}

async fn cancel(client: &mut Client, job_ids: Vec<u64>) -> Vec<Result<bool, String>> {
    let request = v1::CancelJobsRequest { queue: "mail".into(), job_ids };
    let outcomes = client.queue.cancel(request).await.unwrap().into_inner().outcomes;
    outcomes
        .into_iter()
        .map(|outcome| outcome.error.map_or(Ok(outcome.requested), |error| Err(error.reason)))
        .collect()
}

async fn ack_with(client: &mut Client, job: &v1::LeasedJob, result: &'static str) {
    let ack = v1::AckItem { result: result.into(), ..ack_of(job) };
    let request = v1::AckRequest { queue: "mail".into(), leases: vec![ack] };
    let outcomes = client.queue.ack(request).await.unwrap().into_inner().outcomes;
    assert_eq!(outcomes, [v1::Outcome { error: None }]);
}

/// Fails the next job again and again; the waits that follow, in seconds.
async fn waits(client: &mut Client, attempts: usize) -> Vec<u64> {
    let mut waits = Vec::new();
    for _ in 0..attempts {
        let job = next(client, "mail").await;
        let before = now_ms();
        assert_eq!(client.nack_as("mail", nack_of(&job)).await, None);
        let failed = client.job("mail", job.job_id).await.unwrap();
        assert_eq!(failed.phase(), v1::JobPhase::Delayed);
        // Waits are of whole hours here, and nothing else takes half of one.
        let hour = 3_600_000;
        waits.push((failed.moment_ms - before + hour / 2) / hour);
        change(client, job.job_id, None, Some(now_ms())).await.unwrap();
    }
    waits
}

#[tokio::test]
async fn waits_between_attempts_are_the_jobs_own_or_the_queues() {
    use v1::retry_policy::Backoff;
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let hour = 3_600_000;
    let settings = v1::QueueSettings {
        max_attempts: Some(100),
        backoff: Some(Backoff::Linear.into()),
        backoff_initial_ms: Some(hour),
        backoff_max_ms: Some(3 * hour),
        ..v1::QueueSettings::default()
    };
    client.create_queue("mail", settings).await;
    client.enqueue("mail", ["as the queue"]).await.unwrap();
    assert_eq!(waits(&mut client, 4).await, [1, 2, 3, 3]);
    let own = |backoff: Backoff, jitter_percent| v1::NewJob {
        priority: 1,
        retry: Some(v1::RetryPolicy {
            backoff: backoff.into(),
            initial_ms: 2 * hour,
            max_ms: 9 * hour,
            jitter_percent,
        }),
        ..job("own")
    };
    for (backoff, wanted) in [
        (Backoff::Fixed, [2, 2, 2, 2]),
        (Backoff::Linear, [2, 4, 6, 8]),
        (Backoff::Exponential, [2, 4, 8, 9]),
    ] {
        let ids = client.enqueue_jobs("mail", vec![own(backoff, 0)]).await.unwrap();
        assert_eq!(waits(&mut client, 4).await, wanted, "{backoff:?}");
        assert_eq!(cancel(&mut client, ids).await, [Ok(false)]);
    }
    client.enqueue_jobs("mail", vec![own(Backoff::Fixed, 50)]).await.unwrap();
    assert!(
        waits(&mut client, 20).await.iter().all(|hours| (1..=2).contains(hours)),
        "at most half of it less"
    );
    let wild = client.enqueue_jobs("mail", vec![own(Backoff::Fixed, 101)]).await;
    refused(wild, Code::InvalidArgument, "INVALID_ARGUMENT");
}

#[tokio::test]
async fn a_job_is_given_back_as_failed_as_hopeless_or_unworked() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", ["x"]).await.unwrap();
    let first = next(&mut client, "mail").await;
    let released = v1::NackItem {
        kind: v1::NackKind::NackReleased.into(),
        error: "shutting down".into(),
        ..nack_of(&first)
    };
    assert_eq!(client.nack_as("mail", released).await, None);
    let second = next(&mut client, "mail").await;
    assert_eq!((second.attempt, second.token > first.token), (1, true), "that was no attempt");
    assert_eq!(client.nack("mail", &second, Some(0)).await, None);
    let third = next(&mut client, "mail").await;
    assert_eq!(third.attempt, 2);
    let hopeless = v1::NackItem {
        kind: v1::NackKind::NackFinal.into(),
        error: "no such address".into(),
        ..nack_of(&third)
    };
    assert_eq!(client.nack_as("mail", hopeless).await, None);
    let dead = client.job("mail", 1).await.unwrap();
    assert_eq!((dead.phase(), dead.attempts), (v1::JobPhase::Dead, 2));
    let ends: Vec<_> =
        dead.history.iter().map(|it| (it.end.as_str(), it.error.as_str(), it.worker.as_str())).collect();
    assert_eq!(
        ends,
        [
            ("released", "shutting down", "test"),
            ("nacked", "no luck", "test"),
            ("final", "no such address", "test")
        ]
    );
    assert!(
        dead.history
            .iter()
            .all(|it| it.began_at_ms <= it.ended_at_ms && it.began_at_ms >= dead.enqueued_at_ms)
    );
    let status = client.queue_status("mail").await;
    assert_eq!((status.retried_total, status.died_total), (1, 1));
}

#[tokio::test]
async fn progress_is_kept_with_the_job_and_needs_its_lease() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", ["x"]).await.unwrap();
    let held = next(&mut client, "mail").await;
    let progress = |token, progress: &'static str| v1::ProgressRequest {
        queue: "mail".into(),
        job_id: held.job_id,
        token,
        progress: progress.into(),
    };
    client.queue.progress(progress(held.token, "30 %")).await.unwrap();
    assert_eq!(client.job("mail", held.job_id).await.unwrap().progress, "30 %");
    client.queue.progress(progress(held.token, "60 %")).await.unwrap();
    assert_eq!(client.nack("mail", &held, Some(0)).await, None);
    let again = next(&mut client, "mail").await;
    let stale = client.queue.progress(progress(held.token, "90 %")).await;
    refused(stale, Code::FailedPrecondition, "LEASE_SUPERSEDED");
    let job = client.job("mail", again.job_id).await.unwrap();
    assert_eq!((job.progress.as_ref(), job.worker.as_str()), (&b"60 %"[..], "test"));
}

#[tokio::test]
async fn a_job_can_be_cancelled_at_any_time_before_it_is_done() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", ["leased", "acked", "waiting"]).await.unwrap();
    client.enqueue_jobs("mail", vec![v1::NewJob { delay_ms: LONG_MS, ..job("delayed") }]).await.unwrap();
    let held = client.reserve("mail", 2, LONG_MS, 0).await.unwrap();
    assert_eq!(
        cancel(&mut client, vec![1, 2, 3, 4, 99]).await,
        [Ok(true), Ok(true), Ok(false), Ok(false), Err("JOB_NOT_FOUND".to_owned())]
    );
    refused(client.job("mail", 3).await, Code::NotFound, "JOB_NOT_FOUND");
    assert!(client.reserve("mail", 1, LONG_MS, 0).await.unwrap().is_empty());
    let request = v1::ExtendRequest {
        queue: "mail".into(),
        leases: held.iter().map(lease).collect(),
        visibility_timeout_ms: None,
    };
    let outcomes = client.queue.extend(request).await.unwrap().into_inner().outcomes;
    assert!(outcomes.iter().all(|outcome| outcome.cancel_requested && outcome.error.is_none()));
    assert!(client.job("mail", 1).await.unwrap().cancel_requested);
    // One worker stops, the other was done before it heard of it.
    assert_eq!(client.nack_as("mail", nack_of(&held[0])).await, None);
    assert_eq!(client.ack("mail", &held[1..]).await, [None]);
    let status = client.queue_status("mail").await;
    assert_eq!((status.cancelled_total, status.done_total, status.leased), (3, 1, 0));
    let once = v1::NewJob { max_attempts: Some(1), ..job("dead") };
    let ids = client.enqueue_jobs("mail", vec![once]).await.unwrap();
    let failed = next(&mut client, "mail").await;
    assert_eq!(client.nack("mail", &failed, None).await, None);
    assert_eq!(cancel(&mut client, ids).await, [Err("WRONG_PHASE".to_owned())]);
}

#[tokio::test]
async fn a_cancelled_job_whose_worker_is_gone_does_not_come_back() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", ["x"]).await.unwrap();
    assert_eq!(client.reserve("mail", 1, 100, 0).await.unwrap().len(), 1);
    // It may be ready again by now, on a slow machine: then it is gone at once.
    cancel(&mut client, vec![1]).await[0].clone().unwrap();
    let status = eventually("the lease is over", || {
        let mut client = client.clone();
        async move { Some(client.queue_status("mail").await).filter(|status| status.leased == 0) }
    })
    .await;
    assert_eq!((status.cancelled_total, status.ready, status.delayed), (1, 0, 0));
}

#[tokio::test]
async fn a_waiting_job_gets_another_priority_or_time() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", ["first", "urgent", "later"]).await.unwrap();
    client.enqueue_jobs("mail", vec![v1::NewJob { delay_ms: LONG_MS, ..job("now") }]).await.unwrap();
    change(&mut client, 2, Some(9), None).await.unwrap();
    change(&mut client, 3, None, Some(now_ms() + LONG_MS)).await.unwrap();
    change(&mut client, 4, Some(1), Some(1)).await.unwrap();
    let jobs = client.reserve("mail", 10, LONG_MS, 0).await.unwrap();
    let order: Vec<_> = jobs.iter().map(|job| (job.payload.as_ref(), job.priority)).collect();
    assert_eq!(order, [(&b"urgent"[..], 9), (b"now", 1), (b"first", 0)]);
    assert_eq!(client.job("mail", 3).await.unwrap().phase(), v1::JobPhase::Delayed);
    refused(change(&mut client, 1, Some(2), None).await, Code::FailedPrecondition, "WRONG_PHASE");
    refused(change(&mut client, 99, Some(2), None).await, Code::NotFound, "JOB_NOT_FOUND");
    let wild = change(&mut client, 3, Some(256), None).await;
    names_field(&refused(wild, Code::InvalidArgument, "INVALID_ARGUMENT"), "priority");
}

#[tokio::test]
async fn a_job_whose_workers_crash_is_set_aside() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let settings = v1::QueueSettings {
        max_attempts: Some(100),
        quarantine_after: Some(2),
        ..v1::QueueSettings::default()
    };
    client.create_queue("mail", settings).await;
    client.enqueue("mail", ["poison"]).await.unwrap();
    for _ in 0..2 {
        let job = within("an attempt", client.reserve("mail", 1, 100, 60_000)).await.unwrap();
        assert_eq!(job.len(), 1);
    }
    let dead = eventually("it is dead", || {
        let mut client = client.clone();
        async move { client.job("mail", 1).await.ok().filter(|job| job.phase() == v1::JobPhase::Dead) }
    })
    .await;
    let ends: Vec<&str> = dead.history.iter().map(|attempt| attempt.end.as_str()).collect();
    assert_eq!(ends, ["expired", "quarantined"]);
}

#[tokio::test]
async fn a_caller_awaits_a_result_which_is_kept_for_its_time() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", ["6 * 7"]).await.unwrap();
    let wait = |mut client: Client, job_id| {
        let request = v1::GetJobRequest { queue: "mail".into(), job_id, wait_ms: 60_000 };
        tokio::spawn(async move { client.queue.get(request).await.map(tonic::Response::into_inner) })
    };
    let result = wait(client.clone(), 1);
    tokio::task::yield_now().await;
    let held = next(&mut client, "mail").await;
    ack_with(&mut client, &held, "42").await;
    let done = within("the result", result).await.unwrap().unwrap();
    assert_eq!((done.phase(), done.result.as_ref()), (v1::JobPhase::Done, &b"42"[..]));
    assert!(done.moment_ms > now_ms(), "it is kept until then");
    assert_eq!(done.history.last().unwrap().end, "acked");
    server.kill9();
    let server = home.start();
    let mut client = server.client().await;
    assert_eq!(client.job("mail", 1).await.unwrap().result, "42");
    assert_eq!(client.queue_status("mail").await.done, 1);

    // Nothing is kept of one that has nothing to say; one that ends badly ends the wait as well.
    client.enqueue("mail", ["quiet"]).await.unwrap();
    let gone = wait(client.clone(), 2);
    tokio::task::yield_now().await;
    let quiet = next(&mut client, "mail").await;
    assert_eq!(client.ack("mail", &[quiet]).await, [None]);
    refused(within("the end", gone).await.unwrap(), Code::NotFound, "JOB_NOT_FOUND");
    client.enqueue_jobs("mail", vec![v1::NewJob { max_attempts: Some(1), ..job("bad") }]).await.unwrap();
    let failed = wait(client.clone(), 3);
    tokio::task::yield_now().await;
    let bad = next(&mut client, "mail").await;
    assert_eq!(client.nack("mail", &bad, None).await, None);
    assert_eq!(within("the end", failed).await.unwrap().unwrap().phase(), v1::JobPhase::Dead);
}

#[tokio::test]
async fn what_is_kept_goes_after_its_time() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let settings = v1::QueueSettings {
        max_attempts: Some(1),
        done_retention_ms: Some(1),
        result_retention_ms: Some(1),
        dead_retention_ms: Some(1),
        ..v1::QueueSettings::default()
    };
    client.create_queue("mail", settings).await;
    client.enqueue("mail", ["done", "dead"]).await.unwrap();
    let done = next(&mut client, "mail").await;
    ack_with(&mut client, &done, "result").await;
    let dead = next(&mut client, "mail").await;
    assert_eq!(client.nack("mail", &dead, None).await, None);
    let status = eventually("both are gone", || {
        let mut client = client.clone();
        async move { Some(client.queue_status("mail").await).filter(|status| status.done + status.dead == 0) }
    })
    .await;
    assert_eq!((status.done_total, status.died_total, status.purged_total), (1, 1, 1));
}

#[tokio::test]
async fn a_job_waits_for_others_and_gets_their_results() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue_jobs("mail", vec![v1::NewJob { priority: 1, ..job("before") }]).await.unwrap();
    let flow = vec![
        v1::NewJob { after: vec![1, 2], after_jobs: vec![1], priority: 9, ..job("parent") },
        job("child 1"),
        job("child 2"),
    ];
    assert_eq!(client.enqueue_jobs("mail", flow).await.unwrap(), [2, 3, 4]);
    let parent = client.job("mail", 2).await.unwrap();
    assert_eq!((parent.phase(), parent.waits_for), (v1::JobPhase::Blocked, vec![3, 4, 1]));
    assert_eq!(client.queue_status("mail").await.blocked, 1);
    for result in ["r1", "r3", ""] {
        let job = next(&mut client, "mail").await;
        assert_ne!(job.payload, "parent");
        ack_with(&mut client, &job, result).await;
    }
    let parent = next(&mut client, "mail").await;
    assert_eq!(parent.payload, "parent");
    let mut awaited: Vec<_> =
        parent.awaited.iter().map(|it| (it.job_id, it.done, it.result.as_ref())).collect();
    awaited.sort_unstable();
    assert_eq!(awaited, [(1, true, &b"r1"[..]), (3, true, b"r3"), (4, true, b"")]);
}

#[tokio::test]
async fn a_flow_goes_on_waits_or_dies_as_its_parts_end() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let flow = vec![
        v1::NewJob { max_attempts: Some(1), ..job("fails") },
        v1::NewJob { after: vec![0], ..job("needs it done") },
        v1::NewJob { after: vec![0], after_any_end: true, ..job("cleans up") },
        job("cancelled"),
        v1::NewJob { after: vec![3], ..job("needs that done") },
    ];
    client.enqueue_jobs("mail", flow).await.unwrap();
    let fails = next(&mut client, "mail").await;
    assert_eq!(client.nack("mail", &fails, None).await, None);
    assert_eq!(cancel(&mut client, vec![4]).await, [Ok(false)]);
    let cleans = next(&mut client, "mail").await;
    assert_eq!((cleans.payload.as_ref(), cleans.awaited[0].done), (&b"cleans up"[..], false));
    let dead = client.job("mail", 5).await.unwrap();
    assert_eq!(dead.phase(), v1::JobPhase::Dead);
    assert!(dead.history.last().unwrap().error.contains("job 4"), "{:?}", dead.history);
    assert_eq!(client.job("mail", 2).await.unwrap().phase(), v1::JobPhase::Blocked);
    // What it waits for gets another chance, and is done this time.
    let redrive =
        v1::RedriveRequest { queue: "mail".into(), job_ids: vec![1], ..v1::RedriveRequest::default() };
    assert_eq!(client.queue.redrive(redrive).await.unwrap().into_inner().jobs, 1);
    let again = next(&mut client, "mail").await;
    assert_eq!(again.payload, "fails");
    assert_eq!(client.ack("mail", &[again]).await, [None]);
    let parent = next(&mut client, "mail").await;
    assert_eq!((parent.payload.as_ref(), parent.awaited[0].done), (&b"needs it done"[..], true));
}

#[tokio::test]
async fn a_flow_in_a_circle_or_with_a_gap_is_refused_whole() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let after = |payload: &'static str, after: &[u32]| v1::NewJob { after: after.to_vec(), ..job(payload) };
    for circle in [vec![after("itself", &[0])], vec![job("free"), after("a", &[0, 2]), after("b", &[1])]] {
        refused(client.enqueue_jobs("mail", circle).await, Code::InvalidArgument, "FLOW_CYCLE");
    }
    let gaps = [after("beyond", &[7]), v1::NewJob { after_jobs: vec![7], ..job("gone") }];
    for gap in gaps {
        refused(client.enqueue_jobs("mail", vec![job("free"), gap]).await, Code::NotFound, "FLOW_MISSING");
    }
    // A flow is within one queue: a number of another one's job is none here.
    let elsewhere = client.enqueue_jobs("other", vec![job("elsewhere")]).await.unwrap()[0];
    let across = v1::NewJob { after_jobs: vec![elsewhere], ..job("across") };
    let refusal = refused(client.enqueue_jobs("mail", vec![across]).await, Code::NotFound, "FLOW_MISSING");
    assert!(refusal.message().contains("waits for job number 1, which is not there"), "{refusal:?}");
    assert_eq!(client.queue_status("mail").await.enqueued_total, 0);
    let none = client.job("mail", 1).await.unwrap_err();
    assert_eq!(reason(&none), "JOB_NOT_FOUND");
}

#[tokio::test]
async fn a_job_never_waits_for_one_that_is_dropped_to_make_room_for_it() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let settings = v1::QueueSettings {
        jobs_max: Some(1),
        when_full: Some(v1::WhenFull::DropOldest.into()),
        ..v1::QueueSettings::default()
    };
    client.create_queue("mail", settings).await;
    client.enqueue("mail", ["first"]).await.unwrap();
    let parent = v1::NewJob { after_jobs: vec![1], ..job("parent") };
    refused(client.enqueue_jobs("mail", vec![parent]).await, Code::NotFound, "FLOW_MISSING");
    assert_eq!(next(&mut client, "mail").await.payload, "first");
}
