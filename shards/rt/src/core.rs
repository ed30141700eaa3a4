//! Cores: one thread with one executor each, pinned to a CPU; tasks on them; and what happens when one panics.
//!
//! Defences kept here: a short preemption timer, little registered memory, glommio's own blocking pool unpinned, and a
//! core's death that nobody can miss.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};
use thiserror::Error;

use crate::affinity::CpuSet;

/// How one core runs.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// The CPU to be pinned to; `None`: not pinned (tests, and machines shared with others).
    pub cpu: Option<usize>,
    /// A busy core looks at its rings this often. glommio's default of 100 ms would let messages of other cores, accepts
    /// and disk completions wait as long; 100 µs costs nothing measurable.
    pub preempt_timer_us: u64,
    /// How long an idle core spins before it sleeps. 50 µs cut a cross-core round trip from 50-97 µs to 11 µs, and
    /// burn the core. Has an effect only when pinned.
    pub spin_before_park_us: u64,
    /// Memory registered with the kernel for direct I/O; pinned three times a core, so it counts three times against
    /// `RLIMIT_MEMLOCK`.
    pub io_memory_bytes: usize,
    /// Entries of each of the core's io_uring rings.
    pub ring_depth: usize,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            cpu: None,
            preempt_timer_us: 100,
            spin_before_park_us: 0,
            io_memory_bytes: 1024 * 1024,
            ring_depth: 256,
        }
    }
}

/// A core could not start, or died.
#[derive(Debug, Error)]
pub enum CoreError {
    /// Its thread or its rings could not be made.
    #[error("core {core} cannot start: {source}")]
    Start {
        /// Its index in the list of configurations.
        core: usize,
        /// What the system said.
        source: io::Error,
    },
    /// Its main future, or a task on it, panicked. Everything on this core is gone.
    #[error("core {core} died: {message}")]
    Died {
        /// Its index in the list of configurations.
        core: usize,
        /// The panic's message.
        message: String,
    },
}

/// The running cores.
#[derive(Debug)]
pub struct Cores<T> {
    exits: mpsc::Receiver<(usize, Result<T, CoreError>)>,
    count: usize,
}

impl<T> Cores<T> {
    /// Waits until all cores are done, and returns what their main futures returned, by core.
    ///
    /// # Errors
    /// As soon as a core dies, without waiting for the others, which go on running: the caller is expected to end the
    /// process.
    pub fn join(self) -> Result<Vec<T>, CoreError> {
        let mut outputs: Vec<Option<T>> = (0..self.count).map(|_| None).collect();
        for _ in 0..self.count {
            let Ok((core, outcome)) = self.exits.recv() else { break };
            if let Some(slot) = outputs.get_mut(core) {
                *slot = Some(outcome?);
            }
        }
        let done: Vec<T> = outputs.into_iter().flatten().collect();
        assert_eq!(done.len(), self.count, "a core ended without a word");
        Ok(done)
    }
}

/// Starts one thread with an executor for each configuration; `make(core)` is the main future of that core and runs
/// on it. The threads are named `{name}-{core}`. Returns when every executor is up.
///
/// # Errors
/// [`CoreError::Start`] of the first core that could not start. Cores that did start go on; end the process.
pub fn spawn_cores<F, Fut>(
    configs: &[CoreConfig],
    name: &str,
    make: F,
) -> Result<Cores<Fut::Output>, CoreError>
where
    F: Fn(usize) -> Fut + Send + Clone + 'static,
    Fut: Future + 'static,
    Fut::Output: Send + 'static,
{
    let (exit, exits) = mpsc::channel();
    let (up, ups) = mpsc::channel();
    for (core, config) in configs.iter().cloned().enumerate() {
        let (exit, up, make) = (exit.clone(), up.clone(), make.clone());
        thread::Builder::new()
            .name(format!("{name}-{core}"))
            .spawn(move || {
                let outcome = run_core(core, &config, &up, make);
                // If nobody joins any more, nobody wants to know.
                let _ = exit.send((core, outcome));
            })
            .map_err(|source| CoreError::Start { core, source })?;
    }
    drop((exit, up));
    // One word of each core: it holds its end of the channel as long as it lives.
    for outcome in ups.into_iter().take(configs.len()) {
        outcome?;
    }
    Ok(Cores { exits, count: configs.len() })
}

fn run_core<F, Fut>(
    core: usize,
    config: &CoreConfig,
    up: &mpsc::Sender<Result<(), CoreError>>,
    make: F,
) -> Result<Fut::Output, CoreError>
where
    F: Fn(usize) -> Fut,
    Fut: Future + 'static,
    Fut::Output: 'static,
{
    let is_up = Cell::new(false);
    let body = AssertUnwindSafe(|| {
        let executor = builder(config).make()?;
        is_up.set(true);
        let _ = up.send(Ok(()));
        Ok::<_, io::Error>(executor.run(async move { make(core).await }))
    });
    match panic::catch_unwind(body) {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(source)) => {
            let again = io::Error::new(source.kind(), source.to_string());
            let _ = up.send(Err(CoreError::Start { core, source: again }));
            Err(CoreError::Start { core, source })
        }
        Err(payload) => {
            let message = Panicked::from_payload(&*payload).message;
            tracing::error!(core, message, "a core died");
            if !is_up.get() {
                let _ = up.send(Err(CoreError::Died { core, message: message.clone() }));
            }
            Err(CoreError::Died { core, message })
        }
    }
}

fn builder(config: &CoreConfig) -> LocalExecutorBuilder {
    let placement = config.cpu.map_or(Placement::Unbound, Placement::Fixed);
    let builder = LocalExecutorBuilder::new(placement)
        .preempt_timer(Duration::from_micros(config.preempt_timer_us.max(1)))
        .io_memory(config.io_memory_bytes)
        .ring_depth(config.ring_depth.max(1))
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1));
    match config.spin_before_park_us {
        0 => builder,
        spin => builder.spin_before_park(Duration::from_micros(spin)),
    }
}

/// A task on this core. Dropping it cancels it; awaiting it gives its output.
#[must_use = "dropping a task cancels it: detach it, or keep it"]
#[derive(Debug)]
pub struct Task<T>(glommio::Task<T>);

impl<T> Task<T> {
    /// Lets the task run on its own.
    pub fn detach(self) {
        drop(self.0.detach());
    }

    /// Stops the task where it waits, and returns once its future is dropped; its output if it was done by then.
    pub async fn cancel(self) -> Option<T> {
        self.0.cancel().await
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// Starts a task on this core. **It runs at once, up to its first await**, before this returns: hold no `RefCell`
/// borrow that it needs. Takes a process-wide lock for a moment: a task a connection, not a task a request.
///
/// If it panics, the whole core dies; guard what serves requests with [`catch_unwind`].
pub fn spawn_local<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    Task(glommio::spawn_local(future))
}

/// Lets the other ready tasks of this core run first.
pub async fn yield_now() {
    glommio::executor().yield_now().await;
}

/// Lets the core look at its rings and run other tasks if its time slice is over; costs two loads if it is not. To be
/// called in every loop that may run long.
pub async fn yield_if_needed() {
    glommio::yield_if_needed().await;
}

/// Whether the time slice is over: [`yield_if_needed`] for code that is not async.
pub fn should_yield() -> bool {
    glommio::executor().need_preempt()
}

/// A panic that was caught.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("panicked: {message}")]
pub struct Panicked {
    /// Its message.
    pub message: String,
}

impl Panicked {
    pub(crate) fn from_payload(payload: &(dyn Any + Send)) -> Self {
        let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
            (Some(text), _) => (*text).to_owned(),
            (None, Some(text)) => text.clone(),
            (None, None) => "a panic without a message".to_owned(),
        };
        Self { message }
    }
}

/// Runs a future so that its panic ends it alone and not its core. What it shares with others must be whole even if
/// it stops in the middle: no borrow is left over, but a half-done change stays half done.
pub async fn catch_unwind<T>(future: impl Future<Output = T>) -> Result<T, Panicked> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|payload| Panicked::from_payload(&*payload))
}

/// Allows the calling thread, and those it starts, on every CPU of the process: for threads that a core has started.
pub fn unpin_this_thread() {
    let widened = CpuSet::of_process().and_then(|all| all.apply_to_current_thread());
    if let Err(error) = widened {
        tracing::warn!(%error, "a thread stays pinned to the core that started it");
    }
}

/// Runs `make` with this thread allowed on every CPU of the process, and pins it again. Threads that are started
/// inside (a storage engine's) are then not pinned to this core. Falls back to the pinned thread if the system
/// refuses.
pub fn unpinned<T>(make: impl FnOnce() -> T) -> T {
    struct Restore(Option<CpuSet>);
    impl Drop for Restore {
        fn drop(&mut self) {
            if let Some(Err(error)) = self.0.map(|pinned| pinned.apply_to_current_thread()) {
                tracing::warn!(%error, "a core's thread could not be pinned again");
            }
        }
    }
    let pinned = CpuSet::of_current_thread().ok();
    let widened = CpuSet::of_process().and_then(|all| all.apply_to_current_thread());
    let _restore = Restore(pinned.filter(|_| widened.is_ok()));
    make()
}

impl fmt::Display for CoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cpu {
            Some(cpu) => write!(f, "cpu {cpu}"),
            None => f.write_str("any cpu"),
        }
    }
}
