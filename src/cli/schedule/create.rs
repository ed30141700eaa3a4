//! `flowmesh schedule create`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use flowmesh_model::limits::VALUE_BYTES_MAX;
use flowmesh_proto::v1;
use flowmesh_proto::v1::create_schedule_request::Timing;

use super::connect;
use super::show::{ScheduleJson, sentence};
use crate::cli::args::{Format, Output, Server, duration, header, millis, moment};
use crate::cli::failure::Failure;
use crate::cli::input::Source;
use crate::cli::output::Out;
use crate::cli::queue::LifeArgs;

/// Arguments of `schedule create`.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("timing").required(true).args(["cron", "at"])))]
pub struct CreateArgs {
    /// The queue
    queue: String,

    /// What the schedule is to be called
    name: String,

    /// The job's payload; - reads standard input
    #[arg(allow_negative_numbers = true, conflicts_with = "file", value_name = "PAYLOAD")]
    payload: Option<String>,

    /// Read the payload from a file; - is standard input
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Whenever this says: minute hour day-of-month month day-of-week, with the second before it or not; or @hourly, @daily, …
    #[arg(long, value_name = "EXPRESSION")]
    cron: Option<String>,

    /// The time zone of --cron, such as Europe/Berlin
    #[arg(short = 'z', long, value_name = "ZONE", default_value = "UTC", conflicts_with = "at")]
    time_zone: String,

    /// Once: at a time (2026-11-21T12:00:00Z, @MS), or in so long (+10m)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<u64>,

    /// Not after a time, or not after so long (+30d)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    end: Option<u64>,

    /// What becomes of times that nobody was there for, more than a minute late
    #[arg(long, value_name = "POLICY", default_value = "once")]
    missed: Missed,

    /// Create it paused
    #[arg(long)]
    paused: bool,

    /// 0 to 255; higher is sooner
    #[arg(short, long, default_value_t = 0)]
    priority: u8,

    /// Ready only so long after the schedule fires
    #[arg(short, long, value_name = "TIME", value_parser = duration, default_value = "0")]
    delay: Duration,

    /// Deliveries before a job is dead; else as the queue is set
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,

    /// A header of every job; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<v1::Header>,

    #[command(flatten)]
    life: LifeArgs,

    #[command(flatten)]
    output: Output,

    #[command(flatten)]
    server: Server,
}

/// What becomes of missed times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Missed {
    /// They are left out
    Skip,
    /// The last one fires, for all of them
    Once,
    /// Each fires, at most the last 1000
    All,
}

impl Missed {
    /// As messages have it.
    pub fn number(self) -> i32 {
        match self {
            Self::Skip => v1::MissedPolicy::Skip.into(),
            Self::Once => v1::MissedPolicy::Once.into(),
            Self::All => v1::MissedPolicy::All.into(),
        }
    }
}

/// The payload, if one was given: of a file, of standard input, or the argument itself.
pub fn payload(file: Option<&Path>, argument: Option<&str>) -> Result<Option<Bytes>, Failure> {
    match (file, argument) {
        (Some(path), _) => Source::of_path(path).read_whole(VALUE_BYTES_MAX).map(Some),
        (None, Some("-")) => Source::Stdin.read_whole(VALUE_BYTES_MAX).map(Some),
        (None, payload) => Ok(payload.map(|text| Bytes::copy_from_slice(text.as_bytes()))),
    }
}

impl CreateArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let payload = payload(self.file.as_deref(), self.payload.as_deref())?.unwrap_or_default();
        let job = self.life.put(v1::NewJob {
            payload,
            priority: u32::from(self.priority),
            headers: self.headers,
            delay_ms: millis(self.delay),
            max_attempts: self.max_attempts,
            ..Default::default()
        });
        let request = v1::CreateScheduleRequest {
            queue: self.queue,
            name: self.name,
            timing: self.cron.map(Timing::Cron).or(self.at.map(Timing::AtMs)),
            time_zone: self.time_zone,
            end_ms: self.end,
            missed: self.missed.number(),
            job: Some(job),
            paused: self.paused,
        };
        let mut client = connect(&self.server).await?;
        let created = client.create(self.server.request(request)).await?.into_inner();
        let schedule = created.schedule.unwrap_or_default();
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(&ScheduleJson::from(&schedule))?,
            Format::Table => {
                let existed = if created.created { "" } else { "; it existed already" };
                out.line(format!("{}{existed}", sentence(&schedule)).as_bytes())?;
            }
        }
        out.flush()
    }
}
