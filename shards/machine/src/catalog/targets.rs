//! Where queues' dead letters go: a queue or stream that is there, no sandbox, not compacted, and never back to where they
//! died. What is named so stays until it is no more.

use std::sync::Arc;

use flowmesh_model::limits::DEAD_LETTER_CHAIN_MAX;
use flowmesh_model::transfer::TARGET_SETTING;
use flowmesh_model::{Reject, ResourceId, ResourceInfo, ResourcePath, Settings, StreamSettings};

use super::CatalogState;

fn target(settings: &Settings) -> Option<&str> {
    match settings {
        Settings::Queue(settings) => settings.dead_letters_to.as_deref(),
        _ => None,
    }
}

fn is_compacted(settings: &Settings) -> bool {
    matches!(settings, Settings::Stream(stream) if stream.compaction)
}

impl CatalogState {
    /// Refuses a target of dead letters that cannot be one.
    pub(super) fn check_target(&self, path: &ResourcePath, settings: &Settings) -> Result<(), Reject> {
        let Settings::Queue(queue) = settings else { return Ok(()) };
        let Some(first) = queue.dead_letter_target()? else { return Ok(()) };
        if first == *path {
            return Err(Reject::invalid(
                TARGET_SETTING,
                "is the queue itself, which has its dead letters anyway",
            ));
        }
        let mut next = first.clone();
        for _ in 0..DEAD_LETTER_CHAIN_MAX {
            if next == *path {
                return Err(Reject::DeadLetterCycle { path: first.to_string() });
            }
            let Some(info) = self.catalog.find_path(&next) else {
                return Err(Reject::ResourceNotFound { path: next.to_string() });
            };
            let queue = match &info.settings {
                Settings::Queue(queue) => queue,
                Settings::Stream(StreamSettings { feed_of: Some(of), .. }) => {
                    return Err(Reject::FeedStream { path: next.to_string(), of: of.clone() });
                }
                settings if is_compacted(settings) => {
                    return Err(Reject::CompactedTarget { path: next.to_string(), of: path.to_string() });
                }
                _ => return Ok(()),
            };
            if queue.sandbox {
                return Err(Reject::SandboxQueue { path: next.to_string() });
            }
            match queue.dead_letter_target()? {
                Some(after) => next = after,
                None => return Ok(()),
            }
        }
        let reason =
            format!("leads over more than {DEAD_LETTER_CHAIN_MAX} queues; allowed: at most so many in a row");
        Err(Reject::invalid(TARGET_SETTING, reason))
    }

    /// One of the queues whose dead letters go there.
    fn source_of(&self, path: &ResourcePath) -> Option<&Arc<ResourceInfo>> {
        let mut sources = self.targets.get(path.as_str()).into_iter().flatten();
        sources.find_map(|id| self.catalog.get(*id))
    }

    /// Refuses to have a stream compacted from now on that dead letters go to.
    pub(super) fn check_compacted(&self, info: &ResourceInfo, settings: &Settings) -> Result<(), Reject> {
        let begins = is_compacted(settings) && !is_compacted(&info.settings);
        match self.source_of(&info.path).filter(|_| begins) {
            Some(of) => Err(Reject::CompactedTarget { path: info.path.to_string(), of: of.path.to_string() }),
            None => Ok(()),
        }
    }

    /// Refuses to delete where dead letters go.
    pub(super) fn check_no_target(&self, path: &ResourcePath) -> Result<(), Reject> {
        match self.source_of(path) {
            Some(of) => Err(Reject::DeadLetterTarget { path: path.to_string(), of: of.path.to_string() }),
            None => Ok(()),
        }
    }

    pub(super) fn note_target(&mut self, id: ResourceId, settings: &Settings) {
        if let Some(target) = target(settings) {
            self.targets.entry(target.to_owned()).or_default().insert(id);
        }
    }

    pub(super) fn forget_target(&mut self, id: ResourceId, settings: &Settings) {
        let Some(target) = target(settings) else { return };
        if let Some(sources) = self.targets.get_mut(target) {
            sources.remove(&id);
            if sources.is_empty() {
                self.targets.remove(target);
            }
        }
    }

    /// Checks that what is noted is what settings say, and that what is named is there.
    pub(super) fn check_targets(&self) {
        let mut named = 0;
        for info in self.catalog.iter() {
            if let Some(target) = target(&info.settings) {
                named += 1;
                assert!(self.targets.get(target).is_some_and(|sources| sources.contains(&info.id)));
                let path = flowmesh_model::transfer::target_path(target);
                assert!(path.is_ok_and(|path| self.catalog.find_path(&path).is_some()), "{target} is gone");
            }
        }
        assert_eq!(self.targets.values().map(std::collections::BTreeSet::len).sum::<usize>(), named);
    }
}
