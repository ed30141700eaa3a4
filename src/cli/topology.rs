//! `flowmesh topology`: the server, its shards, and who owns what.

use bytes::Bytes;
use clap::Args;
use flowmesh_proto::v1;
use serde::Serialize;

use super::args::{Format, KindWord, Output, Server};
use super::connection::client;
use super::failure::Failure;
use super::output::{Out, time};
use super::resources::durability_text;

/// Arguments of `topology`.
#[derive(Args, Debug)]
pub struct TopologyArgs {
    /// Also say where a resource is: stream, queue or kv …
    #[arg(requires = "name")]
    kind: Option<KindWord>,
    /// … and its name
    name: Option<String>,
    /// Of a stream: this partition
    #[arg(short, long, requires = "name")]
    partition: Option<u32>,
    /// Of a store: this key
    #[arg(short, long, requires = "name")]
    key: Option<String>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

#[derive(Serialize)]
struct TopologyJson<'a> {
    version: &'a str,
    started_at_ms: u64,
    uptime_ms: u64,
    durability: &'a str,
    auto_create: bool,
    shared_address: &'a str,
    answered_by: u32,
    slot_map_version: u64,
    catalog_version: u64,
    shards: Vec<ShardJson<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    places: Vec<PlaceJson>,
}

#[derive(Serialize)]
struct ShardJson<'a> {
    shard: u32,
    address: &'a str,
    slots: u32,
}

/// Where a partition or key is.
#[derive(Serialize)]
pub struct PlaceJson {
    partition: u32,
    slot: u32,
    shard: u32,
}

impl From<&v1::Place> for PlaceJson {
    fn from(place: &v1::Place) -> Self {
        Self { partition: place.partition, slot: place.slot, shard: place.shard }
    }
}

/// The columns of places.
pub const PLACE_COLUMNS: [&str; 3] = ["PARTITION", "SLOT", "SHARD"];

/// The rows of places.
pub fn place_rows(places: &[v1::Place]) -> Vec<Vec<String>> {
    places
        .iter()
        .map(|place| vec![place.partition.to_string(), place.slot.to_string(), place.shard.to_string()])
        .collect()
}

impl TopologyArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut admin = client!(admin_client::AdminClient, self.server.connect().await?);
        let info = admin.server_info(self.server.request(v1::ServerInfoRequest {})).await?.into_inner();
        let request = v1::TopologyRequest {
            name: self.name.clone().unwrap_or_default(),
            kind: self.kind.map_or(v1::Kind::Unspecified, KindWord::kind).into(),
            partition: self.partition,
            key: self.key.as_ref().map(|key| Bytes::copy_from_slice(key.as_bytes())),
            with_slots: false,
        };
        let mut topology = admin.topology(self.server.request(request)).await?.into_inner();
        for shard in &mut topology.shards {
            shard.address = self.server.complete(&shard.address)?;
        }
        topology.shared_address = self.server.complete(&topology.shared_address)?;
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(&json(&info, &topology))?,
            Format::Table => write_table(&mut out, &info, &topology)?,
        }
        out.flush()
    }
}

fn json<'a>(info: &'a v1::ServerInfoResponse, topology: &'a v1::TopologyResponse) -> TopologyJson<'a> {
    let shard =
        |shard: &'a v1::Shard| ShardJson { shard: shard.shard, address: &shard.address, slots: shard.slots };
    TopologyJson {
        version: &info.version,
        started_at_ms: info.started_at_ms,
        uptime_ms: info.uptime_ms,
        durability: durability_text(info.durability()),
        auto_create: info.auto_create,
        shared_address: &topology.shared_address,
        answered_by: topology.answered_by,
        slot_map_version: topology.slot_map_version,
        catalog_version: topology.catalog_version,
        shards: topology.shards.iter().map(shard).collect(),
        places: topology.places.iter().map(PlaceJson::from).collect(),
    }
}

fn write_table(
    out: &mut Out,
    info: &v1::ServerInfoResponse,
    topology: &v1::TopologyResponse,
) -> Result<(), Failure> {
    let line = format!(
        "FlowMesh {} on {}, up since {}, durability {}, auto-create {}",
        info.version,
        topology.shared_address,
        time(info.started_at_ms),
        durability_text(info.durability()),
        if info.auto_create { "on" } else { "off" },
    );
    out.line(line.as_bytes())?;
    let rows = topology.shards.iter().map(|shard| {
        let own = if shard.address.is_empty() { "-" } else { &shard.address };
        vec![shard.shard.to_string(), own.to_owned(), shard.slots.to_string()]
    });
    out.table(&["SHARD", "ADDRESS", "SLOTS"], rows.collect())?;
    out.table(&PLACE_COLUMNS, place_rows(&topology.places))
}
