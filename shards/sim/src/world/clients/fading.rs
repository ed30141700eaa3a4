//! Keys that go by themselves: because their time is up, or because a cache has no room. What is gone stays gone, and what is
//! there is what was put there last.
//!
//! Each key has one client, which alone knows it. Of what was put under a key it knows when that ends, as far as clocks can be
//! known: the server's says what the one on the wall does, and never goes back within what it has written down.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use flowmesh_engine::Timer;
use flowmesh_model::command::{SetEntry, SetIf, SetTtl};
use flowmesh_model::placement::PlacementHash;
use flowmesh_model::{Batch, Command, KvCommand, Lsn, Millis, Reply, ResourceId, ShardId};
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::{Known, Site, Workload};

/// What must be so of a key.
#[derive(Clone, Debug)]
struct Held {
    value: Bytes,
    version: Lsn,
    /// It ends within these, if it ends.
    ends: Option<(Millis, Millis)>,
    /// It was not there any more, and by then the clock had been set back so many times.
    gone: Option<usize>,
}

/// A store whose keys go.
#[derive(Clone)]
pub(crate) struct Fading {
    pub site: Site,
    pub store: ResourceId,
    pub placement: PlacementHash,
    /// So many entries are let go of for room beyond, if that is so.
    pub entries_max: Option<u64>,
    pub shards: u16,
    /// What is known of keys that may be there.
    pub held: Rc<RefCell<Model>>,
}

#[derive(Default)]
pub(crate) struct Model {
    keys: BTreeMap<Bytes, Held>,
    next: u64,
}

/// So much later everything has ended that ends, wherever the clock was set to.
const LONG: Duration = Duration::from_secs(5);

/// Keys of a client that it uses again and again.
const KEYS: u64 = 12;

impl Fading {
    async fn call(&self, who: &str, key: &[u8], command: KvCommand) -> Known {
        let shard = self.site.server.shard_of(self.placement.key_slot(key));
        self.site.call(who, shard, Command::Kv(self.store, command)).await
    }

    /// A key is put under a new name once it is not known what is under the old one.
    async fn put(&self, key: &Bytes) -> bool {
        let ttl_ms = match self.entries_max {
            Some(_) if self.site.shared.below(4) > 0 => None,
            _ => Some(1 + self.site.shared.below(60)),
        };
        let value: Bytes = {
            let model = &mut *self.held.borrow_mut();
            model.next += 1;
            format!("{}-{}", model.next, ".".repeat(self.site.shared.below(200) as usize)).into()
        };
        let ttl = ttl_ms.map_or(SetTtl::Default, SetTtl::Millis);
        let entry = SetEntry { key: key.clone(), value: value.clone(), ttl, condition: SetIf::Always };
        let before = self.held.borrow_mut().keys.remove(key);
        let began = self.site.shared.clock.moment();
        let set = KvCommand::Set { entries: Batch::from_iter([entry]) };
        let held = match self.call("put", key, set).await {
            Known::Done(Reply::Written(written)) => {
                let Some(Ok(version)) = written.first() else { panic!("refused: {written:?}") };
                let clock = &self.site.shared.clock;
                let ends = ttl_ms.map(|ms| (clock.lowest_since(began).plus(ms), clock.highest().plus(ms)));
                assert!(before.is_none_or(|before| *version > before.version), "versions grow");
                Some(Held { value, version: *version, ends, gone: None })
            }
            Known::Done(other) => panic!("a set is answered with {other:?}"),
            Known::Not => before,
            Known::Unknown => return false,
        };
        held.map(|held| self.held.borrow_mut().keys.insert(key.clone(), held));
        true
    }

    async fn look(&self, key: &Bytes) -> bool {
        let began = self.site.shared.clock.moment();
        let get = KvCommand::Get { keys: Batch::from_iter([key.clone()]) };
        let Known::Done(reply) = self.call("look", key, get).await else { return false };
        let Reply::Values(values) = reply else { panic!("a get is answered with {reply:?}") };
        let clock = &self.site.shared.clock;
        let (lowest, highest) = (clock.lowest_since(began), clock.highest());
        let model = &mut *self.held.borrow_mut();
        let Some(held) = model.keys.get_mut(key) else {
            assert!(values[0].is_none(), "{key:?} was never put there: {values:?}");
            return true;
        };
        let Some(found) = &values[0] else {
            let may_go = self.entries_max.is_some() || held.ends.is_some_and(|(first, _)| highest >= first);
            assert!(may_go, "{key:?} is gone before its time, at {highest} at the latest: {held:?}");
            held.gone.get_or_insert(clock.times_set_back());
            return true;
        };
        assert_eq!(
            (&found.value, found.version),
            (&held.value, held.version),
            "{key:?} is not what was put there"
        );
        // A clock that is set back brings back what nobody has written down to be gone; what went for room never comes back.
        let is_back = held.gone.is_none_or(|then| held.ends.is_some() && clock.times_set_back() > then);
        assert!(is_back, "{key:?} was gone, and is there again: {held:?}");
        assert_eq!(found.expires_at.is_some(), held.ends.is_some(), "{key:?}: {held:?}");
        if let (Some(at), Some((first, last))) = (found.expires_at, held.ends) {
            assert!(at >= first && at <= last, "{key:?} ends at {at}: {held:?}");
            assert!(lowest < at, "{key:?} is there at {lowest} or later, after its end at {at}");
            held.ends = Some((at, at));
        }
        true
    }

    async fn go_on(self, client: u64) {
        let mut names: Vec<u64> = vec![0; KEYS as usize];
        loop {
            let number = self.site.shared.below(KEYS);
            let name = &mut names[number as usize];
            let key: Bytes = format!("{client}-{number}-{name}").into();
            if self.site.shared.below(2) > 0 {
                self.look(&key).await;
            } else if !self.put(&key).await {
                *name += 1;
            }
            self.site.pause().await;
        }
    }

    /// Everything that is known is looked at, now and when all that ends has ended.
    async fn check_all(self) -> bool {
        let keys: Vec<Bytes> = self.held.borrow().keys.keys().cloned().collect();
        for _ in 0..2 {
            for key in &keys {
                if !self.look(key).await {
                    return false;
                }
            }
            self.site.shared.clock.sleep(LONG).await;
        }
        let Some(max) = self.entries_max else { return true };
        for shard in 0..self.shards {
            let status = Command::Kv(self.store, KvCommand::Status);
            let Known::Done(reply) = self.site.call("status", ShardId(shard), status).await else {
                return false;
            };
            let Reply::KvStatus(status) = reply else { panic!("a status is {reply:?}") };
            let share = max.div_ceil(self.shards.into());
            assert!(status.keys <= share, "{} keys, of {share} at most", status.keys);
        }
        true
    }
}

impl Workload for Fading {
    fn use_it(&self, client: u64) -> LocalBoxFuture<'static, ()> {
        self.clone().go_on(client).boxed_local()
    }

    fn check(&self, site: Site) -> LocalBoxFuture<'static, bool> {
        Self { site, ..self.clone() }.check_all().boxed_local()
    }
}
