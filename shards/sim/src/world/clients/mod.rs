//! Clients, each with what it must find: simple models of what was acknowledged, refused, or is not known.

pub(crate) mod fading;
pub(crate) mod groups;
pub(crate) mod keys;
pub(crate) mod letters;
pub(crate) mod queue;
pub(crate) mod schedules;
pub(crate) mod stream;

use flowmesh_model::{Command, Reject, Reply, ShardId};
use futures::future::LocalBoxFuture;

use super::server::{Lost, Server, Shared};
use crate::happened::Happening;

/// What clients may use besides what they always use.
pub(crate) trait Workload {
    /// Uses it, for ever.
    fn use_it(&self, client: u64) -> LocalBoxFuture<'static, ()>;

    /// Looks at all of it, when all is quiet. False if answers did not come.
    fn check(&self, site: Site) -> LocalBoxFuture<'static, bool>;
}

/// What is known of a command.
pub(crate) enum Known {
    /// It was carried out; what came back.
    Done(Reply),
    /// It was not carried out, and never will be.
    Not,
    /// It was carried out, or was not, or still will be unless the process ends first.
    Unknown,
}

/// What all clients have.
#[derive(Clone)]
pub(crate) struct Site {
    pub shared: Shared,
    pub server: Server,
    /// One in so many calls is given up before its answer; 0: none.
    pub impatient: u64,
}

impl Site {
    /// Calls, and writes down what came of it.
    pub async fn call(&self, who: &str, to: ShardId, command: Command) -> Known {
        let said = format!("{command:?}");
        let call = self.server.call(to, command);
        let outcome = if self.impatient > 0 && self.shared.below(self.impatient) == 0 {
            let patience = std::pin::pin!(self.shared.delay(200));
            match futures::future::select(std::pin::pin!(call), patience).await {
                futures::future::Either::Left((outcome, _)) => outcome,
                futures::future::Either::Right(_) => {
                    self.shared.happened.note(Happening::Disconnect);
                    Err(Lost)
                }
            }
        } else {
            call.await
        };
        let at_ns = flowmesh_engine::Timer::monotonic_ns(&self.shared.clock);
        self.shared.trace.line(at_ns, format_args!("{who} {said} = {outcome:?}"));
        match outcome {
            Ok(Ok(reply)) => Known::Done(reply),
            // What was on its way to the disk may have arrived there.
            Ok(Err(Reject::Fenced { .. })) | Err(Lost) => Known::Unknown,
            Ok(Err(Reject::Damaged { place })) => {
                let Some(refused) = self.shared.loss.get() else {
                    panic!("damage where there is none: {place}")
                };
                self.shared.happened.note(refused);
                Known::Not
            }
            Ok(Err(Reject::Internal(what))) => panic!("what cannot be: {what}"),
            Ok(Err(_)) => Known::Not,
        }
    }

    /// A pause between two calls.
    pub async fn pause(&self) {
        let us = 1 << self.shared.below(13);
        self.shared.delay(us).await;
    }
}
