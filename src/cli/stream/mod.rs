//! `flowmesh stream`: append (through the pipelined [`producer`]), read, consume as a member of a group, status, offsets
//! and trim. Where something starts is a [`start`].

mod append;
mod compression;
mod consume;
mod consumer;
mod filter;
mod inspect;
mod offsets;
mod producer;
mod read;
mod start;

use clap::{Args, Subcommand};
use flowmesh_proto::v1;
use serde::Serialize;

use super::args::{Format, Output, Server};
use super::connection::client;
use super::failure::Failure;
use super::output::{Out, time};

pub use consume::ConsumeArgs;
pub use filter::Filters;
pub use read::{json_of, row_of};
pub use start::StartAt;

/// Commands on streams.
#[derive(Subcommand, Debug)]
pub enum StreamCommand {
    /// Append records: values, or one record a line of a file or of standard input
    Append(append::AppendArgs),
    /// Read records, one value a line
    Read(read::ReadArgs),
    /// Read records as a member of a consumer group, which shares them among its members
    Consume(consume::ConsumeArgs),
    /// Show the records around an offset with all their parts
    Inspect(inspect::InspectArgs),
    /// Show first and next offset, bytes, segments and times of each partition
    #[command(visible_alias = "describe")]
    Status(StatusArgs),
    /// Show which offset a time is
    Offsets(offsets::OffsetsArgs),
    /// Delete the records before an offset or a time
    Trim(offsets::TrimArgs),
}

/// Arguments of `stream status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// The stream
    stream: String,
    /// Only this partition; may be repeated
    #[arg(short, long = "partition", value_name = "N")]
    partitions: Vec<u32>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

#[derive(Serialize)]
struct PartitionJson {
    partition: u32,
    earliest_offset: u64,
    next_offset: u64,
    bytes: u64,
    segments: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_appended_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    newest_appended_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clean_upto_offset: Option<u64>,
    #[serde(skip_serializing_if = "is_zero")]
    dirty_bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

impl StreamCommand {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Append(args) => args.run().await,
            Self::Read(args) => args.run().await,
            Self::Consume(args) => args.run().await,
            Self::Inspect(args) => args.run().await,
            Self::Status(args) => args.run().await,
            Self::Offsets(args) => args.run().await,
            Self::Trim(args) => args.run().await,
        }
    }
}

impl StatusArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut stream = client!(stream_client::StreamClient, self.server.connect().await?);
        let request = v1::StreamStatusRequest { stream: self.stream, partitions: self.partitions };
        let partitions = stream.status(self.server.request(request)).await?.into_inner().partitions;
        let mut out = Out::new();
        match self.output.format {
            Format::Json => {
                for p in &partitions {
                    out.json(&PartitionJson {
                        partition: p.partition,
                        earliest_offset: p.earliest_offset,
                        next_offset: p.next_offset,
                        bytes: p.bytes,
                        segments: p.segments,
                        oldest_appended_at_ms: p.oldest_appended_at_ms,
                        newest_appended_at_ms: p.newest_appended_at_ms,
                        clean_upto_offset: p.clean_upto_offset,
                        dirty_bytes: p.dirty_bytes,
                    })?;
                }
            }
            Format::Table => {
                let is_compacted = partitions.iter().any(|p| p.clean_upto_offset.is_some());
                let row = |p: &v1::PartitionStatus| {
                    let numbers = [
                        u64::from(p.partition),
                        p.earliest_offset,
                        p.next_offset,
                        p.next_offset - p.earliest_offset,
                        p.bytes,
                        p.segments,
                    ];
                    let times = [p.oldest_appended_at_ms, p.newest_appended_at_ms];
                    let times = times.map(|ms| ms.map_or_else(|| "-".to_owned(), time));
                    let clean =
                        p.clean_upto_offset.map_or_else(|| "-".to_owned(), |offset| offset.to_string());
                    let clean = is_compacted.then_some(clean);
                    numbers.map(|n| n.to_string()).into_iter().chain(times).chain(clean).collect()
                };
                let mut names =
                    vec!["PARTITION", "EARLIEST", "NEXT", "RECORDS", "BYTES", "SEGMENTS", "OLDEST", "NEWEST"];
                names.extend(is_compacted.then_some("CLEAN TO"));
                out.table(&names, partitions.iter().map(row).collect())?;
            }
        }
        out.flush()
    }
}
