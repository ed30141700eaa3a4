//! What would stall a core (directory operations, password hashes, schema compilation) on a few ordinary threads that
//! are not pinned to any core.
//!
//! Threads are started when there is work and none is idle, up to [`THREADS_MAX`], and then stay.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use futures::channel::oneshot;
use thiserror::Error;

use crate::affinity::CpuSet;
use crate::core::Panicked;

/// Threads at most: enough that one slow fsync does not hold up the rest.
pub const THREADS_MAX: usize = 4;

/// Calls that wait at most. What comes here is rare (files made and removed, not records), so more is a fault.
pub const WAITING_MAX: usize = 1024;

/// A blocking call was not carried out, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BlockingError {
    /// [`WAITING_MAX`] calls wait already.
    #[error("{WAITING_MAX} blocking calls wait already")]
    Full,
    /// No thread could be started.
    #[error("no thread for blocking calls: {0}")]
    NoThread(String),
    /// The call panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl From<BlockingError> for io::Error {
    fn from(error: BlockingError) -> Self {
        let kind = match error {
            BlockingError::Full => io::ErrorKind::WouldBlock,
            BlockingError::NoThread(_) => io::ErrorKind::OutOfMemory,
            BlockingError::Panicked(_) => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue { jobs: VecDeque::new(), threads: 0, idle: 0 });
static ARRIVED: Condvar = Condvar::new();

/// Jobs catch their own panics, so a poisoned queue is still whole.
fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `call` on one of the threads. It starts even if the future is never polled, and ends even if it is dropped.
pub fn run<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, BlockingError>> {
    let (sender, receiver) = oneshot::channel();
    let submitted = submit(Box::new(move || {
        let outcome = panic::catch_unwind(AssertUnwindSafe(call));
        let _ = sender.send(outcome.map_err(|payload| Panicked::from_payload(&*payload)));
    }));
    async move {
        submitted?;
        match receiver.await {
            Ok(outcome) => Ok(outcome?),
            Err(oneshot::Canceled) => Err(BlockingError::NoThread("the process is ending".to_owned())),
        }
    }
}

fn submit(job: Job) -> Result<(), BlockingError> {
    let mut queue = queue();
    if queue.jobs.len() >= WAITING_MAX {
        return Err(BlockingError::Full);
    }
    if queue.idle <= queue.jobs.len() && queue.threads < THREADS_MAX {
        match thread::Builder::new().name("blocking".to_owned()).spawn(work) {
            Ok(_) => queue.threads += 1,
            Err(error) if queue.threads == 0 => return Err(BlockingError::NoThread(error.to_string())),
            Err(error) => {
                tracing::warn!(%error, threads = queue.threads, "no further thread for blocking calls");
            }
        }
    }
    queue.jobs.push_back(job);
    drop(queue);
    ARRIVED.notify_one();
    Ok(())
}

fn work() {
    // The thread was started by a pinned core and has inherited its CPU.
    if let Err(error) = CpuSet::of_process().and_then(|all| all.apply_to_current_thread()) {
        tracing::warn!(%error, "a thread for blocking calls stays on the CPU of a core");
    }
    let mut queue = queue();
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            job();
            queue = self::queue();
        } else {
            queue.idle += 1;
            queue = ARRIVED.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}
