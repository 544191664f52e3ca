//! Configuration files of front ends, below a root folder that may be a container's: whoever lives there may have put
//! anything in their place.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::File,
    io::Read,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc::channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat, openat2};

/// Largest file that is read.
const MAX_BYTES: u64 = 4 << 20;

/// Files of a front end's that are kept, and bytes of them.
const MAX_FILES: usize = 2000;
const MAX_KEPT: usize = 32 << 20;

/// A file that takes longer is not waited for: a file system may be another program, or another host, which does not answer.
const PATIENCE: Duration = Duration::from_millis(300);
/// The same for a whole folder.
const KEEPING: Duration = Duration::from_secs(2);
/// Folders in folders that are kept.
const MAX_DEPTH: usize = 12;
/// Threads that wait for such a file at most, of one mount namespace and of all; while there are so many no other file is read there.
const MAX_STUCK: usize = 4;
const MAX_ALL_STUCK: usize = 32;
/// Threads that read, by the mount namespace's inode number: 0 is the host's own, which is not counted with the others.
static READING: Mutex<BTreeMap<u64, usize>> = Mutex::new(BTreeMap::new());

/// One more thread reads there; false where too many do.
fn begin_reading(mounts: u64) -> bool {
    let mut reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
    let others: usize = reading.iter().filter(|(of, _)| **of != 0).map(|(_, count)| count).sum();
    let here = reading.get(&mounts).copied().unwrap_or(0);
    if here >= MAX_STUCK || mounts != 0 && others >= MAX_ALL_STUCK {
        return false;
    }
    reading.insert(mounts, here + 1);
    true
}

fn end_reading(mounts: u64) {
    let mut reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
    match reading.get_mut(&mounts) {
        Some(count) if *count > 1 => *count -= 1,
        _ => drop(reading.remove(&mounts)),
    }
}

/// A root folder.
pub struct Root {
    folder: Arc<OwnedFd>,
    /// Inode number of its mount namespace; 0 for the host's own.
    mounts: u64,
    /// A file of it was not there in time: nothing more is read.
    hangs: Cell<bool>,
}

impl Root {
    /// The one at this path.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder =
            openat(CWD, path, flags, Mode::empty()).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { folder: Arc::new(folder), mounts: 0, hangs: Cell::new(false) })
    }

    /// That of another mount namespace, by its inode number.
    pub fn of(folder: OwnedFd, mounts: u64) -> Self {
        Self { folder: Arc::new(folder), mounts, hangs: Cell::new(false) }
    }

    /// The same once more.
    pub fn again(&self) -> Self {
        Self { folder: Arc::clone(&self.folder), mounts: self.mounts, hangs: Cell::new(self.hangs.get()) }
    }

    /// Text of a regular file in it: no link leads out of it, and neither a pipe nor a file system that hangs is waited for.
    pub fn read(&self, path: &str) -> Result<String> {
        let (folder, own) = (Arc::clone(&self.folder), path.to_owned());
        self.in_time(path, PATIENCE, move || read(&folder, &own))
    }

    /// What a path leads to in it: device and inode number.
    pub fn place(&self, path: &str) -> Option<(u64, u64)> {
        let (folder, own) = (Arc::clone(&self.folder), path.trim_start_matches('/').to_owned());
        let place = move || {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let meta = fstat(openat2(folder.as_fd(), own, flags, Mode::empty(), inside)?)?;
            Ok((meta.st_dev, meta.st_ino))
        };
        self.in_time(path, PATIENCE, place).ok()
    }
}

/// A file or folder of a front end's, as it is kept.
pub struct Kept {
    /// Where, from the root folder on.
    pub path: String,
    /// Whoever reads it may execute it.
    pub is_program: bool,
    /// What it is.
    pub content: Content,
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file with this text.
    File(String),
    /// A folder.
    Folder,
}

impl Root {
    /// Every regular file and folder in a folder; nothing where it is not there. A link to a file is that file, if it is below the
    /// same root folder; all else is left out.
    pub fn keep(&self, folder: &str) -> Result<Vec<Kept>> {
        let (root, own) = (Arc::clone(&self.folder), folder.to_owned());
        self.in_time(folder, KEEPING, move || {
            let mut kept = Vec::new();
            keep_into(&root, &own, &mut kept)?;
            Ok(kept)
        })
    }

    /// Does something with files by a thread that is given up when it takes too long: a file system may be another program, or
    /// another host, which does not answer.
    fn in_time<T: Send + 'static>(
        &self,
        path: &str,
        limit: Duration,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mounts = self.mounts;
        ensure!(!self.hangs.get() && begin_reading(mounts), "files there are not to be had in time");
        let (done, result) = channel();
        thread::spawn(move || {
            let result = work();
            end_reading(mounts);
            let _ = done.send(result);
        });
        result.recv_timeout(limit).unwrap_or_else(|_| {
            self.hangs.set(true);
            Err(anyhow::anyhow!("/{} was not to be had in time", path.trim_start_matches('/')))
        })
    }
}

fn keep_into(root: &OwnedFd, folder: &str, kept: &mut Vec<Kept>) -> Result<()> {
    let open = match openat2(
        root.as_fd(),
        folder.trim_start_matches('/'),
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    ) {
        Ok(open) => open,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {folder}")),
    };
    let mut entries = 0;
    for entry in rustix::fs::Dir::read_from(&open)? {
        let entry = entry?;
        let name = entry.file_name().to_str().context("a file's name is no text")?;
        if [".", ".."].contains(&name) {
            continue;
        }
        entries += 1;
        ensure!(entries.max(kept.len()) < MAX_FILES, "there are more than {MAX_FILES} files in {folder}");
        let meta = rustix::fs::statat(&open, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        let path = format!("{folder}/{name}");
        match FileType::from_raw_mode(meta.st_mode) {
            FileType::Directory => {
                ensure!(path.split('/').count() < MAX_DEPTH, "{folder} is too deep to be copied");
                kept.push(Kept { path: path.clone(), is_program: false, content: Content::Folder });
                keep_into(root, &path, kept)?;
            }
            kind @ (FileType::RegularFile | FileType::Symlink) => {
                let text = match read(root, &path) {
                    Ok(text) => text,
                    // It leads to a folder, or out of the root folder.
                    Err(_) if kind == FileType::Symlink => continue,
                    Err(error) => return Err(error),
                };
                let all = kept.iter().map(|kept| if let Content::File(text) = &kept.content { text.len() } else { 0 });
                ensure!(all.sum::<usize>() + text.len() <= MAX_KEPT, "the files in {folder} are too long to be copied");
                let is_program = kind == FileType::Symlink || meta.st_mode & 0o111 != 0;
                kept.push(Kept { path, is_program, content: Content::File(text) });
            }
            _ => {}
        }
    }
    Ok(())
}

fn read(folder: &OwnedFd, path: &str) -> Result<String> {
    // Opening alone may do something: a device, or a file of the kernel's. So it is looked at first, and only then opened.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = path.trim_start_matches('/');
    let found =
        openat2(folder.as_fd(), path, flags, Mode::empty(), inside).with_context(|| format!("cannot open /{path}"))?;
    let meta = fstat(&found)?;
    let is_file = FileType::from_raw_mode(meta.st_mode) == FileType::RegularFile;
    let kind = fstatfs(&found)?.f_type as u64;
    ensure!(
        is_file && !OF_THE_KERNEL.contains(&kind) && meta.st_size as u64 <= MAX_BYTES,
        "/{path} is no file that is read"
    );
    let file =
        File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).with_context(|| format!("cannot open /{path}"))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).with_context(|| format!("cannot read /{path}"))?;
    // Of a comment in another encoding the rest is still good.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Magic numbers of file systems whose files are the kernel's: proc, sysfs, tracefs, debugfs, securityfs, bpf.
const OF_THE_KERNEL: [u64; 6] = [0x9fa0, 0x6265_6572, 0x7472_6163, 0x6462_6720, 0x7363_6673, 0xcafe_4a11];

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn nothing_outside_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::write(&outside, "secret").unwrap();
        fs::write(root.join("file"), "text").unwrap();
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../outside", root.join("relative")).unwrap();
        symlink("/file", root.join("inside")).unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let root = Root::open(&root).unwrap();
        assert_eq!(root.read("/file").unwrap(), "text");
        assert_eq!(root.read("inside").unwrap(), "text");
        for path in ["absolute", "relative", "../outside", "pipe", "missing", "."] {
            assert!(root.read(path).is_err(), "{path}");
        }
    }
}
