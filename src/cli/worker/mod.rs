//! `flowmesh worker`: list and watch, [`show`], stop, forget. What makes a worker of `queue work` is in
//! [`super::queue`].

mod show;

use clap::{Args, Subcommand, ValueEnum};
use flowmesh_proto::v1::{self, worker_client::WorkerClient};
use tonic::Status;
use tonic::transport::Channel;

use super::args::{Format, Output, Server};
use super::connection::client;
use super::failure::Failure;
use super::output::Out;
use super::watch::Watch;
use show::{NAMES, WorkerJson, row, write_details, write_sentence};

/// Commands on workers.
#[derive(Subcommand, Debug)]
pub enum WorkerCommand {
    /// List workers: who is there, who left, who died
    List(ListArgs),
    /// List workers, again and again
    Watch(WatchArgs),
    /// Show a worker: what it runs, since when, and what became of what it ran
    #[command(visible_alias = "describe")]
    Show(ShowArgs),
    /// Tell a worker to end its jobs and go; it learns so with its next heartbeat
    Stop(OneArgs),
    /// Show a worker no more that is dead or has left
    Forget(OneArgs),
}

/// What a worker is doing, as a word of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StateWord {
    /// It says in time that it is there
    Alive,
    /// The same, and it was told to stop
    Stopping,
    /// It said that it goes
    Left,
    /// Nothing was heard of it for its session timeout
    Dead,
}

/// Which workers.
#[derive(Args, Clone, Debug)]
struct Which {
    /// Only workers whose name begins with this; with a / in it, whose full path does
    #[arg(long, default_value = "")]
    prefix: String,
    /// Only those that work on this queue
    #[arg(short, long, default_value = "")]
    queue: String,
    /// Only in this state; may be given several times
    #[arg(long, value_name = "STATE")]
    state: Vec<StateWord>,
}

/// Arguments of `worker list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `worker watch`.
#[derive(Args, Debug)]
pub struct WatchArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    watch: Watch,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `worker show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The worker
    worker: String,
    /// Of each queue, at most so many of the jobs it runs
    #[arg(short = 'n', long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    jobs: u32,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `worker stop` and `worker forget`.
#[derive(Args, Debug)]
pub struct OneArgs {
    /// The worker
    worker: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

impl WorkerCommand {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Self::List(args) => args.run().await,
            Self::Watch(args) => args.run().await,
            Self::Show(args) => args.run().await,
            Self::Stop(args) => args.stop().await,
            Self::Forget(args) => args.forget().await,
        }
    }
}

async fn connect(server: &Server) -> Result<WorkerClient<Channel>, Failure> {
    Ok(client!(worker_client::WorkerClient, server.connect().await?))
}

impl StateWord {
    fn number(self) -> i32 {
        match self {
            Self::Alive => v1::WorkerState::Alive.into(),
            Self::Stopping => v1::WorkerState::Stopping.into(),
            Self::Left => v1::WorkerState::Left.into(),
            Self::Dead => v1::WorkerState::Dead.into(),
        }
    }
}

impl Which {
    /// All of them, page by page.
    async fn all(
        &self,
        client: &mut WorkerClient<Channel>,
        server: &Server,
    ) -> Result<Vec<v1::WorkerInfo>, Status> {
        let (mut workers, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListWorkersRequest {
                prefix: self.prefix.clone(),
                states: self.state.iter().map(|state| state.number()).collect(),
                queue: self.queue.clone(),
                page_size: 1_000,
                page_token,
                with_totals: true,
            };
            let page = client.list(server.request(request)).await?.into_inner();
            workers.extend(page.workers);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(workers);
            }
        }
    }
}

fn write_list(out: &mut Out, format: Format, workers: &[v1::WorkerInfo]) -> Result<(), Failure> {
    match format {
        Format::Json => workers.iter().try_for_each(|worker| out.json(&WorkerJson::from(worker))),
        Format::Table => out.table(&NAMES, workers.iter().map(row).collect()),
    }
}

impl ListArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut client = connect(&self.server).await?;
        let workers = self.which.all(&mut client, &self.server).await?;
        let mut out = Out::new();
        write_list(&mut out, self.output.format, &workers)?;
        out.flush()
    }
}

impl WatchArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut client = connect(&self.server).await?;
        let write = |out: &mut Out, format, workers: &Vec<_>| write_list(out, format, workers);
        self.watch.run(async || self.which.all(&mut client, &self.server).await, write).await
    }
}

impl ShowArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut client = connect(&self.server).await?;
        let request = v1::DescribeWorkerRequest { worker: self.worker, jobs_max: self.jobs };
        let described = client.describe(self.server.request(request)).await?.into_inner();
        write_details(&described, self.output.format)
    }
}

impl OneArgs {
    async fn stop(self) -> Result<(), Failure> {
        let request = v1::StopWorkerRequest { worker: self.worker };
        let worker = connect(&self.server).await?.stop(self.server.request(request)).await?.into_inner();
        write_sentence(&worker, self.output.format, "is told to stop with its next heartbeat")
    }

    async fn forget(self) -> Result<(), Failure> {
        let request = v1::ForgetWorkerRequest { worker: self.worker };
        let worker = connect(&self.server).await?.forget(self.server.request(request)).await?.into_inner();
        write_sentence(&worker, self.output.format, "is forgotten")
    }
}
