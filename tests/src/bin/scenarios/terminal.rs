//! What a person reads.

use anyhow::{Result, ensure};
use harness::{
    lab::{FAR_V4, Lab},
    observer::Observer,
    traffic,
};
use nix::sys::signal::Signal;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("one_block_an_incident_and_repeats_folded", folded),
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
