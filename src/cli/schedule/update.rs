//! `flowmesh schedule update`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use flowmesh_proto::v1;
use flowmesh_proto::v1::update_schedule_request::Timing;

use super::connect;
use super::create::{Missed, payload};
use super::show::write;
use crate::cli::args::{Output, Server, duration, header, millis, moment};
use crate::cli::failure::Failure;
use crate::cli::queue::LifeArgs;

/// Arguments of `schedule update`.
#[derive(Args, Debug)]
pub struct UpdateArgs {
    /// The queue
    queue: String,

    /// The schedule
    name: String,

    /// The job's payload from now on; - reads standard input
    #[arg(allow_negative_numbers = true, conflicts_with = "file", value_name = "PAYLOAD")]
    payload: Option<String>,

    /// Read the payload from a file; - is standard input
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Whenever this says
    #[arg(long, value_name = "EXPRESSION", conflicts_with = "at")]
    cron: Option<String>,

    /// The time zone of the expression, the new one or the one there is
    #[arg(short = 'z', long, value_name = "ZONE", conflicts_with = "at")]
    time_zone: Option<String>,

    /// Once: at a time (2026-11-21T12:00:00Z, @MS), or in so long (+10m)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<u64>,

    /// Not after a time, or not after so long (+30d)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    end: Option<u64>,

    /// Without an end
    #[arg(long, conflicts_with = "end")]
    no_end: bool,

    /// What becomes of times that nobody was there for, more than a minute late
    #[arg(long, value_name = "POLICY")]
    missed: Option<Missed>,

    /// 0 to 255; higher is sooner
    #[arg(short, long)]
    priority: Option<u8>,

    /// Ready only so long after the schedule fires
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    delay: Option<Duration>,

    /// Deliveries before a job is dead
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,

    /// A header of every job, in place of all there are; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<v1::Header>,

    #[command(flatten)]
    life: LifeArgs,

    #[command(flatten)]
    output: Output,

    #[command(flatten)]
    server: Server,
}

impl UpdateArgs {
    /// Runs it. What is said of the job changes the one there is: that is asked for first.
    pub async fn run(self) -> Result<(), Failure> {
        let mut client = connect(&self.server).await?;
        let job = if self.changes_job() {
            let which = v1::ScheduleRequest { queue: self.queue.clone(), name: self.name.clone() };
            let is = client.describe(self.server.request(which)).await?.into_inner().job;
            Some(self.job(is.unwrap_or_default())?)
        } else {
            None
        };
        let request = v1::UpdateScheduleRequest {
            queue: self.queue,
            name: self.name,
            timing: self.cron.map(Timing::Cron).or(self.at.map(Timing::AtMs)),
            time_zone: self.time_zone.unwrap_or_default(),
            end_ms: self.end.or(self.no_end.then_some(0)),
            missed: self.missed.map_or(0, Missed::number),
            job,
        };
        let schedule = client.update(self.server.request(request)).await?.into_inner();
        write(&schedule, self.output.format, false)
    }

    fn changes_job(&self) -> bool {
        self.payload.is_some()
            || self.file.is_some()
            || self.priority.is_some()
            || self.delay.is_some()
            || self.max_attempts.is_some()
            || !self.headers.is_empty()
            || self.life.any()
    }

    fn job(&self, is: v1::NewJob) -> Result<v1::NewJob, Failure> {
        let payload = payload(self.file.as_deref(), self.payload.as_deref())?;
        Ok(self.life.put(v1::NewJob {
            payload: payload.unwrap_or_else(|| is.payload.clone()),
            priority: self.priority.map_or(is.priority, u32::from),
            headers: if self.headers.is_empty() { is.headers.clone() } else { self.headers.clone() },
            delay_ms: self.delay.map_or(is.delay_ms, millis),
            max_attempts: self.max_attempts.or(is.max_attempts),
            ..is
        }))
    }
}
