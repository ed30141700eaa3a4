//! Jobs that go to other queues and streams, of the same shard and of others: each arrives once, however often the server
//! is killed meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use flowmesh_model::placement::{PlacementHash, SlotMap};
use flowmesh_model::{Kind, ResourcePath};
use flowmesh_proto::v1;
use tonic::Code;

use crate::common::client::{job, nack_of, reason};
use crate::common::random::Random;
use crate::common::{Client, Home, eventually, refused};

const SHARDS: u16 = 2;
const LONG_MS: u64 = 600_000;

/// A name that belongs to this shard.
fn name_on(shard: u16, kind: Kind, name: &str) -> String {
    let slots = SlotMap::new(SHARDS);
    let mut names = (0..).map(|number| format!("{name}-{number}"));
    let there = |name: &String| {
        let hash = PlacementHash::of(&ResourcePath::parse(kind, name).unwrap());
        slots.shard(hash.partition_slot(0)).0 == shard
    };
    names.find(there).unwrap()
}

fn once() -> v1::QueueSettings {
    v1::QueueSettings { max_attempts: Some(1), ..v1::QueueSettings::default() }
}

/// Lets jobs die that were enqueued just now.
async fn kill_jobs(client: &mut Client, queue: &str, payloads: &[String]) {
    client.enqueue(queue, payloads.to_vec()).await.unwrap();
    let jobs = client.reserve(queue, payloads.len() as u32, LONG_MS, 0).await.unwrap();
    assert_eq!(jobs.len(), payloads.len());
    let nacks = jobs.iter().map(|job| v1::NackItem { error: "it broke".into(), ..nack_of(job) }).collect();
    let request = v1::NackRequest { queue: queue.into(), nacks };
    let outcomes = client.queue.nack(request).await.unwrap().into_inner().outcomes;
    assert!(outcomes.iter().all(|outcome| outcome.error.is_none()), "{outcomes:?}");
}

fn redrive(queue: &str, to: &str) -> v1::RedriveRequest {
    v1::RedriveRequest { queue: queue.into(), to_queue: to.into(), ..v1::RedriveRequest::default() }
}

/// How often each payload is to be had in a queue; then it is not any more.
async fn taken(client: &mut Client, queue: &str) -> BTreeMap<String, u32> {
    let mut taken = BTreeMap::new();
    loop {
        let jobs = client.reserve(queue, 1_000, LONG_MS, 0).await.unwrap();
        if jobs.is_empty() {
            return taken;
        }
        for job in &jobs {
            *taken.entry(String::from_utf8(job.payload.to_vec()).unwrap()).or_default() += 1;
        }
    }
}

/// How often each payload is in a stream, with the headers of the last.
async fn recorded(client: &mut Client, stream: &str, partitions: u32) -> BTreeMap<String, (u32, v1::Record)> {
    let mut all = BTreeMap::new();
    for partition in 0..partitions {
        for (_, record) in client.read_from(stream, partition, 0).await {
            let value = String::from_utf8(record.value.to_vec()).unwrap();
            let (count, last) = all.entry(value).or_insert((0, record.clone()));
            *count += 1;
            *last = record;
        }
    }
    all
}

fn header(headers: &[v1::Header], name: &str) -> String {
    let found: Vec<_> = headers.iter().filter(|header| header.name == name).collect();
    assert_eq!(found.len(), 1, "{name} in {headers:?}");
    String::from_utf8(found[0].value.to_vec()).unwrap()
}

async fn sent(client: &Client, queue: &str) -> v1::QueueStatusResponse {
    eventually("nothing is on its way", || {
        let mut client = client.clone();
        async move { Some(client.queue_status(queue).await).filter(|status| status.outbox == 0) }
    })
    .await
}

/// Redrives until no dead job is left.
async fn move_all(client: &Client, from: &str, to: &str) {
    eventually("all dead jobs have moved", || {
        let mut client = client.clone();
        async move {
            client.queue.redrive(redrive(from, to)).await.unwrap();
            let status = client.queue_status(from).await;
            (status.dead == 0 && status.outbox == 0).then_some(())
        }
    })
    .await;
}

#[tokio::test]
async fn whatever_is_sent_arrives_once_though_the_server_is_killed_again_and_again() {
    let (from, to) = (name_on(0, Kind::Queue, "from"), name_on(1, Kind::Queue, "to"));
    let home = Home::new().shards(SHARDS).set("checkpoint_interval_ms", "200");
    let mut random = Random::new("transfers");
    let mut all = Vec::new();
    for round in 0..8 {
        let server = home.start();
        let mut client = server.client().await;
        if round == 0 {
            client.create_stream("letters", 4).await;
            let dead_letters_to = Some("stream/letters".to_owned());
            client.create_queue(&from, v1::QueueSettings { dead_letters_to, ..once() }).await;
            client.create_queue(&to, v1::QueueSettings::default()).await;
        }
        let payloads: Vec<String> = (0..150).map(|job| format!("{round}-{job}")).collect();
        kill_jobs(&mut client, &from, &payloads).await;
        all.extend(payloads);
        // They go as they are while the dead letters are still being copied, until the server is gone.
        let moving = tokio::spawn({
            let (from, to, mut client) = (from.clone(), to.clone(), client.clone());
            async move { while client.queue.redrive(redrive(&from, &to)).await.is_ok() {} }
        });
        tokio::time::sleep(Duration::from_millis(random.below(40))).await;
        server.kill9();
        moving.await.unwrap();
    }
    let server = home.start();
    let mut client = server.client().await;
    move_all(&client, &from, &to).await;
    let wanted: BTreeMap<String, u32> = all.iter().map(|payload| (payload.clone(), 1)).collect();
    assert_eq!(taken(&mut client, &to).await, wanted, "each job is in the other queue, once");
    let letters = recorded(&mut client, "letters", 4).await;
    let counts: BTreeMap<String, u32> =
        letters.iter().map(|(payload, (count, _))| (payload.clone(), *count)).collect();
    assert_eq!(counts, wanted, "each dead letter has one copy");
    let status = client.queue_status(&from).await;
    let total = all.len() as u64;
    assert_eq!((status.enqueued_total, status.moved_total, status.copied_total), (total, total, total));
    assert_eq!((status.dead, status.send_failed_total), (0, 0));
    assert_eq!(client.queue_status(&to).await.enqueued_total, total);
    // What was known survives an orderly stop, too.
    server.stop();
    let server = home.start();
    let mut client = server.client().await;
    assert_eq!(client.queue_status(&from).await.moved_total, total);
    assert_eq!(client.queue_status(&to).await.enqueued_total, total);
    server.stop();
}

#[tokio::test]
async fn what_waits_for_room_is_held_shown_and_goes_on() {
    let home = Home::new().shards(SHARDS);
    let server = home.start();
    let mut client = server.client().await;
    let (from, to) = (name_on(1, Kind::Queue, "from"), name_on(0, Kind::Queue, "to"));
    client.create_queue(&from, once()).await;
    client.create_queue(&to, v1::QueueSettings { jobs_max: Some(1), ..v1::QueueSettings::default() }).await;
    kill_jobs(&mut client, &from, &["a".to_owned(), "b".to_owned()]).await;
    assert_eq!(client.queue.redrive(redrive(&from, &to)).await.unwrap().into_inner().jobs, 2);
    let outbox = || v1::OutboxRequest { queue: from.clone() };
    let lane = eventually("the target is full", || {
        let (mut client, request) = (client.clone(), outbox());
        async move {
            let lanes = client.queue.outbox(request).await.unwrap().into_inner().lanes;
            lanes.into_iter().next().filter(|lane| lane.jobs == 1 && !lane.error.is_empty())
        }
    })
    .await;
    assert_eq!(lane.to, format!("default/default/queue/{to}"));
    assert!(lane.error.starts_with("QUEUE_FULL"), "{}", lane.error);
    let held = v1::RedriveRequest { job_ids: vec![2], ..redrive(&from, "") };
    refused(client.queue.redrive(held).await, Code::FailedPrecondition, "JOB_IN_TRANSIT");
    let purge = v1::PurgeRequest { queue: from.clone(), job_ids: vec![2], ..v1::PurgeRequest::default() };
    refused(client.queue.purge(purge).await, Code::FailedPrecondition, "JOB_IN_TRANSIT");
    assert_eq!(client.job(&from, 2).await.unwrap().phase(), v1::JobPhase::Dead);
    let first = client.reserve(&to, 1, LONG_MS, 0).await.unwrap();
    assert_eq!(client.ack(&to, &first).await, [None]);
    sent(&client, &from).await;
    assert_eq!(taken(&mut client, &to).await, BTreeMap::from([("b".to_owned(), 1)]));
    assert_eq!(reason(&client.job(&from, 2).await.unwrap_err()), "JOB_NOT_FOUND");
    let labels = format!("queue=\"{from}\"");
    assert_eq!(server.metric("flowmesh_queue_jobs_sent_total", &labels), Some(2.0));
    assert_eq!(server.metric("flowmesh_queue_outbox_jobs", &labels), Some(0.0));
    // A target that is gone takes none; the job stays, and can be redriven in place.
    kill_jobs(&mut client, &from, &["c".to_owned(), "d".to_owned()]).await;
    client.queue.redrive(redrive(&from, &to)).await.unwrap();
    let delete = v1::DeleteResourceRequest { name: to.clone(), kind: v1::Kind::Queue.into() };
    client.admin.delete_resource(delete).await.unwrap();
    let status = sent(&client, &from).await;
    assert!(status.send_failed_total > 0, "{status:?}");
    assert_eq!(status.dead, status.send_failed_total);
    let failed = client.queue.outbox(outbox()).await.unwrap().into_inner().failed.unwrap();
    assert!(failed.error.starts_with("RESOURCE_NOT_FOUND"), "{}", failed.error);
    assert_eq!(
        client.queue.redrive(redrive(&from, "")).await.unwrap().into_inner().jobs,
        status.send_failed_total
    );
}

#[tokio::test]
async fn a_job_moves_with_all_that_it_has_at_a_limited_rate() {
    let home = Home::new().shards(SHARDS);
    let server = home.start();
    let mut client = server.client().await;
    let (from, to) = (name_on(0, Kind::Queue, "from"), name_on(1, Kind::Queue, "to"));
    client.create_queue(&from, v1::QueueSettings::default()).await;
    client.create_queue(&to, v1::QueueSettings::default()).await;
    let new = v1::NewJob {
        priority: 7,
        headers: vec![v1::Header { name: "kind".into(), value: "letter".into() }],
        max_attempts: Some(1),
        group: "g".into(),
        key: "k".into(),
        ..job("first")
    };
    let second = v1::NewJob { max_attempts: Some(1), ..job("second") };
    client.enqueue_jobs(&from, vec![new.clone(), second]).await.unwrap();
    for job in client.reserve(&from, 2, LONG_MS, 0).await.unwrap() {
        assert_eq!(client.nack(&from, &job, None).await, None);
    }
    let request = v1::RedriveRequest { per_second: 1, delay_ms: LONG_MS, ..redrive(&from, &to) };
    assert_eq!(client.queue.redrive(request).await.unwrap().into_inner().jobs, 2);
    sent(&client, &from).await;
    let jobs = client.jobs(&to, v1::JobPhase::Delayed, v1::JobFilter::default()).await;
    assert_eq!(jobs[1].moment_ms - jobs[0].moment_ms, 1_000);
    let first = client.job(&to, 1).await.unwrap();
    assert_eq!((first.payload.as_ref(), first.priority, first.max_attempts), (&b"first"[..], 7, 1));
    assert_eq!((first.group.as_str(), first.key.as_str(), first.headers), ("g", "", new.headers));
    assert_eq!((first.attempts, first.history.len()), (0, 0));
    // Its key is free again where it was.
    assert_eq!(
        client.enqueue_jobs(&from, vec![v1::NewJob { key: "k".into(), ..job("new") }]).await.unwrap(),
        [3]
    );
}

#[tokio::test]
async fn dead_letters_go_where_the_setting_says_and_stay_where_they_died() {
    let home = Home::new().shards(SHARDS);
    let server = home.start();
    let mut client = server.client().await;
    let (mail, bin) = (name_on(0, Kind::Queue, "mail"), name_on(1, Kind::Queue, "bin"));
    client.create_queue(&bin, v1::QueueSettings::default()).await;
    client.create_queue(&mail, once()).await;
    kill_jobs(&mut client, &mail, &["before".to_owned()]).await;
    let set = |dead_letters_to: &str| v1::UpdateResourceRequest {
        name: mail.clone(),
        settings: Some(v1::Settings {
            kind: Some(v1::settings::Kind::Queue(v1::QueueSettings {
                dead_letters_to: Some(dead_letters_to.into()),
                ..v1::QueueSettings::default()
            })),
        }),
        ..v1::UpdateResourceRequest::default()
    };
    client.admin.update_resource(set(&bin)).await.unwrap();
    kill_jobs(&mut client, &mail, &["after".to_owned()]).await;
    for (number, payload) in [(1, "before"), (2, "after")] {
        let letter = client.reserve(&bin, 1, LONG_MS, 60_000).await.unwrap().remove(0);
        assert_eq!(letter.payload, payload);
        let dead = client.job(&mail, number).await.unwrap();
        assert_eq!(dead.phase(), v1::JobPhase::Dead);
        let said = |name: &str| header(&letter.headers, &format!("flowmesh-dead-letter-{name}"));
        assert_eq!(said("queue"), format!("default/default/queue/{mail}"));
        assert_eq!((said("job"), said("attempts")), (number.to_string(), "1".to_owned()));
        assert_eq!((said("error"), said("died-at")), ("it broke".to_owned(), dead.moment_ms.to_string()));
    }
    let status = sent(&client, &mail).await;
    assert_eq!((status.dead, status.copied_total), (2, 2));
    let delete = v1::DeleteResourceRequest { name: bin.clone(), kind: v1::Kind::Queue.into() };
    refused(
        client.admin.delete_resource(delete.clone()).await,
        Code::FailedPrecondition,
        "DEAD_LETTER_TARGET",
    );
    client.admin.update_resource(set("")).await.unwrap();
    client.admin.delete_resource(delete).await.unwrap();
}

#[tokio::test]
async fn finished_jobs_of_a_time_are_replayed_into_a_sandbox() {
    let home = Home::new().shards(SHARDS);
    let server = home.start();
    let mut client = server.client().await;
    let (mail, play) = (name_on(0, Kind::Queue, "mail"), name_on(1, Kind::Queue, "play"));
    let kept = v1::QueueSettings { done_retention_ms: Some(LONG_MS), ..once() };
    client.create_queue(&mail, kept).await;
    client
        .create_queue(&play, v1::QueueSettings { sandbox: Some(true), ..v1::QueueSettings::default() })
        .await;
    client.enqueue(&mail, ["one", "two", "dead"]).await.unwrap();
    let jobs = client.reserve(&mail, 3, LONG_MS, 0).await.unwrap();
    assert_eq!(client.ack(&mail, &jobs[..1]).await, [None]);
    let upto = client.job(&mail, 1).await.unwrap().history[0].ended_at_ms + 1;
    eventually("time goes on", || async move { (crate::common::now_ms() > upto).then_some(()) }).await;
    assert_eq!(client.ack(&mail, &jobs[1..2]).await, [None]);
    assert_eq!(client.nack(&mail, &jobs[2], None).await, None);
    let replay = |phase: v1::JobPhase, before_ms: u64| v1::ReplayJobsRequest {
        queue: mail.clone(),
        filter: Some(v1::JobFilter { before_ms, ..v1::JobFilter::default() }),
        phase: phase.into(),
        sandbox: play.clone(),
        ..v1::ReplayJobsRequest::default()
    };
    let first = client.queue.replay(replay(v1::JobPhase::Unspecified, upto)).await.unwrap().into_inner();
    assert_eq!((first.jobs, first.next), (1, None));
    sent(&client, &mail).await;
    let copy = client.reserve(&play, 9, LONG_MS, 60_000).await.unwrap();
    assert_eq!((copy.len(), copy[0].payload.as_ref()), (1, &b"one"[..]));
    let said = |name: &str| header(&copy[0].headers, &format!("flowmesh-replayed-{name}"));
    assert_eq!(said("queue"), format!("default/default/queue/{mail}"));
    assert_eq!((said("job"), said("phase")), ("1".to_owned(), "done".to_owned()));
    for phase in [v1::JobPhase::Done, v1::JobPhase::Dead] {
        client.queue.replay(replay(phase, 0)).await.unwrap();
        sent(&client, &mail).await;
    }
    let again = BTreeMap::from(["one", "two", "dead"].map(|payload| (payload.to_owned(), 1)));
    assert_eq!(taken(&mut client, &play).await, again);
    let status = client.queue_status(&mail).await;
    assert_eq!((status.done, status.dead, status.copied_total), (2, 1, 4), "what is replayed stays");
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_by_name() {
    let home = Home::new().strict();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("log", 1).await;
    for name in ["mail", "other"] {
        client.create_queue(name, once()).await;
    }
    client.create_queue("play", v1::QueueSettings { sandbox: Some(true), ..once() }).await;
    kill_jobs(&mut client, "mail", &["dead".to_owned()]).await;
    for (from, to, code, why) in [
        ("mail", "mail", Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("mail", "none", Code::NotFound, "RESOURCE_NOT_FOUND"),
        ("mail", "default/default/stream/log", Code::InvalidArgument, "WRONG_KIND"),
        ("mail", "play", Code::FailedPrecondition, "SANDBOX_QUEUE"),
        ("play", "mail", Code::FailedPrecondition, "SANDBOX_QUEUE"),
    ] {
        refused(client.queue.redrive(redrive(from, to)).await, code, why);
    }
    let replay = |sandbox: &str, phase: v1::JobPhase| v1::ReplayJobsRequest {
        queue: "mail".into(),
        sandbox: sandbox.into(),
        phase: phase.into(),
        ..v1::ReplayJobsRequest::default()
    };
    for (sandbox, phase, code, why) in [
        ("other", v1::JobPhase::Dead, Code::FailedPrecondition, "QUEUE_NOT_SANDBOX"),
        ("play", v1::JobPhase::Ready, Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("none", v1::JobPhase::Dead, Code::NotFound, "RESOURCE_NOT_FOUND"),
    ] {
        refused(client.queue.replay(replay(sandbox, phase)).await, code, why);
    }
    for (name, target, code, why) in [
        ("new", "none", Code::NotFound, "RESOURCE_NOT_FOUND"),
        ("new", "kv/store", Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("new", "new", Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("new", "play", Code::FailedPrecondition, "SANDBOX_QUEUE"),
    ] {
        let settings =
            v1::QueueSettings { dead_letters_to: Some(target.into()), ..v1::QueueSettings::default() };
        refused(client.create(name, v1::settings::Kind::Queue(settings)).await, code, why);
    }
    let update = |name: &str, settings: v1::QueueSettings| v1::UpdateResourceRequest {
        name: name.into(),
        settings: Some(v1::Settings { kind: Some(v1::settings::Kind::Queue(settings)) }),
        ..v1::UpdateResourceRequest::default()
    };
    let to = |target: &str| v1::QueueSettings {
        dead_letters_to: Some(target.into()),
        ..v1::QueueSettings::default()
    };
    let compacted = |compaction| v1::StreamSettings { compaction, ..v1::StreamSettings::default() };
    client.create("newest", v1::settings::Kind::Stream(compacted(Some(true)))).await.unwrap();
    for (target, settings) in [("stream/newest", None), ("stream/log", Some(compacted(Some(true))))] {
        let set = client.admin.update_resource(update("mail", to(target))).await;
        let refusal = match settings {
            None => set,
            Some(stream) => {
                set.unwrap();
                let settings = Some(v1::Settings { kind: Some(v1::settings::Kind::Stream(stream)) });
                let name = "log".to_owned();
                let update = v1::UpdateResourceRequest { name, settings, ..Default::default() };
                client.admin.update_resource(update).await
            }
        };
        refused(refusal, Code::FailedPrecondition, "COMPACTED_TARGET");
    }
    client.admin.update_resource(update("mail", to("other"))).await.unwrap();
    let circle = client.admin.update_resource(update("other", to("mail"))).await;
    refused(circle, Code::FailedPrecondition, "DEAD_LETTER_CYCLE");
    let sandbox = v1::QueueSettings { sandbox: Some(true), ..v1::QueueSettings::default() };
    refused(
        client.admin.update_resource(update("mail", sandbox)).await,
        Code::InvalidArgument,
        "INVALID_ARGUMENT",
    );
}
