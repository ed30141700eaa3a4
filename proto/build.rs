//! Compiles the .proto files without protoc: protox reads them, prost-build writes the types, and, with the feature
//! `client`, tonic-prost-build writes the clients.

use std::path::PathBuf;
use std::{env, fs};

const FILES: [&str; 15] = [
    "flowmesh/v1/common.proto",
    "flowmesh/v1/stream.proto",
    "flowmesh/v1/queue.proto",
    "flowmesh/v1/schedule.proto",
    "flowmesh/v1/worker.proto",
    "flowmesh/v1/kv.proto",
    "flowmesh/v1/kv_operations.proto",
    "flowmesh/v1/kv_change.proto",
    "flowmesh/v1/group.proto",
    "flowmesh/v1/replay.proto",
    "flowmesh/v1/admin.proto",
    "grpc/health/v1/health.proto",
    "grpc/reflection/v1/reflection.proto",
    "google/rpc/status.proto",
    "google/rpc/error_details.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    let descriptors = compiler.file_descriptor_set();

    let out = PathBuf::from(env::var("OUT_DIR")?);
    compiler.include_source_info(false);
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;

    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    if env::var_os("CARGO_FEATURE_CLIENT").is_some() {
        tonic_prost_build::configure()
            .build_server(false)
            .build_client(true)
            .compile_fds_with_config(descriptors, config)?;
    } else {
        config.compile_fds(descriptors)?;
    }
    Ok(())
}
