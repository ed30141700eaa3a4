//! Makes a busy core look at its rings in time, and keeps glommio from sleeping while tasks are ready.
//!
//! # The flaw
//! glommio's loop arms a preemption timer, polls the rings, and then runs tasks until the timer has fired. If the thread
//! is held up in between for longer than the timer (another thread on the CPU, a stolen virtual CPU), it has fired before
//! the first task ran; glommio takes "ran nothing" for "has nothing to run", and **sleeps although tasks are ready**,
//! until some event happens to wake it. With the default of 100 ms that is rare; with the 100 µs that busy cores need,
//! a shared CPU sees it within seconds.
//!
//! # The way around it
//! glommio leaves its tasks whenever the ring for network receives has a completion. So its own timer is set to
//! [`PREEMPT`], and **tickers** keep receives on a silent socket in that ring, each with a timeout: when it passes,
//! glommio looks at its rings. The difference to the timer: a task waits for this completion, so it counts as work that
//! arrived, and glommio does not sleep on it. And as tickers are closer together than [`PREEMPT`], one has fired, too,
//! whenever that timer has.
//!
//! Several receives are in flight, one period apart, because the task behind a tick waits its turn before it asks for
//! the next. Should a hold-up use up all of them at once, [`PREEMPT`] bounds how long the other tasks run before the
//! tickers do. Should two hold-ups in a row make glommio sleep after all, **heartbeats**, plain timers far apart, end
//! that sleep.

use std::cell::Cell;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::net::UdpSocket;
use glommio::timer::Timer;
use glommio::{Latency, Shares};
use socket2::{Domain, Socket, Type};

/// glommio's own preemption timer.
pub(crate) const PREEMPT: Duration = Duration::from_millis(5);

/// Between two ticks of a core that idles; less than [`PREEMPT`]. 250 wake-ups a second are about 0.2 % of a core.
const IDLE_PERIOD: Duration = Duration::from_millis(4);

/// The heartbeats, at scales that no hold-up spans all of.
const HEARTBEATS: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(200), Duration::from_secs(2)];

/// Receives in flight.
const TICKERS: u32 = 4;

/// How long a core is watched before its pace is decided anew.
const DECIDE_AFTER: Duration = Duration::from_millis(1);

/// A core that spends a larger part of its time in tasks is busy: below it, its time slices are short anyway.
const BUSY_SHARE: f64 = 0.25;

/// When the next tick is due, shared by all tickers so that they stay apart.
struct Pace {
    busy_period: Duration,
    /// Between two ticks, now.
    period: Cell<Duration>,
    /// When that was decided.
    decided: Cell<Instant>,
    /// The last tick that a ticker waits for.
    last: Cell<Instant>,
}

impl Pace {
    fn new(busy_period: Duration) -> Self {
        let now = Instant::now();
        Self { busy_period, period: Cell::new(busy_period), decided: Cell::new(now), last: Cell::new(now) }
    }

    /// How long a ticker waits for its next tick.
    fn next_wait(&self) -> Duration {
        let now = Instant::now();
        let since = now.duration_since(self.decided.get());
        if since >= DECIDE_AFTER {
            self.decided.set(now);
            self.period.set(self.decide(since));
        }
        let period = self.period.get();
        // Ticks that were planned for an idle core must not hold up those of a busy one.
        let last = self.last.get().clamp(now, now + period * TICKERS) + period;
        self.last.set(last);
        last.duration_since(now)
    }

    /// The period that fits what the core did since the last decision.
    fn decide(&self, since: Duration) -> Duration {
        // glommio counts from zero again after each call.
        let ran = glommio::executor().executor_stats().executor_runtime();
        let busy = ran.as_secs_f64() > since.as_secs_f64() * BUSY_SHARE;
        if busy { self.busy_period } else { IDLE_PERIOD.max(self.busy_period) }
    }
}

/// Starts ticking on this core: every `busy_period` while it is busy. Returns once the first ticks are under way: before
/// that nothing would make a busy core stop.
pub(crate) async fn start(busy_period: Duration) -> io::Result<()> {
    let pace = Rc::new(Pace::new(busy_period));
    // A queue of their own: in the common one they would wait behind every ready task.
    let queue = glommio::executor().create_task_queue(
        Shares::default(),
        Latency::Matters(PREEMPT),
        "ticker",
    );
    for _ in 0..TICKERS {
        let ticker = tick(Rc::clone(&pace), silent_socket()?);
        glommio::spawn_local_into(ticker, queue)?.detach();
    }
    for period in HEARTBEATS {
        let heartbeat = async move {
            loop {
                Timer::new(period).await;
            }
        };
        glommio::spawn_local(heartbeat).detach();
    }
    // While this waits, and nothing else is ready, the core submits the receives above.
    Timer::new(busy_period).await;
    Ok(())
}

/// A socket without an address and without a peer: nothing can arrive. glommio's UDP socket is the one whose receives
/// can time out; of which family it is does not matter to it.
fn silent_socket() -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    // SAFETY: the descriptor is an open socket, and ours alone to give away.
    Ok(unsafe { UdpSocket::from_raw_fd(socket.into_raw_fd()) })
}

async fn tick(pace: Rc<Pace>, silent: UdpSocket) {
    while let Ok(()) = silent.set_read_timeout(Some(pace.next_wait())) {
        match silent.recv_from(&mut [0]).await.map_err(io::Error::from) {
            Err(error) if timed_out(&error) => {}
            other => {
                tracing::error!(?other, "a core may look at its rings too rarely: a receive did not time out");
                return;
            }
        }
    }
}

fn timed_out(error: &io::Error) -> bool {
    // The ring cancels what its linked timeout ends.
    error.raw_os_error() == Some(libc::ECANCELED) || error.kind() == io::ErrorKind::TimedOut
}
