//! Several shards: any core answers any call, lists and scans are gathered, the topology says who owns what.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flowmesh_model::placement::PlacementHash;
use flowmesh_model::{Kind, ResourcePath};
use flowmesh_proto::v1;

use crate::common::client::entry;
use crate::common::server::binary;
use crate::common::{Client, Home, Server, within};

/// A CPU each.
const SHARDS: u16 = 2;

async fn topology(client: &mut Client, request: v1::TopologyRequest) -> v1::TopologyResponse {
    client.admin.topology(request).await.unwrap().into_inner()
}

async fn of_every_core(server: &Server) -> Vec<Client> {
    let mut clients = Vec::new();
    for shard in 0..SHARDS {
        clients.push(server.client_of_core(shard).await);
    }
    clients
}

#[tokio::test]
async fn a_server_on_every_address_names_ports_only_and_the_command_line_the_host_it_reached() {
    let home = Home::new().shards(SHARDS).on_every_address();
    let server = home.start();
    let mut client = server.client().await;
    let told = topology(&mut client, v1::TopologyRequest::default()).await;
    assert_eq!(told.shared_address, format!(":{}", server.grpc_port()));
    let ports: Vec<_> = (0..SHARDS).map(|shard| format!(":{}", server.core_port(shard))).collect();
    assert_eq!(told.shards.iter().map(|shard| shard.address.clone()).collect::<Vec<_>>(), ports);

    let shown = |format: &str| {
        let mut command = std::process::Command::new(binary());
        let url = format!("http://localhost:{}", server.core_port(1));
        command.args(["topology", "-o", format]).env("FLOWMESH_ADDR", url);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for format in ["table", "json"] {
        let said = shown(format);
        for port in ports.iter().chain([&told.shared_address]) {
            assert!(said.contains(&format!("localhost{port}")), "localhost{port} is not in {said}");
        }
    }
}

#[tokio::test]
async fn without_ports_of_their_own_cores_have_no_address() {
    let home = Home::new().shards(SHARDS).set("core_ports", "off");
    let server = home.start();
    let told = topology(&mut server.client().await, v1::TopologyRequest::default()).await;
    assert_eq!(told.shared_address, format!("127.0.0.1:{}", server.grpc_port()));
    assert!(told.shards.iter().all(|shard| shard.address.is_empty()), "{told:?}");
}

#[tokio::test]
async fn the_topology_names_every_core_and_who_owns_what() {
    let home = Home::new().shards(SHARDS);
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("wide", 8).await;
    let request = v1::TopologyRequest { with_slots: true, ..v1::TopologyRequest::default() };
    let all = topology(&mut client, request).await;
    assert_eq!(all.shards.len(), usize::from(SHARDS));
    assert_eq!(all.slots.len(), 4096);
    assert!(all.shared_address.ends_with(&format!(":{}", server.grpc_port())));
    for (shard, mut client) in of_every_core(&server).await.into_iter().enumerate() {
        let address = &all.shards[shard].address;
        assert!(address.ends_with(&format!(":{}", server.core_port(shard as u16))), "{address}");
        let own = topology(&mut client, v1::TopologyRequest::default()).await;
        assert_eq!(own.answered_by as usize, shard, "a core's own port is answered by that core");
    }
    // A client can compute the places itself.
    let request = v1::TopologyRequest {
        name: "wide".into(),
        kind: v1::Kind::Stream as i32,
        ..v1::TopologyRequest::default()
    };
    let placed = topology(&mut client, request).await.places;
    let hash = PlacementHash::of(&ResourcePath::parse(Kind::Stream, "wide").unwrap());
    assert_eq!(placed.len(), 8);
    for place in &placed {
        let slot = hash.partition_slot(place.partition).get();
        assert_eq!((place.slot, place.shard), (u32::from(slot), all.slots[usize::from(slot)]));
    }
    client.set("store", "user:1", "v").await.unwrap();
    let request = v1::TopologyRequest {
        name: "store".into(),
        kind: v1::Kind::Kv as i32,
        key: Some(Bytes::from("user:1")),
        ..v1::TopologyRequest::default()
    };
    let placed = topology(&mut client, request).await.places;
    let slot = PlacementHash::of(&ResourcePath::parse(Kind::Kv, "store").unwrap()).key_slot(b"user:1").get();
    assert_eq!(
        (placed.len(), placed[0].slot, placed[0].shard),
        (1, u32::from(slot), all.slots[usize::from(slot)])
    );
}

#[tokio::test]
async fn any_core_answers_any_call() {
    let home = Home::new().shards(SHARDS);
    let server = home.start();
    let mut clients = of_every_core(&server).await;
    clients[0].create_stream("wide", 8).await;
    for (core, client) in clients.iter_mut().enumerate() {
        for partition in 0..8 {
            let records = vec![crate::common::client::record(format!("{core}"))];
            let request = v1::AppendRequest {
                stream: "wide".into(),
                partition: Some(partition),
                records,
                ..Default::default()
            };
            let answer = client.stream.append(request).await.unwrap().into_inner();
            assert_eq!(answer.base_offset, core as u64, "partition {partition} through core {core}");
        }
        // A resource made through one core is known to all at once.
        client.enqueue(&format!("queue{core}"), ["x"]).await.unwrap();
        client.set("store", format!("key{core}"), format!("{core}")).await.unwrap();
    }
    for (core, client) in clients.iter_mut().enumerate() {
        for partition in 0..8 {
            let values: Vec<Bytes> =
                client.read_from("wide", partition, 0).await.into_iter().map(|(_, r)| r.value).collect();
            assert_eq!(values, ["0", "1"], "partition {partition} through core {core}");
        }
        for other in 0..SHARDS {
            assert_eq!(client.get("store", format!("key{other}")).await.unwrap(), other.to_string());
        }
        let jobs = client.reserve(&format!("queue{}", (core + 1) % 2), 1, 60_000, 0).await.unwrap();
        assert_eq!(client.ack(&format!("queue{}", (core + 1) % 2), &jobs).await, [None]);
    }
    assert!(server.metric("flowmesh_hops_out_total", "").unwrap() > 0.0);
}

#[tokio::test]
async fn keys_are_spread_over_all_shards_and_gathered_in_order() {
    let home = Home::new().shards(SHARDS);
    let server = home.start();
    let mut client = server.client().await;
    let keys: Vec<String> = (0..1000).map(|i| format!("key{i:04}")).collect();
    let entries: Vec<v1::SetEntry> = keys.iter().map(|key| entry(key.clone(), key.clone())).collect();
    let outcomes =
        client.kv.set(v1::SetRequest { store: "s".into(), entries }).await.unwrap().into_inner().outcomes;
    assert!(
        outcomes.len() == 1000
            && outcomes.iter().all(|outcome| outcome.error.is_none() && outcome.version > 0)
    );

    let hash = PlacementHash::of(&ResourcePath::parse(Kind::Kv, "s").unwrap());
    let slots =
        topology(&mut client, v1::TopologyRequest { with_slots: true, ..v1::TopologyRequest::default() })
            .await
            .slots;
    let owners: BTreeSet<u32> =
        keys.iter().map(|key| slots[usize::from(hash.key_slot(key.as_bytes()).get())]).collect();
    assert_eq!(owners.len(), usize::from(SHARDS));

    for page in [0, 13, 1000] {
        let scanned: Vec<Bytes> =
            client.scan("s", b"key", page).await.into_iter().map(|entry| entry.key).collect();
        assert_eq!(scanned, keys, "pages of {page}");
    }
    let wanted: Vec<Bytes> =
        ["key0999", "none", "key0000", "key0999"].iter().map(|key| Bytes::from(*key)).collect();
    let got = client
        .kv
        .get(v1::GetRequest { store: "s".into(), keys: wanted.clone(), as_of: None })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        got.entries.iter().map(|e| e.value.clone()).collect::<Vec<_>>(),
        ["key0999", "", "key0000", "key0999"]
    );
    let deleted = client
        .kv
        .delete(v1::DeleteRequest { store: "s".into(), keys: wanted.clone(), if_version: None })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(deleted.deleted, [true, false, true, false]);
    let exists =
        client.kv.exists(v1::ExistsRequest { store: "s".into(), keys: wanted }).await.unwrap().into_inner();
    assert_eq!(exists.exists, [false; 4]);
}

#[tokio::test]
async fn streaming_calls_cross_cores() {
    let home = Home::new().shards(SHARDS);
    let server = home.start();
    let mut admin = server.client().await;
    admin.create_stream("wide", 8).await;
    for mut client in of_every_core(&server).await {
        let requests: Vec<_> = (0..80u64)
            .map(|sequence| v1::AppendStreamRequest {
                stream: "wide".into(),
                partition: Some((sequence % 8) as u32),
                records: vec![crate::common::client::record(sequence.to_string())],
                sequence,
                ..Default::default()
            })
            .collect();
        let mut answers =
            client.stream.append_stream(futures::stream::iter(requests)).await.unwrap().into_inner();
        let mut sequences = BTreeMap::new();
        while let Some(answer) = within("answers", answers.message()).await.unwrap() {
            for ack in answer.acks {
                assert_eq!(ack.error, None);
                sequences.insert(ack.sequence, ack.base_offset);
            }
        }
        assert_eq!(sequences.len(), 80);
    }
    for mut client in of_every_core(&server).await {
        let request = v1::SubscribeRequest {
            stream: "wide".into(),
            stop_at_end: true,
            ..v1::SubscribeRequest::default()
        };
        let mut batches = client.stream.subscribe(request).await.unwrap().into_inner();
        let mut next = [0u64; 8];
        while let Some(batch) = within("batches", batches.message()).await.unwrap() {
            let next = &mut next[batch.partition as usize];
            assert_eq!(batch.base_offset, *next, "order holds within a partition");
            *next += u64::from(batch.count);
        }
        assert_eq!(next, [20; 8]);
    }
}

#[tokio::test]
async fn what_shares_a_tag_is_on_one_shard() {
    let home = Home::new().shards(SHARDS);
    let server = home.start();
    let mut client = server.client().await;
    for tag in 0..10 {
        let name = format!("cart{{{tag}}}");
        client.append(&name, ["x"]).await.unwrap();
        client.enqueue(&name, ["x"]).await.unwrap();
        client.set("stock", format!("item:{name}"), "x").await.unwrap();
        let mut owners = BTreeSet::new();
        for (kind, resource, key) in [
            (v1::Kind::Stream, name.as_str(), None),
            (v1::Kind::Queue, name.as_str(), None),
            (v1::Kind::Kv, "stock", Some(Bytes::from(format!("item:{name}")))),
        ] {
            let request = v1::TopologyRequest {
                name: resource.into(),
                kind: kind as i32,
                key,
                ..v1::TopologyRequest::default()
            };
            let places = topology(&mut client, request).await.places;
            owners.insert((places[0].slot, places[0].shard));
        }
        assert_eq!(owners.len(), 1, "{name}: {owners:?}");
    }
}

#[tokio::test]
async fn a_restart_keeps_everything_on_its_shard() {
    let home = Home::new().shards(SHARDS);
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("wide", 8).await;
    let slots = |client: &Client| {
        let mut client = client.clone();
        async move {
            topology(&mut client, v1::TopologyRequest { with_slots: true, ..v1::TopologyRequest::default() })
                .await
                .slots
        }
    };
    let before = slots(&client).await;
    for i in 0..200 {
        client.set("store", format!("key{i}"), format!("{i}")).await.unwrap();
    }
    server.kill9();
    // Without saying how many: as many as the directory was made with.
    let home = home.set("shards", "auto");
    let server = home.start();
    let mut client = server.client().await;
    assert_eq!(slots(&client).await, before);
    assert_eq!(client.scan("store", b"", 0).await.len(), 200);
}
