//! Copies of front ends' files for a trial, in memory that only the trial's own thread and its programs see.
//!
//! Whoever manages the firewall of another namespace wrote them, who may be a stranger. So they are data: no link and no program
//! is among them, what a shell would read as commands is refused, and so is what would reach out of the copy.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{
    confinement::root::Shared,
    firewall::{
        files::{Content, Kept, Root},
        front_end::{self, FrontEnd},
    },
};

/// Where the copies are, in the mount namespace of the trial's thread.
const PLACE: &str = "/run";
/// Folders that programs write, empty at first.
const EMPTY: [&str; 4] = ["/run", "/tmp", "/var/log", "/var/tmp"];
/// Targets of rules, and the word of rich rules for the first, that would do something to the host itself: to its log of security,
/// to timers that all namespaces share, to lamps.
const ON_THE_HOST: [&str; 4] = ["AUDIT", "IDLETIMER", "LED", "audit"];

/// What front ends keep, to be put into a private copy.
pub struct Files(Vec<Kept>);

impl Files {
    /// Below a root folder.
    pub fn read(root: &Root) -> Result<Self> {
        let mut all = Vec::new();
        for front_end in front_end::ALL {
            all.extend(read(root, *front_end)?);
        }
        Ok(Self(all))
    }
}

/// What one front end keeps below a root folder; an error where it would do more than load rules of its namespace.
fn read(root: &Root, front_end: &dyn FrontEnd) -> Result<Vec<Kept>> {
    let needs = front_end.needs();
    let mut all = Vec::new();
    for folder in needs.folders {
        all.extend(root.keep(folder)?);
    }
    for path in needs.files {
        if let Ok(text) = root.read(path) {
            all.push(Kept { path: (*path).to_owned(), is_program: false, content: Content::File(text) });
        }
    }
    for file in &all {
        let Content::File(text) = &file.content else { continue };
        let path = file.path.as_str();
        ensure!(
            !(needs.hooks.contains(&path) && file.is_program),
            "{path} is run with the rules, and what it does is not tried"
        );
        harmless(text).with_context(|| format!("{path} is not tried"))?;
        if needs.shell_files.contains(&path) {
            assigns(text, front_end).with_context(|| format!("{path} is not tried"))?;
        }
    }
    all.retain(|file| !needs.hooks.contains(&file.path.as_str()));
    Ok(all)
}

/// Rules of a file or command that would do something to the host, though they are another namespace's; or that name a program.
pub(super) fn harmless(text: &str) -> Result<()> {
    ensure!(!text.contains("&#"), "its letters are written as numbers");
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    // iptables takes quotes and backslashes out of a word; XML has marks of its own around it.
    let plain: Vec<String> =
        lines.map(|line| line.replace(['"', '\'', '\\'], "").replace(['<', '>', '/'], " ")).collect();
    let is_option = |word: &str| ["-j", "-g"].iter().any(|option| word.starts_with(option));
    for word in plain.iter().flat_map(|line| line.split_whitespace()) {
        let target = if is_option(word) { &word[2..] } else { word };
        let target = target.rsplit('=').next().unwrap_or_default();
        ensure!(!ON_THE_HOST.contains(&target), "a rule in it would do something to the host (`{target}`)");
        ensure!(!names_a_program(word), "a rule in it names a program to run (`--modprobe`)");
    }
    Ok(())
}

/// `--modprobe=PROGRAM`, as short as iptables takes it.
fn names_a_program(word: &str) -> bool {
    let name = word.split('=').next().unwrap_or_default();
    // `-M`, also behind short options without a value.
    let short = word.strip_prefix('-').map(|letters| letters.trim_start_matches(|letter| "46cfnvwx".contains(letter)));
    short.is_some_and(|letters| letters.starts_with('M')) || name.len() > "--m".len() && "--modprobe".starts_with(name)
}

/// Lines that a shell reads must be plain assignments to the front end's variables.
fn assigns(text: &str, front_end: &dyn FrontEnd) -> Result<()> {
    let variables = front_end.needs().variables;
    // What a shell takes for white space, and nothing else: any other sign may begin a word, in which `#` is no comment.
    let blank = |letter: char| letter == ' ' || letter == '\t';
    for line in text.split('\n').map(|line| line.trim_matches(blank)) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        ensure!(
            line.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "a line in it has a sign that is no plain text"
        );
        let (name, value) = line.split_once('=').with_context(|| format!("`{line}` in it is no assignment"))?;
        ensure!(variables.contains(&name), "it sets `{name}`, which {} does not have", front_end.name());
        let value = value.split(" #").next().unwrap_or_default().trim_end();
        let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "_-./:,".contains(letter);
        let is_value = match quoted {
            Some(quoted) => quoted.chars().all(|letter| is_plain(letter) || letter == ' '),
            None => value.chars().all(is_plain),
        };
        ensure!(is_value, "`{line}` in it is more than a plain value");
    }
    Ok(())
}

/// The copies, as long as the thread lives that made them.
pub(super) struct Staging {
    folder: PathBuf,
    shared: Shared,
}

impl Staging {
    /// Makes them, in a mount namespace of the calling thread's own, which must end with the trial.
    pub(super) fn make(files: &Files) -> Result<Self> {
        // Threads share what they see of files until then.
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
        // What the host takes away is taken away here too.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
            .context("cannot keep mounts to itself")?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("observer"), PLACE, Some("tmpfs"), flags, Some("mode=0755,size=64m"))
            .with_context(|| format!("cannot mount {PLACE} privately"))?;
        let mut staging = Self { folder: PLACE.into(), shared: Vec::new() };
        let needs = || front_end::ALL.iter().map(|front_end| front_end.needs());
        let folders = needs().flat_map(|needs| needs.folders).copied();
        let beside = needs().flat_map(|needs| needs.files).filter_map(|path| Path::new(path).parent()?.to_str());
        for folder in folders.chain(EMPTY).chain(beside) {
            fs::create_dir_all(staging.at(folder))?;
            staging.shared.push((staging.at(folder), folder.to_owned()));
        }
        for Kept { path, content, .. } in &files.0 {
            match content {
                Content::File(text) => fs::write(staging.at(path), text)?,
                Content::Folder => fs::create_dir_all(staging.at(path))?,
            }
        }
        fs::create_dir_all(staging.at("/run/lock"))?;
        // Beside what they keep, front ends' own files are read when a rule is named.
        let system = staging.at("/usr");
        fs::create_dir_all(&system)?;
        mount(Some("/usr"), &system, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("cannot show /usr")?;
        Ok(staging)
    }

    /// Where a path of the programs' root folder is for the thread.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.folder.join(path.trim_start_matches('/'))
    }

    /// The folders, as programs are given them.
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Front ends' files as they are now.
    pub(super) fn root(&self) -> Result<Root> {
        Root::open(Path::new(&self.folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rule_may_not_say() {
        for line in [
            "-A OUTPUT -j AUDIT --type drop",
            "-A OUTPUT -jAUDIT",
            "-A OUTPUT --jump=\"AUD\"IT",
            "-A OUTPUT -g\tLED",
            "<rule priority=\"0\">-j IDLETIMER</rule>",
            "<audit/>",
            "<rule>&#45;-modprobe x</rule>",
            "-A OUTPUT -M /tmp/x -j DROP",
            "-A OUTPUT -vM/tmp/x -j DROP",
            "-A OUTPUT --modprobe=/tmp/x -j DROP",
            "-A OUTPUT --mod /tmp/x -j DROP",
            "-A OUTPUT \"--mo\"dprobe=/tmp/x -j DROP",
            "-A OUTPUT \"-\"M/tmp/x -j DROP",
        ] {
            assert!(harmless(&format!("*filter\n{line}\nCOMMIT\n")).is_err(), "{line}");
        }
        assert!(harmless("# -j AUDIT\n-A OUTPUT -m conntrack --match tcp -p tcp --dport 443 -j DROP\n").is_ok());
    }

    #[test]
    fn what_a_shell_may_read() {
        let kept = "# a comment\n\nIPV6=yes\nIPT_MODULES=\"nf_conntrack_ftp nf_nat_ftp\"\nDEFAULT_OUTPUT_POLICY='DROP'\n\
                    IPT_SYSCTL=/etc/ufw/sysctl.conf\nENABLED=yes # since May\n";
        let ufw = front_end::of_command("ufw").unwrap();
        assert!(assigns(kept, ufw).is_ok());
        for line in [
            "id",
            "IPV6=$(id)",
            "IPV6=\"`id`\"",
            "IPV6=yes; id",
            "IPV6=yes id",
            "PATH=/tmp",
            "IPT_MODULES=\"a\" id \"b\"",
            "IPV6=\"$HOME\"",
            ". /tmp/x",
            "\x0c#x || : $(id)",
            "\u{a0}#$(id)",
            "IPV6=yes\r",
        ] {
            assert!(assigns(line, ufw).is_err(), "{line}");
        }
    }
}
