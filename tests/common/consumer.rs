//! Members of consumer groups: one that a test drives step by step ([`Member`]), and one that works by itself
//! ([`Worker`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flowmesh_proto::v1;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::{Status, Streaming};

use super::client::Client;
use super::server::Server;
use super::wait::{eventually, within};

/// The hello of a consumer of these streams.
pub fn hello(group: &str, streams: &[&str]) -> v1::ConsumeHello {
    v1::ConsumeHello {
        group: group.into(),
        streams: streams.iter().map(|&stream| stream.into()).collect(),
        name: "test".into(),
        ..v1::ConsumeHello::default()
    }
}

/// One Consume call.
pub struct Member {
    pub sender: mpsc::UnboundedSender<v1::ConsumeRequest>,
    pub answers: Streaming<v1::ConsumeResponse>,
}

impl Member {
    /// Opens a call of `Replay.Consume`.
    pub async fn open_replay(client: &mut Client, session: &str, credit: u32) -> Result<Self, Status> {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let hello = Some(hello(session, &[]));
        sender.send(v1::ConsumeRequest { hello, credit, ..v1::ConsumeRequest::default() }).unwrap();
        let requests = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        let answers = within("the call opens", client.replay.consume(requests)).await?.into_inner();
        Ok(Self { sender, answers })
    }

    /// Opens the call.
    pub async fn open(client: &mut Client, hello: v1::ConsumeHello, credit: u32) -> Result<Self, Status> {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let first = v1::ConsumeRequest { hello: Some(hello), credit, ..v1::ConsumeRequest::default() };
        sender.send(first).unwrap();
        let requests = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        let answers = within("the call opens", client.group.consume(requests)).await?.into_inner();
        Ok(Self { sender, answers })
    }

    /// The next message.
    pub async fn next(&mut self) -> v1::ConsumeResponse {
        within("a message", self.answers.message()).await.unwrap().expect("the call goes on")
    }

    pub fn send(&self, request: v1::ConsumeRequest) {
        self.sender.send(request).unwrap();
    }

    /// Takes messages until `count` partitions were assigned.
    pub async fn assigned(&mut self, count: usize) -> Vec<v1::GroupOffset> {
        let mut assigned = Vec::new();
        while assigned.len() < count {
            assigned.extend(self.next().await.assigned);
        }
        assigned
    }

    /// Takes messages until there are `count` records: partition, offset, record.
    pub async fn records(&mut self, count: usize) -> Vec<(u32, u64, v1::Record)> {
        let mut records = Vec::new();
        while records.len() < count {
            for batch in self.next().await.batches {
                let batch = batch.batch.unwrap();
                assert_eq!(batch.records.len(), batch.count as usize);
                let partition = batch.partition;
                records.extend((batch.base_offset..).zip(batch.records).map(|(o, r)| (partition, o, r)));
            }
        }
        records
    }

    /// Takes messages until there are `count` outcomes of commits.
    pub async fn outcomes(&mut self, count: usize) -> Vec<v1::OffsetOutcome> {
        let mut outcomes = Vec::new();
        while outcomes.len() < count {
            outcomes.extend(self.next().await.outcomes);
        }
        outcomes
    }
}

/// What happened to a worker.
#[derive(Default)]
pub struct Seen {
    /// What it has now.
    pub owned: BTreeSet<u32>,
    /// All it was ever given, in order.
    pub given: Vec<u32>,
    /// All that was taken from it, in order.
    pub revoked: Vec<u32>,
    /// Partition, offset, value of all it worked on.
    pub records: Vec<(u32, u64, Bytes)>,
    /// Reasons of commits that were refused.
    pub refused: Vec<String>,
    /// Who it is.
    pub member_id: String,
}

/// What a worker does with a batch: partition, offset of the first record, values. Once it is done the batch is
/// committed.
pub type Work = Arc<dyn Fn(u32, u64, Vec<Bytes>) -> BoxFuture<'static, ()> + Send + Sync>;

/// Nothing.
pub fn no_work() -> Work {
    Arc::new(|_, _, _| Box::pin(async {}))
}

/// A consumer that works, commits, lets go of what it must, and comes back after a loss as who it was. It has a connection
/// of its own.
pub struct Worker {
    task: JoinHandle<()>,
    seen: Arc<Mutex<Seen>>,
}

impl Worker {
    /// A worker of the server on that port, which may be another process later.
    pub fn start(server: &Server, hello: v1::ConsumeHello, work: Work) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn(run(server.grpc_port(), hello, work, Arc::clone(&seen)));
        Self { task, seen }
    }

    /// Looks at what happened to it.
    pub fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap())
    }

    /// What it has now.
    pub fn owned(&self) -> BTreeSet<u32> {
        self.look(|seen| seen.owned.clone())
    }

    /// Waits until it has so many partitions.
    pub async fn owns(&self, count: usize) -> BTreeSet<u32> {
        eventually(&format!("it owns {count} partitions"), || async {
            Some(self.owned()).filter(|owned| owned.len() == count)
        })
        .await
    }

    /// Goes away without a word, with its connection.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Calls again and again.
async fn run(port: u16, mut hello: v1::ConsumeHello, work: Work, seen: Arc<Mutex<Seen>>) {
    loop {
        if let Ok(mut client) = Client::try_connect(port).await
            && let Ok(member) = Member::open(&mut client, hello.clone(), 200).await
        {
            work_on(member, &work, &seen).await;
        }
        {
            let mut seen = seen.lock().unwrap();
            seen.owned.clear();
            hello.member_id.clone_from(&seen.member_id);
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// One call, until it breaks off.
async fn work_on(mut member: Member, work: &Work, seen: &Mutex<Seen>) {
    while let Ok(Some(message)) = member.answers.message().await {
        note(&message, &mut seen.lock().unwrap());
        let mut request = v1::ConsumeRequest { released: message.revoked, ..Default::default() };
        let mut done: BTreeMap<(String, u32), u64> = BTreeMap::new();
        for batch in message.batches {
            let (stream, batch) = (batch.stream, batch.batch.unwrap());
            let values: Vec<Bytes> = batch.records.iter().map(|record| record.value.clone()).collect();
            work(batch.partition, batch.base_offset, values.clone()).await;
            let mut seen = seen.lock().unwrap();
            let records = (batch.base_offset..).zip(values).map(|(at, value)| (batch.partition, at, value));
            seen.records.extend(records);
            request.credit += batch.count;
            done.insert((stream, batch.partition), batch.base_offset + u64::from(batch.count));
        }
        request.commits = done
            .into_iter()
            .map(|((stream, partition), offset)| v1::GroupOffset {
                stream,
                partition,
                offset,
                ..Default::default()
            })
            .collect();
        if member.sender.send(request).is_err() {
            return;
        }
    }
}

fn note(message: &v1::ConsumeResponse, seen: &mut Seen) {
    if let Some(membership) = &message.membership {
        seen.member_id.clone_from(&membership.member_id);
    }
    for assigned in &message.assigned {
        seen.given.push(assigned.partition);
        seen.owned.insert(assigned.partition);
    }
    for partition in message.revoked.iter().flat_map(|some| &some.partitions) {
        seen.revoked.push(*partition);
        seen.owned.remove(partition);
    }
    let refused = message.outcomes.iter().filter_map(|outcome| outcome.error.as_ref());
    seen.refused.extend(refused.map(|error| error.reason.clone()));
}
