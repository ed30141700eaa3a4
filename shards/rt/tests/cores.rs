//! Cores, timers, blocking calls, panics.

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test: a panic is a failure"
)]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use flowmesh_rt::blocking::{self, BlockingError};
use flowmesh_rt::core::{
    CoreConfig, CoreError, catch_unwind, spawn_cores, spawn_local, unpinned, yield_if_needed, yield_now,
};
use flowmesh_rt::time::{Elapsed, Instant, monotonic_ns, now_ms, sleep, timeout};

fn pinned(cpu: usize) -> CoreConfig {
    CoreConfig { cpu: Some(cpu), ..CoreConfig::default() }
}

/// The CPUs the calling thread may run on.
fn allowed() -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
}

#[test]
fn one_core_does_all_that_cores_do() {
    let cores = spawn_cores(&[pinned(0)], "test", |core| async move {
        assert_eq!(std::thread::current().name(), Some("test-0"));
        assert_eq!(allowed(), "0");
        timers().await;
        tasks().await;
        panics_are_caught().await;
        blocking_calls().await;
        threads_are_not_pinned();
        core
    });
    assert_eq!(cores.unwrap().join().unwrap(), [0]);
}

async fn timers() {
    let start = (Instant::now(), monotonic_ns(), now_ms());
    sleep(Duration::from_millis(20)).await;
    assert!(start.0.elapsed() >= Duration::from_millis(20));
    assert!(monotonic_ns() - start.1 >= 20_000_000);
    assert!(now_ms() > start.2);

    assert_eq!(timeout(Duration::from_mins(1), async { 5 }).await, Ok(5));
    assert_eq!(timeout(Duration::from_millis(1), std::future::pending::<()>()).await, Err(Elapsed));
    // Adding the longest span to a clock must not overflow.
    assert_eq!(timeout(Duration::MAX, async { 6 }).await, Ok(6));
}

async fn tasks() {
    assert_eq!(spawn_local(async { 7 }).await, 7);

    let steps = Rc::new(Cell::new(0));
    let mine = Rc::clone(&steps);
    let endless = spawn_local(async move {
        loop {
            mine.set(mine.get() + 1);
            yield_now().await;
        }
    });
    assert_eq!(steps.get(), 1, "a task runs up to its first await before spawn_local returns");
    yield_now().await;
    yield_now().await;
    assert!(steps.get() > 1);
    assert_eq!(endless.cancel().await, None);
    let stopped = (steps.get(), Rc::strong_count(&steps));
    yield_now().await;
    assert_eq!((steps.get(), Rc::strong_count(&steps)), (stopped.0, 1));

    let detached = Rc::clone(&steps);
    spawn_local(async move {
        yield_now().await;
        detached.set(0);
    })
    .detach();
    while steps.get() != 0 {
        yield_if_needed().await;
        yield_now().await;
    }
}

async fn panics_are_caught() {
    assert_eq!(catch_unwind(async { 8 }).await, Ok(8));
    let caught = catch_unwind(async {
        yield_now().await;
        let number = 3;
        assert_eq!(number, 4, "numbers differ");
    })
    .await
    .unwrap_err();
    assert!(caught.message.contains("numbers differ"), "{caught}");
}

async fn blocking_calls() {
    assert_eq!(blocking::run(|| 9).await, Ok(9));
    let Err(BlockingError::Panicked(panicked)) = blocking::run(|| panic!("in a thread")).await else {
        panic!("a panic was not reported")
    };
    assert_eq!(panicked.message, "in a thread");
    let many: Vec<_> = (0..200).map(|n| blocking::run(move || n * 2)).collect();
    for (n, call) in many.into_iter().enumerate() {
        assert_eq!(call.await, Ok(n * 2));
    }
    let everywhere = std::thread::spawn(allowed);
    let of_pool = blocking::run(allowed).await.unwrap();
    assert_ne!(
        of_pool,
        everywhere.join().unwrap(),
        "a thread of a pinned core inherits its CPU, one of the pool must not"
    );
}

fn threads_are_not_pinned() {
    let wide = unpinned(|| std::thread::spawn(allowed).join().unwrap());
    assert_ne!(wide, "0");
    assert_eq!(allowed(), "0");
}

#[test]
fn the_first_core_that_dies_is_named_while_others_go_on() {
    let configs = [CoreConfig::default(), CoreConfig::default()];
    let cores = spawn_cores(&configs, "dying", |core| async move {
        if core == 0 {
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_millis(5)).await;
        // Not even the main future: any task on the core.
        spawn_local(async { panic!("the invariant is broken") }).detach();
        std::future::pending::<()>().await;
    });
    let died = cores.unwrap().join().unwrap_err();
    assert!(
        matches!(&died, CoreError::Died { core: 1, message } if message == "the invariant is broken"),
        "{died}"
    );
}

#[test]
fn a_core_that_cannot_start_is_named() {
    let Err(error) = spawn_cores(&[pinned(100_000)], "absent", |_| async {}) else { panic!("it started") };
    assert!(matches!(error, CoreError::Start { core: 0, .. } | CoreError::Died { core: 0, .. }), "{error}");
    assert!(error.to_string().contains("100000"), "{error}");
}
