//! The way to the server: one HTTP/2 connection, and the patience to find it again.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use super::args::{DEFAULT_ADDR, Server};
use super::failure::{Failure, Refusal, root_cause};
use super::output::note;

/// A message from or to the server: the largest value (16 MiB), or a batch (4 MiB), with everything around it. One byte more than
/// is allowed must reach the server, which says what is.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// Room for what the server sends before this side has read it.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Wraps a channel into a service's client, with this program's message limits.
macro_rules! client {
    ($module:ident :: $client:ident, $channel:expr) => {
        flowmesh_proto::v1::$module::$client::new($channel)
            .max_decoding_message_size($crate::cli::connection::MESSAGE_BYTES_MAX)
            .max_encoding_message_size($crate::cli::connection::MESSAGE_BYTES_MAX)
    };
}
pub(crate) use client;

impl Server {
    /// The address as a URL.
    pub fn url(&self) -> Result<String, Failure> {
        let text = if self.addr.is_empty() { DEFAULT_ADDR } else { &self.addr };
        if text.starts_with("https://") {
            return Err(Failure::Usage(format!("{text}: the server does not speak TLS yet; use http://")));
        }
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let full = if rest.starts_with(':') { format!("127.0.0.1{rest}") } else { rest.to_owned() };
        if full.contains('/') || !full.contains(':') || full.contains(char::is_whitespace) {
            return Err(Failure::Usage(format!(
                "--addr `{text}`; allowed: http://HOST:PORT, HOST:PORT or :PORT"
            )));
        }
        Ok(format!("http://{full}"))
    }

    /// An address as the server tells it, made complete: one without a host is on the host that was connected to.
    pub fn complete(&self, told: &str) -> Result<String, Failure> {
        if !told.starts_with(':') {
            return Ok(told.to_owned());
        }
        let url = self.url()?;
        let reached = url.strip_prefix("http://").and_then(|rest| Some(rest.rsplit_once(':')?.0));
        Ok(format!("{}{told}", reached.unwrap_or_default()))
    }

    /// Connects, once. The channel connects again by itself when it is used after a loss.
    pub async fn connect(&self) -> Result<Channel, Failure> {
        let url = self.url()?;
        let endpoint = Endpoint::from_shared(url.clone())
            .map_err(|error| Failure::Usage(format!("--addr `{url}`: {error}")))?
            .connect_timeout(self.timeout.clamp(Duration::from_millis(1), Duration::from_secs(10)))
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true)
            .user_agent(concat!("flowmesh-cli/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| Failure::Usage(error.to_string()))?;
        endpoint.connect().await.map_err(|error| Failure::Unreachable {
            addr: url,
            problem: root_cause(&error, &error.to_string()),
        })
    }

    /// A request that fails once the timeout has passed.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    /// A request that may wait so much longer than the timeout, because the server was asked to wait.
    pub fn waiting_request<T>(&self, message: T, wait: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout + wait);
        request
    }
}

/// The wait between attempts to go on after a loss: 50 ms, doubling to 2 s, each a random half to a whole of it, and an
/// end to the patience.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    patience: Option<Duration>,
    lost_since: Option<Instant>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(2);

    /// Gives up after `patience` without success; `None`: never.
    pub fn new(patience: Option<Duration>) -> Self {
        Self { next: Self::FIRST, patience, lost_since: None }
    }

    /// Things work again.
    pub fn succeeded(&mut self) {
        self.next = Self::FIRST;
        self.lost_since = None;
    }

    /// Waits before the next attempt; or gives `refusal` back if it is not temporary or patience is over. Says once
    /// that the connection was lost.
    pub async fn wait(&mut self, refusal: Refusal) -> Result<(), Failure> {
        if !refusal.is_temporary() {
            return Err(Failure::Refused(refusal));
        }
        let now = Instant::now();
        if self.lost_since.is_none() {
            note(format_args!("flowmesh: {refusal}; trying again"));
        }
        let since = *self.lost_since.get_or_insert(now);
        if self.patience.is_some_and(|patience| now.duration_since(since) >= patience) {
            return Err(Failure::Refused(refusal));
        }
        let asked = Duration::from_millis(refusal.retry_after_ms.unwrap_or(0));
        tokio::time::sleep(jittered(self.next).max(asked)).await;
        self.next = (self.next * 2).min(Self::LONGEST);
        Ok(())
    }
}

/// Between half of `span` and all of it. The clock's low bits are random enough to spread clients out.
fn jittered(span: Duration) -> Duration {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    span / 2 + span / 2 * (nanos / 1000 % 1000) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(addr: &str) -> Server {
        Server { addr: addr.to_owned(), timeout: Duration::from_secs(1) }
    }

    #[test]
    fn addresses_may_be_short() {
        for (text, url) in [
            ("", "http://127.0.0.1:50051"),
            (":9", "http://127.0.0.1:9"),
            ("host:9", "http://host:9"),
            ("http://[::1]:9/", "http://[::1]:9"),
        ] {
            assert_eq!(server(text).url().unwrap(), url);
        }
        for bad in ["https://x:1", "host", "http://x:1/path", "a b:1"] {
            assert_eq!(server(bad).url().unwrap_err().exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn an_address_without_a_host_is_on_the_host_that_was_reached() {
        for (addr, told, full) in [
            ("db1:50051", ":50052", "db1:50052"),
            ("http://[::1]:9/", ":50052", "[::1]:50052"),
            (":9", ":50052", "127.0.0.1:50052"),
            ("db1:50051", "10.0.0.7:50052", "10.0.0.7:50052"),
            ("db1:50051", "", ""),
        ] {
            assert_eq!(server(addr).complete(told).unwrap(), full);
        }
    }

    #[test]
    fn waits_vary_but_stay_in_bounds() {
        for _ in 0..100 {
            let wait = jittered(Duration::from_millis(100));
            assert!((50..=100).contains(&wait.as_millis()), "{wait:?}");
        }
    }
}
