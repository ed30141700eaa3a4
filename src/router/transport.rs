//! The way that jobs take from their queue to another queue or a stream: that of any command, to the shard that has it.

use flowmesh_engine::{ReplySink, Transport};
use flowmesh_model::transfer::Arrival;
use flowmesh_model::{Command, Kind, PartitionRef, QueueCommand, Reject, StreamCommand, TransferCommand};

use super::Router;

impl Transport for Router {
    /// This core's catalog is never older than what its shard knows, so what is missing in it is gone.
    fn deliver(&self, to: PartitionRef, arrival: Arrival, sink: Box<dyn ReplySink>) {
        let catalog = self.catalog();
        let Some(info) = catalog.get(to.resource) else {
            let path = format!("number {}", to.resource);
            return sink.deliver(Err(Reject::ResourceNotFound { path }));
        };
        let command = match info.path.kind() {
            Kind::Queue => {
                Command::Queue(to.resource, QueueCommand::Transfer(TransferCommand::Receive(arrival)))
            }
            Kind::Stream => Command::Stream(to, StreamCommand::Receive(arrival)),
            actual @ (Kind::Kv | Kind::Group | Kind::Replay) => {
                let path = info.path.to_string();
                return sink.deliver(Err(Reject::WrongKind { path, expected: Kind::Queue, actual }));
            }
        };
        self.dispatch(self.shard_of_partition(info, to.partition), command, sink);
    }
}
