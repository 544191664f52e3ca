//! User names from the host's passwd file.
//!
//! Read by hand on purpose: the C library's look-up loads shared libraries, which a static program does not have.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// How long a reading of the file is good for.
const FRESH: Duration = Duration::from_secs(10);

/// Names by user id.
pub struct Users {
    path: PathBuf,
    names: HashMap<u32, String>,
    read: Option<Instant>,
}

impl Default for Users {
    fn default() -> Self {
        Self { path: PathBuf::from("/etc/passwd"), names: HashMap::new(), read: None }
    }
}

impl Users {
    /// Id of a user by name.
    pub fn id(&mut self, name: &str) -> Option<u32> {
        self.refresh();
        self.names.iter().find(|(_, known)| *known == name).map(|(id, _)| *id)
    }

    /// Name of a user; `None` when the file does not have one.
    pub fn name(&mut self, id: u32) -> Option<&str> {
        self.refresh();
        self.names.get(&id).map(String::as_str)
    }

    fn refresh(&mut self) {
        if self.read.is_none_or(|read| read.elapsed() > FRESH) {
            self.read = Some(Instant::now());
            self.names = fs::read_to_string(&self.path).map(|text| parse(&text)).unwrap_or_default();
        }
    }
}

/// The first name of an id counts, as in the C library.
fn parse(text: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        let (Some(name), Some(id)) = (fields.next(), fields.nth(1)) else { continue };
        if let Ok(id) = id.parse() {
            names.entry(id).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_counts_and_odd_lines_are_skipped() {
        let names = parse("root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\nbroken\n_apt:x:42:65534::/:/bin/false\n");
        assert_eq!(names.get(&0).map(String::as_str), Some("root"));
        assert_eq!(names.get(&42).map(String::as_str), Some("_apt"));
        assert_eq!(names.len(), 2);
    }
}
