//! What a worker has done but the server has not confirmed.
//!
//! A lease is `held` while its job runs, then `open` with a verdict until the server's outcome settles it. Verdicts that
//! are open when the connection is lost are sent again: leases outlive connections and restarts.

use std::collections::{BTreeMap, BTreeSet};

use flowmesh_proto::v1;

use super::job::Verdict;
use super::lease_text;
use crate::cli::failure::Refusal;

/// A lease, as a key.
pub type LeaseKey = (u64, u64);

/// Verdicts on the way, leases in work, and the counts.
#[derive(Debug, Default)]
pub struct Book {
    held: BTreeSet<LeaseKey>,
    open: BTreeMap<LeaseKey, Open>,
    /// What came of all jobs so far.
    pub counts: Counts,
}

#[derive(Debug)]
struct Open {
    verdict: Verdict,
    sent_again: bool,
}

/// Jobs by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Acknowledged.
    pub done: u64,
    /// Given back.
    pub failed: u64,
    /// Their lease was lost before the verdict arrived: they run again.
    pub lost: u64,
}

impl Book {
    /// A job starts to run.
    pub fn hold(&mut self, job: &v1::LeasedJob) {
        self.held.insert((job.job_id, job.token));
    }

    /// A job has run.
    pub fn finish(&mut self, key: LeaseKey, verdict: Verdict) {
        self.held.remove(&key);
        self.open.insert(key, Open { verdict, sent_again: false });
    }

    /// The leases of jobs that run.
    pub fn held(&self) -> Vec<v1::Lease> {
        self.held.iter().map(|&(job_id, token)| v1::Lease { job_id, token }).collect()
    }

    /// Whether nothing runs and nothing is open.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.open.is_empty()
    }

    /// The verdict on one lease, to be sent.
    pub fn verdict(&self, key: LeaseKey) -> (Vec<v1::AckItem>, Vec<v1::NackItem>) {
        let (mut acks, mut nacks) = (Vec::new(), Vec::new());
        if let Some(open) = self.open.get(&key) {
            put(key, &open.verdict, &mut acks, &mut nacks);
        }
        (acks, nacks)
    }

    /// All open verdicts, to be sent again after a loss.
    pub fn all_again(&mut self) -> (Vec<v1::AckItem>, Vec<v1::NackItem>) {
        let (mut acks, mut nacks) = (Vec::new(), Vec::new());
        for (key, open) in &mut self.open {
            open.sent_again = true;
            put(*key, &open.verdict, &mut acks, &mut nacks);
        }
        (acks, nacks)
    }

    /// The server's answer to a verdict or to an extension. Returns what a person should know.
    pub fn settle(&mut self, key: LeaseKey, error: Option<&v1::Error>) -> Option<String> {
        let name = lease_text(key.0, key.1);
        let Some(open) = self.open.remove(&key) else {
            let refusal = Refusal::of_item(error?);
            return self.held.contains(&key).then(|| format!("job {name} still runs, but {refusal}"));
        };
        let refusal = error.map(Refusal::of_item);
        // Sent twice and settled the first time: the answer to that was lost with the connection.
        let settled_before = open.sent_again
            && refusal
                .as_ref()
                .is_some_and(|r| matches!(r.reason.as_str(), "LEASE_SETTLED" | "JOB_NOT_FOUND"));
        match (refusal, open.verdict) {
            (Some(refusal), verdict) if !settled_before => {
                if refusal.is_temporary() {
                    self.open.insert(key, Open { verdict, sent_again: open.sent_again });
                    return None;
                }
                self.counts.lost += 1;
                Some(format!("job {name} has run, but {refusal}: it will run again"))
            }
            (_, Verdict::Done) => {
                self.counts.done += 1;
                None
            }
            (_, Verdict::Failed(reason)) => {
                self.counts.failed += 1;
                Some(format!("job {name} failed: {reason}"))
            }
        }
    }
}

fn put(key: LeaseKey, verdict: &Verdict, acks: &mut Vec<v1::AckItem>, nacks: &mut Vec<v1::NackItem>) {
    let (job_id, token) = key;
    match verdict {
        Verdict::Done => acks.push(v1::AckItem { job_id, token, ..v1::AckItem::default() }),
        Verdict::Failed(error) => {
            nacks.push(v1::NackItem { job_id, token, error: error.clone(), ..v1::NackItem::default() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(reason: &str) -> v1::Error {
        v1::Error { code: 9, reason: reason.to_owned(), ..Default::default() }
    }

    #[test]
    fn a_job_is_held_then_open_then_settled() {
        let mut book = Book::default();
        book.hold(&v1::LeasedJob { job_id: 1, token: 2, ..Default::default() });
        assert_eq!(book.held(), [v1::Lease { job_id: 1, token: 2 }]);
        book.finish((1, 2), Verdict::Done);
        assert!(book.held().is_empty() && !book.is_empty());
        assert_eq!(book.verdict((1, 2)).0, [v1::AckItem { job_id: 1, token: 2, ..v1::AckItem::default() }]);
        assert_eq!(book.settle((1, 2), None), None);
        assert!(book.is_empty());
        assert_eq!(book.counts, Counts { done: 1, failed: 0, lost: 0 });
    }

    #[test]
    fn settled_before_counts_only_if_the_verdict_was_sent_again() {
        let mut book = Book::default();
        book.finish((1, 1), Verdict::Done);
        assert!(book.settle((1, 1), Some(&error("LEASE_SETTLED"))).is_some());
        book.finish((2, 2), Verdict::Done);
        assert_eq!(book.all_again().0.len(), 1);
        assert_eq!(book.settle((2, 2), Some(&error("LEASE_SETTLED"))), None);
        book.finish((3, 3), Verdict::Failed("x".to_owned()));
        assert_eq!(book.all_again().1.len(), 1);
        assert!(book.settle((3, 3), Some(&error("LEASE_EXPIRED"))).unwrap().contains("it will run again"));
        assert_eq!(book.counts, Counts { done: 1, failed: 0, lost: 2 });
    }

    #[test]
    fn an_extension_that_fails_is_told_while_the_job_runs() {
        let mut book = Book::default();
        book.hold(&v1::LeasedJob { job_id: 1, token: 2, ..Default::default() });
        assert!(book.settle((1, 2), Some(&error("LEASE_EXPIRED"))).unwrap().contains("still runs"));
        assert_eq!(book.settle((1, 2), None), None);
        assert_eq!(book.settle((9, 9), Some(&error("LEASE_EXPIRED"))), None);
    }
}
