//! Which run of a systemd unit it was: the id that systemd gives each, and by which the journal finds its messages.

use std::{fs, os::unix::fs::MetadataExt, path::Path, time::Duration};

use jiff::Timestamp;

/// Where systemd keeps them, as links to nowhere: `invocation:UNIT`. A link is made when the unit is started.
pub(super) const FOLDER: &str = "/run/systemd/units";
/// A process's start is known to a hundredth of a second.
const EXACT: Duration = Duration::from_millis(20);

/// The id of the run that a unit's process belongs to, which sent something at that time. `None` where another run may have begun since,
/// and for units of users' managers, whose names may be those of the system's.
pub(super) fn of(folder: &Path, unit: &str, cgroup: &str, started: Option<Timestamp>, at: Timestamp) -> Option<String> {
    if unit.contains('/') || cgroup.split('/').any(|part| part.starts_with("user@")) {
        return None;
    }
    let link = folder.join(format!("invocation:{unit}"));
    let about = fs::symlink_metadata(&link).ok()?;
    let began = Timestamp::new(about.mtime(), i32::try_from(about.mtime_nsec()).ok()?).ok()?;
    if at < began || started.is_some_and(|started| started + EXACT < began) {
        return None;
    }
    let id = fs::read_link(&link).ok()?.into_os_string().into_string().ok()?;
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_id_is_that_of_the_run_that_sent_it() {
        const ID: &str = "0123456789abcdef0123456789abcdef";
        let folder = tempfile::tempdir().unwrap();
        let before = Timestamp::now() - Duration::from_secs(5);
        symlink(ID, folder.path().join("invocation:a.service")).unwrap();
        symlink("/etc/passwd", folder.path().join("invocation:b.service")).unwrap();
        let after = Timestamp::now() + Duration::from_secs(5);
        let id = |unit: &str, cgroup: &str, started, at| of(folder.path(), unit, cgroup, started, at);
        let system = "/system.slice/a.service";
        assert_eq!(id("a.service", system, Some(after), after).as_deref(), Some(ID));
        assert_eq!(id("a.service", system, None, after).as_deref(), Some(ID));
        assert_eq!(id("a.service", system, Some(before), after), None, "it is a process of a run before");
        assert_eq!(id("a.service", system, None, before), None, "it was sent before this run");
        assert_eq!(id("a.service", "/user.slice/user@1000.service/app.slice/a.service", None, after), None);
        assert_eq!(id("b.service", system, None, after), None, "it is no id");
        assert_eq!(id("../a.service", system, None, after), None);
    }
}
