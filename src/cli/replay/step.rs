//! `flowmesh replay step`: the next records, and what is left.

use clap::Args;
use flowmesh_proto::v1;

use super::connect;
use super::show::state_word;
use crate::cli::args::{Server, ValueFormat};
use crate::cli::failure::Failure;
use crate::cli::output::{Out, note};
use crate::cli::stream::{json_of, row_of};

/// Arguments of `replay step`.
#[derive(Args, Debug)]
pub struct StepArgs {
    /// The session
    session: String,

    /// How many records: 1 to 1000
    #[arg(default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,

    /// How records are written; value: the value alone, one a line
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: ValueFormat,

    #[command(flatten)]
    server: Server,
}

impl StepArgs {
    /// Runs it. What is left is said on standard error.
    pub async fn run(self) -> Result<(), Failure> {
        let mut client = connect(&self.server).await?;
        let request = v1::StepReplayRequest { session: self.session.clone(), count: self.count };
        let step = client.step(self.server.request(request)).await?.into_inner();
        let mut out = Out::new();
        for at in &step.records {
            let record = at.record.clone().unwrap_or_default();
            match self.output {
                ValueFormat::Value => out.line(&record.value)?,
                ValueFormat::Table => {
                    out.line(row_of(at.partition, at.appended_at_ms, at.offset, &record).as_bytes())?;
                }
                ValueFormat::Json => {
                    out.json(&json_of(None, at.partition, at.appended_at_ms, at.offset, &record))?;
                }
            }
        }
        out.flush()?;
        let session = step.session.unwrap_or_default();
        let left =
            session.left.map_or_else(|| "it follows the stream".to_owned(), |left| format!("{left} left"));
        note(format_args!("{}: {}, {left}", self.session, state_word(session.state())));
        Ok(())
    }
}
