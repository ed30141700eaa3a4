//! `flowmesh replay run`: one consumer of a session, as `stream consume` is one of a group.

use std::time::Duration;

use clap::Args;
use flowmesh_model::limits::REPLAY_ERROR_BYTES_MAX;
use flowmesh_proto::v1;

use super::show::state_word;
use super::{connect, which};
use crate::cli::args::{Server, ValueFormat, duration};
use crate::cli::failure::Failure;
use crate::cli::output::note;
use crate::cli::stream::ConsumeArgs;

/// Arguments of `replay run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The session
    session: String,

    /// Wait for somebody else to start it
    #[arg(long)]
    no_start: bool,

    /// A name for people; else HOST:PID
    #[arg(long, value_name = "NAME")]
    member_name: Option<String>,

    /// Run this for each record instead of writing it, with /bin/sh, as `stream consume --exec` does. If it fails, the
    /// session is in error: records wait until it is resumed
    #[arg(short, long, value_name = "COMMAND")]
    exec: Option<String>,

    /// End after so many records
    #[arg(short = 'n', long, value_name = "N")]
    max: Option<u64>,

    /// How long to look for a server that went away; for ever unless given
    #[arg(long, value_name = "TIME", value_parser = duration)]
    give_up_after: Option<Duration>,

    /// How records are written; value: the value alone, one a line
    #[arg(short, long, default_value = "value", value_name = "FORMAT")]
    output: ValueFormat,

    #[command(flatten)]
    server: Server,
}

impl RunArgs {
    /// Runs it until the session is completed or stopped.
    pub async fn run(self) -> Result<(), Failure> {
        let (session, server) = (self.session.clone(), self.server.clone());
        let mut client = connect(&server).await?;
        let now = client.describe(server.request(which(&session))).await?.into_inner();
        match now.state() {
            v1::ReplayState::Created if !self.no_start => {
                client.start(server.request(which(&session))).await?;
            }
            v1::ReplayState::Active => {}
            state => note(format_args!("flowmesh: {session} is {}", state_word(state))),
        }
        let consume = ConsumeArgs::of_replay(
            self.session,
            self.member_name,
            self.exec,
            self.max,
            self.give_up_after,
            self.output,
            self.server,
        );
        let outcome = consume.run().await;
        if let Err(Failure::Partly { report, .. }) = &outcome {
            let error = shortened(report, REPLAY_ERROR_BYTES_MAX);
            // Whoever looks at the session is told; that may be refused if it is over by now.
            let _ = client.fail(server.request(v1::FailReplayRequest { session, error })).await;
        }
        outcome
    }
}

/// At most so many bytes of it, whole characters.
fn shortened(text: &str, bytes_max: usize) -> String {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_cut_between_characters() {
        assert_eq!(shortened("aéb", 2), "a");
        assert_eq!(shortened("aéb", 3), "aé");
        assert_eq!(shortened("aéb", 9), "aéb");
    }
}
