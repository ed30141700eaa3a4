//! The pipelined producer: batches go out without waiting for the answers to those before them, within a window.
//!
//! A batch is `unsent → in flight → acknowledged`, or `deferred` where the server asks to try later. When the connection
//! is lost, what is in flight may or may not have been appended: without `retry` that is reported and the end; with it,
//! those batches are sent again; an idempotent producer then appends none of them twice.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::time::Duration;

use flowmesh_model::limits::PRODUCER_BATCHES_MAX;
use flowmesh_proto::v1::{self, stream_client::StreamClient};
use futures::{Stream, StreamExt, TryFutureExt, TryStreamExt};
use indicatif::ProgressBar;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use super::compression::Compression;
use crate::cli::connection::{Backoff, client};
use crate::cli::failure::{Failure, Refusal};
use crate::cli::input::Batch;
use crate::cli::output::progress;

/// Batches in flight at most. With the default of 500 records a batch that is enough for a server that syncs each.
const WINDOW_BATCHES: usize = 64;

/// Bytes in flight at most: bounds this process's memory where values are large.
const WINDOW_BYTES: usize = 16 << 20;

/// What was acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records.
    pub appended: u64,
    /// Records that were sent again after a loss: each may stand twice, unless the producer is idempotent.
    pub sent_again: u64,
    /// Records of an idempotent producer that had been appended when they were sent again.
    pub recognised: u64,
    /// First and last offset by partition.
    pub partitions: BTreeMap<u32, (u64, u64)>,
}

impl Tally {
    fn add(&mut self, partition: u32, base: u64, count: u32) {
        if count == 0 {
            return;
        }
        let last = base + u64::from(count) - 1;
        let range = self.partitions.entry(partition).or_insert((base, last));
        *range = (range.0.min(base), range.1.max(last));
        self.appended += u64::from(count);
    }
}

/// A batch that was sent and not answered.
struct InFlight {
    sequence: u64,
    /// Records of this run before it.
    first_record: u64,
    first_line: u64,
    last_line: u64,
    count: usize,
    bytes: usize,
    /// Kept only if it may have to be sent again.
    records: Vec<v1::Record>,
}

type Records = mpsc::Receiver<Result<Batch<v1::Record>, Failure>>;
type Answers = Pin<Box<dyn Stream<Item = Result<v1::AppendStreamResponse, Status>>>>;

/// Appends batches to one stream.
pub struct Producer {
    stream: String,
    partition: Option<u32>,
    /// Id and epoch, if it is idempotent.
    identity: Option<(u64, u32)>,
    /// The offset that the first record must get.
    expected_offset: Option<u64>,
    compression: Option<Compression>,
    /// The longest wait for an answer.
    timeout: Duration,
    /// `None`: do not send anything again.
    backoff: Option<Backoff>,
    tally: Tally,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    /// To be sent before anything new.
    unsent: VecDeque<InFlight>,
    /// Refused for now, and why: sent again after a wait, with nothing new in between.
    deferred: Vec<(InFlight, Refusal)>,
    next_sequence: u64,
    next_record: u64,
    input_ended: bool,
    /// Why no more input is taken.
    stopped: Option<Failure>,
    progress: ProgressBar,
}

impl Producer {
    /// A producer that ends at the first loss of the connection.
    pub fn new(stream: String, partition: Option<u32>, timeout: Duration) -> Self {
        Self {
            stream,
            partition,
            identity: None,
            expected_offset: None,
            compression: None,
            timeout,
            backoff: None,
            tally: Tally::default(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            unsent: VecDeque::new(),
            deferred: Vec::new(),
            next_sequence: 1,
            next_record: 0,
            input_ended: false,
            stopped: None,
            progress: progress("records"),
        }
    }

    /// Sends again what a lost connection left open, for so long without success.
    pub fn retry_for(&mut self, patience: Duration) {
        self.backoff = Some(Backoff::new(Some(patience)));
    }

    /// Each record once: what is sent again is recognised by the server.
    pub fn idempotent(&mut self, id: u64, epoch: u32) {
        self.identity = Some((id, epoch));
    }

    /// Appends only if the first record gets this offset, and all others follow it without a gap.
    pub fn expect_offset(&mut self, offset: u64) {
        self.expected_offset = Some(offset);
    }

    /// Sends batches compressed.
    pub fn compress(&mut self, compression: Compression) {
        self.compression = Some(compression);
    }

    /// Batches in flight at most; of an idempotent producer no more than the server remembers.
    fn window(&self) -> usize {
        if self.identity.is_some() { PRODUCER_BATCHES_MAX.min(WINDOW_BATCHES) } else { WINDOW_BATCHES }
    }

    /// Appends everything that comes out of `records`. The tally counts whatever the outcome.
    pub async fn run(mut self, channel: Channel, mut records: Records) -> (Tally, Result<(), Failure>) {
        let client = client!(stream_client::StreamClient, channel);
        let outcome = loop {
            let refusal = match self.run_call(client.clone(), &mut records).await {
                Ok(()) => match self.deferred.first() {
                    Some((_, refusal)) => refusal.clone(),
                    None => break self.stopped.take().map_or(Ok(()), Err),
                },
                Err(refusal) => refusal,
            };
            if let Err(failure) = self.recover(refusal).await {
                break Err(failure);
            }
        };
        self.progress.finish_and_clear();
        (self.tally, outcome)
    }

    /// After a lost call: everything in flight goes back to the front, or is reported.
    async fn recover(&mut self, refusal: Refusal) -> Result<(), Failure> {
        let Some(backoff) = &mut self.backoff else { return Err(self.lost(&refusal)) };
        let words = refusal.clone();
        if backoff.wait(refusal).await.is_err() {
            return Err(self.lost(&words));
        }
        self.tally.sent_again += self.in_flight.iter().map(|batch| batch.count as u64).sum::<u64>();
        self.unsent.extend(self.in_flight.drain(..).chain(self.deferred.drain(..).map(|(batch, _)| batch)));
        self.unsent.make_contiguous().sort_by_key(|batch| batch.sequence);
        self.in_flight_bytes = 0;
        Ok(())
    }

    /// One AppendStream call, until the input is at its end and everything is answered.
    async fn run_call(
        &mut self,
        mut client: StreamClient<Channel>,
        records: &mut Records,
    ) -> Result<(), Refusal> {
        // Room for a whole window: sending never waits here, HTTP/2's flow control is waited for below this channel.
        let (sender, receiver) = mpsc::channel(WINDOW_BATCHES + 1);
        let outgoing = futures::stream::unfold(receiver, |mut receiver: mpsc::Receiver<_>| async move {
            receiver.recv().await.map(|message| (message, receiver))
        });
        let call = async move { client.append_stream(outgoing).await };
        let mut answers: Answers =
            Box::pin(call.map_ok(tonic::Response::into_inner).try_flatten_stream().into_stream());
        let mut first = true;
        let mut deadline = Instant::now() + self.timeout;
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        loop {
            let room = self.in_flight.len() < self.window() && self.in_flight_bytes < WINDOW_BYTES;
            let goes_on = self.stopped.is_none() && self.deferred.is_empty();
            if room
                && goes_on
                && let Some(batch) = self.unsent.pop_front()
            {
                self.send(&sender, batch, &mut first);
                continue;
            }
            let wants_more = goes_on && !self.input_ended;
            if self.in_flight.is_empty() && !wants_more {
                return Ok(());
            }
            if self.in_flight.is_empty() {
                deadline = Instant::now() + self.timeout;
            }
            tokio::select! {
                biased;
                _ = &mut interrupted, if wants_more => self.stopped = Some(Failure::Interrupted),
                answer = answers.next() => {
                    let acks = answer.unwrap_or_else(|| Err(Status::unavailable("the server ended the call")));
                    for ack in acks.map_err(|status| Refusal::of_status(&status))?.acks {
                        self.settle(&ack);
                    }
                    deadline = Instant::now() + self.timeout;
                }
                batch = records.recv(), if room && wants_more => self.take(batch),
                () = tokio::time::sleep_until(deadline), if !self.in_flight.is_empty() => {
                    let late = format!("no answer for {} s", self.timeout.as_secs_f32());
                    // To send again does no harm if the server recognises it.
                    let status = match self.identity {
                        Some(_) => Status::unavailable(late),
                        None => Status::deadline_exceeded(late),
                    };
                    return Err(Refusal::of_status(&status));
                }
            }
        }
    }

    /// A batch of the input becomes one to send.
    fn take(&mut self, batch: Option<Result<Batch<v1::Record>, Failure>>) {
        match batch {
            None => self.input_ended = true,
            Some(Err(failure)) => self.stopped = Some(failure),
            Some(Ok(batch)) => {
                let count = batch.items.len() as u64;
                self.unsent.push_back(InFlight {
                    sequence: self.next_sequence,
                    first_record: self.next_record,
                    first_line: batch.first_line,
                    last_line: batch.last_line,
                    count: batch.items.len(),
                    bytes: batch.bytes,
                    records: batch.items,
                });
                self.next_sequence += 1;
                self.next_record += count;
            }
        }
    }

    fn send(
        &mut self,
        sender: &mpsc::Sender<v1::AppendStreamRequest>,
        mut batch: InFlight,
        first: &mut bool,
    ) {
        let records =
            if self.backoff.is_some() { batch.records.clone() } else { std::mem::take(&mut batch.records) };
        let compressed = self.compression.and_then(|compression| compression.compress(&records));
        let records = if compressed.is_some() { Vec::new() } else { records };
        let request = v1::AppendStreamRequest {
            compressed,
            stream: if std::mem::take(first) { self.stream.clone() } else { String::new() },
            partition: self.partition,
            records,
            sequence: batch.sequence,
            producer: self.identity.map(|(id, epoch)| v1::Producer {
                id,
                epoch,
                sequence: batch.first_record,
            }),
            expected_offset: self.expected_offset.map(|offset| offset + batch.first_record),
        };
        self.in_flight_bytes += batch.bytes;
        self.in_flight.push_back(batch);
        // Fails only if the call is over; its answer says why.
        let _ = sender.try_send(request);
    }

    /// The answer to one batch.
    fn settle(&mut self, ack: &v1::AppendAck) {
        let position = self.in_flight.iter().position(|batch| batch.sequence == ack.sequence);
        let Some(batch) = position.and_then(|at| self.in_flight.remove(at)) else { return };
        self.in_flight_bytes -= batch.bytes;
        if let Some(error) = &ack.error {
            let refusal = Refusal::of_item(error);
            // Behind a batch that was refused for now the server sees a gap; both are sent again, in order.
            let behind = refusal.reason == "SEQUENCE_GAP" && !self.deferred.is_empty();
            if (refusal.is_temporary() || behind) && self.backoff.is_some() {
                self.deferred.push((batch, refusal));
            } else {
                self.refused(&batch, &refusal);
            }
            return;
        }
        if let Some(backoff) = &mut self.backoff {
            backoff.succeeded();
        }
        let before = self.tally.appended;
        if ack.duplicate {
            self.tally.recognised += u64::from(ack.count);
        }
        if ack.parts.is_empty() {
            self.tally.add(ack.partition, ack.base_offset, ack.count);
        }
        for part in &ack.parts {
            match &part.error {
                None => self.tally.add(part.partition, part.base_offset, part.count),
                Some(error) => self.refused(&batch, &Refusal::of_item(error)),
            }
        }
        self.progress.inc(self.tally.appended - before);
    }

    /// The server refused (part of) a batch: no more input is taken, and the first refusal is reported.
    fn refused(&mut self, batch: &InFlight, refusal: &Refusal) {
        self.stopped.get_or_insert_with(|| Failure::Partly {
            report: format!("{refusal} ({}: not appended)", lines(batch.first_line, batch.last_line)),
            code: refusal.exit_code(),
        });
    }

    /// The end of a producer that lost its connection.
    fn lost(&self, refusal: &Refusal) -> Failure {
        let open = || self.in_flight.iter();
        let count: usize = open().map(|batch| batch.count).sum();
        let range = open().map(|batch| batch.first_line).min().zip(open().map(|batch| batch.last_line).max());
        let fate = match range {
            Some((first, last)) => format!(
                "{count} more were sent but not acknowledged ({}): they may or may not have been appended",
                lines(first, last)
            ),
            None => "nothing was left open".to_owned(),
        };
        Failure::Partly {
            report: format!("{refusal}\n{} records were acknowledged; {fate}", self.tally.appended),
            code: refusal.exit_code(),
        }
    }
}

fn lines(first: u64, last: u64) -> String {
    if first == last { format!("line {first}") } else { format!("lines {first} to {last}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_gathered_by_partition() {
        let mut tally = Tally::default();
        tally.add(0, 10, 5);
        tally.add(0, 15, 5);
        tally.add(1, 0, 1);
        tally.add(1, 0, 0);
        assert_eq!(tally.partitions, BTreeMap::from([(0, (10, 19)), (1, (0, 0))]));
        assert_eq!(tally.appended, 11);
    }

    fn batch(sequence: u64) -> InFlight {
        InFlight {
            sequence,
            first_record: sequence * 10,
            first_line: sequence * 10,
            last_line: sequence * 10 + 9,
            count: 10,
            bytes: 100,
            records: vec![],
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_a_loss_leaves_open_is_named() {
        let mut producer = Producer::new("logs".to_owned(), None, Duration::from_secs(1));
        for sequence in [1, 2, 3] {
            producer.in_flight_bytes += 100;
            producer.in_flight.push_back(batch(sequence));
        }
        producer.settle(&v1::AppendAck { sequence: 1, count: 10, ..Default::default() });
        let failure = producer.recover(Refusal::of_status(&Status::unknown("reset"))).await.unwrap_err();
        assert_eq!(failure.exit_code(), 4);
        let message = failure.message().unwrap();
        assert!(message.contains("10 records were acknowledged; 20 more were sent"), "{message}");
        assert!(message.contains("(lines 20 to 39)"), "{message}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn with_retry_everything_open_is_sent_again_in_order() {
        let mut producer = Producer::new("logs".to_owned(), None, Duration::from_secs(1));
        producer.retry_for(Duration::from_mins(1));
        for sequence in [1, 2] {
            producer.in_flight_bytes += 100;
            producer.in_flight.push_back(batch(sequence));
        }
        producer.unsent.push_back(batch(3));
        producer.recover(Refusal::of_status(&Status::unknown("reset"))).await.unwrap();
        let order: Vec<_> = producer.unsent.iter().map(|batch| batch.sequence).collect();
        assert_eq!((order, producer.in_flight_bytes, producer.tally.sent_again), (vec![1, 2, 3], 0, 20));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_an_idempotent_producer_sends_again_is_what_it_sent() {
        let mut producer = Producer::new("logs".to_owned(), Some(0), Duration::from_secs(1));
        producer.retry_for(Duration::from_mins(1));
        producer.idempotent(7, 2);
        producer.expect_offset(100);
        let (sender, mut sent) = mpsc::channel(8);
        for sequence in [1, 2] {
            producer.send(&sender, batch(sequence), &mut true);
        }
        let stamp = |request: v1::AppendStreamRequest| (request.producer.unwrap(), request.expected_offset);
        let first: Vec<_> = [sent.try_recv().unwrap(), sent.try_recv().unwrap()].map(stamp).into();
        assert_eq!(first[1], (v1::Producer { id: 7, epoch: 2, sequence: 20 }, Some(120)));
        // The first is refused for now, and the one behind it for the gap.
        let error = |reason: &str, retry_after_ms| v1::Error {
            code: 8,
            reason: reason.to_owned(),
            retry_after_ms,
            ..Default::default()
        };
        for (sequence, error) in [(1, error("OVERLOADED", Some(1))), (2, error("SEQUENCE_GAP", None))] {
            producer.settle(&v1::AppendAck { sequence, error: Some(error), ..Default::default() });
        }
        assert!(producer.stopped.is_none());
        producer.recover(producer.deferred[0].1.clone()).await.unwrap();
        let again: Vec<_> = std::mem::take(&mut producer.unsent).into();
        for batch in again {
            producer.send(&sender, batch, &mut true);
        }
        assert_eq!(first, [sent.try_recv().unwrap(), sent.try_recv().unwrap()].map(stamp));
        producer.settle(&v1::AppendAck { sequence: 1, count: 10, duplicate: true, ..Default::default() });
        assert_eq!((producer.tally.appended, producer.tally.recognised), (10, 10));
    }

    #[test]
    fn a_refused_batch_stops_the_input_and_names_its_lines() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _guard = runtime.enter();
        let mut producer = Producer::new("logs".to_owned(), None, Duration::from_secs(1));
        producer.in_flight_bytes = 100;
        producer.in_flight.push_back(batch(4));
        let error = v1::Error {
            code: 3,
            reason: "TOO_LARGE".to_owned(),
            message: "m".to_owned(),
            retry_after_ms: None,
            ..Default::default()
        };
        producer.settle(&v1::AppendAck { sequence: 4, error: Some(error), ..Default::default() });
        let failure = producer.stopped.unwrap();
        assert_eq!(failure.exit_code(), 1);
        assert!(failure.message().unwrap().contains("TOO_LARGE: m (lines 40 to 49: not appended)"));
    }
}
