//! A shard that is told what changed knows the same as one that looks at everything.

use std::sync::Arc;

use flowmesh_machine::{CatalogNews, Decision, EntryContext, Machine, MachineConfig};
use flowmesh_model::command::{SetEntry, SetIf, SetTtl};
use flowmesh_model::{
    Batch, Catalog, CatalogCommand, Command, Durability, Fact, Kind, KvCommand, Lsn, Millis, ResourceId,
    ResourcePath, Settings, ShardId,
};
use proptest::prelude::*;

use crate::common::{CONFIG, World, cases};

#[derive(Clone, Debug)]
enum Step {
    Create {
        name: u8,
    },
    Update {
        name: u8,
        durability: Durability,
    },
    Delete {
        name: u8,
    },
    /// The shards hold something of it.
    Hold {
        name: u8,
    },
    /// The shards get the snapshot.
    Publish,
    /// A shard gets one that another core was told of before.
    PublishOld {
        which: usize,
    },
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0u8..12;
    let durability = prop_oneof![Just(Durability::Always), Just(Durability::Never)];
    prop_oneof![
        5 => name.clone().prop_map(|name| Step::Create { name }),
        2 => (name.clone(), durability).prop_map(|(name, durability)| Step::Update { name, durability }),
        2 => name.clone().prop_map(|name| Step::Delete { name }),
        4 => name.prop_map(|name| Step::Hold { name }),
        4 => Just(Step::Publish),
        1 => any::<usize>().prop_map(|which| Step::PublishOld { which }),
        2 => Just(Step::Tick),
    ]
}

/// A shard that only sees snapshots.
struct Other {
    machine: Machine,
    lsn: Lsn,
}

impl Other {
    fn new() -> Self {
        let config = MachineConfig { shard: ShardId(1), catalog_owner: false, ..CONFIG };
        Self { machine: Machine::new(config), lsn: Lsn(0) }
    }

    fn commit(&mut self, facts: impl IntoIterator<Item = Fact>) {
        self.lsn = self.lsn.next();
        let at = EntryContext { lsn: self.lsn, time: self.machine.clamp(Millis(1_000)) };
        facts.into_iter().for_each(|fact| self.machine.apply(at, fact));
    }

    fn hold(&mut self, id: ResourceId) {
        let entry = SetEntry {
            key: "key".into(),
            value: "value".into(),
            ttl: SetTtl::Default,
            condition: SetIf::Always,
        };
        let set = Command::Kv(id, KvCommand::Set { entries: Batch::from_elem(entry, 1) });
        let decided = self.machine.decide(Millis(1_000), self.lsn.next(), &set);
        if let Ok(Decision::Change { facts, .. }) = decided {
            self.commit(facts);
        }
    }

    fn tick(&mut self) -> Vec<Fact> {
        let facts = self.machine.tick(Millis(1_000), Lsn(1_000), 3).facts;
        self.commit(facts.clone());
        facts
    }
}

fn path(name: u8) -> ResourcePath {
    ResourcePath::parse(Kind::Kv, &format!("k-{name}")).unwrap()
}

fn settings(durability: Option<Durability>) -> Settings {
    let Settings::Kv(mut settings) = Settings::default_for(Kind::Kv) else { panic!("of another kind") };
    settings.durability = durability;
    Settings::Kv(settings)
}

proptest! {
    #![proptest_config(cases(300))]
    #[test]
    fn what_is_told_of_changes_is_what_looking_at_everything_shows(steps in prop::collection::vec(step(), 1..120)) {
        let mut owner = World::default();
        let (mut told, mut looking) = (Other::new(), Other::new());
        let mut published: Vec<Arc<Catalog>> = Vec::new();
        for step in steps {
            match step {
                Step::Create { name } => {
                    owner.run(&Command::Catalog(CatalogCommand::Create {
                        path: path(name), settings: settings(None), or_existing: true
                    }));
                }
                Step::Update { name, durability } => {
                    owner.run(&Command::Catalog(CatalogCommand::Update {
                        path: path(name), settings: settings(Some(durability))
                    }));
                }
                Step::Delete { name } => {
                    owner.run(&Command::Catalog(CatalogCommand::Delete { path: path(name) }));
                }
                Step::Hold { name } => {
                    if let Some(info) = owner.machine.catalog_snapshot().find_path(&path(name)) {
                        told.hold(info.id);
                        looking.hold(info.id);
                    }
                }
                Step::Publish | Step::PublishOld { .. } => {
                    if let Step::PublishOld { which } = step && !published.is_empty() {
                        let old = &published[which % published.len()];
                        prop_assert_eq!(told.machine.set_catalog(Arc::clone(old)), CatalogNews::Of(Vec::new()));
                    }
                    let snapshot = owner.machine.catalog_snapshot();
                    // The same, and it knows of no version before.
                    let anew = Catalog::new(snapshot.version(), snapshot.iter().cloned()).with_last_id(snapshot.last_id());
                    told.machine.set_catalog(Arc::clone(&snapshot));
                    looking.machine.set_catalog(Arc::new(anew));
                    published.push(snapshot);
                }
                Step::Tick => prop_assert_eq!(told.tick(), looking.tick()),
            }
            // Compares what is known of each held resource with the snapshot.
            told.machine.check_all();
            looking.machine.check_all();
            prop_assert_eq!(told.machine.dump(), looking.machine.dump());
        }
    }
}

/// Each change is told as one resource, however many there are: nobody looks at all of them.
#[test]
fn creating_many_streams_looks_at_one_of_them_at_a_time() {
    const COUNT: u64 = 20_000;
    let mut owner = World::default();
    let mut other = Other::new();
    other.machine.set_catalog(owner.machine.catalog_snapshot());
    let mut before = owner.machine.catalog_snapshot();
    for number in 1..=COUNT {
        let command = Command::Catalog(CatalogCommand::Create {
            path: ResourcePath::parse(Kind::Stream, &format!("s-{number}")).unwrap(),
            settings: Settings::default_for(Kind::Stream),
            or_existing: false,
        });
        owner.run(&command);
        let snapshot = owner.machine.catalog_snapshot();
        let news = other.machine.set_catalog(Arc::clone(&snapshot));
        assert_eq!(news, CatalogNews::Of(vec![ResourceId(number)]));
        assert_eq!(snapshot.len() as u64, number);
        before = snapshot;
    }
    // The owner is told the same way: it has the last one already.
    assert_eq!(owner.machine.set_catalog(before), CatalogNews::Of(Vec::new()));
    owner.machine.check_all();
}
