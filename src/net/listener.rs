//! The accept loop of one address on one core.

use std::pin::pin;
use std::time::Duration;

use flowmesh_rt::core::{catch_unwind, spawn_local};
use flowmesh_rt::net::{Listener, TcpStream};
use flowmesh_rt::time;
use futures::FutureExt;
use futures::future::{Either, LocalBoxFuture, Shared, select};

use super::Connections;

/// After a failed accept, most often for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Ready once the server is asked to stop. Any number of tasks of the core may wait for a clone.
pub type Stopped = Shared<LocalBoxFuture<'static, ()>>;

/// Makes a stop that many can wait for out of one that is waited for once.
pub fn stopped(stop: impl Future<Output = ()> + 'static) -> Stopped {
    stop.boxed_local().shared()
}

/// Accepts connections until `stopped`, and lets `serve` have each in a task of its own. One that finds `connections`
/// full is closed at once. A panic in a connection ends that connection only.
pub async fn accept<S, F>(listener: Listener, connections: Connections, stopped: Stopped, serve: S)
where
    S: Fn(TcpStream, Stopped) -> F,
    F: Future<Output = ()> + 'static,
{
    loop {
        let accepted = pin!(listener.accept());
        let socket = match select(accepted, stopped.clone()).await {
            Either::Left((Ok(socket), _)) => socket,
            Either::Left((Err(error), _)) => {
                tracing::warn!(%error, "cannot accept a connection");
                time::sleep(ACCEPT_RETRY).await;
                continue;
            }
            Either::Right(_) => return,
        };
        let Some(place) = connections.admit() else {
            let limit = connections.max();
            tracing::warn!(limit, setting = "connections_max", "too many connections: one was closed");
            continue;
        };
        let served = serve(socket, stopped.clone());
        spawn_local(async move {
            if let Err(panic) = catch_unwind(served).await {
                tracing::error!(%panic, "a connection panicked and was closed");
            }
            drop(place);
        })
        .detach();
    }
}
