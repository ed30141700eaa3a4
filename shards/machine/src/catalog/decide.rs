//! What can be asked of the catalog.

use std::sync::Arc;

use flowmesh_model::limits::RESOURCES_MAX;
use flowmesh_model::{
    CatalogCommand, CatalogVersion, Fact, Millis, Reject, Reply, ResourceId, ResourceInfo, ResourcePath,
    Settings,
};
use smallvec::smallvec;

use super::CatalogState;
use crate::decision::Decision;

impl CatalogState {
    pub fn decide(&self, now: Millis, command: &CatalogCommand) -> Result<Decision, Reject> {
        match command {
            CatalogCommand::Create { path, settings, or_existing } => {
                self.create(now, path, settings, *or_existing)
            }
            CatalogCommand::Update { path, settings } => self.update(path, settings),
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
        if self.catalog.len() >= RESOURCES_MAX {
            let size = self.catalog.len() as u64 + 1;
            return Err(Reject::TooLarge { what: "catalog", size, max: RESOURCES_MAX as u64 });
        }
        let id = ResourceId(self.catalog.last_id().0 + 1);
        let info = ResourceInfo::new(id, path.clone(), settings.clone(), now);
        let fact = Fact::ResourceCreated { id, path: path.clone(), settings: settings.clone() };
        Ok(self.change(fact, Arc::new(info)))
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
        if info.settings == *settings {
            return Ok(self.unchanged(info));
        }
        let fact = Fact::ResourceUpdated { id: info.id, settings: settings.clone() };
        Ok(self
            .change(fact, Arc::new(ResourceInfo { settings: settings.clone(), ..ResourceInfo::clone(info) })))
    }

    fn delete(&self, path: &ResourcePath) -> Result<Decision, Reject> {
        let info = self.get(path)?;
        Ok(self.change(Fact::ResourceDeleted { id: info.id }, Arc::clone(info)))
    }

    fn get(&self, path: &ResourcePath) -> Result<&Arc<ResourceInfo>, Reject> {
        self.catalog.find_path(path).ok_or_else(|| Reject::ResourceNotFound { path: path.to_string() })
    }

    fn change(&self, fact: Fact, info: Arc<ResourceInfo>) -> Decision {
        let version = CatalogVersion(self.catalog.version().0 + 1);
        Decision::Change { facts: smallvec![fact], reply: Reply::Resource { info, changed: true, version } }
    }

    fn unchanged(&self, info: &Arc<ResourceInfo>) -> Decision {
        let (info, version) = (Arc::clone(info), self.catalog.version());
        Decision::Answer { reply: Reply::Resource { info, changed: false, version }, seen: self.last_lsn }
    }
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
