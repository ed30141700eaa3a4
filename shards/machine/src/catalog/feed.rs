//! Feeds of stores: a stream that is created and deleted with its store, or comes with an update of it, and stays as it is.

use std::borrow::Cow;

use flowmesh_model::limits::PARTITIONS_MAX;
use flowmesh_model::settings::FeedSettings;
use flowmesh_model::{Durability, KvSettings, Reject, ResourceInfo, ResourcePath, Settings, StreamSettings};

use super::CatalogState;

/// The settings with what of a feed the catalog says: the number of partitions, as many on each shard, and whether the
/// store, which is `info`, was there before it.
pub(super) fn placed<'s>(
    path: &ResourcePath,
    settings: &'s Settings,
    shards: u16,
    info: Option<&ResourceInfo>,
) -> Result<Cow<'s, Settings>, Reject> {
    let Settings::Kv(kv @ KvSettings { feed: Some(feed), .. }) = settings else {
        return Ok(Cow::Borrowed(settings));
    };
    if shards == 0 {
        return Err(Reject::FeedMisplaced { path: path.to_string(), partitions: feed.partitions, shards });
    }
    if !feed.partitions.is_multiple_of(u32::from(shards)) {
        let rule = format!(
            "is {}; allowed: a multiple of {shards}, the number of shards, up to {PARTITIONS_MAX}",
            feed.partitions
        );
        return Err(Reject::invalid("feed.partitions", rule));
    }
    let partitions =
        if feed.partitions == 0 { FeedSettings::partitions_for(shards) } else { feed.partitions };
    let late = match info.map(|info| &info.settings) {
        Some(Settings::Kv(KvSettings { feed: Some(is), .. })) => is.late,
        Some(_) => true,
        None => false,
    };
    let feed = FeedSettings { partitions, late, ..feed.clone() };
    Ok(Cow::Owned(Settings::Kv(KvSettings { feed: Some(feed), ..kv.clone() })))
}

impl CatalogState {
    /// The stream that comes with a store. One that is there is never taken over.
    pub(super) fn feed(
        &self,
        store: &ResourcePath,
        feed: &FeedSettings,
        durability: Option<Durability>,
    ) -> Result<(ResourcePath, Settings), Reject> {
        let path = feed.path()?;
        if self.catalog.find_path(&path).is_some() {
            return Err(Reject::ResourceExists { path: path.to_string() });
        }
        self.check_room(2)?;
        let (partitions, feed_of) = (feed.partitions, Some(store.to_string()));
        let settings = StreamSettings { partitions, feed_of, durability, ..StreamSettings::default() };
        Ok((path, Settings::Stream(settings)))
    }

    /// Refuses to change what of a feed is fixed. Returns the stream that a store without one gets.
    pub(super) fn check_feed(
        &self,
        info: &ResourceInfo,
        settings: &Settings,
    ) -> Result<Option<(ResourcePath, Settings)>, Reject> {
        match (&info.settings, settings) {
            (Settings::Stream(is), Settings::Stream(asked)) => {
                if is.feed_of != asked.feed_of {
                    return Err(Reject::invalid("feed_of", "is fixed at creation"));
                }
                match &is.feed_of {
                    Some(of) if is.partitions != asked.partitions => {
                        Err(Reject::FeedStream { path: info.path.to_string(), of: of.clone() })
                    }
                    _ => Ok(None),
                }
            }
            (Settings::Kv(is), Settings::Kv(asked)) => match (&is.feed, &asked.feed) {
                (None, None) => Ok(None),
                (None, Some(feed)) => self.feed(&info.path, feed, asked.durability).map(Some),
                (Some(is), Some(asked))
                    if (&is.stream, is.partitions) == (&asked.stream, asked.partitions) =>
                {
                    Ok(None)
                }
                (Some(is), _) => Err(Reject::FeedFixed {
                    path: info.path.to_string(),
                    stream: is.stream.clone(),
                    partitions: is.partitions,
                }),
            },
            _ => Ok(None),
        }
    }
}
