//! How full the file system is that holds the node's images.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use trylatest_core::disk::Disk;

/// `OVERLAYFS_SUPER_MAGIC` (include/uapi/linux/magic.h).
const OVERLAY: i64 = 0x794c_7630;

/// The agent's own root lies on top of its image, in the folder where containerd unpacks images. The kernel answers
/// for the file system below (`ovl_statfs`, fs/overlayfs/super.c), so no folder of the node has to be mounted for this,
/// wherever containerd has its own. None if the root is something else: then nothing is known.
///
/// While less than a tenth of the inodes are free, nothing counts as free. It takes microseconds, and the disk is not
/// read.
pub(super) fn of_images() -> Option<Disk> {
    let root = rustix::fs::statfs("/").ok()?;
    let is_overlay = root.f_type == OVERLAY;
    let block = u64::try_from(root.f_bsize).ok()?;
    // The kubelet evicts pods when 5 % of them are left, too.
    let lacks_inodes = root.f_files > 0 && root.f_ffree < root.f_files / 10;
    is_overlay.then(|| Disk {
        total: root.f_blocks.saturating_mul(block),
        free: if lacks_inodes {
            0
        } else {
            root.f_bavail.saturating_mul(block)
        },
        lacks_inodes,
    })
}

/// Two answers differ only if something was written to that file system in between: its free bytes or inodes are
/// others. None where [`of_images`] sees nothing.
pub(crate) fn written() -> Option<u64> {
    let root = rustix::fs::statfs("/").ok()?;
    let mut mark = DefaultHasher::new();
    (root.f_bfree, root.f_ffree).hash(&mut mark);
    (root.f_type == OVERLAY).then(|| mark.finish())
}
