//! Signals, alone in a process of its own: they concern all of it.

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test: a panic is a failure"
)]

use flowmesh_rt::core::{CoreConfig, spawn_cores};
use flowmesh_rt::signal::{Signal, Signals};

#[test]
fn signals_arrive_on_a_core() {
    // The test harness has threads that would be killed; only signals sent to this thread are safe here.
    let signals = std::sync::Arc::new(std::sync::Mutex::new(Some(Signals::install().unwrap())));
    let cores = spawn_cores(&[CoreConfig::default()], "signals", move |_| {
        let mut signals = signals.lock().unwrap().take().unwrap();
        async move { [signals.next().await, signals.next().await] }
    });
    // To the whole process: only the thread that waits for signals has them unblocked, except the harness's own.
    let me = std::process::id() as i32;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let thread = signal_thread();
        // SAFETY: a plain system call on a thread of this process.
        assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, me, thread, signal) }, 0);
    }
    let mut arrived = cores.unwrap().join().unwrap()[0];
    arrived.sort_by_key(|signal| *signal == Signal::Interrupt);
    assert_eq!(arrived, [Signal::Terminate, Signal::Interrupt]);
}

/// The thread that waits for signals.
fn signal_thread() -> i32 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let is_it = |entry: &std::fs::DirEntry| {
        std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "signals")
    };
    let task = tasks.map(Result::unwrap).find(is_it).unwrap();
    task.file_name().to_str().unwrap().parse().unwrap()
}
