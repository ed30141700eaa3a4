//! The router as the edges see it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use flowmesh_engine::{Health, ReplySink};
use flowmesh_model::{Catalog, Command, Kind, Millis, Reject, Reply, ResourceInfo, ShardId, WorkerPath};
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::Router;
use super::oneshot::reply_channel;
use crate::edge::backend::Backend;

impl Backend for Router {
    fn catalog(&self) -> Arc<Catalog> {
        Router::catalog(self)
    }

    fn find(&self, kind: Kind, name: &str) -> Option<Arc<ResourceInfo>> {
        Router::find(self, kind, name)
    }

    async fn resolve(&self, kind: Kind, name: &str, create: bool) -> Result<Arc<ResourceInfo>, Reject> {
        Router::resolve(self, kind, name, create).await
    }

    fn shard_of_partition(&self, info: &ResourceInfo, partition: u32) -> ShardId {
        Router::shard_of_partition(self, info, partition)
    }

    fn shard_of_key(&self, info: &ResourceInfo, key: &[u8]) -> ShardId {
        Router::shard_of_key(self, info, key)
    }

    fn shard_of_worker(&self, path: &WorkerPath) -> ShardId {
        Router::shard_of_worker(self, path)
    }

    fn shards(&self) -> u16 {
        Router::shards(self)
    }

    fn local_shard(&self) -> ShardId {
        Router::local_shard(self)
    }

    fn dispatch(&self, to: ShardId, command: Command, sink: Box<dyn ReplySink>) {
        Router::dispatch(self, to, command, sink);
    }

    fn call(&self, to: ShardId, command: Command) -> impl Future<Output = Result<Reply, Reject>> + 'static {
        let (sender, receiver) = reply_channel();
        Router::dispatch(self, to, command, Box::new(sender));
        receiver
    }

    fn now(&self) -> Millis {
        Router::now(self)
    }

    fn sleep(&self, span: Duration) -> LocalBoxFuture<'static, ()> {
        flowmesh_rt::time::sleep(span).boxed_local()
    }

    fn yield_if_needed(&self) -> impl Future<Output = ()> {
        flowmesh_rt::core::yield_if_needed()
    }

    fn is_serving(&self) -> bool {
        !matches!(self.shard().health(), Health::Fenced(_) | Health::Stopping)
    }
}
