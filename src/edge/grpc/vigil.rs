//! What a connection does about time: pings when nothing comes in, and the end of what is idle, too old or does not
//! finish.
//!
//! ```text
//! heard ── nothing for keepalive_interval ─► ping sent ── nothing for keepalive_timeout ─► dead
//!   ▲──────────────── anything received ────────┘
//! open ── no call for idle_timeout, or age_max reached, or shutdown ─► draining ── drain_timeout ─► dead
//! ```

use std::time::{Duration, Instant};

use super::config::GrpcConfig;

/// Looks are at least so far apart, and at most.
const LOOK_MIN: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_hours(1);

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Nothing until the next look.
    Wait,
    /// Send a ping.
    Ping,
    /// Tell the client to go away.
    GoAway,
    /// Drop the connection.
    Drop,
}

/// What the connection saw, when it is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Bytes received so far.
    pub received: u64,
    /// Calls accepted so far.
    pub calls: u64,
    /// Whether a call is in progress.
    pub busy: bool,
}

/// When what was seen last.
#[derive(Debug)]
pub struct Vigil {
    opened: Instant,
    heard: Instant,
    called: Instant,
    pinged: Option<Instant>,
    draining: Option<Instant>,
    last: Signs,
}

impl Vigil {
    /// Over a connection that opened now.
    pub fn new(now: Instant) -> Self {
        Self { opened: now, heard: now, called: now, pinged: None, draining: None, last: Signs::default() }
    }

    /// The connection was told to go away.
    pub fn drain(&mut self, now: Instant) {
        self.draining.get_or_insert(now);
    }

    /// Takes note of the signs and says what to do, and when to look again.
    pub fn look(&mut self, config: &GrpcConfig, now: Instant, signs: Signs) -> (Duty, Duration) {
        if signs.received != self.last.received {
            self.heard = now;
            self.pinged = None;
        }
        if signs.calls != self.last.calls || signs.busy {
            self.called = now;
        }
        self.last = signs;
        let duty = self.duty(config, now);
        match duty {
            Duty::Ping => self.pinged = Some(now),
            Duty::GoAway => self.drain(now),
            Duty::Wait | Duty::Drop => {}
        }
        (duty, self.next_look(config, now))
    }

    fn duty(&self, config: &GrpcConfig, now: Instant) -> Duty {
        let over = |since: Option<Instant>, span| since.is_some_and(|since| now - since >= span);
        if over(self.draining, config.drain_timeout) || over(self.pinged, config.keepalive_timeout) {
            return Duty::Drop;
        }
        let old = config.age_max.is_some_and(|age| now - self.opened >= age);
        if self.draining.is_none() && (old || now - self.called >= config.idle_timeout) {
            return Duty::GoAway;
        }
        if self.pinged.is_none() && now - self.heard >= config.keepalive_interval {
            return Duty::Ping;
        }
        Duty::Wait
    }

    fn next_look(&self, config: &GrpcConfig, now: Instant) -> Duration {
        let left = |since: Instant, span: Duration| span.saturating_sub(now - since);
        let ping = match self.pinged {
            Some(pinged) => left(pinged, config.keepalive_timeout),
            None => left(self.heard, config.keepalive_interval),
        };
        let end = match (self.draining, config.age_max) {
            (Some(draining), _) => left(draining, config.drain_timeout),
            (None, None) => left(self.called, config.idle_timeout),
            (None, Some(age)) => left(self.called, config.idle_timeout).min(left(self.opened, age)),
        };
        ping.min(end).clamp(LOOK_MIN, LOOK_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn config() -> GrpcConfig {
        GrpcConfig {
            keepalive_interval: 10 * SECOND,
            keepalive_timeout: 5 * SECOND,
            idle_timeout: 60 * SECOND,
            drain_timeout: 3 * SECOND,
            ..GrpcConfig::default()
        }
    }

    #[test]
    fn a_silent_client_is_pinged_and_then_dropped() {
        let (start, config) = (Instant::now(), config());
        let mut vigil = Vigil::new(start);
        let quiet = Signs::default();
        assert_eq!(vigil.look(&config, start, quiet), (Duty::Wait, 10 * SECOND));
        assert_eq!(vigil.look(&config, start + 10 * SECOND, quiet), (Duty::Ping, 5 * SECOND));
        let alive = Signs { received: 17, ..quiet };
        assert_eq!(vigil.look(&config, start + 15 * SECOND, alive), (Duty::Wait, 10 * SECOND));
        assert_eq!(vigil.look(&config, start + 25 * SECOND, alive), (Duty::Ping, 5 * SECOND));
        assert_eq!(vigil.look(&config, start + 30 * SECOND, alive).0, Duty::Drop);
    }

    #[test]
    fn an_idle_connection_is_told_to_go_away_and_has_time_to_do_so() {
        let (start, config) = (Instant::now(), config());
        let mut vigil = Vigil::new(start);
        let mut heard = 0;
        let mut signs = |busy| {
            heard += 1;
            Signs { received: heard, calls: 1, busy }
        };
        assert_eq!(vigil.look(&config, start + 59 * SECOND, signs(true)).0, Duty::Wait);
        assert_eq!(vigil.look(&config, start + 118 * SECOND, signs(false)).0, Duty::Wait);
        assert_eq!(vigil.look(&config, start + 119 * SECOND, signs(false)), (Duty::GoAway, 3 * SECOND));
        assert_eq!(vigil.look(&config, start + 121 * SECOND, signs(false)).0, Duty::Wait);
        assert_eq!(vigil.look(&config, start + 122 * SECOND, signs(false)).0, Duty::Drop);
    }
}
