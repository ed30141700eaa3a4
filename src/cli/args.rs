//! Arguments that several commands share, and how their text becomes values.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use flowmesh::config::value;
use flowmesh_model::limits;
use flowmesh_proto::v1;

use super::stream::StartAt;

/// Which server, and how patiently.
#[derive(Args, Clone, Debug)]
pub struct Server {
    /// The server: http://HOST:PORT, HOST:PORT or :PORT
    #[arg(short, long, env = "FLOWMESH_ADDR", default_value = DEFAULT_ADDR, value_name = "URL", hide_env_values = true)]
    pub addr: String,

    /// Give up on connecting or on a single call after this long
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
}

/// Where the server of this machine listens by default.
pub const DEFAULT_ADDR: &str = "http://127.0.0.1:50051";

/// How results are written.
#[derive(Args, Clone, Copy, Debug)]
pub struct Output {
    /// How results are written; json: one object a line
    #[arg(short = 'o', long = "output", default_value = "table", value_name = "FORMAT")]
    pub format: Format,
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: columns, or a sentence
    Table,
    /// For programs: one JSON object a line
    Json,
}

/// As [`Format`], for what has a plain value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ValueFormat {
    /// The value alone, as it is
    Value,
    /// For people: columns
    Table,
    /// For programs: one JSON object a line
    Json,
}

/// A span of time: `10s`, `5m`, `1h30m`, `500ms`; a plain number is milliseconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    value::millis(text, 0, limits::DELAY_MS_MAX)
        .map(Duration::from_millis)
        .map_err(|allowed| format!("allowed: {allowed}"))
}

/// A span of time in whole milliseconds, for the API.
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A moment, in ms since the epoch: a time, so long from now, or so long ago.
pub fn moment(text: &str) -> Result<u64, String> {
    let refused = || {
        "allowed: a time (2026-11-21T12:00:00Z, 2026-11-21), @MS, so long from now (+10m) or ago (-10m)"
            .to_owned()
    };
    if let Some(span) = text.strip_prefix('+') {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map(millis).unwrap_or_default();
        return duration(span).map(|span| now + millis(span)).map_err(|_| refused());
    }
    match text.parse() {
        Ok(StartAt::Time(ms)) => Ok(ms),
        _ => Err(refused()),
    }
}

/// A header: `NAME=VALUE`.
pub fn header(text: &str) -> Result<v1::Header, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            Ok(v1::Header { name: name.to_owned(), value: Bytes::copy_from_slice(value.as_bytes()) })
        }
        _ => Err("allowed: NAME=VALUE".to_owned()),
    }
}

/// A lease: `JOB:TOKEN`, as `queue reserve` prints it.
pub fn lease(text: &str) -> Result<v1::Lease, String> {
    let parts = text.split_once(':').and_then(|(job, token)| Some((job.parse().ok()?, token.parse().ok()?)));
    parts
        .map(|(job_id, token)| v1::Lease { job_id, token })
        .ok_or_else(|| "allowed: JOB:TOKEN, as `queue reserve` prints it".to_owned())
}

/// What a resource is, as a word of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindWord {
    /// An append-only sequence of records
    Stream,
    /// Jobs that are leased, worked and acknowledged
    Queue,
    /// Keys with values
    Kv,
    /// A consumer group
    Group,
    /// A replay session
    Replay,
}

impl KindWord {
    /// As the API has it.
    pub fn kind(self) -> v1::Kind {
        match self {
            Self::Stream => v1::Kind::Stream,
            Self::Queue => v1::Kind::Queue,
            Self::Kv => v1::Kind::Kv,
            Self::Group => v1::Kind::Group,
            Self::Replay => v1::Kind::Replay,
        }
    }

    /// The word of a kind of the API.
    pub fn text(kind: v1::Kind) -> &'static str {
        match kind {
            v1::Kind::Stream => "stream",
            v1::Kind::Queue => "queue",
            v1::Kind::Kv => "kv",
            v1::Kind::Group => "group",
            v1::Kind::Replay => "replay",
            v1::Kind::Unspecified => "unknown",
        }
    }
}

/// Which resource: `KIND NAME`, or one full path.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// stream, queue, kv, group or replay; or a full path: TENANT/NAMESPACE/KIND/NAME
    #[arg(value_name = "KIND|PATH")]
    pub kind_or_path: String,

    /// The name, after a kind
    pub name: Option<String>,
}

impl Target {
    /// Kind and name as the API takes them.
    pub fn resolve(&self) -> Result<(v1::Kind, String), String> {
        match &self.name {
            Some(name) => Ok((kind_of(&self.kind_or_path)?, name.clone())),
            None => match self.kind_or_path.split('/').collect::<Vec<_>>().as_slice() {
                [_, _, word, _] => Ok((kind_of(word)?, self.kind_or_path.clone())),
                _ => Err(format!(
                    "`{}` does not say of which kind it is: write KIND NAME, or TENANT/NAMESPACE/KIND/NAME",
                    self.kind_or_path
                )),
            },
        }
    }
}

fn kind_of(word: &str) -> Result<v1::Kind, String> {
    KindWord::from_str(word, false)
        .map(KindWord::kind)
        .map_err(|_| format!("`{word}` is no kind of resource; allowed: stream, queue, kv, group"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_kind_and_a_name_or_a_full_path() {
        let target = |first: &str, name: Option<&str>| {
            Target { kind_or_path: first.to_owned(), name: name.map(str::to_owned) }.resolve()
        };
        assert_eq!(target("stream", Some("logs")), Ok((v1::Kind::Stream, "logs".to_owned())));
        assert_eq!(target("a/b/kv/c", None), Ok((v1::Kind::Kv, "a/b/kv/c".to_owned())));
        assert!(target("logs", None).unwrap_err().contains("does not say of which kind"));
        assert!(target("topic", Some("x")).unwrap_err().contains("`topic` is no kind"));
        assert!(target("a/b/topic/c", None).is_err());
    }

    #[test]
    fn a_moment_is_a_time_or_a_span_from_now() {
        assert_eq!(moment("@17"), Ok(17));
        assert_eq!(moment("1970-01-01T00:00:01Z"), Ok(1_000));
        let now = moment("+0s").unwrap();
        assert!((now + 600_000..now + 660_000).contains(&moment("+10m").unwrap()));
        assert!((now - 600_000..now - 540_000).contains(&moment("-10m").unwrap()));
        for bad in ["", "17", "latest", "+", "+x", "tomorrow"] {
            assert!(moment(bad).unwrap_err().contains("allowed"), "{bad}");
        }
    }

    #[test]
    fn headers_and_leases_have_two_parts() {
        assert_eq!(header("a=b=c").unwrap().value, "b=c");
        assert!(header("=x").is_err() && header("x").is_err());
        assert_eq!(lease("3:17"), Ok(v1::Lease { job_id: 3, token: 17 }));
        assert!(lease("3").is_err() && lease("a:b").is_err());
    }
}
