//! systemd unit and container from a cgroup path. Pure.

use crate::model::Container;

/// Endings of systemd's units that can hold processes, slices apart.
const UNIT_ENDINGS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];
/// Prefixes of container scopes and folders, with the runtime.
const PREFIXES: [(&str, &str); 5] = [
    ("docker-", "docker"),
    ("libpod-payload-", "podman"),
    ("libpod-", "podman"),
    ("crio-", "cri-o"),
    ("cri-containerd-", "containerd"),
];
/// Length of a container id.
const ID_CHARS: usize = 64;

/// The systemd unit that a cgroup path belongs to, read as systemd reads it: slices, then the unit. Inside a user manager
/// (`user@1000.service`) it is the user's unit.
pub fn unit(path: &str) -> Option<String> {
    let mut parts = path.split('/').filter(|part| !part.is_empty() && !part.ends_with(".slice"));
    let unit = parts.next().filter(|part| is_unit(part))?;
    if unit.starts_with("user@")
        && let Some(inner) = parts.next().filter(|part| is_unit(part))
    {
        return Some(unescape(inner));
    }
    Some(unescape(unit))
}

/// The innermost systemd slice of a cgroup path.
pub fn slice(path: &str) -> Option<String> {
    path.split('/').rfind(|part| part.ends_with(".slice")).map(unescape)
}

/// The container that a cgroup path belongs to; the innermost one.
pub fn container(path: &str) -> Option<Container> {
    let parts: Vec<&str> = path.split('/').collect();
    (0..parts.len()).rev().find_map(|index| {
        let stem = parts[index].strip_suffix(".scope").unwrap_or(parts[index]);
        if let Some((id, runtime)) =
            PREFIXES.iter().find_map(|(prefix, runtime)| Some((stem.strip_prefix(prefix)?, *runtime)))
            && is_id(id)
        {
            return Some(Container { id: id.to_owned(), runtime: Some(runtime.to_owned()), name: None });
        }
        let parent = index.checked_sub(1).map_or("", |parent| parts[parent]);
        is_id(stem).then(|| Container {
            id: stem.to_owned(),
            runtime: match parent {
                "docker" => Some("docker".to_owned()),
                "libpod_parent" => Some("podman".to_owned()),
                _ => None,
            },
            name: None,
        })
    })
}

fn is_unit(part: &str) -> bool {
    UNIT_ENDINGS.iter().any(|ending| part.len() > ending.len() && part.ends_with(ending))
}

fn is_id(text: &str) -> bool {
    text.len() == ID_CHARS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A leading underscore guards names that would clash with the kernel's own files.
fn unescape(part: &str) -> String {
    part.strip_prefix('_').unwrap_or(part).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        let of = |path| unit(path);
        assert_eq!(of("/system.slice/ssh.service").as_deref(), Some("ssh.service"));
        assert_eq!(of("/user.slice/user-1000.slice/session-3.scope").as_deref(), Some("session-3.scope"));
        assert_eq!(
            of("/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.service").as_deref(),
            Some("app-x.service")
        );
        assert_eq!(of("/user.slice/user-1000.slice/user@1000.service").as_deref(), Some("user@1000.service"));
        assert_eq!(of("/init.scope").as_deref(), Some("init.scope"));
        assert_eq!(of("/"), None);
        assert_eq!(of("/mycgroup/ssh.service"), None, "not systemd's tree");
    }

    #[test]
    fn containers() {
        let id = "0123456789abcdef".repeat(4);
        let docker = Some(Container { id: id.clone(), runtime: Some("docker".to_owned()), name: None });
        assert_eq!(container(&format!("/system.slice/docker-{id}.scope")), docker);
        assert_eq!(container(&format!("/docker/{id}")), docker);
        assert_eq!(
            container(&format!("/kubepods.slice/kubepods-besteffort.slice/cri-containerd-{id}.scope"))
                .and_then(|container| container.runtime)
                .as_deref(),
            Some("containerd")
        );
        assert_eq!(container(&format!("/kubepods/burstable/pod1/{id}")).unwrap().runtime.as_deref(), None);
        let quadlet = container(&format!("/system.slice/app.service/libpod-payload-{id}")).unwrap();
        assert_eq!((quadlet.id, quadlet.runtime.as_deref()), (id.clone(), Some("podman")));
        assert_eq!(container(&format!("/machine.slice/libpod-conmon-{id}.scope")), None, "conmon runs outside");
        assert_eq!(container("/system.slice/ssh.service"), None);
    }
}
