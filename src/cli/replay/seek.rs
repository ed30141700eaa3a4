//! `flowmesh replay seek`.

use std::str::FromStr;

use clap::Args;
use flowmesh_proto::v1;
use flowmesh_proto::v1::seek_replay_request::All;

use super::show::write;
use super::{connect, place};
use crate::cli::args::{Output, Server};
use crate::cli::failure::Failure;
use crate::cli::stream::StartAt;

/// Arguments of `replay seek`.
#[derive(Args, Debug)]
pub struct SeekArgs {
    /// The session
    session: String,

    /// Where to, in all partitions that --offset does not name: start, end, or a time
    #[arg(long, value_name = "WHERE", allow_hyphen_values = true, required_unless_present = "offset")]
    to: Option<To>,

    /// Where to in one partition; may be repeated
    #[arg(long, value_name = "P:OFFSET", value_parser = place)]
    offset: Vec<v1::PartitionOffset>,

    #[command(flatten)]
    output: Output,

    #[command(flatten)]
    server: Server,
}

/// Where all partitions go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct To(All);

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("start", _) => Ok(Self(All::Start(true))),
            ("end", _) => Ok(Self(All::End(true))),
            (_, Ok(StartAt::Time(ms))) => Ok(Self(All::TimestampMs(ms))),
            _ => Err(
                "allowed: start, end, or a time (2026-11-21T12:00:00Z, 2026-11-21, -1h, @MS); for offsets \
                      --offset"
                    .to_owned(),
            ),
        }
    }
}

impl SeekArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut client = connect(&self.server).await?;
        let all = self.to.map(|To(all)| all);
        let request = v1::SeekReplayRequest { session: self.session, all, to: self.offset };
        let session = client.seek(self.server.request(request)).await?.into_inner();
        write(&session, self.output.format, true)
    }
}
