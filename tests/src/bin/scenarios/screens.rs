//! Whole screens at four widths, in tmux: no row is cut inside a word, whatever is left out.
//!
//! Where a screen is the same in every run, it is a file (`tests/fixtures/screens`); `OBSERVER_BLESS=1` writes them anew.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, Lab},
    namespace::Namespace,
    observer::program,
    traffic, wait_for,
};

use crate::{Outcome, Scenario, without_trials};

pub(crate) const ALL: &[Scenario] = &[
    ("check_at_every_width", check),
    ("watch_at_every_width", watch),
    ("status_and_doctor_at_every_width", status),
    ("errors", errors),
];

const WIDTHS: [usize; 4] = [46, 80, 120, 200];
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/screens");
/// What stands behind everything that a command has written.
const END: &str = "THE-END";

/// A server of its own for every terminal.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A terminal in a namespace.
struct Tmux<'a> {
    namespace: &'a Namespace,
    socket: String,
}

impl Drop for Tmux<'_> {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}

impl<'a> Tmux<'a> {
    /// Runs a line of shell in so many columns; behind its output stands [`END`].
    fn start(namespace: &'a Namespace, width: usize, line: &str) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let terminal = Self { namespace, socket: format!("observer-{}-{number}", std::process::id()) };
        let line = format!("{line}; echo {END}; sleep 600");
        terminal.tmux(&["new-session", "-d", "-x", &width.to_string(), "-y", "400", &line])?;
        Ok(terminal)
    }

    fn tmux(&self, words: &[&str]) -> Result<String> {
        let mut command = self.namespace.command("tmux");
        command.args(["-f", "/dev/null", "-L", &self.socket]).args(words);
        command.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").env_remove("SUDO_UID").env_remove("NO_COLOR");
        let output = command.output().context("cannot run tmux")?;
        ensure!(output.status.success(), "tmux {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What it shows, rows that the terminal wrapped as one; with `-e` styles too.
    fn shown(&self, more: &[&str]) -> Result<String> {
        self.tmux(&[&["capture-pane", "-p", "-J"], more].concat())
    }

    /// The same once that is there.
    fn until(&self, wanted: &str) -> Result<String> {
        wait_for(wanted, || Ok(Some(self.shown(&[])?).filter(|text| text.contains(wanted))))
            .with_context(|| self.shown(&[]).unwrap_or_default())
    }
}

/// No row is longer than the terminal is wide, but for a single word that is.
fn fits(text: &str, width: usize) -> Result<()> {
    for row in text.lines() {
        let columns = row.trim_end().chars().count();
        let words = row.split_whitespace().count();
        // What stands between quotes is one word of a command.
        let is_one = words <= 2 || row.contains('\'');
        ensure!(columns <= width || is_one, "{columns} of {width} columns: {row}\n{text}");
    }
    Ok(())
}

/// Compares with a file, or writes it.
fn golden(name: &str, text: &str) -> Result<()> {
    let path = Path::new(FIXTURES).join(name);
    if std::env::var_os("OBSERVER_BLESS").is_some() {
        fs::write(&path, text)?;
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    ensure!(kept == text, "{name} has other words: see them, then run this scenario with OBSERVER_BLESS=1\n{text}");
    Ok(())
}

fn without_tmux() -> Option<Outcome> {
    let is_there = Command::new("tmux").arg("-V").output().is_ok_and(|output| output.status.success());
    (!is_there).then(|| Outcome::Skipped("tmux is not installed".to_owned()))
}

const RULES: &str = "table inet t { chain o { type filter hook output priority 0; tcp dport 443 drop\n} }";

fn check() -> Result<Outcome> {
    // Whether a fix was tested is part of the screen.
    if let Some(skipped) = without_tmux().or_else(without_trials) {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    lab.client.nft(RULES)?;
    for width in WIDTHS {
        let line = format!("{} check datadog --no-dns", program().display());
        let terminal = Tmux::start(&lab.client, width, &line)?;
        let text = terminal.until(END)?;
        fits(&text, width)?;
        // Which destinations, and what stops them, stands there at any width.
        ensure!(text.contains("install.datadoghq.com:443") && text.contains("BLOCKED v4 v6"), "{text}");
        ensure!(text.contains("tcp dport 443 drop"), "{text}");
        let styled = terminal.shown(&["-e"])?;
        ensure!(styled.contains('\x1b'), "no styles: {styled}");
        let plain = Tmux::start(&lab.client, width, &format!("NO_COLOR=1 {line}"))?;
        ensure!(plain.until(END)? == text, "other words without styles");
        let bare = plain.shown(&["-e"])?;
        ensure!(!bare.contains('\x1b'), "styles in spite of NO_COLOR: {bare}");
        let words: Vec<&str> = text.lines().map(str::trim_end).take_while(|row| *row != END).collect();
        golden(&format!("check-{width}.txt"), &format!("{}\n", words.join("\n")))?;
    }
    Ok(Outcome::Passed)
}

fn watch() -> Result<Outcome> {
    if let Some(skipped) = without_tmux() {
        return Ok(skipped);
    }
    for width in WIDTHS {
        let lab = Lab::new()?;
        lab.client.nft(RULES)?;
        let netns = lab.client.path();
        let line = format!("{} watch --netns {}", program().display(), netns.display());
        let terminal = Tmux::start(&lab.client, width, &line)?;
        terminal.until("ready")?;
        traffic::run(&lab.client, &["tcp", FAR_V4, "443", "2.5"])?;
        terminal.until("FIX")?;
        // Its row is written in place, and says how often and where to.
        let text = terminal.until("again")?;
        let row = text.lines().rfind(|row| row.contains("again")).context("no row")?;
        ensure!(row.contains('×') && row.contains(&format!("{FAR_V4}:443/tcp")), "{row}");
        fits(&text, width)?;
        // Five more destinations: two of them whole, the others as one row.
        for last in 21..26 {
            traffic::run(&lab.client, &["tcp", &format!("203.0.113.{last}"), "443", "0.1"])?;
        }
        let text = terminal.until("3 more destinations")?;
        ensure!(text.matches("BLOCKED").count() == 3, "{text}");
        fits(&text, width)?;
        terminal.tmux(&["send-keys", "C-c"])?;
        fits(&terminal.until("packets blocked")?, width)?;
    }
    Ok(Outcome::Passed)
}

fn status() -> Result<Outcome> {
    if let Some(skipped) = without_tmux() {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    lab.client.nft(RULES)?;
    lab.client.nft("add chain inet t f { type filter hook forward priority 0; policy drop; }")?;
    for width in WIDTHS {
        let terminal = Tmux::start(&lab.client, width, &program().display().to_string())?;
        let text = terminal.until(END)?;
        fits(&text, width)?;
        ensure!(text.contains("containers 1 policy can block forwarded"), "{text}");
        let terminal = Tmux::start(&lab.client, width, &format!("{} doctor", program().display()))?;
        fits(&terminal.until(END)?, width)?;
    }
    Ok(Outcome::Passed)
}

/// Every error is one sentence and at most a hint, as it was read.
fn errors() -> Result<Outcome> {
    const LINES: [&[&str]; 21] = [
        &["wach"],
        &["-o", "json", "watch"],
        &["watch", "--port", "htps"],
        &["watch", "--user", "nobody-here"],
        &["watch", "--cause", "netfliter"],
        &["watch", "--action", "egress-block"],
        &["watch", "--for", "soon"],
        &["watch", "--netns", "nowhere"],
        &["run"],
        &["run", "-c", ""],
        &["run", "--", "no-such-program"],
        &["run", "--report", "x.txt", "--", "true"],
        &["run", "--as", "nobody-here", "--", "true"],
        &["check", "datadgo"],
        &["check", "example.com:htps"],
        &["check", "example.com:0"],
        &["check", "2001:db8::1:443"],
        &["check", "203.0.113.10", "--after", "rm -rf /"],
        &["check", "203.0.113.10", "--set", "site=x"],
        &["check", "datadog", "--set", "place=x"],
        &["check", "203.0.113.10", "--ruleset", "/nonexistent"],
    ];
    let mut text = String::new();
    for words in LINES {
        let output = Command::new(program()).args(words).env("TERM", "dumb").output()?;
        let words: Vec<String> = words
            .iter()
            .map(|word| if word.is_empty() || word.contains(' ') { format!("'{word}'") } else { (*word).to_owned() })
            .collect();
        text.push_str(&format!("$ observer {}\n", words.join(" ")));
        text.push_str(&String::from_utf8(output.stderr)?);
        text.push_str(&String::from_utf8(output.stdout)?);
        text.push_str(&format!("[{}]\n\n", output.status.code().context("ended by a signal")?));
    }
    golden("errors.txt", &text)?;
    Ok(Outcome::Passed)
}
