//! `flowmesh stream`: append (through the pipelined [`producer`]), read, consume as a member of a group, status.

mod append;
mod consume;
mod consumer;
mod filter;
mod inspect;
mod producer;
mod read;

use clap::{Args, Subcommand};
use flowmesh_proto::v1;
use serde::Serialize;

use super::args::{Format, Output, Server};
use super::connection::client;
use super::failure::Failure;
use super::output::Out;

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
    /// Show first and next offset and bytes of each partition
    Status(StatusArgs),
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
                    })?;
                }
            }
            Format::Table => {
                let row = |p: &v1::PartitionStatus| {
                    [
                        u64::from(p.partition),
                        p.earliest_offset,
                        p.next_offset,
                        p.next_offset - p.earliest_offset,
                        p.bytes,
                    ]
                    .map(|n| n.to_string())
                    .to_vec()
                };
                let names = ["PARTITION", "EARLIEST", "NEXT", "RECORDS", "BYTES"];
                out.table(&names, partitions.iter().map(row).collect())?;
            }
        }
        out.flush()
    }
}
