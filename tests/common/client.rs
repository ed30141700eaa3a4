//! tonic clients, an implementation of gRPC that is not ours, and the shortest forms of common calls.

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use flowmesh_proto::v1::admin_client::AdminClient;
use flowmesh_proto::v1::group_client::GroupClient;
use flowmesh_proto::v1::kv_client::KvClient;
use flowmesh_proto::v1::queue_client::QueueClient;
use flowmesh_proto::v1::replay_client::ReplayClient;
use flowmesh_proto::v1::schedule_client::ScheduleClient;
use flowmesh_proto::v1::stream_client::StreamClient;
use flowmesh_proto::v1::worker_client::WorkerClient;
use flowmesh_proto::{rpc, v1};
use prost::Message;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::server::Server;

/// Above the largest answer there is.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// Clients of all services over one connection.
#[derive(Clone)]
pub struct Client {
    pub channel: Channel,
    pub stream: StreamClient<Channel>,
    pub queue: QueueClient<Channel>,
    pub kv: KvClient<Channel>,
    pub admin: AdminClient<Channel>,
    pub group: GroupClient<Channel>,
    pub replay: ReplayClient<Channel>,
    pub schedule: ScheduleClient<Channel>,
    pub worker: WorkerClient<Channel>,
}

impl Server {
    /// Connects to the shared port.
    pub async fn client(&self) -> Client {
        Client::connect(self.grpc_port()).await
    }

    /// Connects to one core.
    pub async fn client_of_core(&self, shard: u16) -> Client {
        Client::connect(self.core_port(shard)).await
    }
}

impl Client {
    /// Connects to a port; panics if nobody is there.
    pub async fn connect(port: u16) -> Self {
        Self::try_connect(port).await.unwrap()
    }

    /// Connects to a port.
    pub async fn try_connect(port: u16) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?
            .connect_timeout(Duration::from_secs(10))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20);
        Ok(Self::over(endpoint.connect().await?))
    }

    /// Clients over a channel.
    pub fn over(channel: Channel) -> Self {
        Self {
            stream: StreamClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            queue: QueueClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            kv: KvClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            admin: AdminClient::new(channel.clone()),
            group: GroupClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            replay: ReplayClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            schedule: ScheduleClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            worker: WorkerClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            channel,
        }
    }

    /// Appends records with these values to a stream of one partition.
    pub async fn append<V: Into<Bytes>>(
        &mut self,
        stream: &str,
        values: impl IntoIterator<Item = V>,
    ) -> Result<v1::AppendResponse, Status> {
        let records = values.into_iter().map(record).collect();
        let request =
            v1::AppendRequest { stream: stream.into(), partition: None, records, ..Default::default() };
        self.stream.append(request).await.map(tonic::Response::into_inner)
    }

    /// All records of a partition from `offset` on, with their offsets.
    pub async fn read_from(&mut self, stream: &str, partition: u32, offset: u64) -> Vec<(u64, v1::Record)> {
        let mut records = Vec::new();
        let mut next = offset;
        loop {
            let request = v1::ReadRequest {
                stream: stream.into(),
                partition,
                start: Some(v1::read_request::Start::Offset(next)),
                max_records: 10_000,
                max_bytes: 4 << 20,
                ..v1::ReadRequest::default()
            };
            let answer = self.stream.read(request).await.unwrap().into_inner();
            for batch in &answer.batches {
                assert_eq!(batch.base_offset, next, "batches follow without a gap");
                assert_eq!(batch.count as usize, batch.records.len());
                records.extend((next..).zip(batch.records.iter().cloned()));
                next += u64::from(batch.count);
            }
            assert_eq!(answer.next_offset, next);
            if answer.batches.is_empty() {
                assert_eq!(next, answer.high_watermark, "an empty answer means the end");
                return records;
            }
        }
    }

    /// All values of a stream's first partition.
    pub async fn values(&mut self, stream: &str) -> Vec<Bytes> {
        self.read_from(stream, 0, 0).await.into_iter().map(|(_, record)| record.value).collect()
    }

    /// Sets one key; its version.
    pub async fn set(
        &mut self,
        store: &str,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<u64, Status> {
        let outcome = self.set_entry(store, entry(key, value)).await?;
        assert_eq!(outcome.error, None);
        Ok(outcome.version)
    }

    /// Sets one entry.
    pub async fn set_entry(&mut self, store: &str, entry: v1::SetEntry) -> Result<v1::SetOutcome, Status> {
        let request = v1::SetRequest { store: store.into(), entries: vec![entry] };
        let mut outcomes = self.kv.set(request).await?.into_inner().outcomes;
        assert_eq!(outcomes.len(), 1);
        Ok(outcomes.remove(0))
    }

    /// What a key holds.
    pub async fn entry(
        &mut self,
        store: &str,
        key: impl Into<Bytes>,
    ) -> Result<Option<v1::GetEntry>, Status> {
        let request = v1::GetRequest { store: store.into(), keys: vec![key.into()], as_of: None };
        let mut entries = self.kv.get(request).await?.into_inner().entries;
        assert_eq!(entries.len(), 1);
        Ok(Some(entries.remove(0)).filter(|entry| entry.found))
    }

    /// A key's value.
    pub async fn get(&mut self, store: &str, key: impl Into<Bytes>) -> Option<Bytes> {
        self.entry(store, key).await.unwrap().map(|entry| entry.value)
    }

    /// All entries of a store that start with `prefix`, page by page.
    pub async fn scan(&mut self, store: &str, prefix: &[u8], page: u32) -> Vec<v1::ScanEntry> {
        let mut entries = Vec::new();
        let mut after = None;
        loop {
            let request = v1::ScanRequest {
                store: store.into(),
                prefix: Bytes::copy_from_slice(prefix),
                after,
                limit: page,
                ..v1::ScanRequest::default()
            };
            let answer = self.kv.scan(request).await.unwrap().into_inner();
            assert!(page == 0 || answer.entries.len() <= page as usize);
            entries.extend(answer.entries);
            match answer.next {
                Some(next) => after = Some(next),
                None => return entries,
            }
        }
    }

    /// Enqueues jobs with these payloads.
    pub async fn enqueue<P: Into<Bytes>>(
        &mut self,
        queue: &str,
        payloads: impl IntoIterator<Item = P>,
    ) -> Result<Vec<u64>, Status> {
        self.enqueue_jobs(queue, payloads.into_iter().map(job).collect()).await
    }

    /// Enqueues jobs.
    pub async fn enqueue_jobs(&mut self, queue: &str, jobs: Vec<v1::NewJob>) -> Result<Vec<u64>, Status> {
        let request = v1::EnqueueRequest { queue: queue.into(), jobs, wait_ms: 0 };
        Ok(self.queue.enqueue(request).await?.into_inner().job_ids)
    }

    /// Leases up to `jobs` ready jobs for `lease_ms`, waiting up to `wait_ms` for one.
    pub async fn reserve(
        &mut self,
        queue: &str,
        jobs: u32,
        lease_ms: u64,
        wait_ms: u64,
    ) -> Result<Vec<v1::LeasedJob>, Status> {
        let request = v1::ReserveRequest {
            queue: queue.into(),
            max_jobs: jobs,
            visibility_timeout_ms: Some(lease_ms),
            wait_ms,
            worker: "test".into(),
        };
        Ok(self.queue.reserve(request).await?.into_inner().jobs)
    }

    /// Acknowledges jobs; the reasons of those that were refused.
    pub async fn ack(&mut self, queue: &str, jobs: &[v1::LeasedJob]) -> Vec<Option<String>> {
        let request = v1::AckRequest { queue: queue.into(), leases: jobs.iter().map(ack_of).collect() };
        let outcomes = self.queue.ack(request).await.unwrap().into_inner().outcomes;
        assert_eq!(outcomes.len(), jobs.len());
        outcomes.into_iter().map(|outcome| outcome.error.map(|error| error.reason)).collect()
    }

    /// Gives one job back; the reason if that was refused.
    pub async fn nack(&mut self, queue: &str, job: &v1::LeasedJob, delay_ms: Option<u64>) -> Option<String> {
        let nack = v1::NackItem { delay_ms, error: "no luck".into(), ..nack_of(job) };
        self.nack_as(queue, nack).await
    }

    /// Gives one job back, as `nack` says; the reason if that was refused.
    pub async fn nack_as(&mut self, queue: &str, nack: v1::NackItem) -> Option<String> {
        let request = v1::NackRequest { queue: queue.into(), nacks: vec![nack] };
        let outcomes = self.queue.nack(request).await.unwrap().into_inner().outcomes;
        outcomes.into_iter().next().unwrap().error.map(|error| error.reason)
    }

    /// Creates a queue.
    pub async fn create_queue(&mut self, name: &str, settings: v1::QueueSettings) {
        self.create(name, v1::settings::Kind::Queue(settings)).await.unwrap();
    }

    /// All that is known of a job.
    pub async fn job(&mut self, queue: &str, job_id: u64) -> Result<v1::Job, Status> {
        let request = v1::GetJobRequest { queue: queue.into(), job_id, wait_ms: 0 };
        self.queue.get(request).await.map(tonic::Response::into_inner)
    }

    /// The jobs of a phase that match, page by page.
    pub async fn jobs(&mut self, queue: &str, phase: v1::JobPhase, filter: v1::JobFilter) -> Vec<v1::Job> {
        let (mut jobs, mut after) = (Vec::new(), None);
        loop {
            let request = v1::ListJobsRequest {
                queue: queue.into(),
                phase: phase.into(),
                filter: Some(filter.clone()),
                after,
                ..v1::ListJobsRequest::default()
            };
            let page = self.queue.list(request).await.unwrap().into_inner();
            jobs.extend(page.jobs);
            after = page.next;
            if after.is_none() {
                return jobs;
            }
        }
    }

    /// Counts of a queue's jobs.
    pub async fn queue_status(&mut self, queue: &str) -> v1::QueueStatusResponse {
        let request = v1::QueueStatusRequest { queue: queue.into() };
        self.queue.status(request).await.unwrap().into_inner()
    }

    /// Creates a resource.
    pub async fn create(
        &mut self,
        name: &str,
        settings: v1::settings::Kind,
    ) -> Result<v1::CreateResourceResponse, Status> {
        let request = v1::CreateResourceRequest {
            name: name.into(),
            settings: Some(v1::Settings { kind: Some(settings) }),
            ..v1::CreateResourceRequest::default()
        };
        self.admin.create_resource(request).await.map(tonic::Response::into_inner)
    }

    /// Creates a stream with so many partitions.
    pub async fn create_stream(&mut self, name: &str, partitions: u32) {
        let settings = v1::StreamSettings { partitions: Some(partitions), ..v1::StreamSettings::default() };
        self.create(name, v1::settings::Kind::Stream(settings)).await.unwrap();
    }
}

/// A record with a value and nothing else.
pub fn record(value: impl Into<Bytes>) -> v1::Record {
    v1::Record { value: value.into(), ..v1::Record::default() }
}

/// A record with key and value.
pub fn keyed(key: impl Into<Bytes>, value: impl Into<Bytes>) -> v1::Record {
    v1::Record { key: Some(key.into()), value: value.into(), ..v1::Record::default() }
}

/// A job with a payload and nothing else.
pub fn job(payload: impl Into<Bytes>) -> v1::NewJob {
    v1::NewJob { payload: payload.into(), ..v1::NewJob::default() }
}

/// An entry to set without conditions.
pub fn entry(key: impl Into<Bytes>, value: impl Into<Bytes>) -> v1::SetEntry {
    v1::SetEntry { key: key.into(), value: value.into(), ..v1::SetEntry::default() }
}

/// The lease of a job.
pub fn lease(job: &v1::LeasedJob) -> v1::Lease {
    v1::Lease { job_id: job.job_id, token: job.token }
}

/// A job that is done, with nothing to say.
pub fn ack_of(job: &v1::LeasedJob) -> v1::AckItem {
    v1::AckItem { job_id: job.job_id, token: job.token, ..v1::AckItem::default() }
}

/// A job that failed, with nothing to say.
pub fn nack_of(job: &v1::LeasedJob) -> v1::NackItem {
    v1::NackItem { job_id: job.job_id, token: job.token, ..v1::NackItem::default() }
}

/// A read from an offset.
pub fn read_at(stream: &str, offset: u64) -> v1::ReadRequest {
    v1::ReadRequest {
        stream: stream.into(),
        start: Some(v1::read_request::Start::Offset(offset)),
        ..v1::ReadRequest::default()
    }
}

/// The details of a refusal, each decoded if it is of that type.
pub fn details<M: Message + Default>(status: &Status, name: &str) -> Vec<M> {
    let all = rpc::Status::decode(status.details()).unwrap();
    assert_eq!(all.code, status.code() as i32);
    assert_eq!(all.message, status.message());
    let wanted = format!("type.googleapis.com/google.rpc.{name}");
    let of_type = all.details.iter().filter(|any| any.type_url == wanted);
    of_type.map(|any| M::decode(any.value.as_slice()).unwrap()).collect()
}

/// The stable reason of a refusal.
pub fn reason(status: &Status) -> String {
    let infos: Vec<rpc::ErrorInfo> = details(status, "ErrorInfo");
    assert_eq!(infos.len(), 1, "one ErrorInfo: {status:?}");
    assert_eq!(infos[0].domain, "flowmesh");
    infos[0].reason.clone()
}

/// The call must have been refused with this code and reason.
#[track_caller]
pub fn refused<T: Debug>(outcome: Result<T, Status>, code: Code, why: &str) -> Status {
    let status = outcome.expect_err("it must be refused");
    assert_eq!((status.code(), reason(&status).as_str()), (code, why), "{status:?}");
    status
}

/// The refusal names this field.
#[track_caller]
pub fn names_field(status: &Status, field: &str) {
    let bad: Vec<rpc::BadRequest> = details(status, "BadRequest");
    let fields: Vec<&str> =
        bad.iter().flat_map(|bad| &bad.field_violations).map(|v| v.field.as_str()).collect();
    assert!(fields.contains(&field), "{fields:?} should name {field}: {status:?}");
}
