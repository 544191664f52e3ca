//! From a cgroup's id, which the eBPF side reports, to its path. Runs in the helper.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::DirEntryExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// A miss walks the tree again at most this often: ids of cgroups that are gone come in bursts.
const REFRESH: Duration = Duration::from_millis(500);

/// Paths of the unified hierarchy by id (the inode number of the folder).
pub struct Cgroups {
    root: Option<PathBuf>,
    paths: HashMap<u64, String>,
    walked: Option<Instant>,
}

impl Cgroups {
    /// Knows the hierarchy below `root`; nothing without one.
    pub fn new(root: Option<PathBuf>) -> Self {
        Self { root, paths: HashMap::new(), walked: None }
    }

    /// Path of a cgroup, `/` for the root; `None` when it is gone.
    pub fn path(&mut self, id: u64) -> Option<String> {
        if !self.paths.contains_key(&id) && self.walked.is_none_or(|walked| walked.elapsed() > REFRESH) {
            self.walk();
        }
        self.paths.get(&id).cloned()
    }

    /// Its `cgroup.procs`, open so that a process can be put there.
    pub fn enter(&mut self, id: u64) -> Result<File> {
        let path = self.path(id).context("the cgroup is gone")?;
        let root = self.root.as_ref().context("no cgroups are known")?;
        let procs = root.join(path.trim_start_matches('/')).join("cgroup.procs");
        File::options().write(true).open(procs).with_context(|| format!("cgroup {path} cannot be entered"))
    }

    /// The folder of a cgroup by its path.
    pub fn folder(&self, path: &str) -> Result<PathBuf> {
        let root = self.root.as_ref().context("the unified cgroup hierarchy is not mounted here")?;
        ensure!(path.starts_with('/') && !path.split('/').any(|part| part == ".."), "`{path}` is no path of a cgroup");
        let folder = root.join(path.trim_start_matches('/'));
        ensure!(folder.join("cgroup.procs").is_file(), "there is no cgroup {path}");
        Ok(folder)
    }

    fn walk(&mut self) {
        self.walked = Some(Instant::now());
        let Some(root) = &self.root else { return };
        self.paths.clear();
        if let Ok(meta) = fs::metadata(root) {
            self.paths.insert(std::os::unix::fs::MetadataExt::ino(&meta), "/".to_owned());
        }
        let mut folders = vec![(root.clone(), String::new())];
        while let Some((folder, path)) = folders.pop() {
            for (name, inode) in children(&folder).unwrap_or_default() {
                let path = format!("{path}/{name}");
                folders.push((folder.join(&name), path.clone()));
                self.paths.insert(inode, path);
            }
        }
    }
}

fn children(folder: &Path) -> io::Result<Vec<(String, u64)>> {
    Ok(fs::read_dir(folder)?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.ino()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_found_by_inode() {
        let root = std::env::temp_dir().join(format!("observer-cgroups-{}", std::process::id()));
        fs::create_dir_all(root.join("system.slice/ssh.service")).unwrap();
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let mut cgroups = Cgroups::new(Some(root.clone()));
        let wanted = inode(&root.join("system.slice/ssh.service"));
        assert_eq!(cgroups.path(wanted).as_deref(), Some("/system.slice/ssh.service"));
        assert_eq!(cgroups.path(inode(&root)).as_deref(), Some("/"));
        assert_eq!(cgroups.path(u64::MAX), None);
        fs::remove_dir_all(root).unwrap();
    }
}
