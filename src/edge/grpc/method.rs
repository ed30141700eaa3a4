//! Every method there is, by path.

use flowmesh_model::limits::{KV_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX};

macro_rules! methods {
    ($($variant:ident = $path:literal),+ $(,)?) => {
        /// A method of a service here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the paths say it")]
        pub enum Method { $($variant),+ }

        impl Method {
            /// All methods.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The method of a request's path.
            pub fn of(path: &str) -> Option<Self> {
                match path {
                    $(concat!("/", $path) => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// Service and method, as in metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $path),+ }
            }
        }
    };
}

methods! {
    StreamAppend = "flowmesh.v1.Stream/Append",
    StreamRead = "flowmesh.v1.Stream/Read",
    StreamStatus = "flowmesh.v1.Stream/Status",
    StreamOffsetsFor = "flowmesh.v1.Stream/OffsetsFor",
    StreamTrim = "flowmesh.v1.Stream/Trim",
    StreamAppendStream = "flowmesh.v1.Stream/AppendStream",
    StreamInitProducer = "flowmesh.v1.Stream/InitProducer",
    StreamSubscribe = "flowmesh.v1.Stream/Subscribe",
    QueueEnqueue = "flowmesh.v1.Queue/Enqueue",
    QueueReserve = "flowmesh.v1.Queue/Reserve",
    QueueAck = "flowmesh.v1.Queue/Ack",
    QueueNack = "flowmesh.v1.Queue/Nack",
    QueueExtend = "flowmesh.v1.Queue/Extend",
    QueueProgress = "flowmesh.v1.Queue/Progress",
    QueueCancel = "flowmesh.v1.Queue/Cancel",
    QueueChange = "flowmesh.v1.Queue/Change",
    QueueRedrive = "flowmesh.v1.Queue/Redrive",
    QueuePurge = "flowmesh.v1.Queue/Purge",
    QueueReplay = "flowmesh.v1.Queue/Replay",
    QueueOutbox = "flowmesh.v1.Queue/Outbox",
    QueuePause = "flowmesh.v1.Queue/Pause",
    QueueResume = "flowmesh.v1.Queue/Resume",
    QueueGet = "flowmesh.v1.Queue/Get",
    QueuePeek = "flowmesh.v1.Queue/Peek",
    QueueList = "flowmesh.v1.Queue/List",
    QueueStatus = "flowmesh.v1.Queue/Status",
    QueueWork = "flowmesh.v1.Queue/Work",
    KvSet = "flowmesh.v1.Kv/Set",
    KvGet = "flowmesh.v1.Kv/Get",
    KvDelete = "flowmesh.v1.Kv/Delete",
    KvExists = "flowmesh.v1.Kv/Exists",
    KvScan = "flowmesh.v1.Kv/Scan",
    KvRun = "flowmesh.v1.Kv/Run",
    KvRandom = "flowmesh.v1.Kv/Random",
    KvStatus = "flowmesh.v1.Kv/Status",
    KvClear = "flowmesh.v1.Kv/Clear",
    KvVersions = "flowmesh.v1.Kv/Versions",
    KvDiff = "flowmesh.v1.Kv/Diff",
    KvWatch = "flowmesh.v1.Kv/Watch",
    GroupConsume = "flowmesh.v1.Group/Consume",
    GroupHeartbeat = "flowmesh.v1.Group/Heartbeat",
    GroupCommit = "flowmesh.v1.Group/Commit",
    GroupFetchOffsets = "flowmesh.v1.Group/FetchOffsets",
    GroupList = "flowmesh.v1.Group/List",
    GroupDescribe = "flowmesh.v1.Group/Describe",
    GroupResetOffsets = "flowmesh.v1.Group/ResetOffsets",
    GroupDeleteOffsets = "flowmesh.v1.Group/DeleteOffsets",
    GroupRemoveMember = "flowmesh.v1.Group/RemoveMember",
    GroupDelete = "flowmesh.v1.Group/Delete",
    ReplayConsume = "flowmesh.v1.Replay/Consume",
    ReplayCreate = "flowmesh.v1.Replay/Create",
    ReplayStart = "flowmesh.v1.Replay/Start",
    ReplayPause = "flowmesh.v1.Replay/Pause",
    ReplayResume = "flowmesh.v1.Replay/Resume",
    ReplaySeek = "flowmesh.v1.Replay/Seek",
    ReplayStop = "flowmesh.v1.Replay/Stop",
    ReplayStep = "flowmesh.v1.Replay/Step",
    ReplaySetSpeed = "flowmesh.v1.Replay/SetSpeed",
    ReplayFail = "flowmesh.v1.Replay/Fail",
    ReplayDescribe = "flowmesh.v1.Replay/Describe",
    ReplayList = "flowmesh.v1.Replay/List",
    ReplayDelete = "flowmesh.v1.Replay/Delete",
    ScheduleCreate = "flowmesh.v1.Schedule/Create",
    ScheduleUpdate = "flowmesh.v1.Schedule/Update",
    ScheduleList = "flowmesh.v1.Schedule/List",
    ScheduleDescribe = "flowmesh.v1.Schedule/Describe",
    SchedulePause = "flowmesh.v1.Schedule/Pause",
    ScheduleResume = "flowmesh.v1.Schedule/Resume",
    ScheduleNext = "flowmesh.v1.Schedule/Next",
    ScheduleRunNow = "flowmesh.v1.Schedule/RunNow",
    ScheduleDelete = "flowmesh.v1.Schedule/Delete",
    WorkerRegister = "flowmesh.v1.Worker/Register",
    WorkerHeartbeat = "flowmesh.v1.Worker/Heartbeat",
    WorkerLeave = "flowmesh.v1.Worker/Leave",
    WorkerList = "flowmesh.v1.Worker/List",
    WorkerDescribe = "flowmesh.v1.Worker/Describe",
    WorkerStop = "flowmesh.v1.Worker/Stop",
    WorkerForget = "flowmesh.v1.Worker/Forget",
    AdminCreateResource = "flowmesh.v1.Admin/CreateResource",
    AdminUpdateResource = "flowmesh.v1.Admin/UpdateResource",
    AdminDescribeResource = "flowmesh.v1.Admin/DescribeResource",
    AdminListResources = "flowmesh.v1.Admin/ListResources",
    AdminDeleteResource = "flowmesh.v1.Admin/DeleteResource",
    AdminTopology = "flowmesh.v1.Admin/Topology",
    AdminServerInfo = "flowmesh.v1.Admin/ServerInfo",
    HealthCheck = "grpc.health.v1.Health/Check",
    HealthWatch = "grpc.health.v1.Health/Watch",
    ReflectionInfo = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
}

impl Method {
    /// What a request message may have, decompressed.
    pub const fn message_bytes_max(self) -> usize {
        match self {
            Self::KvSet | Self::KvRun => KV_MESSAGE_BYTES_MAX,
            _ => MESSAGE_BYTES_MAX,
        }
    }

    /// Whether the client may send, or gets, more than one message.
    pub const fn is_streaming(self) -> bool {
        matches!(
            self,
            Self::StreamAppendStream
                | Self::StreamSubscribe
                | Self::KvWatch
                | Self::QueueWork
                | Self::GroupConsume
                | Self::ReplayConsume
                | Self::HealthWatch
                | Self::ReflectionInfo
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    /// The table has exactly the methods that the .proto files declare, and streams where they do.
    #[test]
    fn the_table_is_that_of_the_proto_files() {
        let set = prost_types::FileDescriptorSet::decode(flowmesh_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut declared = 0;
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let known = Method::of(&path).unwrap_or_else(|| panic!("{path} is not served"));
                    assert_eq!(known.is_streaming(), method.client_streaming() || method.server_streaming());
                    assert_eq!(format!("/{}", known.name()), path);
                    declared += 1;
                }
            }
        }
        assert_eq!(declared, Method::COUNT);
        assert_eq!(Method::of("/flowmesh.v1.Kv/Nothing"), None);
    }
}
