//! A full disk: writes are refused by name, reads go on, nothing is lost, and writes go on when there is space.
//!
//! Needs a small file system of its own, so root; elsewhere the test says why it does nothing.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use tonic::Code;

use crate::common::client::reason;
use crate::common::{Home, eventually, within};

const MIB: usize = 1 << 20;

/// A tmpfs of its own; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, bytes: usize) -> Result<Self, String> {
        fs::create_dir_all(&at).unwrap();
        let target = CString::new(at.to_str().unwrap()).unwrap();
        let options = CString::new(format!("size={bytes}")).unwrap();
        // SAFETY: all pointers are to strings that live through the call.
        let result = unsafe {
            libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast())
        };
        if result != 0 {
            return Err(format!("cannot mount a tmpfs: {}", std::io::Error::last_os_error()));
        }
        let disk = Self(at);
        if !takes_direct_writes(&disk.0) {
            return Err("a tmpfs takes no O_DIRECT here (before Linux 6.6)".to_owned());
        }
        Ok(disk)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let target = CString::new(self.0.to_str().unwrap()).unwrap();
        // SAFETY: as above.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

fn takes_direct_writes(dir: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    let path = dir.join("probe");
    let open = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    let _ = fs::remove_file(&path);
    open.is_ok()
}

#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_recovers() {
    let home = Home::new().set("checkpoint_interval_ms", "300ms");
    let disk = match SmallDisk::mount(home.scratch().join("disk"), 200 * MIB) {
        Ok(disk) => disk,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let home = home.in_dir(&disk.0.join("data"));
    let server = home.start();
    let mut client = server.client().await;
    // What else is on the disk, to be deleted later.
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![1u8; 80 * MIB]).unwrap();
    client.set("store", "k", "v").await.unwrap();
    let job = client.enqueue("mail", ["x"]).await.unwrap();

    let mut acknowledged = 0;
    let refusal = loop {
        match client.append("logs", [vec![acknowledged as u8; MIB]]).await {
            Ok(answer) => {
                assert_eq!(answer.base_offset, acknowledged);
                acknowledged += 1;
                assert!(acknowledged < 400, "the disk never fills");
            }
            // The next segment may be under way: pushed back is not full.
            Err(status) if status.code() == Code::ResourceExhausted && reason(&status) == "OVERLOADED" => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            Err(status) => break status,
        }
    };
    assert_eq!(
        (refusal.code(), reason(&refusal).as_str()),
        (Code::ResourceExhausted, "DISK_FULL"),
        "{refusal:?}"
    );
    assert!(acknowledged > 10, "{acknowledged}");

    // Reads of all kinds go on, of all that was acknowledged.
    assert_eq!(client.values("logs").await.len() as u64, acknowledged);
    assert_eq!(client.get("store", "k").await.unwrap(), "v");
    assert_eq!(client.queue_status("mail").await.ready, 1);
    assert_eq!(server.http("/health").0, 200);

    fs::remove_file(&ballast).unwrap();
    eventually("writes go on", || {
        let mut client = client.clone();
        async move { client.append("logs", ["after"]).await.ok() }
    })
    .await;
    client.set("store", "k", "w").await.unwrap();
    let jobs = client.reserve("mail", 1, 60_000, 0).await.unwrap();
    assert_eq!(jobs[0].job_id, job[0]);
    server.kill9();

    let server = home.start();
    let mut client = server.client().await;
    let values = client.values("logs").await;
    assert_eq!(values.len() as u64, acknowledged + 1);
    for (i, value) in values[..acknowledged as usize].iter().enumerate() {
        assert!(
            value.len() == MIB && value.iter().all(|byte| *byte == i as u8),
            "record {i} is as acknowledged"
        );
    }
    assert_eq!(client.get("store", "k").await.unwrap(), "w");
}

#[tokio::test]
async fn a_disk_too_full_for_checkpoints_refuses_writes_instead_of_hanging() {
    // The log finds room for all it may have; what a checkpoint needs on top is not there.
    let home = Home::new().set("checkpoint_interval_ms", "300ms").set("log_bytes_max", "64MiB");
    let disk = match SmallDisk::mount(home.scratch().join("disk"), 260 * MIB) {
        Ok(disk) => disk,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let home = home.in_dir(&disk.0.join("data"));
    let server = home.start();
    let mut client = server.client().await;
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![1u8; 90 * MIB]).unwrap();
    let mut acknowledged = 0u64;
    let refusal = loop {
        let append = client.append("logs", [vec![acknowledged as u8; MIB]]);
        match within("an answer, whatever it is", append).await {
            Ok(_) => acknowledged += 1,
            Err(status) => break status,
        }
        assert!(acknowledged < 400, "the disk never fills");
    };
    assert_eq!(
        (refusal.code(), reason(&refusal).as_str()),
        (Code::ResourceExhausted, "DISK_FULL"),
        "{refusal:?}"
    );
    assert_eq!(client.values("logs").await.len() as u64, acknowledged, "reads go on");
    fs::remove_file(&ballast).unwrap();
    eventually("writes go on", || {
        let mut client = client.clone();
        async move { client.append("logs", ["after"]).await.ok() }
    })
    .await;
    server.kill9();
    let server = home.start();
    assert_eq!(server.client().await.values("logs").await.len() as u64, acknowledged + 1);
}

#[tokio::test]
async fn a_disk_that_is_full_at_the_start_is_named() {
    let home = Home::new();
    let disk = match SmallDisk::mount(home.scratch().join("disk"), 4 * MIB) {
        Ok(disk) => disk,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let home = home.in_dir(&disk.0.join("data"));
    let (_, said) = home.start_refused();
    assert!(said.contains("space"), "{said}");
}
