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

/// The words of a front end's command; what enters the network namespace that is tested is left out.
pub(super) fn after(command: &str, netns: Option<&str>) -> Result<Vec<String>> {
    let words = shlex::split(command).ok_or_else(|| {
        usage("a quote in `--after` is not closed", "write the command as you would type it to a shell")
    })?;
    let mut words: Vec<String> = words.into_iter().skip_while(|word| word == "sudo").collect();
    if let ["ip", "netns", "exec", name, ..] = words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        let is_tested = netns.is_some_and(|netns| netns == name || netns == format!("/run/netns/{name}"));
        if !is_tested {
            return Err(usage(
                &format!("the command is for network namespace {name}, which is not the one that is tested"),
                &format!("add --netns {name}"),
            ));
        }
        words.drain(..4);
    }
    // Some of these are words of nft's own.
    let operators = if words.first().is_some_and(|program| program == "nft") {
        &["&&", "||"][..]
    } else {
        &["&&", "||", ";", "|", "&"]
    };
    let is_operator =
        |word: &&String| operators.contains(&word.as_str()) || operators.contains(&";") && word.ends_with(';');
    if let Some(word) = words.iter().find(is_operator) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_for_the_namespace_that_is_tested() {
        let command = "sudo ip netns exec blue nft add rule inet t o accept";
        for netns in ["blue", "/run/netns/blue"] {
            assert_eq!(after(command, Some(netns)).unwrap(), ["nft", "add", "rule", "inet", "t", "o", "accept"]);
        }
        for (command, netns, says) in [
            (command, Some("red"), "is not the one that is tested"),
            (command, None, "is not the one that is tested"),
            ("iptables -P OUTPUT DROP; iptables -F", None, "is for a shell"),
            ("ls", None, "cannot be tried"),
        ] {
            let said = format!("{:#}", after(command, netns).unwrap_err());
            assert!(said.contains(says), "{command}: {said}");
        }
    }
}
