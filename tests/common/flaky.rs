//! A way to the server that breaks off: each connection carries a random number of bytes and is then cut, in the middle of
//! whatever it carries. What was sent may have arrived, its answer may be lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::Random;

/// A listener in front of a port.
pub struct Flaky {
    port: u16,
    cuts: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Flaky {
    /// In front of `target`; connections carry up to `bytes_max` of answers, one in three no bound.
    pub async fn start(target: u16, bytes_max: u64, random: &mut Random) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cuts, mut random) = (Arc::new(AtomicU64::new(0)), random.fork());
        let counted = Arc::clone(&cuts);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let budget = if random.below(3) == 0 { u64::MAX } else { random.below(bytes_max) };
                tokio::spawn(carry(client, target, budget, Arc::clone(&counted)));
            }
        });
        Self { port, cuts, task }
    }

    /// Where to connect.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections were cut.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Flaky {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, target: u16, budget: u64, cuts: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let requests = copy(from_client, to_server, u64::MAX);
    let answers = copy(from_server, to_client, budget);
    tokio::select! {
        _ = requests => {}
        cut = answers => {
            if cut {
                cuts.fetch_add(1, Ordering::Relaxed);
                // Requests that are on their way still arrive, at times.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

/// Returns whether the budget ended it.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut budget: u64) -> bool {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return false };
        let passed = budget.min(count as u64);
        budget -= passed;
        if to.write_all(&buffer[..passed as usize]).await.is_err() {
            return false;
        }
        if budget == 0 {
            return true;
        }
    }
}
