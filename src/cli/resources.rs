//! `flowmesh resources`: list, describe, create, update, delete.

use clap::{Args, Subcommand};
use flowmesh::config::value;
use flowmesh_model::compression::Codec;
use flowmesh_model::limits;
use flowmesh_proto::v1::{self, settings};
use serde::Serialize;
use serde_json::{Map, Value};

use super::args::{Format, KindWord, Output, Server, Target};
use super::confirm::Confirm;
use super::connection::client;
use super::failure::Failure;
use super::output::{Out, time};
use super::pages::{PAGE_ITEMS, write_all};
use super::queue::{backoff_kind, backoff_word};
use super::topology::{PLACE_COLUMNS, PlaceJson, place_rows};

/// Commands on resources.
#[derive(Subcommand, Debug)]
pub enum ResourcesCommand {
    /// List resources, all pages
    List(ListArgs),
    /// Show one resource, its settings and where it is
    Describe(DescribeArgs),
    /// Create a resource; exit 5 if it exists
    Create(CreateArgs),
    /// Change settings; those not named stay as they are
    Update(UpdateArgs),
    /// Delete a resource with everything in it
    Delete(DeleteArgs),
}

/// Arguments of `resources list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only of this kind
    kind: Option<KindWord>,
    /// Only those whose name or full path starts with this
    #[arg(short, long, default_value = "")]
    prefix: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `resources describe`.
#[derive(Args, Debug)]
pub struct DescribeArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `resources create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    #[command(flatten)]
    target: Target,
    /// Of a stream: how many partitions; they can become more later
    #[arg(short, long, value_name = "N")]
    partitions: Option<u32>,
    /// A setting; may be repeated. See docs/cli.md for those of each kind
    #[arg(short, long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// If it exists, show it as it is instead of failing
    #[arg(long)]
    or_existing: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `resources update`.
#[derive(Args, Debug)]
pub struct UpdateArgs {
    #[command(flatten)]
    target: Target,
    /// Of a stream: more partitions than it has
    #[arg(short, long, value_name = "N")]
    partitions: Option<u32>,
    /// A setting; may be repeated
    #[arg(short, long = "set", value_name = "KEY=VALUE", required_unless_present = "partitions")]
    settings: Vec<String>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `resources delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

#[derive(Serialize)]
struct ResourceJson<'a> {
    kind: &'a str,
    path: &'a str,
    id: u64,
    created_at_ms: u64,
    settings: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    places: Vec<PlaceJson>,
}

impl ResourcesCommand {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Self::List(args) => args.run().await,
            Self::Describe(args) => args.run().await,
            Self::Create(args) => args.run().await,
            Self::Update(args) => args.run().await,
            Self::Delete(args) => args.run().await,
        }
    }
}

const COLUMNS: [&str; 4] = ["KIND", "NAME", "SETTINGS", "CREATED"];

/// The name alone where tenant and namespace are the defaults.
fn short_name(resource: &v1::Resource) -> &str {
    let prefix = format!("default/default/{}/", KindWord::text(resource.kind()));
    resource.path.strip_prefix(&prefix).unwrap_or(&resource.path)
}

fn row(resource: &v1::Resource) -> Vec<String> {
    let settings = settings_map(resource.settings.as_ref());
    let text = |(name, value): (&String, &Value)| match value {
        Value::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    };
    vec![
        KindWord::text(resource.kind()).to_owned(),
        short_name(resource).to_owned(),
        settings.iter().map(text).collect::<Vec<_>>().join(" "),
        time(resource.created_at_ms),
    ]
}

fn json<'a>(resource: &'a v1::Resource, created: Option<bool>, places: &[v1::Place]) -> ResourceJson<'a> {
    ResourceJson {
        kind: KindWord::text(resource.kind()),
        path: &resource.path,
        id: resource.id,
        created_at_ms: resource.created_at_ms,
        settings: settings_map(resource.settings.as_ref()),
        created,
        places: places.iter().map(PlaceJson::from).collect(),
    }
}

fn write_one(
    format: Format,
    resource: Option<v1::Resource>,
    created: Option<bool>,
    places: &[v1::Place],
) -> Result<(), Failure> {
    let resource = resource.unwrap_or_default();
    let mut out = Out::new();
    match format {
        Format::Json => out.json(&json(&resource, created, places))?,
        Format::Table => {
            out.table(&COLUMNS, vec![row(&resource)])?;
            out.table(&PLACE_COLUMNS, place_rows(places))?;
        }
    }
    out.flush()
}

impl ListArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut admin = client!(admin_client::AdminClient, self.server.connect().await?);
        let page = async |page_token| {
            let kind = self.kind.map_or(v1::Kind::Unspecified, KindWord::kind).into();
            let prefix = self.prefix.clone();
            let request = v1::ListResourcesRequest { kind, prefix, page_size: PAGE_ITEMS, page_token };
            let page = admin.list_resources(self.server.request(request)).await?.into_inner();
            Ok((page.resources, page.next_page_token))
        };
        let json = |out: &mut Out, resource: &_| out.json(&json(resource, None, &[]));
        write_all(self.output.format, &COLUMNS, page, json, row).await
    }
}

impl DescribeArgs {
    async fn run(self) -> Result<(), Failure> {
        let (kind, name) = self.target.resolve().map_err(Failure::Usage)?;
        let mut admin = client!(admin_client::AdminClient, self.server.connect().await?);
        let request = v1::DescribeResourceRequest { kind: kind.into(), name };
        let found = admin.describe_resource(self.server.request(request)).await?.into_inner();
        write_one(self.output.format, found.resource, None, &found.places)
    }
}

impl CreateArgs {
    async fn run(self) -> Result<(), Failure> {
        let (kind, name) = self.target.resolve().map_err(Failure::Usage)?;
        let mut pairs = self.settings;
        pairs.extend(self.partitions.map(|n| format!("partitions={n}")));
        let settings = parse_settings(kind, &pairs).map_err(Failure::Usage)?;
        let mut admin = client!(admin_client::AdminClient, self.server.connect().await?);
        let request = v1::CreateResourceRequest {
            kind: kind.into(),
            name,
            settings: Some(settings),
            or_existing: self.or_existing,
        };
        let made = admin.create_resource(self.server.request(request)).await?.into_inner();
        write_one(self.output.format, made.resource, Some(made.created), &[])
    }
}

impl UpdateArgs {
    async fn run(self) -> Result<(), Failure> {
        let (kind, name) = self.target.resolve().map_err(Failure::Usage)?;
        let mut pairs = self.settings;
        pairs.extend(self.partitions.map(|n| format!("partitions={n}")));
        let settings = parse_settings(kind, &pairs).map_err(Failure::Usage)?;
        let mut admin = client!(admin_client::AdminClient, self.server.connect().await?);
        let request = v1::UpdateResourceRequest { kind: kind.into(), name, settings: Some(settings) };
        let changed = admin.update_resource(self.server.request(request)).await?.into_inner();
        write_one(self.output.format, changed.resource, None, &[])
    }
}

impl DeleteArgs {
    async fn run(self) -> Result<(), Failure> {
        let (kind, name) = self.target.resolve().map_err(Failure::Usage)?;
        let question = format!("Delete {} {name} with everything in it?", KindWord::text(kind));
        self.confirm.ask(&question, "not deleted")?;
        let mut admin = client!(admin_client::AdminClient, self.server.connect().await?);
        let request = v1::DeleteResourceRequest { kind: kind.into(), name };
        let deleted = admin.delete_resource(self.server.request(request)).await?.into_inner();
        let resource = deleted.resource.unwrap_or_default();
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(&json(&resource, None, &[]))?,
            Format::Table => out.line(format!("{} is deleted", resource.path).as_bytes())?,
        }
        out.flush()
    }
}

/// The word of a durability.
pub fn durability_text(durability: v1::Durability) -> &'static str {
    match durability {
        v1::Durability::ServerDefault => "server",
        v1::Durability::Always => "always",
        v1::Durability::Interval => "interval",
        v1::Durability::Never => "never",
        v1::Durability::Memory => "memory",
    }
}

/// The settings that are there, by name.
fn settings_map(settings: Option<&v1::Settings>) -> Map<String, Value> {
    let mut map = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            map.insert(name.to_owned(), value);
        }
    };
    let durability = |value: Option<i32>| {
        let value = v1::Durability::try_from(value?).ok().filter(|d| *d != v1::Durability::ServerDefault)?;
        Some(Value::from(durability_text(value)))
    };
    match settings.and_then(|settings| settings.kind.as_ref()) {
        Some(settings::Kind::Stream(s)) => {
            put("partitions", s.partitions.map(Value::from));
            put("retention_ms", s.retention_ms.filter(|ms| *ms > 0).map(Value::from));
            put("retention_bytes", s.retention_bytes.filter(|bytes| *bytes > 0).map(Value::from));
            put("segment_bytes", s.segment_bytes.map(Value::from));
            put("segment_ms", s.segment_ms.map(Value::from));
            put("compression", compression_text(s.compression).map(Value::from));
            put("compaction", s.compaction.map(Value::from));
            let some = |ms: Option<u64>| ms.filter(|ms| *ms > 0).map(Value::from);
            put("tombstone_retention_ms", some(s.tombstone_retention_ms));
            put("min_compaction_lag_ms", some(s.min_compaction_lag_ms));
            put("min_dirty_percent", some(s.min_dirty_percent.map(u64::from)));
            put("producer_retention_ms", s.producer_retention_ms.filter(|ms| *ms > 0).map(Value::from));
            put("feed_of", s.feed_of.clone().map(Value::from));
            put("durability", durability(s.durability));
        }
        Some(settings::Kind::Queue(s)) => {
            let some = |number: Option<u64>| number.filter(|number| *number > 0).map(Value::from);
            let count = |number: Option<u32>| some(number.map(u64::from));
            put("visibility_timeout_ms", s.visibility_timeout_ms.map(Value::from));
            put("max_attempts", s.max_attempts.map(Value::from));
            put("backoff", s.backoff.map(|_| Value::from(backoff_word(s.backoff()))));
            put("backoff_initial_ms", s.backoff_initial_ms.map(Value::from));
            put("backoff_max_ms", s.backoff_max_ms.map(Value::from));
            put("backoff_jitter_percent", count(s.backoff_jitter_percent));
            put("quarantine_after", count(s.quarantine_after));
            put("priority_aging_ms", some(s.priority_aging_ms));
            put("group_concurrency", s.group_concurrency.map(Value::from));
            put("concurrency", count(s.concurrency));
            put("rate", s.rate.and_then(rate_text).map(Value::from));
            put("group_rate", s.group_rate.and_then(rate_text).map(Value::from));
            put("jobs_max", some(s.jobs_max));
            put("bytes_max", some(s.bytes_max));
            put("when_full", s.when_full.map(|_| Value::from(when_full_word(s.when_full()))));
            put("dead_retention_ms", some(s.dead_retention_ms));
            put("done_retention_ms", some(s.done_retention_ms));
            put("result_retention_ms", s.result_retention_ms.map(Value::from));
            put("dead_letters_to", s.dead_letters_to.clone().map(Value::from));
            put("sandbox", s.sandbox.filter(|sandbox| *sandbox).map(Value::from));
            put("durability", durability(s.durability));
        }
        Some(settings::Kind::Kv(s)) => {
            let some = |number: Option<u64>| number.filter(|number| *number > 0).map(Value::from);
            put("default_ttl_ms", some(s.default_ttl_ms));
            put("mode", s.mode.map(|_| Value::from(kv_mode_word(s.mode()))));
            put("bytes_max", some(s.bytes_max));
            put("entries_max", some(s.entries_max));
            if let Some(feed) = &s.feed {
                put("feed", Some(Value::from(feed.stream.clone())));
                put("feed_partitions", Some(feed.partitions).filter(|n| *n > 0).map(Value::from));
                put("feed_old_values", feed.old_values.map(Value::from));
            }
            put("history_ms", s.history_ms.filter(|ms| *ms > 0).map(Value::from));
            put("durability", durability(s.durability));
        }
        Some(settings::Kind::Group(s)) => {
            put("session_timeout_ms", s.session_timeout_ms.map(Value::from));
            put("rebalance_timeout_ms", s.rebalance_timeout_ms.map(Value::from));
            put("assignor", assignor_text(s.assignor()).map(Value::from));
            put("offsets_retention_ms", s.offsets_retention_ms.map(Value::from));
            put("sandbox", s.sandbox.filter(|sandbox| *sandbox).map(Value::from));
            put("durability", durability(s.durability));
        }
        Some(settings::Kind::Replay(s)) => {
            put("partitions", Some(Value::from(s.partitions)));
        }
        None => {}
    }
    map
}

fn assignor_text(assignor: v1::Assignor) -> Option<&'static str> {
    match assignor {
        v1::Assignor::Unspecified => None,
        v1::Assignor::Range => Some("range"),
        v1::Assignor::Uniform => Some("uniform"),
        v1::Assignor::Sticky => Some("sticky"),
    }
}

fn parse_assignor(text: &str) -> Result<v1::Assignor, String> {
    match text {
        "range" => Ok(v1::Assignor::Range),
        "uniform" => Ok(v1::Assignor::Uniform),
        "sticky" => Ok(v1::Assignor::Sticky),
        _ => Err("range, uniform, sticky".to_owned()),
    }
}

/// `PER_SECOND`, or `PER_SECOND:BURST`; `None` if there is none.
fn rate_text(rate: v1::Rate) -> Option<String> {
    match (rate.per_second, rate.burst) {
        (0, _) => None,
        (per_second, 0) => Some(per_second.to_string()),
        (per_second, burst) => Some(format!("{per_second}:{burst}")),
    }
}

fn parse_rate(text: &str) -> Result<v1::Rate, String> {
    let (per_second, burst) = text.split_once(':').unwrap_or((text, "0"));
    let rate = per_second.parse().ok().zip(burst.parse().ok());
    rate.map(|(per_second, burst)| v1::Rate { per_second, burst })
        .ok_or_else(|| "PER_SECOND or PER_SECOND:BURST, such as 100:20; 0 for any".to_owned())
}

fn when_full_word(when_full: v1::WhenFull) -> &'static str {
    match when_full {
        v1::WhenFull::Refuse => "refuse",
        v1::WhenFull::Wait => "wait",
        v1::WhenFull::DropOldest => "drop_oldest",
        v1::WhenFull::DropLowestPriority => "drop_lowest_priority",
    }
}

fn parse_when_full(text: &str) -> Result<v1::WhenFull, String> {
    let all = [
        v1::WhenFull::Refuse,
        v1::WhenFull::Wait,
        v1::WhenFull::DropOldest,
        v1::WhenFull::DropLowestPriority,
    ];
    let named = all.into_iter().find(|when_full| when_full_word(*when_full) == text);
    named.ok_or_else(|| all.map(when_full_word).join(", "))
}

fn kv_mode_word(mode: v1::KvMode) -> &'static str {
    match mode {
        v1::KvMode::Durable => "durable",
        v1::KvMode::Cache => "cache",
    }
}

fn parse_kv_mode(text: &str) -> Result<v1::KvMode, String> {
    let all = [v1::KvMode::Durable, v1::KvMode::Cache];
    let named = all.into_iter().find(|mode| kv_mode_word(*mode) == text);
    named.ok_or_else(|| all.map(kv_mode_word).join(", "))
}

/// `KEY=VALUE` pairs as settings of that kind. Ranges are the server's to check.
fn parse_settings(kind: v1::Kind, pairs: &[String]) -> Result<v1::Settings, String> {
    let (mut stream, mut queue, mut kv) =
        (v1::StreamSettings::default(), v1::QueueSettings::default(), v1::KvSettings::default());
    let mut group = v1::GroupSettings::default();
    for pair in pairs {
        let (key, text) =
            pair.split_once('=').ok_or_else(|| format!("--set `{pair}`; allowed: KEY=VALUE"))?;
        let wrong = |allowed: String| format!("setting {key}: `{text}` is not allowed; allowed: {allowed}");
        let count =
            || value::number(text, 0, u64::from(u32::MAX)).map(|n| u32::try_from(n).ok()).map_err(wrong);
        let time = || value::millis(text, 0, limits::DELAY_MS_MAX).map(Some).map_err(wrong);
        let long = || value::millis(text, 0, limits::RETENTION_MS_MAX).map(Some).map_err(wrong);
        let bytes = || value::bytes(text, 0, limits::RETENTION_BYTES_MAX).map(Some).map_err(wrong);
        let durability = || parse_durability(text).map(|d| Some(d.into())).map_err(wrong);
        match (kind, key) {
            (v1::Kind::Stream, "partitions") => stream.partitions = count()?,
            (v1::Kind::Stream, "retention_ms") => stream.retention_ms = long()?,
            (v1::Kind::Stream, "retention_bytes") => stream.retention_bytes = bytes()?,
            (v1::Kind::Stream, "segment_bytes") => stream.segment_bytes = bytes()?,
            (v1::Kind::Stream, "segment_ms") => stream.segment_ms = long()?,
            (v1::Kind::Stream, "compression") => {
                stream.compression = Some(compression_number(text).map_err(wrong)?);
            }
            (v1::Kind::Stream, "compaction") => {
                stream.compaction = Some(text.parse().map_err(|_| wrong("true, false".to_owned()))?);
            }
            (v1::Kind::Stream, "tombstone_retention_ms") => stream.tombstone_retention_ms = long()?,
            (v1::Kind::Stream, "min_compaction_lag_ms") => stream.min_compaction_lag_ms = long()?,
            (v1::Kind::Stream, "min_dirty_percent") => stream.min_dirty_percent = count()?,
            (v1::Kind::Stream, "producer_retention_ms") => stream.producer_retention_ms = time()?,
            (v1::Kind::Stream, "durability") => stream.durability = durability()?,
            (v1::Kind::Queue, "visibility_timeout_ms") => queue.visibility_timeout_ms = time()?,
            (v1::Kind::Queue, "max_attempts") => queue.max_attempts = count()?,
            (v1::Kind::Queue, "backoff_initial_ms") => queue.backoff_initial_ms = time()?,
            (v1::Kind::Queue, "backoff_max_ms") => queue.backoff_max_ms = time()?,
            (v1::Kind::Queue, "backoff") => {
                let kind =
                    backoff_kind(text).ok_or_else(|| wrong("exponential, linear, fixed".to_owned()))?;
                queue.backoff = Some(kind.into());
            }
            (v1::Kind::Queue, "backoff_jitter_percent") => queue.backoff_jitter_percent = count()?,
            (v1::Kind::Queue, "quarantine_after") => queue.quarantine_after = count()?,
            (v1::Kind::Queue, "priority_aging_ms") => queue.priority_aging_ms = time()?,
            (v1::Kind::Queue, "group_concurrency") => queue.group_concurrency = count()?,
            (v1::Kind::Queue, "concurrency") => queue.concurrency = count()?,
            (v1::Kind::Queue, "rate") => queue.rate = Some(parse_rate(text).map_err(wrong)?),
            (v1::Kind::Queue, "group_rate") => queue.group_rate = Some(parse_rate(text).map_err(wrong)?),
            (v1::Kind::Queue, "jobs_max") => {
                queue.jobs_max = Some(value::number(text, 0, u64::MAX).map_err(wrong)?);
            }
            (v1::Kind::Queue, "bytes_max") => queue.bytes_max = bytes()?,
            (v1::Kind::Queue, "when_full") => {
                queue.when_full = Some(parse_when_full(text).map_err(wrong)?.into());
            }
            (v1::Kind::Queue, "dead_retention_ms") => queue.dead_retention_ms = long()?,
            (v1::Kind::Queue, "done_retention_ms") => queue.done_retention_ms = long()?,
            (v1::Kind::Queue, "result_retention_ms") => queue.result_retention_ms = long()?,
            (v1::Kind::Queue, "dead_letters_to") => queue.dead_letters_to = Some(text.to_owned()),
            (v1::Kind::Queue, "sandbox") => {
                queue.sandbox = Some(text.parse().map_err(|_| wrong("true, false".to_owned()))?);
            }
            (v1::Kind::Queue, "durability") => queue.durability = durability()?,
            (v1::Kind::Kv, "default_ttl_ms") => kv.default_ttl_ms = time()?,
            (v1::Kind::Kv, "mode") => kv.mode = Some(parse_kv_mode(text).map_err(wrong)?.into()),
            (v1::Kind::Kv, "bytes_max") => kv.bytes_max = bytes()?,
            (v1::Kind::Kv, "entries_max") => {
                kv.entries_max = Some(value::number(text, 0, limits::KV_ENTRIES_MAX_MAX).map_err(wrong)?);
            }
            (v1::Kind::Kv, "feed") => text.clone_into(&mut kv.feed.get_or_insert_default().stream),
            (v1::Kind::Kv, "feed_partitions") => {
                kv.feed.get_or_insert_default().partitions = count()?.unwrap_or_default();
            }
            (v1::Kind::Kv, "feed_old_values") => {
                let flag = text.parse().map_err(|_| wrong("true, false".to_owned()))?;
                kv.feed.get_or_insert_default().old_values = Some(flag);
            }
            (v1::Kind::Kv, "history_ms") => kv.history_ms = time()?,
            (v1::Kind::Kv, "durability") => kv.durability = durability()?,
            (v1::Kind::Group, "session_timeout_ms") => group.session_timeout_ms = time()?,
            (v1::Kind::Group, "rebalance_timeout_ms") => group.rebalance_timeout_ms = time()?,
            (v1::Kind::Group, "assignor") => {
                group.assignor = Some(parse_assignor(text).map_err(wrong)?.into());
            }
            (v1::Kind::Group, "offsets_retention_ms") => group.offsets_retention_ms = time()?,
            (v1::Kind::Group, "durability") => group.durability = durability()?,
            _ => {
                return Err(format!(
                    "a {} has no setting `{key}`; allowed: {}",
                    KindWord::text(kind),
                    setting_names(kind)
                ));
            }
        }
    }
    let kind = match kind {
        v1::Kind::Stream => Some(settings::Kind::Stream(stream)),
        v1::Kind::Queue => Some(settings::Kind::Queue(queue)),
        v1::Kind::Kv => Some(settings::Kind::Kv(kv)),
        v1::Kind::Group => Some(settings::Kind::Group(group)),
        v1::Kind::Replay | v1::Kind::Unspecified => None,
    };
    Ok(v1::Settings { kind })
}

/// The word for a codec; `None` if there is none.
fn compression_text(number: Option<i32>) -> Option<&'static str> {
    Some(Codec::of_number(number?)?.as_str())
}

fn compression_number(text: &str) -> Result<i32, String> {
    let codec = Codec::ALL.into_iter().find(|codec| codec.as_str() == text);
    match codec {
        Some(codec) => Ok(codec.number().into()),
        None if text == "none" => Ok(0),
        None => Err("lz4, zstd; or none for as they come".to_owned()),
    }
}

fn parse_durability(text: &str) -> Result<v1::Durability, String> {
    [v1::Durability::ServerDefault, v1::Durability::Always, v1::Durability::Interval, v1::Durability::Never]
        .into_iter()
        .find(|durability| durability_text(*durability) == text)
        .ok_or_else(|| "always, interval, never; or server for the server's".to_owned())
}

fn setting_names(kind: v1::Kind) -> &'static str {
    match kind {
        v1::Kind::Stream => {
            "partitions, retention_ms, retention_bytes, segment_bytes, segment_ms, compaction, \
             tombstone_retention_ms, min_compaction_lag_ms, min_dirty_percent, compression, \
             producer_retention_ms, durability"
        }
        v1::Kind::Queue => {
            "visibility_timeout_ms, max_attempts, backoff, backoff_initial_ms, backoff_max_ms, \
             backoff_jitter_percent, quarantine_after, priority_aging_ms, group_concurrency, concurrency, rate, \
             group_rate, jobs_max, bytes_max, when_full, dead_retention_ms, done_retention_ms, \
             result_retention_ms, dead_letters_to, sandbox, durability"
        }
        v1::Kind::Kv => {
            "default_ttl_ms, mode, bytes_max, entries_max, feed, feed_partitions, feed_old_values, history_ms, \
             durability"
        }
        v1::Kind::Group => {
            "session_timeout_ms, rebalance_timeout_ms, assignor, offsets_retention_ms, durability"
        }
        v1::Kind::Replay => "none: see `flowmesh replay`",
        v1::Kind::Unspecified => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: v1::Kind, pairs: &[&str]) -> Result<Map<String, Value>, String> {
        let pairs: Vec<String> = pairs.iter().map(|pair| (*pair).to_owned()).collect();
        parse_settings(kind, &pairs).map(|settings| settings_map(Some(&settings)))
    }

    #[test]
    fn settings_are_read_by_kind() {
        let queue =
            parse(v1::Kind::Queue, &["visibility_timeout_ms=1m", "max_attempts=5", "durability=never"]);
        assert_eq!(
            Value::Object(queue.unwrap()),
            serde_json::json!({"visibility_timeout_ms": 60_000, "max_attempts": 5, "durability": "never"})
        );
        let pairs = [
            "rate=100:20",
            "group_rate=0",
            "jobs_max=5",
            "bytes_max=1KiB",
            "when_full=drop_oldest",
            "backoff=linear",
        ];
        assert_eq!(
            Value::Object(parse(v1::Kind::Queue, &pairs).unwrap()),
            serde_json::json!({
                "rate": "100:20", "jobs_max": 5, "bytes_max": 1_024, "when_full": "drop_oldest", "backoff": "linear"
            })
        );
        let kv = parse(v1::Kind::Kv, &["feed=changes", "feed_partitions=8", "feed_old_values=true"]).unwrap();
        assert_eq!(
            Value::Object(kv),
            serde_json::json!({"feed": "changes", "feed_partitions": 8, "feed_old_values": true})
        );
        let stream = parse(v1::Kind::Stream, &["partitions=4", "durability=server"]).unwrap();
        assert_eq!(Value::Object(stream), serde_json::json!({"partitions": 4}));
        let pairs = ["compaction=true", "tombstone_retention_ms=1h", "min_dirty_percent=20"];
        assert_eq!(
            Value::Object(parse(v1::Kind::Stream, &pairs).unwrap()),
            serde_json::json!({"compaction": true, "tombstone_retention_ms": 3_600_000, "min_dirty_percent": 20})
        );
    }

    #[test]
    fn a_wrong_setting_is_refused_by_name() {
        for (kind, pair, part) in [
            (
                v1::Kind::Stream,
                "partition=4",
                "a stream has no setting `partition`; allowed: partitions, retention_ms, retention_bytes",
            ),
            (v1::Kind::Kv, "partitions=4", "a kv has no setting `partitions`; allowed: default_ttl_ms"),
            (
                v1::Kind::Stream,
                "compaction=compact",
                "setting compaction: `compact` is not allowed; allowed: true",
            ),
            (v1::Kind::Queue, "max_attempts=x", "setting max_attempts: `x` is not allowed"),
            (v1::Kind::Queue, "backoff_max_ms=1 fortnight", "setting backoff_max_ms"),
            (v1::Kind::Kv, "mode=lru", "setting mode: `lru` is not allowed; allowed: durable, cache"),
            (v1::Kind::Kv, "entries_max=many", "setting entries_max: `many` is not allowed"),
            (v1::Kind::Queue, "rate=fast", "allowed: PER_SECOND or PER_SECOND:BURST"),
            (v1::Kind::Queue, "when_full=drop", "allowed: refuse, wait, drop_oldest, drop_lowest_priority"),
            (v1::Kind::Queue, "backoff=slow", "allowed: exponential, linear, fixed"),
            (v1::Kind::Queue, "durability=memory", "always, interval, never"),
            (v1::Kind::Queue, "durability", "allowed: KEY=VALUE"),
        ] {
            let message = parse(kind, &[pair]).unwrap_err();
            assert!(message.contains(part), "`{part}` is missing from: {message}");
        }
    }
}
