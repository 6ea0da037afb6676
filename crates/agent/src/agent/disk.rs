//! The file system that holds the node's images: how full it is, and whether it is written to.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use rustix::fs::StatFs;
use trylatest_core::disk::Disk;

/// `OVERLAYFS_SUPER_MAGIC` (include/uapi/linux/magic.h).
const OVERLAY: i64 = 0x794c_7630;

/// The agent's own root lies on top of its image, in the folder where containerd unpacks images. The kernel answers
/// for the file system below (`ovl_statfs`, fs/overlayfs/super.c), so no folder of the node has to be mounted for this,
/// wherever containerd has its own. None if the root is something else: then nothing is known. It takes microseconds,
/// and the disk is not read.
fn below_root() -> Option<StatFs> {
    let root = rustix::fs::statfs("/").ok()?;
    (root.f_type == OVERLAY).then_some(root)
}

/// How full it is. While less than a tenth of the inodes are free, nothing counts as free.
pub(super) fn of_images() -> Option<Disk> {
    let disk = below_root()?;
    let block = u64::try_from(disk.f_bsize).ok()?;
    // The kubelet evicts pods when 5 % of them are left, too.
    let lacks_inodes = disk.f_files > 0 && disk.f_ffree < disk.f_files / 10;
    Some(Disk {
        total: disk.f_blocks.saturating_mul(block),
        free: if lacks_inodes {
            0
        } else {
            disk.f_bavail.saturating_mul(block)
        },
        lacks_inodes,
    })
}

/// Two answers differ only if something was written to it in between: its free bytes or inodes are others.
pub(crate) fn written() -> Option<u64> {
    let disk = below_root()?;
    let mut mark = DefaultHasher::new();
    (disk.f_bfree, disk.f_ffree).hash(&mut mark);
    Some(mark.finish())
}
