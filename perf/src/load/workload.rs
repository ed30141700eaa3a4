//! What virtual clients do: the seam between a thread that moves bytes and the work that the bytes mean.

use super::random::Random;
use super::stats::Recorder;
use crate::http2::Connection;
use crate::http2::hpack::Answer;

/// What a virtual client has to work with when it is called.
#[derive(Debug)]
pub struct Io<'a> {
    /// Its connection.
    pub connection: &'a mut Connection,
    /// Nanoseconds since the run began.
    pub now: u64,
    /// Where it counts.
    pub recorder: &'a mut Recorder,
    /// Its thread's chance.
    pub random: &'a mut Random,
    /// Its tag: all streams it opens carry it.
    pub client: u32,
    /// Whether the run is over, and nothing new should begin.
    pub stopping: bool,
}

/// Whether a virtual client has something under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It has.
    Working,
    /// It is done and can begin anew.
    Idle,
}

/// The work of all virtual clients of one group on one thread. Each has at most one stream open at a time.
pub trait Workload {
    /// An idle client begins. `due`: since when it should have, in nanoseconds since the run began.
    fn begin(&mut self, io: &mut Io<'_>, due: u64);

    /// Bytes for a client.
    fn on_data(&mut self, io: &mut Io<'_>, bytes: &[u8]) -> Progress;

    /// The head of an answer, or with `end` its trailers, after which the stream is over.
    fn on_headers(&mut self, io: &mut Io<'_>, answer: Answer, end: bool) -> Progress;

    /// A client's stream is over without a status.
    fn on_reset(&mut self, io: &mut Io<'_>, code: u32) -> Progress;

    /// The run is over: what would go on for ever must end.
    fn stop(&mut self, _io: &mut Io<'_>) -> Progress {
        Progress::Working
    }
}

/// The words for a call that failed.
pub fn describe(answer: Answer, message: &str) -> String {
    match answer.grpc_status {
        Some(status) => format!("gRPC status {status}: {message}"),
        None => format!("HTTP status {} without a gRPC status", answer.http_status),
    }
}
