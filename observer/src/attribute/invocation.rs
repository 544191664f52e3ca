//! Which run of a systemd unit it was: the id that systemd gives each, and by which the journal finds its messages.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// Where systemd keeps them, as links to nowhere: `invocation:UNIT`.
const FOLDER: &str = "/run/systemd/units";
/// They are read again after so long: a unit may have been started anew.
const FRESH: Duration = Duration::from_secs(1);
/// Units that are remembered.
const MAX_UNITS: usize = 256;

/// Ids by unit.
#[derive(Default)]
pub(super) struct Invocations(HashMap<String, (Instant, Option<String>)>);

impl Invocations {
    /// The id of the unit's run. Units of users' managers have none here.
    pub(super) fn of(&mut self, unit: &str) -> Option<String> {
        self.of_folder(Path::new(FOLDER), unit)
    }

    fn of_folder(&mut self, folder: &Path, unit: &str) -> Option<String> {
        if let Some((_, id)) = self.0.get(unit).filter(|(read, _)| read.elapsed() < FRESH) {
            return id.clone();
        }
        // A unit's name is a file's name but for this, which no name has.
        let link =
            (!unit.contains('/')).then(|| fs::read_link(folder.join(format!("invocation:{unit}"))).ok()).flatten();
        let id = link.and_then(|link| link.into_os_string().into_string().ok()).filter(|id| is_id(id));
        if self.0.len() >= MAX_UNITS {
            self.0.clear();
        }
        self.0.insert(unit.to_owned(), (Instant::now(), id.clone()));
        id
    }
}

/// 128 bits in hexadecimal digits.
fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_id_is_read_and_kept_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let id = "0123456789abcdef0123456789abcdef";
        symlink(id, folder.path().join("invocation:a.service")).unwrap();
        symlink("/etc/passwd", folder.path().join("invocation:b.service")).unwrap();
        let mut invocations = Invocations::default();
        assert_eq!(invocations.of_folder(folder.path(), "a.service").as_deref(), Some(id));
        assert_eq!(invocations.of_folder(folder.path(), "b.service"), None);
        assert_eq!(invocations.of_folder(folder.path(), "../a.service"), None);
        fs::remove_file(folder.path().join("invocation:a.service")).unwrap();
        assert_eq!(invocations.of_folder(folder.path(), "a.service").as_deref(), Some(id));
    }
}
