//! Settings and resources between the API's messages and the model.

use flowmesh_model::compression::Codec;
use flowmesh_model::job::Backoff;
use flowmesh_model::settings::{Rate, WhenFull};
use flowmesh_model::transfer::target_path;
use flowmesh_model::{
    Assignor, Durability, FeedSettings, GroupSettings, Kind, KvMode, KvSettings, QueueSettings, Reject,
    ResourceInfo, ResourcePath, Settings, StreamSettings,
};
use flowmesh_proto::v1;
use flowmesh_proto::v1::settings::Kind as Message;

/// A resource as a message.
pub fn resource(info: &ResourceInfo) -> v1::Resource {
    v1::Resource {
        kind: kind_number(info.path.kind()),
        path: info.path.to_string(),
        id: info.id.get(),
        created_at_ms: info.created_at.get(),
        settings: Some(to_message(&info.settings)),
    }
}

/// A kind as a message has it.
pub fn kind_number(kind: Kind) -> i32 {
    match kind {
        Kind::Stream => v1::Kind::Stream.into(),
        Kind::Queue => v1::Kind::Queue.into(),
        Kind::Kv => v1::Kind::Kv.into(),
        Kind::Group => v1::Kind::Group.into(),
        Kind::Replay => v1::Kind::Replay.into(),
    }
}

/// The kind a message gives, `None` if it gives none.
pub fn kind_of(number: i32) -> Result<Option<Kind>, Reject> {
    match v1::Kind::try_from(number) {
        Ok(v1::Kind::Unspecified) => Ok(None),
        Ok(v1::Kind::Stream) => Ok(Some(Kind::Stream)),
        Ok(v1::Kind::Queue) => Ok(Some(Kind::Queue)),
        Ok(v1::Kind::Kv) => Ok(Some(Kind::Kv)),
        Ok(v1::Kind::Group) => Ok(Some(Kind::Group)),
        Ok(v1::Kind::Replay) => Ok(Some(Kind::Replay)),
        Err(_) => Err(Reject::invalid(
            "kind",
            format!("{number} is no kind; use stream, queue, kv, group or replay"),
        )),
    }
}

/// The path of a resource whose kind is given, follows from its settings, or is in its name.
pub fn path_of(kind: i32, name: &str, settings: Option<&v1::Settings>) -> Result<ResourcePath, Reject> {
    let by_settings = settings.and_then(|settings| settings.kind.as_ref()).map(|settings| match settings {
        Message::Stream(_) => Kind::Stream,
        Message::Queue(_) => Kind::Queue,
        Message::Kv(_) => Kind::Kv,
        Message::Group(_) => Kind::Group,
        Message::Replay(_) => Kind::Replay,
    });
    let by_name = || name.split('/').nth(2).filter(|_| name.split('/').count() == 4).and_then(Kind::parse);
    let kind = kind_of(kind)?.or(by_settings).or_else(by_name).ok_or_else(|| {
        Reject::invalid("kind", "is missing; set it, or name the resource by its full path")
    })?;
    if let Some(actual) = by_settings.filter(|&of| of != kind) {
        return Err(Reject::invalid("settings", format!("are of a {actual}; this is a {kind}")));
    }
    ResourcePath::parse(kind, name)
}

/// Changes `base` by what the message gives.
pub fn merged(base: Settings, message: Option<v1::Settings>) -> Result<Settings, Reject> {
    let changes = message.and_then(|settings| settings.kind);
    match (base, changes) {
        (base, None) => Ok(base),
        (Settings::Stream(base), Some(Message::Stream(changes))) => Ok(Settings::Stream(StreamSettings {
            partitions: changes.partitions.unwrap_or(base.partitions),
            producer_retention_ms: changed(changes.producer_retention_ms, base.producer_retention_ms),
            retention_ms: changed(changes.retention_ms, base.retention_ms),
            retention_bytes: changed(changes.retention_bytes, base.retention_bytes),
            segment_bytes: changes.segment_bytes.unwrap_or(base.segment_bytes),
            segment_ms: changes.segment_ms.unwrap_or(base.segment_ms),
            compression: compression(changes.compression, base.compression)?,
            compaction: changes.compaction.unwrap_or(base.compaction),
            tombstone_retention_ms: changed(changes.tombstone_retention_ms, base.tombstone_retention_ms),
            min_compaction_lag_ms: changed(changes.min_compaction_lag_ms, base.min_compaction_lag_ms),
            min_dirty_percent: changed(changes.min_dirty_percent, base.min_dirty_percent),
            feed_of: changes.feed_of.or(base.feed_of),
            durability: durability(changes.durability, base.durability)?,
        })),
        (Settings::Queue(base), Some(Message::Queue(changes))) => Ok(Settings::Queue(QueueSettings {
            visibility_timeout_ms: changes.visibility_timeout_ms.unwrap_or(base.visibility_timeout_ms),
            max_attempts: changes.max_attempts.unwrap_or(base.max_attempts),
            backoff_initial_ms: changes.backoff_initial_ms.unwrap_or(base.backoff_initial_ms),
            backoff_max_ms: changes.backoff_max_ms.unwrap_or(base.backoff_max_ms),
            backoff: changes.backoff.map_or(Ok(base.backoff), backoff)?,
            backoff_jitter_percent: changes
                .backoff_jitter_percent
                .map_or(base.backoff_jitter_percent, |percent| u8::try_from(percent).unwrap_or(u8::MAX)),
            quarantine_after: changed(changes.quarantine_after, base.quarantine_after),
            priority_aging_ms: changed(changes.priority_aging_ms, base.priority_aging_ms),
            group_concurrency: changes.group_concurrency.unwrap_or(base.group_concurrency),
            concurrency: changed(changes.concurrency, base.concurrency),
            rate: changes.rate.map_or(base.rate, rate),
            group_rate: changes.group_rate.map_or(base.group_rate, rate),
            jobs_max: changed(changes.jobs_max, base.jobs_max),
            bytes_max: changed(changes.bytes_max, base.bytes_max),
            when_full: changes.when_full.map_or(Ok(base.when_full), when_full)?,
            dead_retention_ms: changed(changes.dead_retention_ms, base.dead_retention_ms),
            done_retention_ms: changed(changes.done_retention_ms, base.done_retention_ms),
            result_retention_ms: changes.result_retention_ms.unwrap_or(base.result_retention_ms),
            dead_letters_to: dead_letters_to(changes.dead_letters_to, base.dead_letters_to)?,
            sandbox: changes.sandbox.unwrap_or(base.sandbox),
            durability: durability(changes.durability, base.durability)?,
        })),
        (Settings::Kv(base), Some(Message::Kv(changes))) => Ok(Settings::Kv(KvSettings {
            default_ttl_ms: match changes.default_ttl_ms {
                None => base.default_ttl_ms,
                Some(0) => None,
                ttl => ttl,
            },
            mode: changes.mode.map_or(Ok(base.mode), kv_mode)?,
            bytes_max: changed(changes.bytes_max, base.bytes_max),
            entries_max: changed(changes.entries_max, base.entries_max),
            feed: feed(changes.feed, base.feed)?,
            history_ms: changed(changes.history_ms, base.history_ms),
            durability: durability(changes.durability, base.durability)?,
        })),
        (Settings::Group(base), Some(Message::Group(changes))) => Ok(Settings::Group(GroupSettings {
            session_timeout_ms: changes.session_timeout_ms.unwrap_or(base.session_timeout_ms),
            rebalance_timeout_ms: changes.rebalance_timeout_ms.unwrap_or(base.rebalance_timeout_ms),
            assignor: assignor(changes.assignor, base.assignor)?,
            offsets_retention_ms: changes.offsets_retention_ms.unwrap_or(base.offsets_retention_ms),
            sandbox: changes.sandbox.unwrap_or(base.sandbox),
            durability: durability(changes.durability, base.durability)?,
        })),
        (Settings::Replay(_), Some(Message::Replay(_))) => {
            Err(Reject::invalid("settings", "of a replay session are fixed; it has calls of its own"))
        }
        (base, Some(_)) => {
            Err(Reject::invalid("settings", format!("are of another kind; this is a {}", base.kind())))
        }
    }
}

/// The feed of a store: what is not given stays, and the catalog chooses how many partitions a new one has.
fn feed(
    change: Option<v1::FeedSettings>,
    base: Option<FeedSettings>,
) -> Result<Option<FeedSettings>, Reject> {
    let Some(change) = change else { return Ok(base) };
    let stream = match &base {
        Some(base) if change.stream.is_empty() => base.stream.clone(),
        None if change.stream.is_empty() => {
            return Err(Reject::invalid(
                "feed.stream",
                "is empty; name the stream that is to have the changes",
            ));
        }
        _ => ResourcePath::parse(Kind::Stream, &change.stream)?.to_string(),
    };
    let partitions = match (&base, change.partitions) {
        (Some(base), 0) => base.partitions,
        (_, partitions) => partitions,
    };
    let old_values = change.old_values.unwrap_or_else(|| base.is_some_and(|base| base.old_values));
    Ok(Some(FeedSettings { stream, partitions, old_values, late: false }))
}

/// A setting that may be absent: 0 takes it back.
fn changed<T: Default + PartialEq>(change: Option<T>, base: Option<T>) -> Option<T> {
    change.map_or(base, |value| Some(value).filter(|value| *value != T::default()))
}

/// Where dead letters go, by its full path; nothing takes it back.
fn dead_letters_to(change: Option<String>, base: Option<String>) -> Result<Option<String>, Reject> {
    match change {
        None => Ok(base),
        Some(none) if none.is_empty() => Ok(None),
        Some(name) => Ok(Some(target_path(&name)?.to_string())),
    }
}

fn compression(number: Option<i32>, base: Option<Codec>) -> Result<Option<Codec>, Reject> {
    match number {
        None => Ok(base),
        Some(0) => Ok(None),
        Some(number) => match Codec::of_number(number) {
            Some(codec) => Ok(Some(codec)),
            None => Err(Reject::invalid("compression", format!("{number} is none; use none, lz4 or zstd"))),
        },
    }
}

fn durability(number: Option<i32>, base: Option<Durability>) -> Result<Option<Durability>, Reject> {
    let Some(number) = number else { return Ok(base) };
    match v1::Durability::try_from(number) {
        Ok(v1::Durability::ServerDefault) => Ok(None),
        Ok(v1::Durability::Always) => Ok(Some(Durability::Always)),
        Ok(v1::Durability::Interval) => Ok(Some(Durability::Interval)),
        Ok(v1::Durability::Never) => Ok(Some(Durability::Never)),
        Ok(v1::Durability::Memory) => Ok(Some(Durability::Memory)),
        Err(_) => {
            Err(Reject::invalid("durability", format!("{number} is none; use always, interval or never")))
        }
    }
}

/// How waits grow, as a message has it.
pub fn backoff(number: i32) -> Result<Backoff, Reject> {
    use v1::retry_policy::Backoff as Number;
    match Number::try_from(number) {
        Ok(Number::Exponential) => Ok(Backoff::Exponential),
        Ok(Number::Linear) => Ok(Backoff::Linear),
        Ok(Number::Fixed) => Ok(Backoff::Fixed),
        Err(_) => {
            Err(Reject::invalid("backoff", format!("{number} is none; use exponential, linear or fixed")))
        }
    }
}

/// A growth of waits as a message has it.
pub fn backoff_number(backoff: Backoff) -> i32 {
    use v1::retry_policy::Backoff as Number;
    match backoff {
        Backoff::Exponential => Number::Exponential.into(),
        Backoff::Linear => Number::Linear.into(),
        Backoff::Fixed => Number::Fixed.into(),
    }
}

/// 0 a second takes a rate back.
fn rate(v1::Rate { per_second, burst }: v1::Rate) -> Option<Rate> {
    (per_second > 0).then(|| Rate { per_second, burst: Some(burst).filter(|burst| *burst > 0) })
}

fn rate_message(rate: Rate) -> v1::Rate {
    v1::Rate { per_second: rate.per_second, burst: rate.burst.unwrap_or(0) }
}

fn when_full(number: i32) -> Result<WhenFull, Reject> {
    let known = usize::try_from(number).ok().and_then(|number| WhenFull::ALL.get(number));
    let words = "use refuse, wait, drop_oldest or drop_lowest_priority";
    known.copied().ok_or_else(|| Reject::invalid("when_full", format!("{number} is none; {words}")))
}

fn kv_mode(number: i32) -> Result<KvMode, Reject> {
    let known = usize::try_from(number).ok().and_then(|number| KvMode::ALL.get(number));
    known.copied().ok_or_else(|| Reject::invalid("mode", format!("{number} is none; use durable or cache")))
}

fn assignor(number: Option<i32>, base: Assignor) -> Result<Assignor, Reject> {
    let Some(number) = number else { return Ok(base) };
    match v1::Assignor::try_from(number) {
        Ok(v1::Assignor::Unspecified) => Ok(Assignor::default()),
        Ok(v1::Assignor::Range) => Ok(Assignor::Range),
        Ok(v1::Assignor::Uniform) => Ok(Assignor::Uniform),
        Ok(v1::Assignor::Sticky) => Ok(Assignor::Sticky),
        Err(_) => Err(Reject::invalid("assignor", format!("{number} is none; use range, uniform or sticky"))),
    }
}

fn assignor_number(assignor: Assignor) -> i32 {
    match assignor {
        Assignor::Range => v1::Assignor::Range.into(),
        Assignor::Uniform => v1::Assignor::Uniform.into(),
        Assignor::Sticky => v1::Assignor::Sticky.into(),
    }
}

/// A durability as a message has it.
pub fn durability_number(durability: Durability) -> i32 {
    match durability {
        Durability::Always => v1::Durability::Always.into(),
        Durability::Interval => v1::Durability::Interval.into(),
        Durability::Never => v1::Durability::Never.into(),
        Durability::Memory => v1::Durability::Memory.into(),
    }
}

fn to_message(settings: &Settings) -> v1::Settings {
    let durability = settings.durability().map(durability_number);
    let kind = match settings {
        Settings::Stream(stream) => Message::Stream(v1::StreamSettings {
            partitions: Some(stream.partitions),
            producer_retention_ms: stream.producer_retention_ms,
            retention_ms: stream.retention_ms,
            retention_bytes: stream.retention_bytes,
            segment_bytes: Some(stream.segment_bytes),
            segment_ms: Some(stream.segment_ms),
            compression: stream.compression.map(|codec| codec.number().into()),
            compaction: Some(stream.compaction),
            tombstone_retention_ms: stream.tombstone_retention_ms,
            min_compaction_lag_ms: stream.min_compaction_lag_ms,
            min_dirty_percent: stream.min_dirty_percent,
            feed_of: stream.feed_of.clone(),
            durability,
        }),
        Settings::Queue(queue) => Message::Queue(v1::QueueSettings {
            visibility_timeout_ms: Some(queue.visibility_timeout_ms),
            max_attempts: Some(queue.max_attempts),
            backoff_initial_ms: Some(queue.backoff_initial_ms),
            backoff_max_ms: Some(queue.backoff_max_ms),
            backoff: Some(backoff_number(queue.backoff)),
            backoff_jitter_percent: Some(queue.backoff_jitter_percent.into()),
            quarantine_after: queue.quarantine_after,
            priority_aging_ms: queue.priority_aging_ms,
            group_concurrency: Some(queue.group_concurrency),
            concurrency: queue.concurrency,
            rate: queue.rate.map(rate_message),
            group_rate: queue.group_rate.map(rate_message),
            jobs_max: queue.jobs_max,
            bytes_max: queue.bytes_max,
            when_full: Some(queue.when_full as i32),
            dead_retention_ms: queue.dead_retention_ms,
            done_retention_ms: queue.done_retention_ms,
            result_retention_ms: Some(queue.result_retention_ms),
            dead_letters_to: queue.dead_letters_to.clone(),
            sandbox: Some(queue.sandbox),
            durability,
        }),
        Settings::Kv(kv) => Message::Kv(v1::KvSettings {
            default_ttl_ms: kv.default_ttl_ms,
            mode: Some(kv.mode as i32),
            bytes_max: kv.bytes_max,
            entries_max: kv.entries_max,
            durability,
            feed: kv.feed.as_ref().map(|feed| v1::FeedSettings {
                stream: feed.stream.clone(),
                partitions: feed.partitions,
                old_values: Some(feed.old_values),
            }),
            history_ms: kv.history_ms,
        }),
        Settings::Group(group) => Message::Group(v1::GroupSettings {
            session_timeout_ms: Some(group.session_timeout_ms),
            rebalance_timeout_ms: Some(group.rebalance_timeout_ms),
            assignor: Some(assignor_number(group.assignor)),
            offsets_retention_ms: Some(group.offsets_retention_ms),
            sandbox: Some(group.sandbox),
            durability,
        }),
        Settings::Replay(replay) => {
            Message::Replay(v1::ReplaySettings { partitions: replay.partitions.len() as u32 })
        }
    };
    v1::Settings { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays() {
        let base = Settings::Queue(QueueSettings { max_attempts: 7, ..Default::default() });
        let changes = v1::QueueSettings { backoff_max_ms: Some(5), ..Default::default() };
        let changes = v1::Settings { kind: Some(Message::Queue(changes)) };
        let Settings::Queue(merged) = merged(base, Some(changes)).unwrap() else { panic!() };
        assert_eq!((merged.max_attempts, merged.backoff_max_ms), (7, 5));
    }

    #[test]
    fn retention_can_be_set_changed_and_taken_back() {
        let merge = |base: StreamSettings, changes| {
            let changes = v1::Settings { kind: Some(Message::Stream(changes)) };
            match merged(Settings::Stream(base), Some(changes)).unwrap() {
                Settings::Stream(merged) => merged,
                other => panic!("{other:?}"),
            }
        };
        let changes = v1::StreamSettings {
            retention_ms: Some(5_000),
            retention_bytes: Some(9),
            segment_bytes: Some(100_000),
            segment_ms: Some(60_000),
            ..v1::StreamSettings::default()
        };
        let set = merge(StreamSettings::default(), changes);
        assert_eq!((set.retention_ms, set.retention_bytes), (Some(5_000), Some(9)));
        assert_eq!((set.segment_bytes, set.segment_ms), (100_000, 60_000));
        let changes = v1::StreamSettings { retention_ms: Some(0), ..v1::StreamSettings::default() };
        let back = merge(set.clone(), changes);
        assert_eq!(back, StreamSettings { retention_ms: None, ..set.clone() });
        let out = to_message(&Settings::Stream(set.clone()));
        assert_eq!(
            merged(Settings::Stream(StreamSettings::default()), Some(out)).unwrap(),
            Settings::Stream(set)
        );
    }

    #[test]
    fn overrides_can_be_taken_back() {
        let base = KvSettings {
            default_ttl_ms: Some(9),
            mode: KvMode::Cache,
            bytes_max: Some(1 << 20),
            entries_max: Some(9),
            durability: Some(Durability::Never),
            ..KvSettings::default()
        };
        let changes = v1::KvSettings {
            default_ttl_ms: Some(0),
            mode: Some(0),
            bytes_max: Some(0),
            entries_max: Some(0),
            durability: Some(0),
            ..v1::KvSettings::default()
        };
        let changes = v1::Settings { kind: Some(Message::Kv(changes)) };
        assert_eq!(merged(Settings::Kv(base), Some(changes)).unwrap(), Settings::Kv(KvSettings::default()));
    }

    #[test]
    fn what_is_not_given_of_a_feed_stays() {
        let merge = |base: Option<FeedSettings>, stream: &str, partitions, old_values| {
            let feed = Some(v1::FeedSettings { stream: stream.to_owned(), partitions, old_values });
            let changes = v1::KvSettings { feed, ..v1::KvSettings::default() };
            let base = Settings::Kv(KvSettings { feed: base, ..KvSettings::default() });
            let changes = v1::Settings { kind: Some(Message::Kv(changes)) };
            merged(base, Some(changes)).map(|merged| match merged {
                Settings::Kv(kv) => kv.feed,
                other => panic!("{other:?}"),
            })
        };
        let full = "default/default/stream/f".to_owned();
        let new = merge(None, "f", 0, None).unwrap();
        assert_eq!(new, Some(FeedSettings { stream: full.clone(), ..FeedSettings::default() }));
        let is = FeedSettings { stream: full, partitions: 4, old_values: true, late: false };
        assert_eq!(merge(Some(is.clone()), "", 0, None).unwrap(), Some(is.clone()));
        let without = FeedSettings { old_values: false, ..is.clone() };
        assert_eq!(merge(Some(is), "f", 0, Some(false)).unwrap(), Some(without));
        let refused = merge(None, "", 4, None).unwrap_err();
        assert!(matches!(refused, Reject::InvalidArgument { field: "feed.stream", .. }));
    }

    #[test]
    fn settings_survive_the_way_out_and_in() {
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Replay) {
            let settings = Settings::default_for(kind);
            let back = merged(Settings::default_for(kind), Some(to_message(&settings))).unwrap();
            assert_eq!(back, settings);
        }
    }

    #[test]
    fn the_kind_is_found_wherever_it_is_said() {
        let queue = v1::Settings { kind: Some(Message::Queue(v1::QueueSettings::default())) };
        assert_eq!(path_of(2, "q", None).unwrap().kind(), Kind::Queue);
        assert_eq!(path_of(0, "q", Some(&queue)).unwrap().kind(), Kind::Queue);
        assert_eq!(path_of(0, "a/b/kv/q", None).unwrap().kind(), Kind::Kv);
        assert!(path_of(0, "q", None).is_err());
        assert!(path_of(1, "q", Some(&queue)).is_err());
        assert!(path_of(9, "q", None).is_err());
        assert!(matches!(path_of(1, "a/b/kv/q", None), Err(Reject::WrongKind { .. })));
    }
}
