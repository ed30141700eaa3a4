//! `flowmesh replay create`.

use std::str::FromStr;

use clap::Args;
use flowmesh_proto::v1;
use flowmesh_proto::v1::create_replay_request::{End, Start};

use super::show::write;
use super::{connect, place, speed};
use crate::cli::args::{Output, Server};
use crate::cli::failure::Failure;
use crate::cli::stream::{Filters, StartAt};

/// Arguments of `replay create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// What the session is to be called
    session: String,

    /// The stream
    stream: String,

    /// Only this partition; may be repeated
    #[arg(short, long = "partition", value_name = "N")]
    partitions: Vec<u32>,

    /// Where to start: earliest, an offset, or a time: 2026-11-21T12:00:00Z, -1h, @MS
    #[arg(long, default_value = "earliest", value_name = "WHERE", allow_hyphen_values = true)]
    from: StartAt,

    /// Where to start in one partition; may be repeated
    #[arg(long, value_name = "P:OFFSET", value_parser = place)]
    from_offset: Vec<v1::PartitionOffset>,

    /// Where to end: now, before a time, or never, to go on with what comes
    #[arg(long, default_value = "now", value_name = "WHERE", allow_hyphen_values = true)]
    until: Until,

    /// Where to end in one partition, behind the last record; may be repeated
    #[arg(long, value_name = "P:OFFSET", value_parser = place)]
    until_offset: Vec<v1::PartitionOffset>,

    /// How fast: max, or a factor: 1 as it was, 10 ten times as fast
    #[arg(long, default_value = "max", value_parser = speed)]
    speed: f64,

    #[command(flatten)]
    filters: Filters,

    /// What its sandbox group is to be called; replay.SESSION unless given. There must be no such group
    #[arg(long, default_value = "", hide_default_value = true)]
    group: String,

    #[command(flatten)]
    output: Output,

    #[command(flatten)]
    server: Server,
}

/// Where a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Now,
    Never,
    Time(u64),
}

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("now", _) => Ok(Self::Now),
            ("never", _) => Ok(Self::Never),
            (_, Ok(StartAt::Time(ms))) => Ok(Self::Time(ms)),
            _ => Err(
                "allowed: now, never, or a time (2026-11-21T12:00:00Z, 2026-11-21, -1h, @MS); for offsets \
                      --until-offset"
                    .to_owned(),
            ),
        }
    }
}

impl CreateArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let start = match self.from {
            StartAt::Earliest => Start::Earliest(true),
            StartAt::Offset(offset) => Start::Offset(offset),
            StartAt::Time(ms) => Start::TimestampMs(ms),
            StartAt::Latest => {
                let why = "--from latest: there is nothing to replay from there; allowed: earliest, an offset, a time";
                return Err(Failure::Usage(why.to_owned()));
            }
        };
        let end = match self.until {
            Until::Now => End::Now(true),
            Until::Never => End::Follow(true),
            Until::Time(ms) => End::UntilTimestampMs(ms),
        };
        let mut client = connect(&self.server).await?;
        let request = v1::CreateReplayRequest {
            session: self.session,
            stream: self.stream,
            partitions: self.partitions,
            start: Some(start),
            from: self.from_offset,
            end: Some(end),
            until: self.until_offset,
            speed: self.speed,
            filter: self.filters.message(),
            group: self.group,
        };
        let session = client.create(self.server.request(request)).await?.into_inner();
        write(&session, self.output.format, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_word_or_a_time() {
        assert_eq!("now".parse(), Ok(Until::Now));
        assert_eq!("never".parse(), Ok(Until::Never));
        assert_eq!("@9".parse(), Ok(Until::Time(9)));
        for bad in ["", "latest", "17", "tomorrow"] {
            assert!(bad.parse::<Until>().is_err(), "{bad}");
        }
    }
}
