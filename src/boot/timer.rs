//! The engine's clock on the real runtime.

use std::future::Future;
use std::time::Duration;

use flowmesh_engine::Timer;
use flowmesh_model::Millis;
use flowmesh_rt::{core, time};

/// This core's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct RtTimer;

impl Timer for RtTimer {
    fn now(&self) -> Millis {
        Millis(time::now_ms())
    }

    fn monotonic_ns(&self) -> u64 {
        time::monotonic_ns()
    }

    fn sleep(&self, span: Duration) -> impl Future<Output = ()> {
        time::sleep(span)
    }

    fn yield_now(&self) -> impl Future<Output = ()> {
        core::yield_now()
    }
}
