//! Work: jobs pushed up to the worker's credit, outcomes the other way.

use flowmesh_proto::v1;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

use crate::common::client::{ack_of, lease};
use crate::common::{Client, Home, eventually, refused, within};

const LONG_MS: u64 = 600_000;

type Sender = mpsc::Sender<v1::WorkRequest>;

fn hello(queue: &str, credit: u32) -> v1::WorkRequest {
    let hello = v1::WorkHello {
        queue: queue.into(),
        worker: "test".into(),
        visibility_timeout_ms: Some(LONG_MS),
        ..Default::default()
    };
    v1::WorkRequest { hello: Some(hello), credit, ..v1::WorkRequest::default() }
}

async fn open(
    client: &mut Client,
    first: v1::WorkRequest,
) -> Result<(Sender, Streaming<v1::WorkResponse>), Status> {
    let (sender, mut receiver) = mpsc::channel(64);
    sender.send(first).await.unwrap();
    let requests = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    let answers = within("the call opens", client.queue.work(requests)).await?.into_inner();
    Ok((sender, answers))
}

/// Takes messages until there are `count` jobs.
async fn jobs(answers: &mut Streaming<v1::WorkResponse>, count: usize) -> Vec<v1::LeasedJob> {
    let mut jobs = Vec::new();
    while jobs.len() < count {
        jobs.extend(within("jobs", answers.message()).await.unwrap().expect("the call goes on").jobs);
    }
    jobs
}

async fn outcomes(answers: &mut Streaming<v1::WorkResponse>, count: usize) -> Vec<v1::WorkOutcome> {
    let mut outcomes = Vec::new();
    while outcomes.len() < count {
        let answer = within("outcomes", answers.message()).await.unwrap().expect("the call goes on");
        assert!(answer.jobs.is_empty(), "no credit, no job");
        outcomes.extend(answer.outcomes);
    }
    outcomes
}

#[tokio::test]
async fn no_more_jobs_are_pushed_than_there_is_credit() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", (0..20).map(|i| i.to_string())).await.unwrap();
    let (sender, mut answers) = open(&mut client, hello("mail", 3)).await.unwrap();
    let first = jobs(&mut answers, 3).await;
    assert_eq!(first.len(), 3);
    // Acknowledging gives no credit: the outcomes come, and no job before them.
    let acks = first.iter().map(ack_of).collect();
    sender.send(v1::WorkRequest { acks, ..v1::WorkRequest::default() }).await.unwrap();
    assert!(outcomes(&mut answers, 3).await.iter().all(|outcome| outcome.error.is_none()));
    let status = client.queue_status("mail").await;
    assert_eq!((status.ready, status.leased, status.done_total), (17, 0, 3));

    sender.send(v1::WorkRequest { credit: 5, ..v1::WorkRequest::default() }).await.unwrap();
    assert_eq!(jobs(&mut answers, 5).await.len(), 5);
    assert_eq!(client.queue_status("mail").await.leased, 5);
}

#[tokio::test]
async fn jobs_come_as_they_are_enqueued_and_the_call_ends_when_all_is_answered() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let (sender, mut answers) = open(&mut client, hello("mail", 100)).await.unwrap();
    for i in 0..50u64 {
        client.enqueue("mail", [i.to_string()]).await.unwrap();
        let got = jobs(&mut answers, 1).await;
        assert_eq!((got.len(), got[0].payload.as_ref()), (1, i.to_string().as_bytes()));
        let settle = if i % 2 == 0 {
            v1::WorkRequest { acks: vec![ack_of(&got[0])], ..v1::WorkRequest::default() }
        } else {
            let delay_ms = Some(LONG_MS);
            let nack =
                v1::NackItem { job_id: got[0].job_id, token: got[0].token, delay_ms, ..Default::default() };
            v1::WorkRequest { nacks: vec![nack], ..v1::WorkRequest::default() }
        };
        sender.send(settle).await.unwrap();
        assert_eq!(outcomes(&mut answers, 1).await[0].error, None);
    }
    // Half-close right after a last acknowledgement, this one stale: it is still answered.
    let stale = v1::AckItem { job_id: 1, token: 1, ..Default::default() };
    sender.send(v1::WorkRequest { acks: vec![stale], ..v1::WorkRequest::default() }).await.unwrap();
    drop(sender);
    let last = outcomes(&mut answers, 1).await;
    assert!(last[0].error.is_some());
    assert!(within("the end", answers.message()).await.unwrap().is_none());
    let status = client.queue_status("mail").await;
    assert_eq!((status.done_total, status.delayed, status.leased), (25, 25, 0));
}

#[tokio::test]
async fn leases_are_extended_on_the_same_call() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", ["x"]).await.unwrap();
    let (sender, mut answers) = open(&mut client, hello("mail", 1)).await.unwrap();
    let got = jobs(&mut answers, 1).await;
    let request = v1::WorkRequest {
        extends: vec![lease(&got[0])],
        extend_ms: Some(2 * LONG_MS),
        ..v1::WorkRequest::default()
    };
    sender.send(request).await.unwrap();
    let outcome = outcomes(&mut answers, 1).await.remove(0);
    assert_eq!(outcome.error, None);
    assert!(outcome.leased_until_ms > got[0].leased_until_ms);
}

#[tokio::test]
async fn a_worker_that_goes_away_loses_nothing() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let settings = v1::QueueSettings { backoff_initial_ms: Some(0), ..v1::QueueSettings::default() };
    client.create("mail", v1::settings::Kind::Queue(settings)).await.unwrap();
    client.enqueue("mail", (0..10).map(|i| i.to_string())).await.unwrap();
    let mut leaving = server.client().await;
    let mut first = hello("mail", 4);
    first.hello.as_mut().unwrap().visibility_timeout_ms = Some(300);
    let (sender, mut answers) = open(&mut leaving, first).await.unwrap();
    assert_eq!(jobs(&mut answers, 4).await.len(), 4);
    drop((sender, answers, leaving));
    // The leases run out in their own time; nothing is leased to the call that is gone.
    let mut left = 10;
    while left > 0 {
        let got = within("the jobs come again", client.reserve("mail", 10, LONG_MS, 60_000)).await.unwrap();
        left -= client.ack("mail", &got).await.iter().filter(|refusal| refusal.is_none()).count();
    }
    let status = client.queue_status("mail").await;
    assert_eq!((status.done_total, status.ready, status.leased), (10, 0, 0));
}

#[tokio::test]
async fn two_workers_share_a_queue() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let (sender_a, mut a) = open(&mut client.clone(), hello("mail", 10)).await.unwrap();
    let (sender_b, mut b) = open(&mut server.client().await, hello("mail", 10)).await.unwrap();
    client.enqueue("mail", (0..20).map(|i| i.to_string())).await.unwrap();
    let (mut got, more) = (jobs(&mut a, 10).await, jobs(&mut b, 10).await);
    got.extend(more);
    let mut ids: Vec<u64> = got.iter().map(|job| job.job_id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=20).collect::<Vec<_>>());
    drop((sender_a, sender_b));
}

#[tokio::test]
async fn a_call_that_starts_wrong_is_refused() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let outcome = async |client: &mut Client, first| {
        let (_sender, mut answers) = open(client, first).await?;
        answers.message().await
    };
    let no_hello = v1::WorkRequest { credit: 1, ..v1::WorkRequest::default() };
    let refusal = within("a refusal", outcome(&mut client, no_hello)).await;
    refused(refusal, Code::InvalidArgument, "INVALID_ARGUMENT");
    let greedy = within("a refusal", outcome(&mut client, hello("mail", 10_001))).await;
    refused(greedy, Code::InvalidArgument, "TOO_LARGE");

    let (sender, mut answers) = open(&mut client, hello("mail", 0)).await.unwrap();
    sender.send(hello("mail", 0)).await.unwrap();
    refused(within("a refusal", answers.message()).await, Code::InvalidArgument, "INVALID_ARGUMENT");

    let (_sender, mut answers) = open(&mut client, hello("going", 1)).await.unwrap();
    let name: String = "going".into();
    eventually("the queue was made", || {
        let (mut client, name) = (client.clone(), name.clone());
        async move {
            let delete = v1::DeleteResourceRequest { kind: v1::Kind::Queue as i32, name };
            client.admin.delete_resource(delete).await.ok()
        }
    })
    .await;
    refused(within("the call ends", answers.message()).await, Code::NotFound, "RESOURCE_NOT_FOUND");
}

#[tokio::test]
async fn a_worker_that_goes_can_give_its_jobs_back_at_once() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", ["a", "b", "c"]).await.unwrap();
    let mut first = hello("mail", 3);
    first.hello.as_mut().unwrap().release_on_disconnect = true;
    let (sender, mut answers) = open(&mut client, first).await.unwrap();
    let got = jobs(&mut answers, 3).await;
    let acks = vec![ack_of(&got[0])];
    sender.send(v1::WorkRequest { acks, ..v1::WorkRequest::default() }).await.unwrap();
    assert_eq!(outcomes(&mut answers, 1).await[0].error, None);
    drop((sender, answers));
    // Without waiting for their leases, and the attempts do not count.
    let mut again = Vec::new();
    while again.len() < 2 {
        again.extend(client.reserve("mail", 10, LONG_MS, 5_000).await.unwrap());
    }
    let payloads: Vec<_> = again.iter().map(|job| (&job.payload[..], job.attempt)).collect();
    assert_eq!(payloads, [(&b"b"[..], 1), (&b"c"[..], 1)]);
}
