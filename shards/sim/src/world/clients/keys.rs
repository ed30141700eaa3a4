//! Keys of a store: registers that one client each writes, a counter that all add to, a set that all put members into, and
//! two keys that are only ever changed together.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;
use flowmesh_model::command::{SetEntry, SetIf, SetTtl};
use flowmesh_model::kv::{BytesOp, KvAction, KvOp, KvResult, SetOp};
use flowmesh_model::placement::PlacementHash;
use flowmesh_model::{Batch, Command, KvCommand, Lsn, Reply, ResourceId};

use super::{Known, Site};

/// A store that clients use.
#[derive(Clone)]
pub(crate) struct Keys {
    pub site: Site,
    pub store: ResourceId,
    pub placement: PlacementHash,
    pub shared: Rc<RefCell<Together>>,
}

/// What all clients of a store change.
#[derive(Default)]
pub(crate) struct Together {
    /// Acknowledged, and all that is not known to be refused.
    added: i64,
    added_maybe: i64,
    counted: i64,
    members: BTreeSet<Bytes>,
    members_maybe: BTreeSet<Bytes>,
    members_refused: BTreeSet<Bytes>,
    next: u64,
}

/// A key of one client.
struct Register {
    key: Bytes,
    /// What it may hold: one thing but after an answer that did not come.
    holds: Vec<Option<Bytes>>,
    version: Lsn,
    /// What is not known may still happen: nothing is asked of it until the process ends.
    frozen_in: Option<u64>,
}

const COUNTER: &[u8] = b"counter";
const SET: &[u8] = b"members";
/// On one partition.
const PAIR: [&[u8]; 2] = [b"{pair}a", b"{pair}b"];

fn entry(key: &Bytes, value: Bytes) -> SetEntry {
    SetEntry { key: key.clone(), value, ttl: SetTtl::Default, condition: SetIf::Always }
}

fn op(key: &'static [u8], action: KvAction) -> KvOp {
    KvOp { key: Bytes::from_static(key), condition: SetIf::Always, action }
}

impl Keys {
    async fn call(&self, who: &str, key: &[u8], command: KvCommand) -> Known {
        let shard = self.site.server.shard_of(self.placement.key_slot(key));
        self.site.call(who, shard, Command::Kv(self.store, command)).await
    }

    async fn run(&self, ops: Vec<KvOp>) -> Known {
        let key = ops[0].key.clone();
        let (seed, atomic) = (self.site.shared.below(1 << 32), ops.len() > 1);
        self.call("run", &key, KvCommand::Run { ops: ops.into_iter().collect(), atomic, seed }).await
    }

    /// Uses keys of its own and those of all, for ever.
    pub async fn use_it(self, client: u64, lives: Rc<RefCell<u64>>) {
        let mut registers: Vec<Register> = (0..6)
            .map(|number| Register {
                key: format!("key-{client}-{number}").into(),
                holds: vec![None],
                version: Lsn(0),
                frozen_in: None,
            })
            .collect();
        loop {
            match self.site.shared.below(10) {
                0 => self.count().await,
                1 => self.put_member().await,
                2 => self.change_pair(client).await,
                3 => self.look_at_pair().await,
                4 => drop(self.look_at_all().await),
                _ => {
                    let number = self.site.shared.below(registers.len() as u64) as usize;
                    self.use_register(&mut registers[number], &lives).await;
                }
            }
            self.site.pause().await;
        }
    }

    async fn use_register(&self, register: &mut Register, lives: &Rc<RefCell<u64>>) {
        let life = *lives.borrow();
        if register.frozen_in == Some(life) {
            return;
        }
        register.frozen_in = None;
        let keys = Batch::from_iter([register.key.clone()]);
        match self.site.shared.below(6) {
            0..=2 => {
                let bytes = if self.site.shared.below(10) == 0 { 4_000 } else { self.site.shared.below(60) };
                let name = self.site.shared.below(1 << 40).to_string();
                let value: Bytes = [name.as_bytes(), &vec![b'.'; bytes as usize]].concat().into();
                let entries = Batch::from_iter([entry(&register.key, value.clone())]);
                match self.call("set", &register.key, KvCommand::Set { entries }).await {
                    Known::Done(Reply::Written(written)) => {
                        let Some(Ok(version)) = written.first() else { panic!("refused: {written:?}") };
                        assert!(*version > register.version, "versions grow");
                        (register.holds, register.version) = (vec![Some(value)], *version);
                    }
                    Known::Done(other) => panic!("a set is answered with {other:?}"),
                    Known::Not => {}
                    Known::Unknown => {
                        register.holds.push(Some(value));
                        register.frozen_in = Some(life);
                    }
                }
            }
            3 => match self.call("delete", &register.key, KvCommand::Delete { keys, if_version: None }).await
            {
                Known::Done(Reply::Flags(was)) => {
                    let fits = register.holds.iter().any(|held| held.is_some() == was[0]);
                    assert!(fits, "{:?} was there: {}, of {:?}", register.key, was[0], register.holds);
                    register.holds = vec![None];
                }
                Known::Done(other) => panic!("a delete is answered with {other:?}"),
                Known::Not => {}
                Known::Unknown => {
                    register.holds.push(None);
                    register.frozen_in = Some(life);
                }
            },
            _ => {
                let Known::Done(reply) = self.call("get", &register.key, KvCommand::Get { keys }).await
                else {
                    return;
                };
                let Reply::Values(values) = reply else { panic!("a get is answered with {reply:?}") };
                let found = values[0].as_ref();
                let value = found.map(|found| found.value.clone());
                assert!(
                    register.holds.contains(&value),
                    "{:?} holds {value:?}, not one of {:?}",
                    register.key,
                    register.holds
                );
                if let Some(found) = found {
                    assert!(found.version >= register.version, "versions never go back");
                    register.version = found.version;
                }
                // Another process may have begun meanwhile: then this is what that one found.
                register.holds = vec![value];
            }
        }
    }

    async fn count(&self) {
        self.shared.borrow_mut().added_maybe += 1;
        let known = self.run(vec![op(COUNTER, KvAction::Bytes(BytesOp::Increment(1)))]).await;
        let together = &mut *self.shared.borrow_mut();
        match known {
            Known::Done(_) => together.added += 1,
            Known::Not => together.added_maybe -= 1,
            Known::Unknown => {}
        }
    }

    async fn put_member(&self) {
        let member: Bytes = {
            let together = &mut *self.shared.borrow_mut();
            together.next += 1;
            // Some hundred bytes, so that the set grows beyond one page.
            format!("{:08}-{}", together.next, "m".repeat(300)).into()
        };
        self.shared.borrow_mut().members_maybe.insert(member.clone());
        let known = self.run(vec![op(SET, KvAction::Set(SetOp::Add(vec![member.clone()])))]).await;
        let together = &mut *self.shared.borrow_mut();
        match known {
            Known::Done(_) => drop(together.members.insert(member)),
            Known::Not => {
                together.members_maybe.remove(&member);
                together.members_refused.insert(member);
            }
            Known::Unknown => {}
        }
    }

    async fn change_pair(&self, client: u64) {
        let value: Bytes = format!("{client}-{}", self.site.shared.below(1 << 40)).into();
        let set = |key| {
            let set = BytesOp::Set { value: value.clone(), ttl: SetTtl::Default, with_old: false };
            op(key, KvAction::Bytes(set))
        };
        self.run(PAIR.map(set).into()).await;
    }

    async fn look_at_pair(&self) {
        let keys = PAIR.into_iter().map(Bytes::from_static).collect();
        if let Known::Done(Reply::Values(values)) = self.call("get", PAIR[0], KvCommand::Get { keys }).await {
            let values: Vec<_> =
                values.iter().map(|value| value.as_ref().map(|found| &found.value)).collect();
            assert_eq!(values[0], values[1], "what is changed together is seen together");
        }
    }

    /// Looks at what all change. False if no answer came.
    async fn look_at_all(&self) -> bool {
        // What is acknowledged before the question was asked must be in the answer.
        let (least, members) = {
            let together = self.shared.borrow();
            (together.added.max(together.counted), together.members.clone())
        };
        let get = vec![op(COUNTER, KvAction::Bytes(BytesOp::Increment(0)))];
        let Known::Done(Reply::Kv(outcomes)) = self.run(get).await else { return false };
        let Some(Ok(outcome)) = outcomes.first() else { panic!("not counted: {outcomes:?}") };
        let KvResult::Integer(counted) = &outcome.result else { panic!("{outcome:?}") };
        {
            let together = &mut *self.shared.borrow_mut();
            assert!(*counted >= least, "{least} were added, {counted} are there");
            together.counted = together.counted.max(*counted);
        }
        let all = vec![op(SET, KvAction::Set(SetOp::All))];
        let Known::Done(Reply::Kv(outcomes)) = self.run(all).await else { return false };
        let Some(Ok(outcome)) = outcomes.first() else { panic!("no members: {outcomes:?}") };
        let KvResult::Members(found) = &outcome.result else { panic!("{outcome:?}") };
        let found: BTreeSet<Bytes> = found.iter().cloned().collect();
        let together = self.shared.borrow();
        if let Some(missing) = members.difference(&found).next() {
            panic!("member {missing:?} was acknowledged and is gone");
        }
        for member in &found {
            assert!(!together.members_refused.contains(member), "member {member:?} was refused");
            assert!(together.members_maybe.contains(member), "nobody put {member:?}");
        }
        true
    }

    /// What all changed is there. Nobody changes anything any more.
    pub async fn check(&self) -> bool {
        self.look_at_pair().await;
        if !self.look_at_all().await {
            return false;
        }
        let together = self.shared.borrow();
        let most = together.added_maybe;
        assert!(together.counted <= most, "{} were counted of {most} at most", together.counted);
        true
    }
}
