//! The path of an open file, by walking from its directory entry to the root.
//!
//! `bpf_d_path` is refused where processes are reported. Components are read leaf first, as the walk finds them; user space
//! turns them round. The walk is bounded, and says when it did not get to the root.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use observer_ebpf::abi::PATH_BYTES;

use super::{
    layout::field,
    read::{Probe, Reader},
    scratch::{Process, Walk},
};

/// Steps of the walk: components and mount points crossed.
const MAX_STEPS: u32 = 48;
/// Bytes of one component, its terminating zero included (`NAME_MAX` is 255).
const COMPONENT_BYTES: u64 = 256;

/// Reads the path of `file` to the start of the data; returns the bytes used, and whether that is all of it.
///
/// # Safety
/// The scratch space must be this CPU's.
#[inline(always)]
pub unsafe fn read(scratch: *mut Process, file: u64) -> (u32, bool) {
    // SAFETY: the caller's promise.
    unsafe {
        let walk = &raw mut (*scratch).walk;
        walk.write_volatile(Walk {
            dentry: Probe::field(file, field!(file_dentry)).unwrap_or(0),
            mount: Probe::field(file, field!(file_mount)).unwrap_or(0),
            at: 0,
            whole: 0,
        });
        for _ in 0..MAX_STEPS {
            if !step(scratch, walk) {
                break;
            }
        }
        let end = walk.read_volatile();
        (end.at, end.whole != 0)
    }
}

/// One component, or one mount point; false when the walk is over.
///
/// # Safety
/// The scratch space must be this CPU's, and the walk its own.
#[inline(always)]
unsafe fn step(scratch: *mut Process, walk: *mut Walk) -> bool {
    // SAFETY: the caller's promise; `at` is compared before it is used.
    unsafe {
        let Walk { dentry, mount, at, .. } = walk.read_volatile();
        if dentry == 0 || mount == 0 {
            return false;
        }
        let root: u64 = Probe::field(mount, field!(vfsmount_root)).unwrap_or(0);
        let parent: u64 = Probe::field(dentry, field!(dentry_parent)).unwrap_or(0);
        if dentry == root || dentry == parent {
            // At the top of this mount: go on where it is mounted, unless it is mounted nowhere.
            let outer = mount.wrapping_sub(u64::from(field!(mount_vfsmount)));
            let above: u64 = Probe::field(outer, field!(mount_parent)).unwrap_or(0);
            if above == outer || above == 0 || dentry != root {
                (&raw mut (*walk).whole).write_volatile(1);
                return false;
            }
            (&raw mut (*walk).dentry).write_volatile(Probe::field(outer, field!(mount_mountpoint)).unwrap_or(0));
            (&raw mut (*walk).mount).write_volatile(above + u64::from(field!(mount_vfsmount)));
            return true;
        }
        if u64::from(at) + COMPONENT_BYTES > PATH_BYTES as u64 {
            return false;
        }
        let name: u64 = Probe::field(dentry, field!(dentry_name)).unwrap_or(0);
        let into = (&raw mut (*scratch).data).cast::<u8>().add(at as usize);
        let read = bpf_probe_read_kernel_str(into.cast(), COMPONENT_BYTES as u32, name as *const _);
        if read <= 0 {
            return false;
        }
        (&raw mut (*walk).at).write_volatile(at + read as u32);
        (&raw mut (*walk).dentry).write_volatile(parent);
        true
    }
}
