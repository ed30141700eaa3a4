//! What a queue lets in and who is next: groups and fairness, keys, times, limits and rates, pause, full queues.

use flowmesh_proto::v1;
use tonic::Code;

use crate::common::client::{job, nack_of, names_field};
use crate::common::{Client, Home, eventually, now_ms, refused, within};

const LONG_MS: u64 = 600_000;

fn payloads(jobs: &[v1::LeasedJob]) -> Vec<&str> {
    jobs.iter().map(|job| std::str::from_utf8(&job.payload).unwrap()).collect()
}

fn grouped(group: &str, payload: &'static str) -> v1::NewJob {
    v1::NewJob { group: group.into(), ..job(payload) }
}

/// Leases one job that must be there at once.
async fn next(client: &mut Client, queue: &str) -> v1::LeasedJob {
    let mut jobs = client.reserve(queue, 1, LONG_MS, 0).await.unwrap();
    assert_eq!(jobs.len(), 1, "a job is ready in {queue}");
    jobs.remove(0)
}

#[tokio::test]
async fn jobs_of_a_group_come_one_at_a_time_and_in_order() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let jobs = vec![grouped("a", "a1"), grouped("a", "a2"), grouped("b", "b1"), job("plain")];
    client.enqueue_jobs("mail", jobs).await.unwrap();
    let mut held = client.reserve("mail", 10, LONG_MS, 0).await.unwrap();
    held.sort_by_key(|job| job.job_id);
    assert_eq!(payloads(&held), ["a1", "b1", "plain"], "groups in parallel, each one at a time");
    assert_eq!((held[0].group.as_str(), held[2].group.as_str()), ("a", ""));
    let status = client.queue_status("mail").await;
    assert_eq!((status.ready, status.blocked, status.leased), (0, 1, 3));
    // It failed and waits for its next attempt: its successor waits behind it, other groups do not.
    assert_eq!(client.nack("mail", &held[0], Some(LONG_MS)).await, None);
    client.enqueue_jobs("mail", vec![grouped("b", "b2")]).await.unwrap();
    assert_eq!(client.ack("mail", &held[1..2]).await, [None]);
    assert_eq!(next(&mut client, "mail").await.payload, "b2");
    assert!(client.reserve("mail", 10, LONG_MS, 0).await.unwrap().is_empty(), "a2 is behind a1");
    let now = v1::ChangeJobRequest {
        queue: "mail".into(),
        job_id: held[0].job_id,
        priority: None,
        run_at_ms: Some(now_ms()),
    };
    client.queue.change(now).await.unwrap();
    let again = within("a1 again", client.reserve("mail", 1, LONG_MS, 60_000)).await.unwrap();
    assert_eq!(payloads(&again), ["a1"]);
    assert_eq!(client.ack("mail", &again).await, [None]);
    assert_eq!(next(&mut client, "mail").await.payload, "a2");
}

#[tokio::test]
async fn a_noisy_group_takes_turns_with_the_others() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue_jobs("mail", (0..50).map(|_| grouped("noisy", "n")).collect()).await.unwrap();
    let quiet = ["b", "b", "c", "c"].map(|group| grouped(group, "q"));
    client.enqueue_jobs("mail", quiet.to_vec()).await.unwrap();
    let mut turns = String::new();
    for _ in 0..8 {
        let job = next(&mut client, "mail").await;
        turns.push_str(&job.group[..1]);
        assert_eq!(client.ack("mail", &[job]).await, [None]);
    }
    assert_eq!(turns, "nbcnbcnn", "the noisy group has one turn in three while the others have jobs");
}

#[tokio::test]
async fn a_key_answers_with_the_job_there_is() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let keyed = |payload: &'static str| v1::NewJob { key: "k".into(), ..job(payload) };
    let request = v1::EnqueueRequest {
        queue: "mail".into(),
        jobs: vec![keyed("x"), job("other"), keyed("x")],
        wait_ms: 0,
    };
    let answer = client.queue.enqueue(request.clone()).await.unwrap().into_inner();
    assert_eq!((answer.job_ids, answer.existing), (vec![1, 2, 1], vec![2]));
    let answer = client.queue.enqueue(request).await.unwrap().into_inner();
    assert_eq!((answer.job_ids, answer.existing), (vec![1, 3, 1], vec![0, 2]));
    let conflict = client.enqueue_jobs("mail", vec![job("none of it"), keyed("y")]).await;
    refused(conflict, Code::AlreadyExists, "KEY_CONFLICT");
    assert_eq!(client.queue_status("mail").await.enqueued_total, 3, "all or none");
    assert_eq!(client.job("mail", 1).await.unwrap().key, "k");
    // Once the job is done its key is free.
    let first = next(&mut client, "mail").await;
    assert_eq!(client.ack("mail", &[first]).await, [None]);
    assert_eq!(client.enqueue_jobs("mail", vec![keyed("y")]).await.unwrap(), [4]);
}

#[tokio::test]
async fn a_key_with_a_window_counts_as_long_and_no_longer() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let keyed = |key: &str, key_window_ms| v1::NewJob { key: key.into(), key_window_ms, ..job("x") };
    client.enqueue_jobs("mail", vec![keyed("long", LONG_MS), keyed("short", 1)]).await.unwrap();
    let done = client.reserve("mail", 2, LONG_MS, 0).await.unwrap();
    assert_eq!(client.ack("mail", &done[..1]).await, [None]);
    server.kill9();
    let server = home.start();
    let mut client = server.client().await;
    assert_eq!(
        client.enqueue_jobs("mail", vec![keyed("long", LONG_MS)]).await.unwrap(),
        [1],
        "done, still known"
    );
    let other = eventually("the short window is over", || {
        let mut client = client.clone();
        async move {
            let ids = client.enqueue_jobs("mail", vec![v1::NewJob { key: "short".into(), ..job("x") }]).await;
            ids.unwrap().first().copied().filter(|id| *id != 2)
        }
    })
    .await;
    assert_eq!(other, 3, "although the first is with a worker");
    let orphan = client.enqueue_jobs("mail", vec![v1::NewJob { key_window_ms: 1, ..job("x") }]).await;
    names_field(&refused(orphan, Code::InvalidArgument, "INVALID_ARGUMENT"), "key_window_ms");
}

#[tokio::test]
async fn a_job_runs_at_its_time_and_not_after_its_time_to_live() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let at = now_ms() + 300;
    let jobs = vec![
        v1::NewJob { run_at_ms: at, ..job("soon") },
        v1::NewJob { run_at_ms: 1, ..job("past") },
        v1::NewJob { ttl_ms: 1, delay_ms: LONG_MS, ..job("too late") },
        v1::NewJob { ttl_ms: LONG_MS, ..job("in time") },
    ];
    client.enqueue_jobs("mail", jobs).await.unwrap();
    let first = client.reserve("mail", 2, LONG_MS, 0).await.unwrap();
    assert_eq!(payloads(&first), ["past", "in time"]);
    let soon = within("its time", client.reserve("mail", 1, LONG_MS, 60_000)).await.unwrap();
    assert!(now_ms() >= at && payloads(&soon) == ["soon"]);
    let status = eventually("the other is removed", || {
        let mut client = client.clone();
        async move { Some(client.queue_status("mail").await).filter(|status| status.delayed == 0) }
    })
    .await;
    assert_eq!(status.expired_total, 1);
    refused(client.job("mail", 3).await, Code::NotFound, "JOB_NOT_FOUND");
    let both = v1::NewJob { run_at_ms: at, delay_ms: 1, ..job("x") };
    let both = client.enqueue_jobs("mail", vec![both]).await;
    names_field(&refused(both, Code::InvalidArgument, "INVALID_ARGUMENT"), "run_at_ms");
}

#[tokio::test]
async fn a_limit_of_concurrency_holds_for_the_queue_and_for_groups() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let settings = v1::QueueSettings {
        concurrency: Some(3),
        group_concurrency: Some(2),
        ..v1::QueueSettings::default()
    };
    client.create_queue("mail", settings).await;
    let jobs = ["a1", "a2", "a3"].map(|payload| grouped("a", payload));
    client.enqueue_jobs("mail", jobs.into_iter().chain([job("p1"), job("p2")]).collect()).await.unwrap();
    let held = client.reserve("mail", 10, LONG_MS, 0).await.unwrap();
    assert_eq!(held.len(), 3);
    assert!(held.iter().filter(|job| job.group == "a").count() <= 2);
    let mut waiting = client.clone();
    let worker = tokio::spawn(async move { waiting.reserve("mail", 10, LONG_MS, 60_000).await.unwrap() });
    tokio::task::yield_now().await;
    assert_eq!(
        client.nack_as("mail", v1::NackItem { delay_ms: Some(LONG_MS), ..nack_of(&held[0]) }).await,
        None
    );
    assert_eq!(within("room for one", worker).await.unwrap().len(), 1);
    assert_eq!(client.queue_status("mail").await.leased, 3);
}

#[tokio::test]
async fn a_rate_holds_for_the_queue_and_for_groups() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let rate = Some(v1::Rate { per_second: 10, burst: 2 });
    client.create_queue("all", v1::QueueSettings { rate, ..v1::QueueSettings::default() }).await;
    client.enqueue("all", ["1", "2", "3", "4", "5"]).await.unwrap();
    let before = now_ms();
    assert_eq!(client.reserve("all", 10, LONG_MS, 0).await.unwrap().len(), 2, "the burst");
    let mut had = 2;
    while had < 5 {
        had += within("the next", client.reserve("all", 10, LONG_MS, 60_000)).await.unwrap().len();
    }
    assert!(now_ms() >= before + 300, "three tokens take three tenths of a second");

    let settings = v1::QueueSettings {
        group_rate: Some(v1::Rate { per_second: 1, burst: 1 }),
        group_concurrency: Some(10),
        ..v1::QueueSettings::default()
    };
    client.create_queue("each", settings).await;
    let jobs = vec![grouped("a", "a1"), grouped("a", "a2"), grouped("b", "b1"), job("plain")];
    client.enqueue_jobs("each", jobs).await.unwrap();
    let before = now_ms();
    let mut first = client.reserve("each", 10, LONG_MS, 0).await.unwrap();
    first.sort_by_key(|job| job.job_id);
    assert_eq!(payloads(&first), ["a1", "b1", "plain"]);
    let last = within("the next token", client.reserve("each", 1, LONG_MS, 60_000)).await.unwrap();
    assert_eq!(payloads(&last), ["a2"]);
    assert!(now_ms() >= before + 999);
}

#[tokio::test]
async fn a_paused_queue_gives_nothing_out_until_it_is_resumed() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", ["x", "y"]).await.unwrap();
    let held = next(&mut client, "mail").await;
    let queue = v1::PauseQueueRequest { queue: "mail".into() };
    client.queue.pause(queue.clone()).await.unwrap();
    assert!(client.queue_status("mail").await.paused);
    assert!(client.reserve("mail", 1, LONG_MS, 0).await.unwrap().is_empty());
    client.enqueue("mail", ["z"]).await.unwrap();
    assert_eq!(client.ack("mail", &[held]).await, [None], "leases go on");
    server.kill9();
    let server = home.start();
    let mut client = server.client().await;
    assert!(client.queue_status("mail").await.paused, "a restart does not resume it");
    let mut waiting = client.clone();
    let worker = tokio::spawn(async move { waiting.reserve("mail", 10, LONG_MS, 60_000).await.unwrap() });
    tokio::task::yield_now().await;
    client.queue.resume(queue).await.unwrap();
    assert_eq!(payloads(&within("both", worker).await.unwrap()), ["y", "z"]);
}

#[tokio::test]
async fn a_full_queue_refuses_and_has_room_again() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let jobs = v1::QueueSettings { jobs_max: Some(2), ..v1::QueueSettings::default() };
    client.create_queue("jobs", jobs).await;
    client.enqueue("jobs", ["1"]).await.unwrap();
    refused(client.enqueue("jobs", ["2", "3"]).await, Code::ResourceExhausted, "QUEUE_FULL");
    client.enqueue("jobs", ["2"]).await.unwrap();
    next(&mut client, "jobs").await;
    client.enqueue("jobs", ["3"]).await.unwrap();
    assert_eq!(client.queue_status("jobs").await.enqueued_total, 3);

    let bytes = v1::QueueSettings { bytes_max: Some(100), ..v1::QueueSettings::default() };
    client.create_queue("bytes", bytes).await;
    client.enqueue("bytes", ["x".repeat(60)]).await.unwrap();
    refused(client.enqueue("bytes", ["x".repeat(60)]).await, Code::ResourceExhausted, "QUEUE_FULL");
    assert_eq!(client.queue_status("bytes").await.waiting_bytes, 60);
    next(&mut client, "bytes").await;
    client.enqueue("bytes", ["x".repeat(60)]).await.unwrap();
}

#[tokio::test]
async fn an_enqueue_waits_for_room_where_the_queue_says_so() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let settings = v1::QueueSettings {
        jobs_max: Some(1),
        when_full: Some(v1::WhenFull::Wait.into()),
        ..v1::QueueSettings::default()
    };
    client.create_queue("mail", settings).await;
    client.enqueue("mail", ["first"]).await.unwrap();
    refused(client.enqueue("mail", ["at once"]).await, Code::ResourceExhausted, "QUEUE_FULL");
    let late = |wait_ms| v1::EnqueueRequest { queue: "mail".into(), jobs: vec![job("late")], wait_ms };
    refused(client.queue.enqueue(late(50)).await, Code::ResourceExhausted, "QUEUE_FULL");
    let mut patient = client.clone();
    let enqueue =
        tokio::spawn(async move { patient.queue.enqueue(late(60_000)).await.unwrap().into_inner() });
    tokio::task::yield_now().await;
    assert_eq!(next(&mut client, "mail").await.payload, "first");
    assert_eq!(within("room", enqueue).await.unwrap().job_ids, [2]);
    assert_eq!(next(&mut client, "mail").await.payload, "late");
}

#[tokio::test]
async fn a_full_queue_drops_the_oldest_or_the_lowest_where_it_says_so() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let full = |when_full: v1::WhenFull| v1::QueueSettings {
        jobs_max: Some(3),
        when_full: Some(when_full.into()),
        ..v1::QueueSettings::default()
    };
    client.create_queue("oldest", full(v1::WhenFull::DropOldest)).await;
    client.create_queue("lowest", full(v1::WhenFull::DropLowestPriority)).await;
    client.enqueue("oldest", ["1", "2", "3"]).await.unwrap();
    client.enqueue("oldest", ["4", "5"]).await.unwrap();
    let left = client.reserve("oldest", 10, LONG_MS, 0).await.unwrap();
    assert_eq!(payloads(&left), ["3", "4", "5"]);
    assert_eq!(client.queue_status("oldest").await.dropped_total, 2);

    let with = |payload: &'static str, priority| v1::NewJob { priority, ..job(payload) };
    client.enqueue_jobs("lowest", vec![with("a", 5), with("b", 1), with("c", 1)]).await.unwrap();
    client.enqueue_jobs("lowest", vec![with("d", 9)]).await.unwrap();
    refused(client.enqueue_jobs("lowest", vec![with("e", 1)]).await, Code::ResourceExhausted, "QUEUE_FULL");
    let left = client.reserve("lowest", 10, LONG_MS, 0).await.unwrap();
    assert_eq!(payloads(&left), ["d", "a", "b"], "the newest of the lowest went");
    assert_eq!(client.queue_status("lowest").await.dropped_total, 1);
}
