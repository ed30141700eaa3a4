//! What makes a worker of `queue work` that others see: it registers, says that it is there, learns that it is to stop,
//! and says that it goes.
//!
//! All of that happens in a task of its own, so that whatever the worker is doing, it is heard of.

use std::time::Duration;

use flowmesh_proto::v1::{self, worker_client::WorkerClient};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::Channel;

use crate::cli::args::Server;
use crate::cli::connection::{Backoff, client};
use crate::cli::failure::{Failure, Refusal};
use crate::cli::output::note;

/// At the end the server has so long to hear that the worker goes; it would notice by itself.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

/// Why a worker is to go.
#[derive(Clone, Debug)]
pub enum Notice {
    /// Somebody told it to stop.
    Stop,
    /// Another process has taken its name.
    Fenced(Refusal),
}

/// A worker that registered; or one that did not, of which nobody hears.
#[derive(Debug)]
pub struct Registration {
    notices: watch::Receiver<Option<Notice>>,
    task: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Registration {
    /// A worker that does not register.
    pub fn none() -> Self {
        Self { notices: watch::channel(None).1, task: None }
    }

    /// Registers, and goes on saying that the worker is there. A server that is away is waited for.
    pub async fn new(
        channel: Channel,
        server: Server,
        request: v1::RegisterWorkerRequest,
        patience: Option<Duration>,
    ) -> Result<Self, Failure> {
        let client = client!(worker_client::WorkerClient, channel);
        let mut speaker = Speaker { client, server, request, epoch: 0, pause: Duration::ZERO };
        let mut backoff = Backoff::new(patience);
        while let Err(refusal) = speaker.register().await {
            if refusal.code == Code::Unimplemented {
                note("flowmesh: this server knows nothing of workers; nobody sees this one");
                return Ok(Self::none());
            }
            backoff.wait(refusal).await?;
        }
        let (tell, notices) = watch::channel(None);
        let (leave, left) = oneshot::channel();
        let task = tokio::spawn(speaker.speak(tell, left));
        Ok(Self { notices, task: Some((leave, task)) })
    }

    /// Returns once the worker is to go, with why. Never, if that does not happen.
    pub async fn notice(&mut self) -> Notice {
        match self.notices.wait_for(Option::is_some).await.map(|notice| notice.clone()) {
            Ok(Some(notice)) => notice,
            _ => std::future::pending().await,
        }
    }

    /// Says that the worker goes. Fails if another process has taken its name.
    pub async fn leave(self) -> Result<(), Failure> {
        if let Some((leave, task)) = self.task {
            let _ = leave.send(());
            let _ = task.await;
        }
        match self.notices.borrow().clone() {
            Some(Notice::Fenced(refusal)) => Err(Failure::Refused(refusal)),
            _ => Ok(()),
        }
    }
}

/// The task that speaks for the worker.
struct Speaker {
    client: WorkerClient<Channel>,
    server: Server,
    request: v1::RegisterWorkerRequest,
    epoch: u64,
    /// Between heartbeats.
    pause: Duration,
}

impl Speaker {
    async fn register(&mut self) -> Result<(), Refusal> {
        let answer = self.client.register(self.server.request(self.request.clone())).await;
        let answer = answer.map_err(|status| Refusal::of_status(&status))?.into_inner();
        self.epoch = answer.epoch;
        self.pause = Duration::from_millis(answer.heartbeat_interval_ms.max(1));
        Ok(())
    }

    /// Until it is to leave, or somebody else has its name.
    async fn speak(mut self, tell: watch::Sender<Option<Notice>>, mut left: oneshot::Receiver<()>) {
        loop {
            tokio::select! {
                _ = &mut left => return self.leave().await,
                () = tokio::time::sleep(self.pause) => {}
            }
            let outcome = tokio::select! {
                _ = &mut left => return self.leave().await,
                outcome = self.heartbeat() => outcome,
            };
            match outcome {
                Ok(true) => {
                    tell.send_if_modified(|notice| notice.replace(Notice::Stop).is_none());
                }
                Err(refusal) if refusal.reason == "STALE_WORKER" => {
                    tell.send_replace(Some(Notice::Fenced(refusal)));
                    return;
                }
                // A server that is away says nothing of the worker: it is tried again with the next heartbeat.
                Ok(false) | Err(_) => {}
            }
        }
    }

    /// Whether the worker is to stop. One that was forgotten registers anew.
    async fn heartbeat(&mut self) -> Result<bool, Refusal> {
        let (worker, epoch) = (self.request.worker.clone(), self.epoch);
        let request = v1::WorkerHeartbeatRequest { worker, epoch, without_queues: true };
        // What does not answer in time for the next heartbeat is tried again with it.
        let mut request = self.server.request(request);
        request.set_timeout(self.server.timeout.min(self.pause.max(Duration::from_secs(1))));
        match self.client.heartbeat(request).await {
            Ok(answer) => Ok(answer.into_inner().stop),
            Err(status) => {
                let refusal = Refusal::of_status(&status);
                match refusal.reason.as_str() {
                    "WORKER_NOT_FOUND" | "WORKER_GONE" => self.register().await.map(|()| false),
                    _ => Err(refusal),
                }
            }
        }
    }

    async fn leave(mut self) {
        let request = v1::LeaveWorkerRequest { worker: self.request.worker.clone(), epoch: self.epoch };
        let leave = self.client.leave(self.server.request(request));
        let _ = tokio::time::timeout(LEAVE_PATIENCE, leave).await;
    }
}
