//! Messages between cores: none lost, in order, never stuck.

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test: a panic is a failure"
)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flowmesh_rt::core::{CoreConfig, spawn_cores, spawn_local, yield_now};
use flowmesh_rt::mesh::{Mesh, MeshBuilder};
use flowmesh_rt::time::{Instant, timeout};

/// Far above what anything here takes; only a hang reaches it.
const DEADLINE: Duration = Duration::from_mins(1);

fn configs(cores: usize) -> Vec<CoreConfig> {
    vec![CoreConfig::default(); cores]
}

/// A small generator, so that a failing run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let finished = timeout(DEADLINE, async {
        while !done() {
            yield_now().await;
        }
    });
    assert!(finished.await.is_ok(), "{what}: not within {DEADLINE:?}");
}

enum Traffic {
    Request { number: u64 },
    Answer { number: u64 },
}

/// Every core sends requests in bursts to random cores over tiny rings and answers those it gets, from within its
/// receive loop: the pattern that deadlocks when sends wait.
#[test]
fn random_requests_and_answers_all_arrive_in_order() {
    const CORES: usize = 4;
    const REQUESTS: u64 = 20_000;
    const IN_FLIGHT: u64 = 500;
    let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    // Requests in flight and answers to them both fit.
    let mesh = MeshBuilder::new(CORES, 2 * IN_FLIGHT as usize);
    let done = Arc::new(Mutex::new(0));
    let cores = spawn_cores(&configs(CORES), "traffic", move |core| {
        let (mesh, done) = (Rc::new(mesh.take(core)), Arc::clone(&done));
        async move {
            let answered = Rc::new(Cell::new(0));
            let (receiver, count) = (Rc::clone(&mesh), Rc::clone(&answered));
            let mut last_request = HashMap::new();
            let mut last_answer = HashMap::new();
            let loops = spawn_local(async move {
                receiver
                    .run(|from, message| match message {
                        Traffic::Request { number } => {
                            assert!(last_request.insert(from, number).is_none_or(|last| last < number));
                            assert!(
                                receiver.send(from, Traffic::Answer { number }).is_ok(),
                                "an answer was refused"
                            );
                        }
                        Traffic::Answer { number } => {
                            assert!(last_answer.insert(from, number).is_none_or(|last| last < number));
                            count.set(count.get() + 1);
                        }
                    })
                    .await;
            });
            let mut random = Random(seed ^ core as u64);
            let mut sent = 0;
            while sent < REQUESTS {
                let room = (IN_FLIGHT + answered.get() - sent).min(REQUESTS - sent);
                for _ in 0..random.below(room + 1) {
                    let to = random.below(CORES as u64) as usize;
                    assert!(
                        mesh.send(to, Traffic::Request { number: sent }).is_ok(),
                        "a request was refused"
                    );
                    sent += 1;
                }
                yield_now().await;
            }
            until("answers", || answered.get() == REQUESTS).await;
            *done.lock().unwrap() += 1;
            // Others still want answers.
            until("all cores", || *done.lock().unwrap() == CORES).await;
            assert_eq!(mesh.depth_in(), 0);
            assert_eq!(mesh.depth_out(), 0);
            drop(loops);
        }
    });
    cores.unwrap().join().unwrap();
}

async fn echo(mesh: Rc<Mesh<u64>>) {
    mesh.run(|from, message| assert!(mesh.send(from, message).is_ok(), "the echo was refused")).await;
}

/// One round trip at a time; how long they took, in microseconds, ascending.
async fn round_trips(mesh: &Rc<Mesh<u64>>, rounds: u64) -> Vec<u128> {
    let back = Rc::new(RefCell::new(Vec::new()));
    let (receiver, got) = (Rc::clone(mesh), Rc::clone(&back));
    let loops = spawn_local(async move { receiver.run(|_, message| got.borrow_mut().push(message)).await });
    let mut took = Vec::new();
    for round in 0..rounds {
        let start = Instant::now();
        assert!(mesh.send(1, round).is_ok());
        until("a round trip", || back.borrow().len() as u64 > round).await;
        took.push(start.elapsed().as_micros());
    }
    drop(loops);
    took.sort_unstable();
    took
}

#[test]
fn a_round_trip_to_a_saturated_core_comes_back() {
    const ROUNDS: u64 = 500;
    let (mesh, stop) = (MeshBuilder::new(2, 16), Arc::new(AtomicBool::new(false)));
    let configs: Vec<_> = (0..2).map(|cpu| CoreConfig { cpu: Some(cpu), ..CoreConfig::default() }).collect();
    let cores = spawn_cores(&configs, "busy", move |core| {
        let (mesh, stop) = (Rc::new(mesh.take(core)), Arc::clone(&stop));
        async move {
            if core == 0 {
                let took = round_trips(&mesh, ROUNDS).await;
                let at = |percent| took[took.len() * percent / 100];
                println!("to a saturated core: {} us, p90 {}, p99 {}", at(50), at(90), at(99));
                stop.store(true, Ordering::Relaxed);
                return;
            }
            let echo = spawn_local(echo(mesh));
            // Tasks that are always ready: the core never runs dry.
            let burners: Vec<_> = (0..3)
                .map(|_| {
                    let stop = Arc::clone(&stop);
                    spawn_local(async move {
                        while !stop.load(Ordering::Relaxed) {
                            yield_now().await;
                        }
                    })
                })
                .collect();
            for burner in burners {
                burner.await;
            }
            drop(echo);
        }
    });
    cores.unwrap().join().unwrap();
}

#[test]
fn a_full_lane_gives_the_message_back_and_recovers() {
    const CAPACITY: u64 = 1500; // a ring and some overflow
    let mesh = MeshBuilder::new(2, CAPACITY as usize);
    let (open, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let cores = spawn_cores(&configs(2), "full", move |core| {
        let mesh = Rc::new(mesh.take(core));
        let (open, seen) = (Arc::clone(&open), Arc::clone(&seen));
        async move {
            if core == 0 {
                for number in 0..CAPACITY {
                    assert_eq!(mesh.send(1, number), Ok(()));
                }
                assert_eq!(mesh.send(1, CAPACITY), Err(CAPACITY));
                assert_eq!(mesh.send(2, 0), Err(0), "there is no core 2");
                assert_eq!(mesh.depth_to(1) as u64, CAPACITY);
                let moving = Rc::clone(&mesh);
                let loops = spawn_local(async move { moving.run(|_, _| {}).await });
                open.store(true, Ordering::Relaxed);
                until("everything taken", || mesh.depth_to(1) == 0).await;
                assert_eq!(mesh.send(1, CAPACITY), Ok(()));
                drop(loops);
                return;
            }
            until("the first core", || open.load(Ordering::Relaxed)).await;
            let taken = Arc::clone(&seen);
            let loops = spawn_local(async move {
                mesh.run(|from, number| {
                    assert_eq!(from, 0);
                    taken.lock().unwrap().push(number);
                })
                .await;
            });
            until("all messages", || seen.lock().unwrap().len() as u64 == CAPACITY + 1).await;
            assert!(seen.lock().unwrap().iter().copied().eq(0..=CAPACITY));
            drop(loops);
        }
    });
    cores.unwrap().join().unwrap();
}

/// Both cores sleep between messages, so every wake-up counts; one that is lost hangs.
#[test]
fn sleeping_cores_are_woken() {
    const ROUNDS: u64 = 2_000;
    let mesh = MeshBuilder::new(2, 4);
    let cores = spawn_cores(&configs(2), "sleepy", move |core| {
        let mesh = Rc::new(mesh.take(core));
        async move {
            let (wake, mut woken) = futures::channel::mpsc::unbounded();
            if core == 0 {
                assert!(mesh.send(1, 0).is_ok());
            }
            let loops = async {
                mesh.run(|from, round| {
                    if round < ROUNDS {
                        assert!(mesh.send(from, round + 1).is_ok());
                    }
                    if round + 1 >= ROUNDS {
                        wake.unbounded_send(()).unwrap();
                    }
                })
                .await;
            };
            let end = futures::StreamExt::next(&mut woken);
            let mut loops = std::pin::pin!(loops);
            let played = timeout(DEADLINE, futures::future::select(&mut loops, end)).await;
            assert!(played.is_ok(), "a wake-up was lost");
        }
    });
    cores.unwrap().join().unwrap();
}
