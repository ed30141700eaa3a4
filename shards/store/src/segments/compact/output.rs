//! A compacted file while it is written: records gather to runs, runs to blocks.

use std::io;
use std::path::PathBuf;

use bytes::BufMut;
use flowmesh_model::compression::{Codec, compress};
use flowmesh_model::limits::COMPRESS_FROM_BYTES;
use flowmesh_model::{Millis, Offset, PartitionRef};

use crate::disk::{ALIGN, Disk, DiskFile};
use crate::pages::{put_at, round_up};
use crate::segments::format::{
    BLOCK_HEADER_BYTES, BlockHeader, Compacted, FILE_HEADER_BYTES, FileHeader, RUN_HEADER_BYTES,
};

/// Neighbours that were appended at the same time.
#[derive(Clone, Copy)]
struct OpenRun {
    /// Where it starts in the block.
    start: usize,
    base: Offset,
    count: u32,
    appended_at: Millis,
    /// How its records were compressed, and are again.
    codec: Option<Codec>,
}

/// The file that is being written.
pub(super) struct Output<D: Disk> {
    disk: D,
    pub path: PathBuf,
    file: D::File,
    position: u64,
    block_bytes: usize,
    /// `None` only after a write that failed.
    block: Option<D::Buf>,
    /// What of the block is in use.
    used: usize,
    runs: u32,
    run: Option<OpenRun>,
    /// The first record of the block, and the offset behind the last one of the file.
    base: Offset,
    next: Offset,
    /// What is in the file.
    pub records: u64,
    pub bytes: u64,
    pub times: Option<(Millis, Millis)>,
}

impl<D: Disk> Output<D> {
    /// Makes the file, in place of one that was left.
    pub async fn create(disk: &D, path: PathBuf, block_bytes: usize) -> io::Result<Self> {
        match disk.remove(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = disk.create(&path).await?;
        // Before it is renamed its name must be for good: or a crash may keep the new name and give it to an older file.
        if let Some(dir) = path.parent() {
            disk.sync_dir(dir).await?;
        }
        Ok(Self {
            block: Some(disk.alloc(round_up(block_bytes))),
            disk: disk.clone(),
            path,
            file,
            position: FILE_HEADER_BYTES as u64,
            block_bytes,
            used: BLOCK_HEADER_BYTES,
            runs: 0,
            run: None,
            base: Offset(0),
            next: Offset(0),
            records: 0,
            bytes: 0,
            times: None,
        })
    }

    /// Appends a record, packed with its tag and length, which came out of a run that was compressed like this. Returns how
    /// many bytes went to the disk.
    #[inline]
    pub async fn push(
        &mut self,
        offset: Offset,
        appended_at: Millis,
        record: &[u8],
        codec: Option<Codec>,
    ) -> io::Result<u64> {
        let mut written = 0;
        if self.used + RUN_HEADER_BYTES + record.len() > self.block_bytes {
            written = self.write_block().await?;
            let wanted = BLOCK_HEADER_BYTES + RUN_HEADER_BYTES + record.len();
            if wanted > self.block().len() {
                self.block = Some(self.disk.alloc(round_up(wanted)));
            }
        }
        self.put(offset, appended_at, record, codec);
        Ok(written)
    }

    fn put(&mut self, offset: Offset, appended_at: Millis, record: &[u8], codec: Option<Codec>) {
        let follows = |run: &OpenRun| offset == self.next && run.appended_at == appended_at;
        if !self.run.as_ref().is_some_and(follows) {
            self.close_run();
            if self.runs == 0 {
                self.base = offset;
            }
            self.run = Some(OpenRun { start: self.used, base: offset, count: 0, appended_at, codec });
            self.used += RUN_HEADER_BYTES;
        }
        let used = self.used;
        put_at(self.block(), used, record);
        self.used += record.len();
        if let Some(run) = &mut self.run {
            run.count += 1;
        }
        self.next = offset.plus(1);
        self.records += 1;
        self.bytes += record.len() as u64;
        let first = self.times.map_or(appended_at, |(first, _)| first);
        self.times = Some((first, appended_at));
    }

    fn block(&mut self) -> &mut [u8] {
        self.block.as_mut().map_or(&mut [], AsMut::as_mut)
    }

    /// Compresses the records of a run, if they were and it pays.
    fn compress(&mut self, run: &OpenRun) {
        let (from, upto) = (run.start + RUN_HEADER_BYTES, self.used);
        let Some(codec) = run.codec.filter(|_| upto - from >= COMPRESS_FROM_BYTES) else { return };
        let plain = self.block().get(from..upto).unwrap_or_default();
        if let Some(packed) = compress(plain, codec) {
            put_at(self.block(), from, &packed);
            self.used = from + packed.len();
            self.bytes -= (upto - self.used) as u64;
        }
    }

    /// Puts the header before the records of a run: what comes next begins another one.
    pub fn close_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        self.compress(&run);
        let mut header = [0u8; RUN_HEADER_BYTES - 4];
        let mut put = header.as_mut_slice();
        put.put_u32_le((self.used - run.start - RUN_HEADER_BYTES) as u32);
        put.put_u64_le(run.base.0);
        put.put_u64_le(run.appended_at.0);
        put.put_u32_le(run.count);
        let used = self.used;
        let block = self.block();
        put_at(block, run.start + 4, &header);
        let crc = crc32c::crc32c(block.get(run.start + 4..used).unwrap_or_default());
        put_at(block, run.start, &crc.to_le_bytes());
        self.runs += 1;
    }

    /// Writes the block, unless nothing is in it. Returns how many bytes went to the disk.
    async fn write_block(&mut self) -> io::Result<u64> {
        self.close_run();
        if self.runs == 0 {
            return Ok(0);
        }
        let bytes = round_up(self.used);
        let (body_bytes, base, next) = ((self.used - BLOCK_HEADER_BYTES) as u32, self.base, self.next);
        let Some(mut block) = self.block.take() else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let out = block.as_mut();
        out.get_mut(self.used..bytes).unwrap_or_default().fill(0);
        BlockHeader { body_bytes, runs: self.runs, base, next }.encode(out);
        self.block = Some(self.file.write_at(block, bytes, self.position).await?);
        self.position += bytes as u64;
        (self.used, self.runs) = (BLOCK_HEADER_BYTES, 0);
        Ok(bytes as u64)
    }

    /// Writes what is left and the header, and makes the file durable.
    pub async fn finish(&mut self, at: PartitionRef, base: Offset, end: Offset) -> io::Result<FileHeader> {
        self.write_block().await?;
        let header = FileHeader { at, base, compacted: Some(Compacted { end, bytes: self.position }) };
        let mut page = self.disk.alloc(ALIGN);
        page.as_mut().fill(0);
        header.encode(page.as_mut());
        self.file.write_at(page, ALIGN, 0).await?;
        self.file.sync().await?;
        Ok(header)
    }
}
