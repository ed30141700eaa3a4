//! The engine's clock: the runtime has a real one, the simulator a simulated one.

use std::future::Future;
use std::time::Duration;

use flowmesh_model::Millis;

/// Time, as the engine sees it.
pub trait Timer: Clone + 'static {
    /// The time now. May jump; the machine never goes back with it.
    fn now(&self) -> Millis;

    /// Nanoseconds on a clock that never jumps, to measure spans.
    fn monotonic_ns(&self) -> u64;

    /// Returns after `span`.
    fn sleep(&self, span: Duration) -> impl Future<Output = ()>;

    /// Lets the core's other tasks run.
    fn yield_now(&self) -> impl Future<Output = ()>;
}
