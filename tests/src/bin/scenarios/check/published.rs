//! A script of another project, unmodified. Only what it asks of the network is answered by programs of ours.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use harness::lab::FAR_V4;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    check,
    conversations::{OTHER_V4, agrees, found, talking},
    lines, word,
};
use crate::Outcome;

/// What the script calls for answers from the network. The server answers for every name: at an address that the script allows
/// for the one, at another for the other.
const ANSWERS: [(&str, &str); 4] = [
    (
        "curl",
        "case \"$*\" in */meta) echo 203.0.113.64/26; exit;; *example*) to=203.0.113.10;; *) to=203.0.113.77;; esac\nexec 3<>/dev/tcp/$to/443\n",
    ),
    ("jq", "exec cat\n"),
    ("aggregate", "exec cat\n"),
    (
        "dig",
        "for name; do :; done\necho \"$name. 60 IN A 198.51.100.$(($(printf %s \"$name\" | cksum | cut -d ' ' -f 1) % 251))\"\n",
    ),
];

/// The firewall of an AI agent's development container.
pub(super) fn firewall_of_a_container() -> Result<Outcome> {
    let Some(script) = std::env::var_os("OBSERVER_PUBLISHED_SCRIPT") else {
        return Ok(Outcome::Skipped("the published script could not be downloaded".to_owned()));
    };
    let (lab, _server) = talking()?;
    let programs = TempDir::new()?;
    for (name, text) in ANSWERS {
        let path = programs.path().join(name);
        fs::write(&path, format!("#!/bin/bash\n{text}"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap_or_default());
    let output = lab.client.command("bash").arg(Path::new(&script)).env("PATH", path).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && said.contains("unable to reach https://example.com as expected"),
        "{}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let destinations = [
        ("tcp", FAR_V4, 443),
        ("tcp", FAR_V4, 80),
        ("udp", FAR_V4, 53),
        ("tcp", OTHER_V4, 443),
        ("tcp", "10.9.0.2", 443),
    ];
    let told = agrees(&lab.client, &destinations, "the published script")?;
    let is_allowed: Vec<bool> = told.iter().map(|event| event["event"]["action"] == "egress-allowed").collect();
    ensure!(is_allowed == [false, false, true, true, true], "{told:?}");

    // The fix is tested, and works for a client.
    let blocked = destinations[0];
    let event = lines(&check(&lab.client, &["-o", "json", &word(blocked)])?)?.remove(0);
    let fix = &event["egress"]["fix"];
    ensure!(fix["verified"] == true, "{event}");
    for line in fix["commands"].as_array().context("a fix has commands")?.iter().filter_map(Value::as_str) {
        lab.client.run("sh", &["-c", line])?;
    }
    ensure!(found(&lab.client, &[blocked])? == ["ok"], "{fix}");
    Ok(Outcome::Passed)
}
