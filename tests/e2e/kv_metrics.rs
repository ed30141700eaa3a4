//! What is counted of single key-value stores.

use flowmesh_model::limits::METRIC_RESOURCES_MAX;
use flowmesh_proto::v1;

use super::http::check_exposition;
use crate::common::client::entry;
use crate::common::{Home, Server, eventually};

fn metric(server: &Server, name: &str, store: &str) -> Option<f64> {
    server.metric(&format!("flowmesh_kv_{name}"), &format!("store=\"{store}\""))
}

#[tokio::test]
async fn what_is_done_with_the_keys_of_a_store_is_counted_over_all_shards() {
    let home = Home::new().shards(2);
    let mut server = home.start();
    let mut client = server.client().await;
    for number in 0..20 {
        client.set("cache", format!("k{number}"), "v").await.unwrap();
    }
    // Both shards have some of its keys, and one answer is put together from both.
    let get = |keys: &[&str]| v1::GetRequest {
        store: "cache".into(),
        keys: keys.iter().map(|key| key.as_bytes().to_vec().into()).collect(),
        as_of: None,
    };
    client.kv.get(get(&["k0", "k1", "k2", "k3", "k4", "none", "nothing"])).await.unwrap();
    let exists = v1::ExistsRequest { store: "cache".into(), keys: vec!["k5".into(), "void".into()] };
    client.kv.exists(exists).await.unwrap();
    for line in [
        "STRLEN k6",
        "HLEN h",
        "HSET h a 1 b 2 c 3",
        "HGET h a",
        "HGET h x",
        "HDEL h c",
        "INCR n",
        "PEXPIRE k7 100000",
    ] {
        client.redis("cache", line).await.unwrap();
    }
    assert!(
        client.redis("cache", "HGET k6 a").await.is_err(),
        "a read of a wrong type is no hit and no miss"
    );
    let delete =
        v1::DeleteRequest { store: "cache".into(), keys: vec!["k8".into(), "none".into()], if_version: None };
    client.kv.delete(delete).await.unwrap();
    client.redis("cache", "HPEXPIRE h 1 FIELDS 1 b").await.unwrap();
    client
        .set_entry("cache", v1::SetEntry { ttl: Some(v1::set_entry::Ttl::TtlMs(1)), ..entry("short", "v") })
        .await
        .unwrap();
    client.set("other", "k", "v").await.unwrap();
    eventually("what has ended is removed", || async {
        let ended =
            metric(&server, "expired_total", "cache")? + metric(&server, "fields_expired_total", "cache")?;
        (ended == 2.0).then_some(())
    })
    .await;

    let (_, body) = server.http("/metrics");
    check_exposition(&body);
    let kept = [("entries", 21.0)];
    let counted = [
        // Five by Get, one by Exists, STRLEN, and HGET twice: what is read is the key.
        ("hits_total", 9.0),
        ("misses_total", 4.0),
        // 21 keys set, three fields set and one removed, a counter, two ends.
        ("changes_total", 28.0),
        ("deletes_total", 1.0),
        ("expired_total", 1.0),
        ("fields_expired_total", 1.0),
    ];
    for (name, value) in kept.into_iter().chain(counted) {
        assert_eq!(metric(&server, name, "cache"), Some(value), "{name}");
    }
    assert_eq!(metric(&server, "entries", "other"), Some(1.0));
    let memory = |store| metric(&server, "memory_bytes", store).unwrap();
    assert!(memory("cache") > memory("other") && memory("other") > 0.0);

    // What is there is there after a restart; what was done counts from the start of the process.
    server.kill9();
    server = home.start();
    assert_eq!(metric(&server, "entries", "cache"), Some(21.0));
    for (name, _) in counted {
        assert_eq!(metric(&server, name, "cache"), Some(0.0), "{name}");
    }
}

#[tokio::test]
async fn metrics_do_not_grow_with_the_number_of_stores() {
    const BEYOND: usize = 7;
    const KEYS: usize = 20;
    let home = Home::new().set("durability", "memory").shards(2);
    let server = home.start();
    let mut client = server.client().await;
    for store in 0..METRIC_RESOURCES_MAX + BEYOND {
        // So many keys that both shards have some of each store.
        let entries = (0..KEYS).map(|key| entry(format!("k{key}"), "v")).collect();
        let request = v1::SetRequest { store: format!("s{store:04}"), entries };
        client.kv.set(request).await.unwrap();
    }
    let (_, body) = server.http("/metrics");
    check_exposition(&body);
    let series = body.lines().filter(|line| line.starts_with("flowmesh_kv_entries{")).count();
    assert_eq!(series, METRIC_RESOURCES_MAX + 1);
    let other = r#"{tenant="",namespace="",store="other"}"#;
    for name in ["flowmesh_kv_entries", "flowmesh_kv_changes_total"] {
        assert_eq!(server.metric(name, other), Some((KEYS * BEYOND) as f64), "{name}");
        assert_eq!(server.metric(name, ""), Some((KEYS * (METRIC_RESOURCES_MAX + BEYOND)) as f64), "{name}");
    }
    // Who goes makes room.
    let gone = v1::DeleteResourceRequest { kind: v1::Kind::Kv as i32, name: "s0000".into() };
    client.admin.delete_resource(gone).await.unwrap();
    eventually("another one has a series of its own", || async {
        (server.metric("flowmesh_kv_entries", other)? == (KEYS * (BEYOND - 1)) as f64).then_some(())
    })
    .await;
    assert_eq!(metric(&server, "entries", "s0000"), None);
}
