//! The flowmesh.v1 gRPC API: message types generated from the `.proto` files beside this crate's sources, and, with the
//! feature `client`, tonic clients for them (`v1::stream_client::StreamClient` and so on).
//!
//! The `.proto` files are the documentation of every call and its errors; `common.proto` has what all calls share.

macro_rules! generated {
    ($(#[$doc:meta])* $module:ident, $file:literal) => {
        $(#[$doc])*
        #[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction, reason = "generated")]
        pub mod $module {
            include!(concat!(env!("OUT_DIR"), "/", $file, ".rs"));
        }
    };
}

generated!(
    /// `package flowmesh.v1`: the services Stream, Queue, Schedule, Worker, Kv, Group, Replay and Admin.
    v1,
    "flowmesh.v1"
);

generated!(
    /// `package google.rpc`: the details of errors.
    rpc,
    "google.rpc"
);

generated!(
    /// `package grpc.health.v1`.
    health,
    "grpc.health.v1"
);

generated!(
    /// `package grpc.reflection.v1`.
    reflection,
    "grpc.reflection.v1"
);

/// An encoded `google.protobuf.FileDescriptorSet` of all files here and those they import, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests {
    use prost::Message;

    #[test]
    fn the_descriptors_name_every_service() {
        let set = prost_types::FileDescriptorSet::decode(super::FILE_DESCRIPTOR_SET).unwrap();
        let mut services: Vec<String> = set
            .file
            .iter()
            .flat_map(|f| f.service.iter().map(move |s| format!("{}.{}", f.package(), s.name())))
            .collect();
        services.sort();
        assert_eq!(
            services,
            [
                "flowmesh.v1.Admin",
                "flowmesh.v1.Group",
                "flowmesh.v1.Kv",
                "flowmesh.v1.Queue",
                "flowmesh.v1.Replay",
                "flowmesh.v1.Schedule",
                "flowmesh.v1.Stream",
                "flowmesh.v1.Worker",
                "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection",
            ]
        );
        assert!(set.file.iter().any(|f| f.name() == "google/protobuf/any.proto"));
    }
}
