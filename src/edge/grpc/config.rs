//! What can be set for gRPC connections, with the reason for each default.

use std::time::Duration;

/// Settings of gRPC connections.
#[derive(Clone, Debug)]
pub struct GrpcConfig {
    /// Bytes of one stream that a client may send before the server took them. 1 MiB keeps a producer busy over a
    /// round trip of 10 ms at 100 MB/s.
    pub stream_window_bytes: u32,
    /// The same for all streams of a connection.
    pub connection_window_bytes: u32,
    /// The largest DATA frame taken. A message in one frame is never copied.
    pub frame_bytes_max: u32,
    /// All headers of a request together.
    pub header_bytes_max: u32,
    /// Calls in progress on one connection.
    pub streams_max: u32,
    /// Bytes of one reply stream that wait for the socket.
    pub send_buffer_bytes: usize,
    /// Bytes of large replies a connection may have waiting; further calls get OVERLOADED until the client reads.
    pub reply_backlog_bytes_max: usize,
    /// Bytes of requests above what most methods take (4 MiB) that all connections of a core may be sending; further ones
    /// get OVERLOADED. One is always allowed.
    pub large_request_bytes_max: usize,
    /// The client must have finished the HTTP/2 handshake by then.
    pub handshake_timeout: Duration,
    /// A ping goes out when nothing was received for so long; `Duration::MAX`: never.
    pub keepalive_interval: Duration,
    /// The connection is dropped if nothing came in for so long after a ping.
    pub keepalive_timeout: Duration,
    /// A connection without calls for so long is told to go away; `Duration::MAX`: never.
    pub idle_timeout: Duration,
    /// A connection is told to go away at this age; for load balancers that spread connections.
    pub age_max: Option<Duration>,
    /// After a GOAWAY, calls in progress have so long to finish.
    pub drain_timeout: Duration,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            stream_window_bytes: 1024 * 1024,
            connection_window_bytes: 8 * 1024 * 1024,
            frame_bytes_max: 1024 * 1024,
            header_bytes_max: 16 * 1024,
            streams_max: 1024,
            send_buffer_bytes: 1024 * 1024,
            reply_backlog_bytes_max: 64 * 1024 * 1024,
            large_request_bytes_max: 64 * 1024 * 1024,
            handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_mins(1),
            keepalive_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_mins(30),
            age_max: None,
            drain_timeout: Duration::from_secs(10),
        }
    }
}
