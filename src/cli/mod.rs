//! The command line: `flowmesh serve | dev | stream | group | replay | queue | schedule | worker | kv | resources | topology | bench | completions`.
//!
//! [`args`] has what commands share, [`settings`] makes the server's flags out of the table of settings, [`serve`] starts it.
//! The client commands go through [`connection`] (tonic, an implementation of gRPC that is not ours) to [`stream`],
//! [`group`], [`replay`], [`queue`], [`schedule`], [`worker`], [`kv`], [`resources`] and [`topology`]; [`pages`] walks through
//! lists; `bench` hands over to the crate `flowmesh-perf`. They read [`input`] (plain or [`json_lines`]) and write [`output`];
//! what goes wrong is a [`failure`], with its exit code. `docs/cli.md` is the reference.

mod args;
mod base64;
mod confirm;
mod connection;
mod exec;
mod failure;
mod group;
mod input;
mod json_lines;
mod kv;
mod output;
mod pages;
mod queue;
mod replay;
mod resources;
mod schedule;
mod serve;
mod settings;
mod signals;
mod stream;
#[cfg(test)]
mod tests;
mod topology;
mod watch;
mod worker;

use std::future::Future;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use failure::Failure;
use output::{Out, note};

/// Streams, job queues and key-value stores in one durable server
#[derive(Parser, Debug)]
#[command(name = "flowmesh", version, about, max_term_width = 110, subcommand_required = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 not there, 4 not now, 5 condition does \
                        not hold.\nReference: docs/cli.md"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the server
    Serve(serve::ServeArgs),
    /// Run the server for a first try: resources are created by their first write
    Dev(serve::ServeArgs),
    /// Append to and read from streams
    #[command(subcommand)]
    Stream(stream::StreamCommand),
    /// Show and manage consumer groups: members, offsets, lag
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Replay streams: as fast as possible, at their own pace, or record by record
    #[command(subcommand)]
    Replay(replay::ReplayCommand),
    /// Enqueue, work and settle jobs
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// Enqueue jobs by time: cron expressions, or once
    #[command(subcommand)]
    Schedule(schedule::ScheduleCommand),
    /// Show workers and what they run, tell them to stop
    #[command(subcommand)]
    Worker(worker::WorkerCommand),
    /// Set, get and scan keys
    #[command(subcommand)]
    Kv(kv::KvCommand),
    /// Create, list, describe, change and delete streams, queues and stores
    #[command(subcommand, visible_alias = "resource")]
    Resources(resources::ResourcesCommand),
    /// Show the server, its shards, and who owns what
    Topology(topology::TopologyArgs),
    /// Measure a server, this machine, or one against the other
    Bench(flowmesh_perf::cli::Args),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Runs what the command line says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                for line in message.lines() {
                    note(format_args!("flowmesh: {line}"));
                }
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => args.run(flowmesh::config::Mode::Serve),
        Command::Dev(args) => args.run(flowmesh::config::Mode::Dev),
        Command::Stream(command) => client(command.run()),
        Command::Group(command) => client(command.run()),
        Command::Replay(command) => client(command.run()),
        Command::Queue(command) => client(command.run()),
        Command::Schedule(command) => client(command.run()),
        Command::Worker(command) => client(command.run()),
        Command::Kv(command) => client(command.run()),
        Command::Resources(command) => client(command.run()),
        Command::Topology(args) => client(args.run()),
        Command::Bench(args) => flowmesh_perf::run(args).map_err(Failure::Ended),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "flowmesh", &mut script);
            let mut out = Out::new();
            out.raw(&script)?;
            out.flush()
        }
    }
}

/// Runs a client command on this thread.
fn client(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::io("start the client's runtime"))?;
    let outcome = runtime.block_on(command);
    // A thread that still reads standard input must not hold the process up.
    runtime.shutdown_background();
    outcome
}
