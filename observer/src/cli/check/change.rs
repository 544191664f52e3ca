//! What is to be tried: a command (`--after`), or a proposed configuration (`--ruleset`, `--diff`).

use std::path::Path;

use anyhow::Result;

use super::usage;
use crate::{
    firewall::front_end::{self, Unjudged},
    model::ProposedChange,
};

/// A proposed configuration goes to the helper in one message.
const MAX_RULESET: usize = 96 << 10;

/// The words of a front end's command.
pub(super) fn after(command: &str) -> Result<Vec<String>> {
    let words = shlex::split(command).unwrap_or_default();
    let words: Vec<String> = words.into_iter().skip_while(|word| word == "sudo").collect();
    // Some of these are words of nft's own.
    let operators = if words.first().is_some_and(|program| program == "nft") {
        &["&&", "||"][..]
    } else {
        &["&&", "||", ";", "|", "&"]
    };
    if let Some(word) = words.iter().find(|word| operators.contains(&word.as_str())) {
        return Err(usage(
            &format!("`--after` runs one command and no shell, and `{word}` is for a shell"),
            "test several changes as a file, with --ruleset",
        ));
    }
    match words.first() {
        Some(program) if front_end::of_command(program).is_some() => Ok(words),
        Some(program) => Err(usage(
            &format!("`{program}` cannot be tried"),
            "use a ufw, firewall-cmd, nft, iptables or ip6tables command",
        )),
        None => Err(usage("there is no command in `--after`", "write --after 'ufw allow out 443/tcp'")),
    }
}

/// A proposed configuration; its text says for which front end it is.
pub(super) fn proposed(path: &Path) -> Result<ProposedChange> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        usage(
            &format!("cannot read {}: {error}", path.display()),
            "name a file for `nft -f`, of `iptables-save`, or ufw's user.rules",
        )
    })?;
    if text.len() > MAX_RULESET {
        return Err(usage(&format!("{} is longer than {MAX_RULESET} bytes", path.display()), "name a shorter one"));
    }
    if let Err(Unjudged { why, remedy }) = front_end::configuration(&text) {
        return Err(usage(&format!("{} is {why}", path.display()), remedy));
    }
    Ok(ProposedChange::Ruleset(text))
}
