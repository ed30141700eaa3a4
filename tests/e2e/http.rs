//! The HTTP/1.1 port.

use std::collections::BTreeSet;

use flowmesh_model::limits::METRIC_RESOURCES_MAX;
use flowmesh_proto::v1;

use crate::common::client::{ack_of, job, record};
use crate::common::{Home, Server, eventually};

#[tokio::test]
async fn health_and_readiness_are_green() {
    let home = Home::new();
    let server = home.start();
    assert_eq!(server.http("/health").0, 200);
    assert_eq!(server.http("/ready").0, 200);
    assert_eq!(server.http("/nothing-here").0, 404);
}

/// The text format of Prometheus, as far as a scraper minds: every sample belongs to a family that was described
/// before, no family and no sample comes twice, every value is a number.
pub fn check_exposition(body: &str) {
    let mut described = Vec::new();
    let mut samples = BTreeSet::new();
    for line in body.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name = rest.split(' ').next().unwrap();
            assert!(!described.contains(&name), "{name} is described twice");
            described.push(name);
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let known = described.last().is_some_and(|family| name.starts_with(family));
            assert!(known, "{line} is of no family, or not right behind its description");
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert!(samples.insert(sample), "{sample} comes twice");
            assert!(value.parse::<f64>().is_ok(), "{line} has no number");
        }
    }
    assert!(!described.is_empty());
}

#[tokio::test]
async fn metrics_count_what_was_done() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    client.append("logs", ["a", "b", "c"]).await.unwrap();
    client.read_from("logs", 0, 0).await;
    client.enqueue("mail", ["x"]).await.unwrap();
    let jobs = client.reserve("mail", 1, 60_000, 0).await.unwrap();
    let ack = v1::AckRequest { queue: "mail".into(), leases: jobs.iter().map(ack_of).collect() };
    client.queue.ack(ack).await.unwrap();
    client.set("store", "k", "v").await.unwrap();
    client.get("store", "k").await;
    let (status, body) = server.http("/metrics");
    assert_eq!(status, 200);
    check_exposition(&body);
    for (operation, items) in [
        ("stream_append", 3.0),
        ("stream_read", 3.0),
        ("queue_enqueue", 1.0),
        ("queue_reserve", 1.0),
        ("queue_ack", 1.0),
        ("kv_set", 1.0),
        ("kv_get", 1.0),
    ] {
        let label = format!("operation=\"{operation}\"");
        assert_eq!(server.metric("flowmesh_operation_items_total", &label), Some(items), "{operation}");
        let timed = server.metric("flowmesh_operation_duration_seconds_count", &label).unwrap();
        assert!(timed >= 1.0, "{operation} is timed");
    }
    assert!(server.metric("flowmesh_commit_duration_seconds_count", "shard=\"0\"").unwrap() > 0.0);
    assert!(server.metric("flowmesh_commit_entries_count", "").unwrap() > 0.0);
    assert!(server.metric("flowmesh_hops_pending", "shard=\"1\"").is_some());
    let calls = server.metric("flowmesh_grpc_calls_total", "method=\"flowmesh.v1.Queue/Ack\"");
    assert_eq!(calls, Some(1.0));
    assert_eq!(server.metric("flowmesh_jobs", "state=\"ready\""), Some(0.0));
    assert_eq!(server.metric("flowmesh_fenced", ""), Some(0.0));
}

#[tokio::test]
async fn queues_and_partitions_have_metrics_of_their_own() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    client.enqueue("acme/prod/mail", ["a", "b", "c", "d"]).await.unwrap();
    let mut jobs = client.reserve("acme/prod/mail", 3, 60_000, 0).await.unwrap();
    assert_eq!(client.ack("acme/prod/mail", &jobs[..1]).await, [None]);
    let failed = jobs.pop().unwrap();
    assert_eq!(client.nack("acme/prod/mail", &failed, Some(3_600_000)).await, None);
    client.create_stream("logs", 4).await;
    for partition in [1, 1, 3] {
        let request = v1::AppendRequest {
            stream: "logs".into(),
            partition: Some(partition),
            records: vec![record("0123456789")],
            ..Default::default()
        };
        client.stream.append(request).await.unwrap();
    }
    client.read_from("logs", 1, 0).await;

    client.create("billing", v1::settings::Kind::Group(v1::GroupSettings::default())).await.unwrap();
    for offset in [0, 1] {
        let committed =
            v1::GroupOffset { stream: "logs".into(), partition: 1, offset, ..v1::GroupOffset::default() };
        let commit = v1::CommitOffsetsRequest {
            group: "billing".into(),
            offsets: vec![committed],
            ..v1::CommitOffsetsRequest::default()
        };
        client.group.commit(commit).await.unwrap();
    }

    let (_, body) = server.http("/metrics");
    check_exposition(&body);
    let queue = r#"{tenant="acme",namespace="prod",queue="mail"}"#;
    for (name, value) in [
        ("depth", 3.0),
        ("pending", 2.0),
        ("in_flight", 1.0),
        ("dlq_jobs", 0.0),
        ("total_jobs", 4.0),
        ("jobs_enqueued_total", 4.0),
        ("completed_jobs", 1.0),
        ("jobs_completed_total", 1.0),
        ("failed_jobs", 1.0),
        ("jobs_failed_total", 1.0),
        ("enqueue_duration_seconds_count", 1.0),
        ("reserve_duration_seconds_count", 1.0),
    ] {
        assert_eq!(server.metric(&format!("flowmesh_queue_{name}"), queue), Some(value), "{name}");
    }
    assert!(server.metric("flowmesh_queue_oldest_job_age_seconds", queue).is_some());
    let group = r#"{tenant="default",namespace="default",consumer_group="billing"}"#;
    for (name, value) in [("members", 0.0), ("partitions", 0.0), ("rebalances_total", 0.0)] {
        assert_eq!(server.metric(&format!("flowmesh_consumer_group_{name}"), group), Some(value), "{name}");
    }
    let partition =
        |number| format!(r#"{{tenant="default",namespace="default",stream="logs",partition="{number}"}}"#);
    let of = |name: &str, number: u32| {
        server.metric(&format!("flowmesh_stream_{name}"), &partition(number)).unwrap_or(f64::NAN)
    };
    assert_eq!((of("offset", 1), of("events_total", 1), of("offset", 3)), (2.0, 2.0, 1.0));
    assert_eq!((of("earliest_offset", 1), of("stored_bytes", 1)), (0.0, of("bytes_written_total", 1)));
    assert!(of("bytes_written_total", 1) >= 20.0);
    assert_eq!(of("bytes_read_total", 1), of("bytes_written_total", 1));
    assert_eq!((of("write_duration_seconds_count", 3), of("read_duration_seconds_count", 3)), (1.0, 0.0));
    assert!(of("offset", 0).is_nan(), "a partition without records has no series");

    let group =
        r#"{tenant="default",namespace="default",stream="logs",partition="1",consumer_group="billing"}"#;
    for (name, value) in [("lag", 1.0), ("committed_offset", 1.0), ("offset_commits_total", 2.0)] {
        assert_eq!(server.metric(&format!("flowmesh_consumer_group_{name}"), group), Some(value), "{name}");
    }

    assert_eq!(server.metric("flowmesh_resources_total", "kind=\"stream\""), Some(1.0));
    assert_eq!(
        server.metric("flowmesh_api_requests_total", "method=\"flowmesh.v1.Queue/Ack\",status=\"OK\""),
        Some(1.0)
    );
    let timed = "flowmesh_api_request_duration_seconds_count";
    assert_eq!(server.metric(timed, "method=\"flowmesh.v1.Stream/Append\""), Some(3.0));
    assert!(server.metric("flowmesh_storage_size_bytes", "part=\"log\"").unwrap() > 0.0);
    assert!(body.contains("# TYPE flowmesh_schema_registrations counter"));
}

#[tokio::test]
async fn what_becomes_of_jobs_and_schedules_is_counted_for_each_queue() {
    let home = Home::new();
    let mut server = home.start();
    let mut client = server.client().await;
    let settings = v1::QueueSettings {
        done_retention_ms: Some(3_600_000),
        jobs_max: Some(5),
        when_full: Some(v1::WhenFull::DropLowestPriority.into()),
        ..Default::default()
    };
    client.create_queue("mail", settings).await;
    let metric = |server: &Server, name: &str| {
        server.metric(&format!("flowmesh_queue_{name}"), "queue=\"mail\"").unwrap_or(f64::NAN)
    };
    let state = |server: &Server, state: &str| {
        let labels = format!("queue=\"mail\",state=\"{state}\"");
        server.metric("flowmesh_queue_jobs", &labels).unwrap_or(f64::NAN)
    };

    // One is done and kept, one dies, one's lease runs out, one is cancelled, one is not had in its time.
    client.enqueue("mail", ["done", "dies", "lost"]).await.unwrap();
    let jobs = client.reserve("mail", 3, 1_000, 0).await.unwrap();
    client.ack("mail", &jobs[..1]).await;
    let (job_id, token) = (jobs[1].job_id, jobs[1].token);
    let nack = v1::NackItem { job_id, token, kind: v1::NackKind::NackFinal.into(), ..Default::default() };
    assert_eq!(client.nack_as("mail", nack).await, None);
    let cancelled = client.enqueue("mail", ["cancelled"]).await.unwrap();
    let cancel = v1::CancelJobsRequest { queue: "mail".into(), job_ids: cancelled };
    client.queue.cancel(cancel).await.unwrap();
    client.enqueue_jobs("mail", vec![v1::NewJob { ttl_ms: 1, ..job("late") }]).await.unwrap();
    eventually("a lease has run out and a job's time is over", || async {
        let both = metric(&server, "leases_expired_total") + metric(&server, "jobs_expired_total");
        (both == 2.0).then_some(())
    })
    .await;
    client.queue.pause(v1::PauseQueueRequest { queue: "mail".into() }).await.unwrap();

    // One waits for another, one for its time; for what the schedule enqueues those of no priority go.
    let delayed = v1::NewJob { delay_ms: 3_600_000, priority: 5, ..job("delayed") };
    let first = client.enqueue_jobs("mail", vec![delayed]).await.unwrap();
    let blocked = v1::NewJob { after_jobs: first, priority: 5, ..job("blocked") };
    client.enqueue_jobs("mail", vec![blocked, job("x"), job("y")]).await.unwrap();
    let cron = v1::create_schedule_request::Timing::Cron("* * * * * *".into());
    let schedule = v1::CreateScheduleRequest {
        queue: "mail".into(),
        name: "s".into(),
        timing: Some(cron),
        job: Some(v1::NewJob { priority: 1, ..job("z") }),
        ..Default::default()
    };
    client.schedule.create(schedule).await.unwrap();
    eventually("the schedule has fired", || async {
        (metric(&server, "schedule_firings_total") >= 1.0).then_some(())
    })
    .await;
    let which = v1::ScheduleRequest { queue: "mail".into(), name: "s".into() };
    let fired = client.schedule.pause(which).await.unwrap().into_inner().fired_total as f64;
    let purge = v1::PurgeRequest { queue: "mail".into(), job_ids: vec![job_id], ..Default::default() };
    client.queue.purge(purge).await.unwrap();

    let (_, body) = server.http("/metrics");
    check_exposition(&body);
    let status = client.queue_status("mail").await;
    for (name, value) in [
        ("jobs_retried_total", 1.0),
        ("jobs_died_total", 1.0),
        ("jobs_expired_total", 1.0),
        ("jobs_cancelled_total", 1.0),
        ("jobs_dropped_total", status.dropped_total as f64),
        ("jobs_purged_total", 1.0),
        ("leases_expired_total", 1.0),
        ("schedule_firings_total", fired),
        ("schedule_missed_total", 0.0),
        ("schedules", 1.0),
        ("schedules_held_back", 0.0),
        ("wait_duration_seconds_count", 3.0),
        ("run_duration_seconds_count", 1.0),
        ("waiting_bytes", status.waiting_bytes as f64),
        ("paused", 1.0),
        ("pending", 5.0),
        ("depth", 5.0),
    ] {
        assert_eq!(metric(&server, name), value, "{name}");
    }
    assert!(status.dropped_total > 0 && status.waiting_bytes > 0);
    let held = [status.ready, status.delayed, status.blocked, status.leased, status.dead, status.done];
    let states = ["ready", "delayed", "blocked", "leased", "dead", "done"];
    assert_eq!(states.map(|name| state(&server, name)), held.map(|jobs| jobs as f64));
    assert_eq!((status.done, status.blocked, status.delayed), (1, 1, 1));
    assert_eq!(server.metric("flowmesh_schedule_lateness_seconds_count", ""), Some(fired));
    assert_eq!(server.metric("flowmesh_jobs", "state=\"done\""), Some(1.0));

    // What is there is there after a restart; what was done counts from the start of the process.
    server.kill9();
    server = home.start();
    assert_eq!(states.map(|name| state(&server, name)), held.map(|jobs| jobs as f64));
    for name in ["jobs_died_total", "jobs_dropped_total", "wait_duration_seconds_count"] {
        assert_eq!(metric(&server, name), 0.0, "{name}");
    }
}

#[tokio::test]
async fn metrics_do_not_grow_with_the_number_of_streams_and_groups() {
    const BEYOND: usize = 5;
    let home = Home::new().set("durability", "memory");
    let server = home.start();
    let mut client = server.client().await;
    for number in 0..METRIC_RESOURCES_MAX + BEYOND {
        let (stream, group) = (format!("s{number:04}"), format!("g{number:04}"));
        client.append(&stream, ["a"]).await.unwrap();
        client.create(&group, v1::settings::Kind::Group(v1::GroupSettings::default())).await.unwrap();
        let offset = v1::GroupOffset { stream, offset: 1, ..v1::GroupOffset::default() };
        let offsets = vec![offset];
        let commit = v1::CommitOffsetsRequest { group, offsets, ..v1::CommitOffsetsRequest::default() };
        client.group.commit(commit).await.unwrap();
    }
    let (_, body) = server.http("/metrics");
    check_exposition(&body);
    let series = |name: &str| body.lines().filter(|line| line.starts_with(&format!("{name}{{"))).count();
    let (own, all_others) = (METRIC_RESOURCES_MAX, 1);
    assert_eq!(
        series("flowmesh_stream_events_total"),
        own + all_others,
        "streams with their own, and all others"
    );
    assert_eq!(
        series("flowmesh_consumer_group_members"),
        own,
        "all others have no member: that is not shown"
    );
}

#[tokio::test]
async fn metrics_do_not_grow_with_the_number_of_queues() {
    const BEYOND: usize = 7;
    let home = Home::new().set("durability", "memory");
    let server = home.start();
    let mut client = server.client().await;
    for queue in 0..METRIC_RESOURCES_MAX + BEYOND {
        client.enqueue(&format!("q{queue:04}"), ["a", "b"]).await.unwrap();
    }
    let (_, body) = server.http("/metrics");
    check_exposition(&body);
    let series = body.lines().filter(|line| line.starts_with("flowmesh_queue_depth{")).count();
    assert_eq!(series, METRIC_RESOURCES_MAX + 1);
    let other = r#"{tenant="",namespace="",queue="other"}"#;
    for name in ["flowmesh_queue_depth", "flowmesh_queue_jobs_enqueued_total"] {
        assert_eq!(server.metric(name, other), Some(2.0 * BEYOND as f64), "{name}");
        assert_eq!(server.metric(name, ""), Some(2.0 * (METRIC_RESOURCES_MAX + BEYOND) as f64), "{name}");
    }
    // Who goes makes room.
    let gone = v1::DeleteResourceRequest { kind: v1::Kind::Queue as i32, name: "q0000".into() };
    client.admin.delete_resource(gone).await.unwrap();
    eventually("another one has a series of its own", || async {
        (server.metric("flowmesh_queue_depth", other)? == 2.0 * (BEYOND - 1) as f64).then_some(())
    })
    .await;
    assert_eq!(server.metric("flowmesh_queue_depth", r#"queue="q0000""#), None);
}
