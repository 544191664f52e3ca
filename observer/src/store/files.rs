//! The store's files: where they may be, whose they are, and that one recorder alone writes.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use super::schema;
use crate::confinement::programs;

/// The group that may read the store. Packages make it; the underscore keeps it apart from groups of a directory.
const GROUP: &str = "_observer";

/// A recorder that was killed leaves a process that stores what it still has: it is waited for so long.
const LAST: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(20);

/// Why a place is none for a store.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Somebody else could put files there.
    #[error("other users can write to {}: choose a folder that only root can write to", .0.display())]
    Open(PathBuf),
    /// Not a file of this user's.
    #[error("{} is not a plain file of this user: name another one with --store", .0.display())]
    Foreign(PathBuf),
    /// A link, which could lead elsewhere the next time.
    #[error("{} is a symbolic link: name the file that it leads to with --store", .0.display())]
    Symlink(PathBuf),
    /// A folder.
    #[error("{} is a folder: name a file in it with --store", .0.display())]
    Folder(PathBuf),
    /// Its folder could only be made in a folder that is missing.
    #[error("there is no folder {}: make it, or name another file with --store", .0.display())]
    NoFolder(PathBuf),
    /// A file of another kind, which stays as it is.
    #[error("{} is no store of observer's: name another file with --store", .0.display())]
    NoStore(PathBuf),
    /// Another name would have a lock and a log of its own.
    #[error("{} has another name (a hard link): remove one of them, or name another file with --store", .0.display())]
    Linked(PathBuf),
    /// It has a recorder.
    #[error("{} is being recorded to by another observer: stop that one (a killed one takes some seconds to end), or name another file with --store", .0.display())]
    Taken(PathBuf),
    /// A file operation.
    #[error("cannot use {}: {error}", .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// The folder of a store.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Held while a recorder runs.
#[derive(Debug)]
pub struct Lock(File);

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes the folder and an empty store where there is none, and takes its lock. Whatever somebody else could have put there is refused.
pub(super) fn prepare(path: &Path) -> Result<Lock, PlaceError> {
    let folder = folder(path);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| PlaceError::File { path, error }
    };
    // Nothing is made, and nothing left, beside what is refused.
    is_there(path)?;
    if !folder.exists() {
        let group = programs::group_number(GROUP).ok().flatten();
        DirBuilder::new().mode(0o750).create(folder).map_err(failed(folder))?;
        if let Some(group) = group {
            give_to(folder, group).map_err(failed(folder))?;
        }
    }
    is_there(path)?;
    let lock = lock(path, LAST)?;
    if !is_there(path)? {
        make(path).map_err(failed(path))?;
    }
    Ok(lock)
}

/// Gives a folder that was just made to a group: what is made in it later is of the group too. The path is not followed again.
fn give_to(folder: &Path, group: u32) -> io::Result<()> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let folder = OpenOptions::new().read(true).custom_flags(flags).open(folder)?;
    let about = folder.metadata()?;
    // Below a folder of the group's it is the group's already.
    if about.gid() != group || about.mode() & 0o2000 == 0 {
        fchown(&folder, None, Some(group))?;
        folder.set_permissions(fs::Permissions::from_mode(0o2750))?;
    }
    Ok(())
}

/// Looks whether there is a file that may be a store. Whatever somebody else could have put there is refused.
pub(super) fn is_there(path: &Path) -> Result<bool, PlaceError> {
    let (folder, own) = (folder(path), rustix::process::geteuid().as_raw());
    let failed = |path: &Path, error| PlaceError::File { path: path.to_owned(), error };
    let absolute = std::path::absolute(folder).map_err(|error| failed(folder, error))?;
    let is_made = fs::symlink_metadata(folder).is_ok();
    // Where the folder is to be made, nobody can take it away from a sticky one.
    let (way, may_be_sticky) =
        if is_made { (absolute.as_path(), false) } else { (absolute.parent().unwrap_or(&absolute), true) };
    if !is_made && !way.exists() {
        return Err(PlaceError::NoFolder(way.to_owned()));
    }
    if let Some(open) = open_to_others(way, own, may_be_sticky, 0).map_err(|error| failed(folder, error))? {
        return Err(PlaceError::Open(open));
    }
    if !is_made {
        return Ok(false);
    }
    if !folder.is_dir() {
        return Err(failed(folder, io::ErrorKind::NotADirectory.into()));
    }
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_symlink() => Err(PlaceError::Symlink(path.to_owned())),
        Ok(about) if about.is_dir() => Err(PlaceError::Folder(path.to_owned())),
        Ok(about) if !about.is_file() || about.uid() != own => Err(PlaceError::Foreign(path.to_owned())),
        Ok(about) if about.nlink() > 1 => Err(PlaceError::Linked(path.to_owned())),
        Ok(about) if about.len() > 0 && !schema::has_been_one(path) => Err(PlaceError::NoStore(path.to_owned())),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(path, error)),
    }
}

/// The folder on the way to this one, links included, in which others than root and `own` can replace what is there. In a sticky one they
/// cannot, but they can put files there: the last one is refused unless it `may_be_sticky`.
fn open_to_others(folder: &Path, own: u32, may_be_sticky: bool, links: usize) -> io::Result<Option<PathBuf>> {
    /// As many as the kernel follows.
    const MOST: usize = 40;
    if links > MOST {
        return Err(io::Error::other("too many symbolic links"));
    }
    let mut way: Vec<&Path> = folder.ancestors().collect();
    way.reverse();
    for part in way {
        let about = fs::symlink_metadata(part)?;
        let is_foreign = ![0, own].contains(&about.uid());
        if about.is_symlink() && !is_foreign {
            let target = part.parent().unwrap_or(part).join(fs::read_link(part)?);
            let may_be_sticky = may_be_sticky || part != folder;
            if let Some(open) = open_to_others(&target, own, may_be_sticky, links + 1)? {
                return Ok(Some(open));
            }
            continue;
        }
        let is_sticky = about.mode() & 0o1000 != 0 && (may_be_sticky || part != folder);
        if is_foreign || about.mode() & 0o022 != 0 && !is_sticky {
            return Ok(Some(part.to_owned()));
        }
    }
    Ok(None)
}

/// Takes the lock of a store, which one recorder alone has; waits for it so long.
pub(super) fn lock(path: &Path, patience: Duration) -> Result<Lock, PlaceError> {
    let named = beside(path, "-lock");
    let failed = |error| PlaceError::File { path: named.clone(), error };
    let open = |is_new: bool| {
        let mut options = OpenOptions::new();
        options.write(is_new).read(true).create(is_new).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        options.open(&named)
    };
    // On a file system that has become read-only, what is there can still be locked.
    let lock = match open(true) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => open(false),
        opened => opened,
    };
    let lock = lock.map_err(failed)?;
    let until = Instant::now() + patience;
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock(lock)),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(STEP),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(PlaceError::Taken(path.to_owned())),
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// A file beside the store, which is named after it.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Makes an empty store where there is none, for its owner and group. Files that SQLite makes beside it get the same mode.
pub(super) fn make(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o640).custom_flags(libc::O_NOFOLLOW);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // Whatever the caller's mask takes away.
        opened => opened?.set_permissions(fs::Permissions::from_mode(0o640)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_recorder_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("s.db");
        let lock = prepare(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o640, 0o750));
        assert!(matches!(prepare(&path), Err(PlaceError::Taken(_))));
        drop(lock);
        assert!(prepare(&path).is_ok());
    }

    #[test]
    fn places_of_others_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(prepare(&folder.path().join("s.db")), Err(PlaceError::Open(_))));
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("s.db")).unwrap();
        assert!(matches!(prepare(&folder.path().join("s.db")), Err(PlaceError::Symlink(_))));
        fs::write(folder.path().join("notes"), "no store").unwrap();
        assert!(matches!(prepare(&folder.path().join("notes")), Err(PlaceError::NoStore(_))));
        assert!(!folder.path().join("notes-lock").exists());
        assert!(matches!(is_there(&folder.path().join("a/b/s.db")), Err(PlaceError::NoFolder(_))));
        fs::create_dir(folder.path().join("inner")).unwrap();
        assert!(matches!(is_there(&folder.path().join("inner")), Err(PlaceError::Folder(_))));
        fs::write(folder.path().join("a.db"), "").unwrap();
        fs::hard_link(folder.path().join("a.db"), folder.path().join("b.db")).unwrap();
        assert!(matches!(prepare(&folder.path().join("b.db")), Err(PlaceError::Linked(_))));
    }

    #[test]
    fn nobody_else_can_move_the_folder_or_a_link_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| folder.path().join(name);
        fs::create_dir_all(of("open/inner")).unwrap();
        std::os::unix::fs::symlink(of("open/inner"), of("link")).unwrap();
        let places = [of("open/inner/s.db"), of("link/s.db")];
        fs::set_permissions(of("open"), fs::Permissions::from_mode(0o777)).unwrap();
        for place in &places {
            let error = is_there(place).unwrap_err();
            assert!(matches!(&error, PlaceError::Open(open) if *open == of("open")), "{error}");
        }
        fs::set_permissions(of("open"), fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(places.iter().all(|place| matches!(is_there(place), Ok(false))));
        assert!(matches!(is_there(&of("open/s.db")), Err(PlaceError::Open(_))), "others can put files there");
        assert!(matches!(is_there(&of("open/new/s.db")), Ok(false)), "nobody else can move what is made there");
        nix::unistd::fchownat(
            nix::fcntl::AT_FDCWD,
            &of("link"),
            Some(1234.into()),
            None,
            nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .unwrap();
        assert!(matches!(is_there(&of("link/s.db")), Err(PlaceError::Open(_))), "its owner can replace the link");
    }
}
