//! Workers: who is there, what each runs, who died; through kills of workers and of the server.

use std::process::Stdio;

use flowmesh_proto::v1;
use tonic::{Code, Status};

use super::shell::{ok, run, shell};
use crate::common::server::{signal, wait_exit};
use crate::common::wait::eventually_blocking;
use crate::common::{Client, Home, eventually, refused};

/// Long enough that a machine which is busy with other tests does not miss it.
const LONG_MS: u64 = 600_000;

fn json(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

fn registration(worker: &str, queues: &[&str], session_timeout_ms: u64) -> v1::RegisterWorkerRequest {
    v1::RegisterWorkerRequest {
        worker: worker.into(),
        queues: queues.iter().map(|queue| (*queue).to_owned()).collect(),
        concurrency: 3,
        host: "here".into(),
        process_id: 7,
        labels: vec![v1::WorkerLabel { name: "zone".into(), value: "a".into() }],
        session_timeout_ms: Some(session_timeout_ms),
        retention_ms: None,
    }
}

async fn register(client: &mut Client, worker: &str, session_timeout_ms: u64) -> u64 {
    let request = registration(worker, &["mail"], session_timeout_ms);
    client.worker.register(request).await.unwrap().into_inner().epoch
}

async fn heartbeat(
    client: &mut Client,
    worker: &str,
    epoch: u64,
) -> Result<v1::WorkerHeartbeatResponse, Status> {
    let request = v1::WorkerHeartbeatRequest { worker: worker.into(), epoch, without_queues: false };
    client.worker.heartbeat(request).await.map(tonic::Response::into_inner)
}

async fn describe(client: &mut Client, worker: &str) -> Result<v1::DescribeWorkerResponse, Status> {
    let request = v1::DescribeWorkerRequest { worker: worker.into(), jobs_max: 0 };
    client.worker.describe(request).await.map(tonic::Response::into_inner)
}

/// Once the worker is in that state.
async fn in_state(client: &Client, worker: &str, state: v1::WorkerState) -> v1::WorkerInfo {
    eventually(&format!("{worker} is {state:?}"), || {
        let mut client = client.clone();
        async move { describe(&mut client, worker).await.ok()?.worker.filter(|found| found.state() == state) }
    })
    .await
}

async fn reserve(client: &mut Client, worker: &str, max_jobs: u32, timeout_ms: u64) -> Vec<v1::LeasedJob> {
    let request = v1::ReserveRequest {
        queue: "mail".into(),
        worker: worker.into(),
        max_jobs,
        visibility_timeout_ms: Some(timeout_ms),
        ..Default::default()
    };
    client.queue.reserve(request).await.unwrap().into_inner().jobs
}

#[tokio::test]
async fn a_worker_is_seen_with_what_it_runs_and_what_became_of_what_it_ran() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    let request = registration("w1", &["mail", "default/default/queue/sms"], LONG_MS);
    let registered = client.worker.register(request).await.unwrap().into_inner();
    assert_eq!(registered.worker, "default/default/worker/w1");
    assert_eq!((registered.session_timeout_ms, registered.heartbeat_interval_ms), (LONG_MS, 5_000));

    client.enqueue("mail", (0..6).map(|i| i.to_string())).await.unwrap();
    let jobs = reserve(&mut client, "w1", 4, LONG_MS).await;
    let others = reserve(&mut client, "somebody", 1, LONG_MS).await;
    client.ack("mail", &jobs[..2]).await;
    client.ack("mail", &others).await;
    let nack = v1::NackItem { job_id: jobs[2].job_id, token: jobs[2].token, ..Default::default() };
    client.queue.nack(v1::NackRequest { queue: "mail".into(), nacks: vec![nack] }).await.unwrap();

    let described = describe(&mut client, "default/default/w1").await.unwrap();
    let worker = described.worker.unwrap();
    assert_eq!((worker.state(), worker.concurrency, worker.process_id), (v1::WorkerState::Alive, 3, 7));
    assert_eq!((worker.host.as_str(), worker.labels[0].value.as_str()), ("here", "a"));
    assert_eq!(worker.queues, ["default/default/queue/mail", "default/default/queue/sms"]);
    let totals = v1::WorkerTotals { running: 1, acked: 2, failed: 1, lost: 0 };
    assert_eq!(worker.totals, Some(totals));
    let [mail, sms] = &described.queues[..] else { panic!("{:?}", described.queues) };
    assert_eq!((mail.state(), mail.totals), (v1::WorkerQueueState::Open, Some(totals)));
    assert!(mail.last_seen_ms.unwrap() >= worker.registered_at_ms);
    let [running] = &mail.jobs[..] else { panic!("{:?}", mail.jobs) };
    assert_eq!((running.job_id, running.attempt), (jobs[3].job_id, 1));
    assert_eq!(running.leased_until_ms, jobs[3].leased_until_ms);
    assert!(running.since_ms + LONG_MS >= running.leased_until_ms);
    assert_eq!((sms.state(), sms.totals), (v1::WorkerQueueState::Missing, None));

    // What a heartbeat says of the queues follows them.
    client.queue.pause(v1::PauseQueueRequest { queue: "mail".into() }).await.unwrap();
    client.enqueue("sms", ["x"]).await.unwrap();
    let told = heartbeat(&mut client, "w1", registered.epoch).await.unwrap();
    let states: Vec<_> = told.queues.iter().map(v1::WorkerQueue::state).collect();
    assert_eq!(states, [v1::WorkerQueueState::Paused, v1::WorkerQueueState::Open]);
    assert!(!told.stop);
    assert_eq!(server.metric("flowmesh_workers", "state=\"alive\"").unwrap() as u64, 1);
}

#[tokio::test]
async fn a_lease_that_runs_out_counts_against_whoever_had_it() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    register(&mut client, "w1", LONG_MS).await;
    client.enqueue("mail", ["a"]).await.unwrap();
    assert_eq!(reserve(&mut client, "w1", 1, 100).await.len(), 1);
    eventually("the lease runs out", || {
        let mut client = client.clone();
        async move {
            let totals = describe(&mut client, "w1").await.unwrap().worker.unwrap().totals.unwrap();
            (totals == v1::WorkerTotals { lost: 1, ..Default::default() }).then_some(())
        }
    })
    .await;
}

#[tokio::test]
async fn who_is_silent_is_dead_and_who_speaks_again_is_alive() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let epoch = register(&mut client, "w1", 1_000).await;
    let dead = in_state(&client, "w1", v1::WorkerState::Dead).await;
    assert!(dead.since_ms >= dead.registered_at_ms + 1_000, "not before its session was over: {dead:?}");
    assert_eq!((dead.deaths, dead.until_ms), (1, Some(dead.since_ms + 24 * 3_600_000)));
    heartbeat(&mut client, "w1", epoch).await.unwrap();
    let request = v1::ListWorkersRequest {
        states: vec![v1::WorkerState::Alive.into(), v1::WorkerState::Dead.into()],
        ..Default::default()
    };
    let listed = client.worker.list(request).await.unwrap().into_inner().workers;
    assert_eq!((listed.len(), listed[0].deaths, listed[0].epoch), (1, 1, epoch));
    assert_eq!(listed[0].totals, None, "it was not asked for");
}

#[tokio::test]
async fn registrations_and_counts_outlive_a_killed_server_and_epochs_only_grow() {
    let home = Home::new();
    let mut server = home.start();
    let mut client = server.client().await;
    client.enqueue("mail", (0..40).map(|i| i.to_string())).await.unwrap();
    let mut epochs = Vec::new();
    for round in 1..=4u64 {
        let epoch = register(&mut client, "w1", LONG_MS).await;
        assert!(epochs.iter().all(|before| *before < epoch), "{epochs:?} {epoch}");
        epochs.push(epoch);
        let jobs = reserve(&mut client, "w1", 3, LONG_MS).await;
        client.ack("mail", &jobs[..2]).await;
        server.kill9();
        server = home.start();
        client = server.client().await;
        let worker = describe(&mut client, "w1").await.unwrap().worker.unwrap();
        assert_eq!((worker.epoch, worker.state()), (epoch, v1::WorkerState::Alive));
        let totals = v1::WorkerTotals { running: round, acked: 2 * round, failed: 0, lost: 0 };
        assert_eq!(worker.totals, Some(totals));
        // It goes on speaking in the epoch that it has.
        heartbeat(&mut client, "w1", epoch).await.unwrap();
    }
    let stale = heartbeat(&mut client, "w1", epochs[0]).await.unwrap_err();
    refused::<()>(Err(stale), Code::FailedPrecondition, "STALE_WORKER");
}

#[tokio::test]
async fn after_a_start_of_the_server_a_worker_has_a_whole_session() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    register(&mut client, "w1", 2_000).await;
    server.kill9();
    let server = home.start();
    let mut client = server.client().await;
    let listened_since = describe(&mut client, "w1").await.unwrap().worker.unwrap();
    let dead = in_state(&client, "w1", v1::WorkerState::Dead).await;
    let since = listened_since.heard_at_ms.unwrap_or(dead.since_ms - 2_000);
    assert!(dead.since_ms >= since + 2_000, "{listened_since:?} {dead:?}");
}

#[tokio::test]
async fn workers_are_listed_over_all_shards_in_pages() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    let mut names: Vec<String> = (0..25).map(|number| format!("default/default/worker/w{number}")).collect();
    for name in &names {
        client.worker.register(registration(name, &["mail"], LONG_MS)).await.unwrap();
    }
    let other = registration("acme/prod/x", &["acme/prod/mail"], LONG_MS);
    let epoch = client.worker.register(other).await.unwrap().into_inner().epoch;
    names.sort();
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request =
            v1::ListWorkersRequest { page_size: 4, prefix: "w".into(), page_token, ..Default::default() };
        let page = client.worker.list(request).await.unwrap().into_inner();
        assert!(page.workers.len() <= 4);
        found.extend(page.workers.into_iter().map(|worker| worker.worker));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found, names);
    let asking = client.clone();
    let only = |request: v1::ListWorkersRequest| {
        let mut client = asking.clone();
        async move {
            let workers = client.worker.list(request).await.unwrap().into_inner().workers;
            workers.into_iter().map(|worker| worker.worker).collect::<Vec<_>>()
        }
    };
    let acme = ["acme/prod/worker/x".to_owned()];
    assert_eq!(
        only(v1::ListWorkersRequest { queue: "acme/prod/mail".into(), ..Default::default() }).await,
        acme
    );
    assert_eq!(only(v1::ListWorkersRequest { prefix: "acme/".into(), ..Default::default() }).await, acme);
    let leave = v1::LeaveWorkerRequest { worker: "acme/prod/x".into(), epoch };
    client.worker.leave(leave.clone()).await.unwrap();
    client.worker.leave(leave).await.unwrap();
    let left = v1::ListWorkersRequest { states: vec![v1::WorkerState::Left.into()], ..Default::default() };
    assert_eq!(only(left).await, acme);
    client.worker.forget(v1::ForgetWorkerRequest { worker: "acme/prod/x".into() }).await.unwrap();
    assert_eq!(only(v1::ListWorkersRequest { prefix: "acme/".into(), ..Default::default() }).await, [""; 0]);
}

#[tokio::test]
async fn what_is_wrong_with_a_worker_is_named() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let good = || registration("w1", &["mail"], LONG_MS);
    let label = |name: &str| v1::WorkerLabel { name: name.into(), ..Default::default() };
    let queues = (0..101).map(|number| format!("q{number}")).collect();
    for (request, reason, words) in [
        (v1::RegisterWorkerRequest { worker: "a:1".into(), ..good() }, "INVALID_ARGUMENT", "worker: `a:1`"),
        (v1::RegisterWorkerRequest { worker: "a/b".into(), ..good() }, "INVALID_ARGUMENT", "names no worker"),
        (
            v1::RegisterWorkerRequest { worker: String::new(), ..good() },
            "INVALID_ARGUMENT",
            "worker: is empty",
        ),
        (v1::RegisterWorkerRequest { queues: Vec::new(), ..good() }, "INVALID_ARGUMENT", "queues: is empty"),
        (v1::RegisterWorkerRequest { queues, ..good() }, "TOO_LARGE", "queues has 101"),
        (v1::RegisterWorkerRequest { queues: vec!["a b".into()], ..good() }, "INVALID_ARGUMENT", "name"),
        (
            v1::RegisterWorkerRequest { queues: vec!["m".into(), "default/default/m".into()], ..good() },
            "INVALID_ARGUMENT",
            "twice",
        ),
        (v1::RegisterWorkerRequest { concurrency: 100_001, ..good() }, "INVALID_ARGUMENT", "1 to 100000"),
        (v1::RegisterWorkerRequest { host: "h".repeat(256), ..good() }, "TOO_LARGE", "host has 256"),
        (
            v1::RegisterWorkerRequest { labels: vec![label("a"), label("a")], ..good() },
            "INVALID_ARGUMENT",
            "a twice",
        ),
        (
            v1::RegisterWorkerRequest { labels: vec![label("")], ..good() },
            "INVALID_ARGUMENT",
            "without a name",
        ),
        (
            v1::RegisterWorkerRequest { session_timeout_ms: Some(999), ..good() },
            "INVALID_ARGUMENT",
            "1000 to",
        ),
        (
            v1::RegisterWorkerRequest { retention_ms: Some(u64::MAX), ..good() },
            "INVALID_ARGUMENT",
            "retention_ms",
        ),
    ] {
        let status = client.worker.register(request).await.unwrap_err();
        assert!(status.message().contains(words), "{words}: {status:?}");
        refused::<()>(Err(status), Code::InvalidArgument, reason);
    }
    let wrong_kind = v1::RegisterWorkerRequest { queues: vec!["a/b/stream/c".into()], ..good() };
    refused(client.worker.register(wrong_kind).await, Code::InvalidArgument, "WRONG_KIND");

    let unknown = || "nobody".to_owned();
    refused(describe(&mut client, "nobody").await, Code::NotFound, "WORKER_NOT_FOUND");
    refused(heartbeat(&mut client, "nobody", 1).await, Code::NotFound, "WORKER_NOT_FOUND");
    let stop = v1::StopWorkerRequest { worker: unknown() };
    refused(client.worker.stop(stop).await, Code::NotFound, "WORKER_NOT_FOUND");
    let forget = v1::ForgetWorkerRequest { worker: unknown() };
    refused(client.worker.forget(forget).await, Code::NotFound, "WORKER_NOT_FOUND");

    let epoch = register(&mut client, "w1", LONG_MS).await;
    let forget = v1::ForgetWorkerRequest { worker: "w1".into() };
    refused(client.worker.forget(forget).await, Code::FailedPrecondition, "WORKER_PRESENT");
    refused(heartbeat(&mut client, "w1", epoch + 1).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    client.worker.leave(v1::LeaveWorkerRequest { worker: "w1".into(), epoch }).await.unwrap();
    refused(heartbeat(&mut client, "w1", epoch).await, Code::FailedPrecondition, "WORKER_GONE");
    let stop = v1::StopWorkerRequest { worker: "w1".into() };
    refused(client.worker.stop(stop).await, Code::FailedPrecondition, "WORKER_GONE");

    let wide = v1::ListWorkersRequest { page_size: 1_001, ..Default::default() };
    refused(client.worker.list(wide).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let token = v1::ListWorkersRequest { page_token: "a b".into(), ..Default::default() };
    refused(client.worker.list(token).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let state = v1::ListWorkersRequest { states: vec![9], ..Default::default() };
    refused(client.worker.list(state).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let many = v1::DescribeWorkerRequest { worker: "w1".into(), jobs_max: 1_001 };
    refused(client.worker.describe(many).await, Code::InvalidArgument, "INVALID_ARGUMENT");
}

/// The lines of a list, once it is as wanted.
fn listed(
    server: &crate::common::Server,
    home: &Home,
    what: &str,
    wanted: impl Fn(&serde_json::Value) -> bool,
) -> serde_json::Value {
    eventually_blocking(what, || {
        let list = ok(server, home, "flowmesh worker list --prefix w -o json");
        list.lines().map(json).find(|worker| wanted(worker))
    })
}

#[test]
fn a_worker_of_a_shell_registers_runs_is_shown_and_is_seen_dead_when_it_is_killed() {
    let home = Home::new();
    let server = home.start();
    ok(&server, &home, "flowmesh queue enqueue mail one two bad slow");
    let script = "exec flowmesh queue work mail --worker w1 --session 2s --label zone=a -c 4 --exec \
                  'case $(cat) in bad) exit 1;; slow) touch began; while test -e began; do sleep 0.1; done;; esac'";
    let mut worker = shell(&server, &home, script).stderr(Stdio::null()).spawn().unwrap();
    eventually_blocking("the slow job runs", || home.scratch().join("began").exists().then_some(()));
    let seen = listed(&server, &home, "the others are settled", |worker| {
        worker["acked"] == 2 && worker["failed"].as_u64() >= Some(1)
    });
    assert_eq!((&seen["worker"], &seen["state"]), (&"default/default/worker/w1".into(), &"alive".into()));
    assert_eq!((&seen["concurrency"], &seen["labels"]["zone"]), (&4.into(), &"a".into()));
    assert_eq!(seen["process_id"], worker.id());
    let shown = json(&ok(&server, &home, "flowmesh worker show w1 -o json"));
    let jobs = shown["work"][0]["jobs"].as_array().unwrap();
    assert!(jobs.iter().any(|job| job["job_id"] == 4 && job["attempt"] == 1), "{shown}");
    let table = ok(&server, &home, "flowmesh worker list && flowmesh worker show w1");
    for words in ["WORKER", "w1 ", "alive", "LEASED UNTIL", "labels: zone=a"] {
        assert!(table.contains(words), "{words}: {table}");
    }
    let forget = run(&server, &home, "flowmesh worker forget w1");
    assert_eq!(forget.status.code(), Some(5), "{forget:?}");

    // It is alive for longer than its session: it says so.
    let again = listed(&server, &home, "it is heard of", |worker| {
        worker["heard_at_ms"].as_u64() > seen["registered_at_ms"].as_u64().map(|at| at + 2_000)
    });
    assert_eq!((&again["state"], &again["deaths"]), (&"alive".into(), &0.into()));
    signal(worker.id(), libc::SIGKILL);
    wait_exit(&mut worker);
    listed(&server, &home, "it is seen dead", |worker| worker["state"] == "dead");
    let watched = ok(&server, &home, "flowmesh worker watch --state dead -n 2 --every 10ms -o json");
    assert_eq!(watched.lines().filter(|line| json(line)["state"] == "dead").count(), 2);
    assert_eq!(ok(&server, &home, "flowmesh worker forget w1"), "w1 is forgotten\n");
    assert_eq!(run(&server, &home, "flowmesh worker show w1").status.code(), Some(3));
}

#[test]
fn a_worker_that_is_told_to_stop_ends_its_jobs_and_goes() {
    let home = Home::new();
    let server = home.start();
    ok(&server, &home, "flowmesh queue enqueue mail one two");
    let script = "exec flowmesh queue work mail --worker w1 --session 1s --exec \
                  'touch began; until [ -e go ]; do sleep 0.01; done'";
    let mut worker = shell(&server, &home, script).stderr(Stdio::null()).spawn().unwrap();
    eventually_blocking("a job runs", || home.scratch().join("began").exists().then_some(()));
    assert_eq!(ok(&server, &home, "flowmesh worker stop w1"), "w1 is told to stop with its next heartbeat\n");
    // It still runs its job and still says that it is there.
    let told = listed(&server, &home, "it is stopping", |worker| worker["state"] == "stopping");
    listed(&server, &home, "it is heard of", |worker| {
        worker["heard_at_ms"].as_u64() > told["since_ms"].as_u64().map(|at| at + 1_000)
    });
    std::fs::write(home.scratch().join("go"), "").unwrap();
    assert!(wait_exit(&mut worker).success());
    let left = listed(&server, &home, "it has left", |worker| worker["state"] == "left");
    assert_eq!((&left["acked"], &left["running"]), (&1.into(), &0.into()), "it took no other job");
    let status = json(&ok(&server, &home, "flowmesh queue status mail -o json"));
    assert_eq!((&status["ready"], &status["done_total"]), (&1.into(), &1.into()));
    assert_eq!(run(&server, &home, "flowmesh worker stop w1").status.code(), Some(5));
}

#[test]
fn a_worker_whose_name_another_process_takes_ends_its_jobs_and_says_why() {
    let home = Home::new();
    let server = home.start();
    ok(&server, &home, "flowmesh resources create queue mail");
    let script = "exec flowmesh queue work mail --worker w1 --session 1s --exec true 2> said.txt";
    let mut first = shell(&server, &home, script).spawn().unwrap();
    let one = listed(&server, &home, "it is there", |worker| worker["state"] == "alive");
    ok(&server, &home, "flowmesh queue work mail --worker w1 --until-empty --exec true");
    assert_eq!(wait_exit(&mut first).code(), Some(5));
    let said = std::fs::read_to_string(home.scratch().join("said.txt")).unwrap();
    assert!(said.contains("STALE_WORKER"), "{said}");
    let two = listed(&server, &home, "the other has left", |worker| worker["state"] == "left");
    assert!(two["epoch"].as_u64() > one["epoch"].as_u64());
}

#[test]
fn a_worker_goes_on_through_a_killed_server_and_one_that_does_not_register_is_not_seen() {
    let home = Home::new();
    let server = home.start();
    ok(&server, &home, "flowmesh queue enqueue mail one");
    let script = "exec flowmesh queue work mail --worker w1 --session 2s --exec 'cat >> done.txt'";
    let mut worker = shell(&server, &home, script).stderr(Stdio::null()).spawn().unwrap();
    let before = listed(&server, &home, "it has worked", |worker| worker["acked"] == 1);
    server.kill9();
    let server = home.start();
    ok(&server, &home, "flowmesh queue enqueue mail two");
    let after = listed(&server, &home, "it goes on", |worker| worker["acked"] == 2);
    assert_eq!(after["epoch"], before["epoch"], "it is the same registration");
    signal(worker.id(), libc::SIGTERM);
    assert!(wait_exit(&mut worker).success());
    listed(&server, &home, "it has left", |worker| worker["state"] == "left");

    ok(&server, &home, "flowmesh queue enqueue mail three");
    let quiet =
        "flowmesh queue work mail --worker any:name --no-register --until-empty --exec 'cat >> done.txt'";
    ok(&server, &home, quiet);
    let illegal = run(&server, &home, "flowmesh queue work mail --worker any:name --exec true");
    assert_eq!(illegal.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&illegal.stderr).contains("worker: `any:name`"), "{illegal:?}");
    assert_eq!(ok(&server, &home, "flowmesh worker list -o json").lines().count(), 1);
    assert_eq!(std::fs::read_to_string(home.scratch().join("done.txt")).unwrap(), "onetwothree");
}
