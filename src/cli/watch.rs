//! The same answer again and again, for who looks on: `group watch`, `queue watch`, `worker watch`.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use clap::Args;
use tonic::Status;

use super::args::{Format, Output, duration};
use super::connection::Backoff;
use super::failure::{Failure, Refusal};
use super::output::Out;

/// How often, until when, and how.
#[derive(Args, Debug)]
pub struct Watch {
    /// How often
    #[arg(short, long, default_value = "2s", value_name = "TIME", value_parser = duration)]
    every: Duration,
    /// End after so many rounds
    #[arg(short = 'n', long, value_name = "N")]
    rounds: Option<u64>,
    #[command(flatten)]
    output: Output,
}

impl Watch {
    /// Asks and writes, round after round; waits for a server that is away.
    pub async fn run<T>(
        &self,
        mut ask: impl AsyncFnMut() -> Result<T, Status>,
        write: impl Fn(&mut Out, Format, &T) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut backoff = Backoff::new(None);
        let mut rounds = self.rounds.unwrap_or(u64::MAX);
        while rounds > 0 {
            match ask().await {
                Ok(answer) => {
                    backoff.succeeded();
                    let mut out = Out::new();
                    if self.output.format == Format::Table && stdout().is_terminal() {
                        // Home, and everything below cleared: the table stays in its place.
                        out.raw(b"\x1b[H\x1b[J")?;
                    }
                    write(&mut out, self.output.format, &answer)?;
                    out.flush()?;
                    rounds -= 1;
                }
                Err(status) => backoff.wait(Refusal::of_status(&status)).await?,
            }
            if rounds > 0 {
                tokio::time::sleep(self.every).await;
            }
        }
        Ok(())
    }
}
