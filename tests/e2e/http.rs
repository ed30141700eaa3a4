//! The HTTP/1.1 port.

use crate::common::Home;
use crate::common::client::lease;
use flowmesh_proto::v1;

#[tokio::test]
async fn health_and_readiness_are_green() {
    let home = Home::new();
    let server = home.start();
    assert_eq!(server.http("/health").0, 200);
    assert_eq!(server.http("/ready").0, 200);
    assert_eq!(server.http("/nothing-here").0, 404);
}

/// The text format of Prometheus, as far as a scraper minds: every sample belongs to a family that was described
/// before, no family comes twice, every value is a number.
fn check_exposition(body: &str) {
    let mut described = Vec::new();
    for line in body.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name = rest.split(' ').next().unwrap();
            assert!(!described.contains(&name), "{name} is described twice");
            described.push(name);
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let known = described.last().is_some_and(|family| name.starts_with(family));
            assert!(known, "{line} is of no family, or not right behind its description");
            let value = line.rsplit(' ').next().unwrap();
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
    let ack = v1::AckRequest { queue: "mail".into(), leases: jobs.iter().map(lease).collect() };
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
