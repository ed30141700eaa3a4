//! Edges: bytes ⇄ [`Command`](flowmesh_model::Command) and [`Reply`](flowmesh_model::Reply). No edge knows the engine,
//! and the engine knows no protocol.
//!
//! - [`backend`]: all an edge needs from the server behind it.
//! - [`error_map`]: the one table from rejections to the codes of each protocol.
//! - [`grpc`]: gRPC on HTTP/2.

pub mod backend;
pub mod error_map;
pub mod grpc;
