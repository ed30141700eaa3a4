//! Sessions as columns and as JSON.

use flowmesh_proto::v1;
use serde::Serialize;

use crate::cli::args::Format;
use crate::cli::failure::Failure;
use crate::cli::group::short_name;
use crate::cli::output::{Out, time};

/// A session as one JSON object.
#[derive(Serialize)]
pub struct SessionJson<'a> {
    path: &'a str,
    state: &'static str,
    since_ms: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
    stream: &'a str,
    group: &'a str,
    /// 0: as fast as possible.
    speed: f64,
    generation: u64,
    members: u32,
    records_total: u64,
    /// How many conditions a record must meet.
    conditions: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<u64>,
    created_at_ms: u64,
    partitions: Vec<PartitionJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shard_error: Option<&'a str>,
}

#[derive(Serialize)]
struct PartitionJson {
    partition: u32,
    from: u64,
    position: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<u64>,
}

impl<'a> From<&'a v1::ReplaySession> for SessionJson<'a> {
    fn from(session: &'a v1::ReplaySession) -> Self {
        let partition = |at: &v1::ReplayPartition| PartitionJson {
            partition: at.partition,
            from: at.from,
            position: at.position,
            until: at.until,
            left: at.left,
        };
        Self {
            path: &session.path,
            state: state_word(session.state()),
            since_ms: session.since_ms,
            error: &session.error,
            stream: &session.stream,
            group: &session.group,
            speed: session.speed,
            generation: session.generation,
            members: session.members,
            records_total: session.records_total,
            conditions: session.filter.as_ref().map_or(0, |filter| filter.conditions.len()),
            left: session.left,
            created_at_ms: session.created_at_ms,
            partitions: session.partitions.iter().map(partition).collect(),
            shard_error: session.shard_error.as_ref().map(|error| error.message.as_str()),
        }
    }
}

/// The word of a state.
pub fn state_word(state: v1::ReplayState) -> &'static str {
    match state {
        v1::ReplayState::Unspecified => "unknown",
        v1::ReplayState::Created => "created",
        v1::ReplayState::Active => "active",
        v1::ReplayState::Paused => "paused",
        v1::ReplayState::Stopped => "stopped",
        v1::ReplayState::Completed => "completed",
        v1::ReplayState::Error => "error",
    }
}

fn speed_text(speed: f64) -> String {
    if speed > 0.0 { format!("{speed}x") } else { "max".to_owned() }
}

fn or_dash(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// A session as a row.
pub fn row(session: &v1::ReplaySession) -> Vec<String> {
    let state = session.shard_error.as_ref().map_or(state_word(session.state()), |error| &error.reason);
    vec![
        short_name("replay", &session.path).to_owned(),
        session.stream.clone(),
        state.to_owned(),
        speed_text(session.speed),
        session.members.to_string(),
        session.records_total.to_string(),
        or_dash(session.left),
    ]
}

/// Writes a session: all of it, or in a sentence.
pub fn write(session: &v1::ReplaySession, format: Format, all: bool) -> Result<(), Failure> {
    let mut out = Out::new();
    match format {
        Format::Json => out.json(&SessionJson::from(session))?,
        Format::Table => {
            let name = short_name("replay", &session.path);
            let left = session.left.map_or_else(String::new, |left| format!(", {left} records left"));
            let (state, speed) = (state_word(session.state()), speed_text(session.speed));
            out.line(format!("{name} is {state}, speed {speed}{left}").as_bytes())?;
            if all {
                write_rest(session, &mut out)?;
            }
        }
    }
    out.flush()
}

fn write_rest(session: &v1::ReplaySession, out: &mut Out) -> Result<(), Failure> {
    if !session.error.is_empty() {
        out.line(format!("error: {}", session.error).as_bytes())?;
    }
    let sandbox = short_name("group", &session.group);
    let (stream, since, members) = (&session.stream, time(session.since_ms), session.members);
    let line = format!("stream {stream}, sandbox {sandbox}, {members} members, since {since}");
    out.line(line.as_bytes())?;
    let conditions = session.filter.as_ref().map_or(0, |filter| filter.conditions.len());
    if conditions > 0 {
        out.line(format!("only records for which {conditions} conditions hold").as_bytes())?;
    }
    let row = |at: &v1::ReplayPartition| {
        let numbers = [at.from, at.position].map(|number| number.to_string());
        let [from, position] = numbers;
        vec![at.partition.to_string(), from, position, or_dash(at.until), or_dash(at.left)]
    };
    let rows = session.partitions.iter().map(row).collect();
    out.table(&["PARTITION", "FROM", "POSITION", "UNTIL", "LEFT"], rows)
}
