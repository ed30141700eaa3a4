//! Bytes on disk, behind one [`disk::Disk`] trait. Nothing here knows what the bytes mean.
//!
//! In the order a change takes: [`log`] (the commit log, the authority), then at a checkpoint [`segments`] (records of
//! streams, out of memory) and [`index`] (everything else, in an LSM tree that can be rebuilt).
//! All three live under one directory per shard: `log/`, `streams/`, `index/`.

pub mod disk;
pub mod index;
pub mod log;
mod pages;
pub mod segments;
mod window;
