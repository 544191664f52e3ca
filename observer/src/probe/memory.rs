//! How much memory observer may use, by its control groups of either version; and what is made smaller to fit.

use std::{
    fs,
    path::{Path, PathBuf},
};

use observer_ebpf::abi::{Counted, DropKey, MAX_KEYS};
use procfs::process::Process;

/// Less than this does not do: the kernel's types and symbols, read at start, take most of it.
pub const LEAST: u64 = 96 << 20;
/// With less than this tables and rings are smaller.
const ENOUGH: u64 = 256 << 20;
/// Bytes of the keys of a generation, and of the ring of records.
const KEYS: usize = 16 << 20;
const SMALL_KEYS: usize = 2 << 20;
const RING: u32 = 1 << 22;
const SMALL_RING: u32 = 1 << 20;

/// What the kernel side is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Keys that a generation can count.
    pub keys: u32,
    /// Bytes of the ring of records.
    pub ring: u32,
    /// The limit, where these are smaller than elsewhere.
    pub shrunk_to: Option<u64>,
}

/// Sizes for a limit in bytes; the limit itself where it is too low.
pub fn sizes(limit: Option<u64>) -> Result<Sizes, u64> {
    match limit {
        Some(limit) if limit < LEAST => Err(limit),
        Some(limit) if limit < ENOUGH => Ok(Sizes { keys: keys(SMALL_KEYS), ring: SMALL_RING, shrunk_to: Some(limit) }),
        _ => Ok(Sizes { keys: keys(KEYS), ring: RING, shrunk_to: None }),
    }
}

/// The kernel keeps a value for every CPU that the machine may ever have, from the start.
fn keys(bytes: usize) -> u32 {
    const LEAST_KEYS: u32 = 1 << 11;
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    let each = size_of::<DropKey>() + cpus * size_of::<Counted>();
    u32::try_from(bytes / each).unwrap_or(MAX_KEYS).clamp(LEAST_KEYS, MAX_KEYS)
}

/// The lowest limit of this process's control groups, in bytes; `None` where there is none, or none can be read.
pub fn limit() -> Option<u64> {
    let process = Process::myself().ok()?;
    let groups = process.cgroups().ok()?;
    let mounts = process.mountinfo().ok()?;
    let mut lowest: Option<u64> = None;
    for group in groups {
        let (kind, file) = match group.controllers.as_slice() {
            [] => ("cgroup2", "memory.max"),
            all if all.iter().any(|name| name == "memory") => ("cgroup", "memory.limit_in_bytes"),
            _ => continue,
        };
        let mount = mounts
            .0
            .iter()
            .find(|mount| mount.fs_type == kind && (kind == "cgroup2" || mount.super_options.contains_key("memory")));
        let Some(mount) = mount else { continue };
        let inside = Path::new(&group.pathname).strip_prefix(&mount.root).unwrap_or(Path::new(""));
        lowest = lowest.into_iter().chain(lowest_of(&mount.mount_point, inside, file)).min();
    }
    lowest
}

/// The lowest limit of a group and those that it is in.
fn lowest_of(mount: &Path, inside: &Path, file: &str) -> Option<u64> {
    // Version 1 says so where there is no limit.
    const NONE: u64 = i64::MAX as u64 / 2;
    let folders = inside.ancestors().map(|folder| mount.join(folder.strip_prefix("/").unwrap_or(folder)));
    let read = |folder: PathBuf| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    folders.filter_map(read).filter(|limit| *limit < NONE).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_of_all_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        for (folder, text) in [("", "9223372036854771712"), ("a", "100000000"), ("a/b", "max")] {
            fs::write(root.path().join(folder).join("memory.max"), text).unwrap();
        }
        let lowest = |inside: &str| lowest_of(root.path(), Path::new(inside), "memory.max");
        assert_eq!(lowest("a/b"), Some(100_000_000));
        assert_eq!(lowest(""), None);
        assert_eq!(lowest("gone/deeper"), None);
    }

    #[test]
    fn what_fits() {
        let whole = sizes(None).unwrap();
        assert_eq!(sizes(Some(ENOUGH)), Ok(whole));
        let small = sizes(Some(LEAST)).unwrap();
        assert!(small.keys <= whole.keys && small.ring < whole.ring && small.shrunk_to == Some(LEAST));
        assert_eq!(sizes(Some(LEAST - 1)), Err(LEAST - 1));
    }
}
