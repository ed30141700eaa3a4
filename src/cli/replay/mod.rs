//! `flowmesh replay`: [`create`], start, pause, resume, seek, step, speed, stop, delete; how sessions are [`show`]n; [`run`]
//! consumes one. Sessions are named by their names.

mod create;
mod run;
mod seek;
mod show;
mod step;

use clap::{Args, Subcommand};
use flowmesh_proto::v1::{self, replay_client::ReplayClient};
use serde::Serialize;
use tonic::transport::Channel;

use super::args::{Format, Output, Server};
use super::confirm::Confirm;
use super::connection::client;
use super::failure::Failure;
use super::output::Out;
use super::pages::{PAGE_ITEMS, write_all};

use show::{SessionJson, row, write};

/// Commands on replay sessions.
#[derive(Subcommand, Debug)]
#[command(
    after_help = "Example: what came in the last hour once more, ten times as fast, into a test environment\n  \
                        flowmesh replay create again logs --from -1h --speed 10\n  \
                        flowmesh replay run again --exec 'curl -s --data-binary @- http://localhost:3000/orders'\n\
                        One record after the other\n  \
                        flowmesh replay create look logs --from 1000 && flowmesh replay step look"
)]
pub enum ReplayCommand {
    /// Create a session: a part of a stream, how fast, which records
    Create(create::CreateArgs),
    /// Consume a session as one of its members; starts it if it was not
    Run(run::RunArgs),
    /// Start a session
    Start(ActArgs),
    /// Hold records back, at once
    Pause(ActArgs),
    /// Go on after a pause or an error
    Resume(ActArgs),
    /// Go on elsewhere within the session
    Seek(seek::SeekArgs),
    /// Show the next records, oldest first, and move past them
    Step(step::StepArgs),
    /// Go on faster or slower
    Speed(SpeedArgs),
    /// End a session for good
    Stop(ActArgs),
    /// Show one session: what it is doing, how far it is, what is left
    Describe(ActArgs),
    /// List sessions, all pages
    List(ListArgs),
    /// Delete a session
    Delete(DeleteArgs),
}

/// Arguments of commands that need a session and no more.
#[derive(Args, Debug)]
pub struct ActArgs {
    /// The session
    session: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `replay speed`.
#[derive(Args, Debug)]
pub struct SpeedArgs {
    /// The session
    session: String,
    /// How fast: max, or a factor: 1 as it was, 10 ten times as fast
    #[arg(value_parser = speed)]
    speed: f64,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `replay list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only those whose name or full path starts with this
    #[arg(short, long, default_value = "")]
    prefix: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `replay delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// The session
    session: String,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

#[derive(Serialize)]
struct PathJson<'a> {
    path: &'a str,
}

/// What is done to a session as a whole.
#[derive(Clone, Copy, Debug)]
enum Act {
    Start,
    Pause,
    Resume,
    Stop,
    Describe,
}

impl ReplayCommand {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Create(args) => args.run().await,
            Self::Run(args) => args.run().await,
            Self::Start(args) => args.run(Act::Start).await,
            Self::Pause(args) => args.run(Act::Pause).await,
            Self::Resume(args) => args.run(Act::Resume).await,
            Self::Seek(args) => args.run().await,
            Self::Step(args) => args.run().await,
            Self::Speed(args) => args.run().await,
            Self::Stop(args) => args.run(Act::Stop).await,
            Self::Describe(args) => args.run(Act::Describe).await,
            Self::List(args) => args.run().await,
            Self::Delete(args) => args.run().await,
        }
    }
}

/// A client of the service.
async fn connect(server: &Server) -> Result<ReplayClient<Channel>, Failure> {
    Ok(client!(replay_client::ReplayClient, server.connect().await?))
}

fn which(session: &str) -> v1::ReplayRequest {
    v1::ReplayRequest { session: session.to_owned() }
}

/// A speed: `max`, or a factor.
fn speed(text: &str) -> Result<f64, String> {
    match text {
        "max" => Ok(0.0),
        "realtime" => Ok(1.0),
        factor => {
            let allowed = || "allowed: max, or how many times as fast: 0.001 to 1000000".to_owned();
            let speed: f64 = factor.parse().map_err(|_| allowed())?;
            if (0.001..=1_000_000.0).contains(&speed) { Ok(speed) } else { Err(allowed()) }
        }
    }
}

/// A place: `PARTITION:OFFSET`.
fn place(text: &str) -> Result<v1::PartitionOffset, String> {
    let parts = text.split_once(':').and_then(|(p, offset)| Some((p.parse().ok()?, offset.parse().ok()?)));
    parts
        .map(|(partition, offset)| v1::PartitionOffset { partition, offset })
        .ok_or_else(|| "allowed: PARTITION:OFFSET".to_owned())
}

impl ActArgs {
    async fn run(self, act: Act) -> Result<(), Failure> {
        let mut client = connect(&self.server).await?;
        let request = self.server.request(which(&self.session));
        let session = match act {
            Act::Start => client.start(request).await,
            Act::Pause => client.pause(request).await,
            Act::Resume => client.resume(request).await,
            Act::Stop => client.stop(request).await,
            Act::Describe => client.describe(request).await,
        };
        write(&session?.into_inner(), self.output.format, matches!(act, Act::Describe))
    }
}

impl SpeedArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut client = connect(&self.server).await?;
        let request = v1::SetReplaySpeedRequest { session: self.session, speed: self.speed };
        let session = client.set_speed(self.server.request(request)).await?.into_inner();
        write(&session, self.output.format, false)
    }
}

impl ListArgs {
    async fn run(self) -> Result<(), Failure> {
        const COLUMNS: [&str; 7] = ["SESSION", "STREAM", "STATE", "SPEED", "MEMBERS", "RECORDS", "LEFT"];
        let mut client = connect(&self.server).await?;
        let page = async |page_token| {
            let prefix = self.prefix.clone();
            let request = v1::ListReplaysRequest { prefix, page_size: PAGE_ITEMS, page_token };
            let page = client.list(self.server.request(request)).await?.into_inner();
            Ok((page.sessions, page.next_page_token))
        };
        let json = |out: &mut Out, session: &_| out.json(&SessionJson::from(session));
        write_all(self.output.format, &COLUMNS, page, json, row).await
    }
}

impl DeleteArgs {
    async fn run(self) -> Result<(), Failure> {
        self.confirm.ask(&format!("Delete replay session {}?", self.session), "not deleted")?;
        let mut client = connect(&self.server).await?;
        let deleted = client.delete(self.server.request(which(&self.session))).await?.into_inner();
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(&PathJson { path: &deleted.path })?,
            Format::Table => out.line(format!("{} is deleted", deleted.path).as_bytes())?,
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_max_or_a_factor() {
        for (text, factor) in [("max", 0.0), ("realtime", 1.0), ("0.5", 0.5), ("1000000", 1e6)] {
            assert!((speed(text).unwrap() - factor).abs() < f64::EPSILON);
        }
        for bad in ["", "fast", "0", "-1", "1e7", "nan", "inf", "1x"] {
            assert!(speed(bad).unwrap_err().contains("allowed"), "{bad}");
        }
    }

    #[test]
    fn a_place_is_a_partition_and_an_offset() {
        assert_eq!(place("3:40"), Ok(v1::PartitionOffset { partition: 3, offset: 40 }));
        for bad in ["", "3", "3:", ":4", "a:b", "3:-1"] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
