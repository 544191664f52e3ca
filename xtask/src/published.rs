//! Scripts of other projects that a test runs unmodified. Their text is not ours to copy: it is downloaded, and compared with
//! the sum of the version that was read.

use std::{fs, path::PathBuf};

use crate::command;

/// The firewall of a development container for an AI agent, as its authors publish it.
const URL: &str = "https://raw.githubusercontent.com/anthropics/claude-code/d945a61bc6346abce607252d5667df8a3bf0461a/\
                   .devcontainer/init-firewall.sh";
const SHA256: &str = "d6da27a11b17bd9b1effa1d8d695e8e223c2214e85949f3afc6b6381d5327bae";
/// A machine without a way out must not hold up the tests.
const SECONDS: &str = "20";

/// Where the script is; `None` where it cannot be had.
pub(crate) fn firewall_of_a_container() -> Option<PathBuf> {
    let path = crate::root().join("target/published/init-firewall.sh");
    let is_right = || {
        command::output(command::new("sha256sum").arg(&path)).is_some_and(|text| text.split(' ').next() == Some(SHA256))
    };
    if !is_right() {
        fs::create_dir_all(path.parent()?).ok()?;
        let mut curl = command::new("curl");
        curl.args(["--fail", "--silent", "--location", "--max-time", SECONDS, "--output"]).arg(&path).arg(URL);
        command::output(&mut curl)?;
    }
    is_right().then_some(path)
}
