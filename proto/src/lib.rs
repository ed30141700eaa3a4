//! The flowmesh.v1 gRPC API.
