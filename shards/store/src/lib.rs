//! Bytes on disk: the commit log, stream segments, the index, behind one [`disk::Disk`] trait.

pub mod disk;
