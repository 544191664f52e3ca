//! Names of containers, from the files of those that run them; no daemon is asked. Runs in the helper: the files are
//! root's.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use nix::fcntl::OFlag;
use serde::Deserialize;

use crate::model::ContainerName;

/// Docker's state: a folder for each container.
const DOCKER: &str = "var/lib/docker/containers";
/// The list of Podman's and CRI-O's storage.
const STORAGE: &str = "var/lib/containers/storage/overlay-containers/containers.json";
/// The same for a user's own containers, below the home folder.
const USER_STORAGE: &str = ".local/share/containers/storage/overlay-containers/containers.json";
/// Where the kubelet links each container's log: `POD_NAMESPACE_CONTAINER-ID.log`.
const LOGS: &str = "var/log/containers";

/// Largest state file that is read.
const MAX_BYTES: u64 = 16 << 20;

/// Name of the container with this full id, looked for below `root` (`/` but in tests).
pub fn name(root: &Path, id: &str) -> Option<ContainerName> {
    let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_id {
        return None;
    }
    kubernetes(root, id).or_else(|| docker(root, id)).or_else(|| storage(root, id))
}

fn kubernetes(root: &Path, id: &str) -> Option<ContainerName> {
    let ending = format!("-{id}.log");
    fs::read_dir(root.join(LOGS)).ok()?.flatten().find_map(|entry| {
        let file = entry.file_name().into_string().ok()?;
        let mut parts = file.strip_suffix(&ending)?.splitn(3, '_');
        let (pod, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
        Some(ContainerName { name: name.to_owned(), pod: Some((namespace.to_owned(), pod.to_owned())) })
    })
}

/// Reads a file that a user may have put there to do harm: only a regular one, of that owner if one is given, and not for
/// ever.
fn read(path: &Path, owner: Option<u32>) -> Option<Vec<u8>> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || meta.len() > MAX_BYTES || owner.is_some_and(|owner| owner != meta.uid()) {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[derive(Deserialize)]
struct Docker {
    #[serde(rename = "Name")]
    name: String,
}

fn docker(root: &Path, id: &str) -> Option<ContainerName> {
    let text = read(&root.join(DOCKER).join(id).join("config.v2.json"), None)?;
    let config: Docker = serde_json::from_slice(&text).ok()?;
    Some(ContainerName { name: config.name.trim_start_matches('/').to_owned(), pod: None })
}

#[derive(Deserialize)]
struct Stored {
    id: String,
    #[serde(default)]
    names: Vec<String>,
}

fn storage(root: &Path, id: &str) -> Option<ContainerName> {
    let homes = fs::read_dir(root.join("home")).into_iter().flatten().flatten();
    let lists = homes.filter_map(|home| Some((home.path().join(USER_STORAGE), Some(home.metadata().ok()?.uid()))));
    std::iter::once((root.join(STORAGE), None)).chain(lists).find_map(|(list, owner)| {
        let stored: Vec<Stored> = serde_json::from_slice(&read(&list, owner)?).ok()?;
        let found = stored.into_iter().find(|container| container.id == id)?;
        Some(ContainerName { name: found.names.into_iter().next()?, pod: None })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f1c2b3a4f1c2b3a4f1c2b3a4f1c2b3a4f1c2b3a4f1c2b3a4f1c2b3a4f1c2b3a";

    /// A root file system with one file.
    fn root(path: &str, text: &str) -> tempfile::TempDir {
        let root = tempfile::TempDir::new().unwrap();
        let file = root.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        root
    }

    fn plain(name: &str) -> Option<ContainerName> {
        Some(ContainerName { name: name.to_owned(), pod: None })
    }

    #[test]
    fn docker_podman_and_a_users_own() {
        let docker = root(&format!("{DOCKER}/{ID}/config.v2.json"), r#"{"ID":"x","Name":"/web"}"#);
        assert_eq!(name(docker.path(), ID), plain("web"));
        let list = format!(r#"[{{"id":"other","names":["no"]}},{{"id":"{ID}","names":["db","second"]}}]"#);
        assert_eq!(name(root(STORAGE, &list).path(), ID), plain("db"));
        assert_eq!(name(root(&format!("home/bob/{USER_STORAGE}"), &list).path(), ID), plain("db"));
    }

    #[test]
    fn what_a_user_puts_there_to_do_harm() {
        let home = root(&format!("home/bob/{USER_STORAGE}"), "[]");
        let list = home.path().join("home/bob").join(USER_STORAGE);
        fs::remove_file(&list).unwrap();
        nix::unistd::mkfifo(&list, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(name(home.path(), ID), None, "a pipe that nobody writes to");
        fs::remove_file(&list).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &list).unwrap();
        assert_eq!(name(home.path(), ID), None, "a file without an end");
    }

    #[test]
    fn a_pods_container() {
        let logs = root(&format!("{LOGS}/web-7d4b9_shop_nginx-{ID}.log"), "");
        let pod = Some(("shop".to_owned(), "web-7d4b9".to_owned()));
        assert_eq!(name(logs.path(), ID), Some(ContainerName { name: "nginx".to_owned(), pod }));
    }

    #[test]
    fn nothing_known_and_nothing_outside() {
        let empty = tempfile::TempDir::new().unwrap();
        assert_eq!(name(empty.path(), ID), None);
        assert_eq!(name(empty.path(), "../../etc"), None);
        assert_eq!(name(root(&format!("{DOCKER}/{ID}/config.v2.json"), "{").path(), ID), None);
    }
}
