//! Timeouts, disconnects and shutdown.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use flowmesh_proto::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;

use super::client::{Rig, run, until};
use super::fake::Fake;
use crate::edge::grpc::{Edge, GrpcConfig, serve_connection};

const SHORT: Duration = Duration::from_millis(30);

fn get() -> v1::GetRequest {
    v1::GetRequest { store: "s".into(), keys: vec![Bytes::from_static(b"k")], as_of: None }
}

#[test]
fn a_shutdown_finishes_calls_and_ends_streams() {
    run(async {
        let mut rig = Rig::new().await;
        let mut subscription = rig.open("flowmesh.v1.Stream/Subscribe").await;
        subscription.send(&v1::SubscribeRequest { stream: "one".into(), ..Default::default() }, true);
        let mut worker = rig.open("flowmesh.v1.Queue/Work").await;
        let hello = v1::WorkHello { queue: "q".into(), ..Default::default() };
        worker.send(&v1::WorkRequest { hello: Some(hello), credit: 1, ..Default::default() }, false);
        let mut waiting = rig.open("flowmesh.v1.Stream/Read").await;
        let read = v1::ReadRequest { stream: "one".into(), wait_ms: 60_000, ..Default::default() };
        waiting.send(&read, true);
        until(|| rig.fake.waiting() == 3).await;
        rig.fake.hold();
        let mut call = rig.open("flowmesh.v1.Kv/Get").await;
        call.send(&get(), true);
        until(|| rig.fake.held() == 1).await;

        rig.stop.take().unwrap().send(()).unwrap();
        for stream in [&mut subscription, &mut worker] {
            assert_eq!(stream.status().await.unwrap_err().reason(), "SHUTTING_DOWN");
        }
        assert_eq!(waiting.status().await.unwrap_err().reason(), "SHUTTING_DOWN");
        assert!(!rig.server.is_finished());
        rig.fake.let_go();
        call.only::<v1::GetResponse>().await.unwrap();
        rig.server.await.unwrap();
        assert_eq!(rig.edge.counters().connections_open, 0);
    });
}

#[test]
fn a_call_that_does_not_finish_does_not_hold_up_a_shutdown() {
    run(async {
        let config = GrpcConfig { drain_timeout: SHORT, ..GrpcConfig::default() };
        let mut rig = Rig::with(Fake::new(1), config).await;
        rig.fake.hold();
        let mut call = rig.open("flowmesh.v1.Kv/Get").await;
        call.send(&get(), true);
        until(|| rig.fake.held() == 1).await;
        rig.stop.take().unwrap().send(()).unwrap();
        rig.server.await.unwrap();
        rig.fake.let_go();
    });
}

#[test]
fn an_idle_connection_is_closed() {
    run(async {
        let config = GrpcConfig { idle_timeout: SHORT, ..GrpcConfig::default() };
        let rig = Rig::with(Fake::new(1), config).await;
        rig.server.await.unwrap();
        rig.connection.await.unwrap().unwrap();
    });
}

#[test]
fn an_old_connection_is_told_to_go_away() {
    run(async {
        let config = GrpcConfig { age_max: Some(SHORT), ..GrpcConfig::default() };
        let rig = Rig::with(Fake::new(1), config).await;
        rig.call::<v1::GetResponse>("flowmesh.v1.Kv/Get", &get()).await.unwrap();
        rig.server.await.unwrap();
        assert!(rig.client.ready().await.is_err());
    });
}

#[test]
fn a_client_that_answers_no_ping_is_dropped_and_one_that_does_is_not() {
    run(async {
        let config =
            GrpcConfig { keepalive_interval: SHORT, keepalive_timeout: SHORT, ..GrpcConfig::default() };
        let rig = Rig::with(Fake::new(1), config.clone()).await;
        tokio::time::sleep(SHORT * 8).await;
        rig.call::<v1::GetResponse>("flowmesh.v1.Kv/Get", &get()).await.unwrap();

        let fake = Fake::new(1);
        let edge = Edge::new(fake.clone(), config, fake.facts());
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        let server = spawn_local(serve_connection(far, Rc::clone(&edge), std::future::pending()));
        near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        server.await.unwrap();
    });
}

#[test]
fn a_client_that_says_nothing_is_dropped() {
    run(async {
        let config = GrpcConfig { handshake_timeout: SHORT, ..GrpcConfig::default() };
        let fake = Fake::new(1);
        let edge = Edge::new(fake.clone(), config, fake.facts());
        let (near, far) = tokio::io::duplex(1024);
        serve_connection(far, Rc::clone(&edge), std::future::pending()).await;
        assert_eq!(edge.counters().connections_total, 1);
        drop(near);
    });
}

#[test]
fn noise_ends_the_connection() {
    run(async {
        let fake = Fake::new(1);
        let edge = Edge::new(fake.clone(), GrpcConfig::default(), fake.facts());
        let noises: [&[u8]; 3] = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x03\x01\x05\0\0\0\x01\xff\xff\xff",
        ];
        for noise in noises {
            let (mut near, far) = tokio::io::duplex(64 * 1024);
            let server = spawn_local(serve_connection(far, Rc::clone(&edge), std::future::pending()));
            near.write_all(noise).await.unwrap();
            server.await.unwrap();
            let mut rest = Vec::new();
            near.read_to_end(&mut rest).await.unwrap();
        }
    });
}

#[test]
fn a_disconnect_drops_what_waits_and_late_replies_go_nowhere() {
    run(async {
        let rig = Rig::new().await;
        let read = v1::ReadRequest { stream: "one".into(), wait_ms: 60_000, ..Default::default() };
        let mut waiting = rig.open("flowmesh.v1.Stream/Read").await;
        waiting.send(&read, true);
        until(|| rig.fake.waiting() == 1).await;
        rig.fake.hold();
        let mut call = rig.open("flowmesh.v1.Kv/Get").await;
        call.send(&get(), true);
        until(|| rig.fake.held() == 1).await;
        rig.connection.abort();
        rig.server.await.unwrap();
        until(|| rig.fake.waiting() == 0).await;
        rig.fake.let_go();
    });
}

#[test]
fn many_calls_share_one_connection() {
    run(async {
        let rig = Rig::new().await;
        rig.fake.hold();
        let mut calls = Vec::new();
        for _ in 0..500 {
            let mut call = rig.open("flowmesh.v1.Kv/Get").await;
            call.send(&get(), true);
            calls.push(call);
        }
        until(|| rig.fake.held() == 500).await;
        rig.fake.let_go();
        for mut call in calls {
            call.only::<v1::GetResponse>().await.unwrap();
        }
        let counted = rig.edge.counters();
        assert_eq!(counted.calls, [("flowmesh.v1.Kv/Get", "OK", 500)]);
        assert_eq!((counted.connections_total, counted.connections_open), (1, 1));
    });
}

#[test]
fn many_calls_that_time_out_at_once_do_not_end_the_connection() {
    run(async {
        let rig = Rig::new().await;
        for _ in 0..100 {
            let mut call = rig.open("flowmesh.v1.Kv/Get").await;
            call.send(&get(), false);
            call.send.send_reset(h2::Reason::CANCEL);
        }
        rig.call::<v1::GetResponse>("flowmesh.v1.Kv/Get", &get()).await.unwrap();
    });
}
