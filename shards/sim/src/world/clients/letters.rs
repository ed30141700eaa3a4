//! A queue whose jobs die, and where its dead letters go: another queue or a stream, perhaps of another shard. Each arrives once,
//! and whoever was done does not. Jobs with a time to live are not given out after it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use flowmesh_model::command::{LeaseRef, Nack, NewJob, ReadFrom};
use flowmesh_model::job::{JobOptions, NackKind};
use flowmesh_model::record::{RecordSlices, RecordView};
use flowmesh_model::reply::LeasedJob;
use flowmesh_model::{
    Batch, Command, Offset, PartitionRef, QueueCommand, Reply, ResourceId, ShardId, StreamCommand,
};
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::{Known, Site, Workload};

/// What must be so of a job.
#[derive(Clone, Debug, Default)]
struct Fate {
    is_enqueued: bool,
    ttl_ms: Option<u64>,
    /// Known to be dead: its letter must come.
    is_dead: bool,
    /// It was acknowledged, for certain or perhaps.
    is_done: bool,
    is_done_maybe: bool,
    /// Where its letter is: a job or an offset.
    letter: Option<u64>,
}

/// What is known of jobs, by what they are about.
#[derive(Default)]
pub(crate) struct Model {
    jobs: BTreeMap<Bytes, Fate>,
    next: u64,
}

/// Where letters go.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    Queue(ResourceId),
    Stream(PartitionRef),
}

/// A queue with a place for its dead letters.
#[derive(Clone)]
pub(crate) struct Letters {
    pub site: Site,
    pub source: ResourceId,
    pub source_shard: ShardId,
    pub target: Target,
    pub target_shard: ShardId,
    pub model: Rc<RefCell<Model>>,
}

impl Letters {
    async fn source(&self, who: &str, command: QueueCommand) -> Known {
        self.site.call(who, self.source_shard, Command::Queue(self.source, command)).await
    }

    async fn go_on(self) {
        loop {
            match self.site.shared.below(6) {
                0 | 1 => self.enqueue().await,
                2..=4 => drop(self.work(false).await),
                _ => drop(self.look().await),
            }
            self.site.pause().await;
        }
    }

    async fn enqueue(&self) {
        let (mut jobs, mut payloads) = (Batch::new(), Vec::new());
        for _ in 0..=self.site.shared.below(3) {
            let ttl_ms = (self.site.shared.below(3) == 0).then(|| 1 + self.site.shared.below(60));
            let options = ttl_ms.map(|ms| Box::new(JobOptions { ttl_ms: Some(ms), ..JobOptions::default() }));
            let model = &mut *self.model.borrow_mut();
            model.next += 1;
            let dots = ".".repeat(self.site.shared.below(2_000) as usize);
            let payload: Bytes = format!("letter-{} {dots}", model.next).into();
            model.jobs.insert(payload.clone(), Fate { ttl_ms, ..Fate::default() });
            payloads.push(payload.clone());
            let max_attempts = Some(1 + self.site.shared.below(2) as u32);
            jobs.push(NewJob { payload, options, max_attempts, ..NewJob::default() });
        }
        let known = self.source("enqueue letters", QueueCommand::enqueue(jobs)).await;
        let model = &mut *self.model.borrow_mut();
        for payload in payloads {
            match &known {
                Known::Done(_) => {
                    model.jobs.get_mut(&payload).expect("it was put there").is_enqueued = true;
                }
                Known::Not => {
                    let fate = model.jobs.remove(&payload).expect("it was put there");
                    assert!(fate.letter.is_none(), "refused, and dead: {fate:?}");
                }
                Known::Unknown => {}
            }
        }
    }

    /// Leases jobs, and lets them die, or some of them. How many there were; nothing if no answer came.
    async fn work(&self, all: bool) -> Option<usize> {
        let began = self.site.shared.clock.moment();
        let reserve = QueueCommand::Reserve {
            jobs_max: 4,
            visibility_timeout_ms: Some(100 + self.site.shared.below(50)),
            worker: Bytes::from_static(b"w"),
            wait_until: None,
        };
        let Known::Done(reply) = self.source("reserve letters", reserve).await else { return None };
        let Reply::Reserved(leased) = reply else { panic!("a reserve is answered with {reply:?}") };
        let lowest = self.site.shared.clock.lowest_since(began);
        for job in &leased {
            let model = self.model.borrow();
            let Some(fate) = model.jobs.get(&job.payload) else { panic!("{job:?} was never enqueued") };
            assert!(!fate.is_dead, "{job:?} is dead, and given out: {fate:?}");
            assert!(!fate.is_done, "{job:?} is done, and given out: {fate:?}");
            if let (Some(ttl_ms), 1) = (fate.ttl_ms, job.attempt) {
                let ends = job.enqueued_at.plus(ttl_ms);
                assert!(lowest < ends, "{job:?} is given out at {lowest} or later, after its time: {fate:?}");
            }
        }
        for job in &leased {
            match self.site.shared.below(8) {
                0 if !all => self.ack(job).await,
                1 if !all => {}
                _ => self.kill(job).await,
            }
        }
        Some(leased.len())
    }

    fn fate<T>(&self, payload: &Bytes, with: impl FnOnce(&mut Fate) -> T) -> T {
        with(self.model.borrow_mut().jobs.get_mut(payload).expect("known since it was leased"))
    }

    async fn ack(&self, job: &LeasedJob) {
        let lease = LeaseRef { job: job.job, token: job.token };
        let before = self.fate(&job.payload, |fate| std::mem::replace(&mut fate.is_done_maybe, true));
        match self.source("ack letters", QueueCommand::ack([lease])).await {
            Known::Done(Reply::Settled(settled)) if settled[0].is_ok() => {
                self.fate(&job.payload, |fate| {
                    assert!(fate.letter.is_none(), "dead, and done: {fate:?}");
                    fate.is_done = true;
                });
            }
            Known::Done(_) | Known::Not => self.fate(&job.payload, |fate| fate.is_done_maybe = before),
            Known::Unknown => {}
        }
    }

    async fn kill(&self, job: &LeasedJob) {
        let lease = LeaseRef { job: job.job, token: job.token };
        let error = Bytes::from_static(b"no use");
        let nack = Nack { lease, kind: NackKind::Final, delay_ms: None, error };
        let nacks = QueueCommand::Nack { nacks: Batch::from_iter([nack]) };
        if let Known::Done(Reply::Settled(settled)) = self.source("kill", nacks).await
            && settled[0].is_ok()
        {
            self.fate(&job.payload, |fate| fate.is_dead = true);
        }
    }

    /// A letter was found.
    fn arrived(&self, payload: &[u8], at: u64) {
        let model = &mut *self.model.borrow_mut();
        let Some(fate) = model.jobs.get_mut(payload) else {
            panic!("a letter of nobody at {at}: {:?}", String::from_utf8_lossy(payload))
        };
        assert!(!fate.is_done, "a letter of a job that was done at {at}: {fate:?}");
        let first = *fate.letter.get_or_insert(at);
        assert_eq!(first, at, "a letter came twice: {fate:?}");
    }

    /// Looks at letters. How many there were; nothing if no answer came.
    async fn look(&self) -> Option<usize> {
        match self.target {
            Target::Queue(queue) => {
                let reserve = QueueCommand::Reserve {
                    jobs_max: 8,
                    visibility_timeout_ms: Some(100),
                    worker: Bytes::from_static(b"reader"),
                    wait_until: None,
                };
                let known =
                    self.site.call("letters", self.target_shard, Command::Queue(queue, reserve)).await;
                let Known::Done(reply) = known else { return None };
                let Reply::Reserved(leased) = reply else { panic!("a reserve is answered with {reply:?}") };
                for job in &leased {
                    self.arrived(&job.payload, job.job.0);
                }
                let leases = leased.iter().map(|job| LeaseRef { job: job.job, token: job.token });
                let ack = Command::Queue(queue, QueueCommand::ack(leases));
                if !leased.is_empty() {
                    self.site.call("ack read letters", self.target_shard, ack).await;
                }
                Some(leased.len())
            }
            Target::Stream(_) => self.read(Offset(0)).await.map(|_| 0),
        }
    }

    /// Reads letters of a stream; where the next ones are, and whether there are any.
    async fn read(&self, from: Offset) -> Option<(Offset, bool)> {
        let Target::Stream(at) = self.target else { return None };
        let read = StreamCommand::Read {
            from: ReadFrom::Offset(from),
            records_max: 50,
            bytes_max: 64 << 10,
            bytes_min: 0,
            wait_until: None,
        };
        let known = self.site.call("letters", self.target_shard, Command::Stream(at, read)).await;
        let Known::Done(reply) = known else { return None };
        let Reply::Records(records) = reply else { panic!("a read is answered with {reply:?}") };
        for run in &records.runs {
            let plain = run.plain().expect("records that can be unpacked");
            for (offset, record) in (run.base.0..).zip(RecordSlices::new(&plain.records)) {
                let record = RecordView::read(record.expect("a whole record")).expect("a record");
                self.arrived(record.value, offset);
            }
        }
        Some((records.next, records.next < records.high_watermark))
    }

    /// All that was enqueued dies, and all letters come.
    async fn check_all(self) -> bool {
        loop {
            if self.work(true).await.is_none() {
                return false;
            }
            let Known::Done(reply) = self.source("status", QueueCommand::Status).await else { return false };
            let Reply::QueueStatus(status, _) = reply else { panic!("a status is {reply:?}") };
            assert_eq!(status.send_failed_total, 0, "a letter that cannot be sent");
            // A job is dead before its letter is in the outbox.
            let is_all_sent = status.copied_total == status.died_total && status.outbox == 0;
            if status.waiting() + status.leased == 0 && is_all_sent {
                break;
            }
            self.site.shared.delay(20_000).await;
        }
        if let Target::Stream(_) = self.target {
            let mut from = Offset(0);
            loop {
                let Some((next, is_more)) = self.read(from).await else { return false };
                if !is_more {
                    break;
                }
                from = next;
            }
        } else {
            loop {
                match self.look().await {
                    None => return false,
                    Some(0) => {
                        // Leases that nobody answered for end.
                        self.site.shared.delay(20_000).await;
                        match self.left().await {
                            None => return false,
                            Some(0) => break,
                            Some(_) => {}
                        }
                    }
                    Some(_) => {}
                }
            }
        }
        for (payload, fate) in &self.model.borrow().jobs {
            assert!(!fate.is_dead || fate.letter.is_some(), "no letter of {payload:?}: {fate:?}");
            let may_be_gone = fate.is_done_maybe || fate.ttl_ms.is_some() || fate.letter.is_some();
            assert!(!fate.is_enqueued || may_be_gone, "{payload:?} is nowhere: {fate:?}");
        }
        true
    }

    /// How many letters are in the queue for them.
    async fn left(&self) -> Option<u64> {
        let Target::Queue(queue) = self.target else { return Some(0) };
        let status = Command::Queue(queue, QueueCommand::Status);
        let Known::Done(reply) = self.site.call("status", self.target_shard, status).await else {
            return None;
        };
        let Reply::QueueStatus(status, _) = reply else { panic!("a status is {reply:?}") };
        Some(status.waiting() + status.leased)
    }
}

impl Workload for Letters {
    fn use_it(&self, _client: u64) -> LocalBoxFuture<'static, ()> {
        self.clone().go_on().boxed_local()
    }

    fn check(&self, site: Site) -> LocalBoxFuture<'static, bool> {
        Self { site, ..self.clone() }.check_all().boxed_local()
    }
}
