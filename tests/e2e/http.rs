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
    for family in ["flowmesh_"] {
        assert!(body.contains(family), "{body}");
    }
}
