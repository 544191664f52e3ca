//! What a person reads.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, Lab},
    observer::{self, Observer},
    traffic,
};
use nix::{
    pty::{Winsize, openpty},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("one_block_an_incident_and_repeats_folded", folded),
    ("repeats_are_told_in_place", in_place),
    ("the_end_says_who_and_where_most", most),
    ("text_from_outside_is_escaped", escaped),
    ("background_is_one_line_unless_all", background),
];

fn told(lab: &Lab, more: &[&str], act: impl FnOnce() -> Result<()>) -> Result<String> {
    let netns = lab.client.path().display().to_string();
    let observer = Observer::start(["watch", "--netns", &netns].iter().chain(more))?;
    act()?;
    let (status, stdout, stderr) = observer.end(Signal::SIGINT)?;
    ensure!(status.success(), "{status}: {stderr}");
    Ok(String::from_utf8(stdout)?)
}

fn folded() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain out { type filter hook output priority 0; udp dport 53 counter drop; } }")?;
    let text = told(&lab, &[], || {
        let client = traffic::run(&lab.client, &["udp", FAR_V4, "53", "7"])?;
        ensure!(client.said.lines().all(|line| line == "EPERM"), "{}", client.said);
        Ok(())
    })?;
    ensure!(text.matches("BLOCKED").count() == 1, "{text}");
    ensure!(text.contains(&format!("{FAR_V4}:53/udp")) && text.contains("×7"), "{text}");
    ensure!(text.contains("7 packets blocked, 1 incident") && text.contains("lost 0"), "{text}");
    ensure!(!text.contains('\x1b'), "colours in a pipe: {text:?}");
    Ok(Outcome::Passed)
}

/// What a terminal of 30 rows and 100 columns shows, until it is told to stop.
struct Screen {
    child: Child,
    parser: Arc<Mutex<vt100::Parser>>,
    reader: Option<JoinHandle<()>>,
}

/// A scenario that fails leaves no observer behind.
impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Screen {
    fn start(args: &[&str]) -> Result<Self> {
        let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None)?;
        let mut child = observer::command()
            .args(args)
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .stdin(Stdio::null())
            .stdout(Stdio::from(pty.slave))
            .stderr(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stderr.take().context("stderr")?).read_line(&mut line)?;
        ensure!(line.starts_with("observer: ready"), "{line}");
        let parser = Arc::new(Mutex::new(vt100::Parser::new(size.ws_row, size.ws_col, 0)));
        let (mut master, writes) = (File::from(pty.master), Arc::clone(&parser));
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The other end is closed with an error.
            while let Ok(bytes @ 1..) = master.read(&mut buffer) {
                if let Ok(mut parser) = writes.lock() {
                    parser.process(&buffer[..bytes]);
                }
            }
        });
        Ok(Self { child, parser, reader: Some(reader) })
    }

    fn rows(&self) -> Result<Vec<String>> {
        let parser = self.parser.lock().map_err(|_| anyhow::anyhow!("the reader failed"))?;
        Ok(parser.screen().rows(0, 100).map(|row| row.trim_end().to_owned()).filter(|row| !row.is_empty()).collect())
    }

    /// Rows, once the last one is like that.
    fn until_last(&self, wanted: &str) -> Result<Vec<String>> {
        harness::wait_for(wanted, || {
            let rows = self.rows()?;
            Ok(rows.last().is_some_and(|last| last.contains(wanted)).then_some(rows))
        })
    }

    fn end(mut self) -> Result<Vec<String>> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        self.child.wait()?;
        let parser = Arc::clone(&self.parser);
        let reader = self.reader.take().context("it is read once")?;
        reader.join().map_err(|_| anyhow::anyhow!("the reader failed"))?;
        let parser = parser.lock().map_err(|_| anyhow::anyhow!("the reader failed"))?;
        Ok(parser.screen().rows(0, 100).map(|row| row.trim_end().to_owned()).filter(|row| !row.is_empty()).collect())
    }
}

/// One row for each incident that repeats, below everything, whatever comes in between.
fn in_place() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client
        .nft("table inet t { chain o { type filter hook output priority 0; udp dport { 53, 54 } counter drop; } }")?;
    let screen = Screen::start(&["watch", "--netns", &lab.client.path().display().to_string()])?;
    let again = |rows: &[String]| rows.iter().filter(|row| row.contains(" again ")).count();
    let blocks = |rows: &[String]| rows.iter().filter(|row| row.contains("BLOCKED")).count();
    traffic::run(&lab.client, &["udp", FAR_V4, "53", "7"])?;
    let rows = screen.until_last(&format!("{FAR_V4}:53/udp  ×7"))?;
    ensure!((again(&rows), blocks(&rows)) == (1, 1), "{rows:#?}");
    traffic::run(&lab.client, &["udp", FAR_V4, "53", "3"])?;
    let rows = screen.until_last(&format!("{FAR_V4}:53/udp  ×10"))?;
    ensure!((again(&rows), blocks(&rows)) == (1, 1), "{rows:#?}");
    traffic::run(&lab.client, &["udp", FAR_V4, "54", "1"])?;
    harness::wait_for("the second block", || Ok((blocks(&screen.rows()?) == 2).then_some(())))?;
    let rows = screen.until_last(&format!("{FAR_V4}:53/udp  ×10"))?;
    ensure!((again(&rows), blocks(&rows)) == (1, 2), "{rows:#?}");
    let rows = screen.end()?;
    ensure!((again(&rows), blocks(&rows)) == (1, 2), "{rows:#?}");
    // The last line may be longer than the screen is wide.
    ensure!(rows.iter().any(|row| row.contains("11 packets blocked, 2 incidents")), "{rows:#?}");
    Ok(Outcome::Passed)
}

fn most() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client
        .nft("table inet t { chain o { type filter hook output priority 0; udp dport { 53, 54 } counter drop; } }")?;
    let text = told(&lab, &[], || {
        traffic::run(&lab.client, &["udp", FAR_V4, "53", "4"])?;
        traffic::run(&lab.client, &["udp", FAR_V4, "54", "2"])?;
        traffic::run(&lab.client, &["named", "other", FAR_V4, "54"]).map(drop)
    })?;
    ensure!(text.contains("most from  python3 ×6, other ×1\n"), "{text}");
    ensure!(text.contains(&format!("most to    {FAR_V4}:53/udp ×4, {FAR_V4}:54/udp ×3\n")), "{text}");
    Ok(Outcome::Passed)
}

fn escaped() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain out { type filter hook output priority 0; udp dport 53 counter drop; } }")?;
    let text = told(&lab, &[], || traffic::run(&lab.client, &["named", r"a\x1b[2J\nfake", FAR_V4, "53"]).map(drop))?;
    ensure!(text.contains(r"a\x1b[2J\nfake["), "{text}");
    ensure!(text.chars().all(|character| character == '\n' || !character.is_control()), "{text:?}");
    Ok(Outcome::Passed)
}

fn background() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client
        .nft("table inet t { chain out { type filter hook output priority 0; udp dport 5353 counter drop; } }")?;
    let act = || traffic::run(&lab.client, &["udp", "224.0.0.251", "5353", "4"]).map(drop);
    let text = told(&lab, &[], act)?;
    ensure!(!text.contains("BLOCKED") && text.contains("folded (--all shows): 4 packets: mDNS 4"), "{text}");
    let text = told(&lab, &["--all"], act)?;
    ensure!(text.contains("BLOCKED") && text.contains("(mDNS)"), "{text}");
    Ok(Outcome::Passed)
}
