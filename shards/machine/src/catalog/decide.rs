//! What can be asked of the catalog.

use std::sync::Arc;

use flowmesh_model::limits::RESOURCES_MAX;
use flowmesh_model::{
    Batch, CatalogCommand, CatalogVersion, Fact, GroupSettings, KvSettings, Millis, Reject, ReplaySettings,
    Reply, ResourceId, ResourceInfo, ResourcePath, Settings, StreamSettings,
};

use super::{CatalogState, feed};
use crate::decision::Decision;

/// How long a silent consumer of a replay session keeps its partitions: people wait for it. Can be changed.
const SANDBOX_SESSION_MS: u64 = 10_000;

impl CatalogState {
    /// `shards`: how many there are, with the slots dealt out to them in turn; else 0.
    pub fn decide(&self, now: Millis, shards: u16, command: &CatalogCommand) -> Result<Decision, Reject> {
        match command {
            CatalogCommand::Create { path, settings, or_existing } => {
                let settings = feed::placed(path, settings, shards, None)?;
                self.create(now, path, &settings, *or_existing)
            }
            CatalogCommand::Update { path, settings } => {
                let settings =
                    feed::placed(path, settings, shards, self.catalog.find_path(path).map(|info| &**info))?;
                self.update(path, &settings)
            }
            CatalogCommand::Delete { path } => self.delete(path),
        }
    }

    fn create(
        &self,
        now: Millis,
        path: &ResourcePath,
        settings: &Settings,
        or_existing: bool,
    ) -> Result<Decision, Reject> {
        check(path, settings)?;
        if let Some(info) = self.catalog.find_path(path) {
            return if or_existing {
                Ok(self.unchanged(info))
            } else {
                Err(Reject::ResourceExists { path: path.to_string() })
            };
        }
        self.check_room(1)?;
        let companion = match settings {
            Settings::Replay(replay) => {
                let (path, settings) = self.sandbox(replay)?;
                Some((path, Settings::Group(settings)))
            }
            Settings::Kv(KvSettings { feed: Some(feed), durability, .. }) => {
                Some(self.feed(path, feed, *durability)?)
            }
            Settings::Stream(StreamSettings { feed_of: Some(_), .. }) => {
                return Err(Reject::invalid("feed_of", "is for feeds of stores, which come with them"));
            }
            Settings::Group(group) if group.sandbox => {
                return Err(Reject::invalid(
                    "sandbox",
                    "is for groups of replay sessions, which come with them",
                ));
            }
            _ => None,
        };
        self.check_target(path, settings)?;
        let id = ResourceId(self.catalog.last_id().0 + 1);
        let info = ResourceInfo::new(id, path.clone(), settings.clone(), now);
        let fact = Fact::ResourceCreated { id, path: path.clone(), settings: Box::new(settings.clone()) };
        let companion = companion.map(|(path, settings)| {
            let id = ResourceId(id.0 + 1);
            Fact::ResourceCreated { id, path, settings: Box::new(settings) }
        });
        Ok(self.change([fact].into_iter().chain(companion), Arc::new(info)))
    }

    /// Refuses so many more resources than there may be.
    pub(super) fn check_room(&self, more: usize) -> Result<(), Reject> {
        let size = self.catalog.len() + more;
        if size > RESOURCES_MAX {
            let (size, max) = (size as u64, RESOURCES_MAX as u64);
            return Err(Reject::TooLarge { what: "catalog", size, max });
        }
        Ok(())
    }

    /// The group that comes with a replay session. A group that is there is never taken over.
    fn sandbox(&self, replay: &ReplaySettings) -> Result<(ResourcePath, GroupSettings), Reject> {
        let path = replay.group_path()?;
        match self.catalog.find_path(&path).map(|info| &info.settings) {
            None => {}
            Some(Settings::Group(group)) if group.sandbox => {
                return Err(Reject::ResourceExists { path: path.to_string() });
            }
            Some(_) => return Err(Reject::GroupNotSandbox { path: path.to_string() }),
        }
        self.check_room(2)?;
        let durability = replay.durability;
        let session_timeout_ms = SANDBOX_SESSION_MS;
        Ok((
            path,
            GroupSettings { sandbox: true, session_timeout_ms, durability, ..GroupSettings::default() },
        ))
    }

    fn update(&self, path: &ResourcePath, settings: &Settings) -> Result<Decision, Reject> {
        check(path, settings)?;
        let info = self.get(path)?;
        let (is, asked) = (info.settings.partitions(), settings.partitions());
        // Records stay where they are, and offsets with them: there is nowhere to put those of a partition that goes.
        if asked < is {
            return Err(Reject::PartitionsLowered { partitions: is, requested: asked });
        }
        if let (Settings::Group(is), Settings::Group(asked)) = (&info.settings, settings)
            && is.sandbox != asked.sandbox
        {
            return Err(Reject::invalid("sandbox", format!("is {} and fixed at creation", is.sandbox)));
        }
        if let (Settings::Queue(is), Settings::Queue(asked)) = (&info.settings, settings)
            && is.sandbox != asked.sandbox
        {
            return Err(Reject::invalid("sandbox", format!("is {} and fixed at creation", is.sandbox)));
        }
        if info.settings == *settings {
            return Ok(self.unchanged(info));
        }
        let feed = self.check_feed(info, settings)?;
        self.check_target(path, settings)?;
        self.check_compacted(info, settings)?;
        if let Settings::Replay(_) = &info.settings {
            return Err(Reject::invalid(
                "settings",
                "of a replay session are fixed; it has calls of its own",
            ));
        }
        let feed = feed.map(|(path, settings)| {
            let id = ResourceId(self.catalog.last_id().0 + 1);
            Fact::ResourceCreated { id, path, settings: Box::new(settings) }
        });
        let fact = Fact::ResourceUpdated { id: info.id, settings: Box::new(settings.clone()) };
        let info = ResourceInfo { settings: settings.clone(), ..ResourceInfo::clone(info) };
        Ok(self.change(feed.into_iter().chain([fact]), Arc::new(info)))
    }

    fn delete(&self, path: &ResourcePath) -> Result<Decision, Reject> {
        let info = self.get(path)?;
        self.check_no_target(path)?;
        let companion = match &info.settings {
            Settings::Kv(KvSettings { feed: Some(feed), .. }) => {
                self.catalog.find_path_text(&feed.stream).filter(|stream| stream.settings.is_feed())
            }
            Settings::Stream(StreamSettings { feed_of: Some(of), .. }) => {
                return Err(Reject::FeedStream { path: info.path.to_string(), of: of.clone() });
            }
            Settings::Replay(replay) => {
                let path = replay.group_path().ok();
                path.and_then(|path| self.catalog.find_path(&path)).filter(|group| is_sandbox(group))
            }
            Settings::Group(_) if is_sandbox(info) && self.is_in_use(info) => {
                return Err(Reject::SandboxGroup { path: info.path.to_string() });
            }
            _ => None,
        };
        let gone = [Some(info), companion].into_iter().flatten();
        Ok(self.change(gone.map(|info| Fact::ResourceDeleted { id: info.id }), Arc::clone(info)))
    }

    /// Whether there is a replay session whose sandbox it is. Looks at every resource; sandboxes are rarely deleted so.
    fn is_in_use(&self, sandbox: &ResourceInfo) -> bool {
        let path = sandbox.path.to_string();
        self.catalog.iter().any(|info| matches!(&info.settings, Settings::Replay(of) if of.group == path))
    }

    fn get(&self, path: &ResourcePath) -> Result<&Arc<ResourceInfo>, Reject> {
        self.catalog.find_path(path).ok_or_else(|| Reject::ResourceNotFound { path: path.to_string() })
    }

    /// Each fact is a version of the catalog.
    fn change(&self, facts: impl IntoIterator<Item = Fact>, info: Arc<ResourceInfo>) -> Decision {
        let facts: Batch<Fact> = facts.into_iter().collect();
        let version = CatalogVersion(self.catalog.version().0 + facts.len() as u64);
        Decision::Change { facts, reply: Reply::Resource { info, changed: true, version } }
    }

    fn unchanged(&self, info: &Arc<ResourceInfo>) -> Decision {
        let (info, version) = (Arc::clone(info), self.catalog.version());
        Decision::Answer { reply: Reply::Resource { info, changed: false, version }, seen: self.last_lsn }
    }
}

fn is_sandbox(info: &ResourceInfo) -> bool {
    matches!(&info.settings, Settings::Group(group) if group.sandbox)
}

fn check(path: &ResourcePath, settings: &Settings) -> Result<(), Reject> {
    if settings.kind() != path.kind() {
        return Err(Reject::invalid(
            "settings",
            format!("are of a {}, but {path} is a {}", settings.kind(), path.kind()),
        ));
    }
    settings.validate()
}
