//! Queues by unary calls: order, leases, redelivery, stale acknowledgements, dead jobs.

use flowmesh_proto::v1;
use tonic::Code;

use crate::common::client::{job, lease};
use crate::common::{Client, Home, eventually, now_ms, refused, within};

const LONG_MS: u64 = 600_000;

async fn create(client: &mut Client, name: &str, settings: v1::QueueSettings) {
    client.create(name, v1::settings::Kind::Queue(settings)).await.unwrap();
}

fn payloads(jobs: &[v1::LeasedJob]) -> Vec<&str> {
    jobs.iter().map(|job| std::str::from_utf8(&job.payload).unwrap()).collect()
}

#[tokio::test]
async fn a_job_goes_its_way_from_enqueue_to_ack() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let before = now_ms();
    let headers = vec![v1::Header { name: "trace".into(), value: "abc".into() }];
    let rich = v1::NewJob { priority: 7, headers: headers.clone(), ..job("pay") };
    let ids = client.enqueue_jobs("mail", vec![rich]).await.unwrap();
    assert_eq!(ids, [1]);
    let jobs = client.reserve("mail", 10, LONG_MS, 0).await.unwrap();
    let [got] = jobs.as_slice() else { panic!("one job: {jobs:?}") };
    assert_eq!((got.job_id, got.attempt, got.priority, got.payload.as_ref()), (1, 1, 7, &b"pay"[..]));
    assert_eq!(got.headers, headers);
    assert!((before..=now_ms()).contains(&got.enqueued_at_ms));
    assert!(got.leased_until_ms >= before + LONG_MS);
    assert!(
        client.reserve("mail", 10, LONG_MS, 0).await.unwrap().is_empty(),
        "a leased job is with nobody else"
    );

    let status = client.queue_status("mail").await;
    assert_eq!((status.ready, status.leased, status.enqueued_total, status.done_total), (0, 1, 1, 0));
    assert_eq!(client.ack("mail", &jobs).await, [None]);
    let status = client.queue_status("mail").await;
    assert_eq!((status.ready, status.leased, status.enqueued_total, status.done_total), (0, 0, 1, 1));
    // A second acknowledgement of the same lease.
    assert_eq!(client.ack("mail", &jobs).await[0].as_deref().map(settled), Some(true));
}

/// The reasons that a lease which was settled before may get: the job is gone, or is known to be done.
fn settled(reason: &str) -> bool {
    matches!(reason, "LEASE_SETTLED" | "JOB_NOT_FOUND")
}

#[tokio::test]
async fn higher_priority_comes_first_and_then_the_older() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let with = |payload: &'static str, priority| v1::NewJob { priority, ..job(payload) };
    client.enqueue_jobs("mail", vec![with("c", 0), with("a", 255), with("d", 0)]).await.unwrap();
    client.enqueue_jobs("mail", vec![with("b", 9), with("e", 0)]).await.unwrap();
    let first = client.reserve("mail", 2, LONG_MS, 0).await.unwrap();
    let rest = client.reserve("mail", 10, LONG_MS, 0).await.unwrap();
    assert_eq!((payloads(&first), payloads(&rest)), (vec!["a", "b"], vec!["c", "d", "e"]));
    assert!(rest.iter().all(|job| job.token > first[1].token), "tokens grow");
}

#[tokio::test]
async fn a_delayed_job_is_ready_at_its_time_and_not_before() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let before = now_ms();
    let later = |payload: &'static str, delay_ms| v1::NewJob { delay_ms, ..job(payload) };
    client
        .enqueue_jobs("mail", vec![later("second", 600), later("first", 300), later("never", LONG_MS)])
        .await
        .unwrap();
    let status = client.queue_status("mail").await;
    assert_eq!(status.delayed + status.ready, 3);
    let first = within("the first", client.reserve("mail", 1, LONG_MS, 60_000)).await.unwrap();
    assert!(now_ms() >= before + 300);
    let second = within("the second", client.reserve("mail", 1, LONG_MS, 60_000)).await.unwrap();
    assert!(now_ms() >= before + 600);
    assert_eq!((payloads(&first), payloads(&second)), (vec!["first"], vec!["second"]));
    assert_eq!(client.queue_status("mail").await.delayed, 1);
}

#[tokio::test]
async fn a_lease_that_runs_out_is_given_again_with_a_larger_token() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let settings = v1::QueueSettings { backoff_initial_ms: Some(0), ..v1::QueueSettings::default() };
    create(&mut client, "mail", settings).await;
    client.enqueue("mail", ["x"]).await.unwrap();
    let first = client.reserve("mail", 1, 200, 0).await.unwrap();
    let second = within("the job comes again", client.reserve("mail", 1, LONG_MS, 60_000)).await.unwrap();
    assert!(now_ms() >= first[0].leased_until_ms, "not before the lease ended");
    assert_eq!((second[0].job_id, second[0].attempt), (first[0].job_id, 2));
    assert!(second[0].token > first[0].token);
    // The first worker is too late, and cannot hurt the second.
    assert_eq!(client.ack("mail", &first).await, [Some("LEASE_SUPERSEDED".to_owned())]);
    assert_eq!(client.nack("mail", &first[0], None).await.as_deref(), Some("LEASE_SUPERSEDED"));
    assert_eq!(client.ack("mail", &second).await, [None]);
}

#[tokio::test]
async fn an_ack_after_the_lease_ran_out_is_refused_and_the_job_is_not_lost() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let settings = v1::QueueSettings { backoff_initial_ms: Some(0), ..v1::QueueSettings::default() };
    create(&mut client, "mail", settings).await;
    client.enqueue("mail", ["x"]).await.unwrap();
    let late = client.reserve("mail", 1, 100, 0).await.unwrap();
    eventually("the lease ran out", || {
        let mut client = client.clone();
        async move { (client.queue_status("mail").await.leased == 0).then_some(()) }
    })
    .await;
    assert_eq!(client.ack("mail", &late).await, [Some("LEASE_EXPIRED".to_owned())]);
    let again = within("the job comes again", client.reserve("mail", 1, LONG_MS, 60_000)).await.unwrap();
    assert_eq!(client.ack("mail", &again).await, [None]);
    assert_eq!(client.queue_status("mail").await.done_total, 1);
}

#[tokio::test]
async fn a_batch_is_answered_item_by_item() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", (0..64).map(|i| i.to_string())).await.unwrap();
    let mut jobs = client.reserve("mail", 64, LONG_MS, 0).await.unwrap();
    assert_eq!(jobs.len(), 64);
    assert_eq!(payloads(&jobs)[..3], ["0", "1", "2"]);
    jobs[10].token += 1_000_000;
    jobs[20].job_id = 999;
    jobs[30].token = jobs[31].token;
    jobs[40].token = jobs[39].token;
    let outcomes = client.ack("mail", &jobs).await;
    for (i, outcome) in outcomes.iter().enumerate() {
        match i {
            20 => assert_eq!(outcome.as_deref(), Some("JOB_NOT_FOUND")),
            10 | 30 => {
                assert_eq!(outcome.as_deref(), Some("INVALID_ARGUMENT"), "job {i}: never given out for it")
            }
            40 => assert_eq!(outcome.as_deref(), Some("LEASE_SUPERSEDED"), "job {i}: an older one's"),
            _ => assert_eq!(*outcome, None, "job {i}"),
        }
    }
    assert_eq!(client.queue_status("mail").await.done_total, 60);
}

#[tokio::test]
async fn a_job_given_back_returns_until_it_is_dead() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let settings = v1::QueueSettings {
        max_attempts: Some(3),
        backoff_initial_ms: Some(1),
        ..v1::QueueSettings::default()
    };
    create(&mut client, "mail", settings).await;
    client.enqueue("mail", ["bad"]).await.unwrap();
    for attempt in 1..=3 {
        let jobs = within("the next attempt", client.reserve("mail", 1, LONG_MS, 60_000)).await.unwrap();
        assert_eq!(jobs[0].attempt, attempt);
        assert_eq!(client.nack("mail", &jobs[0], (attempt == 1).then_some(0)).await, None);
    }
    let status = client.queue_status("mail").await;
    assert_eq!((status.dead, status.ready, status.delayed, status.leased), (1, 0, 0, 0));
    assert!(client.reserve("mail", 1, LONG_MS, 0).await.unwrap().is_empty(), "a dead job is not delivered");
    // A job's own limit goes before the queue's.
    client.enqueue_jobs("mail", vec![v1::NewJob { max_attempts: Some(1), ..job("once") }]).await.unwrap();
    let jobs = client.reserve("mail", 1, LONG_MS, 0).await.unwrap();
    assert_eq!(client.nack("mail", &jobs[0], None).await, None);
    assert_eq!(client.queue_status("mail").await.dead, 2);
}

#[tokio::test]
async fn a_lease_can_be_extended_while_it_lasts() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", ["x", "y"]).await.unwrap();
    let jobs = client.reserve("mail", 2, LONG_MS, 0).await.unwrap();
    client.ack("mail", &jobs[1..]).await;
    let before = now_ms();
    let request = v1::ExtendRequest {
        queue: "mail".into(),
        leases: jobs.iter().map(lease).collect(),
        visibility_timeout_ms: Some(2 * LONG_MS),
    };
    let outcomes = client.queue.extend(request).await.unwrap().into_inner().outcomes;
    assert_eq!(outcomes[0].error, None);
    assert!((before + 2 * LONG_MS..=now_ms() + 2 * LONG_MS).contains(&outcomes[0].leased_until_ms));
    assert!(outcomes[1].error.as_ref().is_some_and(|error| settled(&error.reason)));
}

#[tokio::test]
async fn a_waiting_reserve_gets_the_next_job() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    create(&mut client, "mail", v1::QueueSettings::default()).await;
    let mut waiting = client.clone();
    let worker = tokio::spawn(async move { waiting.reserve("mail", 5, LONG_MS, 60_000).await.unwrap() });
    tokio::task::yield_now().await;
    client.enqueue("mail", ["x"]).await.unwrap();
    assert_eq!(payloads(&within("the job", worker).await.unwrap()), ["x"]);
    assert!(
        within("a reserve that waits 1 ms", client.reserve("mail", 1, LONG_MS, 1)).await.unwrap().is_empty()
    );
    refused(client.reserve("none", 1, LONG_MS, 0).await, Code::NotFound, "RESOURCE_NOT_FOUND");
}

#[tokio::test]
async fn many_workers_get_every_job_exactly_once() {
    const JOBS: usize = 2000;
    const WORKERS: usize = 8;
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    for batch in 0..JOBS / 100 {
        client.enqueue("mail", (0..100).map(|i| (batch * 100 + i).to_string())).await.unwrap();
    }
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..WORKERS {
        let mut client = server.client().await;
        workers.spawn(async move {
            let mut done = Vec::new();
            loop {
                let jobs = client.reserve("mail", 17, LONG_MS, 0).await.unwrap();
                if jobs.is_empty() {
                    return done;
                }
                assert!(client.ack("mail", &jobs).await.iter().all(Option::is_none));
                done.extend(payloads(&jobs).into_iter().map(|text| text.parse::<usize>().unwrap()));
            }
        });
    }
    let mut done: Vec<usize> =
        within("all workers", workers.join_all()).await.into_iter().flatten().collect();
    done.sort_unstable();
    assert_eq!(done, (0..JOBS).collect::<Vec<_>>());
}
