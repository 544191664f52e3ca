//! Configuration files of front ends, below a root folder that may be a container's: whoever lives there may have put
//! anything in their place.

use std::{
    cell::Cell,
    fs::File,
    io::Read,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::channel,
    },
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
/// Threads that wait for such a file at most; while there are so many no other file is read.
const MAX_STUCK: usize = 4;
static READING: AtomicUsize = AtomicUsize::new(0);

/// A root folder.
pub struct Root {
    folder: Arc<OwnedFd>,
    /// A file of it was not there in time: nothing more is read.
    hangs: Cell<bool>,
}

impl Root {
    /// The one at this path.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder =
            openat(CWD, path, flags, Mode::empty()).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { folder: Arc::new(folder), hangs: Cell::new(false) })
    }

    /// Text of a regular file in it: no link leads out of it, and neither a pipe nor a file system that hangs is waited for.
    pub fn read(&self, path: &str) -> Result<String> {
        ensure!(
            !self.hangs.get() && READING.load(Ordering::Relaxed) < MAX_STUCK,
            "files there are not to be had in time"
        );
        let (folder, own) = (Arc::clone(&self.folder), path.to_owned());
        let (done, text) = channel();
        READING.fetch_add(1, Ordering::Relaxed);
        thread::spawn(move || {
            let text = read(&folder, &own);
            READING.fetch_sub(1, Ordering::Relaxed);
            let _ = done.send(text);
        });
        text.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            self.hangs.set(true);
            Err(anyhow::anyhow!("/{path} was not to be had in time"))
        })
    }
}

/// A file or folder of a front end's, as it is kept.
pub struct Kept {
    /// Where, from the root folder on.
    pub path: String,
    /// Its permissions.
    pub mode: u32,
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
    /// A link to this.
    Link(String),
}

impl Root {
    /// Everything in a folder but what is neither file, folder nor link; nothing where it is not there.
    pub fn keep(&self, folder: &str) -> Result<Vec<Kept>> {
        let mut kept = Vec::new();
        self.keep_into(folder, &mut kept)?;
        Ok(kept)
    }

    fn keep_into(&self, folder: &str, kept: &mut Vec<Kept>) -> Result<()> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = folder.trim_start_matches('/');
        let open = match openat2(self.folder.as_fd(), path, flags, Mode::empty(), inside) {
            Ok(open) => open,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {folder}")),
        };
        for entry in rustix::fs::Dir::read_from(&open)? {
            let entry = entry?;
            let name = entry.file_name().to_str().context("a file's name is no text")?;
            if [".", ".."].contains(&name) {
                continue;
            }
            let meta = rustix::fs::statat(&open, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
            let (path, mode) = (format!("{folder}/{name}"), meta.st_mode & 0o7777);
            ensure!(kept.len() < MAX_FILES, "there are more than {MAX_FILES} files in {folder}");
            match FileType::from_raw_mode(meta.st_mode) {
                FileType::Directory => {
                    kept.push(Kept { path: path.clone(), mode, content: Content::Folder });
                    self.keep_into(&path, kept)?;
                }
                FileType::RegularFile => {
                    let text = self.read(&path)?;
                    let all =
                        kept.iter().map(|kept| if let Content::File(text) = &kept.content { text.len() } else { 0 });
                    ensure!(
                        all.sum::<usize>() + text.len() <= MAX_KEPT,
                        "the files in {folder} are too long to be copied"
                    );
                    kept.push(Kept { path, mode, content: Content::File(text) });
                }
                FileType::Symlink => {
                    let to = rustix::fs::readlinkat(&open, name, Vec::new())?;
                    let to = to.into_string().ok().context("a link leads to what is no text")?;
                    kept.push(Kept { path, mode, content: Content::Link(to) });
                }
                _ => {}
            }
        }
        Ok(())
    }
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
