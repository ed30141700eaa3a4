//! Sleeping, deadlines and clocks. Timers are the runtime's own heap of them, looked at each time a core polls its
//! rings: at most the preemption timer late while the core is busy.

use std::future::Future;
use std::pin::pin;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::{Either, select};
use glommio::timer::Timer;
use thiserror::Error;

pub use std::time::Instant;

/// Longer waits are cut to this: it is for ever, and adding it to the clock cannot overflow.
const SLEEP_MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// Returns after `span`.
pub async fn sleep(span: Duration) {
    Timer::new(span.min(SLEEP_MAX)).await;
}

/// The time was up first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the time is up")]
pub struct Elapsed;

/// The future's output, or [`Elapsed`] if it takes longer than `span`; then the future is dropped.
pub async fn timeout<T>(span: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    match select(pin!(future), pin!(sleep(span))).await {
        Either::Left((output, _)) => Ok(output),
        Either::Right(((), _)) => Err(Elapsed),
    }
}

/// Milliseconds since 1970, by the system's clock; may jump. About 25 ns.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |span| span.as_millis() as u64)
}

/// Nanoseconds since the first call in this process, on a clock that never jumps. About 25 ns.
pub fn monotonic_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
