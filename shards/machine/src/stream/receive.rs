//! Jobs of queues that arrive as records.

use bytes::Bytes;
use flowmesh_model::record::{PackedRecords, RecordPacker, RecordSlices, RecordView, split_header};
use flowmesh_model::transfer::fact::TransferFact;
use flowmesh_model::transfer::{Arrival, Incoming, TransferMode};
use flowmesh_model::{Fact, Lsn, Reject};

use super::decide::Asked;
use crate::decision::Decision;
use crate::queue::decide::transfer::{news, nothing_new, received};

impl Asked<'_> {
    /// Appends what is new of what arrives, and notes in the same entry that it is here.
    pub fn receive(&self, arrival: &Arrival, known: (u64, Lsn)) -> Result<Decision, Reject> {
        let (upto, seen) = known;
        let new = news(arrival, upto);
        if new.is_empty() {
            return Ok(nothing_new(arrival, seen));
        }
        if new.iter().any(|job| job.mode != TransferMode::DeadLetter) {
            return Err(Reject::invalid("to_queue", "is a stream; only dead letters go to streams"));
        }
        let mut packer = RecordPacker::default();
        for job in new {
            pack(&mut packer, job);
        }
        let sequence = new.last().map_or(0, |job| job.sequence);
        match self.append(&PackedRecords::of_jobs(packer), None, None)? {
            Decision::Change { mut facts, .. } => {
                let (partition, source) = (self.at.partition, arrival.source);
                let fact = TransferFact::Received { partition, source, sequence };
                facts.push(Fact::Transfer(self.at.resource, fact));
                Ok(Decision::Change { facts, reply: received(sequence) })
            }
            _ => Err(Reject::Internal("an append that changes nothing")),
        }
    }
}

/// A job as a record: its group or its number is the key, its payload the value.
fn pack(packer: &mut RecordPacker, job: &Incoming) {
    let number;
    let key: &Bytes = if job.group.is_empty() {
        number = Bytes::from(job.job.to_string());
        &number
    } else {
        &job.group
    };
    let headers = RecordSlices::new(&job.headers).flatten().filter_map(|header| split_header(header).ok());
    packer.push(&RecordView {
        key: Some(key),
        value: &job.payload,
        headers: headers.collect(),
        timestamp_ms: None,
    });
}
