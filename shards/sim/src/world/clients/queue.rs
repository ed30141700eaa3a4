//! A queue: a job is delivered until it is acknowledged, never after; of its leases only the last one counts.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use flowmesh_model::command::{LeaseRef, Nack, NewJob};
use flowmesh_model::job::NackKind;
use flowmesh_model::reply::LeasedJob;
use flowmesh_model::{Batch, Command, JobId, LeaseToken, QueueCommand, Reply, ResourceId, ShardId};

use super::{Known, Site};

/// What must be so.
#[derive(Default)]
pub(crate) struct Model {
    /// Payloads that may be in the queue.
    sent: BTreeSet<Bytes>,
    refused: BTreeSet<Bytes>,
    jobs: BTreeMap<JobId, Job>,
    next: u64,
}

struct Job {
    payload: Bytes,
    /// Whether that was acknowledged: then it must come.
    is_enqueued: bool,
    /// The last lease that was given out, as far as is known.
    token: LeaseToken,
    /// The last one with which it may have been done: a later one says that it was not.
    maybe_done: LeaseToken,
    is_done: bool,
}

impl Job {
    fn new(payload: &Bytes) -> Self {
        let none = LeaseToken(0);
        Self { payload: payload.clone(), is_enqueued: false, token: none, maybe_done: none, is_done: false }
    }
}

/// A queue that clients fill and work on.
#[derive(Clone)]
pub(crate) struct Queue {
    pub site: Site,
    pub id: ResourceId,
    pub shard: ShardId,
    pub model: Rc<RefCell<Model>>,
}

impl Queue {
    async fn call(&self, who: &str, command: QueueCommand) -> Known {
        self.site.call(who, self.shard, Command::Queue(self.id, command)).await
    }

    /// Enqueues and works, for ever.
    pub async fn use_it(self) {
        loop {
            if self.site.shared.below(2) == 0 {
                self.enqueue().await;
            } else {
                self.work().await;
            }
            self.site.pause().await;
        }
    }

    async fn enqueue(&self) {
        let count = 1 + self.site.shared.below(4);
        let (mut jobs, mut payloads) = (Batch::new(), Vec::new());
        for _ in 0..count {
            let bytes = if self.site.shared.below(10) == 0 { 5_000 } else { self.site.shared.below(100) };
            let delay_ms = if self.site.shared.below(4) == 0 { self.site.shared.below(20) } else { 0 };
            let model = &mut *self.model.borrow_mut();
            model.next += 1;
            let payload: Bytes = format!("job-{} {}", model.next, ".".repeat(bytes as usize)).into();
            model.sent.insert(payload.clone());
            payloads.push(payload.clone());
            let priority = self.site.shared.below(3) as u8;
            jobs.push(NewJob { payload, delay_ms, priority, ..NewJob::default() });
        }
        let known = self.call("enqueue", QueueCommand::enqueue(jobs)).await;
        let model = &mut *self.model.borrow_mut();
        match known {
            Known::Done(Reply::Enqueued(enqueued)) => {
                for (job, payload) in enqueued.iter().zip(payloads) {
                    let known = model.jobs.entry(job.job).or_insert_with(|| Job::new(&payload));
                    assert_eq!(known.payload, payload, "job {} is another one", job.job);
                    known.is_enqueued = true;
                }
            }
            Known::Done(other) => panic!("an enqueue is answered with {other:?}"),
            Known::Not => {
                for payload in payloads {
                    assert!(!model.jobs.values().any(|job| job.payload == payload), "refused, and delivered");
                    model.sent.remove(&payload);
                    model.refused.insert(payload);
                }
            }
            Known::Unknown => {}
        }
    }

    async fn reserve(&self) -> Option<Vec<LeasedJob>> {
        let reserve = QueueCommand::Reserve {
            jobs_max: 1 + self.site.shared.below(4) as u32,
            visibility_timeout_ms: Some(100 + self.site.shared.below(50)),
            worker: Bytes::from_static(b"w"),
            wait_until: None,
        };
        let Known::Done(reply) = self.call("reserve", reserve).await else { return None };
        let Reply::Reserved(leased) = reply else { panic!("a reserve is answered with {reply:?}") };
        let model = &mut *self.model.borrow_mut();
        for job in &leased {
            assert!(!model.refused.contains(&job.payload), "{job:?} was refused");
            assert!(model.sent.contains(&job.payload), "{job:?} was never enqueued");
            let known = model.jobs.entry(job.job).or_insert_with(|| Job::new(&job.payload));
            assert_eq!(known.payload, job.payload, "job {} is another one", job.job);
            assert!(!known.is_done, "job {} was acknowledged and is delivered again", job.job);
            assert_ne!(known.token, job.token, "token {} was given out twice", job.token.0);
            known.token = known.token.max(job.token);
        }
        Some(leased)
    }

    async fn work(&self) {
        let Some(leased) = self.reserve().await else { return };
        self.site.pause().await;
        for job in leased {
            let lease = LeaseRef { job: job.job, token: job.token };
            match self.site.shared.below(5) {
                // It is slow, or dies.
                0 => {}
                1 => {
                    let kind =
                        if self.site.shared.below(2) == 0 { NackKind::Failed } else { NackKind::Released };
                    let nack =
                        Nack { lease, kind, delay_ms: Some(self.site.shared.below(10)), error: Bytes::new() };
                    let nacks = Batch::from_iter([nack]);
                    drop(self.call("nack", QueueCommand::Nack { nacks }).await);
                }
                _ => self.ack(lease).await,
            }
        }
    }

    async fn ack(&self, lease: LeaseRef) {
        // From here on it may be done.
        let before = {
            let model = &mut *self.model.borrow_mut();
            let Some(job) = model.jobs.get_mut(&lease.job) else { panic!("{lease:?} of no job") };
            let later = job.maybe_done.max(lease.token);
            std::mem::replace(&mut job.maybe_done, later)
        };
        let known = self.call("ack", QueueCommand::ack([lease])).await;
        let model = &mut *self.model.borrow_mut();
        let is_refused = match known {
            Known::Done(Reply::Settled(settled)) => settled[0].is_err(),
            Known::Done(other) => panic!("an ack is answered with {other:?}"),
            Known::Not => true,
            Known::Unknown => return,
        };
        let Some(job) = model.jobs.get_mut(&lease.job) else { panic!("{lease:?} of no job") };
        if !is_refused {
            assert_eq!(job.token, lease.token, "job {}: a lease was good that was not the last", lease.job);
            job.is_done = true;
        } else if job.maybe_done == lease.token {
            job.maybe_done = before;
        }
    }

    /// Works on all there is. Every job that was enqueued for certain comes. False if answers did not.
    pub async fn drain(&self) -> bool {
        loop {
            let Some(leased) = self.reserve().await else { return false };
            for job in &leased {
                let lease = LeaseRef { job: job.job, token: job.token };
                self.ack(lease).await;
            }
            let Known::Done(reply) = self.call("status", QueueCommand::Status).await else { return false };
            let Reply::QueueStatus(status, _) = reply else { panic!("a status is {reply:?}") };
            if status.ready + status.delayed + status.leased + status.blocked == 0 {
                assert_eq!(status.dead, 0, "jobs have attempts enough");
                break;
            }
            if leased.is_empty() {
                self.site.shared.delay(20_000).await;
            }
        }
        let model = self.model.borrow();
        for (id, job) in &model.jobs {
            let is_done = job.is_done || job.maybe_done == job.token && job.token.0 > 0;
            assert!(is_done || !job.is_enqueued, "job {id} was enqueued and is gone: {:?}", job.payload);
        }
        true
    }
}
