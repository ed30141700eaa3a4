//! Queues through crashes: real workers and the server are killed, again and again. Every job whose enqueue was acknowledged
//! is worked on, and once it was acknowledged never again.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flowmesh_proto::v1;
use tokio::task::JoinHandle;

use super::shell::shell;
use crate::common::client::job;
use crate::common::server::{signal, wait_exit};
use crate::common::{Client, Home, Server, eventually};

const ROUNDS: usize = 4;

/// Enqueues jobs one by one, through whatever happens, until it is told to stop; those that were acknowledged.
fn produce(port: u16, stop: Arc<AtomicBool>) -> JoinHandle<BTreeSet<String>> {
    tokio::spawn(async move {
        let mut acknowledged = BTreeSet::new();
        let mut client = Client::connect(port).await;
        for number in 0u64.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let payload = number.to_string();
            match client.enqueue_jobs("mail", vec![job(payload.clone())]).await {
                Ok(_) => drop(acknowledged.insert(payload)),
                Err(_) => {
                    if let Ok(again) = Client::try_connect(port).await {
                        client = again;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        acknowledged
    })
}

/// A worker that writes down each attempt before it does anything else.
fn worker(server: &Server, home: &Home) -> Child {
    let script = r#"exec flowmesh queue work mail -c 3 --visibility 1s --exec '
        echo "$FLOWMESH_JOB_ID $FLOWMESH_JOB_ATTEMPT $FLOWMESH_JOB_TOKEN $(cat)" >> attempts; sleep 0.02'"#;
    shell(server, home, script).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[derive(Debug)]
struct Attempt {
    job: u64,
    number: u32,
    token: u64,
    payload: String,
}

fn attempts(home: &Home) -> Vec<Attempt> {
    let text = std::fs::read_to_string(home.scratch().join("attempts")).unwrap_or_default();
    let attempt = |line: &str| {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_else(|| panic!("a line with fewer words: {line}"));
        let (job, number, token) = (word(), word(), word());
        Attempt {
            job: job.parse().unwrap(),
            number: number.parse().unwrap(),
            token: token.parse().unwrap(),
            payload: word().to_owned(),
        }
    };
    // Of the last line the end may still come.
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    text[..whole].lines().map(attempt).collect()
}

#[tokio::test]
async fn jobs_are_worked_on_through_killed_workers_and_servers_and_never_once_they_are_done() {
    let home = Home::new().shards(2).set("checkpoint_interval_ms", "100ms");
    let mut server = home.start();
    let settings = v1::QueueSettings {
        max_attempts: Some(10_000),
        backoff_initial_ms: Some(0),
        done_retention_ms: Some(3_600_000),
        ..v1::QueueSettings::default()
    };
    server.client().await.create_queue("mail", settings).await;
    let stop = Arc::new(AtomicBool::new(false));
    let producer = produce(server.grpc_port(), Arc::clone(&stop));
    let mut workers: Vec<Child> = (0..3).map(|_| worker(&server, &home)).collect();
    for round in 0..ROUNDS {
        let enough = attempts(&home).len() + 60;
        eventually("jobs are worked on", || async { (attempts(&home).len() >= enough).then_some(()) }).await;
        let place = round % workers.len();
        signal(workers[place].id(), libc::SIGKILL);
        wait_exit(&mut workers[place]);
        if round % 2 == 1 {
            server.kill9();
            server = home.start();
        }
        workers[place] = worker(&server, &home);
    }
    stop.store(true, Ordering::Relaxed);
    let acknowledged = producer.await.unwrap();
    let client = server.client().await;
    eventually("all jobs are done", || {
        let mut client = client.clone();
        async move {
            let status = client.queue_status("mail").await;
            (status.ready + status.delayed + status.leased == 0).then_some(())
        }
    })
    .await;
    for worker in &mut workers {
        signal(worker.id(), libc::SIGTERM);
        wait_exit(worker);
    }

    let attempts = attempts(&home);
    let done = client.clone().jobs("mail", v1::JobPhase::Done, v1::JobFilter::default()).await;
    let payloads: BTreeSet<String> =
        done.iter().map(|job| String::from_utf8_lossy(&job.payload).into()).collect();
    assert!(payloads.is_superset(&acknowledged), "what was acknowledged is done");
    let worked: BTreeSet<&str> = attempts.iter().map(|attempt| attempt.payload.as_str()).collect();
    assert!(acknowledged.iter().all(|payload| worked.contains(payload.as_str())), "and was worked on");
    let last: BTreeMap<u64, u32> = done.iter().map(|job| (job.job_id, job.attempts)).collect();
    let mut tokens: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
    for attempt in &attempts {
        assert!(attempt.number <= last[&attempt.job], "worked on after it was done: {attempt:?}");
        let other = tokens.insert(attempt.token, (attempt.job, attempt.number));
        assert_eq!(other, None, "a token was given twice: {attempt:?}");
    }
    let by_attempt: BTreeMap<(u64, u32), u64> =
        tokens.iter().map(|(token, (job, attempt))| ((*job, *attempt), *token)).collect();
    for ((job, attempt), token) in &by_attempt {
        let before = by_attempt.range((*job, 0)..(*job, *attempt)).next_back();
        assert!(before.is_none_or(|(_, before)| before < token), "the tokens of job {job} grow");
    }
    assert!(last.values().any(|attempts| *attempts > 1), "kills made no job run again: nothing was tried");
}
