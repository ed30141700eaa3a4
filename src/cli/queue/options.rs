//! What a job can be given beside its payload, headers, priority, delay and attempts.

use std::time::Duration;

use clap::Args;
use flowmesh::config::value::millis_text;
use flowmesh_proto::v1;
use flowmesh_proto::v1::retry_policy::Backoff;

use crate::cli::args::{duration, millis, moment};

/// Arguments of commands that enqueue jobs, now or later.
#[derive(Args, Clone, Debug)]
pub struct LifeArgs {
    /// Jobs of a group are worked on in order, one at a time unless the queue is set otherwise
    #[arg(short, long)]
    group: Option<String>,

    /// Removed if no worker has it after so long
    #[arg(long, value_name = "TIME", value_parser = duration)]
    ttl: Option<Duration>,

    /// Its own waits between attempts: fixed, linear or exponential; the first; the longest; by how much one may be
    /// shorter. Else as the queue is set
    #[arg(long, value_name = "KIND:FIRST[:MAX[:JITTER%]]", value_parser = backoff)]
    backoff: Option<v1::RetryPolicy>,
}

/// Arguments of commands that enqueue jobs now.
#[derive(Args, Clone, Debug)]
pub struct OptionArgs {
    #[command(flatten)]
    life: LifeArgs,

    /// A key: if a job with it is there already, that one answers; exit 5 if it has another payload
    #[arg(short, long)]
    key: Option<String>,

    /// With --key: it counts for so long; else until its job is done, cancelled or purged
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "key")]
    key_window: Option<Duration>,

    /// Ready at a time (2026-11-21T12:00:00Z, @MS), or in so long (+10m)
    #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "delay")]
    run_at: Option<u64>,

    /// Waits for a job to be done; may be repeated
    #[arg(long, value_name = "JOB")]
    after: Vec<u64>,

    /// Goes on however the jobs it waits for end
    #[arg(long)]
    after_any_end: bool,

    /// The trace that the job is a part of, as of W3C Trace Context
    #[arg(long, value_name = "TEXT")]
    traceparent: Option<String>,

    /// What tracing systems say to each other along with --traceparent
    #[arg(long, value_name = "TEXT", requires = "traceparent")]
    tracestate: Option<String>,
}

impl OptionArgs {
    /// The job with all that was given.
    pub fn put(&self, job: v1::NewJob) -> v1::NewJob {
        v1::NewJob {
            key: self.key.clone().unwrap_or_default(),
            key_window_ms: self.key_window.map_or(0, millis),
            run_at_ms: self.run_at.unwrap_or(0),
            after_jobs: self.after.clone(),
            after_any_end: self.after_any_end,
            traceparent: self.traceparent.clone().unwrap_or_default(),
            tracestate: self.tracestate.clone().unwrap_or_default(),
            ..self.life.put(job)
        }
    }
}

impl LifeArgs {
    /// The job with all that was given.
    pub fn put(&self, job: v1::NewJob) -> v1::NewJob {
        v1::NewJob {
            group: self.group.clone().unwrap_or(job.group),
            ttl_ms: self.ttl.map_or(job.ttl_ms, millis),
            retry: self.backoff.or(job.retry),
            ..job
        }
    }

    /// Whether anything was given.
    pub fn any(&self) -> bool {
        self.group.is_some() || self.ttl.is_some() || self.backoff.is_some()
    }
}

/// The word of a way to grow.
pub fn backoff_word(backoff: Backoff) -> &'static str {
    match backoff {
        Backoff::Exponential => "exponential",
        Backoff::Linear => "linear",
        Backoff::Fixed => "fixed",
    }
}

/// The way to grow of a word.
pub fn backoff_kind(text: &str) -> Option<Backoff> {
    let all = [Backoff::Exponential, Backoff::Linear, Backoff::Fixed];
    all.into_iter().find(|backoff| backoff_word(*backoff) == text)
}

/// Waits between attempts as [`backoff`] reads them.
pub fn backoff_text(retry: &v1::RetryPolicy) -> String {
    let (kind, first, max) =
        (backoff_word(retry.backoff()), millis_text(retry.initial_ms), millis_text(retry.max_ms));
    format!("{kind}:{first}:{max}:{}%", retry.jitter_percent)
}

/// Waits between attempts: `KIND:FIRST`, `KIND:FIRST:MAX` or `KIND:FIRST:MAX:JITTER%`.
pub fn backoff(text: &str) -> Result<v1::RetryPolicy, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let percent = |text: &str| text.strip_suffix('%').unwrap_or(text).parse().ok();
    let read = |kind: &str, first: &str, max: Option<&str>, jitter: Option<&str>| {
        Some(v1::RetryPolicy {
            backoff: backoff_kind(kind)?.into(),
            initial_ms: millis(duration(first).ok()?),
            max_ms: max.map_or(Some(0), |max| duration(max).map(millis).ok())?,
            jitter_percent: jitter.map_or(Some(0), percent)?,
        })
    };
    let policy = match parts.as_slice() {
        [kind, first] => read(kind, first, None, None),
        [kind, first, max] => read(kind, first, Some(max), None),
        [kind, first, max, jitter] => read(kind, first, Some(max), Some(jitter)),
        _ => None,
    };
    policy.ok_or_else(|| {
        "allowed: KIND:FIRST[:MAX[:JITTER%]] with fixed, linear or exponential, such as exponential:1s:5m:20%"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_between_attempts_have_two_to_four_parts() {
        let policy = |backoff: Backoff, initial_ms, max_ms, jitter_percent| v1::RetryPolicy {
            backoff: backoff.into(),
            initial_ms,
            max_ms,
            jitter_percent,
        };
        assert_eq!(backoff("fixed:5s"), Ok(policy(Backoff::Fixed, 5_000, 0, 0)));
        assert_eq!(backoff("linear:500ms:1m"), Ok(policy(Backoff::Linear, 500, 60_000, 0)));
        assert_eq!(backoff("exponential:1s:5m:20%"), Ok(policy(Backoff::Exponential, 1_000, 300_000, 20)));
        assert_eq!(backoff_text(&backoff("exponential:1s:5m:20%").unwrap()), "exponential:1s:5m:20%");
        for bad in ["", "fixed", "slow:1s", "fixed:soon", "fixed:1s:1m:x", "fixed:1s:1m:5%:1"] {
            assert!(backoff(bad).unwrap_err().contains("allowed: KIND"), "{bad}");
        }
    }
}
