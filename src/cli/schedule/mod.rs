//! `flowmesh schedule`: [`create`], [`update`], list, describe, pause, resume, next, run-now, delete; how schedules are
//! [`show`]n.

mod create;
mod show;
mod update;

use clap::{Args, Subcommand};
use flowmesh_proto::v1::{self, schedule_client::ScheduleClient};
use serde::Serialize;
use tonic::transport::Channel;

use super::args::{Format, Output, Server};
use super::confirm::Confirm;
use super::connection::client;
use super::failure::Failure;
use super::output::{Out, time};
use super::pages::{PAGE_ITEMS, write_all};

use show::{NAMES, ScheduleJson, row, write};

/// Commands on schedules.
#[derive(Subcommand, Debug)]
#[command(after_help = "Example: every working day at half past six in the morning, Berlin's time\n  \
                        flowmesh schedule create mail report '{\"kind\":\"daily\"}' --cron '30 6 * * MON-FRI' \
                        --time-zone Europe/Berlin\n\
                        Once, in ten minutes\n  \
                        flowmesh schedule create mail reminder 'call Ada' --at +10m")]
pub enum ScheduleCommand {
    /// Create a schedule: when it fires, and the job it enqueues
    Create(Box<create::CreateArgs>),
    /// Change when it fires, or the job it enqueues; what is not given stays as it is
    Update(Box<update::UpdateArgs>),
    /// List schedules of one queue, or of all
    List(ListArgs),
    /// Show one schedule: what it does, when it fires next, what it has done
    Describe(ActArgs),
    /// Let its times pass
    Pause(ActArgs),
    /// Fire again from the next time on
    Resume(ActArgs),
    /// Show when it fires next
    Next(NextArgs),
    /// Enqueue its job now; its times stay what they are
    #[command(visible_alias = "trigger")]
    RunNow(ActArgs),
    /// Delete a schedule; jobs it has enqueued stay
    Delete(DeleteArgs),
}

/// Arguments of commands that need a schedule and no more.
#[derive(Args, Debug)]
pub struct ActArgs {
    /// The queue
    queue: String,
    /// The schedule
    name: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `schedule list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// The queue; all unless given
    #[arg(default_value = "", hide_default_value = true)]
    queue: String,
    /// Only of queues whose name or full path starts with this
    #[arg(short, long, default_value = "", hide_default_value = true, conflicts_with = "queue")]
    prefix: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `schedule next`.
#[derive(Args, Debug)]
pub struct NextArgs {
    /// The queue
    queue: String,
    /// The schedule
    name: String,
    /// So many times
    #[arg(short = 'n', long, default_value_t = 5, value_name = "N")]
    count: u32,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `schedule delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// The queue
    queue: String,
    /// The schedule
    name: String,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

#[derive(Serialize)]
struct JobJson {
    job_id: u64,
}

#[derive(Serialize)]
struct TimeJson {
    at_ms: u64,
}

impl ScheduleCommand {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Create(args) => args.run().await,
            Self::Update(args) => args.run().await,
            Self::List(args) => args.run().await,
            Self::Describe(args) => args.describe().await,
            Self::Pause(args) => args.pause().await,
            Self::Resume(args) => args.resume().await,
            Self::Next(args) => args.run().await,
            Self::RunNow(args) => args.run_now().await,
            Self::Delete(args) => args.run().await,
        }
    }
}

/// A client of the service.
async fn connect(server: &Server) -> Result<ScheduleClient<Channel>, Failure> {
    Ok(client!(schedule_client::ScheduleClient, server.connect().await?))
}

impl ActArgs {
    fn request(&self) -> tonic::Request<v1::ScheduleRequest> {
        self.server.request(v1::ScheduleRequest { queue: self.queue.clone(), name: self.name.clone() })
    }

    async fn describe(self) -> Result<(), Failure> {
        let schedule = connect(&self.server).await?.describe(self.request()).await?.into_inner();
        write(&schedule, self.output.format, true)
    }

    async fn pause(self) -> Result<(), Failure> {
        let schedule = connect(&self.server).await?.pause(self.request()).await?.into_inner();
        write(&schedule, self.output.format, false)
    }

    async fn resume(self) -> Result<(), Failure> {
        let schedule = connect(&self.server).await?.resume(self.request()).await?.into_inner();
        write(&schedule, self.output.format, false)
    }

    async fn run_now(self) -> Result<(), Failure> {
        let job_id = connect(&self.server).await?.run_now(self.request()).await?.into_inner().job_id;
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(&JobJson { job_id })?,
            Format::Table => out.line(format!("1 job enqueued in {}: {job_id}", self.queue).as_bytes())?,
        }
        out.flush()
    }
}

impl ListArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut client = connect(&self.server).await?;
        let page = async |page_token| {
            let (queue, prefix) = (self.queue.clone(), self.prefix.clone());
            let request = v1::ListSchedulesRequest { queue, prefix, page_size: PAGE_ITEMS, page_token };
            let page = client.list(self.server.request(request)).await?.into_inner();
            Ok((page.schedules, page.next_page_token))
        };
        let json = |out: &mut Out, schedule: &_| out.json(&ScheduleJson::from(schedule));
        write_all(self.output.format, &NAMES, page, json, row).await
    }
}

impl NextArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut client = connect(&self.server).await?;
        let request = v1::NextTimesRequest { queue: self.queue, name: self.name, count: self.count };
        let times = client.next(self.server.request(request)).await?.into_inner().times_ms;
        let mut out = Out::new();
        for at_ms in times {
            match self.output.format {
                Format::Json => out.json(&TimeJson { at_ms })?,
                Format::Table => out.line(time(at_ms).as_bytes())?,
            }
        }
        out.flush()
    }
}

impl DeleteArgs {
    async fn run(self) -> Result<(), Failure> {
        self.confirm.ask(&format!("Delete schedule {} of {}?", self.name, self.queue), "not deleted")?;
        let mut client = connect(&self.server).await?;
        let request = v1::ScheduleRequest { queue: self.queue.clone(), name: self.name.clone() };
        let deleted = client.delete(self.server.request(request)).await?.into_inner().schedule;
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(&ScheduleJson::from(&deleted.unwrap_or_default()))?,
            Format::Table => out.line(format!("{} of {} is deleted", self.name, self.queue).as_bytes())?,
        }
        out.flush()
    }
}
